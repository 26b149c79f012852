//! Packets put together and cut again: nothing is lost, changed or overtaken.

use proptest::prelude::*;

use super::*;
use crate::segment::{LONGEST_HEADERS, SuperPacket};
use crate::testing::{self, Carried};

/// What a device would be written for these packets, cut again; and how many writes it took.
fn through(packets: &[Vec<u8>], takes_udp: bool) -> (Vec<Vec<u8>>, usize) {
    let arena = packets.concat();
    let (mut out, mut writes) = (Vec::new(), 0);
    let mut coalescer = Coalescer::new(takes_udp);
    let mut write = |output: Output<'_>| {
        writes += 1;
        let parts = output.pieces.iter().map(|piece| piece.of(&arena));
        let bytes = std::iter::once(output.headers).chain(parts).collect::<Vec<_>>().concat();
        if output.headers.is_empty() {
            assert_eq!((output.vnet, output.packets), (VnetHeader::default(), 1));
            return out.push(bytes);
        }
        let whole = SuperPacket::parse(&output.vnet, &bytes, Packet::parse(&bytes).unwrap()).unwrap();
        assert_eq!(whole.count(), output.packets);
        for index in 0..whole.count() {
            let mut headers = [0; LONGEST_HEADERS];
            let length = whole.write_headers(&bytes, index, &mut headers).unwrap();
            out.push([&headers[..length], &bytes[whole.payload(index)]].concat());
        }
    };
    let mut start = 0;
    for packet in packets {
        coalescer.offer(&arena, Piece { start, length: packet.len() }, &mut write);
        start += packet.len();
    }
    coalescer.finish(&mut write);
    (out, writes)
}

fn filled(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 7) as u8).collect()
}

#[test]
fn one_flow_becomes_one_packet_of_either_family_and_protocol() {
    for six in [false, true] {
        for packet in [testing::Packet::tcp(six, filled(50_000)), testing::Packet::udp(six, filled(50_000))] {
            let parts = packet.cut(1400);
            assert_eq!(through(&parts, true), (parts, 1), "{packet:?}");
        }
    }
}

#[test]
fn udp_stays_apart_where_the_device_does_not_take_it() {
    let parts = testing::Packet::udp(false, filled(5000)).cut(1000);
    assert_eq!(through(&parts, false), (parts, 5));
}

#[test]
fn the_largest_packet_is_not_exceeded() {
    let parts = testing::Packet::tcp(true, filled(1400 * 60)).cut(1400);
    assert_eq!(through(&parts, true), (parts, 2));
}

#[test]
fn a_push_ends_a_super_packet_and_stays_where_it_was() {
    let mut first = testing::Packet::tcp(false, filled(3000));
    let Carried::Tcp { sequence, flags, .. } = &mut first.carried else { unreachable!() };
    *flags |= PSH;
    let next_sequence = sequence.wrapping_add(3000);
    let mut second = first.clone();
    let Carried::Tcp { sequence: next, .. } = &mut second.carried else { unreachable!() };
    *next = next_sequence;
    second.number = first.number.wrapping_add(3);
    let parts = [first.cut(1000), second.cut(1000)].concat();
    assert_eq!(through(&parts, true), (parts, 2));
}

#[test]
fn what_has_a_wrong_checksum_is_vouched_for_by_nobody() {
    let whole = testing::Packet::tcp(false, filled(5000)).cut(1000);
    for broken in 0..5 {
        let mut parts = whole.clone();
        *parts[broken].last_mut().unwrap() ^= 1;
        let (out, writes) = through(&parts, true);
        assert_eq!(out, parts, "packet {broken}");
        assert!(writes > 1, "packet {broken}");
    }
}

