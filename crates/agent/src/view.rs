//! The cluster as the agent knows it, and what its node is in it.
//!
//! Read [`View::take`]: events of the store go in, and it says whether the node's network may have to change.
//! A file that cannot be read keeps its last good version in force, but an agent that starts has seen none. So at the
//! start, while anything in the store is broken, a node that holds a lease has the benefit of the doubt: its Node
//! object may be in that file, and a slip in a manifest must not take a node's network down.
//!
//! A Node object that is deleted takes the node's network not with it at once: it may have been deleted by mistake, or
//! come back in a moment, and pods run on meanwhile. For a time of grace the node counts as there with the lease it had
//! (see `departed.rs`).
//!
//! Only nodes, leases, claims and the networks of Services are kept: the rest of the cluster is none of this agent's business, and a node of a
//! large cluster should not pay for it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::{Change, Key, Node, Object, Snapshot, is_flannel_name};
use ipnet::IpNet;
use store::Location;

use crate::departed::Departed;
use crate::leases_file::LeasesFile;
use crate::status::StoreStatus;

/// How long the file of leases is left alone at least after it was written, when others begin to be kept for a while.
const REST: Duration = Duration::from_secs(1);

/// What is known of the cluster.
#[derive(Debug, Default)]
pub(crate) struct View {
    /// Nodes, leases, claims and the networks of Services.
    pub(crate) snapshot: Snapshot,
    /// Whether the store has been read whole: before that, what is absent may just not have been read yet.
    pub(crate) in_sync: bool,
    /// Nodes that are taken to be there because they hold a lease and something in the store cannot be read.
    doubted: BTreeSet<Arc<str>>,
    pub(crate) departed: Departed,
    own: Arc<str>,
    /// The pod CIDRs that an earlier agent of this node carried.
    remembered: Vec<IpNet>,
    /// Where agents of this node keep what they know of their peers.
    leases_file: Option<LeasesFile>,
    /// Whether that is out of date.
    leases_changed: bool,
    /// Whether it is in whose time is to end, and when.
    times_changed: bool,
    /// When it was written last.
    leases_kept: Option<Instant>,
    pub(crate) away: Option<String>,
    /// Whether it was before it could be read for the first time.
    was_away: bool,
    broken: Vec<String>,
}

/// What the agent's node is in the cluster.
#[derive(Debug, Clone)]
pub(crate) enum Standing {
    /// It is part of it.
    Member(Arc<Node>),
    /// Its Node object is not there: it holds nothing and carries nothing.
    Absent,
    /// The store is empty, though this node held a lease: more likely lost than meant.
    Doubtful,
    /// Its Node object was deleted a moment ago.
    Deleted,
}

impl View {
    /// Nothing is known yet. A deleted node keeps its place for `grace`; of the node called `own` only the object is
    /// kept, for what it held in the store is its own to write again.
    pub(crate) fn new(own: &str, grace: Duration) -> Self {
        Self { departed: Departed::new(own, grace), own: own.into(), ..Self::default() }
    }

    /// The same where an earlier agent of this node carried these pod CIDRs.
    pub(crate) fn remembering(self, pod_cidrs: &[IpNet]) -> Self {
        Self { remembered: pod_cidrs.to_vec(), ..self }
    }

    /// The same where what is known of peers is kept in this file, and may be there from an earlier agent.
    pub(crate) fn with_leases_in(self, file: LeasesFile) -> Self {
        Self { leases_file: Some(file), ..self }
    }

    /// Keeps what is known of peers for the agent that starts next, if that has changed: after a look at everything, or at once if
    /// somebody's time began or ended. Only while the node carries what is known. Returns when it is to be tried again,
    /// where that was a moment ago as well.
    pub(crate) fn keep_leases(&mut self, looked_at_everything: bool) -> Option<Instant> {
        let (true, Some(file)) = (self.leases_changed, &self.leases_file) else { return None };
        if !looked_at_everything {
            let rested = self.leases_kept.map(|kept| kept + REST).filter(|rested| *rested > Instant::now());
            if rested.is_some() || !self.times_changed {
                return rested.filter(|_| self.times_changed);
            }
        }
        let others = self.snapshot.leases.values().filter(|lease| lease.node != self.own);
        let others = others.map(|lease| (lease, self.departed.time(&lease.node)));
        let kept = file.keep(others.chain(self.departed.awaited()));
        self.leases_kept = Some(Instant::now());
        (self.leases_changed, self.times_changed) = (!kept, false);
        None
    }

