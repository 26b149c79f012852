//! A store that is away, empty or broken: scenarios 34 and 35.

use std::path::Path;
use std::time::{Duration, Instant};

use agent::{PeerState, Status};
use harness::{eventually, run_ok};

use crate::rig::{Node, Rig};
use crate::witness::Witness;

/// Four witnesses that are under way, a thousand echoes a second each: every way between the pods of two nodes, in both families.
pub(crate) fn witnesses(first: &Node, second: &Node) -> [Witness; 4] {
    let of = |from, to, family| Witness::every(1, from, to, family);
    [of(first, second, 0), of(second, first, 0), of(first, second, 1), of(second, first, 1)]
        .map(Witness::steady)
}

/// Has an outage of the store last: no longer than it takes everybody to notice, or as long as `FAIRLEAD_OUTAGE_SECONDS` says.
pub(crate) fn await_outage(begun: Instant) {
    let told = std::env::var("FAIRLEAD_OUTAGE_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    // How long it lasts is the variable of these tests: nothing happens that could be awaited.
    std::thread::sleep(Duration::from_secs(told.unwrap_or(0)).saturating_sub(begun.elapsed()));
}

/// Takes everything out of a directory, as if its disk had been replaced by an empty one.
fn wipe(store: &Path) {
    for entry in std::fs::read_dir(store).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            std::fs::remove_dir_all(path).unwrap()
        } else {
            std::fs::remove_file(path).unwrap()
        }
    }
}

#[test]
fn scenario_34_a_store_that_is_away_changes_nothing_and_is_caught_up_with_after() {
    let mut rig = Rig::joined(2);
    rig.add_pods();
    let was = rig.nodes[0].tunnel_text();
    let away = rig.store.path().with_extension("away");
    std::fs::rename(rig.store.path(), &away).unwrap();
    for node in &rig.nodes {
        let status = node.await_status("knows that the store is away", |status| status.store.away.is_some());
        assert!(status.ready);
    }
    assert_eq!(rig.nodes[0].tunnel_text(), was);
    rig.assert_reachable();
    // Healing needs no store.
    rig.nodes[0].netns.ip("link del fairlead0");
    eventually("the device is back", || rig.nodes[0].fdb().contains(&"198.18.0.2".to_owned()).then_some(()));
    // An agent that starts now removes nothing, for it knows nothing.
    rig.nodes[1].kill();
    let before = rig.nodes[1].tunnel_text();
    rig.nodes[1].start();
    let status = rig.nodes[1].await_status("answers", |status| status.store.away.is_some());
    assert!(!status.ready && !status.store.in_sync);
    assert_eq!(rig.nodes[1].tunnel_text(), before);
    assert!(rig.nodes[1].conflist().exists(), "what an earlier run found good stays");
    std::fs::rename(&away, rig.store.path()).unwrap();
    rig.await_joined();
    rig.assert_reachable();
}

#[test]
fn an_agent_that_starts_while_the_store_is_away_carries_its_tunnels_as_they_were() {
    for backend in ["udp", "wireguard"] {
        let mut rig = Rig::new(2);
        for node in &mut rig.nodes {
            node.configure(&format!("backend: {backend}\ncluster: {{deletedNodeGraceSeconds: 0}}\n"));
            node.start();
        }
        rig.await_joined();
        rig.add_pods();
        let design = rig.nodes[1].state_dir().join("tunnels.json");
        eventually("the design is on disk", || {
            std::fs::read_to_string(&design).ok().filter(|text| text.contains("node1"))
        });
        let pods = [rig.nodes[0].pod_addresses(), rig.nodes[1].pod_addresses()];
        rig.nodes[1].kill();
        let away = rig.store.path().with_extension("away");
        std::fs::rename(rig.store.path(), &away).unwrap();
        rig.nodes[1].start();
        let status = rig.nodes[1].await_status("answers", |status| status.store.away.is_some());
        assert!(!status.ready && !status.store.in_sync);
        assert_eq!(status.tunnels.len(), 1, "{backend}");
        // The first packet may find the peer with a session of before.
        eventually("pods reach each other", || {
            let [from, to] = &pods;
            from.iter().zip(to).all(|(from, to)| rig.nodes[0].pings(from, to)).then_some(())
        });
        std::fs::rename(&away, rig.store.path()).unwrap();
        rig.await_joined();
        rig.assert_reachable();
        // One that leaves the cluster takes its tunnel, and what it wrote of it, along.
        rig.remove_node("node2");
        eventually("the design is gone", || (!design.exists()).then_some(()));
    }
}

