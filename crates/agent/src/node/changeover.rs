//! A node's change from one backend to another, without a packet lost.
//!
//! Read [`Changeover`]. Peers send to a node by what its lease says, a moment after it was published. So a node that is
//! told another backend first receives by both, and publishes; a little later it begins to send by the new one, when its
//! peers have heard and can receive that; and later still it stops to receive by the old one, when nobody sends so any more.
//! The time runs from the publication: while the store is away nobody hears, and nothing changes.

use std::mem::discriminant;
use std::time::{Duration, Instant};

use cluster::Backend;

/// How long peers have to hear of the new backend before this node sends by it.
const HEARD: Duration = Duration::from_secs(2);

/// How long after the publication the old ways in stay open.
pub(super) const OPEN: Duration = Duration::from_secs(10);

/// Where a node is on its way from one backend to another.
#[derive(Debug, Clone)]
pub(crate) struct Changeover {
    /// What it has in the end.
    to: Backend,
    /// By what it sent when it was told.
    from: Backend,
    /// What else it may still receive by.
    older: Vec<Backend>,
    /// When the peers were told; none if they have not been.
    published: Option<Instant>,
}

impl Changeover {
    /// A node that has this backend, as its peers know, and had none before or the same.
    pub(crate) fn settled(backend: Backend, now: Instant) -> Self {
        Self { from: backend.clone(), to: backend, older: Vec::new(), published: Some(now) }
    }

    /// A node whose peers know of its backend, and that still has ways in of others: an agent was killed in the middle.
    pub(crate) fn resumed(backend: Backend, others: Vec<Backend>, now: Instant) -> Self {
        Self { older: others, ..Self::settled(backend, now) }
    }

    /// Notes which backend the node is to have now.
    pub(crate) fn want(&mut self, backend: &Backend, now: Instant) {
        if same(backend, &self.to) {
            // What a word of the configuration changes in a backend holds at once, strictness above all.
            let ways = [&mut self.from, &mut self.to].into_iter().chain(&mut self.older);
            ways.filter(|way| same(way, backend)).for_each(|way| *way = backend.clone());
            return;
        }
        tracing::info!(from = self.to.name(), to = backend.name(), "the backend changes");
        let from = self.sends(now).clone();
        let mut older: Vec<Backend> = Vec::new();
        for way_in in self.keeps(now).chain([&self.to]) {
            if *way_in != from && !older.contains(way_in) {
                older.push(way_in.clone());
            }
        }
        *self = Self { from, to: backend.clone(), older, published: None };
    }

    /// Notes which backend the peers know of.
    pub(crate) fn publish(&mut self, known: &Backend, now: Instant) {
        if same(known, &self.to) {
            self.published.get_or_insert(now);
        }
    }

    /// Notes that nobody sends by the old ways any more, when it is so.
    pub(crate) fn settle(&mut self, now: Instant) {
        if self.is_over() || self.published.is_none_or(|then| now < then + OPEN) {
            return;
        }
        tracing::info!(from = self.from.name(), to = self.to.name(), "the backend has changed");
        *self = Self { from: self.to.clone(), older: Vec::new(), ..self.clone() };
    }

    /// By what the node sends.
    pub(crate) fn sends(&self, now: Instant) -> &Backend {
        if self.published.is_some_and(|then| now >= then + HEARD) { &self.to } else { &self.from }
    }

    /// By what the node still receives, though it may no longer need it.
    pub(crate) fn keeps(&self, now: Instant) -> impl Iterator<Item = &Backend> {
        let open = self.published.is_none_or(|then| now < then + OPEN);
        [&self.from].into_iter().chain(&self.older).filter(move |_| open)
    }

    /// When the next step is due.
    pub(crate) fn deadline(&self, now: Instant) -> Option<Instant> {
        if self.is_over() {
            return None;
        }
        let then = self.published?;
        [then + HEARD, then + OPEN].into_iter().find(|step| *step > now)
    }

