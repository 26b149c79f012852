//! All paths that are probed: whose turn it is, and what is awaited.
//!
//! Read [`Paths`]: it is told the time with every call and says what to send ([`Paths::due`]), so minutes of probing are
//! tested in no time. A path is searched at once when it is new, when it should carry another size, and when packets leave by
//! another link or address; then after each interval, which varies by a tenth, so that many do not come together again.
//!
//! What stays true: two packets leave in [`SPACING`], however many paths there are.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::Order;
use super::search::{Progress, Round, Search};

/// Between two rounds, of whichever paths: a hundred packets in a second.
const SPACING: Duration = Duration::from_millis(20);

/// How long an answer may take where none has come yet, and the bounds where one has: four times as long as the last one.
const PATIENCE: Duration = Duration::from_secs(1);
const SHORTEST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(2);

/// The size of the echo that shows whether a peer answers at all.
const SMALL: u32 = 64;

/// An echo to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Probe {
    pub(super) to: IpAddr,
    pub(super) sequence: u16,
    /// In bytes, with the IP header.
    pub(super) size: u32,
}

/// What is known of a path now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct News {
    pub(super) address: IpAddr,
    /// The largest packet that was seen to pass, in bytes; none if that is not known.
    pub(super) found: Option<u32>,
    /// The largest that should.
    pub(super) full: u32,
}

#[derive(Debug)]
struct Path {
    full: u32,
    found: Option<u32>,
    search: Option<Search>,
    sent: Option<Sent>,
    patience: Duration,
    timer: Option<Instant>,
}

/// A round whose answers are awaited.
#[derive(Debug, Clone, Copy)]
struct Sent {
    large: u16,
    small: u16,
    at: Instant,
    /// Whether the small echo was answered.
    alive: bool,
}

/// The paths.
#[derive(Debug)]
pub(super) struct Paths {
    paths: BTreeMap<IpAddr, Path>,
    /// When a round is over, or a path is to be searched again.
    timers: BTreeSet<(Instant, IpAddr)>,
    /// Those whose next round waits for its turn.
    waiting: VecDeque<IpAddr>,
    next_turn: Instant,
    sequence: u16,
    from: Vec<(String, IpAddr)>,
    interval: Duration,
    news: Vec<News>,
}

