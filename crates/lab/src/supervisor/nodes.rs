//! A node of the lab: a namespace, directories, and an agent that may be there.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use cluster::{NodeNetwork, Snapshot};
use ipnet::IpNet;
use kernel::netns::Netns;

use crate::home::NodeHome;
use crate::listing::ListedNode;

/// One node.
pub(super) struct Node {
    pub(super) name: Arc<str>,
    pub(super) netns: Arc<Netns>,
    /// On the underlay.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) home: NodeHome,
    pub(super) agent_pid: Option<u32>,
    /// How often in a row an agent of this node has ended before the node could carry pods.
    pub(super) ends: u32,
    /// How the agent ended last, for the person who waits for it.
    pub(super) last_end: Option<String>,
    /// The agent's conflist is in place, and what it left beside it says that the node can carry a new pod.
    pub(super) ready: bool,
    /// The pod CIDRs that the agent has made routes to.
    pub(super) routes: BTreeSet<IpNet>,
}

impl Node {
    /// What a kubelet would register: file name and text of its manifest.
    pub(super) fn manifest(&self) -> (String, String) {
        let line = |address: &IpAddr| format!("    - {{type: InternalIP, address: \"{address}\"}}\n");
        let addresses: String = self.addresses.iter().map(line).collect();
        let name = &self.name;
        let text = format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels:\n    kubernetes.io/hostname: {name}\n\
             status:\n  addresses:\n{addresses}"
        );
        (format!("{name}.yaml"), text)
    }

    /// Sees whether pods can be attached, as a kubelet learns from the conflist and from what the plugin answers.
    pub(super) fn look_at_readiness(&mut self) {
        let entries = fs::read_dir(self.home.conf()).into_iter().flatten().flatten();
        let has_conflist =
            entries.into_iter().any(|entry| entry.path().extension().is_some_and(|kind| kind == "conflist"));
        let network = fs::read(self.home.state().join("network.json")).unwrap_or_default();
        let takes_pods = NodeNetwork::from_json(&network).is_ok_and(|network| network.not_ready.is_none());
        self.ready = has_conflist && takes_pods;
        if self.ready {
            // What has worked once is not hopeless.
            self.ends = 0;
        }
    }

    pub(super) fn listed(&self, snapshot: &Snapshot) -> ListedNode {
        ListedNode {
            name: self.name.to_string(),
            netns: path(&self.netns),
            agent_pid: self.agent_pid,
            addresses: self.addresses.clone(),
            pod_cidrs: self.pod_cidrs(snapshot),
        }
    }

    /// The node can carry pods, and they reach those of every other node.
    pub(super) fn is_joined(&self, snapshot: &Snapshot) -> bool {
        let others = snapshot.leases.values().filter(|lease| lease.node != self.name);
        let mut cidrs = others.flat_map(|lease| lease.pod_cidrs.iter());
        // Of a conflist and a lease written before it we may hear in the other order.
        let is_known = snapshot.leases.contains_key(&self.name);
        self.ready && is_known && cidrs.all(|cidr| self.routes.contains(cidr))
    }

    fn pod_cidrs(&self, snapshot: &Snapshot) -> Vec<IpNet> {
        let leased = snapshot.leases.get(&self.name).map(|lease| lease.pod_cidrs.to_vec());
        leased.unwrap_or_else(|| snapshot.claims_of(&self.name).collect())
    }
}

/// The name under which anyone may enter a namespace that we hold.
pub(super) fn path(netns: &Netns) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd())
}
