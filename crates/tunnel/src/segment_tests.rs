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

/// A super-packet as it is given to a kernel: its checksum is left open.
fn open(of: &testing::Packet) -> Vec<u8> {
    let mut bytes = of.bytes();
    let header = vnet(of, 0);
    let transport = usize::from(header.checksum_start);
    let protocol = if matches!(of.carried, Carried::Udp) { UDP } else { TCP };
    let partial = packet::address_sum(&bytes).add_pseudo(protocol, bytes.len() - transport).partial();
    packet::put(&mut bytes, transport + usize::from(header.checksum_offset), partial);
    bytes
}

/// The same after a router.
fn routed(mut bytes: Vec<u8>) -> Vec<u8> {
    let four = bytes[0] >> 4 == 4;
    bytes[if four { 8 } else { 7 }] -= 1;
    if four {
        packet::set_checksum4(&mut bytes);
    }
    bytes
}

/// Two devices with a router between them, the second of which takes no super-packets.
fn router() -> Option<(harness::Namespace, kernel::tun::Queue, kernel::tun::Queue)> {
    let namespace = harness::Namespace::with_loopback();
    let queues = namespace.inside(|| (kernel::tun::Queue::open("tun0"), kernel::tun::Queue::open("tun1")));
    let (Ok(a), Ok(b)) = queues else {
        harness::not_run("there are no TUN devices to be had");
        return None;
    };
    if !harness::run(namespace.command("ethtool").args(["-K", "tun1", "tx", "off"])).status.success() {
        harness::not_run("ethtool cannot keep a device from super-packets");
        return None;
    }
    for words in [
        "link set tun0 up",
        "link set tun1 up",
        "address add 10.1.0.1/24 dev tun0",
        "address add 10.2.0.1/24 dev tun1",
        "address add fd00:1::1/64 dev tun0 nodad",
        "address add fd00:2::1/64 dev tun1 nodad",
    ] {
        namespace.ip(words);
    }
    for setting in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
        harness::run_ok(namespace.command("sysctl").args(["-q", "-w", setting]));
    }
    harness::eventually("both carry", || {
        let up = |link: &str| namespace.ip(&format!("link show {link}")).contains("LOWER_UP");
        (up("tun0") && up("tun1")).then_some(())
    });
    Some((namespace, a, b))
}

#[test]
fn the_kernel_cuts_as_we_do() {
    let Some((_namespace, a, b)) = router() else { return };
    for six in [false, true] {
        let mut packets = vec![testing::Packet::tcp(six, (0..30_000_u32).map(|byte| byte as u8).collect())];
        if b.takes_udp() {
            packets.push(testing::Packet::udp(six, (0..20_000_u32).map(|byte| byte as u8).collect()));
        }
        if let Carried::Tcp { flags, .. } = &mut packets[0].carried {
            *flags |= FIN | PSH;
        }
        for packet in packets {
            let header = vnet(&packet, 1400);
            let whole = open(&packet);
            a.write(&[std::io::IoSlice::new(&header.to_bytes()), std::io::IoSlice::new(&whole)]).unwrap();
            let expected = cut(&header, &routed(whole)).unwrap();
            let mut found = Vec::new();
            let mut buffer = vec![0; kernel::tun::LARGEST_READ];
            harness::eventually("all packets of it", || {
                while let Some(length) = b.read(&mut buffer).unwrap() {
                    let (header, bytes) = VnetHeader::split(&buffer[..length]).unwrap();
                    let ours = Packet::parse(bytes).is_some_and(|read| read.source == packet.source);
                    if ours {
                        assert_eq!(header, VnetHeader::default(), "the kernel has done it all");
                        found.push(bytes.to_vec());
                    }
                }
                (found.len() >= expected.len()).then_some(())
            });
            assert_eq!(found, expected, "{six} {:?}", packet.carried);
        }
    }
}
