//! Rules of policies as rules of nf_tables.
//!
//! Read [`network_policy`]. A rule is a list of peers and a list of ports, and becomes a rule for each pair of them; ports
//! that are single numbers are one set, so a rule with fifty ports is still one. Peers are the source of what comes in and
//! the destination of what goes out. Where a port has a name, the set says at which address it is which number: for what
//! goes out, of the peers themselves, so that peer and port are one lookup.
//!
//! Each rule counts what it decides on. Where verdicts are told of as well, a rule that tells stands before the one that
//! decides: too many to be told must not mean that nothing is decided.

use std::sync::Arc;

use cluster::{
    Action, ClusterNetworkPolicy, ClusterPeer, ClusterPeers, ClusterRule, Direction, NetworkPolicy, Peer,
    PodSelector, PortMatch, Protocol, Rule, Tier,
};
use ipnet::IpNet;
use netstate::nft::{self, Field, IpVersion, Statement, Value, Verdict};

use super::networks::{subtract, union};
use super::origin::{Decided, Origin, Teller};
use super::set::{NamedSet, PortName, Scope, Set, Sets, VERSIONS, number};

/// Rules, and the sets that they look up.
#[derive(Debug)]
pub(crate) struct Compiled<'s> {
    known: &'s Sets,
    /// In order.
    pub(crate) rules: Vec<nft::Rule>,
    /// What each rule stands for.
    pub(crate) origins: Vec<Origin>,
    /// Each once.
    pub(crate) sets: Vec<NamedSet>,
}

impl<'s> Compiled<'s> {
    /// No rules yet. Sets that are known have a name already.
    pub(crate) fn new(known: &'s Sets) -> Self {
        Self { known, rules: Vec::new(), origins: Vec::new(), sets: Vec::new() }
    }

    /// The fields together are an element of the set.
    fn look_up(&mut self, fields: impl Into<Vec<Field>>, set: Set) -> Statement {
        if let Some(here) = self.sets.iter().find(|here| ***here == set) {
            return Statement::in_set(fields, &*here.name);
        }
        let set = self.known.named(set);
        let lookup = Statement::in_set(fields, &*set.name);
        self.sets.push(set);
        lookup
    }
}

/// One kind of peer that a rule of nf_tables can look up.
enum Somebody {
    /// Pods, which may give their ports names.
    Pods(Scope),
    /// Whoever has an address in this set.
    Others(Set),
}

/// One condition on the port.
enum Somewhere {
    All(Protocol),
    Range(Protocol, u16, u16),
    Numbers(Set),
    Named(PortName),
}

/// A rule of either kind of policy.
struct Traffic<'t> {
    direction: Direction,
    /// The chain it is for, and what is to be told of it.
    teller: &'t Teller<'t>,
    origin: Origin,
    /// Of each version; `None` for anybody.
    peers: Option<Vec<(Somebody, IpVersion)>>,
    /// `None` for everything.
    ports: Option<Vec<Somewhere>>,
    verdict: Verdict,
    /// What it decides; nothing, if it leaves that to others.
    decided: Option<Decided>,
    comment: String,
}

/// What a NetworkPolicy allows in one direction: a packet that none of the rules is about goes on to the next policy.
pub(crate) fn network_policy<'s>(
    policy: &NetworkPolicy,
    direction: Direction,
    teller: &Teller<'_>,
    known: &'s Sets,
) -> Compiled<'s> {
    let mut compiled = Compiled::new(known);
    for (place, rule) in policy.rules(direction).into_iter().flatten().enumerate() {
        let traffic = Traffic {
            direction,
            teller,
            origin: Origin::rule(place),
            peers: peers(rule, &policy.name.namespace),
            ports: rule.ports.as_deref().map(ports),
            verdict: Verdict::Accept,
            // In audit it decides nothing.
            decided: (!policy.audit).then_some(Decided::Allowed),
            comment: format!("{} {} rule {}", policy.name, direction.as_str(), place + 1),
        };
        traffic.write(&mut compiled);
    }
    compiled
}

/// What a policy of the cluster decides in one direction, the `which`-th of its chain: what it leaves to others returns. In audit
/// all of it does, and what it would deny is told.
pub(crate) fn cluster_policy(
    (which, policy): (usize, &ClusterNetworkPolicy),
    direction: Direction,
    teller: &Teller<'_>,
    compiled: &mut Compiled<'_>,
) {
    for (place, rule) in policy.rules(direction).iter().enumerate() {
        let comment = format!("{} {} rule {} {}", policy.name, direction.as_str(), place + 1, rule.name);
        let origin = Origin::cluster_rule(which, place);
        if let Some(mut traffic) = cluster_rule(rule, policy.tier, direction, (teller, origin, comment)) {
            if policy.audit {
                traffic.verdict = Verdict::Return;
                traffic.decided = (rule.action == Action::Deny).then_some(Decided::WouldDeny);
            }
            traffic.write(compiled);
        }
    }
}

