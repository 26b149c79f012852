//! etcd under the suite, and what is special to it: a real etcd answers.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use cluster::{Claim, Key, Kind, Node, Object};
use harness::etcd::Options;
use ipnet::IpNet;
use serde_json::{Value, json};
use store::etcd::{Access, Endpoints, Password, User};
use store::{Claimed, Error, Etcd, Event, Expect, Listing, Notice, Report, Store, Version};

use crate::suite::{self, Subject, Witness, lease, notice, pod, report, sent};

type Server = Arc<Mutex<harness::Etcd>>;

/// A store that is opened, and the etcd behind it.
struct Opened {
    store: Etcd,
    endpoints: Endpoints,
    access: Access,
    server: Server,
}

impl Opened {
    fn new(server: harness::Etcd) -> Self {
        let endpoints = server.urls().join(",").parse().unwrap();
        Self::by(server, endpoints, Access::default())
    }

    fn by(server: harness::Etcd, endpoints: Endpoints, access: Access) -> Self {
        let store = Etcd::open(&endpoints, access.clone()).unwrap();
        Self { store, endpoints, access, server: Arc::new(Mutex::new(server)) }
    }

    fn server(&self) -> std::sync::MutexGuard<'_, harness::Etcd> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subject for Opened {
    fn list(&self) -> Result<Listing, Error> {
        self.store.list(&Kind::ALL)
    }

    fn watch_of(&self, kinds: &[Kind]) -> Receiver<Event> {
        sent(self.store.watch(kinds).unwrap())
    }

    fn has(&self, _: Kind) -> bool {
        true
    }

    fn write(&self, object: &Object, expect: Expect) -> Result<Version, Error> {
        self.store.write(object, expect)
    }

    fn read(&self, key: &Key) -> Result<Option<(Object, Version)>, Error> {
        self.store.read(key)
    }

    fn delete(&self, key: &Key, expect: Expect) -> Result<bool, Error> {
        self.store.delete(key, expect)
    }

    fn claim(&self, cidr: IpNet, node: &str) -> Result<Claimed, Error> {
        self.store.claim(cidr, node)
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
        let (endpoints, access) = (self.endpoints.clone(), self.access.clone());
        let store = Etcd::open(&endpoints, access.clone()).unwrap();
        Box::new(Self { store, endpoints, access, server: self.server.clone() })
    }

    fn set_available(&self, available: bool) {
        let mut server = self.server();
        if available { server.resume() } else { server.kill() }
    }
}

/// Runs one test of the suite on an etcd with nothing in it.
fn on_an_etcd(test: fn(&dyn Subject)) {
    if let Some(server) = harness::Etcd::start() {
        test(&Opened::new(server));
    }
}

#[test]
fn what_is_written_is_listed() {
    on_an_etcd(suite::what_is_written_is_listed);
}

#[test]
fn every_kind_is_listed_watched_and_read() {
    on_an_etcd(suite::every_kind_is_listed_watched_and_read);
}

#[test]
fn a_watch_tells_only_the_kinds_asked_for() {
    on_an_etcd(suite::a_watch_tells_only_the_kinds_asked_for);
}

#[test]
fn a_watcher_sees_what_is_there_and_then_every_change() {
    on_an_etcd(suite::a_watcher_sees_what_is_there_and_then_every_change);
}

#[test]
fn a_write_that_expects_something_else_changes_nothing() {
    on_an_etcd(suite::a_write_that_expects_something_else_changes_nothing);
}

#[test]
fn of_many_writers_at_once_exactly_one_wins() {
    on_an_etcd(suite::of_many_writers_at_once_exactly_one_wins);
}

#[test]
fn a_pod_cidr_is_claimed_by_one_node_only() {
    on_an_etcd(suite::a_pod_cidr_is_claimed_by_one_node_only);
}

#[test]
fn of_many_claims_at_once_exactly_one_wins() {
    on_an_etcd(suite::of_many_claims_at_once_exactly_one_wins);
}

#[test]
fn an_object_that_cannot_be_read_back_is_refused() {
    on_an_etcd(suite::an_object_that_cannot_be_read_back_is_refused);
}

#[test]
fn an_outage_takes_nothing_away() {
    on_an_etcd(suite::an_outage_takes_nothing_away);
}

#[test]
fn what_nodes_report_is_told_to_all_as_long_as_there_is_the_node() {
    on_an_etcd(suite::what_nodes_report_is_told_to_all_as_long_as_there_is_the_node);
}

#[test]
fn a_report_that_leads_astray_is_refused() {
    on_an_etcd(suite::a_report_that_leads_astray_is_refused);
}

#[test]
fn after_a_restart_everything_is_there() {
    on_an_etcd(suite::after_a_restart_everything_is_there);
}

/// What an agent has to know.
const AGENT: [Kind; 3] = [Kind::Node, Kind::Lease, Kind::Claim];

