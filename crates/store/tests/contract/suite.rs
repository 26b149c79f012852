//! The tests, as functions over any store.
//!
//! Nothing here sleeps: what is awaited is an event, and a deadline only ends a test that would hang.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Barrier;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use cluster::{
    Backend, Claim, ContainerPort, Endpoint, EndpointPort, EndpointSlice, Flannel, Key, Kind, Labels, Lease,
    MacAddress, Namespace, NamespacedName, NetworkPolicy, Node, Object, Peer, Phase, Pod, PodStatus,
    PortMatch, Protocol, Requirement, Rule, Selector, Service, ServiceCidr, ServicePort, ServiceType,
    Snapshot, TargetPort,
};
use ipnet::IpNet;
use store::{Claimed, Error, Event, Expect, Listing, Notice, Report, Version};

/// What a store offers to the suite; every method may be called from any thread. What a store leaves to others to
/// write, its subject writes in their place.
pub(crate) trait Subject: Send + Sync {
    fn list(&self) -> Result<Listing, Error>;
    /// Sends the events of all kinds until the receiver is dropped.
    fn watch(&self) -> Receiver<Event> {
        self.watch_of(&Kind::ALL)
    }
    /// Sends the events of these kinds until the receiver is dropped.
    fn watch_of(&self, kinds: &[Kind]) -> Receiver<Event>;
    /// Whether there are objects of that kind in it at all.
    fn has(&self, kind: Kind) -> bool;
    fn write(&self, object: &Object, expect: Expect) -> Result<Version, Error>;
    fn read(&self, key: &Key) -> Result<Option<(Object, Version)>, Error>;
    fn delete(&self, key: &Key, expect: Expect) -> Result<bool, Error>;
    fn claim(&self, cidr: IpNet, node: &str) -> Result<Claimed, Error>;
    fn release(&self, cidr: IpNet, node: &str) -> Result<bool, Error>;
    fn report(&self, report: &Report) -> Result<(), Error>;
    fn reports(&self) -> Result<Vec<Report>, Error>;
    fn notify(&self, notice: &Notice) -> Result<(), Error>;
    /// The same store as another process would open it.
    fn opened_again(&self) -> Box<dyn Subject>;
    /// Takes the store away, as by an outage, and brings it back with all its objects.
    fn set_available(&self, available: bool);
}

/// No test waits longer for one event; nothing is measured by it.
const DEADLINE: Duration = Duration::from_secs(60);

/// Takes events in, as an agent would.
pub(crate) struct Witness {
    events: Receiver<Event>,
    pub(crate) snapshot: Snapshot,
    pub(crate) in_sync: bool,
    pub(crate) available: bool,
    pub(crate) problems: Vec<store::Problem>,
    /// How many objects were removed so far.
    pub(crate) removals: usize,
    /// What the store lost.
    pub(crate) lost: BTreeSet<Key>,
    pub(crate) confirmed: u64,
    told: bool,
}

impl Witness {
    pub(crate) fn new(events: Receiver<Event>) -> Self {
        let (snapshot, problems) = (Snapshot::default(), Vec::new());
        let (lost, removals, confirmed) = (BTreeSet::new(), 0, 0);
        let (in_sync, available, told) = (false, true, false);
        Self { events, snapshot, in_sync, available, problems, removals, lost, confirmed, told }
    }

    /// A witness that has seen everything there was.
    pub(crate) fn in_sync(events: Receiver<Event>) -> Self {
        let mut witness = Self::new(events);
        witness.until(|witness| witness.in_sync);
        witness
    }

