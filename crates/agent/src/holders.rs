//! Who holds what in the cluster: pod CIDRs, and what packets to a node's pods are sent to.
//!
//! Read [`Holders`]. It is made of one snapshot, to ask of many leases in turn whether another node has some of what they say.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use cluster::{Backend, Lease, MacAddress, PublicKey, Snapshot};
use ipnet::IpNet;

/// What nodes that are there hold, by their leases, Node objects and claims.
#[derive(Debug)]
pub(crate) struct Holders<'s> {
    pod_cidrs: BTreeMap<IpNet, BTreeSet<&'s str>>,
    ends: BTreeMap<End, BTreeSet<&'s str>>,
}

/// What only one node can have.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Underlay(IpAddr),
    Mac(MacAddress),
    Key(PublicKey),
}

impl<'s> Holders<'s> {
    pub(crate) fn of(snapshot: &'s Snapshot) -> Self {
        let mut holders = Self { pod_cidrs: BTreeMap::new(), ends: BTreeMap::new() };
        let leases = snapshot.leases.values().filter(|lease| snapshot.nodes.contains_key(&lease.node));
        for lease in leases {
            lease.current().for_each(|cidr| holders.hold(cidr, &lease.node));
            for end in ends_of(lease) {
                holders.ends.entry(end).or_default().insert(&lease.node);
            }
        }
        for node in snapshot.nodes.values() {
            node.pod_cidrs.iter().for_each(|cidr| holders.hold(*cidr, &node.name));
        }
        for claim in snapshot.claims.values() {
            holders.hold(claim.cidr, &claim.node);
        }
        holders
    }

    fn hold(&mut self, cidr: IpNet, node: &'s Arc<str>) {
        self.pod_cidrs.entry(cidr).or_default().insert(node);
    }

    /// Whether another node has one of the lease's pod CIDRs that new pods get addresses of, or what its packets are sent to.
    pub(crate) fn have_some_of(&self, lease: &Lease) -> bool {
        let is_anothers = |nodes: &BTreeSet<&str>| nodes.iter().any(|node| **node != *lease.node);
        lease.current().any(|cidr| self.around(cidr).any(is_anothers))
            || ends_of(lease).any(|end| self.ends.get(&end).is_some_and(is_anothers))
    }

    /// Who holds CIDRs that overlap this one: of two that do, one lies within the other.
    fn around(&self, cidr: IpNet) -> impl Iterator<Item = &BTreeSet<&'s str>> {
        let wider = (0..cidr.prefix_len()).filter_map(move |prefix| IpNet::new(cidr.addr(), prefix).ok());
        let wider = wider.filter_map(|wider| self.pod_cidrs.get(&wider.trunc()));
        let within = self.pod_cidrs.range(cidr..).take_while(move |(other, _)| cidr.contains(&other.addr()));
        wider.chain(within.map(|(_, nodes)| nodes))
    }
}

/// What packets to the node's pods are sent to.
fn ends_of(lease: &Lease) -> impl Iterator<Item = End> {
    let mac = match lease.backend {
        Backend::Vxlan { mac, .. } => Some(End::Mac(mac)),
        _ => None,
    };
    let keys = lease.backend.keys().map(|key| End::Key(key.public_key));
    lease.underlay.iter().copied().map(End::Underlay).chain(mac).chain(keys)
}

/// What packets to one node's pods are sent to.
#[derive(Debug)]
pub(crate) struct Ends(BTreeSet<End>);

impl Ends {
    pub(crate) fn of(lease: &Lease) -> Self {
        Self(ends_of(lease).collect())
    }

    /// Whether packets to another node's pods would be sent to the same: a machine has a new name, or what it had is
    /// another's.
    pub(crate) fn are_shared_with(&self, other: &Lease) -> bool {
        ends_of(other).any(|end| self.0.contains(&end))
    }
}

#[cfg(test)]
mod tests {
    use cluster::{Change, Claim, Flannel, Node};

    use super::*;

    fn lease(node: &str, cidrs: &[&str], underlay: &str, backend: Backend) -> Lease {
        Lease {
            node: node.into(),
            pod_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            underlay: [underlay.parse().unwrap()].into(),
            backend,
            mtu: 1450,
            flannel: Flannel::Apart,
        }
    }

    #[test]
    fn what_another_node_has_of_a_lease_is_found_whoever_says_so() {
        let mut snapshot = Snapshot::default();
        let given = Node { pod_cidrs: ["10.244.8.0/22".parse().unwrap()].into(), ..Node::named("node3") };
        let changes: [Change; 6] = [
            Change::Set(Node::named("node1").into()),
            Change::Set(
                lease("node1", &["10.244.1.0/24", "10.244.5.0/24"], "198.18.0.1", Backend::HostGw).into(),
            ),
            Change::Set(lease("gone", &["10.244.4.0/24"], "198.18.0.4", Backend::HostGw).into()),
            Change::Set(given.into()),
            Change::Set(Claim { cidr: "fd00:1::/64".parse().unwrap(), node: "node2".into() }.into()),
            Change::Set(Claim { cidr: "10.244.2.0/24".parse().unwrap(), node: "node2".into() }.into()),
        ];
        changes.into_iter().for_each(|change| _ = snapshot.apply(change));
        let holders = Holders::of(&snapshot);
        let taken = |cidr| holders.have_some_of(&lease("node2", &[cidr], "198.18.0.2", Backend::HostGw));
        for anothers in
            ["10.244.1.0/24", "10.244.0.0/16", "10.244.1.128/25", "10.244.9.0/24", "10.244.8.0/24"]
        {
            assert!(taken(anothers), "{anothers}");
        }
        // Its own claims, what a node had before, what a node that is gone had, and what nobody has.
        for free in
            ["10.244.2.0/24", "fd00:1::/64", "10.244.5.0/24", "10.244.4.0/24", "10.244.12.0/24", "fd00::/64"]
        {
            assert!(!taken(free), "{free}");
        }
        assert!(holders.have_some_of(&lease("node2", &[], "198.18.0.1", Backend::HostGw)));
        assert!(!holders.have_some_of(&lease("node1", &["10.244.1.0/24"], "198.18.0.1", Backend::HostGw)));
    }

    #[test]
    fn two_leases_share_an_address_a_mac_or_a_key() {
        let mac = "0a:58:0a:f4:01:00".parse().unwrap();
        let vxlan = Backend::Vxlan { vni: 1, port: 8472, mac };
        let key = |byte| Backend::wireguard(51820, PublicKey([byte; 32]));
        let of = |underlay, backend: &Backend| lease("any", &[], underlay, backend.clone());
        let first = of("198.18.0.1", &key(1));
        let share = |one: &Lease, other: &Lease| Ends::of(one).are_shared_with(other);
        assert!(share(&first, &of("198.18.0.1", &Backend::Udp { port: 1 })));
        assert!(share(&first, &of("198.18.0.2", &key(1))));
        assert!(!share(&first, &of("198.18.0.2", &key(2))));
        assert!(share(&of("198.18.0.3", &vxlan), &of("198.18.0.4", &vxlan)));
    }
}
