//! `fairlead policy`: policies before they are applied. A file per verb.

mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Policies before they are applied: what they would open and close
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fairlead policy test new-policy.yaml")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Test(test::Arguments),
}

/// Runs the verb.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    match &arguments.verb {
        Verb::Test(arguments) => test::run(arguments),
    }
}
