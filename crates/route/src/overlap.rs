//! Whether the cluster's networks collide with the host's own, or with those of Services.
//!
//! Read [`conflicts`] and [`service_conflicts`]. A pod network laid over a network the host already reaches hides real machines, and the
//! failure shows far from its cause; so the agent refuses to start, and the error names the exact pair. What
//! belongs to pods of this node (anything inside the node's own pod CIDRs) and what Fairlead made is no conflict.
//! Services' addresses are translated wherever a packet to them begins, so a pod that had one would never be reached by it.
//! A default route, and the two halves or quarters some VPNs split it into, covers everything and hides nothing.

use std::net::IpAddr;

use cluster::{Service, ServiceCidr, Snapshot};
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

/// One network of the cluster that meets addresses of Services.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "use {cluster} for pods: it overlaps {services}, {whose}\nhint: choose another network under cluster.podCIDRs, or list \
     {services} under cluster.allowOverlap if no pod will ever have one of these addresses"
)]
pub struct ServiceOverlap {
    /// The cluster's network.
    pub cluster: IpNet,
    /// The addresses of Services.
    pub services: IpNet,
    /// What they are, as a sentence's end: `which ServiceCIDR kubernetes gives to Services`.
    pub whose: String,
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

/// Every pair of a cluster network and a network of Services that overlap, but for those that are `allowed`. Where nobody tells
/// these networks, as on API servers that have no ServiceCIDRs, the Services that there are have to do.
#[must_use]
pub fn service_conflicts(snapshot: &Snapshot, cluster: &[IpNet], allowed: &[IpNet]) -> Vec<ServiceOverlap> {
    let told = snapshot.service_cidrs.values().flat_map(|told| networks_of(told));
    let had = snapshot.services.values().filter(|_| snapshot.service_cidrs.is_empty());
    let pairs = told.chain(had.flat_map(|service| addresses_of(service))).flat_map(|(services, whose)| {
        let met = cluster.iter().filter(move |cluster| overlaps(**cluster, services));
        met.map(move |cluster| ServiceOverlap { cluster: *cluster, services, whose: whose.clone() })
    });
    pairs.filter(|pair| !allowed.iter().any(|allowed| allowed.contains(&pair.services))).collect()
}

fn networks_of(told: &ServiceCidr) -> impl Iterator<Item = (IpNet, String)> {
    told.cidrs.iter().map(|cidr| (*cidr, format!("which ServiceCIDR {} gives to Services", told.name)))
}

fn addresses_of(service: &Service) -> impl Iterator<Item = (IpNet, String)> {
    let whose = format!("the address of Service {}", service.name);
    service.cluster_addresses.iter().map(move |address: &IpAddr| (IpNet::from(*address), whose.clone()))
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

    fn service(name: &str, addresses: &[&str]) -> cluster::Change {
        let name = cluster::NamespacedName::new("default", name);
        let service = Service {
            name,
            labels: cluster::Labels::default(),
            service_type: cluster::ServiceType::ClusterIp,
            selector: cluster::Labels::default(),
            headless: false,
            cluster_addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ports: Box::default(),
            external_name: None,
        };
        cluster::Change::Set(service.into())
    }

    #[test]
    fn a_network_of_services_among_the_pods_is_named_with_who_gives_it_and_services_only_where_none_is() {
        let mut snapshot = Snapshot::default();
        let pods = nets(&["10.244.0.0/16", "fd00:10:244::/56"]);
        let told = |snapshot: &Snapshot, allowed: &[&str]| -> Vec<String> {
            let found = service_conflicts(snapshot, &pods, &nets(allowed));
            found.iter().map(|overlap| overlap.to_string().lines().next().unwrap().to_owned()).collect()
        };
        snapshot.apply(service("apart", &["10.96.0.1", "fd00:96::1"]));
        assert_eq!(told(&snapshot, &[]), [""; 0]);
        snapshot.apply(service("web", &["10.244.0.1", "fd00:10:244::1"]));
        assert_eq!(
            told(&snapshot, &[]),
            [
                "use 10.244.0.0/16 for pods: it overlaps 10.244.0.1/32, the address of Service default/web",
                "use fd00:10:244::/56 for pods: it overlaps fd00:10:244::1/128, the address of Service default/web",
            ]
        );
        let range = ServiceCidr { name: "kubernetes".into(), cidrs: nets(&["10.244.128.0/20"]).into() };
        snapshot.apply(cluster::Change::Set(range.into()));
        let want = "use 10.244.0.0/16 for pods: it overlaps 10.244.128.0/20, which ServiceCIDR kubernetes gives to Services";
        assert_eq!(told(&snapshot, &[]), [want]);
        assert_eq!(told(&snapshot, &["10.244.128.0/24"]), [want], "a part of it is not all of it");
        assert_eq!(told(&snapshot, &["10.244.128.0/17"]), [""; 0]);
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
