//! WireGuard in user space: keys, sessions, and what is due from time to time.
//!
//! Read [`Session`]. The protocol is `boringtun`'s, a machine without socket or device. A session is used by one thread at
//! a time; its lock is held for one packet.
//!
//! What stays true: a packet for a peer without a key is dropped, never sent in the clear; what a peer sends comes from
//! its own pod CIDRs or is dropped. A peer is known by its underlay address, so it does not roam.
//!
//! Sources: the WireGuard protocol (wireguard.com/protocol), for what is done when.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey, StaticSecret};

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

/// Handshakes a second beyond which senders must prove that they own their address.
const CALM: u64 = 100;

/// Who we are.
pub(crate) struct Identity {
    secret: Secret,
    limiter: Arc<RateLimiter>,
    next: AtomicU32,
}

impl Identity {
    pub(crate) fn new(secret: Secret) -> Self {
        let public = PublicKey::from(&StaticSecret::from(secret.0));
        Self { secret, limiter: Arc::new(RateLimiter::new(&public, CALM)), next: AtomicU32::new(1) }
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
        Some(Arc::new(Session { tunn: Mutex::new(tunn), used: AtomicBool::new(false), keys }))
    }
}

/// What two nodes have agreed on.
pub(crate) struct Session {
    tunn: Mutex<Tunn>,
    /// Whether anything may be due.
    used: AtomicBool,
    keys: ([u8; 32], Option<Secret>),
}

/// What became of a datagram.
pub(crate) enum Opened {
    /// A packet, this long.
    Packet(usize),
    /// Nothing is to be passed on.
    Nothing,
    /// It was not made with this peer's key, or was heard before.
    Refused,
}

impl Session {
    /// Whether it goes on when this is said of the peer.
    pub(crate) fn suits(&self, peer: &Peer) -> bool {
        peer.public_key == Some(self.keys.0) && peer.preshared_key == self.keys.1
    }

    /// Wraps a packet up into room that is large enough; returns the length of what is to be sent: the packet, or
    /// a handshake while the packet waits. `None` when there is nothing to send now.
    pub(crate) fn close(&self, packet: &[u8], into: &mut [u8]) -> Option<usize> {
        if into.len() < (packet.len() + OVERHEAD).max(HANDSHAKE) {
            return None;
        }
        match self.lock().encapsulate(packet, into) {
            TunnResult::WriteToNetwork(bytes) => Some(bytes.len()),
            _ => None,
        }
    }

    /// Unwraps a datagram into room that is large enough; what is to be answered goes to `answer`.
    pub(crate) fn open(
        &self,
        from: std::net::IpAddr,
        datagram: &[u8],
        into: &mut [u8],
        mut answer: impl FnMut(&[u8]),
    ) -> Opened {
        if datagram.is_empty() || into.len() < datagram.len().max(HANDSHAKE) {
            return Opened::Refused;
        }
        let mut tunn = self.lock();
        match tunn.decapsulate(Some(from), datagram, into) {
            TunnResult::WriteToTunnelV4(bytes, _) | TunnResult::WriteToTunnelV6(bytes, _) => {
                return Opened::Packet(bytes.len());
            }
            TunnResult::WriteToNetwork(bytes) => answer(bytes),
            TunnResult::Done => return Opened::Nothing,
            TunnResult::Err(_) => {
                // A peer that goes on with a session from before our start would do so for a quarter of a minute.
                let strange = datagram.first() == Some(&DATA) && tunn.time_since_last_handshake().is_none();
                if strange
                    && let TunnResult::WriteToNetwork(bytes) = tunn.format_handshake_initiation(into, false)
                {
                    answer(bytes);
                }
                return Opened::Refused;
            }
        }
        // What waited for the session goes out now, where the longest packet has room.
        if into.len() < usize::from(u16::MAX) + OVERHEAD {
            return Opened::Nothing;
        }
        while let TunnResult::WriteToNetwork(bytes) = tunn.decapsulate(None, &[], into) {
            answer(bytes);
        }
        Opened::Nothing
    }

    /// What is due now, into room that is large enough.
    fn due(&self, into: &mut [u8]) -> Option<usize> {
        if !self.used.load(Ordering::Relaxed) {
            return None;
        }
        match self.lock().update_timers(into) {
            TunnResult::WriteToNetwork(bytes) => Some(bytes.len()),
            // The peer is away, and nobody has asked for it for long.
            TunnResult::Err(_) => {
                self.used.store(false, Ordering::Relaxed);
                None
            }
            _ => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tunn> {
        let mut tunn = self.tunn.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.used.swap(true, Ordering::Relaxed) {
            // It has not looked at the clock for long, and would take what it begins now for overdue. What it finds due
            // is found again at the next tick.
            let _ = tunn.update_timers(&mut [0; HANDSHAKE]);
        }
        tunn
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
            let length = remote.session.as_ref().and_then(|session| session.due(&mut self.room));
            let bytes = length.and_then(|length| self.room.get(..length));
            if let Some((bytes, socket)) = bytes.zip(context.ends.socket(remote.address)) {
                // It is tried again when it gets no answer.
                let _ = socket.send_one(remote.address, bytes);
            }
        }
    }
}
