//! ICMPv6 in rules: [`icmpv6_types`].

use super::{Field, Operator, Statement, Value};

/// `NFPROTO_IPV6`.
const IPV6: u8 = 10;
/// The protocol number of ICMPv6.
const ICMPV6: u8 = 58;

/// The packet is ICMPv6 of one of these types, the first and the last included. Its number alone may as well be in a packet of IPv4.
#[must_use]
pub fn icmpv6_types((first, last): (u8, u8)) -> [Statement; 3] {
    [
        Statement::equal(Field::Protocol, Value::Protocol(ICMPV6)),
        Statement::equal(Field::NetworkFamily, Value::Protocol(IPV6)),
        Statement::Between {
            field: Field::IcmpType,
            operator: Operator::Equal,
            first: Value::Protocol(first),
            last: Value::Protocol(last),
        },
    ]
}
