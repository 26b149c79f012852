//! Clients on the control socket: what they ask, and the answers that take time.

use std::io::{BufRead, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::Sender;
use std::time::Duration;

use serde::Serialize;

use super::{Event, Supervisor, thread};
use crate::client::refusal;
use crate::control::{Line, Part, Progress, Request, say};
use crate::error::Result;
use crate::listing::Listing;
use crate::probe::{self, Subject};

/// A client that does not read is not waited for.
const WRITE_LIMIT: Duration = Duration::from_secs(2);

/// A request and the way to answer it.
pub(super) struct Asked {
    pub(super) request: Request,
    pub(super) stream: UnixStream,
}

/// A client that waits until nodes are ready and pods are wired.
pub(super) struct Waiting {
    stream: UnixStream,
    /// Pods that the client knows to be in the store, as `namespace/name`.
    pods: Vec<String>,
    /// How far we have told it.
    told: [usize; 2],
}

/// Accepts clients; each gets a thread until its request is read.
pub(super) fn listen(listener: UnixListener, events: Sender<Event>) -> Result<()> {
    thread("control", move || {
        for stream in listener.incoming().flatten() {
            let events = events.clone();
            // A thread that cannot be had turns this client away; the next may fare better.
            let _ = thread("client", move || {
                if let Some(asked) = read(stream) {
                    let _ = events.send(Event::Asked(asked));
                }
            });
        }
    })
}

fn read(stream: UnixStream) -> Option<Asked> {
    stream.set_write_timeout(Some(WRITE_LIMIT)).ok()?;
    stream.set_read_timeout(Some(WRITE_LIMIT)).ok()?;
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).ok()?;
    match serde_json::from_str(&line) {
        Ok(request) => Some(Asked { request, stream }),
        Err(error) => {
            answer(stream, &Line::Failed(format!("cannot read the request: {error}")));
            None
        }
    }
}

/// The client may be gone; that is its own affair.
fn answer(mut stream: UnixStream, line: &Line) {
    let _ = say(&mut stream, line);
}

fn done<T: Serialize>(value: &T) -> Line {
    serde_json::to_value(value).map_or_else(|error| Line::Failed(error.to_string()), Line::Done)
}

impl Supervisor {
    pub(super) fn handle_asked(&mut self, asked: Asked) {
        match asked.request {
            Request::List => answer(asked.stream, &done(&self.listing())),
            Request::Settle { pods } => {
                self.waiting.push(Waiting { stream: asked.stream, pods, told: [usize::MAX; 2] });
            }
            Request::Probe(request) => {
                let subjects = self.subjects();
                let throughput = Duration::from_millis(request.throughput_millis);
                let stream = asked.stream;
                let _ = thread("probe", move || probe_for(stream, &subjects, throughput));
            }
            // The loop has taken this one: it ends there.
            Request::Down => {}
        }
    }

    fn listing(&self) -> Listing {
        Listing {
            name: self.home.name().to_owned(),
            store: self.home.store().display().to_string(),
            nodes: self.nodes.iter().map(|node| node.listed(&self.snapshot)).collect(),
            pods: self.pods.listed(&self.nodes),
            problems: self.problems.iter().map(ToString::to_string).collect(),
        }
    }

    fn subjects(&self) -> Vec<Subject> {
        let records = self.pods.iter().filter(|(_, record)| record.is_running());
        records
            .map(|(name, record)| Subject {
                name: name.to_string(),
                node: self.nodes[record.node].name.to_string(),
                netns: std::sync::Arc::clone(&record.netns),
                addresses: record.addresses.clone(),
            })
            .collect()
    }

    /// Tells every waiting client how far things are, and lets go of those that need not wait any more.
    pub(super) fn tell_waiting(&mut self) {
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain_mut(|client| !self.tell(client));
        self.waiting = waiting;
    }

    /// True when the client has its answer or is gone.
    fn tell(&self, client: &mut Waiting) -> bool {
        if let Some(reason) = self.hopeless() {
            let _ = say(&mut client.stream, &Line::Failed(reason));
            return true;
        }
        let ready = self.nodes.iter().filter(|node| node.is_joined(&self.snapshot)).count();
        let known = |name: &String| self.pods.iter().any(|(pod, _)| pod.to_string() == *name);
        let unseen = client.pods.iter().filter(|name| !known(name)).count();
        let wired = self.pods.iter().filter(|(_, record)| record.is_running()).count();
        let total = self.pods.iter().count() + unseen;
        let steps = [(Part::Nodes, ready, self.nodes.len()), (Part::Pods, wired, total)];
        for (told, (part, done, total)) in client.told.iter_mut().zip(steps) {
            // Before the first pod has a node to go to, there is nothing to tell of pods.
            let is_idle = part == Part::Pods && done == 0 && ready < self.nodes.len();
            if *told != done && total > 0 && !is_idle {
                *told = done;
                let what = self.latest(part);
                if say(&mut client.stream, &Line::Progress(Progress { part, done, total, what })).is_err() {
                    return true;
                }
            }
        }
        let settled = steps.iter().all(|(_, done, total)| done == total);
        if settled {
            let _ = say(&mut client.stream, &done(&self.listing()));
        }
        settled
    }

    fn latest(&self, part: Part) -> String {
        let names: Vec<&str> = match part {
            Part::Nodes => self
                .nodes
                .iter()
                .filter(|node| !node.is_joined(&self.snapshot))
                .map(|node| node.name.as_ref())
                .collect(),
            _ => self
                .pods
                .iter()
                .filter(|(_, pod)| !pod.is_running())
                .map(|(name, _)| name.name.as_ref())
                .collect(),
        };
        match names.len() {
            0 => "all there".to_owned(),
            1..=3 => format!("waiting for {}", names.join(", ")),
            more => format!("waiting for {} and {} more", names[0], more - 1),
        }
    }

    /// Why waiting makes no sense any more.
    fn hopeless(&self) -> Option<String> {
        let limit = if self.restart { 3 } else { 0 };
        for node in self.nodes.iter().filter(|node| !node.ready && node.ends >= limit) {
            if let Some(how) = &node.last_end {
                let log = node.home.agent_log();
                let said = last_error(&std::fs::read_to_string(&log).unwrap_or_default());
                return Some(format!(
                    "the agent of {} ended ({how}): {said}; hint: its log is {}",
                    node.name,
                    log.display()
                ));
            }
        }
        let failing = self.pods.iter().filter(|(_, record)| record.tries >= 3);
        let failed = failing.filter_map(|(name, record)| Some((name, record.reason.as_ref()?))).next();
        let unplaced = self.pods.unplaced().next();
        let (name, reason) = failed.or(unplaced)?;
        Some(format!("pod {name} does not come up: {reason}"))
    }
}

/// The last error that an agent's log tells, in one line.
fn last_error(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let from = lines.iter().rposition(|line| line.starts_with("error: "));
    let from = from.unwrap_or(lines.len().saturating_sub(1));
    lines[from..].join("; ").trim_start_matches("error: ").to_owned()
}

fn probe_for(mut stream: UnixStream, subjects: &[Subject], throughput: Duration) {
    let probed = probe::run(subjects, throughput, &mut |progress| {
        let _ = say(&mut stream, &Line::Progress(progress));
    });
    let line = match probed {
        Ok(probe) => done(&probe),
        Err(error) => refusal(&error),
    };
    let _ = say(&mut stream, &line);
}
