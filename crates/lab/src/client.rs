//! The client's side of a lab: starting a supervisor, and asking it.
//!
//! Read [`Lab`] first. A client holds nothing of the lab: everything it knows it has asked for.

use std::fs;
use std::io::Read;
use std::mem;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use kernel::netns::Netns;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::de::DeserializeOwned;
use store::Directory;

use crate::control::{Line, ProbeRequest, Progress, Request, hear, say};
use crate::error::{Error, Result};
use crate::home::{Home, NodeHome};
use crate::listing::{ListedPod, Listing};
use crate::manifests::{self, Manifest};
use crate::probe::Probe;
use crate::supervisor::Options;

/// A lab that is up.
#[derive(Debug)]
pub struct Lab {
    home: Home,
    /// The supervisor, when it is to end with us.
    attached: Option<Ender>,
}

/// Ends an attached lab from any thread.
#[derive(Debug, Clone)]
pub struct Ender {
    attached: Arc<Mutex<Attached>>,
}

#[derive(Debug)]
struct Attached {
    child: Child,
    /// Its end tells the supervisor that we are gone, whatever ended us.
    stdin: Option<ChildStdin>,
}

impl Ender {
    /// Ends the lab and returns when nothing of it is left. Ending it again changes nothing.
    pub fn end(&self) {
        let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        drop(attached.stdin.take());
        let _ = attached.child.wait();
    }
}

/// How to start a lab.
#[derive(Debug, Clone)]
pub struct UpOptions {
    /// Its name.
    pub name: String,
    /// Everything else.
    pub options: Options,
    /// Manifests to begin with: files or directories.
    pub from: Vec<PathBuf>,
    /// Further manifests to begin with, already read.
    pub manifests: Vec<Manifest>,
    /// The lab ends when the process that started it ends, however it ends.
    pub attached: bool,
}

impl Lab {
    /// Starts a lab and returns once its supervisor holds every namespace; [`Lab::settle`] waits for nodes and pods.
    ///
    /// # Errors
    /// A lab of that name is up, no directory can be written, a manifest does not parse, or the machine
    /// refuses the namespaces. Nothing is left then.
    pub fn up(up: &UpOptions, progress: &mut dyn FnMut(Progress)) -> Result<Self> {
        let mut manifests = manifests::read(&up.from)?;
        manifests.extend(up.manifests.iter().cloned());
        up.options.check()?;
        let (home, _turn) = Home::create(&up.name)?;
        let started = Self::start(&home, up, &manifests, progress);
        started.inspect_err(|_| {
            // Whatever is half made goes; the error that matters is the first.
            let _ = home.remove();
        })
    }

