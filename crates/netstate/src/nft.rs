//! nf_tables as a value: tables with sets and chains, rules made of typed statements.
//!
//! Read [`Table`] first. The house rule is that **rules are static and sets are dynamic**: pods come and go as
//! elements of named sets, while the rules that look them up are written once. So a difference of elements
//! becomes element steps, and a difference of one rule rewrites its chain.
//!
//! A rule that has been read back from the kernel is recognised by the [`Rule::digest`] in its comment; one
//! that is not ours (or was edited) comes back as [`Statement::Unknown`] and so differs from every wanted rule.

mod diff;
mod icmpv6;
mod log;
mod number;
mod text;
mod version;

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;

pub use self::diff::{Step, diff, steps};
pub use self::icmpv6::icmpv6_types;
pub use self::log::{Limit, Log};
pub use self::number::{ct_state, ct_status, priority, tcp_flags};
pub use self::version::IpVersion;
use crate::{LinkName, Mac};

/// The address family of a table: which packets its chains see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Frames that cross a bridge.
    Bridge,
}

/// What identifies a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableKey {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: String,
}

/// A table with all that is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// What identifies it.
    pub key: TableKey,
    /// Its sets by name.
    pub sets: BTreeMap<String, Set>,
    /// Its chains by name.
    pub chains: BTreeMap<String, Chain>,
}

/// A named set, or a map: a set whose elements lead to data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// What its elements are: one type, or several for a concatenation such as `ifname . ether_addr`.
    pub key: Vec<KeyType>,
    /// What they lead to, written as [`Self::key`] is; empty for a plain set.
    pub data: Vec<KeyType>,
    /// Elements may be networks (slow to change; use only for networks, never for single addresses).
    pub interval: bool,
    /// The elements by key.
    pub elements: BTreeMap<Key, Element>,
}

/// What a set knows of one key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Element {
    /// Whose it is, or whatever else is to be remembered.
    pub comment: Option<String>,
    /// What it leads to: one value for each type of [`Set::data`].
    pub data: Key,
    /// Where it leads to, in a map of verdicts; `None` in any other.
    pub verdict: Option<Verdict>,
}

/// An element's key: one value for each type of the set.
pub type Key = Vec<Value>;

/// The type of one part of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyType {
    /// An IPv4 address (or network).
    Ipv4,
    /// An IPv6 address (or network).
    Ipv6,
    /// A hardware address.
    Ether,
    /// A link's name.
    Ifname,
    /// A transport protocol number.
    Protocol,
    /// A port.
    Port,
    /// A packet mark.
    Mark,
    /// A traffic class: what a packet's priority is.
    Class,
    /// What becomes of a packet: only what a map leads to, and then alone.
    Verdict,
}

/// A value that a field is compared with or that a key is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    /// An address.
    Address(IpAddr),
    /// A network: a prefix comparison in a rule, an interval in a set.
    Network(IpNet),
    /// A hardware address.
    Ether(Mac),
    /// A link's name.
    Ifname(LinkName),
    /// A transport protocol number.
    Protocol(u8),
    /// A port.
    Port(u16),
    /// A number of 32 bits: a mark, connection states.
    Number(u32),
    /// A traffic class, of which 16 bits are the major and 16 the minor number.
    Class(u32),
}

/// A chain: a base chain when it has a hook, else one that others jump to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Where packets enter it; `None` for a chain that is only jumped to.
    pub base: Option<BaseChain>,
    /// Its rules in order.
    pub rules: Vec<Rule>,
}

/// Where a base chain hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseChain {
    /// What it is for.
    pub kind: ChainKind,
    /// The hook.
    pub hook: Hook,
    /// Its place among the chains on that hook; lower sees packets first.
    pub priority: i32,
    /// What becomes of packets that no rule decided on.
    pub policy: Policy,
}

/// What a base chain is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// Accepting and dropping.
    Filter,
    /// Address translation; sees the first packet of a connection.
    Nat,
    /// Re-routing of local output.
    Route,
}

