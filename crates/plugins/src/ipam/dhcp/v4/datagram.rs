//! The IPv4 and UDP headers around a DHCP message, which a client without an address writes itself.
//!
//! Layouts: RFC 791 section 3.1 and RFC 768. No options, no fragments.

use std::net::Ipv4Addr;

/// Where servers and relays listen.
pub(crate) const SERVER_PORT: u16 = 67;
/// Where clients listen.
pub(crate) const CLIENT_PORT: u16 = 68;

const IP: usize = 20;
const UDP: usize = 8;
const PROTOCOL_UDP: u8 = 17;

/// A packet from a client's port to a server's.
pub(crate) fn encode(from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let total = (IP + UDP + payload.len()) as u16;
    let mut packet = vec![0; IP + UDP];
    packet[0] = 0x45;
    // Low delay, as every client of this kind marks them: class selector 6.
    packet[1] = 0xc0;
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    packet[8] = 64;
    packet[9] = PROTOCOL_UDP;
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    let checksum = !sum(&packet[..IP], 0);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet[20..22].copy_from_slice(&CLIENT_PORT.to_be_bytes());
    packet[22..24].copy_from_slice(&SERVER_PORT.to_be_bytes());
    packet[24..26].copy_from_slice(&(total - IP as u16).to_be_bytes());
    packet.extend(payload);
    let checksum = match !sum(&packet[IP..], pseudo_header(&packet, total - IP as u16)) {
        0 => 0xffff,
        checksum => checksum,
    };
    packet[26..28].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// Sender and payload of a whole UDP packet to a client's port; `None` when it is anything else or damaged.
pub(crate) fn decode(packet: &[u8]) -> Option<(Ipv4Addr, &[u8])> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    if packet[0] >> 4 != 4 || header < IP || packet.len() < header + UDP || packet[9] != PROTOCOL_UDP {
        return None;
    }
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0;
    if fragment || sum(&packet[..header], 0) != 0xffff {
        return None;
    }
    let datagram = packet.get(header..total)?;
    let [_, _, port @ .., l1, l2, _, _] = *datagram.first_chunk::<UDP>()?;
    let length = usize::from(u16::from_be_bytes([l1, l2]));
    if port != CLIENT_PORT.to_be_bytes() || length < UDP {
        return None;
    }
    let datagram = datagram.get(..length)?;
    let partial = pseudo_header(packet, length as u16);
    let said = u16::from_be_bytes([datagram[6], datagram[7]]);
    // 0 is none. A sender on this very machine leaves the sum to hardware that is not there: then the field
    // holds the part that the kernel could know.
    let good = said == 0 || sum(datagram, partial) == 0xffff || said == partial;
    let from = Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15]);
    good.then_some((from, &datagram[UDP..]))
}

/// The sum over the addresses, the protocol and the length that belongs to a UDP checksum.
fn pseudo_header(packet: &[u8], length: u16) -> u16 {
    let [a, b] = length.to_be_bytes();
    sum(&[0, PROTOCOL_UDP, a, b], sum(&packet[12..20], 0))
}

/// The one's complement sum of 16-bit words (RFC 1071).
fn sum(bytes: &[u8], start: u16) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum = words.fold(u32::from(start), |sum, word| sum + word);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop};
    use proptest::proptest;

    use super::*;

    const SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);

    /// A packet as a server would send it.
    fn answer(payload: &[u8]) -> Vec<u8> {
        let mut packet = encode(SERVER, CLIENT, payload);
        packet[20..24].copy_from_slice(&[0, 67, 0, 68]);
        packet
    }

    #[test]
    fn the_headers_are_those_of_the_specification() {
        let packet = encode(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, b"hi!");
        assert_eq!(packet[..10], [0x45, 0xc0, 0, 31, 0, 0, 0, 0, 64, 17]);
        assert_eq!(packet[12..28][..8], [0, 0, 0, 0, 255, 255, 255, 255]);
        assert_eq!(packet[20..26], [0, 68, 0, 67, 0, 11]);
        assert_eq!(sum(&packet[..20], 0), 0xffff);
        assert_eq!(sum(&packet[20..], pseudo_header(&packet, 11)), 0xffff);
    }

    #[test]
    fn an_answer_is_read_and_padding_behind_it_is_not() {
        let mut packet = answer(b"payload");
        assert_eq!(decode(&packet), Some((SERVER, &b"payload"[..])));
        packet.extend([0; 20]);
        assert_eq!(decode(&packet), Some((SERVER, &b"payload"[..])));
    }

    #[test]
    fn sums_may_be_absent_or_left_to_hardware_but_not_wrong() {
        let mut packet = answer(b"payload");
        packet[26..28].copy_from_slice(&[0, 0]);
        assert!(decode(&packet).is_some());
        let partial = pseudo_header(&packet, 15).to_be_bytes();
        packet[26..28].copy_from_slice(&partial);
        assert!(decode(&packet).is_some());
        packet[26] ^= 1;
        assert_eq!(decode(&packet), None);
        let mut packet = answer(b"payload");
        packet[8] = 1;
        assert_eq!(decode(&packet), None, "a header that was changed on the way");
    }

    #[test]
    fn other_ports_fragments_and_cut_packets_are_nothing() {
        let whole = answer(b"payload");
        for length in 0..whole.len() {
            assert_eq!(decode(&whole[..length]), None);
        }
        assert_eq!(decode(&encode(SERVER, CLIENT, b"to a server")), None);
    }

    // Everything on the link may write such headers, and the kernel hands us the packet as it came.
    #[test]
    fn headers_that_claim_any_length_do_no_harm() {
        for total in 0..64 {
            let mut packet = answer(b"payload");
            packet[2..4].copy_from_slice(&u16::to_be_bytes(total));
            packet[10..12].copy_from_slice(&[0, 0]);
            let checksum = !sum(&packet[..20], 0);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
            assert_eq!(decode(&packet).is_some(), total == 35, "a total length of {total}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode(&bytes);
            let mut packet = answer(b"payload");
            for (at, byte) in bytes.iter().enumerate().take(packet.len()) {
                packet[at] ^= byte;
            }
            let _ = decode(&packet);
        }
    }
}
