//! Nodes whose Node object was deleted a moment ago, or lost its lease while it stayed.
//!
//! Read [`Departed::hold_back`]: of the changes that the store tells, it keeps those back that would take a deleted
//! node's network down, until its time of grace is over ([`Departed::expire`]), it is back, or somebody else has what
//! it held. A Node object is gone together with the node's lease where the lease is a part of it, as in Kubernetes, so
//! a lease that goes with its node, or after it, is kept back too; and so is one that goes alone, for a Node that was
//! deleted and created anew between two looks at the store is told as no more than that. Only the own lease is believed to
//! be gone at once: this agent writes it again.
//!
//! What stays true: the node's pod CIDRs are never carried by two nodes, for a lease or a Node that overlaps what a
//! deleted one held ends its time at once; and no time runs out while the store is away. What is kept is kept in memory; an agent
//! that starts begins with what files say that an earlier one of this node carried itself ([`Departed::miss_own`]) and knew
//! of its peers ([`Departed::recall`]), where the store does not have it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::{Change, Key, Lease, Node, Object, Snapshot};
use ipnet::IpNet;
use netstate::pool::overlaps;

use crate::holders::{Ends, Holders};
use crate::leases_file::{Known, Time};

/// How long a store that is back may take to tell what has changed.
const CATCHING_UP: Duration = Duration::from_secs(10);

/// The deleted nodes that still count.
#[derive(Debug, Default)]
pub(crate) struct Departed {
    own: Arc<str>,
    grace: Duration,
    nodes: BTreeMap<Arc<str>, Departure>,
    /// Nodes that an earlier agent knew and that are not there at all.
    awaited: BTreeMap<Arc<str>, Awaited>,
}

/// A node that has its lease again if it comes back in time.
#[derive(Debug, Clone)]
struct Awaited {
    lease: Arc<Lease>,
    until: Instant,
}

/// How it stands with one of them.
#[derive(Debug, Clone)]
struct Departure {
    /// When its time is over.
    until: Instant,
    /// The Node object is there again, and its agent has not published a lease yet.
    is_back: bool,
    /// The store has no lease of it any more.
    lease_gone: bool,
    /// What it held.
    pod_cidrs: Box<[IpNet]>,
}

impl Departure {
    /// One that holds nothing yet.
    fn of(until: Instant, is_back: bool, lease_gone: bool) -> Self {
        Self { until, is_back, lease_gone, pod_cidrs: Box::default() }
    }
}

/// What became of changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sorted {
    /// Those that hold now.
    pub(crate) due: Vec<Change>,
    /// Whether some were kept back, or somebody's time ended or changed: a Node that is back as it was is news, too.
    pub(crate) is_news: bool,
}

impl Departed {
    pub(crate) fn new(own: &str, grace: Duration) -> Self {
        Self { own: own.into(), grace, ..Self::default() }
    }

    pub(crate) fn set_grace(&mut self, grace: Duration) {
        self.grace = grace;
    }

    /// Whether the node has no Node object, though it counts as there.
    pub(crate) fn contains(&self, node: &str) -> bool {
        self.nodes.get(node).is_some_and(|departure| !departure.is_back)
    }

    /// Lets nobody's time be over yet: the store was away, and what it did not tell meanwhile is still to come.
    pub(crate) fn prolong(&mut self, now: Instant) {
        let least = now + CATCHING_UP;
        let of_nodes = self.nodes.values_mut().map(|departure| &mut departure.until);
        let of_awaited = self.awaited.values_mut().map(|awaited| &mut awaited.until);
        of_nodes.chain(of_awaited).for_each(|until| *until = least.max(*until));
    }

