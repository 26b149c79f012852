//! Hosts with several ways out: how the underlay is chosen, links by family and by peer, and a peer that changes its network.
//! Scenarios 13, 15 and 16.

use harness::{eventually, run_ok};

use crate::rig::{Node, Rig};

impl Rig {
    /// Gives a node `eth1`, on a second network of the underlay.
    fn add_second_link(&self, node: &Node) {
        if !self.underlay.link_names().contains(&"br1".to_owned()) {
            self.underlay.ip("link add br1 type bridge");
            self.underlay.ip("link set br1 up");
        }
        let (number, netns) = (node.number, node.netns.path());
        self.underlay
            .ip(&format!("link add second{number} type veth peer name eth1 netns {}", netns.display()));
        self.underlay.ip(&format!("link set second{number} master br1 up"));
        node.netns.ip("link set eth1 up");
    }
}

#[test]
fn a_pattern_finds_the_link_and_the_way_to_an_address_is_followed_when_routes_change() {
    let mut rig = Rig::new(1);
    rig.add_second_link(&rig.nodes[0]);
    let node = &mut rig.nodes[0];
    node.netns.ip("address add 192.0.2.1/24 dev eth1");
    node.configure("underlay: {interfacePattern: '^192[.]0[.]2[.]'}\n");
    node.start();
    let chosen = |node: &Node, link: &str, because: &str| {
        node.await_status(&format!("{link}, by {because}"), |status| {
            let found = status.underlay.as_ref();
            status.ready && found.is_some_and(|found| found.link == link && found.reason.contains(because))
        });
        let device = node.netns.ip_json("link show fairlead0");
        let local = if link == "eth0" { "198.18.0.1" } else { "192.0.2.1" };
        assert_eq!(device[0]["linkinfo"]["info_data"]["local"], local);
    };
    chosen(node, "eth1", "pattern");
    node.configure("underlay: {canReach: [203.0.113.1]}\n");
    chosen(node, "eth0", "way to the address");
    node.netns.ip("route add 203.0.113.0/24 via 192.0.2.254 dev eth1");
    chosen(node, "eth1", "way to the address");
    node.netns.ip("route add 203.0.113.1 via 198.18.0.254");
    chosen(node, "eth0", "way to the address");
    node.netns.ip("rule add to 203.0.113.1 lookup 100");
    node.netns.ip("route add 203.0.113.1 via 192.0.2.254 dev eth1 table 100");
    chosen(node, "eth1", "way to the address");
    node.netns.ip("route replace unreachable 203.0.113.1 table 100");
    chosen(node, "eth1", "last way to the address");
}

#[test]
fn scenario_13_the_families_have_links_of_their_own_and_both_are_used() {
    let mut rig = Rig::new(2);
    for node in &rig.nodes {
        rig.add_second_link(node);
        let number = node.number;
        node.netns.ip(&format!("address del fd00:198:18::{number}/64 dev eth0"));
        node.netns.ip(&format!("address add fd00:198:19::{number}/64 dev eth1 nodad"));
        node.netns.ip("-6 route replace default via fd00:198:19::fe dev eth1");
    }
    for config in ["backend: vxlan\n", "backend: host-gw\n"] {
        for node in &mut rig.nodes {
            node.configure(config);
            if node.status().is_none() {
                node.start();
            }
        }
        rig.await_joined();
        let path = if config.contains("vxlan") { "vxlan" } else { "direct" };
        for node in &rig.nodes {
            node.await_status("the path is that", |status| status.peers[0].path == path);
        }
        if path == "vxlan" {
            rig.add_pods();
        }
        rig.assert_reachable();
    }
    let routes = rig.nodes[0].netns.ip("-6 route show proto 70");
    assert!(routes.contains("via fd00:198:19::2 dev eth1"), "{routes}");
    let routes = rig.nodes[0].netns.ip("-4 route show proto 70");
    assert!(routes.contains("via 198.18.0.2 dev eth0"), "{routes}");
}