#[test]
fn an_acknowledgement_a_fragment_and_a_reset_do_not_overtake_their_flow() {
    let parts = testing::Packet::tcp(false, filled(4000)).cut(1000);
    let bare = testing::Packet::tcp(false, Vec::new());
    let reset = testing::Packet {
        carried: Carried::Tcp { sequence: 1, flags: 4, options: Vec::new() },
        ..bare.clone()
    };
    let mut fragment = bare.bytes();
    fragment[6] = 0x20;
    for between in [bare.bytes(), reset.bytes(), fragment] {
        let mixed = [&parts[..2], &[between], &parts[2..]].concat();
        assert_eq!(through(&mixed, true), (mixed, 3));
    }
}

#[test]
fn numbers_that_stand_still_do_not_keep_atomic_packets_apart() {
    let mut parts = testing::Packet::tcp(false, filled(3000)).cut(1000);
    for part in &mut parts {
        packet::put(part, 4, [0, 0]);
        packet::set_checksum4(part);
    }
    assert_eq!(through(&parts, true).1, 1);
}

/// The packets of several flows, mixed as a network mixes them, with some lost, doubled, broken and swapped.
fn traffic() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let flow = (any::<bool>(), any::<bool>(), 0_u16..3, 1_usize..20_000, 200_usize..1500, any::<u8>());
    let flows = prop::collection::vec(flow, 1..12);
    let events =
        prop::collection::vec((any::<prop::sample::Index>(), 0_u8..12, any::<prop::sample::Index>()), 0..120);
    (flows, events).prop_map(|(flows, events)| {
        let mut queues: Vec<std::collections::VecDeque<Vec<u8>>> = Vec::new();
        for (six, tcp, port, length, size, flags) in flows {
            let mut packet = testing::Packet::tcp(six, filled(length));
            packet.ports = [port, 80];
            packet.carried = match packet.carried {
                Carried::Tcp { sequence, options, .. } if tcp => {
                    let flags = if flags < 200 { 0x18 } else { flags };
                    Carried::Tcp { sequence, flags, options }
                }
                _ => Carried::Udp,
            };
            queues.push(packet.cut(size).into());
        }
        let mut mixed = Vec::new();
        for (which, event, at) in events {
            let queue = which.index(queues.len());
            let Some(mut packet) = queues[queue].pop_front() else { continue };
            match event {
                0 => continue,
                1 => mixed.push(packet.clone()),
                2 => {
                    let at = at.index(packet.len());
                    packet[at] ^= 0x10;
                }
                3 => {
                    if let Some(next) = queues[queue].pop_front() {
                        mixed.push(next);
                    }
                }
                _ => {}
            }
            mixed.push(packet);
        }
        mixed
    })
}

/// A packet's flow, as far as order matters.
fn flow(packet: &[u8]) -> Option<Vec<u8>> {
    let read = Packet::parse(packet)?;
    let ports = if read.fragment { None } else { packet.get(read.payload..read.payload + 4) };
    Some(format!("{} {} {} {ports:?}", read.source, read.destination, read.protocol).into_bytes())
}

/// A packet without what may change: the number of one that is never fragmented (RFC 6864), and the checksum over it.
fn settled(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    let sound = packet.len() >= 20 && packet[0] == 0x45 && testing::checksum(&packet[..20]) == 0;
    if sound && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

proptest! {
    #[test]
    fn every_flow_comes_out_as_it_came_in(mixed in traffic()) {
        // Bytes past a packet's end are no part of it.
        let is_whole = |bytes: &Vec<u8>| Packet::parse(bytes).is_none_or(|read| read.length == bytes.len());
        let mixed: Vec<Vec<u8>> = mixed.into_iter().filter(is_whole).collect();
        let (out, _) = through(&mixed, true);
        prop_assert_eq!(out.len(), mixed.len());
        for packet in &mixed {
            let of = |all: &[Vec<u8>]| -> Vec<Vec<u8>> {
                let same = all.iter().filter(|other| flow(other) == flow(packet));
                same.map(|other| settled(other)).collect()
            };
            prop_assert_eq!(of(&out), of(&mixed));
        }
    }

    #[test]
    fn nothing_makes_it_panic(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..10)) {
        let (out, _) = through(&packets, true);
        prop_assert_eq!(out.len(), packets.len());
    }
}
