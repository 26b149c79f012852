//! Why a flow passes or not, in the words of those who write policies.
//!
//! Read [`explain`]: it takes [`judge`]'s decision and tells, for each direction, which policies and rules decide, how
//! near others come, and what would let the flow pass. Nothing is decided here.

use std::fmt::{self, Display, Formatter};
use std::sync::Arc;

use cluster::{
    Action, ClusterPeers, Direction, Labels, Lease, NetworkPolicy, Peer, PortMatch, Protocol, Requirement,
    Rule, Selector, Tier,
};
use netstate::pool::base_address;

use crate::judge::{ClusterRuleAt, Decision, Flow, Freedom, Judgement, Outcome, Side, Traffic, judge};
use crate::view::{Cluster, Party};

/// A judgement in words. Printed, it is one line for the flow and an indented paragraph for each direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// Who begins the flow.
    pub source: String,
    /// Whom it reaches.
    pub destination: String,
    /// By what.
    pub traffic: Traffic,
    /// Whether it passes.
    pub allowed: bool,
    /// What the source's policies say.
    pub egress: Reason,
    /// What the destination's policies say.
    pub ingress: Reason,
}

impl Explanation {
    /// Whether another one gives the same reasons, whoever the ends are.
    pub fn says_the_same(&self, other: &Self) -> bool {
        (self.allowed, &self.egress, &self.ingress) == (other.allowed, &other.egress, &other.ingress)
    }
}

/// Why one direction lets a flow pass or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Whether it lets it pass.
    pub allowed: bool,
    /// What decided.
    pub because: String,
    /// What had a word in it, or nearly.
    pub notes: Vec<String>,
    /// What would let it pass, where it does not.
    pub remedy: Option<String>,
}

/// What becomes of a flow, and why.
pub fn explain(cluster: &Cluster, flow: &Flow) -> Explanation {
    let Judgement { egress, ingress } = judge(cluster, flow);
    let (source, destination) = (cluster.party(flow.source), cluster.party(flow.destination));
    let reason = |direction, decision: &Decision, own: &Party, other: &Party| {
        let teller =
            Teller { cluster, direction, own, other, destination: &destination, traffic: flow.traffic };
        teller.tell(decision)
    };
    let allowed = egress.allows() && ingress.allows();
    Explanation {
        source: told(cluster, &source),
        destination: told(cluster, &destination),
        traffic: flow.traffic,
        allowed,
        egress: reason(Direction::Egress, &egress, &source, &destination),
        ingress: reason(Direction::Ingress, &ingress, &destination, &source),
    }
}

/// Who somebody is.
fn told(cluster: &Cluster, party: &Party) -> String {
    if let Some(member) = &party.member {
        return format!("pod {} ({})", member.name(), party.address);
    }
    if let Some(node) = cluster.orphan(party.address) {
        return format!("an attachment to node {node} without a living pod ({})", party.address);
    }
    let snapshot = cluster.snapshot();
    if let Some(node) = snapshot.nodes.values().find(|node| node.addresses.contains(&party.address)) {
        return format!("node {} ({})", node.name, party.address);
    }
    let tunnel = |lease: &&Arc<Lease>| lease.current().any(|cidr| base_address(cidr) == party.address);
    match snapshot.leases.values().find(tunnel) {
        Some(lease) => format!("node {} ({}, its address in the pod network)", lease.node, party.address),
        None => party.address.to_string(),
    }
}

/// Labels that controllers give pods, by which the next one of the same kind is another.
const PASSING: [&str; 7] = [
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "controller-revision-hash",
    "controller-uid",
    "pod-template-generation",
    "pod-template-hash",
    "statefulset.kubernetes.io/pod-name",
];

/// What selects a pod by its labels, and those that take its place, where it has labels for that.
fn lasting_selector(labels: &Labels) -> Selector {
    let equal = |(key, value)| Requirement::equal(key, value);
    let lasting = labels.iter().filter(|(key, _)| !PASSING.contains(key));
    let lasting: Selector = lasting.map(equal).collect();
    if lasting.is_empty() { labels.iter().map(equal).collect() } else { lasting }
}

struct Teller<'c> {
    cluster: &'c Cluster,
    direction: Direction,
    own: &'c Party,
    other: &'c Party,
    destination: &'c Party,
    traffic: Traffic,
}

