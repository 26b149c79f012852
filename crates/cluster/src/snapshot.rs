//! The cluster as one value.
//!
//! [`Snapshot`] holds every object by name; [`Change`] is one step from one snapshot to the next. Objects
//! are behind [`Arc`], so copying a snapshot or handing one object on copies no text.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::{
    Claim, ClusterNetworkPolicy, EndpointSlice, Lease, Namespace, NamespacedName, NetworkPolicy, Node, Pod,
    PodStatus, Service, ServiceCidr,
};

/// Every object of the cluster that pod networking decides by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Nodes by name.
    pub nodes: BTreeMap<Arc<str>, Arc<Node>>,
    /// Namespaces by name; one that only its objects mention has no entry.
    pub namespaces: BTreeMap<Arc<str>, Arc<Namespace>>,
    /// Pods by name.
    pub pods: BTreeMap<NamespacedName, Arc<Pod>>,
    /// What became of pods, by the pod's name; it may outlive the pod.
    pub pod_statuses: BTreeMap<NamespacedName, Arc<PodStatus>>,
    /// Services by name.
    pub services: BTreeMap<NamespacedName, Arc<Service>>,
    /// EndpointSlices by name.
    pub endpoint_slices: BTreeMap<NamespacedName, Arc<EndpointSlice>>,
    /// Leases by node.
    pub leases: BTreeMap<Arc<str>, Arc<Lease>>,
    /// Claims by pod CIDR.
    pub claims: BTreeMap<IpNet, Arc<Claim>>,
    /// NetworkPolicies by name.
    pub network_policies: BTreeMap<NamespacedName, Arc<NetworkPolicy>>,
    /// ClusterNetworkPolicies by name.
    pub cluster_network_policies: BTreeMap<Arc<str>, Arc<ClusterNetworkPolicy>>,
    /// ServiceCIDRs by name.
    pub service_cidrs: BTreeMap<Arc<str>, Arc<ServiceCidr>>,
}

/// One step from a snapshot to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The object is there now, new or instead of an older form of it.
    Set(Object),
    /// The object is gone.
    Removed(Key),
}

impl Change {
    /// The object that changed.
    pub fn key(&self) -> Key {
        match self {
            Self::Set(object) => object.key(),
            Self::Removed(key) => key.clone(),
        }
    }
}

/// One object of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// A node.
    Node(Arc<Node>),
    /// A namespace.
    Namespace(Arc<Namespace>),
    /// A pod.
    Pod(Arc<Pod>),
    /// What became of a pod.
    PodStatus(Arc<PodStatus>),
    /// A Service.
    Service(Arc<Service>),
    /// Part of a Service's endpoints.
    EndpointSlice(Arc<EndpointSlice>),
    /// A node's lease.
    Lease(Arc<Lease>),
    /// A node's right to a pod CIDR.
    Claim(Arc<Claim>),
    /// A policy of a namespace.
    NetworkPolicy(Arc<NetworkPolicy>),
    /// A policy of the whole cluster.
    ClusterNetworkPolicy(Arc<ClusterNetworkPolicy>),
    /// Networks of Services' addresses.
    ServiceCidr(Arc<ServiceCidr>),
}

/// What an object is called: its kind, and its name within the kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// A node.
    Node(Arc<str>),
    /// A namespace.
    Namespace(Arc<str>),
    /// A pod.
    Pod(NamespacedName),
    /// What became of a pod, by the pod's name.
    PodStatus(NamespacedName),
    /// A Service.
    Service(NamespacedName),
    /// Part of a Service's endpoints.
    EndpointSlice(NamespacedName),
    /// A lease, by its node.
    Lease(Arc<str>),
    /// A claim, by its pod CIDR.
    Claim(IpNet),
    /// A policy of a namespace.
    NetworkPolicy(NamespacedName),
    /// A policy of the whole cluster.
    ClusterNetworkPolicy(Arc<str>),
    /// Networks of Services' addresses.
    ServiceCidr(Arc<str>),
}

/// The kinds of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// [`Node`].
    Node,
    /// [`Namespace`].
    Namespace,
    /// [`Pod`].
    Pod,
    /// [`PodStatus`].
    PodStatus,
    /// [`Service`].
    Service,
    /// [`EndpointSlice`].
    EndpointSlice,
    /// [`Lease`].
    Lease,
    /// [`Claim`].
    Claim,
    /// [`NetworkPolicy`].
    NetworkPolicy,
    /// [`ClusterNetworkPolicy`].
    ClusterNetworkPolicy,
    /// [`ServiceCidr`].
    ServiceCidr,
}

impl Kind {
    /// All of them, in the order of [`Snapshot::objects`].
    pub const ALL: [Self; 11] = [
        Self::Node,
        Self::Namespace,
        Self::Pod,
        Self::PodStatus,
        Self::Service,
        Self::EndpointSlice,
        Self::Lease,
        Self::Claim,
        Self::NetworkPolicy,
        Self::ClusterNetworkPolicy,
        Self::ServiceCidr,
    ];
}

