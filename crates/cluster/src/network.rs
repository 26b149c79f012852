//! What a node's agent leaves on disk for the CNI plugin.
//!
//! [`NodeNetwork`] is the only thing that agent and plugin share: a pod can be wired, and taken down, with
//! the agent dead. The file is JSON, written whole; the plugin refuses one that it cannot trust fully, for a
//! pod with a wrong address is worse than a pod that waits.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The part of the pod network that one node carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeNetwork {
    /// The node's name.
    pub node: String,
    /// The pod CIDRs the node gives addresses from: one or two, of different families.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// The CIDRs of all pods of the cluster; traffic that leaves them may be masqueraded.
    #[serde(rename = "clusterCIDRs")]
    pub cluster_cidrs: Vec<IpNet>,
    /// The largest packet, in bytes, that a pod may send.
    pub mtu: u32,
    /// Why no pod can be attached for now, if none can; those that are there go on, and can be taken away.
    #[serde(rename = "notReady", default, skip_serializing_if = "Option::is_none")]
    pub not_ready: Option<String>,
    /// How to know that a pod's network policies are in force; none where policies are not enforced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforcement: Option<Enforcement>,
}

/// Whom to ask before a pod is let into the network: see [`Enforced`](crate::Enforced).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Enforcement {
    /// The agent's socket for this, within the agent's state directory.
    pub socket: PathBuf,
    /// How long to wait for it, in milliseconds, before the attachment is given up for now.
    pub patience_milliseconds: u32,
}

/// A text that is no node network. The reader can do nothing but wait for the agent to write a good one.
#[derive(Debug, thiserror::Error)]
pub enum NodeNetworkError {
    /// Not JSON, or a field is missing, unknown or of the wrong kind.
    #[error("cannot read the node's network")]
    Json(#[source] serde_json::Error),
    /// A field's value cannot be.
    #[error("cannot use the node's network: {field} {reason}")]
    Field {
        /// The field.
        field: &'static str,
        /// What is wrong with it, to be read after the field's name.
        reason: String,
    },
}

impl NodeNetwork {
    /// Reads and checks the form that [`to_json`](Self::to_json) writes.
    ///
    /// # Errors
    /// Text that is not JSON of exactly these fields, or values that cannot be: see [`NodeNetworkError`].
    pub fn from_json(text: &[u8]) -> Result<Self, NodeNetworkError> {
        let network: Self = serde_json::from_slice(text).map_err(NodeNetworkError::Json)?;
        network.check()?;
        Ok(network)
    }

    /// The form for the disk: one JSON object, a line break at the end. The same network gives the same bytes.
    ///
    /// # Errors
    /// Values that [`from_json`](Self::from_json) would refuse.
    pub fn to_json(&self) -> Result<Vec<u8>, NodeNetworkError> {
        self.check()?;
        let mut text = serde_json::to_vec_pretty(self).map_err(NodeNetworkError::Json)?;
        text.push(b'\n');
        Ok(text)
    }

    fn check(&self) -> Result<(), NodeNetworkError> {
        let wrong = |field, reason| Err(NodeNetworkError::Field { field, reason });
        if let Err(error) = crate::check_subdomain(&self.node) {
            return wrong("node", error.to_string());
        }
        if self.pod_cidrs.is_empty() {
            return wrong("podCIDRs", "is empty".into());
        }
        for (field, cidrs) in [("podCIDRs", &self.pod_cidrs), ("clusterCIDRs", &self.cluster_cidrs)] {
            if let Some(cidr) = cidrs.iter().find(|cidr| cidr.addr() != cidr.network()) {
                return wrong(
                    field,
                    format!("has {cidr} with host bits set; the network is {}", cidr.trunc()),
                );
            }
        }
        for family in [IpAddr::is_ipv4, IpAddr::is_ipv6] {
            if self.pod_cidrs.iter().filter(|cidr| family(&cidr.addr())).count() > 1 {
                return wrong("podCIDRs", "has two of one family".into());
            }
        }
        let inside = |cidr: &&IpNet| self.cluster_cidrs.iter().any(|all| all.contains(*cidr));
        if let Some(cidr) = self.pod_cidrs.iter().find(|cidr| !inside(cidr)) {
            return wrong("podCIDRs", format!("has {cidr}, which no entry of clusterCIDRs contains"));
        }
        // RFC 791: every host takes 68 bytes; RFC 8200: every IPv6 link carries 1280.
        let least = if self.pod_cidrs.iter().any(|cidr| cidr.addr().is_ipv6()) { 1280 } else { 68 };
        if self.mtu < least || self.mtu > 65_535 {
            return wrong("mtu", format!("is {}, not between {least} and 65535", self.mtu));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Enforcement, NodeNetwork};

    fn dual_stack() -> NodeNetwork {
        NodeNetwork {
            node: "node1".into(),
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap(), "fd00:10:244:1::/64".parse().unwrap()],
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()],
            mtu: 1450,
            not_ready: None,
            enforcement: None,
        }
    }

    #[test]
    fn what_the_agent_writes_the_plugin_reads() {
        let network = dual_stack();
        let text = network.to_json().unwrap();
        assert_eq!(NodeNetwork::from_json(&text).unwrap(), network);
        assert!(text.ends_with(b"}\n"));
        assert!(!String::from_utf8_lossy(&text).contains("notReady"));
        let network = NodeNetwork { not_ready: Some("no underlay".into()), ..network };
        assert_eq!(NodeNetwork::from_json(&network.to_json().unwrap()).unwrap(), network);
        let enforcement = Enforcement { socket: "gate.sock".into(), patience_milliseconds: 3000 };
        let network = NodeNetwork { enforcement: Some(enforcement), ..network };
        assert_eq!(NodeNetwork::from_json(&network.to_json().unwrap()).unwrap(), network);
    }

    #[test]
    fn a_file_that_cannot_be_trusted_is_refused_with_the_field() {
        let text = String::from_utf8(dual_stack().to_json().unwrap()).unwrap();
        for (from, to, want) in [
            ("node1", "no de", "node"),
            ("10.244.1.0/24", "10.244.1.1/24", "host bits"),
            ("10.244.1.0/24", "10.245.1.0/24", "no entry of clusterCIDRs"),
            ("1450", "1279", "mtu is 1279"),
            ("1450", "70000", "mtu is 70000"),
        ] {
            let error = NodeNetwork::from_json(text.replace(from, to).as_bytes()).unwrap_err();
            assert!(error.to_string().contains(want), "{error}");
        }
        for cut in 0..text.len() - 2 {
            assert!(NodeNetwork::from_json(&text.as_bytes()[..cut]).is_err(), "cut at {cut}");
        }
        assert!(NodeNetwork::from_json(text.replace("mtu", "mut").as_bytes()).is_err());
    }
}
