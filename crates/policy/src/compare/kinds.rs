//! Who is treated alike.
//!
//! Read [`Crowd`]. Ends that every policy which may have a word treats alike are one crowd, and one of them stands for all.
//! The ends that changed policies are about (the *concerned*) are told apart by everything that any policy can tell them
//! apart by; all others only by what the policies about the concerned look at (their *looks*), and by the policies about
//! themselves (their *standing*). So thousands of pods that no policy is about are one crowd, whatever their namespaces.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use cluster::{
    ClusterNetworkPolicy, ClusterPeer, ClusterPeers, Direction, IpBlock, Labels, NamespacedName,
    NetworkPolicy, Node, Peer, PodSelector, PortMatch, Protocol, Selector,
};
use ipnet::IpNet;

use super::space::{Space, free_address};
use crate::view::{Cluster, Member, Party};

/// Ends that are treated alike.
#[derive(Debug)]
pub(super) struct Crowd {
    /// Who they are.
    pub(super) ends: Vec<End>,
    /// The directions in which changed policies are about them.
    pub(super) concerned: [bool; 2],
    /// What the policies about the concerned see of them; the same number for the same.
    pub(super) looks: usize,
    /// The names and numbers that they give their ports.
    pub(super) named: BTreeSet<(Protocol, u16)>,
}

/// One end.
#[derive(Debug, Clone)]
pub(super) enum End {
    Pod(Box<Member>),
    Node(Arc<Node>),
    /// Addresses of nobody whom the cluster knows: one that stands for all, and all of them.
    Outside(IpAddr, Vec<(IpAddr, IpAddr)>),
}

impl End {
    /// As a party of a flow by this version of IP.
    pub(super) fn party(&self, v6: bool) -> Option<Party> {
        let of = |addresses: &[IpAddr]| addresses.iter().copied().find(|address| address.is_ipv6() == v6);
        match self {
            Self::Pod(member) => {
                Some(Party { address: of(&member.addresses)?, member: Some((**member).clone()) })
            }
            Self::Node(node) => Some(Party { address: of(&node.addresses)?, member: None }),
            Self::Outside(address, _) => Some(Party { address: of(&[*address])?, member: None }),
        }
    }

    /// Whether it has an address of this version.
    pub(super) fn has(&self, v6: bool) -> bool {
        match self {
            Self::Pod(member) => member.addresses.iter().any(|address| address.is_ipv6() == v6),
            Self::Node(node) => node.addresses.iter().any(|address| address.is_ipv6() == v6),
            Self::Outside(address, _) => address.is_ipv6() == v6,
        }
    }

    /// Whether flows between the two are about no policy: a pod and itself.
    pub(super) fn is(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Pod(one), Self::Pod(other)) if one.name() == other.name())
    }

    /// Whether this is the node that the other one, a pod, runs on.
    pub(super) fn is_node_of(&self, pod: &Self) -> bool {
        matches!((self, pod), (Self::Node(node), Self::Pod(pod)) if pod.node.as_ref() == Some(&node.name))
    }
}

/// The policies of the cluster before and after a change.
pub(super) struct Both<'c> {
    before: &'c Cluster,
    after: &'c Cluster,
    /// The NetworkPolicies and the ClusterNetworkPolicies that are not the same.
    changed: (BTreeSet<NamespacedName>, BTreeSet<Arc<str>>),
}

/// What a rule can tell pods by: the namespaces (`None` for one by its name) and the pods.
type Sight = (Option<Arc<str>>, Selector, Selector);

/// The names of what is not the same in both.
fn changed<N: Ord + Clone, P: PartialEq>(
    before: &BTreeMap<N, Arc<P>>,
    after: &BTreeMap<N, Arc<P>>,
) -> BTreeSet<N> {
    let names = before.keys().chain(after.keys());
    names.filter(|name| before.get(name) != after.get(name)).cloned().collect()
}

impl<'c> Both<'c> {
    /// Two that differ in policies only.
    pub(super) fn new(before: &'c Cluster, after: &'c Cluster) -> Self {
        let (old, new) = (before.snapshot(), after.snapshot());
        let changed = (
            changed(&old.network_policies, &new.network_policies),
            changed(&old.cluster_network_policies, &new.cluster_network_policies),
        );
        Self { before, after, changed }
    }

