//! The process that is the lab.
//!
//! Read [`supervise`] first: the parts in the order they start, each with the reason for its place. Then
//! [`Supervisor::run`]: one loop that takes one event after another. Events come from threads that each wait
//! for one thing (the store, the nodes' configuration directories, an agent, a plugin chain, a client, a
//! signal); only the loop changes the lab.

mod agents;
mod clients;
mod nodes;
mod pods;
mod underlay;
mod watch;
mod wiring;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use cluster::{EndpointSlice, NamespacedName, Snapshot};
use ipnet::IpNet;
use kernel::signals::Termination;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use store::Directory;

use crate::answer::Answers;
use crate::client::refusal;
use crate::control::{Line, Part, Progress, say};
use crate::error::{Error, Result};
use crate::home::Home;
use agents::Agents;
use clients::{Asked, Waiting};
use nodes::Node;
use pods::Pods;
use wiring::Wiring;

/// What a lab is to be like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// How many nodes, named node1 to nodeN.
    pub nodes: usize,
    /// The agents' configuration, a text that they understand. It becomes a file of the lab's home that they follow.
    pub agent_config: String,
    /// Whether an agent that dies is started again.
    pub restart: bool,
    /// The program behind every plugin.
    pub plugin_program: PathBuf,
    /// The plugins' names.
    pub plugins: Vec<String>,
    /// The program of the agents; its first argument is `agent`.
    pub agent_program: PathBuf,
}

impl Options {
    /// Says what cannot be before anything is made.
    pub(crate) fn check(&self) -> Result<()> {
        if (1..=250).contains(&self.nodes) { Ok(()) } else { Err(Error::Nodes { nodes: self.nodes }) }
    }
}

/// What the loop hears of.
enum Event {
    /// The store said something.
    Store(store::Event),
    /// A directory changed in which an agent says whether its node takes pods.
    Readiness,
    /// An agent has made a route to other nodes' pods, or removed it.
    Route { node: usize, destination: IpNet, present: bool },
    /// An agent runs.
    AgentStarted { node: usize, pid: u32 },
    /// An agent has ended.
    AgentEnded { node: usize, how: String },
    /// A chain has run.
    Wired(wiring::Outcome),
    /// A client asks.
    Asked(Asked),
    /// It is time to end.
    End,
}

/// The whole life of a supervisor, from the first moment of its process (there must be one thread) to the last.
/// `attached`: it ends when its standard input does.
///
/// # Errors
/// The lab could not be made; the client has been told already, and nothing is left.
pub fn supervise(home: &Home, options: &Options, attached: bool) -> Result<()> {
    // A session of its own: the terminal's hang-up is not for us. Refused when we lead one already.
    let _ = rustix::process::setsid();
    let mut stdout = io::stdout();
    let supervisor = start(home, options, attached, &mut |progress| {
        // Nobody may be listening any more; an attached supervisor hears of that elsewhere.
        let _ = say(&mut stdout, &Line::Progress(progress));
    });
    let outcome = match supervisor {
        Ok(supervisor) => {
            let _ = say(&mut stdout, &Line::Done(serde_json::Value::Null));
            supervisor.run()
        }
        Err(error) => {
            let _ = say(&mut stdout, &refusal(&error));
            let _ = home.remove();
            return Err(error);
        }
    };
    if let Some(mut farewell) = outcome? {
        let _ = say(&mut farewell, &Line::Done(serde_json::Value::Null));
    }
    Ok(())
}

