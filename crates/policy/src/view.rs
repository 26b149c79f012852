//! The cluster as policies see it: who is behind an address.
//!
//! Read [`Cluster::party`]. A pod counts as long as it has not ended, terminating or not, and has an address of its own:
//! pods in a node's network are that node. An address belongs to one pod at a time. Where two claim it, because one is on
//! its way out and its address was given away already, the one that stays has it.
//!
//! Of this node's pods the node itself knows better which addresses are whose than the API, which hears of them later, and
//! may still have those of a pod that ended: so what is [`Attached`] here goes before what statuses say, and is about the
//! pod with that UID alone, not about another one of its name.
//!
//! An attachment can be there without its pod: the object was deleted by force, or has ended, or another one has its name,
//! and the processes still run until DEL; or ADD came before the object. Its addresses are then orphans, which belong to
//! nobody, whatever statuses say ([`Cluster::orphan`]), and are closed as soon as anybody asks for isolation at all
//! ([`Cluster::closed`]): the policies of a pod must not end before its packets do.

use std::collections::{BTreeMap, HashMap};
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
    attached: BTreeMap<NamespacedName, Box<[Attached]>>,
    /// The nodes at which an address is attached, in order. Nearly always there is one.
    attached_at: BTreeMap<IpAddr, Vec<Arc<str>>>,
    /// How many policies are not in audit.
    enforced: usize,
    claimants: HashMap<IpAddr, Claimants>,
    /// Pods by a digest of a label's key and value, in order; whoever asks looks at the labels themselves. Most of the lists are
    /// short: what tells one workload's pods from all others is a label too.
    labelled: HashMap<u64, Vec<NamespacedName>>,
}

/// The pods that say an address is theirs. Nearly always there is one.
#[derive(Debug, Clone)]
enum Claimants {
    One(NamespacedName),
    Several(Box<[NamespacedName]>),
}

/// A pod's interface on this node, as its CNI plugin made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    /// The node.
    pub node: Arc<str>,
    /// The pod's UID; any pod of that name if it is not known.
    pub uid: Option<Box<str>>,
    /// The addresses that the interface got.
    pub addresses: Box<[IpAddr]>,
}

