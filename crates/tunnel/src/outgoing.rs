//! From the device to the peers.
//!
//! Read [`Outgoing::carry`]: it empties the device's queue into an [`Outbox`], cutting what must be cut, and sends. What
//! cannot be carried is counted, and its sender told.
//!
//! What stays true: the time to live is not touched, for the kernel that routed the packet to the device has lowered it and
//! the far one will; packets of a flow leave in the order they came; nothing is allocated per packet.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use kernel::datagram::{Batch, Message, Piece, Sender, path_mtu};
use kernel::tun::{GSO_NONE, VNET_HEADER, VnetHeader};
use rustix::io::Errno;

use crate::counters::DropReason;
use crate::fragment::{Fragments, LONGEST_HEADER};
use crate::icmp::{Complaint, Complaints};
use crate::ipip;
use crate::outbox::{Outbox, apart};
use crate::packet::Packet;
use crate::peer::Remote;
use crate::segment::{LONGEST_HEADERS, SuperPacket, finish_checksum};
use crate::settings::Encapsulation;
use crate::wireguard;
use crate::worker::Context;

/// One thread's way out.
pub(crate) struct Outgoing {
    outbox: Outbox,
    sender: Sender,
    complaints: Complaints,
    failed: Vec<(usize, Errno)>,
    single: Vec<Message>,
    sealing: Sealing,
    /// A message in one piece.
    whole: Vec<u8>,
    /// Whether the underlay takes messages that gather several packets.
    gathers: bool,
}

/// The smallest packet that every way of IPv6 carries (RFC 8200, 5): no sender of IPv6 makes smaller ones for being told to.
const SMALLEST_IPV6: usize = 1280;

/// How many packets wait to be sealed at most.
const MOST_SEALING: usize = 256;

/// What is to be sealed when the batch is sent, and not before: see [`wireguard::Session::in_order`].
#[derive(Default)]
struct Sealing {
    /// The packets, each in one piece as a cipher wants it.
    plain: Vec<u8>,
    packets: Vec<Piece>,
    /// For whom they are, in runs.
    runs: Vec<(Arc<Remote>, Range<usize>)>,
    /// How much room they will take once sealed.
    room: usize,
}

/// A packet that was read, and where it goes.
#[derive(Clone, Copy)]
struct Taken<'a> {
    vnet: VnetHeader,
    packet: Packet,
    /// Where it lies.
    place: Piece,
    remote: &'a Arc<Remote>,
    mtu: usize,
}

impl Outgoing {
    /// Takes the sockets for complaints from the calling thread's namespace.
    pub(crate) fn new() -> Self {
        Self {
            outbox: Outbox::new(),
            sender: Sender::default(),
            complaints: Complaints::open(),
            failed: Vec::new(),
            single: Vec::new(),
            sealing: Sealing::default(),
            whole: Vec::new(),
            gathers: true,
        }
    }

    /// Carries what the device has now, up to a batch. True when there was something.
    ///
    /// # Errors
    /// When the device is gone.
    pub(crate) fn carry(&mut self, context: &Context<'_>) -> Result<bool, Errno> {
        let mut any = false;
        while let Some(room) = self.outbox.room() {
            let Some(length) = context.ends.queue.read(room)? else { break };
            any = true;
            let piece = self.outbox.keep(length);
            self.take(context, piece);
        }
        self.flush(context);
        self.outbox.clear();
        Ok(any)
    }

    fn take(&mut self, context: &Context<'_>, piece: Piece) {
        let dropped = |reason| context.shared.drops.add(reason, 1, piece.length.saturating_sub(VNET_HEADER));
        let Some((vnet, bytes)) = VnetHeader::split(self.outbox.bytes(piece)) else {
            return dropped(DropReason::Malformed);
        };
        let Some(packet) = Packet::parse(bytes) else { return dropped(DropReason::Malformed) };
        if !packet.is_unicast() {
            return dropped(DropReason::NotUnicast);
        }
        let Some(remote) = context.table.towards(packet.destination) else {
            self.complaints.send(Complaint::Unreachable, &packet, bytes);
            return dropped(DropReason::NoPeer);
        };
        let place = Piece { start: piece.start + VNET_HEADER, length: packet.length };
        let mut mtu = remote.mtu(context.shared.settings.mtu);
        if packet.source.is_ipv6() {
            mtu = mtu.max(SMALLEST_IPV6);
        }
        let taken = Taken { vnet, packet, place, remote, mtu };
        if vnet.kind == GSO_NONE { self.one(context, &taken) } else { self.many(context, &taken) }
    }

