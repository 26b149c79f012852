//! The agent of a node: it joins the node to the others and keeps it joined.
//!
//! Read [`Options`], then `run.rs` (the parts, in start order) and `reconcile.rs` (the loop). The agent takes pod
//! CIDRs for its node and publishes a lease, turns the cluster into the wanted state of this node's kernel (the
//! crate `route` decides), compares that with what is there and carries out the difference; what the CNI plugin
//! needs it leaves on disk, and last of all it writes the conflist, when the node can really carry a pod.
//!
//! What stays true:
//! - nothing is removed before the store has been read whole once, and nothing because the store is away;
//! - nothing is touched that does not carry Fairlead's mark;
//! - the agent sleeps until something happens: a change of the store, of the kernel, a request or a signal;
//! - pods can talk, and go, with the agent dead; and be wired, where nobody has to know their network policies first.

mod announce;
mod config;
mod departed;
mod door;
mod event;
mod files;
mod flannel_network;
mod freed;
mod health;
mod holders;
mod host;
pub mod host_firewall;
mod key_files;
mod lease;
mod leases_file;
mod listener;
mod lock;
mod metrics;
mod node;
mod options;
mod path_mtu;
mod pause;
mod policy;
mod reach;
mod reconcile;
mod reload;
mod report;
mod run;
mod server;
mod status;
mod subnet_env;
mod supply;
mod tunnels;
mod view;

pub use config::{
    BackendKind, Chained, Cluster, Config, ConfigError, Datapath, ExistingConnections, FlannelConfig,
    FlowLogConfig, FlowVerdicts, ForeignSenders, Masquerade, Origin, Pattern, PolicyConfig, UnderlayConfig,
    VxlanConfig,
};
pub use door::DoorError;
pub use files::{CONFLIST, FileError};
pub use health::HealthError;
pub use host::{read_host, read_reached};
pub use lock::LockError;
pub use options::{Collect, Options};
pub use policy::{GateError, PolicyChange, PolicyStatus};
pub use run::{Error, clean, run};
pub use server::ServerError;
pub use status::{
    Answer, AskError, BackendStatus, KernelPeer, KeyStatus, PeerState, PeerStatus, PeerTraffic, PlanReport,
    Probed, ReconcileStatus, Request, SOCKET, Status, StoreStatus, SupplyStatus, TunnelStatus, TunnelTraffic,
    UnderlayStatus, ask_plan, ask_status,
};
pub use supply::few_pod_addresses;
