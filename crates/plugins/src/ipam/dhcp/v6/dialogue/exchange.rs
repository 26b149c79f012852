//! One question and the pauses between asking it again: RFC 8415 section 15.
//!
//! Read [`Exchange`]. It is asked, waits about twice as long each time, and is over after so many attempts or so
//! much time; all of it on the caller's clock and with the caller's [`Chance`].

use std::time::Duration;

use crate::ipam::dhcp::machine::{Chance, Moment};

/// How often and how long a question is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Patience {
    /// IRT: the first pause.
    first: Duration,
    /// MRT: the longest pause; zero for no limit.
    longest: Duration,
    /// MRC: how often in all; 0 for no limit.
    attempts: u32,
    /// MRD: for how long in all; zero for no limit.
    total: Duration,
    /// The first pause is not shortened by chance (SOLICIT, section 18.2.1).
    in_full: bool,
}

impl Patience {
    const fn of(first: u64, longest: u64, attempts: u32) -> Self {
        Self {
            first: Duration::from_secs(first),
            longest: Duration::from_secs(longest),
            attempts,
            total: Duration::ZERO,
            in_full: false,
        }
    }

    // The parameters of section 7.6.
    pub(super) const REQUEST: Self = Self::of(1, 30, 10);
    pub(super) const CONFIRM: Self = Self { total: Duration::from_secs(10), ..Self::of(1, 4, 0) };
    /// RENEW until T2, REBIND until the lease ends: both ends are the caller's matter.
    pub(super) const EXTEND: Self = Self::of(10, 600, 0);
    /// RELEASE and DECLINE.
    pub(super) const PART: Self = Self::of(1, 0, 4);

    /// That of SOLICIT, whose longest pause a server may set.
    pub(super) fn solicit(longest: Duration) -> Self {
        Self { longest, in_full: true, ..Self::of(1, 0, 0) }
    }
}

/// A question that is being asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Exchange {
    /// Its number, the same in every repetition.
    pub(super) transaction: u32,
    /// When it is to be asked next, or given up.
    pub(super) due: Moment,
    /// How often it was asked.
    pub(super) asked: u32,
    patience: Patience,
    begun: Option<Moment>,
    pause: Duration,
}

impl Exchange {
    /// A question that is first asked at `due`.
    pub(super) fn new(due: Moment, patience: Patience, chance: &mut Chance) -> Self {
        let transaction = chance.next() & 0x00ff_ffff;
        Self { transaction, due, asked: 0, patience, begun: None, pause: Duration::ZERO }
    }

    /// Whether no answer is to be expected any more.
    pub(super) fn is_over(&self, now: Moment) -> bool {
        let Patience { attempts, total, .. } = self.patience;
        let waited = self.begun.map_or(Duration::ZERO, |begun| now.saturating_sub(begun));
        (attempts != 0 && self.asked >= attempts) || (!total.is_zero() && waited >= total)
    }

    /// Notes that the question goes out now, and draws the next pause.
    pub(super) fn ask(&mut self, now: Moment, chance: &mut Chance) {
        let Patience { first, longest, total, in_full, .. } = self.patience;
        self.pause = match self.asked {
            0 => {
                let pause = chance.about(first);
                if in_full && pause < first { first + (first - pause) } else { pause }
            }
            // RT = 2 * RTprev + RAND * RTprev.
            _ => self.pause.saturating_add(chance.about(self.pause)),
        };
        if !longest.is_zero() && self.pause > longest {
            self.pause = chance.about(longest);
        }
        self.asked = self.asked.saturating_add(1);
        let begun = *self.begun.get_or_insert(now);
        self.due = now.saturating_add(self.pause);
        if !total.is_zero() {
            self.due = self.due.min(begun.saturating_add(total));
        }
    }

    /// Hundredths of a second since the first message, as the elapsed time option has it.
    pub(super) fn elapsed(&self, now: Moment) -> u16 {
        let since = self.begun.map_or(Duration::ZERO, |begun| now.saturating_sub(begun));
        u16::try_from(since.as_millis() / 10).unwrap_or(u16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pauses of a question that nobody answers, in seconds, and whether it was given up.
    fn pauses(patience: Patience, count: usize, seed: u64) -> (Vec<f64>, bool) {
        let mut chance = Chance::new(seed);
        let mut now = Duration::from_secs(1000);
        let mut exchange = Exchange::new(now, patience, &mut chance);
        let mut found = Vec::new();
        while found.len() < count && !exchange.is_over(now) {
            exchange.ask(now, &mut chance);
            found.push((exchange.due - now).as_secs_f64());
            now = exchange.due;
        }
        (found, exchange.is_over(now))
    }

    #[test]
    fn pauses_double_within_a_tenth_and_stop_growing_at_the_limit() {
        for seed in 0..200 {
            let (pauses, over) = pauses(Patience::solicit(Duration::from_secs(120)), 12, seed);
            assert!(!over);
            assert!(
                (1.0..=1.1).contains(&pauses[0]),
                "the first SOLICIT waits at least its time: {pauses:?}"
            );
            for pair in pauses.windows(2) {
                let doubled = (pair[0] * 1.9 - 1e-6..=pair[0] * 2.1 + 1e-6).contains(&pair[1]);
                let capped = (108.0..=132.0).contains(&pair[1]);
                assert!(doubled || capped, "{pauses:?}");
            }
            assert!((108.0..=132.0).contains(&pauses[11]), "{pauses:?}");
        }
    }

    #[test]
    fn a_question_ends_after_its_attempts_or_its_time() {
        let (found, over) = pauses(Patience::PART, 99, 7);
        assert_eq!((found.len(), over), (4, true));
        let (found, over) = pauses(Patience::CONFIRM, 99, 7);
        assert!(over);
        assert!(
            (found.iter().sum::<f64>() - 10.0).abs() < 1e-6,
            "the last pause is cut at the limit: {found:?}"
        );
    }

    #[test]
    fn two_seeds_have_other_pauses_and_one_has_the_same() {
        assert_eq!(pauses(Patience::REQUEST, 5, 1), pauses(Patience::REQUEST, 5, 1));
        assert_ne!(pauses(Patience::REQUEST, 5, 1), pauses(Patience::REQUEST, 5, 8));
        let number =
            |seed| Exchange::new(Duration::ZERO, Patience::REQUEST, &mut Chance::new(seed)).transaction;
        assert!((0..1000).all(|seed| number(seed) < 1 << 24));
    }

    #[test]
    fn elapsed_time_counts_from_the_first_message_and_stops_at_its_greatest() {
        let mut chance = Chance::new(1);
        let mut exchange = Exchange::new(Duration::ZERO, Patience::REQUEST, &mut chance);
        assert_eq!(exchange.elapsed(Duration::from_secs(5)), 0);
        exchange.ask(Duration::from_secs(5), &mut chance);
        assert_eq!(exchange.elapsed(Duration::from_secs(5)), 0);
        assert_eq!(exchange.elapsed(Duration::from_millis(6230)), 123);
        assert_eq!(exchange.elapsed(Duration::from_secs(1_000_000)), u16::MAX);
    }
}
