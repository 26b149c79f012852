//! Address pools: a cluster's network carved into one network for each node.
//!
//! Read [`Pool`]. Networks are numbered from 0 in address order; the number and the network are two names of
//! the same thing, for IPv4 and IPv6 alike.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use crate::Error;

/// A cluster's network and the size of a node's part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    cluster: IpNet,
    prefix: u8,
}

impl Pool {
    /// The pool that carves networks of `prefix` bits out of `cluster`.
    ///
    /// # Errors
    /// When `cluster` has host bits set, or `prefix` is not between its prefix length and the family's, or the
    /// networks would be more than 2^63.
    pub fn new(cluster: IpNet, prefix: u8) -> Result<Self, Error> {
        if cluster.trunc() != cluster {
            return Err(Error::HostBits { net: cluster });
        }
        if prefix < cluster.prefix_len() || prefix > cluster.max_prefix_len() {
            return Err(Error::NodePrefix { cluster, prefix });
        }
        if prefix - cluster.prefix_len() > 63 {
            return Err(Error::PoolTooLarge { cluster, prefix });
        }
        Ok(Self { cluster, prefix })
    }

    /// The cluster's network.
    #[must_use]
    pub fn cluster(&self) -> IpNet {
        self.cluster
    }

    /// The prefix length of a node's network.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// How many networks there are.
    #[must_use]
    pub fn size(&self) -> u64 {
        1 << (self.prefix - self.cluster.prefix_len())
    }

    /// The network with this number, if there is one.
    #[must_use]
    pub fn network(&self, index: u64) -> Option<IpNet> {
        if index >= self.size() {
            return None;
        }
        let bits = u32::from(self.cluster.max_prefix_len() - self.prefix);
        let offset = u128::from(index).checked_shl(bits)?;
        let address = match self.cluster.addr() {
            IpAddr::V4(base) => IpAddr::V4(Ipv4Addr::from(u32::from(base) | u32::try_from(offset).ok()?)),
            IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from(u128::from(base) | offset)),
        };
        IpNet::new(address, self.prefix).ok()
    }

    /// The number of a network, if it is one of this pool.
    #[must_use]
    pub fn index(&self, net: IpNet) -> Option<u64> {
        if net.prefix_len() != self.prefix || net.trunc() != net || !self.cluster.contains(&net.addr()) {
            return None;
        }
        let bits = u32::from(self.cluster.max_prefix_len() - self.prefix);
        let offset = as_number(net.addr()) - as_number(self.cluster.addr());
        u64::try_from(offset.checked_shr(bits).unwrap_or(0)).ok()
    }

    /// True when `net` is one of this pool's networks.
    #[must_use]
    pub fn contains(&self, net: IpNet) -> bool {
        self.index(net).is_some()
    }

    /// The first network that overlaps none of `taken`; `None` when the pool is exhausted.
    #[must_use]
    pub fn first_free(&self, taken: impl IntoIterator<Item = IpNet>) -> Option<IpNet> {
        let mut blocked: BTreeSet<(u64, u64)> = BTreeSet::new();
        blocked.extend(taken.into_iter().filter_map(|net| self.span(net)));
        let mut next = 0;
        for (first, last) in blocked {
            if first > next {
                break;
            }
            next = next.max(last + 1);
        }
        self.network(next)
    }

    /// The numbers of the first and last network that `net` overlaps.
    fn span(&self, net: IpNet) -> Option<(u64, u64)> {
        if !overlaps(self.cluster, net) {
            return None;
        }
        if net.prefix_len() <= self.cluster.prefix_len() {
            return Some((0, self.size() - 1));
        }
        let of = |address| IpNet::new(address, self.prefix).ok().and_then(|net| self.index(net.trunc()));
        Some((of(net.network())?, of(net.broadcast())?))
    }
}

/// True when two networks share an address.
#[must_use]
pub fn overlaps(one: IpNet, other: IpNet) -> bool {
    one.contains(&other.network()) || other.contains(&one.network())
}

/// The first pair, one of each list, that overlaps.
#[must_use]
pub fn first_overlap(ours: &[IpNet], theirs: &[IpNet]) -> Option<(IpNet, IpNet)> {
    ours.iter()
        .find_map(|own| theirs.iter().find(|other| overlaps(*own, **other)).map(|other| (*own, *other)))
}

/// A node's own address in its pod network: the network's base address, which no pod ever gets.
#[must_use]
pub fn base_address(net: IpNet) -> IpAddr {
    net.network()
}

/// An address as a network of its own: /32 or /128.
#[must_use]
pub fn host(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

fn as_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}
