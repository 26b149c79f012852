//! WireGuard keys that change under traffic. The same story for both who may carry it: `DATAPATH` says who does.

use std::collections::BTreeSet;
use std::process::Command;

use ::store::Directory;
use harness::{eventually, run_ok};

use crate::clear_text::Watch;
use crate::rig::{Node, Rig};
use crate::witness::Witness;
use crate::{DATAPATH, PAUSE, can_run};

fn config(generation: u32) -> String {
    format!("backend: wireguard\nwireguard: {{datapath: {DATAPATH}, keyGeneration: {generation}}}\n")
}

/// So many nodes with keys of the first generation and a pod each, whose pods reach each other.
fn joined(count: usize) -> Rig {
    let mut rig = Rig::new(count);
    for node in &mut rig.nodes {
        node.configure(&config(0));
        node.start();
    }
    rig.await_joined();
    rig.add_pods();
    for (from, to) in pairs(&rig) {
        for (source, target) in from.pod_addresses().iter().zip(to.pod_addresses()) {
            eventually("traffic flows", || from.pings(source, &target).then_some(()));
        }
    }
    rig
}

fn pairs(rig: &Rig) -> impl Iterator<Item = (&Node, &Node)> {
    let others =
        |from: &Node| rig.nodes.iter().filter(move |to| to.number != from.number).collect::<Vec<_>>();
    rig.nodes.iter().flat_map(move |from| others(from).into_iter().map(move |to| (from, to)))
}

/// A witness each way between each two nodes, of one family or the other.
fn witnesses(rig: &Rig) -> Vec<(String, Witness)> {
    let witness = |(from, to): (&Node, &Node)| {
        let family = usize::from(from.number > to.number);
        (format!("{} to {}", from.name, to.name), Witness::every(PAUSE, from, to, family))
    };
    pairs(rig).map(witness).collect()
}

/// The generations of a node's keys, and the keys.
fn keys(node: &Node) -> Option<(Vec<u32>, Vec<String>)> {
    let mut keys = node.status()?.backend.keys;
    keys.sort_by_key(|key| key.generation);
    Some(keys.into_iter().map(|key| (key.generation, key.public_key)).unzip())
}

fn await_generations(node: &Node, wanted: &[u32]) -> Vec<String> {
    eventually(&format!("{} has keys of the generations {wanted:?}", node.name), || {
        keys(node).filter(|(generations, _)| generations == wanted).map(|(_, keys)| keys)
    })
}

/// The device by which packets to a pod of a node leave another.
fn device(from: &Node, to: &Node) -> String {
    device_to(from, &to.pod_addresses()[1])
}

fn device_to(from: &Node, target: &str) -> String {
    let route = from.netns.ip_json(&format!("-6 route get {target}"));
    route[0]["dev"].as_str().unwrap_or_default().to_owned()
}

fn key_files(node: &Node) -> BTreeSet<String> {
    let entries = std::fs::read_dir(node.state_dir()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains("wireguard")).collect()
}

/// Waits until nothing of the first key is left.
fn await_one_key(node: &Node) {
    eventually(&format!("{}: the old key and its device are gone", node.name), || {
        let devices = node.netns.link_names();
        let gone = !devices.contains(&"fairlead-wg".to_owned());
        (gone && key_files(node) == BTreeSet::from(["wireguard-1.key".to_owned()])).then_some(())
    });
}

#[test]
fn scenario_51_a_cluster_changes_its_keys_with_one_node_late_and_loses_no_packet() {
    if !can_run() {
        return;
    }
    let mut rig = joined(3);
    let before: Vec<String> = rig.nodes.iter().flat_map(|node| await_generations(node, &[0])).collect();
    let watch = Watch::start(&rig.underlay);
    let witnesses = witnesses(&rig);
    for node in &mut rig.nodes[..2] {
        node.configure(&config(1));
    }
    let [first, second, third] = &mut rig.nodes[..] else { panic!("three nodes") };
    for node in [&*first, &*second] {
        await_generations(node, &[0, 1]);
        node.await_status("says who is late", |status| {
            status.problems.iter().any(|problem| problem.contains("node3 has no newer one"))
        });
    }
    for (from, to) in [(&*first, &*second), (first, third), (third, first)] {
        assert_eq!(device(from, to), "fairlead-wg");
    }
    third.configure(&config(1));
    let after: Vec<String> = rig.nodes.iter().flat_map(|node| await_generations(node, &[1])).collect();
    assert!(after.len() == 3 && after.iter().all(|key| !before.contains(key)), "{before:?} {after:?}");
    for node in &rig.nodes {
        node.await_settled();
        await_one_key(node);
        let status = node.await_status("has nothing to say", |status| status.problems.is_empty());
        assert!(status.ready, "{:?}", status.reasons);
    }
    let lost: Vec<(String, i64)> =
        witnesses.into_iter().map(|(which, witness)| (which, witness.lost())).collect();
    println!("lost while keys changed: {lost:?}");
    assert_eq!(watch.seen(), 0, "in the clear");
    assert!(lost.iter().all(|(_, lost)| *lost <= 1), "{lost:?}");
    rig.assert_reachable();
}

