//! The search for the largest packet that a path carries.
//!
//! Read [`Search::judge`]. In each round an echo of the size in question is sent, and a small one beside it. First the size
//! that links and leases promise is tried. If that fails, the search goes on between what passes and what does not: first
//! where a router, or the last search, said that the limit is, and one byte above it, then by halves.
//!
//! What stays true: only a size that was sent and answered is found. And where nobody says that a packet is too big, nothing
//! below [`BASE`] is: next to no path is that narrow, while many a firewall lets only small echoes pass, and of what it does
//! with other packets they say nothing.

/// How often a size has to be lost, or a peer to be silent, before it counts (RFC 8899: MAX_PROBES).
const TRIES: u8 = 3;

/// What is carried everywhere but where a router says otherwise, in bytes (RFC 8899: BASE_PLPMTU).
const BASE: u32 = 1200;

/// What came of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Round {
    /// The echo was answered.
    Passed,
    /// It was not, and the small one was.
    Lost,
    /// Neither was.
    Silent,
    /// A router, or the own link, says that it is too big; with what that carries, 0 if it does not say.
    TooBig(u32),
}

/// How the search stands after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Another round is needed, of [`Search::size`].
    Again,
    /// The largest packet, in bytes.
    Found(u32),
    /// The peer answers nothing, or only what is too small to say something of the path.
    Unknown,
}

/// A search under way.
#[derive(Debug)]
pub(super) struct Search {
    /// The least size that is ever found, whatever routers say.
    least: u32,
    /// The least size that is tried, after what routers have said until now.
    floor: u32,
    /// The largest size that was answered.
    passes: Option<u32>,
    /// The smallest that is known not to.
    fails: Option<u32>,
    size: u32,
    /// Whether somebody named the size as the limit.
    named: bool,
    /// Whether a router, or the own link, said that something is too big.
    told: bool,
    /// Sizes to be tried before halves, each with whether it was named as the limit.
    next: Vec<(u32, bool)>,
    lost: u8,
    silent: u8,
}

impl Search {
    /// A search up to `full` bytes. Nothing below `least` is ever found; `before` is what was found last.
    pub(super) fn new(full: u32, least: u32, before: Option<u32>) -> Self {
        Self {
            least: least.min(full),
            floor: least.max(BASE).min(full),
            passes: None,
            fails: None,
            size: full,
            named: false,
            told: false,
            next: before.map(|size| (size, true)).into_iter().collect(),
            lost: 0,
            silent: 0,
        }
    }

    /// The size to try now, in bytes.
    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// Whether a router, or the own link, has said that something is too big: then it was not by bad luck that it was lost.
    pub(super) fn is_told(&self) -> bool {
        self.told
    }

    /// Takes note of a round.
    pub(super) fn judge(&mut self, round: Round) -> Progress {
        match round {
            Round::Passed => {
                self.passes = self.passes.max(Some(self.size));
                if self.named {
                    self.next.push((self.size.saturating_add(1), false));
                }
            }
            Round::Lost => {
                self.lost += 1;
                if self.lost < TRIES {
                    return Progress::Again;
                }
                self.fails = Some(self.size);
            }
            Round::Silent => {
                self.silent += 1;
                return if self.silent < TRIES { Progress::Again } else { Progress::Unknown };
            }
            Round::TooBig(carries) => {
                self.told = true;
                // One who names a limit and drops what is smaller does not say what it is.
                let limit = if self.size > BASE { carries } else { 0 };
                self.floor = self.floor.min(limit.max(self.least));
                self.fails = Some(self.size);
                self.next.push((carries, true));
            }
        }
        (self.lost, self.silent) = (0, 0);
        self.choose()
    }

