//! Values, keys and elements as bytes, both ways.
//!
//! A concatenation pads each of its parts to four bytes. A network in a set of single keys is an interval of
//! two elements, its first address and the one after its last, the latter with a flag; in a concatenation it
//! is one element with a first and a last key.

use std::net::IpAddr;

use ipnet::IpNet;
use netstate::nft::{Element, Key, KeyType, Set, Value, Verdict};
use netstate::{LinkName, Mac};

use super::{Elements, constant as c, userdata};
use crate::netlink::{Attribute, Malformed, Message};

/// Adds a set's key type, flags and description.
pub(super) fn put_set_type(message: &mut Message, set: &Set) {
    let concatenated = set.key.len() > 1;
    let mut flags = 0;
    if set.interval {
        flags |= c::FLAG_INTERVAL;
        if concatenated {
            flags |= c::FLAG_CONCATENATION;
        }
    }
    if !set.data.is_empty() {
        flags |= c::FLAG_MAP;
    }
    message.be32(c::SET_FLAGS, flags);
    message.be32(c::SET_KEY_TYPE, type_number(&set.key));
    message.be32(c::SET_KEY_LENGTH, key_length(&set.key));
    if !set.data.is_empty() {
        message.be32(c::SET_DATA_TYPE, data_number(&set.data));
        message.be32(c::SET_DATA_LENGTH, key_length(&set.data));
    }
    let order = userdata::host_order(is_host_order(&set.key), is_host_order(&set.data));
    if !order.is_empty() {
        message.put(c::SET_USERDATA, &order);
    }
    // The kernel wants the parts' lengths with that flag, and refuses them without it.
    if flags & c::FLAG_CONCATENATION != 0 {
        message.nest(c::SET_DESCRIPTION, |description| {
            description.nest(c::DESCRIPTION_CONCATENATION, |fields| {
                for part in &set.key {
                    let length = type_length(*part) as u32;
                    fields.nest(c::LIST_ENTRY, |field| {
                        field.be32(c::FIELD_LENGTH, length);
                    });
                }
            });
        });
    }
}

/// Whether values of this type are in the host's order of bytes.
fn is_host_order(kind: &[KeyType]) -> bool {
    matches!(kind, [KeyType::Ifname | KeyType::Mark | KeyType::Class])
}

/// The number of what a map leads to.
fn data_number(data: &[KeyType]) -> u32 {
    if data == [KeyType::Verdict] { c::TYPE_VERDICT } else { type_number(data) }
}

/// The type behind the number of what a map leads to.
pub(super) fn data_of_number(number: u32) -> Option<Vec<KeyType>> {
    if number == c::TYPE_VERDICT { Some(vec![KeyType::Verdict]) } else { type_of_number(number) }
}

/// The number `nft` knows a type by; a concatenation packs six bits for each part.
pub(super) fn type_number(key: &[KeyType]) -> u32 {
    key.iter().fold(0, |number, part| {
        let part = match part {
            KeyType::Ipv4 => 7,
            KeyType::Ipv6 => 8,
            KeyType::Ether => 9,
            KeyType::Protocol => 12,
            KeyType::Port => 13,
            KeyType::Mark => 19,
            KeyType::Class => 23,
            KeyType::Ifname => 41,
            // No part of any key.
            KeyType::Verdict => 0,
        };
        number << 6 | part
    })
}

/// The type behind such a number; `None` when a part of it is none of ours.
pub(super) fn type_of_number(mut number: u32) -> Option<Vec<KeyType>> {
    let mut parts = Vec::new();
    while number != 0 {
        parts.push(match number & 0x3f {
            7 => KeyType::Ipv4,
            8 => KeyType::Ipv6,
            9 => KeyType::Ether,
            12 => KeyType::Protocol,
            13 => KeyType::Port,
            19 => KeyType::Mark,
            23 => KeyType::Class,
            41 => KeyType::Ifname,
            _ => return None,
        });
        number >>= 6;
    }
    parts.reverse();
    if parts.is_empty() { None } else { Some(parts) }
}

