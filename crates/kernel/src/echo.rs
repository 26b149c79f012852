//! ICMP echoes of a given size that no router may cut: what a path carries.
//!
//! Read [`Echo`]. It sends an echo request of exactly so many bytes, and hears the answers to its own requests and the
//! messages of routers that a packet was too big for the next link. What the kernel has learned of the path before does
//! not count: a request is sent at the size asked for as long as the first link carries it.
//!
//! What stays true: nothing is awaited here, and other people's echoes stay in the kernel. An answer is told by the
//! identifier, which is a random one for each socket, and by the sequence number.
//!
//! RFC 792, RFC 1191, RFC 4443; ip(7), ipv6(7) (`IP_PMTUDISC_PROBE`).

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};

use crate::socket_filter;
use crate::{Error, Family};

/// ICMP's header: type, code, checksum, identifier, sequence number.
const HEADER: usize = 8;
/// The longest packet of either family.
const LONGEST: usize = 65_535;
/// What of an incoming packet is read: two IP headers and two of ICMP, with room for options.
const READ: usize = 256;

/// What differs between the families.
struct Words {
    request: u8,
    reply: u8,
    /// Type and code of what a router says of a packet that is too big; any code where it is 0.
    too_big: (u8, u8),
    /// Length of the IP header in front of a request.
    header: usize,
}

impl Words {
    const V4: Self = Self { request: 8, reply: 0, too_big: (3, 4), header: 20 };
    const V6: Self = Self { request: 128, reply: 129, too_big: (2, 0), header: 40 };

    fn of(family: Family) -> &'static Self {
        match family {
            Family::V4 => &Self::V4,
            Family::V6 => &Self::V6,
        }
    }
}

/// What came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A host answers a request.
    Reply {
        /// The host.
        from: IpAddr,
        /// The request.
        sequence: u16,
    },
    /// A request was too big for a link on its way.
    TooBig {
        /// Where the request was sent to.
        to: IpAddr,
        /// The request.
        sequence: u16,
        /// What that link carries, in bytes; 0 where the router does not say.
        mtu: u32,
    },
}

/// A socket that sends echo requests of one family, in the namespace that it was opened in.
#[derive(Debug)]
pub struct Echo {
    socket: OwnedFd,
    family: Family,
    identifier: u16,
    /// A request of the largest size; only its beginning ever differs from 0.
    packet: Vec<u8>,
}