    /// Before, and after.
    pub(super) fn clusters(&self) -> [&'c Cluster; 2] {
        [self.before, self.after]
    }

    /// Whether a ClusterNetworkPolicy is not the same in both.
    pub(super) fn changes_of_cluster(&self) -> bool {
        !self.changed.1.is_empty()
    }

    /// Whether this NetworkPolicy is not the same in both.
    pub(super) fn is_changed(&self, policy: &NetworkPolicy) -> bool {
        self.changed.0.contains(&policy.name)
    }

    /// All NetworkPolicies of before, and those of after that say something else.
    fn network_policies(&self) -> Vec<&'c Arc<NetworkPolicy>> {
        let new = self.changed.0.iter().filter_map(|name| self.after.snapshot().network_policies.get(name));
        self.before.snapshot().network_policies.values().chain(new).collect()
    }

    /// The same of ClusterNetworkPolicies.
    pub(super) fn cluster_policies(&self) -> Vec<&'c Arc<ClusterNetworkPolicy>> {
        let after = &self.after.snapshot().cluster_network_policies;
        let new = self.changed.1.iter().filter_map(|name| after.get(name));
        self.before.snapshot().cluster_network_policies.values().chain(new).collect()
    }

    /// The NetworkPolicies that isolate a pod in a direction: before, and after.
    pub(super) fn isolating(
        &self,
        member: &Member,
        direction: Direction,
    ) -> [Vec<&'c Arc<NetworkPolicy>>; 2] {
        self.clusters().map(|cluster| {
            let about = |policy: &&Arc<NetworkPolicy>| {
                policy.rules_in_force(direction, false).is_some()
                    && policy.subjects.matches(&member.pod.labels)
            };
            cluster.network_policies(&member.name().namespace).filter(about).collect()
        })
    }

    /// The directions in which a policy that changed is about a pod.
    fn concerned(&self, member: &Member) -> [bool; 2] {
        let namespace = &member.name().namespace;
        let near = self.changed.0.range(NamespacedName::new(namespace.clone(), "")..).next();
        let near = near.is_some_and(|name| name.namespace == *namespace);
        Direction::ALL.map(|direction| {
            let isolating = || self.isolating(member, direction).into_iter().flatten();
            let clusters = self.clusters().into_iter();
            (near && isolating().any(|policy| self.changed.0.contains(&policy.name)))
                || clusters.zip(std::iter::repeat(&self.changed.1)).any(|(cluster, names)| {
                    names.iter().any(|name| {
                        let policy = cluster.snapshot().cluster_network_policies.get(name);
                        policy.is_some_and(|policy| {
                            let subject =
                                policy.subject.as_ref().filter(|_| !policy.rules(direction).is_empty());
                            subject.is_some_and(|subject| crate::judge::selects(cluster, subject, member))
                        })
                    })
                })
        })
    }

    /// Everybody, in crowds.
    pub(super) fn crowds(&self) -> Vec<Crowd> {
        let pods = self.before.snapshot().pods.keys();
        let members: Vec<Member> = pods.filter_map(|name| self.before.member(name)).collect();
        let concerned: Vec<[bool; 2]> = members.iter().map(|member| self.concerned(member)).collect();
        let mut about: Vec<&Arc<NetworkPolicy>> = Vec::new();
        for (member, directions) in members.iter().zip(&concerned) {
            for (direction, _) in Direction::ALL.into_iter().zip(directions).filter(|(_, is)| **is) {
                about.extend(self.isolating(member, direction).into_iter().flatten());
            }
        }
        about.sort_unstable_by_key(|policy| Arc::as_ptr(policy));
        about.dedup_by_key(|policy| Arc::as_ptr(policy));
        let cluster_policies = self.cluster_policies();
        let near = Sights::new(self.before, &about, &cluster_policies);
        let all = Sights::new(self.before, &self.network_policies(), &cluster_policies);
        let (looks, standings, crowds) = (HashMap::new(), HashMap::new(), BTreeMap::new());
        let mut sorter = Sorter { both: self, near, all, looks, standings, crowds };
        for (member, concerned) in members.into_iter().zip(concerned) {
            sorter.add_pod(member, concerned);
        }
        sorter.add_others();
        sorter.crowds.into_values().collect()
    }
}