impl Attached {
    /// Whether it is this pod's.
    fn is_of(&self, pod: &Pod) -> bool {
        match (&self.uid, &pod.uid) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        }
    }
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
        let pods: Vec<Arc<Pod>> = cluster.snapshot.pods.values().cloned().collect();
        let mut labelled: HashMap<u64, Vec<NamespacedName>> = HashMap::new();
        for pod in &pods {
            cluster.claim(&pod.name);
            for (key, value) in pod.labels.iter() {
                labelled.entry(digest(key, value)).or_default().push(pod.name.clone());
            }
        }
        // They came by name, so each list is in order.
        for names in labelled.values_mut() {
            names.dedup();
            names.shrink_to_fit();
        }
        cluster.labelled = labelled;
        let in_audit = cluster.snapshot.network_policies.values().map(|policy| policy.audit);
        let of_cluster = cluster.snapshot.cluster_network_policies.values().map(|policy| policy.audit);
        cluster.enforced = in_audit.chain(of_cluster).filter(|audit| !audit).count();
        cluster
    }

    /// The objects.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The pods whose membership a change can touch: the pod itself, and those that claim an address of it.
    pub(crate) fn touched(&self, change: &Change) -> Vec<NamespacedName> {
        let (Key::Pod(name) | Key::PodStatus(name)) = change.key() else { return Vec::new() };
        match change {
            Change::Set(Object::Pod(pod)) => self.touched_by(&name, &pod.addresses),
            Change::Set(Object::PodStatus(status)) => self.touched_by(&name, &status.addresses),
            _ => self.touched_by(&name, &[]),
        }
    }

    /// The same for a pod that claims these addresses from now on, beside others or instead of them.
    fn touched_by(&self, name: &NamespacedName, claimed: &[IpAddr]) -> Vec<NamespacedName> {
        let held = self.snapshot.pod_addresses(name).iter();
        // A pod's manifest has addresses as well, for when there is no status any more.
        let given = self.snapshot.pods.get(name).into_iter().flat_map(|pod| &pod.addresses);
        let attached = self.attached.get(name).into_iter().flatten().flat_map(|attached| &attached.addresses);
        let addresses = held.chain(given).chain(attached).chain(claimed);
        let mut touched: Vec<NamespacedName> =
            addresses.flat_map(|address| self.claimants(address).to_vec()).collect();
        touched.push(name.clone());
        touched.sort_unstable();
        touched.dedup();
        touched
    }

    /// Takes one step. True if something is different now.
    pub(crate) fn apply(&mut self, change: &Change) -> bool {
        let key = change.key();
        let (Key::Pod(name) | Key::PodStatus(name)) = key else {
            let was = self.enforces(&key);
            let changed = self.snapshot.apply(change.clone());
            self.enforced = self.enforced + self.enforces(&key) - was;
            return changed;
        };
        let of_labels = self.relabels(change);
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

    /// Whether a pod has other labels after a change.
    fn relabels(&self, change: &Change) -> bool {
        let labels = |name: &NamespacedName| self.snapshot.pods.get(name).map(|pod| &pod.labels);
        match change {
            Change::Set(Object::Pod(pod)) => labels(&pod.name) != Some(&pod.labels),
            change => matches!(change.key(), Key::Pod(_)),
        }
    }

    /// The pods whose membership can change when this is what is attached of a pod.
    pub(crate) fn touched_by_attaching(
        &self,
        name: &NamespacedName,
        attached: &[Attached],
    ) -> Vec<NamespacedName> {
        let addresses: Vec<IpAddr> =
            attached.iter().flat_map(|attached| attached.addresses.iter().copied()).collect();
        self.touched_by(name, &addresses)
    }

    /// What of a pod is attached to this node from now on. True if it was different.
    pub(crate) fn attach(&mut self, name: &NamespacedName, attached: &[Attached]) -> bool {
        if self.attached.get(name).map(|known| &**known).unwrap_or_default() == attached {
            return false;
        }
        self.disclaim(name);
        let before = if attached.is_empty() {
            self.attached.remove(name)
        } else {
            self.attached.insert(name.clone(), attached.into())
        };
        self.detach_addresses(&before.unwrap_or_default());
        self.attach_addresses(attached);
        self.claim(name);
        true
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
        let holder = self.claimants(&address).first().filter(|name| self.owns(name, &address));
        Party { address, member: holder.and_then(|name| self.member(name)) }
    }

    /// Where an address is attached of which no living pod is the one that was attached with it.
    pub fn orphan(&self, address: IpAddr) -> Option<&Arc<str>> {
        let node = self.attached_at.get(&address)?.first()?;
        let holder = self.claimants(&address).first();
        holder.is_none_or(|name| !self.has_attached(name, &address)).then_some(node)
    }

    /// The same, if nothing may pass there: where any policy is enforced, those for this pod are not known to be none.
    pub fn closed(&self, address: IpAddr) -> Option<&Arc<str>> {
        self.orphan(address).filter(|_| self.is_guarded())
    }

    /// Whether anybody asks for isolation.
    pub(crate) fn is_guarded(&self) -> bool {
        self.enforced > 0
    }

    /// The addresses that are attached of a pod of that name, whichever pod that is.
    pub(crate) fn attached_addresses(&self, name: &NamespacedName) -> Vec<IpAddr> {
        let attached = self.attached.get(name).into_iter().flatten();
        attached.flat_map(|attached| attached.addresses.iter().copied()).collect()
    }

    /// All addresses that are attached.
    pub(crate) fn all_attached_addresses(&self) -> Vec<IpAddr> {
        self.attached_at.keys().copied().collect()
    }

    /// The pod of that name as a member of the network.
    pub fn member(&self, name: &NamespacedName) -> Option<Member> {
        self.snapshot.pods.get(name).and_then(|pod| self.member_of(pod))
    }

    /// A pod of the snapshot as a member of the network.
    pub(crate) fn member_of(&self, pod: &Arc<Pod>) -> Option<Member> {
        let name = &pod.name;
        let mut addresses = self.claimed_of(pod);
        addresses.retain(|address| self.owns(name, address));
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.is_empty() {
            return None;
        }
        let attached = self.attached_of(pod).map(|attached| &attached.node).next();
        let node = attached.or(pod.node.as_ref()).or_else(|| self.snapshot.pod_node(name)).cloned();
        Some(Member { pod: pod.clone(), addresses: addresses.into(), node })
    }

    /// The node of a pod: where it is attached, else where it is said to be.
    pub(crate) fn node_of(&self, name: &NamespacedName) -> Option<&Arc<str>> {
        let pod = self.snapshot.pods.get(name);
        let attached = pod.and_then(|pod| self.attached_of(pod).map(|attached| &attached.node).next());
        attached.or_else(|| self.snapshot.pod_node(name))
    }

    /// What is attached of a pod, which is the one that has its name now.
    fn attached_of(&self, pod: &Pod) -> impl Iterator<Item = &Attached> {
        let all = self.attached.get(&pod.name).into_iter().flatten();
        all.filter(|attached| attached.is_of(pod))
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
    pub(crate) fn labelled(&self, (key, value): (&str, &str)) -> &[NamespacedName] {
        self.labelled.get(&digest(key, value)).map_or(&[], Vec::as_slice)
    }

    /// Whether a namespace has an object or a pod.
    pub(crate) fn has_namespace(&self, name: &Arc<str>) -> bool {
        self.snapshot.namespaces.contains_key(name) || self.pods_of(name).next().is_some()
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
    fn claimed(&self, name: &NamespacedName) -> Vec<IpAddr> {
        self.snapshot.pods.get(name).map_or(Vec::new(), |pod| self.claimed_of(pod))
    }

    fn claimed_of(&self, pod: &Pod) -> Vec<IpAddr> {
        let status = self.snapshot.pod_statuses.get(&pod.name);
        if pod.host_network || pod.phase.ended() || status.is_some_and(|status| status.phase.ended()) {
            return Vec::new();
        }
        let attached = self.attached_of(pod).flat_map(|attached| attached.addresses.iter());
        let written = status.map(|status| &*status.addresses).filter(|addresses| !addresses.is_empty());
        attached.chain(written.unwrap_or(&pod.addresses)).copied().collect()
    }

    /// Whether an address is this pod's: nobody goes before it, and where the address is attached, it is to this pod.
    fn owns(&self, name: &NamespacedName, address: &IpAddr) -> bool {
        self.claimants(address).first() == Some(name)
            && (!self.attached_at.contains_key(address) || self.has_attached(name, address))
    }

    /// How many policies that key stands for that are not in audit.
    fn enforces(&self, key: &Key) -> usize {
        usize::from(match key {
            Key::NetworkPolicy(name) => {
                self.snapshot.network_policies.get(name).is_some_and(|policy| !policy.audit)
            }
            Key::ClusterNetworkPolicy(name) => {
                self.snapshot.cluster_network_policies.get(name).is_some_and(|policy| !policy.audit)
            }
            _ => false,
        })
    }

    fn attach_addresses(&mut self, attached: &[Attached]) {
        for Attached { node, addresses, .. } in attached {
            for address in addresses {
                let nodes = self.attached_at.entry(*address).or_default();
                nodes.push(node.clone());
                nodes.sort_unstable();
            }
        }
    }

    fn detach_addresses(&mut self, attached: &[Attached]) {
        for Attached { node, addresses, .. } in attached {
            for address in addresses {
                let Some(nodes) = self.attached_at.get_mut(address) else { continue };
                if let Some(place) = nodes.iter().position(|other| other == node) {
                    nodes.remove(place);
                }
                if nodes.is_empty() {
                    self.attached_at.remove(address);
                }
            }
        }
    }

    /// Whether the pod's interface on this node has the address.
    fn has_attached(&self, name: &NamespacedName, address: &IpAddr) -> bool {
        let pod = self.snapshot.pods.get(name);
        pod.is_some_and(|pod| self.attached_of(pod).any(|attached| attached.addresses.contains(address)))
    }

    fn claim(&mut self, name: &NamespacedName) {
        for address in self.claimed(name) {
            let mut names = self.claimants(&address).to_vec();
            names.push(name.clone());
            if names.len() == 1 {
                self.put(address, names);
                continue;
            }
            // Who is attached here before who is said to have it; who stays before who goes; then any order, as long as it
            // is always the same.
            let goes =
                |name: &NamespacedName| self.snapshot.pods.get(name).is_some_and(|pod| pod.terminating);
            names.sort_unstable_by_key(|name| (!self.has_attached(name, &address), goes(name), name.clone()));
            names.dedup();
            self.put(address, names);
        }
    }

    fn disclaim(&mut self, name: &NamespacedName) {
        for address in self.claimed(name) {
            let mut names = self.claimants(&address).to_vec();
            names.retain(|other| other != name);
            self.put(address, names);
        }
    }

    fn file(&mut self, name: &NamespacedName) {
        let Some(pod) = self.snapshot.pods.get(name) else { return };
        for (key, value) in pod.labels.iter() {
            let names = self.labelled.entry(digest(key, value)).or_default();
            if let Err(place) = names.binary_search(name) {
                // A list that doubled would be half empty.
                if names.len() == names.capacity() {
                    names.reserve_exact(1 + names.len() / 8);
                }
                names.insert(place, name.clone());
            }
        }
    }

    fn unfile(&mut self, name: &NamespacedName) {
        let Some(pod) = self.snapshot.pods.get(name) else { return };
        for (key, value) in pod.labels.iter() {
            let digest = digest(key, value);
            let Some(names) = self.labelled.get_mut(&digest) else { continue };
            if let Ok(place) = names.binary_search(name) {
                names.remove(place);
            }
            if names.is_empty() {
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