    /// The own node has no Node object at the start, though an earlier agent carried these pod CIDRs here.
    pub(crate) fn miss_own(&mut self, pod_cidrs: &[IpNet], snapshot: &mut Snapshot, now: Instant) {
        let own = self.own.clone();
        if self.grace.is_zero() || pod_cidrs.is_empty() || snapshot.nodes.contains_key(&own) {
            return;
        }
        // Somebody else has them now.
        if snapshot.nodes.keys().any(|node| collide(pod_cidrs, &held(snapshot, node))) {
            return;
        }
        tracing::warn!(node = %own, grace = ?self.grace, "there is no Node object; its network stays for a while");
        snapshot.apply(Change::Set(Node::named(own.clone()).into()));
        let departure = Departure {
            until: now + self.grace,
            is_back: false,
            lease_gone: true,
            pod_cidrs: pod_cidrs.into(),
        };
        self.nodes.insert(own, departure);
    }

    /// Begins with what an earlier agent knew of nodes that the store does not have whole. What it kept already is kept
    /// for the rest of its time, and where the store `was_away` until now, until it has told what has changed. A Node that is
    /// there and has no lease lost it a moment ago, as far as this agent can tell. A Node object that went while no agent ran
    /// here was deleted; if it comes back in time it has its lease again.
    pub(crate) fn recall(
        &mut self,
        known: Vec<Known>,
        was_away: bool,
        snapshot: &mut Snapshot,
        now: Instant,
    ) {
        let holders = Holders::of(snapshot);
        let known = known.into_iter().filter(|known| !holders.have_some_of(&known.lease));
        let known: Vec<Known> = known.collect();
        let (full, least) = (now + self.grace, now + if was_away { CATCHING_UP } else { Duration::ZERO });
        for Known { lease, time } in known {
            let is_back = snapshot.nodes.contains_key(&lease.node);
            let lease_gone = !snapshot.leases.contains_key(&lease.node);
            let until = match time {
                Time::Unlimited => full,
                Time::Kept(until) | Time::Awaited(until) => until.min(full).max(least),
            };
            if until <= now {
                continue;
            }
            if is_back || matches!(time, Time::Kept(_)) {
                self.keep(lease, Departure::of(until, is_back, lease_gone), snapshot);
            } else if lease_gone {
                self.awaited.insert(lease.node.clone(), Awaited { lease: lease.into(), until });
            }
        }
    }

    /// Keeps a node with this lease, as far as the store does not have it.
    fn keep(&mut self, lease: impl Into<Arc<Lease>>, departure: Departure, snapshot: &mut Snapshot) {
        let lease = lease.into();
        let node = lease.node.clone();
        tracing::info!(%node, "the store lacks some of what it had of this node; the way to it stays for a while");
        if !departure.is_back {
            snapshot.apply(Change::Set(Node::named(node.clone()).into()));
        }
        if departure.lease_gone {
            snapshot.apply(Change::Set(Object::Lease(lease)));
        }
        let pod_cidrs = held(snapshot, &node);
        self.nodes.insert(node, Departure { pod_cidrs, ..departure });
    }

    /// Whether what an earlier agent knew of the node is of interest: it is another one, and not whole in the store.
    pub(crate) fn misses(&self, node: &str, snapshot: &Snapshot) -> bool {
        let is_whole = snapshot.nodes.contains_key(node) && snapshot.leases.contains_key(node);
        *node != *self.own && !is_whole && !self.grace.is_zero()
    }

    /// How it stands with a node whose lease counts.
    pub(crate) fn time(&self, node: &str) -> Time {
        self.nodes.get(node).map_or(Time::Unlimited, |departure| Time::Kept(departure.until))
    }

    /// Those that are waited for.
    pub(crate) fn awaited(&self) -> impl Iterator<Item = (&Arc<Lease>, Time)> {
        self.awaited.values().map(|awaited| (&awaited.lease, Time::Awaited(awaited.until)))
    }

