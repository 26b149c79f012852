//! What the paths to the peers carry, found out by trying.
//!
//! Read [`Prober`], the loop's end; a thread of its own sends ICMP echoes that no router may cut to the peers' underlay
//! addresses and hears what comes back. Which size is next is decided in `search.rs` (one path), whose turn it is in
//! `paths.rs` (all of them): both without a socket or a clock.
//!
//! What stays true: a path counts as narrow only when a router says so, or after echoes of the expected size were lost several
//! times while small ones, sent at the same moments, were answered, and the same again some seconds later; of a peer that
//! answers nothing, or no echo of a size that paths have, nothing is concluded; the rate is bounded however many peers there
//! are; nothing is sent while nothing is due; and what was found outlives the agent, so that the next one's first routes fit.
//!
//! RFC 1191, RFC 8201; RFC 8899 for the search.

mod limits_file;
mod paths;
mod search;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kernel::Family;
use kernel::echo::{Answer, Echo};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

pub(crate) use self::limits_file::LimitsFile;
use self::paths::{News, Paths, Probe};
use crate::event::Event;
use crate::run::{Error, spawn};

/// The loop hears of changed paths no more often than so: each costs it a look at everything.
const NEWS: Duration = Duration::from_secs(1);

/// What is to be probed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Order {
    /// The peers' underlay addresses, with the largest packet that should reach each, in bytes, IP header included.
    pub(crate) targets: BTreeMap<IpAddr, u32>,
    /// The links and addresses that packets leave by: with others, every path is another one.
    pub(crate) from: Vec<(String, IpAddr)>,
    /// How long after a path was probed it is probed again.
    pub(crate) interval: Duration,
}

/// What the loop and the thread tell each other.
#[derive(Debug, Default)]
struct Board {
    /// What is to be probed from now on, until the thread has taken it.
    order: Option<Order>,
    /// What was seen to reach each address, in bytes.
    found: BTreeMap<IpAddr, u32>,
    /// Those of it that are less than was ordered.
    limits: BTreeMap<IpAddr, u32>,
}

/// Has paths probed, and knows what was found.
#[derive(Debug)]
pub(crate) struct Prober {
    board: Arc<Mutex<Board>>,
    bell: Arc<OwnedFd>,
    last: Option<Order>,
}

impl Prober {
    /// Starts the thread with the limits that the file remembers; it sends [`Event::Path`] when a path has become narrower or wider.
    pub(crate) fn start(file: LimitsFile, events: &Sender<Event>) -> Result<Self, Error> {
        const NAME: &str = "path MTU";
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::Thread { name: NAME, source: errno.into() })?;
        let remembered = file.read();
        let board = Board { order: None, found: remembered.clone(), limits: remembered.clone() };
        let (board, bell) = (Arc::new(Mutex::new(board)), Arc::new(bell));
        let probing = Probing {
            board: Arc::clone(&board),
            bell: Arc::clone(&bell),
            events: events.clone(),
            file,
            paths: Paths::new(remembered, Instant::now()),
            sockets: BTreeMap::new(),
            untold: false,
            told: None,
        };
        spawn(NAME, move || probing.run())?;
        Ok(Self { board, bell, last: None })
    }

    /// Probes these paths from now on. What is ordered already goes on as it is.
    pub(crate) fn follow(&mut self, order: Order) {
        if self.last.as_ref() == Some(&order) {
            return;
        }
        lock(&self.board).order = Some(order.clone());
        self.last = Some(order);
        // The counter of an eventfd is full after 2^64 - 1 rings.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// The addresses that smaller packets reach than should, and the largest that do, in bytes.
    pub(crate) fn limits(&self) -> BTreeMap<IpAddr, u32> {
        lock(&self.board).limits.clone()
    }

    /// Shows what was found: the largest packet that was seen to reach each address, in bytes.
    pub(crate) fn look(&self, look: impl FnOnce(&BTreeMap<IpAddr, u32>)) {
        look(&lock(&self.board).found);
    }
}

