//! A node's change from one WireGuard key to the next, without a packet lost.
//!
//! Read [`KeyTurn`]. A key cannot be changed in place: see the crate `route`, `keys.rs`. So a node that is to have another one
//! first receives by both and publishes both. When all have a new one, and it knows theirs, it says so: its lease names the
//! new one first, and from then on it is sent to by that. When all say so it sends to all by the new one, and a while after
//! that it says this as well: its lease has the new one alone. It receives by the old one still, until everybody has said
//! this, for an agent that was away has not heard who is ready, and its kernel sends by the old one. Who is late keeps the old
//! key alive for all, and nobody waits for it: all are spoken to by the old one. An agent that is away in the middle has not
//! said that it knows the others' new keys, and is not sent to by them.
//!
//! A node that joins in the middle begins where the others are: with the oldest key that any of them has, and the next one.
//!
//! What stays true: one step of one generation or two is under way at a time; a moment at which an agent may be killed is
//! one at which both keys are on disk and the lease has at least one of them.

use std::time::{Duration, Instant};

use cluster::Backend;

/// How long peers have to hear of the new key before this node says that it is ready, or sends by it.
const HEARD: Duration = Duration::from_secs(2);

/// How long after all have one the old ways in stay open.
const OPEN: Duration = Duration::from_secs(10);

/// Where a node is on its way from one key to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyTurn {
    /// The generation of the key that was there before.
    current: u32,
    next: Option<Next>,
    /// What the node receives by though its lease says no more of it.
    held: Option<Held>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    generation: u32,
    /// Since when the lease says no more of it.
    since: Instant,
    /// Since when nobody's does.
    complete: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Next {
    generation: u32,
    /// When the peers were told of the key.
    published: Option<Instant>,
    /// Since when they are told that this node is ready to be sent to by it.
    in_force: Option<Instant>,
    /// Since when nobody needs the old one.
    complete: Option<Instant>,
}

impl KeyTurn {
    /// A node with a key of that generation in force and, if an agent was ended in the middle, another one.
    pub(crate) fn new(in_force: u32, other: Option<u32>, now: Instant) -> Self {
        let turn = |generation, in_force| Next { generation, published: None, in_force, complete: None };
        let (current, next) = match other {
            None => (in_force, None),
            Some(newer) if newer > in_force => (in_force, Some(turn(newer, None))),
            Some(older) => (older, Some(turn(in_force, Some(now)))),
        };
        Self { current, next, held: None }
    }

    /// The same of a node whose lease has one key only, while an older one is on its disk: it may be needed. Two that want the
    /// same device cannot be had at once.
    pub(crate) fn holding(self, older: Option<u32>, now: Instant) -> Self {
        let current = self.current;
        let older = older.filter(|older| *older < current && older % 2 != current % 2 && self.next.is_none());
        Self { held: older.map(|generation| Held { generation, since: now, complete: None }), ..self }
    }

    /// The generation of the key that is there for longest.
    pub(crate) fn current(&self) -> u32 {
        self.current
    }

    /// The generations that its lease has a key of, the one in force first.
    pub(crate) fn generations(&self) -> impl Iterator<Item = u32> + use<> {
        let next = self.next.map(|next| next.generation);
        let is_in_force = self.next.is_some_and(|next| next.in_force.is_some());
        let (first, last) = if is_in_force { (next, None) } else { (None, next) };
        first.into_iter().chain([self.current]).chain(last)
    }

    /// All generations that the node has a key of.
    pub(crate) fn all(&self) -> impl Iterator<Item = u32> + use<> {
        self.generations().chain(self.held())
    }

    /// The generation of the key that it receives by and says no more of.
    pub(crate) fn held(&self) -> Option<u32> {
        self.held.map(|held| held.generation)
    }

    /// Notes which generation the node is to have in the end. Two keys at once are of generations that follow each other, or
    /// they would want the same device.
    pub(crate) fn want(&mut self, wanted: u32) {
        if self.next.is_some() || self.held.is_some() || wanted <= self.current {
            return;
        }
        let generation = if wanted % 2 == self.current % 2 { wanted - 1 } else { wanted };
        tracing::info!(from = self.current, to = generation, "the WireGuard key changes");
        self.next = Some(Next { generation, published: None, in_force: None, complete: None });
    }

    /// Notes what the peers know of this node.
    pub(crate) fn publish(&mut self, known: &Backend, now: Instant) {
        if let Some(next) = &mut self.next
            && known.keys().any(|key| key.generation == next.generation)
        {
            next.published.get_or_insert(now);
        }
    }

    /// Whether the peers have had the time to hear of the next key.
    pub(crate) fn sends_next(&self, now: Instant) -> bool {
        let heard = |next: Next| next.published.is_some_and(|then| now >= then + HEARD);
        self.next.is_some_and(|next| next.in_force.is_some() || heard(next))
    }

