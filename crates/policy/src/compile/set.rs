//! Sets of a node's table, by what they hold.
//!
//! Read [`Set`]. A set's name is made from what it holds, so equal wishes meet in one set. Sets of pods, nodes and domain
//! names change with the cluster; those of networks and ports never do. [`NamedSet`] is a set with its name, and [`Sets`]
//! those in use: a name is made once, for that costs more than all else of a rule that looks the set up.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use cluster::{Protocol, Selector, domain_matches};
use ipnet::IpNet;
use netstate::nft::{self, Element, IpVersion, Key, KeyType, Value};

use super::named;
use crate::view::{Cluster, Member};

/// What a set holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Set {
    /// The addresses of pods.
    Pods(Scope, IpVersion),
    /// Address, protocol and number of the ports that pods give a name.
    NamedPorts(Scope, PortName, IpVersion),
    /// The addresses of nodes.
    Nodes(Selector, IpVersion),
    /// The addresses of domain names.
    DomainNames(Box<[Box<str>]>, IpVersion),
    /// Networks of one version that do not overlap.
    Networks(Box<[IpNet]>, IpVersion),
    /// Pairs of protocol and port.
    Numbers(Box<[(Protocol, u16)]>),
}

/// Some of the cluster's pods.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Scope {
    /// Those of one namespace.
    Within(Arc<str>, Selector),
    /// Those of the namespaces that the first selects.
    Across(Selector, Selector),
    /// All of this node.
    Local,
}

/// A port's name, as a rule has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PortName {
    /// Of this protocol; of any if `None`.
    pub(crate) protocol: Option<Protocol>,
    /// The name.
    pub(crate) name: Box<str>,
}

/// A set with its name in the table. It is known by what it holds.
#[derive(Debug, Clone)]
pub(crate) struct NamedSet {
    set: Arc<Set>,
    /// Its name.
    pub(crate) name: Arc<str>,
}

/// The sets in use, with how many chains look up each.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sets(HashMap<NamedSet, usize>);

/// Both versions of the internet protocol.
pub(crate) const VERSIONS: [IpVersion; 2] = [IpVersion::V4, IpVersion::V6];

/// The protocol's number in IP.
pub(crate) fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

impl Scope {
    /// All pods of the cluster.
    pub(crate) fn everywhere() -> Self {
        Self::Across(Selector::default(), Selector::default())
    }

    /// Whether a pod of a namespace in scope is in it; `node` is this one.
    fn selects(&self, member: &Member, node: &str) -> bool {
        match self {
            Self::Within(_, pods) | Self::Across(_, pods) => pods.matches(&member.pod.labels),
            Self::Local => member.node.as_deref() == Some(node),
        }
    }
}

impl std::ops::Deref for NamedSet {
    type Target = Set;

    fn deref(&self) -> &Set {
        &self.set
    }
}

impl PartialEq for NamedSet {
    fn eq(&self, other: &Self) -> bool {
        self.set == other.set
    }
}

impl Eq for NamedSet {}

impl Hash for NamedSet {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.set.hash(state);
    }
}

impl Borrow<Set> for NamedSet {
    fn borrow(&self) -> &Set {
        &self.set
    }
}

impl NamedSet {
    /// A set with the name that follows from it.
    fn new(set: Set) -> Self {
        let name = set.name().into();
        Self { set: Arc::new(set), name }
    }

    /// It without elements.
    pub(crate) fn empty(&self) -> nft::Set {
        let (name, address) = (&*self.name, self.version().map_or(KeyType::Protocol, IpVersion::key_type));
        match **self {
            Set::NamedPorts(..) => nft::Set::new(name, [address, KeyType::Protocol, KeyType::Port]),
            Set::Networks(..) => nft::Set::interval(name, [address]),
            Set::Numbers(_) => nft::Set::new(name, [KeyType::Protocol, KeyType::Port]),
            Set::Pods(..) | Set::Nodes(..) | Set::DomainNames(..) => nft::Set::new(name, [address]),
        }
    }
}

impl Sets {
    /// A set with its name.
    pub(crate) fn named(&self, set: Set) -> NamedSet {
        self.0.get_key_value(&set).map_or_else(|| NamedSet::new(set), |(known, _)| known.clone())
    }