    /// Somebody's time may have begun, ended or changed: the file is to say so soon.
    fn note_times(&mut self, changed: bool) {
        self.leases_changed |= changed;
        self.times_changed |= changed;
    }

    /// The node carries nothing any more, and what it knew of peers is nobody's business.
    pub(crate) fn forget_leases(&mut self) {
        if let Some(file) = &self.leases_file {
            file.forget_now();
        }
        self.leases_changed = true;
    }

    /// Whether the store is away, so that to ask it is to wait in vain.
    pub(crate) fn is_away(&self) -> bool {
        self.away.is_some()
    }

    /// How long a deleted node keeps its place from now on.
    pub(crate) fn set_grace(&mut self, grace: Duration) {
        self.departed.set_grace(grace);
    }

    /// When the next node's time of grace is over.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.departed.deadline().filter(|_| !self.is_away())
    }

    /// Lets go of deleted nodes whose time is over; true if there was one.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let expired = !self.is_away() && self.departed.expire(now, &mut self.snapshot);
        self.note_times(expired);
        expired
    }

    /// Takes news from the store. True if the node's network may have to change.
    pub(crate) fn take(&mut self, event: store::Event) -> bool {
        match event {
            store::Event::Snapshot(snapshot) => {
                let Snapshot { nodes, leases, claims, service_cidrs, .. } = snapshot;
                self.snapshot = Snapshot { leases, claims, service_cidrs, ..Snapshot::default() };
                for node in nodes.into_values() {
                    let set = self.without_others_own(Change::Set(Object::Node(node)));
                    self.snapshot.apply(set);
                }
                false
            }
            store::Event::InSync => {
                self.in_sync = true;
                self.recall_peers();
                self.doubt();
                let remembered = std::mem::take(&mut self.remembered);
                self.departed.miss_own(&remembered, &mut self.snapshot, Instant::now());
                true
            }
            store::Event::Changes(changes) => {
                let changes = changes.into_iter().filter(concerns_us);
                let changes: Vec<Change> = changes.map(|change| self.without_others_own(change)).collect();
                self.leases_changed |= changes.iter().any(|change| matches!(change.key(), Key::Lease(_)));
                let changes = self.departed.hold_back(changes, &mut self.snapshot, Instant::now());
                let is_news = changes.is_news;
                self.note_times(is_news);
                // Every change has to be applied, so no short cut with `any`.
                changes.due.into_iter().fold(is_news, |any, change| {
                    let applied = self.apply(change);
                    any || applied
                })
            }
            store::Event::Problems(problems) => {
                self.broken = problems.iter().map(ToString::to_string).collect();
                self.broken.iter().for_each(|problem| tracing::warn!("{problem}"));
                self.broken.is_empty() && self.believe()
            }
            store::Event::Unavailable { reason } => {
                tracing::warn!(%reason, "the store is away; what is known stays in force");
                self.away = Some(reason);
                self.was_away |= !self.in_sync;
                false
            }
            store::Event::Available => {
                tracing::info!("the store is back");
                self.away = None;
                self.departed.prolong(Instant::now());
                self.note_times(!self.departed.is_empty());
                // What could not be written meanwhile is due now.
                self.in_sync
            }
            // Ours are written again, once somebody says which those are; the others' owners do the same.
            store::Event::Lost(_) => false,
            // Policies' alone.
            store::Event::Confirmed(_) => false,
        }
    }

    /// Takes out what the store has lost of `node`, for that node is ours and will write it again. True if there was
    /// something.
    pub(crate) fn lose(&mut self, node: &str, lost: &[Key]) -> bool {
        let ours = |key: &&Key| match key {
            Key::Lease(of) => **of == *node,
            Key::Claim(cidr) => self.snapshot.claims.get(cidr).is_some_and(|claim| *claim.node == *node),
            _ => false,
        };
        let ours: Vec<Key> = lost.iter().filter(ours).cloned().collect();
        ours.into_iter().fold(false, |any, key| {
            let removed = self.snapshot.apply(Change::Removed(key.clone()));
            if removed {
                tracing::warn!(%key, "the store has lost it; it is written again");
            }
            any || removed
        })
    }

    /// Takes out the nodes of flannel that are this machine by one of its addresses, as it was before or as somebody has
    /// kept a place for it; returns what they have.
    pub(crate) fn inherit(&mut self, own: &[IpAddr]) -> Vec<IpNet> {
        let is_own = |node: &&Arc<Node>| {
            is_flannel_name(&node.name) && node.addresses.iter().any(|address| own.contains(address))
        };
        let former: Vec<Arc<Node>> = self.snapshot.nodes.values().filter(is_own).cloned().collect();
        for Node { name, .. } in former.iter().map(|node| &**node) {
            self.snapshot.apply(Change::Removed(Key::Lease(name.clone())));
            self.snapshot.apply(Change::Removed(Key::Node(name.clone())));
        }
        former.iter().flat_map(|node| node.pod_cidrs.iter().copied()).collect()
    }

    /// Whether the node is only taken to be there, because something in the store cannot be read.
    pub(crate) fn is_doubted(&self, node: &str) -> bool {
        self.doubted.contains(node)
    }

    fn apply(&mut self, change: Change) -> bool {
        if let Key::Node(name) = change.key() {
            self.doubted.remove(&name);
        }
        self.snapshot.apply(change)
    }

    /// Whether another node waits for its network, and what its peers are to be told, is its own agent's business, and wakes
    /// nobody else.
    fn without_others_own(&self, change: Change) -> Change {
        match change {
            Change::Set(Object::Node(mut node))
                if node.name != self.own && (node.awaits_network || node.advertise.is_some()) =>
            {
                let others = Arc::make_mut(&mut node);
                (others.awaits_network, others.advertise) = (false, None);
                Change::Set(Object::Node(node))
            }
            other => other,
        }
    }

    /// Takes nodes with a lease to be there although no Node object could be read, if something could not be read.
    fn doubt(&mut self) {
        if self.broken.is_empty() {
            return;
        }
        let without = self.snapshot.leases.keys().filter(|name| !self.snapshot.nodes.contains_key(*name));
        self.doubted = without.cloned().collect();
        for name in &self.doubted {
            tracing::warn!(node = %name, "holds a lease and has no Node object; kept, for a file cannot be read");
            self.snapshot.apply(Change::Set(Node::named(name.clone()).into()));
        }
    }

    /// Everything can be read now: what is not there is not there. True if that takes a node away.
    fn believe(&mut self) -> bool {
        std::mem::take(&mut self.doubted).into_iter().fold(false, |any, name| {
            let removed = self.snapshot.apply(Change::Removed(Key::Node(name)));
            any || removed
        })
    }

    /// Begins with what an earlier agent knew of peers that the store does not have whole.
    fn recall_peers(&mut self) {
        self.leases_changed = true;
        let Some(file) = &self.leases_file else { return };
        let known = file.read(|node| self.departed.misses(node, &self.snapshot));
        self.departed.recall(known, self.was_away, &mut self.snapshot, Instant::now());
    }

    /// What the node of that name is; `holding` says whether it held a lease until now.
    pub(crate) fn standing(&self, node: &str, holding: bool) -> Standing {
        let snapshot = &self.snapshot;
        match snapshot.nodes.get(node) {
            Some(_) if self.departed.contains(node) => Standing::Deleted,
            Some(node) => Standing::Member(node.clone()),
            // Other agents may give back our lease, but only while there are nodes; so a lease that went together
            // with every node did not go on purpose.
            None if holding && self.has_no_nodes() && !snapshot.leases.contains_key(node) => {
                Standing::Doubtful
            }
            None => Standing::Absent,
        }
    }

    /// Whether the store has no Node object at all, those left out that only count as there for a while, and nodes of
    /// flannel that have none.
    fn has_no_nodes(&self) -> bool {
        self.snapshot.nodes.keys().all(|node| is_flannel_name(node) || self.departed.contains(node))
    }

    pub(crate) fn status(&self, store: &Location) -> StoreStatus {
        StoreStatus {
            location: store.to_string(),
            in_sync: self.in_sync,
            away: self.away.clone(),
            broken: self.broken.clone(),
        }
    }
}

