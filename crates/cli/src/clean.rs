//! `fairlead clean`: everything an agent made on this node goes.

use std::path::PathBuf;
use std::process::ExitCode;

use ::agent::Options;
use anyhow::Result;
use clap::Args;
use store::Location;

use crate::output::print;

/// Remove everything an agent made on this node; pods keep their links
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fairlead clean")]
pub(crate) struct Arguments {
    /// The state directory of the agent that was here
    #[arg(long, value_name = "DIR", default_value = Options::STATE_DIR)]
    state_dir: PathBuf,
    /// Where the agent put its network configuration
    #[arg(long, value_name = "DIR", default_value = Options::CONF_DIR)]
    conf_dir: PathBuf,
}

/// Runs the verb.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    // Node and store are not looked at: what is removed is what carries the mark.
    let mut options = Options::new("", Location::Directory(PathBuf::new()));
    options.state_dir.clone_from(&arguments.state_dir);
    options.conf_dir.clone_from(&arguments.conf_dir);
    let steps = ::agent::clean(&options)?;
    print(&steps.iter().map(|step| format!("{step}\n")).collect::<String>())?;
    Ok(ExitCode::SUCCESS)
}
