//! What a pass found and did, kept for `fairlead status`.
//!
//! Read [`Report`]: begun with each pass, filled while it goes, ended with it. The free functions turn what the
//! agent holds into the words of [`Status`].

use std::net::IpAddr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use cluster::{Lease, Snapshot};
use netstate::Conflict;
use route::Underlay;
use route::vxlan::{self, Design};

use crate::options::Options;
use crate::status::{BackendStatus, PeerState, PeerStatus, ReconcileStatus, Status, UnderlayStatus};

/// What the last pass found and did.
#[derive(Debug, Default)]
pub(crate) struct Report {
    reasons: Vec<String>,
    problems: Vec<String>,
    conflicts: Vec<String>,
    steps: usize,
    last: Option<ReconcileStatus>,
    passes: u64,
    /// Problems told in the log already, so that each is told once while it lasts.
    told: Vec<String>,
}

impl Report {
    /// Begins a pass: nothing is known to be wrong.
    pub(crate) fn begin(&mut self) {
        let last = std::mem::take(&mut self.problems).into_iter();
        self.told = last
            .chain(std::mem::take(&mut self.reasons))
            .chain(std::mem::take(&mut self.conflicts))
            .collect();
        self.steps = 0;
    }

    /// The node cannot carry a pod, and why.
    pub(crate) fn not_ready(&mut self, reason: impl Into<String>) {
        let reason = reason.into();
        self.tell(&reason);
        self.reasons.push(reason);
    }

    /// Something is wrong that does not keep the node from carrying pods.
    pub(crate) fn problem(&mut self, problem: impl Into<String>) {
        let problem = problem.into();
        self.tell(&problem);
        self.problems.push(problem);
    }

    /// What stands in the way in the kernel; each look tells all of it.
    pub(crate) fn conflicts<'a>(&mut self, conflicts: impl Iterator<Item = &'a Conflict>) {
        self.conflicts = conflicts.map(ToString::to_string).collect();
        for conflict in self.conflicts.clone() {
            self.tell(&conflict);
        }
    }

    /// So many changes were made.
    pub(crate) fn steps(&mut self, steps: usize) {
        self.steps += steps;
    }

    /// Whether nothing keeps the node from carrying a pod.
    pub(crate) fn is_ready(&self) -> bool {
        self.reasons.is_empty()
    }

    /// The first thing that keeps the node from carrying a pod.
    pub(crate) fn reason(&self) -> &str {
        self.reasons.first().map_or("nothing has been looked at", String::as_str)
    }

    /// Ends a pass.
    pub(crate) fn end(&mut self, cause: &str, started: Instant) {
        let took = started.elapsed();
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.passes += 1;
        if self.steps > 0 {
            tracing::info!(cause, steps = self.steps, took = ?took, "the kernel was changed");
        }
        self.last = Some(ReconcileStatus {
            at: u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX),
            took: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            steps: self.steps,
            cause: cause.to_owned(),
            error: self.reasons.first().cloned(),
        });
    }

    /// The part of the status that comes from here.
    pub(crate) fn status(&self) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            ready: self.passes > 0 && self.is_ready(),
            reasons: self.reasons.clone(),
            problems: self.problems.clone(),
            conflicts: self.conflicts.clone(),
            last_reconcile: self.last.clone(),
            reconciles: self.passes,
            ..Status::default()
        }
    }

    fn tell(&mut self, text: &str) {
        if !self.told.iter().any(|told| told == text) {
            tracing::warn!("{text}");
            self.told.push(text.to_owned());
        }
    }
}

/// An error with its causes, as one text; a hint in it stays at the end.
pub(crate) fn told(error: &dyn std::error::Error) -> String {
    let text = error.to_string();
    let (message, hint) = match text.split_once("\nhint: ") {
        Some((message, hint)) => (message.to_owned(), Some(hint.to_owned())),
        None => (text, None),
    };
    let mut whole = message;
    let mut source = error.source();
    while let Some(cause) = source {
        whole = format!("{whole}: {cause}");
        source = cause.source();
    }
    match hint {
        Some(hint) => format!("{whole}\nhint: {hint}"),
        None => whole,
    }
}

/// How packets travel.
pub(crate) fn backend(options: &Options) -> BackendStatus {
    BackendStatus {
        kind: "vxlan".to_owned(),
        device: vxlan::DEVICE.to_owned(),
        vni: options.config.vxlan.vni,
        port: options.config.vxlan.port,
        mac: vxlan::tunnel_mac(&options.node).to_string(),
    }
}

/// The host's end of the tunnels.
pub(crate) fn underlay(tunnel: &Underlay, lease: Option<&Lease>) -> UnderlayStatus {
    let advertised: Vec<IpAddr> = lease.map(|lease| lease.underlay.to_vec()).unwrap_or_default();
    UnderlayStatus {
        link: tunnel.link.clone(),
        mtu: tunnel.mtu,
        address: tunnel.address,
        advertised,
        reason: tunnel.reason.to_owned(),
    }
}

/// The other nodes, in the order of their names.
pub(crate) fn peers(own: &str, snapshot: &Snapshot, design: Option<&Design>) -> Vec<PeerStatus> {
    let others = snapshot.nodes.keys().filter(|name| ***name != *own);
    others
        .map(|name| {
            let lease = snapshot.leases.get(name);
            let programmed = design.is_some_and(|design| design.peers.contains(name));
            let problem = design.and_then(|design| design.problems.get(name));
            let state = match (programmed, problem) {
                (true, _) => PeerState::Programmed,
                (false, Some(_)) => PeerState::Ignored,
                (false, None) => PeerState::Waiting,
            };
            PeerStatus {
                node: name.to_string(),
                pod_cidrs: lease.map(|lease| lease.pod_cidrs.to_vec()).unwrap_or_default(),
                underlay: lease.map(|lease| lease.underlay.to_vec()).unwrap_or_default(),
                state,
                problem: problem.map(|problem| told(problem)),
            }
        })
        .collect()
}
