//! From the peers to the device.
//!
//! Read [`Incoming::carry`]: it takes what the sockets have, drops what is from no peer, and writes the packets to the
//! device, put together where they belong together.

use std::io::IoSlice;

use kernel::datagram::{Datagram, Piece, Receiver};
use kernel::tun::Queue;

use crate::coalesce::{Coalescer, MOST_PIECES, Output};
use crate::counters::Drop;
use crate::packet::Packet;
use crate::worker::Context;

/// How many messages are received at once, each of which may be many datagrams, and how long one can be.
const MESSAGES: usize = 16;
const LONGEST: usize = 65_536;

/// One thread's way in.
pub(crate) struct Incoming {
    receiver: Receiver,
    coalescer: Coalescer,
}

impl Incoming {
    /// For a device that takes super-packets of UDP, or not.
    pub(crate) fn new(takes_udp: bool) -> Self {
        Self { receiver: Receiver::new(MESSAGES, LONGEST), coalescer: Coalescer::new(takes_udp) }
    }

    /// Carries what the sockets have now, up to a batch of each. True when there was something.
    pub(crate) fn carry(&mut self, context: &Context<'_>) -> bool {
        let mut any = false;
        for socket in context.ends.sockets.iter().flatten() {
            // A socket of UDP that is bound and not connected has no errors but for want of memory.
            let count = self.receiver.receive(socket).unwrap_or(0);
            any |= count > 0;
            let arena = self.receiver.arena();
            let mut out = |output: Output<'_>| deliver(context, arena, &output);
            for index in 0..count {
                if let Some(datagram) = self.receiver.datagram(index) {
                    open(context, &mut self.coalescer, arena, &datagram, &mut out);
                }
            }
            self.coalescer.finish(&mut out);
        }
        any
    }
}

/// Takes the packets out of what came from one sender.
fn open(
    context: &Context<'_>,
    coalescer: &mut Coalescer,
    arena: &[u8],
    datagram: &Datagram,
    out: &mut impl FnMut(Output<'_>),
) {
    let size = datagram.segment.unwrap_or(datagram.length).max(1);
    let packets = datagram.length.div_ceil(size);
    let Some(remote) = context.table.from(datagram.from.ip()) else {
        return context.shared.drops.add(Drop::UnknownSender, packets, datagram.length);
    };
    remote.counts.received.add(packets, datagram.length);
    for index in 0..packets {
        let start = datagram.start + index * size;
        let place = Piece { start, length: size.min(datagram.length - index * size) };
        match Packet::parse(place.of(arena)) {
            // What stands behind a packet is padding.
            Some(packet) => coalescer.offer(arena, Piece { start, length: packet.length }, out),
            None => context.shared.drops.add(Drop::Malformed, 1, place.length),
        }
    }
}

fn deliver(context: &Context<'_>, arena: &[u8], output: &Output<'_>) {
    if write(&context.ends.queue, arena, output).is_none() {
        let bytes = output.pieces.iter().map(|piece| piece.length).sum();
        context.shared.drops.add(Drop::NotDelivered, output.packets, bytes);
    }
}

fn write(queue: &Queue, arena: &[u8], output: &Output<'_>) -> Option<()> {
    let vnet = output.vnet.to_bytes();
    let mut slices = [IoSlice::new(&[]); MOST_PIECES + 2];
    let (front, rest) = slices.split_first_chunk_mut::<2>()?;
    *front = [IoSlice::new(&vnet), IoSlice::new(output.headers)];
    for (slice, piece) in rest.iter_mut().zip(output.pieces) {
        *slice = IoSlice::new(piece.of(arena));
    }
    queue.write(slices.get(..output.pieces.len() + 2)?).ok()
}