/// What some policies tell ends apart by.
struct Sights<'c> {
    cluster: &'c Cluster,
    pods: BTreeSet<Sight>,
    nodes: BTreeSet<Selector>,
    space: Space,
    /// What is seen of pods that differ in nothing but their names.
    seen: HashMap<(Arc<str>, Labels), Arc<[usize]>>,
}

impl<'c> Sights<'c> {
    fn new(
        cluster: &'c Cluster,
        policies: &[&Arc<NetworkPolicy>],
        of_cluster: &[&Arc<ClusterNetworkPolicy>],
    ) -> Self {
        let (mut pods, mut nodes, mut networks) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for policy in policies {
            for rule in policy.ingress.iter().chain(&policy.egress).flatten() {
                for peer in rule.peers.iter().flatten() {
                    match peer {
                        Peer::Pods { namespaces: None, pods: selector } => {
                            let own = Some(policy.name.namespace.clone());
                            pods.insert((own, Selector::default(), selector.clone()));
                        }
                        Peer::Pods { namespaces: Some(namespaces), pods: selector } => {
                            pods.insert((None, namespaces.clone(), selector.clone()));
                        }
                        Peer::Block(IpBlock { cidr, except }) => networks.extend(except.iter().chain([cidr])),
                        Peer::Unreadable(_) => {}
                    }
                }
            }
        }
        let sight = |PodSelector { namespaces, pods }: &PodSelector| (None, namespaces.clone(), pods.clone());
        for policy in of_cluster {
            pods.extend(policy.subject.iter().map(sight));
            for rule in policy.ingress.iter().chain(&policy.egress) {
                let ClusterPeers::Any(peers) = &rule.peers else { continue };
                for peer in peers {
                    match peer {
                        ClusterPeer::Pods(selector) => drop(pods.insert(sight(selector))),
                        ClusterPeer::Nodes(selector) => drop(nodes.insert(selector.clone())),
                        ClusterPeer::Networks(listed) => networks.extend(listed),
                        ClusterPeer::DomainNames(_) => {
                            let names = cluster.resolved_names().flat_map(|name| &name.addresses);
                            networks.extend(names.copied().map(IpNet::from));
                        }
                    }
                }
            }
        }
        Self { cluster, pods, nodes, space: Space::new(&networks), seen: HashMap::new() }
    }

    /// Which of the sights a pod is in.
    fn of_pod(&mut self, member: &Member) -> Arc<[usize]> {
        let (namespace, labels) = (&member.name().namespace, &member.pod.labels);
        let key = (namespace.clone(), labels.clone());
        if let Some(seen) = self.seen.get(&key) {
            return seen.clone();
        }
        let of_namespace = self.cluster.namespace_labels(namespace);
        let is_in = |(own, namespaces, pods): &Sight| {
            own.as_ref().map_or_else(|| namespaces.matches(&of_namespace), |own| own == namespace)
                && pods.matches(labels)
        };
        let sights = self.pods.iter().enumerate().filter(|(_, sight)| is_in(sight));
        let seen: Arc<[usize]> = sights.map(|(number, _)| number).collect();
        self.seen.insert(key, seen.clone());
        seen
    }

    fn of_node(&self, node: &Node) -> Arc<[usize]> {
        let selected = self.nodes.iter().enumerate().filter(|(_, selector)| selector.matches(&node.labels));
        selected.map(|(number, _)| number).collect()
    }

    /// The classes of the addresses that count, the first of each version.
    fn places(&self, addresses: &[IpAddr]) -> [Option<u32>; 2] {
        [false, true].map(|v6| {
            let first = addresses.iter().copied().find(|address| address.is_ipv6() == v6);
            first.map(|address| self.space.class(address))
        })
    }
}

/// What of an end the policies about the concerned see.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Looks {
    kind: u8,
    sights: Arc<[usize]>,
    places: [Option<u32>; 2],
    ports: Vec<(Option<Box<str>>, Protocol, u16)>,
}

/// What tells crowds apart: concerned or not, looks, and what others see (of the concerned) or who isolates them.
type Mark = ([bool; 2], Looks, Option<Looks>, Standing);

