//! What an agent says about itself: the types on its socket, and asking it.
//!
//! Read [`Status`]. The agent listens on `<state dir>/agent.sock`; a client sends one line of JSON, a
//! [`Request`], and gets one line back, an [`Answer`]. The command line shares these types by calling
//! [`ask_status`] and [`ask_plan`].

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::policy::PolicyStatus;

/// The socket's file name within the state directory.
pub const SOCKET: &str = "agent.sock";

/// How long a client waits for the agent. A pass over 5,000 peers takes well under a second.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a client may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "camelCase")]
pub enum Request {
    /// The node as the agent sees it.
    Status,
    /// What the agent would change in the kernel now.
    Plan,
    /// Whether the node can carry a new pod, and a few peers to ask whether it reaches them.
    Readiness,
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Plan`].
    Plan(PlanReport),
    /// To [`Request::Readiness`].
    Readiness {
        /// Why the node can carry no new pod; empty if it can.
        reasons: Vec<String>,
        /// Some of the peers that are programmed, other ones each time.
        peers: Vec<Probed>,
    },
    /// The request could not be understood or carried out.
    Error(String),
}

/// A peer that can be asked through the tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    /// Its name.
    pub node: String,
    /// The address of its tunnel device.
    pub address: IpAddr,
}

/// A node as its agent sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The node's name.
    pub node: String,
    /// The agent's version.
    pub version: String,
    /// The agent's process.
    pub pid: u32,
    /// Whether the node can carry a new pod now.
    pub ready: bool,
    /// Why not, where it is not; each a sentence with its hint.
    pub reasons: Vec<String>,
    /// The pod CIDRs the node holds.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// The pod networks of the whole cluster.
    #[serde(rename = "clusterCIDRs")]
    pub cluster_cidrs: Vec<IpNet>,
    /// How many pod CIDRs are left in each of the cluster's networks, where this node takes its own out of it.
    #[serde(default, rename = "podCIDRSupply", skip_serializing_if = "Vec::is_empty")]
    pub pod_cidr_supply: Vec<SupplyStatus>,
    /// How many addresses are left for pods in each of the node's pod CIDRs that can run out of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pod_address_supply: Vec<SupplyStatus>,
    /// How packets travel between nodes.
    pub backend: BackendStatus,
    /// What the host's own firewall drops of what pods send to other nodes and get from them, chain by chain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub firewall_closed: Vec<String>,
    /// The host's end of the tunnels, once chosen.
    pub underlay: Option<UnderlayStatus>,
    /// The largest packet a pod may send, in bytes; 0 before it is known.
    pub mtu: u32,
    /// The other nodes.
    pub peers: Vec<PeerStatus>,
    /// What went through the tunnels that the agent itself carries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tunnels: Vec<TunnelTraffic>,
    /// How the peers fare that the kernel's WireGuard speaks with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel_peers: Vec<KernelPeer>,
    /// What is wrong and does not keep the node from carrying pods; each with its hint.
    pub problems: Vec<String>,
    /// Kernel objects that are not Fairlead's and stand in the way of its own.
    pub conflicts: Vec<String>,
    /// Where the cluster's state comes from.
    pub store: StoreStatus,
    /// How far network policies are in force.
    #[serde(default)]
    pub policies: PolicyStatus,
    /// The last look at the kernel.
    pub last_reconcile: Option<ReconcileStatus>,
    /// How often the agent has looked at the kernel since it started.
    pub reconciles: u64,
    /// How long that took altogether, in microseconds.
    pub spent: u64,
    /// How many changes it has made in the kernel.
    pub changes: u64,
    /// How often it put right what somebody else had changed.
    pub heals: u64,
    /// When it last did, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_heal: Option<u64>,
    /// In how many looks something failed.
    pub failures: u64,
}

/// How much of a network is taken: pieces of the cluster's by nodes, addresses of a node's by pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SupplyStatus {
    /// The network.
    pub network: IpNet,
    /// How many there are.
    pub total: u64,
    /// How many are taken.
    pub taken: u64,
    /// How many are left.
    pub free: u64,
}

/// How packets travel between nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendStatus {
    /// Its name in configuration and leases.
    #[serde(rename = "type")]
    pub kind: String,
    /// Who carries the packets where that may be either: `kernel`, or `agent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carrier: Option<String>,
    /// This node's VXLAN tunnel, where it has one: with another backend it does while there are peers that need it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<TunnelStatus>,
    /// This node's WireGuard keys, the one in force first; a second one while they change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<KeyStatus>,
    /// With WireGuard, whether packets go encrypted or not at all: if not, nodes of another backend are reached by theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
    /// With WireGuard, how many packets to the cluster's pods were refused because there is no way to whom they are for, since the
    /// tunnel was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<u64>,
}

/// A WireGuard key of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyStatus {
    /// Which of the node's keys it is.
    pub generation: u32,
    /// The UDP port of its device.
    pub port: u16,
    /// What peers know it by.
    pub public_key: String,
}

/// This node's end of the VXLAN tunnels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TunnelStatus {
    /// The device.
    pub device: String,
    /// The VXLAN network identifier.
    pub vni: u32,
    /// The UDP port.
    pub port: u16,
    /// The link address.
    pub mac: String,
}

/// What went through a tunnel that the agent itself carries, since it was started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TunnelTraffic {
    /// Its wire format: `udp`, `ipip` or `wireguard`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its device.
    pub device: String,
    /// By peer.
    pub peers: Vec<PeerTraffic>,
    /// Packets that were dropped, by reason; every reason is there.
    pub dropped: BTreeMap<String, u64>,
}