    /// Takes events in until `reached`.
    pub(crate) fn until(&mut self, reached: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !reached(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(event) => self.take_in(event),
                Err(error) => panic!("{error}; seen so far: {:#?}\n{:#?}", self.snapshot, self.problems),
            }
        }
    }

    fn take_in(&mut self, event: Event) {
        match event {
            Event::Snapshot(snapshot) => {
                assert!(!std::mem::replace(&mut self.told, true), "the snapshot came twice");
                self.snapshot = snapshot;
            }
            Event::InSync => {
                assert!(self.told && !self.in_sync, "in sync before the snapshot, or twice");
                self.in_sync = true;
            }
            Event::Changes(changes) => {
                assert!(self.told, "a change came before the snapshot");
                for change in changes {
                    self.removals += usize::from(matches!(change, cluster::Change::Removed(_)));
                    assert!(self.snapshot.apply(change.clone()), "nothing changed by {change:?}");
                }
            }
            Event::Problems(problems) => {
                assert_ne!(self.problems, problems, "the same problems were told twice");
                self.problems = problems;
            }
            Event::Unavailable { .. } => self.available = false,
            Event::Available => self.available = true,
            Event::Confirmed(number) => self.confirmed = number,
            Event::Lost(keys) => {
                assert!(self.in_sync, "something was lost that was not known");
                assert!(keys.iter().all(|key| self.snapshot.object(key).is_some()), "{keys:?} stay in force");
                self.lost.extend(keys);
            }
        }
    }
}

pub(crate) fn pod(name: &str) -> Pod {
    Pod::named(NamespacedName::new("default", name))
}

pub(crate) fn lease(node: &str, mtu: u32) -> Object {
    let mac = MacAddress([2, 0, 0, 0, 0, 1]);
    Object::from(Lease {
        node: node.into(),
        pod_cidrs: ["10.244.1.0/24", "fd00:10:244:1::/64"].map(|cidr| cidr.parse().unwrap()).into(),
        underlay: [IpAddr::from([198, 18, 0, 1])].into(),
        backend: Backend::Vxlan { vni: 1, port: 8472, mac },
        mtu,
        flannel: Flannel::Apart,
    })
}

/// A node of which all is said but its pod CIDRs.
fn node() -> Node {
    Node {
        labels: Labels::from_iter([("zone", "a")]),
        addresses: [IpAddr::from([198, 18, 0, 1])].into(),
        awaits_network: true,
        advertise: Some("203.0.113.7, 2001:db8::7".into()),
        ..Node::named("node1")
    }
}

/// Pods, what became of them, and all else that is neither a lease nor a claim.
fn everything_else() -> Vec<Object> {
    let name = || NamespacedName::new("default", "web");
    let mut pod = pod("web");
    pod.labels = Labels::from_iter([("app", "web")]);
    pod.annotations = Labels::from_iter([("kubernetes.io/ingress-bandwidth", "1M")]);
    pod.node = Some("node1".into());
    let port = ContainerPort {
        name: Some("http".into()),
        port: 80,
        protocol: Protocol::Tcp,
        host_port: None,
        host_address: None,
    };
    pod.ports = [port].into();
    (pod.phase, pod.addresses) = (Phase::Running, [IpAddr::from([10, 244, 1, 2])].into());
    let name_of_namespace = Labels::from_iter([("kubernetes.io/metadata.name", "shop"), ("team", "a")]);
    let port = ServicePort {
        name: Some("http".into()),
        protocol: Protocol::Tcp,
        port: 80,
        target: TargetPort::Name("http".into()),
        node_port: None,
    };
    let service = Service {
        name: name(),
        labels: Labels::default(),
        service_type: ServiceType::ClusterIp,
        selector: Labels::from_iter([("app", "web")]),
        headless: false,
        cluster_addresses: [IpAddr::from([10, 96, 0, 7])].into(),
        ports: [port].into(),
        external_name: None,
    };
    let endpoint = Endpoint {
        addresses: [IpAddr::from([10, 244, 1, 2])].into(),
        ready: true,
        serving: true,
        terminating: false,
        node: Some("node1".into()),
        pod: Some("web".into()),
    };
    let slice = EndpointSlice {
        name: name(),
        service: Some("web".into()),
        labels: Labels::from_iter([("kubernetes.io/service-name", "web")]),
        endpoints: [endpoint].into(),
        ports: [EndpointPort { name: Some("http".into()), protocol: Protocol::Tcp, port: Some(80) }].into(),
    };
    vec![
        node().into(),
        Namespace { name: "shop".into(), labels: name_of_namespace }.into(),
        pod.into(),
        service.into(),
        slice.into(),
        policy(name()).into(),
        ServiceCidr { name: "more".into(), cidrs: ["10.97.0.0/24".parse().unwrap()].into() }.into(),
    ]
}

