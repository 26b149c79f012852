//! Which pod CIDRs a node takes out of the cluster's networks.
//!
//! Read [`choose`], which answers for one [`Pool`]. First hit wins: what the Node manifest says (`spec.podCIDRs`),
//! what the node holds already, what the node remembers from before, the first subnet nobody holds. The answer is
//! a wish: the store decides by compare-and-swap, and the loser of a race asks again with what it has learnt.

use std::sync::Arc;

use ipnet::IpNet;
use netstate::pool::{Pool, overlaps};

use crate::family::Family;

/// A subnet somebody else holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The subnet.
    pub cidr: IpNet,
    /// The node that holds it.
    pub node: Arc<str>,
}

/// What a node would like, best first.
#[derive(Debug, Clone, Copy, Default)]
pub struct Request<'a> {
    /// `spec.podCIDRs` of the Node manifest: binding where present.
    pub manifest: &'a [IpNet],
    /// What the node's lease says.
    pub held: &'a [IpNet],
    /// What the node wrote to disk before.
    pub remembered: &'a [IpNet],
    /// What Node manifests give to other nodes: not chosen anew, for those nodes will ask for it.
    pub promised: &'a [IpNet],
}

/// No pod CIDR can be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// The manifest's CIDR is not one of the cluster's.
    #[error(
        "take pod CIDR {cidr} from the Node manifest: it is not inside {pool}\nhint: make spec.podCIDRs and \
         cluster.podCIDRs agree"
    )]
    Outside {
        /// The manifest's CIDR.
        cidr: IpNet,
        /// The cluster's network.
        pool: IpNet,
    },
    /// The manifest's CIDR belongs to somebody else.
    #[error("take pod CIDR {cidr} from the Node manifest: node {by} holds {theirs}")]
    Held {
        /// The manifest's CIDR.
        cidr: IpNet,
        /// The other node.
        by: String,
        /// What the other node holds.
        theirs: IpNet,
    },
    /// Nothing is left.
    #[error(
        "take a /{node_prefix} out of {pool}: all {count} are held\nhint: remove the Node objects of machines that are gone, \
         or enlarge the network"
    )]
    Full {
        /// The cluster's network.
        pool: IpNet,
        /// The prefix length of a piece.
        node_prefix: u8,
        /// How many pieces there are.
        count: u64,
    },
}

