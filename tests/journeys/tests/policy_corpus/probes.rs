//! Whether packets get from one pod to another: any number of flows asked at once.
//!
//! Read [`ask`]. Sockets are opened inside the pods' namespaces and waited for together.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::sctp::Asker;

/// How long silence has to last at least to count. On one machine an answer takes well under a millisecond.
pub(crate) const SILENCE: Duration = Duration::from_millis(200);

/// How long those are waited for that are expected to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How a flow is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// One flow, and whether it should pass.
#[derive(Debug, Clone)]
pub(crate) struct Probe {
    /// The namespace of who opens it.
    pub(crate) from: PathBuf,
    /// The address that it sends with, where the namespace has others; SCTP needs it always.
    pub(crate) source: Option<IpAddr>,
    pub(crate) to: SocketAddr,
    pub(crate) protocol: Protocol,
    pub(crate) passes: bool,
}

/// What came of a flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The other end answered, if only that nobody serves the port.
    Passed,
    Silence,
    /// Something else happened, which no policy should make happen.
    Other(Errno),
}

/// What came of all.
pub(crate) struct Asked {
    pub(crate) answers: Vec<Answer>,
    /// How long the last answer took after the last question.
    pub(crate) longest: Duration,
}

/// Raises the number of open files to what the machine allows.
pub(crate) fn allow_many_sockets() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

/// Asks all at once. Who has not answered for the length of `silence`, when all have answered that should, is taken to be silent.
pub(crate) fn ask(probes: &[Probe], silence: Duration) -> Asked {
    let mut answers = vec![Answer::Silence; probes.len()];
    let mut flows = Flows::default();
    let mut of_namespace: BTreeMap<&PathBuf, Vec<usize>> = BTreeMap::new();
    for (number, probe) in probes.iter().enumerate() {
        of_namespace.entry(&probe.from).or_default().push(number);
    }
    for (namespace, numbers) in of_namespace {
        for (number, errno) in harness::inside(namespace, || flows.open(&numbers, probes)) {
            answers[number] = Answer::Other(errno);
        }
    }
    let begun = Instant::now();
    let mut heard = begun;
    while !flows.unanswered.is_empty() {
        let expected = flows.unanswered.iter().any(|number| probes[*number].passes);
        let until = if expected { begun + PATIENCE } else { heard + silence };
        let left = until.saturating_duration_since(Instant::now());
        // Also when the time is over: what came while this process had no turn has come.
        let answered = flows.answered(probes, left);
        if answered.is_empty() && left.is_zero() {
            break;
        }
        for (number, answer) in answered {
            answers[number] = answer;
            heard = Instant::now();
        }
    }
    Asked { answers, longest: heard - begun }
}

/// Flows under way.
#[derive(Default)]
struct Flows {
    unanswered: BTreeSet<usize>,
    /// Of TCP and UDP, a socket for each.
    sockets: BTreeMap<usize, OwnedFd>,
    /// Of SCTP.
    askers: Vec<Asker>,
}

impl Flows {
    /// Opens these in the calling thread's namespace; says which cannot be opened.
    fn open(&mut self, numbers: &[usize], probes: &[Probe]) -> Vec<(usize, Errno)> {
        let mut failed = Vec::new();
        let mut askers = BTreeMap::new();
        for number in numbers {
            let probe = &probes[*number];
            let opened = match probe.protocol {
                Protocol::Sctp => ask_sctp(&mut askers, *number, probe),
                Protocol::Tcp | Protocol::Udp => {
                    open(probe).map(|socket| drop(self.sockets.insert(*number, socket)))
                }
            };
            match opened {
                Ok(()) => drop(self.unanswered.insert(*number)),
                Err(errno) => failed.push((*number, errno)),
            }
        }
        self.askers.extend(askers.into_values());
        failed
    }

    /// Those of which something can be said now.
    fn answered(&mut self, probes: &[Probe], left: Duration) -> Vec<(usize, Answer)> {
        let flags = |number: &usize| match probes[*number].protocol {
            Protocol::Tcp => PollFlags::OUT,
            _ => PollFlags::IN,
        };
        let sockets = self.sockets.iter().map(|(number, socket)| PollFd::new(socket, flags(number)));
        let errors = self.askers.iter().map(|asker| PollFd::new(asker, PollFlags::IN));
        let mut waited: Vec<PollFd<'_>> = sockets.chain(errors).collect();
        let timeout = Timespec::try_from(left).unwrap();
        match poll(&mut waited, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => panic!("waiting for sockets: {}", io::Error::from(errno)),
        }
        let is_ready: Vec<bool> = waited.iter().map(|polled| !polled.revents().is_empty()).collect();
        drop(waited);
        let ready = self.sockets.iter().zip(&is_ready).filter(|(_, is_ready)| **is_ready);
        let mut answered: Vec<(usize, Answer)> =
            ready.map(|((number, socket), _)| (*number, answer(probes[*number].protocol, socket))).collect();
        answered.extend(self.askers.iter_mut().flat_map(Asker::answered));
        for (number, _) in &answered {
            self.sockets.remove(number);
            self.unanswered.remove(number);
        }
        answered
    }
}

fn ask_sctp(askers: &mut BTreeMap<bool, Asker>, number: usize, probe: &Probe) -> Result<(), Errno> {
    let asker = match askers.entry(probe.to.is_ipv6()) {
        Entry::Occupied(there) => there.into_mut(),
        Entry::Vacant(free) => free.insert(Asker::open(probe.to.is_ipv6())?),
    };
    asker.send(number, probe.source.expect("the address that it sends with"), probe.to)
}

fn open(probe: &Probe) -> Result<OwnedFd, Errno> {
    let family = if probe.to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = if probe.protocol == Protocol::Tcp { SocketType::STREAM } else { SocketType::DGRAM };
    let socket = net::socket_with(family, kind, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    if probe.protocol == Protocol::Tcp {
        // Nothing of it stays when it is closed.
        net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO))?;
    }
    if let Some(source) = probe.source {
        net::bind(&socket, &SocketAddr::new(source, 0))?;
    }
    match net::connect(&socket, &probe.to) {
        Ok(()) | Err(Errno::INPROGRESS) => {}
        Err(errno) => return Err(errno),
    }
    if probe.protocol == Protocol::Udp {
        net::send(&socket, b"?", net::SendFlags::empty())?;
    }
    Ok(socket)
}

fn answer(protocol: Protocol, socket: &OwnedFd) -> Answer {
    let outcome = match protocol {
        Protocol::Tcp => net::sockopt::socket_error(socket).unwrap(),
        _ => net::recv(socket, &mut [0; 64][..], net::RecvFlags::empty()).map(drop),
    };
    match outcome {
        Ok(()) | Err(Errno::CONNREFUSED) => Answer::Passed,
        Err(errno) => Answer::Other(errno),
    }
}
