//! One pod at a time: size, VERSION, and ADD, CHECK and DEL of bridge + host-local.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use harness::Namespace;

use super::{
    median, release,
    subject::{Subject, size},
    time,
};
use crate::process;

const ROUNDS: u8 = 40;
const VERSIONS: usize = 300;
const VERBS: [&str; 3] = ["ADD", "CHECK", "DEL"];

/// Prints both tables.
pub(crate) fn run() -> anyhow::Result<()> {
    version()?;
    verbs()
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

fn verbs() -> anyhow::Result<()> {
    let mut subjects = vec![Subject::fairlead()?];
    match Subject::reference()? {
        Some(reference) => subjects.push(reference),
        None => println!("reference plugins: not run, because containernetworking-plugins is not installed"),
    }
    let floor = Floor::new()?;
    // [subject][verb], the floor last.
    let mut times = vec![vec![Vec::<Duration>::new(); VERBS.len()]; subjects.len() + 1];
    // All made before and dropped after: the kernel takes a namespace down in the background, and whoever is
    // measured meanwhile would pay for it.
    let pods: Vec<Vec<Namespace>> =
        (0..ROUNDS).map(|_| times.iter().map(|_| Namespace::new()).collect()).collect();
    for (round, pods) in (0..ROUNDS).zip(&pods) {
        for (index, subject) in subjects.iter().enumerate() {
            let pod = &pods[index];
            let container = format!("pod{round}");
            for (verb, name) in VERBS.iter().enumerate() {
                let took = time(&mut subject.call(name, &container, pod)?)?;
                // The first round makes the bridge and the tables: it is not counted.
                if round > 0 {
                    times[index][verb].push(took);
                }
            }
        }
        let pod = &pods[subjects.len()];
        for (verb, name) in VERBS.iter().enumerate() {
            let took = floor.call(name, round + 2, pod)?;
            if round > 0 {
                times[subjects.len()][verb].push(took);
            }
        }
    }
    report(&subjects, times);
    Ok(())
}

fn report(subjects: &[Subject], times: Vec<Vec<Vec<Duration>>>) {
    println!("\nbridge + host-local (ipMasq, hairpin, default route), medians of {} pods, ms", ROUNDS - 1);
    let names: Vec<&str> = subjects.iter().map(|subject| subject.name).chain(["floor"]).collect();
    let medians: Vec<Vec<f64>> =
        times.into_iter().map(|verbs| verbs.into_iter().map(median).collect()).collect();
    println!("{:<8}{}", "", names.iter().map(|name| format!("{name:>12}")).collect::<String>());
    for (verb, name) in VERBS.iter().enumerate() {
        let row: String = medians.iter().map(|subject| format!("{:>12.2}", subject[verb])).collect();
        let ours = medians[0][verb];
        let to_floor = ours / medians[medians.len() - 1][verb];
        let to_reference = if medians.len() > 2 { medians[1][verb] / ours } else { f64::NAN };
        println!(
            "{name:<8}{row}   {to_reference:.1}x the reference's speed, {to_floor:.2}x the floor's time"
        );
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
            "table inet floor { set floor { type ipv4_addr; }; chain postrouting { \
             type nat hook postrouting priority 100; ip saddr @floor ip daddr != 10.88.0.0/16 masquerade; }; }",
        ))?;
        Ok(Self { program: release("floor")? })
    }

    fn call(&self, verb: &str, number: u8, pod: &Namespace) -> anyhow::Result<Duration> {
        let mut command = Command::new(&self.program);
        command.arg(verb.to_lowercase()).arg("floor").arg(pod.path()).arg(number.to_string());
        time(command.stdin(Stdio::null()))
    }
}
