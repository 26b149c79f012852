//! `fairlead lab`: a cluster on one machine. A file per verb; what they share is here.

mod apply;
mod demo;
mod down;
mod exec;
mod list;
mod pods;
mod probe;
mod report;
mod supervise;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ::lab::{Options, UpOptions};
use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};
use kernel::signals::Termination;

/// The lab meant when none is named.
const DEFAULT_NAME: &str = "default";

/// A cluster on this machine: nodes and pods as network namespaces, with or without root
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  fairlead lab demo\n  fairlead lab up --nodes 2 --from examples/guestbook"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Demo(demo::Arguments),
    Up(up::Arguments),
    Apply(apply::Arguments),
    List(list::Arguments),
    Pods(pods::Arguments),
    Exec(exec::Arguments),
    Probe(probe::Arguments),
    Down(down::Arguments),
    Supervise(supervise::Arguments),
}

/// Runs the verb.
pub(crate) fn run(arguments: Arguments) -> Result<ExitCode> {
    match arguments.verb {
        Verb::Demo(arguments) => demo::run(arguments),
        Verb::Up(arguments) => up::run(arguments),
        Verb::Apply(arguments) => apply::run(&arguments),
        Verb::List(arguments) => list::run(&arguments),
        Verb::Pods(arguments) => pods::run(&arguments),
        Verb::Exec(arguments) => exec::run(&arguments),
        Verb::Probe(arguments) => probe::run(&arguments),
        Verb::Down(arguments) => down::run(&arguments),
        Verb::Supervise(arguments) => supervise::run(&arguments),
    }
}

/// Which lab.
#[derive(Debug, Args)]
struct NameOption {
    /// The lab's name
    #[arg(long, value_name = "NAME", default_value = DEFAULT_NAME, value_parser = parse_name)]
    name: String,
}

/// A lab's name, if it can be one.
pub(crate) fn parse_name(text: &str) -> Result<String, ::lab::Error> {
    ::lab::check_name(text).map(|()| text.to_owned())
}

/// What a new lab is to be like.
#[derive(Debug, Args)]
struct ShapeOptions {
    /// How many nodes, named node1 to nodeN
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=250))]
    nodes: u16,
    /// How packets travel between nodes
    #[arg(long, value_enum, default_value_t, value_name = "BACKEND")]
    backend: Backend,
    /// Leave an agent that dies dead
    #[arg(long)]
    no_restart: bool,
}

/// The ways from node to node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// VXLAN tunnels
    #[default]
    Vxlan,
    /// Plain routes over the nodes' common link
    HostGw,
    /// UDP datagrams by flannel's format, carried by the agents
    Udp,
    /// IP in IP, carried by the agents
    Ipip,
    /// WireGuard, carried by the agents
    Wireguard,
}

impl Backend {
    /// Its name in the agents' configuration.
    fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::HostGw => "host-gw",
            Self::Udp => "udp",
            Self::Ipip => "ipip",
            Self::Wireguard => "wireguard",
        }
    }
}

/// What Ctrl-C and its like do while a lab comes up or shows itself: from [`Interruption::expect`] on they wait,
/// and from [`Interruption::answer`] on each ends the lab first and then this process.
struct Interruption {
    termination: Termination,
}

impl Interruption {
    /// Before any other thread is started.
    fn expect() -> Result<Self> {
        Ok(Self { termination: Termination::take_over().context("cannot take signals over")? })
    }

    /// `end` takes the lab down; the process ends as the shell expects of one that was interrupted.
    fn answer(self, end: impl FnOnce() + Send + 'static) -> Result<Interrupted> {
        let interrupted = Interrupted(Arc::default());
        let heard = interrupted.clone();
        let wait = move || {
            let Ok(signal) = self.termination.wait() else { return };
            heard.0.store(true, Ordering::SeqCst);
            end();
            std::process::exit(128 + signal);
        };
        std::thread::Builder::new().name("signals".into()).spawn(wait).context("cannot wait for signals")?;
        Ok(interrupted)
    }
}

/// Whether the lab is being ended by a signal.
#[derive(Clone)]
struct Interrupted(Arc<AtomicBool>);

impl Interrupted {
    /// Stays here if so: whatever failed, failed because of it, and the thread that heard the signal ends the process.
    fn give_way(&self) {
        while self.0.load(Ordering::SeqCst) {
            std::thread::park();
        }
    }
}

impl ShapeOptions {
    fn up_options(&self, name: &str, from: Vec<PathBuf>, attached: bool) -> Result<UpOptions> {
        let own = std::env::current_exe().context("cannot find this program's own file")?;
        let options = Options {
            nodes: self.nodes.into(),
            agent_config: format!("backend: {}\n", self.backend.name()),
            restart: !self.no_restart,
            // All plugins are in this program too, and a `fairlead-cni` beside it may be of another build.
            plugin_program: own.clone(),
            plugins: plugins::PLUGINS.iter().map(|plugin| plugin.name().to_owned()).collect(),
            agent_program: own,
        };
        Ok(UpOptions { name: name.to_owned(), options, from, manifests: Vec::new(), attached })
    }
}
