//! `cargo xtask test`: every test there is.
//!
//! The order is build, the test programs ([`suites`]), then fuzz beside the virtual machine, for each of them keeps one
//! processor busy. Tests make their own network namespaces, which takes root; without it each program runs in a user
//! namespace where it is root. At the end come the tests that could not run, each with its reason: they are never counted
//! as passed.

use std::path::Path;
use std::process::Command;

use crate::{fuzz, packages, process, suites, vm_test, workspace};

/// Seconds for each fuzz target: enough to run over the seeds and some way beyond.
const FUZZ_SECONDS: u32 = 10;

/// Tests of one program that run at once. Most of their time they wait for what other processes do.
const TESTS_A_PROGRAM: usize = 3;

/// Seconds that a test waits for what must come. A machine that has just built everything may keep its disk to itself for more
/// than a minute.
const PATIENCE: u32 = 180;

/// Runs them all, whichever fail: one run tells everything.
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
    // What the build wrote, and what it replaced, is done with before programs begin that wait for the disk themselves.
    process::run(&mut Command::new("sync"))?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let environment = [
        ("PATH", process::path_with_system_directories()),
        ("FAIRLEAD_NOT_RUN", not_run.clone().into_os_string()),
        ("RUST_TEST_THREADS", TESTS_A_PROGRAM.to_string().into()),
        ("FAIRLEAD_PATIENCE", PATIENCE.to_string().into()),
    ];
    let tested = suites::run(processors, &environment);
    let fuzzed = std::thread::spawn(|| fuzz::run(FUZZ_SECONDS));
    let in_machine = vm_test::run("");
    let fuzzed = fuzzed.join().map_err(|_| anyhow::anyhow!("fuzzing ended by a panic"))?;
    report(&not_run);
    tested.and(fuzzed).and(in_machine)
}

fn report(not_run: &Path) {
    let lines = std::fs::read_to_string(not_run).unwrap_or_default();
    if !lines.is_empty() {
        println!("\nnot run here ({}):\n{lines}", lines.lines().count());
    }
}
