//! A burst: fifty pods on one node, ten at a time, as a node that restarts feels it.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use anyhow::{Context, ensure};
use harness::Namespace;

use super::subject::{Network, Subject};

const PODS: u16 = 50;
const AT_A_TIME: usize = 10;

/// Prints pods a second for each, and fails when an address was given twice.
pub(crate) fn run() -> anyhow::Result<()> {
    println!("\na burst of {PODS} pods, {AT_A_TIME} at a time");
    let ours = burst(&Subject::fairlead(Network::Bridge)?)?;
    println!("fairlead   {ours:>8.1} pods/s");
    if let Some(reference) = Subject::reference(Network::Bridge)? {
        let theirs = burst(&reference)?;
        println!("reference  {theirs:>8.1} pods/s   fairlead is {:.1}x", ours / theirs);
    }
    Ok(())
}

fn burst(subject: &Subject) -> anyhow::Result<f64> {
    let pods: Vec<(u16, Namespace)> = (1..=PODS).map(|number| (number, Namespace::new())).collect();
    // The bridge is there before, as on any node that already has a pod.
    let first = Namespace::new();
    subject.run("ADD", 0, &first)?;
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..AT_A_TIME).map(|_| scope.spawn(|| work(subject, "ADD", &pods, &next))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().ok().context("a worker ends")?)
    })?;
    let rate = f64::from(PODS) / start.elapsed().as_secs_f64();
    let mut given = BTreeSet::new();
    for (number, _) in &pods {
        for address in subject.addresses(*number)? {
            ensure!(given.insert(address.clone()), "{}: {address} was given twice", subject.name);
        }
    }
    for (number, pod) in pods.iter().chain([&(0, first)]) {
        subject.run("DEL", *number, pod)?;
    }
    Ok(rate)
}

/// Takes the next pod as long as there is one.
pub(crate) fn work(
    subject: &Subject,
    verb: &str,
    pods: &[(u16, Namespace)],
    next: &AtomicUsize,
) -> anyhow::Result<()> {
    while let Some((number, pod)) = pods.get(next.fetch_add(1, Ordering::Relaxed)) {
        subject.run(verb, *number, pod)?;
    }
    Ok(())
}
