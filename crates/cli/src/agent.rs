//! `fairlead agent`: a node's agent, in the foreground.

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ::agent::{ExistingConnections, Options};
use anyhow::{Context, Result, bail};
use clap::Args;
use store::Location;
use tracing_subscriber::EnvFilter;

/// Run a node's agent: join this node to the others and keep it joined
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fairlead agent --store dir:/etc/fairlead/cluster --node node1\n  \
fairlead agent --store kubernetes:/etc/fairlead/kubeconfig --node node1\n  \
fairlead agent --store etcd:https://10.0.0.1:2379,https://10.0.0.2:2379 --node node1\n  \
fairlead agent --store kubernetes --bin-dir /opt/cni/bin --health 127.0.0.1:7670")]
pub(crate) struct Arguments {
    /// Where the cluster's state is: dir:PATH, kubernetes:KUBECONFIG, or kubernetes for a pod's service account, else
    /// what kubectl would take; or etcd:URL,..., whose certificates, user and password FAIRLEAD_ETCD_CA, _CERT, _KEY,
    /// _USERNAME and _PASSWORD_FILE in the environment tell
    #[arg(long, value_name = "STORE", value_parser = str::parse::<Location>)]
    store: Location,
    /// The namespace of Fairlead's own objects in Kubernetes
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE", default_value = Location::NAMESPACE, value_parser = parse_namespace)]
    namespace: String,
    /// The node this agent is for
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node: String,
    /// The configuration, followed while the agent runs
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to leave what the CNI plugin reads, and the socket for status
    #[arg(long, value_name = "DIR", default_value = Options::STATE_DIR)]
    state_dir: PathBuf,
    /// Where the container runtime looks for network configurations
    #[arg(long, value_name = "DIR", default_value = Options::CONF_DIR)]
    conf_dir: PathBuf,
    /// Where host-local keeps its addresses, if not in its own default directory
    #[arg(long, value_name = "DIR")]
    ipam_dir: Option<PathBuf>,
    /// Lay the plugins into this directory of the container runtime first
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Answer /livez, /readyz and /metrics by HTTP at this address
    #[arg(long, value_name = "ADDRESS:PORT")]
    health: Option<SocketAddr>,
    /// Answer /metrics, for Prometheus, at this address as well
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
    /// Attach pods to a bridge (cni0) instead of routing to each
    #[arg(long)]
    bridge: bool,
    /// What becomes of open connections that no network policy allows any more, whatever the configuration says: keep or cut
    #[arg(long, value_name = "keep|cut", value_parser = parse_existing)]
    existing_connections: Option<ExistingConnections>,
    /// End when the process that started this one ends
    #[arg(long, hide = true, value_name = "PID")]
    parent: Option<u32>,
}

fn parse_namespace(text: &str) -> Result<String, String> {
    cluster::check_label(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

fn parse_existing(text: &str) -> Result<ExistingConnections, String> {
    match text {
        "keep" => Ok(ExistingConnections::Keep),
        "cut" => Ok(ExistingConnections::Cut),
        _ => Err("it is keep or cut".to_owned()),
    }
}

/// Runs the verb.
pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    if let Some(parent) = arguments.parent {
        die_with(parent)?;
    }
    log_to_stderr();
    let mut store = arguments.store;
    if let Location::Kubernetes { namespace, .. } = &mut store {
        *namespace = arguments.namespace;
    }
    let mut options = Options::new(arguments.node, store);
    options.config_file = arguments.config;
    options.state_dir = arguments.state_dir;
    options.conf_dir = arguments.conf_dir;
    options.ipam_dir = arguments.ipam_dir;
    options.bridge = arguments.bridge;
    options.health = arguments.health;
    options.metrics = arguments.metrics;
    options.existing_connections = arguments.existing_connections;
    options.collect = Some(plugins::stale::collect);
    if let Some(directory) = arguments.bin_dir {
        lay_plugins(&directory)?;
    }
    ::agent::run(&options)?;
    Ok(ExitCode::SUCCESS)
}

/// Lays the plugins. Where some are there already, those do, and an agent is worth more than a new plugin.
fn lay_plugins(directory: &Path) -> Result<()> {
    let laid =
        crate::cni::plugins_binary().and_then(|binary| Ok(plugins::install::install(&binary, directory)?));
    match laid {
        Ok(laid) => {
            let changed = laid.iter().filter(|one| one.change != plugins::install::Change::Unchanged).count();
            tracing::info!(directory = %directory.display(), changed, "the plugins are laid");
        }
        Err(error) if directory.join(plugins::install::BINARY).exists() => {
            tracing::warn!("the plugins stay as they are: {error:#}");
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Asks the kernel to end this process with its parent, and makes sure that it has not ended already.
fn die_with(parent: u32) -> Result<()> {
    let kill = Some(rustix::process::Signal::KILL);
    rustix::process::set_parent_process_death_signal(kill).context("cannot tie the agent to its parent")?;
    let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    if now != i32::try_from(parent).ok() {
        bail!("the process {parent} that started this agent has ended");
    }
    Ok(())
}

/// What happens goes to standard error; `RUST_LOG` says how much of it.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colour = io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(io::stderr);
    // A line that cannot be written is lost: telling of it on standard error too would end the agent.
    log.log_internal_errors(false).init();
}