/// Bytes of a value of this type, without padding.
pub(super) fn type_length(part: KeyType) -> usize {
    match part {
        KeyType::Ipv4 | KeyType::Mark | KeyType::Class => 4,
        // A verdict: the code and, aligned, the chain.
        KeyType::Ipv6 | KeyType::Ifname | KeyType::Verdict => 16,
        KeyType::Ether => 6,
        KeyType::Protocol => 1,
        KeyType::Port => 2,
    }
}

fn key_length(key: &[KeyType]) -> u32 {
    match key {
        [single] => type_length(*single) as u32,
        parts => parts.iter().map(|part| type_length(*part).next_multiple_of(4) as u32).sum(),
    }
}

/// A value's bytes, without padding; of a network the base address.
pub(super) fn bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::Address(address) => octets(*address),
        Value::Network(net) => octets(net.network()),
        Value::Ether(mac) => mac.0.to_vec(),
        Value::Ifname(name) => {
            let mut bytes = name.as_str().as_bytes().to_vec();
            bytes.resize(16, 0);
            bytes
        }
        Value::Protocol(number) => vec![*number],
        Value::Port(port) => port.to_be_bytes().to_vec(),
        Value::Number(number) | Value::Class(number) => number.to_ne_bytes().to_vec(),
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// An element as it is written.
#[derive(Clone, Copy)]
pub(super) struct Listed<'a> {
    pub(super) key: &'a Key,
    pub(super) data: &'a [Value],
    pub(super) verdict: Option<&'a Verdict>,
    pub(super) comment: Option<&'a str>,
}

impl<'a> Listed<'a> {
    /// A key alone.
    pub(super) fn key(key: &'a Key) -> Self {
        Self { key, data: &[], verdict: None, comment: None }
    }
}

/// Adds one element to a list of them; a network to a set of single keys takes two entries.
pub(super) fn put_element(list: &mut Message, element: &Listed<'_>) {
    let Listed { key, data, verdict, comment } = *element;
    let last: Vec<Value> = key.iter().map(last_of).collect();
    let ranged = last != *key || key.iter().any(|value| matches!(value, Value::Network(_)));
    let concatenated = key.len() > 1;
    list.nest(c::LIST_ENTRY, |entry| {
        put_data(entry, c::ELEMENT_KEY, &key_bytes(key));
        if concatenated && ranged {
            put_data(entry, c::ELEMENT_KEY_END, &key_bytes(&last));
        }
        if !data.is_empty() {
            put_data(entry, c::ELEMENT_DATA, &key_bytes(data));
        }
        if let Some(verdict) = verdict {
            put_verdict(entry, c::ELEMENT_DATA, verdict);
        }
        if let Some(comment) = comment {
            entry.put(c::ELEMENT_USERDATA, &userdata::comment(comment));
        }
    });
    if concatenated || !ranged {
        return;
    }
    // The end of an interval is the first key beyond it; the highest address has none beyond.
    if let Some(beyond) = successor(key_bytes(&last)) {
        list.nest(c::LIST_ENTRY, |entry| {
            put_data(entry, c::ELEMENT_KEY, &beyond);
            entry.be32(c::ELEMENT_FLAGS, c::ELEMENT_INTERVAL_END);
        });
    }
}

/// Adds a value as nf_tables wraps it.
pub(super) fn put_data(message: &mut Message, kind: u16, bytes: &[u8]) {
    message.nest(kind, |data| {
        data.put(c::DATA_VALUE, bytes);
    });
}

/// Adds a verdict as nf_tables wraps it.
pub(super) fn put_verdict(message: &mut Message, kind: u16, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Accept => (c::VERDICT_ACCEPT, None),
        Verdict::Drop => (c::VERDICT_DROP, None),
        Verdict::Return => (c::VERDICT_RETURN, None),
        Verdict::Jump(chain) => (c::VERDICT_JUMP, Some(chain)),
        Verdict::Goto(chain) => (c::VERDICT_GOTO, Some(chain)),
    };
    message.nest(kind, |data| {
        data.nest(c::DATA_VERDICT, |data| {
            data.be32(c::VERDICT_CODE, code.cast_unsigned());
            if let Some(chain) = chain {
                data.text(c::VERDICT_CHAIN, chain);
            }
        });
    });
}

