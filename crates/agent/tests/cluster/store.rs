//! A store that is away, empty or broken: scenarios 34 and 35.

use harness::eventually;

use crate::rig::Rig;

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
