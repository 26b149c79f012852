//! The nodes' agents: a thread each, inside the node's namespace, that starts the agent's process, waits for
//! its end and starts it again.
//!
//! What an agent has open is kept for its next life ([`kernel::notify`]), so that the tunnels that it carries lose nothing.
//!
//! The thread lives as long as the agent: the kernel ends an agent with the thread that started it, so a
//! supervisor that is killed takes its agents with it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kernel::netns::Netns;
use kernel::notify::Keeper as Descriptors;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::nodes::Node;
use super::{Event, Options, backoff, log, thread};
use crate::error::{Error, Result};
use crate::home::{Home, NodeHome};

/// An agent that lived this long did not fail to start.
const STABLE: Duration = Duration::from_secs(5);

/// All agents.
pub(super) struct Agents {
    running: Vec<Running>,
}

struct Running {
    /// The process that runs now, by a descriptor that can mean no other.
    process: Arc<Mutex<Option<OwnedFd>>>,
    /// Dropped to say that no further one shall be started.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Agents {
    /// Starts one for every node.
    pub(super) fn start(
        nodes: &[Node],
        home: &Home,
        options: &Options,
        events: &Sender<Event>,
    ) -> Result<Self> {
        let running = nodes.iter().enumerate().map(|(index, node)| {
            let (stop, stopped) = channel();
            let process = Arc::new(Mutex::new(None));
            let keeper = Keeper {
                index,
                name: node.name.to_string(),
                netns: Arc::clone(&node.netns),
                home: node.home.clone(),
                store: home.store(),
                config: home.agent_config(),
                options: options.clone(),
                events: events.clone(),
                process: Arc::clone(&process),
                stopped,
            };
            let name = format!("agent {}", node.name);
            let thread = std::thread::Builder::new().name(name).spawn(move || keeper.keep());
            let thread = thread.map_err(|source| Error::Thread { source })?;
            Ok(Running { process, stop: Some(stop), thread: Some(thread) })
        });
        Ok(Self { running: running.collect::<Result<_>>()? })
    }

    /// Ends all agents and waits until they have.
    pub(super) fn stop(&mut self) {
        for running in &mut self.running {
            running.stop = None;
            let process = running.process.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(process) = process.as_ref() {
                // One that has ended meanwhile is what we want.
                let _ = pidfd_send_signal(process, Signal::KILL);
            }
        }
        for running in &mut self.running {
            if let Some(thread) = running.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

/// What one thread needs to keep one agent running.
struct Keeper {
    index: usize,
    name: String,
    netns: Arc<Netns>,
    home: NodeHome,
    store: PathBuf,
    config: PathBuf,
    options: Options,
    events: Sender<Event>,
    process: Arc<Mutex<Option<OwnedFd>>>,
    stopped: Receiver<()>,
}

impl Keeper {
    fn keep(self) {
        let _inside = match self.netns.enter() {
            Ok(inside) => inside,
            Err(error) => return self.tell_end(format!("cannot enter the node: {error}")),
        };
        let descriptors = self.keep_descriptors();
        self.keep_alive(descriptors.as_deref());
        // What nobody goes on with holds the node's namespace, and draws packets.
        if let Some(descriptors) = descriptors {
            descriptors.close();
        }
    }

    /// One life of the agent after the other.
    fn keep_alive(&self, descriptors: Option<&Descriptors>) {
        let mut failures = 0;
        loop {
            let began = Instant::now();
            match self.live(descriptors) {
                Ok(status) => self.tell_end(status.to_string()),
                Err(error) => self.tell_end(format!("cannot start it: {error}")),
            }
            if !self.options.restart {
                return;
            }
            failures = if began.elapsed() >= STABLE { 0 } else { failures + 1 };
            // The first restart is immediate: an agent that was killed is missed at once.
            let pause = if failures <= 1 { Duration::ZERO } else { backoff(failures) };
            if self.stopped.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
    }

    /// Keeps for the agent what it has open, so that its next life goes on with it, as systemd would. Without, packets of
    /// its tunnels are lost while it is dead.
    fn keep_descriptors(&self) -> Option<Arc<Descriptors>> {
        let opened = Descriptors::open(&format!("fairlead-lab/{}", self.name));
        let told = |error| log(&format!("what the agent of {} has open ends with it: {error}", self.name));
        let keeper = Arc::new(opened.map_err(told).ok()?);
        let serving = Arc::clone(&keeper);
        thread("descriptors", move || serving.serve()).ok()?;
        Some(keeper)
    }

    /// One life of the agent.
    fn live(&self, descriptors: Option<&Descriptors>) -> io::Result<ExitStatus> {
        let mut child = self.spawn(descriptors)?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let descriptor = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        self.set_process(descriptor);
        // Stopping may have come between: the process was not there to be signalled then.
        if matches!(self.stopped.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected)) {
            child.kill()?;
        }
        let _ = self.events.send(Event::AgentStarted { node: self.index, pid: child.id() });
        let status = child.wait();
        self.set_process(None);
        status
    }

    fn set_process(&self, process: Option<OwnedFd>) {
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = process;
    }

    fn spawn(&self, descriptors: Option<&Descriptors>) -> io::Result<Child> {
        let log = File::options().create(true).append(true).open(self.home.agent_log())?;
        let mut store = std::ffi::OsString::from("dir:");
        store.push(&self.store);
        // The agent is a process of its own, as on a real node.
        #[allow(clippy::disallowed_methods)]
        let mut command = Command::new(&self.options.agent_program);
        command.arg("agent").arg("--store").arg(store).args(["--node", &self.name]);
        command.arg("--state-dir").arg(self.home.state());
        command.arg("--conf-dir").arg(self.home.conf());
        command.arg("--ipam-dir").arg(self.home.networks());
        command.args(["--parent", &std::process::id().to_string()]);
        command.arg("--config").arg(&self.config);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // Who started the lab is no manager of its agents.
        command.env_remove("NOTIFY_SOCKET");
        if let Some(descriptors) = descriptors {
            descriptors.pass(&mut command).map_err(io::Error::other)?;
        }
        command.spawn()
    }

    fn tell_end(&self, how: String) {
        let _ = self.events.send(Event::AgentEnded { node: self.index, how });
    }
}
