//! One pod at a time: size, memory and VERSION; then ADD, CHECK and DEL of each network.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use harness::Namespace;

use super::{
    median, release,
    subject::{Network, Subject, VERBS, size},
    time,
};
use crate::process;

const ROUNDS: u8 = 40;
const VERSIONS: usize = 300;

/// Prints the tables.
pub(crate) fn run() -> anyhow::Result<()> {
    version()?;
    memory()?;
    let floor = Floor::new()?;
    // The quickest first, while there are few namespaces yet: these are kept until the end, for the kernel takes them
    // down in the background, and whoever is measured meanwhile would pay for it.
    let tables = [
        ("loopback", Network::Loopback, None),
        ("ptp + host-local (ipMasq)", Network::Ptp, None),
        ("bridge + host-local (ipMasq, hairpin, default route)", Network::Bridge, Some(&floor)),
        ("chain of bridge + host-local, portmap (one TCP port), bandwidth", Network::Chain, Some(&floor)),
    ];
    let mut pods = Vec::new();
    for (title, network, floor) in tables {
        verbs(title, network, floor, &mut pods)?;
    }
    Ok(())
}

fn version() -> anyhow::Result<()> {
    let plugin = release("fairlead-cni")?;
    let floor = release("floor")?;
    let mut ours = Vec::new();
    let mut empty = Vec::new();
    for _ in 0..VERSIONS {
        let mut call = Command::new(&plugin);
        call.arg("bridge").env_clear().env("CNI_COMMAND", "VERSION");
        ours.push(time(call.stdin(Stdio::null()).stdout(Stdio::null()))?);
        empty.push(time(Command::new(&floor).arg("nothing").env_clear().stdin(Stdio::null()))?);
    }
    let (ours, empty) = (median(ours), median(empty));
    let bytes = size(&plugin)?;
    println!("fairlead-cni, stripped, static     {:>8.2} MB", bytes as f64 / 1e6);
    println!("VERSION                            {ours:>8.2} ms");
    println!("an empty static program            {empty:>8.2} ms   VERSION is {:.2}x", ours / empty);
    Ok(())
}

/// The most memory that ADD of each plugin of the chain holds at once.
fn memory() -> anyhow::Result<()> {
    let subject = Subject::fairlead(Network::Chain)?;
    let pod = Namespace::new();
    for (index, plugin) in ["bridge", "portmap", "bandwidth"].into_iter().enumerate() {
        let peak = subject.peak(0, &pod, index)?;
        println!("most memory of ADD, {plugin:<14} {:>8.2} MB", peak as f64 * 1024.0 / 1e6);
    }
    subject.run("DEL", 0, &pod).map(drop)
}

fn verbs(
    title: &str,
    network: Network,
    floor: Option<&Floor>,
    kept: &mut Vec<Namespace>,
) -> anyhow::Result<()> {
    let subjects = Subject::all(network)?;
    // [subject][verb], the floor last.
    let count = subjects.len() + usize::from(floor.is_some());
    let mut times = vec![vec![Vec::<Duration>::new(); VERBS.len()]; count];
    let pods: Vec<Vec<Namespace>> =
        (0..ROUNDS).map(|_| times.iter().map(|_| Namespace::new()).collect()).collect();
    for (round, pods) in (0..ROUNDS).zip(&pods) {
        for (index, pod) in pods.iter().enumerate() {
            for (verb, name) in VERBS.iter().enumerate() {
                let took = match (subjects.get(index), floor) {
                    (Some(subject), _) => match subject.run(name, round.into(), pod) {
                        // Debian's portmap does not find what it has made itself, for want of IPv6 rules.
                        Err(_) if index > 0 && *name == "CHECK" => continue,
                        took => took?,
                    },
                    (None, Some(floor)) => floor.run(network, name, round + 2, pod)?,
                    (None, None) => continue,
                };
                // The first round makes the bridge and the tables: it is not counted.
                if round > 0 {
                    times[index][verb].push(took);
                }
            }
        }
    }
    println!("\n{title}, medians of {} pods, ms", ROUNDS - 1);
    report(&subjects, floor.is_some(), times);
    kept.extend(pods.into_iter().flatten());
    Ok(())
}

fn report(subjects: &[Subject], floor: bool, times: Vec<Vec<Vec<Duration>>>) {
    let names: Vec<&str> =
        subjects.iter().map(|subject| subject.name).chain(floor.then_some("floor")).collect();
    let medians: Vec<Vec<f64>> =
        times.into_iter().map(|verbs| verbs.into_iter().map(median).collect()).collect();
    println!("{:<8}{}", "", names.iter().map(|name| format!("{name:>12}")).collect::<String>());
    for (verb, name) in VERBS.iter().enumerate() {
        let row: String = medians.iter().map(|subject| format!("{:>12.2}", subject[verb])).collect();
        let ours = medians[0][verb];
        let mut ratios = Vec::new();
        if subjects.len() > 1 && medians[1][verb].is_nan() {
            ratios.push("the reference's own CHECK fails".to_owned());
        } else if subjects.len() > 1 {
            ratios.push(format!("{:.1}x the reference's speed", medians[1][verb] / ours));
        }
        if floor {
            ratios.push(format!("{:.2}x the floor's time", ours / medians[medians.len() - 1][verb]));
        }
        println!("{name:<8}{row}   {}", ratios.join(", "));
    }
}

/// The kernel's floor: benches/floor with its bridge and nft table.
struct Floor {
    program: std::path::PathBuf,
}

impl Floor {
    fn new() -> anyhow::Result<Self> {
        process::run(Command::new("ip").args(["link", "add", "floor", "up", "type", "bridge"]))?;
        process::run(Command::new("ip").args(["address", "add", "10.88.0.1/16", "dev", "floor"]))?;
        process::run(Command::new("nft").arg(
            "table inet floor { set floor { type ipv4_addr; }; \
             map hostports { type inet_proto . inet_service : ipv4_addr . inet_service; }; chain postrouting { \
             type nat hook postrouting priority 100; ip saddr @floor ip daddr != 10.88.0.0/16 masquerade; }; \
             chain prerouting { type nat hook prerouting priority -100; \
             fib daddr type local dnat ip to meta l4proto . th dport map @hostports; }; }",
        ))?;
        Ok(Self { program: release("floor")? })
    }

    fn run(&self, network: Network, verb: &str, number: u8, pod: &Namespace) -> anyhow::Result<Duration> {
        let words: &[&str] = match (network, verb) {
            (Network::Chain, "ADD") => &["add", "map-add", "shape-add"],
            (Network::Chain, "CHECK") => &["check", "map-check", "shape-check"],
            (Network::Chain, _) => &["held", "held", "chain-del"],
            (_, "ADD") => &["add"],
            (_, "CHECK") => &["check"],
            _ => &["del"],
        };
        let mut took = Duration::ZERO;
        for word in words {
            let mut command = Command::new(&self.program);
            command.arg(word).arg("floor").arg(pod.path()).arg(number.to_string());
            took += time(command.stdin(Stdio::null()))?;
        }
        Ok(took)
    }
}
