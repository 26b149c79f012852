//! Filters: what happens to which packets of a link. As far as shaping needs them: all go to another link, or
//! those from or to a subnet belong to a class.
//!
//! Read [`redirect`] and [`classify`]. Both are `u32` filters, which every kernel has that can shape at all.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::netlink::{Attributes, Malformed, Message, Purpose, Request, Socket};
use crate::qdisc::{Header, INGRESS_HANDLE};
use crate::{Error, abi};

/// `ETH_P_ALL`: every protocol.
const EVERY_PROTOCOL: u16 = libc::ETH_P_ALL as u16;
const NEEDS_MATCH: &str = "the kernel needs CONFIG_NET_CLS_U32";
const NEEDS_REDIRECT: &str =
    "the kernel needs CONFIG_NET_CLS_ACT, CONFIG_NET_CLS_U32 and CONFIG_NET_ACT_MIRRED";

/// Which of a packet's addresses is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// A filter as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// The class that what matches belongs to.
    pub class: Option<u32>,
    /// The link that what matches is sent to instead, by index.
    pub redirect: Option<u32>,
    /// What it matches, in a form to compare; see [`Filter::matches`].
    matching: Matching,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Matching {
    protocol: u16,
    keys: Vec<Key>,
}

/// One word of a packet, from the start of its network header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    mask: u32,
    value: u32,
    offset: u32,
}

/// Sends everything that comes in on `link`, which must have the ingress hook, out on the link `to` instead.
pub fn redirect(link: u32, to: u32) -> Request {
    let everything = Matching { protocol: EVERY_PROTOCOL, keys: vec![Key { mask: 0, value: 0, offset: 0 }] };
    let mut message = new(link, INGRESS_HANDLE, 1, everything.protocol);
    message.nest(abi::TCA_OPTIONS, |options| {
        options.put(abi::TCA_U32_SEL, &everything.selector());
        options.nest(abi::TCA_U32_ACT, |actions| {
            actions.nest(1, |action| {
                action.text(abi::TCA_ACT_KIND, "mirred").nest(abi::TCA_ACT_OPTIONS, |settings| {
                    settings.put(abi::TCA_MIRRED_PARMS, &mirred(to));
                });
            });
        });
    });
    let object = format!("of link number {link} to number {to}");
    Request::new(message, Purpose::new("redirect traffic", object).needing(NEEDS_REDIRECT))
}

/// Lets packets whose address on this side is in `subnet` belong to `class` of the qdisc `parent` on `link`.
pub fn classify(link: u32, parent: u32, class: u32, (side, subnet): (Side, IpNet)) -> Request {
    let matching = Matching::of(side, subnet);
    // One priority holds filters of one protocol only.
    let priority = if subnet.addr().is_ipv4() { 4 } else { 6 };
    let mut message = new(link, parent, priority, matching.protocol);
    message.nest(abi::TCA_OPTIONS, |options| {
        options.u32(abi::TCA_U32_CLASSID, class).put(abi::TCA_U32_SEL, &matching.selector());
    });
    let object = format!("for {subnet} on link number {link}");
    Request::new(message, Purpose::new("add filter", object).needing(NEEDS_MATCH))
}

/// The `u32` filters that hang on the qdisc `parent` of a link.
///
/// # Errors
/// When the kernel refuses.
pub fn list(socket: &mut Socket, link: u32, parent: u32) -> Result<Vec<Filter>, Error> {
    let message = Message::new(abi::RTM_GETTFILTER, 0, &Header { link, parent, ..Header::default() }.bytes());
    let purpose = Purpose::new("list filters of link", format!("number {link}"));
    socket.dump(&Request::new(message, purpose), |reply| {
        let (header, attributes) = Header::split(reply)?;
        let kind = attributes.find(abi::TCA_KIND)?.map(|kind| kind.text()).transpose()?;
        match attributes.find(abi::TCA_OPTIONS)? {
            Some(options) if kind == Some("u32") => Filter::read(&header, options.nested()),
            _ => Ok(None),
        }
    })
}

impl Filter {
    /// Whether it matches what [`classify`] would for this subnet on this side.
    pub fn matches(&self, side: Side, subnet: IpNet) -> bool {
        self.matching == Matching::of(side, subnet)
    }

    /// Whether it matches every packet.
    pub fn matches_everything(&self) -> bool {
        self.matching.protocol == EVERY_PROTOCOL && self.matching.keys.iter().all(|key| key.mask == 0)
    }

    /// `None` for the filter's hash table, which is listed as if it were one.
    fn read(header: &Header, options: Attributes<'_>) -> Result<Option<Self>, Malformed> {
        let (mut filter, mut matches) = (Self::of(header), false);
        for attribute in options {
            let attribute = attribute?;
            match attribute.kind {
                abi::TCA_U32_CLASSID => filter.class = Some(attribute.u32()?),
                abi::TCA_U32_SEL => {
                    matches = true;
                    filter.matching.keys = keys(attribute.value);
                }
                abi::TCA_U32_ACT => {
                    for action in attribute.nested() {
                        filter.redirect = redirected(action?.nested())?.or(filter.redirect);
                    }
                }
                _ => {}
            }
        }
        Ok(matches.then_some(filter))
    }

    fn of(header: &Header) -> Self {
        let protocol = u16::from_be((header.info & 0xffff) as u16);
        Self { class: None, redirect: None, matching: Matching { protocol, keys: Vec::new() } }
    }
}

