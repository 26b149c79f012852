//! From the peers to the device.
//!
//! Read [`Incoming::carry`]: it takes what the sockets have, drops what is from no peer, unwraps it, and writes the packets
//! to the device, put together where they belong together.

use std::io::IoSlice;

use kernel::datagram::{Datagram, Piece, Receiver};
use kernel::tun::Queue;

use crate::coalesce::{Coalescer, MOST_PIECES, Output};
use crate::counters::DropReason;
use crate::ipip;
use crate::packet::Packet;
use crate::peer::Remote;
use crate::settings::{Encapsulation, Settings};
use crate::wireguard::{HANDSHAKE, Opened, Received};
use crate::worker::Context;

/// How many messages are received at once, each of which may be many datagrams.
const MESSAGES: usize = 8;
/// The same where each is one packet.
const PACKETS: usize = 32;
/// How long one can be. It is no power of two, or all of them would compete for the same lines of the cache.
const LONGEST: usize = 65_536 + 320;

/// One thread's way in.
pub(crate) struct Incoming {
    receiver: Receiver,
    coalescer: Coalescer,
    /// The packets of a batch, where they lie.
    opened: Vec<Piece>,
    /// What was deciphered; empty where nothing is.
    plain: Vec<u8>,
}

impl Incoming {
    /// For a device that takes super-packets of UDP, or not.
    pub(crate) fn new(settings: &Settings, takes_udp: bool) -> Self {
        let (messages, room) = match settings.encapsulation {
            Encapsulation::Udp => (MESSAGES, 0),
            Encapsulation::Ipip => (PACKETS, 0),
            // What is deciphered is shorter than what it was made of.
            Encapsulation::WireGuard { .. } => (MESSAGES, MESSAGES * LONGEST + HANDSHAKE),
        };
        Self {
            receiver: Receiver::new(messages, LONGEST),
            coalescer: Coalescer::new(takes_udp),
            opened: Vec::with_capacity(1024),
            plain: vec![0; room],
        }
    }

    /// Carries what the sockets have now, up to a batch of each. True when there was something.
    pub(crate) fn carry(&mut self, context: &Context<'_>) -> bool {
        let mut any = false;
        for socket in context.ends.sockets.iter().flatten() {
            // A socket that is bound and not connected has no errors but for want of memory.
            let count = self.receiver.receive(socket).unwrap_or(0);
            any |= count > 0;
            let mut used = 0;
            for index in 0..count {
                let Some(datagram) = self.receiver.datagram(index) else { continue };
                match context
                    .table
                    .from(datagram.from.ip())
                    .filter(|remote| is_tunnel(context, remote, &datagram))
                {
                    Some(remote) => self.unwrap(context, remote, &datagram, &mut used),
                    None => context.shared.drops.add(
                        DropReason::UnknownSender,
                        packets(&datagram),
                        datagram.length,
                    ),
                }
            }
            self.deliver(context);
        }
        any
    }

    /// Finds the packets in what came from a peer.
    fn unwrap(&mut self, context: &Context<'_>, remote: &Remote, datagram: &Datagram, used: &mut usize) {
        match context.shared.settings.encapsulation {
            Encapsulation::Udp => {
                let arena = self.receiver.arena();
                for place in parts(datagram) {
                    check(context, remote, arena, place, &mut self.opened);
                }
            }
            Encapsulation::Ipip => match ipip::inner(self.receiver.bytes_mut(datagram)) {
                Some(inner) => {
                    let place = Piece { start: datagram.start + inner.start, ..inner };
                    check(context, remote, self.receiver.arena(), place, &mut self.opened);
                }
                None => context.shared.drops.add(DropReason::Malformed, 1, datagram.length),
            },
            Encapsulation::WireGuard { .. } => {
                for place in parts(datagram) {
                    self.decipher(context, remote, place, used);
                }
            }
        }
    }

