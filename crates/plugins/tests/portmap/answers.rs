//! Who reaches a pod through its host port, and as whom.

use harness::{Namespace, eventually};
use serde_json::{Value, json};

use crate::scene::{GATEWAY, HOST, OUTSIDE, Pod, Scene, tcp};
use harness::talk::{Client, ask, is_deaf, serve};

fn both(host_port: u16, port: u16) -> Value {
    json!([
        { "hostPort": host_port, "containerPort": port, "protocol": "tcp" },
        { "hostPort": host_port, "containerPort": port, "protocol": "udp" },
    ])
}

/// An address of the bridge is not usable before duplicate detection is done with it.
fn await_gateways(pod: &Pod) {
    for gateway in GATEWAY {
        eventually(gateway, || pod.namespace.pings(gateway).then_some(()));
    }
}

fn expect(from: &Namespace, address: &str, port: u16, answer: &str) {
    assert_eq!(ask(from, address, port).as_deref(), Some(answer), "TCP to {address} {port}");
    assert_eq!(Client::new(from, address, port).ask(), answer, "UDP to {address} {port}");
}

// 57
#[test]
fn a_host_port_answers_from_everywhere_in_both_families() {
    for filtered in [true, false] {
        answers_from_everywhere(&Scene::with_filtered_bridges(filtered));
    }
}

fn answers_from_everywhere(scene: &Scene) {
    let pod = scene.pod_with("c1", both(8080, 80));
    let other = scene.pod("c2");
    serve(&pod.namespace, 80, "c1");
    await_gateways(&pod);
    for family in 0..2 {
        let (host, gateway) = (HOST[family], GATEWAY[family]);
        // From outside the source is kept.
        expect(&scene.outside, host, 8080, &format!("c1 {}", OUTSIDE[family]));
        // From the host itself, by an address that is not its loopback's.
        expect(&scene.host, host, 8080, &format!("c1 {host}"));
        // From another pod of the same subnet, which the pod would otherwise answer past the host.
        expect(&other.namespace, host, 8080, &format!("c1 {gateway}"));
        // From the pod to itself, by two of the host's addresses.
        expect(&pod.namespace, host, 8080, &format!("c1 {gateway}"));
        expect(&pod.namespace, gateway, 8080, &format!("c1 {gateway}"));
    }
    expect(&scene.host, "127.0.0.1", 8080, "c1 10.1.2.1");
    // The kernel takes no answer for ::1 over a link: refused at once instead of swallowed.
    assert!(is_deaf(&scene.host, "::1", 8080));
    assert!(is_deaf(&scene.outside, HOST[0], 8081));
}

// 57
#[test]
fn a_mapping_on_one_address_is_on_no_other() {
    let scene = Scene::new();
    scene.host.ip("address add 192.0.2.2/24 dev up0");
    let one = |address: &str| json!([{ "hostPort": 8080, "containerPort": 80, "hostIP": address, "protocol": "tcp" }]);
    let first = scene.pod_with("c1", one("192.0.2.1"));
    let second = scene.pod_with("c2", one("192.0.2.2"));
    let local = scene.pod_with("c3", one("127.0.0.1"));
    let six = scene.pod_with("c4", one("2001:db8:9::1"));
    for (pod, word) in [(&first, "c1"), (&second, "c2"), (&local, "c3"), (&six, "c4")] {
        serve(&pod.namespace, 80, word);
    }
    await_gateways(&six);
    assert_eq!(ask(&scene.outside, "192.0.2.1", 8080).as_deref(), Some("c1 192.0.2.9"));
    assert_eq!(ask(&scene.outside, "192.0.2.2", 8080).as_deref(), Some("c2 192.0.2.9"));
    assert_eq!(ask(&scene.host, "127.0.0.1", 8080).as_deref(), Some("c3 10.1.2.1"));
    assert_eq!(ask(&scene.outside, "2001:db8:9::1", 8080).as_deref(), Some("c4 2001:db8:9::9"));
    assert!(is_deaf(&scene.outside, GATEWAY[0], 8080));
}

// 57
#[test]
fn a_udp_client_reaches_the_next_pod_from_the_same_port() {
    let scene = Scene::new();
    let first = scene.pod_with("c1", both(8053, 53));
    serve(&first.namespace, 53, "first");
    await_gateways(&first);
    let clients: Vec<Client> =
        [0, 1].map(|family| Client::new(&scene.outside, HOST[family], 8053)).into_iter().collect();
    for client in &clients {
        assert!(client.ask().starts_with("first "));
    }
    scene.delete(&first, both(8053, 53));
    let second = scene.pod_with("c2", both(8053, 53));
    serve(&second.namespace, 53, "second");
    for client in &clients {
        assert!(client.ask().starts_with("second "));
    }
}

