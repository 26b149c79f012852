//! What a fuzzer asks: bytes of anybody's, through all that reads packets.
//!
//! Read [`examine`].

use kernel::datagram::Piece;
use kernel::tun::VnetHeader;

use crate::coalesce::{Coalescer, Output};
use crate::fragment::{Fragments, LONGEST_HEADER};
use crate::icmp::Complaint;
use crate::ipip;
use crate::packet::Packet;
use crate::segment::{LONGEST_HEADERS, SuperPacket, finish_checksum};

/// More packets than this are not looked at one by one.
const MANY: usize = 2000;

/// Takes bytes for what a device gave and for what came from a peer. False when a promise was broken: packets that were
/// cut do not carry what the super-packet did, or putting them together lost some.
#[must_use]
pub fn examine(bytes: &[u8]) -> bool {
    let from_device = VnetHeader::split(bytes).is_none_or(|(header, packet)| outgoing(&header, packet));
    from_device && incoming(bytes)
}

fn outgoing(header: &VnetHeader, bytes: &[u8]) -> bool {
    let _ = finish_checksum(header, &mut bytes.to_vec());
    let Some(packet) = Packet::parse(bytes) else { return true };
    let Some(bytes) = bytes.get(..packet.length) else { return false };
    for complaint in [Complaint::Unreachable, Complaint::TooBig(1280)] {
        let _ = complaint.write(&packet, bytes, &mut [0; 1240]);
    }
    let cut = SuperPacket::parse(header, bytes, packet).filter(|whole| whole.count() <= MANY);
    cut.is_none_or(|whole| segments_carry_it_all(&whole, bytes)) && fragments_carry_it_all(&packet, bytes)
}

fn segments_carry_it_all(whole: &SuperPacket, bytes: &[u8]) -> bool {
    let mut parts = Vec::new();
    for index in 0..whole.count() {
        let mut room = [0; LONGEST_HEADERS];
        let headers = whole.write_headers(bytes, index, &mut room).and_then(|length| room.get(..length));
        let Some((headers, payload)) = headers.zip(bytes.get(whole.payload(index))) else { return false };
        parts.push([headers, payload].concat());
    }
    let read = |part: &Vec<u8>| Packet::parse(part).is_some_and(|packet| packet.length == part.len());
    parts.iter().all(read) && together(&parts) == parts.len()
}

fn fragments_carry_it_all(packet: &Packet, bytes: &[u8]) -> bool {
    let Some(fragments) = Fragments::of(packet, 576).filter(|fragments| fragments.count() <= MANY) else {
        return true;
    };
    let mut carried = 0;
    for index in 0..fragments.count() {
        // An offset that does not fit is one that no right packet has.
        if fragments.write_header(bytes, index, &mut [0; LONGEST_HEADER]).is_none() {
            return true;
        }
        carried += bytes.get(fragments.payload(index)).map_or(0, <[u8]>::len);
    }
    carried == packet.length - packet.payload
}

fn incoming(bytes: &[u8]) -> bool {
    let mut wrapped = bytes.to_vec();
    if let Some(place) = ipip::inner(&mut wrapped) {
        let _ = ipip::glued(place.of(&wrapped), 1480);
    }
    // Several packets one behind the other, as they lie in a batch.
    let mut parts = Vec::new();
    let mut rest = bytes;
    while let Some(packet) = Packet::parse(rest).filter(|_| parts.len() < MANY) {
        let Some((part, behind)) = rest.split_at_checked(packet.length) else { return false };
        parts.push(part.to_vec());
        rest = behind;
    }
    together(&parts) == parts.len()
}

/// How many packets come out when these are put together.
fn together(parts: &[Vec<u8>]) -> usize {
    let arena = parts.concat();
    let mut coalescer = Coalescer::new(true);
    let mut count = 0;
    let mut out = |output: Output<'_>| {
        let pieces = output.pieces.iter().map(|piece| piece.of(&arena));
        let bytes: Vec<u8> = std::iter::once(output.headers).chain(pieces).flatten().copied().collect();
        let whole = Packet::parse(&bytes).and_then(|packet| SuperPacket::parse(&output.vnet, &bytes, packet));
        // A packet that stayed alone is no super-packet.
        if output.headers.is_empty() || whole.is_some_and(|whole| whole.count() == output.packets) {
            count += output.packets;
        }
    };
    let mut start = 0;
    for part in parts {
        coalescer.offer(&arena, Piece { start, length: part.len() }, &mut out);
        start += part.len();
    }
    coalescer.finish(&mut out);
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fuzzers_seeds_keep_every_promise() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds/packet");
        let seeds: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(seeds.len() >= 7);
        for seed in seeds {
            assert!(examine(&std::fs::read(&seed).unwrap()), "{}", seed.display());
        }
    }
}
