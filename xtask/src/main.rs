//! The task runner: one word per chore, the same words here and in CI.
//!
//! Read [`run`] first: it lists every task. A task is a file of its own that says what it does and why.
//! Tasks find the workspace by themselves, so they can be started from any folder of it.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a task runner talks to a person and starts programs; no product code is here"
)]

mod bench;
mod budgets;
mod e2e;
mod floors;
mod fuzz;
mod licences;
mod lint;
mod manifests;
mod packages;
mod process;
mod suites;
mod test;
mod vm_test;
mod workspace;

use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask TASK

  lint       format, clippy, floors, budgets, licences, manifests, documentation: all without warnings
  test       every test; installs the Debian packages it needs; then fuzz and vm-test, bounded
  floors     only: which crate may lean on which
  manifests  write deploy/fairlead.yaml and the templates of the chart, which are made of deploy/kubernetes
  fuzz [S]   each parser for S seconds (15)
  vm-test [S] the tests whose kernel features this machine lacks, on Debian's cloud kernel in QEMU;
             only the suites whose names contain S
  bench [S]  ours, the reference's and the kernel's floor, side by side; only the parts whose names contain S:
             plugins, status, burst, crowd, cluster, kubernetes, network, tunnel, policy-wide, policy-deep, policy-packets,
             policy-attach
  e2e [S]    a real Kubernetes on this machine with Fairlead installed from deploy/; only the parts whose names contain S:
             install, pods, outages, conformance, policies, cluster-policies, allocation, uninstall
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["lint"] => lint::run(),
        ["test"] => test::run(),
        ["floors"] => floors::run(),
        ["manifests"] => manifests::write(),
        ["fuzz"] => fuzz::run(15),
        ["fuzz", seconds] => fuzz::run(seconds.parse()?),
        ["vm-test"] => vm_test::run(""),
        ["vm-test", part] => vm_test::run(part),
        ["bench"] => bench::run(""),
        ["bench", part] => bench::run(part),
        ["e2e"] => e2e::run(""),
        ["e2e", part] => e2e::run(part),
        ["bench", "inside", part] => bench::inside(part),
        _ => {
            eprint!("{USAGE}");
            std::process::exit(2);
        }
    }
}
