//! A cluster that knows no IPv4: pods of IPv6 alone, on nodes that have no other address, over every backend that IPv6 carries.
//!
//! Read [`Village::joined`]: two nodes, and a pod on each that the real plugin wires.

use harness::talk::{ask, serve};
use harness::{eventually, run, run_ok};

use crate::rig::{Node, Rig};
use crate::wired::WiredPod;

/// What the other end outside of the cluster has: it knows no way to any pod.
const OUTSIDE: &str = "fd00:198:18::fe";

/// Two nodes, and the pod of each.
struct Village {
    rig: Rig,
    pods: Vec<WiredPod>,
}

/// Takes everything of IPv4 from the node but its loopback.
fn forget_ipv4(node: &Node) {
    node.netns.ip("-4 address flush dev eth0");
    assert_eq!(node.netns.ip("-4 route show"), "");
}

impl Village {
    /// Every agent is ready and has joined the other, and the pods are there.
    fn joined(config: &str) -> Self {
        let mut rig = Rig::new(2);
        for node in &mut rig.nodes {
            forget_ipv4(node);
            node.configure(&format!("cluster: {{podCIDRs: ['fd00:10:244::/56']}}\n{config}"));
            node.start();
        }
        rig.await_joined();
        rig.underlay.ip(&format!("address add {OUTSIDE}/64 dev br0 nodad"));
        let pods = rig.nodes.iter().map(WiredPod::attach).collect();
        Self { rig, pods }
    }

    /// Each pod asks the other one, which sees it with its own address.
    fn assert_reachable(&self) {
        let [first, second] = &self.pods[..] else { panic!("two pods") };
        for (from, to) in [(first, second), (second, first)] {
            let ([from_address], [to_address]) = (&from.addresses[..], &to.addresses[..]) else {
                panic!("one address each")
            };
            eventually("a pod is reached", || from.netns.pings(to_address).then_some(()));
            let said = ask(&from.netns, to_address, 80);
            assert_eq!(said, Some(format!("pod {from_address}")));
        }
    }
}

/// Whether a packet of exactly this size reaches the other pod without being cut.
fn passes(from: &WiredPod, to: &WiredPod, size: u64) -> bool {
    let size = (size - 48).to_string();
    let words = ["-n", "-q", "-c", "2", "-i", "0.2", "-W", "3", "-M", "do", "-s", &size, &to.addresses[0]];
    run(from.netns.command("ping").args(words)).status.success()
}

/// Nothing of IPv4 is on the node: no address, no route, no rule that speaks of it, and no forwarding.
fn assert_without_ipv4(node: &Node) {
    let addresses = node.netns.ip("-4 address show scope global");
    assert_eq!(addresses, "", "{}", node.name);
    assert_eq!(node.netns.ip("-4 route show table main"), "", "{}", node.name);
    let rules = run_ok(node.netns.command("nft").args(["list", "ruleset"]));
    assert!(!rules.contains("ip saddr") && !rules.contains("ip daddr"), "{rules}");
    assert_eq!(node.netns.sysctl("net/ipv4/ip_forward"), "0");
}

#[test]
fn pods_of_ipv6_alone_are_joined_by_every_backend_on_nodes_without_an_ipv4_address() {
    for (config, path, mtu) in [
        ("backend: vxlan\n", "vxlan", 1430),
        ("vxlan: {directRouting: true}\n", "direct", 1430),
        ("backend: host-gw\n", "direct", 1500),
        ("backend: udp\n", "udp", 1452),
        ("backend: wireguard\nwireguard: {datapath: user}\n", "wireguard", 1420),
    ] {
        let village = Village::joined(config);
        let [first, second] = &village.pods[..] else { panic!("two pods") };
        village.pods.iter().for_each(|pod| serve(&pod.netns, 80, "pod"));
        village.assert_reachable();
        let node = &village.rig.nodes[0];
        let status = node.status().unwrap();
        assert_eq!(status.peers[0].path, path, "{config}");
        assert!(status.problems.is_empty() && status.conflicts.is_empty(), "{config}: {status:?}");
        assert_eq!(node.network_file().unwrap()["mtu"], mtu, "{config}");
        assert!(passes(first, second, mtu) && !passes(first, second, mtu + 1), "{config}");
        eventually("ready, with its peer asked", || node.health("/readyz").ends_with("200").then_some(()));
        village.rig.nodes.iter().for_each(assert_without_ipv4);
        // What leaves the cluster has the node's address.
        serve(&village.rig.underlay, 80, "outside");
        let said = ask(&first.netns, OUTSIDE, 80);
        assert_eq!(said.as_deref(), Some("outside fd00:198:18::1"), "{config}");
    }
}

#[test]
fn ip_in_ip_has_no_way_between_nodes_without_an_ipv4_address_and_says_so() {
    let mut rig = Rig::new(2);
    for node in &mut rig.nodes {
        forget_ipv4(node);
        node.configure("cluster: {podCIDRs: ['fd00:10:244::/56']}\nbackend: ipip\n");
        node.start();
    }
    for node in &rig.nodes {
        node.await_status("says why", |status| {
            !status.ready
                && status.reasons.iter().any(|reason| reason.contains("ipip travels over IPv4 alone"))
        });
    }
    // One of the nodes is given an address, and is ready without having been told anything.
    rig.nodes[0].netns.ip("address add 198.18.0.1/24 dev eth0");
    rig.nodes[0].netns.ip("route add default via 198.18.0.254");
    rig.nodes[0].await_status("ready", |status| status.ready);
}

#[test]
fn scenario_10_a_changed_ipv6_underlay_address_is_published_and_peers_follow() {
    for config in [
        "backend: vxlan\n",
        "backend: host-gw\n",
        "backend: udp\n",
        "backend: wireguard\nwireguard: {datapath: user}\n",
    ] {
        let village = Village::joined(config);
        village.pods.iter().for_each(|pod| serve(&pod.netns, 80, "pod"));
        village.assert_reachable();
        let [first, second] = &village.rig.nodes[..] else { panic!("two nodes") };
        second.netns.ip("address del fd00:198:18::2/64 dev eth0");
        second.await_status("says that the address is gone", |status| !status.ready);
        second.netns.ip("address add fd00:198:18::77/64 dev eth0 nodad");
        second.netns.ip("-6 route replace default via fd00:198:18::fe dev eth0");
        let moved = |status: &agent::Status| {
            let underlay = status.underlay.as_ref();
            status.ready && underlay.is_some_and(|underlay| underlay.address.to_string() == "fd00:198:18::77")
        };
        second.await_status("has the new address", moved);
        if config.contains("vxlan") {
            eventually("node1 sends to the new address", || {
                (first.fdb() == ["fd00:198:18::77"]).then_some(())
            });
        }
        village.assert_reachable();
        assert_eq!(second.status().unwrap().problems, Vec::<String>::new(), "{config}");
    }
}
