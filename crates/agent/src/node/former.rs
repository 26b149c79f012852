//! What peers had before they changed their backend, for as long as they may still send by it.
//!
//! Read [`Former::follow`]. A peer says that it has another backend before it sends by that (`changeover.rs`), so a node that hears
//! of it goes on receiving by what was: else it would give up a device that nobody else needs, or a key of WireGuard, a moment
//! before the last packets come that way. An agent that starts in that moment has not heard what was, and loses them.

use std::collections::BTreeMap;
use std::mem::discriminant;
use std::sync::Arc;
use std::time::Instant;

use cluster::{Backend, Lease, Snapshot};

use super::changeover::OPEN;

/// The peers that have changed their backend a moment ago.
#[derive(Debug, Default)]
pub(super) struct Former(BTreeMap<Arc<str>, Vec<Had>>);

#[derive(Debug, Clone)]
struct Had {
    backend: Backend,
    until: Instant,
}

impl Former {
    /// Notes whose backend is another one in this cluster than in those leases, forgets what is long ago, and says what each had.
    pub(super) fn follow(
        &mut self,
        before: &[Arc<Lease>],
        snapshot: &Snapshot,
        now: Instant,
    ) -> BTreeMap<Arc<str>, Vec<Backend>> {
        self.0.retain(|_, had| {
            had.retain(|one| one.until > now);
            !had.is_empty()
        });
        for lease in before {
            let Some(after) = snapshot.leases.get(&lease.node) else { continue };
            if Arc::ptr_eq(lease, after) || same(&lease.backend, &after.backend) {
                continue;
            }
            let had = self.0.entry(lease.node.clone()).or_default();
            had.retain(|one| !same(&one.backend, &lease.backend));
            // The last one first: of two keys that is the one in use.
            had.insert(0, Had { backend: lease.backend.clone(), until: now + OPEN });
        }
        let backends = |had: &Vec<Had>| had.iter().map(|one| one.backend.clone()).collect();
        self.0.iter().map(|(node, had)| (node.clone(), backends(had))).collect()
    }

    /// When the next of them can be forgotten.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0.values().flatten().map(|had| had.until).min()
    }
}

/// Whether two are the same but for their parameters.
fn same(one: &Backend, other: &Backend) -> bool {
    discriminant(one) == discriminant(other)
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
        let mut say = |former: &mut Former, before: Backend, after: Backend, now| {
            snapshot.apply(Change::Set((*lease(after)).clone().into()));
            former.follow(&[lease(before)], &snapshot, now).remove("node2").unwrap_or_default()
        };
        let udp = |port| Backend::Udp { port };
        assert_eq!(say(&mut former, udp(1), udp(2), now), [], "another port is no other backend");
        assert_eq!(former.deadline(), None);
        assert_eq!(say(&mut former, udp(1), Backend::Ipip, now), [udp(1)]);
        let later = now + OPEN / 2;
        assert_eq!(say(&mut former, Backend::Ipip, Backend::HostGw, later), [Backend::Ipip, udp(1)]);
        assert_eq!(former.deadline(), Some(now + OPEN));
        assert_eq!(say(&mut former, Backend::HostGw, Backend::HostGw, now + OPEN), [Backend::Ipip]);
        assert_eq!(say(&mut former, Backend::HostGw, Backend::HostGw, later + OPEN), []);
        assert_eq!(former.deadline(), None);
    }
}
