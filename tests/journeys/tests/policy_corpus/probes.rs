//! Whether packets get from one pod to another: any number of flows asked at once.
//!
//! Read [`ask`]. Sockets are opened inside the pods' namespaces and waited for together.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// How long silence has to last at least to count. On one machine an answer takes well under a millisecond.
pub(crate) const SILENCE: Duration = Duration::from_millis(200);

/// How long those are waited for that are expected to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// How a flow is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

/// One flow, and whether it should pass.
#[derive(Debug, Clone)]
pub(crate) struct Probe {
    /// The namespace of who opens it.
    pub(crate) from: PathBuf,
    /// The address that it sends with, where the namespace has others.
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

/// Raises the number of open files to what the machine allows.
pub(crate) fn allow_many_sockets() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

/// Asks all at once. Who has not answered for the length of `silence`, when all have answered that should, is taken to be silent.
pub(crate) fn ask(probes: &[Probe], silence: Duration) -> Vec<Answer> {
    let mut sockets: BTreeMap<usize, OwnedFd> = BTreeMap::new();
    let mut answers = vec![Answer::Silence; probes.len()];
    let mut of_namespace: BTreeMap<&PathBuf, Vec<usize>> = BTreeMap::new();
    for (number, probe) in probes.iter().enumerate() {
        of_namespace.entry(&probe.from).or_default().push(number);
    }
    for (namespace, numbers) in of_namespace {
        let opened = harness::inside(namespace, || {
            numbers.iter().map(|number| (*number, open(&probes[*number]))).collect::<Vec<_>>()
        });
        for (number, socket) in opened {
            match socket {
                Ok(socket) => drop(sockets.insert(number, socket)),
                Err(errno) => answers[number] = Answer::Other(errno),
            }
        }
    }
    let begun = Instant::now();
    let mut heard = begun;
    while !sockets.is_empty() {
        let expected = sockets.keys().any(|number| probes[*number].passes);
        let until = if expected { begun + PATIENCE } else { heard + silence };
        let left = until.saturating_duration_since(Instant::now());
        // Also when the time is over: what came while this process had no turn has come.
        let answering = ready(&sockets, probes, left);
        if answering.is_empty() && left.is_zero() {
            break;
        }
        for number in answering {
            answers[number] = answer(probes[number].protocol, &sockets[&number]);
            sockets.remove(&number);
            heard = Instant::now();
        }
    }
    answers
}

fn open(probe: &Probe) -> Result<OwnedFd, Errno> {
    let family = if probe.to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let kind = match probe.protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
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

/// Those of which something can be said now.
fn ready(sockets: &BTreeMap<usize, OwnedFd>, probes: &[Probe], left: Duration) -> Vec<usize> {
    let flags = |number: &usize| match probes[*number].protocol {
        Protocol::Tcp => PollFlags::OUT,
        Protocol::Udp => PollFlags::IN,
    };
    let mut waited: Vec<PollFd<'_>> =
        sockets.iter().map(|(number, socket)| PollFd::new(socket, flags(number))).collect();
    let timeout = Timespec::try_from(left).unwrap();
    match poll(&mut waited, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => panic!("waiting for sockets: {}", io::Error::from(errno)),
    }
    sockets
        .keys()
        .zip(&waited)
        .filter(|(_, polled)| !polled.revents().is_empty())
        .map(|(number, _)| *number)
        .collect()
}

fn answer(protocol: Protocol, socket: &OwnedFd) -> Answer {
    let outcome = match protocol {
        Protocol::Tcp => net::sockopt::socket_error(socket).unwrap(),
        Protocol::Udp => net::recv(socket, &mut [0; 64][..], net::RecvFlags::empty()).map(drop),
    };
    match outcome {
        Ok(()) | Err(Errno::CONNREFUSED) => Answer::Passed,
        Err(errno) => Answer::Other(errno),
    }
}
