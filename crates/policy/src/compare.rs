//! What a change of policies would open and close, before it is made.
//!
//! Read [`compare`], then [`FlowChange`]. Ends that all policies treat alike are asked about once ([`kinds`]), and ports in
//! intervals in which no policy makes a difference; every answer is [`judge`](crate::judge())'s. Only flows from or to pods
//! that a changed policy is about can be others than before, so no others are looked at.
//!
//! What stays true: it says what the naive comparison of every flow before and after would say, which a property test
//! compares. Flows through a Service are those to the pods behind it; a pod and itself, and a pod's own node, are left out,
//! for no policy is about them. Of several addresses of one version the first counts.

mod kinds;
mod space;
mod words;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use cluster::{Change, Direction, NamespacedName, PortMatch, Protocol};

use self::kinds::{Both, Crowd, End, cuts};
use crate::judge::{Ends, Side, Traffic};
use crate::view::{Cluster, Party};

/// Flows that a change opens or closes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowChange {
    /// It opens them; else it closes them.
    pub opens: bool,
    /// Who begins them: any of these.
    pub sources: Group,
    /// Whom they reach: any of these.
    pub destinations: Group,
    /// By any of these.
    pub traffic: Vec<Span>,
    /// Only by IPv6 (true) or only by IPv4 (false), where the two differ.
    pub only_v6: Option<bool>,
    /// How many pairs of ends; addresses outside of the cluster count as one end for each class that policies make of them.
    pub pairs: u64,
}

/// Ends of flows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// Pods.
    pub pods: Vec<NamespacedName>,
    /// Nodes, and pods in their network.
    pub nodes: Vec<Arc<str>>,
    /// Addresses that are neither pods' nor nodes': from the first to the last, both included. Pods' and nodes' may lie between.
    pub outside: Vec<(IpAddr, IpAddr)>,
}

/// Traffic between two ports, both included, or of other protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Span {
    /// Of a protocol that has ports.
    Ports(Protocol, u16, u16),
    /// Of all other protocols, such as ICMP.
    Others,
}

impl Span {
    /// One of them, which stands for all.
    fn example(self) -> Traffic {
        match self {
            Self::Ports(protocol, first, _) => Traffic::Port(protocol, first),
            Self::Others => Traffic::Other(1),
        }
    }
}

/// What these changes of policies would open and close; changes of other objects are left out.
pub fn compare(before: &Cluster, changes: &[Change]) -> Vec<FlowChange> {
    let mut after = before.clone();
    for change in changes {
        use cluster::Key::{ClusterNetworkPolicy, NetworkPolicy};
        if matches!(change.key(), NetworkPolicy(_) | ClusterNetworkPolicy(_)) {
            after.apply(change);
        }
    }
    let both = Both::new(before, &after);
    let crowds = both.crowds();
    let mut alike: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (number, crowd) in crowds.iter().enumerate() {
        alike.entry(crowd.looks).or_default().push(number);
    }
    let mut comparison = Comparison {
        both: &both,
        crowds: &crowds,
        one_sided: HashMap::new(),
        cuts: HashMap::new(),
        found: BTreeMap::new(),
    };
    let mut pairs = BTreeSet::new();
    for (number, crowd) in crowds.iter().enumerate() {
        for direction in [INGRESS, EGRESS].into_iter().filter(|direction| crowd.concerned[*direction]) {
            for (looks, others) in &alike {
                if comparison.differs(direction, number, (*looks, others)) {
                    pairs.extend(others.iter().map(|other| match direction {
                        INGRESS => (*other, number),
                        _ => (number, *other),
                    }));
                }
            }
        }
    }
    pairs.into_iter().for_each(|(source, destination)| comparison.pair(source, destination));
    comparison.gathered()
}

/// Places of the directions in [`Direction::ALL`].
const INGRESS: usize = 0;
const EGRESS: usize = 1;

/// What is different between two crowds: whether it opens, by which version alone, and by what.
type Difference = (bool, Option<bool>, Vec<Span>);

/// Where ports begin that something treats otherwise than those before.
type Cuts = BTreeSet<(Protocol, u16)>;

/// Parts of the traffic that something else is said of than before, and whether they pass now.
type Anew = Vec<(Span, bool)>;