#[test]
fn an_agent_that_is_killed_while_its_key_changes_goes_on_where_it_was() {
    if !can_run() {
        return;
    }
    let mut rig = joined(2);
    let watch = Watch::start(&rig.underlay);
    let witnesses = witnesses(&rig);
    for node in &mut rig.nodes {
        node.configure(&config(1));
    }
    let [first, second] = &mut rig.nodes[..] else { panic!("two nodes") };
    let both = await_generations(first, &[0, 1]);
    for _ in 0..3 {
        first.kill();
        first.start();
        assert_eq!(await_generations(first, &[0, 1]), both, "they are on its disk");
    }
    assert_eq!(await_generations(first, &[1]), both[1..]);
    await_generations(second, &[1]);
    let lost: Vec<(String, i64)> =
        witnesses.into_iter().map(|(which, witness)| (which, witness.lost())).collect();
    println!("lost while keys changed and the agent was killed: {lost:?}");
    assert_eq!(watch.seen(), 0, "in the clear");
    // One for the new key; and one more where an agent was killed while its kernel began a session by it.
    if DATAPATH == "kernel" {
        assert!(lost.iter().all(|(_, lost)| *lost <= 2), "{lost:?}");
    }
    rig.assert_reachable();
    let first = &mut rig.nodes[0];
    first.kill();
    run_ok(&mut first.command(&["clean"]));
    assert!(key_files(first).is_empty());
}

#[test]
fn nobody_gives_up_or_stops_sending_by_the_key_that_a_node_needs_whose_agent_is_away_in_the_middle() {
    if !can_run() {
        return;
    }
    let mut rig = joined(2);
    let witnesses = witnesses(&rig);
    let store = Directory::open(rig.store.path()).unwrap();
    let [first, second] = &mut rig.nodes[..] else { panic!("two nodes") };
    first.configure(&config(1));
    eventually("the new key is published", || {
        let lease = store.list().unwrap().snapshot.leases.remove(&*first.name)?;
        (lease.backend.keys().count() == 2).then_some(())
    });
    let target = first.pod_addresses().swap_remove(1);
    // Its kernel does not get to know the other's new key.
    first.kill();
    second.configure(&config(1));
    second.await_status("is ready, and says who is not", |status| {
        let generations: Vec<u32> = status.backend.keys.iter().map(|key| key.generation).collect();
        generations == [1, 0]
            && status.problems.iter().any(|problem| problem.contains("node1 has no newer one"))
    });
    if DATAPATH == "kernel" {
        assert_eq!([device(first, second), device_to(second, &target)], ["fairlead-wg"; 2]);
        let lost: Vec<(String, i64)> =
            witnesses.into_iter().map(|(which, witness)| (which, witness.lost())).collect();
        println!("lost while an agent was dead in the middle: {lost:?}");
        assert!(lost.iter().all(|(_, lost)| *lost <= 1), "{lost:?}");
    }
    first.start();
    for node in &rig.nodes {
        await_generations(node, &[1]);
    }
    rig.assert_reachable();
}

#[test]
fn a_node_that_joins_while_keys_change_has_both_keys_as_the_others_have_and_is_reached_from_the_first_moment()
{
    if !can_run() {
        return;
    }
    let mut rig = joined(2);
    rig.nodes[0].configure(&config(1));
    await_generations(&rig.nodes[0], &[0, 1]);
    rig.add_node(3);
    let third = rig.nodes.last_mut().unwrap();
    third.configure(&config(1));
    third.start();
    await_generations(third, &[0, 1]);
    rig.await_joined();
    rig.nodes[2].add_pod();
    rig.assert_reachable();
    let witnesses = witnesses(&rig);
    rig.nodes[1].configure(&config(1));
    for node in &rig.nodes {
        await_generations(node, &[1]);
    }
    rig.nodes.iter().for_each(await_one_key);
    let lost: Vec<(String, i64)> =
        witnesses.into_iter().map(|(which, witness)| (which, witness.lost())).collect();
    println!("lost while keys changed with a node that joined in the middle: {lost:?}");
    assert!(lost.iter().all(|(_, lost)| *lost <= 1), "{lost:?}");
}

#[test]
fn the_old_key_is_received_by_while_an_agent_is_dead_that_was_ready_and_has_not_heard_that_others_are() {
    if !can_run() {
        return;
    }
    let mut rig = joined(2);
    let signal =
        |node: &Node, signal: &str| run_ok(Command::new("kill").args([signal, &node.pid().to_string()]));
    let store = Directory::open(rig.store.path()).unwrap();
    let published = |node: &Node| {
        let lease = store.list().unwrap().snapshot.leases.remove(&*node.name);
        lease.map(|lease| lease.backend.keys().map(|key| key.generation).collect::<Vec<_>>())
    };
    let [first, second] = &mut rig.nodes[..] else { panic!("two nodes") };
    let addresses = [first.pod_addresses(), second.pod_addresses()];
    second.configure(&config(1));
    eventually("the second has told both its keys", || (published(second)? == [0, 1]).then_some(()));
    signal(second, "-STOP");
    first.configure(&config(1));
    eventually("the first is ready", || (published(first)? == [1, 0]).then_some(()));
    first.kill();
    signal(second, "-CONT");
    await_generations(second, &[1]);
    assert!(key_files(second).len() == 2 && second.netns.link_names().contains(&"fairlead-wg".to_owned()));
    if DATAPATH == "kernel" {
        let [sources, targets] = &addresses;
        assert_eq!(device_to(first, &targets[1]), "fairlead-wg", "it has not heard");
        for (source, target) in sources.iter().zip(targets) {
            assert!(first.pings(source, target), "{target}");
        }
    }
    // One that starts finds the key on its disk, and does not forget it.
    second.kill();
    second.start();
    await_generations(second, &[1]);
    second.await_settled();
    assert!(key_files(second).len() == 2 && second.netns.link_names().contains(&"fairlead-wg".to_owned()));
    first.start();
    for node in &rig.nodes {
        await_generations(node, &[1]);
        await_one_key(node);
    }
    rig.assert_reachable();
}
