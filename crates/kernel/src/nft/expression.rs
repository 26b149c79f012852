//! Statements of a rule as the kernel's expressions.
//!
//! An expression loads something into a register, compares a register, looks one up, or acts. A header's
//! address field implies a check of the packet's family first, which is written once for each rule. Register
//! numbers follow what `nft` itself uses, so that it can list our rules in its own words.

use netstate::nft::{Family, Field, IpVersion, Limit, Log, Operator, Rule, Statement, Value, Verdict};

use super::constant as c;
use super::value;
use crate::netlink::Message;

/// Bytes of a log's prefix, less the closing zero.
const LOG_PREFIX_ROOM: usize = 127;

/// Adds all of a rule's expressions.
pub(super) fn put_rule(message: &mut Message, family: Family, rule: &Rule) {
    message.nest(c::RULE_EXPRESSIONS, |list| {
        let mut writer = Writer::new(list, family);
        rule.statements.iter().for_each(|statement| writer.statement(statement));
    });
}

/// Writes the expressions of one rule, one after the other.
pub(super) struct Writer<'a> {
    list: &'a mut Message,
    family: Family,
    /// What the rule has already made sure of.
    checked: Vec<Check>,
}

#[derive(Clone, Copy, PartialEq)]
enum Check {
    Version(IpVersion),
    Ethernet,
}

impl<'a> Writer<'a> {
    /// Nothing written yet.
    pub(super) fn new(list: &'a mut Message, family: Family) -> Self {
        Self { list, family, checked: Vec::new() }
    }

