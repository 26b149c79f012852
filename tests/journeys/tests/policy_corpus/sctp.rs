//! SCTP, asked of kernels that have none.
//!
//! Read [`Asker`]. A pod sends the first packet of an association (INIT, RFC 9260 section 3.3.2) that is written here whole, for
//! there are no sockets for it. A kernel without SCTP answers each one that arrives with an ICMP error: in IPv4 that the protocol
//! is unreachable, in IPv6 that the next header is not known. The error has the packet's beginning in it, by which it is told whose it is.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};

use crate::probes::Answer;

/// Its number in IP.
const SCTP: u8 = 132;

/// Whether the machine's kernel has no SCTP. One that has would answer in SCTP, which nobody here understands.
pub(crate) fn can_be_asked() -> bool {
    let kind = (AddressFamily::INET, SocketType::STREAM, Some(ipproto::SCTP));
    net::socket_with(kind.0, kind.1, SocketFlags::CLOEXEC, kind.2).is_err()
}

/// Who asks from one namespace in one family.
pub(crate) struct Asker {
    /// Packets go out here as they are; nothing is ever received.
    packets: OwnedFd,
    /// All ICMP of the namespace comes in here.
    errors: OwnedFd,
    v6: bool,
    /// The flows that are not answered yet, by their source ports.
    waiting: BTreeMap<u16, usize>,
}

impl Asker {
    /// In the calling thread's namespace.
    pub(crate) fn open(v6: bool) -> Result<Self, Errno> {
        let (family, icmp) =
            if v6 { (AddressFamily::INET6, ipproto::ICMPV6) } else { (AddressFamily::INET, ipproto::ICMP) };
        let raw = |protocol: Protocol| {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            net::socket_with(family, SocketType::RAW, flags, Some(protocol))
        };
        Ok(Self { packets: raw(ipproto::RAW)?, errors: raw(icmp)?, v6, waiting: BTreeMap::new() })
    }

    /// Sends the flow's first packet.
    pub(crate) fn send(&mut self, number: usize, source: IpAddr, to: SocketAddr) -> Result<(), Errno> {
        let port = next_port();
        let packet = packet(source, to.ip(), &init(port, to.port()));
        net::sendto(&self.packets, &packet, SendFlags::empty(), &SocketAddr::new(to.ip(), 0))?;
        self.waiting.insert(port, number);
        Ok(())
    }

    /// The flows that were answered meanwhile.
    pub(crate) fn answered(&mut self) -> Vec<(usize, Answer)> {
        let mut answered = Vec::new();
        let mut buffer = [0; 2048];
        while let Ok((count, _)) = net::recv(&self.errors, &mut buffer[..], RecvFlags::empty()) {
            let Some((port, answer)) = read(&buffer[..count], self.v6) else { continue };
            answered.extend(self.waiting.remove(&port).map(|number| (number, answer)));
        }
        answered
    }
}

impl AsFd for Asker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.errors.as_fd()
    }
}

/// Another one for each flow, so that none is tracked as one of before.
fn next_port() -> u16 {
    static COUNT: AtomicU16 = AtomicU16::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed) % 30_000 + 30_000
}

/// An IP packet; the kernel puts the checksum and, in IPv4, the length into its header.
fn packet(source: IpAddr, to: IpAddr, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("it is short");
    let header = match (source, to) {
        (IpAddr::V4(source), IpAddr::V4(to)) => {
            [&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, SCTP, 0, 0][..], &source.octets(), &to.octets()].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(to)) => {
            [&[0x60, 0, 0, 0, 0, length, SCTP, 64][..], &source.octets(), &to.octets()].concat()
        }
        _ => panic!("{source} and {to} are of two families"),
    };
    [&header, payload].concat()
}

/// The common header and an INIT of one stream each way.
fn init(source: u16, to: u16) -> Vec<u8> {
    let ports = [source.to_be_bytes(), to.to_be_bytes()].concat();
    let tag = [0; 4];
    let (kind_and_length, own_tag, window) = ([1, 0, 0, 20], [1, 2, 3, 4], [0, 0, 255, 255]);
    let (streams, first_number) = ([0, 1, 0, 1], [0, 0, 0, 7]);
    let chunk = [kind_and_length, own_tag, window, streams, first_number].concat();
    let checksum = crc32c(&[&ports[..], &tag, &[0; 4], &chunk].concat());
    [&ports[..], &tag, &checksum.to_le_bytes(), &chunk].concat()
}

/// The checksum of SCTP (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    let over = |sum: u32, byte: &u8| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0x82f6_3b78 * (sum & 1)))
    };
    !bytes.iter().fold(u32::MAX, over)
}

/// What an ICMP error says, and of which source port's packet. That of IPv4 comes with its header, that of IPv6 without.
fn read(bytes: &[u8], v6: bool) -> Option<(u16, Answer)> {
    let icmp = if v6 { bytes } else { bytes.get(header_of(bytes)?..)? };
    let inner = icmp.get(8..)?;
    let (protocol, payload) =
        if v6 { (inner.get(6)?, inner.get(40..)?) } else { (inner.get(9)?, inner.get(header_of(inner)?..)?) };
    let answer = match (v6, icmp.first()?, icmp.get(1)?) {
        (false, 3, 2) | (true, 4, 1) => Answer::Passed,
        (false, 3, _) | (true, 1 | 4, _) => Answer::Other(Errno::HOSTUNREACH),
        _ => return None,
    };
    let port = u16::from_be_bytes([*payload.first()?, *payload.get(1)?]);
    (*protocol == SCTP).then_some((port, answer))
}

/// How long an IPv4 header is.
fn header_of(packet: &[u8]) -> Option<usize> {
    Some(usize::from(packet.first()? & 15) * 4)
}