struct Comparison<'b, 'c> {
    both: &'b Both<'c>,
    crowds: &'b [Crowd],
    /// What the policies of one end alone make of another's looks: the parts in which they say something else than before,
    /// and whether they let those pass now. By direction, the concerned crowd, the other's looks, and the version.
    one_sided: HashMap<(usize, usize, usize, bool), Anew>,
    /// Where a crowd's own policies make a difference between ports: by crowd and direction.
    cuts: HashMap<(usize, usize), Arc<Cuts>>,
    found: BTreeMap<Difference, BTreeMap<usize, BTreeSet<usize>>>,
}

impl Comparison<'_, '_> {
    /// Whether the policies of a crowd say something else in a direction than before, to any of those that look alike.
    fn differs(&mut self, direction: usize, number: usize, (looks, others): (usize, &[usize])) -> bool {
        let crowd = &self.crowds[number];
        let mut any = false;
        for v6 in [false, true] {
            let pairs = others.iter().map(|other| match direction {
                INGRESS => (&self.crowds[*other], crowd),
                _ => (crowd, &self.crowds[*other]),
            });
            let mut examples = pairs.filter_map(|(from, to)| Some((example(from, to, v6)?, to)));
            let Some(((one, other), to)) = examples.next() else { continue };
            if !self.may_differ(direction, (&one, &other)) {
                self.one_sided.insert((direction, number, looks, v6), Vec::new());
                continue;
            }
            let mut cuts = Cuts::clone(&self.cuts_of(number, direction));
            cuts.extend(edges(to));
            let says_another = |span: Span| {
                let clusters = self.both.clusters();
                let [before, after] =
                    clusters.map(|cluster| decides(cluster, (&one, &other), span, Direction::ALL[direction]));
                (before != after).then_some((span, after))
            };
            let parts: Anew = spans(&cuts).into_iter().filter_map(says_another).collect();
            any |= !parts.is_empty();
            self.one_sided.insert((direction, number, looks, v6), parts);
        }
        any
    }

    /// Whether the policies of one end can say something else than before, which is cheaper to know than what they say.
    fn may_differ(&self, direction: usize, (source, destination): (&Party, &Party)) -> bool {
        let direction = Direction::ALL[direction];
        let (own, other) = match direction {
            Direction::Ingress => (destination, source),
            Direction::Egress => (source, destination),
        };
        let Some(subject) = &own.member else { return false };
        let [before, after] = self.both.isolating(subject, direction);
        if self.both.changes_of_cluster() || before.is_empty() != after.is_empty() {
            return true;
        }
        // Isolated before and after: only rules that come or go make a difference, and only for whom they are about.
        self.both.clusters().into_iter().zip([before, after]).any(|(cluster, policies)| {
            let side = Side { cluster, direction, subject, other, destination, traffic: Traffic::Other(1) };
            policies.into_iter().filter(|policy| self.both.is_changed(policy)).any(|policy| {
                let mut rules = policy.rules(direction).into_iter().flatten();
                rules.any(|rule| side.is_peer_of(rule, policy))
            })
        })
    }

    /// Looks at the flows from one crowd to another.
    fn pair(&mut self, source: usize, destination: usize) {
        let (from, to) = (&self.crowds[source], &self.crowds[destination]);
        let mut spans: [[Vec<Span>; 2]; 2] = Default::default();
        let mut asked = [false; 2];
        for (version, v6) in [false, true].into_iter().enumerate() {
            let Some((one, other)) = example(from, to, v6) else { continue };
            asked[version] = true;
            for (span, opens) in self.differences((source, destination), (&one, &other), v6) {
                spans[version][usize::from(opens)].push(span);
            }
        }
        for opens in [false, true] {
            let [v4, v6] = &spans.each_ref().map(|spans| joined(&spans[usize::from(opens)]));
            let mut note = |only, spans: &Vec<Span>| {
                if !spans.is_empty() {
                    let sources = self.found.entry((opens, only, spans.clone())).or_default();
                    sources.entry(destination).or_default().insert(source);
                }
            };
            match asked {
                [true, true] if v4 != v6 => {
                    note(Some(false), v4);
                    note(Some(true), v6);
                }
                [true, _] => note(None, v4),
                _ => note(None, v6),
            }
        }
    }