impl Snapshot {
    /// Takes one step. True if the snapshot is another one now.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Set(object) => self.set(object),
            Change::Removed(key) => self.remove(&key),
        }
    }

    /// The object of that key.
    pub fn object(&self, key: &Key) -> Option<Object> {
        match key {
            Key::Node(name) => self.nodes.get(name).cloned().map(Object::Node),
            Key::Namespace(name) => self.namespaces.get(name).cloned().map(Object::Namespace),
            Key::Pod(name) => self.pods.get(name).cloned().map(Object::Pod),
            Key::PodStatus(name) => self.pod_statuses.get(name).cloned().map(Object::PodStatus),
            Key::Service(name) => self.services.get(name).cloned().map(Object::Service),
            Key::EndpointSlice(name) => self.endpoint_slices.get(name).cloned().map(Object::EndpointSlice),
            Key::Lease(node) => self.leases.get(node).cloned().map(Object::Lease),
            Key::Claim(cidr) => self.claims.get(cidr).cloned().map(Object::Claim),
            Key::NetworkPolicy(name) => self.network_policies.get(name).cloned().map(Object::NetworkPolicy),
            Key::ClusterNetworkPolicy(name) => {
                self.cluster_network_policies.get(name).cloned().map(Object::ClusterNetworkPolicy)
            }
            Key::ServiceCidr(name) => self.service_cidrs.get(name).cloned().map(Object::ServiceCidr),
        }
    }

    /// Every object, kind by kind, in the order of the names.
    pub fn objects(&self) -> impl Iterator<Item = Object> {
        let nodes = self.nodes.values().cloned().map(Object::Node);
        let namespaces = self.namespaces.values().cloned().map(Object::Namespace);
        let pods = self.pods.values().cloned().map(Object::Pod);
        let statuses = self.pod_statuses.values().cloned().map(Object::PodStatus);
        let services = self.services.values().cloned().map(Object::Service);
        let slices = self.endpoint_slices.values().cloned().map(Object::EndpointSlice);
        let leases = self.leases.values().cloned().map(Object::Lease);
        let claims = self.claims.values().cloned().map(Object::Claim);
        let policies = self.network_policies.values().cloned().map(Object::NetworkPolicy);
        let of_cluster = self.cluster_network_policies.values().cloned().map(Object::ClusterNetworkPolicy);
        let networks = self.service_cidrs.values().cloned().map(Object::ServiceCidr);
        nodes
            .chain(namespaces)
            .chain(pods)
            .chain(statuses)
            .chain(services)
            .chain(slices)
            .chain(leases)
            .chain(claims)
            .chain(policies)
            .chain(of_cluster)
            .chain(networks)
    }

    /// The addresses of a pod: those written back, else those its manifest gives.
    pub fn pod_addresses(&self, name: &NamespacedName) -> &[IpAddr] {
        let written = self.pod_statuses.get(name).map(|status| &*status.addresses);
        let given = self.pods.get(name).map(|pod| &*pod.addresses);
        written.filter(|addresses| !addresses.is_empty()).or(given).unwrap_or_default()
    }

    /// The node of a pod: the one its manifest names, else the one it was placed on.
    pub fn pod_node(&self, name: &NamespacedName) -> Option<&Arc<str>> {
        let given = self.pods.get(name).and_then(|pod| pod.node.as_ref());
        given.or_else(|| self.pod_statuses.get(name).and_then(|status| status.node.as_ref()))
    }

    /// The pod CIDRs that `node` has claimed, in order.
    pub fn claims_of(&self, node: &str) -> impl Iterator<Item = IpNet> {
        self.claims.values().filter(move |claim| &*claim.node == node).map(|claim| claim.cidr)
    }

    fn set(&mut self, object: Object) -> bool {
        match object {
            Object::Node(node) => put(&mut self.nodes, node.name.clone(), node),
            Object::Namespace(namespace) => put(&mut self.namespaces, namespace.name.clone(), namespace),
            Object::Pod(pod) => put(&mut self.pods, pod.name.clone(), pod),
            Object::PodStatus(status) => put(&mut self.pod_statuses, status.pod.clone(), status),
            Object::Service(service) => put(&mut self.services, service.name.clone(), service),
            Object::EndpointSlice(slice) => put(&mut self.endpoint_slices, slice.name.clone(), slice),
            Object::Lease(lease) => put(&mut self.leases, lease.node.clone(), lease),
            Object::Claim(claim) => put(&mut self.claims, claim.cidr, claim),
            Object::NetworkPolicy(policy) => put(&mut self.network_policies, policy.name.clone(), policy),
            Object::ClusterNetworkPolicy(policy) => {
                put(&mut self.cluster_network_policies, policy.name.clone(), policy)
            }
            Object::ServiceCidr(networks) => put(&mut self.service_cidrs, networks.name.clone(), networks),
        }
    }

    fn remove(&mut self, key: &Key) -> bool {
        match key {
            Key::Node(name) => self.nodes.remove(name).is_some(),
            Key::Namespace(name) => self.namespaces.remove(name).is_some(),
            Key::Pod(name) => self.pods.remove(name).is_some(),
            Key::PodStatus(name) => self.pod_statuses.remove(name).is_some(),
            Key::Service(name) => self.services.remove(name).is_some(),
            Key::EndpointSlice(name) => self.endpoint_slices.remove(name).is_some(),
            Key::Lease(node) => self.leases.remove(node).is_some(),
            Key::Claim(cidr) => self.claims.remove(cidr).is_some(),
            Key::NetworkPolicy(name) => self.network_policies.remove(name).is_some(),
            Key::ClusterNetworkPolicy(name) => self.cluster_network_policies.remove(name).is_some(),
            Key::ServiceCidr(name) => self.service_cidrs.remove(name).is_some(),
        }
    }
}