    fn choose(&mut self) -> Progress {
        let below = self.passes.unwrap_or(self.floor.saturating_sub(1));
        let Some(fails) = self.fails.filter(|fails| fails.saturating_sub(below) > 1) else {
            return self.passes.map_or(Progress::Unknown, Progress::Found);
        };
        while let Some((size, named)) = self.next.pop() {
            if (below + 1..fails).contains(&size) {
                (self.size, self.named) = (size, named);
                return Progress::Again;
            }
        }
        (self.size, self.named) = (below.midpoint(fails), false);
        Progress::Again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches a path that carries so much, and says what was found in how many rounds.
    fn search(mut search: Search, round: impl Fn(u32) -> Round) -> (Progress, usize) {
        for rounds in 1..200 {
            match search.judge(round(search.size())) {
                Progress::Again => {}
                over => return (over, rounds),
            }
        }
        panic!("the search has no end");
    }

    /// A router that drops what is too big and says nothing.
    fn black_hole(carries: u32) -> impl Fn(u32) -> Round {
        move |size| if size <= carries { Round::Passed } else { Round::Lost }
    }

    #[test]
    fn a_path_that_carries_all_costs_one_round() {
        assert_eq!(search(Search::new(1500, 576, None), black_hole(1500)), (Progress::Found(1500), 1));
        assert_eq!(search(Search::new(1500, 576, Some(1400)), black_hole(9000)), (Progress::Found(1500), 1));
    }

    #[test]
    fn every_black_hole_is_found_to_the_byte_and_what_no_path_is_says_nothing() {
        for carries in 64..=1500 {
            let (found, rounds) = search(Search::new(1500, 576, None), black_hole(carries));
            let expected = if carries < 1200 { Progress::Unknown } else { Progress::Found(carries) };
            assert_eq!(found, expected, "{carries}");
            assert!(rounds <= 35, "{carries}: {rounds} rounds");
        }
        assert_eq!(search(Search::new(1500, 1280, None), black_hole(1279)).0, Progress::Unknown);
        assert_eq!(search(Search::new(1500, 1280, None), black_hole(1280)).0, Progress::Found(1280));
        assert_eq!(search(Search::new(500, 576, None), black_hole(400)).0, Progress::Unknown);
        assert_eq!(search(Search::new(500, 576, None), black_hole(500)).0, Progress::Found(500));
    }

    #[test]
    fn a_very_narrow_path_is_believed_where_a_router_says_so_and_is_never_found_below_the_least() {
        for says in [0, 68, 1000, 1100, 1300] {
            let router = |size| if size <= 1000 { Round::Passed } else { Round::TooBig(says) };
            assert_eq!(search(Search::new(1500, 576, None), router).0, Progress::Found(1000), "{says}");
        }
        let router = |size| if size <= 500 { Round::Passed } else { Round::TooBig(500) };
        assert_eq!(search(Search::new(1500, 576, None), router).0, Progress::Unknown);
        // A router's small link, and behind it a firewall that lets only small echoes pass.
        let both = |size| match size {
            0..=900 => Round::Passed,
            901..=1400 => Round::Lost,
            _ => Round::TooBig(1400),
        };
        assert_eq!(search(Search::new(1500, 576, None), both).0, Progress::Unknown);
    }

    #[test]
    fn a_router_that_names_the_limit_spares_the_search_and_is_not_believed_blindly() {
        let router = |says: u32| move |size| if size <= 1400 { Round::Passed } else { Round::TooBig(says) };
        assert_eq!(search(Search::new(1500, 576, None), router(1400)), (Progress::Found(1400), 3));
        for says in [0, 68, 1000, 1399, 1499, 1500, 70_000] {
            assert_eq!(search(Search::new(1500, 576, None), router(says)).0, Progress::Found(1400), "{says}");
        }
    }

    #[test]
    fn what_was_found_before_is_tried_first() {
        let before = || Search::new(1500, 576, Some(1400));
        // The full size and one byte more are lost three times each; what was found before passes at once.
        assert_eq!(search(before(), black_hole(1400)), (Progress::Found(1400), 7));
        assert_eq!(search(before(), black_hole(1450)).0, Progress::Found(1450));
        assert_eq!(search(before(), black_hole(1300)).0, Progress::Found(1300));
    }

    #[test]
    fn two_lost_rounds_are_bad_luck_and_silence_says_nothing() {
        let mut unlucky = Search::new(1500, 576, None);
        for _ in 1..TRIES {
            assert_eq!(unlucky.judge(Round::Lost), Progress::Again);
            assert_eq!(unlucky.judge(Round::Silent), Progress::Again);
        }
        assert_eq!(unlucky.judge(Round::Passed), Progress::Found(1500));
        assert_eq!(search(Search::new(1500, 576, None), |_| Round::Silent), (Progress::Unknown, 3));
    }
}
