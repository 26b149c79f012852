//! Data on standard output, in the form that was asked for.
//!
//! Read [`Format`] first: every listing verb takes it. Nothing here panics when the reader goes away; the
//! write error travels up and [`crate::failure`] knows it.

use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::table::Table;

/// The forms of output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// More columns for people.
    Wide,
    /// JSON for programs.
    Json,
    /// YAML for both.
    Yaml,
}

/// The option `-o` of listing verbs.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct OutputOption {
    /// The form of the output
    #[arg(short, long, value_enum, default_value_t, value_name = "FORM")]
    pub(crate) output: Format,
}

impl Format {
    /// Prints `data` for programs or what `table` makes of it for people; `table` is told whether wide.
    pub(crate) fn print<T: Serialize>(
        self,
        data: &T,
        table: impl FnOnce(&T, bool) -> Vec<Table>,
    ) -> Result<()> {
        let text = match self {
            Self::Json => serde_json::to_string_pretty(data)? + "\n",
            Self::Yaml => serde_saphyr::to_string(data).context("cannot write this as YAML")?,
            Self::Table | Self::Wide => return print_tables(&table(data, self == Self::Wide)),
        };
        print(&text)
    }
}

/// Prints tables with an empty line between them; headings are bold on a terminal only.
pub(crate) fn print_tables(tables: &[Table]) -> Result<()> {
    let bold = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let texts: Vec<String> = tables.iter().map(|table| table.render(bold)).collect();
    print(&texts.join("\n"))
}

/// Writes text to standard output, whole.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(Unwritable)?;
    Ok(())
}

/// Standard output took no more.
#[derive(Debug)]
pub(crate) struct Unwritable(pub(crate) io::Error);

impl std::fmt::Display for Unwritable {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("cannot write to standard output")
    }
}

impl std::error::Error for Unwritable {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0)
    }
}
