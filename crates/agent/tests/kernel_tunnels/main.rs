//! Agents on a kernel that carries WireGuard and IP in IP itself: what they make, what they heal, and that it makes no
//! difference to a peer who carries. Where the kernel has none of it, a test says so.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test that cannot go on has failed, and tools are what it asserts with"
)]

#[path = "../cluster/clear_text.rs"]
mod clear_text;
#[path = "../cluster/rig.rs"]
#[allow(dead_code, reason = "another suite's, of which this one needs a part")]
mod rig;
#[path = "../cluster/rotation.rs"]
mod rotation;
#[path = "../cluster/witness.rs"]
#[allow(dead_code, reason = "another suite's, of which this one needs a part")]
mod witness;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use harness::{eventually, has_tunnels, not_run, run, run_ok};

use rig::{Node, Rig};
use rustix::net::{AddressFamily, SocketType};
use witness::Witness;

/// Who carries WireGuard here.
const DATAPATH: &str = "kernel";

/// How many milliseconds are between two echoes of a witness, on a machine that may be an emulated one.
const PAUSE: i64 = 50;

/// The same while agents are killed: as many as an emulated machine sends beside that.
const KILLS_PAUSE: i64 = 10;

fn can_run() -> bool {
    has_tunnels(&["wireguard"])
}

/// Two nodes with these configurations and a pod each.
fn joined(configs: [&str; 2]) -> Rig {
    let mut rig = Rig::new(2);
    for (node, config) in rig.nodes.iter_mut().zip(configs) {
        node.configure(config);
        node.start();
    }
    rig.await_joined();
    rig.add_pods();
    rig
}

fn carrier(node: &Node) -> String {
    node.status().and_then(|status| status.backend.carrier).unwrap_or_default()
}

fn kind_of(node: &Node, link: &str) -> String {
    let shown = run(node.netns.command("ip").args(["-d", "-j", "link", "show", link]));
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap_or_default();
    shown[0]["linkinfo"]["info_kind"].as_str().unwrap_or_default().to_owned()
}

/// Every pod reaches every other one in both families, at the latest in a moment.
fn await_reachable(rig: &Rig) {
    for (from, to) in [(&rig.nodes[0], &rig.nodes[1]), (&rig.nodes[1], &rig.nodes[0])] {
        for (source, target) in from.pod_addresses().iter().zip(to.pod_addresses()) {
            let what = format!("{} {source} reaches {target}", from.name);
            eventually(&what, || from.pings(source, &target).then_some(()));
        }
    }
}

#[test]
fn the_kernel_carries_wireguard_and_what_is_taken_from_it_comes_back() {
    if !has_tunnels(&["wireguard"]) {
        return;
    }
    let rig = joined(["backend: wireguard\n"; 2]);
    await_reachable(&rig);
    let first = &rig.nodes[0];
    assert_eq!((carrier(first).as_str(), kind_of(first, "fairlead-wg").as_str()), ("kernel", "wireguard"));
    assert_eq!(first.netns.ip_json("link show fairlead-wg")[0]["mtu"], 1440);
    let status = first.status().unwrap();
    let [peer] = &status.kernel_peers[..] else { panic!("{:?}", status.kernel_peers) };
    assert!(peer.last_handshake.is_some() && peer.received_bytes > 0, "{peer:?}");
    assert!(status.tunnels.is_empty() && status.ready, "{status:?}");
    let private = std::fs::read_to_string(first.state_dir().join("wireguard.key")).unwrap();
    assert!(!first.log().contains(private.trim()), "the log has the key");

    let peers = || run_ok(first.netns.command("wg").args(["show", "fairlead-wg", "allowed-ips"]));
    let before = peers();
    let key = before.split_whitespace().next().unwrap();
    run_ok(first.netns.command("wg").args(["set", "fairlead-wg", "peer", key, "remove"]));
    // The kernel tells nobody of that.
    eventually("the peer is back", || (peers() == before).then_some(()));
    first.netns.ip("link delete fairlead-wg");
    eventually("the device is back with its peer", || {
        (kind_of(first, "fairlead-wg") == "wireguard").then_some(())
    });
    await_reachable(&rig);
    assert_eq!(peers(), before);
}

