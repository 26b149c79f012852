//! Ends and traffic of flows in words.
//!
//! Read [`Group::told`]: all pods of a namespace are `namespace/*`, and all but a few are told by those few.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::sync::Arc;

use cluster::{NamespacedName, Protocol};

use super::space::networks;
use super::{FlowChange, Group, Span};
use crate::view::Cluster;

/// So many patterns are told, where nobody asks for all.
const USUAL: usize = 6;

impl Group {
    /// Who they are, as patterns of names in that cluster; `all` of the patterns, or the first.
    pub fn told(&self, cluster: &Cluster, all: bool) -> Vec<String> {
        let mut told = self.pods_told(cluster);
        let every = cluster.snapshot().nodes.values().filter(|node| !node.addresses.is_empty()).count();
        if every > 1 && self.nodes.len() == every {
            told.push("any node".to_owned());
        } else {
            told.extend(self.nodes.iter().map(|node| format!("node {node}")));
        }
        told.extend(self.outside_told());
        if !all && told.len() > USUAL + 1 {
            let more = told.len() - USUAL;
            told.truncate(USUAL);
            told.push(format!("and {more} more"));
        }
        told
    }

    fn pods_told(&self, cluster: &Cluster) -> Vec<String> {
        let mut everybody: BTreeMap<&Arc<str>, usize> = BTreeMap::new();
        let mut others: Vec<&NamespacedName> = Vec::new();
        for name in cluster.snapshot().pods.keys().filter(|name| cluster.member(name).is_some()) {
            *everybody.entry(&name.namespace).or_default() += 1;
            if self.pods.binary_search(name).is_err() {
                others.push(name);
            }
        }
        if self.pods.is_empty() || (others.is_empty() && everybody.len() < 2) {
            return patterns(self.pods.iter(), &everybody);
        }
        if others.is_empty() {
            return vec!["*/*".to_owned()];
        }
        let own = patterns(self.pods.iter(), &everybody);
        let but = patterns(others.into_iter(), &everybody);
        if but.len() + 1 < own.len() { vec![format!("*/* but {}", but.join(", "))] } else { own }
    }

    fn outside_told(&self) -> Vec<String> {
        let mut told = Vec::new();
        for v6 in [false, true] {
            let of_version = |outside: &[(std::net::IpAddr, std::net::IpAddr)]| {
                let own: Vec<_> =
                    outside.iter().copied().filter(|(first, _)| first.is_ipv6() == v6).collect();
                networks(&own)
            };
            let own = of_version(&self.outside);
            let Some(whole) = own.first().map(|first| if first.addr().is_ipv6() { "IPv6" } else { "IPv4" })
            else {
                continue;
            };
            if own.iter().any(|network| network.prefix_len() == 0) {
                told.push(format!("any other {whole} address"));
                continue;
            }
            let but = of_version(&gaps(&self.outside, v6));
            let list = |networks: &[ipnet::IpNet]| {
                networks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            };
            told.push(if but.len() < own.len() {
                format!("any other {whole} address but {}", list(&but))
            } else {
                format!("other addresses of {}", list(&own))
            });
        }
        told
    }
}

/// What lies between these intervals.
fn gaps(
    intervals: &[(std::net::IpAddr, std::net::IpAddr)],
    v6: bool,
) -> Vec<(std::net::IpAddr, std::net::IpAddr)> {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    };
    let address = |bits: u128| {
        if v6 {
            IpAddr::V6(Ipv6Addr::from_bits(bits))
        } else {
            IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX)))
        }
    };
    let end = if v6 { u128::MAX } else { u32::MAX.into() };
    let (mut found, mut next) = (Vec::new(), Some(0));
    for (first, last) in intervals.iter().filter(|(first, _)| first.is_ipv6() == v6) {
        if let Some(next) = next.filter(|next| *next < bits(*first)) {
            found.push((address(next), address(bits(*first) - 1)));
        }
        next = Some(bits(*last)).filter(|last| *last < end).map(|last| last + 1);
    }
    found.extend(next.map(|next| (address(next), address(end))));
    found
}

/// Pods as `namespace/*` where all of a namespace are meant, else by name.
fn patterns<'n>(
    pods: impl Iterator<Item = &'n NamespacedName>,
    everybody: &BTreeMap<&Arc<str>, usize>,
) -> Vec<String> {
    let mut by_namespace: BTreeMap<&Arc<str>, Vec<&NamespacedName>> = BTreeMap::new();
    for pod in pods {
        by_namespace.entry(&pod.namespace).or_default().push(pod);
    }
    let told = by_namespace.into_iter().flat_map(|(namespace, pods)| {
        if pods.len() > 1 && everybody.get(namespace) == Some(&pods.len()) {
            vec![format!("{namespace}/*")]
        } else {
            pods.into_iter().map(ToString::to_string).collect()
        }
    });
    told.collect()
}

impl FlowChange {
    /// By what, in words.
    pub fn traffic_told(&self) -> String {
        let whole = |protocol| Span::Ports(protocol, 1, u16::MAX);
        let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        let everything = protocols.into_iter().map(whole).chain([Span::Others]);
        let told =
            if self.traffic.len() == 4 && everything.into_iter().all(|span| self.traffic.contains(&span)) {
                "everything".to_owned()
            } else {
                self.traffic.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            };
        match self.only_v6 {
            Some(true) => format!("{told} (IPv6)"),
            Some(false) => format!("{told} (IPv4)"),
            None => told,
        }
    }
}

impl Display for Span {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ports(protocol, 1, u16::MAX) => write!(out, "all of {protocol}"),
            Self::Ports(protocol, first, last) if first == last => write!(out, "{protocol} {first}"),
            Self::Ports(protocol, first, last) => write!(out, "{protocol} {first}-{last}"),
            Self::Others => out.write_str("other protocols"),
        }
    }
}
