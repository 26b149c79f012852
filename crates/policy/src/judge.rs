//! The verdict on one flow, as the specifications have it: plain, for any two ends of the cluster.
//!
//! Read [`judge`]. Each direction is decided on its own, and a flow passes if both let it. For a direction, its pod is the
//! subject: ClusterNetworkPolicies of the Admin tier decide first, then NetworkPolicies if one isolates the pod, else the
//! Baseline tier. This is the one evaluator of the house: what [`compile`](crate::compile) makes is compared with it,
//! and [`explain()`](crate::explain()) is the same walk in words.
//!
//! NetworkPolicy v1 and ClusterNetworkPolicy v1alpha2. Where they leave something open, it is decided here:
//! - a pod that reaches itself through a Service is not kept from it by NetworkPolicies (ClusterNetworkPolicies count);
//! - pods in a node's network are that node, so no selector finds them;
//! - a port's name beside an ipBlock is looked up on the pod that has the address;
//! - of two ClusterNetworkPolicies with one priority, the one whose name comes first is asked first;
//! - protocols other than TCP, UDP and SCTP match rules without ports only;
//! - an address that is attached while the cluster has no living pod for it is closed in both directions, as soon as any
//!   policy is enforced; only its own node reaches it.
//!
//! A NetworkPolicy in audit isolates nobody and allows nothing. Those in audit are taken together, as they would be
//! enforced one day: a flow that passes a direction now is told if all of them, enforced along with the others, would
//! deny it. So what one default deny would break is not told where another policy in audit allows it. A ClusterNetworkPolicy in
//! audit is asked in its place and decides nothing: what its first rule that matches would deny is told, each policy by itself.

use std::net::IpAddr;
use std::sync::Arc;

use cluster::{
    Action, ClusterNetworkPolicy, ClusterPeer, ClusterPeers, ClusterRule, Direction, NetworkPolicy, Peer,
    PodSelector, PortMatch, Protocol, Rule, Tier, domain_matches,
};

use crate::compile::set::number;
use crate::view::{Cluster, Member, Party};

/// A connection as it would begin: after a Service's address was translated and before any source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Who begins it.
    pub source: IpAddr,
    /// Whom it reaches.
    pub destination: IpAddr,
    /// By what.
    pub traffic: Traffic,
    /// Whether it came to its destination by the address of a Service.
    pub through_service: bool,
}

/// What runs above IP, and where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Traffic {
    /// To a port.
    Port(Protocol, u16),
    /// By a protocol without ports that policies know, by its number.
    Other(u8),
}

impl Traffic {
    /// What a packet with these headers is: the number of its protocol in IP, and its destination's port.
    pub fn of_packet(protocol: u8, port: u16) -> Self {
        let with_ports = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        let known = with_ports.into_iter().find(|known| number(*known) == protocol);
        known.map_or(Self::Other(protocol), |known| Self::Port(known, port))
    }
}

/// What becomes of a flow, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// What the source's policies say.
    pub egress: Decision,
    /// What the destination's policies say.
    pub ingress: Decision,
}

impl Judgement {
    /// Whether the flow passes.
    pub fn allows(&self) -> bool {
        self.egress.allows() && self.ingress.allows()
    }

    /// What was decided for a direction.
    pub fn of(&self, direction: Direction) -> &Decision {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

/// What was decided for one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The rule of the Admin tier that left it to those that follow.
    pub passed: Option<ClusterRuleAt>,
    /// What decided in the end.
    pub outcome: Outcome,
    /// The NetworkPolicies in audit that would isolate the pod; together they would deny what passes now. None if they
    /// would not.
    pub would_deny: Vec<Arc<NetworkPolicy>>,
    /// The rules of ClusterNetworkPolicies in audit that would have denied the flow before anything that is enforced decided.
    pub cluster_would_deny: Vec<ClusterRuleAt>,
}

impl Decision {
    fn of(outcome: Outcome) -> Self {
        Self { passed: None, outcome, would_deny: Vec::new(), cluster_would_deny: Vec::new() }
    }

