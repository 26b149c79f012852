//! The Kubernetes API under the suite, and what is special to it: a real kube-apiserver answers.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Barrier};
use std::thread;

use cluster::{Change, Key, Kind, NamespacedName, NetworkPolicy, Node, Object, Selector, Snapshot};
use harness::{Credential, eventually, run_ok};
use ipnet::IpNet;
use serde_json::{Value, json};
use store::{Claimed, Error, Event, Expect, Kubernetes, Listing, Notice, Report, Store, Version};

use crate::api::{self, Server, Turn, is_its_own, locked};
use crate::suite::{self, Subject, Witness, lease, pod, sent};

/// A store that is opened, and the server behind it.
pub(crate) struct Opened {
    pub(crate) store: Kubernetes,
    kubeconfig: PathBuf,
    server: Server,
}

impl Opened {
    pub(crate) fn new(server: Server) -> Self {
        let kubeconfig = locked(&server).kubeconfig();
        let store = Kubernetes::open(Some(&kubeconfig), "kube-system").unwrap();
        Self { store, kubeconfig, server }
    }

    /// Every lease and claim needs the node's Node object; what a kubelet does.
    pub(crate) fn await_node(&self, name: &str) {
        let server = locked(&self.server);
        let (code, _) = server.request("GET", &format!("/api/v1/nodes/{name}"), None);
        if code == 404 {
            // Another thread may be faster.
            server.request("POST", "/api/v1/nodes", Some(&json!({"metadata": {"name": name}})));
        }
    }
}

impl Subject for Opened {
    fn list(&self) -> Result<Listing, Error> {
        let mut listing = self.store.list(&Kind::ALL)?;
        let all = listing.snapshot.objects().map(|object| object.key());
        let own: Vec<Key> = all.filter(is_its_own).collect();
        for key in own {
            listing.snapshot.apply(Change::Removed(key));
        }
        without_uids(&mut listing.snapshot);
        Ok(listing)
    }

    fn watch_of(&self, kinds: &[Kind]) -> Receiver<Event> {
        sent(self.store.watch(kinds).unwrap().filter_map(without_its_own))
    }

    fn has(&self, kind: Kind) -> bool {
        kind != Kind::PodStatus
    }

    fn write(&self, object: &Object, expect: Expect) -> Result<Version, Error> {
        match self.store.write(object, expect) {
            Err(Error::NoNode { node, .. }) => {
                self.await_node(&node);
                self.store.write(object, expect)
            }
            Err(Error::NotOurs { .. }) => {
                api::put(&locked(&self.server), object);
                Ok(self.store.read(&object.key())?.expect("what was put is there").1)
            }
            other => other,
        }
    }

    fn read(&self, key: &Key) -> Result<Option<(Object, Version)>, Error> {
        let mut found = self.store.read(key)?;
        if let Some((Object::Pod(pod), _)) = &mut found {
            Arc::make_mut(pod).uid = None;
        }
        Ok(found)
    }

    fn delete(&self, key: &Key, expect: Expect) -> Result<bool, Error> {
        match self.store.delete(key, expect) {
            Err(Error::NotOurs { .. }) => Ok(api::remove(&locked(&self.server), key)),
            other => other,
        }
    }

    fn claim(&self, cidr: IpNet, node: &str) -> Result<Claimed, Error> {
        match self.store.claim(cidr, node) {
            Err(Error::NoNode { node, .. }) => {
                self.await_node(&node);
                self.store.claim(cidr, &node)
            }
            other => other,
        }
    }

    fn release(&self, cidr: IpNet, node: &str) -> Result<bool, Error> {
        self.store.release(cidr, node)
    }

    fn report(&self, report: &Report) -> Result<(), Error> {
        self.store.report(report)
    }

    fn reports(&self) -> Result<Vec<Report>, Error> {
        self.store.reports()
    }

