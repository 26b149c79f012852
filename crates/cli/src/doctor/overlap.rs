//! The cluster's networks against those that the host has or reaches.
//!
//! The decision is the agent's own (`route::overlaps`), so what is an error here is what the agent would refuse to start
//! with. The many routes of one link are told as one finding.

use ::agent::Cluster;
use ipnet::IpNet;
use route::{Host, Networks, Overlap, overlaps};

use super::leftovers;
use crate::finding::Finding;

/// What overlaps; `own` are the pod CIDRs that this node had already.
pub(super) fn judge(host: &Host, cluster: &Cluster, own: &[IpNet]) -> Vec<Finding> {
    let networks = Networks { cluster: &cluster.pod_cidrs, own, allowed: &cluster.allow_overlap };
    let mut groups: Vec<(Overlap, usize)> = Vec::new();
    for overlap in overlaps(host, &networks) {
        let same =
            |(other, _): &&mut (Overlap, usize)| other.cluster == overlap.cluster && other.how == overlap.how;
        match groups.iter_mut().find(same) {
            Some((_, more)) => *more += 1,
            None => groups.push((overlap, 0)),
        }
    }
    groups.iter().map(|(overlap, more)| describe(overlap, *more)).collect()
}

fn describe(Overlap { cluster, host, how }: &Overlap, more: usize) -> Finding {
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    let problem = format!("overlaps {host}{more}, which this host {how}: the agent does not start");
    // The sentence ends with the link's name.
    let link = how.rsplit(' ').next().unwrap_or_default();
    let fix = match leftovers::owner_of_link(link) {
        Some(owner) => format!(
            "remove {link}, which {owner} left, once its last pod on this node is gone; until then choose another \
             network under cluster.podCIDRs"
        ),
        None => format!(
            "choose another network under cluster.podCIDRs, or list {host} under cluster.allowOverlap if its \
             machines need not be reached from pods"
        ),
    };
    Finding::error(cluster.to_string(), problem, fix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use route::{HostLink, HostRoute};

    fn host(link: &str, destinations: &[&str]) -> Host {
        let route = |destination: &&str| HostRoute {
            destination: destination.parse().unwrap(),
            link: Some(link.to_owned()),
            gateway: None,
            source: None,
            metric: 0,
            ours: false,
        };
        let link = HostLink {
            name: link.to_owned(),
            mtu: 1500,
            up: true,
            loopback: false,
            ours: false,
            accept_ra: None,
        };
        Host {
            links: vec![link],
            addresses: Vec::new(),
            routes: destinations.iter().map(route).collect(),
            ..Host::default()
        }
    }

    #[test]
    fn the_routes_of_one_link_are_one_error_that_names_the_first_pair() {
        let host = host("wg0", &["10.244.7.0/24", "10.244.8.0/24", "192.0.2.0/24"]);
        let found = judge(&host, &Cluster::default(), &[]);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!(found[0].subject, "10.244.0.0/16");
        assert!(
            found[0]
                .problem
                .starts_with("overlaps 10.244.7.0/24 and 1 more, which this host routes through wg0")
        );
        assert!(found[0].fix.contains("cluster.allowOverlap"));
    }

    #[test]
    fn what_is_allowed_or_this_nodes_own_is_none() {
        let host = host("wg0", &["10.244.7.0/24"]);
        let net = "10.244.7.0/24".parse().unwrap();
        assert_eq!(judge(&host, &Cluster::default(), &[net]), []);
        assert_eq!(judge(&host, &Cluster { allow_overlap: vec![net], ..Cluster::default() }, &[]), []);
    }

    #[test]
    fn a_route_that_another_network_left_is_to_go_with_it() {
        let found = judge(&host("flannel.1", &["10.244.3.0/24"]), &Cluster::default(), &[]);
        assert!(
            found[0].fix.contains("remove flannel.1, which flannel left, once its last pod"),
            "{found:#?}"
        );
    }
}