fn start(
    home: &Home,
    options: &Options,
    attached: bool,
    told: &mut dyn FnMut(Progress),
) -> Result<Supervisor> {
    // Signals before every thread, so that all inherit the block.
    let termination = Termination::take_over().map_err(Error::kernel("take signals over"))?;
    let lock = home.lock()?;
    allow_many_descriptors();
    // The machine's network is left while there is one thread, so that none stays behind.
    leave_the_machines_network()?;
    let config = home.agent_config();
    std::fs::write(&config, &options.agent_config).map_err(Error::file("write", &config))?;
    let mut nodes = underlay::build(options.nodes, told)?;
    for node in &mut nodes {
        node.home = home.node(&node.name);
        node.home.make(&options.plugin_program, &options.plugins)?;
        let (name, text) = node.manifest();
        let directory = Directory::at(home.store());
        directory.install(&name, text.as_bytes()).map_err(|source| Error::Store { source })?;
    }
    let socket = home.control_socket();
    let listener = UnixListener::bind(&socket).map_err(Error::file("listen on", &socket))?;
    let (sender, events) = channel();
    // Watching begins before agents start: a conflist can appear in a few milliseconds.
    watch::readiness(&nodes, sender.clone())?;
    watch::routes(&nodes, &sender)?;
    watch::store(Directory::at(home.store()), sender.clone())?;
    watch::termination(termination, sender.clone())?;
    if attached {
        watch::standard_input(sender.clone())?;
    }
    let answers = Answers::start().map_err(|source| Error::Thread { source })?;
    let wiring = Wiring::start(answers.clone(), sender.clone())?;
    let agents = Agents::start(&nodes, home, options, &sender)?;
    clients::listen(listener, sender)?;
    Ok(Supervisor {
        home: home.clone(),
        store: Directory::at(home.store()),
        snapshot: Snapshot::default(),
        problems: Vec::new(),
        nodes,
        restart: options.restart,
        pods: Pods::new(home.name()),
        slices: BTreeMap::new(),
        waiting: Vec::new(),
        agents,
        wiring,
        answers,
        events,
        _lock: lock,
    })
}

/// Root makes a network namespace and is done; anyone else, and a root that may not, becomes root of a new user
/// namespace first.
fn leave_the_machines_network() -> Result<()> {
    if rustix::process::geteuid().is_root() && kernel::user_namespace::leave_the_machines_network().is_ok() {
        return Ok(());
    }
    kernel::user_namespace::become_root_of_a_new_one().map_err(|source| Error::UserNamespace { source })
}

/// A node takes a handful of descriptors and a pod some more; the usual soft limit of 1,024 would bound a lab.
fn allow_many_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    // Refused only where the limit is as high as it may be.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Everything the loop knows.
struct Supervisor {
    home: Home,
    store: Directory,
    snapshot: Snapshot,
    problems: Vec<store::Problem>,
    nodes: Vec<Node>,
    /// Agents that die come back.
    restart: bool,
    pods: Pods,
    /// The EndpointSlices we have written.
    slices: BTreeMap<NamespacedName, EndpointSlice>,
    waiting: Vec<Waiting>,
    agents: Agents,
    wiring: Wiring,
    answers: Answers,
    events: Receiver<Event>,
    /// Held for life: who can take it knows that we are dead.
    _lock: std::fs::File,
}

