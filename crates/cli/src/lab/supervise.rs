//! `fairlead lab supervise`: what `lab up` starts and leaves running. Not for people.

use std::path::PathBuf;
use std::process::ExitCode;

use ::lab::{Home, Options};
use anyhow::{Context, Result};
use clap::Args;

use super::NameOption;

/// Be a lab's supervisor
#[derive(Debug, Args)]
#[command(hide = true)]
pub(crate) struct Arguments {
    #[command(flatten)]
    name: NameOption,
    /// The lab's directory
    #[arg(long, value_name = "DIR")]
    home: PathBuf,
    /// What the lab is to be like, as JSON
    #[arg(long, value_name = "JSON")]
    options: String,
    /// End when standard input ends
    #[arg(long)]
    attached: bool,
}

/// Runs the verb.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let options: Options = serde_json::from_str(&arguments.options).context("cannot read --options")?;
    let home = Home::at(&arguments.name.name, arguments.home.clone());
    ::lab::supervise(&home, &options, arguments.attached)?;
    Ok(ExitCode::SUCCESS)
}
