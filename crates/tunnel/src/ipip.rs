//! IP in IPv4: the outer header, written and taken off.
//!
//! Read [`write_outer`] and [`inner`]. On the wire it is what the kernel's `ipip` and `sit` devices send with a time to live
//! of 64 and path MTU discovery, so either end may be such a device.
//!
//! Sources: RFC 2003 (IPv4 in IPv4), RFC 4213 (IPv6 in IPv4), RFC 3168 9.1 (congestion notification, the full variant);
//! `include/net/inet_ecn.h` and `net/ipv4/ip_tunnel.c` of Linux 6.18.

use std::net::Ipv4Addr;

use kernel::datagram::Piece;
use kernel::tun::{GSO_NONE, GSO_TCP4, GSO_TCP6, NEEDS_CHECKSUM, VnetHeader};

use crate::packet::{self, HEADER4, Packet, TCP};

/// Protocol numbers of what is inside (IANA).
pub(crate) const IPV4: u8 = 4;
/// See [`IPV4`].
pub(crate) const IPV6: u8 = 41;

/// How long the outer header is.
pub(crate) const OUTER: usize = HEADER4;

/// The last two bits of a traffic class: congestion was met.
const CONGESTED: u8 = 3;
/// See [`CONGESTED`]: the sender would like to hear of congestion.
const CAPABLE: u8 = 2;

/// Writes the outer header for a packet; returns its length, or `None` when there is no room. Identification and checksum
/// are the kernel's to fill in.
pub(crate) fn write_outer(
    headers: &[u8],
    inner_length: usize,
    ends: (Ipv4Addr, Ipv4Addr),
    into: &mut [u8],
) -> Option<usize> {
    let protocol = if headers.first()? >> 4 == 4 { IPV4 } else { IPV6 };
    // A congested packet has said so within; outside it starts afresh.
    let notification = match traffic_class(headers)? & 3 {
        CONGESTED => CAPABLE,
        other => other,
    };
    let [a, b] = packet::field(OUTER + inner_length);
    let outer = into.get_mut(..OUTER)?;
    let (fixed, addresses) = outer.split_at_mut_checked(12)?;
    fixed.copy_from_slice(&[0x45, notification, a, b, 0, 0, 0x40, 0, 64, protocol, 0, 0]);
    let (from, to) = addresses.split_at_mut_checked(4)?;
    from.copy_from_slice(&ends.0.octets());
    to.copy_from_slice(&ends.1.octets());
    Some(OUTER)
}

/// Lets the way make fragments of a packet that was wrapped up.
pub(crate) fn allow_fragments(bytes: &mut [u8]) {
    packet::put(bytes, 6, [0, 0]);
}

/// Where in a packet that came from the underlay the inner packet lies. Congestion met on the way is noted in it; `None`
/// when there is none, or when congestion was met by a packet whose sender cannot hear of it.
pub(crate) fn inner(bytes: &mut [u8]) -> Option<Piece> {
    let outer = Packet::parse(bytes)?;
    let carries = outer.source.is_ipv4() && matches!(outer.protocol, IPV4 | IPV6) && !outer.fragment;
    let congested = traffic_class(bytes)? & 3 == CONGESTED;
    let inside = bytes.get_mut(outer.payload..outer.length).filter(|_| carries)?;
    let four = inside.first()? >> 4 == 4;
    if four != (outer.protocol == IPV4) {
        return None;
    }
    if congested {
        mark_congested(inside, four)?;
    }
    Some(Piece { start: outer.payload, length: outer.length - outer.payload })
}

/// What the kernel shall know of a packet that it has glued from several before we saw it, as it does for packets of TCP
/// within IP; `None` for one that is as it was sent. Its checksum tells: that of each was checked by who glued them, and what
/// stands there is left to be finished.
pub(crate) fn glued(bytes: &[u8], mtu: u16) -> Option<VnetHeader> {
    let packet = Packet::parse(bytes).filter(|packet| packet.protocol == TCP && !packet.fragment)?;
    let own = usize::from(bytes.get(packet.payload + 12)? >> 4) * 4;
    let headers = u16::try_from(packet.payload + own).ok()?;
    let segment = bytes.get(packet.payload..packet.length)?;
    let pseudo = packet::address_sum(bytes).add_pseudo(TCP, segment.len());
    let unfinished = segment.get(16..18)? == pseudo.partial() && pseudo.add(segment).finish() != [0, 0];
    if !unfinished || own < 20 || headers >= mtu {
        return None;
    }
    // How long each of them was is not told; TCP does not mind.
    let is_long = packet.length > mtu.into();
    let long = if packet.source.is_ipv4() { GSO_TCP4 } else { GSO_TCP6 };
    Some(VnetHeader {
        flags: NEEDS_CHECKSUM,
        kind: if is_long { long } else { GSO_NONE },
        header_length: headers,
        segment_size: if is_long { mtu - headers } else { 0 },
        checksum_start: packet.payload as u16,
        checksum_offset: 16,
    })
}