    /// Whether there is nothing to change.
    fn is_over(&self) -> bool {
        same(&self.from, &self.to) && self.older.is_empty()
    }
}

/// Whether two are the same but for their parameters.
pub(super) fn same(one: &Backend, other: &Backend) -> bool {
    discriminant(one) == discriminant(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UDP: Backend = Backend::Udp { port: 8285 };

    fn vxlan() -> Backend {
        Backend::Vxlan { vni: 1, port: 8472, mac: cluster::MacAddress([2, 0, 0, 0, 0, 1]) }
    }

    fn kept(change: &Changeover, now: Instant) -> Vec<Backend> {
        change.keeps(now).cloned().collect()
    }

    #[test]
    fn what_is_to_be_strict_is_so_at_once_also_for_an_agent_that_starts_in_the_middle_of_a_move() {
        let now = Instant::now();
        let wireguard = |strict| {
            let key =
                cluster::WireGuardKey { port: 1, public_key: cluster::PublicKey([1; 32]), generation: 0 };
            Backend::WireGuard { key, next: None, strict }
        };
        let mut change = Changeover::resumed(wireguard(false), vec![vxlan()], now);
        change.want(&wireguard(true), now);
        assert_eq!(change.sends(now), &wireguard(true));
        assert_eq!(kept(&change, now), [wireguard(true), vxlan()], "and it receives what peers still send");
    }

    #[test]
    fn a_node_sends_by_its_old_backend_until_its_peers_have_heard_and_listens_longer_still() {
        let now = Instant::now();
        let mut change = Changeover::settled(vxlan(), now);
        assert_eq!((change.sends(now), change.deadline(now)), (&vxlan(), None));
        change.want(&Backend::HostGw, now);
        change.publish(&vxlan(), now);
        assert_eq!((change.sends(now), change.deadline(now)), (&vxlan(), None), "nobody has heard yet");
        let told = now + OPEN * 2;
        change.publish(&Backend::HostGw, told);
        assert_eq!((change.sends(told), change.deadline(told)), (&vxlan(), Some(told + HEARD)));
        let heard = told + HEARD;
        assert_eq!((change.sends(heard), kept(&change, heard)), (&Backend::HostGw, vec![vxlan()]));
        assert_eq!(change.deadline(heard), Some(told + OPEN));
        let open = told + OPEN;
        change.settle(heard);
        assert_eq!(kept(&change, heard), [vxlan()]);
        assert_eq!((kept(&change, open), change.deadline(open)), (vec![], None));
        change.settle(open);
        assert_eq!((change.sends(open), kept(&change, open)), (&Backend::HostGw, vec![]));
    }

    #[test]
    fn a_node_that_is_told_a_third_one_goes_on_sending_by_what_its_peers_know() {
        let now = Instant::now();
        let mut change = Changeover::settled(vxlan(), now);
        change.want(&UDP, now);
        change.publish(&UDP, now);
        change.want(&Backend::Ipip, now);
        assert_eq!(change.sends(now + OPEN), &vxlan());
        assert!(kept(&change, now + OPEN).contains(&UDP), "some may send by it");
    }

    #[test]
    fn an_agent_that_was_killed_in_the_middle_keeps_the_ways_in_that_it_finds() {
        let now = Instant::now();
        let change = Changeover::resumed(Backend::HostGw, vec![vxlan()], now);
        assert_eq!(change.sends(now), &Backend::HostGw);
        assert!(kept(&change, now).contains(&vxlan()));
        assert_eq!(change.deadline(now + HEARD), Some(now + OPEN));
    }

    #[test]
    fn other_parameters_of_the_same_backend_are_no_change_of_it() {
        let now = Instant::now();
        let mut change = Changeover::settled(UDP, now);
        let other = Backend::Udp { port: 1 };
        change.want(&other, now);
        assert_eq!((change.sends(now), change.deadline(now)), (&other, None));
    }
}
