//! Policy rules: which routing table a packet looks up.
//!
//! Read [`Rule`]: the same value is written and read. A rule belongs to one family, said by `family`.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::netlink::{Attribute, Malformed, Message, Purpose, Reply, Request, Socket};
use crate::{Error, Family, abi};

/// A policy rule: packets that match all of it do what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The family whose packets it looks at.
    pub family: Family,
    /// Its place: rules are tried from low to high.
    pub priority: u32,
    /// Match on the source.
    pub source: Option<IpNet>,
    /// Match on the destination.
    pub destination: Option<IpNet>,
    /// Match on the packet's mark.
    pub mark: Option<Mark>,
    /// Match on the link it came in by, by name; `lo` means sent from here.
    pub incoming: Option<String>,
    /// Match on the link a socket is bound to, by name.
    pub outgoing: Option<String>,
    /// What to do.
    pub action: Action,
    /// Who made it (`RTPROT_*`, or a number of our own).
    pub protocol: u8,
    /// Ignore what the table says for prefixes of at most this length: 0 ignores its default route.
    pub suppress_prefix_length: Option<u32>,
}

/// A match on a packet's mark: equal to `value` in the bits of `mask`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The bits' value.
    pub value: u32,
    /// Which bits count.
    pub mask: u32,
}

/// What a rule does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Look up this table.
    Table(u32),
    /// Drop silently.
    Blackhole,
    /// Drop, telling the sender that the host cannot be reached.
    Unreachable,
    /// Drop, telling the sender that it is not allowed.
    Prohibit,
    /// Another action, by number.
    Other(u8),
}

impl Rule {
    /// A rule for all packets of a family.
    pub fn new(family: Family, priority: u32, action: Action) -> Self {
        Self {
            family,
            priority,
            source: None,
            destination: None,
            mark: None,
            incoming: None,
            outgoing: None,
            action,
            protocol: abi::RTPROT_STATIC,
            suppress_prefix_length: None,
        }
    }

    /// Decodes a message about one rule; `None` for families other than IPv4 and IPv6.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn from_reply(reply: Reply<'_>) -> Result<Option<Self>, Malformed> {
        let (header, attributes) = reply.split::<{ Header::SIZE }>()?;
        let [family, destination, source, _, table, _, _, action, ..] = *header;
        let Some(family) = Family::from_number(family) else { return Ok(None) };
        let mut rule = Self::new(family, 0, Action::Table(table.into()));
        let mut found = Found { rule: &mut rule, destination, source, table: table.into() };
        for attribute in attributes {
            found.apply(attribute?)?;
        }
        let table = found.table;
        rule.action = match action {
            abi::FR_ACT_TO_TBL => Action::Table(table),
            abi::FR_ACT_BLACKHOLE => Action::Blackhole,
            abi::FR_ACT_UNREACHABLE => Action::Unreachable,
            abi::FR_ACT_PROHIBIT => Action::Prohibit,
            other => Action::Other(other),
        };
        Ok(Some(rule))
    }
}

struct Found<'a> {
    rule: &'a mut Rule,
    destination: u8,
    source: u8,
    table: u32,
}

impl Found<'_> {
    fn apply(&mut self, attribute: Attribute<'_>) -> Result<(), Malformed> {
        let rule = &mut *self.rule;
        match attribute.kind {
            abi::FRA_PRIORITY => rule.priority = attribute.u32()?,
            abi::FRA_TABLE => self.table = attribute.u32()?,
            abi::FRA_SRC => rule.source = Some(prefix(attribute, self.source)?),
            abi::FRA_DST => rule.destination = Some(prefix(attribute, self.destination)?),
            abi::FRA_FWMARK => {
                rule.mark.get_or_insert(Mark { value: 0, mask: u32::MAX }).value = attribute.u32()?;
            }
            abi::FRA_FWMASK => {
                rule.mark.get_or_insert(Mark { value: 0, mask: 0 }).mask = attribute.u32()?;
            }
            abi::FRA_IIFNAME => rule.incoming = Some(attribute.foreign_text()),
            abi::FRA_OIFNAME => rule.outgoing = Some(attribute.foreign_text()),
            abi::FRA_PROTOCOL => rule.protocol = attribute.u8()?,
            // The kernel says -1 for "suppresses nothing".
            abi::FRA_SUPPRESS_PREFIXLEN => {
                rule.suppress_prefix_length = Some(attribute.u32()?).filter(|length| *length != u32::MAX);
            }
            _ => {}
        }
        Ok(())
    }
}

