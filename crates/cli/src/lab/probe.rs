//! `fairlead lab probe`.

use std::process::ExitCode;

use ::lab::Lab;
use anyhow::{Result, bail};
use clap::Args;

use super::{NameOption, report};
use crate::output::OutputOption;
use crate::progress::Show;

/// Try every pod from every other, and throughput across nodes; fails when a pod is not reached
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fairlead lab probe -o json")]
pub(crate) struct Arguments {
    #[command(flatten)]
    name: NameOption,
    /// Milliseconds to spend on throughput in all; 0 leaves it out
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    throughput: u64,
    #[command(flatten)]
    output: OutputOption,
}

/// Runs the verb.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let lab = Lab::open(&arguments.name.name)?;
    let mut show = Show::new();
    let probe = lab.probe(arguments.throughput, &mut |progress| show.step(&progress))?;
    drop(show);
    if probe.pods.is_empty() {
        bail!(
            "lab {0} has no pod that runs; hint: `fairlead lab pods --name {0}` lists all",
            arguments.name.name
        );
    }
    arguments.output.output.print(&probe, report::probe)?;
    Ok(if probe.all_reached() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
