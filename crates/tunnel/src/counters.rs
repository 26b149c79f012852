//! What went through a tunnel, and what did not and why.
//!
//! Read [`Counters`], which is what one asks for; [`Count`] is what the threads write to, without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// Packets, and the bytes of the packets themselves without what a tunnel adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// How many packets.
    pub packets: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// Why a packet was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum DropReason {
    /// It goes to an address that is behind no peer; its sender is told.
    NoPeer,
    /// It does not fit the way and must not be made into fragments; its sender is told.
    TooBig,
    /// It is no IP packet, or not what it says of itself.
    Malformed,
    /// It is for several hosts, or for none.
    NotUnicast,
    /// It came from an underlay address that is no peer's.
    UnknownSender,
    /// It is for a peer whose WireGuard key is not known, or came from one.
    NoKey,
    /// It was not sealed with the peer's key.
    Unsealed,
    /// It was sealed for a WireGuard session that is not known here, as one of before this tunnel was started.
    UnknownSession,
    /// It was heard before, or comes so late that this cannot be told.
    Replayed,
    /// It waited for a WireGuard session with its peer, which did not answer, or for which too many waited.
    NoSession,
    /// It came from a peer, but its own source address is not of that peer's pods.
    WrongSource,
    /// The underlay did not take it.
    NotSent,
    /// The device did not take it: it is down.
    NotDelivered,
}

impl DropReason {
    /// All of them, in order.
    pub const ALL: [Self; 13] = [
        Self::NoPeer,
        Self::TooBig,
        Self::Malformed,
        Self::NotUnicast,
        Self::UnknownSender,
        Self::NoKey,
        Self::Unsealed,
        Self::UnknownSession,
        Self::Replayed,
        Self::NoSession,
        Self::WrongSource,
        Self::NotSent,
        Self::NotDelivered,
    ];

    /// As a label of a metric.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::NoPeer => "no-peer",
            Self::TooBig => "too-big",
            Self::Malformed => "malformed",
            Self::NotUnicast => "not-unicast",
            Self::UnknownSender => "unknown-sender",
            Self::NoKey => "no-key",
            Self::Unsealed => "unsealed",
            Self::UnknownSession => "unknown-session",
            Self::Replayed => "replayed",
            Self::NoSession => "no-session",
            Self::WrongSource => "wrong-source",
            Self::NotSent => "not-sent",
            Self::NotDelivered => "not-delivered",
        }
    }
}

/// What one peer was sent, and what came from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCounters {
    /// Its name.
    pub name: String,
    /// What was given to the underlay for it.
    pub sent: Traffic,
    /// What came from it.
    pub received: Traffic,
}

/// All that a tunnel has counted since it began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counters {
    /// By peer, in the order in which they were given.
    pub peers: Vec<PeerCounters>,
    /// By reason; all reasons are there.
    pub drops: Vec<(DropReason, Traffic)>,
}

impl Counters {
    /// What was dropped for one reason.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> Traffic {
        self.drops.iter().find(|(other, _)| *other == reason).map(|(_, traffic)| *traffic).unwrap_or_default()
    }
}

/// A count that threads add to.
#[derive(Debug, Default)]
pub(crate) struct Count {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl Count {
    pub(crate) fn add(&self, packets: usize, bytes: usize) {
        self.packets.fetch_add(packets as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Traffic {
        Traffic { packets: self.packets.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

/// A count for each reason.
#[derive(Debug, Default)]
pub(crate) struct Drops([Count; DropReason::ALL.len()]);

impl Drops {
    pub(crate) fn add(&self, reason: DropReason, packets: usize, bytes: usize) {
        if let Some(count) = self.0.get(reason as usize) {
            count.add(packets, bytes);
        }
    }

    pub(crate) fn read(&self) -> Vec<(DropReason, Traffic)> {
        DropReason::ALL.iter().zip(&self.0).map(|(reason, count)| (*reason, count.read())).collect()
    }
}