/// What went to a peer and came from it, without what the tunnel adds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerTraffic {
    /// The peer.
    pub node: String,
    /// Packets sent.
    pub sent_packets: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Packets received.
    pub received_packets: u64,
    /// Bytes received.
    pub received_bytes: u64,
}

/// A peer of the kernel's WireGuard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelPeer {
    /// The peer.
    pub node: String,
    /// When a session was last agreed on, in seconds since 1970; none before the first. While packets flow, that is at most
    /// two minutes ago.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handshake: Option<u64>,
    /// Bytes sent, with what WireGuard adds.
    pub sent_bytes: u64,
    /// Bytes received, with what WireGuard adds.
    pub received_bytes: u64,
}

/// The host's end of the tunnels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnderlayStatus {
    /// The link.
    pub link: String,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// The address that tunnels leave from.
    pub address: IpAddr,
    /// What peers are told, one of each family.
    pub advertised: Vec<IpAddr>,
    /// Why this link and address.
    pub reason: String,
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerStatus {
    /// Its name.
    pub node: String,
    /// Its pod CIDRs; empty while it holds no lease.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// Its underlay addresses.
    pub underlay: Vec<IpAddr>,
    /// Where it stands.
    pub state: PeerState,
    /// How its pods are reached: `vxlan`, `udp`, `ipip`, `wireguard` or `direct`, by family where those differ; empty where they are not.
    pub path: String,
    /// The largest packet that pods of this node send to its pods, in bytes; 0 where there is no path.
    pub mtu: u32,
    /// The largest packet that was seen to reach its underlay address, in bytes, with what the tunnel adds; none where that
    /// was not tried, or nothing answers.
    #[serde(default, rename = "probedMTU", skip_serializing_if = "Option::is_none")]
    pub probed_mtu: Option<u32>,
    /// When the path was last another one, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed: Option<u64>,
    /// Why it is ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Where a peer stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PeerState {
    /// Its pods are reachable as far as this node is concerned.
    Programmed,
    /// It has published no lease yet.
    Waiting,
    /// It cannot be reached; its `problem` says why.
    Ignored,
    /// It has a lease, and the way to it is left to others: this node's backend is `none`, or it is one of flannel's and
    /// this node is not to stand beside those.
    Unrouted,
}

impl PeerState {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Programmed, Self::Waiting, Self::Ignored, Self::Unrouted];

    /// What people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Programmed => "programmed",
            Self::Waiting => "waiting",
            Self::Ignored => "ignored",
            Self::Unrouted => "unrouted",
        }
    }
}

/// Where the cluster's state comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoreStatus {
    /// The store, as on the command line.
    pub location: String,
    /// Whether the whole state has been read at least once.
    pub in_sync: bool,
    /// Why the store cannot be read now; what was read before stays in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub away: Option<String>,
    /// Files that cannot be used, with line and reason; their last good version stays in force.
    pub broken: Vec<String>,
}

/// A look at the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReconcileStatus {
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// What it took, in microseconds.
    pub took: u64,
    /// How many changes were made.
    pub steps: usize,
    /// Why the agent looked.
    pub cause: String,
    /// What failed; tried again soon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What the agent would change in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanReport {
    /// One line for each step, in order; empty when the kernel is as it should be.
    pub steps: Vec<String>,
    /// Foreign objects in the way.
    pub conflicts: Vec<String>,
    /// Steps and conflicts as one text.
    pub text: String,
}

/// The agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error(
        "ask the agent at {socket}\nhint: is an agent running on this node, with this --state-dir? (fairlead agent)"
    )]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The agent said no.
    #[error("ask the agent: {0}")]
    Refused(String),
    /// The answer is not what was asked for: the agent is of another version.
    #[error("read the agent's answer{}\nhint: is the agent of another version? restart it", .reason.as_ref().map_or(String::new(), |reason| format!(": {reason}")))]
    Foreign {
        /// What is wrong with it, where it is not JSON of the form expected.
        reason: Option<String>,
    },
}

/// Asks the agent whose state directory this is for its status.
///
/// # Errors
/// When no agent listens there, or it is of another version.
pub fn ask_status(state_dir: &Path) -> Result<Status, AskError> {
    match ask(state_dir, Request::Status)? {
        Answer::Status(status) => Ok(*status),
        Answer::Error(reason) => Err(AskError::Refused(reason)),
        _ => Err(AskError::Foreign { reason: None }),
    }
}

/// Asks the agent whose state directory this is what it would change now.
///
/// # Errors
/// When no agent listens there, it is of another version, or it cannot read the kernel or has no plan yet.
pub fn ask_plan(state_dir: &Path) -> Result<PlanReport, AskError> {
    match ask(state_dir, Request::Plan)? {
        Answer::Plan(plan) => Ok(plan),
        Answer::Error(reason) => Err(AskError::Refused(reason)),
        _ => Err(AskError::Foreign { reason: None }),
    }
}

fn ask(state_dir: &Path, request: Request) -> Result<Answer, AskError> {
    let socket = state_dir.join(SOCKET);
    let unreachable = |source| AskError::Unreachable { socket: socket.clone(), source };
    let foreign = |error: serde_json::Error| AskError::Foreign { reason: Some(error.to_string()) };
    let mut stream = UnixStream::connect(&socket).map_err(unreachable)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(unreachable)?;
    let mut line = serde_json::to_string(&request).map_err(foreign)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).map_err(unreachable)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(unreachable)?;
    serde_json::from_str(&answer).map_err(foreign)
}
