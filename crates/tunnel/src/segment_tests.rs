//! Super-packets cut, compared with packets that were built one by one.

use proptest::prelude::*;

use super::*;
use crate::testing::{self, Carried};

fn vnet(of: &testing::Packet, size: usize) -> VnetHeader {
    let (headers, transport) = of.headers();
    let kind = match (&of.carried, of.source.is_ipv4()) {
        (Carried::Tcp { .. }, true) => GSO_TCP4,
        (Carried::Tcp { .. }, false) => GSO_TCP6,
        (Carried::Udp, _) => GSO_UDP,
    };
    let is_tcp = matches!(of.carried, Carried::Tcp { .. });
    VnetHeader {
        flags: NEEDS_CHECKSUM,
        kind,
        header_length: headers as u16,
        segment_size: size as u16,
        checksum_start: transport as u16,
        checksum_offset: if is_tcp { 16 } else { 6 },
    }
}

fn cut(header: &VnetHeader, bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let packet = Packet::parse(bytes)?;
    let whole = SuperPacket::parse(header, bytes, packet)?;
    let one = |index| {
        let mut headers = [0; LONGEST_HEADERS];
        let length = whole.write_headers(bytes, index, &mut headers)?;
        Some([&headers[..length], &bytes[whole.payload(index)]].concat())
    };
    (0..whole.count()).map(one).collect()
}

fn packets() -> impl Strategy<Value = testing::Packet> {
    let carried = prop_oneof![
        Just(Carried::Udp),
        (any::<u32>(), any::<u8>(), 0_usize..=10).prop_map(|(sequence, flags, words)| Carried::Tcp {
            sequence,
            flags,
            options: vec![1; words * 4]
        }),
    ];
    (any::<bool>(), any::<bool>(), any::<u16>(), carried, prop::collection::vec(any::<u8>(), 1..6000))
        .prop_map(|(six, dont_fragment, number, carried, payload)| testing::Packet {
            number,
            dont_fragment,
            carried,
            ..testing::Packet::tcp(six, payload)
        })
}

proptest! {
    #[test]
    fn what_is_cut_is_what_was_built(packet in packets(), size in 8_usize..2000) {
        prop_assert_eq!(cut(&vnet(&packet, size), &packet.bytes()), Some(packet.cut(size)));
    }

    #[test]
    fn a_checksum_left_open_is_finished(packet in packets()) {
        let right = packet.bytes();
        let (header, mut open) = (VnetHeader { kind: GSO_NONE, ..vnet(&packet, 0) }, right.clone());
        let place = usize::from(header.checksum_start + header.checksum_offset);
        let at = usize::from(header.checksum_start);
        let protocol = if matches!(packet.carried, Carried::Udp) { UDP } else { TCP };
        let partial = packet::address_sum(&right).add_pseudo(protocol, right.len() - at).partial();
        open[place..place + 2].copy_from_slice(&partial);
        prop_assert!(finish_checksum(&header, &mut open));
        prop_assert_eq!(open, right);
    }

    #[test]
    fn nothing_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), raw in any::<[u8; 10]>()) {
        let (mut header, _) = VnetHeader::split(&raw).unwrap();
        let _ = cut(&header, &bytes);
        header.kind = GSO_NONE;
        let _ = finish_checksum(&header, &mut bytes.clone());
    }

    #[test]
    fn a_broken_super_packet_does_not_make_it_panic(
        packet in packets(), size in 1_usize..2000, at in any::<prop::sample::Index>(), value in any::<u8>(),
        length in any::<prop::sample::Index>(),
    ) {
        let mut bytes = packet.bytes();
        let headers = packet.headers().0;
        bytes[at.index(headers)] = value;
        let _ = cut(&vnet(&packet, size), &bytes);
        bytes.truncate(length.index(bytes.len() + 1));
        let _ = cut(&vnet(&packet, size), &bytes);
    }
}
