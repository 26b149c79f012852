//! DEL and GC: who owns what, and when it goes.

use harness::{Namespace, Step, not_run, run_ok, strace_works};
use serde_json::json;

use crate::scene::{Pod, Scene};

#[test]
fn while_the_cable_stands_the_interface_plugin_takes_the_rules_along() {
    let scene = Scene::new();
    scene.drop_forwarded();
    let pod = scene.pod("net", 1, "c1");
    pod.admit(&scene, json!({}));
    assert_eq!((scene.elements().len(), scene.accepting().len()), (2, 4));
    pod.call(&scene, "firewall").del(&pod.config(json!({})));
    assert_eq!((scene.elements().len(), scene.accepting().len()), (2, 4));
    pod.call(&scene, "bridge").del(&pod.bridge);
    scene.expect_clean("after the bridge's DEL");
}

#[test]
fn without_the_cable_del_removes_its_own_at_once_with_or_without_a_previous_result() {
    for more in
        [json!({}), json!({ "prevResult": null }), json!({ "ingressPolicy": "no-such", "prevResult": null })]
    {
        let scene = Scene::new();
        scene.drop_forwarded();
        let (pod, other) = (scene.pod("net", 1, "c1"), scene.pod("net", 1, "c2"));
        pod.admit(&scene, json!({}));
        other.admit(&scene, json!({}));
        pod.lose_cable(&scene);
        for _ in 0..2 {
            pod.call(&scene, "firewall").del(&pod.config(more.clone()));
            let (elements, rules) = (scene.elements(), scene.accepting());
            assert!(!elements.iter().chain(&rules).any(|text| text.contains(pod.address())), "{rules:?}");
            assert_eq!((elements.len(), rules.len()), (2, 4));
        }
        let reply = other.call(&scene, "firewall").run("CHECK", &other.config(json!({})));
        assert_eq!(reply.exit, Some(0), "{reply:?}");
    }
}

#[test]
fn an_address_that_was_given_anew_stays_let_through_when_its_former_owner_is_deleted_late() {
    let scene = Scene::new();
    scene.drop_forwarded();
    let former = scene.pod("net", 1, "c1");
    former.admit(&scene, json!({}));
    former.lose_cable(&scene);
    let mut next = scene.pod("net", 1, "c2");
    next.result["ips"] = former.result["ips"].clone();
    next.admit(&scene, json!({}));
    former.call(&scene, "firewall").del(&former.config(json!({})));
    assert_eq!((scene.elements().len(), scene.accepting().len()), (2, 4));
    let reply = next.call(&scene, "firewall").run("CHECK", &next.config(json!({})));
    assert_eq!(reply.exit, Some(0), "{reply:?}");
}

#[test]
fn gc_keeps_the_valid_and_the_other_networks() {
    let scene = Scene::new();
    scene.drop_forwarded();
    let (stale, valid) = (scene.pod("net", 1, "c1"), scene.pod("net", 1, "c2"));
    let other = scene.pod("other", 2, "c1");
    for pod in [&stale, &valid, &other] {
        pod.admit(&scene, json!({ "ingressPolicy": "same-bridge" }));
    }
    let call = stale.call(&scene, "firewall");
    let without_list = stale.config(json!({ "prevResult": null }));
    assert_eq!(call.run("GC", &without_list).error_code(), 7);
    // An address for each family and pod, and each bridge in two sets.
    assert_eq!(scene.elements().len(), 6 + 4);
    let mut request = without_list;
    request["cni.dev/valid-attachments"] = json!([{ "containerID": "c2", "ifname": "eth0" }]);
    for _ in 0..2 {
        call.run("GC", &request).expect_success("GC");
        assert_eq!((scene.elements().len(), scene.accepting().len()), (4 + 4, 8));
    }
    for pod in [&valid, &other] {
        let config = pod.config(json!({ "ingressPolicy": "same-bridge" }));
        let reply = pod.call(&scene, "firewall").run("CHECK", &config);
        assert_eq!(reply.exit, Some(0), "{reply:?}");
    }
    // With nobody left the network's policy goes as well.
    request["cni.dev/valid-attachments"] = json!([]);
    call.run("GC", &request).expect_success("GC");
    assert_eq!((scene.elements().len(), scene.accepting().len()), (2 + 2, 4));
    assert!(!scene.elements().iter().any(|element| element.contains("\"net\"")), "{:?}", scene.elements());
}

