//! What a pass found and did, kept for `fairlead status`.
//!
//! Read [`Report`]: begun with each pass, filled while it goes, ended with it. The free functions turn what the
//! agent holds into the words of [`Status`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cluster::{Backend, Flannel, Lease, Snapshot, WireGuardKey};
use netstate::pool::base_address;
use netstate::{Conflict, LinkKind};
use route::{ByFamily, Design, Family, Path, TunnelKind, Underlay, Way, vxlan};
use store::Notice;

use crate::config::BackendKind;
use crate::node::Outcome;
use crate::options::Options;
use crate::status::{
    BackendStatus, KeyStatus, PeerState, PeerStatus, Probed, ReconcileStatus, Status, TunnelStatus,
    UnderlayStatus,
};

/// What an Event about the node is called, in the words that an operator will look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The node can carry pods.
    NetworkReady,
    /// The node can carry no new pods for now.
    NetworkNotReady,
    /// No pod CIDR could be taken, or the lease not be published.
    LeaseNotPublished,
    /// Another machine publishes this node's lease.
    LeaseContested,
    /// Pods have addresses of a pod CIDR that the node had before.
    PodCidrChanged,
    /// There is no link or address that tunnels could start from.
    UnderlayMissing,
    /// One of the host's networks overlaps the cluster's.
    NetworkOverlap,
    /// A peer cannot be programmed.
    PeerIgnored,
    /// An old WireGuard key stays in use for peers that have no new one.
    KeyRetained,
    /// A path to a peer carries less than the links at its ends.
    PathCarriesLess,
    /// Something foreign in the kernel is in the way.
    ForeignObject,
    /// The host's own firewall drops what pods send to other nodes.
    HostFirewall,
    /// Few pod CIDRs are left for nodes to come, or none.
    FewPodCidrsLeft,
    /// Few addresses are left for pods of this node, or none.
    FewPodAddressesLeft,
    /// The kernel or the disk refused.
    NodeRefused,
    /// Somebody changed what is Fairlead's in the kernel; it has been put right.
    NetworkHealed,
    /// Network policies could not be programmed; what was in force before stays so.
    PolicyNotEnforced,
    /// What stands in a network policy cannot be read, and allows nothing.
    PolicyInvalid,
    /// The configuration cannot be used; the last good one stays in force.
    ConfigurationRefused,
    /// A new configuration is in force.
    ConfigurationReloaded,
    /// What attachments left behind was freed.
    LeftoversFreed,
}

impl Reason {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::NetworkReady => "NetworkReady",
            Self::NetworkNotReady => "NetworkNotReady",
            Self::LeaseNotPublished => "LeaseNotPublished",
            Self::LeaseContested => "LeaseContested",
            Self::PodCidrChanged => "PodCIDRChanged",
            Self::UnderlayMissing => "UnderlayMissing",
            Self::NetworkOverlap => "NetworkOverlap",
            Self::PeerIgnored => "PeerIgnored",
            Self::KeyRetained => "KeyRetained",
            Self::PathCarriesLess => "PathCarriesLess",
            Self::ForeignObject => "ForeignObject",
            Self::HostFirewall => "HostFirewall",
            Self::FewPodCidrsLeft => "FewPodCIDRsLeft",
            Self::FewPodAddressesLeft => "FewPodAddressesLeft",
            Self::NodeRefused => "NodeRefused",
            Self::NetworkHealed => "NetworkHealed",
            Self::PolicyNotEnforced => "PolicyNotEnforced",
            Self::PolicyInvalid => "PolicyInvalid",
            Self::ConfigurationRefused => "ConfigurationRefused",
            Self::ConfigurationReloaded => "ConfigurationReloaded",
            Self::LeftoversFreed => "LeftoversFreed",
        }
    }

    /// What the opposite of a reason is called, where there is one: who hears of the one again is to hear of the other.
    pub(crate) fn opposite(reason: &str) -> Option<&'static str> {
        let pair = [Self::NetworkReady.as_str(), Self::NetworkNotReady.as_str()];
        match pair.iter().position(|each| *each == reason)? {
            0 => Some(pair[1]),
            _ => Some(pair[0]),
        }
    }

    /// What is told of a node.
    pub(crate) fn notice(self, node: &str, message: String) -> Notice {
        let (node, reason) = (node.to_owned(), self.as_str().to_owned());
        Notice { node, warning: self.is_warning(), reason, message }
    }

    /// Whether somebody should do something about it.
    pub(crate) fn is_warning(self) -> bool {
        !matches!(
            self,
            Self::NetworkReady | Self::NetworkHealed | Self::ConfigurationReloaded | Self::LeftoversFreed
        )
    }
}

