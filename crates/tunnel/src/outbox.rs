//! What a thread has read and is about to send: one buffer, and the messages that lie in it.
//!
//! Read [`Outbox`]. Packets are read into the front of the buffer and stay there until all is sent; headers made for
//! them are written to its back. A message gathers packets for one peer as long as they are of one size.

use std::net::SocketAddr;

use kernel::datagram::{Batch, MOST_BYTES, MOST_SEGMENTS, Message, Piece};
use kernel::tun::LARGEST_READ;

/// Room for what is read: so many of the largest packets, or a great many small ones.
const READ: usize = 4 * LARGEST_READ;
/// Room for what is written.
const WRITTEN: usize = 256 * 1024;
/// Pieces and messages of one batch.
const MOST_PIECES: usize = 1024;
const MOST_MESSAGES: usize = 256;

/// A batch in the making.
pub(crate) struct Outbox {
    arena: Vec<u8>,
    read: usize,
    written: usize,
    pieces: Vec<Piece>,
    messages: Vec<Message>,
    /// How the last message stands: packets, bytes, the size of each, and whether a shorter one has ended it.
    packets: usize,
    bytes: usize,
    size: usize,
    ended: bool,
}

impl Outbox {
    pub(crate) fn new() -> Self {
        Self {
            arena: vec![0; READ + WRITTEN],
            read: 0,
            written: READ,
            pieces: Vec::with_capacity(MOST_PIECES),
            messages: Vec::with_capacity(MOST_MESSAGES),
            packets: 0,
            bytes: 0,
            size: 0,
            ended: true,
        }
    }

    /// Room for the largest packet to be read into; `None` when the batch must be sent first.
    pub(crate) fn room(&mut self) -> Option<&mut [u8]> {
        let end = self.read + LARGEST_READ;
        self.arena.get_mut(self.read..end).filter(|_| end <= READ && self.pieces.len() < MOST_PIECES / 2)
    }

    /// So much was read into the room; it stays until the batch is sent.
    pub(crate) fn keep(&mut self, length: usize) -> Piece {
        let piece = Piece { start: self.read, length };
        // The next one begins where a cache line does.
        self.read = (self.read + length).next_multiple_of(64);
        piece
    }

    /// The bytes of a piece.
    pub(crate) fn bytes(&self, piece: Piece) -> &[u8] {
        piece.of(&self.arena)
    }

    /// The same, to be changed.
    pub(crate) fn bytes_mut(&mut self, piece: Piece) -> &mut [u8] {
        self.arena.get_mut(piece.start..piece.start + piece.length).unwrap_or_default()
    }

    /// What lies in a piece that was read, and room to write to.
    pub(crate) fn split(&mut self, piece: Piece) -> (&[u8], &mut [u8]) {
        let written = self.written.clamp(READ, self.arena.len());
        match self.arena.split_at_mut_checked(written) {
            Some((before, room)) => (piece.of(before), room),
            None => (&[], &mut []),
        }
    }

    /// So much was written to the room.
    pub(crate) fn wrote(&mut self, length: usize) -> Piece {
        let piece = Piece { start: self.written, length };
        self.written += length;
        piece
    }

    /// Whether there is no place for another packet that needs this much room.
    pub(crate) fn is_full(&self, room: usize) -> bool {
        self.pieces.len() + 3 > MOST_PIECES
            || self.messages.len() >= MOST_MESSAGES
            || self.written + room > self.arena.len()
    }

    /// Adds a packet; with `gather`, to the last message if that may be.
    pub(crate) fn push(&mut self, to: SocketAddr, parts: &[Piece], gather: bool) {
        let length: usize = parts.iter().map(|part| part.length).sum();
        let start = self.pieces.len();
        self.pieces.extend(parts);
        let end = self.pieces.len();
        let joins = gather
            && !self.ended
            && length <= self.size
            && self.packets < MOST_SEGMENTS
            && self.bytes + length <= MOST_BYTES;
        match self.messages.last_mut() {
            Some(last) if joins && last.to == to => {
                last.pieces.end = end;
                last.segment = u16::try_from(self.size).ok();
                self.packets += 1;
                self.bytes += length;
                self.ended = length < self.size;
            }
            _ => {
                self.messages.push(Message { to, segment: None, pieces: start..end });
                (self.packets, self.bytes, self.size, self.ended) = (1, length, length, false);
            }
        }
    }

    /// What is to be sent.
    pub(crate) fn batch(&self) -> Batch<'_> {
        Batch { arena: &self.arena, pieces: &self.pieces, messages: &self.messages }
    }

    /// The messages are sent; what was read stays.
    pub(crate) fn sent(&mut self) {
        self.pieces.clear();
        self.messages.clear();
        self.written = READ;
        self.ended = true;
    }

    /// Nothing is needed any more.
    pub(crate) fn clear(&mut self) {
        self.sent();
        self.read = 0;
    }
}

/// A message that gathers packets, taken apart: a message for each packet.
pub(crate) fn apart(message: &Message, pieces: &[Piece], into: &mut Vec<Message>) {
    let size = usize::from(message.segment.unwrap_or(u16::MAX));
    let mut start = message.pieces.start;
    let mut length = 0;
    for index in message.pieces.clone() {
        length += pieces.get(index).map_or(0, |piece| piece.length);
        if length >= size || index + 1 == message.pieces.end {
            into.push(Message { to: message.to, segment: None, pieces: start..index + 1 });
            start = index + 1;
            length = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn packets_of_one_size_are_gathered_and_a_shorter_one_is_the_last() {
        let (a, b) = (address("192.0.2.1:1"), address("192.0.2.2:1"));
        let mut outbox = Outbox::new();
        let piece = |length| Piece { start: 0, length };
        for length in [100, 100, 50, 50] {
            outbox.push(a, &[piece(20), piece(length - 20)], true);
        }
        outbox.push(b, &[piece(50)], true);
        outbox.push(b, &[piece(51)], true);
        outbox.push(b, &[piece(51)], false);
        let Batch { pieces, messages, .. } = outbox.batch();
        let shape: Vec<_> =
            messages.iter().map(|message| (message.to, message.segment, message.pieces.len())).collect();
        let expected = [(a, Some(100), 6), (a, None, 2), (b, None, 1), (b, None, 1), (b, None, 1)];
        assert_eq!(shape, expected);
        let mut single = Vec::new();
        apart(&messages[0], pieces, &mut single);
        assert_eq!(
            single.iter().map(|message| message.pieces.clone()).collect::<Vec<_>>(),
            [0..2, 2..4, 4..6]
        );
        assert!(single.iter().all(|message| message.segment.is_none()));
    }

    #[test]
    fn no_message_outgrows_what_the_kernel_takes() {
        let to = address("[2001:db8::1]:1");
        let mut outbox = Outbox::new();
        for _ in 0..200 {
            outbox.push(to, &[Piece { start: 0, length: 1472 }], true);
        }
        for _ in 0..200 {
            outbox.push(to, &[Piece { start: 0, length: 60 }], true);
        }
        let messages = outbox.batch().messages;
        assert!(messages.iter().all(|message| message.pieces.len() <= MOST_SEGMENTS));
        assert!(messages.iter().take(4).all(|message| message.pieces.len() * 1472 <= MOST_BYTES));
    }
}