/// A policy with an empty selector, which no store may lose: it is about every pod.
fn policy(name: NamespacedName) -> NetworkPolicy {
    let peers: [Peer; 1] = [Peer::Pods { namespaces: Some(Selector::default()), pods: Selector::default() }];
    let ports =
        [PortMatch::Range(Protocol::Tcp, 80, 90), PortMatch::Named(Some(Protocol::Udp), "dns".into())];
    let rule = Rule { peers: Some(peers.into()), ports: Some(ports.into()) };
    let subjects = [Requirement::equal("app", "web")].into_iter().collect();
    let (ingress, faults) = (Some(Box::from([rule])), Box::default());
    NetworkPolicy { name, subjects, ingress, egress: Some(Box::default()), audit: false, faults }
}

fn status(name: &str, last: u8) -> Object {
    Object::from(PodStatus {
        pod: NamespacedName::new("default", name),
        node: Some("node1".into()),
        phase: Phase::Running,
        addresses: [IpAddr::from([10, 244, 1, last])].into(),
    })
}

fn cidr(third: u8) -> IpNet {
    format!("10.244.{third}.0/24").parse().unwrap()
}

pub(crate) fn what_is_written_is_listed(store: &dyn Subject) {
    assert_eq!(store.list().unwrap(), Listing::default());
    let mut node = Node::named("node1");
    node.pod_cidrs = [cidr(1)].into();
    let objects = [Object::from(node), Object::from(pod("web")), lease("node1", 1450), status("web", 2)];
    let mut want = Snapshot::default();
    for object in objects.into_iter().filter(|object| store.has(object.key().kind())) {
        let version = store.write(&object, Expect::Absent).unwrap();
        let listed = store.list().unwrap().versions()[&object.key()];
        // An API server gives pods UIDs, which are taken out of what is listed here.
        assert!(listed == version || object.key().kind() == Kind::Pod);
        want.apply(cluster::Change::Set(object));
    }
    let listing = store.list().unwrap();
    assert_eq!(listing.snapshot, want);
    assert_eq!(listing.problems, []);
    assert_eq!(store.opened_again().list().unwrap(), listing);
    // Backwards, for a lease may go with its node.
    for object in want.objects().collect::<Vec<_>>().into_iter().rev() {
        assert!(store.delete(&object.key(), Expect::Any).unwrap());
        assert!(!store.delete(&object.key(), Expect::Any).unwrap());
    }
    assert_eq!(store.list().unwrap().snapshot, Snapshot::default());
}

pub(crate) fn every_kind_is_listed_watched_and_read(store: &dyn Subject) {
    let mut witness = Witness::in_sync(store.watch());
    let mut want = Snapshot::default();
    for object in everything_else() {
        store.write(&object, Expect::Absent).unwrap();
        want.apply(cluster::Change::Set(object.clone()));
        witness.until(|witness| witness.snapshot == want);
        assert_eq!(store.read(&object.key()).unwrap().unwrap().0, object);
    }
    let listing = store.list().unwrap();
    assert_eq!(listing.snapshot, want);
    assert_eq!(Witness::in_sync(store.watch()).snapshot, want);
    for object in want.clone().objects().collect::<Vec<_>>().into_iter().rev() {
        assert!(store.delete(&object.key(), Expect::Any).unwrap());
        want.apply(cluster::Change::Removed(object.key()));
        witness.until(|witness| witness.snapshot == want);
        assert_eq!(store.read(&object.key()).unwrap(), None);
    }
    assert_eq!(witness.problems, []);
}

