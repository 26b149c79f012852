//! Connections that no policy allows any more: found among those that the kernel tracks, and cut.
//!
//! Read [`sweep`]. A tracked connection passes whatever the rules say, so one that was allowed when it began would go on
//! after its policy is gone. A thread of its own lists the connections of isolated pods, asks the keeper, who alone knows
//! the policies, a few at a time, and has the kernel forget those that are not allowed: their next packet is judged as a
//! first one. What asks for it again meanwhile is one more sweep, however often it asks.
//!
//! It also forgets all that is tracked of an address whose pod is gone ([`Wanted::Forget`]), and says once which addresses of
//! pods here have anything ([`Wanted::Tracked`], `keeper/inherited.rs`).
//!
//! A connection is judged as it began: in its original direction, at the destination that it was translated to. One that the
//! node began, from whichever of its addresses, is not judged, as the table does not judge it: of those addresses the cluster
//! knows one or two.
//!
//! A TCP connection does not come back by a packet of the end that did not begin it: what is in the middle of a connection that
//! is not tracked is dropped (crate `policy`, `frame.rs`). Of UDP and SCTP such a packet is one that begins, and passes if that
//! end may begin.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SendError, Sender};
use std::time::{Duration, Instant};

use cluster::Protocol;
use ipnet::IpNet;
use kernel::address;
use kernel::conntrack::{self, Flow};
use kernel::netlink::{self, Socket};
use policy::Traffic;

use super::keeper::News;
use crate::run::{Error, spawn};

/// How many connections the keeper judges at once: it has other things to do.
const AT_ONCE: usize = 64;

/// A sweep may take at most this part of the time, for it goes through all that the kernel tracks.
const SHARE: u32 = 4;

/// The longest pause after a sweep.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How soon what failed is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// The addresses whose connections are to be looked at.
pub(super) type Swept = HashSet<IpAddr>;

/// What may have been tracked of addresses when it was looked at. A busy node tracks hundreds of thousands of them, so only
/// those in some networks are kept, and of all others it is not known.
#[derive(Debug)]
pub(super) struct Tracked {
    networks: Vec<IpNet>,
    /// Those in the networks that had something.
    found: HashSet<IpAddr>,
    /// Those beside the networks of which everything was forgotten.
    clean: HashSet<IpAddr>,
}

impl Tracked {
    pub(super) fn new(networks: Vec<IpNet>, found: HashSet<IpAddr>) -> Self {
        Self { networks, found, clean: HashSet::new() }
    }

    /// Whether something of that address may be tracked.
    pub(super) fn may_have(&self, address: &IpAddr) -> bool {
        match is_within(&self.networks, address) {
            true => self.found.contains(address),
            false => !self.clean.contains(address),
        }
    }

    /// Everything of that address was forgotten.
    pub(super) fn forget(&mut self, address: IpAddr) {
        match is_within(&self.networks, &address) {
            true => self.found.remove(&address),
            false => self.clean.insert(address),
        };
    }
}

