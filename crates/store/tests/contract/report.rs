//! How a node fares, as the API server and those who look after a cluster see it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use cluster::{Change, Key};
use harness::ApiServer;
use serde_json::{Value, json};
use store::{Error, Event, Notice, Store};

use crate::api::{self, Turn, locked};
use crate::kubernetes::{AGENT, Opened};
use crate::suite::{Subject, Witness, notice, report};

const NODE: &str = "/api/v1/nodes/node1";

fn taint(key: &str, effect: &str) -> Value {
    json!({"key": key, "value": "v", "effect": effect})
}

/// A Node as a kubelet makes it in a cluster that lets its nodes start with a taint.
fn start_node(server: &ApiServer) {
    let taints = [
        taint("gpu", "NoSchedule"),
        taint("fairlead.io/not-ready", "NoSchedule"),
        taint("fairlead.io/not-ready", "NoExecute"),
    ];
    server.create("/api/v1/nodes", &json!({"metadata": {"name": "node1"}, "spec": {"taints": taints}}));
    let ready = json!({"type": "Ready", "status": "True", "reason": "KubeletReady"});
    server.patch(&format!("{NODE}/status"), &json!({"status": {"conditions": [ready]}}));
}

fn taints(server: &ApiServer) -> Vec<String> {
    let node = server.get(NODE);
    let keys = node["spec"]["taints"].as_array().into_iter().flatten().map(|taint| &taint["key"]);
    keys.map(|key| key.as_str().unwrap().to_owned())
        .filter(|key| !key.starts_with("node.kubernetes.io/"))
        .collect()
}

fn condition(server: &ApiServer, name: &str) -> Value {
    let node = server.get(NODE);
    let conditions = node["status"]["conditions"].as_array().unwrap();
    conditions.iter().find(|condition| condition["type"] == name).cloned().unwrap_or_default()
}

#[test]
fn a_report_is_a_condition_and_a_ready_node_loses_its_startup_taint() {
    let Some(turn) = Turn::take() else { return };
    let opened = Opened::new(turn.server.clone());
    let nobody = opened.report(&report("node1", true));
    assert!(matches!(&nobody, Err(Error::NoNode { node, .. }) if node == "node1"), "{nobody:?}");
    let server = locked(&turn.server);
    start_node(&server);
    let mut witness = Witness::in_sync(opened.watch_of(&AGENT));
    assert!(witness.snapshot.nodes["node1"].awaits_network);
    opened.report(&report("node1", false)).unwrap();
    let told = condition(&server, "NetworkUnavailable");
    assert_eq!((&told["status"], &told["reason"]), (&json!("True"), &json!("NoLease")));
    assert_eq!(taints(&server), ["gpu", "fairlead.io/not-ready", "fairlead.io/not-ready"]);
    opened.report(&report("node1", true)).unwrap();
    let told = condition(&server, "NetworkUnavailable");
    assert_eq!((&told["status"], &told["reason"]), (&json!("False"), &json!("NetworkReady")));
    assert_eq!(told["message"], report("node1", true).message);
    assert_eq!(condition(&server, "Ready")["reason"], "KubeletReady");
    assert_eq!(taints(&server), ["gpu"]);
    assert_eq!(server.get(NODE)["metadata"]["annotations"]["fairlead.io/agent-version"], "0.1.0");
    witness.until(|witness| !witness.snapshot.nodes["node1"].awaits_network);
}

#[test]
fn the_last_transition_is_when_the_status_changed_and_not_when_it_was_told_again() {
    let Some(turn) = Turn::take() else { return };
    let opened = Opened::new(turn.server.clone());
    let server = locked(&turn.server);
    start_node(&server);
    opened.report(&report("node1", false)).unwrap();
    let mut old = condition(&server, "NetworkUnavailable");
    let long_ago = json!("2001-01-01T00:00:00Z");
    old["lastTransitionTime"] = long_ago.clone();
    old["lastHeartbeatTime"] = long_ago.clone();
    server.patch(&format!("{NODE}/status"), &json!({"status": {"conditions": [old]}}));
    opened.report(&report("node1", false)).unwrap();
    let told = condition(&server, "NetworkUnavailable");
    assert_eq!(told["lastTransitionTime"], long_ago);
    assert_ne!(told["lastHeartbeatTime"], long_ago);
    opened.report(&report("node1", true)).unwrap();
    assert_ne!(condition(&server, "NetworkUnavailable")["lastTransitionTime"], long_ago);
}