pub(crate) fn a_watch_tells_only_the_kinds_asked_for(store: &dyn Subject) {
    let kinds = [Kind::Lease, Kind::Claim];
    let mut witness = Witness::in_sync(store.watch_of(&kinds));
    store.write(&Node::named("node2").into(), Expect::Absent).unwrap();
    store.write(&pod("web").into(), Expect::Absent).unwrap();
    store.write(&lease("node1", 1450), Expect::Absent).unwrap();
    store.claim(cidr(1), "node1").unwrap();
    let whole = store.list().unwrap().snapshot;
    let want = Snapshot { leases: whole.leases, claims: whole.claims, ..Snapshot::default() };
    // A store may tell of each kind by itself, and of one sooner than of the other.
    witness.until(|witness| witness.snapshot == want);
    assert_eq!(Witness::in_sync(store.watch_of(&kinds)).snapshot, want);
    let nodes = Witness::in_sync(store.watch_of(&[Kind::Node])).snapshot;
    assert_eq!((nodes.leases.len(), nodes.nodes.contains_key("node2")), (0, true));
}

pub(crate) fn a_watcher_sees_what_is_there_and_then_every_change(store: &dyn Subject) {
    store.write(&lease("node1", 1450), Expect::Absent).unwrap();
    let mut witness = Witness::in_sync(store.watch());
    assert_eq!(witness.snapshot, store.list().unwrap().snapshot);
    store.write(&lease("node1", 1400), Expect::Any).unwrap();
    let other = if store.has(Kind::PodStatus) { status("web", 2) } else { pod("web").into() };
    store.write(&other, Expect::Absent).unwrap();
    let want = store.list().unwrap().snapshot;
    witness.until(|witness| witness.snapshot == want);
    store.delete(&lease("node1", 0).key(), Expect::Any).unwrap();
    let want = store.list().unwrap().snapshot;
    witness.until(|witness| witness.snapshot == want);
    assert_eq!(witness.removals, 1);
}

pub(crate) fn a_write_that_expects_something_else_changes_nothing(store: &dyn Subject) {
    let (old, new) = (lease("node1", 1450), lease("node1", 1400));
    let conflict = |result: Result<Version, Error>, want: Option<Version>| match result {
        Err(Error::Conflict { found, .. }) => assert_eq!(found, want),
        other => panic!("{other:?}"),
    };
    let first = store.write(&old, Expect::Absent).unwrap();
    conflict(store.write(&new, Expect::Absent), Some(first));
    assert_eq!(store.list().unwrap().versions()[&old.key()], first);
    let second = store.write(&new, Expect::Version(first)).unwrap();
    assert_ne!(first, second);
    conflict(store.write(&old, Expect::Version(first)), Some(second));
    assert!(matches!(store.delete(&old.key(), Expect::Version(first)), Err(Error::Conflict { .. })));
    assert!(store.delete(&old.key(), Expect::Version(second)).unwrap());
    conflict(store.write(&old, Expect::Version(second)), None);
    assert!(matches!(store.delete(&old.key(), Expect::Version(second)), Err(Error::Conflict { .. })));
    assert_eq!(store.write(&old, Expect::Absent).unwrap(), first, "the same content is the same version");
}

pub(crate) fn of_many_writers_at_once_exactly_one_wins(store: &dyn Subject) {
    let start = store.write(&lease("node1", 1300), Expect::Absent).unwrap();
    let barrier = Barrier::new(8);
    let wins: usize = thread::scope(|scope| {
        let racers: Vec<_> = (0..8)
            .map(|racer| {
                let (own, barrier) = (store.opened_again(), &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    usize::from(own.write(&lease("node1", 1400 + racer), Expect::Version(start)).is_ok())
                })
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).sum()
    });
    assert_eq!(wins, 1);
}

