//! Sending a batch: messages made of pieces of one buffer.
//!
//! Read [`Sender`]. It keeps the arrays that the kernel wants and fills them anew for each batch. sendmmsg(2).

use std::mem;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use rustix::io::Errno;

use super::address::Stored;
use super::{Datagrams, last_errno};

/// A part of the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Piece {
    /// Where it begins.
    pub start: usize,
    /// How many bytes.
    pub length: usize,
}

impl Piece {
    /// Its bytes; none when it does not lie in the arena.
    #[must_use]
    pub fn of<'a>(&self, arena: &'a [u8]) -> &'a [u8] {
        arena.get(self.start..self.start.saturating_add(self.length)).unwrap_or_default()
    }
}

/// One message of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// To whom.
    pub to: SocketAddr,
    /// How long the packets in it are, all but the last, when there are several.
    pub segment: Option<u16>,
    /// Which pieces of the batch, in order.
    pub pieces: Range<usize>,
}

/// Messages, and what they are made of.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Where all bytes lie.
    pub arena: &'a [u8],
    /// Parts of the arena.
    pub pieces: &'a [Piece],
    /// The messages, in order.
    pub messages: &'a [Message],
}

/// A control message with a segment size, as UDP_SEGMENT wants it.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control {
    header: libc::cmsghdr,
    segment: u16,
    rest: [u8; 6],
}

/// What the kernel wants for a batch; used again for each.
#[derive(Default)]
pub struct Sender {
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    addresses: Vec<Stored>,
    controls: Vec<Control>,
}

impl Sender {
    /// Sends all messages of a batch, in order, and tells which could not be sent and why.
    pub fn send(&mut self, socket: &Datagrams, batch: Batch<'_>, mut failed: impl FnMut(usize, Errno)) {
        self.fill(batch);
        let messages = batch.messages;
        let mut done = 0;
        // One message waits for room, and if there is none the others do not.
        let mut flags = libc::MSG_NOSIGNAL;
        while done < messages.len() {
            let rest = &mut self.headers[done..];
            let count = libc::c_uint::try_from(rest.len()).unwrap_or(libc::c_uint::MAX);
            // SAFETY: `fill` has made as many headers as there are messages. Their pointers lead to vectors,
            // addresses and controls of ours, none of which has moved since, and to the arena, which is borrowed.
            let sent = unsafe { libc::sendmmsg(socket.as_fd().as_raw_fd(), rest.as_mut_ptr(), count, flags) };
            match usize::try_from(sent) {
                Ok(sent) if sent > 0 => done += sent,
                _ => {
                    let errno = last_errno();
                    if errno == Errno::AGAIN {
                        flags |= libc::MSG_DONTWAIT;
                    }
                    if errno != Errno::INTR {
                        failed(done, errno);
                        done += 1;
                    }
                }
            }
        }
    }

    fn fill(&mut self, batch: Batch<'_>) {
        let Batch { arena, pieces, messages } = batch;
        self.vectors.clear();
        self.vectors.extend(pieces.iter().map(|piece| {
            let bytes = piece.of(arena);
            libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
        }));
        // All that is pointed to is in place before the first pointer is taken.
        self.addresses.resize(messages.len().max(self.addresses.len()), Stored::empty());
        self.controls.resize(messages.len().max(self.controls.len()), control(0));
        self.headers.clear();
        for (index, message) in messages.iter().enumerate() {
            let address = &mut self.addresses[index];
            let length = address.set(message.to);
            let range = message.pieces.start.min(pieces.len())..message.pieces.end.min(pieces.len());
            let vectors = self.vectors.get_mut(range).unwrap_or_default();
            // SAFETY: plain old data, for which all bits zero is valid.
            let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
            header.msg_hdr.msg_name = address.pointer();
            header.msg_hdr.msg_namelen = length;
            header.msg_hdr.msg_iov = vectors.as_mut_ptr();
            header.msg_hdr.msg_iovlen = vectors.len() as _;
            header.msg_hdr.msg_control = ptr::null_mut();
            if let Some(segment) = message.segment {
                self.controls[index] = control(segment);
                header.msg_hdr.msg_control = (&raw mut self.controls[index]).cast();
                header.msg_hdr.msg_controllen = size_of::<Control>() as _;
            }
            self.headers.push(header);
        }
    }
}

fn control(segment: u16) -> Control {
    // SAFETY: plain old data, for which all bits zero is valid.
    let mut header: libc::cmsghdr = unsafe { mem::zeroed() };
    header.cmsg_len = (size_of::<libc::cmsghdr>() + size_of::<u16>()) as _;
    header.cmsg_level = libc::SOL_UDP;
    header.cmsg_type = libc::UDP_SEGMENT;
    Control { header, segment, rest: [0; 6] }
}
