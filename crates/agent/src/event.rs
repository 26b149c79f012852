//! What can happen to an agent. Every source has a thread that blocks on it and sends into the one channel that
//! the loop in `reconcile.rs` reads, so nothing runs while nothing happens.

use std::net::IpAddr;
use std::sync::mpsc::Sender;

use netstate::{FdbKey, Mac, NeighbourKey};

use crate::config::Config;
use crate::status::{Answer, Request};

/// Something that happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// The store has news.
    Store(Box<store::Event>),
    /// The kernel's network changed, or may have: see [`Touched`].
    Kernel(Touched),
    /// So entries of the tunnels' devices are now. Of most that the agent makes itself the kernel does not say who made them.
    Entries(Vec<Entry>),
    /// The configuration file has another text: what it says, or why it cannot be used.
    Configuration(Box<Result<Config, String>>),
    /// What a path to a peer carries is more or less than was known.
    Path,
    /// A client asks.
    Asked(Request, Sender<Answer>),
    /// A tunnel that the agent carries has ended by itself.
    TunnelEnded {
        /// Which.
        tunnel: &'static str,
        /// Why.
        reason: String,
    },
    /// The agent is to end.
    Stop,
    /// A thread that the agent cannot live without has ended.
    Lost(String),
}

/// An entry of a tunnel's device, as it is now; none where it is gone, or not one that lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// The link address of a neighbour.
    Neighbour(NeighbourKey, Option<Mac>),
    /// The underlay address behind a link address.
    Forwarding(FdbKey, Option<IpAddr>),
}

/// What changed in the kernel, as far as the loop must know.
///
/// In the order of their weight: of several the last counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Touched {
    /// Somebody else's route beside the cluster's networks: the underlay may be chosen by it, and nothing of ours stands on it.
    Beside,
    /// The nf_tables ruleset.
    Ruleset,
    /// Something that could concern the node's network.
    Network,
    /// Changes were lost because they came too fast: everything may have changed.
    Everything,
}
