//! WireGuard in user space: keys, sessions, and what is due from time to time.
//!
//! Read [`Session`]. The protocol is `boringtun`'s, a machine without socket or device. A session is used by one thread at
//! a time; its lock is held for one packet. What waits for a handshake waits [here](waiting), not in that machine, which puts
//! packets that wait in another order, forgets to send them when it was the peer that began, and counts nothing.
//!
//! What stays true: a packet for a peer without a key is dropped, never sent in the clear; what a peer sends comes from
//! its own pod CIDRs or is dropped. A peer is known by its underlay address, so it does not roam. Packets of a peer leave in
//! the order of their numbers, whatever thread has sealed them ([`Session::in_order`]).
//!
//! Sources: the WireGuard protocol (wireguard.com/protocol), for what is done when.

mod waiting;

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};

use self::waiting::Waiting;
use crate::counters::{DropReason, Drops};
use crate::settings::{Peer, Secret};
use crate::worker::Context;

/// How often sessions are asked whether something is due.
pub(crate) const TICK: Duration = Duration::from_millis(250);
/// What a session adds to a packet.
pub(crate) const OVERHEAD: usize = 32;
/// The longest message of a session that carries no packet.
pub(crate) const HANDSHAKE: usize = 148;

/// The type of a message that carries a packet.
const DATA: u8 = 4;

/// Handshakes a second beyond which senders must prove that they own their address, which takes them five seconds. One costs a
/// fifth of a millisecond, and a node that starts has one with each peer that has something to say.
const CALM: u64 = 1000;

/// Who we are.
pub(crate) struct Identity {
    secret: Secret,
    limiter: Arc<RateLimiter>,
    next: AtomicU32,
    /// The bytes that wait for a session.
    waiting: Arc<AtomicUsize>,
}

impl Identity {
    pub(crate) fn new(secret: Secret) -> Self {
        let public = PublicKey::from(&StaticSecret::from(secret.0));
        let limiter = Arc::new(RateLimiter::new(&public, CALM));
        // What peers still send by sessions of an earlier life is not to meet numbers of this one.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { secret, limiter, next: AtomicU32::new(now.subsec_nanos()), waiting: Arc::default() }
    }

    /// A session with a peer; `None` when it has no key.
    pub(crate) fn session(&self, peer: &Peer) -> Option<Arc<Session>> {
        let key = peer.public_key?;
        let tunn = Tunn::new(
            StaticSecret::from(self.secret.0),
            PublicKey::from(key),
            peer.preshared_key.map(|secret| secret.0),
            None,
            // Peers are told apart by their addresses; this tells messages of theirs apart, and has 24 bits.
            self.next.fetch_add(1, Ordering::Relaxed) & 0x00ff_ffff,
            Some(Arc::clone(&self.limiter)),
        );
        let keys = (key, peer.preshared_key);
        let state = State { tunn, ready: false, waiting: Waiting::new(Arc::clone(&self.waiting)) };
        let state = Mutex::new(state);
        Some(Arc::new(Session { state, order: Mutex::default(), used: AtomicBool::new(false), keys }))
    }
}

/// What two nodes have agreed on.
pub(crate) struct Session {
    state: Mutex<State>,
    order: Mutex<()>,
    /// Whether anything may be due.
    used: AtomicBool,
    keys: ([u8; 32], Option<Secret>),
}

struct State {
    tunn: Tunn,
    /// Whether packets can be sealed now.
    ready: bool,
    /// What cannot be sealed yet; empty when it can.
    waiting: Waiting,
}

/// A datagram that came.
#[derive(Clone, Copy)]
pub(crate) struct Received<'a> {
    pub from: IpAddr,
    pub datagram: &'a [u8],
}

/// What became of a datagram.
pub(crate) enum Opened {
    /// A packet, this long.
    Packet(usize),
    /// Nothing is to be passed on.
    Nothing,
    /// It was not taken.
    Refused(DropReason),
}

impl Session {
    /// Whether it goes on when this is said of the peer.
    pub(crate) fn suits(&self, peer: &Peer) -> bool {
        peer.public_key == Some(self.keys.0) && peer.preshared_key == self.keys.1
    }

    /// Held by a thread from when it begins to seal packets until it has sent them: each has a number, and one that comes
    /// a thousand others too late is not taken any more.
    pub(crate) fn in_order(&self) -> MutexGuard<'_, ()> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wraps a packet up into room that is large enough; returns the length of what is to be sent: the packet, or
    /// a handshake while the packet waits. `None` when there is nothing to send now.
    pub(crate) fn close(&self, packet: &[u8], into: &mut [u8], drops: &Drops) -> Option<usize> {
        if into.len() < (packet.len() + OVERHEAD).max(HANDSHAKE) {
            drops.add(DropReason::NotSent, 1, packet.len());
            return None;
        }
        let state = &mut *self.lock(drops);
        if state.ready {
            return sent(&state.tunn.encapsulate(packet, into));
        }
        state.waiting.push(packet, drops);
        // None is begun while one is under way.
        sent(&state.tunn.format_handshake_initiation(into, false))
    }