fn put<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, Arc<V>>, key: K, value: Arc<V>) -> bool {
    if map.get(&key).is_some_and(|have| *have == value) {
        return false;
    }
    map.insert(key, value);
    true
}

impl Object {
    /// What it is called.
    pub fn key(&self) -> Key {
        match self {
            Self::Node(node) => Key::Node(node.name.clone()),
            Self::Namespace(namespace) => Key::Namespace(namespace.name.clone()),
            Self::Pod(pod) => Key::Pod(pod.name.clone()),
            Self::PodStatus(status) => Key::PodStatus(status.pod.clone()),
            Self::Service(service) => Key::Service(service.name.clone()),
            Self::EndpointSlice(slice) => Key::EndpointSlice(slice.name.clone()),
            Self::Lease(lease) => Key::Lease(lease.node.clone()),
            Self::Claim(claim) => Key::Claim(claim.cidr),
            Self::NetworkPolicy(policy) => Key::NetworkPolicy(policy.name.clone()),
            Self::ClusterNetworkPolicy(policy) => Key::ClusterNetworkPolicy(policy.name.clone()),
            Self::ServiceCidr(networks) => Key::ServiceCidr(networks.name.clone()),
        }
    }
}

impl Key {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Node(_) => Kind::Node,
            Self::Namespace(_) => Kind::Namespace,
            Self::Pod(_) => Kind::Pod,
            Self::PodStatus(_) => Kind::PodStatus,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::Lease(_) => Kind::Lease,
            Self::Claim(_) => Kind::Claim,
            Self::NetworkPolicy(_) => Kind::NetworkPolicy,
            Self::ClusterNetworkPolicy(_) => Kind::ClusterNetworkPolicy,
            Self::ServiceCidr(_) => Kind::ServiceCidr,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(out, "node {name}"),
            Self::Namespace(name) => write!(out, "namespace {name}"),
            Self::Pod(name) => write!(out, "pod {name}"),
            Self::PodStatus(name) => write!(out, "status of pod {name}"),
            Self::Service(name) => write!(out, "service {name}"),
            Self::EndpointSlice(name) => write!(out, "endpoint slice {name}"),
            Self::Lease(node) => write!(out, "lease of node {node}"),
            Self::Claim(cidr) => write!(out, "claim of {cidr}"),
            Self::NetworkPolicy(name) => write!(out, "network policy {name}"),
            Self::ClusterNetworkPolicy(name) => write!(out, "cluster network policy {name}"),
            Self::ServiceCidr(name) => write!(out, "ServiceCIDR {name}"),
        }
    }
}

impl From<Node> for Object {
    fn from(node: Node) -> Self {
        Self::Node(Arc::new(node))
    }
}

impl From<Namespace> for Object {
    fn from(namespace: Namespace) -> Self {
        Self::Namespace(Arc::new(namespace))
    }
}

impl From<Pod> for Object {
    fn from(pod: Pod) -> Self {
        Self::Pod(Arc::new(pod))
    }
}

impl From<PodStatus> for Object {
    fn from(status: PodStatus) -> Self {
        Self::PodStatus(Arc::new(status))
    }
}

impl From<Service> for Object {
    fn from(service: Service) -> Self {
        Self::Service(Arc::new(service))
    }
}

impl From<EndpointSlice> for Object {
    fn from(slice: EndpointSlice) -> Self {
        Self::EndpointSlice(Arc::new(slice))
    }
}

impl From<Lease> for Object {
    fn from(lease: Lease) -> Self {
        Self::Lease(Arc::new(lease))
    }
}

impl From<Claim> for Object {
    fn from(claim: Claim) -> Self {
        Self::Claim(Arc::new(claim))
    }
}

impl From<NetworkPolicy> for Object {
    fn from(policy: NetworkPolicy) -> Self {
        Self::NetworkPolicy(Arc::new(policy))
    }
}

impl From<ServiceCidr> for Object {
    fn from(networks: ServiceCidr) -> Self {
        Self::ServiceCidr(Arc::new(networks))
    }
}

impl From<ClusterNetworkPolicy> for Object {
    fn from(policy: ClusterNetworkPolicy) -> Self {
        Self::ClusterNetworkPolicy(Arc::new(policy))
    }
}
