//! What a lab is made of, as `fairlead lab list -o json` prints it: the contract with outside tests.
//!
//! Read [`Listing`] first. Field names are the ones of the project's design page; a field is added, never
//! renamed.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A whole lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listing {
    /// The lab's name.
    pub name: String,
    /// The directory of manifests that is the cluster's state.
    pub store: String,
    /// The nodes, in the order of their numbers.
    pub nodes: Vec<ListedNode>,
    /// The pods, by namespace and name.
    pub pods: Vec<ListedPod>,
    /// Files of the store that cannot be used, with line and reason; there is no such field when there are none.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub problems: Vec<String>,
}

/// One node of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedNode {
    /// `node1` to `nodeN`.
    pub name: String,
    /// A path that `nsenter --net=PATH` can enter while the lab is up.
    pub netns: String,
    /// The agent's process, `None` while it is down.
    pub agent_pid: Option<u32>,
    /// The node's addresses on the underlay.
    pub addresses: Vec<IpAddr>,
    /// The pod CIDRs the node has taken; empty until it has.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
}

/// One pod of a lab.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListedPod {
    /// The Kubernetes namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The node it was placed on; `None` when no node can take it.
    pub node: Option<String>,
    /// A path that `nsenter --net=PATH` can enter; `None` until the pod has a namespace.
    pub netns: Option<String>,
    /// The addresses the chain gave it.
    pub addresses: Vec<IpAddr>,
    /// `Pending` until the chain has wired it, then `Running`; as in Kubernetes.
    pub phase: String,
    /// Why it is still pending, when there is a reason.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}

impl ListedPod {
    /// `namespace/name`, as people name a pod.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}