impl Paths {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            paths: BTreeMap::new(),
            timers: BTreeSet::new(),
            waiting: VecDeque::new(),
            next_turn: now,
            sequence: 0,
            from: Vec::new(),
            interval: Duration::MAX,
            news: Vec::new(),
        }
    }

    /// Probes these paths from now on.
    pub(super) fn follow(&mut self, order: &Order, now: Instant) {
        let anew = self.from != order.from || self.interval != order.interval;
        self.from.clone_from(&order.from);
        self.interval = order.interval;
        let gone = self.paths.keys().filter(|address| !order.targets.contains_key(*address));
        for address in gone.copied().collect::<Vec<_>>() {
            self.set_timer(address, None);
            if let Some(path) = self.paths.remove(&address) {
                self.news.push(News { address, found: None, full: path.full });
            }
        }
        for (&address, &full) in &order.targets {
            let (before, path) = match self.paths.get_mut(&address) {
                Some(path) => (Some(std::mem::replace(&mut path.full, full)), path),
                None => (None, self.paths.entry(address).or_insert_with(|| Path::new(full))),
            };
            if before == Some(full) && !anew {
                continue;
            }
            // A limit holds until the search shows another one; that all passed says nothing of another size.
            path.found = path.found.filter(|found| before.is_some_and(|before| *found < before.min(full)));
            self.news.push(News { address, found: path.found, full });
            self.begin(address, now);
        }
    }

    /// Goes on with what is due, and says what to send.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Probe> {
        while let Some(&(at, address)) = self.timers.first() {
            if at > now {
                break;
            }
            self.set_timer(address, None);
            match self.paths.get(&address).and_then(|path| path.sent) {
                Some(Sent { alive, .. }) => {
                    self.judge(address, if alive { Round::Lost } else { Round::Silent }, now);
                }
                None => self.begin(address, now),
            }
        }
        while self.next_turn <= now {
            let Some(address) = self.waiting.pop_front() else { break };
            if let Some(probes) = self.send(address, now) {
                self.next_turn = now + SPACING;
                return probes.to_vec();
            }
        }
        Vec::new()
    }

    /// When something is due next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let turn = (!self.waiting.is_empty()).then_some(self.next_turn);
        self.timers.first().map(|(at, _)| *at).into_iter().chain(turn).min()
    }

    /// A peer answers.
    pub(super) fn answered(&mut self, from: IpAddr, sequence: u16, now: Instant) {
        let Some(path) = self.paths.get_mut(&from) else { return };
        let Some(sent) = path.sent.as_mut().filter(|sent| [sent.large, sent.small].contains(&sequence))
        else {
            return;
        };
        path.patience = (now.saturating_duration_since(sent.at) * 4).clamp(SHORTEST, LONGEST);
        sent.alive = true;
        if sent.large == sequence {
            self.judge(from, Round::Passed, now);
        }
    }

    /// A router, or the own link, says that an echo is too big: `mtu` is what it carries, 0 if it does not say.
    pub(super) fn too_big(&mut self, to: IpAddr, sequence: u16, mtu: u32, now: Instant) {
        let sent = self.paths.get(&to).and_then(|path| path.sent);
        if sent.is_some_and(|sent| sent.large == sequence) {
            self.judge(to, Round::TooBig(mtu), now);
        }
    }

    /// What has become known since this was last asked.
    pub(super) fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    fn begin(&mut self, address: IpAddr, now: Instant) {
        self.set_timer(address, None);
        let Some(path) = self.paths.get_mut(&address) else { return };
        let waits = path.search.is_some() && path.sent.is_none();
        path.search = Some(Search::new(path.full, least(address), path.found));
        path.sent = None;
        self.next_turn = self.next_turn.max(now);
        if !waits {
            self.waiting.push_back(address);
        }
    }

    /// Sends a round; none where the path has gone meanwhile.
    fn send(&mut self, address: IpAddr, now: Instant) -> Option<[Probe; 2]> {
        let path = self.paths.get_mut(&address)?;
        let size = path.search.as_ref()?.size();
        let (large, small) = (self.sequence.wrapping_add(1), self.sequence.wrapping_add(2));
        self.sequence = small;
        path.sent = Some(Sent { large, small, at: now, alive: false });
        let end = now + path.patience;
        self.set_timer(address, Some(end));
        // The large one first: whoever hears the small one could have heard the other.
        let probe = |sequence, size| Probe { to: address, sequence, size };
        Some([probe(large, size), probe(small, SMALL)])
    }

    fn judge(&mut self, address: IpAddr, round: Round, now: Instant) {
        self.set_timer(address, None);
        let Some(path) = self.paths.get_mut(&address) else { return };
        path.sent = None;
        let Some(search) = &mut path.search else { return };
        let found = match search.judge(round) {
            Progress::Again => return self.waiting.push_back(address),
            Progress::Found(size) => Some(size),
            // What was known of it before is the best there is.
            Progress::Unknown => path.found,
        };
        path.search = None;
        if path.found != found {
            path.found = found;
            self.news.push(News { address, found, full: path.full });
        }
        let tenths = 90 + u32::from(self.sequence) % 21;
        self.set_timer(address, now.checked_add(self.interval / 100 * tenths));
    }

    fn set_timer(&mut self, address: IpAddr, at: Option<Instant>) {
        let Some(path) = self.paths.get_mut(&address) else { return };
        if let Some(before) = std::mem::replace(&mut path.timer, at) {
            self.timers.remove(&(before, address));
        }
        self.timers.extend(at.map(|at| (at, address)));
    }
}

impl Path {
    fn new(full: u32) -> Self {
        Self { full, found: None, search: None, sent: None, patience: PATIENCE, timer: None }
    }
}

