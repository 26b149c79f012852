//! The canonical text of tables and rules: what `nft` itself would print, as far as that is one line.
//!
//! A rule's digest is made from this text, so a change of it here makes the agent rewrite its rules once.

use std::fmt::{self, Display, Formatter};

use super::{
    BaseChain, Chain, ChainKind, Element, Family, Field, Hook, IpVersion, Key, KeyType, Operator, Policy,
    Rule, Set, Statement, Step, Table, TableKey, Value, Verdict,
};

impl Display for TableKey {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

impl Display for Family {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Bridge => "bridge",
        })
    }
}

/// A table as `nft list` would lay it out, one line each, in order.
impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "table {}", self.key)?;
        for set in self.sets.values() {
            writeln!(f, "  {} {set}", word(set))?;
            for (key, element) in &set.elements {
                writeln!(f, "    {}", Entry(key, Some(element)))?;
            }
        }
        for chain in self.chains.values() {
            writeln!(f, "  chain {chain}")?;
            for rule in &chain.rules {
                writeln!(f, "    {rule}")?;
            }
        }
        Ok(())
    }
}

/// The set's definition, without its elements.
impl Display for Set {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} type {}", self.name, Joined(&self.key, " . "))?;
        if !self.data.is_empty() {
            write!(f, " : {}", Joined(&self.data, " . "))?;
        }
        if self.interval { f.write_str(" flags interval") } else { Ok(()) }
    }
}

/// The chain's definition, without its rules.
impl Display for Chain {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match &self.base {
            Some(base) => write!(f, " {base}"),
            None => Ok(()),
        }
    }
}

impl Display for BaseChain {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
            ChainKind::Route => "route",
        };
        let hook = match self.hook {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        };
        let policy = match self.policy {
            Policy::Accept => "accept",
            Policy::Drop => "drop",
        };
        write!(f, "type {kind} hook {hook} priority {} policy {policy}", self.priority)
    }
}

impl Display for KeyType {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv4 => "ipv4_addr",
            Self::Ipv6 => "ipv6_addr",
            Self::Ether => "ether_addr",
            Self::Ifname => "ifname",
            Self::Protocol => "inet_proto",
            Self::Port => "inet_service",
            Self::Mark => "mark",
            Self::Class => "classid",
            Self::Verdict => "verdict",
        })
    }
}

impl Display for Value {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Network(net) => net.fmt(f),
            Self::Ether(mac) => mac.fmt(f),
            Self::Ifname(name) => write!(f, "\"{name}\""),
            Self::Protocol(number) => number.fmt(f),
            Self::Port(port) => port.fmt(f),
            Self::Number(number) => write!(f, "{number:#x}"),
            Self::Class(class) => write!(f, "{:x}:{:x}", class >> 16, class & 0xffff),
        }
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Joined(&self.statements, " "))?;
        match &self.comment {
            Some(comment) => write!(f, " comment {comment:?}"),
            None => Ok(()),
        }
    }
}

impl Display for Statement {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Match { field, operator, value } => write!(f, "{field} {operator}{value}"),
            Self::MaskedMatch { field, mask, operator, value } => {
                let operator = if *operator == Operator::Equal { "==" } else { "!=" };
                write!(f, "{field} & {mask:#x} {operator} {value:#x}")
            }
            Self::Lookup { fields, set, inverted } => {
                let not = if *inverted { "!= " } else { "" };
                write!(f, "{} {not}@{set}", Joined(fields, " . "))
            }
            Self::Between { field, operator, first, last } => write!(f, "{field} {operator}{first}-{last}"),
            Self::DestinationIsLocal => f.write_str("fib daddr type local"),
            Self::DestinationIsUnicast => f.write_str("fib daddr type unicast"),
            Self::SourceIsLocal => f.write_str("fib saddr type local"),
            Self::SourceIsElsewhere => f.write_str("fib saddr . iif oif missing"),
            Self::Dnat { version, fields, map } => {
                let version = if *version == IpVersion::V4 { "ip" } else { "ip6" };
                write!(f, "dnat {version} to {} map @{map}", Joined(fields, " . "))
            }
            Self::VerdictMap { fields, map } => write!(f, "{} vmap @{map}", Joined(fields, " . ")),
            Self::SetPriority { fields, map } => {
                write!(f, "meta priority set {} map @{map}", Joined(fields, " . "))
            }
            Self::SetMark { mask, value } => write!(f, "meta mark set meta mark & {:#x} | {value:#x}", !mask),
            Self::Masquerade { fully_random: true } => f.write_str("masquerade fully-random"),
            Self::Masquerade { fully_random: false } => f.write_str("masquerade"),
            Self::Counter => f.write_str("counter"),
            Self::Log(log) => log.fmt(f),
            Self::Limit(limit) => limit.fmt(f),
            Self::Verdict(verdict) => verdict.fmt(f),
            Self::Unknown(text) => write!(f, "unknown ({text})"),
        }
    }
}

