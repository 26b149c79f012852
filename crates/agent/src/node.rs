//! One node's network, kept as the cluster wants it.
//!
//! Read [`NodeKeeper::pass`]: it finds out what the node is in the cluster and then either [carries](NodeKeeper) its
//! part (claim, design, kernel, lease, files) or [leaves](NodeKeeper), the same backwards. What it decides by is in
//! the crate `route`, asked in `decide.rs`; what it found and did goes into the report that `fairlead status` shows. What
//! people ask of the node is in `operation.rs`.

pub(crate) mod advertise;
mod changeover;
mod decide;
mod former;
mod in_kernel;
mod key_turn;
mod keys;
mod known;
mod operation;
mod own_tunnels;
mod paths;
mod services;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use cluster::{Lease, Node, NodeNetwork};
use ipnet::IpNet;
use netstate::pool::Pool;
use netstate::{Conflict, RouteKind, State, Step};
use route::{Design, Family, Underlay};
use tunnel::Secret;

use self::changeover::Changeover;
use self::decide::{Decided, Refusal};
use self::former::Former;
use self::key_turn::KeyTurn;
use self::known::Known;
use crate::announce::Announcer;
use crate::door::Door;
use crate::files::{Conflist, NetworkFile};
use crate::host_firewall::HostFirewall;
use crate::lease::Leases;
use crate::options::Options;
use crate::path_mtu::{Order, Prober};
use crate::policy::Policing;
use crate::reconcile::Extent;
use crate::report::{self, Reason, Report, told};
use crate::subnet_env::{self, SubnetFile};
use crate::supply::PodAddresses;
use crate::tunnels::Tunnels;
use crate::view::{Standing, View};

/// How often the kernel is looked at again within one pass until it is as it should be. Once is the rule; a link
/// that was down takes routes with it that only the next look shows.
const LOOKS: usize = 4;

/// How many of the leases that it wrote an agent recognises as its own.
const OWN_LEASES: usize = 8;

/// What came of a pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The kernel was changed.
    pub(crate) changed: bool,
    /// It was changed though nothing else was wanted than before: somebody had changed what is ours.
    pub(crate) healed: bool,
    /// Another agent publishes this node's lease too.
    pub(crate) contested: bool,
    /// Something failed that may succeed later without any event.
    pub(crate) failed: bool,
}

/// The node: what has been decided for it, and the doors to where that is carried out.
#[derive(Debug)]
pub(crate) struct NodeKeeper {
    options: Options,
    pools: Vec<Pool>,
    door: Door,
    leases: Leases,
    network_file: NetworkFile,
    conflist: Conflist,
    subnet_file: SubnetFile,
    /// What the node had as one of flannel's, and would like to keep.
    wished: Vec<IpNet>,
    /// The pod CIDRs of the last lease, or those an earlier run left on disk.
    remembered: Vec<IpNet>,
    underlays: BTreeMap<Family, Underlay>,
    /// What the Node last wanted peers to be told instead of that; not known before it was first read.
    advertised: Option<Vec<IpAddr>>,
    /// What came of looking at Services' addresses where nobody tells their networks.
    services_look: Option<services::Look>,
    lease: Option<Lease>,
    design: Option<Design>,
    report: Report,
    announcer: Announcer,
    /// The leases that were last written to the store, the newest last.
    published: VecDeque<Lease>,
    /// The node was given up, and has not been carried again since.
    left: bool,
    /// The last pass failed half-way, so what the next one changes is no healing.
    failed: bool,
    /// What is wrong with the configuration, if something is.
    config_problem: Option<String>,
    /// Whether what is gone has been collected, or is being so.
    collected: bool,
    /// The tunnels that this process carries.
    tunnels: Tunnels,
    /// This node's private keys of WireGuard by generation, once it has needed one.
    keys: BTreeMap<u32, Secret>,
    /// The node's change from one of them to another.
    key_turn: Option<KeyTurn>,
    /// When the paths to each peer last became what they are, in milliseconds since 1970.
    changed: BTreeMap<Arc<str>, u64>,
    /// The node's change from one backend to another; none before the first.
    changeover: Option<Changeover>,
    /// What peers had before that have another backend since a moment ago.
    former: Former,
    /// Who finds out what the paths to the peers carry.
    prober: Prober,
    policing: Policing,
    /// What is known of the kernel.
    known: Known,
    firewall: HostFirewall,
    pod_addresses: PodAddresses,
    /// What was last told of pod CIDRs that come to an end.
    few_pod_cidrs: Vec<String>,
}

