//! Pods, and what is known of them once they run.
//!
//! A pod's wish and its fate come from different hands: [`Pod`] is the manifest, [`PodStatus`] is written
//! back by whoever runs the pod. [`Snapshot::pod_addresses`](crate::Snapshot::pod_addresses) joins the two.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use crate::{Labels, NamespacedName};

/// A pod as its manifest wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: NamespacedName,
    /// What tells it from another pod of that name, before or after it, where the store has such a thing: the UID by
    /// which a kubelet speaks of it to the container runtime.
    pub uid: Option<Box<str>>,
    /// Its labels.
    pub labels: Labels,
    /// The annotations that concern networking (bandwidth, further networks, Fairlead's own); all others
    /// are left out, for they can be far larger than the rest.
    pub annotations: Labels,
    /// The node it is bound to.
    pub node: Option<Arc<str>>,
    /// It lives in the node's own network namespace and gets no address of its own.
    pub host_network: bool,
    /// What its containers declare, in the order given.
    pub ports: Arc<[ContainerPort]>,
    /// How far it is.
    pub phase: Phase,
    /// The addresses its manifest's status gives.
    pub addresses: Box<[IpAddr]>,
    /// It is on its way out; it may still run, and its address may already be another's.
    pub terminating: bool,
}

impl Pod {
    /// A pending pod of which only the name is known.
    pub fn named(name: NamespacedName) -> Self {
        Self {
            name,
            uid: None,
            labels: Labels::default(),
            annotations: Labels::default(),
            node: None,
            host_network: false,
            ports: Arc::default(),
            phase: Phase::Pending,
            addresses: Box::default(),
            terminating: false,
        }
    }
}

/// A port that a container declares.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ContainerPort {
    /// Its name, by which Services and policies may call it.
    pub name: Option<Box<str>>,
    /// The port in the pod.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// The node's port that leads to it.
    pub host_port: Option<u16>,
    /// The node's address on which that port is open; all if none.
    pub host_address: Option<IpAddr>,
}

/// What runs above IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Protocol {
    /// TCP, what Kubernetes takes when nothing is said.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// As Kubernetes spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

/// How far a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Phase {
    /// Not all of its containers run yet.
    #[default]
    Pending,
    /// It runs.
    Running,
    /// All containers ended well.
    Succeeded,
    /// All containers ended, one of them badly.
    Failed,
    /// Nobody knows.
    Unknown,
}

impl Phase {
    /// As Kubernetes spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Unknown => "Unknown",
        }
    }

    /// True once the pod has ended: its address is no longer its own.
    pub fn ended(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

/// What became of a pod: where it was placed and the addresses it got, written back by whoever runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodStatus {
    /// The pod.
    pub pod: NamespacedName,
    /// The node it was placed on.
    pub node: Option<Arc<str>>,
    /// How far it is.
    pub phase: Phase,
    /// Its addresses, the main one first.
    pub addresses: Box<[IpAddr]>,
}
