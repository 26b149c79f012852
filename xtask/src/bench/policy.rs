//! What network policies cost: a node, in time and memory, and packets, where there are ten thousand and where there are none.
//!
//! Read [`scale`]. Clusters are those of `burner.rs`. A change is timed from the moment its file begins to be written to the
//! store to the moment the kernel says that the table is another one ([`witness`]), so the store's reading is part of it.
//! Beside it stands what the common way costs, on the same machine and in the same form: every rule of the node made anew for
//! each change.

mod burner;
mod packets;
mod witness;

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use harness::eventually;
use serde_json::Value;

use self::burner::{Burner, Node};
use self::witness::Witness;
use super::{cluster::memory, median, release};

/// How often each kind of change is made.
const CHANGES: usize = 21;

pub(crate) use packets::{attach, run as packets};

/// Many policies, each about a few pods.
pub(crate) fn wide() -> anyhow::Result<()> {
    println!("\nnetwork policies: 10,000 of 1,000 namespaces, 20,000 pods, 100 of them here");
    scale(&Burner::wide()?, "1.0 s")
}

/// Many policies, each about every pod here.
pub(crate) fn deep() -> anyhow::Result<()> {
    println!("\nnetwork policies: 1,000 of one namespace, each about all 300 pods here, 20,000 pods");
    scale(&Burner::deep()?, "2.0 s")
}

/// An agent's start in that cluster, then changes one after the other.
fn scale(cluster: &Burner, goal: &str) -> anyhow::Result<()> {
    let node = Node::new(cluster.store(), "node1", "")?;
    let start = Instant::now();
    node.start()?;
    await_enforced(&node);
    let enforced = start.elapsed();
    let row =
        |what: &str, value: f64, unit: &str, rest: &str| println!("{what:<58}{value:>8.2} {unit:<4}{rest}");
    row("an agent's start to all of it in the kernel", enforced.as_secs_f64(), "s", "");
    let programmed = programming(&node)?;
    row("  of that from the store's last word on", programmed.as_secs_f64(), "s", &format!("<= {goal}"));
    let process = node.process()?;
    let [resident, own] = [memory(process, "VmRSS")?, memory(process, "RssAnon")?];
    row("  resident then", resident, "MB", &format!("<= 60 MB   {own:.1} MB its own"));
    for (what, changes) in cluster.changes(CHANGES)? {
        let mut took = Vec::new();
        for change in changes {
            let witness = Witness::listen(&node.netns)?;
            // Before it is written: the agent may be done before the writer runs on.
            let put = Instant::now();
            cluster.put(&change)?;
            took.push(witness.heard()?.saturating_duration_since(put));
        }
        let worst = took.iter().max().copied().unwrap_or_default();
        let row_of = format!("  {what}, median of {}", took.len());
        let worst = format!("<= 5 ms, 20 ms   {:.1} ms at worst", worst.as_secs_f64() * 1000.0);
        row(&row_of, median(took), "ms", &worst);
    }
    ensure!(status(&node).is_some_and(|policy| policy["failures"] == 0), "the kernel refused something");
    rebuilt(&node, &row)?;
    let [resident, own] = [memory(process, "VmRSS")?, memory(process, "RssAnon")?];
    row("  resident in the end", resident, "MB", &format!("<= 60 MB   {own:.1} MB its own"));
    Ok(())
}

/// The same table flushed and made again by `nft`, as those do who make every rule anew for each change.
fn rebuilt(node: &Node, row: &dyn Fn(&str, f64, &str, &str)) -> anyhow::Result<()> {
    let table = harness::run_ok(node.netns.command("nft").args(["list", "table", "inet", "fairlead_policy"]));
    let copy = harness::Namespace::with_loopback();
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("table.nft");
    std::fs::write(&file, format!("table inet fairlead_policy\ndelete table inet fairlead_policy\n{table}"))?;
    let load = || super::time(copy.command("nft").arg("-f").arg(&file));
    load()?;
    let again: Vec<Duration> = (0..3).map(|_| load()).collect::<Result<_, _>>()?;
    row("  for comparison: all rules anew by `nft`, for any change", median(again), "ms", "");
    Ok(())
}

/// What the agent says of policies.
fn status(node: &Node) -> Option<Value> {
    let mut command = Command::new(release("fairlead").ok()?);
    command.args(["status", "-o", "json", "--state-dir"]).arg(node.state_dir());
    let mut status: Value = serde_json::from_slice(&command.output().ok()?.stdout).ok()?;
    Some(status["policies"].take())
}

/// Waits until all is in the kernel.
fn await_enforced(node: &Node) {
    eventually("every policy is in the kernel", || {
        let policy = status(node)?;
        (policy["enforced"] == true && policy["generation"] == policy["programmed"]).then_some(())
    });
}

/// How long the first programming took.
fn programming(node: &Node) -> anyhow::Result<Duration> {
    let policy = status(node).context("the agent answers")?;
    Ok(Duration::from_micros(policy["lastChange"]["took"].as_u64().context("it has programmed something")?))
}
