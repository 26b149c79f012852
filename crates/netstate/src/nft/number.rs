//! Numbers with names: bits that rules match, and the priorities of netfilter.

#[cfg(doc)]
use super::{BaseChain, Field};

/// Bits of [`Field::CtStatus`].
pub mod ct_status {
    /// The connection's destination is translated.
    pub const DESTINATION_TRANSLATED: u32 = 1 << 5;
}

/// Bits of [`Field::CtState`].
pub mod ct_state {
    /// The packet belongs to no connection and cannot start one.
    pub const INVALID: u32 = 1;
    /// Part of a connection that has seen packets both ways.
    pub const ESTABLISHED: u32 = 2;
    /// Starts a connection that another one announced.
    pub const RELATED: u32 = 4;
    /// Starts a connection.
    pub const NEW: u32 = 8;
    /// Exempt from connection tracking.
    pub const UNTRACKED: u32 = 64;
}

/// Flags of a TCP segment (RFC 9293).
pub mod tcp_flags {
    /// It begins a connection.
    pub const SYN: u32 = 2;
    /// It ends one at once.
    pub const RST: u32 = 4;
}

/// The priorities that netfilter names, for [`BaseChain::priority`].
pub mod priority {
    /// Before connections are tracked.
    pub const RAW: i32 = -300;
    /// Destination translation.
    pub const DSTNAT: i32 = -100;
    /// Filtering.
    pub const FILTER: i32 = 0;
    /// Source translation.
    pub const SRCNAT: i32 = 100;
    /// Filtering in the bridge family.
    pub const BRIDGE_FILTER: i32 = -200;
}
