//! The pods of the lab and how far each is.
//!
//! Read [`PodState`] first, then [`Pods::reconcile`], which compares the pods with what the snapshot wants and
//! says what is to be done. What the chain made of it comes back through [`Pods::handle`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use cluster::{Key, NamespacedName, Phase, Pod, PodStatus, Protocol, Snapshot};
use kernel::netns::Netns;

use super::backoff;
use super::nodes::{Node, path};
use super::wiring::{Job, Outcome, Task};
use crate::answer::Port;
use crate::listing::ListedPod;
use crate::placement::{Place, place};

/// How far a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PodState {
    /// Its node cannot carry pods yet.
    Waiting,
    /// The chain runs.
    Adding,
    /// It has its addresses.
    Running,
    /// The chain has failed; it is tried again at this time.
    Failed { retry_at: Instant },
    /// The chain takes it down.
    Deleting,
}

/// One pod of the lab.
pub(super) struct PodRecord {
    /// Index of its node.
    pub(super) node: usize,
    pub(super) netns: Arc<Netns>,
    pub(super) state: PodState,
    pub(super) addresses: Vec<IpAddr>,
    /// Why the chain failed last.
    pub(super) reason: Option<String>,
    /// How often in a row the chain has failed.
    pub(super) tries: u32,
    /// The container's id, for the chain.
    container: String,
    /// The pod's UID: its manifest's, or one made up here.
    uid: String,
    ports: Vec<Port>,
    host_network: bool,
}

impl PodRecord {
    pub(super) fn is_running(&self) -> bool {
        self.state == PodState::Running
    }
}

/// What is to be done next.
pub(super) struct Work {
    /// When this is decided.
    now: Instant,
    /// For the chain.
    pub(super) jobs: Vec<Job>,
    /// Pods that shall answer no more.
    pub(super) closed: Vec<NamespacedName>,
}

/// All pods of the lab.
pub(super) struct Pods {
    lab: String,
    /// Counts containers, so that no two ever share an id.
    containers: u64,
    records: BTreeMap<NamespacedName, PodRecord>,
    unplaced: BTreeMap<NamespacedName, String>,
}

impl Pods {
    pub(super) fn new(lab: &str) -> Self {
        Self { lab: lab.to_owned(), containers: 0, records: BTreeMap::new(), unplaced: BTreeMap::new() }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&NamespacedName, &PodRecord)> {
        self.records.iter()
    }

    /// Pods that no node can take, with the reason.
    pub(super) fn unplaced(&self) -> impl Iterator<Item = (&NamespacedName, &String)> {
        self.unplaced.iter()
    }