/// What every path carries (RFC 791 wants it of hosts, RFC 8200 of links), in bytes.
fn least(address: IpAddr) -> u32 {
    if address.is_ipv4() { 576 } else { 1280 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 18, 0, 2));
    const INTERVAL: Duration = Duration::from_secs(600);

    /// A network that carries so much to each address, and answers after a millisecond; none where nobody answers.
    struct Network {
        paths: Paths,
        carries: BTreeMap<IpAddr, Option<u32>>,
        names_limits: bool,
        now: Instant,
        sent: usize,
    }

    impl Network {
        fn new(carries: impl IntoIterator<Item = (IpAddr, Option<u32>)>, names_limits: bool) -> Self {
            let now = Instant::now();
            let carries = carries.into_iter().collect();
            Self { paths: Paths::new(now), carries, names_limits, now, sent: 0 }
        }

        fn order(&mut self, full: u32) {
            let targets = self.carries.keys().map(|address| (*address, full)).collect();
            let from = vec![("eth0".to_owned(), IpAddr::from([198, 18, 0, 1]))];
            self.paths.follow(&Order { targets, from, interval: INTERVAL }, self.now);
        }

        /// Lets time pass up to an end, and says what became known.
        fn run(&mut self, time: Duration) -> BTreeMap<IpAddr, Option<u32>> {
            let end = self.now + time;
            let mut known = BTreeMap::new();
            loop {
                known.extend(self.paths.take_news().into_iter().map(|news| (news.address, news.found)));
                let Some(next) = self.paths.deadline().filter(|at| *at <= end) else {
                    self.now = end;
                    return known;
                };
                self.now = self.now.max(next);
                for probe in self.paths.due(self.now) {
                    self.sent += 1;
                    let Some(Some(carries)) = self.carries.get(&probe.to).copied() else { continue };
                    let answer = self.now + Duration::from_millis(1);
                    if probe.size <= carries {
                        self.paths.answered(probe.to, probe.sequence, answer);
                    } else if self.names_limits {
                        self.paths.too_big(probe.to, probe.sequence, carries, answer);
                    }
                }
            }
        }
    }

    #[test]
    fn a_narrow_path_is_found_and_a_widened_one_after_the_next_interval() {
        for names_limits in [true, false] {
            let mut network = Network::new([(PEER, Some(1400))], names_limits);
            network.order(1500);
            assert_eq!(network.run(Duration::from_secs(60))[&PEER], Some(1400));
            assert_eq!(network.run(INTERVAL * 3), BTreeMap::new(), "it does not flap");
            network.carries.insert(PEER, Some(1450));
            assert_eq!(network.run(INTERVAL * 2)[&PEER], Some(1450));
            network.carries.insert(PEER, Some(1500));
            assert_eq!(network.run(INTERVAL * 2)[&PEER], Some(1500));
        }
    }

    #[test]
    fn of_a_peer_that_answers_nothing_nothing_becomes_known_and_what_was_known_stays() {
        let mut network = Network::new([(PEER, None)], false);
        network.order(1500);
        assert_eq!(network.run(INTERVAL), BTreeMap::from([(PEER, None)]));
        network.carries.insert(PEER, Some(1400));
        assert_eq!(network.run(INTERVAL * 2)[&PEER], Some(1400));
        network.carries.insert(PEER, None);
        assert_eq!(network.run(INTERVAL * 4), BTreeMap::new());
    }

    #[test]
    fn another_link_mtu_is_tried_at_once_and_a_limit_below_it_stays_meanwhile() {
        let mut network = Network::new([(PEER, Some(1500))], false);
        network.order(1500);
        network.run(Duration::from_secs(10));
        network.carries.insert(PEER, Some(9000));
        network.order(9000);
        assert_eq!(network.paths.take_news().last().unwrap().found, None, "1500 is no limit of 9000");
        assert_eq!(network.run(Duration::from_secs(10))[&PEER], Some(9000));
        network.carries.insert(PEER, Some(1400));
        network.run(INTERVAL * 2);
        network.order(1500);
        assert_eq!(network.paths.take_news().last().unwrap().found, Some(1400));
    }

    #[test]
    fn a_path_that_is_no_longer_ordered_is_forgotten() {
        let mut network = Network::new([(PEER, Some(1400))], true);
        network.order(1500);
        network.run(Duration::from_secs(10));
        network.carries.clear();
        network.order(1500);
        assert_eq!(network.run(INTERVAL * 2), BTreeMap::from([(PEER, None)]));
        assert_eq!(network.paths.deadline(), None, "nothing is due any more");
    }

    #[test]
    fn five_thousand_paths_are_probed_at_a_bounded_rate() {
        let address = |number: u32| IpAddr::from(0xc612_0000_u32.wrapping_add(number).to_be_bytes());
        let mut network = Network::new((0..5000).map(|number| (address(number), Some(1500))), false);
        network.order(1500);
        network.run(Duration::from_secs(10));
        assert!((900..=1002).contains(&network.sent), "{} packets in ten seconds", network.sent);
        let known = network.run(Duration::from_secs(95));
        assert_eq!(network.sent, 10_000);
        assert!(known.values().all(|found| *found == Some(1500)));
        network.run(INTERVAL - Duration::from_secs(200));
        assert!(network.sent < 20_000 && network.sent >= 10_000);
    }
}