impl Teller<'_> {
    fn tell(&self, decision: &Decision) -> Reason {
        let passed = decision
            .passed
            .as_ref()
            .map(|at| format!("{} leaves it to the tiers that follow", rule_name(at)));
        let mut notes: Vec<String> = passed.into_iter().collect();
        let because = match &decision.outcome {
            Outcome::Free(freedom) => self.freedom(*freedom),
            Outcome::Unjudged => format!("no policy has a rule on {} for it", self.direction.as_str()),
            Outcome::Cluster(at) => format!("{}: {}", rule_name(at), meaning(at)),
            Outcome::Allowed(policy, place) => self.policy_rule(policy, *place),
            Outcome::Hairpin(policies) => {
                format!("{}, but a pod may reach itself through a Service", isolated_by(policies))
            }
            Outcome::Closed => {
                "it is an attachment whose pod the cluster does not have, or not any more".to_owned()
            }
            Outcome::Isolated(policies) => {
                notes.extend(self.near_misses(policies));
                notes.extend(self.allowed_in_audit());
                format!("{}, and no rule of theirs matches", isolated_by(policies))
            }
        };
        if !decision.would_deny.is_empty() {
            let (names, verb) = (names_of(&decision.would_deny), "in audit, would deny it");
            notes.push(format!("NetworkPolicy {names}, {verb}: no rule of theirs matches"));
            notes.extend(self.near_misses(&decision.would_deny));
        }
        let in_audit = decision.cluster_would_deny.iter();
        notes.extend(in_audit.map(|at| format!("{}, in audit, would deny it", rule_name(at))));
        let allowed = decision.allows();
        Reason { allowed, because, notes, remedy: (!allowed).then(|| self.remedy(&decision.outcome)) }
    }

    fn freedom(&self, freedom: Freedom) -> String {
        match freedom {
            Freedom::NoPod => format!("{} is no pod that policies are about", told(self.cluster, self.own)),
            Freedom::Itself => "a pod always reaches itself at its own address".to_owned(),
            Freedom::OwnNode => "a pod's own node always reaches it".to_owned(),
        }
    }

    fn policy_rule(&self, policy: &NetworkPolicy, place: usize) -> String {
        format!("NetworkPolicy {} {} rule {} allows it", policy.name, self.direction.as_str(), place + 1)
    }

    fn side(&self) -> Option<Side<'_>> {
        Some(Side {
            cluster: self.cluster,
            direction: self.direction,
            subject: self.own.member.as_ref()?,
            other: self.other,
            destination: self.destination,
            traffic: self.traffic,
        })
    }

    /// The rule of a policy in audit that would let the flow pass, were it enforced.
    fn allowed_in_audit(&self) -> Option<String> {
        let side = self.side()?;
        let outcome = side.allowed_by(&side.isolating(true))?;
        let Outcome::Allowed(policy, place) = outcome else { return None };
        let direction = self.direction.as_str();
        Some(format!(
            "NetworkPolicy {} {direction} rule {} would allow it, but is in audit only",
            policy.name,
            place + 1
        ))
    }

    /// The rules that fail by the port alone, or by the peer alone, or that could not be read.
    fn near_misses(&self, policies: &[Arc<NetworkPolicy>]) -> Vec<String> {
        let Some(side) = self.side() else { return Vec::new() };
        let mut notes = Vec::new();
        for policy in policies {
            for (place, rule) in policy.rules(self.direction).into_iter().flatten().enumerate() {
                let name =
                    format!("NetworkPolicy {} {} rule {}", policy.name, self.direction.as_str(), place + 1);
                match (side.is_peer_of(rule, policy), side.on_ports(&rule.ports)) {
                    (true, false) => {
                        notes.push(format!("{name} is for this peer, but for {}", ports_of(&rule.ports)));
                    }
                    (false, true) => {
                        notes.push(format!("{name} is for this port, but {}", self.peers_of(rule, policy)));
                    }
                    _ => {}
                }
            }
            notes.extend(policy.all_faults().map(|fault| format!("NetworkPolicy {}: {fault}", policy.name)));
        }
        notes
    }

    fn peers_of(&self, rule: &Rule, policy: &NetworkPolicy) -> String {
        let word = if self.direction == Direction::Ingress { "from" } else { "to" };
        let peers = rule.peers.iter().flatten().map(|peer| match peer {
            Peer::Pods { namespaces: None, pods } => {
                format!("pods {pods} of namespace {}", policy.name.namespace)
            }
            Peer::Pods { namespaces: Some(namespaces), pods } => {
                format!("pods {pods} of namespaces {namespaces}")
            }
            Peer::Block(block) if block.except.is_empty() => block.cidr.to_string(),
            Peer::Block(block) => format!("{} without {}", block.cidr, listed(&block.except)),
            Peer::Unreadable(_) => "nobody".to_owned(),
        });
        format!("{word} {}", peers.collect::<Vec<_>>().join(" or "))
    }

    fn remedy(&self, outcome: &Outcome) -> String {
        let (word, key) = match self.direction {
            Direction::Ingress => ("from", "ingress"),
            Direction::Egress => ("to", "egress"),
        };
        let who = match &self.other.member {
            Some(member) => {
                let name = &member.name().namespace;
                let pods = lasting_selector(&member.pod.labels);
                format!("namespaceSelector {}={name}, podSelector {pods}", cluster::NAMESPACE_NAME_LABEL)
            }
            None => format!(
                "ipBlock {}/{}",
                self.other.address,
                if self.other.address.is_ipv4() { 32 } else { 128 }
            ),
        };
        let rule = match self.traffic {
            Traffic::Port(..) => format!("{word} {who}, ports {}", self.traffic),
            Traffic::Other(_) => format!("{word} {who}, without ports"),
        };
        let namespace = self.own.member.as_ref().map_or("", |member| &*member.name().namespace);
        match outcome {
            Outcome::Closed => {
                "that very pod, by its UID, in the store; else DEL, which ends the attachment".to_owned()
            }
            Outcome::Cluster(at) if at.policy.tier == Tier::Admin => {
                format!("that rule, or one before it that accepts: {rule}; no NetworkPolicy can overrule it")
            }
            _ => format!("an {key} rule of a NetworkPolicy in namespace {namespace} for this pod: {rule}"),
        }
    }
}