fn prefix(attribute: Attribute<'_>, length: u8) -> Result<IpNet, Malformed> {
    let address: IpAddr = attribute.ip()?;
    IpNet::new(address, length).map_err(|_| attribute.malformed("a prefix"))
}

/// Adds a rule; the very same one twice is an error ([`Error::exists`]).
pub fn add(rule: &Rule) -> Request {
    let message = encode(rule, abi::RTM_NEWRULE, abi::NLM_F_CREATE | abi::NLM_F_EXCL);
    Request::new(message, Purpose::new("add rule", describe(rule)).needing(NEEDS))
}

/// Deletes the first rule that agrees with this one in all that it says.
pub fn delete(rule: &Rule) -> Request {
    let message = encode(rule, abi::RTM_DELRULE, 0);
    Request::new(message, Purpose::new("delete rule", describe(rule)).needing(NEEDS))
}

/// The rules of both families, in order of priority within each.
///
/// # Errors
/// When the kernel refuses.
pub fn list(socket: &mut Socket) -> Result<Vec<Rule>, Error> {
    let mut rules = Vec::new();
    for family in Family::BOTH {
        let header = Header { family: family.number(), ..Header::default() };
        let message = Message::new(abi::RTM_GETRULE, 0, &header.bytes());
        let request = Request::new(message, Purpose::new("list", "rules").needing(NEEDS));
        let found =
            socket.dump(&request, |reply| Ok(Rule::from_reply(reply)?.filter(|rule| rule.family == family)));
        match found {
            Ok(found) => rules.extend(found),
            // A kernel without this family, or without policy routing for it, has no rules to list.
            Err(error) if error.is_unsupported() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(rules)
}

const NEEDS: &str = "the kernel needs CONFIG_IP_MULTIPLE_TABLES and CONFIG_IPV6_MULTIPLE_TABLES";

fn encode(rule: &Rule, kind: u16, flags: u16) -> Message {
    let (action, table) = match rule.action {
        Action::Table(table) => (abi::FR_ACT_TO_TBL, Some(table)),
        Action::Blackhole => (abi::FR_ACT_BLACKHOLE, None),
        Action::Unreachable => (abi::FR_ACT_UNREACHABLE, None),
        Action::Prohibit => (abi::FR_ACT_PROHIBIT, None),
        Action::Other(number) => (number, None),
    };
    let header = Header {
        family: rule.family.number(),
        destination: rule.destination.map_or(0, |net| net.prefix_len()),
        source: rule.source.map_or(0, |net| net.prefix_len()),
        action,
    };
    let mut message = Message::new(kind, flags, &header.bytes());
    message.u32(abi::FRA_PRIORITY, rule.priority).u8(abi::FRA_PROTOCOL, rule.protocol);
    if let Some(table) = table {
        message.u32(abi::FRA_TABLE, table);
    }
    for (kind, net) in [(abi::FRA_SRC, rule.source), (abi::FRA_DST, rule.destination)] {
        if let Some(net) = net {
            message.ip(kind, net.network());
        }
    }
    if let Some(Mark { value, mask }) = rule.mark {
        message.u32(abi::FRA_FWMARK, value).u32(abi::FRA_FWMASK, mask);
    }
    for (kind, name) in [(abi::FRA_IIFNAME, &rule.incoming), (abi::FRA_OIFNAME, &rule.outgoing)] {
        if let Some(name) = name {
            message.text(kind, name);
        }
    }
    if let Some(length) = rule.suppress_prefix_length {
        message.u32(abi::FRA_SUPPRESS_PREFIXLEN, length);
    }
    message
}

fn describe(rule: &Rule) -> String {
    let family = match rule.family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    };
    format!("{} ({family}, {:?})", rule.priority, rule.action)
}

/// `struct fib_rule_hdr`: family, destination length, source length, type of service, table, two reserved, action
/// (u8 each), flags (u32).
#[derive(Default)]
struct Header {
    family: u8,
    destination: u8,
    source: u8,
    action: u8,
}

impl Header {
    const SIZE: usize = 12;

    fn bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0] = self.family;
        bytes[1] = self.destination;
        bytes[2] = self.source;
        bytes[7] = self.action;
        bytes
    }
}
