//! From which address somebody begins a connection.
//!
//! A node has more than one: to pods of other nodes it sends through its tunnel, and then from the tunnel's address, the
//! first of its pod CIDR, unless the way there needs no tunnel. Which it is depends on the link between the two, so both
//! are answered for. A policy that is to let a node in by an ipBlock has to name that address.

use std::net::IpAddr;

use ::policy::Cluster;
use cluster::{Backend, Lease, Node};
use netstate::pool::base_address;

/// Who begins a connection.
pub(super) enum Source<'c> {
    Addresses(Vec<IpAddr>),
    Node(&'c Node),
}

impl Source<'_> {
    /// The addresses that the destination may see.
    pub(super) fn towards(&self, cluster: &Cluster, destination: IpAddr) -> Vec<IpAddr> {
        let same = |address: &IpAddr| address.is_ipv4() == destination.is_ipv4();
        match self {
            Self::Addresses(addresses) => addresses.iter().copied().find(same).into_iter().collect(),
            Self::Node(node) => {
                let own = node.addresses.iter().copied().find(same);
                let tunnel = through_tunnel(cluster, node, destination).find(same);
                own.into_iter().chain(tunnel).collect()
            }
        }
    }
}

fn through_tunnel<'c>(
    cluster: &'c Cluster,
    node: &Node,
    destination: IpAddr,
) -> impl Iterator<Item = IpAddr> + 'c {
    let pod = cluster.party(destination).member;
    let elsewhere = pod.and_then(|pod| pod.node).is_some_and(|at| at != node.name);
    let lease = cluster.snapshot().leases.get(&node.name).filter(|lease| elsewhere && has_tunnel(lease));
    lease.into_iter().flat_map(|lease| lease.current().map(base_address))
}

fn has_tunnel(lease: &Lease) -> bool {
    !matches!(lease.backend, Backend::HostGw | Backend::None | Backend::Other(_))
}