    /// Unwraps a datagram into room that is large enough; what is to be answered goes to `answer`.
    pub(crate) fn open(
        &self,
        received: Received<'_>,
        into: &mut [u8],
        drops: &Drops,
        mut answer: impl FnMut(&[u8]),
    ) -> Opened {
        let Received { from, datagram } = received;
        if datagram.is_empty() || into.len() < datagram.len().max(HANDSHAKE) {
            return Opened::Refused(DropReason::Malformed);
        }
        let state = &mut *self.lock(drops);
        let (opened, used) = match state.tunn.decapsulate(Some(from), datagram, into) {
            TunnResult::WriteToTunnelV4(bytes, _) | TunnResult::WriteToTunnelV6(bytes, _) => {
                (Opened::Packet(bytes.len()), bytes.len())
            }
            TunnResult::WriteToNetwork(bytes) => {
                answer(bytes);
                (Opened::Nothing, 0)
            }
            TunnResult::Done => (Opened::Nothing, 0),
            TunnResult::Err(error) => {
                // A peer that goes on with a session from before our start would do so for a quarter of a minute.
                let strange = datagram.first() == Some(&DATA) && !state.ready;
                if strange
                    && let TunnResult::WriteToNetwork(bytes) =
                        state.tunn.format_handshake_initiation(into, false)
                {
                    answer(bytes);
                }
                return Opened::Refused(reason(&error));
            }
        };
        if !state.ready {
            state.look();
        }
        state.send_what_waits(into.get_mut(used..).unwrap_or_default(), answer);
        opened
    }

    /// What is due now, into room that is large enough.
    fn due(&self, into: &mut [u8], drops: &Drops) -> Option<usize> {
        if !self.used.load(Ordering::Relaxed) {
            return None;
        }
        let state = &mut *self.lock(drops);
        let outcome = state.tunn.update_timers(into);
        // The peer is away, and nobody has asked for it for long.
        let is_over = matches!(outcome, TunnResult::Err(_));
        let length = sent(&outcome);
        state.look();
        if is_over {
            self.used.store(false, Ordering::Relaxed);
            state.waiting.drop_all(drops);
        }
        length
    }

    fn lock(&self, drops: &Drops) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.used.swap(true, Ordering::Relaxed) {
            // It has not looked at the clock for long, and would take what it begins now for overdue. What it finds due
            // is found again at the next tick.
            let _ = state.tunn.update_timers(&mut [0; HANDSHAKE]);
            state.look();
            state.waiting.drop_all(drops);
        }
        state
    }
}

impl State {
    /// Finds out whether there is a session to seal with.
    fn look(&mut self) {
        self.ready = self.tunn.time_since_last_handshake().is_some();
    }

    /// Sends what waited for the session, as far as the room is for it; what is left goes with what comes next.
    fn send_what_waits(&mut self, room: &mut [u8], mut send: impl FnMut(&[u8])) {
        while self.ready && self.waiting.next_length().is_some_and(|length| length + OVERHEAD <= room.len()) {
            let Some(packet) = self.waiting.pop() else { return };
            if let TunnResult::WriteToNetwork(bytes) = self.tunn.encapsulate(&packet, room) {
                send(bytes);
            }
        }
    }
}

/// How long what is to be sent is.
fn sent(outcome: &TunnResult<'_>) -> Option<usize> {
    match outcome {
        TunnResult::WriteToNetwork(bytes) => Some(bytes.len()),
        _ => None,
    }
}

/// As what a datagram is counted that was not taken.
fn reason(error: &WireGuardError) -> DropReason {
    use WireGuardError as Error;
    match error {
        Error::NoCurrentSession | Error::WrongIndex | Error::UnexpectedPacket => DropReason::UnknownSession,
        Error::DuplicateCounter | Error::InvalidCounter | Error::WrongTai64nTimestamp => DropReason::Replayed,
        Error::InvalidAeadTag | Error::InvalidMac | Error::WrongKey => DropReason::Unsealed,
        _ => DropReason::Malformed,
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Session").finish_non_exhaustive()
    }
}

