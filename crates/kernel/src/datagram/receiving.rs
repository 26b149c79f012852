//! Receiving a batch: datagrams one behind the other in one buffer.
//!
//! Read [`Receiver`]. recvmmsg(2), udp(7) for UDP_GRO.

use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

use super::address::Stored;
use super::{Datagrams, last_errno};

/// What was received from one sender at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram {
    /// From whom.
    pub from: SocketAddr,
    /// Where its bytes begin in [`Receiver::arena`].
    pub start: usize,
    /// How many they are.
    pub length: usize,
    /// How long each datagram is, all but the last, when the kernel has glued several.
    pub segment: Option<usize>,
}

/// Room for control messages; the one expected is a number of 32 bits.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; 64]);

/// Buffers for a batch of datagrams; used again for each.
pub struct Receiver {
    arena: Vec<u8>,
    slot: usize,
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    addresses: Vec<Stored>,
    controls: Vec<Control>,
    count: usize,
}

impl Receiver {
    /// Room for so many datagrams of at most so many bytes each.
    #[must_use]
    pub fn new(datagrams: usize, bytes: usize) -> Self {
        // SAFETY: plain old data, for which all bits zero is valid.
        let header: libc::mmsghdr = unsafe { mem::zeroed() };
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        Self {
            arena: vec![0; datagrams * bytes],
            slot: bytes,
            headers: vec![header; datagrams],
            vectors: vec![nothing; datagrams],
            addresses: vec![Stored::empty(); datagrams],
            controls: vec![Control([0; 64]); datagrams],
            count: 0,
        }
    }

    /// Receives what there is now, up to the room there is; returns how many datagrams.
    ///
    /// # Errors
    /// When the socket is broken. That there is nothing is no error.
    pub fn receive(&mut self, socket: &Datagrams) -> Result<usize, Errno> {
        self.count = 0;
        for (index, slot) in self.arena.chunks_exact_mut(self.slot.max(1)).enumerate() {
            self.vectors[index] = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
            let header = &mut self.headers[index];
            header.msg_len = 0;
            header.msg_hdr.msg_name = self.addresses[index].pointer();
            header.msg_hdr.msg_namelen = Stored::ROOM;
            header.msg_hdr.msg_iov = &raw mut self.vectors[index];
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = (&raw mut self.controls[index]).cast();
            header.msg_hdr.msg_controllen = size_of::<Control>() as _;
            header.msg_hdr.msg_flags = 0;
        }
        loop {
            // SAFETY: each header points to an address, a vector and a control buffer of ours, whose lengths it names;
            // each vector to a slot of the arena. None of them moves during the call.
            let received = unsafe {
                libc::recvmmsg(
                    socket.as_fd().as_raw_fd(),
                    self.headers.as_mut_ptr(),
                    self.headers.len() as libc::c_uint,
                    libc::MSG_DONTWAIT,
                    std::ptr::null_mut(),
                )
            };
            match usize::try_from(received) {
                Ok(count) => {
                    self.count = count;
                    return Ok(count);
                }
                Err(_) => match last_errno() {
                    Errno::AGAIN => return Ok(0),
                    Errno::INTR => {}
                    errno => return Err(errno),
                },
            }
        }
    }

    /// The datagram with this number in the last batch; `None` past its end, or when the kernel did not say from whom.
    #[must_use]
    pub fn datagram(&self, index: usize) -> Option<Datagram> {
        let header = self.headers.get(index).filter(|_| index < self.count)?;
        let length = (header.msg_len as usize).min(self.slot);
        let segment = segment_size(&header.msg_hdr).filter(|size| *size > 0 && *size < length);
        Some(Datagram { from: self.addresses[index].get()?, start: index * self.slot, length, segment })
    }

    /// The bytes of a datagram, to be changed where they lie.
    pub fn bytes_mut(&mut self, datagram: &Datagram) -> &mut [u8] {
        self.arena.get_mut(datagram.start..datagram.start + datagram.length).unwrap_or_default()
    }

    /// Where the datagrams lie.
    #[must_use]
    pub fn arena(&self) -> &[u8] {
        &self.arena
    }
}

fn segment_size(header: &libc::msghdr) -> Option<usize> {
    // SAFETY: the kernel has filled in the control buffer and its length, which the macros keep to. A number of 32 bits is
    // behind a header of this type, at any alignment.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while let Some(found) = control.as_ref() {
            if found.cmsg_level == libc::SOL_UDP && found.cmsg_type == libc::UDP_GRO {
                let size = libc::CMSG_DATA(control).cast::<i32>().read_unaligned();
                return usize::try_from(size).ok();
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    None
}