impl Display for Operator {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Equal { "" } else { "!= " })
    }
}

impl Display for Field {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source(IpVersion::V4) => "ip saddr",
            Self::Source(IpVersion::V6) => "ip6 saddr",
            Self::Destination(IpVersion::V4) => "ip daddr",
            Self::Destination(IpVersion::V6) => "ip6 daddr",
            Self::EtherSource => "ether saddr",
            Self::EtherDestination => "ether daddr",
            Self::InputLink => "iifname",
            Self::OutputLink => "oifname",
            Self::InputGroup => "iifgroup",
            Self::NetworkFamily => "meta nfproto",
            Self::Protocol => "meta l4proto",
            Self::SourcePort => "th sport",
            Self::DestinationPort => "th dport",
            Self::IcmpType => "icmp type",
            Self::TcpFlags => "tcp flags",
            Self::Mark => "meta mark",
            Self::Priority => "meta priority",
            Self::CtState => "ct state",
            Self::CtStatus => "ct status",
            Self::CtMark => "ct mark",
        })
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

impl Display for Step {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable(table) => write!(f, "+ table {table}"),
            Self::DeleteTable(table) => write!(f, "- table {table}"),
            Self::AddSet(table, set) => write!(f, "+ {} {table} {set}", word(set)),
            Self::DeleteSet(table, set) => write!(f, "- set {table} {set}"),
            Self::AddElements(table, set, elements) => {
                let elements: Vec<_> =
                    elements.iter().map(|(key, element)| Entry(key, Some(element))).collect();
                write!(f, "+ element {table} {set} {{ {} }}", Joined(&elements, ", "))
            }
            Self::DeleteElements(table, set, keys) => {
                let keys: Vec<_> = keys.iter().map(|key| Entry(key, None)).collect();
                write!(f, "- element {table} {set} {{ {} }}", Joined(&keys, ", "))
            }
            Self::AddChain(table, chain) => write!(f, "+ chain {table} {chain}"),
            Self::DeleteChain(table, chain) => write!(f, "- chain {table} {chain}"),
            Self::FlushChain(table, chain) => write!(f, "- rules of chain {table} {chain}"),
            Self::AddRule(table, chain, rule) => write!(f, "+ rule {table} {chain} {rule}"),
        }
    }
}

fn word(set: &Set) -> &'static str {
    if set.data.is_empty() { "set" } else { "map" }
}

/// A key with what the set knows of it.
struct Entry<'a>(&'a Key, Option<&'a Element>);

impl Display for Entry<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Joined(self.0, " . ").fmt(f)?;
        let Some(element) = self.1 else { return Ok(()) };
        if let Some(comment) = &element.comment {
            write!(f, " comment {comment:?}")?;
        }
        if let Some(verdict) = &element.verdict {
            write!(f, " : {verdict}")?;
        }
        if element.data.is_empty() { Ok(()) } else { write!(f, " : {}", Joined(&element.data, " . ")) }
    }
}

/// Items with a separator between them.
struct Joined<'a, T>(&'a [T], &'static str);

impl<T: Display> Display for Joined<'_, T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (index, item) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(self.1)?;
            }
            item.fmt(f)?;
        }
        Ok(())
    }
}
