//! A crowd: a hundred pods in parallel on a node that has none, and on one that has a thousand.
//!
//! Of the routed network, whose pods cost the host a route each; and of ptp, where each also puts the one gateway address
//! on one more link, which the kernel keeps in a list. Not of a bridge: it takes 1,023 ports, and each costs the next.

use std::{
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

const PODS: u16 = 100;
const PRESENT: u16 = 1000;
const ROUNDS: usize = 5;

/// Prints both times and their ratio, for each network.
pub(crate) fn run() -> anyhow::Result<()> {
    println!("\n{PODS} pods in parallel, medians of {ROUNDS} rounds, ms");
    crowd("fairlead", &Subject::fairlead(Network::Routed)?)?;
    crowd("ptp", &Subject::fairlead(Network::Ptp)?)
}

fn crowd(name: &str, subject: &Subject) -> anyhow::Result<()> {
    let present: Vec<(u16, Namespace)> = (1..=PRESENT).map(|number| (number, Namespace::new())).collect();
    let fresh: Vec<(u16, Namespace)> =
        (PRESENT + 1..=PRESENT + PODS).map(|number| (number, Namespace::new())).collect();
    let alone = rounds(subject, &fresh)?;
    for (number, pod) in &present {
        subject.run("ADD", *number, pod)?;
    }
    let crowded = rounds(subject, &fresh)?;
    println!("{name:<10} none there {alone:>8.1}   {PRESENT} there {crowded:>8.1}   {:.2}x", crowded / alone);
    for (number, pod) in &present {
        subject.run("DEL", *number, pod)?;
    }
    Ok(())
}

fn rounds(subject: &Subject, pods: &[(u16, Namespace)]) -> anyhow::Result<f64> {
    let times: anyhow::Result<Vec<Duration>> = (0..ROUNDS).map(|_| round(subject, pods)).collect();
    Ok(median(times?))
}

fn round(subject: &Subject, pods: &[(u16, Namespace)]) -> anyhow::Result<Duration> {
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    // As many at a time as a kubelet with that many processors would be waiting for, and more than enough.
    let workers = 8 * available_parallelism()?.get();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(|| work(subject, pods, &next))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().ok().context("a worker ends")?)
    })?;
    let took = start.elapsed();
    for (number, pod) in pods {
        subject.run("DEL", *number, pod)?;
    }
    Ok(took)
}