/// The policies that isolate a pod: by direction, before and after.
type Standing = Arc<[[Vec<NamespacedName>; 2]; 2]>;

struct Sorter<'b, 'c> {
    both: &'b Both<'c>,
    near: Sights<'c>,
    all: Sights<'c>,
    looks: HashMap<Looks, usize>,
    standings: HashMap<(Arc<str>, Labels), Standing>,
    crowds: BTreeMap<Mark, Crowd>,
}

impl Sorter<'_, '_> {
    fn add_pod(&mut self, member: Member, concerned: [bool; 2]) {
        let ports: Vec<_> =
            member.pod.ports.iter().map(|port| (port.name.clone(), port.protocol, port.port)).collect();
        let ports: BTreeSet<_> = ports.into_iter().filter(|(name, ..)| name.is_some()).collect();
        let named = ports.iter().map(|(_, protocol, number)| (*protocol, *number)).collect();
        let ports: Vec<_> = ports.into_iter().collect();
        let looks = |sights: &mut Sights<'_>, ports: &[_]| Looks {
            kind: 0,
            sights: sights.of_pod(&member),
            places: sights.places(&member.addresses),
            ports: ports.to_vec(),
        };
        let standing = self.standing(&member);
        let near = looks(&mut self.near, &ports);
        let far = concerned.contains(&true).then(|| looks(&mut self.all, &ports));
        self.add((concerned, near, far, standing), End::Pod(Box::new(member)), named);
    }

    /// Who isolates a pod, before and after, in each direction. Pods that differ in nothing but their names are known.
    fn standing(&mut self, member: &Member) -> Standing {
        let key = (member.name().namespace.clone(), member.pod.labels.clone());
        if let Some(known) = self.standings.get(&key) {
            return known.clone();
        }
        let standing: Standing = Arc::new(Direction::ALL.map(|direction| {
            let names = |policies: Vec<&Arc<NetworkPolicy>>| {
                policies.into_iter().map(|policy| policy.name.clone()).collect::<Vec<_>>()
            };
            self.both.isolating(member, direction).map(names)
        }));
        self.standings.insert(key, standing.clone());
        standing
    }

    fn add_others(&mut self) {
        let cluster = self.both.before;
        for node in cluster.snapshot().nodes.values().filter(|node| !node.addresses.is_empty()) {
            let (sights, places) = (self.near.of_node(node), self.near.places(&node.addresses));
            let near = Looks { kind: 1, sights, places, ports: Vec::new() };
            self.add(([false; 2], near, None, Standing::default()), End::Node(node.clone()), BTreeSet::new());
        }
        let of_nodes: BTreeSet<IpAddr> =
            cluster.snapshot().nodes.values().flat_map(|node| node.addresses.iter().copied()).collect();
        for intervals in self.near.space.classes().into_values() {
            let taken = |address| {
                let pods = cluster.party(address).member.is_some() || cluster.orphan(address).is_some();
                pods || of_nodes.contains(&address)
            };
            let Some(address) = free_address(&intervals, taken) else { continue };
            let near = Looks {
                kind: 2,
                sights: Arc::default(),
                places: self.near.places(&[address]),
                ports: Vec::new(),
            };
            let end = End::Outside(address, intervals);
            self.add(([false; 2], near, None, Standing::default()), end, BTreeSet::new());
        }
    }

    fn add(&mut self, mark: Mark, end: End, named: BTreeSet<(Protocol, u16)>) {
        let next = self.looks.len();
        let looks = *self.looks.entry(mark.1.clone()).or_insert(next);
        let concerned = mark.0;
        let crowd =
            self.crowds.entry(mark).or_insert_with(|| Crowd { ends: Vec::new(), concerned, looks, named });
        crowd.ends.push(end);
    }
}

/// Where the ports that policies name begin to be others.
pub(super) fn cuts<'p>(ports: impl IntoIterator<Item = &'p PortMatch>) -> BTreeSet<(Protocol, u16)> {
    let mut cuts = BTreeSet::new();
    for port in ports {
        if let PortMatch::Range(protocol, first, last) = port {
            cuts.insert((*protocol, *first));
            cuts.extend(last.checked_add(1).map(|next| (*protocol, next)));
        }
    }
    cuts
}
