//! Pod CIDRs that a node had before, and pods that still have addresses of them.
//!
//! Read [`retained`]. A Node object that was deleted and made anew, or edited, may give its node another pod CIDR while
//! pods run. Their addresses are in the kernel's routes, so those say which CIDRs still have to be carried: nothing is
//! remembered but what helps to name a CIDR, and when the last pod is gone, so is its route. Whoever holds a CIDR now goes
//! before who held it: pods with addresses of it are told to be out of reach, instead of drawing another node's packets.

use std::collections::BTreeSet;

use ipnet::IpNet;
use netstate::pool::{Pool, overlaps};

use crate::allocate::Taken;
use crate::host::{Host, HostRoute};
use crate::kernel_tunnel::SIT;
use crate::tunnel::TunnelKind;
use crate::vxlan::{DEVICE, DEVICE_V6};

/// What [`retained`] looks at.
#[derive(Debug, Clone, Copy)]
pub struct Retention<'a> {
    /// The cluster's networks, and how they are parted.
    pub pools: &'a [Pool],
    /// The pod CIDRs that new pods get addresses of.
    pub current: &'a [IpNet],
    /// The CIDRs that the node is known to have had.
    pub known: &'a [IpNet],
}

/// What pods of before need.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retained {
    /// Still to be carried, in order.
    pub kept: Vec<IpNet>,
    /// Another node has them now.
    pub lost: Vec<Taken>,
}

/// Finds out by the host's routes which pod CIDRs of before pods still have addresses of. `taken` is what other nodes hold,
/// or are promised: the whole cluster's, so it is only asked for where there are such pods.
#[must_use]
pub fn retained(host: &Host, of: &Retention<'_>, taken: impl FnOnce() -> Vec<Taken>) -> Retained {
    let mut found = Retained::default();
    let used = used(host, of);
    if used.is_empty() {
        return found;
    }
    let taken = taken();
    for cidr in used {
        match taken.iter().find(|taken| overlaps(taken.cidr, cidr)) {
            Some(taken) => found.lost.push(Taken { cidr, node: taken.node.clone() }),
            None => found.kept.push(cidr),
        }
    }
    found
}

/// The CIDRs of before that routes to this node's own pods lead into.
fn used(host: &Host, of: &Retention<'_>) -> BTreeSet<IpNet> {
    let inside = |net: &IpNet| of.pools.iter().any(|pool| pool.cluster().contains(net));
    let routes = host.routes.iter().filter(|route| inside(&route.destination) && is_local(route));
    let old = routes.filter(|route| !of.current.iter().any(|cidr| overlaps(*cidr, route.destination)));
    old.filter_map(|route| named(host, of, route)).collect()
}

/// Whether a route leads to something on this very host.
fn is_local(route: &HostRoute) -> bool {
    let is_tunnel = |link: &str| {
        [DEVICE, DEVICE_V6, SIT].contains(&link) || TunnelKind::ALL.iter().any(|kind| kind.device() == link)
    };
    route.gateway.is_none() && route.link.as_deref().is_some_and(|link| !is_tunnel(link))
}

/// The CIDR that a route's destination is part of. A link without our mark counts only where we know to have been: it
/// may be a bridge of ours, or a network that the operator has put there.
fn named(host: &Host, of: &Retention<'_>, route: &HostRoute) -> Option<IpNet> {
    let destination = route.destination;
    if let Some(known) = of.known.iter().find(|known| known.contains(&destination)) {
        return Some(*known);
    }
    let ours = route.link.as_deref().and_then(|link| host.link(link)).is_some_and(|link| link.ours);
    let pool = of.pools.iter().find(|pool| pool.cluster().contains(&destination))?;
    // Where the cluster gives out the pieces, they have the size of the one of now.
    let alike = of.current.iter().find(|cidr| cidr.addr().is_ipv4() == destination.addr().is_ipv4());
    let prefix = alike.map_or(pool.prefix(), IpNet::prefix_len).min(destination.prefix_len());
    ours.then(|| IpNet::new(destination.addr(), prefix).ok().map(|net| net.trunc())).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{host, link, net, nets, route};

    fn pools() -> [Pool; 2] {
        [Pool::new(net("10.244.0.0/16"), 24).unwrap(), Pool::new(net("fd00:10:244::/56"), 64).unwrap()]
    }

    /// A machine with a pod of each of these addresses, each with a link of its own.
    fn with_pods(addresses: &[&str]) -> Host {
        let mut host = host();
        for (index, address) in addresses.iter().enumerate() {
            let name = format!("pod{index}");
            host.routes.push(route(address, &name, None));
            host.links.push(crate::host::HostLink { ours: true, ..link(&name) });
        }
        host
    }

    fn look(host: &Host, current: &[&str], known: &[&str], taken: &[Taken]) -> Retained {
        let (pools, current, known) = (pools(), nets(current), nets(known));
        retained(host, &Retention { pools: &pools, current: &current, known: &known }, || taken.to_vec())
    }

    #[test]
    fn the_cidr_of_a_pod_that_runs_is_kept_until_it_is_gone() {
        let host = with_pods(&["10.244.1.5/32", "fd00:10:244:1::5/128", "10.244.1.6/32", "10.244.2.9/32"]);
        let found = look(&host, &["10.244.2.0/24", "fd00:10:244:2::/64"], &[], &[]);
        assert_eq!(found.kept, nets(&["10.244.1.0/24", "fd00:10:244:1::/64"]));
        assert_eq!(
            look(&with_pods(&["10.244.2.9/32"]), &["10.244.2.0/24"], &["10.244.1.0/24"], &[]).kept,
            []
        );
    }

    #[test]
    fn a_cidr_that_is_known_keeps_its_size_whatever_the_pool_says() {
        let host = with_pods(&["10.244.1.5/32"]);
        assert_eq!(look(&host, &["10.244.2.0/24"], &["10.244.0.0/23"], &[]).kept, nets(&["10.244.0.0/23"]));
    }

    #[test]
    fn what_another_node_has_now_is_lost_and_says_to_whom() {
        let host = with_pods(&["10.244.1.5/32"]);
        let taken = [Taken { cidr: net("10.244.1.0/24"), node: "node7".into() }];
        let found = look(&host, &["10.244.2.0/24"], &[], &taken);
        assert_eq!((found.kept.len(), found.lost), (0, taken.to_vec()));
    }

    #[test]
    fn a_bridge_without_our_mark_counts_only_where_the_node_has_been() {
        let mut host = host();
        host.links.push(link("cni0"));
        host.routes.push(route("10.244.1.0/24", "cni0", None));
        assert_eq!(look(&host, &["10.244.2.0/24"], &["10.244.1.0/24"], &[]).kept, nets(&["10.244.1.0/24"]));
        assert_eq!(look(&host, &["10.244.2.0/24"], &[], &[]).kept, []);
    }

    #[test]
    fn the_ways_to_other_nodes_are_none_of_this_nodes_pods() {
        let mut host = host();
        host.routes.push(route("10.244.1.0/24", DEVICE, Some("10.244.1.0")));
        host.routes.push(route("10.244.3.0/24", "eth0", Some("198.18.0.3")));
        assert_eq!(look(&host, &["10.244.2.0/24"], &["10.244.1.0/24", "10.244.3.0/24"], &[]).kept, []);
    }
}