    fn start(
        home: &Home,
        up: &UpOptions,
        manifests: &[Manifest],
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Self> {
        manifests::install(&home.store(), manifests)?;
        let mut child = spawn_supervisor(home, up)?;
        let stdout = child.stdout.take();
        let answer = stdout.map_or(Ok(None), |stdout| hear::<()>(stdout, progress));
        if let Ok(Some(())) = answer {
            let stdin = child.stdin.take();
            let attached =
                up.attached.then(|| Ender { attached: Arc::new(Mutex::new(Attached { child, stdin })) });
            return Ok(Self { home: home.clone(), attached });
        }
        // Dropping its standard input ends an attached one that is half way; then its end is awaited.
        drop(child.stdin.take());
        let _ = child.wait();
        answer?;
        Err(Error::SupervisorEnded { log: tail(&home.log()) })
    }

    /// A lab that somebody has started.
    ///
    /// # Errors
    /// [`Error::NotUp`].
    pub fn open(name: &str) -> Result<Self> {
        Ok(Self { home: Home::find(name)?, attached: None })
    }

    /// What ends this lab from another thread, when it was started attached.
    pub fn ender(&self) -> Option<Ender> {
        self.attached.clone()
    }

    /// Where its files are.
    pub fn home(&self) -> &Home {
        &self.home
    }

    /// The supervisor's process, when its user namespace is another than ours: who wants to enter the lab's
    /// network namespaces has to enter that one first.
    pub fn own_user_namespace(&self) -> Option<u32> {
        let supervisor = self.home.supervisor()?;
        let theirs = fs::read_link(format!("/proc/{supervisor}/ns/user")).ok()?;
        (fs::read_link("/proc/self/ns/user").ok()? != theirs).then_some(supervisor)
    }

    /// The files of one node.
    ///
    /// # Errors
    /// [`Error::NoSuchNode`].
    pub fn node(&self, name: &str) -> Result<NodeHome> {
        if self.list()?.nodes.iter().all(|node| node.name != name) {
            return Err(Error::NoSuchNode { lab: self.home.name().to_owned(), node: name.to_owned() });
        }
        Ok(self.home.node(name))
    }

    /// The lab as it is now.
    ///
    /// # Errors
    /// The supervisor does not answer.
    pub fn list(&self) -> Result<Listing> {
        self.ask(&Request::List, &mut |_| {})
    }

    /// Waits until every node is ready and every pod that the store holds now is wired.
    ///
    /// # Errors
    /// A node or a pod that will not come up, with its reason.
    pub fn settle(&self, progress: &mut dyn FnMut(Progress)) -> Result<Listing> {
        // The supervisor may not have seen yet what was written a moment ago: it is told what to wait for.
        let listed = Directory::at(self.home.store()).list().map_err(|source| Error::Store { source })?;
        let waiting = listed.snapshot.pods.values().filter(|pod| !pod.phase.ended());
        let pods = waiting.map(|pod| pod.name.to_string()).collect();
        self.ask(&Request::Settle { pods }, progress)
    }

    /// Tries every pod from every other, and throughput across nodes for `throughput_millis` in all.
    ///
    /// # Errors
    /// The probe could not be made; a pod that is not reached is no error but a finding.
    pub fn probe(&self, throughput_millis: u64, progress: &mut dyn FnMut(Progress)) -> Result<Probe> {
        self.ask(&Request::Probe(ProbeRequest { throughput_millis }), progress)
    }

    /// Copies manifests (files or directories) into the store, and waits until all that it holds is in force.
    ///
    /// # Errors
    /// A manifest does not parse, the store cannot be written, or a pod does not come up.
    pub fn apply(&self, from: &[PathBuf], progress: &mut dyn FnMut(Progress)) -> Result<Listing> {
        manifests::install(&self.home.store(), &manifests::read(from)?)?;
        self.settle(progress)
    }

    /// The pod called `name` or `namespace/name`.
    ///
    /// # Errors
    /// [`Error::NoSuchPod`].
    pub fn pod(&self, name: &str) -> Result<ListedPod> {
        let mut pods = self.list()?.pods;
        let full = if name.contains('/') { name.to_owned() } else { format!("default/{name}") };
        let found = pods
            .iter()
            .position(|pod| pod.full_name() == full)
            .or_else(|| only(pods.iter().enumerate().filter(|(_, pod)| pod.name == name).map(|(at, _)| at)));
        found
            .map(|index| pods.swap_remove(index))
            .ok_or_else(|| Error::NoSuchPod { lab: self.home.name().to_owned(), pod: name.to_owned() })
    }

    /// Becomes `command` inside a pod's network. Returns only when that fails.
    ///
    /// # Errors
    /// Always, by its nature: no such pod or program, or a namespace that is not ours to enter.
    pub fn exec(&self, pod: &str, command: &[String]) -> Result<std::convert::Infallible> {
        let pod = self.pod(pod)?;
        let netns = pod.netns.ok_or_else(|| Error::Refused {
            reason: format!("pod {}/{} has no network namespace yet", pod.namespace, pod.name),
        })?;
        let supervisor = self.home.supervisor().ok_or_else(|| self.not_up())?;
        kernel::user_namespace::join(supervisor).map_err(Error::kernel("enter the lab"))?;
        let namespace = Netns::open(&netns).map_err(Error::kernel("enter the pod"))?;
        // Inside for good: what follows is another program.
        mem::forget(namespace.enter().map_err(Error::kernel("enter the pod"))?);
        let Some((program, arguments)) = command.split_first() else {
            return Err(Error::Refused { reason: "no command given".to_owned() });
        };
        // The one program of the lab's that a person names; running it is what the verb is for.
        #[allow(clippy::disallowed_methods)]
        let source = Command::new(program).args(arguments).exec();
        Err(Error::Start { program: program.clone(), source })
    }

    /// Ends the lab. Returns when nothing of it is left.
    ///
    /// # Errors
    /// Files that cannot be removed.
    pub fn down(self, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        let pid = self.home.supervisor().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let supervisor = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
        let asked = self.ask::<()>(&Request::Down, progress);
        match (&self.attached, supervisor) {
            (Some(attached), _) => attached.end(),
            (None, Some(supervisor)) => wait_for_end(&supervisor),
            (None, None) => {}
        }
        // A supervisor that died instead of answering has left only files.
        self.home.remove()?;
        asked.or_else(|error| if matches!(error, Error::NotUp { .. }) { Ok(()) } else { Err(error) })
    }

    fn not_up(&self) -> Error {
        Error::NotUp { name: self.home.name().to_owned(), others: Vec::new() }
    }

    fn ask<T: DeserializeOwned>(&self, request: &Request, progress: &mut dyn FnMut(Progress)) -> Result<T> {
        let not_up = || self.not_up();
        let mut stream = UnixStream::connect(self.home.control_socket()).map_err(|_| not_up())?;
        say(&mut stream, request).map_err(|_| not_up())?;
        stream.shutdown(Shutdown::Write).map_err(|_| not_up())?;
        hear(stream, progress)?.ok_or_else(not_up)
    }
}

/// A process's descriptor becomes readable when the process has ended.
fn wait_for_end(process: &OwnedFd) {
    while let Err(rustix::io::Errno::INTR) = poll(&mut [PollFd::new(process, PollFlags::IN)], None) {}
}

fn only<T>(mut items: impl Iterator<Item = T>) -> Option<T> {
    let first = items.next()?;
    items.next().is_none().then_some(first)
}

fn spawn_supervisor(home: &Home, up: &UpOptions) -> Result<Child> {
    let program = std::env::current_exe().map_err(Error::file("find", "/proc/self/exe"))?;
    let log = fs::File::create(home.log()).map_err(Error::file("make", home.log()))?;
    let options = serde_json::to_string(&up.options).map_err(|source| Error::Answer { source })?;
    let stdin = if up.attached { Stdio::piped() } else { Stdio::null() };
    // The lab is made of processes: this is the one that holds it.
    #[allow(clippy::disallowed_methods)]
    let mut command = Command::new(&program);
    command.args(["lab", "supervise", "--name", &up.name, "--options", &options]);
    command.arg("--home").arg(home.path());
    if up.attached {
        command.arg("--attached");
    }
    command.current_dir("/").stdin(stdin).stdout(Stdio::piped()).stderr(log);
    // Out of the terminal's process group: Ctrl-C is for the client, which then ends the lab in order.
    command.process_group(0);
    command.spawn().map_err(|source| Error::Start { program: program.display().to_string(), source })
}

/// The last lines of a log, to follow an error.
fn tail(path: &Path) -> String {
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text));
    if read.is_err() || text.trim().is_empty() {
        return String::new();
    }
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let from = lines.len().saturating_sub(5);
    format!("; its last words:\n{}", lines[from..].join("\n"))
}

/// The first line the supervisor says when it cannot start: the error, its causes, and then every hint in them.
pub(crate) fn refusal(error: &dyn std::error::Error) -> Line {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let (mut words, mut hints) = (Vec::new(), Vec::new());
    for text in causes.map(ToString::to_string) {
        let mut parts = text.split("; hint: ").map(str::to_owned);
        words.extend(parts.next());
        hints.extend(parts);
    }
    let hints: String = hints.iter().map(|hint| format!("; hint: {hint}")).collect();
    Line::Failed(words.join(": ") + &hints)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_its_causes_before_its_hints() {
        let source = std::io::Error::from_raw_os_error(1);
        let source = kernel::Error::System { tried: "make a user namespace", source };
        let Line::Failed(words) = refusal(&Error::UserNamespace { source }) else {
            panic!("it is a refusal")
        };
        let (words, hint) = words.split_once("; hint: ").unwrap();
        assert!(words.ends_with("Operation not permitted (os error 1)"), "{words}");
        assert!(hint.starts_with("run as root") && hint.ends_with("max_user_namespaces)"), "{hint}");
    }
}