fn traffic_class(header: &[u8]) -> Option<u8> {
    let [first, second] = *header.first_chunk::<2>()?;
    Some(if first >> 4 == 4 { second } else { first << 4 | second >> 4 })
}

fn mark_congested(inside: &mut [u8], four: bool) -> Option<()> {
    if traffic_class(inside)? & 3 == 0 {
        return None;
    }
    let second = inside.get_mut(1)?;
    if four {
        *second |= CONGESTED;
        packet::set_checksum4(inside);
    } else {
        *second |= CONGESTED << 4;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn wrapped(inside: &[u8]) -> Vec<u8> {
        let mut outer = [0; OUTER];
        let ends = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
        write_outer(inside, inside.len(), ends, &mut outer).unwrap();
        [&outer, inside].concat()
    }

    #[test]
    fn what_the_kernel_has_glued_is_known_by_a_checksum_that_is_to_be_finished() {
        for six in [false, true] {
            for length in [200, 3000] {
                let whole = testing::Packet::tcp(six, vec![7; length]).bytes();
                assert_eq!(glued(&whole, 1480), None, "as it was sent, however long");
                let mut unfinished = whole.clone();
                let packet = Packet::parse(&whole).unwrap();
                let pseudo = packet::address_sum(&whole);
                let sum = pseudo.add_pseudo(TCP, packet.length - packet.payload).partial();
                unfinished[packet.payload + 16..packet.payload + 18].copy_from_slice(&sum);
                let vnet = glued(&unfinished, 1480).unwrap();
                assert_eq!(vnet.flags, NEEDS_CHECKSUM);
                assert_eq!(vnet.kind == GSO_NONE, length == 200);
                unfinished[packet.payload + 16] ^= 1;
                assert_eq!(glued(&unfinished, 1480), None, "one that is wrong stays so");
            }
        }
    }

    #[test]
    fn the_outer_header_is_the_kernels() {
        let inside = testing::Packet::udp(false, vec![0; 10]).bytes();
        let expected = [0x45, 2, 0, 58, 0, 0, 0x40, 0, 64, 4, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
        assert_eq!(wrapped(&inside)[..OUTER], expected);
        let mut congested = inside;
        congested[1] = 0xff;
        assert_eq!(wrapped(&congested)[1], CAPABLE, "only congestion notification is taken over");
        let inside = testing::Packet::udp(true, vec![0; 10]).bytes();
        assert_eq!(wrapped(&inside)[9], 41);
        assert_eq!(wrapped(&inside)[1], 0);
    }

    #[test]
    fn what_was_wrapped_is_found_and_congestion_noted() {
        for six in [false, true] {
            let mut inside = testing::Packet::udp(six, vec![7; 100]).bytes();
            if six {
                inside[1] |= CAPABLE << 4;
            }
            let mut outer = wrapped(&inside);
            let place = inner(&mut outer).unwrap();
            assert_eq!(place.of(&outer), inside);
            outer[1] |= CONGESTED;
            let place = inner(&mut outer).unwrap();
            assert_eq!(traffic_class(place.of(&outer)).unwrap() & 3, CONGESTED);
            assert!(six || testing::checksum(&place.of(&outer)[..20]) == 0);
        }
        let mut deaf = testing::Packet::udp(false, vec![7; 100]).bytes();
        deaf[1] = 0;
        let mut outer = wrapped(&deaf);
        outer[1] = CONGESTED;
        assert_eq!(inner(&mut outer), None);
        outer[9] = IPV6;
        assert_eq!(inner(&mut outer), None, "it is not what it says");
    }
}
