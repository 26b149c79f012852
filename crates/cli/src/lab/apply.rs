//! `fairlead lab apply`.

use std::path::PathBuf;
use std::process::ExitCode;

use ::lab::Lab;
use anyhow::Result;
use clap::Args;

use super::{NameOption, report};
use crate::output::OutputOption;
use crate::progress::Show;

/// Copy manifests into a lab's store and wait until they are in force
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fairlead lab apply -f examples/guestbook")]
pub(crate) struct Arguments {
    #[command(flatten)]
    name: NameOption,
    /// A manifest or a directory of manifests (may be given again)
    #[arg(short, long = "file", value_name = "FILE|DIR", required = true)]
    file: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputOption,
}

/// Runs the verb.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let lab = Lab::open(&arguments.name.name)?;
    let mut show = Show::new();
    let listing = lab.apply(&arguments.file, &mut |progress| show.step(&progress))?;
    drop(show);
    arguments.output.output.print(&listing, report::pods)?;
    Ok(ExitCode::SUCCESS)
}
