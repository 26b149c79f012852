//! Address pools: a cluster's network carved into one network for each node.
//!
//! Read [`Pool`]. Networks are numbered from 0 in address order; the number and the network are two names of
//! the same thing, for IPv4 and IPv6 alike. All of them are given out, or those [between](Pool::between) two of them.

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
    /// The numbers of the first and the last network that are given out.
    given: (u64, u64),
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
        let pool = Self { cluster, prefix, given: (0, 0) };
        Ok(Self { given: (0, pool.size() - 1), ..pool })
    }

    /// The same where no network is given out before the one that begins at `first`, nor behind the one that begins at `last`.
    ///
    /// # Errors
    /// When none of its networks begins there, or the last one comes before the first.
    pub fn between(self, first: Option<IpAddr>, last: Option<IpAddr>) -> Result<Self, Error> {
        let number = |address: IpAddr| {
            let net = IpNet::new(address, self.prefix).ok().filter(|net| net.addr() == address);
            net.and_then(|net| self.index(net)).ok_or(Error::NoBeginning {
                address,
                cluster: self.cluster,
                prefix: self.prefix,
            })
        };
        let from = first.map(number).transpose()?.unwrap_or(self.given.0);
        let to = last.map(number).transpose()?.unwrap_or(self.given.1);
        match (first, last) {
            (Some(first), Some(last)) if to < from => Err(Error::Backwards { first, last }),
            _ => Ok(Self { given: (from, to), ..self }),
        }
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

    /// How many networks are given out.
    #[must_use]
    pub fn given(&self) -> u64 {
        let (first, last) = self.given;
        (last - first).saturating_add(1)
    }

    /// One of those that are given out: any number leads to one.
    #[must_use]
    pub fn some(&self, number: u64) -> Option<IpNet> {
        self.network(self.given.0 + number % self.given())
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
        // A pool of all IPv6 addresses in one network is shifted by all 128 bits: its one number is 0.
        let offset = u128::from(index).checked_shl(bits).unwrap_or(0);
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

    /// True when `net` is one of those that are given out.
    #[must_use]
    pub fn gives_out(&self, net: IpNet) -> bool {
        let (first, last) = self.given;
        self.index(net).is_some_and(|number| (first..=last).contains(&number))
    }

    /// The first network to give out that overlaps none of `taken`; `None` when the pool is exhausted.
    #[must_use]
    pub fn first_free(&self, taken: impl IntoIterator<Item = IpNet>) -> Option<IpNet> {
        let mut blocked: BTreeSet<(u64, u64)> = BTreeSet::new();
        blocked.extend(taken.into_iter().filter_map(|net| self.span(net)));
        let (mut next, end) = self.given;
        for (first, last) in blocked {
            if first > next {
                break;
            }
            next = next.max(last + 1);
        }
        self.network(next).filter(|_| next <= end)
    }

    /// How many of the networks that are given out overlap one of `taken`.
    #[must_use]
    pub fn count(&self, taken: impl IntoIterator<Item = IpNet>) -> u64 {
        let mut spans: Vec<(u64, u64)> = taken.into_iter().filter_map(|net| self.span(net)).collect();
        spans.sort_unstable();
        // `next` is the first that has not been looked at.
        let (mut next, end) = self.given;
        let mut count = 0;
        for (first, last) in spans {
            let last = last.min(end);
            count += (last + 1).saturating_sub(next.max(first));
            next = next.max(last + 1);
        }
        count
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn pool(cluster: &str, prefix: u8) -> Pool {
        Pool::new(net(cluster), prefix).unwrap()
    }

    #[test]
    fn the_default_pools_number_256_networks_each() {
        let (v4, v6) = (pool("10.244.0.0/16", 24), pool("fd00:10:244::/56", 64));
        assert_eq!((v4.size(), v6.size()), (256, 256));
        assert_eq!(v4.network(7), Some(net("10.244.7.0/24")));
        assert_eq!(v6.network(255), Some(net("fd00:10:244:ff::/64")));
        assert_eq!((v4.network(256), v6.network(256)), (None, None));
        assert_eq!(v4.index(net("10.244.255.0/24")), Some(255));
    }

    #[test]
    fn networks_of_another_size_or_place_have_no_number() {
        let pool = pool("10.244.0.0/16", 24);
        for foreign in ["10.244.1.0/25", "10.244.0.0/16", "10.245.0.0/24", "fd00::/24", "10.244.1.1/24"] {
            assert_eq!(pool.index(net(foreign)), None, "{foreign}");
        }
    }

    #[test]
    fn the_first_free_network_overlaps_nothing_taken() {
        let pool = pool("10.244.0.0/22", 24);
        let free = |taken: &[&str]| pool.first_free(taken.iter().map(|text| net(text)));
        assert_eq!(free(&[]), Some(net("10.244.0.0/24")));
        assert_eq!(free(&["10.244.1.0/24"]), Some(net("10.244.0.0/24")));
        assert_eq!(free(&["10.244.1.0/24", "10.244.0.0/24"]), Some(net("10.244.2.0/24")));
        assert_eq!(free(&["10.244.0.0/23", "10.244.2.128/25"]), Some(net("10.244.3.0/24")));
        assert_eq!(free(&["10.0.0.0/8"]), None);
        assert_eq!(free(&["10.244.0.0/22"]), None);
        assert_eq!(free(&["192.168.0.0/16", "fd00::/8"]), Some(net("10.244.0.0/24")));
    }

    #[test]
    fn only_what_lies_between_the_bounds_is_given_out_and_numbers_stay_what_they_are() {
        let whole = pool("10.244.0.0/16", 24);
        let at = |text: &str| Some(text.parse().unwrap());
        let some = whole.between(at("10.244.16.0"), at("10.244.17.0")).unwrap();
        assert_eq!((some.given(), some.size(), some.index(net("10.244.16.0/24"))), (2, 256, Some(16)));
        assert!(some.gives_out(net("10.244.17.0/24")) && !some.gives_out(net("10.244.18.0/24")));
        assert!(!some.gives_out(net("10.244.15.0/24")) && some.contains(net("10.244.15.0/24")));
        let free = |taken: &[&str]| some.first_free(taken.iter().map(|text| net(text)));
        assert_eq!(free(&["10.244.0.0/24", "10.244.99.0/24"]), Some(net("10.244.16.0/24")));
        assert_eq!(free(&["10.244.0.0/20", "10.244.16.0/25"]), Some(net("10.244.17.0/24")));
        assert_eq!(free(&["10.244.16.0/23"]), None, "though others are free behind the last");
        assert_eq!(
            [0, 1, 2].map(|number| some.some(number).unwrap().addr().to_string()),
            ["10.244.16.0", "10.244.17.0", "10.244.16.0"]
        );
        assert_eq!(whole.between(at("10.244.255.0"), None).unwrap().given(), 1);
        assert_eq!(whole.between(None, at("10.244.0.0")).unwrap().first_free([]), Some(net("10.244.0.0/24")));
        let error = |first, last| whole.between(first, last).unwrap_err().to_string();
        for outside in ["10.245.0.0", "10.244.16.1", "fd00::"] {
            assert_eq!(error(at(outside), None), format!("no /24 of 10.244.0.0/16 begins at {outside}"));
        }
        assert_eq!(error(at("10.244.2.0"), at("10.244.1.0")), "10.244.1.0 comes before 10.244.2.0");
    }

    #[test]
    fn a_pool_that_cannot_be_is_refused_with_a_reason() {
        let error = |cluster, prefix| Pool::new(net(cluster), prefix).unwrap_err().to_string();
        assert!(error("10.244.0.0/16", 8).contains("16 to 32"));
        assert!(error("10.244.0.0/16", 33).contains("cannot carve"));
        assert!(error("10.244.1.0/16", 24).contains("write 10.244.0.0/16"));
        assert!(error("::/0", 64).contains("2^63"));
        assert_eq!(pool("10.0.0.1/32", 32).network(0), Some(net("10.0.0.1/32")));
        assert_eq!(pool("0.0.0.0/0", 0).index(net("0.0.0.0/0")), Some(0));
        assert_eq!(pool("::/0", 63).network(1), Some(net("0:0:0:2::/63")));
        assert_eq!(pool("::/0", 0).network(0), Some(net("::/0")));
        assert_eq!(pool("::/0", 0).index(net("::/0")), Some(0));
    }

    #[test]
    fn overlaps_are_symmetric_and_find_their_pair() {
        assert!(overlaps(net("10.0.0.0/8"), net("10.244.0.0/16")));
        assert!(overlaps(net("10.244.0.0/16"), net("10.0.0.0/8")));
        assert!(!overlaps(net("10.244.0.0/16"), net("10.245.0.0/16")));
        assert!(!overlaps(net("0.0.0.0/0"), net("::/0")));
        let found =
            first_overlap(&[net("10.1.0.0/16"), net("fd00::/64")], &[net("10.2.0.0/16"), net("fd00::/8")]);
        assert_eq!(found, Some((net("fd00::/64"), net("fd00::/8"))));
    }

    #[test]
    fn a_node_is_known_by_the_base_of_its_network() {
        assert_eq!(base_address(net("10.244.3.0/24")), IpAddr::from([10, 244, 3, 0]));
        assert_eq!(host(base_address(net("fd00:10:244:3::/64"))), net("fd00:10:244:3::/128"));
    }

    proptest! {
        #[test]
        fn number_and_network_are_two_names_of_one_thing(
            base in any::<u128>(), length in 0_u8..=128, more in 0_u8..=63, index in any::<u64>(), v4 in any::<bool>(),
        ) {
            let cluster = if v4 {
                IpNet::new(IpAddr::V4(Ipv4Addr::from(base as u32)), length.min(32)).unwrap().trunc()
            } else {
                IpNet::new(IpAddr::V6(Ipv6Addr::from(base)), length).unwrap().trunc()
            };
            let prefix = cluster.prefix_len().saturating_add(more).min(cluster.max_prefix_len());
            let pool = Pool::new(cluster, prefix).unwrap();
            let index = index % pool.size();
            let network = pool.network(index).unwrap();
            prop_assert_eq!(pool.index(network), Some(index));
            prop_assert!(pool.contains(network) && overlaps(cluster, network));
            prop_assert_eq!(pool.network(pool.size()), None);
        }

        #[test]
        fn the_first_free_network_is_the_lowest_that_is_not_taken(taken in prop::collection::btree_set(0_u64..64, 0..64)) {
            let pool = pool("10.244.0.0/18", 24);
            let want = (0..64).find(|index| !taken.contains(index)).and_then(|index| pool.network(index));
            prop_assert_eq!(pool.first_free(taken.iter().filter_map(|index| pool.network(*index))), want);
        }
    }
}
