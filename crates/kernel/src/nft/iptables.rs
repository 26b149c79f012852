//! Rules in the form in which `iptables` itself writes them into nf_tables, so that it lists and deletes them.
//!
//! Read [`IptablesRule`]. What a chain of iptables drops stays dropped whatever other tables say, so a packet that
//! shall pass needs a rule in that very chain. Comment and connection state are "matches" of the older
//! interface there; the order of the parts is iptables' own.

use std::net::IpAddr;

use netstate::nft::{Field, IpVersion, Statement, TableKey, Value, Verdict};

use super::expression::Writer;
use super::foreign::{COMPATIBLE_DATA, COMPATIBLE_NAME};
use super::{Transaction, constant as c, message};
use crate::netlink::Purpose;

// enum nft_match_attributes
const COMPATIBLE_REVISION: u16 = 2;
/// `struct xt_comment_info`.
const COMMENT_ROOM: usize = 256;
/// `struct xt_conntrack_mtinfo3`, and where in it stands what is matched and which states.
const CONNTRACK_ROOM: usize = 168;
const CONNTRACK_WHAT: usize = 146;
const CONNTRACK_STATES: usize = 150;
/// `XT_CONNTRACK_STATE`; the bits of `ESTABLISHED` and `RELATED`.
const MATCH_STATE: u16 = 1;
const TRACKED: u16 = 2 | 4;

/// A rule for a chain of iptables, of the few parts that are needed.
#[derive(Debug, Clone)]
pub struct IptablesRule<'a> {
    /// The source is this address.
    pub source: Option<IpAddr>,
    /// The destination is this address.
    pub destination: Option<IpAddr>,
    /// The packet belongs to a connection that has been let through, or is related to one.
    pub tracked: bool,
    /// What the rule is for.
    pub comment: Option<&'a str>,
    /// What becomes of the packet.
    pub verdict: Verdict,
}

impl IptablesRule<'_> {
    /// A rule that every packet matches.
    #[must_use]
    pub fn new(verdict: Verdict) -> Self {
        Self { source: None, destination: None, tracked: false, comment: None, verdict }
    }
}

impl Transaction {
    /// Puts a rule at the beginning of a chain of iptables (`first`), or at its end.
    pub fn add_iptables_rule(
        &mut self,
        table: &TableKey,
        chain: &str,
        rule: &IptablesRule<'_>,
        first: bool,
    ) -> &mut Self {
        let flags = if first { c::CREATE } else { c::CREATE | c::APPEND };
        let mut message = message(c::NEW_RULE, flags, table.family);
        message.text(c::RULE_TABLE, &table.name).text(c::RULE_CHAIN, chain);
        message.nest(c::RULE_EXPRESSIONS, |list| {
            let mut writer = Writer::new(list, table.family);
            for (address, field) in [
                (rule.source, Field::Source as fn(IpVersion) -> Field),
                (rule.destination, Field::Destination),
            ] {
                if let Some(address) = address {
                    let field = field(IpVersion::of(address));
                    writer.statement(&Statement::equal(field, Value::Address(address)));
                }
            }
            if rule.tracked {
                put_match(&mut writer, ("conntrack", 3), &conntrack());
            }
            if let Some(comment) = rule.comment {
                let mut text = comment.as_bytes().to_vec();
                text.resize(COMMENT_ROOM, 0);
                put_match(&mut writer, ("comment", 0), &text);
            }
            writer.statement(&Statement::Counter);
            writer.statement(&Statement::Verdict(rule.verdict.clone()));
        });
        let purpose = Purpose::new("add rule", format!("{table} {chain}"));
        self.push(message, purpose.needing("rules of iptables need CONFIG_NFT_COMPAT in the kernel"))
    }
}

fn put_match(writer: &mut Writer<'_>, (name, revision): (&str, u32), data: &[u8]) {
    writer.expression("match", |expression| {
        expression.text(COMPATIBLE_NAME, name).be32(COMPATIBLE_REVISION, revision);
        expression.put(COMPATIBLE_DATA, data);
    });
}

fn conntrack() -> [u8; CONNTRACK_ROOM] {
    let mut data = [0; CONNTRACK_ROOM];
    data[CONNTRACK_WHAT..CONNTRACK_WHAT + 2].copy_from_slice(&MATCH_STATE.to_ne_bytes());
    data[CONNTRACK_STATES..CONNTRACK_STATES + 2].copy_from_slice(&TRACKED.to_ne_bytes());
    data
}
