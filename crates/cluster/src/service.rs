//! Services, their endpoints, and the networks of their addresses: carried whole enough to be objects of the snapshot.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::{Labels, NamespacedName, Protocol};

/// A stable front for a set of pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: NamespacedName,
    /// Its labels.
    pub labels: Labels,
    /// How it is reached.
    pub service_type: ServiceType,
    /// The pods behind it, by labels; empty means that someone else keeps its EndpointSlices.
    pub selector: Labels,
    /// It wants no cluster address (`clusterIP: None`).
    pub headless: bool,
    /// Its addresses within the cluster, at most one of each family.
    pub cluster_addresses: Box<[IpAddr]>,
    /// Its ports, in the order given.
    pub ports: Box<[ServicePort]>,
    /// The name that a Service of type ExternalName stands for.
    pub external_name: Option<Box<str>>,
}

/// How a Service is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum ServiceType {
    /// At an address within the cluster.
    #[default]
    ClusterIp,
    /// Also at a port of every node.
    NodePort,
    /// Also at an address outside the cluster.
    LoadBalancer,
    /// A name only.
    ExternalName,
}

impl ServiceType {
    /// As Kubernetes spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::NodePort => "NodePort",
            Self::LoadBalancer => "LoadBalancer",
            Self::ExternalName => "ExternalName",
        }
    }
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; may be missing when it is the only one.
    pub name: Option<Box<str>>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port at the Service's address.
    pub port: u16,
    /// The port of the pods behind it.
    pub target: TargetPort,
    /// The port on every node, for the types that have one.
    pub node_port: Option<u16>,
}

/// A pod's port, by number or by the name a container gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetPort {
    /// This number.
    Number(u16),
    /// Whatever number the pod gives this name.
    Name(Box<str>),
}

/// Networks that Services get their addresses from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceCidr {
    /// Its name; that of the API server's own is `kubernetes`.
    pub name: Arc<str>,
    /// The networks, at most one of each family.
    pub cidrs: Box<[IpNet]>,
}

/// Part of the endpoints of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its name.
    pub name: NamespacedName,
    /// The Service it belongs to, in the same namespace.
    pub service: Option<Arc<str>>,
    /// Its labels.
    pub labels: Labels,
    /// Its endpoints, in the order given.
    pub endpoints: Box<[Endpoint]>,
    /// The ports that every endpoint of it serves.
    pub ports: Box<[EndpointPort]>,
}

/// One pod, or other server, behind a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its addresses, all of the slice's family; consumers use the first.
    pub addresses: Box<[IpAddr]>,
    /// May take new connections.
    pub ready: bool,
    /// Serves, though it may be on its way out.
    pub serving: bool,
    /// Is on its way out.
    pub terminating: bool,
    /// The node it runs on.
    pub node: Option<Arc<str>>,
    /// The pod it is, in the slice's namespace.
    pub pod: Option<Arc<str>>,
}

/// A port that the endpoints of a slice serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointPort {
    /// The name of the Service's port it answers for.
    pub name: Option<Box<str>>,
    /// Its protocol.
    pub protocol: Protocol,
    /// The number; none stands for all ports.
    pub port: Option<u16>,
}
