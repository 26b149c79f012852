//! The part of the table that never changes.
//!
//! Read [`frame`]. Three base chains, each a decision of its own: `egress` for what local pods send through the node,
//! `host` for what they send to it, and, after `egress`, `ingress` for what reaches local pods. They see packets after the
//! translation of a Service's address (prerouting) and before any masquerade (postrouting). What the node itself sends
//! is not judged: a pod's own node may always reach it.
//!
//! IPVS translates elsewhere: it takes a packet to a Service on its way into the host, and sends it on as if it were the
//! host's, past the hook for what is forwarded. So two chains more, `ipvs-egress` and `ipvs-ingress`, see what the host sends
//! with an address that is not its own; what is forwarded never comes there, so nothing is judged twice. And `host` comes
//! after IPVS, which has taken by then what it will: what is left is for the host. Both cost the kernel one more walk through
//! all that they lead to at each change, so they are left out where it has no IPVS.
//!
//! Packets of connections that exist pass at once, and so do ICMP errors about them. What of TCP is in the middle of a
//! connection that the kernel does not track is of none: a pod of which a policy decides neither sends nor gets it. Otherwise
//! the kernel would take it for a beginning (`nf_conntrack_tcp_loose`), and a connection that was cut would come back from
//! its other end. So does IPv6 neighbour discovery,
//! without which a pod has no network. ARP is not seen here at all.

use std::net::IpAddr;

use cluster::Direction;
use netstate::nft::{
    BaseChain, Chain, ChainKind, Element, Family, Field, Hook, IpVersion, Key, Operator, Policy, Rule, Set,
    Statement, Table, Value, Verdict, ct_state, priority, tcp_flags,
};

use super::set::VERSIONS;

/// The name of the table.
pub const TABLE: &str = netstate::POLICY_TABLE;

/// Where on its way into the host a packet is no more IPVS's to take (its hooks are the two places before the translation of
/// sources). It is dropped before the connection is entered all the same.
const AFTER_IPVS: i32 = priority::SRCNAT;

/// The protocol number of ICMPv6.
const ICMPV6: u8 = 58;
/// The protocol number of TCP.
const TCP: u8 = 6;
/// Router and neighbour solicitations and advertisements, and redirects (RFC 4861).
const NEIGHBOUR_DISCOVERY: (u8, u8) = (133, 137);

/// The table without pods; with what is there for IPVS or without.
pub(crate) fn frame(ipvs: bool) -> Table {
    let mut table = empty();
    for version in VERSIONS {
        for direction in Direction::ALL {
            table = table.with_set(Set::verdict_map(map(direction, version), [version.key_type()]));
        }
        let own = Set::new(itself(version), [version.key_type(), version.key_type()]);
        table = table.with_set(own).with_set(Set::new(policed(version), [version.key_type()]));
    }
    let table = table
        .with_chain(base("egress", Hook::Forward, priority::FILTER, Direction::Egress))
        .with_chain(base("host", Hook::Input, AFTER_IPVS, Direction::Egress))
        .with_chain(base("ingress", Hook::Forward, priority::FILTER + 1, Direction::Ingress));
    if !ipvs {
        return table;
    }
    table.with_chain(base("ipvs-egress", Hook::Output, priority::FILTER, Direction::Egress)).with_chain(base(
        "ipvs-ingress",
        Hook::Output,
        priority::FILTER + 1,
        Direction::Ingress,
    ))
}

/// The table without anything in it.
pub(crate) fn empty() -> Table {
    Table::new(Family::Inet, TABLE)
}

fn base(name: &str, hook: Hook, priority: i32, direction: Direction) -> Chain {
    let base = BaseChain { kind: ChainKind::Filter, hook, priority, policy: Policy::Accept };
    let accept = Statement::Verdict(Verdict::Accept);
    let (first, last) = NEIGHBOUR_DISCOVERY;
    let discovery = Statement::Between {
        field: Field::IcmpType,
        operator: Operator::Equal,
        first: Value::Protocol(first),
        last: Value::Protocol(last),
    };
    let icmp = Statement::equal(Field::Protocol, Value::Protocol(ICMPV6));
    let mut chain = Chain::base(name, base)
        .with_rule(Rule::new([
            Statement::ct_state(ct_state::ESTABLISHED | ct_state::RELATED),
            accept.clone(),
        ]))
        .with_rule(Rule::new([icmp, discovery, accept.clone()]).with_comment("neighbour discovery"));
    if hook == Hook::Output {
        chain = chain
            .with_rule(Rule::new([Statement::SourceIsLocal, accept]).with_comment("what the node sends"));
    }
    for version in VERSIONS {
        let address = match direction {
            Direction::Ingress => Field::Destination(version),
            Direction::Egress => Field::Source(version),
        };
        let dispatch = Statement::VerdictMap { fields: vec![address], map: map(direction, version) };
        chain = chain.with_rule(stray(address, version)).with_rule(Rule::new([dispatch]));
    }
    chain
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

/// The name of the map from a local pod's address to its chain for a direction.
pub(crate) fn map(direction: Direction, version: IpVersion) -> String {
    format!("{}{}", direction.as_str(), digit(version))
}

/// The name of the set of pairs of a local pod's address with itself.
pub(crate) fn itself(version: IpVersion) -> String {
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

/// What an address of a local pod puts into the frame's sets: its chain for a direction.
pub(crate) fn dispatch(address: IpAddr, direction: Direction, chain: String) -> (String, Key, Element) {
    let key = vec![Value::Address(address)];
    (map(direction, IpVersion::of(address)), key, Element::leading_to(Verdict::Jump(chain)))
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
