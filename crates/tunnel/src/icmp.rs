//! What a router tells the sender of a packet that it cannot pass on.
//!
//! Read [`Complaint`], then [`Complaints`], which sends them. The kernel writes the IP header and finds the source
//! address, for messages that come out of the device with an address of this host would be martians to it.
//!
//! What stays true: nobody is told about an ICMP error, a fragment past the first or a packet that is not from one host
//! to one host (RFC 1812 4.3.2.7, RFC 4443 2.4); no more than [`PER_SECOND`] messages are sent.
//!
//! Sources: RFC 792, RFC 1191, RFC 1812, RFC 4443.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use kernel::datagram::Datagrams;

use crate::checksum::Sum;
use crate::packet::{ICMP, ICMP6, Packet};

/// How many messages a thread sends, as the kernel's own `icmp_msgs_per_sec`.
const PER_SECOND: u32 = 1000;
/// How many at once.
const BURST: u32 = 100;
/// The longest messages that are sure to arrive, without IP header: RFC 1812 4.3.2.3 and RFC 4443 2.4 (c).
const LONGEST: usize = 576 - 20;
const LONGEST6: usize = 1280 - 40;

/// What there is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Complaint {
    /// There is no way there.
    Unreachable,
    /// It is too big; this fits.
    TooBig(usize),
}

impl Complaint {
    /// The ICMP message about a packet, into room for the longest; `None` when its sender must not be told.
    pub(crate) fn write<'a>(
        self,
        packet: &Packet,
        bytes: &[u8],
        into: &'a mut [u8; LONGEST6],
    ) -> Option<&'a [u8]> {
        if packet.later_fragment || !packet.is_unicast() || is_error(packet, bytes) {
            return None;
        }
        let four = packet.source.is_ipv4();
        let (kind, code) = match (self, four) {
            (Self::Unreachable, true) => (3, 0),
            (Self::TooBig(_), true) => (3, 4),
            (Self::Unreachable, false) => (1, 0),
            (Self::TooBig(_), false) => (2, 0),
        };
        let mtu = match self {
            Self::Unreachable => 0,
            Self::TooBig(mtu) => u32::try_from(mtu).unwrap_or(u32::MAX),
        };
        let longest = if four { LONGEST } else { LONGEST6 };
        let quoted = bytes.get(..packet.length.min(longest - 8))?;
        let message = into.get_mut(..8 + quoted.len())?;
        let (header, quote) = message.split_at_mut_checked(8)?;
        let [a, b, c, d] = mtu.to_be_bytes();
        header.copy_from_slice(&[kind, code, 0, 0, a, b, c, d]);
        quote.copy_from_slice(quoted);
        // Over IPv6 the kernel does this, for it takes the addresses, too.
        if four {
            let sum = Sum::default().add(message).finish();
            message.get_mut(2..4)?.copy_from_slice(&sum);
        }
        Some(message)
    }
}

/// Whether it is an ICMP message about another packet, or may be one.
fn is_error(packet: &Packet, bytes: &[u8]) -> bool {
    let kind = bytes.get(packet.payload).copied();
    match packet.protocol {
        // Echo, timestamps and the like ask or answer; all else tells of something.
        ICMP => !matches!(kind, Some(0 | 8 | 13..=18)),
        ICMP6 => kind.is_none_or(|kind| kind < 128),
        _ => false,
    }
}

/// Sends messages, as many as are decent.
pub(crate) struct Complaints {
    sockets: [Option<Datagrams>; 2],
    buffer: [u8; LONGEST6],
    left: u32,
    filled: Instant,
}

impl Complaints {
    /// In the calling thread's namespace. Where the kernel gives no such sockets nobody is told anything.
    pub(crate) fn open() -> Self {
        let sockets = [
            Datagrams::icmp(Ipv4Addr::UNSPECIFIED.into()).ok(),
            Datagrams::icmp(Ipv6Addr::UNSPECIFIED.into()).ok(),
        ];
        Self { sockets, buffer: [0; LONGEST6], left: BURST, filled: Instant::now() }
    }

    /// Tells the sender of a packet.
    pub(crate) fn send(&mut self, complaint: Complaint, packet: &Packet, bytes: &[u8]) {
        if !self.may(Instant::now()) {
            return;
        }
        let [four, six] = &self.sockets;
        let socket = if packet.source.is_ipv4() { four } else { six };
        if let Some((socket, message)) = socket.as_ref().zip(complaint.write(packet, bytes, &mut self.buffer))
        {
            // Whether there is a way back is not ours to say.
            let _ = socket.send_one(SocketAddr::new(packet.source, 0), message);
        }
    }

    fn may(&mut self, now: Instant) -> bool {
        let passed = now.duration_since(self.filled);
        let earned = u32::try_from(passed.as_micros() * u128::from(PER_SECOND) / 1_000_000).unwrap_or(BURST);
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(BURST);
            self.filled = if earned >= BURST {
                now
            } else {
                self.filled + Duration::from_secs(1) / PER_SECOND * earned
            };
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

#[cfg(test)]
#[path = "icmp_tests.rs"]
mod tests;
