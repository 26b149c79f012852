//! How much is left of what nodes and pods take: pod CIDRs in the cluster's networks, addresses in a node's pod CIDR.
//!
//! Read [`Supply`]. Who takes the last one notices nothing; the next one gets none, and to enlarge a network takes a restart of every
//! agent. So it is told before: when one in ten is left or fewer. Of a large network that would be too many to be worth a
//! word, so 16 at most, which is a scale-out or two of an autoscaler; of a small one it would be none, so one at least.

use std::net::IpAddr;

use ipnet::IpNet;
use netstate::pool::Pool;

/// One in so many, or fewer, are few.
const SHARE: u64 = 10;

/// More than so many are never few.
const MANY: u64 = 16;

/// The first addresses of a pod CIDR are its own: the network's, which the node has, and the gateway's.
const OWN: u64 = 2;

/// How many there are of something, and how many of them are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Supply {
    /// The network that they are taken out of.
    pub network: IpNet,
    /// How many there are.
    pub total: u64,
    /// How many of them are taken.
    pub taken: u64,
}

/// What is to be told of a supply that comes to its end. The exact number is no part of it, for it is told once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shortage {
    /// So many are left, or fewer.
    Few(u64),
    /// None is left.
    None,
}

impl Supply {
    /// How many are left.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.total.saturating_sub(self.taken)
    }

    /// Whether it comes to its end, which it has not begun to where nothing is taken.
    #[must_use]
    pub fn shortage(&self) -> Option<Shortage> {
        let few = (self.total / SHARE).clamp(1, MANY);
        match self.free() {
            0 => Some(Shortage::None),
            free => (self.taken > 0 && free <= few).then_some(Shortage::Few(few)),
        }
    }
}

/// How many of the pieces that a pool gives out are taken by networks that somebody holds, or will: of whatever size and family.
#[must_use]
pub fn pod_cidrs(pool: &Pool, held: impl IntoIterator<Item = IpNet>) -> Supply {
    Supply { network: pool.cluster(), total: pool.given(), taken: pool.count(held) }
}

/// How many of the addresses that host-local gives out of a pod CIDR have been given. None where there are so many that no node
/// can have as many pods.
#[must_use]
pub fn pod_addresses(cidr: IpNet, given: impl IntoIterator<Item = IpAddr>) -> Option<Supply> {
    let bits = u32::from(cidr.max_prefix_len() - cidr.prefix_len());
    // The last one of IPv4 is the broadcast address.
    let kept = OWN + u64::from(cidr.addr().is_ipv4());
    let total = 1_u64.checked_shl(bits).filter(|_| bits <= u32::BITS)?.saturating_sub(kept);
    let given = given.into_iter().filter(|address| cidr.contains(address)).count();
    Some(Supply { network: cidr, total, taken: u64::try_from(given).unwrap_or(u64::MAX) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{net, nets};

    use netstate::pool::overlaps;
    use proptest::prelude::{Strategy, any, prop_assert_eq, proptest};

    fn of(total: u64, taken: u64) -> Option<Shortage> {
        Supply { network: net("10.244.0.0/16"), total, taken }.shortage()
    }

    #[test]
    fn a_tenth_is_few_but_never_more_than_sixteen_nor_less_than_one() {
        assert_eq!([of(100, 89), of(100, 90)], [None, Some(Shortage::Few(10))]);
        assert_eq!([of(65_536, 65_519), of(65_536, 65_520)], [None, Some(Shortage::Few(16))]);
        assert_eq!([of(4, 2), of(4, 3)], [None, Some(Shortage::Few(1))]);
        assert_eq!([of(1, 0), of(2, 1), of(1, 1)], [None, Some(Shortage::Few(1)), Some(Shortage::None)]);
        assert_eq!(of(256, 256), Some(Shortage::None));
        assert_eq!(of(4, 9), Some(Shortage::None), "more than there are");
    }

    #[test]
    fn what_is_held_counts_once_whatever_its_size_and_only_in_its_own_network() {
        let pool = Pool::new(net("10.244.0.0/16"), 24).unwrap();
        let held = nets(&["10.244.0.0/22", "10.244.1.0/24", "10.244.9.7/32", "10.9.0.0/24", "fd00::/64"]);
        let supply = pod_cidrs(&pool, held);
        assert_eq!((supply.total, supply.taken, supply.free()), (256, 5, 251));
        assert_eq!(pod_cidrs(&pool, nets(&["10.0.0.0/8"])).free(), 0);
        let some = pool.between(Some([10, 244, 1, 0].into()), Some([10, 244, 2, 0].into())).unwrap();
        let supply = pod_cidrs(&some, nets(&["10.244.0.0/23", "10.244.9.0/24"]));
        assert_eq!((supply.total, supply.taken), (2, 1), "what is not given out is not there");
        let six = Pool::new(net("fd00:10:244::/56"), 64).unwrap();
        assert_eq!(pod_cidrs(&six, nets(&["fd00:10:244:3::/64", "10.244.0.0/16"])).free(), 255);
    }

    #[test]
    fn a_pod_cidrs_addresses_are_those_that_pods_can_have() {
        let given = ["10.244.1.2", "10.244.1.254", "10.244.2.2", "fd00::2"].map(|one| one.parse().unwrap());
        let supply = pod_addresses(net("10.244.1.0/24"), given).unwrap();
        assert_eq!((supply.total, supply.taken), (253, 2));
        assert_eq!(pod_addresses(net("10.244.1.0/30"), []).unwrap().total, 1);
        assert_eq!(pod_addresses(net("fd00::/120"), given).unwrap().total, 254);
        assert_eq!(pod_addresses(net("fd00::/64"), given), None);
    }

    proptest! {
        #[test]
        fn as_many_are_taken_as_pieces_overlap_something_held(
            held in proptest::collection::vec((any::<u16>(), 16u8..=32), 0..40),
            cut in (20u8..24).prop_flat_map(|cut| (proptest::strategy::Just(cut), cut..=28)),
            bounds in (any::<u64>(), any::<u64>()),
        ) {
            let pool = Pool::new(IpNet::new_assert("10.0.0.0".parse().unwrap(), cut.0), cut.1).unwrap();
            let (one, other) = (bounds.0 % pool.size(), bounds.1 % pool.size());
            let begins = |number| pool.network(number).map(|net| net.addr());
            let pool = pool.between(begins(one.min(other)), begins(one.max(other))).unwrap();
            let held: Vec<IpNet> = held
                .into_iter()
                .map(|(bits, prefix)| {
                    let address = std::net::Ipv4Addr::from_bits(0x0a00_0000 | u32::from(bits));
                    IpNet::new_assert(address.into(), prefix).trunc()
                })
                .collect();
            let given = (0..pool.size()).filter_map(|index| pool.network(index)).filter(|net| pool.gives_out(*net));
            let (taken, free): (Vec<IpNet>, Vec<IpNet>) =
                given.partition(|piece| held.iter().any(|held| overlaps(*held, *piece)));
            let supply = pod_cidrs(&pool, held.iter().copied());
            prop_assert_eq!((supply.taken, supply.free()), (taken.len() as u64, free.len() as u64));
            prop_assert_eq!(supply.free() == 0, pool.first_free(held).is_none());
        }
    }
}