    /// When a failed pod is due again.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        let due = self.records.values().filter_map(|record| match record.state {
            PodState::Failed { retry_at } => Some(retry_at),
            _ => None,
        });
        due.min()
    }

    /// Compares with what the snapshot wants.
    pub(super) fn reconcile(&mut self, snapshot: &Snapshot, nodes: &[Node], now: Instant) -> Work {
        let names: Vec<Arc<str>> = nodes.iter().map(|node| Arc::clone(&node.name)).collect();
        let placed =
            self.records.iter().map(|(pod, record)| (pod.clone(), Arc::clone(&names[record.node]))).collect();
        let places = place(snapshot, &names, &placed);
        let mut work = Work { now, jobs: Vec::new(), closed: Vec::new() };
        self.take_away(&places, snapshot, nodes, &mut work);
        self.unplaced.clear();
        for (pod, place) in places {
            let (Place::Node(name), Some(wanted)) = (&place, snapshot.pods.get(&pod)) else {
                if let Place::Nowhere(reason) = place {
                    self.unplaced.insert(pod, reason);
                }
                continue;
            };
            if let Some(node) = names.iter().position(|candidate| candidate == name) {
                self.bring_up(wanted, node, &nodes[node], &mut work);
            }
        }
        work
    }

    /// Begins the end of every pod that is not wanted where it is.
    fn take_away(
        &mut self,
        places: &BTreeMap<NamespacedName, Place>,
        snapshot: &Snapshot,
        nodes: &[Node],
        work: &mut Work,
    ) {
        self.records.retain(|pod, record| {
            let node = &nodes[record.node];
            let here = matches!(places.get(pod), Some(Place::Node(name)) if *name == node.name);
            // One of the same name and another UID is another pod.
            let uid = snapshot.pods.get(pod).and_then(|pod| pod.uid.as_deref());
            let wanted = here && uid.is_none_or(|uid| uid == record.uid);
            match record.state {
                _ if wanted => true,
                PodState::Waiting => false,
                // Its end is begun when the chain is done with it.
                PodState::Adding | PodState::Deleting => true,
                PodState::Running | PodState::Failed { .. } => {
                    record.state = PodState::Deleting;
                    work.closed.push(pod.clone());
                    work.jobs.push(job(Task::Del, pod, record, node));
                    true
                }
            }
        });
    }

    /// Takes a wanted pod one step further, if one can be taken now.
    fn bring_up(&mut self, wanted: &Pod, index: usize, node: &Node, work: &mut Work) {
        if !self.records.contains_key(&wanted.name) {
            match self.new_record(wanted, index, node) {
                Ok(record) => {
                    self.records.insert(wanted.name.clone(), record);
                }
                Err(error) => {
                    self.unplaced.insert(wanted.name.clone(), error.to_string());
                }
            }
        }
        let Some(record) = self.records.get_mut(&wanted.name) else { return };
        let due = match record.state {
            PodState::Waiting => node.ready || record.host_network,
            PodState::Failed { retry_at } => node.ready && retry_at <= work.now,
            PodState::Adding | PodState::Running | PodState::Deleting => false,
        };
        let ports = ports(wanted);
        if due {
            record.ports = ports;
            record.state = PodState::Adding;
            work.jobs.push(job(Task::Add, &wanted.name, record, node));
        } else if record.is_running() && record.ports != ports {
            record.ports = ports;
            work.jobs.push(job(Task::Serve, &wanted.name, record, node));
        }
    }

    fn new_record(&mut self, pod: &Pod, index: usize, node: &Node) -> Result<PodRecord, kernel::Error> {
        let netns = if pod.host_network { Arc::clone(&node.netns) } else { Arc::new(Netns::create()?) };
        self.containers += 1;
        // Ids end up in file names and link aliases: short, and readable when something is left over.
        let readable: String = format!("{}-{}", pod.name.namespace, pod.name.name).chars().take(40).collect();
        Ok(PodRecord {
            node: index,
            netns,
            state: PodState::Waiting,
            addresses: Vec::new(),
            reason: None,
            tries: 0,
            container: format!("{}-{}-{readable}", self.lab, self.containers),
            uid: pod.uid.as_deref().map_or_else(|| made_up_uid(self.containers), str::to_owned),
            ports: ports(pod),
            host_network: pod.host_network,
        })
    }

    /// Takes in what the chain has done.
    pub(super) fn handle(&mut self, outcome: Outcome, now: Instant) {
        let Some(record) = self.records.get_mut(&outcome.pod) else { return };
        match (outcome.task, outcome.result) {
            (Task::Add, Ok(addresses)) => {
                record.state = PodState::Running;
                record.addresses = addresses;
                record.reason = None;
                record.tries = 0;
            }
            (Task::Add, Err(reason)) => {
                super::log(&format!("pod {}: {reason}", outcome.pod));
                record.tries += 1;
                record.state = PodState::Failed { retry_at: now + backoff(record.tries) };
                record.reason = Some(reason);
            }
            (Task::Del, result) => {
                if let Err(reason) = result {
                    super::log(&format!("pod {}: {reason}", outcome.pod));
                }
                self.records.remove(&outcome.pod);
            }
            (Task::Serve, _) => {}
        }
    }

    /// The statuses that the store does not have yet.
    pub(super) fn statuses_to_write(&self, snapshot: &Snapshot, nodes: &[Node]) -> Vec<PodStatus> {
        let running = self.records.iter().filter(|(_, record)| record.is_running());
        let statuses = running.map(|(pod, record)| PodStatus {
            pod: pod.clone(),
            node: Some(Arc::clone(&nodes[record.node].name)),
            phase: Phase::Running,
            addresses: record.addresses.clone().into(),
        });
        statuses
            .filter(|status| snapshot.pod_statuses.get(&status.pod).is_none_or(|have| **have != *status))
            .collect()
    }

    /// The statuses of pods that run no more.
    pub(super) fn statuses_to_remove(&self, snapshot: &Snapshot) -> Vec<Key> {
        let runs = |pod: &&NamespacedName| self.records.get(*pod).is_some_and(PodRecord::is_running);
        snapshot.pod_statuses.keys().filter(|pod| !runs(pod)).cloned().map(Key::PodStatus).collect()
    }

    pub(super) fn listed(&self, nodes: &[Node]) -> Vec<ListedPod> {
        let placed = self.records.iter().map(|(pod, record)| ListedPod {
            namespace: pod.namespace.to_string(),
            name: pod.name.to_string(),
            node: Some(nodes[record.node].name.to_string()),
            netns: Some(path(&record.netns)),
            addresses: record.addresses.clone(),
            phase: if record.is_running() { Phase::Running } else { Phase::Pending }.to_string(),
            reason: record.reason.clone(),
        });
        let unplaced = self.unplaced.iter().map(|(pod, reason)| ListedPod {
            namespace: pod.namespace.to_string(),
            name: pod.name.to_string(),
            node: None,
            netns: None,
            addresses: Vec::new(),
            phase: Phase::Pending.to_string(),
            reason: Some(reason.clone()),
        });
        let mut pods: Vec<ListedPod> = placed.chain(unplaced).collect();
        pods.sort_by(|left, right| (&left.namespace, &left.name).cmp(&(&right.namespace, &right.name)));
        pods
    }
}

fn job(task: Task, pod: &NamespacedName, record: &PodRecord, node: &Node) -> Job {
    Job {
        task,
        pod: pod.clone(),
        container: record.container.clone(),
        uid: record.uid.clone(),
        node: Arc::clone(&node.netns),
        netns: Arc::clone(&record.netns),
        home: node.home.clone(),
        ports: record.ports.clone(),
        // Such a pod has its node's addresses and no chain.
        host_addresses: record.host_network.then(|| node.addresses.clone()),
    }
}

/// A UID for a pod whose manifest gives none: no API server has seen it.
fn made_up_uid(number: u64) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}

/// The ports that can be served; SCTP has no server here.
fn ports(pod: &Pod) -> Vec<Port> {
    let mut ports: Vec<Port> = Vec::new();
    for declared in pod.ports.iter() {
        let port = match declared.protocol {
            Protocol::Tcp => Port::Tcp(declared.port),
            Protocol::Udp => Port::Udp(declared.port),
            Protocol::Sctp => continue,
        };
        // Two containers may declare one port; one server answers for both.
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    ports
}