impl Matching {
    fn of(side: Side, subnet: IpNet) -> Self {
        let (protocol, offset, words) = match (subnet.network(), side) {
            (IpAddr::V4(base), Side::Source) => (libc::ETH_P_IP, 12, vec![u32::from(base)]),
            (IpAddr::V4(base), Side::Destination) => (libc::ETH_P_IP, 16, vec![u32::from(base)]),
            (IpAddr::V6(base), Side::Source) => (libc::ETH_P_IPV6, 8, words(base.octets())),
            (IpAddr::V6(base), Side::Destination) => (libc::ETH_P_IPV6, 24, words(base.octets())),
        };
        let mut left = u32::from(subnet.prefix_len());
        let mut keys = Vec::new();
        for (value, offset) in words.into_iter().zip((offset..).step_by(4)) {
            let bits = left.min(32);
            left -= bits;
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            // A word that does not matter is left out, but there has to be one.
            if mask != 0 || keys.is_empty() {
                keys.push(Key { mask, value, offset });
            }
        }
        Self { protocol: protocol as u16, keys }
    }

    /// `struct tc_u32_sel`: flags, shift, number of keys (u8 each), padding, offset mask (u16), offset (u16),
    /// offset's offset (i16), hash offset (i16), hash mask (u32); then the keys: mask, value (big-endian u32
    /// each), offset, offset mask (i32 each).
    fn selector(&self) -> Vec<u8> {
        let mut bytes = vec![abi::TC_U32_TERMINAL, 0, self.keys.len() as u8, 0];
        bytes.resize(16, 0);
        for key in &self.keys {
            bytes.extend_from_slice(&key.mask.to_be_bytes());
            bytes.extend_from_slice(&key.value.to_be_bytes());
            bytes.extend_from_slice(&key.offset.to_ne_bytes());
            bytes.extend_from_slice(&[0; 4]);
        }
        bytes
    }
}

fn words(octets: [u8; 16]) -> Vec<u32> {
    octets.chunks_exact(4).map(|word| u32::from_be_bytes([word[0], word[1], word[2], word[3]])).collect()
}

fn keys(selector: &[u8]) -> Vec<Key> {
    let word = |bytes: &[u8], at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    let keys = selector.get(16..).unwrap_or_default().chunks_exact(16);
    keys.map(|key| Key {
        mask: u32::from_be_bytes(word(key, 0)),
        value: u32::from_be_bytes(word(key, 4)),
        offset: u32::from_ne_bytes(word(key, 8)),
    })
    .collect()
}

/// `struct tc_mirred`: index, capabilities, action, two counts (u32 each), what to do, and with which link.
fn mirred(to: u32) -> [u8; 28] {
    let mut bytes = [0; 28];
    for (at, number) in [(8, abi::TC_ACT_STOLEN), (20, abi::TCA_EGRESS_REDIR), (24, to)] {
        bytes[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    }
    bytes
}

fn redirected(action: Attributes<'_>) -> Result<Option<u32>, Malformed> {
    let Some(kind) = action.find(abi::TCA_ACT_KIND)? else { return Ok(None) };
    let Some(settings) = action.find(abi::TCA_ACT_OPTIONS)? else { return Ok(None) };
    let Some(parameters) = settings.nested().find(abi::TCA_MIRRED_PARMS)? else { return Ok(None) };
    if kind.text()? != "mirred" {
        return Ok(None);
    }
    let bytes = parameters.array::<28>("a redirection")?;
    let number = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    Ok(Some(number(24)).filter(|_| number(20) == abi::TCA_EGRESS_REDIR))
}

fn new(link: u32, parent: u32, priority: u32, protocol: u16) -> Message {
    let header = Header { link, handle: 0, parent, info: priority << 16 | u32::from(protocol.to_be()) };
    let mut message = Message::new(abi::RTM_NEWTFILTER, abi::NLM_F_CREATE | abi::NLM_F_EXCL, &header.bytes());
    message.text(abi::TCA_KIND, "u32");
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys_of(subnet: &str) -> Vec<(u32, u32, u32)> {
        let matching = Matching::of(Side::Destination, subnet.parse().unwrap());
        matching.keys.iter().map(|key| (key.offset, key.mask, key.value)).collect()
    }

    #[test]
    fn a_subnet_is_the_words_of_its_prefix() {
        assert_eq!(keys_of("10.1.0.0/16"), [(16, 0xffff_0000, 0x0a01_0000)]);
        assert_eq!(keys_of("10.1.2.3/32"), [(16, u32::MAX, 0x0a01_0203)]);
        assert_eq!(keys_of("0.0.0.0/0"), [(16, 0, 0)]);
        assert_eq!(keys_of("::/0"), [(24, 0, 0)]);
        assert_eq!(keys_of("2001:db8:8000::/33"), [(24, u32::MAX, 0x2001_0db8), (28, 1 << 31, 1 << 31)]);
        assert_eq!(keys_of("2001:db8::1/128").len(), 4);
    }

    #[test]
    fn a_selector_reads_as_it_was_written() {
        for subnet in ["10.1.0.0/16", "::/0", "2001:db8:8000::/33", "2001:db8::1/128"] {
            let matching = Matching::of(Side::Source, subnet.parse().unwrap());
            assert_eq!(keys(&matching.selector()), matching.keys, "{subnet}");
        }
    }
}
