//! Pods through the chain: what a container runtime does with CNI, on a few threads at a time.
//!
//! A job enters the pod's node and runs the loopback plugin and the node's first network through the real
//! plugins, as processes. Then the pod's servers are opened inside its own namespace. A failed ADD is followed
//! by a DEL, as the specification asks.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use cluster::NamespacedName;
use cni::{Cache, ConfList, Runner, RuntimeArguments};
use kernel::netns::Netns;

use super::nodes::path;
use super::{Event, log};
use crate::answer::{Answers, PodSockets, Port};
use crate::error::{Error, Result};
use crate::home::NodeHome;

/// More at a time would only take turns on the kernel's lock for links.
const WORKERS: usize = 4;
/// The interface of the node's network in a pod.
const INTERFACE: &str = "eth0";
/// As container runtimes do: the loopback interface has a network of its own.
const LOOPBACK: &[u8] = br#"{"cniVersion":"1.0.0","name":"cni-loopback","plugins":[{"type":"loopback"}]}"#;

/// What is to be done for a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Wire it and answer on its ports.
    Add,
    /// Take it down.
    Del,
    /// Answer on its ports, which have changed.
    Serve,
}

/// A task with all it needs.
pub(super) struct Job {
    pub(super) task: Task,
    pub(super) pod: NamespacedName,
    pub(super) container: String,
    /// What tells the pod from one of the same name before or after it.
    pub(super) uid: String,
    pub(super) node: Arc<Netns>,
    pub(super) netns: Arc<Netns>,
    pub(super) home: NodeHome,
    pub(super) ports: Vec<Port>,
    /// The addresses of a pod in its node's own network, which no chain gives.
    pub(super) host_addresses: Option<Vec<IpAddr>>,
}

/// What came of a job: after ADD the pod's addresses.
pub(super) struct Outcome {
    pub(super) task: Task,
    pub(super) pod: NamespacedName,
    pub(super) result: std::result::Result<Vec<IpAddr>, String>,
}

/// The workers.
pub(super) struct Wiring {
    jobs: Option<Sender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

impl Wiring {
    pub(super) fn start(answers: Answers, events: Sender<Event>) -> Result<Self> {
        let (jobs, waiting) = channel();
        let worker =
            Worker { waiting: Arc::new(Mutex::new(waiting)), lists: Arc::default(), answers, events };
        let start = |number| {
            let worker = worker.clone();
            let thread =
                std::thread::Builder::new().name(format!("chain {number}")).spawn(move || worker.work());
            thread.map_err(|source| Error::Thread { source })
        };
        Ok(Self { jobs: Some(jobs), threads: (0..WORKERS).map(start).collect::<Result<_>>()? })
    }

    /// Has it done by whichever worker is free first.
    pub(super) fn begin(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // Refused only when every worker has panicked; the pod stays as it is then.
            let _ = jobs.send(job);
        }
    }

    /// Begins nothing more and waits for what runs.
    pub(super) fn stop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[derive(Clone)]
struct Worker {
    waiting: Arc<Mutex<Receiver<Job>>>,
    /// The list each container was added with: a DEL must not depend on the agent's file being there.
    lists: Arc<Mutex<HashMap<String, ConfList>>>,
    answers: Answers,
    events: Sender<Event>,
}

impl Worker {
    fn work(self) {
        loop {
            // The lock is held while waiting: the other workers queue behind it.
            let job = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(job) = job else { return };
            let result = self.carry_out(&job);
            if self.events.send(Event::Wired(Outcome { task: job.task, pod: job.pod, result })).is_err() {
                return;
            }
        }
    }

    fn carry_out(&self, job: &Job) -> std::result::Result<Vec<IpAddr>, String> {
        match job.task {
            Task::Add => {
                let addresses = match &job.host_addresses {
                    Some(addresses) => addresses.clone(),
                    None => self.add(job)?,
                };
                self.serve(job);
                Ok(addresses)
            }
            Task::Del if job.host_addresses.is_some() => Ok(Vec::new()),
            Task::Del => self.del(job).map(|()| Vec::new()),
            Task::Serve => {
                self.answers.close(&job.pod.to_string());
                self.serve(job);
                Ok(Vec::new())
            }
        }
    }

    fn add(&self, job: &Job) -> std::result::Result<Vec<IpAddr>, String> {
        let list = ConfList::first(&job.home.conf()).map_err(|error| error.to_string())?;
        self.lists().insert(job.container.clone(), list.clone());
        let loopback = loopback()?;
        let _inside = job.node.enter().map_err(|error| error.to_string())?;
        let runner = runner(&job.home);
        let added = runner
            .add(&loopback, &arguments(job, "lo"))
            .and_then(|_| runner.add(&list, &arguments(job, INTERFACE)));
        match added {
            Ok(result) => Ok(result.ips.iter().map(|ip| ip.address.addr()).collect()),
            Err(error) => {
                // What is half made goes; the error that matters is the first.
                let _ = runner.del(&list, &arguments(job, INTERFACE));
                Err(error.to_string())
            }
        }
    }

    fn del(&self, job: &Job) -> std::result::Result<(), String> {
        let Some(list) = self.lists().remove(&job.container) else { return Ok(()) };
        let _inside = job.node.enter().map_err(|error| error.to_string())?;
        let runner = runner(&job.home);
        let deleted = runner.del(&list, &arguments(job, INTERFACE));
        let loopback = runner.del(&loopback()?, &arguments(job, "lo"));
        deleted.and(loopback).map_err(|error| error.to_string())
    }

    fn serve(&self, job: &Job) {
        let name = job.pod.to_string();
        let opened = job.netns.enter().map(|_inside| PodSockets::open(&job.ports));
        let (sockets, failed) = match opened {
            Ok(opened) => opened,
            Err(error) => return log(&format!("pod {name}: cannot open its servers: {error}")),
        };
        for (port, error) in failed {
            log(&format!("pod {name}: cannot answer on {port:?}: {error}"));
        }
        if let Err(error) = self.answers.serve(&name, sockets) {
            log(&format!("pod {name}: cannot answer: {error}"));
        }
    }

    fn lists(&self) -> std::sync::MutexGuard<'_, HashMap<String, ConfList>> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn loopback() -> std::result::Result<ConfList, String> {
    ConfList::parse(LOOPBACK, Path::new("the lab's own loopback network")).map_err(|error| error.to_string())
}

fn runner(home: &NodeHome) -> Runner {
    Runner { path: vec![home.bin()], cache: Cache::new(home.cache()), resolver: None }
}

fn arguments(job: &Job, ifname: &str) -> RuntimeArguments {
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    RuntimeArguments {
        container_id: job.container.clone(),
        netns: Some(PathBuf::from(path(&job.netns))),
        ifname: ifname.to_owned(),
        args: vec![
            pair("IgnoreUnknown", "1"),
            pair("K8S_POD_NAMESPACE", &job.pod.namespace),
            pair("K8S_POD_NAME", &job.pod.name),
            pair("K8S_POD_INFRA_CONTAINER_ID", &job.container),
            pair("K8S_POD_UID", &job.uid),
        ],
        capability_args: Vec::new(),
    }
}
