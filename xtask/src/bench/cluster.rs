//! The demo from start to last line, and an agent of a lab at rest: memory and processor time.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Context;
use serde_json::Value;

use super::{median, release, time};
use crate::process;

const DEMOS: usize = 5;
const REST: Duration = Duration::from_secs(10);

/// Prints the demo's time and what a resting agent costs.
pub(crate) fn run() -> anyhow::Result<()> {
    let program = release("fairlead")?;
    let mut demos = Vec::new();
    for _ in 0..DEMOS {
        let mut demo = Command::new(&program);
        demo.args(["lab", "demo"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        demos.push(time(&mut demo)?);
    }
    println!("\nlab demo, start to last line, median of {DEMOS}   {:>6.2} s", median(demos) / 1000.0);
    let lab = |words: &[&str]| {
        process::output(Command::new(&program).arg("lab").args(words).args(["--name", "bench"]))
    };
    lab(&["up", "--nodes", "3"])?;
    let measured = at_rest(&lab(&["list", "-o", "json"])?);
    lab(&["down"])?;
    measured
}

fn at_rest(list: &str) -> anyhow::Result<()> {
    let list: Value = serde_json::from_str(list).context("decoding lab list")?;
    let list = list.as_array().and_then(|labs| labs.first()).unwrap_or(&list);
    for node in list["nodes"].as_array().context("nodes in lab list")? {
        let process = node["agentPid"].as_u64().context("agentPid in lab list")?;
        let before = ticks(process)?;
        // The one place where time passing is what is measured.
        std::thread::sleep(REST);
        println!(
            "agent of {} at rest: {:.1} MB resident, {} ms of processor in {} s",
            node["name"].as_str().unwrap_or_default(),
            memory(process, "VmRSS")?,
            (ticks(process)? - before) * 10,
            REST.as_secs()
        );
    }
    Ok(())
}

/// Memory in MB, a million bytes each: the line of /proc/PID/status that begins with `name`, such as `VmRSS`.
pub(super) fn memory(process: u64, name: &str) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let line = line.with_context(|| format!("{name} in status"))?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    // The kernel's kB have 1,024 bytes.
    Ok(kilobytes * 1024.0 / 1e6)
}

/// User and system time in clock ticks (10 ms), from /proc/PID/stat.
pub(super) fn ticks(process: u64) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, rest) = text.rsplit_once(") ").context("the end of the name in stat")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}
