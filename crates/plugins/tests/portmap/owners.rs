//! Whose a host port is: conflicts, several networks, DEL and GC.

use harness::{Call, Namespace, Step, not_run, strace_works};
use serde_json::{Value, json};

use crate::scene::{HOST, Pod, Scene, tcp};
use harness::talk::{ask, is_deaf, serve};

fn on(address: &str) -> Value {
    json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": address }])
}

#[test]
fn a_port_that_is_taken_is_refused_and_its_owner_named() {
    let scene = Scene::new();
    let first = scene.pod_with("first", tcp(8080, 80));
    serve(&first.namespace, 80, "first");
    let second = scene.pod("second");
    let before = scene.elements();
    for mappings in [
        tcp(8080, 80),
        on("192.0.2.1"),
        json!([
            { "hostPort": 7000, "containerPort": 80, "protocol": "tcp" },
            { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
        ]),
    ] {
        let reply = scene.map(&second, "ADD", mappings, json!({}));
        assert_eq!(reply.error_code(), 101, "{reply:?}");
        let text = reply.error_text();
        assert!(
            text.contains("8080/tcp") && text.contains("test/first/eth0") && text.contains("hint:"),
            "{text}"
        );
        assert_eq!(scene.elements(), before);
    }
    assert_eq!(ask(&scene.outside, HOST[0], 8080).as_deref(), Some("first 192.0.2.9"));
    // Another protocol is another port.
    let udp = json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "udp" }]);
    scene.map(&second, "ADD", udp, json!({})).expect_success("ADD");
}

#[test]
fn a_port_on_one_address_stands_in_the_way_of_the_same_port_on_all() {
    let scene = Scene::new();
    scene.pod_with("first", on("192.0.2.1"));
    let second = scene.pod("second");
    let reply = scene.map(&second, "ADD", tcp(8080, 80), json!({}));
    assert!(reply.error_text().contains("8080/tcp on 192.0.2.1 is taken by test/first/eth0"), "{reply:?}");
    scene.map(&second, "ADD", on("192.0.2.2"), json!({})).expect_success("ADD");
}