/// What the last pass found and did.
#[derive(Debug, Default)]
pub(crate) struct Report {
    reasons: Vec<String>,
    problems: Vec<String>,
    conflicts: Vec<String>,
    steps: usize,
    last: Option<ReconcileStatus>,
    passes: u64,
    spent: Duration,
    changes: u64,
    heals: u64,
    last_heal: Option<u64>,
    failures: u64,
    /// Problems told in the log already, so that each is told once while it lasts.
    told: Vec<String>,
    /// Those that are news.
    news: Vec<(Reason, String)>,
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
    pub(crate) fn not_ready(&mut self, reason: Reason, text: impl Into<String>) {
        let text = text.into();
        self.tell(reason, &text);
        self.reasons.push(text);
    }

    /// Something is wrong that does not keep the node from carrying pods.
    pub(crate) fn problem(&mut self, reason: Reason, text: impl Into<String>) {
        let text = text.into();
        self.tell(reason, &text);
        self.problems.push(text);
    }

    /// What has been told for the first time since this was last asked.
    pub(crate) fn take_news(&mut self) -> Vec<(Reason, String)> {
        std::mem::take(&mut self.news)
    }

    /// What stands in the way in the kernel; each look tells all of it.
    pub(crate) fn conflicts<'a>(&mut self, conflicts: impl Iterator<Item = &'a Conflict>) {
        self.conflicts = conflicts.map(ToString::to_string).collect();
        for conflict in self.conflicts.clone() {
            self.tell(Reason::ForeignObject, &conflict);
        }
    }

    /// So many changes were made.
    pub(crate) fn steps(&mut self, steps: usize) {
        self.steps += steps;
    }

    /// Everything that keeps the node from carrying a pod.
    pub(crate) fn reasons(&self) -> &[String] {
        &self.reasons
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
    pub(crate) fn end(&mut self, cause: &str, started: Instant, outcome: Outcome) {
        let took = started.elapsed();
        self.passes += 1;
        self.spent += took;
        self.changes += self.steps as u64;
        self.failures += u64::from(outcome.failed);
        if outcome.healed {
            self.heals += 1;
            self.last_heal = Some(now());
        }
        if self.steps > 0 {
            tracing::info!(cause, steps = self.steps, took = ?took, "the kernel was changed");
        }
        self.last = Some(ReconcileStatus {
            at: now(),
            took: microseconds(took),
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
            spent: microseconds(self.spent),
            changes: self.changes,
            heals: self.heals,
            last_heal: self.last_heal,
            failures: self.failures,
            ..Status::default()
        }
    }

    fn tell(&mut self, reason: Reason, text: &str) {
        if !self.told.iter().any(|told| told == text) {
            tracing::warn!("{text}");
            self.told.push(text.to_owned());
            self.news.push((reason, text.to_owned()));
        }
    }
}

/// Milliseconds since 1970.
pub(crate) fn now() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
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

/// How many peers are asked at once whether they are reached.
const PROBED: usize = 3;

/// The tunnel's ends of a few of the peers that are programmed and have one, other ones with each turn.
pub(crate) fn probed(snapshot: &Snapshot, design: &Design, turn: usize) -> Vec<Probed> {
    let count = design.peers.len();
    let from = turn.wrapping_mul(PROBED).checked_rem(count).unwrap_or(0);
    let peers = design.peers.iter().cycle().skip(from).take(count.min(PROBED));
    peers
        .filter_map(|(node, paths)| {
            let (family, path) = paths.iter().next()?;
            // Of a node of flannel's nobody knows whether it is still there.
            let lease = snapshot.leases.get(node).filter(|lease| !lease.flannel.is_member())?;
            let cidrs = &lease.pod_cidrs;
            let address = match &path.way {
                Way::Vxlan { .. } | Way::Tunnel { .. } => {
                    base_address(*cidrs.iter().find(|cidr| Family::of_net(cidr) == family)?)
                }
                // Its machine may answer nobody, and would show nothing of the way to its pods.
                Way::Direct { .. } => return None,
            };
            Some(Probed { node: node.to_string(), address })
        })
        .collect()
}

/// A ready node in one line.
pub(crate) fn summary(lease: &Lease, tunnel: Option<&Underlay>) -> String {
    let cidrs = lease.pod_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let link = tunnel.map(|tunnel| format!(" over {}", tunnel.link)).unwrap_or_default();
    format!("pods get addresses of {cidrs}; {}{link}, MTU {}", lease.backend.name(), lease.mtu)
}

/// How packets travel.
pub(crate) fn backend(options: &Options, design: Option<&Design>) -> BackendStatus {
    let kind = options.config.backend_of(&options.node).name().to_owned();
    let has_device =
        design.is_some_and(|design| design.state.links.keys().any(|name| name.as_str() == vxlan::DEVICE));
    let tunnel = has_device.then(|| TunnelStatus {
        device: vxlan::DEVICE.to_owned(),
        vni: options.config.vxlan.vni,
        port: options.config.vxlan.port,
        mac: vxlan::tunnel_mac(&options.node).to_string(),
    });
    let own = TunnelKind::of(&options.config.backend_of(&options.node));
    let kinds = TunnelKind::ALL.into_iter().filter(|kind| own.is_some_and(|own| own.name() == kind.name()));
    let carrier = design.and_then(|design| kinds.into_iter().find_map(|kind| carrier(kind, design)));
    let strict =
        (options.config.backend == BackendKind::WireGuard).then_some(options.config.wireguard.strict);
    BackendStatus {
        kind,
        carrier: carrier.map(str::to_owned),
        tunnel,
        keys: Vec::new(),
        strict,
        refused: None,
    }
}

/// A WireGuard key as people see it.
pub(crate) fn key(key: WireGuardKey) -> KeyStatus {
    KeyStatus { generation: key.generation, port: key.port, public_key: key.public_key.to_string() }
}

/// Who carries a tunnel, where it is there.
fn carrier(kind: TunnelKind, design: &Design) -> Option<&'static str> {
    let link = design.state.links.values().find(|link| link.name.as_str() == kind.device())?;
    Some(if link.kind == LinkKind::Tun { "agent" } else { "kernel" })
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
pub(crate) fn peers(
    own: &str,
    snapshot: &Snapshot,
    design: Option<&Design>,
    changed: &BTreeMap<Arc<str>, u64>,
) -> Vec<PeerStatus> {
    let own_lease = snapshot.leases.get(own);
    let routes_nothing = own_lease.is_some_and(|lease| lease.backend == Backend::None);
    let is_apart = own_lease.is_some_and(|lease| lease.flannel == Flannel::Apart);
    let others = snapshot.nodes.keys().filter(|name| ***name != *own);
    others
        .map(|name| {
            let lease = snapshot.leases.get(name);
            let paths = design.and_then(|design| design.peers.get(name));
            let problem = design.and_then(|design| design.problems.get(name));
            let state = match (paths, problem) {
                (Some(_), _) => PeerState::Programmed,
                (None, Some(_)) => PeerState::Ignored,
                (None, None) if lease.is_some() && routes_nothing => PeerState::Unrouted,
                (None, None) if is_apart && lease.is_some_and(|lease| lease.flannel.is_member()) => {
                    PeerState::Unrouted
                }
                (None, None) => PeerState::Waiting,
            };
            PeerStatus {
                node: name.to_string(),
                pod_cidrs: lease.map(|lease| lease.pod_cidrs.to_vec()).unwrap_or_default(),
                underlay: lease.map(|lease| lease.underlay.to_vec()).unwrap_or_default(),
                state,
                path: paths.map(path).unwrap_or_default(),
                mtu: paths.and_then(|paths| paths.values().map(|path| path.mtu).min()).unwrap_or_default(),
                probed_mtu: None,
                changed: changed.get(name).copied(),
                problem: problem.map(|problem| told(problem)),
            }
        })
        .collect()
}

/// The paths to a peer in words: one where its families have the same.
fn path(paths: &ByFamily<Path>) -> String {
    let mut names = paths.values().map(|path| path.way.name());
    match names.next() {
        Some(first) if names.all(|name| name == first) => first.to_owned(),
        _ => {
            let each = paths.iter().map(|(family, path)| format!("{family} {}", path.way.name()));
            each.collect::<Vec<_>>().join(", ")
        }
    }
}