/// The points of a packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// To this host.
    Input,
    /// Through this host.
    Forward,
    /// From this host.
    Output,
    /// After routing.
    Postrouting,
}

/// A base chain's last word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// Let it pass.
    Accept,
    /// Drop it.
    Drop,
}

/// A rule: its statements are evaluated in order until one does not match or gives a verdict.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule {
    /// The statements.
    pub statements: Vec<Statement>,
    /// What the rule is for, in words for whoever lists the ruleset; at most 100 bytes reach the kernel.
    pub comment: Option<String>,
}

/// One statement of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Statement {
    /// The field compares so with the value. Fields of a header imply the match on its protocol family.
    Match {
        /// What is looked at.
        field: Field,
        /// How.
        operator: Operator,
        /// With what.
        value: Value,
    },
    /// The field's bits under the mask compare so with the value.
    MaskedMatch {
        /// What is looked at: [`Field::Mark`], [`Field::TcpFlags`], or what of a connection is bits.
        field: Field,
        /// The bits that count.
        mask: u32,
        /// How.
        operator: Operator,
        /// With what.
        value: u32,
    },
    /// The fields together are an element of the set of that name.
    Lookup {
        /// What is looked at; several for a concatenation.
        fields: Vec<Field>,
        /// The set's name, in the same table.
        set: String,
        /// True when they must not be.
        inverted: bool,
    },
    /// The field lies within these two values, both included.
    Between {
        /// What is looked at.
        field: Field,
        /// Inside, or outside.
        operator: Operator,
        /// The lowest.
        first: Value,
        /// The highest.
        last: Value,
    },
    /// The destination is an address of this host.
    DestinationIsLocal,
    /// The destination is no address of this host, nor a broadcast or multicast address: of one machine, elsewhere.
    DestinationIsUnicast,
    /// The source is an address of this host.
    SourceIsLocal,
    /// The way back to the source does not lead over the link that the packet came in by.
    SourceIsElsewhere,
    /// Translates the destination to the address and port that the map has for the fields; a packet without an
    /// entry goes on to the next rule. Ends the rule.
    Dnat {
        /// Packets of this version only; the data is an address of this version and a port.
        version: IpVersion,
        /// What is looked up; several for a concatenation.
        fields: Vec<Field>,
        /// The map's name, in the same table.
        map: String,
    },
    /// Does what the map of verdicts has for the fields; a packet without an entry goes on to the next rule.
    VerdictMap {
        /// What is looked up; several for a concatenation.
        fields: Vec<Field>,
        /// The map's name, in the same table.
        map: String,
    },
    /// Gives the packet the priority that the map has for the fields; a packet without an entry goes on to the next rule.
    SetPriority {
        /// What is looked up; several for a concatenation.
        fields: Vec<Field>,
        /// The map's name, in the same table.
        map: String,
    },
    /// Sets the packet's mark: the bits under `mask` become those of `value`.
    SetMark {
        /// The bits to change.
        mask: u32,
        /// What they become.
        value: u32,
    },
    /// Translates the source to the address of the link the packet leaves by. Ends the rule.
    Masquerade {
        /// Choose ports at random, so that concurrent connections do not fight for the same one.
        fully_random: bool,
    },
    /// Counts packets and bytes.
    Counter,
    /// Tells of the packet; it goes on.
    Log(Log),
    /// Lets the packet on to the rest of the rule, as long as there are not too many.
    Limit(Limit),
    /// Decides.
    Verdict(Verdict),
    /// A rule read from the kernel that is not one of ours as we would write it; never written.
    Unknown(String),
}

/// How a field is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operator {
    /// Must be equal.
    Equal,
    /// Must differ.
    NotEqual,
}

