//! `cargo xtask bench`: ours, the reference plugins and the kernel's floor, side by side.
//!
//! Everything is measured in one run, the subjects in turn within each round, so that a slow minute of the
//! machine slows all of them alike; the figures are medians, and what counts is their ratio. A plugin call is
//! timed from starting its process to having waited for it, as a runtime feels it.
//!
//! [`run`] builds and moves into a network namespace of its own; [`inside`] measures there: [`plugins`] one
//! pod at a time, [`status`] how long a kubelet's question takes, [`burst`] fifty pods ten at a time, [`crowd`] a
//! hundred at once, [`cluster`] the demo and an idle agent, [`kubernetes`] an agent of a large Kubernetes, [`network`] nodes that join
//! and agents that die, [`tunnel`] packets between nodes, [`policy`] network policies.

mod burst;
mod cluster;
mod crowd;
mod kubernetes;
mod network;
mod plugins;
mod policy;
mod status;
mod subject;
mod tunnel;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Context;
use harness::Namespace;

use crate::{packages, process, workspace};

/// Measures something and prints it.
type Part = fn() -> anyhow::Result<()>;

/// The parts, by the names that they are asked for with.
const PARTS: [(&str, Part); 12] = [
    ("plugins", plugins::run),
    ("status", status::run),
    ("burst", burst::run),
    ("crowd", crowd::run),
    ("cluster", cluster::run),
    ("kubernetes", kubernetes::run),
    ("network", network::run),
    ("tunnel", tunnel::run),
    ("policy-wide", policy::wide),
    ("policy-deep", policy::deep),
    ("policy-packets", policy::packets),
    ("policy-attach", policy::attach),
];

/// Builds what is measured, then runs [`inside`] in a fresh network namespace.
pub(crate) fn run(part: &str) -> anyhow::Result<()> {
    let names = PARTS.map(|(name, _)| name);
    anyhow::ensure!(
        names.iter().any(|name| name.contains(part)),
        "there is no part {part:?} to measure; the parts are {}",
        names.join(", ")
    );
    packages::install(packages::TESTS, true);
    for package in ["cli", "plugins", "floor"] {
        process::run(workspace::cargo().args([
            "build",
            "--locked",
            "--release",
            "--quiet",
            "--package",
            package,
        ]))?;
    }
    let program = std::env::current_exe().context("finding our own program")?;
    let mut unshare = Command::new("unshare");
    if process::output(Command::new("id").arg("-u"))?.trim() != "0" {
        unshare.args(["--user", "--map-root-user"]);
    }
    process::run(unshare.args(["--net", "--"]).arg(program).args(["bench", "inside", part]))
}

/// Measures; the namespace is ours alone.
pub(crate) fn inside(part: &str) -> anyhow::Result<()> {
    process::run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    PARTS.iter().filter(|(name, _)| name.contains(part)).try_for_each(|(_, measure)| measure())
}

/// A program of the release build.
pub(crate) fn release(name: &str) -> anyhow::Result<PathBuf> {
    let triple = process::output(Command::new("rustc").args(["--print", "host-tuple"]))?;
    Ok(workspace::root().join("target").join(triple.trim()).join("release").join(name))
}

/// The command of node `name`'s agent, with the files it has of its own, its configuration among them, in `directory`.
pub(crate) fn agent(netns: &Namespace, name: &str, store: &str, directory: &Path) -> anyhow::Result<Command> {
    let mut command = netns.command(release("fairlead")?);
    command.args(["agent", "--node", name, "--store", store]);
    for (option, file) in [
        ("--config", "config.yaml"),
        ("--state-dir", "run"),
        ("--conf-dir", "net.d"),
        ("--ipam-dir", "networks"),
    ] {
        command.arg(option).arg(directory.join(file));
    }
    Ok(command)
}

/// Writes a file of a store's directory that nobody sees half.
pub(crate) fn put(folder: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let half = folder.join(format!(".{name}.half"));
    std::fs::write(&half, text)?;
    Ok(std::fs::rename(half, folder.join(name))?)
}

/// How long a command takes from start to end; it must succeed.
pub(crate) fn time(command: &mut Command) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    let took = start.elapsed();
    anyhow::ensure!(status.success(), "{command:?} ended with {status}");
    Ok(took)
}

/// The middle one of some figures.
pub(crate) fn middle(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The middle value in milliseconds.
pub(crate) fn median(values: Vec<Duration>) -> f64 {
    middle(values.iter().map(|value| value.as_secs_f64() * 1000.0))
}
