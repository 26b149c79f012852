//! What an IP packet says of itself, read from bytes of anybody's.
//!
//! Read [`Packet`]. Nothing here panics, whatever the bytes are. RFC 791, RFC 8200.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum::Sum;

/// Protocol numbers (IANA).
pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP6: u8 = 58;

/// Extension headers of IPv6 that stand between it and what it carries, and whose length is counted alike.
const EXTENSIONS: [u8; 3] = [0, 43, 60];
const FRAGMENT: u8 = 44;

/// The length of an IPv6 header.
pub(crate) const HEADER6: usize = 40;
/// The length of an IPv4 header without options.
pub(crate) const HEADER4: usize = 20;

/// An IP packet's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packet {
    /// From whom.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// How long it is by its own word, header included; never longer than the bytes it was read from.
    pub length: usize,
    /// Where what it carries begins, past the extension headers of IPv6.
    pub payload: usize,
    /// What that is.
    pub protocol: u8,
    /// It is a fragment.
    pub fragment: bool,
    /// It is a fragment, and not the first.
    pub later_fragment: bool,
    /// It must not be made into fragments on its way.
    pub whole: bool,
}

impl Packet {
    /// Reads the header of the packet that these bytes begin with.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Self::parse4(bytes),
            6 => Self::parse6(bytes),
            _ => None,
        }
    }

    fn parse4(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER4] = bytes.first_chunk()?;
        let [first, _, a, b, _, _, c, d, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] = *header;
        let payload = usize::from(first & 15) * 4;
        let length = usize::from(u16::from_be_bytes([a, b]));
        let fragment = u16::from_be_bytes([c, d]);
        let sound = payload >= HEADER4 && length >= payload && length <= bytes.len();
        sound.then_some(Self {
            source: Ipv4Addr::new(s0, s1, s2, s3).into(),
            destination: Ipv4Addr::new(d0, d1, d2, d3).into(),
            length,
            payload,
            protocol,
            fragment: fragment & 0x3fff != 0,
            later_fragment: fragment & 0x1fff != 0,
            whole: fragment & 0x4000 != 0,
        })
    }

    fn parse6(bytes: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER6] = bytes.first_chunk()?;
        let (fixed, addresses) = header.split_first_chunk::<8>()?;
        let (source, destination) = addresses.split_first_chunk::<16>()?;
        let destination: [u8; 16] = destination.try_into().ok()?;
        let [_, _, _, _, a, b, protocol, _] = *fixed;
        let length = HEADER6 + usize::from(u16::from_be_bytes([a, b]));
        let mut packet = Self {
            source: Ipv6Addr::from(*source).into(),
            destination: Ipv6Addr::from(destination).into(),
            length,
            payload: HEADER6,
            protocol,
            fragment: false,
            later_fragment: false,
            whole: true,
        };
        packet.pass_extensions(bytes.get(..length)?)?;
        Some(packet)
    }

    fn pass_extensions(&mut self, bytes: &[u8]) -> Option<()> {
        // As many as anybody sends; what comes behind stays an extension header to us.
        for _ in 0..8 {
            let is_fragment = self.protocol == FRAGMENT;
            if !is_fragment && !EXTENSIONS.contains(&self.protocol) {
                break;
            }
            let [next, length, a, b] = *bytes.get(self.payload..)?.first_chunk::<4>()?;
            if is_fragment {
                self.fragment = true;
                self.later_fragment = u16::from_be_bytes([a, b]) & 0xfff8 != 0;
            }
            self.payload += if is_fragment { 8 } else { 8 + usize::from(length) * 8 };
            self.protocol = next;
            if self.payload > bytes.len() {
                return None;
            }
            if self.later_fragment {
                break;
            }
        }
        Some(())
    }

    /// Whether it goes to one host, and from one: others are never carried, and nobody is told of them.
    pub(crate) fn is_unicast(&self) -> bool {
        let plain = |address: IpAddr| match address {
            IpAddr::V4(four) => {
                !four.is_multicast() && !four.is_broadcast() && !four.is_unspecified() && !four.is_loopback()
            }
            IpAddr::V6(six) => {
                !six.is_multicast()
                    && !six.is_unspecified()
                    && !six.is_loopback()
                    && !six.is_unicast_link_local()
            }
        };
        plain(self.source) && plain(self.destination)
    }
}

/// The sum of both addresses of a packet: the beginning of every pseudo header.
pub(crate) fn address_sum(packet: &[u8]) -> Sum {
    let addresses = match packet.first() {
        Some(first) if first >> 4 == 4 => packet.get(12..20),
        _ => packet.get(8..40),
    };
    Sum::default().add(addresses.unwrap_or_default())
}

/// Stores two bytes, if there is room for them.
pub(crate) fn put(bytes: &mut [u8], at: usize, value: [u8; 2]) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&value);
    }
}

/// The two bytes there as a number; zero past the end.
pub(crate) fn word(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |pair| u16::from_be_bytes(*pair))
}

/// The four bytes there as a number; zero past the end.
pub(crate) fn long(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |four| u32::from_be_bytes(*four))
}

/// A length as a header field holds it.
pub(crate) fn field(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

/// Writes the length, and the checksum of IPv4, of a packet's IP header anew. What IPv6 calls its length leaves out
/// its header.
pub(crate) fn set_length(header: &mut [u8], length: usize) {
    let Some(first) = header.first().copied() else { return };
    if first >> 4 == 4 {
        put(header, 2, field(length));
        set_checksum4(header);
    } else {
        put(header, 4, field(length.saturating_sub(HEADER6)));
    }
}

/// Writes the checksum of an IPv4 header anew.
pub(crate) fn set_checksum4(header: &mut [u8]) {
    let own = usize::from(header.first().copied().unwrap_or_default() & 15) * 4;
    put(header, 10, [0, 0]);
    let sum = Sum::default().add(header.get(..own).unwrap_or_default());
    put(header, 10, sum.finish());
}