#[test]
fn scenario_16_peers_behind_different_links_are_reached_by_their_own_with_a_tunnel_and_without() {
    for backend in ["vxlan", "host-gw"] {
        let mut rig = Rig::new(3);
        rig.add_second_link(&rig.nodes[0]);
        rig.nodes[0].netns.ip("address add 198.19.0.1/24 dev eth1");
        // Node3 is on the second network alone, and is told that the address of node1 is there.
        rig.underlay.ip("link set port3 master br1");
        for line in [
            "address flush dev eth0 scope global",
            "address add 198.19.0.3/24 dev eth0",
            "route add 198.18.0.1 dev eth0",
            "route add default via 198.19.0.1",
        ] {
            rig.nodes[2].netns.ip(line);
        }
        for node in &mut rig.nodes {
            node.configure(&format!("backend: {backend}\ncluster: {{podCIDRs: [10.244.0.0/16]}}\n"));
            node.start();
        }
        let count = |status: &agent::Status| status.peers.iter().filter(|peer| !peer.path.is_empty()).count();
        rig.nodes[0].await_status("both peers have a path", |status| status.ready && count(status) == 2);
        rig.nodes[1].await_status("a path to node1", |status| status.ready && count(status) >= 1);
        rig.nodes[2].await_status("a path to node1", |status| status.ready && count(status) >= 1);
        rig.add_pods();
        let [first, second, third] = &rig.nodes[..] else { panic!("three nodes") };
        for (one, other) in [(first, second), (first, third), (third, first)] {
            let (source, target) = (&one.pod_addresses()[0], &other.pod_addresses()[0]);
            eventually(&format!("{backend}: {} reaches {}", one.name, other.name), || {
                one.pings(source, target).then_some(())
            });
        }
        if backend == "host-gw" {
            let routes = first.netns.ip("-4 route show proto 70");
            assert!(routes.contains("via 198.19.0.3 dev eth1"), "{routes}");
        }
    }
}

#[test]
fn scenario_15_a_peer_that_moves_onto_the_link_and_away_leaves_nothing_of_the_other_way() {
    let mut rig = Rig::new(2);
    rig.underlay.ip("address add 198.18.0.254/24 dev br0");
    run_ok(rig.underlay.command("sysctl").args(["-qw", "net.ipv4.ip_forward=1"]));
    for node in &mut rig.nodes {
        node.configure("vxlan: {directRouting: true}\ncluster: {podCIDRs: [10.244.0.0/16]}\n");
        node.start();
    }
    rig.await_joined();
    rig.add_pods();
    let [first, second] = &rig.nodes[..] else { panic!("two nodes") };
    let (source, target) = (first.pod_addresses().swap_remove(0), second.pod_addresses().swap_remove(0));
    let is = |path: &str| {
        for node in [first, second] {
            node.await_status(path, |status| status.ready && status.peers[0].path == path);
            node.await_settled();
            let entries = usize::from(path == "vxlan");
            assert_eq!((node.fdb().len(), node.neighbours().len()), (entries, entries), "{}", node.name);
            let routes = node.netns.ip("-4 route show proto 70");
            let own = routes.lines().filter(|line| !line.starts_with("unreachable")).collect::<Vec<_>>();
            let device = if path == "vxlan" { "dev fairlead0" } else { "dev eth0" };
            assert!(own.len() == 1 && own[0].contains(device), "{routes}");
        }
        eventually(path, || first.pings(&source, &target).then_some(()));
    };
    is("direct");
    for _ in 0..2 {
        rig.underlay.ip("link set port2 nomaster");
        rig.underlay.ip("address replace 198.19.0.254/24 dev port2");
        second.netns.ip("address flush dev eth0 scope global");
        second.netns.ip("address add 198.19.0.2/24 dev eth0");
        second.netns.ip("route replace default via 198.19.0.254");
        is("vxlan");
        rig.underlay.ip("address flush dev port2");
        rig.underlay.ip("link set port2 master br0");
        second.netns.ip("address flush dev eth0 scope global");
        second.netns.ip("address add 198.18.0.2/24 dev eth0");
        second.netns.ip("route replace default via 198.18.0.254");
        is("direct");
    }
}
