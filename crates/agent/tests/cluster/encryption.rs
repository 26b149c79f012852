//! What is to be encrypted never leaves in the clear: a watch between the nodes, and all that may befall a node.

use std::process::{Child, Stdio};

use agent::PeerState;
use harness::{eventually, run_ok};

use crate::clear_text::Watch;
use crate::rig::{Node, Rig};

/// Pods that go on sending, whatever becomes of it.
struct Senders(Vec<Child>);

impl Senders {
    fn start(from: &Node, to: &Node) -> Self {
        let pairs = from.pod_addresses().into_iter().zip(to.pod_addresses());
        let send = |(source, target): (String, String)| {
            let mut ping = from.netns.command("ping");
            ping.args(["-n", "-q", "-i", "0.005", "-I", &source, &target]);
            ping.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        };
        Self(pairs.map(send).collect())
    }
}

impl Drop for Senders {
    fn drop(&mut self) {
        for ping in &mut self.0 {
            let _ = ping.kill();
            let _ = ping.wait();
        }
    }
}

#[test]
fn no_packet_of_a_pod_leaves_in_the_clear_whatever_befalls_the_node() {
    let mut rig = Rig::new(2);
    for node in &mut rig.nodes {
        node.configure("backend: wireguard\ncluster: {deletedNodeGraceSeconds: 0}\n");
        node.start();
    }
    rig.await_joined();
    rig.add_pods();
    rig.assert_reachable();
    let watch = Watch::start(&rig.underlay);
    let [first, second] = &mut rig.nodes[..] else { panic!("two nodes") };
    let senders = Senders::start(first, second);
    let (source, target) = (first.pod_addresses().swap_remove(0), second.pod_addresses().swap_remove(0));

    for _ in 0..3 {
        first.netns.ip("link delete fairlead-wg");
        eventually("the tunnel is back", || first.pings(&source, &target).then_some(()));
    }
    assert_eq!(watch.seen(), 0, "while the device was made anew");

    first.kill();
    first.netns.ip("link delete fairlead-wg");
    assert!(!first.pings(&source, &target));
    assert_eq!(watch.seen(), 0, "with neither agent nor device");

    first.start();
    eventually("the tunnel is back", || first.pings(&source, &target).then_some(()));
    std::fs::remove_file(rig.store.path().join(format!("{}.yaml", first.name))).unwrap();
    eventually("the node has left", || {
        (!first.netns.link_names().contains(&"fairlead-wg".to_owned())).then_some(())
    });
    first.await_settled();
    assert!(!first.pings(&source, &target));
    assert_eq!(watch.seen(), 0, "after the node had left the cluster");

    // What is cleaned away is nobody's to guard, and shows that the watch sees what there is.
    assert_eq!(first.stop(), Some(0));
    run_ok(&mut first.command(&["clean"]));
    eventually("a packet in the clear is seen", || (watch.seen() > 0).then_some(()));
    drop(senders);
}

#[test]
fn scenario_52_a_peer_without_a_key_is_sent_nothing_in_the_clear_and_what_is_refused_is_counted() {
    const ECHOES: u64 = 20;
    let mut rig = Rig::new(2);
    for (node, config) in rig.nodes.iter_mut().zip(["backend: wireguard\n", "backend: vxlan\n"]) {
        node.configure(config);
        node.start();
    }
    let [first, second] = &mut rig.nodes[..] else { panic!("two nodes") };
    for node in [&*first, &*second] {
        node.await_status("ready, and its peer ignored", |status| {
            status.ready && status.peers.iter().any(|peer| peer.state == PeerState::Ignored)
        });
        node.add_pod();
    }
    assert_eq!(first.status().unwrap().backend.strict, Some(true));
    let watch = Watch::start(&rig.underlay);
    let refused = |node: &Node| node.status().unwrap().backend.refused.unwrap();
    let send = |from: &Node, to: &Node| {
        for (source, target) in from.pod_addresses().iter().zip(to.pod_addresses()) {
            let count = ECHOES.to_string();
            let words = ["-n", "-q", "-c", &count, "-i", "0.01", "-W", "1", "-I", source, &target];
            assert!(!harness::run(from.netns.command("ping").args(words)).status.success());
        }
    };
    let before = refused(first);
    send(first, second);
    eventually("all are counted", || (refused(first) == before + 2 * ECHOES).then_some(()));
    let metrics = first.health("/metrics");
    assert!(metrics.contains(&format!("fairlead_wireguard_refused_packets_total {}", before + 2 * ECHOES)));
    assert_eq!(watch.seen(), 0, "what was refused");

    // Told so, it sends them by the other's way, in the clear; and no more when it is told to be strict again.
    first.configure("backend: wireguard\nwireguard: {strict: false}\n");
    let (source, target) = (first.pod_addresses().swap_remove(0), second.pod_addresses().swap_remove(0));
    eventually("it is reached", || first.pings(&source, &target).then_some(()));
    assert!(watch.seen() > 0, "a tunnel in the clear is seen");
    first.configure("backend: wireguard\n");
    eventually("it is refused again", || (!first.pings(&source, &target)).then_some(()));
    second.await_status("its peer is ignored", |status| status.peers[0].state == PeerState::Ignored);
    let (seen, before) = (watch.seen(), refused(first));
    send(first, second);
    eventually("all are counted", || (refused(first) == before + 2 * ECHOES).then_some(()));
    assert_eq!(watch.seen(), seen, "what was refused again");
}