pub(crate) fn a_pod_cidr_is_claimed_by_one_node_only(store: &dyn Subject) {
    assert_eq!(store.claim(cidr(1), "node1").unwrap(), Claimed::Granted);
    assert_eq!(store.claim(cidr(1), "node1").unwrap(), Claimed::Granted, "once more by the same node");
    let held = |cidr| Claimed::Held { cidr, node: "node1".into() };
    assert_eq!(store.claim(cidr(1), "node2").unwrap(), held(cidr(1)));
    assert_eq!(store.claim("10.244.0.0/16".parse().unwrap(), "node2").unwrap(), held(cidr(1)));
    assert_eq!(store.claim("10.244.1.128/25".parse().unwrap(), "node2").unwrap(), held(cidr(1)));
    assert_eq!(store.claim("fd00:10:244:1::/64".parse().unwrap(), "node2").unwrap(), Claimed::Granted);
    assert!(!store.release(cidr(1), "node2").unwrap());
    assert!(store.release(cidr(1), "node1").unwrap());
    assert!(!store.release(cidr(1), "node1").unwrap());
    assert_eq!(store.claim(cidr(1), "node2").unwrap(), Claimed::Granted);
    let claims: Vec<IpNet> = store.list().unwrap().snapshot.claims_of("node2").collect();
    assert_eq!(claims, [cidr(1), "fd00:10:244:1::/64".parse().unwrap()]);
    let host_bits = store.claim("10.244.2.1/24".parse().unwrap(), "node1");
    assert!(matches!(host_bits, Err(Error::Invalid { .. })), "{host_bits:?}");
}