    /// Whether the direction lets the flow pass.
    pub fn allows(&self) -> bool {
        match &self.outcome {
            Outcome::Cluster(at) => at.rule().is_some_and(|rule| rule.action != Action::Deny),
            Outcome::Isolated(_) | Outcome::Closed => false,
            Outcome::Free(_) | Outcome::Allowed(..) | Outcome::Hairpin(_) | Outcome::Unjudged => true,
        }
    }
}

/// What decides on a direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Policies are not about this end, and why.
    Free(Freedom),
    /// A rule of a ClusterNetworkPolicy.
    Cluster(ClusterRuleAt),
    /// A rule of a NetworkPolicy, by its place.
    Allowed(Arc<NetworkPolicy>, usize),
    /// These NetworkPolicies isolate the pod, and no rule of theirs lets the flow pass.
    Isolated(Vec<Arc<NetworkPolicy>>),
    /// These NetworkPolicies isolate the pod, but it reaches itself.
    Hairpin(Vec<Arc<NetworkPolicy>>),
    /// The address is attached, and the cluster has no living pod for it.
    Closed,
    /// No policy has a word in it.
    Unjudged,
}

/// Why policies are not about an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freedom {
    /// It is no pod with an address of its own.
    NoPod,
    /// A pod reaches itself at its own address, which never leaves it.
    Itself,
    /// The pod's own node may always reach it.
    OwnNode,
}

/// A rule of a ClusterNetworkPolicy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterRuleAt {
    /// The policy.
    pub policy: Arc<ClusterNetworkPolicy>,
    /// The direction it is a rule of.
    pub direction: Direction,
    /// Its place among them, from 0.
    pub place: usize,
}

impl ClusterRuleAt {
    /// The rule.
    pub fn rule(&self) -> Option<&ClusterRule> {
        self.policy.rules(self.direction).get(self.place)
    }
}

/// One direction of a flow.
pub(crate) struct Side<'c> {
    pub(crate) cluster: &'c Cluster,
    pub(crate) direction: Direction,
    pub(crate) subject: &'c Member,
    /// The other end.
    pub(crate) other: &'c Party,
    pub(crate) destination: &'c Party,
    pub(crate) traffic: Traffic,
}

/// What becomes of a flow.
pub fn judge(cluster: &Cluster, flow: &Flow) -> Judgement {
    let (source, destination) = (&cluster.party(flow.source), &cluster.party(flow.destination));
    let ends = Ends { source, destination, traffic: flow.traffic, through_service: flow.through_service };
    Judgement {
        egress: ends.decide(cluster, Direction::Egress),
        ingress: ends.decide(cluster, Direction::Ingress),
    }
}

/// A flow between two whom one knows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends<'p> {
    pub(crate) source: &'p Party,
    pub(crate) destination: &'p Party,
    pub(crate) traffic: Traffic,
    pub(crate) through_service: bool,
}

impl Ends<'_> {
    /// What is decided for one direction.
    pub(crate) fn decide(&self, cluster: &Cluster, direction: Direction) -> Decision {
        let (own, other) = match direction {
            Direction::Egress => (self.source, self.destination),
            Direction::Ingress => (self.destination, self.source),
        };
        let Some(subject) = &own.member else {
            return Decision::of(nobodys(cluster, direction, own.address, other.address));
        };
        let itself = other.member.as_ref().is_some_and(|other| other.name() == subject.name());
        if itself && !self.through_service {
            return Decision::of(Outcome::Free(Freedom::Itself));
        }
        if direction == Direction::Ingress && is_own_node(cluster, subject.node.as_ref(), other.address) {
            return Decision::of(Outcome::Free(Freedom::OwnNode));
        }
        let (destination, traffic) = (self.destination, self.traffic);
        Side { cluster, direction, subject, other, destination, traffic }.decide(itself)
    }
}