/// One stands still behind every message that it sends to the kernel, and the other asks in the meantime.
#[test]
fn of_two_who_ask_at_the_same_instant_for_a_port_on_all_addresses_and_on_one_one_loses() {
    if !strace_works() {
        return not_run("strace is not installed or not allowed");
    }
    let scene = Scene::new();
    let pods = ["first", "second"].map(|name| scene.pod(name));
    for pod in &pods {
        // Not our cables any more: DEL of portmap takes the ports itself.
        let cable = pod.result["interfaces"][1]["name"].as_str().unwrap();
        scene.host.ip(&format!("link set {cable} alias foreign"));
    }
    let give_back = |pod: &Pod| scene.call(pod).del(&scene.config(pod, json!([]), json!({})));
    // What all share is there.
    scene.pod_with(
        "third",
        json!([
            { "hostPort": 7000, "containerPort": 80, "protocol": "tcp" },
            { "hostPort": 7001, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.2" },
        ]),
    );
    for (one, other) in [(tcp(8080, 80), on("192.0.2.1")), (on("192.0.2.1"), tcp(8080, 80))] {
        let mut stops = 0;
        loop {
            let config = scene.config(&pods[0], one.clone(), json!({}));
            let step = Step { name: "sendto", number: stops + 1 };
            let mut stopped = scene.call(&pods[0]).stopped("ADD", &config, step);
            if !stopped.is_standing() {
                stopped.finish().expect_success("ADD");
                give_back(&pods[0]);
                break;
            }
            stops += 1;
            let second = scene.map(&pods[1], "ADD", other.clone(), json!({}));
            let first = stopped.finish();
            let won = [&first, &second].iter().filter(|reply| reply.exit == Some(0)).count();
            assert_eq!(won, 1, "behind message {stops}: {first:?} {second:?}");
            let lost = if first.exit == Some(0) { &second } else { &first };
            assert!(lost.error_text().contains("8080/tcp"), "{lost:?}");
            assert!(lost.error_text().contains("is taken by test/"), "{lost:?}");
            pods.iter().for_each(give_back);
        }
        assert!(stops >= 3, "it asks, looks and acts: {stops}");
    }
}

#[test]
fn an_attachment_may_have_a_port_on_all_addresses_and_another_place_for_one() {
    let scene = Scene::new();
    let mut mappings = tcp(8080, 80);
    mappings.as_array_mut().unwrap().push(json!(
        { "hostPort": 8080, "containerPort": 81, "protocol": "tcp", "hostIP": "192.0.2.1" }
    ));
    let pod = scene.pod_with("c1", mappings.clone());
    serve(&pod.namespace, 80, "all");
    serve(&pod.namespace, 81, "one");
    assert_eq!(ask(&scene.outside, HOST[0], 8080).as_deref(), Some("one 192.0.2.9"));
    assert_eq!(ask(&scene.outside, "10.1.2.1", 8080).as_deref(), Some("all 192.0.2.9"));
    // The same twice is no contradiction, two places for one port are.
    scene.map(&pod, "ADD", mappings, json!({})).expect_success("ADD");
    let two = json!([{ "hostPort": 9, "containerPort": 1 }, { "hostPort": 9, "containerPort": 2 }]);
    let reply = scene.map(&pod, "ADD", two, json!({}));
    assert_eq!(reply.error_code(), 7, "{reply:?}");
    assert!(reply.error_text().contains("9/tcp is to lead to two places"), "{reply:?}");
}

#[test]
fn an_owner_whose_address_was_given_anew_has_lost_his_port() {
    let scene = Scene::new();
    let first = scene.pod_with("first", tcp(8080, 80));
    // A runtime that forgot the pod, and an address that is given again.
    std::fs::remove_dir_all(scene.data.path().join("test")).unwrap();
    scene.host.ip(&format!("link delete {}", first.result["interfaces"][1]["name"].as_str().unwrap()));
    let second = scene.pod("second");
    assert_eq!(second.result["ips"][0]["address"], first.result["ips"][0]["address"]);
    scene.map(&second, "ADD", tcp(8080, 80), json!({})).expect_success("ADD");
    scene.map(&second, "CHECK", tcp(8080, 80), json!({})).expect_success("CHECK");
    // The late DEL of the first takes nothing of the second's.
    scene.call(&first).del(&scene.config(&first, tcp(8080, 80), json!({})));
    scene.map(&second, "CHECK", tcp(8080, 80), json!({})).expect_success("CHECK");
    assert!(scene.elements().iter().all(|element| element.contains("second")), "{:?}", scene.elements());
}

// 59
#[test]
fn the_networks_of_one_container_are_kept_apart() {
    let scene = Scene::new();
    let pods = ["test", "two"].map(|network| scene.pod_of(network, "c1"));
    for (pod, port) in pods.iter().zip([8081, 8082]) {
        scene.map(pod, "ADD", tcp(port, 80), json!({})).expect_success("ADD");
        serve(&pod.namespace, 80, if port == 8081 { "one" } else { "two" });
    }
    assert_eq!(ask(&scene.outside, HOST[0], 8081).as_deref(), Some("one 192.0.2.9"));
    scene.delete(&pods[0], tcp(8081, 80));
    assert!(is_deaf(&scene.outside, HOST[0], 8081));
    assert_eq!(ask(&scene.outside, HOST[0], 8082).as_deref(), Some("two 192.0.2.9"));
    scene.map(&pods[1], "CHECK", tcp(8082, 80), json!({})).expect_success("CHECK");
}

/// Engines hand a container's ports to every network that it joins.
#[test]
fn one_port_in_two_networks_of_a_container_stays_with_the_first() {
    let scene = Scene::new();
    let [one, two] = ["test", "two"].map(|network| scene.pod_of(network, "c1"));
    serve(&one.namespace, 80, "one");
    for pod in [&one, &two] {
        scene.map(pod, "ADD", tcp(8080, 80), json!({})).expect_success("ADD");
    }
    assert_eq!(ask(&scene.outside, HOST[0], 8080).as_deref(), Some("one 192.0.2.9"));
    for pod in [&one, &two] {
        scene.map(pod, "CHECK", tcp(8080, 80), json!({})).expect_success("CHECK");
        scene.map(pod, "ADD", tcp(8080, 80), json!({})).expect_success("ADD again");
    }
    let stranger = scene.pod("stranger");
    let reply = scene.map(&stranger, "ADD", tcp(8080, 80), json!({}));
    assert!(reply.error_text().contains("8080/tcp is taken by test/c1/eth0"), "{reply:?}");
    scene.delete(&two, tcp(8080, 80));
    assert_eq!(ask(&scene.outside, HOST[0], 8080).as_deref(), Some("one 192.0.2.9"));
    scene.map(&one, "CHECK", tcp(8080, 80), json!({})).expect_success("CHECK");
    scene.delete(&one, tcp(8080, 80));
    assert_eq!(scene.elements(), [""; 0]);
}

#[test]
fn del_leaves_the_ports_to_the_cables_plugin_while_the_cable_stands() {
    let scene = Scene::new();
    let pod = scene.pod_with("c1", tcp(8080, 80));
    serve(&pod.namespace, 80, "c1");
    scene.call(&pod).del(&scene.config(&pod, tcp(8080, 80), json!({})));
    assert_eq!(ask(&scene.outside, HOST[0], 8080).as_deref(), Some("c1 192.0.2.9"));
    let bridge = Call::new(&scene.host, scene.bin.path(), "bridge", &pod.name, &pod.namespace);
    bridge.del(&scene.bridge("test"));
    assert_eq!(scene.elements(), [""; 0]);
    assert!(is_deaf(&scene.outside, HOST[0], 8080));
}

// 59
#[test]
fn del_takes_the_ports_at_once_when_the_cable_is_not_ours_whatever_the_runtime_forgot() {
    let scene = Scene::new();
    let other = scene.pod_with("other", tcp(9090, 80));
    for forgotten in ["runtimeConfig", "prevResult", "nothing"] {
        let pod = scene.pod_with("c1", tcp(8080, 80));
        scene
            .host
            .ip(&format!("link set {} alias foreign", pod.result["interfaces"][1]["name"].as_str().unwrap()));
        let mut config = scene.config(&pod, tcp(8080, 80), json!({ "markMasqBit": 77 }));
        config.as_object_mut().unwrap().remove(forgotten);
        let mut call = scene.call(&pod);
        call.netns = std::path::PathBuf::new();
        call.del(&config);
        assert_eq!(scene.elements().len(), 4, "without {forgotten}: {:?}", scene.elements());
        call.del(&config);
        let bridge = Call::new(&scene.host, scene.bin.path(), "bridge", &pod.name, &pod.namespace);
        bridge.del(&scene.bridge("test"));
    }
    scene.map(&other, "CHECK", tcp(9090, 80), json!({})).expect_success("CHECK");
}

// 12
#[test]
fn gc_takes_what_nobody_has_and_of_its_network_only() {
    let scene = Scene::new();
    let kept = scene.pod_with("kept", tcp(8001, 80));
    scene.pod_with("stale", tcp(8002, 80));
    let other = scene.pod_of("other", "c1");
    scene.map(&other, "ADD", tcp(8003, 80), json!({})).expect_success("ADD");
    assert_eq!(scene.elements().len(), 12);
    scene.collect("test", &[&kept]).expect_success("GC");
    assert_eq!(scene.elements().len(), 8);
    assert!(!scene.elements().iter().any(|element| element.contains("stale")));
    scene.map(&kept, "CHECK", tcp(8001, 80), json!({})).expect_success("CHECK");
    scene.map(&other, "CHECK", tcp(8003, 80), json!({})).expect_success("CHECK");
    let missing = json!({ "cniVersion": "1.1.0", "name": "test", "type": "portmap" });
    let mut call = Call::new(&scene.host, scene.bin.path(), "portmap", "", &scene.host);
    (call.netns, call.ifname) = (std::path::PathBuf::new(), "");
    assert_eq!(call.run("GC", &missing).error_code(), 7);
    assert_eq!(scene.elements().len(), 8);
    scene.collect("test", &[]).expect_success("GC");
    scene.collect("other", &[]).expect_success("GC");
    assert_eq!(scene.elements(), [""; 0]);
}

// 9
#[test]
fn del_and_gc_of_nothing_succeed() {
    let scene = Scene::new();
    let pod = scene.pod("c1");
    scene.call(&pod).del(&scene.config(&pod, tcp(8080, 80), json!({})));
    scene.collect("test", &[]).expect_success("GC");
    let gone = Namespace::new();
    let mut call = Call::new(&scene.host, scene.bin.path(), "portmap", "nobody", &gone);
    call.netns = "/var/run/netns/no-such".into();
    call.del(&json!({ "cniVersion": "1.1.0", "name": "test", "type": "portmap" }));
}
