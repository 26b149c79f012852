//! Nodes and namespaces.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::Labels;

/// A machine that runs pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name, unique in the cluster.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Labels,
    /// Its addresses of type InternalIP, in the order given; either family.
    pub addresses: Box<[IpAddr]>,
    /// The pod CIDRs that the cluster gave it, at most one of each family; empty if its agent is to claim
    /// some out of the cluster's.
    pub pod_cidrs: Box<[IpNet]>,
    /// Whether the cluster keeps pods off it until its network is said to be there: the startup taint
    /// `fairlead.io/not-ready`, or the condition `NetworkUnavailable`. Either may come back, with a Node object that is
    /// made anew or by somebody else's hand.
    pub awaits_network: bool,
    /// What its peers are to be told as its addresses, as a person wrote it. The node's own agent reads it: a slip in it is to
    /// cost nothing else that the Node says, and no other node anything.
    pub advertise: Option<Box<str>>,
}

impl Node {
    /// A node of which only the name is known.
    pub fn named(name: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            labels: Labels::default(),
            addresses: Box::default(),
            pod_cidrs: Box::default(),
            awaits_network: false,
            advertise: None,
        }
    }
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: Arc<str>,
    /// Its labels.
    pub labels: Labels,
}
