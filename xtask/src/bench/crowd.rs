//! A crowd: a hundred pods in parallel on a node that has none, and on one that has a thousand.
//!
//! Of the routed network, whose pods cost the host a route each; and of ptp, where each also puts the one gateway address
//! on one more link, which the kernel keeps in a list. Not of a bridge: it takes 1,023 ports, and each costs the next.

use std::{
    process::Command,
    sync::atomic::AtomicUsize,
    thread::available_parallelism,
    time::{Duration, Instant},
};

use anyhow::Context;
use harness::Namespace;

use super::{
    burst::work,
    median,
    subject::{Network, Subject},
};
use crate::process;

const PODS: u16 = 100;
const PRESENT: u16 = 1000;
/// Rounds of each case in each turn, and how often the cases take turns: the machine is slower at some times than at
/// others, and deleting a thousand pods takes too long to do it between single rounds.
const ROUNDS: usize = 7;
const TURNS: usize = 3;

/// Prints both times and their ratio, for each network.
pub(crate) fn run() -> anyhow::Result<()> {
    // As every node has one. Without it the kernel looks for a source address on each link there is.
    for words in ["link add uplink up type bridge", "address add 192.0.2.1/24 dev uplink"] {
        process::run(Command::new("ip").args(words.split(' ')))?;
    }
    println!("\n{PODS} pods in parallel, medians of {} rounds, ms", ROUNDS * TURNS);
    crowd("fairlead, IPv4", &Subject::fairlead(Network::Routed)?)?;
    crowd("fairlead, IPv4 and IPv6", &Subject::fairlead(Network::RoutedDualStack)?)?;
    crowd("ptp, IPv4", &Subject::fairlead(Network::Ptp)?)?;
    process::run(Command::new("ip").args(["link", "delete", "uplink"]))
}

fn crowd(name: &str, subject: &Subject) -> anyhow::Result<()> {
    let present: Vec<(u16, Namespace)> = (1..=PRESENT).map(|number| (number, Namespace::new())).collect();
    let fresh: Vec<(u16, Namespace)> =
        (PRESENT + 1..=PRESENT + PODS).map(|number| (number, Namespace::new())).collect();
    // What the first pods of a network cost the node is not counted.
    round(subject, &fresh)?;
    let (mut alone, mut crowded) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        rounds(subject, &fresh, &mut alone)?;
        for (number, pod) in &present {
            subject.run("ADD", *number, pod)?;
        }
        rounds(subject, &fresh, &mut crowded)?;
        remove(subject, &present)?;
    }
    let (alone, crowded) = (median(alone), median(crowded));
    println!("{name:<24} none there {alone:>8.1}   {PRESENT} there {crowded:>8.1}   {:.2}x", crowded / alone);
    Ok(())
}

fn rounds(subject: &Subject, pods: &[(u16, Namespace)], times: &mut Vec<Duration>) -> anyhow::Result<()> {
    for _ in 0..ROUNDS {
        times.push(round(subject, pods)?);
    }
    Ok(())
}

fn round(subject: &Subject, pods: &[(u16, Namespace)]) -> anyhow::Result<Duration> {
    // As many at a time as a kubelet with that many processors would be waiting for, and more than enough.
    let start = Instant::now();
    in_parallel(8 * available_parallelism()?.get(), subject, "ADD", pods)?;
    let took = start.elapsed();
    remove(subject, pods)?;
    Ok(took)
}

/// Many at a time, for each waits for a grace period of the kernel.
fn remove(subject: &Subject, pods: &[(u16, Namespace)]) -> anyhow::Result<()> {
    in_parallel(64, subject, "DEL", pods)
}

fn in_parallel(
    workers: usize,
    subject: &Subject,
    verb: &str,
    pods: &[(u16, Namespace)],
) -> anyhow::Result<()> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..workers).map(|_| scope.spawn(|| work(subject, verb, pods, &next))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().ok().context("a worker ends")?)
    })
}