#[test]
fn scenario_35_a_store_that_lost_everything_is_not_followed() {
    let rig = Rig::joined(2);
    rig.add_pods();
    let was = rig.nodes[0].tunnel_text();
    // Leases and claims first, as when a whole disk goes; the order within makes no difference in the end.
    let lost = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(rig.store.path()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().ends_with(".yaml") {
            continue;
        }
        std::fs::rename(entry.path(), lost.path().join(entry.file_name())).unwrap();
    }
    rig.await_joined();
    assert_eq!(rig.nodes[0].tunnel_text(), was, "what was held is taken again");
}

#[test]
fn scenario_35_a_store_that_lost_everything_at_once_is_not_believed() {
    let mut rig = Rig::joined(2);
    rig.add_pods();
    let was = rig.nodes[0].tunnel_text();
    wipe(rig.store.path());
    for node in &rig.nodes {
        let status = node.await_status("does not believe it", |status| !status.store.broken.is_empty());
        assert!(status.ready && status.peers.len() == 1, "{status:?}");
    }
    assert_eq!(rig.nodes[0].tunnel_text(), was);
    rig.assert_reachable();
    // The manifests are restored, the leases are not: agents write again what they held, also those that start anew.
    rig.nodes.iter().for_each(|node| rig.put_node(&node.name, ""));
    rig.nodes.iter_mut().for_each(|node| {
        node.kill();
        node.start();
    });
    rig.await_joined();
    assert_eq!(rig.nodes[0].tunnel_text(), was);
    rig.assert_reachable();
}

#[test]
fn scenarios_34_and_35_no_packet_is_lost_while_the_store_is_away_nor_when_it_is_wiped_nor_when_it_is_restored()
 {
    // All at once: an outage may be a long one.
    std::thread::scope(|scope| {
        for backend in ["vxlan", "host-gw", "udp"] {
            scope.spawn(move || counted_through_outages(backend));
        }
    });
}

/// Counts what is lost between two nodes of this backend while their store is away, wiped and restored.
fn counted_through_outages(backend: &str) {
    let mut rig = Rig::new(2);
    for node in &mut rig.nodes {
        node.configure(&format!("backend: {backend}\n"));
        node.start();
    }
    rig.await_joined();
    rig.add_pods();
    eventually("traffic flows", || rig.is_reachable().then_some(()));
    let (backup, wiped) =
        (rig.store.path().with_extension("backup"), rig.store.path().with_extension("wiped"));
    run_ok(std::process::Command::new("cp").arg("-a").arg(rig.store.path()).arg(&backup));
    let witnesses = witnesses(&rig.nodes[0], &rig.nodes[1]);

    let (away, begun) = (rig.store.path().with_extension("away"), Instant::now());
    std::fs::rename(rig.store.path(), &away).unwrap();
    for node in &rig.nodes {
        node.await_status("knows that the store is away", |status| status.store.away.is_some());
    }
    await_outage(begun);
    std::fs::rename(&away, rig.store.path()).unwrap();
    for node in &rig.nodes {
        node.await_status("has the store back", |status| status.store.away.is_none());
    }
    rig.await_joined();

    // It comes back as it was, or people write the manifests again and each agent what is its own.
    let by_backup = || {
        std::fs::rename(rig.store.path(), &wiped).unwrap();
        std::fs::rename(&backup, rig.store.path()).unwrap();
    };
    let by_hand = || rig.nodes.iter().for_each(|node| rig.put_node(&node.name, ""));
    for restore in [&by_backup as &dyn Fn(), &by_hand] {
        lose_everything(&rig);
        restore();
        await_whole(&rig);
    }
    std::fs::remove_dir_all(wiped).unwrap();
    let counts = witnesses.map(Witness::sent_and_answered);
    eprintln!("{backend}: sent and answered {counts:?}");
    assert!(counts.iter().all(|(sent, answered)| sent == answered), "{backend}: {counts:?}");
}