#[test]
fn a_node_whose_agent_carries_wireguard_and_one_whose_kernel_does_are_one_cluster_and_may_change_places() {
    if !has_tunnels(&["wireguard"]) {
        return;
    }
    let [user, kernel] = ["user", "kernel"]
        .map(|datapath| format!("backend: wireguard\nwireguard: {{datapath: {datapath}}}\n"));
    let mut rig = joined([&user, &kernel]);
    await_reachable(&rig);
    assert_eq!([carrier(&rig.nodes[0]), carrier(&rig.nodes[1])], ["agent", "kernel"]);
    // While an agent runs, and across its death.
    rig.nodes[0].configure(&kernel);
    rig.nodes[1].kill();
    rig.nodes[1].configure(&user);
    rig.nodes[1].start();
    for (node, wanted) in [(0, "kernel"), (1, "agent")] {
        eventually("the other one carries", || (carrier(&rig.nodes[node]) == wanted).then_some(()));
    }
    assert_eq!([0, 1].map(|node| kind_of(&rig.nodes[node], "fairlead-wg")), ["wireguard", "tun"]);
    await_reachable(&rig);
}

#[test]
fn scenario_52_what_the_kernels_wireguard_refuses_is_told_to_who_sends_and_counted() {
    if !has_tunnels(&["wireguard"]) {
        return;
    }
    let rig = joined(["backend: wireguard\n"; 2]);
    await_reachable(&rig);
    let first = &rig.nodes[0];
    let refused = || first.status().unwrap().backend.refused;
    assert_eq!(refused(), Some(0), "the device itself sends nothing");
    let nobodys = ["10.244.250.1", "fd00:10:244:fa::1"];
    for (source, target) in first.pod_addresses().iter().zip(nobodys) {
        let words = ["-n", "-c", "3", "-i", "0.2", "-W", "5", "-I", source, target];
        let said = run(first.netns.command("ping").args(words));
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.to_lowercase().contains("unreachable"), "{said}");
    }
    eventually("all are counted", || (refused() == Some(6)).then_some(()));
}

#[test]
fn a_cluster_moves_to_the_kernels_wireguard_and_back_node_by_node_and_loses_no_packet() {
    if !has_tunnels(&["wireguard"]) {
        return;
    }
    let mut rig = joined(["backend: vxlan\n"; 2]);
    await_reachable(&rig);
    let [first, second] = &mut rig.nodes[..] else { panic!("two nodes") };
    let witnesses = [Witness::every(PAUSE, first, second, 0), Witness::every(PAUSE, second, first, 1)];
    for (config, path) in [
        ("backend: wireguard\nwireguard: {datapath: kernel, strict: false}\n", "wireguard"),
        ("backend: vxlan\n", "vxlan"),
    ] {
        for node in [&mut *first, &mut *second] {
            let changes = |node: &Node| node.log().matches("the backend has changed").count();
            let before = changes(node);
            node.configure(config);
            eventually("the old backend is given up", || (changes(node) > before).then_some(()));
        }
        for node in [&*first, &*second] {
            node.await_status("the path is the other one", |status| status.peers[0].path == path);
        }
    }
    assert_eq!(witnesses.map(Witness::lost), [0, 0]);
}

#[test]
fn the_kernel_carries_ip_in_ip_also_to_a_node_whose_agent_does() {
    if !has_tunnels(&["ipip", "sit"]) {
        return;
    }
    let rig = joined(["backend: ipip\n", "backend: ipip\nipip: {datapath: user}\n"]);
    await_reachable(&rig);
    let [first, second] = &rig.nodes[..] else { panic!("two nodes") };
    assert_eq!([carrier(first), carrier(second)], ["kernel", "agent"]);
    assert_eq!(["fairlead-ipip", "fairlead-sit"].map(|link| kind_of(first, link)), ["ipip", "sit"]);
    assert_eq!(kind_of(second, "fairlead-ipip"), "tun");
    first.netns.ip("link delete fairlead-sit");
    eventually("the device is back", || (kind_of(first, "fairlead-sit") == "sit").then_some(()));
    await_reachable(&rig);
    first.await_settled();
    assert!(first.status().unwrap().ready);
}

