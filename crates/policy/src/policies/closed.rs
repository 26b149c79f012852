//! Addresses that are attached here while the cluster has no living pod for them: nothing passes there.
//!
//! Read [`Cluster::orphan`](crate::Cluster::orphan) for whose they are. Each leads to a chain that drops, one for each
//! direction, as a pod's address leads to its profile. What is open stays open by the frame's first rule, as everywhere.
//!
//! These two chains are always there: a packet that is under way while the kernel changes over can be led by a new element
//! and still see chains as they were before, and would find a chain that is made with the element empty.

use std::net::IpAddr;

use cluster::{Change, Direction};

use super::entries::{Entries, move_entries};
use super::{Local, Policies, Work};
use crate::compile::frame;
use crate::compile::profile::{Chain, Named};

impl Policies {
    /// The addresses that are attached here without a living pod, where that is not left open.
    pub fn closed_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.closed.iter().copied()
    }

    /// Makes the chains that such addresses lead to.
    pub(super) fn make_closed(&mut self, work: &mut Work) {
        let chains = Direction::ALL.map(|direction| Named::new(Chain::Closed(direction)));
        for chain in &chains {
            self.acquire(chain, work);
        }
    }

    /// Brings the table up to date with what these addresses are now.
    pub(super) fn settle_closed(&mut self, addresses: Vec<IpAddr>, work: &mut Work) {
        for address in addresses {
            let closes = self.cluster.closed(address) == Some(&self.node);
            if closes == self.closed.contains(&address) {
                continue;
            }
            let own = self.closed_entries(address);
            let (before, after) = if closes {
                self.closed.insert(address);
                (Entries::new(), own)
            } else {
                self.closed.remove(&address);
                (own, Entries::new())
            };
            if let Some(delta) = &mut work.delta {
                move_entries(delta, &self.frame, before, after);
            }
        }
    }

    /// What such an address puts into the frame's sets.
    pub(super) fn closed_entries(&self, address: IpAddr) -> Entries {
        let entries =
            Direction::ALL.map(|direction| self.led_to(&[address], &Chain::Closed(direction).name()));
        entries.concat()
    }

    /// Makes the base chains, or takes them away, as an address leads to a chain or none does.
    pub(super) fn settle_bases(&mut self, work: &mut Work) {
        let needed = !self.closed.is_empty() || self.locals.values().any(Local::is_subject);
        if std::mem::replace(&mut self.based, needed) == needed {
            return;
        }
        let Some(delta) = &mut work.delta else { return };
        for chain in frame::bases(self.ipvs) {
            match needed {
                true => delta.chain_made(chain),
                false => delta.chain_left(&chain.name, chain.rules.len()),
            }
        }
    }

    /// A change of a policy. With the first one that is enforced addresses are closed, and with the last one they open.
    pub(super) fn apply_to_policies(&mut self, change: &Change, work: &mut Work) -> bool {
        let was = self.cluster.is_guarded();
        let changed = self.cluster.apply(change);
        if was != self.cluster.is_guarded() {
            self.settle_closed(self.cluster.all_attached_addresses(), work);
        }
        changed
    }
}
