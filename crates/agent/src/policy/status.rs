//! How far network policies are in force on this node: what `fairlead status` and the metrics show of them.

use serde::{Deserialize, Serialize};

/// How far network policies are in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// Whether the kernel enforces all that the agent knows of.
    pub enforced: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// NetworkPolicies in the cluster.
    pub network_policies: usize,
    /// ClusterNetworkPolicies.
    pub cluster_network_policies: usize,
    /// Pods of this node that policies can be about.
    pub local_pods: usize,
    /// Those that some are about.
    pub isolated_pods: usize,
    /// Attachments of pods that wait to be let in.
    pub waiting: usize,
    /// How many changes of what policies decide by the agent has taken from the store.
    pub generation: u64,
    /// How many of them are in the kernel.
    pub programmed: u64,
    /// The last change of the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_change: Option<PolicyChange>,
    /// What failed last; what was in force before stays so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// How often the kernel was changed.
    pub changes: u64,
    /// How long it took altogether from the store's word to the kernel's, in microseconds.
    pub spent: u64,
    /// The longest of it, in microseconds, but for the first time.
    pub longest: u64,
    /// How often the table was put right that somebody else had changed.
    pub heals: u64,
    /// How often the kernel refused.
    pub failures: u64,
    /// How many open connections were cut that no policy allows any more.
    pub cut: u64,
    /// Why there is neither a flow log nor an audit, if the kernel can tell of no verdicts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unlogged: Option<String>,
    /// Policies with what could not be read in them; what that is is taken for what allows nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub invalid: Vec<String>,
    /// Policies that the kernel refuses, and why: their pods are isolated, and they allow nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<String>,
}

/// A change of the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyChange {
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// How long it took from the store's word to the kernel's, in microseconds.
    pub took: u64,
    /// How many steps it was.
    pub steps: usize,
}
