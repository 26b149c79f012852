//! `fairlead clean`: everything an agent made on this node goes, and with `--all` everything of Fairlead.
//!
//! `--wait` is for a DaemonSet, whose pods are started again when they end: the node is clean, and stays so until the pod
//! is deleted (deploy/uninstall.yaml).

use std::path::PathBuf;
use std::process::ExitCode;

use ::agent::Options;
use anyhow::Result;
use clap::Args;
use kernel::signals::Termination;
use plugins::removal::Removal;
use store::Location;

use crate::output::print;

/// Remove everything an agent made on this node; pods keep their links unless --all says otherwise
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fairlead clean\n  fairlead clean --all\n\n\
    Refuses while an agent runs in this network namespace, whatever state directory that has.")]
pub(crate) struct Arguments {
    /// The state directory of the agent that was here
    #[arg(long, value_name = "DIR", default_value = Options::STATE_DIR)]
    state_dir: PathBuf,
    /// Where the agent put its network configuration
    #[arg(long, value_name = "DIR", default_value = Options::CONF_DIR)]
    conf_dir: PathBuf,
    /// Detach every pod as well, and remove the plugins with all they keep: this node leaves Fairlead
    #[arg(long)]
    all: bool,
    /// Where the plugins were laid
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin", requires = "all")]
    bin_dir: PathBuf,
    /// Where the container runtime keeps results
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cni", requires = "all")]
    cache_dir: PathBuf,
    /// Afterwards wait for SIGTERM or SIGINT
    #[arg(long)]
    wait: bool,
}

/// Runs the verb.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    // First of all, so that a signal that comes early is not lost.
    let termination = arguments.wait.then(Termination::take_over).transpose()?;
    // Node and store are not looked at: what is removed is what carries the mark.
    let mut options = Options::new("", Location::Directory(PathBuf::new()));
    options.state_dir.clone_from(&arguments.state_dir);
    options.conf_dir.clone_from(&arguments.conf_dir);
    let conflist = arguments.conf_dir.join(::agent::CONFLIST);
    let removal =
        Removal { conflist: &conflist, bin_dir: &arguments.bin_dir, cache_dir: &arguments.cache_dir };
    let mut steps = Vec::new();
    let done = ::agent::clean(&options, &mut steps, |said| match arguments.all {
        true => {
            plugins::removal::remove(removal, said).map_err(|error| format!("remove the plugins: {error}"))
        }
        false => Ok(()),
    });
    print(&steps.iter().map(|step| format!("{step}\n")).collect::<String>())?;
    done?;
    if let Some(termination) = termination {
        termination.wait()?;
    }
    Ok(ExitCode::SUCCESS)
}
