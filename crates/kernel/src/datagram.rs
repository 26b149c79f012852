//! Many datagrams at once: sockets of UDP and of IP itself whose packets are sent and received by the batch.
//!
//! Read [`Datagrams`] (a socket), then [`Sender`] and [`Receiver`]. A [`Batch`] lies in one buffer of the caller's,
//! the arena; a [`Message`] is made of [`Piece`]s of it, so that headers and payload need not be copied together. Over UDP
//! one message can carry many packets of one size, the last of which may be shorter: the kernel cuts it late (or the
//! card does), and glues what came in together before we see it. That is 25 times as fast as packet by packet.
//!
//! What stays true: nothing is allocated per batch, receiving never waits, sending waits a tenth of a second at most.
//!
//! Sources: udp(7), raw(7), ip(7), sendmmsg(2); `net/ipv4/udp.c` and `net/ipv4/ip_output.c` of Linux 6.18.
#![allow(unsafe_code)]

mod address;
mod receiving;
mod sending;

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::{AddressFamily, Protocol, SocketType, ipproto};

use crate::Error;
use crate::socket_filter;

pub use receiving::{Datagram, Receiver};
pub use sending::{Batch, Message, Piece, Sender};

/// How many packets one message may carry (kernels before 6.9 take no more), and how many bytes.
pub const MOST_SEGMENTS: usize = 64;
/// See [`MOST_SEGMENTS`]; the largest IPv4 packet without its headers, which IPv6 can carry, too.
pub const MOST_BYTES: usize = 65_507;

/// What a socket may keep of what was not yet read or sent; a burst of a 10 Gb/s link of some ms.
const QUEUED: i32 = 8 << 20;
/// How long sending waits for a card that takes nothing.
const PATIENCE: Duration = Duration::from_millis(100);

/// A socket whose datagrams are sent and received by the batch. It belongs to the namespace that it was opened in.
#[derive(Debug)]
pub struct Datagrams {
    descriptor: OwnedFd,
}

impl Datagrams {
    /// A UDP socket bound to an address and a port. With `shared`, several of one process may be: what comes from one
    /// peer goes to one of them.
    ///
    /// # Errors
    /// When the address is not this host's, or the port is taken.
    pub fn udp(local: SocketAddr, shared: bool) -> Result<Self, Error> {
        let descriptor = open(local.ip(), SocketType::DGRAM, None)?;
        if shared {
            let failed = |errno: Errno| failed("share a UDP port between threads", errno);
            sockopt::set_socket_reuseport(&descriptor, true).map_err(failed)?;
        }
        Self { descriptor }.ready(local)
    }

    /// A socket for the IPv4 packets with this protocol number, such as 4 for IPv4 in IPv4. Whole packets with their
    /// outer header are sent and received.
    ///
    /// # Errors
    /// Without CAP_NET_RAW, or when the address is not this host's.
    pub fn raw(local: std::net::Ipv4Addr, protocol: u8) -> Result<Self, Error> {
        let descriptor = open(local.into(), SocketType::RAW, number(protocol))?;
        let socket = Self { descriptor };
        socket.set(libc::IPPROTO_IP, libc::IP_HDRINCL, 1, "write outer headers by ourselves")?;
        socket.ready(SocketAddr::new(local.into(), 0))
    }

    /// A socket that only sends ICMP messages (of the address's own family) from whatever address the kernel finds fit.
    ///
    /// # Errors
    /// Without CAP_NET_RAW.
    pub fn icmp(any: IpAddr) -> Result<Self, Error> {
        let protocol = if any.is_ipv4() { ipproto::ICMP } else { ipproto::ICMPV6 };
        let socket = Self { descriptor: open(any, SocketType::RAW, Some(protocol))? };
        socket.deafen()?;
        Ok(socket)
    }

    /// Goes on with a socket that another process, or an earlier life of this one, has opened.
    #[must_use]
    pub fn adopt(descriptor: OwnedFd) -> Self {
        Self { descriptor }
    }

    /// The open socket, for another process.
    #[must_use]
    pub fn into_descriptor(self) -> OwnedFd {
        self.descriptor
    }

    /// The address and port that it is bound to.
    ///
    /// # Errors
    /// When it is no socket of IP.
    pub fn local(&self) -> Result<SocketAddr, Error> {
        let address = rustix::net::getsockname(&self.descriptor)
            .map_err(|errno| failed("ask a socket for its address", errno))?;
        SocketAddr::try_from(address).map_err(|errno| failed("ask a socket for its address", errno))
    }