// Issue: flows that were there before the port was mapped, and those that stay behind a pod that is gone.
#[test]
fn flows_of_before_and_of_afterwards_are_ended_and_those_of_others_are_not() {
    let scene = Scene::new();
    let other = scene.pod_with("other", both(8054, 54));
    serve(&other.namespace, 54, "other");
    await_gateways(&other);
    let bystander = Client::new(&scene.outside, HOST[0], 8054);
    bystander.ask();
    // Somebody on the host answers this port until a pod has it.
    serve(&scene.host, 8053, "host");
    let client = Client::new(&scene.outside, HOST[0], 8053);
    assert!(client.ask().starts_with("host "));
    let before = ids(&scene, 8054);
    let pod = scene.pod_with("c1", both(8053, 53));
    serve(&pod.namespace, 53, "pod");
    assert!(client.ask().starts_with("pod "));
    // And again when the pod is gone.
    scene.delete(&pod, both(8053, 53));
    assert!(client.ask().starts_with("host "));
    assert_eq!(ids(&scene, 8054), before, "the other's flow is the one it was");
    bystander.ask();
}

/// What the kernel calls the UDP flows to this port.
fn ids(scene: &Scene, port: u16) -> Vec<String> {
    let mut command = scene.host.command("conntrack");
    let output = command.args(["-L", "-p", "udp", "--orig-port-dst", &port.to_string(), "-o", "id"]).output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let ids: Vec<String> =
        text.split_whitespace().filter(|word| word.starts_with("id=")).map(str::to_owned).collect();
    assert!(!ids.is_empty(), "{text}");
    ids
}

#[test]
fn masq_all_hides_everybody_and_no_snat_hides_nobody() {
    let scene = Scene::new();
    for (name, port, more) in
        [("all", 8001, json!({ "masqAll": true })), ("none", 8002, json!({ "snat": false }))]
    {
        let pod = scene.pod(name);
        scene.map(&pod, "ADD", tcp(port, 80), more).expect_success("ADD");
        serve(&pod.namespace, 80, if name == "all" { "all" } else { "none" });
        await_gateways(&pod);
        std::mem::forget(pod);
    }
    for (family, gateway) in GATEWAY.into_iter().enumerate() {
        assert_eq!(ask(&scene.outside, HOST[family], 8001), Some(format!("all {gateway}")));
        assert_eq!(ask(&scene.outside, HOST[family], 8002), Some(format!("none {}", OUTSIDE[family])));
    }
    assert_eq!(ask(&scene.host, "127.0.0.1", 8001).as_deref(), Some("all 10.1.2.1"));
    assert!(is_deaf(&scene.host, "127.0.0.1", 8002));
}

#[test]
fn the_hosts_loopback_opens_for_answers_only() {
    let scene = Scene::new();
    assert_eq!(scene.host.sysctl("net/ipv4/conf/up0/route_localnet"), "0");
    let pod = scene.pod_with("c1", tcp(8080, 80));
    assert_eq!(scene.host.sysctl("net/ipv4/conf/br-test/route_localnet"), "1");
    assert_eq!(scene.host.sysctl("net/ipv4/conf/up0/route_localnet"), "0");
    await_gateways(&pod);
    // A service of the host that only the host may reach, and a pod that tries.
    let listener = scene.host.inside(|| std::net::TcpListener::bind("127.0.0.1:7000").unwrap());
    std::thread::spawn(move || while listener.accept().is_ok() {});
    pod.namespace.ip("route add 127.0.0.1/32 via 10.1.2.1");
    harness::run_ok(
        pod.namespace.command("sh").args(["-c", "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet"]),
    );
    assert!(is_deaf(&pod.namespace, "127.0.0.1", 7000));
    // It is the guard that keeps the pod away.
    harness::run_ok(scene.host.command("nft").args(["flush chain inet fairlead_cni hostports_prerouting"]));
    assert!(ask(&pod.namespace, "127.0.0.1", 7000).is_some());
}

#[test]
fn the_loopback_stays_shut_when_no_port_needs_it() {
    let scene = Scene::new();
    let pod = scene.pod("c1");
    let outer = json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1" }]);
    scene.map(&pod, "ADD", outer, json!({})).expect_success("ADD");
    scene.map(&pod, "ADD", tcp(8081, 80), json!({ "snat": false })).expect_success("ADD");
    assert_eq!(scene.host.sysctl("net/ipv4/conf/br-test/route_localnet"), "0");
}