fn cluster_rule<'t>(
    rule: &ClusterRule,
    tier: Tier,
    direction: Direction,
    (teller, origin, comment): (&'t Teller<'t>, Origin, String),
) -> Option<Traffic<'t>> {
    let (verdict, decided) = match (rule.action, tier) {
        (Action::Deny, _) => (Verdict::Drop, Some(Decided::Denied)),
        (Action::Accept, Tier::Admin) => (Verdict::Accept, Some(Decided::Allowed)),
        (Action::Pass, Tier::Admin) => (Verdict::Return, None),
        // Whatever leaves the Baseline tier passes, but policies in audit may have a word on it.
        (Action::Accept | Action::Pass, Tier::Baseline) => (Verdict::Return, Some(Decided::Allowed)),
    };
    let (peers, ports) = match &rule.peers {
        ClusterPeers::Unreadable(_) if rule.action == Action::Accept => return None,
        ClusterPeers::Unreadable(_) => (None, None),
        ClusterPeers::Any(listed) => (Some(cluster_peers(listed)), rule.ports.as_deref().map(ports)),
    };
    let comment = comment.trim_end().to_owned();
    Some(Traffic { direction, teller, origin, peers, ports, verdict, decided, comment })
}

fn peers(rule: &Rule, namespace: &Arc<str>) -> Option<Vec<(Somebody, IpVersion)>> {
    let listed = rule.peers.as_deref()?;
    let mut blocks: Vec<IpNet> = Vec::new();
    let mut found = Vec::new();
    for peer in listed {
        match peer {
            Peer::Pods { namespaces, pods } => {
                let scope = match namespaces {
                    None => Scope::Within(namespace.clone(), pods.clone()),
                    Some(namespaces) => Scope::Across(namespaces.clone(), pods.clone()),
                };
                found.extend(VERSIONS.map(|version| (Somebody::Pods(scope.clone()), version)));
            }
            Peer::Block(block) => blocks.extend(subtract(block.cidr, &block.except)),
            Peer::Unreadable(_) => {}
        }
    }
    found.extend(networks(&blocks));
    Some(found)
}

fn cluster_peers(listed: &[ClusterPeer]) -> Vec<(Somebody, IpVersion)> {
    let mut found = Vec::new();
    for peer in listed {
        match peer {
            ClusterPeer::Pods(PodSelector { namespaces, pods }) => {
                let scope = Scope::Across(namespaces.clone(), pods.clone());
                found.extend(VERSIONS.map(|version| (Somebody::Pods(scope.clone()), version)));
            }
            ClusterPeer::Nodes(selector) => {
                let set = |version| Somebody::Others(Set::Nodes(selector.clone(), version));
                found.extend(VERSIONS.map(|version| (set(version), version)));
            }
            ClusterPeer::Networks(listed) => found.extend(networks(listed)),
            ClusterPeer::DomainNames(names) => {
                let set = |version| Somebody::Others(Set::DomainNames(names.clone(), version));
                found.extend(VERSIONS.map(|version| (set(version), version)));
            }
        }
    }
    found
}

/// Networks, in a set for each version that has some.
fn networks(listed: &[IpNet]) -> Vec<(Somebody, IpVersion)> {
    let of_version = |version| {
        let own: Vec<IpNet> =
            listed.iter().copied().filter(|network| IpVersion::of_net(*network) == version).collect();
        let own = union(&own);
        (!own.is_empty()).then(|| (Somebody::Others(Set::Networks(own.into(), version)), version))
    };
    VERSIONS.into_iter().filter_map(of_version).collect()
}

/// Conditions that together mean these ports, as few as can be.
fn ports(listed: &[PortMatch]) -> Vec<Somewhere> {
    let (mut found, mut numbers, mut names) = (Vec::new(), Vec::new(), Vec::new());
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        if listed.contains(&PortMatch::All(protocol)) {
            found.push(Somewhere::All(protocol));
            continue;
        }
        for (first, last) in merged(listed, protocol) {
            if first == last {
                numbers.push((protocol, first));
            } else {
                found.push(Somewhere::Range(protocol, first, last));
            }
        }
    }
    for port in listed {
        if let PortMatch::Named(protocol, name) = port {
            names.push(PortName { protocol: *protocol, name: name.clone() });
        }
    }
    match numbers[..] {
        [] => {}
        [(protocol, port)] => found.push(Somewhere::Range(protocol, port, port)),
        _ => found.push(Somewhere::Numbers(Set::Numbers(numbers.into()))),
    }
    names.sort_unstable();
    names.dedup();
    found.extend(names.into_iter().map(Somewhere::Named));
    found
}

