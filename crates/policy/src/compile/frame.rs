//! The part of the table that never changes.
//!
//! Read [`frame`], then [`bases`]: two base chains, each a decision of its own: one for what local pods send, through the node or to it,
//! and, after it, one for what reaches local pods. They see packets before routing, after the
//! translation of a Service's address and before any masquerade (postrouting). What the node itself sends
//! is not judged: a pod's own node may always reach it. They are there while an address leads anywhere: every packet of the node
//! pays for them.
//!
//! A base chain asks two maps: what class an address of a local pod is (`egress4`, `egress6`, ...), and which chain decides for
//! the class (`egress-chains`). For the kernel walks through all that a map of verdicts leads to whenever it gets an
//! element, or a rule that is new looks something up; but a map of classes leads nowhere. So a pod whose like is here already
//! costs two elements and no walk. Between the two the class is the packet's priority, which a pod's link has cleared.
//! It may stay there, and so classes are multiples of 16, which all priorities of
//! packets take for the lowest. A class without a chain is one that was taken away while the packet was under way: it is dropped.
//!
//! IPVS translates elsewhere: it takes a packet to a Service on its way into the host, and sends it on as if it were the
//! host's, past the hook for what is forwarded. Where the kernel has it, there are five base chains instead: two see what is
//! forwarded; one what pods send to the host, and comes after IPVS, which has taken by then what it will: what is left is for the host;
//! two see what the host sends
//! with an address that is not its own, and what is forwarded never comes there, so nothing is judged twice. Each costs
//! the kernel one more such walk, so they are left out where it has no IPVS.
//!
//! Packets of connections that exist pass at once, and so do ICMP errors about them. What of TCP is in the middle of a
//! connection that the kernel does not track is of none: a pod of which a policy decides neither sends nor gets it. Otherwise
//! the kernel would take it for a beginning (`nf_conntrack_tcp_loose`), and a connection that was cut would come back from
//! its other end. IPv6 neighbour discovery passes too,
//! without which a pod has no network. ARP is not seen here at all.

use std::net::IpAddr;

use cluster::Direction;
use netstate::nft::{
    BaseChain, Chain, ChainKind, Element, Family, Field, Hook, IpVersion, Key, KeyType, Operator, Policy,
    Rule, Set, Statement, Table, Value, Verdict, ct_state, icmpv6_types, priority, tcp_flags,
};

use super::class::Class;
use super::set::VERSIONS;

/// The name of the table.
pub const TABLE: &str = netstate::POLICY_TABLE;

/// Where on its way into the host a packet is no more IPVS's to take (its hooks are the two places before the translation of
/// sources). It is dropped before the connection is entered all the same.
const AFTER_IPVS: i32 = priority::SRCNAT;

/// The protocol number of TCP.
const TCP: u8 = 6;
/// Router and neighbour solicitations and advertisements, and redirects (RFC 4861).
const NEIGHBOUR_DISCOVERY: (u8, u8) = (133, 137);

/// The table without pods and without base chains.
pub(crate) fn frame() -> Table {
    let mut table = empty();
    for direction in Direction::ALL {
        table = table.with_set(Set::verdict_map(chains(direction), [KeyType::Class]));
        for version in VERSIONS {
            let name = classes(direction, version);
            table = table.with_set(Set::map(name, [version.key_type()], [KeyType::Class]));
        }
    }
    for version in VERSIONS {
        let own = Set::new(itself(version), [version.key_type(), version.key_type()]);
        table = table.with_set(own).with_set(Set::new(policed(version), [version.key_type()]));
    }
    // A pod's connections of before the first policy that is about it are known when that comes.
    let tracked = Statement::ct_state(ct_state::ESTABLISHED);
    let rule = Rule::new([tracked, Statement::Verdict(Verdict::Accept)]);
    table.with_chain(
        Chain::regular("tracking").with_rule(rule.with_comment("has the kernel track connections")),
    )
}

/// The base chains; for a kernel that has IPVS or for one that has not. None is called as one of the others: they are there together
/// while the one give way to the other.
pub(crate) fn bases(ipvs: bool) -> Vec<Chain> {
    let bases: &[(&str, Hook, i32, Direction)] = if ipvs {
        &[
            ("forward-egress", Hook::Forward, priority::FILTER, Direction::Egress),
            ("input-egress", Hook::Input, AFTER_IPVS, Direction::Egress),
            ("forward-ingress", Hook::Forward, priority::FILTER + 1, Direction::Ingress),
            ("output-egress", Hook::Output, priority::FILTER, Direction::Egress),
            ("output-ingress", Hook::Output, priority::FILTER + 1, Direction::Ingress),
        ]
    } else {
        &[
            ("prerouting-egress", Hook::Prerouting, priority::FILTER, Direction::Egress),
            ("prerouting-ingress", Hook::Prerouting, priority::FILTER + 1, Direction::Ingress),
        ]
    };
    let chain = |(name, hook, priority, direction): &(&str, Hook, i32, Direction)| {
        base(name, *hook, *priority, *direction)
    };
    bases.iter().map(chain).collect()
}

