//! The cluster as policies see it: who is behind an address.
//!
//! Read [`Cluster::party`]. A pod counts as long as it has not ended, terminating or not, and has an address of its own:
//! pods in a node's network are that node. An address belongs to one pod at a time. Where two claim it, because one is on
//! its way out and its address was given away already, the one that stays has it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use cluster::{
    Change, ClusterNetworkPolicy, Key, Labels, NamespacedName, NetworkPolicy, Object, Pod, ResolvedName,
    Snapshot, Tier, namespace_labels,
};

/// Everything that policies decide by.
#[derive(Debug, Clone, Default)]
pub struct Cluster {
    snapshot: Snapshot,
    names: BTreeMap<Arc<str>, Arc<ResolvedName>>,
    claimants: HashMap<IpAddr, Claimants>,
    /// Pods by a digest of a label's key and value; whoever asks looks at the labels themselves.
    labelled: HashMap<u64, BTreeSet<NamespacedName>>,
}

/// The pods that say an address is theirs. Nearly always there is one.
#[derive(Debug, Clone)]
enum Claimants {
    One(NamespacedName),
    Several(Box<[NamespacedName]>),
}

/// A pod that takes part in the network, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The pod as it is wanted.
    pub pod: Arc<Pod>,
    /// The addresses that are its own, in order.
    pub addresses: Box<[IpAddr]>,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
}

/// One end of a connection.
#[derive(Debug, Clone)]
pub struct Party {
    /// Its address.
    pub address: IpAddr,
    /// The pod whose address that is.
    pub member: Option<Member>,
}

impl Cluster {
    /// The cluster of a snapshot.
    pub fn new(snapshot: Snapshot) -> Self {
        let mut cluster = Self { snapshot, ..Self::default() };
        let pods: Vec<NamespacedName> = cluster.snapshot.pods.keys().cloned().collect();
        for name in &pods {
            cluster.claim(name);
            cluster.file(name);
        }
        cluster
    }

    /// The objects.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The pods whose membership a change can touch: the pod itself, and those that claim an address of it.
    pub(crate) fn touched(&self, change: &Change) -> Vec<NamespacedName> {
        let (Key::Pod(name) | Key::PodStatus(name)) = change.key() else { return Vec::new() };
        let claimed = match change {
            Change::Set(Object::Pod(pod)) => pod.addresses.to_vec(),
            Change::Set(Object::PodStatus(status)) => status.addresses.to_vec(),
            _ => Vec::new(),
        };
        let held = self.snapshot.pod_addresses(&name).iter().copied();
        // A pod's manifest has addresses as well, for when there is no status any more.
        let given = self.snapshot.pods.get(&name).into_iter().flat_map(|pod| pod.addresses.iter().copied());
        let mut touched: Vec<NamespacedName> =
            held.chain(given).chain(claimed).flat_map(|address| self.claimants(&address).to_vec()).collect();
        touched.push(name);
        touched.sort_unstable();
        touched.dedup();
        touched
    }

    /// Takes one step. True if something is different now.
    pub(crate) fn apply(&mut self, change: &Change) -> bool {
        let (Key::Pod(name) | Key::PodStatus(name)) = change.key() else {
            return self.snapshot.apply(change.clone());
        };
        let of_labels = matches!(change.key(), Key::Pod(_));
        self.disclaim(&name);
        if of_labels {
            self.unfile(&name);
        }
        let changed = self.snapshot.apply(change.clone());
        if of_labels {
            self.file(&name);
        }
        self.claim(&name);
        changed
    }

    /// What a domain name resolves to from now on; nothing if there are no addresses. True if it was different.
    pub(crate) fn resolve(&mut self, resolved: ResolvedName) -> bool {
        if resolved.addresses.is_empty() {
            return self.names.remove(&resolved.name).is_some();
        }
        let same = self.names.get(&resolved.name).is_some_and(|known| **known == resolved);
        self.names.insert(resolved.name.clone(), Arc::new(resolved));
        !same
    }

    /// The domain names whose addresses are known.
    pub fn resolved_names(&self) -> impl Iterator<Item = &ResolvedName> {
        self.names.values().map(|name| &**name)
    }

    /// Who is at an address.
    pub fn party(&self, address: IpAddr) -> Party {
        let holder = self.claimants(&address).first();
        Party { address, member: holder.and_then(|name| self.member(name)) }
    }

    /// The pod of that name as a member of the network.
    pub fn member(&self, name: &NamespacedName) -> Option<Member> {
        let pod = self.snapshot.pods.get(name)?;
        let owned = |address: &IpAddr| self.claimants(address).first() == Some(name);
        let mut addresses: Vec<IpAddr> = self.claimed(name).iter().copied().filter(owned).collect();
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.is_empty() {
            return None;
        }
        let node = self.snapshot.pod_node(name).cloned();
        Some(Member { pod: pod.clone(), addresses: addresses.into(), node })
    }

