//! How long it takes until what somebody takes away or alters by hand is back: see [`healed`].
//!
//! The clock starts when the tool that did it has ended, and stops when other tools show the node's network as it was before. They
//! are asked again and again, so their own time, a few milliseconds, is in each figure.

use std::time::{Duration, Instant};

use anyhow::Context;
use harness::{Namespace, run, run_ok};

use super::rig::{Node, Rig};
use super::spin;
use crate::bench::median;

const NODES: usize = 3;
const ROUNDS: usize = 7;
const PAUSE: Duration = Duration::from_millis(500);
/// Everything of the agent's in the kernel, but the index of its device, which the kernel gives.
const ALL: [&str; 8] = [
    "ip -4 route show proto 70",
    "ip -6 route show proto 70",
    "ip neigh show nud permanent",
    "bridge fdb show dev fairlead0",
    "ip -br address show dev fairlead0 scope global",
    "nft list ruleset",
    "cat /proc/sys/net/ipv4/ip_forward",
    "cat /proc/sys/net/ipv4/conf/fairlead0/rp_filter",
];

/// What is done to a node, and how.
const DAMAGES: [(&str, &str); 8] = [
    ("a route", "ip route del 10.0.2.0/24"),
    ("all routes", "ip route flush proto 70"),
    ("neighbours", "ip neigh flush nud permanent dev fairlead0"),
    ("forwarding entries", "bridge fdb flush dev fairlead0"),
    ("the tunnel's addresses", "ip address flush dev fairlead0"),
    ("the tunnel's device", "ip link del fairlead0"),
    ("the agent's nf_tables", "nft flush ruleset"),
    ("forwarding, switched off", "sysctl -q -w net.ipv4.ip_forward=0"),
];

/// Prints the time for each, of a node with peers over VXLAN.
pub(super) fn healed() -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    for number in 1..=NODES {
        rig.add(number)?.start()?;
    }
    rig.nodes.iter().try_for_each(|node| node.await_programmed(NODES - 1))?;
    let node = rig.nodes.first().context("there are nodes")?;
    for (what, command) in DAMAGES {
        let all: Vec<Duration> = (0..ROUNDS).map(|_| heal(node, command)).collect();
        let worst = all.iter().max().copied().unwrap_or_default();
        println!(
            "{what:<58}{:>8.0} ms   <= 1 s   {:.0} ms at worst",
            median(all),
            worst.as_secs_f64() * 1000.0
        );
    }
    Ok(())
}

fn heal(node: &Node, command: &str) -> Duration {
    // Who undoes its work forty times in two seconds the agent takes for a program to quarrel with, and answers slowly.
    std::thread::sleep(PAUSE);
    let was = spin("the node's network is whole", || network(&node.netns));
    tool(&node.netns, command, run_ok);
    let damaged = Instant::now();
    spin(&format!("mended after {command:?}"), || network(&node.netns).filter(|is| *is == was));
    damaged.elapsed()
}

/// The agent's part of it; none while a tool does not find what it is to show, or addresses are not in force.
fn network(netns: &Namespace) -> Option<Vec<String>> {
    let mut lines = Vec::new();
    for command in ALL {
        let shown = tool(netns, command, run);
        lines.extend(
            shown.status.success().then(|| String::from_utf8(shown.stdout).ok())??.lines().map(str::to_owned),
        );
    }
    lines.sort();
    Some(lines)
}

fn tool<T>(netns: &Namespace, command: &str, how: impl FnOnce(&mut std::process::Command) -> T) -> T {
    let (program, words) = command.split_once(' ').unwrap_or((command, ""));
    how(netns.command(program).args(words.split_whitespace()))
}
