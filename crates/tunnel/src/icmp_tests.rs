//! Complaints: to whom, about what, and what they say.

use super::*;
use crate::testing;

fn about(complaint: Complaint, bytes: &[u8]) -> Option<Vec<u8>> {
    let packet = Packet::parse(bytes).unwrap();
    complaint.write(&packet, bytes, &mut [0; LONGEST6]).map(<[u8]>::to_vec)
}

#[test]
fn they_name_the_reason_and_quote_the_packet() {
    let four = testing::Packet::udp(false, vec![7; 2000]).bytes();
    let message = about(Complaint::TooBig(1400), &four).unwrap();
    assert_eq!(message[..2], [3, 4]);
    assert_eq!(message[4..8], [0, 0, 0x05, 0x78]);
    assert_eq!(message.len(), 556);
    assert_eq!(message[8..], four[..548]);
    assert_eq!(testing::checksum(&message), 0);
    assert_eq!(
        about(Complaint::Unreachable, &four).unwrap()[..8],
        [3, 0, message_sum(&four)[0], message_sum(&four)[1], 0, 0, 0, 0]
    );

    let six = testing::Packet::tcp(true, vec![7; 2000]).bytes();
    let message = about(Complaint::TooBig(1280), &six).unwrap();
    assert_eq!(message[..8], [2, 0, 0, 0, 0, 0, 5, 0]);
    assert_eq!(message.len(), 1240);
    assert_eq!(about(Complaint::Unreachable, &six).unwrap()[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
}

fn message_sum(quoted: &[u8]) -> [u8; 2] {
    let message = [&[3, 0, 0, 0, 0, 0, 0, 0], &quoted[..548]].concat();
    testing::checksum(&message).to_be_bytes()
}

#[test]
fn nobody_is_told_of_errors_later_fragments_or_multicast() {
    let plain = testing::Packet::udp(false, vec![0; 100]);
    let with = |change: fn(&mut Vec<u8>)| {
        let mut bytes = plain.bytes();
        change(&mut bytes);
        about(Complaint::Unreachable, &bytes)
    };
    assert!(with(|_| ()).is_some());
    assert!(with(|bytes| bytes[6] = 0x20).is_some(), "the first fragment");
    assert!(with(|bytes| bytes[7] = 1).is_none(), "a later fragment");
    assert!(with(|bytes| bytes[16] = 224).is_none(), "multicast");
    assert!(with(|bytes| bytes[12..16].fill(0)).is_none(), "from nobody");
    for (kind, told) in
        [(0, true), (8, true), (3, false), (4, false), (5, false), (11, false), (12, false), (13, true)]
    {
        let mut bytes = plain.bytes();
        bytes[9] = ICMP;
        bytes[20] = kind;
        assert_eq!(about(Complaint::Unreachable, &bytes).is_some(), told, "ICMP type {kind}");
    }
    for (kind, told) in [(128, true), (129, true), (1, false), (2, false), (3, false), (127, false)] {
        let mut bytes = testing::Packet::udp(true, vec![0; 100]).bytes();
        bytes[6] = ICMP6;
        bytes[40] = kind;
        assert_eq!(about(Complaint::Unreachable, &bytes).is_some(), told, "ICMPv6 type {kind}");
    }
}

#[test]
fn no_more_are_sent_than_is_decent() {
    let start = Instant::now();
    let mut complaints =
        Complaints { sockets: [None, None], buffer: [0; LONGEST6], left: BURST, filled: start };
    let mut allowed = |after: u64| {
        let now = start + Duration::from_micros(after);
        (0..10_000).filter(|_| complaints.may(now)).count()
    };
    assert_eq!(allowed(0), 100, "a burst");
    assert_eq!(allowed(999), 0);
    assert_eq!(allowed(1000), 1, "one a millisecond");
    assert_eq!(allowed(11_500), 10);
    assert_eq!(allowed(12_000), 1, "what was earned in part is not lost");
    assert_eq!(allowed(100_000_000), 100, "no more than a burst is saved up");
}
