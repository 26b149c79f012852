//! `fairlead lab pods`.

use std::process::ExitCode;

use ::lab::Lab;
use anyhow::Result;
use clap::Args;

use super::{NameOption, report};
use crate::output::{Format, OutputOption};

/// List a lab's pods
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fairlead lab pods -o wide")]
pub(crate) struct Arguments {
    #[command(flatten)]
    name: NameOption,
    #[command(flatten)]
    output: OutputOption,
}

/// Runs the verb.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let listing = Lab::open(&arguments.name.name)?.list()?;
    match arguments.output.output {
        form @ (Format::Table | Format::Wide) => form.print(&listing, report::pods)?,
        form => form.print(&listing.pods, |_, _| Vec::new())?,
    }
    Ok(ExitCode::SUCCESS)
}