    /// Whether a node of that backend can be spoken to by the older key alone.
    fn lacks_next(&self, theirs: &Backend) -> bool {
        let has = |generation| theirs.keys().any(|key| key.generation == generation);
        self.next.is_some_and(|next| has(self.current) && !has(next.generation))
    }

    /// Whether it is waited for before the next step: it lacks the newer key or, once this node is ready, is not ready
    /// itself and needs the older one; or it has not said that it sends by the newer one to all.
    pub(crate) fn is_waited_for(&self, theirs: &Backend) -> bool {
        if let Some(held) = self.held {
            return theirs.keys().any(|key| key.generation == held.generation);
        }
        let needs_older = || theirs.keys().next().is_some_and(|key| key.generation == self.current);
        self.lacks_next(theirs) || self.next.is_some_and(|next| next.in_force.is_some()) && needs_older()
    }

    /// Whether one that is waited for has had the time for what it is to do.
    pub(crate) fn is_late(&self, theirs: &Backend, now: Instant) -> bool {
        if let Some(held) = self.held {
            // All of them wait for each other once.
            return self.is_waited_for(theirs) && now >= held.since + 2 * OPEN;
        }
        let overdue = self.next.and_then(|next| next.in_force).is_some_and(|then| now >= then + OPEN);
        self.is_waited_for(theirs) && self.sends_next(now) && (self.lacks_next(theirs) || overdue)
    }

    /// Notes whether any peer is waited for, puts the new key in force, says no more of the old one when its time is over, and
    /// gives it up in the end; true if it has.
    pub(crate) fn settle(&mut self, waits: bool, now: Instant) -> bool {
        if let Some(held) = &mut self.held {
            if waits {
                held.complete = None;
                return false;
            }
            // For a while they have sent by the new one before they said so.
            let ends = now >= *held.complete.get_or_insert(now) + HEARD;
            if ends {
                tracing::info!(generation = held.generation, "the old WireGuard key is given up");
                self.held = None;
            }
            return ends;
        }
        let sends = self.sends_next(now);
        let Some(next) = &mut self.next else { return false };
        if waits || !sends {
            next.complete = None;
            return false;
        }
        if next.in_force.is_none() {
            // Whether the others say so as well is looked at with the next look.
            (next.in_force, next.complete) = (Some(now), Some(now));
            return false;
        }
        if now < *next.complete.get_or_insert(now) + OPEN {
            return false;
        }
        tracing::info!(generation = next.generation, "the WireGuard key has changed");
        let held = Held { generation: self.current, since: now, complete: None };
        *self = Self { current: next.generation, next: None, held: Some(held) };
        false
    }

    /// When the next step is due.
    pub(crate) fn deadline(&self, now: Instant) -> Option<Instant> {
        if let Some(Held { since, complete, .. }) = self.held {
            let steps = [Some(since + 2 * OPEN), complete.map(|then| then + HEARD)];
            return steps.into_iter().flatten().filter(|step| *step > now).min();
        }
        let next = self.next?;
        let ends = [next.complete, next.in_force].map(|then| then.map(|then| then + OPEN));
        let steps = next.published.map(|then| then + HEARD).into_iter().chain(ends.into_iter().flatten());
        steps.filter(|step| *step > now).min()
    }
}

#[cfg(test)]
mod tests {
    use cluster::{PublicKey, WireGuardKey};

    use super::*;

    fn of(generations: &[u32]) -> Backend {
        let mut keys = generations.iter().map(|generation| WireGuardKey {
            port: 51820,
            public_key: PublicKey([7; 32]),
            generation: *generation,
        });
        Backend::WireGuard { key: keys.next().unwrap(), next: keys.next(), strict: true }
    }