fn concerns_us(change: &Change) -> bool {
    matches!(change.key(), Key::Node(_) | Key::Lease(_) | Key::Claim(_) | Key::ServiceCidr(_))
}

#[cfg(test)]
mod tests {
    use cluster::{Backend, Change, Flannel, Key, Lease, NamespacedName, Node, Pod, Snapshot};

    use super::*;
    use crate::leases_file::Time;

    fn view(nodes: &[&str]) -> View {
        let mut snapshot = Snapshot::default();
        for name in nodes {
            snapshot.apply(Change::Set(Node::named(*name).into()));
        }
        let mut view = View::default();
        view.take(store::Event::Snapshot(snapshot));
        assert!(view.take(store::Event::InSync));
        view
    }

    fn lease(node: &str) -> Lease {
        let backend = Backend::Other("test".into());
        Lease {
            node: node.into(),
            pod_cidrs: Box::default(),
            underlay: Box::default(),
            backend,
            mtu: 1450,
            flannel: Flannel::Apart,
        }
    }

    #[test]
    fn of_what_the_store_has_lost_only_our_own_is_written_again() {
        let mut view = View::default();
        let mut snapshot = Snapshot::default();
        for name in ["node1", "node2"] {
            snapshot.apply(Change::Set(Node::named(name).into()));
            snapshot.apply(Change::Set(lease(name).into()));
        }
        let cidr = "10.244.1.0/24".parse().unwrap();
        snapshot.apply(Change::Set(cluster::Claim { cidr, node: "node1".into() }.into()));
        view.take(store::Event::Snapshot(snapshot));
        let lost = [Key::Lease("node1".into()), Key::Lease("node2".into()), Key::Claim(cidr)];
        assert!(!view.take(store::Event::Lost(lost.to_vec())));
        assert!(view.lose("node1", &lost));
        assert_eq!(view.snapshot.leases.keys().map(|name| &**name).collect::<Vec<_>>(), ["node2"]);
        assert!(view.snapshot.claims.is_empty());
        assert!(!view.lose("node1", &lost), "once");
    }

