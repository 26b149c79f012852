//! A running cluster is moved from one backend to another, node by node and slowly, and a witness counts what is lost.
//!
//! Slowly: each node is told when the one before has given its old backend up. Then the others no longer have what they had
//! for the change of their own, and are to receive by the old backend all the same until the last has let go of it.

use harness::{eventually, run};

use crate::clear_text::Watch;
use crate::rig::{Node, Rig};
use crate::witness::Witness;

const STRICT: &str = "backend: wireguard\n";
const NOT_STRICT: &str = "backend: wireguard\nwireguard: {strict: false}\n";

/// Two witnesses between each two nodes, one of each family and each the other way.
fn witnesses(nodes: &[Node]) -> Vec<Witness> {
    let mut witnesses = Vec::new();
    for (at, one) in nodes.iter().enumerate() {
        for other in &nodes[at + 1..] {
            witnesses.extend([Witness::start(one, other, 0), Witness::start(other, one, 1)]);
        }
    }
    witnesses
}

fn lost(witnesses: Vec<Witness>) -> Vec<i64> {
    witnesses.into_iter().map(Witness::lost).collect()
}

/// How often a node has changed its backend to the end.
fn changes(node: &Node) -> usize {
    node.log().matches("the backend has changed").count()
}

/// Moves one node, and waits until it has given the old backend up.
fn move_node(node: &mut Node, config: &str) {
    let before = changes(node);
    node.configure(config);
    eventually(&format!("{} has changed its backend to {config}", node.name), || {
        (changes(node) > before).then_some(())
    });
}

fn paths(node: &Node) -> Vec<String> {
    node.status().unwrap().peers.into_iter().map(|peer| peer.path).collect()
}

fn await_paths(nodes: &[Node], path: &str) {
    for node in nodes {
        node.await_status(&format!("all paths are {path}"), |status| {
            status.peers.iter().all(|peer| peer.path == path)
        });
    }
}

/// Moves all nodes through these backends, each with the name of the path that it has, and asserts that nothing is lost.
fn assert_moves(rig: &mut Rig, backends: &[(&str, &str)]) {
    for (config, path) in backends {
        let witnesses = witnesses(&rig.nodes);
        rig.nodes.iter_mut().for_each(|node| move_node(node, config));
        await_paths(&rig.nodes, path);
        let lost: Vec<i64> = lost(witnesses);
        let tunnels: Vec<_> = rig.nodes.iter().map(|node| node.status().unwrap().tunnels).collect();
        assert!(
            lost.iter().all(|lost| *lost == 0),
            "{lost:?} lost on the way to {config} of {backends:?}\n{tunnels:#?}"
        );
    }
}

#[test]
fn a_cluster_moves_to_wireguard_and_back_node_by_node_and_loses_no_packet_while_it_is_not_strict() {
    let mut rig = Rig::flowing(3, "backend: vxlan\n");
    let witnesses = witnesses(&rig.nodes);
    move_node(&mut rig.nodes[0], NOT_STRICT);
    assert_eq!(paths(&rig.nodes[0]), ["vxlan", "vxlan"]);
    assert_eq!(paths(&rig.nodes[1]), ["vxlan", "vxlan"]);
    // What pods of the node that was moved send at most, and no byte less, passes both ways.
    let mtu = rig.nodes[0].network_file().unwrap()["mtu"].as_u64().unwrap();
    assert_eq!(mtu, 1440);
    let [first, second, _] = &rig.nodes[..] else { panic!("three nodes") };
    for (from, to) in [(first, second), (second, first)] {
        for (family, (source, target)) in from.pod_addresses().iter().zip(to.pod_addresses()).enumerate() {
            let size = (mtu - [28, 48][family]).to_string();
            let words = ["-n", "-c", "1", "-W", "3", "-M", "do", "-s", &size, "-I", source, &target];
            assert!(run(from.netns.command("ping").args(words)).status.success(), "{source} to {target}");
        }
    }
    move_node(&mut rig.nodes[1], NOT_STRICT);
    assert_eq!(paths(&rig.nodes[0]), ["wireguard", "vxlan"], "two that have it speak by it");
    assert_eq!(paths(&rig.nodes[2]), ["vxlan", "vxlan"]);
    move_node(&mut rig.nodes[2], NOT_STRICT);
    await_paths(&rig.nodes, "wireguard");
    for node in &rig.nodes {
        assert_eq!(node.status().unwrap().backend.strict, Some(false));
    }

    let watch = Watch::start(&rig.underlay);
    for config in [STRICT, NOT_STRICT] {
        for node in &mut rig.nodes {
            node.configure(config);
            let wanted = Some(config == STRICT);
            node.await_status("strict or not, as it was told", |status| status.backend.strict == wanted);
            node.await_settled();
        }
        await_paths(&rig.nodes, "wireguard");
    }
    assert_eq!(watch.seen(), 0, "while all have it");

    rig.nodes.iter_mut().for_each(|node| move_node(node, "backend: vxlan\n"));
    await_paths(&rig.nodes, "vxlan");
    assert_eq!(lost(witnesses), [0; 6]);
}

#[test]
fn a_cluster_moves_from_host_gw_to_wireguard_and_back_node_by_node_and_loses_no_packet() {
    let mut rig = Rig::flowing(2, "backend: host-gw\n");
    let backends = [(NOT_STRICT, "wireguard"), ("backend: host-gw\n", "direct")];
    assert_moves(&mut rig, &backends);
}

#[test]
fn a_cluster_moves_between_vxlan_and_host_gw_and_others_ways_slowly_and_loses_no_packet() {
    let mut rig = Rig::flowing(2, "backend: vxlan\n");
    // Somebody else's ways, which are there for when nobody has a better one.
    let [first, second] = &rig.nodes[..] else { panic!("two nodes") };
    for (from, to, gateways) in
        [(first, second, ["198.18.0.2", "fd00:198:18::2"]), (second, first, ["198.18.0.1", "fd00:198:18::1"])]
    {
        for (cidr, gateway) in to.pod_cidrs().iter().zip(gateways) {
            from.netns.ip(&format!("route add {cidr} via {gateway} metric 9000"));
        }
    }
    let backends = [
        ("backend: host-gw\n", "direct"),
        ("backend: vxlan\n", "vxlan"),
        ("backend: none\n", ""),
        ("backend: vxlan\n", "vxlan"),
    ];
    assert_moves(&mut rig, &backends);
}

#[test]
fn a_cluster_moves_between_tunnels_of_the_agent_and_plain_routes_and_loses_no_packet() {
    let mut rig = Rig::flowing(2, "backend: udp\n");
    let backends = [
        ("backend: ipip\n", "ipip"),
        (NOT_STRICT, "wireguard"),
        ("backend: udp\n", "udp"),
        ("backend: host-gw\n", "direct"),
        ("backend: udp\n", "udp"),
    ];
    assert_moves(&mut rig, &backends);
}