    pub(super) fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::Match { field, operator, value } => self.compare(*field, *operator, value),
            Statement::MaskedMatch { field, mask, operator, value } => {
                self.load(*field, c::REGISTER_FIRST);
                let bytes = |number: u32| match field_length(*field) {
                    1 => vec![number as u8],
                    _ => number.to_ne_bytes().to_vec(),
                };
                let mask = bytes(*mask);
                self.bitwise(&mask, &vec![0; mask.len()]);
                self.cmp(*operator, &bytes(*value));
            }
            Statement::Lookup { fields, set, inverted } => self.lookup(fields, set, |data| {
                if *inverted {
                    data.be32(c::LOOKUP_FLAGS, c::LOOKUP_INVERTED);
                }
            }),
            Statement::Between { field, operator, first, last } => {
                self.between(*field, *operator, (first, last));
            }
            Statement::DestinationIsLocal => self.is_of_type(libc::RTN_LOCAL, c::FIB_OF_DESTINATION),
            Statement::DestinationIsUnicast => self.is_of_type(libc::RTN_UNICAST, c::FIB_OF_DESTINATION),
            Statement::SourceIsLocal => self.is_of_type(libc::RTN_LOCAL, c::FIB_OF_SOURCE),
            Statement::SourceIsElsewhere => self.source_is_elsewhere(),
            Statement::Dnat { version, fields, map } => self.dnat(*version, fields, map),
            Statement::VerdictMap { fields, map } => self.lookup(fields, map, |data| {
                data.be32(c::LOOKUP_DESTINATION, c::REGISTER_VERDICT);
            }),
            Statement::SetPriority { fields, map } => self.set_priority(fields, map),
            Statement::SetMark { mask, value } => self.set_mark(*mask, *value),
            Statement::Masquerade { fully_random } => self.expression("masq", |data| {
                if *fully_random {
                    data.be32(c::MASQUERADE_FLAGS, c::FULLY_RANDOM);
                }
            }),
            Statement::Counter => self.expression("counter", |_| {}),
            Statement::Log(log) => self.log(log),
            Statement::Limit(limit) => self.limit(*limit),
            Statement::Verdict(verdict) => self.verdict(verdict),
            // Only what was read back holds these, and that is never written.
            Statement::Unknown(_) => {}
        }
    }

    fn compare(&mut self, field: Field, operator: Operator, value: &Value) {
        self.check(field);
        self.load(field, c::REGISTER_FIRST);
        if let Value::Network(net) = value
            && net.prefix_len() < net.max_prefix_len()
        {
            let mask = value::bytes(&Value::Address(net.netmask()));
            self.bitwise(&mask, &vec![0; mask.len()]);
        }
        self.cmp(operator, &value::bytes(value));
    }

    fn between(&mut self, field: Field, operator: Operator, (first, last): (&Value, &Value)) {
        self.check(field);
        self.load(field, c::REGISTER_FIRST);
        self.expression("range", |data| {
            data.be32(c::RANGE_SOURCE, c::REGISTER_FIRST);
            data.be32(c::RANGE_OPERATOR, u32::from(operator == Operator::NotEqual));
            value::put_data(data, c::RANGE_FROM, &value::bytes(first));
            value::put_data(data, c::RANGE_TO, &value::bytes(last));
        });
    }

    fn is_of_type(&mut self, kind: u8, end: u32) {
        self.fib(c::FIB_RESULT_TYPE, end);
        self.cmp(Operator::Equal, &u32::from(kind).to_ne_bytes());
    }

    fn source_is_elsewhere(&mut self) {
        self.fib(c::FIB_RESULT_LINK, c::FIB_OF_SOURCE | c::FIB_BY_INPUT_LINK | c::FIB_PRESENT);
        self.cmp(Operator::Equal, &0_u32.to_ne_bytes());
    }

    fn fib(&mut self, result: u32, flags: u32) {
        self.expression("fib", |data| {
            data.be32(c::FIB_DESTINATION, c::REGISTER_FIRST);
            data.be32(c::FIB_RESULT, result).be32(c::FIB_FLAGS, flags);
        });
    }

    /// The map leaves address and port where the fields were: the address first, the port in the next word.
    fn dnat(&mut self, version: IpVersion, fields: &[Field], map: &str) {
        self.lookup(fields, map, |data| {
            data.be32(c::LOOKUP_DESTINATION, c::REGISTER_FIRST);
        });
        let (family, words) = match version {
            IpVersion::V4 => (libc::NFPROTO_IPV4, 1),
            IpVersion::V6 => (libc::NFPROTO_IPV6, 4),
        };
        self.expression("nat", |data| {
            data.be32(c::NAT_TYPE, c::NAT_OF_DESTINATION).be32(c::NAT_FAMILY, family as u32);
            data.be32(c::NAT_ADDRESS, c::REGISTER_FIRST).be32(c::NAT_PORT, c::REGISTER_WORDS + words);
        });
    }

    /// Looks the fields up together; `more` says what becomes of what is found.
    fn lookup(&mut self, fields: &[Field], set: &str, more: impl FnOnce(&mut Message)) {
        // The checks use the first register too: all of them before the first field is loaded.
        fields.iter().for_each(|field| self.check(*field));
        let mut words = 0;
        for field in fields {
            let register = if words == 0 { c::REGISTER_FIRST } else { c::REGISTER_WORDS + words };
            self.load(*field, register);
            words += field_length(*field).div_ceil(4);
        }
        self.expression("lookup", |data| {
            data.text(c::LOOKUP_SET, set).be32(c::LOOKUP_SOURCE, c::REGISTER_FIRST);
            more(data);
        });
    }

    /// Makes sure that the packet has the header that the field is in.
    fn check(&mut self, field: Field) {
        let check = match field {
            Field::Source(version) | Field::Destination(version) => Check::Version(version),
            Field::EtherSource | Field::EtherDestination => Check::Ethernet,
            _ => return,
        };
        if self.checked.contains(&check) {
            return;
        }
        self.checked.push(check);
        match (check, self.family) {
            (Check::Version(version), Family::Inet) => {
                let number = if version == IpVersion::V4 { libc::NFPROTO_IPV4 } else { libc::NFPROTO_IPV6 };
                self.meta(c::META_FAMILY, c::REGISTER_FIRST);
                self.cmp(Operator::Equal, &[number as u8]);
            }
            (Check::Version(version), Family::Bridge) => {
                let number = if version == IpVersion::V4 { libc::ETH_P_IP } else { libc::ETH_P_IPV6 };
                self.meta(c::META_PROTOCOL, c::REGISTER_FIRST);
                self.cmp(Operator::Equal, &(number as u16).to_be_bytes());
            }
            (Check::Ethernet, Family::Inet | Family::Ip | Family::Ip6) => {
                self.meta(c::META_INPUT_TYPE, c::REGISTER_FIRST);
                self.cmp(Operator::Equal, &libc::ARPHRD_ETHER.to_ne_bytes());
            }
            (Check::Version(_), Family::Ip | Family::Ip6) | (Check::Ethernet, Family::Bridge) => {}
        }
    }

    fn load(&mut self, field: Field, register: u32) {
        let length = field_length(field);
        match field {
            Field::Source(IpVersion::V4) => self.payload(c::NETWORK_HEADER, 12, length, register),
            Field::Destination(IpVersion::V4) => self.payload(c::NETWORK_HEADER, 16, length, register),
            Field::Source(IpVersion::V6) => self.payload(c::NETWORK_HEADER, 8, length, register),
            Field::Destination(IpVersion::V6) => self.payload(c::NETWORK_HEADER, 24, length, register),
            Field::EtherDestination => self.payload(c::LINK_HEADER, 0, length, register),
            Field::EtherSource => self.payload(c::LINK_HEADER, 6, length, register),
            Field::SourcePort => self.payload(c::TRANSPORT_HEADER, 0, length, register),
            Field::DestinationPort => self.payload(c::TRANSPORT_HEADER, 2, length, register),
            Field::IcmpType => self.payload(c::TRANSPORT_HEADER, 0, length, register),
            Field::TcpFlags => self.payload(c::TRANSPORT_HEADER, 13, length, register),
            Field::InputLink => self.meta(c::META_INPUT_NAME, register),
            Field::OutputLink => self.meta(c::META_OUTPUT_NAME, register),
            Field::InputGroup => self.meta(c::META_INPUT_GROUP, register),
            Field::NetworkFamily => self.meta(c::META_FAMILY, register),
            Field::Protocol => self.meta(c::META_TRANSPORT, register),
            Field::Mark => self.meta(c::META_MARK, register),
            Field::Priority => self.meta(c::META_PRIORITY, register),
            Field::CtState => self.ct(c::CT_STATE, register),
            Field::CtStatus => self.ct(c::CT_STATUS, register),
            Field::CtMark => self.ct(c::CT_MARK, register),
        }
    }

    fn set_mark(&mut self, mask: u32, value: u32) {
        if mask == u32::MAX {
            self.expression("immediate", |data| {
                data.be32(c::IMMEDIATE_DESTINATION, c::REGISTER_FIRST);
                value::put_data(data, c::IMMEDIATE_DATA, &value.to_ne_bytes());
            });
        } else {
            self.meta(c::META_MARK, c::REGISTER_FIRST);
            self.bitwise(&(!mask).to_ne_bytes(), &(value & mask).to_ne_bytes());
        }
        self.set_meta(c::META_MARK);
    }

    fn set_priority(&mut self, fields: &[Field], map: &str) {
        self.lookup(fields, map, |data| {
            data.be32(c::LOOKUP_DESTINATION, c::REGISTER_FIRST);
        });
        self.set_meta(c::META_PRIORITY);
    }

    /// Sets what the packet carries to what is in the first register.
    fn set_meta(&mut self, key: u32) {
        self.expression("meta", |data| {
            data.be32(c::META_KEY, key).be32(c::META_SOURCE, c::REGISTER_FIRST);
        });
    }

    fn verdict(&mut self, verdict: &Verdict) {
        self.expression("immediate", |data| {
            data.be32(c::IMMEDIATE_DESTINATION, c::REGISTER_VERDICT);
            value::put_verdict(data, c::IMMEDIATE_DATA, verdict);
        });
    }

    fn log(&mut self, log: &Log) {
        self.expression("log", |data| {
            let end = log.prefix.floor_char_boundary(LOG_PREFIX_ROOM);
            data.be16(c::LOG_GROUP, log.group).text(c::LOG_PREFIX, &log.prefix[..end]);
            data.be32(c::LOG_BYTES, log.bytes);
        });
    }

    fn limit(&mut self, limit: Limit) {
        const SECOND: u64 = 1;
        const PACKETS: u32 = 0;
        self.expression("limit", |data| {
            data.be64(c::LIMIT_RATE, limit.per_second.into()).be64(c::LIMIT_UNIT, SECOND);
            data.be32(c::LIMIT_BURST, limit.burst).be32(c::LIMIT_TYPE, PACKETS);
        });
    }

    fn meta(&mut self, key: u32, register: u32) {
        self.expression("meta", |data| {
            data.be32(c::META_KEY, key).be32(c::META_DESTINATION, register);
        });
    }

    fn ct(&mut self, key: u32, register: u32) {
        self.expression("ct", |data| {
            data.be32(c::CT_KEY, key).be32(c::CT_DESTINATION, register);
        });
    }

    fn payload(&mut self, base: u32, offset: u32, length: u32, register: u32) {
        self.expression("payload", |data| {
            data.be32(c::PAYLOAD_DESTINATION, register).be32(c::PAYLOAD_BASE, base);
            data.be32(c::PAYLOAD_OFFSET, offset).be32(c::PAYLOAD_LENGTH, length);
        });
    }

    fn bitwise(&mut self, mask: &[u8], xor: &[u8]) {
        let length = mask.len() as u32;
        self.expression("bitwise", |data| {
            data.be32(c::BITWISE_SOURCE, c::REGISTER_FIRST).be32(c::BITWISE_DESTINATION, c::REGISTER_FIRST);
            data.be32(c::BITWISE_LENGTH, length);
            value::put_data(data, c::BITWISE_MASK, mask);
            value::put_data(data, c::BITWISE_XOR, xor);
        });
    }

    fn cmp(&mut self, operator: Operator, bytes: &[u8]) {
        self.expression("cmp", |data| {
            data.be32(c::CMP_SOURCE, c::REGISTER_FIRST);
            data.be32(c::CMP_OPERATOR, u32::from(operator == Operator::NotEqual));
            value::put_data(data, c::CMP_DATA, bytes);
        });
    }

    pub(super) fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Message)) {
        self.list.nest(c::LIST_ENTRY, |entry| {
            entry.text(c::EXPRESSION_NAME, name).nest(c::EXPRESSION_DATA, fill);
        });
    }
}

/// Bytes of a field.
fn field_length(field: Field) -> u32 {
    match field {
        Field::Source(IpVersion::V4) | Field::Destination(IpVersion::V4) => 4,
        Field::Source(IpVersion::V6) | Field::Destination(IpVersion::V6) => 16,
        Field::EtherSource | Field::EtherDestination => 6,
        Field::InputLink | Field::OutputLink => 16,
        Field::NetworkFamily | Field::Protocol | Field::IcmpType | Field::TcpFlags => 1,
        Field::SourcePort | Field::DestinationPort => 2,
        Field::InputGroup
        | Field::Mark
        | Field::Priority
        | Field::CtState
        | Field::CtStatus
        | Field::CtMark => 4,
    }
}
