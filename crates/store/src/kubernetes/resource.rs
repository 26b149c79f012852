//! The resources of the Kubernetes API that are read, and how each is asked for.
//!
//! Read [`Resource`]: its path, its RBAC words, and the keys of the cluster's objects that one of its objects stands
//! for. Namespaces are asked for as metadata only, since that is all we read of them. Claims live in one namespace
//! and are told from other people's Lease objects by a label, so the API server leaves those out.

use std::path::PathBuf;

use cluster::{Key, Kind, NamespacedName};

use super::claim;
use crate::mirror::Layout;

/// A resource: what a URL path of the API server leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Resource {
    /// Nodes, with the leases in their annotations.
    Nodes,
    /// Namespaces.
    Namespaces,
    /// Pods.
    Pods,
    /// Services.
    Services,
    /// EndpointSlices.
    EndpointSlices,
    /// Lease objects (`coordination.k8s.io`) that are claims of pod CIDRs.
    Claims,
    /// NetworkPolicies.
    NetworkPolicies,
    /// ClusterNetworkPolicies, which an API server has only where somebody defined them.
    ClusterNetworkPolicies,
    /// ServiceCIDRs, which API servers before Kubernetes 1.33 do not have.
    ServiceCidrs,
}

impl Resource {
    /// All of them.
    pub(crate) const ALL: [Self; 9] = [
        Self::Nodes,
        Self::Namespaces,
        Self::Pods,
        Self::Services,
        Self::EndpointSlices,
        Self::Claims,
        Self::NetworkPolicies,
        Self::ClusterNetworkPolicies,
        Self::ServiceCidrs,
    ];

    /// The resources that tell of these kinds.
    pub(crate) fn of(kinds: &[Kind]) -> Vec<Self> {
        let wanted = |resource: &Self| resource.kinds().iter().any(|kind| kinds.contains(kind));
        Self::ALL.into_iter().filter(wanted).collect()
    }

    /// The resource that tells of a kind. None for the status of pods, which stands in the pods themselves.
    pub(crate) fn of_kind(kind: Kind) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.kinds().contains(&kind))
    }

    /// The kinds of objects that it tells of.
    pub(crate) fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Nodes => &[Kind::Node, Kind::Lease],
            Self::Namespaces => &[Kind::Namespace],
            Self::Pods => &[Kind::Pod],
            Self::Services => &[Kind::Service],
            Self::EndpointSlices => &[Kind::EndpointSlice],
            Self::Claims => &[Kind::Claim],
            Self::NetworkPolicies => &[Kind::NetworkPolicy],
            Self::ClusterNetworkPolicies => &[Kind::ClusterNetworkPolicy],
            Self::ServiceCidrs => &[Kind::ServiceCidr],
        }
    }

    /// The API group, as a role spells it.
    pub(crate) fn group(self) -> &'static str {
        match self {
            Self::EndpointSlices => "discovery.k8s.io",
            Self::Claims => "coordination.k8s.io",
            Self::NetworkPolicies | Self::ServiceCidrs => "networking.k8s.io",
            Self::ClusterNetworkPolicies => "policy.networking.k8s.io",
            _ => "",
        }
    }

    /// The version of the group that is asked for.
    pub(crate) fn version(self) -> &'static str {
        if self == Self::ClusterNetworkPolicies { "v1alpha2" } else { "v1" }
    }

    /// Whether it is, beside pods and nodes, what policies decide by.
    pub(crate) fn decides_on_pods(self) -> bool {
        matches!(self, Self::Namespaces | Self::NetworkPolicies | Self::ClusterNetworkPolicies)
    }

    /// Whether an API server knows it only where somebody has defined it, or where it is new enough.
    pub(crate) fn may_be_undefined(self) -> bool {
        matches!(self, Self::ClusterNetworkPolicies | Self::ServiceCidrs)
    }

    /// Whether it is the server's own, so that it comes with another server and no sooner.
    pub(crate) fn is_built_in(self) -> bool {
        self != Self::ClusterNetworkPolicies
    }

    /// Whether an agent can do without it, so that a role which lacks it, as one of an older version does, keeps no node from
    /// having a network.
    pub(crate) fn is_dispensable(self) -> bool {
        self == Self::ServiceCidrs
    }

    /// The resource, as a role spells it.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Namespaces => "namespaces",
            Self::Pods => "pods",
            Self::Services => "services",
            Self::EndpointSlices => "endpointslices",
            Self::Claims => "leases",
            Self::NetworkPolicies => "networkpolicies",
            Self::ClusterNetworkPolicies => "clusternetworkpolicies",
            Self::ServiceCidrs => "servicecidrs",
        }
    }

    /// Whether it is asked for in one namespace only, that of Fairlead's own objects.
    pub(crate) fn is_ours(self) -> bool {
        self == Self::Claims
    }

    /// The path of the whole list; `own` is the namespace of Fairlead's own objects.
    pub(crate) fn path(self, own: &str) -> String {
        let plural = self.plural();
        match self.group() {
            "" => format!("/api/v1/{plural}"),
            group if self.is_ours() => format!("/apis/{group}/v1/namespaces/{own}/{plural}"),
            group => format!("/apis/{group}/{}/{plural}", self.version()),
        }
    }

    /// The path of the list of what is in a namespace.
    pub(crate) fn path_within(self, namespace: &str) -> String {
        match self.group() {
            "" => format!("/api/v1/namespaces/{namespace}/{}", self.plural()),
            group => {
                format!("/apis/{group}/{}/namespaces/{namespace}/{}", self.version(), self.plural())
            }
        }
    }

    /// The path of one object.
    pub(crate) fn path_of(self, key: &Key, own: &str) -> String {
        let (group, plural) = (self.group(), self.plural());
        let version = self.version();
        let root =
            if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        match key {
            Key::Pod(name)
            | Key::PodStatus(name)
            | Key::Service(name)
            | Key::EndpointSlice(name)
            | Key::NetworkPolicy(name) => {
                format!("{root}/namespaces/{}/{plural}/{}", name.namespace, name.name)
            }
            Key::Node(name)
            | Key::Namespace(name)
            | Key::Lease(name)
            | Key::ClusterNetworkPolicy(name)
            | Key::ServiceCidr(name) => format!("{root}/{plural}/{name}"),
            Key::Claim(cidr) => format!("{root}/namespaces/{own}/{plural}/{}", claim::name(*cidr)),
        }
    }

    /// What is to stand in the query of a list or watch, so that only ours are told.
    pub(crate) fn selector(self) -> &'static str {
        // The label of `claim::LABEL`, with its slash as a URL has it.
        if self.is_ours() { "&labelSelector=fairlead.io%2Fclaim%3Dpod-cidr" } else { "" }
    }

    /// The form to ask for.
    pub(crate) fn accept(self, list: bool) -> &'static str {
        match (self, list) {
            (Self::Namespaces, true) => {
                "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
            }
            (Self::Namespaces, false) => {
                "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
            }
            _ => "application/json",
        }
    }

    /// How many objects to ask for at once: what is on its way is in memory, and Nodes are the largest, for they
    /// list the images they hold.
    pub(crate) fn page(self) -> u32 {
        match self {
            Self::Nodes => 100,
            Self::Pods | Self::EndpointSlices => 250,
            Self::Namespaces
            | Self::Services
            | Self::Claims
            | Self::NetworkPolicies
            | Self::ClusterNetworkPolicies
            | Self::ServiceCidrs => 500,
        }
    }

    /// The keys of all that an object of this name may stand for; none if it can have no such name.
    pub(crate) fn keys(self, namespace: &str, name: &str) -> Vec<Key> {
        let namespaced = || NamespacedName::new(namespace, name);
        match self {
            Self::Nodes => vec![Key::Node(name.into()), Key::Lease(name.into())],
            Self::Namespaces => vec![Key::Namespace(name.into())],
            Self::Pods => vec![Key::Pod(namespaced())],
            Self::Services => vec![Key::Service(namespaced())],
            Self::EndpointSlices => vec![Key::EndpointSlice(namespaced())],
            Self::Claims => claim::cidr(name).map(Key::Claim).into_iter().collect(),
            Self::NetworkPolicies => vec![Key::NetworkPolicy(namespaced())],
            Self::ClusterNetworkPolicies => vec![Key::ClusterNetworkPolicy(name.into())],
            Self::ServiceCidrs => vec![Key::ServiceCidr(name.into())],
        }
    }
}

