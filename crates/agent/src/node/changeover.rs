//! A node's change from one backend to another, without a packet lost.
//!
//! Read [`Changeover`]. Peers send to a node by what its lease says, a moment after it was published. So a node that is
//! told another backend first receives by both, and publishes; a little later it begins to send by the new one, when its
//! peers have heard and can receive that; and later still it stops to receive by the old one, when nobody sends so any more.

use std::time::{Duration, Instant};

use cluster::Backend;

/// How long peers have to hear of the new backend before this node sends by it.
const HEARD: Duration = Duration::from_secs(2);

/// How long after the change the old way in stays open.
const OPEN: Duration = Duration::from_secs(10);

/// Where a node is on its way from one backend to another.
#[derive(Debug, Clone)]
pub(crate) struct Changeover {
    /// What it has in the end.
    to: Backend,
    /// What it had.
    from: Backend,
    /// When it was told to change.
    since: Instant,
}

impl Changeover {
    /// A node that has this backend and had none before, or the same.
    pub(crate) fn settled(backend: Backend, now: Instant) -> Self {
        Self { from: backend.clone(), to: backend, since: now }
    }

    /// Notes which backend the node is to have now.
    pub(crate) fn want(&mut self, backend: &Backend, now: Instant) {
        if std::mem::discriminant(backend) == std::mem::discriminant(&self.to) {
            let settled = std::mem::discriminant(&self.from) == std::mem::discriminant(&self.to);
            self.to = backend.clone();
            if settled {
                self.from = backend.clone();
            }
            return;
        }
        tracing::info!(from = self.to.name(), to = backend.name(), "the backend changes");
        let from = std::mem::replace(&mut self.to, backend.clone());
        *self = Self { from, to: backend.clone(), since: now };
    }

    /// By what the node sends.
    pub(crate) fn sends(&self, now: Instant) -> &Backend {
        if now < self.since + HEARD { &self.from } else { &self.to }
    }

    /// By what the node still receives, though it may no longer need it.
    pub(crate) fn keeps(&self, now: Instant) -> Option<&Backend> {
        (now < self.since + OPEN).then_some(&self.from)
    }

    /// When the next step is due.
    pub(crate) fn deadline(&self, now: Instant) -> Option<Instant> {
        if std::mem::discriminant(&self.from) == std::mem::discriminant(&self.to) {
            return None;
        }
        [self.since + HEARD, self.since + OPEN].into_iter().find(|step| *step > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vxlan() -> Backend {
        Backend::Vxlan { vni: 1, port: 8472, mac: cluster::MacAddress([2, 0, 0, 0, 0, 1]) }
    }

    #[test]
    fn a_node_sends_by_its_old_backend_until_its_peers_have_heard_and_listens_longer_still() {
        let now = Instant::now();
        let mut change = Changeover::settled(vxlan(), now);
        assert_eq!((change.sends(now), change.deadline(now)), (&vxlan(), None));
        change.want(&Backend::HostGw, now);
        assert_eq!((change.sends(now), change.deadline(now)), (&vxlan(), Some(now + HEARD)));
        let heard = now + HEARD;
        assert_eq!((change.sends(heard), change.keeps(heard)), (&Backend::HostGw, Some(&vxlan())));
        assert_eq!(change.deadline(heard), Some(now + OPEN));
        let open = now + OPEN;
        assert_eq!((change.keeps(open), change.deadline(open)), (None, None));
    }

    #[test]
    fn other_parameters_of_the_same_backend_are_no_change_of_it() {
        let now = Instant::now();
        let mut change = Changeover::settled(vxlan(), now);
        let other = Backend::Vxlan { vni: 2, port: 8472, mac: cluster::MacAddress([2, 0, 0, 0, 0, 1]) };
        change.want(&other, now);
        assert_eq!((change.sends(now), change.deadline(now)), (&other, None));
    }
}
