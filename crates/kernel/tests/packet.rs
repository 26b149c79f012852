//! Packets without an address: sent, filtered and received in namespaces of the test.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure here is a failure of the test")]

use harness::{Namespace, eventually};
use kernel::link::{self, Link};
use kernel::netlink::Protocol;
use kernel::netns::Netns;
use kernel::packet::PacketSocket;
use netstate::Mac;

/// An IPv4 packet with a UDP header, its ports and a payload of one byte.
fn packet(port: u16, fragment: u16, payload: u8) -> Vec<u8> {
    let mut bytes = vec![0; 29];
    bytes[0] = 0x45;
    bytes[3] = 29;
    bytes[6..8].copy_from_slice(&fragment.to_be_bytes());
    bytes[8..10].copy_from_slice(&[64, 17]);
    bytes[16..20].copy_from_slice(&[255; 4]);
    bytes[22..24].copy_from_slice(&port.to_be_bytes());
    bytes[25] = 9;
    bytes[28] = payload;
    bytes
}

fn link_in(namespace: &Netns, name: &str) -> Link {
    let mut socket = namespace.socket(Protocol::Route).unwrap();
    link::find(&mut socket, name).unwrap().unwrap()
}

#[test]
fn only_whole_udp_packets_to_the_port_come_in_with_the_hardware_address_of_their_sender() {
    let (near, far) = (Namespace::new(), Namespace::new());
    near.ip(&format!("link add near type veth peer name far netns {}", far.path().display()));
    near.ip("link set near up");
    far.ip("link set far up");
    let (here, there) = (Netns::open(near.path()).unwrap(), Netns::open(far.path()).unwrap());
    let (a, b) = (link_in(&here, "near"), link_in(&there, "far"));
    eventually("the cable carries frames", || link_in(&there, "far").is_running().then_some(()));
    eventually("both ends do", || link_in(&here, "near").is_running().then_some(()));
    let sender = PacketSocket::open(&here, a.index, 67).unwrap();
    let receiver = PacketSocket::open(&there, b.index, 68).unwrap();
    let mut buffer = [0; 100];
    assert_eq!(receiver.receive(&mut buffer).unwrap(), None, "it does not wait");
    for (port, fragment, payload) in [(67, 0, 1), (68, 0x2000 | 5, 2), (68, 0, 3)] {
        sender.send(None, &packet(port, fragment, payload)).unwrap();
    }
    // Another protocol on the same numbers, then one for this very hardware address.
    let mut tcp = packet(68, 0, 4);
    tcp[9] = 6;
    sender.send(None, &tcp).unwrap();
    sender.send(b.mac, &packet(68, 0, 5)).unwrap();
    let mut next =
        || eventually("a packet", || receiver.receive(&mut buffer).unwrap().map(|got| (got, buffer[28])));
    assert_eq!(next(), ((29, a.mac.unwrap()), 3));
    assert_eq!(next(), ((29, a.mac.unwrap()), 5));
    far.ip("link del far");
    assert!(sender.send(Some(Mac([2; 6])), &packet(68, 0, 6)).is_err(), "its link is gone");
}

#[test]
fn a_namespace_has_a_number_that_no_other_has() {
    let (first, second) = (Namespace::new(), Namespace::new());
    let cookie = |namespace: &Namespace| Netns::open(namespace.path()).unwrap().cookie().unwrap();
    let Some(number) = cookie(&first) else {
        return harness::not_run("this kernel does not tell namespaces' cookies (5.14)");
    };
    assert_eq!(cookie(&first), Some(number));
    assert_ne!(cookie(&second), Some(number));
}
