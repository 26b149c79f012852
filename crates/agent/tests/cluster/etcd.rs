//! Nodes that know nothing of each other but by a real etcd.

use std::net::Ipv4Addr;
use std::time::Instant;

use agent::PeerState;
use harness::Etcd;

use crate::rig::Rig;
use crate::store::{await_outage, witnesses};
use crate::witness::Witness;

fn manifest(name: &str) -> String {
    format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n")
}

#[test]
fn nodes_with_only_an_etcd_are_joined_whatever_becomes_of_it() {
    let mut rig = Rig::new(3);
    rig.underlay.ip("address add 198.18.0.254/24 dev br0");
    let Some(mut etcd) = Etcd::start_in(&rig.underlay, Ipv4Addr::new(198, 18, 0, 254)) else { return };
    for node in &mut rig.nodes {
        etcd.put(&format!("/fairlead/nodes/{}", node.name), &manifest(&node.name));
        node.use_store(format!("etcd:{}", etcd.url()));
        node.start();
    }
    rig.await_joined();
    rig.add_pods();
    rig.assert_reachable();
    let witnesses = witnesses(&rig.nodes[0], &rig.nodes[1]);

    // Without etcd everything goes on, also at an agent that starts meanwhile, and what changed is known afterwards.
    let begun = Instant::now();
    etcd.kill();
    for node in &rig.nodes {
        node.await_status("knows that the store is away", |status| status.store.away.is_some());
    }
    rig.assert_reachable();
    rig.nodes[2].kill();
    await_outage(begun);
    etcd.resume();
    etcd.delete("/fairlead/nodes/node3");
    for node in &rig.nodes[..2] {
        node.await_status("knows that node3 has gone", |status| {
            status.ready && status.store.away.is_none() && status.peers.len() == 1
        });
        node.await_settled();
    }
    harness::eventually("node3's lease is given back", || {
        etcd.get("/fairlead/leases/node3").is_none().then_some(())
    });
    rig.nodes.truncate(2);
    rig.assert_reachable();

    // One that comes back with an empty disk takes nothing down. People put their Nodes back, and agents what is theirs.
    let lease = |etcd: &Etcd| etcd.get("/fairlead/leases/node2").map(|kv| kv["value"].clone());
    let before = lease(&etcd).expect("node2 has a lease");
    etcd.wipe();
    for node in &rig.nodes {
        node.await_status("knows what was lost", |status| {
            status.store.away.is_none()
                && status.store.broken.iter().any(|told| told.contains("stay in force"))
        });
        node.await_status("keeps its peer", |status| {
            status.ready && status.peers.iter().all(|peer| peer.state == PeerState::Programmed)
        });
    }
    rig.assert_reachable();
    for name in ["node1", "node2"] {
        etcd.put(&format!("/fairlead/nodes/{name}"), &manifest(name));
    }
    harness::eventually("node2's lease is written again", || lease(&etcd).filter(|now| *now == before));
    for node in &rig.nodes {
        node.await_status("has lost nothing any more but node3", |status| {
            status.ready && status.peers.len() == 1
        });
        node.await_status("says nothing is wrong", |status| status.store.broken.is_empty());
    }
    rig.assert_reachable();
    let counts = witnesses.map(Witness::sent_and_answered);
    println!("vxlan, etcd: sent and answered {counts:?}");
    assert!(counts.iter().all(|(sent, answered)| sent == answered), "{counts:?}");
}