    /// Whether anybody's time is to end.
    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.awaited.is_empty()
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let awaited = self.awaited.values().map(|awaited| awaited.until);
        self.nodes.values().map(|departure| departure.until).chain(awaited).min()
    }

    /// Sorts out what has to wait.
    pub(crate) fn hold_back(
        &mut self,
        changes: Vec<Change>,
        snapshot: &mut Snapshot,
        now: Instant,
    ) -> Sorted {
        let mut sorted = Sorted::default();
        if self.grace.is_zero() && self.is_empty() {
            sorted.due = changes;
            return sorted;
        }
        for node in removed_nodes(&changes) {
            if self.grace.is_zero() || !snapshot.nodes.contains_key(&node) {
                continue;
            }
            tracing::info!(%node, grace = ?self.grace, "the Node object was deleted; its network stays for a while");
            let lease_gone = self.nodes.get(&node).is_some_and(|departure| departure.lease_gone);
            let pod_cidrs = held(snapshot, &node);
            let departure = Departure { until: now + self.grace, is_back: false, lease_gone, pod_cidrs };
            self.nodes.insert(node, departure);
        }
        for change in changes {
            if self.keeps(&change, snapshot, now) {
                sorted.is_news = true;
                continue;
            }
            sorted.is_news |= self.note(&change, snapshot);
            sorted.due.push(change);
        }
        sorted
    }

    /// Whether a change has to wait.
    fn keeps(&mut self, change: &Change, snapshot: &Snapshot, now: Instant) -> bool {
        match change {
            Change::Removed(Key::Node(node)) => self.contains(node),
            Change::Removed(Key::Lease(node)) if *node != self.own => self.keeps_lease(node, snapshot, now),
            _ => false,
        }
    }

    fn keeps_lease(&mut self, node: &Arc<str>, snapshot: &Snapshot, now: Instant) -> bool {
        if let Some(departure) = self.nodes.get_mut(node) {
            departure.lease_gone = true;
            return true;
        }
        let stays = snapshot.nodes.contains_key(node) && snapshot.leases.contains_key(node);
        if !stays || self.grace.is_zero() {
            return false;
        }
        tracing::info!(%node, grace = ?self.grace, "the Node has lost its lease; the way to it stays for a while");
        let pod_cidrs = held(snapshot, node);
        let departure = Departure { until: now + self.grace, is_back: true, lease_gone: true, pod_cidrs };
        self.nodes.insert(node.clone(), departure);
        true
    }

    /// Ends the time of who is back, and of whose pod CIDRs are another node's now; true if there was one.
    fn note(&mut self, change: &Change, snapshot: &mut Snapshot) -> bool {
        match change {
            Change::Set(Object::Node(node)) => {
                // The own node writes its lease again at once; of another one the old lease shows the way until then.
                let is_welcome = self.welcome(&node.name, snapshot);
                let stays = node.name != self.own;
                let was_gone = match self.nodes.get_mut(&node.name) {
                    Some(departure) if stays && departure.lease_gone => {
                        !std::mem::replace(&mut departure.is_back, true)
                    }
                    _ => self.nodes.remove(&node.name).is_some(),
                };
                self.make_room(&node.name, &node.pod_cidrs, snapshot) || was_gone || is_welcome
            }
            Change::Set(Object::Claim(claim)) => self.make_room(&claim.node, &[claim.cidr], snapshot),
            Change::Set(Object::Lease(lease)) => self.note_lease(lease, snapshot),
            _ => false,
        }
    }

    fn note_lease(&mut self, lease: &Arc<Lease>, snapshot: &mut Snapshot) -> bool {
        self.awaited.remove(&lease.node);
        let was_gone = match self.nodes.get_mut(&lease.node) {
            // The Node object is still to come, or is not.
            Some(departure) if !departure.is_back => {
                departure.lease_gone = false;
                departure.pod_cidrs = lease.current().collect();
                false
            }
            _ => self.nodes.remove(&lease.node).is_some(),
        };
        let ends = Ends::of(lease);
        self.awaited.retain(|_, theirs| !ends.are_shared_with(&theirs.lease));
        let is_twin = |node: &Arc<str>| {
            let theirs = snapshot.leases.get(node).filter(|_| *node != lease.node);
            theirs.is_some_and(|theirs| ends.are_shared_with(theirs))
        };
        let twins: Vec<Arc<str>> = self.nodes.keys().filter(|node| is_twin(node)).cloned().collect();
        twins.iter().for_each(|node| self.end(node, snapshot));
        let current: Vec<IpNet> = lease.current().collect();
        self.make_room(&lease.node, &current, snapshot) || was_gone || !twins.is_empty()
    }

    /// A Node that an earlier agent knew is there, and has its lease again; true if it was waited for.
    fn welcome(&mut self, node: &Arc<str>, snapshot: &mut Snapshot) -> bool {
        let awaited = self.awaited.remove(node).filter(|_| !snapshot.leases.contains_key(node));
        let Some(Awaited { lease, until }) = awaited else { return false };
        self.keep(lease, Departure::of(until, true, true), snapshot);
        true
    }

    /// Ends the time of those who held some of what `owner` has now; true if there were any.
    fn make_room(&mut self, owner: &Arc<str>, pod_cidrs: &[IpNet], snapshot: &mut Snapshot) -> bool {
        self.awaited.retain(|node, theirs| {
            node == owner || !theirs.lease.current().any(|cidr| collide(&[cidr], pod_cidrs))
        });
        let theirs = self.nodes.iter();
        let theirs =
            theirs.filter(|(node, departure)| *node != owner && collide(&departure.pod_cidrs, pod_cidrs));
        let theirs: Vec<Arc<str>> = theirs.map(|(node, _)| node.clone()).collect();
        theirs.iter().for_each(|node| self.end(node, snapshot));
        !theirs.is_empty()
    }

    /// Lets go of those whose time is over.
    pub(crate) fn expire(&mut self, now: Instant, snapshot: &mut Snapshot) -> bool {
        let over = self.nodes.iter().filter(|(_, departure)| departure.until <= now);
        let over: Vec<Arc<str>> = over.map(|(node, _)| node.clone()).collect();
        over.iter().for_each(|node| self.end(node, snapshot));
        let awaited = self.awaited.len();
        self.awaited.retain(|_, awaited| awaited.until > now);
        !over.is_empty() || self.awaited.len() < awaited
    }

    fn end(&mut self, node: &Arc<str>, snapshot: &mut Snapshot) {
        let Some(departure) = self.nodes.remove(node) else { return };
        if !departure.is_back {
            snapshot.apply(Change::Removed(Key::Node(node.clone())));
        }
        if departure.lease_gone {
            snapshot.apply(Change::Removed(Key::Lease(node.clone())));
        }
    }
}