pub(crate) fn of_many_claims_at_once_exactly_one_wins(store: &dyn Subject) {
    let barrier = Barrier::new(8);
    let granted: Vec<BTreeSet<u8>> = thread::scope(|scope| {
        let racers: Vec<_> = (0..8)
            .map(|racer| {
                let (own, barrier) = (store.opened_again(), &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    let wins = |third: &u8| {
                        own.claim(cidr(*third), &format!("node{racer}")).unwrap() == Claimed::Granted
                    };
                    (0..16).filter(wins).collect()
                })
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    assert_eq!(granted.iter().map(BTreeSet::len).sum::<usize>(), 16, "{granted:?}");
    let snapshot = store.list().unwrap().snapshot;
    for (racer, thirds) in granted.iter().enumerate() {
        let want: Vec<IpNet> = thirds.iter().copied().map(cidr).collect();
        assert_eq!(snapshot.claims_of(&format!("node{racer}")).collect::<Vec<_>>(), want);
    }
}

pub(crate) fn an_object_that_cannot_be_read_back_is_refused(store: &dyn Subject) {
    for bad in ["../../etc/passwd", "Web", "", "a b", "a\u{0}b"] {
        let written = store.write(&Object::from(pod(bad)), Expect::Any);
        assert!(matches!(written, Err(Error::Invalid { .. })), "{bad:?}: {written:?}");
    }
    assert!(matches!(store.write(&lease("node1", 7), Expect::Any), Err(Error::Invalid { .. })));
    let claim = Claim { cidr: "10.0.0.1/8".parse().unwrap(), node: "node1".into() };
    assert!(matches!(store.write(&Object::from(claim), Expect::Any), Err(Error::Invalid { .. })));
    assert_eq!(store.list().unwrap(), Listing::default());
}

pub(crate) fn report(node: &str, ready: bool) -> Report {
    let reason = if ready { "NetworkReady" } else { "NoLease" }.to_owned();
    let message = format!("pods \u{e4} {ready}: \"10.244.1.0/24\"\n");
    Report { node: node.to_owned(), ready, reason, message, version: "0.1.0".to_owned() }
}

pub(crate) fn notice(node: &str, message: &str) -> Notice {
    let (node, reason) = (node.to_owned(), "NetworkNotReady".to_owned());
    Notice { node, warning: true, reason, message: message.to_owned() }
}

pub(crate) fn what_nodes_report_is_told_to_all_as_long_as_there_is_the_node(store: &dyn Subject) {
    for node in ["node1", "node2", "node3"] {
        store.write(&Node::named(node).into(), Expect::Absent).unwrap();
    }
    assert_eq!(store.reports().unwrap(), []);
    store.report(&report("node2", true)).unwrap();
    store.report(&report("node1", true)).unwrap();
    store.report(&report("node1", false)).unwrap();
    let later = Report { version: "0.2.0".to_owned(), message: String::new(), ..report("node2", true) };
    store.report(&later).unwrap();
    assert_eq!(store.reports().unwrap(), [report("node1", false), later.clone()]);
    assert_eq!(store.opened_again().reports().unwrap(), [report("node1", false), later.clone()]);
    store.notify(&notice("node1", "no lease")).unwrap();
    let listing = store.list().unwrap();
    assert_eq!((listing.problems, listing.snapshot.objects().count()), (vec![], 3), "a report is no object");
    assert!(store.delete(&Key::Node("node1".into()), Expect::Any).unwrap());
    assert_eq!(store.reports().unwrap(), [later]);
}

pub(crate) fn a_report_that_leads_astray_is_refused(store: &dyn Subject) {
    for bad in ["../../node1", "Node1", "", "a b", "node1/status", "node1?dryRun=All"] {
        let told = store.report(&report(bad, true));
        assert!(matches!(&told, Err(Error::Invalid { .. })), "{bad:?}: {told:?}");
        let told = store.notify(&notice(bad, "no lease"));
        assert!(matches!(&told, Err(Error::Invalid { .. })), "{bad:?}: {told:?}");
    }
    for bad in ["", "no lease", "1st", "a-b", "Ä"] {
        let told = store.report(&Report { reason: bad.to_owned(), ..report("node1", true) });
        assert!(matches!(&told, Err(Error::Invalid { .. })), "{bad:?}: {told:?}");
    }
    assert_eq!(store.reports().unwrap(), []);
}

pub(crate) fn an_outage_takes_nothing_away(store: &dyn Subject) {
    store.write(&lease("node1", 1450), Expect::Absent).unwrap();
    let mut witness = Witness::in_sync(store.watch());
    let known = witness.snapshot.clone();
    store.set_available(false);
    witness.until(|witness| !witness.available);
    assert!(matches!(store.list(), Err(Error::Unavailable { .. })));
    assert!(matches!(store.write(&lease("node2", 1450), Expect::Any), Err(Error::Unavailable { .. })));
    assert!(matches!(store.claim(cidr(1), "node1"), Err(Error::Unavailable { .. })));
    assert!(matches!(store.report(&report("node1", true)), Err(Error::Unavailable { .. })));
    assert!(matches!(store.reports(), Err(Error::Unavailable { .. })));
    let mut late = Witness::new(store.watch());
    late.until(|late| !late.available);
    assert!(!late.in_sync);
    store.set_available(true);
    witness.until(|witness| witness.available);
    late.until(|late| late.available && late.in_sync);
    store.write(&lease("node2", 1450), Expect::Absent).unwrap();
    let want = store.list().unwrap().snapshot;
    assert_eq!(want.leases.len(), known.leases.len() + 1);
    witness.until(|witness| witness.snapshot == want);
    late.until(|late| late.snapshot == want);
    assert_eq!((witness.removals, late.removals), (0, 0));
    store.delete(&lease("node1", 0).key(), Expect::Any).unwrap();
    let want = store.list().unwrap().snapshot;
    witness.until(|witness| witness.snapshot == want);
}

pub(crate) fn after_a_restart_everything_is_there(store: &dyn Subject) {
    store.write(&lease("node1", 1450), Expect::Absent).unwrap();
    store.claim(cidr(1), "node1").unwrap();
    let before = store.list().unwrap();
    drop(Witness::in_sync(store.watch()));
    let again = store.opened_again();
    assert_eq!(again.list().unwrap(), before);
    assert_eq!(again.claim(cidr(1), "node1").unwrap(), Claimed::Granted);
    assert_eq!(Witness::in_sync(again.watch()).snapshot, before.snapshot);
}

/// Sends what an iterator yields, from a thread of its own.
pub(crate) fn sent<I: Iterator<Item = Event> + Send + 'static>(mut events: I) -> Receiver<Event> {
    let (sender, receiver) = channel();
    thread::spawn(move || events.all(|event| sender.send(event).is_ok()));
    receiver
}
