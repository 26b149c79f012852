//! All paths that are probed: whose turn it is, and what is awaited.
//!
//! Read [`Paths`]: it is told the time with every call and says what to send ([`Paths::due`]), so minutes of probing are
//! tested in no time. A path is searched soon when it is new, when it should carry another size, and when packets leave by
//! another link or address; then after each interval, which varies by a tenth, so that many do not come together again.
//! A peer that answered nothing is asked again earlier, and so is one whose path has just become narrow.
//!
//! A short congestion looks like a path that is narrow. So where no router says that it is, the full size is tried over more
//! than a second, and all of it once more after a while, before anybody hears of it.
//!
//! What stays true: two packets leave in [`SPACING`], however many paths there are.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
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

/// How long after a lost round of the full size the next one is sent.
const SPREAD: Duration = Duration::from_millis(500);

/// How long after a path was found narrower for the first time that is tried again, and how long after it counts.
const DOUBT: Duration = Duration::from_secs(5);
const RECOVERY: Duration = Duration::from_secs(30);

/// How long after its first searches a peer that answers nothing is asked again.
const RETRIES: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(60)];

/// A path is begun at some moment within so long for each path that there is: what makes one node search a path, such as a
/// node that joins, makes all of them.
const STAGGER: Duration = Duration::from_millis(4);

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
    /// Found narrower, and not yet for a second time.
    doubted: Option<u32>,
    search: Option<Search>,
    sent: Option<Sent>,
    /// Whether it waits for its turn.
    waits: bool,
    patience: Duration,
    timer: Option<Instant>,
    /// Whether what was found is news.
    untold: bool,
    /// How many searches have shown nothing.
    unknown: usize,
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
    /// Limits of before, until it is known which paths there are.
    remembered: BTreeMap<IpAddr, u32>,
    /// When a round or a pause is over, or a path is to be searched again.
    timers: BTreeSet<(Instant, IpAddr)>,
    /// Those whose next round waits for its turn.
    waiting: VecDeque<IpAddr>,
    next_turn: Instant,
    sequence: u16,
    from: Vec<(String, IpAddr)>,
    interval: Duration,
    news: Vec<News>,
    chance: RandomState,
}