    /// Notes one more need of a set. True if it is the first.
    pub(crate) fn acquire(&mut self, set: &NamedSet) -> bool {
        let users = self.0.entry(set.clone()).or_default();
        *users += 1;
        *users == 1
    }

    /// Notes one need less. True if it was the last.
    pub(crate) fn release(&mut self, set: &NamedSet) -> bool {
        let Some(users) = self.0.get_mut(set) else { return false };
        *users -= 1;
        *users == 0 && self.0.remove(set).is_some()
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &NamedSet> {
        self.0.keys()
    }
}

impl Set {
    /// Its name in the table.
    fn name(&self) -> String {
        let kind = match self {
            Self::Pods(..) => "pods",
            Self::NamedPorts(..) => "named",
            Self::Nodes(..) => "nodes",
            Self::DomainNames(..) => "names",
            Self::Networks(..) => "nets",
            Self::Numbers(_) => "ports",
        };
        let version = match self.version() {
            Some(IpVersion::V4) => "4",
            Some(IpVersion::V6) => "6",
            None => "",
        };
        named(&format!("{kind}{version}"), &format!("{self:?}"))
    }

    fn version(&self) -> Option<IpVersion> {
        match self {
            Self::Pods(_, version)
            | Self::NamedPorts(_, _, version)
            | Self::Nodes(_, version)
            | Self::DomainNames(_, version)
            | Self::Networks(_, version) => Some(*version),
            Self::Numbers(_) => None,
        }
    }

    /// The pods it is about, if it is about pods.
    pub(crate) fn scope(&self) -> Option<&Scope> {
        match self {
            Self::Pods(scope, _) | Self::NamedPorts(scope, ..) => Some(scope),
            _ => None,
        }
    }

    /// What a pod puts into it, given that its namespace is in scope; `node` is this one.
    pub(crate) fn keys_of(&self, member: &Member, node: &str) -> Vec<Key> {
        let Some((scope, version)) = self.scope().zip(self.version()) else { return Vec::new() };
        if !scope.selects(member, node) {
            return Vec::new();
        }
        let addresses = of_version(&member.addresses, version);
        let Self::NamedPorts(_, wanted, _) = self else {
            return addresses.map(|address| vec![Value::Address(address)]).collect();
        };
        let of_name = |address| {
            let ports = member.pod.ports.iter().filter(|port| {
                port.name.as_deref() == Some(&*wanted.name)
                    && wanted.protocol.is_none_or(|protocol| protocol == port.protocol)
            });
            ports.map(move |port| {
                vec![Value::Address(address), Value::Protocol(number(port.protocol)), Value::Port(port.port)]
            })
        };
        let mut keys: Vec<Key> = addresses.flat_map(of_name).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// What it holds that does not come from pods.
    pub(crate) fn keys(&self, cluster: &Cluster) -> Vec<Key> {
        let mut keys: Vec<Key> = match self {
            Self::Nodes(selector, version) => {
                let nodes = cluster.snapshot().nodes.values().filter(|node| selector.matches(&node.labels));
                nodes.flat_map(|node| of_version(&node.addresses, *version)).map(single).collect()
            }
            Self::DomainNames(patterns, version) => {
                let means = |name: &str| patterns.iter().any(|pattern| domain_matches(pattern, name));
                let names = cluster.resolved_names().filter(|name| means(&name.name));
                names.flat_map(|name| of_version(&name.addresses, *version)).map(single).collect()
            }
            Self::Networks(networks, _) => {
                networks.iter().map(|network| vec![Value::Network(*network)]).collect()
            }
            Self::Numbers(ports) => {
                let key = |(protocol, port): &(Protocol, u16)| {
                    vec![Value::Protocol(number(*protocol)), Value::Port(*port)]
                };
                ports.iter().map(key).collect()
            }
            Self::Pods(..) | Self::NamedPorts(..) => Vec::new(),
        };
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

/// Elements without anything but their keys.
pub(crate) fn elements(keys: impl IntoIterator<Item = Key>) -> BTreeMap<Key, Element> {
    keys.into_iter().map(|key| (key, Element::default())).collect()
}

fn single(address: IpAddr) -> Key {
    vec![Value::Address(address)]
}

fn of_version(addresses: &[IpAddr], version: IpVersion) -> impl Iterator<Item = IpAddr> {
    addresses.iter().copied().filter(move |address| IpVersion::of(*address) == version)
}