impl Echo {
    /// Opens it.
    ///
    /// # Errors
    /// Without CAP_NET_RAW, or without the family in the kernel.
    pub fn open(family: Family) -> Result<Self, Error> {
        let (domain, protocol) = match family {
            Family::V4 => (AddressFamily::INET, ipproto::ICMP),
            Family::V6 => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(domain, SocketType::RAW, flags, Some(protocol))
            .map_err(|errno| failed("open a socket for ICMP echoes", errno))?;
        match family {
            Family::V4 => sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE),
            Family::V6 => sockopt::set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE),
        }
        .map_err(|errno| failed("forbid that ICMP echoes are cut", errno))?;
        let [.., high, low] = RandomState::new().build_hasher().finish().to_be_bytes();
        let identifier = u16::from_be_bytes([high, low]);
        socket_filter::attach(&socket, &filter(family, identifier), "attach a filter to an ICMP socket")?;
        Ok(Self { socket, family, identifier, packet: vec![0; LONGEST] })
    }

    /// Sends a request of `size` bytes, IP header included; a smaller one than an echo can be is as small as one can be.
    ///
    /// # Errors
    /// [`Errno::MSGSIZE`] when the link that it would leave by carries less; others when there is no way there.
    pub fn send(&mut self, to: IpAddr, sequence: u16, size: u32) -> Result<(), Errno> {
        let words = Words::of(self.family);
        let size = usize::try_from(size).unwrap_or(LONGEST).min(LONGEST);
        let length = size.saturating_sub(words.header).max(HEADER);
        let packet = &mut self.packet[..length];
        packet[..4].copy_from_slice(&[words.request, 0, 0, 0]);
        packet[4..6].copy_from_slice(&self.identifier.to_be_bytes());
        packet[6..8].copy_from_slice(&sequence.to_be_bytes());
        if self.family == Family::V4 {
            // For ICMPv6 the kernel does it: the sum covers the addresses too.
            let sum = checksum(&packet[..HEADER]);
            packet[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        let to = SocketAddr::new(to, 0);
        rustix::net::sendto(&self.socket, packet, SendFlags::DONTWAIT, &to).map(drop)
    }

    /// What came back next; none if nothing waits.
    pub fn receive(&self) -> Option<Answer> {
        let mut bytes = [0_u8; READ];
        loop {
            let flags = RecvFlags::DONTWAIT;
            match rustix::net::recvfrom(&self.socket, bytes.as_mut_slice(), flags) {
                Ok((length, _, from)) => {
                    let from = from.and_then(|from| SocketAddr::try_from(from).ok());
                    let answer =
                        from.and_then(|from| read(self.family, self.identifier, from.ip(), &bytes[..length]));
                    if answer.is_some() {
                        return answer;
                    }
                }
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
    }
}

impl AsFd for Echo {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Reads what came in from `from`: whole, with its IP header, where it is IPv4.
fn read(family: Family, identifier: u16, from: IpAddr, packet: &[u8]) -> Option<Answer> {
    let words = Words::of(family);
    let message = match family {
        Family::V4 => packet.get(header_length(packet)?..)?,
        Family::V6 => packet,
    };
    let (head, rest) = message.split_first_chunk::<HEADER>()?;
    let [kind, code, _, _, a, b, c, d] = *head;
    if kind == words.reply && u16::from_be_bytes([a, b]) == identifier {
        return Some(Answer::Reply { from, sequence: u16::from_be_bytes([c, d]) });
    }
    if (kind, code) != words.too_big {
        return None;
    }
    let (to, quoted) = match family {
        Family::V4 => {
            let to = rest.get(16..20)?.first_chunk::<4>()?;
            (IpAddr::from(Ipv4Addr::from(*to)), rest.get(header_length(rest)?..)?)
        }
        Family::V6 => {
            let to = rest.get(24..40)?.first_chunk::<16>()?;
            (IpAddr::from(Ipv6Addr::from(*to)), rest.get(40..)?)
        }
    };
    let [kind, _, _, _, i, j, s, t] = *quoted.first_chunk::<HEADER>()?;
    let ours = kind == words.request && u16::from_be_bytes([i, j]) == identifier;
    let mtu = match family {
        Family::V4 => u32::from(u16::from_be_bytes([c, d])),
        Family::V6 => u32::from_be_bytes([a, b, c, d]),
    };
    ours.then_some(Answer::TooBig { to, sequence: u16::from_be_bytes([s, t]), mtu })
}

fn header_length(packet: &[u8]) -> Option<usize> {
    packet.first().map(|first| usize::from(first & 0x0f) * 4)
}

/// Lets in the replies to this identifier, and what routers say of packets that are too big.
fn filter(family: Family, identifier: u16) -> Vec<libc::sock_filter> {
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let load = |size: u32, offset: u32| match family {
        // Behind the IP header, whose length is in X.
        Family::V4 => step(libc::BPF_LD | size | libc::BPF_IND, 0, 0, offset),
        Family::V6 => step(libc::BPF_LD | size | libc::BPF_ABS, 0, 0, offset),
    };
    let is = |value: u32, jt: u8, jf: u8| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, jt, jf, value);
    let words = Words::of(family);
    let mut steps = Vec::new();
    if family == Family::V4 {
        steps.push(step(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0, 0, 0));
    }
    steps.extend([
        load(libc::BPF_B, 0),
        is(words.reply.into(), 0, 2),
        load(libc::BPF_H, 4),
        is(identifier.into(), 3, 4),
        is(words.too_big.0.into(), 0, 3),
        load(libc::BPF_B, 1),
        is(words.too_big.1.into(), 0, 1),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ]);
    steps
}

/// The Internet checksum (RFC 1071) of an even number of bytes; zeros behind them change nothing.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

fn failed(tried: &'static str, errno: Errno) -> Error {
    Error::System { tried, source: errno.into() }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert, proptest};
    use proptest::sample::Index;

    use super::*;

    const IDENTIFIER: u16 = 0x1234;

    fn echo(kind: u8) -> Vec<u8> {
        vec![kind, 0, 0, 0, 0x12, 0x34, 0, 7]
    }

    /// A router's message about a packet of ours, with the IP header in front where a socket gives it.
    fn too_big(family: Family) -> (IpAddr, Vec<u8>) {
        match family {
            Family::V4 => {
                let mut quoted = vec![0x45; 16];
                quoted.extend([192, 0, 2, 9]);
                let head = [[0x45; 20].as_slice(), &[3, 4, 0, 0, 0, 0, 5, 120], &quoted, &echo(8)].concat();
                (IpAddr::from([192, 0, 2, 9]), head)
            }
            Family::V6 => {
                let to: Ipv6Addr = "2001:db8::9".parse().unwrap();
                let quoted = [[0x60; 24].as_slice(), &to.octets()].concat();
                (to.into(), [&[2, 0, 0, 0, 0, 0, 5, 120], quoted.as_slice(), &echo(128)].concat())
            }
        }
    }

    #[test]
    fn replies_and_complaints_about_ours_are_read_and_nothing_shorter_or_foreign_is() {
        for family in Family::BOTH {
            let words = Words::of(family);
            let head: &[u8] = if family == Family::V4 { &[0x45; 20] } else { &[] };
            let from = family.unspecified();
            let reply = [head, &echo(words.reply)].concat();
            let read = |bytes: &[u8]| read(family, IDENTIFIER, from, bytes);
            assert_eq!(read(&reply), Some(Answer::Reply { from, sequence: 7 }));
            assert_eq!(read(&[head, &echo(words.request)].concat()), None, "a request of somebody");
            let (to, complaint) = too_big(family);
            assert_eq!(read(&complaint), Some(Answer::TooBig { to, sequence: 7, mtu: 1400 }));
            for whole in [&reply, &complaint] {
                for length in 0..whole.len() {
                    assert_eq!(read(&whole[..length]), None, "{length} bytes");
                }
            }
            let mut foreign = complaint;
            let last = foreign.len() - 4;
            foreign[last] ^= 1;
            assert_eq!(read(&foreign), None, "about another program's packet");
        }
    }

    proptest! {
        #[test]
        fn whatever_arrives_is_read_as_ours_only_with_our_identifier(
            bytes in vec(any::<u8>(), 0..96), at in any::<Index>(), byte in any::<u8>(),
        ) {
            for family in Family::BOTH {
                let mut complaint = too_big(family).1;
                let place = at.index(complaint.len());
                complaint[place] = byte;
                let stranger = read(family, IDENTIFIER, family.unspecified(), &bytes);
                prop_assert!(stranger.is_none() || bytes.windows(2).any(|pair| pair == [0x12, 0x34]));
                if read(family, IDENTIFIER, family.unspecified(), &complaint).is_some() {
                    prop_assert!(complaint.windows(2).any(|pair| pair == [0x12, 0x34]));
                }
            }
        }
    }

    #[test]
    fn the_checksum_of_a_request_sums_to_nothing() {
        let mut bytes = echo(8);
        let sum = checksum(&bytes);
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksum(&bytes), 0);
    }
}
