//! Whether peers answer through the tunnel: one ICMP echo each, to the base address of their pod CIDR.
//!
//! Read [`silent`]. That address is on the peer's tunnel device, so an answer means that the packet went all the way
//! that a pod's would go, and back; and nobody needs to run there for it but the kernel. RFC 792, RFC 4443.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};

use crate::status::Probed;

/// How long answers may take.
const PATIENCE: Duration = Duration::from_millis(500);

/// Marks our payload among whatever else arrives on a raw socket.
const MAGIC: [u8; 4] = *b"frlh";

/// Those of the peers that do not answer. None does where this process may not ask.
pub(crate) fn silent(peers: &[Probed]) -> Vec<&Probed> {
    let mut waiting: Vec<&Probed> = peers.iter().collect();
    for is_ipv4 in [true, false] {
        if waiting.iter().all(|peer| peer.address.is_ipv4() != is_ipv4) {
            continue;
        }
        match Echo::open(is_ipv4) {
            Ok(echo) => echo.ask(&mut waiting),
            Err(error) => tracing::warn!(%error, "peers cannot be asked; hint: the agent needs CAP_NET_RAW"),
        }
    }
    waiting
}

/// A raw ICMP socket of one family.
struct Echo {
    socket: OwnedFd,
    is_ipv4: bool,
}

impl Echo {
    fn open(is_ipv4: bool) -> io::Result<Self> {
        let (family, protocol) = if is_ipv4 {
            (AddressFamily::INET, ipproto::ICMP)
        } else {
            (AddressFamily::INET6, ipproto::ICMPV6)
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(family, SocketType::RAW, flags, Some(protocol))?;
        Ok(Self { socket, is_ipv4 })
    }

    /// Asks those of this family, and takes out of `waiting` who answers.
    fn ask(&self, waiting: &mut Vec<&Probed>) {
        let asked: Vec<IpAddr> = waiting
            .iter()
            .map(|peer| peer.address)
            .filter(|address| address.is_ipv4() == self.is_ipv4)
            .collect();
        for address in &asked {
            let to = SocketAddr::from((*address, 0));
            // A refusal (no route, say) is an answer that does not come.
            let _ = rustix::net::sendto(&self.socket, &request(self.is_ipv4), SendFlags::empty(), &to);
        }
        let deadline = Instant::now() + PATIENCE;
        while waiting.iter().any(|peer| peer.address.is_ipv4() == self.is_ipv4) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || !self.wait(left) {
                return;
            }
            self.collect(waiting);
        }
    }

    fn wait(&self, left: Duration) -> bool {
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut polled = [PollFd::new(&self.socket, PollFlags::IN)];
        matches!(poll(&mut polled, Some(&timeout)), Ok(1..) | Err(rustix::io::Errno::INTR))
    }

    fn collect(&self, waiting: &mut Vec<&Probed>) {
        let mut buffer = [0_u8; 512];
        while let Ok((length, _, from)) =
            rustix::net::recvfrom(&self.socket, buffer.as_mut_slice(), RecvFlags::DONTWAIT)
        {
            let from = from.and_then(|from| SocketAddr::try_from(from).ok());
            if let (true, Some(from)) = (is_answer(self.is_ipv4, &buffer[..length]), from) {
                waiting.retain(|peer| peer.address != from.ip());
            }
        }
    }
}

/// Type, code, checksum, identifier, sequence number, then the mark.
fn request(is_ipv4: bool) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[0] = if is_ipv4 { 8 } else { 128 };
    // Two bytes of the process are enough: an answer to another agent of this host would be as good.
    bytes[4..6].copy_from_slice(&std::process::id().to_be_bytes()[2..]);
    bytes[8..].copy_from_slice(&MAGIC);
    if is_ipv4 {
        // For ICMPv6 the kernel fills in the checksum: it covers the addresses too.
        let sum = checksum(&bytes);
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

fn is_answer(is_ipv4: bool, packet: &[u8]) -> bool {
    // An IPv4 raw socket hands over the IP header as well.
    let header = if is_ipv4 { packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4) } else { 0 };
    let Some(message) = packet.get(header..header + 12) else { return false };
    message[0] == if is_ipv4 { 0 } else { 129 } && message[8..12] == MAGIC
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::{checksum, is_answer, request};

    #[test]
    fn only_a_reply_with_our_mark_is_an_answer() {
        for is_ipv4 in [true, false] {
            let header: &[u8] = if is_ipv4 { &[0x45; 20] } else { &[] };
            let packet = |kind: u8| {
                let mut message = request(is_ipv4);
                message[0] = kind;
                [header, &message].concat()
            };
            let reply = packet(if is_ipv4 { 0 } else { 129 });
            assert!(is_answer(is_ipv4, &reply));
            assert!(!is_answer(is_ipv4, &packet(8)) && !is_answer(is_ipv4, &packet(128)));
            for length in 0..reply.len() {
                assert!(!is_answer(is_ipv4, &reply[..length]), "{length} bytes");
            }
        }
    }

    #[test]
    fn the_checksum_of_a_request_sums_to_nothing() {
        assert_eq!(checksum(&request(true)), 0);
    }
}