fn lock(board: &Mutex<Board>) -> MutexGuard<'_, Board> {
    board.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread.
struct Probing {
    board: Arc<Mutex<Board>>,
    bell: Arc<OwnedFd>,
    events: Sender<Event>,
    file: LimitsFile,
    paths: Paths,
    /// By family (4 or 6), once needed; none where the kernel refused one.
    sockets: BTreeMap<u8, Option<Echo>>,
    /// Whether limits have changed that the loop has not heard of.
    untold: bool,
    told: Option<Instant>,
}

impl Probing {
    fn run(mut self) {
        loop {
            if let Some(order) = lock(&self.board).order.take() {
                self.paths.follow(&order, Instant::now());
            }
            for probe in self.paths.due(Instant::now()) {
                self.send(&probe);
            }
            if !self.tell(Instant::now()) {
                return;
            }
            self.wait();
            self.hear();
        }
    }

    fn send(&mut self, probe: &Probe) {
        let (number, family) = if probe.to.is_ipv4() { (4, Family::V4) } else { (6, Family::V6) };
        let socket = self.sockets.entry(number).or_insert_with(|| {
            Echo::open(family)
                .inspect_err(|error| {
                    tracing::warn!(%error, "paths are not probed; hint: the agent needs CAP_NET_RAW");
                })
                .ok()
        });
        let Some(socket) = socket else { return };
        // Where there is no way now, nothing comes back either.
        if socket.send(probe.to, probe.sequence, probe.size) == Err(Errno::MSGSIZE) {
            self.paths.too_big(probe.to, probe.sequence, 0, Instant::now());
        }
    }

    /// Puts what is news on the board, and wakes the loop where that changes a route. False when the loop is gone.
    fn tell(&mut self, now: Instant) -> bool {
        let news = self.paths.take_news();
        if !news.is_empty() {
            let mut board = lock(&self.board);
            for news in news {
                self.untold |= note(&mut board, news);
            }
        }
        if !self.untold || self.told.is_some_and(|told| now < told + NEWS) {
            return true;
        }
        (self.untold, self.told) = (false, Some(now));
        let limits = lock(&self.board).limits.clone();
        self.file.keep(&limits);
        self.events.send(Event::Path).is_ok()
    }

    /// Waits for an answer, an order, or until something is due.
    fn wait(&self) {
        let news = self.told.filter(|_| self.untold).map(|told| told + NEWS);
        let deadline = self.paths.deadline().into_iter().chain(news).min();
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        let sockets = self.sockets.values().flatten().map(AsFd::as_fd);
        let mut polled: Vec<PollFd<'_>> = sockets
            .chain([self.bell.as_fd()])
            .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN))
            .collect();
        // Interrupted or not: what is due is looked for anew.
        let _ = poll(&mut polled, timeout.as_ref());
    }

    fn hear(&mut self) {
        let mut rung = [0; 8];
        // Most often nobody rang.
        let _ = rustix::io::read(&self.bell, &mut rung);
        for socket in self.sockets.values().flatten() {
            while let Some(answer) = socket.receive() {
                let now = Instant::now();
                match answer {
                    Answer::Reply { from, sequence } => self.paths.answered(from, sequence, now),
                    Answer::TooBig { to, sequence, mtu } => self.paths.too_big(to, sequence, mtu, now),
                }
            }
        }
    }
}

/// Notes what was found of a path; true if its limit is another one.
fn note(board: &mut Board, news: News) -> bool {
    let News { address, found, full } = news;
    match found {
        Some(size) => board.found.insert(address, size),
        None => board.found.remove(&address),
    };
    let limit = found.filter(|size| *size < full);
    let before = match limit {
        Some(size) => board.limits.insert(address, size),
        None => board.limits.remove(&address),
    };
    if before != limit {
        tracing::info!(%address, expected = full, carries = found, "what a path carries has changed");
    }
    before != limit
}
