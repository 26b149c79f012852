//! Who reaches whom: ICMP echo between all pods at once, with our own raw sockets.
//!
//! Read [`ping_all`] first. Each pod has one socket per family, opened inside its namespace; the kernels of
//! the pods answer. An echo request carries the asking pod in its identifier, the asked pod in its sequence
//! number and the round in its payload, so a late answer is never taken for another's. RFC 792, RFC 4443.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use kernel::echo::checksum;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};

/// Each pair is tried this often: the first packet pays for neighbour resolution, the best one is reported.
const ROUNDS: u16 = 3;
/// After the last request of a round, how long its answers may take.
const PATIENCE: Duration = Duration::from_millis(400);
/// Marks our payload among whatever else arrives on a raw socket.
const MAGIC: [u8; 4] = *b"frld";

/// A pod's addresses and the sockets that speak from them.
pub(crate) struct Party {
    pub(crate) addresses: Vec<IpAddr>,
    sockets: Vec<EchoSocket>,
}

impl Party {
    /// Opens the sockets in the calling thread's namespace.
    pub(crate) fn open(addresses: &[IpAddr]) -> io::Result<Self> {
        let sockets = addresses.iter().map(EchoSocket::open).collect::<io::Result<_>>()?;
        Ok(Self { addresses: addresses.to_vec(), sockets })
    }
}

/// One answered or unanswered pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) address: IpAddr,
    /// The shortest round trip; `None` when no round was answered.
    pub(crate) round_trip: Option<Duration>,
}

/// Pings every party from every other, each family that both have.
pub(crate) fn ping_all(parties: &[Party], told: &mut dyn FnMut(u16, u16)) -> io::Result<Vec<Pair>> {
    let mut flights = Flights::of(parties);
    for round in 0..ROUNDS {
        run_round(round, parties, &mut flights)?;
        told(round + 1, ROUNDS);
    }
    Ok(flights.list.into_iter().map(|flight| flight.pair).collect())
}

/// A pair on its way in the current round.
struct Flight {
    pair: Pair,
    socket: usize,
    sent: Option<Instant>,
}

/// All pairs, found again by who asks over which socket and who is asked.
struct Flights {
    list: Vec<Flight>,
    places: HashMap<(usize, usize, usize), usize>,
    /// How many are on their way.
    open: usize,
}

impl Flights {
    fn of(parties: &[Party]) -> Self {
        let mut flights = Self { list: Vec::new(), places: HashMap::new(), open: 0 };
        for (from, party) in parties.iter().enumerate() {
            for (socket, echo) in party.sockets.iter().enumerate() {
                for (to, other) in parties.iter().enumerate().filter(|(to, _)| *to != from) {
                    let address = other.addresses.iter().find(|address| address.is_ipv4() == echo.is_ipv4);
                    let Some(address) = address else { continue };
                    flights.places.insert((from, socket, to), flights.list.len());
                    let pair = Pair { from, to, address: *address, round_trip: None };
                    flights.list.push(Flight { pair, socket, sent: None });
                }
            }
        }
        flights
    }

    fn land(&mut self, key: (usize, usize, usize), now: Instant) {
        let Some(flight) = self.places.get(&key).and_then(|place| self.list.get_mut(*place)) else { return };
        // A second answer to one question counts for nothing.
        let Some(sent) = flight.sent.take() else { return };
        self.open -= 1;
        let took = now.duration_since(sent);
        let best = flight.pair.round_trip.map_or(took, |best| best.min(took));
        flight.pair.round_trip = Some(best);
    }
}

fn run_round(round: u16, parties: &[Party], flights: &mut Flights) -> io::Result<()> {
    for index in 0..flights.list.len() {
        let flight = &mut flights.list[index];
        let (from, place) = (flight.pair.from, flight.socket);
        let socket = &parties[from].sockets[place];
        let sent = Instant::now();
        // A refusal (no route, say) is an unanswered pair, not the end of the probe.
        if socket.request(flight.pair, round).is_ok() {
            flight.sent = Some(sent);
            flights.open += 1;
        }
        // On a lab's links the answer is usually back before the send returns: take it while it is fresh.
        socket.collect(round, flights, (from, place));
    }
    let deadline = Instant::now() + PATIENCE;
    while flights.open > 0 {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        wait_for_any(parties, left)?;
        for (from, party) in parties.iter().enumerate() {
            for (place, socket) in party.sockets.iter().enumerate() {
                socket.collect(round, flights, (from, place));
            }
        }
    }
    flights.list.iter_mut().for_each(|flight| flight.sent = None);
    flights.open = 0;
    Ok(())
}

