//! What holds nodes together: how soon a node that joins is reached, how long thousands of peers take to be programmed and
//! one of them to be changed, how soon what somebody takes away is back ([`healing`]), and what an agent that is killed costs.
//!
//! Read [`run`]. Nodes are namespaces on one bridge ([`rig`]), each with an agent of the release build; other machines'
//! agents are stood in for by the files that they would write into the store. How fast packets travel is the bench `tunnel`.

mod healing;
mod rig;

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use harness::{Namespace, eventually};
use serde_json::Value;

use self::rig::{Node, Rig, peer_cidr};
use super::{cluster::memory, median, release};
use crate::process;

/// Nodes that are there when another one joins.
const JOINED: usize = 5;
const JOINS: usize = 5;
const CHANGES: usize = 21;
/// Packets a second of the witness of a killed agent, and for how long.
const PACKETS: usize = 1000;
const SECONDS: usize = 6;

/// Prints all of it, with the goals beside.
pub(crate) fn run() -> anyhow::Result<()> {
    println!("\n{:<58}           goal", "nodes that join");
    join()?;
    peers(1000, "0.5 s", "15 MB")?;
    peers(5000, "2.0 s", "30 MB")?;
    println!("\nwhat is taken away by hand: until all is as it was");
    healing::healed()?;
    println!("\nagents killed -9 twice, {PACKETS} packets a second each way for {SECONDS} s: packets lost");
    for backend in ["vxlan", "host-gw", "ipip", "udp", "wireguard"] {
        killed(backend)?;
    }
    Ok(())
}

/// From a node's lease to the first answer of its pod, at the last of the others that gets one.
fn join() -> anyhow::Result<()> {
    let mut all = Vec::new();
    for _ in 0..JOINS {
        let mut rig = Rig::new()?;
        for number in 1..=JOINED {
            rig.add(number)?.start()?;
        }
        rig.nodes.iter().try_for_each(|node| node.await_programmed(JOINED - 1))?;
        let late = JOINED + 1;
        let pod = rig.add(late)?.add_pod();
        let mut witnesses = Vec::new();
        for node in rig.nodes.iter().take(JOINED) {
            let own = node.add_pod();
            let mut ping = node.netns.command("ping");
            ping.args(["-n", "-i", "0.005", "-W", "1", "-I", &own, &pod]);
            witnesses.push(Witness::start(&mut ping, "bytes from")?);
        }
        rig.nodes.last().context("the node that joins")?.start()?;
        let lease = rig.lease(late);
        let published = spin("the node publishes its lease", || lease.exists().then(Instant::now));
        let answers: Vec<Instant> = witnesses.into_iter().map(Witness::first).collect::<Result<_, _>>()?;
        let last = answers.into_iter().max().context("somebody asks")?;
        all.push(last.saturating_duration_since(published));
    }
    let worst = all.iter().max().copied().unwrap_or_default();
    let row = format!("its lease to its pod's answer at each of {JOINED}, median of {JOINS}");
    println!(
        "{row:<58}{:>8.0} ms   <= 200 ms   {:.0} ms at worst",
        median(all),
        worst.as_secs_f64() * 1000.0
    );
    Ok(())
}

/// Starts an agent in a cluster of `count` other nodes, then changes one after the other of them.
fn peers(count: usize, goal: &str, memory_goal: &str) -> anyhow::Result<()> {
    let mut rig = Rig::new()?;
    rig.put_peers(count)?;
    rig.add(1)?;
    let node = rig.nodes.last().context("the node was added")?;
    let start = Instant::now();
    node.start()?;
    // Until then it is not asked, which would keep it from work.
    let programmed = node.await_said("the node can carry pods");
    node.await_programmed(count)?;
    let routes = node.netns.ip("route show proto 70");
    let routes = routes.lines().filter(|route| route.contains(" via ")).count();
    ensure!(routes == count, "the agent says that it is done, and there are {routes} routes to peers");
    println!(
        "{:<58}{:>8.2} s    <= {goal}",
        format!("an agent's start to {count} peers programmed, both families"),
        (programmed - start).as_secs_f64()
    );
    let process = node.process()?;
    println!(
        "{:<58}{:>8.1} MB   <= {memory_goal}   {:.1} MB its own, {:.1} MB at most",
        "  resident then",
        memory(process, "VmRSS")?,
        memory(process, "RssAnon")?,
        memory(process, "VmHWM")?
    );
    let mut changes = Vec::new();
    for number in 0..CHANGES {
        let cidr = peer_cidr(count + number);
        let mut monitor = node.netns.command("ip");
        let witness = Witness::start(monitor.args(["monitor", "route"]), &cidr)?;
        let witness = listening(&node.netns, witness)?;
        rig.put_peer(number, count + number)?;
        let put = Instant::now();
        changes.push(witness.first()?.saturating_duration_since(put));
    }
    let worst = changes.iter().max().copied().unwrap_or_default();
    println!(
        "{:<58}{:>8.1} ms   <= 20 ms   {:.1} ms at worst",
        format!("  a peer's change to its route, median of {CHANGES}"),
        median(changes),
        worst.as_secs_f64() * 1000.0
    );
    Ok(())
}

