//! `fairlead lab up`.

use std::path::PathBuf;
use std::process::ExitCode;

use ::lab::Lab;
use anyhow::{Context, Result};
use clap::Args;

use super::{NameOption, ShapeOptions, report};
use crate::output::OutputOption;
use crate::progress::Show;

/// Start a lab; returns when every node is ready and every pod given is wired
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fairlead lab up --nodes 2 --from examples/guestbook")]
pub(crate) struct Arguments {
    #[command(flatten)]
    name: NameOption,
    #[command(flatten)]
    shape: ShapeOptions,
    /// Manifests to begin with: a directory or a file (may be given again)
    #[arg(long, value_name = "DIR")]
    from: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputOption,
}

/// Runs the verb.
pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    let up = arguments.shape.up_options(&arguments.name.name, arguments.from, false)?;
    let mut show = Show::new();
    let lab = Lab::up(&up, &mut |progress| show.step(&progress))?;
    let settled = lab.settle(&mut |progress| show.step(&progress));
    drop(show);
    let name = &arguments.name.name;
    let listing = settled.with_context(|| {
        format!("lab {name} is up but not ready; hint: it stays for a look, `fairlead lab down --name {name}` ends it")
    })?;
    arguments.output.output.print(&listing, report::listing)?;
    Ok(ExitCode::SUCCESS)
}