    #[test]
    fn a_store_that_lost_everything_is_not_believed_once_the_node_held_a_lease() {
        let mut view = view(&["node1", "node2"]);
        assert!(matches!(view.standing("node1", true), Standing::Member(_)));
        view.take(store::Event::Changes(vec![Change::Removed(Key::Node("node1".into()))]));
        assert!(matches!(view.standing("node1", true), Standing::Absent));
        view.take(store::Event::Changes(vec![Change::Removed(Key::Node("node2".into()))]));
        assert!(matches!(view.standing("node1", true), Standing::Doubtful));
        assert!(matches!(view.standing("node1", false), Standing::Absent));
    }

    #[test]
    fn a_store_that_goes_away_changes_nothing() {
        let mut view = view(&["node1"]);
        let before = view.snapshot.clone();
        assert!(!view.take(store::Event::Unavailable { reason: "gone".to_owned() }));
        assert_eq!(view.snapshot, before);
        assert!(view.status(&"dir:/store".parse().unwrap()).away.is_some());
        assert!(view.take(store::Event::Available));
        assert!(view.status(&"dir:/store".parse().unwrap()).away.is_none());
    }

    #[test]
    fn a_node_whose_manifest_cannot_be_read_at_the_start_is_kept_until_all_can_be_read() {
        let lease = Lease {
            node: "node1".into(),
            pod_cidrs: Box::default(),
            underlay: Box::default(),
            backend: Backend::Other("any".into()),
            mtu: 1450,
            flannel: Flannel::Apart,
        };
        let mut snapshot = Snapshot::default();
        snapshot.apply(Change::Set(lease.into()));
        let problem = store::Problem {
            file: "node1.yaml".into(),
            line: 1,
            column: 1,
            object: None,
            field: None,
            reason: "is broken".to_owned(),
            hint: None,
        };
        let start = |problems: &[store::Problem]| {
            let mut view = View::default();
            view.take(store::Event::Snapshot(snapshot.clone()));
            view.take(store::Event::Problems(problems.to_vec()));
            view.take(store::Event::InSync);
            view
        };
        assert!(matches!(start(&[]).standing("node1", false), Standing::Absent));
        let mut view = start(std::slice::from_ref(&problem));
        assert!(matches!(view.standing("node1", false), Standing::Member(_)));
        // Mended, and the node is not in it.
        assert!(view.take(store::Event::Problems(Vec::new())));
        assert!(matches!(view.standing("node1", false), Standing::Absent));
        // Mended, and the node is in it.
        let mut view = start(&[problem]);
        view.take(store::Event::Changes(vec![Change::Set(Node::named("node1").into())]));
        assert!(!view.take(store::Event::Problems(Vec::new())));
        assert!(matches!(view.standing("node1", false), Standing::Member(_)));
    }

