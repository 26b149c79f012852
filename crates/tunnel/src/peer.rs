//! A peer as the threads know it: what was said of it, and what has been learned and counted since.
//!
//! Read [`Remote`]. What was counted outlives a change of what was said.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::counters::Count;
use crate::settings::Peer;
use crate::wireguard::{Identity, Session};

/// A peer, shared by all threads.
#[derive(Debug)]
pub(crate) struct Remote {
    /// What was said of it.
    pub peer: Peer,
    /// Where datagrams for it go.
    pub address: SocketAddr,
    /// What goes through it.
    pub counts: Arc<Counts>,
    /// What was agreed on with it, over WireGuard.
    pub session: Option<Arc<Session>>,
    /// When it was made.
    since: Instant,
    /// The largest packet for the way to it that the underlay has taught us, and above that the second since then in which it
    /// did; 0 for nothing learned.
    learned: AtomicU64,
}

/// After so long a way may have become wider, and is tried again; the kernel's own `net.ipv4.route.mtu_expires`.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// What a peer was sent, and what came from it.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub sent: Count,
    pub received: Count,
}

impl Remote {
    /// One that has its tunnel's port if it names none.
    pub(crate) fn new(peer: Peer, port: u16, identity: Option<&Identity>) -> Self {
        let address = SocketAddr::new(peer.underlay.to_canonical(), peer.port.unwrap_or(port));
        let session = identity.and_then(|identity| identity.session(&peer));
        Self {
            peer,
            address,
            counts: Arc::default(),
            session,
            since: Instant::now(),
            learned: AtomicU64::new(0),
        }
    }

    /// The same peer, of which something else is said now.
    pub(crate) fn renewed(&self, peer: Peer, port: u16, identity: Option<&Identity>) -> Self {
        let session = self.session.clone().filter(|session| session.suits(&peer));
        let mut renewed = Self { counts: Arc::clone(&self.counts), ..Self::new(peer, port, identity) };
        if session.is_some() {
            renewed.session = session;
        }
        renewed
    }

    /// The largest packet for the way to it.
    pub(crate) fn mtu(&self, device: u16) -> usize {
        let said = self.peer.mtu.map_or(device, |own| own.min(device));
        match self.learned.load(Ordering::Relaxed) {
            0 => said.into(),
            learned if self.since.elapsed() > Duration::from_secs(learned >> 16) + FORGOTTEN => {
                self.learned.store(0, Ordering::Relaxed);
                said.into()
            }
            learned => ((learned & 0xffff) as usize).min(said.into()),
        }
    }

    /// The underlay takes no larger packets than this.
    pub(crate) fn learn(&self, mtu: u16) {
        self.learned.store(self.since.elapsed().as_secs() << 16 | u64::from(mtu), Ordering::Relaxed);
    }
}