/// The table without anything in it.
pub(crate) fn empty() -> Table {
    Table::new(Family::Inet, TABLE)
}

fn base(name: &str, hook: Hook, priority: i32, direction: Direction) -> Chain {
    let base = BaseChain { kind: ChainKind::Filter, hook, priority, policy: Policy::Accept };
    let accept = Statement::Verdict(Verdict::Accept);
    let established = Statement::ct_state(ct_state::ESTABLISHED | ct_state::RELATED);
    let mut chain = Chain::base(name, base).with_rule(Rule::new([established, accept.clone()]));
    if hook == Hook::Output {
        chain = chain
            .with_rule(Rule::new([Statement::SourceIsLocal, accept]).with_comment("what the node sends"));
    }
    for version in VERSIONS {
        if version == IpVersion::V6 {
            chain = chain.with_rule(discovery());
        }
        let address = match direction {
            Direction::Ingress => Field::Destination(version),
            Direction::Egress => Field::Source(version),
        };
        let class = || Statement::SetPriority { fields: vec![address], map: classes(direction, version) };
        let lead = Statement::VerdictMap { fields: vec![Field::Priority], map: chains(direction) };
        let nowhere = Rule::new([class(), Statement::Verdict(Verdict::Drop)]);
        chain = chain
            .with_rule(stray(address, version))
            .with_rule(Rule::new([class(), lead]))
            .with_rule(nowhere.with_comment("it went while this packet was under way"));
    }
    chain
}

/// Lets neighbour discovery pass.
fn discovery() -> Rule {
    let accept = Statement::Verdict(Verdict::Accept);
    let statements = icmpv6_types(NEIGHBOUR_DISCOVERY).into_iter().chain([accept]);
    Rule::new(statements.collect::<Vec<_>>()).with_comment("neighbour discovery")
}

/// Drops what a pod with policies in force sends or gets in the middle of a TCP connection that is not tracked. A segment with SYN begins
/// one, and one with RST ends one that was never answered.
fn stray(address: Field, version: IpVersion) -> Rule {
    let tcp = Statement::equal(Field::Protocol, Value::Protocol(TCP));
    let mask = tcp_flags::SYN | tcp_flags::RST;
    let middle = Statement::MaskedMatch { field: Field::TcpFlags, mask, operator: Operator::Equal, value: 0 };
    let pods = Statement::in_set([address], policed(version));
    let drop = Statement::Verdict(Verdict::Drop);
    Rule::new([Statement::ct_state(ct_state::NEW), tcp, middle, pods, drop])
        .with_comment("of a connection that is not tracked")
}

/// The name of the map from a local pod's address to its class for a direction.
fn classes(direction: Direction, version: IpVersion) -> String {
    format!("{}{}", direction.as_str(), digit(version))
}

/// The name of the map from a class to its chain.
fn chains(direction: Direction) -> String {
    format!("{}-chains", direction.as_str())
}

/// The name of the set of pairs of a local pod's address with itself.
fn itself(version: IpVersion) -> String {
    format!("itself{}", digit(version))
}

/// The name of the set of addresses of local pods of which a policy decides; one in audit does not.
fn policed(version: IpVersion) -> String {
    format!("policed{}", digit(version))
}

/// What an address of a local pod puts into the frame's sets if a policy decides of the pod.
pub(crate) fn under_policy(address: IpAddr) -> (String, Key, Element) {
    (policed(IpVersion::of(address)), vec![Value::Address(address)], Element::default())
}

/// The packet is from a local pod to the same one.
pub(crate) fn is_itself(version: IpVersion) -> Statement {
    Statement::in_set([Field::Source(version), Field::Destination(version)], itself(version))
}

/// What an address of a local pod puts into the frame's sets: its class for a direction.
pub(crate) fn member(address: IpAddr, direction: Direction, class: Class) -> (String, Key, Element) {
    let key = vec![Value::Address(address)];
    let element = Element { data: vec![Value::Class(class.0)], ..Element::default() };
    (classes(direction, IpVersion::of(address)), key, element)
}

/// What a class puts into the frame's sets: the chain that decides for it.
pub(crate) fn lead(class: Class, direction: Direction, chain: &str) -> (String, Key, Element) {
    let key = vec![Value::Class(class.0)];
    (chains(direction), key, Element::leading_to(Verdict::Goto(chain.to_owned())))
}

/// What the addresses of a local pod put into the frame's sets: that each of them is its own.
pub(crate) fn own(addresses: &[IpAddr]) -> impl Iterator<Item = (String, Key, Element)> {
    addresses.iter().flat_map(move |one| {
        let same = addresses.iter().filter(|other| other.is_ipv4() == one.is_ipv4());
        same.map(|other| {
            let key = vec![Value::Address(*one), Value::Address(*other)];
            (itself(IpVersion::of(*one)), key, Element::default())
        })
    })
}

fn digit(version: IpVersion) -> char {
    match version {
        IpVersion::V4 => '4',
        IpVersion::V6 => '6',
    }
}