impl Supervisor {
    /// One event after another until the end; returns the client that asked for it, if one did.
    fn run(mut self) -> Result<Option<std::os::unix::net::UnixStream>> {
        let mut asked_to_end = None;
        loop {
            let event = match self.pods.next_retry() {
                None => self.events.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => self.events.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            match event {
                Ok(Event::End) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(Event::Asked(Asked { request: crate::control::Request::Down, stream })) => {
                    asked_to_end = Some(stream);
                    break;
                }
                Ok(event) => self.handle(event),
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.reconcile();
            self.tell_waiting();
        }
        self.end(&mut asked_to_end)?;
        Ok(asked_to_end)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Store(event) => self.handle_store(event),
            Event::Readiness => self.nodes.iter_mut().for_each(Node::look_at_readiness),
            Event::Route { node, destination, present: true } => {
                self.nodes[node].routes.insert(destination);
            }
            Event::Route { node, destination, present: false } => {
                self.nodes[node].routes.remove(&destination);
            }
            Event::AgentStarted { node, pid } => self.nodes[node].agent_pid = Some(pid),
            Event::AgentEnded { node, how } => {
                self.nodes[node].agent_pid = None;
                log(&format!("the agent of {} ended: {how}", self.nodes[node].name));
                // One that could carry pods has started well, whatever ended it.
                self.nodes[node].ends = if self.nodes[node].ready { 0 } else { self.nodes[node].ends + 1 };
                self.nodes[node].last_end = Some(how);
            }
            Event::Wired(outcome) => self.pods.handle(outcome, Instant::now()),
            Event::Asked(asked) => self.handle_asked(asked),
            Event::End => {}
        }
    }

    fn handle_store(&mut self, event: store::Event) {
        match event {
            store::Event::Snapshot(snapshot) => self.snapshot = snapshot,
            store::Event::Changes(changes) => changes.into_iter().for_each(|change| {
                self.snapshot.apply(change);
            }),
            store::Event::Problems(problems) => {
                problems.iter().for_each(|problem| log(&format!("store: {problem}")));
                self.problems = problems;
            }
            store::Event::Unavailable { reason } => log(&format!("the store is away: {reason}")),
            store::Event::Available => log("the store is back"),
            // A directory never says that it lost something.
            store::Event::InSync | store::Event::Lost(_) | store::Event::Confirmed(_) => {}
        }
    }

    /// Brings pods, their statuses and the EndpointSlices to what the snapshot wants.
    fn reconcile(&mut self) {
        let work = self.pods.reconcile(&self.snapshot, &self.nodes, Instant::now());
        for job in work.jobs {
            self.wiring.begin(job);
        }
        for pod in work.closed {
            self.answers.close(&pod.to_string());
        }
        for status in self.pods.statuses_to_write(&self.snapshot, &self.nodes) {
            self.write(&status.into());
        }
        for key in self.pods.statuses_to_remove(&self.snapshot) {
            self.remove(&key);
        }
        self.keep_slices();
    }

    fn keep_slices(&mut self) {
        let wanted = crate::endpoints::endpoint_slices(&self.snapshot);
        for (name, slice) in &wanted {
            if self.slices.get(name) != Some(slice) {
                self.write(&slice.clone().into());
            }
        }
        let gone: Vec<NamespacedName> =
            self.slices.keys().filter(|name| !wanted.contains_key(*name)).cloned().collect();
        for name in gone {
            self.remove(&cluster::Key::EndpointSlice(name));
        }
        self.slices = wanted;
    }

    fn write(&mut self, object: &cluster::Object) {
        match self.store.write(object, store::Expect::Any) {
            Ok(_) => {
                self.snapshot.apply(cluster::Change::Set(object.clone()));
            }
            Err(error) => log(&format!("cannot write {}: {error}", object.key())),
        }
    }

    fn remove(&mut self, key: &cluster::Key) {
        match self.store.delete(key, store::Expect::Any) {
            Ok(_) => {
                self.snapshot.apply(cluster::Change::Removed(key.clone()));
            }
            Err(error) => log(&format!("cannot remove {key}: {error}")),
        }
    }

    /// Agents first, so that nothing writes while the files go; the namespaces go with this process.
    fn end(mut self, client: &mut Option<std::os::unix::net::UnixStream>) -> Result<()> {
        let total = self.nodes.len();
        if let Some(stream) = client {
            let what = "agents, namespaces, files".to_owned();
            let _ = say(stream, &Line::Progress(Progress { part: Part::Cleaning, done: 0, total, what }));
        }
        self.agents.stop();
        self.wiring.stop();
        self.home.remove()
    }
}

/// To the supervisor's log, which is its standard error.
fn log(line: &str) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Starts a thread that lives as long as the process.
fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    started.map(drop).map_err(|source| Error::Thread { source })
}

/// The pause before the n-th try in a row.
fn backoff(tries: u32) -> Duration {
    Duration::from_millis(100 << tries.min(6))
}