fn cidr(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn nodes(witness: &Witness) -> Vec<String> {
    witness.snapshot.nodes.keys().map(ToString::to_string).collect()
}

fn manifest(name: &str) -> String {
    format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n")
}

#[test]
fn what_people_put_is_read_as_in_a_directory() {
    let Some(server) = harness::Etcd::start() else { return };
    let opened = Opened::new(server);
    let mut witness = Witness::in_sync(opened.watch());
    opened
        .server()
        .put("/fairlead/nodes/node1", &(manifest("node1") + "spec: {podCIDRs: [10.244.1.0/24]}\n"));
    witness.until(|witness| nodes(witness) == ["node1"]);
    let pod_cidrs = &witness.snapshot.nodes["node1"].pod_cidrs;
    assert_eq!(pod_cidrs.to_vec(), [cidr("10.244.1.0/24")]);
    // The version is that of the object, however it was spelt.
    let listed = opened.list().unwrap();
    let key = Key::Node("node1".into());
    assert_eq!(opened.read(&key).unwrap().unwrap().1, listed.versions()[&key]);
    opened.server().put("/fairlead/pods/default/web", "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\n");
    witness.until(|witness| witness.snapshot.pods.len() == 1);
    opened.server().delete("/fairlead/nodes/node1");
    witness.until(|witness| witness.snapshot.nodes.is_empty());
    assert_eq!((witness.removals, witness.problems.len()), (1, 0));
}

#[test]
fn a_value_that_cannot_be_read_is_told_and_its_last_good_version_stays_in_force() {
    let Some(server) = harness::Etcd::start() else { return };
    let opened = Opened::new(server);
    opened.write(&lease("node1", 1450), Expect::Absent).unwrap();
    let mut witness = Witness::in_sync(opened.watch());
    for spoilt in ["{", "", "kind: Pod"] {
        opened.server().put("/fairlead/leases/node1", spoilt);
    }
    witness.until(|witness| witness.problems.len() == 1 && witness.problems[0].reason.contains("is missing"));
    let told = witness.problems[0].to_string();
    assert!(told.starts_with("/fairlead/leases/node1:1:1: Pod: apiVersion is missing"), "{told}");
    assert_eq!((witness.removals, witness.snapshot.leases["node1"].mtu), (0, 1450));
    // Also for those that come while it is broken, as long as etcd remembers.
    let late = Witness::in_sync(opened.watch());
    assert_eq!((late.snapshot.leases["node1"].mtu, late.problems.len()), (1450, 1));
    let listing = opened.list().unwrap();
    assert_eq!((listing.snapshot, listing.problems), (late.snapshot, late.problems));
    // It is nobody's, but replaceable.
    let refused = opened.write(&lease("node1", 1400), Expect::Absent);
    assert!(matches!(refused, Err(Error::Conflict { found: None, .. })), "{refused:?}");
    opened.write(&lease("node1", 1400), Expect::Any).unwrap();
    witness.until(|witness| witness.problems.is_empty() && witness.snapshot.leases["node1"].mtu == 1400);
    // What was broken from its beginning has no version to go back to.
    opened.server().put("/fairlead/nodes/node2", &manifest("node3"));
    witness.until(|witness| witness.problems.len() == 1);
    let told = witness.problems[0].to_string();
    let want = "/fairlead/nodes/node2: node node2: holds another object: node node3";
    assert!(told.starts_with(want), "{told}");
    opened.server().delete("/fairlead/nodes/node2");
    witness.until(|witness| witness.problems.is_empty());
    assert_eq!(witness.removals, 0);
}

#[test]
fn a_node_that_cannot_be_read_is_not_taken_for_gone() {
    let Some(server) = harness::Etcd::start() else { return };
    let opened = Opened::new(server);
    let key = Key::Node("node1".into());
    opened.server().put("/fairlead/nodes/node1", &manifest("node1"));
    opened.write(&lease("node1", 1450), Expect::Absent).unwrap();
    opened.server().put("/fairlead/nodes/node1", "{metadata: {name: node1}}");
    // As long as etcd remembers, it is what it was.
    assert_eq!(opened.opened_again().read(&key).unwrap().unwrap().0, Node::named("node1").into());
    opened.server().compact();
    let late = opened.opened_again();
    let told = late.read(&key).unwrap_err();
    assert!(matches!(&told, Error::Unreadable { key: of, .. } if *of == key), "{told:?}");
    let told = told.to_string();
    assert!(told.starts_with("cannot read node node1: /fairlead/nodes/node1:1:1: "), "{told}");
    assert!(told.contains("apiVersion is missing"), "{told}");
    // Of what agents write, one that cannot be read is replaceable.
    opened.server().put("/fairlead/leases/node1", "{");
    assert_eq!(late.read(&Key::Lease("node1".into())).unwrap(), None);
    opened.server().delete("/fairlead/nodes/node1");
    assert_eq!(late.read(&key).unwrap(), None);
}

#[test]
fn a_key_that_is_no_objects_is_told() {
    let Some(server) = harness::Etcd::start() else { return };
    let opened = Opened::new(server);
    opened.server().put("/fairlead/nodes/Node1", &manifest("node1"));
    let mut witness = Witness::in_sync(opened.watch_of(&AGENT));
    let told = witness.problems[0].to_string();
    assert!(
        told.starts_with("/fairlead/nodes/Node1: is no key of a node, such as nodes/node1 (hint: "),
        "{told}"
    );
    assert_eq!(opened.list().unwrap().problems, witness.problems);
    opened.server().put("/fairlead/leases/a/b", "{}");
    witness.until(|witness| witness.problems.len() == 2);
    opened.server().delete("/fairlead/nodes/Node1");
    opened.server().delete("/fairlead/leases/a/b");
    witness.until(|witness| witness.problems.is_empty());
}

#[test]
fn of_claims_that_overlap_only_one_stays() {
    let Some(server) = harness::Etcd::start() else { return };
    let opened = Opened::new(server);
    for round in 0..4 {
        let barrier = Barrier::new(6);
        let granted: Vec<String> = thread::scope(|scope| {
            let racers: Vec<_> = (0..6)
                .map(|racer| {
                    let (own, barrier) = (opened.opened_again(), &barrier);
                    scope.spawn(move || {
                        let wanted = cidr(&format!("10.{round}.0.0/{}", 16 + racer));
                        let node = format!("node{racer}");
                        barrier.wait();
                        (own.claim(wanted, &node).unwrap() == Claimed::Granted).then_some(node)
                    })
                })
                .collect();
            racers.into_iter().filter_map(|racer| racer.join().unwrap()).collect()
        });
        let claims = opened.list().unwrap().snapshot.claims;
        let whole = cidr(&format!("10.{round}.0.0/16"));
        let here = claims.iter().filter(|(held, _)| whole.contains(*held));
        let here: Vec<String> = here.map(|(_, claim)| claim.node.to_string()).collect();
        assert_eq!(granted, here, "what is held is what was granted");
        assert_eq!(granted.len(), 1, "one, and the others have backed out: {granted:?}");
    }
}

#[test]
fn a_claim_that_lost_and_was_left_behind_is_in_nobodys_way() {
    let Some(server) = harness::Etcd::start() else { return };
    let opened = Opened::new(server);
    let (whole, part) = (cidr("10.9.0.0/16"), cidr("10.9.1.0/24"));
    let claim = |cidr, node: &str| Object::from(Claim { cidr, node: node.into() });
    opened.write(&claim(whole, "node1"), Expect::Absent).unwrap();
    // What is left if a node is cut off between its two looks; and somebody has touched it since.
    let left = String::from_utf8(store::write_manifest(&claim(part, "node2"))).unwrap();
    for touched in ["", "\n"] {
        opened.server().put("/fairlead/claims/10.9.1.0-24", &(left.clone() + touched));
    }
    assert_eq!(opened.claim(whole, "node1").unwrap(), Claimed::Granted);
    let held = Claimed::Held { cidr: whole, node: "node1".to_owned() };
    assert_eq!(opened.claim(part, "node2").unwrap(), held);
    let claims = opened.list().unwrap().snapshot.claims;
    assert_eq!(claims.keys().collect::<Vec<_>>(), [&whole]);
    assert_eq!(opened.claim(part, "node3").unwrap(), held);
    assert_eq!(opened.claim(part, "node1").unwrap(), Claimed::Granted, "its own are in nobody's way");
}

#[test]
fn a_claim_that_cannot_be_read_is_not_free() {
    let Some(server) = harness::Etcd::start() else { return };
    let opened = Opened::new(server);
    opened.server().put("/fairlead/claims/10.244.1.0-24", "{");
    let held = Claimed::Held { cidr: cidr("10.244.1.0/24"), node: "unknown".to_owned() };
    assert_eq!(opened.claim(cidr("10.244.1.128/25"), "node1").unwrap(), held);
    assert!(!opened.release(cidr("10.244.1.0/24"), "node1").unwrap());
}

#[test]
fn after_an_outage_only_what_changed_is_told() {
    let Some(server) = harness::Etcd::start() else { return };
    let opened = Opened::new(server);
    for name in ["node1", "node2", "node3"] {
        opened.write(&lease(name, 1450), Expect::Absent).unwrap();
    }
    let mut witness = Witness::in_sync(opened.watch_of(&AGENT));
    opened.set_available(false);
    witness.until(|witness| !witness.available);
    opened.set_available(true);
    opened.delete(&Key::Lease("node2".into()), Expect::Any).unwrap();
    opened.write(&lease("node3", 1400), Expect::Any).unwrap();
    let want = opened.store.list(&AGENT).unwrap().snapshot;
    witness.until(|witness| witness.available && witness.snapshot == want);
    assert_eq!((witness.removals, witness.lost.len()), (1, 0));
}

#[test]
fn an_etcd_that_was_stopped_for_a_while_loses_nothing() {
    let Some(server) = harness::Etcd::start() else { return };
    let opened = Opened::new(server);
    opened.write(&lease("node1", 1450), Expect::Absent).unwrap();
    let mut witness = Witness::in_sync(opened.watch_of(&AGENT));
    opened.server().set_stopped(0..1, true);
    // A write waits for its answer, and then gives up.
    let refused = opened.write(&lease("node1", 1400), Expect::Any);
    assert!(matches!(&refused, Err(Error::Unavailable { .. })), "{refused:?}");
    opened.server().set_stopped(0..1, false);
    opened.write(&lease("node1", 1300), Expect::Any).unwrap();
    witness.until(|witness| witness.snapshot.leases["node1"].mtu == 1300);
    assert_eq!((witness.removals, witness.lost.len()), (0, 0));
}

#[test]
fn what_changed_while_the_watch_was_cut_and_etcd_forgot_is_told_by_comparison() {
    let Some(server) = harness::Etcd::start() else { return };
    let way = Way::to(&server.url());
    let opened = Opened::by(server, way.url.parse().unwrap(), Access::default());
    for name in ["node1", "node2", "node3"] {
        opened.write(&lease(name, 1450), Expect::Absent).unwrap();
    }
    let mut witness = Witness::in_sync(opened.watch_of(&AGENT));
    way.cut();
    witness.until(|witness| !witness.available);
    // Not by the way that is cut: one lease changes in one attribute, one goes, one comes.
    let direct = Etcd::open(&opened.server().url().parse().unwrap(), Access::default()).unwrap();
    direct.write(&lease("node1", 1400), Expect::Any).unwrap();
    direct.delete(&Key::Lease("node2".into()), Expect::Any).unwrap();
    direct.write(&lease("node4", 1450), Expect::Absent).unwrap();
    opened.server().compact();
    way.mend();
    let want = direct.list(&AGENT).unwrap().snapshot;
    witness.until(|witness| witness.available && witness.snapshot == want);
    assert_eq!((witness.removals, witness.lost.len(), witness.snapshot.leases["node1"].mtu), (1, 0, 1400));
    direct.write(&lease("node1", 1300), Expect::Any).unwrap();
    witness.until(|witness| witness.snapshot.leases["node1"].mtu == 1300);
}

#[test]
fn watches_that_are_cut_as_soon_as_they_begin_are_tried_ever_more_seldom() {
    let Some(server) = harness::Etcd::start() else { return };
    let way = Way::to(&server.url());
    let opened = Opened::by(server, way.url.parse().unwrap(), Access::default());
    opened.write(&lease("node1", 1450), Expect::Absent).unwrap();
    way.state.lock().unwrap().cut_watches = Some(0);
    let mut witness = Witness::in_sync(opened.watch_of(&AGENT));
    thread::sleep(Duration::from_secs(3));
    let cuts = way.state.lock().unwrap().cut_watches.take().unwrap();
    // Of three kinds, each after 25 to 50 ms, then twice that, and so on up to 0.8 s.
    assert!((6..60).contains(&cuts), "{cuts} watches within three seconds");
    opened.write(&lease("node1", 1400), Expect::Any).unwrap();
    witness.until(|witness| witness.available && witness.snapshot.leases["node1"].mtu == 1400);
    assert_eq!(witness.removals, 0);
}

#[test]
fn what_an_etcd_with_an_empty_disk_has_lost_stays_in_force() {
    let Some(server) = harness::Etcd::start() else { return };
    let opened = Opened::new(server);
    for name in ["node0", "node1"] {
        opened.write(&Node::named(name).into(), Expect::Absent).unwrap();
    }
    opened.write(&lease("node1", 1450), Expect::Absent).unwrap();
    opened.claim(cidr("10.244.1.0/24"), "node1").unwrap();
    let mut witness = Witness::in_sync(opened.watch_of(&AGENT));
    let known = witness.snapshot.clone();
    opened.server().wipe();
    let all = |problem: &store::Problem| {
        problem.to_string().contains("lost 4 of its objects; they stay in force (hint: etcd came back")
    };
    witness.until(|witness| witness.available && witness.problems.iter().any(all));
    assert_eq!((witness.removals, &witness.snapshot), (0, &known));
    assert_eq!(witness.lost, BTreeSet::new(), "no Node is there to write them for");
    // People put their Nodes back, and agents what is theirs; then nothing is lost any more.
    for name in ["node0", "node1"] {
        opened.server().put(&format!("/fairlead/nodes/{name}"), &manifest(name));
    }
    let wanted = cidr("10.244.1.0/24");
    let lost = BTreeSet::from([Key::Lease("node1".into()), Key::Claim(wanted)]);
    witness.until(|witness| witness.lost == lost);
    assert_eq!(witness.snapshot, known);
    opened.write(&lease("node1", 1450), Expect::Any).unwrap();
    opened.claim(wanted, "node1").unwrap();
    witness.until(|witness| witness.problems.is_empty());
    assert_eq!(witness.removals, 0);
    opened.delete(&Key::Node("node0".into()), Expect::Any).unwrap();
    witness.until(|witness| nodes(witness) == ["node1"]);
}

#[test]
fn an_etcd_that_went_further_than_the_lost_one_is_known_by_its_identity() {
    let Some(server) = harness::Etcd::start() else { return };
    let way = Way::to(&server.url());
    let opened = Opened::by(server, way.url.parse().unwrap(), Access::default());
    opened.write(&lease("node1", 1450), Expect::Absent).unwrap();
    let mut witness = Witness::in_sync(opened.watch_of(&AGENT));
    way.cut();
    witness.until(|witness| !witness.available);
    let mut server = opened.server();
    server.wipe();
    // Ends and begins with the data that it has now, so that its terms are as many.
    server.kill();
    server.resume();
    (0..40).for_each(|beat| server.put("/elsewhere", &beat.to_string()));
    drop(server);
    way.mend();
    witness.until(|witness| witness.available && !witness.problems.is_empty());
    assert_eq!((witness.removals, witness.snapshot.leases.len()), (0, 1));
}

#[test]
fn what_is_missing_from_a_restored_copy_stays_in_force_once_the_identity_is_deleted() {
    let Some(server) = harness::Etcd::start() else { return };
    let way = Way::to(&server.url());
    let opened = Opened::by(server, way.url.parse().unwrap(), Access::default());
    for name in ["node1", "node2"] {
        opened.write(&Node::named(name).into(), Expect::Absent).unwrap();
        opened.write(&lease(name, 1450), Expect::Absent).unwrap();
    }
    let mut witness = Witness::in_sync(opened.watch_of(&AGENT));
    let known = witness.snapshot.clone();
    way.cut();
    witness.until(|witness| !witness.available);
    // A copy from before node2 was put, which has gone further than the agent saw.
    for key in ["nodes/node2", "leases/node2", "identity"] {
        opened.server().delete(&format!("/fairlead/{key}"));
    }
    way.mend();
    witness.until(|witness| witness.available && !witness.problems.is_empty());
    assert_eq!((witness.removals, &witness.snapshot), (0, &known));
}

#[test]
fn whoever_removes_everything_has_removed_it() {
    let Some(server) = harness::Etcd::start() else { return };
    let opened = Opened::new(server);
    opened.write(&lease("node1", 1450), Expect::Absent).unwrap();
    let mut witness = Witness::in_sync(opened.watch_of(&AGENT));
    opened.server().delete("/fairlead/leases/");
    witness.until(|witness| witness.snapshot.leases.is_empty());
    assert_eq!((witness.removals, witness.lost.len(), witness.problems.len()), (1, 0, 0));
}

#[test]
fn of_two_members_one_may_be_dead() {
    let Some(server) = harness::Etcd::start() else { return };
    // A port that nobody listens at, before and behind the one that answers.
    let dead = "http://127.0.0.1:9";
    for endpoints in [format!("{dead},{}", server.url()), format!("{},{dead}", server.url())] {
        let store = Etcd::open(&endpoints.parse().unwrap(), Access::default()).unwrap();
        let mut witness = Witness::in_sync(sent(store.watch(&AGENT).unwrap()));
        store.write(&lease("node1", 1450), Expect::Any).unwrap();
        witness.until(|witness| witness.snapshot.leases.len() == 1);
        assert!(witness.available);
        store.delete(&Key::Lease("node1".into()), Expect::Any).unwrap();
    }
    let store =
        Etcd::open(&format!("{dead},http://127.0.0.1:10").parse().unwrap(), Access::default()).unwrap();
    let error = store.list(&AGENT).unwrap_err();
    let told = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(
        told.starts_with("etcd http://127.0.0.1:9,http://127.0.0.1:10 is not available (hint: is it up"),
        "{told}"
    );
    assert!(told.contains("http://127.0.0.1:9: ") && told.contains("http://127.0.0.1:10: "), "{told}");
    assert!(told.contains("Connection refused"), "{told}");
}

#[test]
fn whichever_member_dies_the_watch_goes_on_with_another() {
    let Some(server) = harness::Etcd::start_with(Options { more_members: 2, tls: false }) else { return };
    let opened = Opened::new(server);
    opened.write(&lease("node0", 1450), Expect::Absent).unwrap();
    let mut witness = Witness::in_sync(opened.watch_of(&AGENT));
    for number in 0..3 {
        opened.server().kill_member(number);
        // An election may be on; a write that nobody answered may have been done.
        harness::eventually("a write is taken", || {
            opened.write(&lease("node0", 1300 + number as u32), Expect::Any).ok()
        });
        witness.until(|witness| witness.snapshot.leases["node0"].mtu == 1300 + number as u32);
        opened.server().resume();
    }
    assert_eq!((witness.removals, witness.lost.len()), (0, 0));
}

#[test]
fn a_member_that_stands_still_is_noticed_though_nothing_is_cut() {
    let Some(server) = harness::Etcd::start_with(Options { more_members: 2, tls: false }) else { return };
    let opened = Opened::new(server);
    // What is watched comes from the first member; the other store asks the others.
    let others = opened.server().urls().split_off(1).join(",");
    let others = Etcd::open(&others.parse().unwrap(), Access::default()).unwrap();
    let mut witness = Witness::in_sync(opened.watch_of(&AGENT));
    opened.server().set_stopped(0..1, true);
    harness::eventually("a write is taken", || others.write(&lease("node1", 1450), Expect::Any).ok());
    witness.until(|witness| witness.snapshot.leases.len() == 1);
    assert_eq!((witness.removals, witness.lost.len()), (0, 0));
    opened.server().set_stopped(0..1, false);
}

#[test]
fn many_nodes_are_listed_in_pages_of_one_time() {
    let Some(server) = harness::Etcd::start() else { return };
    let opened = Opened::new(server);
    let put = |number: usize| {
        let name = format!("node{number:04}");
        let (key, value) = (format!("/fairlead/nodes/{name}"), manifest(&name));
        json!({"request_put": {"key": harness::etcd::base64(&key), "value": harness::etcd::base64(&value)}})
    };
    for start in (0..1000).step_by(100) {
        let puts: Vec<Value> = (start..start + 100).map(put).collect();
        opened.server().ask("/v3/kv/txn", &json!({"success": puts}));
    }
    let mut witness = Witness::in_sync(opened.watch_of(&AGENT));
    assert_eq!(witness.snapshot.nodes.len(), 1000);
    assert_eq!(opened.list().unwrap().snapshot.nodes.len(), 1000);
    opened.server().delete("/fairlead/nodes/node09");
    witness.until(|witness| witness.snapshot.nodes.len() == 900);
}

#[test]
fn scenario_40_with_an_etcd_that_takes_its_time_for_each_request_a_start_takes_a_few_however_many_nodes_there_are()
 {
    let Some(server) = harness::Etcd::start() else { return };
    let direct = Etcd::open(&server.url().parse().unwrap(), Access::default()).unwrap();
    for number in 0..50 {
        let name = format!("node{number}");
        server.put(&format!("/fairlead/nodes/{name}"), &manifest(&name));
        direct.write(&lease(&name, 1450), Expect::Absent).unwrap();
        direct.claim(cidr(&format!("10.244.{number}.0/24")), &name).unwrap();
    }
    let way = Way::to(&server.url());
    way.state.lock().unwrap().slow = Duration::from_secs(5);
    let opened = Opened::by(server, way.url.parse().unwrap(), Access::default());
    let witness = Witness::in_sync(opened.watch_of(&AGENT));
    assert_eq!((witness.snapshot.nodes.len(), witness.snapshot.leases.len()), (50, 50));
    let requests = way.state.lock().unwrap().requests;
    assert!(requests < 20, "{requests} requests for 50 nodes");
}

#[test]
fn with_a_password_a_user_may_what_its_role_says() {
    let Some(mut server) = harness::Etcd::start() else { return };
    server.ask_for_passwords("agent", "pass:word", "/fairlead");
    let file = server.path("password");
    std::fs::write(&file, "pass:word\n").unwrap();
    let user =
        |password| Access { user: Some(User { name: "agent".to_owned(), password }), ..Access::default() };
    let endpoints: Endpoints = server.url().parse().unwrap();
    let opened = Opened::by(server, endpoints.clone(), user(Password::File(file.clone())));
    let mut witness = Witness::in_sync(opened.watch_of(&AGENT));
    opened.write(&lease("node1", 1450), Expect::Absent).unwrap();
    opened.notify(&notice("node1", "no lease")).unwrap();
    witness.until(|witness| witness.snapshot.leases.len() == 1);
    // Simple tokens are in etcd's memory only: one that was started again knows none of them.
    opened.set_available(false);
    witness.until(|witness| !witness.available);
    opened.set_available(true);
    opened.write(&lease("node1", 1400), Expect::Any).unwrap();
    witness.until(|witness| witness.available && witness.snapshot.leases["node1"].mtu == 1400);

    let told = |access: Access| {
        let error = Etcd::open(&endpoints, access).unwrap().list(&AGENT).unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", source.unwrap_or_default())
    };
    let wrong = told(user(Password::Text("wrong".to_owned())));
    assert!(
        wrong.contains("FAIRLEAD_ETCD_PASSWORD_FILE") && wrong.contains("`etcdctl user passwd NAME`"),
        "{wrong}"
    );
    assert!(wrong.contains("authentication failed, invalid user ID or password"), "{wrong}");
    let nobody = told(Access::default());
    assert!(
        nobody.contains("set FAIRLEAD_ETCD_USERNAME") && nobody.contains("user name is empty"),
        "{nobody}"
    );
    let elsewhere = told(Access { prefix: "/elsewhere".to_owned(), ..user(Password::File(file.clone())) });
    let want = "forbids agent to read /elsewhere/identity (hint: etcdctl role grant-permission ROLE readwrite \
                --prefix=true /elsewhere/)";
    assert!(elsewhere.contains(want), "{elsewhere}");
    std::fs::remove_file(&file).unwrap();
    let gone = told(user(Password::File(file)));
    assert!(gone.contains("the password's file ") && gone.contains("No such file"), "{gone}");
}

#[test]
fn a_password_that_was_replaced_is_read_again() {
    let Some(mut server) = harness::Etcd::start() else { return };
    server.ask_for_passwords("agent", "old", "/fairlead");
    let file = server.path("password");
    std::fs::write(&file, "old").unwrap();
    let user = Some(User { name: "agent".to_owned(), password: Password::File(file.clone()) });
    let endpoints = server.url().parse().unwrap();
    let opened = Opened::by(server, endpoints, Access { user, ..Access::default() });
    let mut witness = Witness::in_sync(opened.watch_of(&AGENT));
    opened.server().ask("/v3/auth/user/changepw", &json!({"name": "agent", "password": "new"}));
    // etcd takes tokens back with the password.
    opened.set_available(false);
    witness.until(|witness| !witness.available);
    opened.set_available(true);
    let refused = opened.store.list(&AGENT);
    assert!(matches!(&refused, Err(Error::Unavailable { .. })), "{refused:?}");
    std::fs::write(&file, "new").unwrap();
    opened.write(&lease("node1", 1450), Expect::Absent).unwrap();
    witness.until(|witness| witness.available && witness.snapshot.leases.len() == 1);
}

#[test]
fn a_password_that_nobody_asks_for_is_no_fault() {
    let Some(server) = harness::Etcd::start() else { return };
    let password = Password::Text("any".to_owned());
    let access = Access { user: Some(User { name: "agent".to_owned(), password }), ..Access::default() };
    let store = Etcd::open(&server.url().parse().unwrap(), access).unwrap();
    assert_eq!(store.list(&AGENT).unwrap(), Listing::default());
}

#[test]
fn with_certificates_both_sides_know_each_other() {
    let Some(server) = harness::Etcd::start_with(Options { more_members: 0, tls: true }) else { return };
    let endpoints: Endpoints = server.url().parse().unwrap();
    let access = Access {
        authority: Some(server.authority()),
        identity: Some(server.identity("client")),
        ..Access::default()
    };
    let told = |access: Access| {
        let error = Etcd::open(&endpoints, access).unwrap().list(&AGENT).unwrap_err();
        format!("{error}: {}", std::error::Error::source(&error).unwrap())
    };
    let unknown = told(Access { authority: Some(server.identity("stranger").0), ..access.clone() });
    assert!(
        unknown.contains("certificates the right ones") && unknown.contains("UnknownIssuer"),
        "{unknown}"
    );
    let stranger = told(Access { identity: Some(server.identity("stranger")), ..access.clone() });
    assert!(stranger.contains("certificates the right ones"), "{stranger}");
    told(Access { identity: None, ..access.clone() });
    let missing =
        Etcd::open(&endpoints, Access { authority: Some("/nowhere/ca.crt".into()), ..access.clone() });
    let missing = missing.unwrap_err().to_string();
    assert!(missing.contains("/nowhere/ca.crt") && missing.contains("hint: FAIRLEAD_ETCD_CA"), "{missing}");

    let opened = Opened::by(server, endpoints.clone(), access);
    let mut witness = Witness::in_sync(opened.watch_of(&AGENT));
    opened.write(&lease("node1", 1450), Expect::Absent).unwrap();
    witness.until(|witness| witness.snapshot.leases.len() == 1);
    opened.delete(&Key::Lease("node1".into()), Expect::Any).unwrap();
    suite::an_outage_takes_nothing_away(&opened);
}

#[test]
fn two_clusters_live_side_by_side_under_their_own_prefixes() {
    let Some(server) = harness::Etcd::start() else { return };
    let endpoints: Endpoints = server.url().parse().unwrap();
    let open = |prefix: &str| {
        Etcd::open(&endpoints, Access { prefix: prefix.to_owned(), ..Access::default() }).unwrap()
    };
    let (one, other) = (open("/clusters/a"), open("/clusters/a2"));
    one.write(&lease("node1", 1450), Expect::Absent).unwrap();
    assert_eq!(other.list(&AGENT).unwrap(), Listing::default());
    assert_eq!(open("/clusters/a/").list(&AGENT).unwrap().snapshot.leases.len(), 1);
}

#[test]
fn what_happens_on_a_node_is_told_for_a_while_and_counted() {
    let Some(server) = harness::Etcd::start() else { return };
    let opened = Opened::new(server);
    for message in ["no lease", "no lease", "no route"] {
        opened.notify(&notice("node1", message)).unwrap();
    }
    let end = harness::etcd::base64("/fairlead/events/node10");
    let range = json!({"key": harness::etcd::base64("/fairlead/events/node1/"), "range_end": end});
    let told = opened.server().ask("/v3/kv/range", &range);
    let kvs = told["kvs"].as_array().unwrap();
    assert_eq!(kvs.len(), 2);
    let leased = opened.server().ask("/v3/lease/timetolive", &json!({"ID": kvs[0]["lease"]}));
    assert_eq!(leased["grantedTTL"], "4200", "an hour, and as long as one lease is for all");
    assert_eq!(kvs[0]["lease"], kvs[1]["lease"]);
    // One that etcd does not know any more is replaced.
    opened.server().ask("/v3/lease/revoke", &json!({"ID": kvs[0]["lease"]}));
    opened.notify(&notice("node1", "no lease")).unwrap();
    let again = opened.server().ask("/v3/kv/range", &range);
    assert_eq!(again["kvs"].as_array().map(Vec::len), Some(1));
    assert_ne!(again["kvs"][0]["lease"], kvs[0]["lease"]);
    // Leases of nodes are for ever.
    opened.write(&lease("node1", 1450), Expect::Absent).unwrap();
    assert_eq!(opened.server().get("/fairlead/leases/node1").unwrap()["lease"], Value::Null);
    assert_eq!(opened.list().unwrap().snapshot.objects().count(), 1, "what happened is no object");
}

#[test]
fn a_report_that_cannot_be_read_is_not_ready() {
    let Some(server) = harness::Etcd::start() else { return };
    let opened = Opened::new(server);
    opened.write(&Node::named("node1").into(), Expect::Absent).unwrap();
    opened.server().put("/fairlead/reports/node1", "{");
    let reports = opened.reports().unwrap();
    assert_eq!((reports.len(), reports[0].ready, &*reports[0].reason), (1, false, "Unknown"));
    assert!(
        reports[0].message.starts_with("its report in /fairlead/reports/node1 cannot be read"),
        "{reports:?}"
    );
    opened.report(&report("node1", true)).unwrap();
    assert_eq!(opened.reports().unwrap(), [report("node1", true)]);
    // Whoever takes away what a node held that is gone takes it along.
    opened.delete(&Key::Lease("node1".into()), Expect::Any).unwrap();
    assert!(opened.server().get("/fairlead/reports/node1").is_none());
    opened.write(&pod("web").into(), Expect::Absent).unwrap();
}

/// A way to etcd that can be cut, and mended again.
struct Way {
    url: String,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    cut: bool,
    /// How many watches were cut right after their first line; none if they are let be.
    cut_watches: Option<usize>,
    /// How long each request takes, and how many there were.
    slow: Duration,
    requests: usize,
    open: Vec<TcpStream>,
}

impl Way {
    fn to(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = format!("http://{}", listener.local_addr().unwrap());
        let (target, state) =
            (url.strip_prefix("http://").unwrap().to_owned(), Arc::<Mutex<State>>::default());
        let shared = state.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let mut state = shared.lock().unwrap();
                // etcd may be away, too.
                let Some(server) = (!state.cut).then(|| TcpStream::connect(&target).ok()).flatten() else {
                    continue;
                };
                state.open.extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
                for (from, to) in
                    [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)]
                {
                    let shared = shared.clone();
                    thread::spawn(move || carry(from, to, &shared));
                }
            }
        });
        Self { url: own, state }
    }

    fn cut(&self) {
        let mut state = self.state.lock().unwrap();
        state.cut = true;
        state.open.drain(..).for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
    }

    fn mend(&self) {
        self.state.lock().unwrap().cut = false;
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, state: &Mutex<State>) {
    let mut buffer = [0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if buffer.starts_with(b"POST ") && count > 5 {
            let slow = {
                let mut state = state.lock().unwrap();
                state.requests += 1;
                state.slow
            };
            thread::sleep(slow);
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
        let begins = String::from_utf8_lossy(&buffer[..count]).contains("\"created\":true");
        if begins && let Some(cuts) = &mut state.lock().unwrap().cut_watches {
            *cuts += 1;
            let _ = from.shutdown(Shutdown::Both);
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
