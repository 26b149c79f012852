//! IPv4 packets sent and received on one link before it has an address: what DHCP needs.
//!
//! Read [`PacketSocket`]. It belongs to the namespace it was opened in, sees the UDP packets to one port that
//! arrive on the link (the kernel filters, so nothing else wakes us), and sends whole IPv4 packets to a
//! hardware address. No packet is delayed or answered by the pod's own stack or firewall. packet(7).
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use netstate::Mac;
use rustix::io::Errno;

use crate::Error;
use crate::netns::Netns;
use crate::socket_filter;

/// A packet socket on one link for UDP packets over IPv4.
#[derive(Debug)]
pub struct PacketSocket {
    descriptor: OwnedFd,
    link: u32,
}

impl PacketSocket {
    /// Listens for UDP packets to `port` on the link with this index in `namespace`; the calling thread is back
    /// home when it returns.
    ///
    /// # Errors
    /// When the namespace may not be entered, the link is not there, or the kernel has no packet sockets.
    pub fn open(namespace: &Netns, link: u32, port: u16) -> Result<Self, Error> {
        let _inside = namespace.enter()?;
        let flags = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // Protocol 0: nothing is received before the filter is in place and the link chosen.
        // SAFETY: takes no pointers; the descriptor it returns is nobody else's.
        let descriptor = unsafe {
            let number = libc::socket(libc::AF_PACKET, flags, 0);
            if number < 0 {
                return Err(failed("open a packet socket (the kernel needs CONFIG_PACKET)"));
            }
            OwnedFd::from_raw_fd(number)
        };
        let socket = Self { descriptor, link };
        socket.filter(port)?;
        socket.bind()?;
        Ok(socket)
    }

    /// Sends a whole IPv4 packet to a hardware address; `None` is everybody on the link.
    ///
    /// # Errors
    /// When the link is down or gone.
    pub fn send(&self, to: Option<Mac>, packet: &[u8]) -> Result<(), Error> {
        let address = self.address(to.unwrap_or(Mac([0xff; 6])));
        loop {
            // SAFETY: both pointers are to live values of the lengths given.
            let sent = unsafe {
                libc::sendto(
                    self.descriptor.as_raw_fd(),
                    packet.as_ptr().cast(),
                    packet.len(),
                    0,
                    (&raw const address).cast(),
                    size_of_sockaddr(),
                )
            };
            match sent {
                -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                -1 => return Err(failed("send a packet")),
                _ => return Ok(()),
            }
        }
    }

    /// The next packet, IPv4 header included, and the hardware address it came from; `None` when there is none
    /// now. What exceeds `buffer` is cut off.
    ///
    /// # Errors
    /// When the link went down or is gone.
    pub fn receive(&self, buffer: &mut [u8]) -> Result<Option<(usize, Mac)>, Error> {
        // SAFETY: plain old data, for which all bits zero is valid.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        let mut length = size_of_sockaddr();
        loop {
            // SAFETY: all pointers are to live values of the lengths given.
            let received = unsafe {
                libc::recvfrom(
                    self.descriptor.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                    (&raw mut address).cast(),
                    &raw mut length,
                )
            };
            let Ok(size) = usize::try_from(received) else {
                match Errno::from_io_error(&io::Error::last_os_error()) {
                    Some(Errno::INTR) => continue,
                    Some(Errno::AGAIN) => return Ok(None),
                    _ => return Err(failed("receive a packet")),
                }
            };
            if address.sll_pkttype == libc::PACKET_OUTGOING {
                continue;
            }
            let [a, b, c, d, e, f, ..] = address.sll_addr;
            return Ok(Some((size, Mac([a, b, c, d, e, f]))));
        }
    }

    fn bind(&self) -> Result<(), Error> {
        let address = self.address(Mac([0; 6]));
        // SAFETY: the pointer is to a live value of the length given.
        let refused = unsafe {
            libc::bind(self.descriptor.as_raw_fd(), (&raw const address).cast(), size_of_sockaddr())
        };
        if refused == 0 { Ok(()) } else { Err(failed("bind a packet socket to its link")) }
    }

    /// Lets through only whole UDP packets to `port`: `linux/filter.h`, offsets of RFC 791 and 768.
    fn filter(&self, port: u16) -> Result<(), Error> {
        let step =
            |code: u32, k: u32, yes: u8, no: u8| libc::sock_filter { code: code as u16, jt: yes, jf: no, k };
        let (load, jump, give) = (libc::BPF_LD, libc::BPF_JMP, libc::BPF_RET | libc::BPF_K);
        let program = [
            step(load | libc::BPF_B | libc::BPF_ABS, 9, 0, 0),
            step(jump | libc::BPF_JEQ | libc::BPF_K, libc::IPPROTO_UDP as u32, 0, 6),
            step(load | libc::BPF_H | libc::BPF_ABS, 6, 0, 0),
            step(jump | libc::BPF_JSET | libc::BPF_K, 0x1fff, 4, 0),
            step(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0, 0, 0),
            step(load | libc::BPF_H | libc::BPF_IND, 2, 0, 0),
            step(jump | libc::BPF_JEQ | libc::BPF_K, port.into(), 0, 1),
            step(give, 0xffff, 0, 0),
            step(give, 0, 0, 0),
        ];
        socket_filter::attach(&self.descriptor, &program, "attach a filter to a packet socket")
    }

    fn address(&self, hardware: Mac) -> libc::sockaddr_ll {
        // SAFETY: plain old data, for which all bits zero is valid.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_IP as u16).to_be();
        address.sll_ifindex = self.link as i32;
        address.sll_halen = 6;
        address.sll_addr[..6].copy_from_slice(&hardware.0);
        address
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

const fn size_of_sockaddr() -> libc::socklen_t {
    size_of::<libc::sockaddr_ll>() as libc::socklen_t
}

fn failed(tried: &'static str) -> Error {
    Error::System { tried, source: io::Error::last_os_error() }
}