fn read_verdict(attribute: &Attribute<'_>) -> Result<Option<Verdict>, Malformed> {
    let Some(found) = attribute.nested().find(c::DATA_VERDICT)? else { return Ok(None) };
    let what = Malformed::Missing { what: "code of a verdict" };
    let code = found.nested().find(c::VERDICT_CODE)?.ok_or(what)?.be32()?;
    let chain = || -> Result<String, Malformed> {
        let what = Malformed::Missing { what: "chain of a verdict" };
        Ok(found.nested().find(c::VERDICT_CHAIN)?.ok_or(what)?.foreign_text())
    };
    Ok(Some(match code.cast_signed() {
        c::VERDICT_ACCEPT => Verdict::Accept,
        c::VERDICT_DROP => Verdict::Drop,
        c::VERDICT_RETURN => Verdict::Return,
        c::VERDICT_JUMP => Verdict::Jump(chain()?),
        c::VERDICT_GOTO => Verdict::Goto(chain()?),
        _ => return Ok(None),
    }))
}

fn last_of(value: &Value) -> Value {
    match value {
        Value::Network(net) => Value::Address(net.broadcast()),
        other => *other,
    }
}

pub(super) fn key_bytes(key: &[Value]) -> Vec<u8> {
    if let [single] = key {
        return bytes(single);
    }
    let mut all = Vec::new();
    for value in key {
        all.extend(bytes(value));
        all.resize(all.len().next_multiple_of(4), 0);
    }
    all
}

/// The next number in network order; `None` after the highest.
fn successor(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    for byte in bytes.iter_mut().rev() {
        let (next, carried) = byte.overflowing_add(1);
        *byte = next;
        if !carried {
            return Some(bytes);
        }
    }
    None
}

/// One element as the kernel lists it.
pub(super) struct RawElement {
    key: Vec<u8>,
    key_end: Option<Vec<u8>>,
    interval_end: bool,
    data: Vec<u8>,
    verdict: Option<Verdict>,
    pub(super) comment: Option<String>,
}

impl RawElement {
    pub(super) fn read(entry: &Attribute<'_>) -> Result<Self, Malformed> {
        let (key, data) = (Vec::new(), Vec::new());
        let mut element =
            Self { key, key_end: None, interval_end: false, data, verdict: None, comment: None };
        for attribute in entry.nested() {
            let attribute = attribute?;
            match attribute.kind {
                c::ELEMENT_KEY => element.key = bytes_of(&attribute)?,
                c::ELEMENT_KEY_END => element.key_end = Some(bytes_of(&attribute)?),
                c::ELEMENT_DATA => match read_verdict(&attribute)? {
                    None => element.data = bytes_of(&attribute)?,
                    verdict => element.verdict = verdict,
                },
                c::ELEMENT_FLAGS => element.interval_end = attribute.be32()? & c::ELEMENT_INTERVAL_END != 0,
                c::ELEMENT_USERDATA => {
                    element.comment = userdata::find_comment(attribute.value).map(str::to_owned)
                }
                _ => {}
            }
        }
        Ok(element)
    }
}

fn bytes_of(attribute: &Attribute<'_>) -> Result<Vec<u8>, Malformed> {
    let value =
        attribute.nested().find(c::DATA_VALUE)?.ok_or(Malformed::Missing { what: "value of an element" })?;
    Ok(value.value.to_vec())
}

/// The elements of a set like this one. `None` when there is one that we would never have written (a range
/// that is no network): the set is not ours as it stands.
pub(super) fn elements(set: &Set, raw: Vec<RawElement>) -> Option<Elements> {
    match set.key.as_slice() {
        [single] if set.interval => intervals(*single, raw),
        types => raw.into_iter().map(|raw| Some((key(types, &raw)?, element(set, raw)?))).collect(),
    }
}

/// What the set knows of a key.
pub(super) fn element(set: &Set, raw: RawElement) -> Option<Element> {
    let data = match set.data.as_slice() {
        [] => Key::new(),
        [KeyType::Verdict] => {
            return Some(Element { comment: raw.comment, data: Key::new(), verdict: Some(raw.verdict?) });
        }
        types => split(types, &raw.data)?,
    };
    Some(Element { comment: raw.comment, data, verdict: None })
}

