//! What peers had before they changed their backend, for as long as they may still send by it.
//!
//! Read [`Former::follow`]. A peer says that it has another backend before it sends by that (`changeover.rs`), so a node that hears
//! of it goes on receiving by what was: else it would give up a device that nobody else needs, or a key of WireGuard, a moment
//! before the last packets come that way. An agent that starts in that moment has not heard what was, and loses them.
//!
//! All of them are forgotten at once, when the last has had its time: a cluster of thousands that is moved has one such moment and not
//! thousands, and to receive by an old way for longer costs nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use cluster::{Backend, Lease, Snapshot};

use super::changeover::{OPEN, same};

/// The peers that have changed their backend a moment ago.
#[derive(Debug, Default)]
pub(super) struct Former {
    /// What each had, the last one first: of two keys that is the one in use.
    had: BTreeMap<Arc<str>, Vec<Backend>>,
    /// When all of it is forgotten.
    until: Option<Instant>,
    /// All leases as they were when they were followed last, in the order of their nodes.
    seen: Vec<Arc<Lease>>,
}

impl Former {
    /// Notes whose backend is another one than it was, but for the node's own, forgets what is long ago, and says what each had.
    pub(super) fn follow(
        &mut self,
        own: &str,
        snapshot: &Snapshot,
        now: Instant,
    ) -> &BTreeMap<Arc<str>, Vec<Backend>> {
        if self.until.is_some_and(|until| until <= now) {
            self.until = None;
            self.had.clear();
        }
        let is_as_seen = |(seen, lease): (&Arc<Lease>, &Arc<Lease>)| Arc::ptr_eq(seen, lease);
        let leases = || snapshot.leases.values();
        if self.seen.len() != leases().len() || !self.seen.iter().zip(leases()).all(is_as_seen) {
            let seen = std::mem::replace(&mut self.seen, leases().cloned().collect());
            for before in seen.iter().filter(|before| *before.node != *own) {
                let after = snapshot.leases.get(&before.node);
                if after.is_some_and(|after| !same(&before.backend, &after.backend)) {
                    self.note(before);
                    self.until = Some(now + OPEN);
                }
            }
        }
        &self.had
    }

    fn note(&mut self, before: &Lease) {
        let had = self.had.entry(before.node.clone()).or_default();
        had.retain(|one| !same(one, &before.backend));
        had.insert(0, before.backend.clone());
    }

    /// When they can be forgotten.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use cluster::{Change, Flannel};

    use super::*;

    fn lease(backend: Backend) -> Arc<Lease> {
        Arc::new(Lease {
            node: "node2".into(),
            pod_cidrs: Box::default(),
            underlay: Box::default(),
            backend,
            mtu: 1450,
            flannel: Flannel::Apart,
        })
    }

    #[test]
    fn what_a_peer_had_is_remembered_until_it_sends_by_what_it_has_now() {
        let now = Instant::now();
        let mut former = Former::default();
        let mut snapshot = Snapshot::default();
        let mut say = |former: &mut Former, backend: Backend, now| {
            snapshot.apply(Change::Set((*lease(backend)).clone().into()));
            former.follow("node1", &snapshot, now).get("node2").cloned().unwrap_or_default()
        };
        let udp = |port| Backend::Udp { port };
        assert_eq!(say(&mut former, udp(1), now), [], "one that comes had nothing");
        assert_eq!(say(&mut former, udp(2), now), [], "another port is no other backend");
        assert_eq!(former.deadline(now), None);
        assert_eq!(say(&mut former, Backend::Ipip, now), [udp(2)]);
        let later = now + OPEN / 2;
        assert_eq!(say(&mut former, Backend::HostGw, later), [Backend::Ipip, udp(2)]);
        assert_eq!(former.deadline(later), Some(later + OPEN));
        assert_eq!(say(&mut former, Backend::HostGw, now + OPEN), [Backend::Ipip, udp(2)], "all at once");
        // What nobody came to forget has no time to wait for.
        assert_eq!(former.deadline(later + OPEN), None);
        assert_eq!(say(&mut former, Backend::HostGw, later + OPEN), []);
        assert_eq!(former.deadline(later), None);
    }

    #[test]
    fn a_nodes_own_backend_and_that_of_one_that_went_are_nobodys_former_ones() {
        let now = Instant::now();
        let mut former = Former::default();
        let mut snapshot = Snapshot::default();
        for backend in [Backend::Ipip, Backend::HostGw] {
            snapshot.apply(Change::Set((*lease(backend)).clone().into()));
            assert!(former.follow("node2", &snapshot, now).is_empty(), "its own");
        }
        snapshot.apply(Change::Removed(cluster::Key::Lease("node2".into())));
        assert!(former.follow("node1", &snapshot, now).is_empty(), "of one that went");
    }
}