fn removed_nodes(changes: &[Change]) -> BTreeSet<Arc<str>> {
    let removed = changes.iter().filter_map(|change| match change {
        Change::Removed(Key::Node(node)) => Some(node.clone()),
        _ => None,
    });
    removed.collect()
}

/// What a node carries new pods in, and what the cluster gave it.
fn held(snapshot: &Snapshot, node: &str) -> Box<[IpNet]> {
    let lease = snapshot.leases.get(node).into_iter().flat_map(|lease| lease.current());
    let given = snapshot.nodes.get(node).map(|node| &*node.pod_cidrs).unwrap_or_default();
    lease.chain(given.iter().copied()).collect()
}

fn collide(some: &[IpNet], others: &[IpNet]) -> bool {
    some.iter().any(|cidr| others.iter().any(|other| overlaps(*cidr, *other)))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use cluster::{Backend, Change, Flannel, Key, Lease, Node, Object};

    use crate::leases_file::{LeasesFile, Time};
    use crate::view::{Standing, View};

    const GRACE: Duration = Duration::from_secs(60);

    fn lease(node: &str, cidr: &str) -> Change {
        let pod_cidrs = [cidr.parse().unwrap()].into();
        let backend = Backend::Other("any".into());
        let (node, underlay) = (node.into(), Box::default());
        let lease = Lease { node, pod_cidrs, underlay, backend, mtu: 1450, flannel: Flannel::Apart };
        Change::Set(lease.into())
    }

    fn set(node: &str) -> Change {
        Change::Set(Node::named(node).into())
    }

    fn gone(node: &str) -> [Change; 2] {
        [Change::Removed(Key::Lease(node.into())), Change::Removed(Key::Node(node.into()))]
    }

    /// node1, our own, and node2, with a lease each.
    fn view() -> View {
        let mut view = View::new("node1", GRACE);
        view.take(store::Event::Snapshot(cluster::Snapshot::default()));
        view.take(store::Event::InSync);
        tell(&mut view, [set("node1"), set("node2")]);
        tell(&mut view, [lease("node1", "10.244.1.0/24"), lease("node2", "10.244.2.0/24")]);
        view
    }

    fn tell<const COUNT: usize>(view: &mut View, changes: [Change; COUNT]) -> bool {
        view.take(store::Event::Changes(changes.to_vec()))
    }

    fn holds(view: &View, node: &str) -> (bool, bool) {
        (view.snapshot.nodes.contains_key(node), view.snapshot.leases.contains_key(node))
    }

    #[test]
    fn a_deleted_peer_keeps_its_place_until_its_time_is_over() {
        let mut view = view();
        let before = Instant::now();
        assert!(tell(&mut view, gone("node2")));
        assert_eq!(holds(&view, "node2"), (true, true));
        assert!(view.deadline().unwrap() >= before + GRACE);
        assert!(!view.expire(before));
        assert!(view.expire(Instant::now() + GRACE));
        assert_eq!(holds(&view, "node2"), (false, false));
        assert_eq!(view.deadline(), None);
    }

    #[test]
    fn a_peer_that_is_back_is_reached_by_its_old_lease_until_it_has_published_a_new_one() {
        let mut view = view();
        tell(&mut view, gone("node2"));
        tell(&mut view, [set("node2")]);
        assert_eq!(holds(&view, "node2"), (true, true));
        tell(&mut view, [lease("node2", "10.244.9.0/24")]);
        assert_eq!(view.snapshot.leases["node2"].pod_cidrs[0].to_string(), "10.244.9.0/24");
        assert_eq!(view.deadline(), None);
    }

    #[test]
    fn a_peer_that_is_back_without_an_agent_loses_its_old_lease_in_the_end() {
        let mut view = view();
        tell(&mut view, gone("node2"));
        tell(&mut view, [set("node2")]);
        view.expire(Instant::now() + GRACE);
        assert_eq!(holds(&view, "node2"), (true, false));
    }

    #[test]
    fn a_node_that_was_deleted_and_created_anew_between_two_looks_is_seen_by_its_lease_alone() {
        let mut view = view();
        assert!(tell(&mut view, [Change::Removed(Key::Lease("node2".into())), set("node2")]));
        assert_eq!(holds(&view, "node2"), (true, true));
        view.expire(Instant::now() + GRACE);
        assert_eq!(holds(&view, "node2"), (true, false));
    }

    #[test]
    fn no_time_runs_out_while_the_store_is_away() {
        let mut view = view();
        tell(&mut view, gone("node2"));
        view.take(store::Event::Unavailable { reason: "gone".to_owned() });
        assert_eq!(view.deadline(), None);
        assert!(!view.expire(Instant::now() + GRACE * 2));
        let later = Instant::now() + GRACE;
        view.departed.prolong(later);
        view.take(store::Event::Available);
        assert!(view.deadline().unwrap() > later, "what happened meanwhile is still to be told");
    }

    #[test]
    fn a_cidr_that_the_cluster_gives_to_another_node_is_free_at_once_also_of_the_own_node() {
        for name in ["node1", "node2"] {
            let mut view = view();
            let cidr = view.snapshot.leases[name].pod_cidrs.clone();
            tell(&mut view, gone(name));
            let node = Node { pod_cidrs: cidr, ..Node::named("node3") };
            tell(&mut view, [Change::Set(node.into())]);
            assert_eq!(holds(&view, name), (false, false), "{name}");
        }
    }

    #[test]
    fn an_agent_that_starts_without_a_node_object_does_not_take_down_what_an_earlier_one_carried() {
        let start = |remembered: &[ipnet::IpNet]| {
            let mut view = View::new("node1", GRACE).remembering(remembered);
            view.take(store::Event::Snapshot(cluster::Snapshot::default()));
            view.take(store::Event::InSync);
            view
        };
        assert!(
            tell(&mut start(&["10.244.1.0/24".parse().unwrap()]), [set("node1")]),
            "it is there after all"
        );
        let mut view = start(&["10.244.1.0/24".parse().unwrap()]);
        assert!(matches!(view.standing("node1", false), Standing::Deleted));
        view.expire(Instant::now() + GRACE);
        assert!(matches!(view.standing("node1", false), Standing::Absent));
        assert!(matches!(start(&[]).standing("node1", false), Standing::Absent));
    }

    /// An agent that starts with what the store has, and what earlier ones left in this directory.
    fn started(directory: &tempfile::TempDir, store: &[Change], grace: Duration) -> View {
        let file = LeasesFile::new(directory.path(), "node1", &store::Location::Directory("/store".into()));
        let mut view = View::new("node1", grace).with_leases_in(file);
        let mut snapshot = cluster::Snapshot::default();
        store.iter().cloned().for_each(|change| _ = snapshot.apply(change));
        view.take(store::Event::Snapshot(snapshot));
        view.take(store::Event::InSync);
        view
    }

    /// Three nodes with a lease each.
    fn three() -> Vec<Change> {
        let of = |number| {
            let name = format!("node{number}");
            [set(&name), lease(&name, &format!("10.244.{number}.0/24"))]
        };
        [1, 2, 3].map(of).concat()
    }

    #[test]
    fn an_agent_that_starts_knows_leases_that_the_store_has_lost_from_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let start = |store: &[Change], grace| started(&directory, store, grace);
        start(&three(), GRACE).keep_leases(true);
        assert_eq!(
            holds(&start(&[set("node2")], Duration::ZERO), "node2"),
            (true, false),
            "no time of grace"
        );
        // node2 has lost its lease; node3 was deleted; our own agent writes its own again.
        let mut view = start(&[set("node1"), set("node2")], GRACE);
        let found = ["node1", "node2", "node3"].map(|node| holds(&view, node));
        assert_eq!(found, [(true, false), (true, true), (false, false)]);
        view.expire(Instant::now() + GRACE);
        assert_eq!(holds(&view, "node2"), (true, false));
        view.keep_leases(true);
        assert_eq!(holds(&start(&[set("node2")], GRACE), "node2"), (true, false), "it was given up");

        start(&three(), GRACE).keep_leases(true);
        let given = Node { pod_cidrs: ["10.244.2.0/25".parse().unwrap()].into(), ..Node::named("node4") };
        let view = start(&[set("node2"), Change::Set(given.into())], GRACE);
        assert_eq!(holds(&view, "node2"), (true, false), "another node has its network");
        let mut view = start(&[set("node2")], GRACE);
        tell(&mut view, [lease("node2", "10.244.9.0/24")]);
        assert!(view.deadline().is_some(), "the others are waited for");
        assert_eq!(view.snapshot.leases["node2"].pod_cidrs[0].to_string(), "10.244.9.0/24");
    }

    #[test]
    fn nodes_that_come_back_after_an_agents_start_have_the_leases_that_the_one_before_knew() {
        let directory = tempfile::tempdir().unwrap();
        let start = |store: &[Change]| started(&directory, store, GRACE);
        start(&three()).keep_leases(true);
        let mut view = start(&[set("node1")]);
        // What it waits for is not forgotten meanwhile.
        view.keep_leases(true);
        let mut view = start(&[set("node1")]);
        assert!(tell(&mut view, [set("node2")]));
        assert_eq!(holds(&view, "node2"), (true, true));
        tell(&mut view, [lease("node3", "10.244.7.0/24"), set("node3")]);
        assert_eq!(view.snapshot.leases["node3"].pod_cidrs[0].to_string(), "10.244.7.0/24");
        assert_eq!(view.departed.time("node3"), Time::Unlimited, "it has said so itself");

        let mut view = start(&[set("node1")]);
        tell(&mut view, [set("node4"), lease("node4", "10.244.2.0/24")]);
        tell(&mut view, [set("node2")]);
        assert_eq!(holds(&view, "node2"), (true, false), "another node has its network by now");
        assert!(view.expire(Instant::now() + GRACE));
        tell(&mut view, [set("node3")]);
        assert_eq!(holds(&view, "node3"), (true, false), "too late");
        assert_eq!(view.deadline(), None);
    }

    #[test]
    fn what_is_kept_for_a_while_is_kept_no_longer_for_any_number_of_starts() {
        let directory = tempfile::tempdir().unwrap();
        let start = |store: &[Change]| started(&directory, store, GRACE);
        let mut view = start(&three());
        view.keep_leases(true);
        tell(&mut view, gone("node2"));
        let end = view.deadline().unwrap();
        view.keep_leases(true);
        for _ in 0..3 {
            let mut view = start(&[set("node1"), set("node3"), lease("node3", "10.244.3.0/24")]);
            assert_eq!(holds(&view, "node2"), (true, true), "deleted while an agent ran, that kept it");
            assert!(view.departed.contains("node2"));
            let until = view.deadline().unwrap();
            assert!(until <= end + Duration::from_secs(1), "{:?} more", until - end);
            view.keep_leases(true);
        }
        let view = start(&[set("node2"), lease("node1", "10.244.1.0/24")]);
        let time = view.departed.time("node2");
        assert!(matches!(time, Time::Kept(until) if until <= end + Duration::from_secs(1)), "{time:?}");
    }

    #[test]
    fn a_time_is_known_while_other_nodes_are_waited_for_and_does_not_end_while_the_store_is_away() {
        let directory = tempfile::tempdir().unwrap();
        let start = |store: &[Change]| started(&directory, store, GRACE);
        start(&three()).keep_leases(true);
        // node3 was deleted while no agent ran; then node2 is.
        let mut view = start(&three()[..4]);
        tell(&mut view, gone("node2"));
        let end = view.deadline().unwrap();
        view.keep_leases(true);
        let mut view = start(&[set("node1")]);
        assert_eq!([holds(&view, "node2"), holds(&view, "node3")], [(true, true), (false, false)]);
        assert!(
            view.departed.awaited().count() == 1 && view.deadline().unwrap() <= end + Duration::from_secs(1)
        );

        // The next agent finds the store away, until after the end.
        view.departed.nodes.values_mut().for_each(|departure| departure.until = Instant::now());
        tell(&mut view, [lease("node1", "10.244.1.0/24")]);
        view.keep_leases(true);
        let file =
            || LeasesFile::new(directory.path(), "node1", &store::Location::Directory("/store".into()));
        let begin = |away: bool| {
            let mut view = View::new("node1", GRACE).with_leases_in(file());
            if away {
                view.take(store::Event::Unavailable { reason: "away".into() });
                view.take(store::Event::Available);
            }
            let mut snapshot = cluster::Snapshot::default();
            snapshot.apply(set("node1"));
            view.take(store::Event::Snapshot(snapshot));
            view.take(store::Event::InSync);
            view
        };
        assert_eq!(holds(&begin(true), "node2"), (true, true), "what happened meanwhile is still to be told");
        assert_eq!(holds(&begin(false), "node2"), (false, false));
    }

    #[test]
    fn what_a_node_only_had_before_is_no_reason_to_end_anothers_time() {
        let before = |node: &str, cidrs: [&str; 2]| {
            let Change::Set(Object::Lease(lease)) = lease(node, cidrs[0]) else { panic!("a lease") };
            let pod_cidrs = cidrs.map(|cidr| cidr.parse().unwrap()).into();
            Change::Set(Lease { pod_cidrs, ..Arc::unwrap_or_clone(lease) }.into())
        };
        let mut view = view();
        tell(&mut view, gone("node2"));
        tell(&mut view, [set("node3"), before("node3", ["10.244.3.0/24", "10.244.2.0/24"])]);
        assert_eq!(holds(&view, "node2"), (true, true));
    }

    #[test]
    fn of_two_leases_that_lead_to_one_machine_the_one_that_the_store_has_is_believed() {
        let at = |node: &str, cidr: &str, underlay: &str| {
            let Change::Set(Object::Lease(lease)) = lease(node, cidr) else { panic!("a lease") };
            let lease = Arc::unwrap_or_clone(lease);
            Change::Set(Lease { underlay: [underlay.parse().unwrap()].into(), ..lease }.into())
        };
        let mut view = view();
        tell(&mut view, [at("node2", "10.244.2.0/24", "198.18.0.2")]);
        tell(&mut view, gone("node2"));
        tell(&mut view, [set("node3"), at("node3", "10.244.3.0/24", "198.18.0.2")]);
        assert_eq!(holds(&view, "node2"), (false, false));

        let directory = tempfile::tempdir().unwrap();
        let start = |store: &[Change]| started(&directory, store, GRACE);
        start(&[set("node2"), at("node2", "10.244.2.0/24", "198.18.0.2")]).keep_leases(true);
        let moved = [set("node3"), at("node3", "10.244.3.0/24", "198.18.0.2")];
        let view = start(&[&moved[..], &[set("node2")]].concat());
        assert_eq!(holds(&view, "node2"), (true, false));
    }

    #[test]
    fn a_lease_that_is_told_again_brings_no_deleted_node_back() {
        let mut view = view();
        tell(&mut view, gone("node2"));
        tell(&mut view, [lease("node2", "10.244.2.0/24")]);
        assert_eq!(holds(&view, "node2"), (true, true));
        view.expire(Instant::now() + GRACE);
        assert_eq!(holds(&view, "node2"), (false, true), "somebody has to take the lease out");
    }

    #[test]
    fn a_store_that_lost_every_node_is_not_believed_in_whichever_order_it_says_so() {
        let mut view = view();
        tell(&mut view, gone("node1"));
        tell(&mut view, gone("node2"));
        let own = view.deadline().unwrap();
        view.expire(own);
        assert!(matches!(view.standing("node1", true), Standing::Doubtful));
    }

    #[test]
    fn a_lease_that_outlives_its_node_in_the_store_is_collected_after_the_time() {
        let mut view = view();
        tell(&mut view, [Change::Removed(Key::Node("node2".into()))]);
        assert_eq!(holds(&view, "node2"), (true, true));
        view.expire(Instant::now() + GRACE);
        assert_eq!(
            holds(&view, "node2"),
            (false, true),
            "the store still has it: somebody has to take it out"
        );
    }

    #[test]
    fn who_is_given_a_deleted_nodes_cidr_has_it_alone() {
        let mut view = view();
        tell(&mut view, gone("node2"));
        tell(&mut view, [set("node3"), lease("node3", "10.244.2.0/24")]);
        assert_eq!(holds(&view, "node2"), (false, false));
    }

    #[test]
    fn the_own_node_stays_as_it_is_and_writes_its_lease_again_when_it_is_back() {
        let mut view = view();
        tell(&mut view, gone("node1"));
        assert_eq!(holds(&view, "node1"), (true, false));
        assert!(matches!(view.standing("node1", true), Standing::Deleted));
        assert!(tell(&mut view, [set("node1")]), "it is as it was, and that is news");
        assert!(matches!(view.standing("node1", true), Standing::Member(_)));
        assert_eq!(view.deadline(), None);
        tell(&mut view, gone("node1"));
        view.expire(Instant::now() + GRACE);
        assert!(matches!(view.standing("node1", true), Standing::Absent));
    }
}
