//! How long to wait before the next try.
//!
//! The pauses double and are jittered, so that a thousand agents do not come back as one. Where nobody answers at all
//! they stay short, for what changed meanwhile is to be known within a second of the API server's return, and a
//! connection that is refused costs nobody anything. Where a server answers that it cannot, or that we may not, they
//! grow longer. Each is counted by itself: an API server that is back refuses for a moment, until it knows its own rules,
//! however long nobody answered before. One success starts again from the beginning.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// What the last try came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No answer.
    Unreachable,
    /// A server refused, and may have said for how long.
    Refused(Option<Duration>),
}

/// The pauses of one who tries again and again.
#[derive(Debug)]
pub(crate) struct Backoff {
    /// How often nobody answered since the last success.
    unreachable: u32,
    /// How often a server refused since then.
    refused: u32,
    random: u64,
}

/// First and longest pause without an answer.
const UNREACHABLE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(800));
/// First and longest pause after a refusal.
const REFUSED: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));
/// The longest that a server may ask us to wait.
const PATIENCE: Duration = Duration::from_secs(60);

impl Backoff {
    pub(crate) fn new() -> Self {
        // Seeded by the system, once in each process; the hasher is of no other use.
        Self::seeded(RandomState::new().build_hasher().finish())
    }

    fn seeded(seed: u64) -> Self {
        Self { unreachable: 0, refused: 0, random: seed | 1 }
    }

    /// The next pause: between a half and the whole of what the failures so far come to.
    pub(crate) fn pause(&mut self, failure: Failure) -> Duration {
        let ((first, longest), failures) = match failure {
            Failure::Unreachable => (UNREACHABLE, &mut self.unreachable),
            Failure::Refused(_) => (REFUSED, &mut self.refused),
        };
        let whole = first.saturating_mul(1 << (*failures).min(16)).min(longest);
        *failures = failures.saturating_add(1);
        let part = whole.mul_f64(0.5 + 0.5 * self.fraction());
        match failure {
            Failure::Refused(Some(asked)) => asked.min(PATIENCE) + part,
            _ => part,
        }
    }

    /// It worked.
    pub(crate) fn reset(&mut self) {
        (self.unreachable, self.refused) = (0, 0);
    }

    /// How long a watch is asked to last: spread out, so that those of many agents do not end together.
    pub(crate) fn spread(&mut self, least: u32, most: u32) -> u32 {
        let span = f64::from(most.saturating_sub(least));
        // Rounded down on purpose: a number of seconds.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the span")]
        let beyond = (span * self.fraction()) as u32;
        least + beyond
    }

    /// Something from 0 up to 1 (xorshift: nothing here is secret).
    fn fraction(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        #[allow(clippy::cast_precision_loss, reason = "52 bits fit")]
        let fraction = (self.random >> 12) as f64 / (1u64 << 52) as f64;
        fraction
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::{any, prop_assert, proptest};

    use super::{Backoff, Failure, PATIENCE, REFUSED, UNREACHABLE};

    proptest! {
        #[test]
        fn pauses_grow_to_their_limit_and_are_never_twice_the_same_for_all(seed in any::<u64>()) {
            let mut backoff = Backoff::seeded(seed);
            let mut whole = UNREACHABLE.0;
            for _ in 0..100 {
                let pause = backoff.pause(Failure::Unreachable);
                prop_assert!(pause >= whole / 2 && pause <= whole, "{pause:?} of {whole:?}");
                whole = (whole * 2).min(UNREACHABLE.1);
            }
            // The first word of a server that is back, however long it was away.
            prop_assert!(backoff.pause(Failure::Refused(None)) <= REFUSED.0);
            for _ in 0..10 {
                backoff.pause(Failure::Refused(None));
            }
            let refused = backoff.pause(Failure::Refused(None));
            prop_assert!(refused >= REFUSED.1 / 2 && refused <= REFUSED.1);
            backoff.reset();
            prop_assert!(backoff.pause(Failure::Refused(None)) <= REFUSED.0);
            let asked = backoff.pause(Failure::Refused(Some(Duration::from_secs(7))));
            prop_assert!(asked >= Duration::from_secs(7) && asked < Duration::from_secs(9));
            prop_assert!(backoff.pause(Failure::Refused(Some(Duration::MAX))) <= PATIENCE + REFUSED.1);
            let spread = backoff.spread(240, 480);
            prop_assert!((240..480).contains(&spread));
        }
    }

    #[test]
    fn two_agents_do_not_come_back_together() {
        let pauses = |seed| {
            let mut backoff = Backoff::seeded(seed);
            (0..8).map(|_| backoff.pause(Failure::Unreachable)).collect::<Vec<_>>()
        };
        assert_ne!(pauses(0x9e37_79b9_7f4a_7c15), pauses(0xbf58_476d_1ce4_e5b9));
    }
}
