//! A super-packet cut into the packets that it stands for.
//!
//! Read [`SuperPacket`]: [`parse`](SuperPacket::parse) it from what a TUN device gave, then ask for each packet's header
//! and for where its payload lies. The payload is not copied. [`finish_checksum`] is for what is no super-packet.
//!
//! What stays true: the packets together carry exactly the payload, each with right lengths, numbers, flags and
//! checksums, as a kernel cuts them; nothing panics, whatever the bytes are.
//!
//! Sources: `net/ipv4/tcp_offload.c`, `net/ipv4/udp_offload.c` and `include/linux/virtio_net.h` of Linux 6.18; RFC 9293,
//! RFC 768, RFC 3168 (CWR belongs to the first packet).

use std::ops::Range;

use kernel::tun::{GSO_ECN, GSO_NONE, GSO_TCP4, GSO_TCP6, GSO_UDP, NEEDS_CHECKSUM, VnetHeader};

use crate::checksum::Sum;
use crate::packet::{self, Packet, TCP, UDP};

/// The longest headers there are room for: IPv6 with a few extensions and a TCP header full of options.
pub(crate) const LONGEST_HEADERS: usize = 256;

/// TCP's flags, in the fourteenth byte of its header.
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// A packet that stands for several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SuperPacket {
    /// Its own header.
    pub packet: Packet,
    /// How much payload goes into each.
    size: usize,
    /// Where the payload begins.
    headers: usize,
    is_tcp: bool,
}

impl SuperPacket {
    /// `None` when it is not as its header says.
    pub(crate) fn parse(header: &VnetHeader, bytes: &[u8], packet: Packet) -> Option<Self> {
        let is_tcp = match header.kind & !GSO_ECN {
            GSO_TCP4 | GSO_TCP6 => true,
            GSO_UDP => false,
            _ => return None,
        };
        let transport = usize::from(header.checksum_start);
        let size = usize::from(header.segment_size);
        let expected = if is_tcp { TCP } else { UDP };
        let sound =
            packet.payload == transport && packet.protocol == expected && !packet.fragment && size > 0;
        if !sound {
            return None;
        }
        let headers = if is_tcp {
            let own = usize::from(bytes.get(transport + 12)? >> 4) * 4;
            if own < 20 {
                return None;
            }
            transport + own
        } else {
            transport + 8
        };
        let fits = headers <= LONGEST_HEADERS && headers < packet.length;
        fits.then_some(Self { packet, size, headers, is_tcp })
    }

    /// How long the longest of the packets is.
    pub(crate) fn longest(&self) -> usize {
        self.headers + self.size.min(self.packet.length - self.headers)
    }

    /// How many packets it stands for.
    pub(crate) fn count(&self) -> usize {
        (self.packet.length - self.headers).div_ceil(self.size)
    }

    /// Where in the super-packet the payload of one of them lies.
    pub(crate) fn payload(&self, index: usize) -> Range<usize> {
        let start = (self.headers + index * self.size).min(self.packet.length);
        start..(start + self.size).min(self.packet.length)
    }

    /// Writes the headers of one of them; returns how long they are, or `None` when there is no room.
    pub(crate) fn write_headers(&self, bytes: &[u8], index: usize, into: &mut [u8]) -> Option<usize> {
        let into = into.get_mut(..self.headers)?;
        into.copy_from_slice(bytes.get(..self.headers)?);
        let range = self.payload(index);
        let payload = bytes.get(range.clone())?;
        if into.first()? >> 4 == 4 {
            let number = packet::word(into, 4).wrapping_add(index as u16);
            packet::put(into, 4, number.to_be_bytes());
        }
        packet::set_length(into, self.headers + payload.len());
        let transport = self.packet.payload;
        let addresses = packet::address_sum(into);
        let own = into.get_mut(transport..)?;
        if self.is_tcp {
            let sequence = packet::long(own, 4).wrapping_add((index * self.size) as u32);
            own.get_mut(4..8)?.copy_from_slice(&sequence.to_be_bytes());
            let flags = own.get_mut(13)?;
            *flags &= if range.end < self.packet.length { !(FIN | PSH) } else { 0xff };
            *flags &= if index > 0 { !CWR } else { 0xff };
        } else {
            packet::put(own, 4, packet::field(8 + payload.len()));
        }
        let (at, protocol) = if self.is_tcp { (16, TCP) } else { (6, UDP) };
        packet::put(own, at, [0, 0]);
        let sum = addresses.add_pseudo(protocol, own.len() + payload.len()).add(own).add(payload).finish();
        // Zero says "none" over UDP; all ones is the same sum.
        packet::put(own, at, if !self.is_tcp && sum == [0, 0] { [0xff, 0xff] } else { sum });
        Some(self.headers)
    }
}

/// Does what the kernel left to be done for a packet that is no super-packet. False when it is not as its header says.
pub(crate) fn finish_checksum(header: &VnetHeader, bytes: &mut [u8]) -> bool {
    if header.kind != GSO_NONE {
        return false;
    }
    if header.flags & NEEDS_CHECKSUM == 0 {
        return true;
    }
    let (start, offset) = (usize::from(header.checksum_start), usize::from(header.checksum_offset));
    let Some(covered) = bytes.get_mut(start..).filter(|covered| covered.len() >= offset + 2) else {
        return false;
    };
    // The place itself holds the pseudo header's sum and is summed along.
    let sum = Sum::default().add(covered).finish();
    // UDP's checksum stands six bytes from its start, and there zero says "none".
    packet::put(covered, offset, if offset == 6 && sum == [0, 0] { [0xff, 0xff] } else { sum });
    true
}

#[cfg(test)]
#[path = "segment_tests.rs"]
mod tests;