/// What a rule can look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Field {
    /// Source address.
    Source(IpVersion),
    /// Destination address.
    Destination(IpVersion),
    /// Source hardware address.
    EtherSource,
    /// Destination hardware address.
    EtherDestination,
    /// The link it came in by.
    InputLink,
    /// The link it leaves by.
    OutputLink,
    /// The group of the link it came in by.
    InputGroup,
    /// The family of the network protocol: 2 for IPv4, 10 for IPv6.
    NetworkFamily,
    /// The transport protocol.
    Protocol,
    /// The transport's source port; match [`Field::Protocol`] before.
    SourcePort,
    /// The transport's destination port; match [`Field::Protocol`] before.
    DestinationPort,
    /// The type of an ICMP or ICMPv6 message; match [`Field::Protocol`] before.
    IcmpType,
    /// The flags of a TCP segment ([`tcp_flags`]); match [`Field::Protocol`] before.
    TcpFlags,
    /// The packet's mark.
    Mark,
    /// The packet's priority, by which queues are chosen.
    Priority,
    /// The connection's state bits.
    CtState,
    /// The connection's status bits.
    CtStatus,
    /// The connection's mark.
    CtMark,
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It passes this hook's chain.
    Accept,
    /// It is dropped.
    Drop,
    /// Back to the chain that jumped here.
    Return,
    /// On to that chain, and back afterwards.
    Jump(String),
    /// On to that chain.
    Goto(String),
}

impl TableKey {
    /// The key of the table `name` in `family`.
    #[must_use]
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        Self { family, name: name.into() }
    }
}

impl Table {
    /// An empty table.
    #[must_use]
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        Self { key: TableKey::new(family, name), sets: BTreeMap::new(), chains: BTreeMap::new() }
    }

    /// The table with this set.
    #[must_use]
    pub fn with_set(mut self, set: Set) -> Self {
        self.sets.insert(set.name.clone(), set);
        self
    }

    /// The table with this chain.
    #[must_use]
    pub fn with_chain(mut self, chain: Chain) -> Self {
        self.chains.insert(chain.name.clone(), chain);
        self
    }
}

impl Set {
    /// An empty set whose elements are single values (or concatenations of them).
    #[must_use]
    pub fn new(name: impl Into<String>, key: impl Into<Vec<KeyType>>) -> Self {
        let (data, elements) = (Vec::new(), BTreeMap::new());
        Self { name: name.into(), key: key.into(), data, interval: false, elements }
    }

    /// An empty map from single values (or concatenations of them) to others.
    #[must_use]
    pub fn map(name: impl Into<String>, key: impl Into<Vec<KeyType>>, data: impl Into<Vec<KeyType>>) -> Self {
        Self { data: data.into(), ..Self::new(name, key) }
    }

    /// An empty map from single values (or concatenations of them) to verdicts.
    #[must_use]
    pub fn verdict_map(name: impl Into<String>, key: impl Into<Vec<KeyType>>) -> Self {
        Self::map(name, key, [KeyType::Verdict])
    }

    /// True if its elements lead to verdicts, and so to chains.
    #[must_use]
    pub fn leads_to_chains(&self) -> bool {
        self.data == [KeyType::Verdict]
    }

    /// An empty set whose elements may be networks.
    #[must_use]
    pub fn interval(name: impl Into<String>, key: impl Into<Vec<KeyType>>) -> Self {
        Self { interval: true, ..Self::new(name, key) }
    }

    /// The set with this element.
    #[must_use]
    pub fn with_element(mut self, key: impl Into<Key>, comment: Option<&str>) -> Self {
        self.elements.insert(key.into(), Element::new(comment));
        self
    }

    /// The map with this element.
    #[must_use]
    pub fn with_mapping(mut self, key: impl Into<Key>, data: impl Into<Key>, comment: Option<&str>) -> Self {
        self.elements.insert(key.into(), Element { data: data.into(), ..Element::new(comment) });
        self
    }
}

impl Element {
    /// An element of a plain set.
    #[must_use]
    pub fn new(comment: Option<&str>) -> Self {
        Self { comment: comment.map(str::to_owned), data: Key::new(), verdict: None }
    }

    /// An element of a map of verdicts.
    #[must_use]
    pub fn leading_to(verdict: Verdict) -> Self {
        Self { verdict: Some(verdict), ..Self::default() }
    }