/// What becomes of a direction at an address that is no pod's.
fn nobodys(cluster: &Cluster, direction: Direction, own: IpAddr, other: IpAddr) -> Outcome {
    match cluster.closed(own) {
        None => Outcome::Free(Freedom::NoPod),
        at if direction == Direction::Ingress && is_own_node(cluster, at, other) => {
            Outcome::Free(Freedom::OwnNode)
        }
        Some(_) => Outcome::Closed,
    }
}

/// Whether an address is one of the node that a pod runs on.
fn is_own_node(cluster: &Cluster, node: Option<&Arc<str>>, address: IpAddr) -> bool {
    let node = node.and_then(|name| cluster.snapshot().nodes.get(name));
    node.is_some_and(|node| node.addresses.contains(&address))
}

impl Side<'_> {
    fn decide(&self, itself: bool) -> Decision {
        let mut passed = None;
        let mut cluster_would_deny = Vec::new();
        if let Some(at) = self.cluster_rule(Tier::Admin, &mut cluster_would_deny) {
            if at.rule().is_some_and(|rule| rule.action != Action::Pass) {
                return Decision { cluster_would_deny, ..Decision::of(Outcome::Cluster(at)) };
            }
            passed = Some(at);
        }
        let isolating = self.isolating(false);
        let outcome = if isolating.is_empty() {
            let decided = self.cluster_rule(Tier::Baseline, &mut cluster_would_deny);
            decided.map_or(Outcome::Unjudged, Outcome::Cluster)
        } else if itself {
            Outcome::Hairpin(isolating)
        } else {
            self.allowed_by(&isolating).unwrap_or(Outcome::Isolated(isolating))
        };
        let would_deny = if itself { Vec::new() } else { self.would_deny(&outcome) };
        Decision { passed, would_deny, cluster_would_deny, outcome }
    }

    /// The policies in audit that together would deny what passes by this outcome. A pod that is isolated already loses
    /// nothing by one more policy, for policies only add.
    fn would_deny(&self, outcome: &Outcome) -> Vec<Arc<NetworkPolicy>> {
        let passes = match outcome {
            Outcome::Unjudged => true,
            Outcome::Cluster(at) => at.rule().is_some_and(|rule| rule.action != Action::Deny),
            _ => false,
        };
        let audited = if passes { self.isolating(true) } else { Vec::new() };
        if self.allowed_by(&audited).is_some() { Vec::new() } else { audited }
    }

    /// The first rule of a tier that has a word in it. A policy in audit has none: what it would deny, had it been asked by then, is
    /// noted.
    fn cluster_rule(&self, tier: Tier, would_deny: &mut Vec<ClusterRuleAt>) -> Option<ClusterRuleAt> {
        let about = |policy: &&Arc<ClusterNetworkPolicy>| {
            policy.subject.as_ref().is_some_and(|subject| selects(self.cluster, subject, self.subject))
        };
        self.cluster.cluster_policies(tier).into_iter().filter(about).find_map(|policy| {
            let place =
                policy.rules(self.direction).iter().position(|rule| self.cluster_rule_matches(rule))?;
            let at = ClusterRuleAt { policy: policy.clone(), direction: self.direction, place };
            if !policy.audit {
                return Some(at);
            }
            would_deny
                .extend(Some(at).filter(|at| at.rule().is_some_and(|rule| rule.action == Action::Deny)));
            None
        })
    }

    fn cluster_rule_matches(&self, rule: &ClusterRule) -> bool {
        match &rule.peers {
            // What cannot be read denies everybody and lets nobody in.
            ClusterPeers::Unreadable(_) => rule.action != Action::Accept,
            ClusterPeers::Any(peers) => {
                peers.iter().any(|peer| self.is_cluster_peer(peer)) && self.on_ports(&rule.ports)
            }
        }
    }

    fn is_cluster_peer(&self, peer: &ClusterPeer) -> bool {
        let address = self.other.address;
        match peer {
            ClusterPeer::Pods(selector) => {
                self.other.member.as_ref().is_some_and(|member| selects(self.cluster, selector, member))
            }
            ClusterPeer::Nodes(selector) => {
                let mut nodes = self.cluster.snapshot().nodes.values();
                nodes.any(|node| node.addresses.contains(&address) && selector.matches(&node.labels))
            }
            ClusterPeer::Networks(networks) => networks.iter().any(|network| network.contains(&address)),
            ClusterPeer::DomainNames(patterns) => {
                let means = |name: &str| patterns.iter().any(|pattern| domain_matches(pattern, name));
                let mut names = self.cluster.resolved_names();
                names.any(|name| name.addresses.contains(&address) && means(&name.name))
            }
        }
    }

    /// The NetworkPolicies that isolate the subject in this direction; with `audit`, those that would.
    pub(crate) fn isolating(&self, audit: bool) -> Vec<Arc<NetworkPolicy>> {
        let pod = &self.subject.pod;
        let isolates = |policy: &&Arc<NetworkPolicy>| {
            policy.rules_in_force(self.direction, audit).is_some() && policy.subjects.matches(&pod.labels)
        };
        self.cluster.network_policies(&pod.name.namespace).filter(isolates).cloned().collect()
    }

    /// The first rule of theirs that lets the flow pass.
    pub(crate) fn allowed_by(&self, policies: &[Arc<NetworkPolicy>]) -> Option<Outcome> {
        policies.iter().find_map(|policy| {
            let place = policy
                .rules(self.direction)?
                .iter()
                .position(|rule| self.is_peer_of(rule, policy) && self.on_ports(&rule.ports))?;
            Some(Outcome::Allowed(policy.clone(), place))
        })
    }

    /// Whether the other end is one that a rule is about, whatever the port.
    pub(crate) fn is_peer_of(&self, rule: &Rule, policy: &NetworkPolicy) -> bool {
        let Some(peers) = &rule.peers else { return true };
        peers.iter().any(|peer| match peer {
            Peer::Block(block) => block.contains(self.other.address),
            Peer::Unreadable(_) => false,
            Peer::Pods { namespaces, pods } => self.other.member.as_ref().is_some_and(|member| {
                let pod = &member.pod;
                let in_namespace = match namespaces {
                    None => pod.name.namespace == policy.name.namespace,
                    Some(selector) => selector.matches(&self.cluster.namespace_labels(&pod.name.namespace)),
                };
                in_namespace && pods.matches(&pod.labels)
            }),
        })
    }

    /// Whether the flow goes to one of these ports.
    pub(crate) fn on_ports(&self, ports: &Option<Box<[PortMatch]>>) -> bool {
        let Some(ports) = ports else { return true };
        let Traffic::Port(protocol, number) = self.traffic else { return false };
        ports.iter().any(|port| match port {
            PortMatch::All(wanted) => *wanted == protocol,
            PortMatch::Range(wanted, first, last) => {
                *wanted == protocol && (*first..=*last).contains(&number)
            }
            PortMatch::Named(wanted, name) => {
                wanted.is_none_or(|wanted| wanted == protocol) && self.has_port(name, protocol, number)
            }
            PortMatch::Unreadable(_) => false,
        })
    }

    /// Whether the destination is a pod that gives this port of its own this name.
    fn has_port(&self, name: &str, protocol: Protocol, number: u16) -> bool {
        self.destination.member.as_ref().is_some_and(|member| {
            let mut ports = member.pod.ports.iter();
            ports.any(|port| {
                port.name.as_deref() == Some(name) && port.protocol == protocol && port.port == number
            })
        })
    }
}

/// Whether a selector of pods in namespaces selects this one.
pub(crate) fn selects(cluster: &Cluster, selector: &PodSelector, member: &Member) -> bool {
    selector.pods.matches(&member.pod.labels)
        && selector.namespaces.matches(&cluster.namespace_labels(&member.name().namespace))
}
