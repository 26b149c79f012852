//! The nouns of a cluster, and the snapshot that holds them.
//!
//! Read [`Snapshot`] first: it is the cluster as one value, and everything clever in Fairlead is a function
//! of it. The nouns are thin on purpose, a node keeps thousands of them in a few megabytes: only what pod
//! networking decides by is here. They know nothing of JSON or YAML; the crate `store` reads and writes
//! those. Maps are ordered, so the same cluster always prints, compiles and compares the same way.
//!
//! The one file format of this crate is [`NodeNetwork`], what a node's agent leaves for the CNI plugin.
//!
//! ```
//! use cluster::{Change, Key, Node, Object, Snapshot};
//!
//! let mut snapshot = Snapshot::default();
//! snapshot.apply(Change::Set(Object::from(Node::named("node1"))));
//! assert!(snapshot.nodes.contains_key("node1"));
//! snapshot.apply(Change::Removed(Key::Node("node1".into())));
//! assert_eq!(snapshot, Snapshot::default());
//! ```

mod attachment;
mod flannel;
mod labels;
mod lease;
mod name;
mod network;
mod node;
mod pod;
mod policy;
mod selector;
mod service;
mod snapshot;

pub use attachment::{ATTACHMENTS, Attachment, Enforced, EnforcedAnswer};
pub use flannel::{flannel_name, is_flannel_name};
pub use labels::Labels;
pub use lease::{
    Backend, Claim, Flannel, Lease, MacAddress, MacAddressError, PublicKey, PublicKeyError, WireGuardKey,
};
pub use name::{NameError, NamespacedName, check_label, check_subdomain};
pub use network::{Enforcement, NodeNetwork, NodeNetworkError};
pub use node::{Namespace, Node};
pub use pod::{ContainerPort, Phase, Pod, PodStatus, Protocol};
pub use policy::{
    AUDIT_ANNOTATION, Action, ClusterNetworkPolicy, ClusterPeer, ClusterPeers, ClusterRule, Direction,
    IpBlock, NAMESPACE_NAME_LABEL, NetworkPolicy, Peer, PodSelector, PortMatch, ResolvedName, Rule, Tier,
    domain_matches, namespace_labels,
};
pub use selector::{Operator, Requirement, Selector};
pub use service::{
    Endpoint, EndpointPort, EndpointSlice, Service, ServiceCidr, ServicePort, ServiceType, TargetPort,
};
pub use snapshot::{Change, Key, Kind, Object, Snapshot};