/// Two networks on one bridge: the end of one does not open the other.
#[test]
fn a_bridge_keeps_its_policy_while_another_network_has_pods_on_it() {
    let scene = Scene::new();
    let mut pods = [scene.pod("net", 1, "c1"), scene.pod("net", 1, "c2")];
    pods[1].bridge["name"] = json!("second");
    for pod in &pods {
        pod.admit(&scene, json!({ "ingressPolicy": "same-bridge" }));
    }
    let collect = |pod: &Pod| {
        let mut request = pod.config(json!({ "prevResult": null }));
        request["cni.dev/valid-attachments"] = json!([]);
        pod.call(&scene, "firewall").run("GC", &request).expect_success("GC");
    };
    collect(&pods[0]);
    let config = pods[1].config(json!({ "ingressPolicy": "same-bridge" }));
    pods[1].call(&scene, "firewall").run("CHECK", &config).expect_success("CHECK");
    assert_eq!(scene.elements().len(), 2 + 2);
    collect(&pods[1]);
    assert_eq!(scene.elements(), [""; 0]);
}

#[test]
fn two_interfaces_of_one_container_are_kept_apart() {
    let scene = Scene::new();
    let (one, two) = (scene.pod("net", 1, "c1"), scene.pod("other", 2, "c1"));
    one.admit(&scene, json!({}));
    two.admit(&scene, json!({}));
    one.lose_cable(&scene);
    one.call(&scene, "firewall").del(&one.config(json!({ "prevResult": null })));
    let elements = scene.elements();
    assert!(elements.iter().all(|element| !element.contains(one.address())), "{elements:?}");
    assert_eq!(elements.len(), 2);
}

/// A pod that never was deleted leaves rules, and a GC that takes them stands still behind every message that it sends
/// while another pod gets the address: that one finds the rules there, and makes none.
#[test]
fn a_gc_of_what_the_reference_left_does_not_cut_off_who_gets_the_address_meanwhile() {
    if !strace_works() {
        return not_run("strace is not installed or not allowed");
    }
    let scene = Scene::new();
    scene.drop_forwarded();
    // Another one for each process, since every namespace of the machine is looked into.
    let number = std::process::id();
    let address = format!("10.56.{}.{}", number >> 8 & 0xff, number & 0xff);
    let left = [format!("-d {address} -m conntrack --ctstate RELATED,ESTABLISHED"), format!("-s {address}")];
    let leave = || {
        for rule in &left {
            let line = format!("-w -A CNI-FORWARD {rule} -j ACCEPT");
            run_ok(scene.host.command("iptables-nft").args(line.split(' ')));
        }
    };
    run_ok(scene.host.command("iptables-nft").args(["-w", "-N", "CNI-FORWARD"]));
    run_ok(scene.host.command("iptables-nft").args(["-w", "-A", "FORWARD", "-j", "CNI-FORWARD"]));
    let gc = json!({ "cniVersion": "1.1.0", "name": "gone", "type": "firewall", "backend": "iptables",
        "cni.dev/valid-attachments": [] });
    let next = |namespace: Namespace| {
        let result = json!({ "cniVersion": "1.1.0", "ips": [{ "address": format!("{address}/24") }] });
        let bridge = json!({ "name": "other" });
        Pod { namespace, container: "next".into(), bridge, result }
    };
    for number in 1.. {
        leave();
        assert_eq!(scene.accepting().len(), 2, "before step {number}");
        let idle = next(Namespace::new());
        let step = Step { name: "sendto", number };
        let mut stopped = idle.call(&scene, "firewall").stopped("GC", &gc, step);
        if !stopped.is_standing() {
            stopped.finish().expect_success("GC");
            assert_eq!(scene.accepting(), [""; 0], "nobody has had the address");
            assert!(number > 5, "it asks, looks and acts: {number}");
            return;
        }
        let pod = next(Namespace::with_loopback());
        pod.namespace.ip(&format!("address add {address}/32 dev lo"));
        let config = pod.config(json!({}));
        pod.call(&scene, "firewall").run("ADD", &config).expect_success("ADD");
        stopped.finish().expect_success("GC");
        assert_eq!(scene.accepting().len(), 2, "behind message {number}");
        pod.call(&scene, "firewall").del(&config);
        assert_eq!(scene.accepting(), [""; 0], "after DEL");
    }
}
