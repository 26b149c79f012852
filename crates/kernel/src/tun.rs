//! TUN devices: links whose far end is a program that reads and writes IP packets.
//!
//! Read [`Queue`]. A queue is an open file; a device of several queues spreads flows over them. Packets travel behind a
//! [`VnetHeader`], by which the kernel leaves to the program what it leaves to a clever network card: finishing
//! checksums, and cutting a super-packet of up to 64 KiB into packets of the link's size. The same the other way: what
//! the program puts together, the kernel takes as one. That is what makes a TUN device fast (9.6 Gb/s against 1.8).
//!
//! What stays true: a persistent device outlives its queues and can be taken up by another process; one that is not
//! ends with the last of them. Address, route and state of the link are not set here ([`link`](crate::link)).
//!
//! Sources: `Documentation/networking/tuntap.rst`, `drivers/net/tun.c` and `include/linux/virtio_net.h` of Linux 6.18;
//! VIRTIO 1.2, 5.1.6 for the header.
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::io::Errno;

use crate::Error;
use crate::abi;
use crate::netlink::Purpose;
use crate::tap::DEVICE;

/// The bytes in front of each packet.
pub const VNET_HEADER: usize = 10;

/// How much one read can bring: a header and the largest packet there is.
pub const LARGEST_READ: usize = VNET_HEADER + 65_535;

/// [`VnetHeader::flags`]: the checksum at `checksum_start + checksum_offset` holds the pseudo header's sum only.
pub const NEEDS_CHECKSUM: u8 = 1;
/// [`VnetHeader::kind`]: no super-packet.
pub const GSO_NONE: u8 = 0;
/// [`VnetHeader::kind`]: TCP over IPv4.
pub const GSO_TCP4: u8 = 1;
/// [`VnetHeader::kind`]: TCP over IPv6.
pub const GSO_TCP6: u8 = 4;
/// [`VnetHeader::kind`]: UDP datagrams of one size.
pub const GSO_UDP: u8 = 5;
/// [`VnetHeader::kind`], beside the others: TCP with congestion notification, whose CWR is for the first packet only.
pub const GSO_ECN: u8 = 0x80;

/// What the kernel and the program tell each other about a packet: `struct virtio_net_hdr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VnetHeader {
    /// [`NEEDS_CHECKSUM`].
    pub flags: u8,
    /// Which kind of super-packet it is, such as [`GSO_TCP4`].
    pub kind: u8,
    /// How long its headers are, of all layers; a hint.
    pub header_length: u16,
    /// How much payload goes into each packet.
    pub segment_size: u16,
    /// Where the checksum begins to count.
    pub checksum_start: u16,
    /// Where it is stored, from there.
    pub checksum_offset: u16,
}

impl VnetHeader {
    /// The header and the packet behind it; `None` when there is not even a header.
    #[must_use]
    pub fn split(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (header, packet) = bytes.split_first_chunk::<VNET_HEADER>()?;
        let [flags, kind, a, b, c, d, e, f, g, h] = *header;
        let word = |high, low| u16::from_ne_bytes([high, low]);
        let header = Self {
            flags,
            kind,
            header_length: word(a, b),
            segment_size: word(c, d),
            checksum_start: word(e, f),
            checksum_offset: word(g, h),
        };
        Some((header, packet))
    }

    /// As it is written in front of a packet.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; VNET_HEADER] {
        let [a, b] = self.header_length.to_ne_bytes();
        let [c, d] = self.segment_size.to_ne_bytes();
        let [e, f] = self.checksum_start.to_ne_bytes();
        let [g, h] = self.checksum_offset.to_ne_bytes();
        [self.flags, self.kind, a, b, c, d, e, f, g, h]
    }
}

/// One queue of a TUN device. It belongs to the namespace that it was opened in, wherever it is used.
#[derive(Debug)]
pub struct Queue {
    descriptor: OwnedFd,
    takes_udp: bool,
}

impl Queue {
    /// Opens a queue of the device with this name in the calling thread's namespace; makes the device, which is down
    /// then, if there is none. Reads and writes do not wait.
    ///
    /// # Errors
    /// When the kernel refuses (a device of another kind has the name, more than 256 queues), or has no TUN devices
    /// ([`Error::is_missing`]).
    pub fn open(name: &str) -> Result<Self, Error> {
        let refused =
            |errno| Error::Refused { purpose: Purpose::new("open TUN device", name), errno, detail: None };
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE);
        let file = file.map_err(|error| refused(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
        let mut request = abi::InterfaceRequest::new(name).ok_or_else(|| refused(Errno::NAMETOOLONG))?;
        // Of several queues always: a device that was made for one cannot be taken over by the next process
        // while the one before still has it.
        request.flags = abi::IFF_TUN | abi::IFF_NO_PI | abi::IFF_VNET_HDR | abi::IFF_MULTI_QUEUE;
        // SAFETY: the request is as long as the kernel's `struct ifreq` and outlives the call.
        if unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
            return Err(refused(last_errno()));
        }
        Self::adopt(file.into())
    }