#[test]
fn scenario_35_an_agent_that_starts_while_the_store_lacks_a_lease_keeps_the_way_to_its_node() {
    let routes =
        |node: &Node| ["-4", "-6"].map(|family| node.netns.ip(&format!("{family} route show proto 70")));
    for backend in ["vxlan", "host-gw", "udp"] {
        let mut rig = Rig::flowing(2, &format!("backend: {backend}\n"));
        rig.nodes[0].keep_descriptors();
        // An agent that knows its peer from its first look on, and keeps that for the next.
        rig.nodes[0].kill();
        rig.nodes[0].start();
        rig.await_joined();
        rig.await_flow();
        let witnesses = witnesses(&rig.nodes[0], &rig.nodes[1]);
        let was = routes(&rig.nodes[0]);
        // Nobody is there to write the peer's lease again.
        rig.nodes.iter_mut().for_each(|node| node.kill());
        rig.forget("node2");
        rig.nodes[0].start();
        let status = rig.nodes[0].await_status("ready", |status| status.ready && status.peers.len() == 1);
        assert_eq!(status.peers[0].state, PeerState::Programmed, "{backend}");
        rig.nodes[0].await_settled();
        assert_eq!(routes(&rig.nodes[0]), was, "{backend}");
        rig.nodes[1].start();
        await_whole(&rig);
        let counts = witnesses.map(Witness::sent_and_answered);
        eprintln!("{backend}: sent and answered {counts:?}");
        // The peer's user space is dead meanwhile.
        let may_lose = backend == "udp";
        assert!(counts.iter().all(|(sent, answered)| sent == answered || may_lose), "{backend}: {counts:?}");
        rig.assert_reachable();
    }
}

#[test]
fn scenario_35_a_peer_that_writes_no_lease_again_is_given_up_also_by_an_agent_that_starts() {
    let mut rig = Rig::flowing(3, "cluster: {deletedNodeGraceSeconds: 10}\n");
    let is_programmed = |status: &Status, name: &str| {
        let peer = status.peers.iter().find(|peer| peer.node == name);
        peer.is_some_and(|peer| peer.state == PeerState::Programmed)
    };
    rig.nodes.iter_mut().for_each(|node| node.kill());
    rig.nodes[0].start();
    rig.nodes[0].await_status("has its peers", |status| status.ready && status.peers.len() == 2);
    rig.nodes[0].kill();
    rig.forget("node2");
    rig.nodes[0].start();
    let status = rig.nodes[0].await_status("ready", |status| status.ready);
    assert!(["node2", "node3"].iter().all(|peer| is_programmed(&status, peer)), "{status:?}");
    let status = rig.nodes[0].await_status("has given it up", |status| !is_programmed(status, "node2"));
    assert!(is_programmed(&status, "node3"), "{status:?}");
    rig.nodes[0].await_settled();
    assert_eq!(rig.nodes[0].fdb(), ["198.18.0.3"]);
    let text = std::fs::read_to_string(rig.nodes[0].state_dir().join("leases.txt")).unwrap();
    assert!(text.contains("\nnode3 ") && !text.contains("\nnode2 "), "{text}");
}

#[test]
fn scenario_35_a_node_deleted_by_mistake_is_reached_also_after_its_peers_agents_are_restarted() {
    let mut rig = Rig::flowing(2, "backend: vxlan\n");
    rig.nodes[0].kill();
    rig.nodes[0].start();
    rig.await_joined();
    let was = rig.nodes[0].tunnel_text();
    let witnesses = [0, 1].map(|family| Witness::every(1, &rig.nodes[0], &rig.nodes[1], family).steady());
    rig.remove_node("node2");
    let file = rig.nodes[0].state_dir().join("leases.txt");
    eventually("it is kept for a while, and that is known", || {
        let text = std::fs::read_to_string(&file).ok()?;
        text.lines().any(|line| line.starts_with("node2 ") && !line.starts_with("node2 - ")).then_some(())
    });
    rig.nodes[0].kill();
    rig.nodes[0].start();
    rig.nodes[0].await_status("ready", |status| status.ready && status.peers.len() == 1);
    rig.nodes[0].await_settled();
    assert_eq!(rig.nodes[0].tunnel_text(), was);
    rig.put_node("node2", "");
    await_whole(&rig);
    assert_eq!(witnesses.map(Witness::lost), [0, 0]);
}

