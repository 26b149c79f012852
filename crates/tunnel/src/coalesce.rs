//! Packets of one flow that follow each other, put together into one super-packet: what the kernel does when packets come
//! in from a card, done for those that come in through a tunnel.
//!
//! Read [`Coalescer`]. It keeps a few flows open for the length of a batch. Payloads stay where they were received;
//! only headers are copied.
//!
//! What stays true: packets of a flow come out in the order they came in; cutting a super-packet again gives the very
//! bytes that came in (but for the identification of IPv4 packets that are never fragmented, which means nothing: RFC
//! 6864); no checksum is vouched for that was not checked; nothing is held back past the end of a batch.
//!
//! Sources: `net/ipv4/tcp_offload.c`, `net/ipv4/udp_offload.c` (which packets belong together) of Linux 6.18.

use kernel::datagram::Piece;
use kernel::tun::{GSO_TCP4, GSO_TCP6, GSO_UDP, NEEDS_CHECKSUM, VnetHeader};

use crate::checksum::Sum;
use crate::packet::{self, HEADER4, HEADER6, Packet, TCP, UDP};

/// Flows that are open at the same time; others' packets close the oldest.
const FLOWS: usize = 8;
/// The packets of one super-packet: what the kernel takes over UDP, and more than fit over TCP at usual sizes.
const MOST_UDP: usize = 64;
/// See [`MOST_UDP`]. What is written at once is this many pieces and two more.
pub(crate) const MOST_PIECES: usize = 126;
/// The largest IP packet.
const LARGEST: usize = 65_535;
/// Headers of IPv6 and a TCP with all its options.
const HEADERS: usize = HEADER6 + 60;

const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// What is to be written to a TUN device at once: headers, if they had to be made, and then pieces.
pub(crate) struct Output<'a> {
    /// What the kernel shall know of it.
    pub vnet: VnetHeader,
    /// The super-packet's headers; empty for a packet that stayed alone.
    pub headers: &'a [u8],
    /// Payloads, or the packet that stayed alone.
    pub pieces: &'a [Piece],
    /// How many packets it stands for.
    pub packets: usize,
}

/// The open flows of a batch.
pub(crate) struct Coalescer {
    flows: Vec<Flow>,
    oldest: usize,
    takes_udp: bool,
}

/// A packet that may be part of a super-packet.
#[derive(Clone, Copy)]
struct Candidate<'a> {
    bytes: &'a [u8],
    whole: Piece,
    transport: usize,
    headers: usize,
    is_tcp: bool,
    dont_fragment: bool,
}

struct Flow {
    open: bool,
    headers: [u8; HEADERS],
    headers_length: usize,
    transport: usize,
    is_tcp: bool,
    /// The payload of each packet, but that the last may be shorter.
    size: usize,
    /// The payload of all.
    length: usize,
    next_sequence: u32,
    number: u16,
    checked: bool,
    first: Piece,
    pieces: Vec<Piece>,
}

impl Coalescer {
    /// `takes_udp`: whether the device takes super-packets of UDP.
    pub(crate) fn new(takes_udp: bool) -> Self {
        Self { flows: (0..FLOWS).map(|_| Flow::closed()).collect(), oldest: 0, takes_udp }
    }

