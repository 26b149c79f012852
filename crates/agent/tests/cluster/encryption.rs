//! What is to be encrypted never leaves in the clear: a watch at the bridge between the nodes, and all that may befall a node.

use std::process::{Child, Stdio};

use harness::{eventually, run_ok};

use crate::rig::{Node, Rig};

/// Counts the packets with addresses of pods that come to the bridge, all of which would be in the clear.
struct Watch<'rig>(&'rig Rig);

impl<'rig> Watch<'rig> {
    fn start(rig: &'rig Rig) -> Self {
        let rules = "table bridge watch {
            chain everything {
                type filter hook prerouting priority 0;
                ip saddr 10.244.0.0/16 counter
                ip daddr 10.244.0.0/16 counter
                ip6 saddr fd00:10:244::/56 counter
                ip6 daddr fd00:10:244::/56 counter
            }
        }";
        run_ok(rig.underlay.command("nft").arg(rules));
        // A packet needs somebody who takes it; who else would have the default route.
        rig.underlay.ip("address add 198.18.0.254/24 dev br0");
        rig.underlay.ip("address add fd00:198:18::fe/64 dev br0 nodad");
        Self(rig)
    }

    fn seen(&self) -> u64 {
        let ruleset = self.0.underlay.nft_ruleset();
        let statements = ruleset.iter().filter_map(|entry| entry["rule"]["expr"].as_array()).flatten();
        let counters: Vec<u64> =
            statements.filter_map(|statement| statement["counter"]["packets"].as_u64()).collect();
        assert_eq!(counters.len(), 4, "{ruleset:?}");
        counters.iter().sum()
    }
}

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
    // The nodes are taken out, for the watch has the rig.
    let mut nodes = std::mem::take(&mut rig.nodes);
    let [first, second] = &mut nodes[..] else { panic!("two nodes") };
    let watch = Watch::start(&rig);
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
    rig.remove_node(&first.name);
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
