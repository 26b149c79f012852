//! Starting an agent: its parts in order, each with the reason for its place.
//!
//! Read [`run`]. Everything that can be refused is refused before the network is touched: configuration, a
//! second agent, networks that overlap. The threads only block and report; the loop in `reconcile.rs` decides.

use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;

use cluster::Kind;
use ipnet::IpNet;
use kernel::signals::Termination;
use netstate::State;
use route::{Networks, Overlap, overlaps};
use store::Store;

use crate::announce::{Announcer, tell_at_once};
use crate::config::ConfigError;
use crate::door::{Door, DoorError, Watcher};
use crate::event::Event;
use crate::files::{self, Conflist, FileError, NetworkFile, make_directory};
use crate::flannel_network::NetworkKeys;
use crate::freed;
use crate::health::{Health, HealthError, Serves};
use crate::key_files::forget_keys_but;
use crate::lease::Leases;
use crate::leases_file::LeasesFile;
use crate::lock::{self, LockError};
use crate::node::{NodeKeeper, Parts, advertise};
use crate::options::Options;
use crate::path_mtu::{LimitsFile, Prober};
use crate::policy::{self, Counts, Feed, GateError, KINDS, Policing};
use crate::reconcile::{End, Loop};
use crate::reload::ConfigFile;
use crate::report::{Reason, told};
use crate::server::{Server, ServerError};
use crate::subnet_env::SubnetFile;
use crate::tunnels::{DESIGN_FILE, Descriptors, DesignFile, Tunnels};
use crate::view::View;

/// What of the cluster every agent has to know.
const INTEREST: [Kind; 4] = [Kind::Node, Kind::Lease, Kind::Claim, Kind::ServiceCidr];

/// Room for a thread that blocks on a descriptor and sends what it reads; memory counts only once touched.
const STACK: usize = 256 * 1024;