/// Drives the sessions' timers; one thread of a tunnel has it.
pub(crate) struct Clock {
    last: Instant,
    room: [u8; 256],
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { last: Instant::now(), room: [0; 256] }
    }

    /// Sends what is due, if it is time to look.
    pub(crate) fn tick(&mut self, context: &Context<'_>) {
        if self.last.elapsed() < TICK {
            return;
        }
        self.last = Instant::now();
        if let Some(identity) = &context.shared.identity {
            identity.limiter.reset_count();
        }
        for remote in context.table.remotes() {
            let length = remote
                .session
                .as_ref()
                .and_then(|session| session.due(&mut self.room, &context.shared.drops));
            let bytes = length.and_then(|length| self.room.get(..length));
            if let Some((bytes, socket)) = bytes.zip(context.ends.socket(remote.address)) {
                // It is tried again when it gets no answer.
                let _ = socket.send_one(remote.address, bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Packet;

    /// One end of a session, and what it has to send and has received.
    struct End {
        session: Arc<Session>,
        sent: Vec<Vec<u8>>,
        received: Vec<u8>,
        drops: Drops,
    }

    impl End {
        fn close(&mut self, number: u8) {
            let packet = Packet::udp(false, vec![number; 8]).bytes();
            let mut room = [0; 2048];
            let length = self.session.close(&packet, &mut room, &self.drops);
            self.sent.extend(length.map(|length| room[..length].to_vec()));
        }

        fn open(&mut self, datagram: &[u8]) {
            let mut room = vec![0; 4096];
            let from = "192.0.2.9".parse().unwrap();
            let sent = &mut self.sent;
            let received = Received { from, datagram };
            match self.session.open(received, &mut room, &self.drops, |bytes| sent.push(bytes.to_vec())) {
                Opened::Packet(length) => self.received.extend(room[..length].last()),
                Opened::Nothing => {}
                Opened::Refused(reason) => self.drops.add(reason, 1, 0),
            }
        }

        fn dropped(&self, reason: DropReason) -> u64 {
            let found = self.drops.read().into_iter().find(|(other, _)| *other == reason);
            found.map_or(0, |(_, traffic)| traffic.packets)
        }
    }

    fn end(own: u8, other: u8) -> End {
        let public_key = Some(Secret([other; 32]).public_key());
        let peer = Peer { public_key, ..Peer::new("peer", "192.0.2.9".parse().unwrap()) };
        let session = Identity::new(Secret([own; 32])).session(&peer).unwrap();
        End { session, sent: Vec::new(), received: Vec::new(), drops: Drops::default() }
    }

    /// Delivers all that either has to say, until neither has anything to say any more.
    fn talk(one: &mut End, other: &mut End) {
        while !one.sent.is_empty() || !other.sent.is_empty() {
            std::mem::take(&mut one.sent).iter().for_each(|datagram| other.open(datagram));
            std::mem::take(&mut other.sent).iter().for_each(|datagram| one.open(datagram));
        }
    }

    #[test]
    fn what_waits_goes_out_in_order_when_both_have_begun_at_once() {
        let (mut one, mut other) = (end(1, 2), end(2, 1));
        for number in 0..9 {
            one.close(number);
            other.close(number);
        }
        assert_eq!((one.sent.len(), other.sent.len()), (1, 1), "a handshake each, whatever waits");
        talk(&mut one, &mut other);
        for end in [&one, &other] {
            assert_eq!(end.received, Vec::from_iter(0..9));
        }
        one.close(9);
        talk(&mut one, &mut other);
        assert_eq!(other.received.last(), Some(&9));
    }

    #[test]
    fn what_waits_goes_out_when_only_the_peers_handshake_has_arrived() {
        let (mut one, mut other) = (end(1, 2), end(2, 1));
        for number in 0..9 {
            other.close(number);
        }
        other.sent.clear();
        one.close(0);
        talk(&mut one, &mut other);
        assert_eq!(one.received, Vec::from_iter(0..9));
        assert_eq!(other.received, [0]);
    }

    #[test]
    fn whoever_has_forgotten_the_session_begins_a_new_one_at_the_first_packet_that_it_cannot_open() {
        let (mut one, mut other) = (end(1, 2), end(2, 1));
        one.close(0);
        talk(&mut one, &mut other);
        other = end(2, 1);
        for number in 1..4 {
            one.close(number);
        }
        // Sealed for a dead session: lost, each counted, and answered by one handshake.
        std::mem::take(&mut one.sent).iter().for_each(|datagram| other.open(datagram));
        assert_eq!(other.dropped(DropReason::UnknownSession), 3);
        assert_eq!(other.sent.len(), 1);
        other.close(7);
        talk(&mut one, &mut other);
        one.close(4);
        talk(&mut one, &mut other);
        assert_eq!((one.received.last(), &other.received[..]), (Some(&7), &[4][..]));
    }

    #[test]
    fn what_is_not_taken_has_a_reason() {
        let (mut one, mut other) = (end(1, 2), end(2, 1));
        one.close(0);
        talk(&mut one, &mut other);
        one.close(1);
        let datagram = one.sent.pop().unwrap();
        other.open(&datagram);
        other.open(&datagram);
        assert_eq!(other.dropped(DropReason::Replayed), 1);
        one.close(2);
        let mut broken = one.sent.pop().unwrap();
        broken[20] ^= 1;
        other.open(&broken);
        assert_eq!(other.dropped(DropReason::Unsealed), 1);
        other.open(b"x");
        assert_eq!(other.dropped(DropReason::Malformed), 1);
        let mut stranger = end(3, 2);
        stranger.close(0);
        other.open(&stranger.sent[0]);
        assert_eq!(other.dropped(DropReason::Unsealed), 2);
    }
}
