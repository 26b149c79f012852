//! `fairlead lab list`.

use std::process::ExitCode;

use ::lab::Lab;
use anyhow::Result;
use clap::Args;

use super::{NameOption, report};
use crate::output::{Format, OutputOption, print};

/// Show a lab's nodes and pods, and how to get into them
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fairlead lab list -o json")]
pub(crate) struct Arguments {
    #[command(flatten)]
    name: NameOption,
    #[command(flatten)]
    output: OutputOption,
}

/// Runs the verb.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let lab = Lab::open(&arguments.name.name)?;
    arguments.output.output.print(&lab.list()?, report::listing)?;
    if matches!(arguments.output.output, Format::Table | Format::Wide) {
        print(&format!("\n{}", entering(&lab)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// How to enter with the system's own tool; without root, one step into the lab's user namespace comes first.
fn entering(lab: &Lab) -> String {
    let pod = "to run a command in a pod: fairlead lab exec POD -- COMMAND";
    match lab.own_user_namespace() {
        None => format!("{pod}\nto enter a node or pod: nsenter --net=NETNS COMMAND (NETNS from -o wide)\n"),
        Some(pid) => format!(
            "{pod}\nto enter the lab: nsenter -t {pid} -U -n --preserve-credentials COMMAND\n\
             to enter a node or pod from there: nsenter --net=NETNS COMMAND (NETNS from -o wide)\n"
        ),
    }
}