    /// The parts of the traffic between two crowds that pass now and did not (true), or the other way round. An end that no
    /// changed policy is about says what it said, so it is asked once, and only about what the other end says anew.
    fn differences(
        &mut self,
        (source, destination): (usize, usize),
        ends: (&Party, &Party),
        v6: bool,
    ) -> Anew {
        let (from, to) = (&self.crowds[source], &self.crowds[destination]);
        let (known, other, direction) = match [to.concerned[INGRESS], from.concerned[EGRESS]] {
            [true, true] => return self.two_sided((source, destination), ends),
            [true, _] => ((INGRESS, destination, from.looks, v6), source, EGRESS),
            _ => ((EGRESS, source, to.looks, v6), destination, INGRESS),
        };
        let mut cuts = Cuts::clone(&self.cuts_of(other, direction));
        cuts.extend(edges(to));
        let parts = self.one_sided.get(&known).map_or(&[][..], Vec::as_slice);
        let passes = |span| decides(self.both.clusters()[0], ends, span, Direction::ALL[direction]);
        let anew = parts.iter().flat_map(|(part, opens)| {
            split(&[*part], &cuts).into_iter().map(|span| (span, *opens)).collect::<Vec<_>>()
        });
        anew.filter(|(span, _)| passes(*span)).collect()
    }

    /// The same between two that changed policies are about.
    fn two_sided(&mut self, (source, destination): (usize, usize), ends: (&Party, &Party)) -> Anew {
        let mut cuts = Cuts::clone(&self.cuts_of(source, EGRESS));
        cuts.extend(self.cuts_of(destination, INGRESS).iter());
        cuts.extend(edges(&self.crowds[destination]));
        let another = |span| {
            let [before, after] = self.both.clusters().map(|cluster| {
                Direction::ALL.into_iter().all(|direction| decides(cluster, ends, span, direction))
            });
            (before != after).then_some((span, after))
        };
        spans(&cuts).into_iter().filter_map(another).collect()
    }

    fn cuts_of(&mut self, crowd: usize, direction: usize) -> Arc<Cuts> {
        let cuts = self.cuts.entry((crowd, direction));
        cuts.or_insert_with(|| Arc::new(own_cuts(self.both, &self.crowds[crowd], direction))).clone()
    }

    /// The differences by whom they are between: crowds with the same are told together.
    fn gathered(self) -> Vec<FlowChange> {
        let crowds = self.crowds;
        let mut changes = Vec::new();
        for ((opens, only_v6, traffic), by_destination) in self.found {
            let mut by_sources: BTreeMap<BTreeSet<usize>, Vec<usize>> = BTreeMap::new();
            for (destination, sources) in by_destination {
                by_sources.entry(sources).or_default().push(destination);
            }
            for (sources, destinations) in by_sources {
                let pairs = sources.iter().flat_map(|source| {
                    let own = &crowds[*source];
                    destinations.iter().map(move |destination| pairs(own, &crowds[*destination]))
                });
                changes.push(FlowChange {
                    opens,
                    pairs: pairs.sum(),
                    sources: Group::of(sources.iter().map(|number| &crowds[*number])),
                    destinations: Group::of(destinations.iter().map(|number| &crowds[*number])),
                    traffic: traffic.clone(),
                    only_v6,
                });
            }
        }
        changes.sort_by_key(|change| (change.opens, std::cmp::Reverse(change.pairs)));
        changes
    }
}

/// What one direction says of a flow.
fn decides(cluster: &Cluster, (one, other): (&Party, &Party), span: Span, direction: Direction) -> bool {
    let ends = Ends { source: one, destination: other, traffic: span.example(), through_service: false };
    ends.decide(cluster, direction).allows()
}

/// Two that stand for their crowds.
fn example(from: &Crowd, to: &Crowd, v6: bool) -> Option<(Party, Party)> {
    let mut found = from.ends.iter().flat_map(|one| to.ends.iter().map(move |other| (one, other)));
    let (one, other) = found.find(|(one, other)| are_two(one, other, v6))?;
    Some((one.party(v6)?, other.party(v6)?))
}

