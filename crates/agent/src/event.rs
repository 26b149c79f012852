//! What can happen to an agent. Every source has a thread that blocks on it and sends into the one channel that
//! the loop in `reconcile.rs` reads, so nothing runs while nothing happens.

use std::sync::mpsc::Sender;

use crate::config::Config;
use crate::status::{Answer, Request};

/// Something that happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// The store has news.
    Store(Box<store::Event>),
    /// The kernel's network changed, or may have: see [`Touched`].
    Kernel(Touched),
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

/// What changed in the kernel, as far as the loop must know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Touched {
    /// Something that could concern the node's network.
    Network,
    /// The nf_tables ruleset.
    Ruleset,
    /// Changes were lost because they came too fast: everything may have changed.
    Everything,
}