    fn one(&mut self, context: &Context<'_>, taken: &Taken<'_>) {
        if !finish_checksum(&taken.vnet, self.outbox.bytes_mut(taken.place)) {
            return context.shared.drops.add(DropReason::Malformed, 1, taken.place.length);
        }
        if taken.place.length > taken.mtu {
            return self.too_big(context, taken);
        }
        self.make_room(context, wrapping(context, taken.place.length));
        self.push(context, taken.remote, &[taken.place]);
        taken.remote.counts.sent.add(1, taken.place.length);
    }

    /// Cuts a super-packet.
    fn many(&mut self, context: &Context<'_>, taken: &Taken<'_>) {
        let bytes = self.outbox.bytes(taken.place);
        let Some(whole) = SuperPacket::parse(&taken.vnet, bytes, taken.packet) else {
            return context.shared.drops.add(DropReason::Malformed, 1, taken.place.length);
        };
        let small = whole.longest() <= taken.mtu;
        if !small && taken.packet.whole {
            return self.refuse(context, taken);
        }
        let mut total = 0;
        for index in 0..whole.count() {
            let room = if small { LONGEST_HEADERS } else { whole.longest() };
            self.make_room(context, room + wrapping(context, whole.longest()));
            let (bytes, room) = self.outbox.split(taken.place);
            let Some(headers) = whole.write_headers(bytes, index, room) else { continue };
            let range = whole.payload(index);
            total += headers + range.len();
            if small {
                let headers = self.outbox.wrote(headers);
                let payload = Piece { start: taken.place.start + range.start, length: range.len() };
                self.push(context, taken.remote, &[headers, payload]);
                continue;
            }
            let copied = bytes.get(range.clone()).zip(room.get_mut(headers..headers + range.len()));
            let Some((from, to)) = copied else { continue };
            to.copy_from_slice(from);
            let place = self.outbox.wrote(headers + range.len());
            self.cut_copy(context, taken, place);
        }
        taken.remote.counts.sent.add(whole.count(), total);
    }

    /// Cuts one packet of a super-packet, whole in the room that is written to.
    fn cut_copy(&mut self, context: &Context<'_>, taken: &Taken<'_>, place: Piece) {
        if place.length <= taken.mtu {
            return self.push(context, taken.remote, &[place]);
        }
        let Some(packet) = Packet::parse(self.outbox.bytes(place)) else { return };
        if let Some(fragments) = Fragments::of(&packet, taken.mtu) {
            // What is written goes away when a batch is sent, so it must not be sent in between.
            let room = fragments.count() * (LONGEST_HEADER + wrapping(context, taken.mtu));
            if self.is_full(room, fragments.count()) {
                return context.shared.drops.add(DropReason::NotSent, 1, place.length);
            }
            self.cut(context, taken.remote, place, fragments);
        }
    }

    fn too_big(&mut self, context: &Context<'_>, taken: &Taken<'_>) {
        match Fragments::of(&taken.packet, taken.mtu) {
            Some(fragments) => {
                self.cut(context, taken.remote, taken.place, fragments);
                taken.remote.counts.sent.add(1, taken.place.length);
            }
            None => self.refuse(context, taken),
        }
    }

    fn cut(&mut self, context: &Context<'_>, remote: &Arc<Remote>, place: Piece, fragments: Fragments) {
        for index in 0..fragments.count() {
            self.make_room(context, LONGEST_HEADER + wrapping(context, fragments.longest()));
            let length = self.write_fragment(place, fragments, index);
            let range = fragments.payload(index);
            if let Some(length) = length {
                let header = self.outbox.wrote(length);
                let payload = Piece { start: place.start + range.start, length: range.len() };
                self.push(context, remote, &[header, payload]);
            }
        }
    }

    fn write_fragment(&mut self, place: Piece, fragments: Fragments, index: usize) -> Option<usize> {
        let mut header = [0; LONGEST_HEADER];
        let length = fragments.write_header(self.outbox.bytes(place), index, &mut header)?;
        let (_, room) = self.outbox.split(place);
        room.get_mut(..length)?.copy_from_slice(header.get(..length)?);
        Some(length)
    }

    fn refuse(&mut self, context: &Context<'_>, taken: &Taken<'_>) {
        let bytes = self.outbox.bytes(taken.place);
        self.complaints.send(Complaint::TooBig(taken.mtu), &taken.packet, bytes);
        context.shared.drops.add(DropReason::TooBig, 1, taken.place.length);
    }

