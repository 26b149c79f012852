//! The codec against bytes written by hand from the RFCs, against itself, and against anybody's bytes.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;

/// A REPLY as RFC 8415 draws it: every option by its number and layout, none by this codec.
const REPLY: &[u8] = &[
    7, 0xab, 0xcd, 0xef, // REPLY, transaction
    0, 1, 0, 4, 0, 4, 9, 9, // client: DUID of type 4
    0, 2, 0, 3, 0, 3, 1, // server
    0, 99, 0, 2, 1, 2, // an option nobody knows
    0, 3, 0, 40, 0, 0, 0, 7, 0, 0, 0, 50, 0, 0, 0, 80, // IA_NA 7, T1 50, T2 80
    0, 5, 0, 24, 0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 100, 0, 0, 0, 200, 0, 7,
    0, 1, 255, // preference
    0, 13, 0, 4, 0, 0, b'o', b'k', // status
    0, 14, 0, 0, // rapid commit
    0, 23, 0, 16, 0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x53, // name server
    0, 24, 0, 13, 7, b'e', b'x', b'a', b'm', b'p', b'l', b'e', 3, b'o', b'r', b'g', 0, // search
    0, 82, 0, 4, 0, 0, 0, 60, // SOL_MAX_RT
];

#[test]
fn a_reply_is_read_as_the_rfc_lays_it_out() {
    let message = Message::decode(REPLY).unwrap();
    assert_eq!((message.kind, message.transaction), (Kind::Reply, 0x00ab_cdef));
    assert_eq!(message.client.as_deref(), Some(&[0, 4, 9, 9][..]));
    assert_eq!(message.server.as_deref(), Some(&[0, 3, 1][..]));
    let [association] = &message.associations[..] else { panic!("{message:?}") };
    assert_eq!((association.id, association.t1, association.t2), (7, 50, 80));
    let [leased] = &association.addresses[..] else { panic!("{message:?}") };
    assert_eq!(leased.address, "2001:db8::5".parse::<Ipv6Addr>().unwrap());
    assert_eq!((leased.preferred, leased.valid), (100, 200));
    assert_eq!((message.preference, message.rapid_commit), (Some(255), true));
    assert_eq!(message.status, Some(Status { code: 0, text: "ok".into() }));
    assert_eq!(message.name_servers, ["2001:db8::53".parse::<Ipv6Addr>().unwrap()]);
    assert_eq!(message.search, ["example.org"]);
    assert_eq!(message.longest_solicit, Some(60));
}

#[test]
fn a_message_cut_anywhere_inside_an_option_is_refused() {
    let ends: Vec<usize> = {
        let mut ends = vec![4];
        while let Some(header) = REPLY.get(ends[ends.len() - 1]..ends[ends.len() - 1] + 4) {
            ends.push(ends[ends.len() - 1] + 4 + usize::from(u16::from_be_bytes([header[2], header[3]])));
        }
        ends
    };
    assert_eq!(*ends.last().unwrap(), REPLY.len());
    for length in 0..REPLY.len() {
        assert_eq!(Message::decode(&REPLY[..length]).is_ok(), ends.contains(&length), "cut at {length}");
    }
}

#[test]
fn an_option_inside_another_may_not_reach_out_of_it() {
    let mut bytes = REPLY.to_vec();
    let inner = bytes.windows(4).position(|window| window == [0, 5, 0, 24]).unwrap();
    bytes[inner + 3] = 25;
    assert_eq!(Message::decode(&bytes), Err(Malformed::Truncated("an option")));
    bytes[inner + 3] = 23;
    assert!(Message::decode(&bytes).is_err());
}

#[test]
fn messages_of_relays_and_of_nobody_are_refused() {
    for number in [0, 12, 13, 14, 255] {
        assert_eq!(Message::decode(&[number, 0, 0, 0]), Err(Malformed::Kind(number)));
    }
}

#[test]
fn of_an_option_that_comes_twice_the_first_counts() {
    let mut bytes = REPLY.to_vec();
    bytes.extend_from_slice(&[0, 2, 0, 1, 66, 0, 7, 0, 1, 1]);
    let message = Message::decode(&bytes).unwrap();
    assert_eq!(message.server.as_deref(), Some(&[0, 3, 1][..]));
    assert_eq!(message.preference, Some(255));
}

#[test]
fn a_search_domain_that_would_write_lines_of_its_own_is_dropped() {
    let evil = b"\x0bnameserver \x01a\x00\x05a\nb.c\x00\x04good\x03org\x00";
    assert_eq!(decode_names(evil), ["good.org"]);
    assert_eq!(decode_names(b"\x04good\x00\xc0\x00\x03bad\x00"), ["good"], "compression ends the list");
    assert_eq!(decode_names(b"\x04good\x00\x09cut"), ["good"]);
    assert_eq!(decode_names(b"\x00\x00"), Vec::<String>::new());
}

fn status() -> impl Strategy<Value = Option<Status>> {
    option::of((any::<u16>(), "[ -~]{0,20}").prop_map(|(code, text)| Status { code, text }))
}

fn leased() -> impl Strategy<Value = Leased> {
    (any::<u128>(), any::<u32>(), any::<u32>(), status()).prop_map(|(address, preferred, valid, status)| {
        Leased { address: Ipv6Addr::from(address), preferred, valid, status }
    })
}

fn association() -> impl Strategy<Value = Association> {
    (any::<[u32; 3]>(), vec(leased(), 0..4), status())
        .prop_map(|([id, t1, t2], addresses, status)| Association { id, t1, t2, addresses, status })
}

fn message() -> impl Strategy<Value = Message> {
    let head =
        (1_u8..12, 0_u32..1 << 24, option::of(vec(any::<u8>(), 0..20)), option::of(vec(any::<u8>(), 0..20)));
    let body = (
        vec(association(), 0..3),
        vec(any::<u16>(), 0..5),
        option::of(any::<u8>()),
        option::of(any::<u16>()),
    );
    let name = "[a-z0-9_-]{1,20}(\\.[a-z0-9-]{1,20}){0,3}";
    let tail = (status(), any::<bool>(), vec(any::<u128>(), 0..4), vec(name, 0..4), option::of(any::<u32>()));
    (head, body, tail).prop_map(|(head, body, tail)| Message {
        kind: Kind::of(head.0).unwrap(),
        transaction: head.1,
        client: head.2,
        server: head.3,
        associations: body.0,
        requested: body.1,
        preference: body.2,
        elapsed: body.3,
        status: tail.0,
        rapid_commit: tail.1,
        name_servers: tail.2.into_iter().map(Ipv6Addr::from).collect(),
        search: tail.3,
        longest_solicit: tail.4,
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(message in message()) {
        prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
    }

    #[test]
    fn anybodys_bytes_are_read_or_refused_and_what_is_read_is_stable(bytes in vec(any::<u8>(), 0..400)) {
        if let Ok(message) = Message::decode(&bytes) {
            prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn a_flipped_byte_harms_nobody(place in 0..REPLY.len(), byte in any::<u8>()) {
        let mut bytes = REPLY.to_vec();
        bytes[place] = byte;
        if let Ok(message) = Message::decode(&bytes) {
            prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
    }
}