    /// Takes one packet of the batch; what became ready by it goes out.
    pub(crate) fn offer(&mut self, arena: &[u8], whole: Piece, out: &mut impl FnMut(Output<'_>)) {
        let bytes = whole.of(arena);
        let Some(packet) = Packet::parse(bytes) else { return out(alone(&[whole])) };
        if let Some(candidate) = Candidate::of(bytes, whole, &packet, self.takes_udp) {
            return self.take(arena, candidate, out);
        }
        // Whatever it is, it must not overtake its flow.
        let same_flow = |flow: &Flow| {
            flow.open
                && (packet.fragment
                    || flow.transport != packet.payload
                    || flow.is_same(bytes, flow.transport))
        };
        for flow in self.flows.iter_mut().filter(|flow| same_flow(flow)) {
            flow.close(out);
        }
        out(alone(&[whole]));
    }

    /// The batch is over.
    pub(crate) fn finish(&mut self, out: &mut impl FnMut(Output<'_>)) {
        for flow in &mut self.flows {
            flow.close(out);
        }
    }

    fn take(&mut self, arena: &[u8], candidate: Candidate<'_>, out: &mut impl FnMut(Output<'_>)) {
        let same = |flow: &&mut Flow| {
            flow.open
                && flow.transport == candidate.transport
                && flow.is_tcp == candidate.is_tcp
                && flow.is_same(candidate.bytes, candidate.transport)
        };
        if let Some(flow) = self.flows.iter_mut().find(same) {
            if flow.try_add(arena, &candidate) {
                if candidate.ends(flow.size) {
                    flow.close(out);
                }
                return;
            }
            flow.close(out);
            return flow.begin(&candidate, out);
        }
        let free = self.flows.iter().position(|flow| !flow.open);
        let index = free.unwrap_or_else(|| {
            self.oldest = (self.oldest + 1) % FLOWS;
            self.oldest
        });
        if let Some(flow) = self.flows.get_mut(index) {
            flow.close(out);
            flow.begin(&candidate, out);
        }
    }
}

impl<'a> Candidate<'a> {
    fn of(bytes: &'a [u8], whole: Piece, packet: &Packet, takes_udp: bool) -> Option<Self> {
        let transport = packet.payload;
        let own = if packet.source.is_ipv4() { HEADER4 } else { HEADER6 };
        if packet.fragment || packet.length != bytes.len() || transport != own {
            return None;
        }
        let is_tcp = packet.protocol == TCP;
        let headers = if is_tcp {
            let flags = *bytes.get(transport + 13)?;
            let own = usize::from(bytes.get(transport + 12)? >> 4) * 4;
            if own < 20 || flags & !PSH != ACK {
                return None;
            }
            transport + own
        } else {
            let sound = usize::from(packet::word(bytes, transport + 4)) == bytes.len() - transport;
            if packet.protocol != UDP || !takes_udp || !sound || packet::word(bytes, transport + 6) == 0 {
                return None;
            }
            transport + 8
        };
        let dont_fragment = packet.whole;
        (headers < bytes.len()).then_some(Self { bytes, whole, transport, headers, is_tcp, dont_fragment })
    }

    fn payload(&self) -> Piece {
        Piece { start: self.whole.start + self.headers, length: self.bytes.len() - self.headers }
    }

    /// Nothing may follow it in its super-packet.
    fn ends(&self, size: usize) -> bool {
        let pushed = self.is_tcp && self.bytes.get(self.transport + 13).is_some_and(|flags| flags & PSH != 0);
        pushed || self.payload().length < size
    }

    /// Whether its checksums are right, both of which are written anew.
    fn is_sound(&self) -> bool {
        let header = self.bytes.get(..self.transport).unwrap_or_default();
        if self.transport == HEADER4 && Sum::default().add(header).finish() != [0, 0] {
            return false;
        }
        let protocol = if self.is_tcp { TCP } else { UDP };
        let carried = self.bytes.get(self.transport..).unwrap_or_default();
        packet::address_sum(self.bytes).add_pseudo(protocol, carried.len()).add(carried).finish() == [0, 0]
    }
}

impl Flow {
    fn closed() -> Self {
        Self {
            open: false,
            headers: [0; HEADERS],
            headers_length: 0,
            transport: 0,
            is_tcp: false,
            size: 0,
            length: 0,
            next_sequence: 0,
            number: 0,
            checked: false,
            first: Piece::default(),
            pieces: Vec::with_capacity(MOST_PIECES),
        }
    }

    /// Same family, addresses, protocol and ports.
    fn is_same(&self, bytes: &[u8], transport: usize) -> bool {
        let (addresses, protocol) = if transport == HEADER4 { (12..20, 9) } else { (8..40, 6) };
        self.headers.get(addresses.clone()) == bytes.get(addresses)
            && self.headers.get(protocol) == bytes.get(protocol)
            && self.headers.get(transport..transport + 4) == bytes.get(transport..transport + 4)
            && self.headers.first().map(|first| first >> 4) == bytes.first().map(|first| first >> 4)
    }

