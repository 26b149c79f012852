//! Packets written by hand, byte for byte, and what becomes of them on the wire.
//!
//! Read [`Inner`]. Every byte of it is known, so every byte behind an outer header can be told beforehand: the node that routes it into a
//! tunnel takes one off its time to live, and nothing else of it changes.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV6};
use std::num::NonZeroU32;

use harness::{Namespace, eventually};
use kernel::datagram::{Datagrams, Receiver};
use rustix::net::{AddressFamily, Protocol, SendFlags, SocketType};

use super::Rig;

/// A protocol number for experiments (RFC 3692), which no kernel answers and nobody looks into.
const EXPERIMENT: u8 = 253;

/// A packet from the first pod to the second.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inner {
    pub(crate) six: bool,
    /// The whole of the type of service, or traffic class.
    pub(crate) class: u8,
    /// May no router cut it? (IPv6 never may.)
    pub(crate) whole: bool,
    pub(crate) payload: usize,
}

impl Inner {
    /// Packets of both families, of every codepoint of congestion, and of sizes from one byte to all that fits.
    pub(crate) fn all(mtu: u16) -> Vec<Self> {
        let mut all = Vec::new();
        for (six, header) in [(false, 20), (true, 40)] {
            for class in [0, 1, 2, 3, 0xb8, 0xbb] {
                let cut: &[bool] = if six { &[true] } else { &[true, false] };
                for &whole in cut {
                    for payload in [1, 63, usize::from(mtu) - header] {
                        all.push(Self { six, class, whole, payload });
                    }
                }
            }
        }
        all
    }

    /// Its bytes, with so much of its time left to live.
    pub(crate) fn bytes(self, lives: u8) -> Vec<u8> {
        let pods: [[u8; 4]; 2] = [[10, 1, 0, 2], [10, 2, 0, 2]];
        let mut bytes = if self.six {
            let [high, low] = u16::try_from(self.payload).unwrap().to_be_bytes();
            // A flow label of abcde.
            let class = [0x60 | self.class >> 4, self.class << 4 | 0xa, 0xbc, 0xde];
            let pod = |number: u8| [0xfd, 0, 0, number, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
            [&class[..], &[high, low, EXPERIMENT, lives], &pod(1), &pod(2)].concat()
        } else {
            let [high, low] = u16::try_from(20 + self.payload).unwrap().to_be_bytes();
            let fragment = if self.whole { 0x40 } else { 0 };
            let fixed = [0x45, self.class, high, low, 0x12, 0x34, fragment, 0, lives, EXPERIMENT, 0, 0];
            let mut header = [&fixed[..], &pods[0], &pods[1]].concat();
            let [a, b] = (!sum(&header)).to_be_bytes();
            header[10..12].copy_from_slice(&[a, b]);
            header
        };
        bytes.extend((0..self.payload).map(|index| (index * 7 + self.payload) as u8));
        bytes
    }

    /// Sends it from the first pod.
    pub(crate) fn send(self, rig: &Rig) {
        let bytes = self.bytes(64);
        rig.pods[0].inside(|| {
            if self.six {
                let raw = Some(Protocol::from_raw(NonZeroU32::new(255).unwrap()));
                let socket = rustix::net::socket(AddressFamily::INET6, SocketType::RAW, raw).unwrap();
                let to = SocketAddrV6::new("fd00:2::2".parse().unwrap(), 0, 0, 0);
                rustix::net::sendto(&socket, &bytes, SendFlags::empty(), &to).unwrap();
            } else {
                let socket = Datagrams::raw(Ipv4Addr::new(10, 1, 0, 2), EXPERIMENT).unwrap();
                socket.send_one(SocketAddr::from(([10, 2, 0, 2], 0)), &bytes).unwrap();
            }
        });
    }

    /// Sends it, and returns what arrives with it inside at a socket that [`listen`] has opened.
    pub(crate) fn seen(self, rig: &Rig, socket: &Datagrams) -> Vec<u8> {
        self.send(rig);
        self.arrived(socket)
    }

    /// What arrives with it inside.
    pub(crate) fn arrived(self, socket: &Datagrams) -> Vec<u8> {
        let mut receiver = Receiver::new(1, 4000);
        let payload = self.bytes(64).split_off(if self.six { 40 } else { 20 });
        eventually(&format!("{self:?} arrives"), || {
            let count = receiver.receive(socket).unwrap_or(0);
            let datagram = receiver.datagram(0).filter(|_| count > 0)?;
            let bytes = &receiver.arena()[datagram.start..datagram.start + datagram.length];
            bytes.ends_with(&payload).then(|| bytes.to_vec())
        })
    }
}

/// A socket in a namespace that hears whole packets of IPv4 to this address, headers and all: `protocol` is 4, 41, 17
/// or, for what is in no tunnel any more, none.
pub(crate) fn listen(namespace: &Namespace, address: &str, protocol: Option<u8>) -> Datagrams {
    let address = address.parse().unwrap();
    namespace.inside(|| Datagrams::raw(address, protocol.unwrap_or(EXPERIMENT))).unwrap()
}

/// The sum of RFC 1071, by the book: all ones over what has its checksum in it.
pub(crate) fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
}

/// An outer IPv4 header, whose checksum has to be right, without the two fields that differ from packet to packet:
/// identification, by which nobody puts together what nobody may cut, and the checksum over it.
pub(crate) fn outer(bytes: &[u8]) -> Vec<u8> {
    let mut header = bytes[..20].to_vec();
    assert_eq!(sum(&header), 0xffff, "the checksum of {header:02x?}");
    header[4..6].fill(0);
    header[10..12].fill(0);
    header
}

/// What a router has taken one off of.
pub(crate) fn routed(inner: Inner) -> Vec<u8> {
    inner.bytes(63)
}
