//! `fairlead lab up`.

use std::path::PathBuf;
use std::process::ExitCode;

use ::lab::Lab;
use anyhow::{Context, Result};
use clap::Args;

use super::{Interruption, NameOption, ShapeOptions, report};
use crate::output::OutputOption;
use crate::progress::Show;

/// Start a lab; returns when every node is ready and every pod given is wired, and takes it down when interrupted
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fairlead lab up --nodes 2 --from examples/guestbook")]
pub(crate) struct Arguments {
    #[command(flatten)]
    name: NameOption,
    #[command(flatten)]
    shape: ShapeOptions,
    /// Manifests to begin with: a directory or a file (may be given again)
    #[arg(long, value_name = "FILE|DIR")]
    from: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputOption,
}

/// Runs the verb.
pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    // Signals before anything else: one that is interrupted leaves no lab that nobody waited for.
    let interruption = Interruption::expect()?;
    let up = arguments.shape.up_options(&arguments.name.name, arguments.from, false)?;
    let mut show = Show::new();
    let lab = Lab::up(&up, &mut |progress| show.step(&progress))?;
    let name = &arguments.name.name;
    let interrupted = interruption.answer({
        let name = name.clone();
        move || {
            // What it says of how far it is has no reader any more.
            let _ = Lab::open(&name).and_then(|lab| lab.down(&mut |_| {}));
        }
    })?;
    let settled = lab.settle(&mut |progress| show.step(&progress));
    interrupted.give_way();
    drop(show);
    let listing = settled.with_context(|| {
        format!("lab {name} is up but not ready; hint: it stays for a look, `fairlead lab down --name {name}` ends it")
    })?;
    arguments.output.output.print(&listing, report::listing)?;
    Ok(ExitCode::SUCCESS)
}