    /// Sends one datagram, now or not at all.
    ///
    /// # Errors
    /// When there is no way there.
    pub fn send_one(&self, to: SocketAddr, bytes: &[u8]) -> Result<(), Errno> {
        let flags = rustix::net::SendFlags::DONTWAIT;
        rustix::net::sendto(&self.descriptor, bytes, flags, &to).map(|_| ())
    }

    /// The same for one that may reach its receiver in fragments. Whoever else sends from this socket has to wait meanwhile.
    ///
    /// # Errors
    /// When there is no way there, or the kernel does not make fragments of it.
    pub fn send_in_fragments(&self, to: SocketAddr, bytes: &[u8]) -> Result<(), Errno> {
        let errno = |error: Error| match error {
            Error::System { source, .. } => Errno::from_io_error(&source).unwrap_or(Errno::IO),
            _ => Errno::IO,
        };
        self.fragments(to.is_ipv4(), true).map_err(errno)?;
        let sent = self.send_one(to, bytes);
        self.fragments(to.is_ipv4(), false).map_err(errno)?;
        sent
    }

    fn ready(self, local: SocketAddr) -> Result<Self, Error> {
        rustix::net::bind(&self.descriptor, &local)
            .map_err(|errno| failed("bind a tunnel's socket", errno))?;
        // Beyond the administrator's limit where we may; otherwise as far as it goes.
        for (force, ask) in [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
        {
            let tried = "enlarge a socket's buffer";
            self.set(libc::SOL_SOCKET, force, QUEUED, tried)
                .or_else(|_| self.set(libc::SOL_SOCKET, ask, QUEUED, tried))?;
        }
        sockopt::set_socket_timeout(&self.descriptor, sockopt::Timeout::Send, Some(PATIENCE))
            .map_err(|errno| failed("limit how long a socket waits", errno))?;
        self.fragments(local.is_ipv4(), false)?;
        // Kernels before 5.0 do not know it and give packet by packet.
        let _ = self.set(libc::SOL_UDP, libc::UDP_GRO, 1, "receive glued datagrams");
        Ok(self)
    }

    /// Whether a datagram too large for the way is sent in fragments; else it is refused, so that its sender hears of it.
    fn fragments(&self, four: bool, allowed: bool) -> Result<(), Error> {
        let tried = "say whether there may be fragments";
        let (level, option, value) = match (four, allowed) {
            (true, false) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO),
            (true, true) => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT),
            (false, false) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DO),
            (false, true) => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT),
        };
        self.set(level, option, value, tried)
    }

    fn set(&self, level: i32, option: i32, value: i32, tried: &'static str) -> Result<(), Error> {
        // SAFETY: the pointer is to a live value of the length given.
        let refused = unsafe {
            libc::setsockopt(
                self.descriptor.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of::<i32>() as libc::socklen_t,
            )
        };
        if refused == 0 { Ok(()) } else { Err(Error::System { tried, source: io::Error::last_os_error() }) }
    }

    /// Lets nothing in: every ICMP message of the host would queue up otherwise.
    fn deafen(&self) -> Result<(), Error> {
        let nothing = [libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: 0 }];
        socket_filter::attach(&self.descriptor, &nothing, "attach a filter to an ICMP socket")
    }
}

impl AsFd for Datagrams {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// The largest IP packet that the kernel knows to fit the way from one address of ours to another host, as it has learned
/// from routes and from ICMP messages.
#[must_use]
pub fn path_mtu(from: IpAddr, to: IpAddr) -> Option<u32> {
    // The port is of no account: nothing is sent.
    let socket = UdpSocket::bind(SocketAddr::new(from, 0)).ok()?;
    socket.connect(SocketAddr::new(to, 9)).ok()?;
    if to.is_ipv4() { sockopt::ip_mtu(&socket).ok() } else { sockopt::ipv6_mtu(&socket).ok() }
}

fn open(local: IpAddr, kind: SocketType, protocol: Option<Protocol>) -> Result<OwnedFd, Error> {
    let family = if local.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = rustix::net::SocketFlags::CLOEXEC;
    rustix::net::socket_with(family, kind, flags, protocol)
        .map_err(|errno| failed("open a tunnel's socket", errno))
}

fn number(protocol: u8) -> Option<Protocol> {
    std::num::NonZeroU32::new(protocol.into()).map(Protocol::from_raw)
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn failed(tried: &'static str, errno: Errno) -> Error {
    Error::System { tried, source: errno.into() }
}
