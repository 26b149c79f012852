//! Whole attachments: an interface plugin that asks dhcp for its address.

use harness::{Namespace, eventually};
use serde_json::{Value, json};

use crate::scene::{SERVER, Scene, addresses, routes, with_previous};

/// ADD, CHECK and DEL of a chain, judged in the pod and at the server.
fn live_and_die(scene: &Scene, plugin: &str, config: &Value) {
    let mut server = scene.dnsmasq(&[]);
    let _daemon = scene.daemon(&[]);
    let pod = Namespace::new();
    let call = scene.call(plugin, "c", &pod);
    let result = call.add(config);
    assert_eq!(json!(addresses(&pod)), json!([result["ips"][0]["address"]]));
    assert_eq!(routes(&pod), [format!("default via {SERVER}")]);
    assert!(pod.pings(SERVER), "{plugin}: the pod reaches the server");
    let previous = with_previous(config, &result);
    call.run("CHECK", &previous).expect_success("CHECK");
    call.del(&previous);
    assert!(pod.link_names().is_empty());
    // The address comes back only if the server was told while there still was a link.
    server.await_said("DHCPRELEASE", 1);
    eventually("dnsmasq holds no lease", || scene.leased().is_empty().then_some(()));
    assert_eq!(scene.kept(), Vec::<String>::new());
}

// 55
#[test]
fn a_pod_on_a_bridge_gets_an_address_and_gives_it_back_before_its_link_goes() {
    let Some(scene) = Scene::with(&["dnsmasq"]) else { return };
    live_and_die(&scene, "bridge", &scene.bridged());
}

// 55
#[test]
fn a_pod_on_a_macvlan_gets_an_address_and_gives_it_back_before_its_link_goes() {
    let Some(scene) = Scene::with(&["dnsmasq"]) else { return };
    // A link of the host that is no port of a bridge.
    scene.host.ip("link add up1 type veth peer name port1");
    scene.host.ip("link set port1 master cni0 up");
    scene.host.ip("link set up1 up");
    live_and_die(&scene, "macvlan", &scene.config("macvlan", json!({})));
}

#[test]
fn an_add_that_fails_after_the_lease_gives_it_back() {
    let Some(scene) = Scene::with(&["dnsmasq"]) else { return };
    // A route that the kernel refuses: its gateway is on no network of the pod.
    let mut server = scene.dnsmasq(&["--dhcp-option=121,10.9.0.0/16,192.0.2.77"]);
    let _daemon = scene.daemon(&[]);
    let pod = Namespace::new();
    let reply = scene.call("bridge", "c", &pod).run("ADD", &scene.bridged());
    assert_ne!(reply.exit, Some(0), "{reply:?}");
    assert!(pod.link_names().is_empty());
    server.await_said("DHCPRELEASE", 1);
    assert_eq!(scene.kept(), Vec::<String>::new());
}

#[test]
fn twenty_pods_at_once_get_twenty_addresses() {
    let Some(scene) = Scene::with(&["dnsmasq"]) else { return };
    let _server = scene.dnsmasq(&[]);
    let daemon = scene.daemon(&[]);
    let config = scene.bridged();
    let pods: Vec<Namespace> = (0..20).map(|_| Namespace::new()).collect();
    let names: Vec<String> = (0..20).map(|number| format!("c{number}")).collect();
    let mut given: Vec<String> = std::thread::scope(|scope| {
        let (scene, config) = (&scene, &config);
        let mut threads = Vec::new();
        for (pod, name) in pods.iter().zip(&names) {
            threads.push(scope.spawn(move || scene.call("bridge", name, pod).add(config)));
        }
        let result = |thread: std::thread::ScopedJoinHandle<'_, Value>| thread.join().unwrap();
        threads.into_iter().map(result).map(|result| result["ips"][0]["address"].to_string()).collect()
    });
    given.sort();
    given.dedup();
    assert_eq!((given.len(), scene.leased().len(), scene.kept().len()), (20, 20, 20));
    let threads = std::fs::read_dir(format!("/proc/{}/task", daemon.id())).unwrap().count();
    assert_eq!(threads, 1, "no thread for each lease");
}