/// Whether there are flows between two that a policy can be about.
fn are_two(one: &End, other: &End, v6: bool) -> bool {
    let pods = matches!(one, End::Pod(_)) || matches!(other, End::Pod(_));
    pods && !one.is(other) && !one.is_node_of(other) && one.has(v6) && other.has(v6)
}

/// How many pairs there are between two crowds that have flows between them. Those of one crowd have addresses of the same
/// versions, and are all pods or none.
fn pairs(from: &Crowd, to: &Crowd) -> u64 {
    let mut on_node: HashMap<&str, u64> = HashMap::new();
    let mut names: BTreeSet<&NamespacedName> = BTreeSet::new();
    for end in &to.ends {
        if let End::Pod(member) = end {
            *on_node.entry(member.node.as_deref().unwrap_or_default()).or_default() += 1;
            names.insert(member.name());
        }
    }
    let without = |end: &End| match end {
        End::Pod(member) => u64::from(names.contains(member.name())),
        End::Node(node) => on_node.get(&*node.name).copied().unwrap_or_default(),
        End::Outside(..) => 0,
    };
    from.ends.iter().map(|end| to.ends.len() as u64 - without(end)).sum()
}

/// Where a crowd's own policies make a difference between ports.
fn own_cuts(both: &Both<'_>, crowd: &Crowd, direction: usize) -> Cuts {
    let direction = Direction::ALL[direction];
    let Some(End::Pod(member)) = crowd.ends.first() else { return Cuts::new() };
    let isolating = both.isolating(member, direction);
    let of_namespace = isolating.iter().flatten().flat_map(|policy| policy.rules(direction)).flatten();
    let of_cluster = both.cluster_policies();
    let of_cluster = of_cluster.iter().flat_map(|policy| policy.rules(direction));
    let ports: Vec<&PortMatch> = of_namespace
        .map(|rule| &rule.ports)
        .chain(of_cluster.map(|rule| &rule.ports))
        .flat_map(|ports| ports.iter().flatten())
        .collect();
    cuts(ports)
}

/// Where the ports to which a crowd gives names begin and end.
fn edges(crowd: &Crowd) -> impl Iterator<Item = (Protocol, u16)> + use<'_> {
    let end = |(protocol, port): &(Protocol, u16)| Some((*protocol, port.checked_add(1)?));
    crowd.named.iter().copied().chain(crowd.named.iter().filter_map(end))
}

/// All traffic, cut there.
fn spans(cuts: &Cuts) -> Vec<Span> {
    let whole =
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|protocol| Span::Ports(protocol, 1, u16::MAX));
    split(&[whole.as_slice(), &[Span::Others]].concat(), cuts)
}

/// These parts, cut there as well.
fn split(parts: &[Span], cuts: &Cuts) -> Vec<Span> {
    let mut found = Vec::new();
    for part in parts {
        let Span::Ports(protocol, mut first, last) = *part else {
            found.push(*part);
            continue;
        };
        for (_, cut) in cuts.range((protocol, first)..=(protocol, last)) {
            if *cut > first {
                found.push(Span::Ports(protocol, first, *cut - 1));
                first = *cut;
            }
        }
        found.push(Span::Ports(protocol, first, last));
    }
    found
}

/// The same traffic in as few parts as can be.
fn joined(parts: &[Span]) -> Vec<Span> {
    let mut found: Vec<Span> = Vec::new();
    let mut sorted = parts.to_vec();
    sorted.sort_unstable();
    for part in sorted {
        match (found.last_mut(), part) {
            (Some(Span::Ports(own, _, last)), Span::Ports(protocol, first, next))
                if *own == protocol && last.checked_add(1) == Some(first) =>
            {
                *last = next;
            }
            _ => found.push(part),
        }
    }
    found
}

impl Group {
    fn of<'c>(crowds: impl Iterator<Item = &'c Crowd>) -> Self {
        let mut group = Self::default();
        for end in crowds.flat_map(|crowd| &crowd.ends) {
            match end {
                End::Pod(member) => group.pods.push(member.name().clone()),
                End::Node(node) => group.nodes.push(node.name.clone()),
                End::Outside(_, intervals) => group.outside.extend(intervals),
            }
        }
        group.pods.sort_unstable();
        group.nodes.sort_unstable();
        group.outside.sort_unstable();
        group
    }
}