/// Chooses a node's pod CIDR out of a pool.
///
/// # Errors
/// When the manifest's CIDR cannot be used, or nothing is left. What a node merely holds or remembers is given up
/// silently when it no longer fits: the network or the piece's size has changed.
pub fn choose(pool: &Pool, request: &Request<'_>, taken: &[Taken]) -> Result<IpNet, AllocateError> {
    let family = Family::of_net(&pool.cluster());
    let of_family = |net: &&IpNet| Family::of_net(net) == family;
    let holder = |net: &IpNet| taken.iter().find(|held| overlaps(held.cidr, *net));
    if let Some(cidr) = request.manifest.iter().find(of_family) {
        let cidr = cidr.trunc();
        if !pool.cluster().contains(&cidr) {
            return Err(AllocateError::Outside { cidr, pool: pool.cluster() });
        }
        return match holder(&cidr) {
            Some(held) => Err(AllocateError::Held { cidr, by: held.node.to_string(), theirs: held.cidr }),
            None => Ok(cidr),
        };
    }
    let fits = |net: &&IpNet| pool.contains(**net) && holder(net).is_none();
    let unpromised = |net: &&IpNet| !request.promised.iter().any(|promised| overlaps(*promised, **net));
    let held = request.held.iter().filter(of_family).find(fits);
    let remembered = || request.remembered.iter().filter(of_family).filter(unpromised).find(fits);
    let free = || pool.first_free(taken.iter().map(|held| held.cidr).chain(request.promised.iter().copied()));
    held.or_else(remembered).copied().or_else(free).ok_or_else(|| AllocateError::Full {
        pool: pool.cluster(),
        node_prefix: pool.prefix(),
        count: pool.given(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{net, nets};
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};

    fn pool(cidr: &str, node_prefix: u8) -> Pool {
        Pool::new(net(cidr), node_prefix).unwrap()
    }

    fn taken(cidrs: &[&str]) -> Vec<Taken> {
        let hold =
            |(index, cidr): (usize, &&str)| Taken { cidr: net(cidr), node: format!("n{index}").into() };
        cidrs.iter().enumerate().map(hold).collect()
    }

    #[test]
    fn the_first_subnet_nobody_holds_is_taken() {
        let pool = pool("10.244.0.0/16", 24);
        let held = taken(&["10.244.1.0/24", "10.244.0.0/24", "10.244.3.0/24", "10.9.0.0/16"]);
        assert_eq!(choose(&pool, &Request::default(), &held), Ok(net("10.244.2.0/24")));
        assert_eq!(choose(&pool, &Request::default(), &[]), Ok(net("10.244.0.0/24")));
    }

    #[test]
    fn a_claim_of_another_size_blocks_every_piece_it_touches() {
        let pool = pool("10.244.0.0/16", 24);
        assert_eq!(choose(&pool, &Request::default(), &taken(&["10.244.0.0/22"])), Ok(net("10.244.4.0/24")));
        assert_eq!(choose(&pool, &Request::default(), &taken(&["10.244.0.7/32"])), Ok(net("10.244.1.0/24")));
    }

    #[test]
    fn nothing_outside_of_the_bounds_is_taken_anew_and_what_a_node_has_there_it_keeps() {
        let bound = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let pool = pool("10.244.0.0/16", 24).between(bound("10.244.16.0"), bound("10.244.17.0")).unwrap();
        assert_eq!(choose(&pool, &Request::default(), &[]), Ok(net("10.244.16.0/24")));
        assert_eq!(
            choose(&pool, &Request::default(), &taken(&["10.244.16.0/24"])),
            Ok(net("10.244.17.0/24"))
        );
        let error = choose(&pool, &Request::default(), &taken(&["10.244.16.0/23"])).unwrap_err();
        assert!(error.to_string().contains("all 2 are held"), "{error}");
        let outside = nets(&["10.244.9.0/24"]);
        for request in [
            Request { held: &outside, ..Request::default() },
            Request { remembered: &outside, ..Request::default() },
            Request { manifest: &outside, ..Request::default() },
        ] {
            assert_eq!(choose(&pool, &request, &[]), Ok(outside[0]));
        }
    }

    #[test]
    fn ipv6_is_divided_the_same_way() {
        let pool = pool("fd00:10:244::/56", 64);
        let held = taken(&["fd00:10:244::/64"]);
        assert_eq!(choose(&pool, &Request::default(), &held), Ok(net("fd00:10:244:1::/64")));
    }

    #[test]
    fn what_the_node_holds_or_remembers_is_kept_while_it_fits() {
        let pool = pool("10.244.0.0/16", 24);
        let held = nets(&["10.244.9.0/24"]);
        let remembered = nets(&["10.244.8.0/24"]);
        let both = Request { held: &held, remembered: &remembered, ..Request::default() };
        assert_eq!(choose(&pool, &both, &[]), Ok(net("10.244.9.0/24")));
        assert_eq!(choose(&pool, &both, &taken(&["10.244.9.0/24"])), Ok(net("10.244.8.0/24")));
        let elsewhere = nets(&["10.99.9.0/24", "10.244.9.0/25"]);
        let request = Request { held: &elsewhere, ..Request::default() };
        assert_eq!(choose(&pool, &request, &[]), Ok(net("10.244.0.0/24")));
    }

    #[test]
    fn the_manifest_is_binding() {
        let pool = pool("10.244.0.0/16", 24);
        let manifest = nets(&["10.244.77.0/24"]);
        let held = nets(&["10.244.9.0/24"]);
        let request = Request { manifest: &manifest, held: &held, ..Request::default() };
        assert_eq!(choose(&pool, &request, &[]), Ok(net("10.244.77.0/24")));
        let error = choose(&pool, &request, &taken(&["10.244.77.0/24"])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "take pod CIDR 10.244.77.0/24 from the Node manifest: node n0 holds 10.244.77.0/24"
        );
        let outside = nets(&["10.9.0.0/24"]);
        let request = Request { manifest: &outside, ..Request::default() };
        assert!(matches!(choose(&pool, &request, &[]), Err(AllocateError::Outside { .. })));
    }

    #[test]
    fn what_another_manifest_gives_away_is_kept_by_its_holder_but_not_taken_anew() {
        let pool = pool("10.244.0.0/16", 24);
        let promised = nets(&["10.244.0.0/24", "10.244.9.0/24"]);
        let mine = nets(&["10.244.9.0/24"]);
        let holding = Request { held: &mine, promised: &promised, ..Request::default() };
        assert_eq!(choose(&pool, &holding, &[]), Ok(net("10.244.9.0/24")));
        let remembering = Request { remembered: &mine, promised: &promised, ..Request::default() };
        assert_eq!(choose(&pool, &remembering, &[]), Ok(net("10.244.1.0/24")));
    }

    #[test]
    fn a_full_network_says_so() {
        let pool = pool("10.244.0.0/23", 24);
        let error = choose(&pool, &Request::default(), &taken(&["10.244.0.0/23"])).unwrap_err();
        assert!(error.to_string().contains("all 2 are held"), "{error}");
    }

    proptest! {
        #[test]
        fn the_choice_is_inside_the_pool_and_overlaps_nothing_held(
            held in proptest::collection::vec((any::<u32>(), 8u8..=32), 0..40),
            cut in (16u8..24).prop_flat_map(|cut| (proptest::strategy::Just(cut), cut..=30)),
        ) {
            let pool = Pool::new(IpNet::new_assert("10.0.0.0".parse().unwrap(), cut.0).trunc(), cut.1).unwrap();
            let held: Vec<Taken> = held
                .into_iter()
                .map(|(bits, prefix)| {
                    // Half of them near the start of the pool, where they matter.
                    let bits = if bits % 2 == 0 { 0x0a00_0000 | (bits >> 16) } else { bits };
                    let cidr = IpNet::new_assert(IpAddr::V4(Ipv4Addr::from_bits(bits)), prefix).trunc();
                    Taken { cidr, node: "n".into() }
                })
                .collect();
            // The oracle walks every piece.
            let free = (0..pool.size()).filter_map(|index| pool.network(index)).find(|piece| {
                !held.iter().any(|held| overlaps(held.cidr, *piece))
            });
            let chosen = choose(&pool, &Request::default(), &held);
            prop_assert_eq!(chosen.clone().ok(), free);
            if let Ok(cidr) = chosen {
                prop_assert!(pool.cluster().contains(&cidr));
            }
        }
    }
}