    fn notify(&self, notice: &Notice) -> Result<(), Error> {
        self.store.notify(notice)
    }

    fn opened_again(&self) -> Box<dyn Subject> {
        let store = Kubernetes::open(Some(&self.kubeconfig), "kube-system").unwrap();
        Box::new(Self { store, kubeconfig: self.kubeconfig.clone(), server: self.server.clone() })
    }

    fn set_available(&self, available: bool) {
        let mut server = locked(&self.server);
        if available { server.resume() } else { server.kill() }
    }
}

/// An API server gives pods UIDs, which the suite does not know beforehand.
fn without_uids(snapshot: &mut Snapshot) {
    for pod in snapshot.pods.values_mut() {
        assert!(Arc::make_mut(pod).uid.take().is_some(), "every pod has one");
    }
}

fn without_its_own(event: Event) -> Option<Event> {
    match event {
        Event::Snapshot(mut snapshot) => {
            let own: Vec<Key> = snapshot.objects().map(|object| object.key()).filter(is_its_own).collect();
            own.into_iter().for_each(|key| assert!(snapshot.apply(Change::Removed(key))));
            without_uids(&mut snapshot);
            Some(Event::Snapshot(snapshot))
        }
        Event::Changes(mut changes) => {
            changes.retain(|change| !is_its_own(&change.key()));
            for change in &mut changes {
                if let Change::Set(Object::Pod(pod)) = change {
                    Arc::make_mut(pod).uid = None;
                }
            }
            (!changes.is_empty()).then_some(Event::Changes(changes))
        }
        other => Some(other),
    }
}

/// Runs one test of the suite on a cluster with nothing in it.
fn on_an_api_server(test: fn(&dyn Subject)) {
    if let Some(turn) = Turn::take() {
        test(&Opened::new(turn.server.clone()));
    }
}

#[test]
fn what_is_written_is_listed() {
    on_an_api_server(suite::what_is_written_is_listed);
}

#[test]
fn every_kind_is_listed_watched_and_read() {
    on_an_api_server(suite::every_kind_is_listed_watched_and_read);
}

#[test]
fn a_watch_tells_only_the_kinds_asked_for() {
    on_an_api_server(suite::a_watch_tells_only_the_kinds_asked_for);
}

#[test]
fn a_watcher_sees_what_is_there_and_then_every_change() {
    on_an_api_server(suite::a_watcher_sees_what_is_there_and_then_every_change);
}

#[test]
fn a_write_that_expects_something_else_changes_nothing() {
    on_an_api_server(suite::a_write_that_expects_something_else_changes_nothing);
}

#[test]
fn of_many_writers_at_once_exactly_one_wins() {
    on_an_api_server(suite::of_many_writers_at_once_exactly_one_wins);
}

#[test]
fn a_pod_cidr_is_claimed_by_one_node_only() {
    on_an_api_server(suite::a_pod_cidr_is_claimed_by_one_node_only);
}

#[test]
fn of_many_claims_at_once_exactly_one_wins() {
    on_an_api_server(suite::of_many_claims_at_once_exactly_one_wins);
}

#[test]
fn an_object_that_cannot_be_read_back_is_refused() {
    on_an_api_server(suite::an_object_that_cannot_be_read_back_is_refused);
}

#[test]
fn an_outage_takes_nothing_away() {
    on_an_api_server(suite::an_outage_takes_nothing_away);
}

#[test]
fn what_nodes_report_is_told_to_all_as_long_as_there_is_the_node() {
    on_an_api_server(suite::what_nodes_report_is_told_to_all_as_long_as_there_is_the_node);
}

#[test]
fn a_report_that_leads_astray_is_refused() {
    on_an_api_server(suite::a_report_that_leads_astray_is_refused);
}

#[test]
fn after_a_restart_everything_is_there() {
    on_an_api_server(suite::after_a_restart_everything_is_there);
}