/// The ranges of a protocol, in order; none touches another.
fn merged(listed: &[PortMatch], protocol: Protocol) -> Vec<(u16, u16)> {
    let own = listed.iter().filter_map(|port| match port {
        PortMatch::Range(of, first, last) if *of == protocol => Some((*first, *last)),
        _ => None,
    });
    let mut ranges: Vec<(u16, u16)> = own.collect();
    ranges.sort_unstable();
    ranges.dedup_by(|later, earlier| {
        let touches = later.0 <= earlier.1.saturating_add(1);
        if touches {
            earlier.1 = earlier.1.max(later.1);
        }
        touches
    });
    ranges
}

impl Traffic<'_> {
    fn write(&self, compiled: &mut Compiled<'_>) {
        let everywhere = [None];
        let ports: Vec<Option<&Somewhere>> = match &self.ports {
            None => everywhere.to_vec(),
            Some(ports) => ports.iter().map(Some).collect(),
        };
        for port in ports {
            match (&self.peers, port) {
                (Some(peers), port) => {
                    peers.iter().for_each(|(peer, version)| self.pair(peer, *version, port, compiled));
                }
                (None, Some(Somewhere::Named(name))) => {
                    for version in VERSIONS {
                        let lookup = self.named(self.any_named(name, version), compiled);
                        self.rule(vec![lookup], compiled);
                    }
                }
                (None, port) => {
                    let statements = port.map_or(Vec::new(), |port| plain_port(port, compiled));
                    self.rule(statements, compiled);
                }
            }
        }
    }

    fn pair(
        &self,
        peer: &Somebody,
        version: IpVersion,
        port: Option<&Somewhere>,
        compiled: &mut Compiled<'_>,
    ) {
        let address = match self.direction {
            Direction::Ingress => Field::Source(version),
            Direction::Egress => Field::Destination(version),
        };
        let statements = match (peer, port, self.direction) {
            (Somebody::Pods(scope), Some(Somewhere::Named(name)), Direction::Egress) => {
                let set = Set::NamedPorts(scope.clone(), name.clone(), version);
                vec![self.named(set, compiled)]
            }
            (peer, port, _) => {
                let set = match peer {
                    Somebody::Pods(scope) => Set::Pods(scope.clone(), version),
                    Somebody::Others(set) => set.clone(),
                };
                let mut statements = vec![compiled.look_up([address], set)];
                match port {
                    Some(Somewhere::Named(name)) => {
                        statements.push(self.named(self.any_named(name, version), compiled));
                    }
                    Some(port) => statements.extend(plain_port(port, compiled)),
                    None => {}
                }
                statements
            }
        };
        self.rule(statements, compiled);
    }

    /// The ports of a name at whoever is the destination: here, of a local pod; there, of any pod.
    fn any_named(&self, name: &PortName, version: IpVersion) -> Set {
        let scope = match self.direction {
            Direction::Ingress => Scope::Local,
            Direction::Egress => Scope::everywhere(),
        };
        Set::NamedPorts(scope, name.clone(), version)
    }

    fn named(&self, set: Set, compiled: &mut Compiled<'_>) -> Statement {
        let version = match &set {
            Set::NamedPorts(_, _, version) => *version,
            _ => IpVersion::V4,
        };
        let fields = [Field::Destination(version), Field::Protocol, Field::DestinationPort];
        compiled.look_up(fields, set)
    }

    fn rule(&self, statements: Vec<Statement>, compiled: &mut Compiled<'_>) {
        let told = self.decided.and_then(|decided| self.teller.tell(decided, self.origin, &statements));
        let last = [Statement::Counter, Statement::Verdict(self.verdict.clone())];
        let counted: Vec<Statement> = statements.into_iter().chain(last).collect();
        let told = told.map(|told| (told, Origin::Telling));
        for (statements, origin) in told.into_iter().chain([(counted, self.origin)]) {
            compiled.rules.push(nft::Rule::new(statements).with_comment(self.comment.clone()));
            compiled.origins.push(origin);
        }
    }
}

/// What a port without a name is matched by.
fn plain_port(port: &Somewhere, compiled: &mut Compiled<'_>) -> Vec<Statement> {
    let of = |protocol: Protocol| Statement::equal(Field::Protocol, Value::Protocol(number(protocol)));
    match port {
        Somewhere::All(protocol) => vec![of(*protocol)],
        Somewhere::Range(protocol, first, last) if first == last => {
            vec![of(*protocol), Statement::equal(Field::DestinationPort, Value::Port(*first))]
        }
        Somewhere::Range(protocol, first, last) => {
            let field = Field::DestinationPort;
            let (first, last) = (Value::Port(*first), Value::Port(*last));
            vec![of(*protocol), Statement::Between { field, operator: nft::Operator::Equal, first, last }]
        }
        Somewhere::Numbers(set) => {
            vec![compiled.look_up([Field::Protocol, Field::DestinationPort], set.clone())]
        }
        // Looked up with an address, by whoever knows which.
        Somewhere::Named(_) => Vec::new(),
    }
}