    /// The comment; empty when there is none.
    #[must_use]
    pub fn comment(&self) -> &str {
        self.comment.as_deref().unwrap_or_default()
    }
}

impl Chain {
    /// A chain that others jump to.
    #[must_use]
    pub fn regular(name: impl Into<String>) -> Self {
        Self { name: name.into(), base: None, rules: Vec::new() }
    }

    /// A chain that packets enter at a hook.
    #[must_use]
    pub fn base(name: impl Into<String>, base: BaseChain) -> Self {
        Self { name: name.into(), base: Some(base), rules: Vec::new() }
    }

    /// The chain with one rule more at its end.
    #[must_use]
    pub fn with_rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }
}

impl Rule {
    /// A rule of these statements.
    #[must_use]
    pub fn new(statements: impl Into<Vec<Statement>>) -> Self {
        Self { statements: statements.into(), comment: None }
    }

    /// The rule with this comment.
    #[must_use]
    pub fn with_comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }

    /// A number made from the rule's canonical text (FNV-1a, 64 bits), by which the kernel's copy of it is
    /// recognised.
    #[must_use]
    pub fn digest(&self) -> u64 {
        Self::digest_of(&self.to_string())
    }

    /// The digest of a rule with this canonical text.
    #[must_use]
    pub fn digest_of(text: &str) -> u64 {
        text.bytes().fold(0xcbf2_9ce4_8422_2325, |digest, byte| {
            (digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }
}

impl Verdict {
    /// The chain that it leads to.
    #[must_use]
    pub fn chain(&self) -> Option<&str> {
        match self {
            Self::Jump(name) | Self::Goto(name) => Some(name),
            _ => None,
        }
    }
}

impl Statement {
    /// The source address is in `net`.
    #[must_use]
    pub fn source_in(net: IpNet) -> Self {
        Self::equal(Field::Source(IpVersion::of_net(net)), Value::Network(net))
    }

    /// The destination address is in `net`.
    #[must_use]
    pub fn destination_in(net: IpNet) -> Self {
        Self::equal(Field::Destination(IpVersion::of_net(net)), Value::Network(net))
    }

    /// The destination address is not in `net`.
    #[must_use]
    pub fn destination_not_in(net: IpNet) -> Self {
        Self::not_equal(Field::Destination(IpVersion::of_net(net)), Value::Network(net))
    }

    /// The field equals the value.
    #[must_use]
    pub fn equal(field: Field, value: Value) -> Self {
        Self::Match { field, operator: Operator::Equal, value }
    }

    /// The field differs from the value.
    #[must_use]
    pub fn not_equal(field: Field, value: Value) -> Self {
        Self::Match { field, operator: Operator::NotEqual, value }
    }

    /// The fields are an element of `set`.
    #[must_use]
    pub fn in_set(fields: impl Into<Vec<Field>>, set: impl Into<String>) -> Self {
        Self::Lookup { fields: fields.into(), set: set.into(), inverted: false }
    }

    /// The fields are no element of `set`.
    #[must_use]
    pub fn not_in_set(fields: impl Into<Vec<Field>>, set: impl Into<String>) -> Self {
        Self::Lookup { fields: fields.into(), set: set.into(), inverted: true }
    }

    /// The chain, set or map of its table that it names.
    #[must_use]
    pub fn names(&self) -> Option<&str> {
        match self {
            Self::Verdict(verdict) => verdict.chain(),
            Self::Lookup { set: name, .. }
            | Self::VerdictMap { map: name, .. }
            | Self::SetPriority { map: name, .. }
            | Self::Dnat { map: name, .. } => Some(name),
            _ => None,
        }
    }

    /// The connection is in one of these [`ct_state`]s.
    #[must_use]
    pub fn ct_state(states: u32) -> Self {
        Self::MaskedMatch { field: Field::CtState, mask: states, operator: Operator::NotEqual, value: 0 }
    }
}