/// Why an agent could not start, or ended by itself. The network is as it was; start it again once the cause is
/// mended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The node's name is none.
    #[error("start the agent of node {node:?}\nhint: --node takes the name of the Node object")]
    Node {
        /// The name.
        node: String,
        /// What is wrong with it.
        #[source]
        source: cluster::NameError,
    },
    /// A cluster network collides with one of the host's.
    #[error(transparent)]
    Overlap(#[from] Overlap),
    /// Somebody else is at work in this network namespace.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The status socket cannot be opened.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The health address is taken.
    #[error(transparent)]
    Health(#[from] HealthError),
    /// A file cannot be written or removed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The kernel refused.
    #[error("{tried}")]
    Kernel {
        /// What was tried.
        tried: &'static str,
        /// Why not.
        #[source]
        source: DoorError,
    },
    /// The kernel cannot be asked about network policies.
    #[error("open nf_tables for network policies")]
    Policies(#[source] Box<kernel::Error>),
    /// The socket at which plugins ask cannot be opened.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// Signals cannot be taken over.
    #[error("wait for signals")]
    Signals(#[source] kernel::Error),
    /// The store cannot be opened or watched.
    #[error("open the store")]
    Store(#[from] store::Error),
    /// A thread cannot be started.
    #[error("start thread {name}")]
    Thread {
        /// What for.
        name: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// What was to be cleaned with the agent's own things could not be.
    #[error("{0}")]
    Also(String),
    /// A thread that the agent cannot do without has ended.
    #[error("run the agent: {0}")]
    Lost(String),
}

/// Runs an agent in the network namespace of the calling process until SIGTERM, SIGINT or SIGHUP, which leave the
/// network, the lease and the conflist as they are: pods go on, and can be made, without an agent.
///
/// Call it before any other thread is started: signals are taken over for the whole process.
///
/// # Errors
/// When it cannot start: bad configuration, a second agent, overlapping networks, no netlink. A store that is away
/// is no error: the agent waits for it.
pub fn run(options: &Options) -> Result<(), Error> {
    // Before anything is opened: what was passed has its numbers already.
    let descriptors = Descriptors::inherited();
    // Before any thread, for threads inherit which signals are blocked.
    let termination = Termination::take_over().map_err(Error::Signals)?;
    check(options)?;
    make_directory(&options.state_dir)?;
    // Before anything is touched: a second agent on this node ends here. Held to the end, with which the process ends.
    let _lock = lock::hold()?;
    let server = Server::open(&options.state_dir)?;
    let socket = server.path().to_owned();
    // An agent that ends before it has begun leaves nothing that looks like one.
    let leave = |_: &Error| drop(std::fs::remove_file(&socket));
    let (sender, events) = mpsc::channel();
    // Packets wait for it, and nothing that may take its time is needed for it, not even the configuration.
    let mut tunnels = Tunnels::new(options, descriptors, sender.clone());
    tunnels.resume(&options.key_directories());
    let (options, configuration) = configure(options).inspect_err(leave)?;
    let options = &options;
    let mut pools = options.config.pools().map_err(Error::from).inspect_err(leave)?;
    if !kernel::sysctl::has_ipv6() {
        tracing::warn!("this kernel has no IPv6: the node takes part with IPv4 alone");
        pools.retain(|pool| pool.cluster().addr().is_ipv4());
    }
    if let (Some(file), None) = (&configuration.file, &configuration.problem) {
        file.keep();
    }
    // The kernel is listened to before it is looked at, so that no change falls between the two.
    let (door, watcher) = Door::open().map_err(kernel_error("open netlink"))?;
    let door = refuse_overlaps(options, door)?;
    // The same for the store: its first event is the whole of it.
    let store: Arc<dyn Store> = options.open_store()?.into();
    let watch = store.watch(&interest(options))?;
    let announcer = Announcer::start(&options.node, Arc::clone(&store))?;
    let (policing, watcher) = police(options, (&announcer, &store), watcher, &sender)?;
    let (feed, counts) = (policing.feed(), policing.counts());
    let http = open_http(options)?;
    let node = NodeKeeper::new(Parts {
        options: options.clone(),
        pools,
        door,
        leases: Leases::new(store, &options.node),
        announcer,
        tunnels,
        policing,
        config_problem: configuration.problem,
        prober: Prober::start(LimitsFile::new(&options.state_dir), &sender)?,
    });
    let config_file = configuration.file;
    let sources = Sources { termination, server, watcher, watch, feed, counts, http, config_file };
    start_threads(&sender, sources)?;
    drop(sender);
    tracing::info!(node = options.node, store = %options.store, "the agent has started");
    options.tell_what_is_without_effect();
    let view = beginning(options, node.remembered());
    node.tell_started();
    let end = Loop::new(node, view).run(&events);
    // Best effort: a stale socket is replaced by the next agent anyway.
    let _ = std::fs::remove_file(socket);
    match end {
        End::Stopped => {
            tracing::info!("the agent ends; the network stays as it is");
            Ok(())
        }
        End::Lost(what) => Err(Error::Lost(what)),
    }
}

/// What is known of the cluster before the store is read: what an earlier agent of this node left.
fn beginning(options: &Options, carried: &[IpNet]) -> View {
    let leases_file = LeasesFile::new(&options.state_dir, &options.node, &options.store);
    let view = View::new(&options.node, options.config.cluster.deleted_node_grace());
    view.remembering(carried).with_leases_in(leases_file)
}

/// What of the cluster this agent has to know. An agent that enforces no policies does not ask for what is needed for that.
fn interest(options: &Options) -> Vec<Kind> {
    let policed: &[Kind] = if options.config.policy.enforcement { &KINDS } else { &[] };
    [&INTEREST, policed].concat()
}

/// Starts what enforces policies.
fn police(
    options: &Options,
    (announcer, store): (&Announcer, &Arc<dyn Store>),
    watcher: Watcher,
    events: &Sender<Event>,
) -> Result<(Policing, Watcher), Error> {
    let hearing = watcher.hearing(events.clone()).map_err(Error::policies)?;
    let policing = policy::start(policy::Parts {
        node: &options.node,
        state_dir: &options.state_dir,
        bridge: options.bridge,
        config: options.policy(),
        networks: pod_networks(options),
        store: Arc::clone(store),
        voice: announcer.voice().clone(),
        hearing,
    })?;
    let watcher = watcher.policed(policing.clone()).map_err(Error::policies)?;
    Ok((policing, watcher))
}

/// Where this node's pods had their addresses last; before it had any, those of all pods.
fn pod_networks(options: &Options) -> Vec<IpNet> {
    let own = NetworkFile::new(&options.state_dir).remembered(&options.node);
    if own.is_empty() { options.config.cluster.pod_cidrs.clone() } else { own }
}

/// Where HTTP is answered.
fn open_http(options: &Options) -> Result<Vec<Health>, HealthError> {
    let wanted = [(options.health, Serves::Everything), (options.metrics, Serves::Metrics)];
    let wanted = wanted.into_iter().filter_map(|(address, serves)| Some((address?, serves)));
    wanted.map(|(address, serves)| Health::open(address, serves)).collect()
}

/// Removes everything an agent made in the network namespace of the calling process, with the files it left, and says
/// in `said` what was done, a line each. `also` is done in between: when no pod can be attached any more, and while the
/// conflist is still there. Pods keep their links; their routes to other nodes are gone. The lease stays: it goes with the
/// Node object.
///
/// # Errors
/// When an agent is running in this network namespace, whatever its state directory, `also` fails, or the kernel or the disk
/// refuses. What was done by then is said.
pub fn clean(
    options: &Options,
    said: &mut Vec<String>,
    also: impl FnOnce(&mut Vec<String>) -> Result<(), String>,
) -> Result<(), Error> {
    // Both are held until the end of this function, so that no agent starts meanwhile.
    let _lock = lock::hold()?;
    if !options.state_dir.exists() {
        return clean_alone(options, said, also);
    }
    let _server = Server::open(&options.state_dir)?;
    clean_alone(options, said, also).inspect(|()| {
        // Best effort: a stale socket is replaced by the next agent anyway.
        let _ = std::fs::remove_file(options.state_dir.join(crate::status::SOCKET));
    })
}

fn clean_alone(
    options: &Options,
    said: &mut Vec<String>,
    also: impl FnOnce(&mut Vec<String>) -> Result<(), String>,
) -> Result<(), Error> {
    // Without it no pod can be attached.
    if NetworkFile::new(&options.state_dir).remove()? {
        said.push(format!("- file {}", options.state_dir.join(NetworkFile::NAME).display()));
    }
    // What failed is tried again with the conflist that is still there.
    also(said).map_err(Error::Also)?;
    let conflist = Conflist::new(options);
    if conflist.remove()? {
        said.push(format!("- file {}", conflist.path().display()));
    }
    if let Some(path) = SubnetFile::new(&options.state_dir).withdraw()? {
        said.push(format!("- file {}", path.display()));
    }
    if ConfigFile::forget(&options.state_dir)? {
        said.push(format!("- file {}", options.state_dir.join(ConfigFile::KEPT).display()));
    }
    let advertised = advertise::forget(options)?;
    said.extend(advertised.iter().map(|path| format!("- file {}", path.display())));
    if LeasesFile::forget(&options.state_dir)? {
        said.push(format!("- file {}", options.state_dir.join(LeasesFile::NAME).display()));
    }
    if LimitsFile::forget(&options.state_dir)? {
        said.push(format!("- file {}", options.state_dir.join(LimitsFile::NAME).display()));
    }
    if DesignFile::forget(&options.state_dir)? {
        said.push(format!("- file {}", options.state_dir.join(DESIGN_FILE).display()));
    }
    let halves = files::remove_halves(&options.state_dir)?;
    said.extend(halves.iter().map(|half| format!("- file {}", half.display())));
    let keys = forget_keys_but(&options.key_directories(), &[])?;
    said.extend(keys.iter().map(|key| format!("- file {}", key.display())));
    if policy::clean(&options.state_dir)? {
        said.push(format!("- table inet {}", netstate::POLICY_TABLE));
    }
    let (mut door, _) = Door::open().map_err(kernel_error("open netlink"))?;
    let plan = door.plan(&State::default()).map_err(kernel_error("look at the kernel"))?;
    said.extend(plan.steps.iter().map(ToString::to_string));
    door.apply(&plan.steps).map(drop).map_err(kernel_error("clean the kernel"))
}

fn check(options: &Options) -> Result<(), Error> {
    cluster::check_subdomain(&options.node)
        .map_err(|source| Error::Node { node: options.node.clone(), source })
}

/// What came of the configuration file.
#[derive(Default)]
struct Configuration {
    file: Option<ConfigFile>,
    /// Why the file is not in force, if it is not.
    problem: Option<String>,
}

/// The options with what the configuration file says; a broken one is told to the cluster, and an earlier one used.
fn configure(options: &Options) -> Result<(Options, Configuration), Error> {
    let Some(path) = &options.config_file else { return Ok((options.clone(), Configuration::default())) };
    let refuse = |error: &ConfigError| tell(options, Reason::ConfigurationRefused, &told(error));
    let keys = NetworkKeys::of(&options.store);
    let opened = ConfigFile::open(path, &options.state_dir, keys).inspect_err(refuse)?;
    if let Some(error) = &opened.refused {
        // It is told as a problem as well, once the store has been read.
        tracing::warn!(%error, "the agent starts with the last good configuration");
    }
    let options = Options { config: opened.config, ..options.clone() };
    Ok((options, Configuration { file: Some(opened.file), problem: opened.refused }))
}

/// Tells the cluster why the agent does not start. Best effort: the error goes to the log as well.
fn tell(options: &Options, reason: Reason, text: &str) {
    match options.open_store() {
        Ok(store) => tell_at_once(&*store, &options.node, reason, text),
        Err(error) => tracing::warn!(error = %told(&error), "an event could not be written"),
    }
}

/// Ends the start where the cluster's networks overlap the host's, and lets no more pods be attached by what an earlier
/// run left: pods made now would hide real machines.
fn refuse_overlaps(options: &Options, mut door: Door) -> Result<Door, Error> {
    let host = door.host().map_err(kernel_error("look at the host's network"))?;
    let own = NetworkFile::new(&options.state_dir).remembered(&options.node);
    let cluster = &options.config.cluster;
    let networks = Networks { cluster: &cluster.pod_cidrs, own: &own, allowed: &cluster.allow_overlap };
    match overlaps(&host, &networks).into_iter().next() {
        None => Ok(door),
        Some(overlap) => {
            NetworkFile::new(&options.state_dir).suspend(&told(&overlap))?;
            tell(options, Reason::NetworkOverlap, &told(&overlap));
            Err(overlap.into())
        }
    }
}

/// Where events come from.
struct Sources {
    termination: Termination,
    server: Server,
    watcher: Watcher,
    watch: store::Events,
    feed: Feed,
    counts: Counts,
    http: Vec<Health>,
    config_file: Option<ConfigFile>,
}

fn start_threads(events: &Sender<Event>, sources: Sources) -> Result<(), Error> {
    let Sources { termination, server, watcher, watch, feed, counts, http, config_file } = sources;
    start("signals", events, move |events| {
        // Either way the agent is to end: nobody could stop it any more.
        let end = termination.wait();
        let _ = events.send(end.map_or_else(|error| Event::Lost(error.to_string()), |_| Event::Stop));
    })?;
    let (freed, gone) = mpsc::channel();
    spawn("connections", move || freed::serve(&gone))?;
    start("kernel", events, move |events| {
        let lost = watcher.run(&events, &freed);
        let _ = events.send(Event::Lost(lost));
    })?;
    start("store", events, move |events| {
        for event in watch.filter_map(|event| feed.share(event)) {
            if events.send(Event::Store(Box::new(event))).is_err() {
                return;
            }
        }
        let _ = events.send(Event::Lost("the store can no longer be watched".to_owned()));
    })?;
    for health in http {
        let counts = counts.clone();
        start("http", events, move |events| health.serve(&events, &counts))?;
    }
    if let Some(config_file) = config_file {
        start("configuration", events, move |events| config_file.follow(&events))?;
    }
    start("socket", events, move |events| server.serve(&events))
}

fn start(
    name: &'static str,
    events: &Sender<Event>,
    body: impl FnOnce(Sender<Event>) + Send + 'static,
) -> Result<(), Error> {
    let events = events.clone();
    spawn(name, move || body(events))
}

/// Starts a thread that nobody waits for: it ends by itself, or with the process.
pub(crate) fn spawn(name: &'static str, body: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let started = thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(body);
    started.map(drop).map_err(|source| Error::Thread { name, source })
}

impl Error {
    pub(crate) fn policies(error: kernel::Error) -> Self {
        Self::Policies(Box::new(error))
    }
}

fn kernel_error(tried: &'static str) -> impl FnOnce(DoorError) -> Error {
    move |source| Error::Kernel { tried, source }
}