    /// Goes on with a queue that another process, or an earlier life of this one, has opened.
    ///
    /// # Errors
    /// When it is no queue of a TUN device.
    pub fn adopt(descriptor: OwnedFd) -> Result<Self, Error> {
        let basic = abi::TUN_F_CSUM | abi::TUN_F_TSO4 | abi::TUN_F_TSO6 | abi::TUN_F_TSO_ECN;
        let udp = abi::TUN_F_USO4 | abi::TUN_F_USO6;
        // Kernels before 6.2 know nothing of UDP.
        let takes_udp = offload(&descriptor, basic | udp).is_ok();
        if !takes_udp {
            offload(&descriptor, basic)
                .map_err(|source| Error::System { tried: "ask a TUN device for super-packets", source })?;
        }
        Ok(Self { descriptor, takes_udp })
    }

    /// Whether the kernel takes super-packets of UDP, and gives them.
    #[must_use]
    pub fn takes_udp(&self) -> bool {
        self.takes_udp
    }

    /// The name of its device.
    ///
    /// # Errors
    /// When there is no such device any more.
    pub fn device(&self) -> Result<String, Error> {
        let mut request = abi::InterfaceRequest::empty();
        // SAFETY: the request is as long as the kernel's `struct ifreq` and outlives the call.
        if unsafe { libc::ioctl(self.descriptor.as_raw_fd(), libc::TUNGETIFF, &raw mut request) } < 0 {
            let source = io::Error::last_os_error();
            return Err(Error::System { tried: "ask a queue for its device", source });
        }
        Ok(request.name())
    }

    /// Whether the device shall stay when nobody holds it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn persist(&self, stay: bool) -> Result<(), Error> {
        // SAFETY: takes a number, no pointer.
        let result = unsafe {
            libc::ioctl(self.descriptor.as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(stay))
        };
        if result < 0 {
            let source = io::Error::last_os_error();
            return Err(Error::System { tried: "make a TUN device stay", source });
        }
        Ok(())
    }

    /// The next packet behind its header, and how long both are; `None` when there is none now, and nothing at all for one
    /// that the kernel could not describe.
    ///
    /// # Errors
    /// When the device is gone.
    pub fn read(&self, buffer: &mut [u8]) -> Result<Option<usize>, Errno> {
        loop {
            match rustix::io::read(&self.descriptor, &mut *buffer) {
                Ok(length) => return Ok(Some(length)),
                Err(Errno::AGAIN) => return Ok(None),
                // A super-packet of a kind that has no number in the header; the kernel has thrown it away.
                Err(Errno::INVAL) => return Ok(Some(0)),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Gives the kernel one packet in pieces, the first of which begins with a header.
    ///
    /// # Errors
    /// When the link is down or gone, or the kernel does not like the packet.
    pub fn write(&self, pieces: &[IoSlice<'_>]) -> Result<(), Errno> {
        loop {
            match rustix::io::writev(&self.descriptor, pieces) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// The open file, for another process.
    #[must_use]
    pub fn into_descriptor(self) -> OwnedFd {
        self.descriptor
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Makes a persistent TUN device of several queues, which is down. One that is there already is left as it is.
///
/// # Errors
/// As [`Queue::open`].
pub fn create(name: &str) -> Result<(), Error> {
    Queue::open(name)?.persist(true)
}

fn offload(descriptor: &OwnedFd, what: libc::c_uint) -> io::Result<()> {
    // SAFETY: takes a number, no pointer.
    let result =
        unsafe { libc::ioctl(descriptor.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(what)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn last_errno() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_is_written() {
        let header = VnetHeader {
            flags: NEEDS_CHECKSUM,
            kind: GSO_TCP4 | GSO_ECN,
            header_length: 52,
            segment_size: 1420,
            checksum_start: 20,
            checksum_offset: 16,
        };
        let mut bytes = header.to_bytes().to_vec();
        assert_eq!(VnetHeader::split(&bytes[..9]), None);
        bytes.push(0x45);
        assert_eq!(VnetHeader::split(&bytes), Some((header, &[0x45][..])));
    }
}
