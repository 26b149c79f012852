//! What a change opens and closes, against the naive comparison of every flow before and after: random clusters.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    dead_code,
    reason = "a test fails by panicking; a world is shared"
)]

#[path = "compiled/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::net::IpAddr;

use cluster::{Change, Object, Protocol, Snapshot};
use policy::{Cluster, Flow, FlowChange, Group, Policies, Span, Traffic, compare};
use proptest::prelude::{Strategy, prop_assert_eq, proptest};
use world::{Event, addresses, events};

const TRAFFIC: [Traffic; 7] = [
    Traffic::Port(Protocol::Tcp, 80),
    Traffic::Port(Protocol::Tcp, 81),
    Traffic::Port(Protocol::Tcp, 7),
    Traffic::Port(Protocol::Udp, 80),
    Traffic::Port(Protocol::Sctp, 90),
    Traffic::Port(Protocol::Sctp, 65535),
    Traffic::Other(1),
];

type Asked = (bool, IpAddr, IpAddr, Traffic);

/// The address of each version that counts, of every end there is. What is attached without a pod is none: it is closed.
fn ends(cluster: &Cluster) -> Vec<IpAddr> {
    let counts = |address: &IpAddr| {
        let own: Vec<IpAddr> = match cluster.party(*address).member {
            Some(member) => member.addresses.to_vec(),
            None => {
                let nodes = &cluster.snapshot().nodes;
                let node = nodes.values().find(|node| node.addresses.contains(address));
                node.map_or(vec![*address], |node| node.addresses.to_vec())
            }
        };
        own.iter().find(|own| own.is_ipv4() == address.is_ipv4()) == Some(address)
    };
    let all = addresses().into_iter().filter(|address| cluster.orphan(*address).is_none());
    all.filter(counts).collect()
}

fn naive(before: &Policies, after: &Policies) -> BTreeSet<Asked> {
    let mut found = BTreeSet::new();
    let ends = ends(before.cluster());
    for source in &ends {
        for destination in ends.iter().filter(|other| other.is_ipv4() == source.is_ipv4()) {
            for traffic in TRAFFIC {
                let (source, destination) = (*source, *destination);
                let flow = Flow { source, destination, traffic, through_service: false };
                let [was, is] = [before, after].map(|policies| policies.verdict(&flow).allows());
                if was != is {
                    found.insert((is, source, destination, traffic));
                }
            }
        }
    }
    found
}

fn has(cluster: &Cluster, group: &Group, address: IpAddr) -> bool {
    if let Some(member) = cluster.party(address).member {
        return group.pods.contains(member.name());
    }
    let nodes = &cluster.snapshot().nodes;
    if let Some(node) = nodes.values().find(|node| node.addresses.contains(&address)) {
        return group.nodes.contains(&node.name);
    }
    group
        .outside
        .iter()
        .any(|(first, last)| first.is_ipv4() == address.is_ipv4() && (*first..=*last).contains(&address))
}

fn told(cluster: &Cluster, changes: &[FlowChange]) -> BTreeSet<Asked> {
    let mut found = BTreeSet::new();
    let ends = ends(cluster);
    for change in changes {
        let covers = |traffic: Traffic| {
            change.traffic.iter().any(|span| match (*span, traffic) {
                (Span::Others, Traffic::Other(_)) => true,
                (Span::Ports(own, first, last), Traffic::Port(protocol, port)) => {
                    own == protocol && (first..=last).contains(&port)
                }
                _ => false,
            })
        };
        for source in ends.iter().filter(|end| has(cluster, &change.sources, **end)) {
            for destination in ends.iter().filter(|end| has(cluster, &change.destinations, **end)) {
                let only = change.only_v6.is_none_or(|v6| v6 == source.is_ipv6());
                if source.is_ipv4() != destination.is_ipv4() || !only {
                    continue;
                }
                let one = |address| cluster.party(address).member;
                let itself = one(*source).is_some_and(|source| {
                    one(*destination).is_some_and(|destination| source.name() == destination.name())
                });
                let own_node = one(*destination).is_some_and(|pod| {
                    let node = pod.node.and_then(|name| cluster.snapshot().nodes.get(&name).cloned());
                    node.is_some_and(|node| node.addresses.contains(source))
                });
                if itself || own_node {
                    continue;
                }
                for traffic in TRAFFIC.into_iter().filter(|traffic| covers(*traffic)) {
                    found.insert((change.opens, *source, *destination, traffic));
                }
            }
        }
    }
    found
}

/// A cluster, and one to three changes of policies.
fn worlds() -> impl Strategy<Value = (Vec<Event>, Vec<Change>)> {
    let of_policies = |event: Event| match event {
        Event::Change(change @ Change::Set(Object::NetworkPolicy(_) | Object::ClusterNetworkPolicy(_))) => {
            Some(change)
        }
        Event::Change(change @ Change::Removed(_)) => Some(change),
        _ => None,
    };
    let changes = events(1..6).prop_map(move |events| events.into_iter().filter_map(of_policies).collect());
    (events(12..40), changes)
}

proptest! {
    #[test]
    fn a_change_opens_and_closes_what_the_comparison_of_all_flows_says((events, changes) in worlds()) {
        let mut before = Policies::new("n1", Snapshot::default());
        for event in &events {
            match event {
                Event::Change(change) => before.apply(change),
                Event::Resolved(name) => before.resolve(name.clone()),
                Event::Attached(pod, attached) => before.attach(pod, attached),
            };
        }
        let mut after = before.clone();
        for change in &changes {
            if matches!(change.key(), cluster::Key::NetworkPolicy(_) | cluster::Key::ClusterNetworkPolicy(_)) {
                after.apply(change);
            }
        }
        let compared = compare(before.cluster(), &changes);
        prop_assert_eq!(told(before.cluster(), &compared), naive(&before, &after));
    }
}