fn wait_for_any(parties: &[Party], left: Duration) -> io::Result<()> {
    let sockets = parties.iter().flat_map(|party| &party.sockets);
    let mut polled: Vec<PollFd<'_>> = sockets.map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
    let timeout = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(left.subsec_nanos()),
    };
    match poll(&mut polled, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A raw ICMP socket of one family.
struct EchoSocket {
    descriptor: OwnedFd,
    is_ipv4: bool,
}

impl EchoSocket {
    fn open(address: &IpAddr) -> io::Result<Self> {
        let (family, protocol) = match address {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let descriptor = rustix::net::socket_with(family, SocketType::RAW, flags, Some(protocol))?;
        Ok(Self { descriptor, is_ipv4: address.is_ipv4() })
    }

    fn request(&self, pair: Pair, round: u16) -> io::Result<()> {
        let bytes = echo_request(self.is_ipv4, pair, round);
        let to = SocketAddr::from((pair.address, 0));
        rustix::net::sendto(&self.descriptor, &bytes, SendFlags::empty(), &to)?;
        Ok(())
    }

    /// Takes every answer that has arrived.
    fn collect(&self, round: u16, flights: &mut Flights, (from, socket): (usize, usize)) {
        let mut buffer = [0_u8; 512];
        while let Ok((count, _)) =
            rustix::net::recv(&self.descriptor, buffer.as_mut_slice(), RecvFlags::DONTWAIT)
        {
            let now = Instant::now();
            let Some(reply) = decode_reply(self.is_ipv4, &buffer[..count]) else { continue };
            if reply.round != round || usize::from(reply.from) != from {
                continue;
            }
            flights.land((from, socket, reply.to.into()), now);
        }
    }
}

impl AsFd for EchoSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// What an echo reply says.
#[derive(Debug, PartialEq, Eq)]
struct EchoReply {
    from: u16,
    to: u16,
    round: u16,
}

/// type, code, checksum, identifier, sequence number, then magic and round.
fn echo_request(is_ipv4: bool, pair: Pair, round: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0] = if is_ipv4 { 8 } else { 128 };
    // A lab has far fewer than 65,536 pods; beyond, answers would be counted for a neighbour.
    bytes[4..6].copy_from_slice(&u16::try_from(pair.from).unwrap_or(u16::MAX).to_be_bytes());
    bytes[6..8].copy_from_slice(&u16::try_from(pair.to).unwrap_or(u16::MAX).to_be_bytes());
    bytes[8..12].copy_from_slice(&MAGIC);
    bytes[12..14].copy_from_slice(&round.to_be_bytes());
    if is_ipv4 {
        // For ICMPv6 the kernel fills in the checksum: it covers the addresses too.
        let sum = checksum(&bytes);
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

fn decode_reply(is_ipv4: bool, packet: &[u8]) -> Option<EchoReply> {
    // An IPv4 raw socket hands over the IP header as well.
    let header = if is_ipv4 { usize::from(packet.first()? & 0x0f) * 4 } else { 0 };
    let message = packet.get(header..header + 16)?;
    let reply_type = if is_ipv4 { 0 } else { 129 };
    if message[0] != reply_type || message[8..12] != MAGIC {
        return None;
    }
    let word = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
    Some(EchoReply { from: word(4), to: word(6), round: word(12) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIR: Pair =
        Pair { from: 3, to: 5, address: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), round_trip: None };

    #[test]
    fn a_reply_is_read_back_as_what_was_asked() {
        let mut reply = echo_request(false, PAIR, 2);
        reply[0] = 129;
        assert_eq!(decode_reply(false, &reply), Some(EchoReply { from: 3, to: 5, round: 2 }));
    }

    #[test]
    fn a_request_is_not_taken_for_a_reply() {
        assert_eq!(decode_reply(false, &echo_request(false, PAIR, 0)), None);
    }

    #[test]
    fn a_packet_cut_short_is_ignored() {
        for length in 0..36 {
            let packet = [0x45; 36];
            assert_eq!(decode_reply(true, &packet[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn the_checksum_of_a_request_sums_to_nothing() {
        assert_eq!(checksum(&echo_request(true, PAIR, 1)), 0);
    }
}
