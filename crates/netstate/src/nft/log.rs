//! Statements by which a rule tells of packets: to whom, under which name, and how many at most.

use std::fmt::{self, Display, Formatter};

/// Tells of the packet to whoever listens to a group (nfnetlink_log); if nobody does, nothing happens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Log {
    /// The group.
    pub group: u16,
    /// What the listener is told with it; at most 127 bytes reach the kernel.
    pub prefix: String,
    /// So many bytes of the packet are told, from its network header on.
    pub bytes: u32,
}

/// So many packets, and no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limit {
    /// Packets a second, over time.
    pub per_second: u32,
    /// So many more may come at once.
    pub burst: u32,
}

impl Display for Log {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "log prefix {:?} group {} snaplen {}", self.prefix, self.group, self.bytes)
    }
}

impl Display for Limit {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "limit rate {}/second burst {} packets", self.per_second, self.burst)
    }
}
