//! Packets that wait until there is a session with their peer.
//!
//! Read [`Waiting`]. They are few for each peer, and not many for all: a cluster of peers that are away must not fill the
//! memory. Where there is no room the oldest goes, of which its sender thinks first that it was lost.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::counters::{DropReason, Drops};

/// How many wait for one peer.
const MOST: usize = 256;
/// How many bytes wait for all peers of a tunnel.
const MOST_BYTES: usize = 16 << 20;

/// The packets that wait for one peer, in order.
pub(super) struct Waiting {
    packets: VecDeque<Vec<u8>>,
    /// The bytes that wait for all peers.
    together: Arc<AtomicUsize>,
}

impl Waiting {
    pub(super) fn new(together: Arc<AtomicUsize>) -> Self {
        Self { packets: VecDeque::new(), together }
    }

    /// Puts a packet behind the others.
    pub(super) fn push(&mut self, packet: &[u8], drops: &Drops) {
        if self.packets.len() >= MOST {
            self.drop_first(drops);
        }
        while self.together.load(Ordering::Relaxed) + packet.len() > MOST_BYTES {
            if !self.drop_first(drops) {
                // It is other peers that have it all.
                return drops.add(DropReason::NoSession, 1, packet.len());
            }
        }
        self.together.fetch_add(packet.len(), Ordering::Relaxed);
        self.packets.push_back(packet.to_vec());
    }

    /// How long the first is; `None` when there is none.
    pub(super) fn next_length(&self) -> Option<usize> {
        self.packets.front().map(Vec::len)
    }

    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        let packet = self.packets.pop_front()?;
        self.together.fetch_sub(packet.len(), Ordering::Relaxed);
        Some(packet)
    }

    /// Nobody has answered.
    pub(super) fn drop_all(&mut self, drops: &Drops) {
        while self.drop_first(drops) {}
    }

    fn drop_first(&mut self, drops: &Drops) -> bool {
        let first = self.pop();
        if let Some(packet) = &first {
            drops.add(DropReason::NoSession, 1, packet.len());
        }
        first.is_some()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropped(drops: &Drops) -> u64 {
        let found = drops.read().into_iter().find(|(reason, _)| *reason == DropReason::NoSession);
        found.map_or(0, |(_, traffic)| traffic.packets)
    }

    #[test]
    fn the_oldest_goes_where_too_many_wait_for_one_peer_and_each_that_goes_is_counted() {
        let (together, drops) = (Arc::default(), Drops::default());
        let mut waiting = Waiting::new(Arc::clone(&together));
        for number in 0..MOST + 3 {
            waiting.push(&[number as u8; 10], &drops);
        }
        assert_eq!((dropped(&drops), waiting.packets.len()), (3, MOST));
        assert_eq!(waiting.pop(), Some(vec![3; 10]));
        waiting.drop_all(&drops);
        assert_eq!((dropped(&drops), together.load(Ordering::Relaxed)), (2 + MOST as u64, 0));
    }

    #[test]
    fn all_peers_together_have_a_bound() {
        let (together, drops) = (Arc::default(), Drops::default());
        let mut peers: Vec<_> = (0..10).map(|_| Waiting::new(Arc::clone(&together))).collect();
        for peer in &mut peers {
            (0..MOST).for_each(|_| peer.push(&[0; 9000], &drops));
        }
        let used = together.load(Ordering::Relaxed);
        assert!((MOST_BYTES - 9000..=MOST_BYTES).contains(&used), "{used}");
        let kept: usize = peers.iter().map(|peer| peer.packets.len()).sum();
        assert_eq!(dropped(&drops) as usize + kept, 10 * MOST);
        drop(peers);
        assert_eq!(together.load(Ordering::Relaxed), 0);
    }
}