fn rule_name(at: &ClusterRuleAt) -> String {
    let name = at.rule().map_or("", |rule| &rule.name);
    let named = if name.is_empty() { String::new() } else { format!(" ({name})") };
    let direction = at.direction.as_str();
    let (policy, tier) = (&at.policy.name, at.policy.tier.as_str());
    format!("ClusterNetworkPolicy {policy} of tier {tier} {direction} rule {}{named}", at.place + 1)
}

fn meaning(at: &ClusterRuleAt) -> String {
    match at.rule() {
        Some(rule) => match (&rule.peers, rule.action) {
            (ClusterPeers::Unreadable(reason), _) => {
                format!("denies everything, for it cannot be read: {reason}")
            }
            (_, Action::Accept) => "accepts it".to_owned(),
            (_, Action::Deny) => "denies it".to_owned(),
            (_, Action::Pass) => "leaves it to what follows, and nothing does".to_owned(),
        },
        None => "is gone".to_owned(),
    }
}

fn isolated_by(policies: &[Arc<NetworkPolicy>]) -> String {
    format!("isolated by NetworkPolicy {}", names_of(policies))
}

fn names_of(policies: &[Arc<NetworkPolicy>]) -> String {
    policies.iter().map(|policy| policy.name.to_string()).collect::<Vec<_>>().join(", ")
}

fn listed<T: ToString>(values: &[T]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn ports_of(ports: &Option<Box<[PortMatch]>>) -> String {
    let word = |port: &PortMatch| match port {
        PortMatch::All(protocol) => format!("all of {protocol}"),
        PortMatch::Range(protocol, first, last) if first == last => format!("{protocol} {first}"),
        PortMatch::Range(protocol, first, last) => format!("{protocol} {first}-{last}"),
        PortMatch::Named(protocol, name) => {
            let protocol = protocol.map_or("any protocol", Protocol::as_str);
            format!("the port named {name:?} of {protocol}")
        }
        PortMatch::Unreadable(_) => "no port".to_owned(),
    };
    ports.iter().flatten().map(word).collect::<Vec<_>>().join(" or ")
}

impl Display for Traffic {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(protocol, port) => write!(out, "{protocol} {port}"),
            Self::Other(number) => write!(out, "protocol {number}"),
        }
    }
}

impl Display for Explanation {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let word = |allowed| if allowed { "allowed" } else { "denied" };
        writeln!(out, "{} -> {} {}: {}", self.source, self.destination, self.traffic, word(self.allowed))?;
        for (direction, reason) in [("egress", &self.egress), ("ingress", &self.ingress)] {
            writeln!(out, "  {direction} {}: {}", word(reason.allowed), reason.because)?;
            for note in &reason.notes {
                writeln!(out, "    {note}")?;
            }
            if let Some(remedy) = &reason.remedy {
                writeln!(out, "    would allow it: {remedy}")?;
            }
        }
        Ok(())
    }
}
