//! `fairlead lab down`.

use std::process::ExitCode;

use ::lab::{Error, Home, Lab};
use anyhow::Result;
use clap::Args;

use super::NameOption;
use crate::progress::Show;

/// End a lab; nothing of it is left when this returns, also if it had been killed
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fairlead lab down")]
pub(crate) struct Arguments {
    #[command(flatten)]
    name: NameOption,
}

/// Runs the verb.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let name = &arguments.name.name;
    let lab = match Lab::open(name) {
        Ok(lab) => lab,
        // One that was killed has left files; removing them is what was asked for.
        Err(error @ Error::NotUp { .. }) => {
            return if Home::clear_leftovers(name)? { Ok(ExitCode::SUCCESS) } else { Err(error.into()) };
        }
        Err(error) => return Err(error.into()),
    };
    let mut show = Show::new();
    lab.down(&mut |progress| show.step(&progress))?;
    Ok(ExitCode::SUCCESS)
}