    /// Wraps a packet up and adds it to the batch, in which there is room for it.
    fn push(&mut self, context: &Context<'_>, remote: &Arc<Remote>, parts: &[Piece]) {
        match context.shared.settings.encapsulation {
            Encapsulation::Udp => self.outbox.push(remote.address, parts, self.gathers),
            Encapsulation::Ipip => self.push_ipip(context, remote, parts),
            Encapsulation::WireGuard { .. } => self.push_wireguard(context, remote, parts),
        }
    }

    fn push_ipip(&mut self, context: &Context<'_>, remote: &Remote, parts: &[Piece]) {
        let own = context.shared.settings.underlay.first();
        let (Some(IpAddr::V4(from)), IpAddr::V4(to)) = (own.copied(), remote.address.ip()) else {
            let length = parts.iter().map(|part| part.length).sum();
            return context.shared.drops.add(DropReason::NotSent, 1, length);
        };
        let length = parts.iter().map(|part| part.length).sum();
        let headers = parts.first().copied().unwrap_or_default();
        let mut outer = [0; ipip::OUTER];
        if ipip::write_outer(self.outbox.bytes(headers), length, (from, to), &mut outer).is_none() {
            return;
        }
        let (_, room) = self.outbox.split(headers);
        if let Some(place) = room.get_mut(..ipip::OUTER) {
            place.copy_from_slice(&outer);
        }
        let outer = self.outbox.wrote(ipip::OUTER);
        match *parts {
            [one] => self.outbox.push(remote.address, &[outer, one], false),
            [one, two, ..] => self.outbox.push(remote.address, &[outer, one, two], false),
            [] => {}
        }
    }

    fn push_wireguard(&mut self, context: &Context<'_>, remote: &Arc<Remote>, parts: &[Piece]) {
        let length = parts.iter().map(|part| part.length).sum();
        if remote.session.is_none() {
            return context.shared.drops.add(DropReason::NoKey, 1, length);
        }
        let sealing = &mut self.sealing;
        let start = sealing.plain.len();
        for part in parts {
            sealing.plain.extend_from_slice(self.outbox.bytes(*part));
        }
        sealing.room += wrapping(context, length);
        sealing.packets.push(Piece { start, length });
        let end = sealing.packets.len();
        match sealing.runs.last_mut() {
            Some((last, run)) if Arc::ptr_eq(last, remote) => run.end = end,
            _ => sealing.runs.push((Arc::clone(remote), end - 1..end)),
        }
    }

    /// Sends what there is if there is no place for another packet.
    fn make_room(&mut self, context: &Context<'_>, room: usize) {
        if self.is_full(room, 1) {
            self.flush(context);
        }
    }

    /// Whether there is no place for so many packets that need this much room.
    fn is_full(&self, room: usize, packets: usize) -> bool {
        self.outbox.is_full(room + self.sealing.room) || self.sealing.packets.len() + packets > MOST_SEALING
    }

    /// Sends what there is. What is to be sealed goes peer by peer.
    fn flush(&mut self, context: &Context<'_>) {
        let mut runs = std::mem::take(&mut self.sealing.runs);
        runs.sort_unstable_by_key(|(remote, packets)| (Arc::as_ptr(remote), packets.start));
        for of_one in runs.chunk_by(|(one, _), (other, _)| Arc::ptr_eq(one, other)) {
            let Some((remote, session)) =
                of_one.first().and_then(|(remote, _)| Some((remote, remote.session.as_ref()?)))
            else {
                continue;
            };
            let _in_order = session.in_order();
            for index in of_one.iter().flat_map(|(_, packets)| packets.clone()) {
                let packet = self.sealing.packets.get(index).copied().unwrap_or_default();
                let (_, room) = self.outbox.split(Piece::default());
                // Without a session, it waits for the peer's answer.
                let sealed = session.close(packet.of(&self.sealing.plain), room, &context.shared.drops);
                if let Some(length) = sealed {
                    let place = self.outbox.wrote(length);
                    self.outbox.push(remote.address, &[place], self.gathers);
                }
            }
            self.send(context);
        }
        runs.clear();
        self.sealing.runs = runs;
        self.sealing.packets.clear();
        self.sealing.plain.clear();
        self.sealing.room = 0;
        self.send(context);
    }