    #[test]
    fn what_this_machine_had_as_a_node_of_flannel_is_its_own() {
        let named = |number: u8| {
            let subnet: IpNet = format!("10.244.{number}.0/24").parse().unwrap();
            let (name, address) =
                (cluster::flannel_name(subnet), format!("198.18.0.{number}").parse().unwrap());
            Node { addresses: Box::new([address]), pod_cidrs: Box::new([subnet]), ..Node::named(name) }
        };
        let mut view = view(&["node1"]);
        for number in [1, 2] {
            let node = named(number);
            view.take(store::Event::Changes(vec![
                Change::Set(lease(&node.name).into()),
                Change::Set(node.into()),
            ]));
        }
        let own = ["198.18.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        assert_eq!(view.inherit(&own), ["10.244.1.0/24".parse().unwrap()]);
        assert_eq!(view.inherit(&own), [], "once");
        let left: Vec<_> = view.snapshot.leases.keys().map(|name| &**name).collect();
        assert_eq!(left, ["flannel-10.244.2.0-24"]);
        // A node of flannel is no sign that the store has kept what Fairlead's nodes are.
        view.take(store::Event::Changes(vec![Change::Removed(Key::Node("node1".into()))]));
        assert!(matches!(view.standing("node1", true), Standing::Doubtful));
    }

    #[test]
    fn what_is_a_nodes_own_wakes_that_node_and_no_other() {
        let told = |name: &str| Node {
            awaits_network: true,
            advertise: Some("203.0.113.7".into()),
            ..Node::named(name)
        };
        for (name, is_own) in [("node1", true), ("node2", false)] {
            let mut view = View::new("node1", Duration::ZERO);
            let mut snapshot = Snapshot::default();
            snapshot.apply(Change::Set(Node::named(name).into()));
            view.take(store::Event::Snapshot(snapshot));
            assert!(view.take(store::Event::InSync));
            assert_eq!(
                view.take(store::Event::Changes(vec![Change::Set(told(name).into())])),
                is_own,
                "{name}"
            );
        }
    }

    #[test]
    fn what_peers_are_is_kept_after_a_look_or_at_once_where_one_is_kept_for_a_while_and_again_if_that_failed()
    {
        let directory = tempfile::tempdir().unwrap();
        let store = Location::Directory("/store".into());
        let file = || LeasesFile::new(directory.path(), "node1", &store);
        let mut view = View::new("node1", Duration::from_secs(60)).with_leases_in(file());
        view.take(store::Event::InSync);
        let known = || file().read(|_| true).len();
        let tell = |view: &mut View, changes: Vec<Change>| view.take(store::Event::Changes(changes));
        view.keep_leases(true);
        tell(&mut view, vec![Change::Set(Node::named("node2").into()), Change::Set(lease("node2").into())]);
        view.keep_leases(false);
        assert_eq!(known(), 0, "that may wait");
        tell(&mut view, vec![Change::Removed(Key::Node("node2".into()))]);
        let kept = Instant::now() + REST;
        view.leases_kept = Some(kept);
        assert_eq!(view.keep_leases(false), Some(kept + REST));
        assert_eq!(known(), 0, "it was written just now");
        view.leases_kept = None;
        assert_eq!(view.keep_leases(false), None);
        assert!(matches!(file().read(|_| true)[0].time, Time::Kept(_)));

        std::fs::remove_file(directory.path().join(LeasesFile::NAME)).unwrap();
        view.keep_leases(true);
        assert_eq!(known(), 0, "nothing has changed");
        // What cannot be written is tried again.
        let half = directory.path().join(".leases.txt.half");
        std::fs::create_dir_all(half.join("in the way")).unwrap();
        tell(&mut view, vec![Change::Set(lease("node2").into())]);
        view.keep_leases(true);
        assert_eq!(known(), 0);
        std::fs::remove_dir_all(half).unwrap();
        view.keep_leases(true);
        assert_eq!(known(), 1);
        view.forget_leases();
        assert!(!directory.path().join(LeasesFile::NAME).exists());
    }

    #[test]
    fn pods_are_neither_kept_nor_a_reason_to_look() {
        let mut view = view(&["node1"]);
        let pod = Pod::named(NamespacedName::new("default", "web-0"));
        assert!(!view.take(store::Event::Changes(vec![Change::Set(pod.into())])));
        assert_eq!(view.snapshot.pods.len(), 0);
    }
}
