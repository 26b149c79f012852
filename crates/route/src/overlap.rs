//! Whether the cluster's networks collide with the host's own.
//!
//! Read [`conflicts`]. A pod network laid over a network the host already reaches hides real machines, and the
//! failure shows far from its cause; so the agent refuses to start, and the error names the exact pair. What
//! belongs to pods of this node (anything inside the node's own pod CIDRs) and what Fairlead made is no conflict.
//! A default route, and the two halves or quarters some VPNs split it into, covers everything and hides nothing.

use ipnet::IpNet;
use netstate::pool::overlaps;

use crate::host::Host;

/// A route at least this wide says "everything else" and is no claim to the addresses under it.
const SPLIT_DEFAULT: u8 = 3;

/// One network of the cluster that meets one network of the host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "use {cluster} for pods: it overlaps {host}, which this host {how}\nhint: choose another network under \
     cluster.podCIDRs, or list {host} under cluster.allowOverlap if its machines need not be reached from pods"
)]
pub struct Overlap {
    /// The cluster's network.
    pub cluster: IpNet,
    /// The host's network.
    pub host: IpNet,
    /// How the host knows it, as a sentence's end: `has on eth0`, `routes through wg0`.
    pub how: String,
}

/// What the check looks at.
#[derive(Debug, Clone, Copy)]
pub struct Networks<'a> {
    /// The cluster's pod networks.
    pub cluster: &'a [IpNet],
    /// The pod CIDRs this node already holds: what lies within belongs to its pods.
    pub own: &'a [IpNet],
    /// Networks of the host that the operator has accepted.
    pub allowed: &'a [IpNet],
}

/// Every pair of a cluster network and a host network that overlap: addresses first, then routes.
#[must_use]
pub fn conflicts(host: &Host, networks: &Networks<'_>) -> Vec<Overlap> {
    let mut found: Vec<Overlap> = Vec::new();
    for (net, how) in claims(host) {
        let excused = networks.own.iter().chain(networks.allowed).any(|known| known.contains(&net));
        if excused {
            continue;
        }
        for cluster in networks.cluster.iter().filter(|cluster| overlaps(**cluster, net)) {
            let known = found.iter().any(|other| other.cluster == *cluster && other.host == net);
            if !known {
                found.push(Overlap { cluster: *cluster, host: net, how: how.clone() });
            }
        }
    }
    found
}

/// The networks the host has or reaches, each with the way it does.
fn claims(host: &Host) -> impl Iterator<Item = (IpNet, String)> {
    let addresses = host
        .addresses
        .iter()
        .filter(|entry| host.is_outside(&entry.link))
        .map(|entry| (entry.address.trunc(), format!("has on {}", entry.link)));
    let routes = host
        .routes
        .iter()
        .filter(|route| !route.ours && route.destination.prefix_len() > SPLIT_DEFAULT)
        .filter(|route| route.link.as_deref().is_none_or(|link| host.is_outside(link)))
        .map(|route| {
            let through = route.link.as_deref().unwrap_or("no link");
            (route.destination.trunc(), format!("routes through {through}"))
        });
    addresses.chain(routes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{address, host, net, nets, route};

    #[test]
    fn an_address_inside_the_cluster_network_is_refused_with_the_pair_named() {
        let mut machine = host();
        machine.addresses.push(address("eth0", "10.244.9.1/24"));
        let cluster = nets(&["10.244.0.0/16"]);
        let found = conflicts(&machine, &Networks { cluster: &cluster, own: &[], allowed: &[] });
        assert_eq!(found.len(), 1);
        let text = found[0].to_string();
        assert!(text.contains("10.244.0.0/16") && text.contains("10.244.9.0/24 "), "{text}");
        assert!(text.contains("has on eth0"), "{text}");
    }

    #[test]
    fn a_route_that_covers_the_cluster_network_is_refused_unless_it_is_allowed() {
        let mut machine = host();
        machine.routes.push(route("10.0.0.0/8", "eth0", Some("198.18.0.1")));
        let cluster = nets(&["10.244.0.0/16", "fd00:10:244::/56"]);
        let allowed = nets(&["10.0.0.0/8"]);
        let check = |allowed| conflicts(&machine, &Networks { cluster: &cluster, own: &[], allowed }).len();
        assert_eq!(check(&[]), 1);
        assert_eq!(check(&allowed), 0);
    }

    #[test]
    fn default_routes_and_their_halves_are_no_conflict() {
        let mut machine = host();
        machine.routes.push(route("0.0.0.0/1", "eth0", Some("198.18.0.1")));
        let cluster = nets(&["10.244.0.0/16"]);
        assert_eq!(conflicts(&machine, &Networks { cluster: &cluster, own: &[], allowed: &[] }), []);
    }

    #[test]
    fn the_pods_of_this_node_are_no_conflict() {
        let mut machine = host();
        machine.addresses.push(address("eth0", "10.244.1.1/24"));
        machine.routes.push(route("10.244.1.0/24", "eth0", None));
        let cluster = nets(&["10.244.0.0/16"]);
        let own = vec![net("10.244.1.0/24")];
        assert_eq!(conflicts(&machine, &Networks { cluster: &cluster, own: &own, allowed: &[] }), []);
        assert_eq!(conflicts(&machine, &Networks { cluster: &cluster, own: &[], allowed: &[] }).len(), 1);
    }
}
