//! Batches of datagrams over the loopback of a namespace of the test: gathered, cut, glued, and refused.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure here is a failure of the test")]

use std::net::SocketAddr;

use harness::{Namespace, eventually};
use kernel::datagram::{Batch, Datagrams, Message, Piece, Receiver, Sender, path_mtu};
use rustix::io::Errno;

/// A socket inside, and where it is.
fn socket(namespace: &Namespace, address: &str) -> (Datagrams, SocketAddr) {
    let socket =
        namespace.inside(|| Datagrams::udp(SocketAddr::new(address.parse().unwrap(), 0), false)).unwrap();
    let local = socket.local().unwrap();
    (socket, local)
}

/// All that comes in, datagram by datagram, until there are so many.
fn receive(socket: &Datagrams, count: usize) -> Vec<Vec<u8>> {
    let mut receiver = Receiver::new(3, 65_536);
    let mut all = Vec::new();
    eventually("all datagrams", || {
        for index in 0..receiver.receive(socket).unwrap() {
            let datagram = receiver.datagram(index).unwrap();
            let bytes = &receiver.arena()[datagram.start..datagram.start + datagram.length];
            all.extend(bytes.chunks(datagram.segment.unwrap_or(usize::MAX)).map(<[u8]>::to_vec));
        }
        (all.len() >= count).then_some(())
    });
    all
}

#[test]
fn a_batch_arrives_datagram_by_datagram_over_either_family() {
    let namespace = Namespace::with_loopback();
    for address in ["127.0.0.1", "::1"] {
        let ((from, _), (to, place)) = (socket(&namespace, address), socket(&namespace, address));
        let arena: Vec<u8> = (0..5000_usize).map(|index| (index / 7) as u8).collect();
        let piece = |start, length| Piece { start, length };
        // Three of a thousand bytes and a short one in one message, each in two pieces; then a single one.
        let pieces = [
            piece(0, 400),
            piece(400, 600),
            piece(1000, 1500),
            piece(2500, 500),
            piece(3000, 10),
            piece(4000, 1000),
        ];
        let messages = [
            Message { to: place, segment: Some(1000), pieces: 0..5 },
            Message { to: place, segment: None, pieces: 5..6 },
        ];
        let batch = Batch { arena: &arena, pieces: &pieces, messages: &messages };
        Sender::default().send(&from, batch, |index, errno| panic!("message {index}: {errno}"));
        let expected: Vec<Vec<u8>> = [0..1000, 1000..2000, 2000..3000, 3000..3010, 4000..5000]
            .map(|range| arena[range].to_vec())
            .to_vec();
        assert_eq!(receive(&to, 5), expected, "{address}");
    }
}

#[test]
fn what_cannot_be_sent_is_named_and_the_rest_is_sent() {
    let namespace = Namespace::with_loopback();
    namespace.ip("link set lo mtu 1500");
    let ((from, own), (to, place)) = (socket(&namespace, "127.0.0.1"), socket(&namespace, "127.0.0.1"));
    let arena = vec![7; 4000];
    let pieces =
        [Piece { start: 0, length: 100 }, Piece { start: 0, length: 4000 }, Piece { start: 9, length: 50 }];
    let message = |index| Message { to: place, segment: None, pieces: index..index + 1 };
    let messages = [message(0), message(1), message(2)];
    let mut failed = Vec::new();
    let batch = Batch { arena: &arena, pieces: &pieces, messages: &messages };
    Sender::default().send(&from, batch, |index, errno| failed.push((index, errno)));
    assert_eq!(failed, [(1, Errno::MSGSIZE)]);
    assert_eq!(receive(&to, 2).iter().map(Vec::len).collect::<Vec<_>>(), [100, 50]);
    assert_eq!(namespace.inside(|| path_mtu(own.ip(), place.ip())), Some(1500));
}

#[test]
fn a_piece_outside_of_the_arena_is_nothing() {
    let arena = [1, 2, 3];
    assert_eq!(Piece { start: 1, length: 2 }.of(&arena), [2, 3]);
    for (start, length) in [(1, 3), (4, 0), (usize::MAX, 1)] {
        assert_eq!(Piece { start, length }.of(&arena), [] as [u8; 0]);
    }
}
