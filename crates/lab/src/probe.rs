//! What a probe of the lab finds: who reaches whom, how fast, and how much goes through.
//!
//! Read [`Probe`] first, then [`run`]. Everything is done with our own sockets opened inside the pods'
//! namespaces; no tool of the machine is needed.

mod ping;
mod throughput;

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use kernel::netns::Netns;
use serde::{Deserialize, Serialize};

use crate::control::{Part, Progress};
use crate::error::{Error, Result};
use ping::Party;

/// Everything a probe found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// The pods, in the order in which [`Reach`] counts them.
    pub pods: Vec<ProbedPod>,
    /// Every ordered pair of pods, each family.
    pub reach: Vec<Reach>,
    /// Pairs of pods on different nodes, each family.
    pub throughput: Vec<Throughput>,
}

/// A pod that took part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbedPod {
    /// `namespace/name`.
    pub name: String,
    /// Its node.
    pub node: String,
}

/// Whether one pod reaches another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reach {
    /// Index of the asking pod.
    pub from: usize,
    /// Index of the asked pod.
    pub to: usize,
    /// The address asked.
    pub address: IpAddr,
    /// The shortest of three round trips, in microseconds; `None` when nothing came back.
    pub round_trip_micros: Option<u64>,
}

/// What went through between two pods on different nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Throughput {
    /// Index of the sending pod.
    pub from: usize,
    /// Index of the receiving pod.
    pub to: usize,
    /// The address sent to.
    pub address: IpAddr,
    /// What arrived; `None` when no connection could be made.
    pub bits_per_second: Option<u64>,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}

impl Probe {
    /// True when every pod reached every other and every connection carried bytes.
    pub fn all_reached(&self) -> bool {
        self.reach.iter().all(|pair| pair.round_trip_micros.is_some())
            && self.throughput.iter().all(|pair| pair.bits_per_second.is_some_and(|bits| bits > 0))
    }
}

/// A pod to be probed.
pub(crate) struct Subject {
    pub(crate) name: String,
    pub(crate) node: String,
    pub(crate) netns: Arc<Netns>,
    pub(crate) addresses: Vec<IpAddr>,
}

/// Probes all subjects; `throughput` is the time for all transfers together, zero for none.
pub(crate) fn run(
    subjects: &[Subject],
    throughput: Duration,
    told: &mut dyn FnMut(Progress),
) -> Result<Probe> {
    let failed = |source| Error::Probe { source };
    let parties: Vec<Party> = subjects
        .iter()
        .map(|subject| within(&subject.netns, || Party::open(&subject.addresses)))
        .collect::<io::Result<_>>()
        .map_err(failed)?;
    let pairs = ping::ping_all(&parties, &mut |done, total| {
        let what = format!("{} pods, each to each", subjects.len());
        told(Progress { part: Part::Reachability, done: done.into(), total: total.into(), what });
    });
    let reach = pairs.map_err(failed)?.into_iter().map(|pair| Reach {
        from: pair.from,
        to: pair.to,
        address: pair.address,
        round_trip_micros: pair.round_trip.map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
    });
    let reach = reach.collect();
    let throughput = if throughput.is_zero() { Vec::new() } else { transfers(subjects, throughput, told) };
    let pods =
        subjects.iter().map(|subject| ProbedPod { name: subject.name.clone(), node: subject.node.clone() });
    Ok(Probe { pods: pods.collect(), reach, throughput })
}

fn transfers(subjects: &[Subject], time: Duration, told: &mut dyn FnMut(Progress)) -> Vec<Throughput> {
    let routes = routes(subjects);
    let each = time / u32::try_from(routes.len().max(1)).unwrap_or(u32::MAX);
    let mut results = Vec::new();
    for (done, (from, to, address)) in routes.iter().copied().enumerate() {
        let what = format!("{} to {}", subjects[from].node, subjects[to].node);
        told(Progress { part: Part::Throughput, done, total: routes.len(), what });
        let measured = transfer(&subjects[from], &subjects[to], address, each);
        let reason = measured.as_ref().err().map(ToString::to_string);
        results.push(Throughput { from, to, address, bits_per_second: measured.ok(), reason });
    }
    results
}

/// From the first pod of each node to the first pod of the next node, around, in each family.
fn routes(subjects: &[Subject]) -> Vec<(usize, usize, IpAddr)> {
    let mut firsts: Vec<usize> = Vec::new();
    for (index, subject) in subjects.iter().enumerate() {
        if firsts.iter().all(|first| subjects[*first].node != subject.node) {
            firsts.push(index);
        }
    }
    // node2 before node10.
    firsts.sort_by_key(|index| (subjects[*index].node.len(), &subjects[*index].node));
    if firsts.len() < 2 {
        return Vec::new();
    }
    let next = |place: usize| firsts[(place + 1) % firsts.len()];
    let pairs = firsts.iter().enumerate().map(|(place, from)| (*from, next(place)));
    pairs
        .flat_map(|(from, to)| {
            let shared = move |address: &&IpAddr| {
                subjects[from].addresses.iter().any(|own| own.is_ipv4() == address.is_ipv4())
            };
            subjects[to].addresses.iter().filter(shared).map(move |address| (from, to, *address))
        })
        .collect()
}

fn transfer(from: &Subject, to: &Subject, address: IpAddr, time: Duration) -> io::Result<u64> {
    let listener = within(&to.netns, || throughput::listen(address))?;
    let sender = within(&from.netns, || throughput::connect(address, &listener))?;
    throughput::measure(sender, &listener, time)
}

/// Opens sockets in a namespace, on the calling thread, and comes back.
fn within<T>(netns: &Netns, open: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let _inside = netns.enter().map_err(io::Error::other)?;
    open()
}
