//! `fairlead lab exec`.

use std::process::ExitCode;

use ::lab::Lab;
use anyhow::Result;
use clap::Args;

use super::NameOption;

/// Run a command in a pod's network
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fairlead lab exec frontend-1 -- ip address")]
pub(crate) struct Arguments {
    #[command(flatten)]
    name: NameOption,
    /// The pod, as NAME or NAMESPACE/NAME
    pod: String,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Runs the verb: this process becomes the command, so its exit status is the command's.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let lab = Lab::open(&arguments.name.name)?;
    match lab.exec(&arguments.pod, &arguments.command)? {}
}
