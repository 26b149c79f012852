//! `fairlead lab demo`: a whole cluster comes up, proves itself and goes, in a few seconds.

use std::process::ExitCode;
use std::time::Duration;

use ::lab::{Lab, Manifest, Part};
use anyhow::Result;
use clap::Args;

use super::{Interruption, ShapeOptions, parse_name, report};
use crate::output::{print, print_tables};
use crate::progress::Show;
use crate::table::Table;

/// The time for all transfers together.
const THROUGHPUT_MILLIS: u64 = 900;

/// Bring up three nodes and the pods of a guestbook, try every pod from every other, and clean up
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  fairlead lab demo")]
pub(crate) struct Arguments {
    /// The lab's name
    #[arg(long, value_name = "NAME", default_value = "demo", value_parser = parse_name)]
    name: String,
    #[command(flatten)]
    shape: ShapeOptions,
}

/// The manifests, so that the demo needs nothing but this binary.
const GUESTBOOK: [(&str, &str); 3] = [
    ("frontend.yaml", include_str!("../../../../examples/guestbook/frontend.yaml")),
    ("leader.yaml", include_str!("../../../../examples/guestbook/leader.yaml")),
    ("follower.yaml", include_str!("../../../../examples/guestbook/follower.yaml")),
];

/// Runs the verb.
pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    // Signals before anything else: from here on, being interrupted means cleaning up first.
    let interruption = Interruption::expect()?;
    let mut up = arguments.shape.up_options(&arguments.name, Vec::new(), true)?;
    up.manifests = GUESTBOOK
        .iter()
        .map(|(name, text)| Manifest { name: (*name).to_owned(), text: text.as_bytes().to_vec() })
        .collect();
    let mut show = Show::new();
    let lab = Lab::up(&up, &mut |progress| show.step(&progress))?;
    let ender = lab.ender();
    let interrupted = interruption.answer(move || {
        if let Some(ender) = ender {
            ender.end();
        }
    })?;
    let shown = demonstrate(&lab, &mut show);
    let cleaned = lab.down(&mut |progress| show.step(&progress));
    interrupted.give_way();
    let (took, total) = show.finish();
    let reached = shown?;
    cleaned?;
    print("\n")?;
    print_tables(&[timings(&took, total)])?;
    Ok(if reached { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Shows nodes, pods and who reaches whom. True when everything reached everything.
fn demonstrate(lab: &Lab, show: &mut Show) -> Result<bool> {
    let listing = lab.settle(&mut |progress| show.step(&progress))?;
    show.aside(|| print_tables(&report::listing(&listing, false)))?;
    let probe = lab.probe(THROUGHPUT_MILLIS, &mut |progress| show.step(&progress))?;
    show.aside(|| {
        print("\n")?;
        print_tables(&report::probe(&probe, false))
    })?;
    Ok(probe.all_reached())
}

fn timings(took: &[(Part, Duration)], total: Duration) -> Table {
    let mut table = Table::new(["PART", "SECONDS"]);
    let seconds = |duration: &Duration| format!("{:.3}", duration.as_secs_f64());
    for (part, duration) in took {
        table.row([part.word().to_owned(), seconds(duration)]);
    }
    table.row(["all".to_owned(), seconds(&total)]);
    table
}
