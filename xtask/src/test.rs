//! `cargo xtask test`: every test there is.
//!
//! The order is build, `cargo test`, then fuzz beside the virtual machine, for each of them keeps one processor busy. Tests make their own network namespaces, which
//! takes root; without it the whole run moves into a user namespace where we are root. At the end come the
//! tests that could not run, each with its reason: they are never counted as passed.

use std::{path::Path, process::Command};

use crate::{fuzz, packages, process, vm_test, workspace};

/// Seconds for each fuzz target: enough to run over the seeds and some way beyond.
const FUZZ_SECONDS: u32 = 10;

/// Tests that run at once, for each processor. Most of their time they wait for what other processes do.
const TESTS_A_PROCESSOR: usize = 2;

/// Runs them all; fails at the first suite that fails.
pub(crate) fn run() -> anyhow::Result<()> {
    for program in packages::install(packages::TESTS, true) {
        eprintln!("warning: {program} is missing: tests that need it will say \"not run\"");
    }
    let not_run = workspace::not_run_list();
    let _ = std::fs::remove_file(&not_run);
    // Fetched here, because a user namespace of our own has no way out.
    process::run(workspace::cargo().args(["fetch", "--locked"]))?;
    // With the tests' own dependencies: without them some libraries would be built twice, with features of either.
    process::run(workspace::cargo().args(["build", "--locked", "--workspace", "--all-targets"]))?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = TESTS_A_PROCESSOR * processors;
    process::run(
        as_root(&["test", "--locked", "--workspace", "--no-fail-fast"])?
            .env("PATH", process::path_with_system_directories())
            .env("FAIRLEAD_NOT_RUN", &not_run)
            .env("RUST_TEST_THREADS", threads.to_string()),
    )?;
    let fuzzed = std::thread::spawn(|| fuzz::run(FUZZ_SECONDS));
    let in_machine = vm_test::run("");
    let fuzzed = fuzzed.join().map_err(|_| anyhow::anyhow!("fuzzing ended by a panic"))?;
    fuzzed.and(in_machine)?;
    report(&not_run);
    Ok(())
}

/// `cargo WORDS`, as root: in a user namespace of our own if we are not.
fn as_root(words: &[&str]) -> anyhow::Result<Command> {
    if process::output(Command::new("id").arg("-u"))?.trim() == "0" {
        let mut cargo = workspace::cargo();
        cargo.args(words);
        return Ok(cargo);
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--", "sh", "-c"]);
    // Some tests talk to themselves over the loopback, which is down in a new namespace.
    command.args(["ip link set lo up; exec \"$@\"", "sh"]).arg(cargo).arg("--offline").args(words);
    command.current_dir(workspace::root());
    Ok(command)
}

fn report(not_run: &Path) {
    let lines = std::fs::read_to_string(not_run).unwrap_or_default();
    if !lines.is_empty() {
        println!("\nnot run here ({}):\n{lines}", lines.lines().count());
    }
}