/// The store's disk is replaced by an empty one, which everybody notices.
fn lose_everything(rig: &Rig) {
    wipe(rig.store.path());
    for node in &rig.nodes {
        node.await_status("does not believe it", |status| !status.store.broken.is_empty());
    }
}

/// Waits until everything is in the store again, and everybody knows.
fn await_whole(rig: &Rig) {
    rig.await_joined();
    for node in &rig.nodes {
        node.await_status("says nothing is wrong", |status| status.store.broken.is_empty());
        node.await_settled();
    }
    let listing = || ::store::Directory::open(rig.store.path()).unwrap().list().unwrap();
    eventually("every lease is in the store", || {
        (listing().snapshot.leases.len() == rig.nodes.len()).then_some(())
    });
}

#[test]
fn a_broken_manifest_is_reported_and_its_last_good_version_stays() {
    let rig = Rig::joined(2);
    let path = rig.store.path().join("node2.yaml");
    let good = std::fs::read_to_string(&path).unwrap();
    let half = rig.store.path().join(".node2.half");
    std::fs::write(&half, "kind: Node\nmetadata: {name: [\n").unwrap();
    std::fs::rename(&half, &path).unwrap();
    let status = rig.nodes[0].await_status("reports the file", |status| !status.store.broken.is_empty());
    assert!(status.store.broken[0].contains("node2.yaml:"), "{:?}", status.store.broken);
    assert!(status.ready && status.peers.len() == 1);
    std::fs::write(&half, good).unwrap();
    std::fs::rename(&half, &path).unwrap();
    rig.nodes[0].await_status("mended", |status| status.store.broken.is_empty());
}

#[test]
fn a_manifest_broken_before_the_start_does_not_take_its_node_down() {
    let mut rig = Rig::joined(2);
    rig.add_pods();
    let was = rig.nodes[0].tunnel_text();
    let (good, broken) = (rig.store.path().join("node1.yaml"), "kind: Node\nmetadata: {name: [\n");
    let text = std::fs::read_to_string(&good).unwrap();
    rig.nodes.iter_mut().for_each(|node| node.kill());
    std::fs::write(&good, broken).unwrap();
    rig.nodes.iter_mut().for_each(|node| node.start());
    for node in &rig.nodes {
        let status = node.await_status("has looked", |status| status.last_reconcile.is_some());
        assert!(status.ready && status.store.broken.len() == 1, "{status:?}");
    }
    assert_eq!(rig.nodes[0].tunnel_text(), was);
    rig.assert_reachable();
    std::fs::write(&good, text).unwrap();
    rig.await_joined();
}

#[test]
fn scenario_9_five_hundred_peers_known_at_the_start_are_all_programmed_in_fifteen_megabytes() {
    let peers: u16 = std::env::var("FAIRLEAD_PEERS").map_or(500, |count| count.parse().unwrap());
    let mut rig = Rig::new(1);
    rig.put_peers(peers);
    rig.nodes[0].configure("cluster: {podCIDRs: [10.0.0.0/9, 'fd00:10:244::/48']}\n");
    rig.nodes[0].start();
    let status = rig.nodes[0].await_status("ready", |status| status.ready);
    assert_eq!(status.peers.len(), usize::from(peers));
    assert_eq!(rig.nodes[0].fdb().len(), usize::from(peers));
    assert_eq!(rig.nodes[0].tunnel_routes().len(), 2 * usize::from(peers));
    let memory = std::fs::read_to_string(format!("/proc/{}/status", rig.nodes[0].pid())).unwrap();
    // Its own memory. What it maps of its file is some 8 MB of a release build, and of a build for tests whatever that
    // happens to be.
    let own = memory.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let kilobytes = 9 * 1024 + own.trim().trim_end_matches(" kB").parse::<u32>().unwrap();
    let log = rig.nodes[0].log();
    let passes: Vec<&str> = log.lines().filter(|line| line.contains("the kernel was changed")).collect();
    eprintln!("{peers} peers, {kilobytes} kB resident, {passes:?}");
    assert!(kilobytes <= 15 * 1024 || peers > 500, "{kilobytes} kB");
}