/// What a node is kept by.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) options: Options,
    pub(crate) pools: Vec<Pool>,
    pub(crate) door: Door,
    pub(crate) leases: Leases,
    pub(crate) announcer: Announcer,
    pub(crate) tunnels: Tunnels,
    pub(crate) policing: Policing,
    /// What is wrong with the configuration, if something is.
    pub(crate) config_problem: Option<String>,
    pub(crate) prober: Prober,
}

impl NodeKeeper {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { options, pools, door, leases, announcer, tunnels, policing, config_problem, prober } =
            parts;
        let network_file = NetworkFile::new(&options.state_dir);
        let remembered = network_file.remembered(&options.node);
        let conflist = Conflist::new(&options);
        let subnet_file = SubnetFile::new(&options.state_dir);
        let flannels = options.config.flannel.subnet_file.as_deref().filter(|_| remembered.is_empty());
        let wished = flannels.map(subnet_env::told).unwrap_or_default();
        door.keep_to(&options.config.cluster.pod_cidrs);
        Self {
            subnet_file,
            wished,
            pools,
            door,
            leases,
            network_file,
            conflist,
            remembered,
            underlays: BTreeMap::new(),
            advertised: None,
            services_look: None,
            lease: None,
            design: None,
            report: Report::default(),
            announcer,
            published: VecDeque::new(),
            left: false,
            failed: false,
            config_problem,
            collected: false,
            tunnels,
            keys: BTreeMap::new(),
            key_turn: None,
            changed: BTreeMap::new(),
            changeover: None,
            former: Former::default(),
            prober,
            policing,
            known: Known::default(),
            firewall: HostFirewall::default(),
            pod_addresses: PodAddresses::new(&options),
            few_pod_cidrs: Vec::new(),
            options,
        }
    }

    /// The node's name.
    pub(crate) fn name(&self) -> &str {
        &self.options.node
    }

    /// Has the node be as it should be; what is outside of `extent` is taken to be as it was, where that is known.
    pub(crate) fn pass(&mut self, view: &mut View, cause: &'static str, extent: Extent) -> Outcome {
        let started = Instant::now();
        self.report.begin();
        self.tell_of_configuration();
        let outcome = match self.standing(view) {
            Standing::Member(node) => self.carry(view, &node, extent),
            Standing::Absent => self.leave(view),
            Standing::Deleted => self.stay(
                Reason::NetworkNotReady,
                "the Node object of this node was deleted; its network stays as it is for a while\nhint: create the \
                 Node object anew (a kubelet does when it is restarted), or stop this node",
            ),
            Standing::Doubtful => self.stay(
                Reason::NetworkNotReady,
                "the store is empty: it lost what this node and others held\nhint: restore it; until it has a Node \
                 object again, the node's network stays as it is",
            ),
        };
        self.failed = outcome.failed;
        self.known.stands &= !outcome.failed;
        self.report.end(cause, started, outcome);
        self.announce(view);
        outcome
    }

    /// What the node is in the cluster.
    pub(crate) fn standing(&self, view: &View) -> Standing {
        view.standing(&self.options.node, self.holds())
    }

    /// Whether the node has pod CIDRs. An agent that has just started holds what an earlier one carried.
    fn holds(&self) -> bool {
        self.lease.is_some() || (!self.left && !self.remembered.is_empty())
    }

    /// Carries the node's part of the cluster.
    fn carry(&mut self, view: &mut View, node: &Node, extent: Extent) -> Outcome {
        let mut outcome = Outcome::default();
        if extent == Extent::Everything {
            self.collect(view, &mut outcome);
        }
        self.tell_of_firewall(extent);
        match self.decide(view, node, extent) {
            Ok(decided) => {
                self.tell_of_supply(view, node, extent);
                self.carry_out(view, decided, &mut outcome);
            }
            Err(Refusal { reason, text }) => {
                let stayed = self.stay(reason, text);
                return Outcome { failed: true, ..stayed };
            }
        }
        if extent == Extent::Peers {
            // The way to a peer does not wait for what another one leaves behind.
            self.collect(view, &mut outcome);
        }
        self.publish_readiness(&mut outcome);
        outcome
    }

    /// Keeps what was designed before in force, for want of something better, and heals it; new pods have to wait.
    fn stay(&mut self, reason: Reason, text: impl Into<String>) -> Outcome {
        let mut outcome = Outcome::default();
        self.report.not_ready(reason, text);
        if let Some((state, tunnels)) =
            self.design.as_ref().map(|design| (design.state.clone(), design.tunnels.clone()))
        {
            self.make(&state, &mut outcome);
            self.keep_tunnels(&tunnels, &mut outcome);
            outcome.healed = outcome.changed && !outcome.failed && !self.failed;
        }
        self.publish_readiness(&mut outcome);
        outcome
    }

    /// Gives back what nodes hold that are no longer in the cluster. A failure is no reason not to carry pods.
    fn collect(&mut self, view: &mut View, outcome: &mut Outcome) {
        if view.is_away() {
            return;
        }
        match self.leases.collect(&mut view.snapshot) {
            Ok(nodes) => {
                nodes.iter().for_each(|node| tracing::info!(%node, "what a vanished node held is given back"))
            }
            Err(error) => {
                self.report.problem(Reason::LeaseNotPublished, told(&error));
                outcome.failed = true;
            }
        }
    }

    /// Makes the kernel so, then tells the peers, then the plugin.
    fn carry_out(&mut self, view: &mut View, decided: Decided, outcome: &mut Outcome) {
        let Decided { lease, mut design, extent, amendment } = decided;
        for (node, problem) in &design.problems {
            if *node == lease.node {
                self.report.not_ready(Reason::LeaseContested, told(problem))
            } else {
                self.report.problem(Reason::PeerIgnored, told(problem))
            }
        }
        self.tunnels.learn(&design.tunnels);
        let steps = self.known_steps(extent, &design, amendment.as_ref());
        let amended = steps.is_some_and(|steps| self.amend(&steps, outcome));
        if !amended {
            self.open_tunnels(&mut design, outcome);
        }
        let made = amended || self.make(&design.state, outcome);
        let kept = self.keep_tunnels(&design.tunnels, outcome);
        let made = made && kept && self.report.is_ready();
        let as_before = match &amendment {
            Some(amendment) => amendment.before == amendment.after,
            None => self.design.as_ref().is_some_and(|before| before.state == design.state),
        };
        outcome.healed = outcome.changed && made && as_before && !self.failed;
        let moved = amendment.map(|amendment| amendment.moved);
        self.note_changed_paths(&design, moved.as_deref());
        self.probe_paths(&design, moved.as_deref());
        self.design = Some(design);
        // A node whose kernel refuses the tunnel must not draw its peers' packets; one that carried them before
        // goes on. What flannel left is no lease of ours.
        let before = view.snapshot.leases.get(&lease.node);
        if !made && before.is_none_or(|before| before.flannel.is_member()) {
            return;
        }
        outcome.contested = self.has_a_double(view, &lease);
        self.publish(view, &lease, outcome);
        self.remembered = lease.pod_cidrs.to_vec();
        self.lease = Some(lease);
        self.left = false;
        self.policing.stand(true);
    }

    /// Publishes the lease. While the store is away that waits, for what is published already still holds.
    fn publish(&mut self, view: &mut View, lease: &Lease, outcome: &mut Outcome) {
        let stands = view.snapshot.leases.get(&lease.node);
        if view.is_away() && stands.is_some_and(|stands| **stands != *lease) {
            self.report.problem(
                Reason::LeaseNotPublished,
                "the lease has changed and waits for the store to be back",
            );
            return;
        }
        // Flannel's keys live for a day, and nobody but an agent that runs writes them anew.
        let anew = self.published.is_empty() && self.options.has_flannels_keys();
        let published = match anew {
            true => self.leases.publish_again(&mut view.snapshot, lease),
            false => self.leases.publish(&mut view.snapshot, lease),
        };
        match published {
            Ok(true) => {
                self.note_published(&lease.backend);
                self.published.retain(|published| published != lease);
                self.published.push_back(lease.clone());
                if self.published.len() > OWN_LEASES {
                    self.published.pop_front();
                }
            }
            Ok(false) => {}
            Err(error) => {
                self.report.not_ready(Reason::LeaseNotPublished, told(&error));
                outcome.failed = true;
            }
        }
    }

    /// Whether the lease in the store is none that this agent has published, and not the one to be published.
    fn has_a_double(&mut self, view: &View, lease: &Lease) -> bool {
        let theirs = view.snapshot.leases.get(&lease.node);
        let Some(theirs) = theirs.filter(|_| !self.published.is_empty()) else { return false };
        // What was published before may be told only now. Who changed what flannel's nodes are told is no agent.
        let same =
            |published: &Lease| *published == Lease { flannel: published.flannel, ..(**theirs).clone() };
        let contested = !theirs.flannel.is_member() && !same(lease) && !self.published.iter().any(same);
        if contested {
            self.report.problem(Reason::LeaseContested, format!(
                "publish the lease of node {node}: somebody else has published another one, with underlay {underlay:?}\n\
                 hint: is an agent on another machine started with --node {node}?",
                node = lease.node,
                underlay = theirs.underlay,
            ));
        }
        contested
    }

    /// Makes the kernel hold this state; true if it does.
    fn make(&mut self, want: &State, outcome: &mut Outcome) -> bool {
        self.known.stands = false;
        for _ in 0..LOOKS {
            let plan = match self.door.plan(want) {
                Ok(plan) => plan,
                Err(error) => {
                    self.report.not_ready(Reason::NodeRefused, told(&error));
                    outcome.failed = true;
                    return false;
                }
            };
            let mut conflicts = plan.conflicts.iter().filter(|conflict| !is_meant(conflict, want)).peekable();
            self.known.stands = conflicts.peek().is_none() && plan.steps.is_empty();
            self.report.conflicts(conflicts);
            // Where a foreign link has the tunnel's name, there is no tunnel; a foreign route costs one peer only.
            if let Some(taken) = plan.conflicts.iter().find(|conflict| matches!(conflict, Conflict::Link(_)))
            {
                self.report.not_ready(Reason::ForeignObject, taken.to_string());
            }
            if plan.steps.is_empty() {
                return true;
            }
            let made = plan.steps.iter().filter_map(|step| match step {
                Step::CreateLink(link) => Some(link.name),
                _ => None,
            });
            self.tunnels.forget(&made.collect());
            for step in &plan.steps {
                tracing::debug!("{step}");
            }
            outcome.changed = true;
            let done = self.door.apply(&plan.steps);
            self.report.steps(plan.steps.len());
            if let Err(error) = done {
                self.report.not_ready(Reason::NodeRefused, told(&error));
                outcome.failed = true;
                return false;
            }
        }
        self.report.not_ready(Reason::ForeignObject, format!(
            "the kernel is not as it should be after {LOOKS} tries\nhint: another program undoes the agent's work; \
             `fairlead plan` shows what"
        ));
        outcome.failed = true;
        false
    }

    /// Lets the plugin attach pods when all is well, and tells it why not when it is not. The conflist comes last.
    fn publish_readiness(&mut self, outcome: &mut Outcome) {
        let done = match (self.report.is_ready(), self.network()) {
            (true, Some(network)) => self.network_file.write(&network).and_then(|changed| {
                let changed = self.conflist.write()? || changed;
                if changed {
                    tracing::info!(conflist = %self.conflist.path().display(), "the node can carry pods");
                }
                self.keep_subnet_file(&network);
                Ok(())
            }),
            _ => self.network_file.suspend(self.report.reason()).map(|changed| {
                if changed {
                    tracing::warn!(reason = self.report.reason(), "the node can carry no new pods for now");
                }
            }),
        };
        if let Err(error) = done {
            self.report.not_ready(Reason::NodeRefused, told(&error));
            outcome.failed = true;
        }
    }

    /// What the plugin has to know to attach a pod.
    fn network(&self) -> Option<NodeNetwork> {
        let lease = self.lease.as_ref()?;
        Some(NodeNetwork {
            node: self.options.node.clone(),
            pod_cidrs: lease.current().collect(),
            cluster_cidrs: self.options.config.cluster.pod_cidrs.clone(),
            mtu: lease.mtu,
            not_ready: None,
            enforcement: self.policing.enforcement(),
        })
    }

    /// Takes down what the node carried, for it is not part of the cluster.
    fn leave(&mut self, view: &mut View) -> Outcome {
        self.former = Former::default();
        self.services_look = None;
        let mut outcome = Outcome::default();
        self.report.not_ready(
            Reason::NetworkNotReady,
            format!(
                "node {node} is not in the cluster\nhint: put a Node object named {node} into the store",
                node = self.options.node
            ),
        );
        let removed = self.network_file.remove().and_then(|_| self.subnet_file.withdraw());
        if let Err(error) = removed {
            self.report.problem(Reason::NodeRefused, told(&error));
            outcome.failed = true;
        }
        self.design = None;
        self.prober.follow(Order::default());
        self.keep_tunnels(&BTreeMap::new(), &mut outcome);
        self.make(&self.what_stays(), &mut outcome);
        match self.leases.give_back(&mut view.snapshot) {
            Ok(true) => tracing::info!("the Node object is gone; pod CIDRs and lease are given back"),
            Ok(false) => {}
            Err(error) => {
                self.report.problem(Reason::LeaseNotPublished, told(&error));
                outcome.failed = true;
            }
        }
        self.lease = None;
        self.left = true;
        self.policing.stand(false);
        outcome
    }

    /// Tells the cluster what is news, and has collected what is gone once there is a network to do it for.
    fn announce(&mut self, view: &View) {
        for (reason, text) in self.report.take_news() {
            self.announcer.voice().notify(reason, text);
        }
        // Where there is no Node object there is nobody to tell it of.
        let Standing::Member(node) = self.standing(view) else {
            self.announcer.forget();
            return;
        };
        match (self.report.is_ready(), &self.lease) {
            (true, Some(lease)) => {
                let message = report::summary(lease, self.underlays.values().next());
                self.announcer.report(None, message, node.awaits_network);
                self.collect_leftovers();
            }
            _ => self.announcer.report(Some(self.report.reason()), self.report.reasons().join("; "), false),
        }
    }

    /// Has freed what attachments left that are gone, once in an agent's life: after a reboot, or for a runtime that
    /// never asks for it. A thread does it, for the network has no need to wait.
    fn collect_leftovers(&mut self) {
        let Some(collect) = self.options.collect.filter(|_| !self.collected) else { return };
        self.collected = true;
        let (voice, conflist) = (self.announcer.voice().clone(), self.conflist.path().to_owned());
        let work = move || match collect(&conflist) {
            Ok(freed) if freed.is_empty() => tracing::debug!("no attachment has left anything behind"),
            Ok(freed) => {
                let text = format!(
                    "freed what {} attachments left that are gone: {}",
                    freed.len(),
                    freed.join(", ")
                );
                tracing::info!("{text}");
                voice.notify(Reason::LeftoversFreed, text);
            }
            Err(error) => {
                let text = format!("free what attachments left that are gone: {error}");
                tracing::warn!("{text}");
                voice.notify(Reason::NodeRefused, text);
            }
        };
        if let Err(error) = crate::run::spawn("collect", work) {
            tracing::warn!(error = %told(&error), "what attachments left that are gone stays for now");
        }
    }

    /// Says that somebody else changed what is ours, and that it is as it was.
    pub(crate) fn tell_healed(&self) {
        let text =
            "somebody changed what is Fairlead's in the node's kernel; it has been put right".to_owned();
        self.announcer.voice().notify(Reason::NetworkHealed, text);
    }

    /// The Node object is another one now, or has lost what was told of it.
    pub(crate) fn forget_what_was_told(&mut self) {
        self.announcer.forget();
    }

    /// The pod CIDRs that an earlier agent of this node carried.
    pub(crate) fn remembered(&self) -> &[IpNet] {
        &self.remembered
    }

    /// Says to who started the agent that it has started.
    pub(crate) fn tell_started(&self) {
        self.tunnels.tell_ready();
    }

    /// What could not be told while the store was away can be told now.
    pub(crate) fn store_is_back(&self) {
        self.announcer.try_now();
    }
}

/// A conflict that is how it should be: a bridge's connected route goes before the `unreachable` route that stands
/// behind everything on purpose.
fn is_meant(conflict: &Conflict, want: &State) -> bool {
    let Conflict::Outdone(foreign) = conflict else { return false };
    let destination = foreign.route.key.destination;
    want.routes
        .iter()
        .any(|(key, target)| key.destination == destination && target.kind == RouteKind::Unreachable)
}