/// Puts the ends of intervals together: sorted by address, each start is followed by its end, or by nothing.
fn intervals(kind: KeyType, mut raw: Vec<RawElement>) -> Option<Elements> {
    raw.sort_by(|one, other| one.key.cmp(&other.key).then(other.interval_end.cmp(&one.interval_end)));
    let mut found = Elements::new();
    let mut rest = raw.into_iter().peekable();
    while let Some(start) = rest.next() {
        // An end without a start before it is the marker that `nft` puts at address 0.
        if start.interval_end {
            continue;
        }
        let last = match rest.peek() {
            Some(next) => predecessor(next.key.clone())?,
            None => vec![0xff; start.key.len()],
        };
        let net = network(parse(kind, &start.key)?, parse(kind, &last)?)?;
        found.insert(vec![Value::Network(net)], Element { comment: start.comment, ..Element::default() });
    }
    Some(found)
}

fn predecessor(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    for byte in bytes.iter_mut().rev() {
        let (next, borrowed) = byte.overflowing_sub(1);
        *byte = next;
        if !borrowed {
            return Some(bytes);
        }
    }
    None
}

fn key(types: &[KeyType], element: &RawElement) -> Option<Key> {
    let first = split(types, &element.key)?;
    let Some(end) = &element.key_end else { return Some(first) };
    let last = split(types, end)?;
    first
        .into_iter()
        .zip(last)
        .map(|(first, last)| match (first, last) {
            (Value::Address(_), Value::Address(_)) => network(first, last).map(Value::Network),
            (first, last) => (first == last).then_some(first),
        })
        .collect()
}