fn is_within(networks: &[IpNet], address: &IpAddr) -> bool {
    networks.iter().any(|network| network.contains(address))
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Wanted {
    /// To say what is tracked of addresses here.
    Tracked,
    /// To cut what is not allowed any more.
    Cut(Swept),
    /// To forget everything of an address.
    Forget(IpAddr),
}

/// Starts the thread that sweeps, on a node whose pods are likely to have addresses of these networks.
pub(super) fn start(news: Sender<News>, networks: Vec<IpNet>) -> Result<Sender<Wanted>, Error> {
    let (wanted, asked) = mpsc::channel();
    spawn("sweep", move || serve(&asked, &news, &networks))?;
    Ok(wanted)
}

fn serve(asked: &Receiver<Wanted>, news: &Sender<News>, networks: &[IpNet]) {
    let (mut swept, mut freed) = (Swept::new(), BTreeSet::new());
    // Not before these: a sweep leaves a pause, and what failed is tried again.
    let (mut cut_at, mut free_at) = (Instant::now(), Instant::now());
    let mut told = Ok(());
    while told.is_ok() {
        let due = [(!swept.is_empty()).then_some(cut_at), (!freed.is_empty()).then_some(free_at)];
        let first = match due.into_iter().flatten().min() {
            None => asked.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => asked.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        if matches!(first, Err(RecvTimeoutError::Disconnected)) {
            return;
        }
        for wanted in first.into_iter().chain(asked.try_iter()) {
            match wanted {
                Wanted::Tracked => told = news.send(News::Tracked(tracked(networks))),
                Wanted::Cut(addresses) => swept.extend(addresses),
                Wanted::Forget(address) => drop(freed.insert(address)),
            }
        }
        let started = Instant::now();
        if !freed.is_empty() && started >= free_at {
            match forget(&freed) {
                Err(error) if !error.is_unsupported() => {
                    tell_inherited(&error);
                    free_at = Instant::now() + AGAIN;
                }
                _ => told = news.send(News::Forgotten(std::mem::take(&mut freed).into_iter().collect())),
            }
        }
        if told.is_ok() && !swept.is_empty() && started >= cut_at {
            told = cut(&std::mem::take(&mut swept), news);
            cut_at = Instant::now() + (started.elapsed() * SHARE).min(LONGEST_PAUSE);
        }
    }
}

/// What is tracked of addresses in these networks. No pod is let in before that is known.
fn tracked(networks: &[IpNet]) -> Tracked {
    loop {
        match tracked_addresses(networks) {
            Ok(found) => return Tracked::new(networks.to_vec(), found),
            Err(error) if error.is_unsupported() => {
                return Tracked::new(networks.to_vec(), HashSet::new());
            }
            Err(error) => tell_inherited(&error),
        }
        std::thread::sleep(AGAIN);
    }
}

fn cut(addresses: &Swept, news: &Sender<News>) -> Result<(), SendError<News>> {
    let count = sweep(addresses, news).unwrap_or_else(|error| {
        tracing::warn!(%error, "connections that no policy allows any more may go on until they end");
        0
    });
    if count == 0 {
        return Ok(());
    }
    tracing::info!(count, "connections that no policy allows any more were cut");
    news.send(News::Cut(count))
}

fn tell_inherited(error: &kernel::Error) {
    tracing::warn!(%error, "what is tracked of an address cannot be forgotten, so its next pod waits; it is tried again");
}

/// The addresses in these networks that tracked connections began at, or lead to.
fn tracked_addresses(networks: &[IpNet]) -> Result<HashSet<IpAddr>, kernel::Error> {
    let found = RefCell::new(HashSet::new());
    if conntrack::is_empty() {
        return Ok(found.into_inner());
    }
    let mut socket = Socket::open(netlink::Protocol::Netfilter)?;
    let note = |flow: &Flow| {
        let ends = [flow.original.source, flow.reply.source];
        found.borrow_mut().extend(ends.iter().filter(|address| is_within(networks, address)));
        false
    };
    for family in kernel::Family::BOTH {
        conntrack::list_where(&mut socket, family, note)?;
    }
    Ok(found.into_inner())
}

/// Forgets everything of these addresses.
fn forget(addresses: &BTreeSet<IpAddr>) -> Result<(), kernel::Error> {
    if conntrack::is_empty() {
        return Ok(());
    }
    let mut socket = Socket::open(netlink::Protocol::Netfilter)?;
    let flows = conntrack::list_of(&mut socket, addresses)?;
    conntrack::forget(&mut socket, &flows)
}

/// Cuts what is not allowed of the connections that these addresses have, and says how many those were.
fn sweep(addresses: &Swept, news: &Sender<News>) -> Result<u64, kernel::Error> {
    if addresses.is_empty() || conntrack::is_empty() {
        return Ok(0);
    }
    let mut socket = Socket::open(netlink::Protocol::Netfilter)?;
    let mut cut = 0;
    let own = own_addresses()?;
    for family in [kernel::Family::V4, kernel::Family::V6] {
        let concerned = |flow: &Flow| {
            let of_pod = addresses.contains(&flow.original.source) || addresses.contains(&flow.reply.source);
            of_pod && !own.contains(&flow.original.source)
        };
        let found = conntrack::list_where(&mut socket, family, concerned)?;
        for part in found.chunks(AT_ONCE) {
            let (answer, answered) = mpsc::channel();
            let flows = part.iter().map(as_it_began).collect();
            if news.send(News::Judge(flows, answer)).is_err() {
                return Ok(cut);
            }
            let Ok(allowed) = answered.recv() else { return Ok(cut) };
            let losers = part.iter().zip(allowed).filter(|(_, allowed)| !allowed);
            let losers: Vec<Flow> = losers.map(|(flow, _)| flow.clone()).collect();
            conntrack::forget(&mut socket, &losers)?;
            cut += losers.len() as u64;
        }
    }
    Ok(cut)
}

/// The addresses of this host.
fn own_addresses() -> Result<HashSet<IpAddr>, kernel::Error> {
    let mut socket = Socket::open(netlink::Protocol::Route)?;
    Ok(address::list(&mut socket, None, None)?.iter().map(|found| found.net.addr()).collect())
}

fn as_it_began(flow: &Flow) -> policy::Flow {
    let (original, reply) = (&flow.original, &flow.reply);
    let port = |protocol| Traffic::Port(protocol, reply.source_port);
    let traffic = match original.protocol {
        6 => port(Protocol::Tcp),
        17 => port(Protocol::Udp),
        132 => port(Protocol::Sctp),
        other => Traffic::Other(other),
    };
    let (source, destination) = (original.source, reply.source);
    policy::Flow { source, destination, traffic, through_service: original.destination != destination }
}
