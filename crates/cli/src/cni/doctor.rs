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

use crate::finding::{self, Finding};
use crate::output::OutputOption;
use configuration::Configurations;
use executable::Executables;

/// Say what a kubelet would trip over in the directories of configurations and plugins
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fairlead cni doctor\n  \
    fairlead cni doctor --conf-dir /etc/cni/net.d --bin-dir /opt/cni/bin -o json\n\n\
    Fails when a pod could not be started, or not be cleaned up. NETCONFPATH and CNI_PATH are honoured.")]
pub(crate) struct Arguments {
    /// Where the runtime looks for network configurations
    #[arg(long, value_name = "DIR", env = "NETCONFPATH", default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,
    /// Where the runtime looks for plugins; may be given several times
    #[arg(long, value_name = "DIR", env = "CNI_PATH", value_delimiter = ':', default_value = "/opt/cni/bin")]
    bin_dir: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputOption,
}

/// Runs the verb.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let findings = examine(&arguments.conf_dir, &arguments.bin_dir, Moment::Running);
    finding::report(&findings, arguments.output)
}

/// When the examination is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Pods are to start now.
    Running,
    /// The agent has yet to come and to write its configuration.
    Before,
}

/// Everything there is to say, the worst first.
pub(crate) fn examine(conf_dir: &Path, bin_dirs: &[PathBuf], moment: Moment) -> Vec<Finding> {
    let mut findings = Vec::new();
    let executables = Executables::new(bin_dirs);
    executables.examine(&mut findings);
    Configurations::new(conf_dir, moment).examine(&executables, &mut findings);
    finding::sort(&mut findings);
    findings
}

#[cfg(test)]
mod tests;