/// What every agent has to know.
pub(crate) const AGENT: [Kind; 3] = [Kind::Node, Kind::Lease, Kind::Claim];

/// What one has to know that enforces policies.
pub(crate) const ENFORCING: [Kind; 9] = [
    Kind::Node,
    Kind::Lease,
    Kind::Claim,
    Kind::Namespace,
    Kind::Pod,
    Kind::PodStatus,
    Kind::NetworkPolicy,
    Kind::ClusterNetworkPolicy,
    Kind::ServiceCidr,
];

pub(crate) fn cidr(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn nodes(witness: &Witness) -> Vec<String> {
    witness.snapshot.nodes.keys().map(ToString::to_string).collect()
}

#[test]
fn a_question_is_answered_behind_all_that_was_there_when_it_was_asked() {
    let Some(turn) = Turn::take() else { return };
    let opened = Opened::new(turn.server.clone());
    let mut witness = Witness::in_sync(sent(opened.store.watch(&ENFORCING).unwrap()));
    for number in 1..=20 {
        let policy = NetworkPolicy {
            name: NamespacedName::new("default", format!("policy-{number}")),
            subjects: Selector::default(),
            ingress: Some(Box::default()),
            egress: None,
            audit: false,
            faults: Box::default(),
        };
        let labels = json!({"metadata": {"labels": {"number": number.to_string()}}});
        let server = locked(&turn.server);
        api::put(&server, &policy.clone().into());
        server.patch("/api/v1/namespaces/default", &labels);
        drop(server);
        assert!(opened.store.confirm(&"default".into(), number), "watches have no order");
        witness.until(|witness| witness.confirmed == number);
        assert!(witness.snapshot.network_policies.contains_key(&policy.name), "policy {number}");
        let labels = &witness.snapshot.namespaces["default"].labels;
        assert_eq!(labels.get("number"), Some(&*number.to_string()));
    }
}

#[test]
fn a_definition_that_comes_later_is_found_and_one_that_goes_takes_its_objects_along() {
    let Some(turn) = Turn::take() else { return };
    let opened = Opened::new(turn.server.clone());
    let mut witness = Witness::in_sync(opened.watch_of(&ENFORCING));
    let group = "policy.networking.k8s.io";
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let name = format!("clusternetworkpolicies.{group}");
    let definition = json!({
        "metadata": {"name": name, "annotations": {"api-approved.kubernetes.io": "unapproved, a test"}},
        "spec": {
            "group": group, "scope": "Cluster",
            "names": {"plural": "clusternetworkpolicies", "kind": "ClusterNetworkPolicy"},
            "versions": [{
                "name": "v1alpha2", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    });
    locked(&turn.server).create(definitions, &definition);
    let policies = format!("/apis/{group}/v1alpha2/clusternetworkpolicies");
    let policy = json!({
        "apiVersion": format!("{group}/v1alpha2"), "kind": "ClusterNetworkPolicy", "metadata": {"name": "wall"},
        "spec": {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}},
    });
    eventually("the definition is in force", || {
        (locked(&turn.server).request("POST", &policies, Some(&policy)).0 == 201).then_some(())
    });
    witness.until(|witness| witness.snapshot.cluster_network_policies.contains_key("wall"));
    assert!(witness.available);
    locked(&turn.server).delete(&format!("{definitions}/{name}"));
    witness.until(|witness| witness.snapshot.cluster_network_policies.is_empty());
    eventually("the definition is gone", || {
        (locked(&turn.server).request("GET", &policies, None).0 == 404).then_some(())
    });
    opened.write(&lease("node1", 1450), Expect::Absent).unwrap();
    witness.until(|witness| witness.available && witness.snapshot.leases.len() == 1);
}

#[test]
fn a_heartbeat_of_a_node_is_no_change() {
    let Some(turn) = Turn::take() else { return };
    let opened = Opened::new(turn.server.clone());
    opened.write(&lease("node1", 1450), Expect::Absent).unwrap();
    let events = opened.watch_of(&AGENT);
    assert!(matches!(events.recv(), Ok(Event::Snapshot(_))));
    assert_eq!(events.recv(), Ok(Event::InSync));
    let condition = json!({"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "beat"});
    locked(&turn.server).patch("/api/v1/nodes/node1/status", &json!({"status": {"conditions": [condition]}}));
    opened.write(&lease("node1", 1400), Expect::Any).unwrap();
    assert_eq!(events.recv(), Ok(Event::Changes(vec![Change::Set(lease("node1", 1400))])));
}

#[test]
fn a_lease_stands_in_its_node_and_goes_with_it() {
    let Some(turn) = Turn::take() else { return };
    let opened = Opened::new(turn.server.clone());
    let without = opened.store.write(&lease("nobody", 1450), Expect::Any);
    assert!(matches!(&without, Err(Error::NoNode { node, .. }) if node == "nobody"), "{without:?}");
    opened.write(&lease("node1", 1450), Expect::Absent).unwrap();
    let node = locked(&turn.server).get("/api/v1/nodes/node1");
    let text = node["metadata"]["annotations"]["fairlead.io/lease"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(text).unwrap()["mtu"], 1450);
    let mut witness = Witness::in_sync(opened.watch_of(&AGENT));
    api::remove(&locked(&turn.server), &Key::Node("node1".into()));
    witness.until(|witness| witness.snapshot.nodes.is_empty());
    assert_eq!((witness.snapshot.leases.len(), witness.removals), (0, 2));
    assert!(!opened.delete(&Key::Lease("node1".into()), Expect::Any).unwrap());
    // A lease that somebody has spoilt is nobody's, but replaceable; see the directory's.
    let spoilt = json!({"metadata": {"name": "node1", "annotations": {"fairlead.io/lease": "{"}}});
    locked(&turn.server).create("/api/v1/nodes", &spoilt);
    witness.until(|witness| !witness.problems.is_empty());
    let told = witness.problems[0].to_string();
    assert!(told.starts_with("/api/v1/nodes/node1: lease of node node1: metadata.annotations"), "{told}");
    let refused = opened.store.write(&lease("node1", 1400), Expect::Absent);
    assert!(matches!(refused, Err(Error::Conflict { found: None, .. })), "{refused:?}");
    opened.store.write(&lease("node1", 1400), Expect::Any).unwrap();
    witness.until(|witness| witness.problems.is_empty() && witness.snapshot.leases.len() == 1);
}

#[test]
fn what_others_write_is_refused_with_their_name() {
    let Some(turn) = Turn::take() else { return };
    let opened = Opened::new(turn.server.clone());
    let error = opened.store.write(&pod("web").into(), Expect::Any).unwrap_err().to_string();
    assert_eq!(
        error,
        "pod default/web is not Fairlead's to write: it is written by those who use the cluster"
    );
    let status = Key::PodStatus(NamespacedName::new("default", "web"));
    let error = opened.store.delete(&status, Expect::Any).unwrap_err().to_string();
    assert!(error.ends_with("phase and addresses of a pod are written by the kubelet"), "{error}");
    assert!(matches!(
        opened.store.delete(&Key::Claim(cidr("10.244.1.0/24")), Expect::Any),
        Err(Error::NotOurs { .. })
    ));
}

#[test]
fn a_claim_is_a_lease_object_that_its_node_owns() {
    let Some(turn) = Turn::take() else { return };
    let opened = Opened::new(turn.server.clone());
    opened.claim(cidr("fd00:10:244:1::/64"), "node1").unwrap();
    let server = locked(&turn.server);
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
    let claim = server.get(&format!("{leases}/fairlead-fd00-10-244-1-0-0-0-0-64"));
    assert_eq!(claim["spec"]["holderIdentity"], "node1");
    assert_eq!(claim["metadata"]["annotations"]["fairlead.io/pod-cidr"], "fd00:10:244:1::/64");
    let owner = &claim["metadata"]["ownerReferences"][0];
    assert_eq!((owner["kind"].as_str(), owner["name"].as_str()), (Some("Node"), Some("node1")));
    assert_eq!(owner["uid"], server.get("/api/v1/nodes/node1")["metadata"]["uid"]);
    // What the cluster has given to a node needs no claim.
    let node = json!({"metadata": {"name": "node2"}, "spec": {"podCIDR": "10.244.7.0/24", "podCIDRs": ["10.244.7.0/24"]}});
    server.create("/api/v1/nodes", &node);
    drop(server);
    assert_eq!(opened.store.claim(cidr("10.244.7.0/24"), "node2").unwrap(), Claimed::Granted);
    assert_eq!(opened.list().unwrap().snapshot.claims.len(), 1);
    assert!(!opened.store.release(cidr("10.244.7.0/24"), "node2").unwrap());
    let nobody = opened.store.claim(cidr("10.244.8.0/24"), "nobody");
    assert!(matches!(nobody, Err(Error::NoNode { .. })), "{nobody:?}");
}

#[test]
fn of_claims_that_overlap_only_one_stays() {
    let Some(turn) = Turn::take() else { return };
    let opened = Opened::new(turn.server.clone());
    (0..6).for_each(|racer| opened.await_node(&format!("node{racer}")));
    for round in 0..4 {
        let barrier = Barrier::new(6);
        let granted: Vec<String> = thread::scope(|scope| {
            let racers: Vec<_> = (0..6)
                .map(|racer| {
                    let (own, barrier) = (opened.opened_again(), &barrier);
                    scope.spawn(move || {
                        let wanted = cidr(&format!("10.{round}.0.0/{}", 16 + racer));
                        barrier.wait();
                        let node = format!("node{racer}");
                        (own.claim(wanted, &node).unwrap() == Claimed::Granted).then_some(node)
                    })
                })
                .collect();
            racers.into_iter().filter_map(|racer| racer.join().unwrap()).collect()
        });
        let claims = opened.list().unwrap().snapshot.claims;
        let here: Vec<String> = claims
            .iter()
            .filter(|(held, _)| cidr(&format!("10.{round}.0.0/16")).contains(*held))
            .map(|(_, claim)| claim.node.to_string())
            .collect();
        assert_eq!(granted, here, "what is held is what was granted");
        assert_eq!(granted.len(), 1, "one, and the others have backed out: {granted:?}");
    }
}

#[test]
fn a_claim_that_lost_and_was_left_behind_is_in_nobodys_way() {
    let Some(turn) = Turn::take() else { return };
    let opened = Opened::new(turn.server.clone());
    (1..=3).for_each(|number| opened.await_node(&format!("node{number}")));
    let (whole, part) = (cidr("10.9.0.0/16"), cidr("10.9.1.0/24"));
    assert_eq!(opened.store.claim(whole, "node1").unwrap(), Claimed::Granted);
    // What is left if a node is cut off between its two looks.
    let left = json!({
        "metadata": {"name": "fairlead-10-9-1-0-24", "labels": {"fairlead.io/claim": "pod-cidr"}},
        "spec": {"holderIdentity": "node2"},
    });
    locked(&turn.server).create("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases", &left);
    assert_eq!(opened.store.claim(whole, "node1").unwrap(), Claimed::Granted);
    let held = Claimed::Held { cidr: whole, node: "node1".to_owned() };
    assert_eq!(opened.store.claim(part, "node2").unwrap(), held);
    let claims = opened.list().unwrap().snapshot.claims;
    assert_eq!(claims.keys().collect::<Vec<_>>(), [&whole]);
    assert_eq!(opened.store.claim(part, "node3").unwrap(), held);
}

#[test]
fn after_an_outage_only_what_changed_is_told() {
    let Some(turn) = Turn::take() else { return };
    let opened = Opened::new(turn.server.clone());
    for name in ["node1", "node2", "node3"] {
        opened.write(&lease(name, 1450), Expect::Absent).unwrap();
    }
    let mut witness = Witness::in_sync(opened.watch_of(&AGENT));
    opened.set_available(false);
    witness.until(|witness| !witness.available);
    opened.set_available(true);
    api::remove(&locked(&turn.server), &Key::Node("node2".into()));
    opened.write(&lease("node3", 1400), Expect::Any).unwrap();
    witness.until(|witness| witness.available && witness.snapshot.nodes.len() == 2);
    let want = opened.store.list(&AGENT).unwrap().snapshot;
    witness.until(|witness| witness.snapshot == want);
    assert_eq!(witness.removals, 2, "one node and its lease");
}

#[test]
fn when_the_server_forgets_old_versions_everything_is_compared() {
    let Some(turn) = Turn::take() else { return };
    let opened = Opened::new(turn.server.clone());
    for name in ["node1", "node2"] {
        opened.write(&lease(name, 1450), Expect::Absent).unwrap();
    }
    let mut witness = Witness::in_sync(opened.watch_of(&AGENT));
    opened.set_available(false);
    witness.until(|witness| !witness.available);
    // A server of its own memory only: what it did not see itself it would have to ask etcd for, which has forgotten.
    let mut server = locked(&turn.server);
    server.resume_apart(|server| {
        api::remove(server, &Key::Node("node1".into()));
        (0..20).for_each(|beat| {
            let beat = json!({"metadata": {"annotations": {"beat": beat.to_string()}}});
            server.patch("/api/v1/nodes/node2", &beat);
        });
        server.compact();
    });
    server.resume();
    let asked = server.audit().len();
    drop(server);
    witness.until(|witness| witness.available && nodes(witness) == ["node2"]);
    assert_eq!(witness.removals, 2);
    opened.write(&lease("node2", 1400), Expect::Any).unwrap();
    witness.until(|witness| witness.snapshot == opened.store.list(&AGENT).unwrap().snapshot);
    let listed = |event: &Value| {
        let uri = event["requestURI"].as_str().unwrap_or_default();
        uri.starts_with("/api/v1/nodes?limit=")
            && !uri.starts_with("/api/v1/nodes?limit=1&")
            && uri != "/api/v1/nodes?limit=1"
    };
    let audit = locked(&turn.server).audit();
    let (before, after) = audit.split_at(asked);
    assert!(after.iter().any(|event| listed(event) && is_fairlead(event)), "everything was listed again");
    assert!(before.iter().any(is_fairlead));
}

fn is_fairlead(event: &Value) -> bool {
    event["userAgent"].as_str().is_some_and(|agent| agent.starts_with("fairlead/"))
}

#[test]
fn what_the_server_has_lost_stays_in_force() {
    let Some(turn) = Turn::take() else { return };
    let opened = Opened::new(turn.server.clone());
    // So that the versions of the empty one are behind, whatever else it does at its start.
    for beat in 0..300 {
        opened.await_node("node0");
        let beat = json!({"metadata": {"annotations": {"beat": beat.to_string()}}});
        locked(&turn.server).patch("/api/v1/nodes/node0", &beat);
    }
    opened.write(&lease("node1", 1450), Expect::Absent).unwrap();
    opened.claim(cidr("10.244.1.0/24"), "node1").unwrap();
    let mut witness = Witness::in_sync(opened.watch_of(&AGENT));
    let known = witness.snapshot.clone();
    locked(&turn.server).wipe();
    witness.until(|witness| !witness.problems.is_empty());
    assert!(
        witness.problems[0].reason.contains("of its objects; they stay in force"),
        "{:?}",
        witness.problems
    );
    witness.until(|witness| witness.available);
    assert_eq!((witness.removals, &witness.snapshot), (0, &known));
    assert_eq!(witness.lost, BTreeSet::new(), "no Node is there to write them for");
    // Kubelets make their Nodes anew, and agents what is theirs; then nothing is lost any more.
    ["node0", "node1"].iter().for_each(|name| opened.await_node(name));
    let wanted = cidr("10.244.1.0/24");
    let lost = BTreeSet::from([Key::Lease("node1".into()), Key::Claim(wanted)]);
    witness.until(|witness| witness.lost == lost);
    assert_eq!(witness.snapshot, known);
    opened.write(&lease("node1", 1450), Expect::Any).unwrap();
    opened.claim(wanted, "node1").unwrap();
    witness.until(|witness| witness.problems.is_empty());
    assert_eq!(witness.removals, 0);
    api::remove(&locked(&turn.server), &Key::Node("node0".into()));
    witness.until(|witness| nodes(witness) == ["node1"]);
}

#[test]
fn a_server_that_is_away_is_named_with_its_kubeconfig() {
    let Some(turn) = Turn::take() else { return };
    let opened = Opened::new(turn.server.clone());
    locked(&turn.server).kill();
    let error = opened.store.list(&AGENT).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    let told = format!("{error}: {cause}");
    assert!(told.contains(&locked(&turn.server).url()) && told.contains("admin.kubeconfig"), "{told}");
    assert!(told.contains("Connection refused"), "{told}");
    assert!(matches!(error, Error::Unavailable { .. }));
    let missing = Kubernetes::open(Some(Path::new("/nowhere/kubeconfig")), "kube-system").unwrap_err();
    assert!(
        missing
            .to_string()
            .starts_with("find the way to the Kubernetes API by kubeconfig /nowhere/kubeconfig")
    );
}

#[test]
fn a_client_certificate_is_a_credential() {
    let Some(turn) = Turn::take() else { return };
    let kubeconfig = locked(&turn.server).kubeconfig_for("certificate", Credential::Certificate);
    let store = Kubernetes::open(Some(&kubeconfig), "kube-system").unwrap();
    assert_eq!(store.list(&[Kind::Node]).unwrap().snapshot.nodes.len(), 0);
}

#[test]
fn a_token_that_was_replaced_is_read_again() {
    let Some(turn) = Turn::take() else { return };
    let mut server = locked(&turn.server);
    let file = server.kubeconfig().with_extension("token");
    std::fs::write(&file, server.token()).unwrap();
    let kubeconfig = server.kubeconfig_for("rotated", Credential::TokenFile(&file));
    let store = Kubernetes::open(Some(&kubeconfig), "kube-system").unwrap();
    let mut witness = Witness::in_sync(sent(store.watch(&AGENT).unwrap()));
    server.kill();
    witness.until(|witness| !witness.available);
    server.replace_admin_token("another-token");
    server.resume();
    // Refused by now, until the file has the new one; a kubelet replaces it at once.
    let refused = store.list(&AGENT);
    assert!(
        matches!(refused, Err(Error::Unavailable { hint: "is the credential still valid?", .. })),
        "{refused:?}"
    );
    std::fs::write(&file, server.token()).unwrap();
    assert!(store.list(&AGENT).is_ok());
    witness.until(|witness| witness.available);
    api::put(&server, &Node::named("node1").into());
    witness.until(|witness| nodes(witness) == ["node1"]);
}

/// Not a test by itself: the other process of the tests below, which say in its environment what to do.
#[test]
fn in_a_pod_or_behind_a_proxy() {
    let Some(kubeconfig) = std::env::var_os("STORE_OF_A_POD") else { return };
    let kubeconfig = Some(PathBuf::from(kubeconfig)).filter(|path| !path.as_os_str().is_empty());
    let store = Kubernetes::open(kubeconfig.as_deref(), "kube-system").unwrap();
    println!("\nnodes {}", store.list(&[Kind::Node]).unwrap().snapshot.nodes.len());
}

fn in_another_process() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "kubernetes::in_a_pod_or_behind_a_proxy", "--nocapture", "--test-threads=1"]);
    command
}

#[test]
fn within_a_pod_nothing_need_be_said() {
    let Some(turn) = Turn::take() else { return };
    let server = locked(&turn.server);
    api::put(&server, &Node::named("node1").into());
    // What a kubelet mounts, in a mount namespace of its own, for the place is fixed.
    let account = tempfile::tempdir().unwrap();
    std::fs::write(account.path().join("token"), server.token()).unwrap();
    std::fs::write(account.path().join("namespace"), "kube-system").unwrap();
    std::fs::copy(server.authority(), account.path().join("ca.crt")).unwrap();
    let plain = in_another_process();
    let script = "mount -t tmpfs tmpfs /run && mkdir -p /run/secrets/kubernetes.io/serviceaccount && \
                  cp \"$1\"/* /run/secrets/kubernetes.io/serviceaccount && shift && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(account.path());
    command.arg(plain.get_program()).args(plain.get_args());
    let address = server.url();
    let (host, port) = address.strip_prefix("https://").and_then(|rest| rest.rsplit_once(':')).unwrap();
    command
        .env("KUBERNETES_SERVICE_HOST", host)
        .env("KUBERNETES_SERVICE_PORT", port)
        .env("STORE_OF_A_POD", "");
    let said = run_ok(&mut command);
    assert!(said.contains("\nnodes 1\n"), "{said}");
}

#[test]
fn a_proxy_is_used_unless_the_server_is_excepted() {
    let Some(turn) = Turn::take() else { return };
    let kubeconfig = locked(&turn.server).kubeconfig();
    let proxy = Proxy::start();
    let run = |except: &str| {
        let mut command = in_another_process();
        command.env("STORE_OF_A_POD", &kubeconfig).env("HTTPS_PROXY", &proxy.url).env("NO_PROXY", except);
        command.env_remove("https_proxy").env_remove("no_proxy").env_remove("ALL_PROXY");
        run_ok(&mut command)
    };
    assert!(run("").contains("\nnodes 0\n"));
    assert_eq!(proxy.asked.try_iter().count(), 1);
    assert!(run("127.0.0.0/8,example.org").contains("\nnodes 0\n"));
    assert_eq!(proxy.asked.try_iter().count(), 0);
    // In the kubeconfig it holds for that cluster whatever the environment says.
    let mut config: Value = serde_json::from_slice(&std::fs::read(&kubeconfig).unwrap()).unwrap();
    config["clusters"][0]["cluster"]["proxy-url"] = proxy.url.clone().into();
    std::fs::write(&kubeconfig, config.to_string()).unwrap();
    let store = Kubernetes::open(Some(&kubeconfig), "kube-system").unwrap();
    assert!(store.list(&[Kind::Node]).is_ok());
    assert_eq!(proxy.asked.try_iter().count(), 1);
}

/// A proxy that lets everybody through by CONNECT, and tells who asked.
struct Proxy {
    url: String,
    asked: Receiver<String>,
}

impl Proxy {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, asked) = channel();
        thread::spawn(move || {
            for client in listener.incoming() {
                let sender = sender.clone();
                thread::spawn(move || drop(tunnel(client.unwrap(), |target| drop(sender.send(target)))));
            }
        });
        Self { url, asked }
    }
}

fn tunnel(mut client: TcpStream, told: impl FnOnce(String)) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).unwrap().to_owned();
    let server = TcpStream::connect(&target)?;
    told(target);
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    let (client, server) = (Arc::new(client), Arc::new(server));
    let (from, to) = (client.clone(), server.clone());
    thread::spawn(move || std::io::copy(&mut &*from, &mut &*to));
    std::io::copy(&mut &*server, &mut &*client).map(drop)
}