impl Paths {
    /// None yet. Limits that are remembered hold until a search shows others.
    pub(super) fn new(remembered: BTreeMap<IpAddr, u32>, now: Instant) -> Self {
        Self {
            paths: BTreeMap::new(),
            remembered,
            timers: BTreeSet::new(),
            waiting: VecDeque::new(),
            next_turn: now,
            sequence: 0,
            from: Vec::new(),
            interval: Duration::MAX,
            news: Vec::new(),
            chance: RandomState::new(),
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
        self.waiting.retain(|address| order.targets.contains_key(address));
        let mut remembered = std::mem::take(&mut self.remembered);
        for (&address, &full) in &order.targets {
            // A limit holds until the search shows another one; that all passed says nothing of another size.
            let known = remembered.remove(&address).filter(|limit| *limit < full);
            let before = self.paths.get(&address).map(|path| path.full);
            if before == Some(full) && !anew {
                continue;
            }
            let path = self.paths.entry(address).or_insert_with(|| Path::new(known));
            path.full = full;
            path.found = path.found.filter(|found| *found < before.unwrap_or(full).min(full));
            (path.doubted, path.unknown) = (None, 0);
            self.news.push(News { address, found: path.found, full });
            self.begin_sometime(address, now);
        }
        let gone = remembered.into_iter().map(|(address, full)| News { address, found: None, full });
        self.news.extend(gone);
    }

    /// Goes on with what is due, and says what to send.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Probe> {
        while let Some(&(at, address)) = self.timers.first() {
            if at > now {
                break;
            }
            self.set_timer(address, None);
            match self.paths.get(&address) {
                Some(Path { sent: Some(Sent { alive, .. }), .. }) => {
                    let round = if *alive { Round::Lost } else { Round::Silent };
                    self.judge(address, round, now);
                }
                Some(Path { search: Some(_), .. }) => self.queue(address),
                _ => self.begin(address, now),
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

    /// Begins a search within some time that many nodes hardly share.
    fn begin_sometime(&mut self, address: IpAddr, now: Instant) {
        if let Some(path) = self.paths.get_mut(&address) {
            (path.search, path.sent) = (None, None);
        }
        let longest = STAGGER * u32::try_from(self.paths.len()).unwrap_or(u32::MAX);
        let share = self.chance.hash_one(address) % 1024;
        let pause = longest / 1024 * u32::try_from(share).unwrap_or_default();
        self.set_timer(address, now.checked_add(pause));
    }

    fn begin(&mut self, address: IpAddr, now: Instant) {
        self.set_timer(address, None);
        let Some(path) = self.paths.get_mut(&address) else { return };
        path.search = Some(Search::new(path.full, least(address), path.doubted.or(path.found)));
        path.sent = None;
        self.next_turn = self.next_turn.max(now);
        self.queue(address);
    }

    /// Has the next round wait for its turn.
    fn queue(&mut self, address: IpAddr) {
        let Some(path) = self.paths.get_mut(&address) else { return };
        if !std::mem::replace(&mut path.waits, true) {
            self.waiting.push_back(address);
        }
    }

    /// Sends a round; none where the path has gone, or is to be begun anew, meanwhile.
    fn send(&mut self, address: IpAddr, now: Instant) -> Option<[Probe; 2]> {
        let path = self.paths.get_mut(&address)?;
        path.waits = false;
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
            Progress::Again if round == Round::Lost && search.size() == path.full => {
                return self.set_timer(address, Some(now + SPREAD));
            }
            Progress::Again => return self.queue(address),
            Progress::Found(size) => Some(size),
            Progress::Unknown => None,
        };
        let told = search.is_told();
        path.search = None;
        let wait = path.conclude(found, told).unwrap_or(self.interval).min(self.interval);
        if path.untold {
            path.untold = false;
            self.news.push(News { address, found: path.found, full: path.full });
        }
        let tenths = 90 + u32::from(self.sequence) % 21;
        self.set_timer(address, now.checked_add(wait / 100 * tenths));
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
    fn new(found: Option<u32>) -> Self {
        Self {
            full: 0,
            found,
            doubted: None,
            search: None,
            sent: None,
            waits: false,
            patience: PATIENCE,
            timer: None,
            untold: false,
            unknown: 0,
        }
    }

    /// Takes what a search has shown, none if nothing; says after how long the path is searched again, where that is earlier
    /// than others are.
    fn conclude(&mut self, found: Option<u32>, told: bool) -> Option<Duration> {
        let doubted = self.doubted.take();
        let Some(size) = found else {
            // What was known of it before is the best there is.
            self.unknown += 1;
            return RETRIES.get(self.unknown - 1).copied().filter(|_| self.found.is_none());
        };
        self.unknown = 0;
        let narrower = |size: u32| size < self.found.unwrap_or(self.full);
        if narrower(size) && !told && doubted.is_none() {
            self.doubted = Some(size);
            return Some(DOUBT);
        }
        // What was answered once passes, and what was lost later was bad luck.
        let size = size.max(doubted.unwrap_or_default());
        let lowered = narrower(size);
        self.untold = self.found.replace(size) != Some(size);
        lowered.then_some(RECOVERY)
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
            Self { paths: Paths::new(BTreeMap::new(), now), carries, names_limits, now, sent: 0 }
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
    fn a_short_congestion_is_no_narrow_path_and_one_that_became_narrow_is_looked_at_again_soon() {
        let mut network = Network::new([(PEER, Some(1500))], false);
        network.order(1500);
        network.run(Duration::from_secs(10));
        // Every large packet is lost for a second, or for four, from the moment that the path is searched anew.
        for congested in [1, 4] {
            network.run(network.paths.deadline().unwrap() - network.now);
            network.carries.insert(PEER, Some(100));
            assert_eq!(network.run(Duration::from_secs(congested)), BTreeMap::new());
            network.carries.insert(PEER, Some(1500));
            assert_eq!(network.run(Duration::from_secs(300)), BTreeMap::new());
        }
        network.carries.insert(PEER, Some(1400));
        assert_eq!(network.run(INTERVAL * 2)[&PEER], Some(1400));
        let mut bad = Network::new([(PEER, Some(1400))], false);
        bad.order(1500);
        assert_eq!(bad.run(Duration::from_secs(20))[&PEER], Some(1400));
        bad.carries.insert(PEER, Some(1500));
        assert_eq!(bad.run(Duration::from_secs(40))[&PEER], Some(1500), "long before the interval is over");
    }

    #[test]
    fn a_firewall_that_lets_only_small_echoes_pass_narrows_nothing() {
        for (address, limit) in [(PEER, 1199), (IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 2]), 1279)] {
            let mut network = Network::new([(address, Some(limit))], false);
            network.order(1500);
            assert_eq!(network.run(INTERVAL * 3), BTreeMap::from([(address, None)]));
        }
    }

    #[test]
    fn a_limit_that_is_remembered_holds_until_a_search_shows_another() {
        let other = IpAddr::from([198, 18, 0, 3]);
        let mut network = Network::new([(PEER, None)], false);
        network.paths = Paths::new(BTreeMap::from([(PEER, 1400), (other, 1300)]), network.now);
        network.order(1500);
        let known = network.run(INTERVAL);
        assert_eq!(
            known,
            BTreeMap::from([(PEER, Some(1400)), (other, None)]),
            "the other is no peer any more"
        );
        network.carries.insert(PEER, Some(1500));
        assert_eq!(network.run(INTERVAL * 2)[&PEER], Some(1500));
        let mut network = Network::new([(PEER, None)], false);
        network.paths = Paths::new(BTreeMap::from([(PEER, 1400)]), network.now);
        network.order(1400);
        assert_eq!(network.run(INTERVAL)[&PEER], None, "it is no limit any more");
    }

    #[test]
    fn a_peer_that_was_silent_is_asked_again_soon_and_then_seldom() {
        let mut network = Network::new([(PEER, None)], false);
        network.order(1500);
        network.run(Duration::from_secs(5));
        network.carries.insert(PEER, Some(1500));
        assert_eq!(network.run(Duration::from_secs(10))[&PEER], Some(1500));
        let mut network = Network::new([(PEER, None)], false);
        network.order(1500);
        network.run(Duration::from_secs(100));
        let after_three_searches = network.sent;
        network.run(INTERVAL / 2);
        assert_eq!((after_three_searches, network.sent), (18, 18));
    }

    #[test]
    fn many_nodes_do_not_probe_one_that_joins_at_the_same_moment() {
        let address = |number: u32| IpAddr::from(0xc612_0000_u32.wrapping_add(number).to_be_bytes());
        let first_probes = (0..20).map(|_| {
            let mut network = Network::new((0..1000).map(|number| (address(number), Some(1500))), false);
            network.order(1500);
            network.run(Duration::from_secs(60));
            network.carries.insert(address(1000), Some(1500));
            network.order(1500);
            network.paths.deadline().unwrap() - network.now
        });
        let first_probes: BTreeSet<Duration> = first_probes.collect();
        let spread = *first_probes.last().unwrap() - *first_probes.first().unwrap();
        assert!(spread > Duration::from_secs(1) && spread < Duration::from_secs(5), "{spread:?}");
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
        assert!((850..=1002).contains(&network.sent), "{} packets in ten seconds", network.sent);
        let known = network.run(Duration::from_secs(95));
        assert_eq!(network.sent, 10_000);
        assert!(known.values().all(|found| *found == Some(1500)));
        network.run(INTERVAL - Duration::from_secs(200));
        assert!(network.sent < 20_000 && network.sent >= 10_000);
    }
}