fn split(types: &[KeyType], bytes: &[u8]) -> Option<Key> {
    if let [single] = types {
        return Some(vec![parse(*single, bytes)?]);
    }
    let mut rest = bytes;
    let mut key = Key::with_capacity(types.len());
    for part in types {
        let length = type_length(*part);
        key.push(parse(*part, rest.get(..length)?)?);
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    Some(key)
}

fn parse(kind: KeyType, bytes: &[u8]) -> Option<Value> {
    Some(match kind {
        KeyType::Ipv4 => Value::Address(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        KeyType::Ipv6 => Value::Address(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        KeyType::Ether => Value::Ether(Mac(bytes.try_into().ok()?)),
        KeyType::Protocol => Value::Protocol(*bytes.first()?),
        KeyType::Port => Value::Port(u16::from_be_bytes(bytes.try_into().ok()?)),
        KeyType::Mark => Value::Number(u32::from_ne_bytes(bytes.try_into().ok()?)),
        KeyType::Class => Value::Class(u32::from_ne_bytes(bytes.try_into().ok()?)),
        KeyType::Verdict => return None,
        KeyType::Ifname => {
            let text = std::str::from_utf8(bytes).ok()?.trim_end_matches('\0');
            Value::Ifname(text.parse::<LinkName>().ok()?)
        }
    })
}

/// The network with this first and last address, if there is one.
fn network(first: Value, last: Value) -> Option<IpNet> {
    let (Value::Address(first), Value::Address(last)) = (first, last) else { return None };
    let length = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => (u32::from(first) ^ u32::from(last)).leading_zeros(),
        (IpAddr::V6(first), IpAddr::V6(last)) => (u128::from(first) ^ u128::from(last)).leading_zeros(),
        _ => return None,
    };
    let net = IpNet::new(first, u8::try_from(length).ok()?).ok()?;
    (net.network() == first && net.broadcast() == last).then_some(net)
}

#[cfg(test)]
mod tests {
    use netstate::pool::overlaps;
    use proptest::prelude::*;

    use super::*;
    use crate::netlink::Attributes;

    /// What the kernel would list after these elements were added.
    fn listed(elements: &Elements) -> Vec<RawElement> {
        let mut message = Message::new(0, 0, &[]);
        elements.iter().for_each(|(key, element)| {
            let Element { data, verdict, comment } = element;
            let (verdict, comment) = (verdict.as_ref(), comment.as_deref());
            put_element(&mut message, &Listed { key, data, verdict, comment });
        });
        let entries = Attributes::new(message.bytes().get(16..).unwrap());
        entries.map(|entry| RawElement::read(&entry.unwrap()).unwrap()).collect()
    }

    fn set(types: &[KeyType], interval: bool) -> Set {
        Set { interval, ..Set::new("set", types) }
    }

    fn round_trip(set: &Set, elements: &Elements) -> Option<Elements> {
        let mut raw = listed(elements);
        // The kernel lists in an order of its own.
        raw.reverse();
        super::elements(set, raw)
    }

    fn net(v6: bool, bits: u128, length: u8) -> IpNet {
        let net = if v6 {
            IpNet::new(IpAddr::from(bits.to_be_bytes()), length % 129)
        } else {
            IpNet::new(IpAddr::from((bits as u32).to_be_bytes()), length % 33)
        };
        net.unwrap().trunc()
    }

    #[test]
    fn types_keep_the_numbers_that_nft_gives_them() {
        assert_eq!(type_number(&[KeyType::Ipv4]), 7);
        assert_eq!(type_number(&[KeyType::Ifname, KeyType::Ether]), 41 << 6 | 9);
        assert_eq!(type_of_number(41 << 6 | 9), Some(vec![KeyType::Ifname, KeyType::Ether]));
        assert_eq!(type_of_number(0), None);
        assert_eq!(type_of_number(5), None);
    }

    #[test]
    fn a_range_that_is_no_network_makes_the_set_foreign() {
        let raw = |key: [u8; 4], interval_end| RawElement {
            key: key.to_vec(),
            key_end: None,
            interval_end,
            data: Vec::new(),
            verdict: None,
            comment: None,
        };
        let set = set(&[KeyType::Ipv4], true);
        let range = vec![raw([10, 0, 0, 1], false), raw([10, 0, 0, 4], true)];
        assert_eq!(elements(&set, range), None);
        let marker = vec![raw([0, 0, 0, 0], true), raw([10, 0, 0, 0], false), raw([10, 0, 0, 4], true)];
        let found = elements(&set, marker).unwrap();
        assert_eq!(found.into_keys().collect::<Vec<_>>(), [[Value::Network("10.0.0.0/30".parse().unwrap())]]);
    }

    proptest! {
        #[test]
        fn networks_come_back_from_their_intervals(
            wanted in prop::collection::vec((any::<u128>(), any::<u8>(), prop::option::of("[a-z]{0,9}")), 0..12),
            v6 in any::<bool>(),
        ) {
            let mut elements = Elements::new();
            for (bits, length, comment) in wanted {
                let net = net(v6, bits, length);
                let apart = |key: &Key| matches!(key[..], [Value::Network(other)] if !overlaps(other, net));
                if elements.keys().all(apart) {
                    elements.insert(vec![Value::Network(net)], Element::new(comment.as_deref()));
                }
            }
            let kind = if v6 { KeyType::Ipv6 } else { KeyType::Ipv4 };
            prop_assert_eq!(round_trip(&set(&[kind], true), &elements), Some(elements));
        }

        #[test]
        fn concatenations_come_back(bits in any::<[u128; 2]>(), lengths in any::<[u8; 2]>(), port in any::<u16>()) {
            let key = vec![
                Value::Network(net(false, bits[0], lengths[0])),
                Value::Port(port),
                Value::Network(net(true, bits[1], lengths[1])),
            ];
            let elements = Elements::from([(key, Element::default())]);
            let types = [KeyType::Ipv4, KeyType::Port, KeyType::Ipv6];
            prop_assert_eq!(round_trip(&set(&types, true), &elements), Some(elements));
        }

        #[test]
        fn what_a_map_leads_to_comes_back(
            ports in prop::collection::btree_map((any::<u8>(), any::<u16>()), any::<(u128, u16)>(), 0..12),
            v6 in any::<bool>(),
        ) {
            let kind = if v6 { KeyType::Ipv6 } else { KeyType::Ipv4 };
            let map = Set::map("map", [KeyType::Protocol, KeyType::Port], [kind, KeyType::Port]);
            let address = |bits: u128| {
                Value::Address(net(v6, bits, if v6 { 128 } else { 32 }).addr())
            };
            let elements: Elements = ports.into_iter().map(|((protocol, port), (bits, to))| {
                let data = vec![address(bits), Value::Port(to)];
                let element = Element { comment: Some("a pod".into()), data, verdict: None };
                (vec![Value::Protocol(protocol), Value::Port(port)], element)
            }).collect();
            prop_assert_eq!(round_trip(&map, &elements), Some(elements));
        }
    }
}