#[test]
fn what_another_hand_undoes_is_seen_and_a_heartbeat_is_not() {
    let Some(turn) = Turn::take() else { return };
    let opened = Opened::new(turn.server.clone());
    start_node(&locked(&turn.server));
    opened.report(&report("node1", true)).unwrap();
    let events = opened.watch_of(&[cluster::Kind::Node]);
    assert!(matches!(events.recv(), Ok(Event::Snapshot(_))));
    assert_eq!(events.recv(), Ok(Event::InSync));
    // Told again: nothing that an agent has to know.
    opened.report(&report("node1", true)).unwrap();
    let server = locked(&turn.server);
    let mut conditions = server.get(NODE)["status"]["conditions"].clone();
    conditions.as_array_mut().unwrap().push(json!({"type": "DiskPressure", "status": "True"}));
    server.patch(&format!("{NODE}/status"), &json!({"status": {"conditions": conditions}}));
    let awaited = |expected: bool| match events.recv() {
        Ok(Event::Changes(changes)) => match &changes[..] {
            [Change::Set(cluster::Object::Node(node))] => assert_eq!(node.awaits_network, expected),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    server.patch(NODE, &json!({"spec": {"taints": [taint("fairlead.io/not-ready", "NoSchedule")]}}));
    awaited(true);
    opened.report(&report("node1", true)).unwrap();
    awaited(false);
    let foreign = json!({"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"});
    server.patch(&format!("{NODE}/status"), &json!({"status": {"conditions": [foreign]}}));
    awaited(true);
    assert!(!opened.reports().unwrap()[0].ready);
    server.patch(&format!("{NODE}/status"), &json!({"status": {"conditions": null}}));
    awaited(false);
    assert_eq!(opened.reports().unwrap()[0].reason, "Unknown");
    api::remove(&server, &Key::Node("node1".into()));
    assert_eq!(opened.reports().unwrap(), []);
}

#[test]
fn no_taint_of_others_is_lost_while_ours_is_taken_off() {
    let Some(turn) = Turn::take() else { return };
    let opened = Opened::new(turn.server.clone());
    let server = locked(&turn.server);
    start_node(&server);
    let others: Vec<String> = (0..12).map(|number| format!("other{number}")).collect();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                opened.report(&report("node1", true)).unwrap();
            }
        });
        for other in &others {
            while !add_taints(&server, &[other, "fairlead.io/not-ready"]) {}
        }
        done.store(true, Ordering::Relaxed);
    });
    opened.report(&report("node1", true)).unwrap();
    let left = taints(&server);
    assert_eq!(left[0], "gpu");
    assert_eq!(left[1..], others);
}

/// Adds taints to those that are there, as a controller would. False if somebody was faster.
fn add_taints(server: &ApiServer, keys: &[&str]) -> bool {
    let node = server.get(NODE);
    let mut taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    taints.retain(|taint| !keys.contains(&taint["key"].as_str().unwrap()));
    taints.extend(keys.iter().map(|key| taint(key, "NoSchedule")));
    let version = &node["metadata"]["resourceVersion"];
    let patch = json!({"metadata": {"resourceVersion": version}, "spec": {"taints": taints}});
    let (code, answer) = server.request("PATCH", NODE, Some(&patch));
    assert!(matches!(code, 200 | 409), "{answer}");
    code == 200
}

/// The Events that `kubectl describe node node1` shows.
fn events(server: &ApiServer) -> Vec<Value> {
    let selector = "involvedObject.kind%3DNode,involvedObject.name%3Dnode1,involvedObject.namespace%3D,\
                    involvedObject.uid%3Dnode1";
    let list = server.get(&format!("/api/v1/events?fieldSelector={selector}"));
    list["items"].as_array().cloned().unwrap_or_default()
}

#[test]
fn a_notice_is_an_event_of_the_node_that_is_counted_when_it_comes_again() {
    let Some(turn) = Turn::take() else { return };
    let opened = Opened::new(turn.server.clone());
    let server = locked(&turn.server);
    start_node(&server);
    (0..3).for_each(|_| opened.notify(&notice("node1", "no lease")).unwrap());
    let [event] = &events(&server)[..] else { panic!("{:?}", events(&server)) };
    assert_eq!((&event["count"], &event["type"]), (&json!(3), &json!("Warning")));
    assert_eq!((&event["reason"], &event["message"]), (&json!("NetworkNotReady"), &json!("no lease")));
    assert_eq!(event["source"], json!({"component": "fairlead", "host": "node1"}));
    assert_eq!(event["metadata"]["namespace"], "default");
    if let Some(shown) = server.kubectl(&["describe", "node", "node1"]) {
        let line = shown.lines().find(|line| line.ends_with("no lease")).unwrap_or_else(|| panic!("{shown}"));
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[..2], ["Warning", "NetworkNotReady"], "{shown}");
        assert!(line.contains("(x3 over ") && line.contains("fairlead"), "{shown}");
    }
    let normal = Notice { warning: false, ..notice("node1", "a lease") };
    opened.notify(&normal).unwrap();
    opened.notify(&notice("node1", &"\u{e4}".repeat(4000))).unwrap();
    let mut all = events(&server);
    all.sort_by_key(|event| event["message"].as_str().unwrap().len());
    assert_eq!(all.len(), 3);
    assert_eq!((&all[0]["type"], &all[0]["count"]), (&json!("Normal"), &json!(1)));
    assert_eq!(all[2]["message"].as_str().unwrap().len(), 1024);
    // The API server lets them go after a while.
    assert!(server.delete("/api/v1/namespaces/default/events"));
    opened.notify(&normal).unwrap();
    opened.notify(&normal).unwrap();
    let [event] = &events(&server)[..] else { panic!("{:?}", events(&server)) };
    assert_eq!(event["count"], 2);
    // A name may be as long as names can be, and an Event's no longer.
    let long = format!("{}.{}", "n".repeat(190), "x".repeat(62));
    opened.store.notify(&notice(&long, "no lease")).unwrap();
}
