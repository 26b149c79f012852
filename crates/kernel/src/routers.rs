//! What the routers of one link say: ICMPv6 router solicitation and advertisement, from user space.
//!
//! Read [`RouterSocket`]. It belongs to the namespace it was opened in and to one link; the kernel lets nothing
//! but advertisements through to it. It hears them whatever `accept_ra` says, so that a namespace whose kernel
//! shall not configure itself can still be told. raw(7), ipv6(7), RFC 3542 sections 3 and 6.3.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::io;
use std::mem;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use crate::Error;
use crate::netns::Netns;

/// All routers on the link.
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// The ICMPv6 type of an advertisement.
const ADVERTISEMENT: usize = 134;
/// `ICMPV6_FILTER` of `linux/icmpv6.h`: 256 bits, a set one blocks its type.
const ICMPV6_FILTER: c_int = 1;
/// Only what comes from the link itself still has this hop limit (RFC 4861 section 6.1.2).
const OWN_LINK: c_int = 255;
/// So many advertisements from elsewhere are passed over at a time.
const FOREIGN: usize = 32;
/// Room for one control message with a hop limit, aligned as the kernel wants it.
type Control = [u64; 8];

/// A raw socket for the routers of one link.
#[derive(Debug)]
pub struct RouterSocket {
    descriptor: OwnedFd,
    link: u32,
}

impl RouterSocket {
    /// Listens on the link with this index in `namespace`; the calling thread is back home when it returns.
    ///
    /// # Errors
    /// When the namespace may not be entered, the link is not there, or the kernel has no IPv6.
    pub fn open(namespace: &Netns, link: u32) -> Result<Self, Error> {
        let _inside = namespace.enter()?;
        let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: takes no pointers; the descriptor it returns is nobody else's.
        let descriptor = unsafe {
            let number = libc::socket(libc::AF_INET6, flags, libc::IPPROTO_ICMPV6);
            if number < 0 {
                return Err(failed("open an ICMPv6 socket (the kernel needs CONFIG_IPV6)"));
            }
            OwnedFd::from_raw_fd(number)
        };
        let socket = Self { descriptor, link };
        let mut blocked = [u32::MAX; 8];
        blocked[ADVERTISEMENT / 32] &= !(1 << (ADVERTISEMENT % 32));
        let refused = [
            socket.set(libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &blocked),
            // A raw socket takes any link's packets unless it is bound to one.
            socket.set(libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, &(link as c_int)),
            socket.set(libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, &(1 as c_int)),
            socket.set(libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, &OWN_LINK),
        ];
        refused.into_iter().collect::<Result<(), Error>>()?;
        Ok(socket)
    }

    /// Sends an ICMPv6 message, from its type on and with a checksum of zero, to all routers on the link.
    ///
    /// # Errors
    /// When the link is down or gone, or has no usable link-local address.
    pub fn send(&self, message: &[u8]) -> Result<(), Error> {
        let to = self.address(ALL_ROUTERS);
        loop {
            // SAFETY: both pointers are to live values of the lengths given.
            let sent = unsafe {
                libc::sendto(
                    self.descriptor.as_raw_fd(),
                    message.as_ptr().cast(),
                    message.len(),
                    0,
                    (&raw const to).cast(),
                    size_of_val(&to) as libc::socklen_t,
                )
            };
            match sent {
                -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                -1 => return Err(failed("send a router solicitation")),
                _ => return Ok(()),
            }
        }
    }

    /// The next advertisement that was sent on this link, from its type on, and who sent it; `None` when there is
    /// none now, or only a flood of others, which is looked through in turns. What exceeds `buffer` is cut off.
    ///
    /// # Errors
    /// When the link went down or is gone.
    pub fn receive(&self, buffer: &mut [u8]) -> Result<Option<(usize, Ipv6Addr)>, Error> {
        for _ in 0..FOREIGN {
            let mut control = Control::default();
            let mut from = self.address(Ipv6Addr::UNSPECIFIED);
            let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            // SAFETY: plain old data, for which all bits zero is valid.
            let mut message: libc::msghdr = unsafe { mem::zeroed() };
            message.msg_name = (&raw mut from).cast();
            message.msg_namelen = size_of_val(&from) as libc::socklen_t;
            (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(&control) as _;
            // SAFETY: every pointer in the header is to a live value of the length beside it.
            let received = unsafe { libc::recvmsg(self.descriptor.as_raw_fd(), &raw mut message, 0) };
            let Ok(size) = usize::try_from(received) else {
                match Errno::from_io_error(&io::Error::last_os_error()) {
                    Some(Errno::INTR) => continue,
                    Some(Errno::AGAIN) => return Ok(None),
                    _ => return Err(failed("receive a router advertisement")),
                }
            };
            if hop_limit(&message) == Some(OWN_LINK) {
                return Ok(Some((size, Ipv6Addr::from(from.sin6_addr.s6_addr))));
            }
        }
        Ok(None)
    }

    fn address(&self, address: Ipv6Addr) -> libc::sockaddr_in6 {
        libc::sockaddr_in6 {
            sin6_family: libc::AF_INET6 as libc::sa_family_t,
            sin6_port: 0,
            sin6_flowinfo: 0,
            sin6_addr: libc::in6_addr { s6_addr: address.octets() },
            sin6_scope_id: self.link,
        }
    }

    fn set<T>(&self, level: c_int, option: c_int, value: &T) -> Result<(), Error> {
        // SAFETY: the pointer is to a live value of the length given; the kernel only reads it.
        let refused = unsafe {
            libc::setsockopt(
                self.descriptor.as_raw_fd(),
                level,
                option,
                std::ptr::from_ref(value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        };
        if refused == 0 { Ok(()) } else { Err(failed("set up an ICMPv6 socket")) }
    }
}

impl AsFd for RouterSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// The hop limit in the control messages that came with a packet.
fn hop_limit(message: &libc::msghdr) -> Option<c_int> {
    // SAFETY: the kernel has filled the header's control buffer, which is alive and aligned, and the macros stay
    // within the length that it set. The value is read bytewise, as its alignment is not promised.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(message);
        while let Some(header) = control.as_ref() {
            if (header.cmsg_level, header.cmsg_type) == (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) {
                return Some(libc::CMSG_DATA(control).cast::<c_int>().read_unaligned());
            }
            control = libc::CMSG_NXTHDR(message, control);
        }
    }
    None
}

fn failed(tried: &'static str) -> Error {
    Error::System { tried, source: io::Error::last_os_error() }
}