    /// All pods of a namespace, members or not.
    pub(crate) fn pods_of<'c>(
        &'c self,
        namespace: &Arc<str>,
    ) -> impl Iterator<Item = &'c Arc<Pod>> + use<'c> {
        let first = NamespacedName::new(namespace.clone(), "");
        let end = namespace.clone();
        let pods = self.snapshot.pods.range((Bound::Included(first), Bound::Unbounded));
        pods.take_while(move |(name, _)| name.namespace == end).map(|(_, pod)| pod)
    }

    /// All pods of a namespace that are members.
    pub(crate) fn members_of<'c>(&'c self, namespace: &Arc<str>) -> impl Iterator<Item = Member> + use<'c> {
        self.pods_of(namespace).filter_map(|pod| self.member(&pod.name))
    }

    /// The pods that have a label, and perhaps some others.
    pub(crate) fn labelled(&self, (key, value): (&str, &str)) -> impl Iterator<Item = &NamespacedName> {
        self.labelled.get(&digest(key, value)).into_iter().flatten()
    }

    /// The namespaces that have an object or a pod; some of them more than once.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &Arc<str>> {
        self.snapshot.namespaces.keys().chain(self.snapshot.pods.keys().map(|name| &name.namespace))
    }

    /// The labels of a namespace as selectors see them, whether it has an object or not.
    pub fn namespace_labels(&self, name: &str) -> Labels {
        let own = self.snapshot.namespaces.get(name).map(|namespace| namespace.labels.clone());
        namespace_labels(name, &own.unwrap_or_default())
    }

    /// The NetworkPolicies of a namespace, in the order of their names.
    pub(crate) fn network_policies<'c>(
        &'c self,
        namespace: &Arc<str>,
    ) -> impl Iterator<Item = &'c Arc<NetworkPolicy>> + use<'c> {
        let first = NamespacedName::new(namespace.clone(), "");
        let end = namespace.clone();
        let range = self.snapshot.network_policies.range((Bound::Included(first), Bound::Unbounded));
        range.take_while(move |(name, _)| name.namespace == end).map(|(_, policy)| policy)
    }

    /// The ClusterNetworkPolicies of a tier in the order in which they are asked: by priority, then by name.
    pub(crate) fn cluster_policies(&self, tier: Tier) -> Vec<&Arc<ClusterNetworkPolicy>> {
        let all = self.snapshot.cluster_network_policies.values();
        let mut of_tier: Vec<_> = all.filter(|policy| policy.tier == tier).collect();
        // They come by name, and stay so within a priority.
        of_tier.sort_by_key(|policy| policy.priority);
        of_tier
    }

    fn claimants(&self, address: &IpAddr) -> &[NamespacedName] {
        match self.claimants.get(address) {
            None => &[],
            Some(Claimants::One(name)) => std::slice::from_ref(name),
            Some(Claimants::Several(names)) => names,
        }
    }

    /// The addresses that a pod has reason to call its own.
    fn claimed(&self, name: &NamespacedName) -> &[IpAddr] {
        let ended = self.snapshot.pod_statuses.get(name).is_some_and(|status| status.phase.ended());
        match self.snapshot.pods.get(name) {
            Some(pod) if !pod.host_network && !pod.phase.ended() && !ended => {
                self.snapshot.pod_addresses(name)
            }
            _ => &[],
        }
    }

    fn claim(&mut self, name: &NamespacedName) {
        for address in self.claimed(name).to_vec() {
            let mut names = self.claimants(&address).to_vec();
            names.push(name.clone());
            // Who stays before who goes; then any order, as long as it is always the same.
            let goes =
                |name: &NamespacedName| self.snapshot.pods.get(name).is_some_and(|pod| pod.terminating);
            names.sort_unstable_by_key(|name| (goes(name), name.clone()));
            names.dedup();
            self.put(address, names);
        }
    }

    fn disclaim(&mut self, name: &NamespacedName) {
        for address in self.claimed(name).to_vec() {
            let mut names = self.claimants(&address).to_vec();
            names.retain(|other| other != name);
            self.put(address, names);
        }
    }

    fn file(&mut self, name: &NamespacedName) {
        let Some(pod) = self.snapshot.pods.get(name) else { return };
        for (key, value) in pod.labels.iter() {
            self.labelled.entry(digest(key, value)).or_default().insert(name.clone());
        }
    }

    fn unfile(&mut self, name: &NamespacedName) {
        let Some(pod) = self.snapshot.pods.get(name) else { return };
        for (key, value) in pod.labels.iter() {
            let digest = digest(key, value);
            if self.labelled.get_mut(&digest).is_some_and(|names| names.remove(name) && names.is_empty()) {
                self.labelled.remove(&digest);
            }
        }
    }

    fn put(&mut self, address: IpAddr, names: Vec<NamespacedName>) {
        match <[NamespacedName; 1]>::try_from(names) {
            Ok([name]) => drop(self.claimants.insert(address, Claimants::One(name))),
            Err(none) if none.is_empty() => drop(self.claimants.remove(&address)),
            Err(several) => drop(self.claimants.insert(address, Claimants::Several(several.into()))),
        }
    }
}

fn digest(key: &str, value: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (key, value).hash(&mut hasher);
    hasher.finish()
}

impl Member {
    /// Its name.
    pub fn name(&self) -> &NamespacedName {
        &self.pod.name
    }
}
