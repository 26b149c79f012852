//! An IPv4 packet made into fragments, because it does not fit its way and its sender did not forbid it.
//!
//! Read [`Fragments`]. Only headers are written; payloads stay where they are. RFC 791 3.2; options that are not for every
//! fragment are blanked out in all but the first, as `net/ipv4/ip_options.c` does it.

use std::ops::Range;

use crate::packet::{self, Packet};

/// The largest IPv4 header.
pub(crate) const LONGEST_HEADER: usize = 60;

/// More fragments follow.
const MORE: u16 = 0x2000;

/// How a packet is cut.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fragments {
    headers: usize,
    length: usize,
    /// The payload of each but the last.
    size: usize,
}

impl Fragments {
    /// `None` for what cannot, or must not, be cut so that it fits.
    pub(crate) fn of(packet: &Packet, mtu: usize) -> Option<Self> {
        let size = mtu.checked_sub(packet.payload)? & !7;
        let may = packet.source.is_ipv4() && !packet.whole && size > 0;
        may.then_some(Self { headers: packet.payload, length: packet.length, size })
    }

    /// How long the longest of them is.
    pub(crate) fn longest(&self) -> usize {
        self.headers + self.size
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        (self.length - self.headers).div_ceil(self.size)
    }

    /// Where in the packet the payload of one of them lies.
    pub(crate) fn payload(&self, index: usize) -> Range<usize> {
        let start = (self.headers + index * self.size).min(self.length);
        start..(start + self.size).min(self.length)
    }

    /// Writes the header of one of them; returns how long it is, or `None` when there is no room.
    pub(crate) fn write_header(&self, bytes: &[u8], index: usize, into: &mut [u8]) -> Option<usize> {
        let into = into.get_mut(..self.headers)?;
        into.copy_from_slice(bytes.get(..self.headers)?);
        let range = self.payload(index);
        let before = packet::word(into, 6);
        let offset = (before & 0x1fff) + u16::try_from(index * self.size / 8).ok()?;
        // A fragment that is cut again: more follow the last of them if more followed before.
        let more = if range.end < self.length { MORE } else { before & MORE };
        packet::put(into, 6, (offset | more).to_be_bytes());
        if index > 0 {
            blank_options(into.get_mut(20..)?);
        }
        packet::set_length(into, self.headers + range.len());
        Some(self.headers)
    }
}

/// Puts "no operation" in the place of every option that does not ask to be copied.
fn blank_options(options: &mut [u8]) {
    let mut at = 0;
    while let Some(kind) = options.get(at).copied() {
        let length = match kind {
            0 => return,
            1 => 1,
            _ => options.get(at + 1).copied().unwrap_or(0).max(2).into(),
        };
        if kind & 0x80 == 0 {
            let end = (at + length).min(options.len());
            options.get_mut(at..end).unwrap_or_default().fill(1);
        }
        at += length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fragments_carry_it_all_and_options_go_where_they_belong() {
        let mut bytes = vec![0; 28 + 2000];
        bytes[0] = 0x47;
        bytes[2..4].copy_from_slice(&2028_u16.to_be_bytes());
        bytes[4..6].copy_from_slice(&[0x12, 0x34]);
        bytes[8..10].copy_from_slice(&[64, 17]);
        bytes[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        // Record route (not copied), then a source route (copied).
        bytes[20..28].copy_from_slice(&[7, 4, 4, 0, 0x83, 3, 4, 0]);
        for (index, byte) in bytes.iter_mut().enumerate().skip(28) {
            *byte = index as u8;
        }
        let packet = Packet::parse(&bytes).unwrap();
        assert!(Fragments::of(&Packet { whole: true, ..packet }, 1000).is_none());
        let fragments = Fragments::of(&packet, 1000).unwrap();
        let mut payload = Vec::new();
        for index in 0..fragments.count() {
            let mut header = [0; LONGEST_HEADER];
            let length = fragments.write_header(&bytes, index, &mut header).unwrap();
            let whole = [&header[..length], &bytes[fragments.payload(index)]].concat();
            let read = Packet::parse(&whole).unwrap();
            assert_eq!(read.length, whole.len());
            assert!(whole.len() <= 1000);
            assert_eq!(usize::from(packet::word(&whole, 6) & 0x1fff) * 8, payload.len());
            assert_eq!(packet::word(&whole, 6) & MORE != 0, index + 1 < fragments.count());
            assert_eq!(crate::checksum::Sum::default().add(&header[..length]).finish(), [0, 0]);
            let options = if index == 0 { [7, 4, 4, 0, 0x83, 3, 4, 0] } else { [1, 1, 1, 1, 0x83, 3, 4, 0] };
            assert_eq!(header[20..28], options);
            payload.extend_from_slice(&whole[length..]);
        }
        assert_eq!(payload, bytes[28..]);
    }
}