    /// Opens a flow with its first packet.
    fn begin(&mut self, candidate: &Candidate<'_>, out: &mut impl FnMut(Output<'_>)) {
        let payload = candidate.payload();
        let copied = candidate.bytes.get(..candidate.headers).zip(self.headers.get_mut(..candidate.headers));
        let Some((from, to)) = copied.filter(|_| !candidate.ends(payload.length)) else {
            return out(alone(&[candidate.whole]));
        };
        to.copy_from_slice(from);
        self.open = true;
        self.headers_length = candidate.headers;
        self.transport = candidate.transport;
        self.is_tcp = candidate.is_tcp;
        self.size = payload.length;
        self.length = payload.length;
        self.next_sequence =
            packet::long(candidate.bytes, candidate.transport + 4).wrapping_add(payload.length as u32);
        self.number = packet::word(candidate.bytes, 4);
        self.checked = false;
        self.first = candidate.whole;
        self.pieces.clear();
        self.pieces.push(payload);
    }

    /// Adds a packet of the same flow if it is the one that comes next.
    fn try_add(&mut self, arena: &[u8], candidate: &Candidate<'_>) -> bool {
        let payload = candidate.payload();
        let most = if self.is_tcp { MOST_PIECES } else { MOST_UDP };
        let fits = candidate.headers == self.headers_length
            && payload.length <= self.size
            && self.pieces.len() < most
            && self.headers_length + self.length + payload.length <= LARGEST;
        if !fits || !self.follows(candidate) || !candidate.is_sound() {
            return false;
        }
        if !self.checked {
            let first = Candidate { bytes: self.first.of(arena), whole: self.first, ..*candidate };
            if !first.is_sound() {
                return false;
            }
            self.checked = true;
        }
        if self.is_tcp && candidate.ends(payload.length) {
            // PSH belongs to the last.
            if let Some(flags) = self.headers.get_mut(self.transport + 13) {
                *flags |= PSH;
            }
        }
        self.length += payload.length;
        self.next_sequence = self.next_sequence.wrapping_add(payload.length as u32);
        self.pieces.push(payload);
        true
    }

    /// Whether its headers say the same as the first packet's, but for what differs from packet to packet.
    fn follows(&self, candidate: &Candidate<'_>) -> bool {
        let (ours, theirs) = (self.headers.as_slice(), candidate.bytes);
        let same = |from: usize, to: usize| ours.get(from..to) == theirs.get(from..to);
        let t = self.transport;
        let network = if t == HEADER4 {
            let number = packet::word(theirs, 4);
            let counted = number == self.number.wrapping_add(self.pieces.len() as u16);
            // An atomic packet's number means nothing, and some senders leave it at one value.
            same(0, 2) && same(6, 10) && (counted || candidate.dont_fragment && number == self.number)
        } else {
            same(0, 4) && same(6, 8)
        };
        let transport = if self.is_tcp {
            same(t + 8, t + 13)
                && same(t + 14, t + 16)
                && same(t + 18, self.headers_length)
                && packet::long(theirs, t + 4) == self.next_sequence
        } else {
            true
        };
        network && transport
    }

    /// Gives out what there is.
    fn close(&mut self, out: &mut impl FnMut(Output<'_>)) {
        if !self.open {
            return;
        }
        self.open = false;
        let packets = self.pieces.len();
        if packets == 1 {
            return out(alone(&[self.first]));
        }
        let (headers_length, transport) = (self.headers_length, self.transport);
        let Some(headers) = self.headers.get_mut(..headers_length) else { return };
        packet::set_length(headers, headers_length + self.length);
        let carried = headers_length - transport + self.length;
        let (protocol, offset) = if self.is_tcp { (TCP, 16) } else { (UDP, 6) };
        if !self.is_tcp {
            packet::put(headers, transport + 4, packet::field(carried));
        }
        let sum: Sum = packet::address_sum(headers).add_pseudo(protocol, carried);
        packet::put(headers, transport + offset, sum.partial());
        let kind = match (self.is_tcp, transport) {
            (true, HEADER4) => GSO_TCP4,
            (true, _) => GSO_TCP6,
            (false, _) => GSO_UDP,
        };
        let vnet = VnetHeader {
            flags: NEEDS_CHECKSUM,
            kind,
            header_length: headers_length as u16,
            segment_size: self.size as u16,
            checksum_start: transport as u16,
            checksum_offset: offset as u16,
        };
        out(Output { vnet, headers, pieces: &self.pieces, packets });
    }
}

fn alone(pieces: &[Piece; 1]) -> Output<'_> {
    Output { vnet: VnetHeader::default(), headers: &[], pieces, packets: 1 }
}

#[cfg(test)]
#[path = "coalesce_tests.rs"]
mod tests;