    fn send(&mut self, context: &Context<'_>) {
        let batch = self.outbox.batch();
        let mut before = 0;
        for run in batch.messages.chunk_by(|a, b| a.to.is_ipv4() == b.to.is_ipv4()) {
            let failed = &mut self.failed;
            match run.first().and_then(|first| context.ends.socket(first.to)) {
                Some(socket) => self.sender.send(socket, Batch { messages: run, ..batch }, |index, errno| {
                    failed.push((before + index, errno));
                }),
                None => failed.extend((0..run.len()).map(|index| (before + index, Errno::AFNOSUPPORT))),
            }
            before += run.len();
        }
        for (index, errno) in std::mem::take(&mut self.failed) {
            self.settle(context, index, errno);
        }
        self.outbox.sent();
    }

    /// Finds out why a message was not sent, and sends it in another way if there is one.
    fn settle(&mut self, context: &Context<'_>, index: usize, errno: Errno) {
        let batch = self.outbox.batch();
        let pieces = batch.pieces;
        let Some(message) = batch.messages.get(index) else { return };
        let parts = pieces.get(message.pieces.clone()).unwrap_or_default();
        let length: usize = parts.iter().map(|piece| piece.length).sum();
        let size = message.segment.map_or(length, usize::from);
        let packets = length.div_ceil(size.max(1));
        let Some(socket) = context.ends.socket(message.to) else {
            return context.shared.drops.add(DropReason::NotSent, packets, length);
        };
        if matches!(errno, Errno::MSGSIZE | Errno::INVAL)
            && let Some(mtu) = context.inner_mtu(message.to, |from| path_mtu(from, message.to.ip()))
            && usize::from(mtu) < size.saturating_sub(wrapped(context))
        {
            if let Some(remote) = context.table.from(message.to.ip()) {
                remote.learn(mtu);
            }
            if size.saturating_sub(wrapped(context)) <= SMALLEST_IPV6 {
                return self.send_in_fragments(context, index);
            }
            return context.shared.drops.add(DropReason::TooBig, packets, length);
        }
        // Only several at once may be what was refused: for want of room, or of a way, one is refused as well.
        if message.segment.is_none() || !matches!(errno, Errno::IO | Errno::INVAL | Errno::MSGSIZE) {
            return context.shared.drops.add(DropReason::NotSent, packets, length);
        }
        // A card without checksums of its own (EIO), for one, does not take several packets at once.
        self.gathers &= errno != Errno::IO;
        self.single.clear();
        apart(message, pieces, &mut self.single);
        let mut lost = (0, 0);
        self.sender.send(socket, Batch { messages: &self.single, ..batch }, |_, _| {
            lost = (lost.0 + 1, lost.1 + size)
        });
        context.shared.drops.add(DropReason::NotSent, lost.0, lost.1);
    }
}

impl Outgoing {
    /// Sends what the way does not take, and what nobody makes smaller, in fragments of the underlay's, as the kernel's own
    /// tunnels do.
    fn send_in_fragments(&mut self, context: &Context<'_>, index: usize) {
        let Batch { arena, pieces, messages } = self.outbox.batch();
        let Some(message) = messages.get(index) else { return };
        let Some(socket) = context.ends.socket(message.to) else { return };
        self.single.clear();
        apart(message, pieces, &mut self.single);
        for one in &self.single {
            self.whole.clear();
            let parts = pieces.get(one.pieces.clone()).unwrap_or_default();
            parts.iter().for_each(|part| self.whole.extend_from_slice(part.of(arena)));
            if context.shared.settings.encapsulation == Encapsulation::Ipip {
                ipip::allow_fragments(&mut self.whole);
            }
            if socket.send_in_fragments(one.to, &self.whole).is_err() {
                context.shared.drops.add(DropReason::NotSent, 1, self.whole.len());
            }
        }
    }
}

/// How much longer a message is than the packet in it.
fn wrapped(context: &Context<'_>) -> usize {
    match context.shared.settings.encapsulation {
        Encapsulation::Udp => 0,
        Encapsulation::Ipip => ipip::OUTER,
        Encapsulation::WireGuard { .. } => wireguard::OVERHEAD,
    }
}

/// How much room wrapping up a packet of this length needs.
fn wrapping(context: &Context<'_>, length: usize) -> usize {
    match context.shared.settings.encapsulation {
        Encapsulation::Udp => 0,
        Encapsulation::Ipip => ipip::OUTER,
        Encapsulation::WireGuard { .. } => (length + wireguard::OVERHEAD).max(wireguard::HANDSHAKE),
    }
}
