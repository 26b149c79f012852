//! `fairlead cni doctor`: what a kubelet would trip over in the directories of configurations and plugins.
//!
//! Read [`examine`] first. It looks as a container runtime looks: the first configuration by file name counts, every
//! plugin that it names must be there, run, and speak its version. Nothing is changed and no container is needed.
//!
//! What stays true: a finding says where, what, and what to do; whatever would keep a pod from starting, or leak when
//! it goes, is an error, the rest a warning or a note; one broken file does not hide what is wrong with another.
//! Sources: CNI specification 1.1.0; the loading rules of the reference library and of containerd and CRI-O.

mod configuration;
mod executable;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::output::OutputOption;
use crate::table::Table;
use configuration::Configurations;
use executable::Executables;

/// Say what a kubelet would trip over in the directories of configurations and plugins
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fairlead cni doctor\n  \
    fairlead cni doctor --conf-dir /etc/cni/net.d --bin-dir /opt/cni/bin -o json\n\n\
    Fails when a pod could not be started, or not be cleaned up. NETCONFPATH and CNI_PATH are honoured.")]
pub(super) struct Arguments {
    /// Where the runtime looks for network configurations
    #[arg(long, value_name = "DIR", env = "NETCONFPATH", default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,
    /// Where the runtime looks for plugins; may be given several times
    #[arg(long, value_name = "DIR", env = "CNI_PATH", value_delimiter = ':', default_value = "/opt/cni/bin")]
    bin_dir: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputOption,
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    /// Pods do not start, or leave something behind.
    Error,
    /// Something that was meant does not happen.
    Warning,
    /// Good to know.
    Note,
}

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Finding {
    severity: Severity,
    /// The file or directory.
    path: PathBuf,
    /// What is so.
    problem: String,
    /// What to do about it; empty when nothing needs to be done.
    fix: String,
}

impl Finding {
    fn new(severity: Severity, path: &Path, problem: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { severity, path: path.to_owned(), problem: problem.into(), fix: fix.into() }
    }

    fn error(path: &Path, problem: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(Severity::Error, path, problem, fix)
    }

    fn warning(path: &Path, problem: impl Into<String>, fix: impl Into<String>) -> Self {
        Self::new(Severity::Warning, path, problem, fix)
    }

    fn note(path: &Path, problem: impl Into<String>) -> Self {
        Self::new(Severity::Note, path, problem, "")
    }
}

/// Runs the verb.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let findings = examine(&arguments.conf_dir, &arguments.bin_dir);
    arguments.output.output.print(&findings, |findings, _| vec![table(findings)])?;
    let failed = findings.iter().any(|finding| finding.severity == Severity::Error);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Everything there is to say, the worst first.
fn examine(conf_dir: &Path, bin_dirs: &[PathBuf]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let executables = Executables::new(bin_dirs);
    executables.examine(&mut findings);
    Configurations::new(conf_dir).examine(&executables, &mut findings);
    findings.sort();
    findings.dedup();
    findings
}

fn table(findings: &[Finding]) -> Table {
    let mut table = Table::new(["SEVERITY", "WHERE", "WHAT", "WHAT TO DO"]);
    for finding in findings {
        let severity = format!("{:?}", finding.severity).to_lowercase();
        table.row([
            severity,
            finding.path.display().to_string(),
            finding.problem.clone(),
            finding.fix.clone(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests;