/// The layout of the API, given the namespace of Fairlead's own objects.
#[derive(Debug)]
pub(crate) struct Namespace(pub(crate) String);

impl Layout for Namespace {
    type Part = Resource;
    const LOST: &'static str = "the API server's versions run backwards, as after etcd was restored; restart Fairlead to \
                                accept it as it is";

    fn parts(&self, kinds: &[Kind]) -> Vec<Resource> {
        Resource::of(kinds)
    }

    fn kinds(part: Resource) -> &'static [Kind] {
        part.kinds()
    }

    fn place(&self, key: &Key) -> PathBuf {
        Resource::of_kind(key.kind())
            .map(|resource| resource.path_of(key, &self.0))
            .unwrap_or_default()
            .into()
    }
}

#[cfg(test)]
mod tests {
    use cluster::{Key, Kind, NamespacedName};

    use super::{Resource, claim};

    #[test]
    fn every_kind_but_the_status_of_pods_has_a_resource_and_only_one() {
        for kind in Kind::ALL {
            let of: Vec<_> =
                Resource::ALL.into_iter().filter(|resource| resource.kinds().contains(&kind)).collect();
            assert_eq!(of.len(), usize::from(kind != Kind::PodStatus), "{kind:?}");
            assert_eq!(Resource::of_kind(kind), of.first().copied());
        }
        assert_eq!(
            Resource::of(&[Kind::Lease, Kind::Claim, Kind::Node]),
            [Resource::Nodes, Resource::Claims]
        );
        assert_eq!(Resource::of(&[Kind::PodStatus]), []);
    }

    #[test]
    fn paths_are_those_of_the_api() {
        let path = |resource: Resource, key: Key| resource.path_of(&key, "kube-system");
        assert_eq!(Resource::Nodes.path("kube-system"), "/api/v1/nodes");
        assert_eq!(path(Resource::Nodes, Key::Lease("node1".into())), "/api/v1/nodes/node1");
        let slice = Key::EndpointSlice(NamespacedName::new("shop", "web-x"));
        assert_eq!(Resource::EndpointSlices.path("x"), "/apis/discovery.k8s.io/v1/endpointslices");
        assert_eq!(
            path(Resource::EndpointSlices, slice),
            "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices/web-x"
        );
        let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
        assert_eq!(Resource::Claims.path("kube-system"), leases);
        let claim = Key::Claim("10.244.3.0/24".parse().unwrap());
        assert_eq!(path(Resource::Claims, claim), format!("{leases}/fairlead-10-244-3-0-24"));
    }

    #[test]
    fn the_selector_is_the_label_that_claims_bear() {
        let (key, value) = claim::LABEL;
        let selector = format!("&labelSelector={}%3D{value}", key.replace('/', "%2F"));
        assert_eq!(Resource::Claims.selector(), selector);
    }
}