    fn decipher(&mut self, context: &Context<'_>, remote: &Remote, place: Piece, used: &mut usize) {
        let Some(session) = &remote.session else {
            return context.shared.drops.add(DropReason::NoKey, 1, place.length);
        };
        let answer = |bytes: &[u8]| {
            if let Some(socket) = context.ends.socket(remote.address) {
                // A handshake is tried again when it gets no answer.
                let _ = socket.send_one(remote.address, bytes);
            }
        };
        let bytes = place.of(self.receiver.arena());
        let room = self.plain.get_mut(*used..).unwrap_or_default();
        let received = Received { from: remote.address.ip(), datagram: bytes };
        match session.open(received, room, &context.shared.drops, answer) {
            Opened::Packet(length) => {
                let place = Piece { start: *used, length };
                *used += length;
                let source = Packet::parse(place.of(&self.plain))
                    .and_then(|packet| context.table.towards(packet.source));
                if source.is_some_and(|source| std::ptr::eq(&raw const **source, remote)) {
                    check(context, remote, &self.plain, place, &mut self.opened);
                } else {
                    context.shared.drops.add(DropReason::WrongSource, 1, length);
                }
            }
            Opened::Nothing => {}
            Opened::Refused(reason) => context.shared.drops.add(reason, 1, place.length),
        }
    }

    /// Writes the packets of the batch to the device.
    fn deliver(&mut self, context: &Context<'_>) {
        let settings = &context.shared.settings;
        let arena = if self.plain.is_empty() { self.receiver.arena() } else { &self.plain };
        let mut out = |output: Output<'_>| {
            if write(&context.ends.queue, arena, &output).is_none() {
                let bytes = output.pieces.iter().map(|piece| piece.length).sum();
                context.shared.drops.add(DropReason::NotDelivered, output.packets, bytes);
            }
        };
        for place in self.opened.drain(..) {
            let bytes = place.of(arena);
            let glued = if settings.encapsulation == Encapsulation::Ipip {
                ipip::glued(bytes, settings.mtu)
            } else {
                None
            };
            match glued {
                Some(vnet) => {
                    self.coalescer.finish(&mut out);
                    out(Output { vnet, headers: &[], pieces: &[place], packets: 1 });
                }
                None => self.coalescer.offer(arena, place, &mut out),
            }
        }
        self.coalescer.finish(&mut out);
    }
}

/// Whether a datagram is from a peer's tunnel. Over plain UDP its port says so: what a pod of the peer sends here has the
/// peer's address as well, for it is translated, and another port.
fn is_tunnel(context: &Context<'_>, remote: &Remote, datagram: &Datagram) -> bool {
    context.shared.settings.encapsulation != Encapsulation::Udp
        || datagram.from.port() == remote.address.port()
}

/// Keeps a packet from a peer if it is one, without what stands behind it. One that says to be from another peer's pods
/// is none of this peer's.
fn check(context: &Context<'_>, remote: &Remote, arena: &[u8], place: Piece, opened: &mut Vec<Piece>) {
    let of_another = |packet: &Packet| {
        let owner = context.table.towards(packet.source);
        owner.is_some_and(|owner| !std::ptr::eq(&raw const **owner, remote))
    };
    match Packet::parse(place.of(arena)) {
        Some(packet) if of_another(&packet) => {
            context.shared.drops.add(DropReason::WrongSource, 1, packet.length);
        }
        Some(packet) => {
            remote.counts.received.add(1, packet.length);
            opened.push(Piece { length: packet.length, ..place });
        }
        None => context.shared.drops.add(DropReason::Malformed, 1, place.length),
    }
}

/// How many datagrams the kernel has glued.
fn packets(datagram: &Datagram) -> usize {
    datagram.length.div_ceil(datagram.segment.unwrap_or(datagram.length).max(1))
}

/// Each of them.
fn parts(datagram: &Datagram) -> impl Iterator<Item = Piece> {
    let datagram = *datagram;
    let size = datagram.segment.unwrap_or(datagram.length).max(1);
    (0..packets(&datagram)).map(move |index| {
        let start = datagram.start + index * size;
        Piece { start, length: size.min(datagram.length - index * size) }
    })
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