#[test]
fn scenario_30_an_agent_killed_where_the_kernel_carries_its_tunnel_costs_no_packet() {
    if !has_tunnels(&["wireguard", "ipip", "sit"]) {
        return;
    }
    for backend in ["ipip", "vxlan", "wireguard"] {
        let config = format!("backend: {backend}\n");
        let mut rig = joined([&config, &config]);
        await_reachable(&rig);
        rig.nodes.iter().for_each(Node::await_settled);
        if backend != "vxlan" {
            assert_eq!([0, 1].map(|node| carrier(&rig.nodes[node])), ["kernel", "kernel"], "{backend}");
        }
        let [first, second] = &rig.nodes[..] else { panic!("two nodes") };
        // A new session of the kernel's WireGuard may lose one of its first packets, which no agent has to do with.
        let every = |from, to, family| Witness::every(KILLS_PAUSE, from, to, family);
        let witnesses = [
            every(first, second, 0),
            every(second, first, 0),
            every(first, second, 1),
            every(second, first, 1),
        ]
        .map(Witness::steady);
        for node in [0, 1, 1, 0] {
            rig.nodes[node].kill();
            rig.nodes[node].start();
            rig.nodes[node].await_status("ready again", |status| status.ready && status.peers.len() == 1);
            rig.nodes[node].await_settled();
        }
        let counts = witnesses.map(Witness::sent_and_answered);
        println!("{backend}: sent and answered {counts:?}");
        assert!(counts.iter().all(|(sent, answered)| sent == answered), "{backend}: {counts:?}");
    }
}

#[test]
fn scenario_33_cleaning_takes_the_kernels_own_tunnels_away() {
    if !has_tunnels(&["wireguard", "ipip", "sit"]) {
        return;
    }
    let everything = |node: &Node| [node.host_text(), node.netns.ip("-d link show")].join("\n");
    for backend in ["wireguard", "ipip"] {
        let mut rig = Rig::new(2);
        let was: Vec<String> = rig.nodes.iter().map(everything).collect();
        for node in &mut rig.nodes {
            node.configure(&format!("backend: {backend}\n"));
            node.start();
        }
        rig.await_joined();
        for (node, was) in rig.nodes.iter_mut().zip(&was) {
            assert_eq!(carrier(node), "kernel", "{backend}");
            assert_ne!(everything(node), *was, "{backend}");
            assert_eq!(node.stop(), Some(0));
            run_ok(&mut node.command(&["clean"]));
            eventually("the host is as it was", || (everything(node) == *was).then_some(()));
        }
    }
}

#[test]
fn tcp_comes_whole_through_the_kernels_tunnels_of_agents_where_the_underlay_loses_delays_and_reorders() {
    if !has_tunnels(&["wireguard", "ipip", "sit"]) {
        return;
    }
    for backend in ["vxlan", "ipip", "wireguard"] {
        let config = format!("backend: {backend}\n");
        let rig = joined([&config, &config]);
        await_reachable(&rig);
        let [first, second] = &rig.nodes[..] else { panic!("two nodes") };
        for node in [first, second] {
            let words = "qdisc add dev eth0 root netem delay 3ms 1ms loss 2% reorder 20% 50%";
            if !run(node.netns.command("tc").args(words.split(' '))).status.success() {
                return not_run("this kernel has no sch_netem");
            }
        }
        let has_lost = |node: &Node| {
            let told = run_ok(node.netns.command("tc").args(["-s", "qdisc", "show", "dev", "eth0"]));
            told.contains("netem") && !told.contains("dropped 0,")
        };
        // In large segments these are few packets.
        eventually("something was lost both ways", || {
            for family in [0, 1] {
                assert!(echoes(first, second, family, 300_000), "{backend}, family {family}");
            }
            (has_lost(first) && has_lost(second)).then_some(())
        });
    }
}

/// Sends bytes by one TCP connection from a node's pod to another's and has them sent back; true when they are the same.
fn echoes(from: &Node, to: &Node, family: usize, length: usize) -> bool {
    let [source, target] =
        [from, to].map(|node| SocketAddr::new(node.pod_addresses()[family].parse().unwrap(), 0));
    let listener = to.netns.inside(|| TcpListener::bind(target)).unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
    });
    let mut stream = from.netns.inside(|| {
        let family = if source.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let socket = rustix::net::socket(family, SocketType::STREAM, None).unwrap();
        // Otherwise it would come from the node.
        rustix::net::bind(&socket, &source).unwrap();
        rustix::net::connect(&socket, &address).unwrap();
        TcpStream::from(socket)
    });
    let sent: Vec<u8> = (0..length).map(|index| (index / 3 + index / 1000) as u8).collect();
    stream.write_all(&sent).unwrap();
    let mut received = vec![0; length];
    stream.read_exact(&mut received).unwrap();
    server.join().unwrap();
    sent == received
}