/// The same witness once it listens: until then it would not hear what is done.
fn listening(netns: &Namespace, witness: Witness) -> anyhow::Result<Witness> {
    let is_heard = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_heard.load(Ordering::Acquire) {
                netns.ip("route add 192.0.2.0/24 dev lo");
                netns.ip("route del 192.0.2.0/24 dev lo");
            }
        });
        let heard = witness.heard("192.0.2.0/24");
        is_heard.store(true, Ordering::Release);
        heard
    })
}

/// A pod of one node asks one of the other, while the agents of both are killed. The lab starts them again.
fn killed(backend: &str) -> anyhow::Result<()> {
    let program = release("fairlead")?;
    let lab = |words: &[&str]| {
        process::output(Command::new(&program).arg("lab").args(words).args(["--name", "bench"]))
    };
    let pods = tempfile::Builder::new().prefix("pods").suffix(".yaml").tempfile()?;
    std::fs::write(pods.path(), [rig::pod(1), rig::pod(2)].concat())?;
    let from = pods.path().to_str().context("a path of the temporary directory is text")?;
    lab(&["up", "--nodes", "2", "--backend", backend, "--from", from])?;
    let outcome = lose(&lab).with_context(|| format!("killing agents with backend {backend}"));
    lab(&["down"])?;
    println!("{backend:<58}{}", outcome?);
    Ok(())
}

/// How many packets were lost, as text.
fn lose(lab: &dyn Fn(&[&str]) -> anyhow::Result<String>) -> anyhow::Result<String> {
    let list = listed(lab)?;
    let pod = |index: usize, key: &str| list["pods"][index][key].clone();
    let count = PACKETS * SECONDS;
    let mut pings = Vec::new();
    for (from, to) in [(0, 1), (1, 0)] {
        let netns = pod(from, "netns");
        let mut ping = Command::new("nsenter");
        ping.arg(format!("--net={}", netns.as_str().context("a pod's netns")?)).args(["--", "ping"]);
        let address = pod(to, "addresses")[0].clone();
        let interval = (1.0 / PACKETS as f64).to_string();
        ping.args(["-n", "-q", "-i", &interval, "-c", &count.to_string(), "-W", "1"]);
        ping.arg(address.as_str().context("a pod's address")?);
        pings.push(ping.stdout(Stdio::piped()).spawn().context("starting ping")?);
    }
    for node in 0..2 {
        // The witness looks on for a while before, between and after.
        std::thread::sleep(Duration::from_secs(SECONDS as u64 / 3));
        let agent = listed(lab)?["nodes"][node]["agentPid"].as_u64().context("agentPid in lab list")?;
        process::run(Command::new("kill").args(["-9", &agent.to_string()]))?;
    }
    let mut lost = Vec::new();
    for ping in pings {
        let said = String::from_utf8(ping.wait_with_output()?.stdout)?;
        let (received, _) = said.split_once(" received").context("ping counts what it received")?;
        let received = received.rsplit(' ').next().unwrap_or_default().parse::<usize>()?;
        lost.push(format!("{:>5} of {count}", count - received));
    }
    Ok(lost.join(", "))
}

fn listed(lab: &dyn Fn(&[&str]) -> anyhow::Result<String>) -> anyhow::Result<Value> {
    serde_json::from_str(&lab(&["list", "-o", "json"])?).context("decoding lab list")
}

/// A program that says a line when something happens.
struct Witness {
    process: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    awaited: String,
}

impl Witness {
    fn start(command: &mut Command, awaited: &str) -> anyhow::Result<Self> {
        let mut process =
            command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("starting a witness")?;
        let lines = BufReader::new(process.stdout.take().context("a witness's output")?).lines();
        Ok(Self { process, lines, awaited: awaited.to_owned() })
    }

    /// Reads until it has said something else.
    fn heard(mut self, other: &str) -> anyhow::Result<Self> {
        self.until(other)?;
        Ok(self)
    }

    /// When it said what is awaited for the first time, if that is asked before it is said.
    fn first(mut self) -> anyhow::Result<Instant> {
        let awaited = self.awaited.clone();
        self.until(&awaited)
    }

    fn until(&mut self, awaited: &str) -> anyhow::Result<Instant> {
        let line = self.lines.by_ref().map_while(Result::ok).find(|line| line.contains(awaited));
        line.map(|_| Instant::now()).with_context(|| format!("a witness ended before it said {awaited}"))
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// As [`eventually`], without pauses that would be part of what is measured.
fn spin<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_millis(20);
    loop {
        match probe() {
            Some(found) => return found,
            None if Instant::now() < deadline => std::thread::yield_now(),
            None => std::thread::sleep(Duration::from_micros(200)),
        }
        assert!(Instant::now() < deadline + Duration::from_secs(60), "not within 60 s: {what}");
    }
}

impl Node {
    /// When its agent has said this.
    fn await_said(&self, what: &str) -> Instant {
        spin(&format!("the agent says {what:?}"), || self.log().contains(what).then(Instant::now))
    }

    /// Waits until the agent says that so many peers are programmed.
    fn await_programmed(&self, count: usize) -> anyhow::Result<()> {
        let program = release("fairlead")?;
        eventually("every peer is programmed", || {
            let mut command = Command::new(&program);
            command.args(["status", "-o", "json", "--state-dir"]).arg(self.state_dir());
            let status: Value = serde_json::from_slice(&command.output().ok()?.stdout).ok()?;
            let programmed = status["peers"].as_array()?.iter().filter(|peer| peer["state"] == "programmed");
            (status["ready"] == true && programmed.count() == count).then_some(())
        });
        Ok(())
    }
}