    #[test]
    fn the_new_key_is_sent_by_when_peers_have_heard_and_the_old_one_given_up_when_nobody_needs_it() {
        let now = Instant::now();
        let mut turn = KeyTurn::new(0, None, now);
        turn.want(1);
        assert_eq!(turn.generations().collect::<Vec<_>>(), [0, 1]);
        turn.publish(&of(&[0]), now);
        assert_eq!((turn.sends_next(now + OPEN), turn.deadline(now)), (false, None), "nobody has heard yet");
        turn.publish(&of(&[0, 1]), now);
        assert_eq!((turn.sends_next(now), turn.deadline(now)), (false, Some(now + HEARD)));
        let heard = now + HEARD;
        assert!(turn.sends_next(heard));
        // One is late, and comes.
        assert!(!turn.is_late(&of(&[0]), now) && turn.is_late(&of(&[0]), heard));
        assert!(turn.is_waited_for(&of(&[0])) && !turn.settle(true, heard + OPEN * 7));
        for ready in [of(&[0, 1]), of(&[1]), of(&[2]), Backend::HostGw] {
            assert!(!turn.is_waited_for(&ready), "{ready:?}");
        }
        let came = heard + OPEN * 8;
        assert!(!turn.settle(false, came));
        assert_eq!(turn.generations().collect::<Vec<_>>(), [1, 0], "the new one is in force");
        // One that has the new key may not know of others', for its agent is away.
        assert!(turn.is_waited_for(&of(&[0, 1])) && !turn.is_waited_for(&of(&[1, 0])));
        assert_eq!((turn.is_late(&of(&[0, 1]), came), turn.deadline(came)), (false, Some(came + OPEN)));
        assert!(turn.is_late(&of(&[0, 1]), came + OPEN) && !turn.is_late(&of(&[1]), came + OPEN));
        assert!(!turn.settle(true, came + OPEN) && turn.deadline(came + OPEN).is_none());
        let came = heard + OPEN * 10;
        assert!(!turn.settle(false, came));
        assert_eq!(turn.deadline(came), Some(came + OPEN));
        turn.settle(false, came + OPEN / 2);
        assert_eq!(turn.generations().collect::<Vec<_>>(), [1, 0]);
        turn.settle(false, came + OPEN);
        assert_eq!((turn.generations().collect::<Vec<_>>(), turn.held()), (vec![1], Some(0)));
    }

    #[test]
    fn the_old_key_is_received_by_until_all_have_said_that_they_send_by_the_new_one_to_all() {
        let now = Instant::now();
        let mut turn = KeyTurn::new(1, Some(0), now);
        turn.settle(false, now);
        turn.settle(false, now + OPEN);
        let said = now + OPEN;
        assert_eq!((turn.generations().collect::<Vec<_>>(), turn.held()), (vec![1], Some(0)));
        // One that is ready and has not heard that others are, for its agent was ended.
        assert!(turn.is_waited_for(&of(&[1, 0])) && !turn.is_waited_for(&of(&[1])));
        assert!(!turn.is_late(&of(&[1, 0]), said + OPEN) && turn.is_late(&of(&[1, 0]), said + 2 * OPEN));
        turn.want(2);
        assert_eq!(turn.all().collect::<Vec<_>>(), [1, 0], "two devices are all there are");
        assert!(!turn.settle(true, said + OPEN * 7) && !turn.settle(false, said + OPEN * 8));
        assert_eq!(turn.deadline(said + OPEN * 8), Some(said + OPEN * 8 + HEARD));
        assert!(!turn.settle(true, said + OPEN * 9), "one more has come that needs it");
        assert!(!turn.settle(false, said + OPEN * 10) && turn.settle(false, said + OPEN * 10 + HEARD));
        assert_eq!((turn.all().collect::<Vec<_>>(), turn.deadline(said + OPEN * 11)), (vec![1], None));
    }

    #[test]
    fn an_agent_that_starts_with_an_older_key_on_its_disk_receives_by_it_until_nobody_needs_it() {
        let now = Instant::now();
        let held = |in_force, other, older| KeyTurn::new(in_force, other, now).holding(older, now).held();
        assert_eq!(held(1, None, Some(0)), Some(0));
        for (in_force, other, older) in
            [(1, None, None), (2, None, Some(0)), (1, Some(0), Some(0)), (0, None, Some(1))]
        {
            assert_eq!(held(in_force, other, older), None, "{in_force} {other:?} {older:?}");
        }
    }

    #[test]
    fn generations_that_are_far_apart_are_reached_in_steps_of_two_devices_and_never_backwards() {
        let now = Instant::now();
        let mut turn = KeyTurn::new(3, None, now);
        turn.want(2);
        assert_eq!(turn, KeyTurn::new(3, None, now));
        let mut seen = vec![3];
        for _ in 0..4 {
            turn.want(9);
            let generations: Vec<u32> = turn.generations().collect();
            turn.publish(&of(&generations), now);
            turn.settle(false, now + HEARD);
            turn.settle(false, now + HEARD + OPEN);
            turn.settle(false, now + HEARD + OPEN);
            turn.settle(false, now + HEARD + OPEN + HEARD);
            seen.extend(turn.generations().filter(|generation| !generations[..1].contains(generation)));
        }
        assert_eq!(seen, [3, 8, 9]);
    }

    #[test]
    fn an_agent_that_was_killed_in_the_middle_goes_on_there() {
        let now = Instant::now();
        let mut turn = KeyTurn::new(0, Some(1), now);
        turn.want(1);
        turn.publish(&of(&[0, 1]), now);
        assert!(!turn.sends_next(now) && turn.sends_next(now + HEARD));
        let turn = KeyTurn::new(1, Some(0), now);
        assert_eq!((turn.generations().collect::<Vec<_>>(), turn.sends_next(now)), (vec![1, 0], true));
    }
}
