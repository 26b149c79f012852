//! Who sends, with packets: pods that send with addresses that are not their own; and pods whose cables are not the routed
//! ones, on one bridge or wired by the plugin `ptp`.

use std::net::{SocketAddr, UdpSocket};
use std::num::NonZeroU32;
use std::time::Duration;

use harness::talk::{Client, serve};
use harness::{Call, Namespace, eventually, run, run_ok};
use rustix::net::{AddressFamily, Protocol, SocketType};
use serde_json::{Value, json};

use crate::scene::{Pod, Scene, only_from};

/// A socket of that address, for datagrams.
fn socket(netns: &Namespace, address: &str, port: u16) -> UdpSocket {
    let at = SocketAddr::new(address.parse().unwrap(), port);
    let socket = netns.inside(|| UdpSocket::bind(at).unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

/// Lets the pod send with an address beside its own.
fn take_address(pod: &Pod, address: &str) {
    let length = if address.contains(':') { "128 nodad" } else { "32" };
    pod.netns.ip(&format!("address add {address}/{length} dev lo"));
}

/// How much the host has dropped for its sender's address.
fn dropped(scene: &Scene) -> u64 {
    let table = run(scene.node().netns.command("nft").args(["list", "table", "inet", "fairlead_antispoof"]));
    let table = String::from_utf8(table.stdout).unwrap();
    let rules = table.lines().filter(|rule| rule.contains("pod's address"));
    let counts = rules.map(|rule| rule.split_once("counter packets ").unwrap().1.split(' ').next().unwrap());
    counts.map(|count| count.parse::<u64>().unwrap()).sum()
}

/// Sends a datagram with a foreign address and then one with an own, and says who the first that arrives is from.
fn first_heard(pod: &Pod, [foreign, own]: [&str; 2], at: &UdpSocket) -> String {
    let to = at.local_addr().unwrap();
    for address in [foreign, own] {
        socket(&pod.netns, address, 0).send_to(b"x", to).unwrap();
    }
    let mut heard = Vec::new();
    // Both, where both arrive: none is left for the next one who listens.
    while heard.last().is_none_or(|last| last != own) {
        let (_, from) = at.recv_from(&mut [0; 8]).unwrap();
        heard.push(from.ip().to_string());
    }
    heard.swap_remove(0)
}

#[test]
fn a_pod_sends_with_no_address_but_its_own_unless_that_is_let_pass() {
    let mut scene = Scene::enforcing();
    let (web, client) = (scene.pod("web", "web"), scene.pod("client", "client"));
    let friend = scene.pod("friend", "friend");
    let mut sent = 0;
    let mut listening = Vec::new();
    for (family, node) in ["198.18.0.1", "fd00:198:18::1"].into_iter().enumerate() {
        // Another pod's, one that is no pod's, one that is of nowhere; and at last the node's, to which the client cannot send then.
        let others = [["10.244.99.9", "192.0.2.1"], ["fd00:10:244:99::9", "2001:db8::1"]][family];
        let foreign = [&*friend.addresses[family], others[0], others[1]];
        let own = &*client.addresses[family];
        let at_pod = socket(&web.netns, &web.addresses[family], 9);
        let at_node = socket(&scene.node().netns, node, 9);
        for address in foreign {
            take_address(&client, address);
            for witness in [&at_pod, &at_node] {
                assert_eq!(first_heard(&client, [address, own], witness), own, "as {address} to {witness:?}");
                sent += 1;
            }
        }
        take_address(&client, node);
        assert_eq!(first_heard(&client, [node, own], &at_pod), own, "as the node");
        sent += 1;
        listening.push((at_pod, foreign[0], own));
    }
    assert_eq!(dropped(&scene), sent);
    scene.rig.nodes[0].configure("policy: {attachmentPatienceSeconds: 10, foreignSenders: pass}\n");
    for (witness, foreign, own) in &listening {
        eventually("what a pod says it is is believed", || {
            (first_heard(&client, [foreign, own], witness) == *foreign).then_some(())
        });
    }
}

/// A socket of that IPv4 address for packets of a protocol that Linux does not know.
fn raw_socket(netns: &Namespace, address: &str, protocol: u8) -> UdpSocket {
    let protocol = Protocol::from_raw(NonZeroU32::new(protocol.into()).unwrap());
    let at: SocketAddr = format!("{address}:0").parse().unwrap();
    let socket = netns.inside(|| {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(protocol)).unwrap();
        rustix::net::bind(&socket, &at).unwrap();
        socket
    });
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

#[test]
fn neighbour_discovery_is_no_way_to_send_ipv4_with_another_address() {
    const ICMPV6: u8 = 58;
    let scene = Scene::enforcing();
    let (web, client) = (scene.pod("web", "web"), scene.pod("client", "client"));
    take_address(&client, "192.0.2.1");
    let arriving = raw_socket(&web.netns, &web.addresses[0], ICMPV6);
    for from in ["192.0.2.1", &client.addresses[0]] {
        let solicitation = [135, 0, 0, 0, 0, 0, 0, 0];
        let sending = raw_socket(&client.netns, from, ICMPV6);
        sending.send_to(&solicitation, arriving.local_addr().unwrap()).unwrap();
    }
    let (_, first) = arriving.recv_from(&mut [0; 64]).unwrap();
    assert_eq!(first.ip().to_string(), client.addresses[0]);
    assert_eq!(dropped(&scene), 1);
}

#[test]
fn policies_hold_between_the_pods_of_a_bridge_or_pods_that_they_are_about_are_refused() {
    if Namespace::new()
        .command("test")
        .args(["-e", "/proc/sys/net/bridge"])
        .status()
        .is_ok_and(|it| !it.success())
    {
        return harness::not_run("this kernel has no br_netfilter");
    }
    let mut scene = Scene::of(1, true);
    let (web, friend, client) =
        (scene.pod("web", "web"), scene.pod("friend", "friend"), scene.pod("client", "client"));
    assert_eq!(scene.node().netns.ip_json("link show master cni0").as_array().unwrap().len(), 3);
    serve(&web.netns, 80, "web");
    assert!(client.asks(&web) && friend.asks(&web), "nobody is isolated");
    let open: Vec<Client> =
        web.addresses.iter().map(|address| Client::new(&client.netns, address, 80)).collect();
    open.iter().for_each(|client| drop(client.ask()));
    scene.put_policy("door", "web", only_from("friend"));
    eventually("it is not let in", || client.is_deaf_to(&web).then_some(()));
    for client in &open {
        eventually("what was open is cut", || client.try_ask().is_none().then_some(()));
    }
    assert!(friend.asks(&web) && scene.node().netns.pings(&web.addresses[0]));
    scene.put_policy("lock", "friend", json!({"policyTypes": ["Egress"]}));
    eventually("it does not get out", || friend.is_deaf_to(&web).then_some(()));

    // Nobody knows who has such an address.
    for (pod, address) in [(&web, "fe80::1:1"), (&client, "fe80::1:2")] {
        pod.netns.ip(&format!("address add {address}/64 dev eth0 nodad"));
    }
    let near = || client.netns.pings("fe80::1:1%eth0");
    assert!(!near());
    // What is of no pod of the bridge goes nowhere from there.
    for foreign in ["192.0.2.1", "2001:db8::1"] {
        take_address(&client, foreign);
    }
    let before = dropped(&scene);
    for (foreign, node) in [("192.0.2.1", "198.18.0.1"), ("2001:db8::1", "fd00:198:18::1")] {
        socket(&client.netns, foreign, 0).send_to(b"x", SocketAddr::new(node.parse().unwrap(), 9)).unwrap();
    }
    eventually("both are dropped", || (dropped(&scene) >= before + 2).then_some(()));

    // Without frames passing the rules nothing can be promised.
    let bridged = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    run_ok(scene.node().netns.command("sh").args(["-c", &format!("echo 0 > {bridged}")]));
    let late = Pod::new("late", "uid-of-late");
    scene.put_pod(&late, "web");
    let reply = scene.call("ADD", &late);
    assert_eq!(reply.error_code(), 11, "{}", reply.stdout);
    assert!(reply.stdout.contains("br_netfilter"), "{}", reply.stdout);
    scene.put_pod(&late, "nobody");
    eventually("who is not isolated may come", || {
        let reply = scene.call("ADD", &late);
        (reply.exit == Some(0)).then_some(())
    });
    scene.rig.nodes[0].configure("policy: {enforcement: false}\n");
    eventually("where nobody enforces anything, it may be reached", || near().then_some(()));
}

#[test]
fn policies_hold_for_pods_that_the_plugin_ptp_wires() {
    let scene = Scene::enforcing();
    let plugins = harness::plugin_directory(&["ptp", "host-local"]);
    let pod = |name: &'static str, app: &str| {
        let mut pod = Pod::new(name, &format!("uid-of-{name}"));
        let call = Call::new(&scene.node().netns, plugins.path(), "ptp", &pod.uid, &pod.netns);
        let ranges = json!([[{"subnet": "10.9.0.0/24"}], [{"subnet": "fd00:9::/64"}]]);
        let ipam = json!({"type": "host-local", "dataDir": scene.ipam.path(), "ranges": ranges,
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]});
        let result = call.add(&json!({"cniVersion": "1.1.0", "name": "second", "type": "ptp", "ipam": ipam}));
        let address = |ip: &Value| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned();
        pod.addresses = result["ips"].as_array().unwrap().iter().map(address).collect();
        let ips: Vec<Value> = pod.addresses.iter().map(|ip| json!({"ip": ip})).collect();
        scene.put(
            name,
            &json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"namespace": "shop", "name": name, "uid": pod.uid, "labels": {"app": app}},
                "spec": {"nodeName": "node1"}, "status": {"phase": "Running", "podIPs": ips},
            }),
        );
        pod
    };
    let (web, friend, client) = (pod("web", "web"), pod("friend", "friend"), pod("client", "client"));
    serve(&web.netns, 80, "web");
    assert!(client.asks(&web) && friend.asks(&web), "nobody is isolated");
    scene.put_policy("door", "web", only_from("friend"));
    eventually("it is not let in", || client.is_deaf_to(&web).then_some(()));
    assert!(friend.asks(&web));
}
