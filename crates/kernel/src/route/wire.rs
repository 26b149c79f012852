//! How a route goes onto the wire and comes off it (`struct rtmsg`, `RTA_*`).

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Hop, Kind, Route};
use crate::netlink::{Attribute, Attributes, Malformed, Message, Reply};
use crate::{Family, abi};

/// `struct rtmsg`: eight u8 (family, destination length, source length, type of service, table, protocol, scope,
/// kind) and flags (u32).
#[derive(Default)]
pub(super) struct Header {
    pub(super) family: u8,
    pub(super) destination: u8,
    pub(super) table: u8,
    pub(super) protocol: u8,
    pub(super) scope: u8,
    pub(super) kind: u8,
    pub(super) flags: u32,
}

impl Header {
    const SIZE: usize = 12;

    pub(super) fn bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0] = self.family;
        bytes[1] = self.destination;
        bytes[4] = self.table;
        bytes[5] = self.protocol;
        bytes[6] = self.scope;
        bytes[7] = self.kind;
        bytes[8..12].copy_from_slice(&self.flags.to_ne_bytes());
        bytes
    }
}

/// `struct rtnexthop`: length (u16), flags (u8), weight less one (u8), link (i32).
const HOP_HEADER: usize = 8;
const ONLINK: u8 = abi::RTNH_F_ONLINK as u8;

impl Kind {
    const NAMED: [(u8, Self); 6] = [
        (abi::RTN_UNICAST, Self::Unicast),
        (abi::RTN_LOCAL, Self::Local),
        (abi::RTN_BLACKHOLE, Self::Blackhole),
        (abi::RTN_UNREACHABLE, Self::Unreachable),
        (abi::RTN_PROHIBIT, Self::Prohibit),
        (abi::RTN_THROW, Self::Throw),
    ];

    fn number(self) -> u8 {
        if let Self::Other(number) = self {
            return number;
        }
        Self::NAMED.iter().find(|(_, kind)| *kind == self).map_or(abi::RTN_UNSPEC, |(number, _)| *number)
    }

    fn from_number(number: u8) -> Self {
        Self::NAMED.iter().find(|(named, _)| *named == number).map_or(Self::Other(number), |(_, kind)| *kind)
    }
}

pub(super) fn write(route: &Route, kind: u16, flags: u16) -> Message {
    let mut header = Header {
        family: route.family().number(),
        destination: route.destination.prefix_len(),
        table: u8::try_from(route.table).unwrap_or(abi::RT_TABLE_UNSPEC),
        protocol: route.protocol,
        scope: route.scope,
        kind: route.kind.number(),
        flags: 0,
    };
    if let [Hop { onlink: true, .. }] = route.hops.as_slice() {
        header.flags = abi::RTNH_F_ONLINK;
    }
    let mut message = Message::new(kind, flags, &header.bytes());
    if route.destination.prefix_len() > 0 {
        message.ip(abi::RTA_DST, route.destination.network());
    }
    message.u32(abi::RTA_TABLE, route.table);
    if let Some(source) = route.source {
        message.ip(abi::RTA_PREFSRC, source);
    }
    if route.metric != 0 {
        message.u32(abi::RTA_PRIORITY, route.metric);
    }
    write_metrics(&mut message, route);
    match route.hops.as_slice() {
        [] => {}
        [hop] => {
            write_gateway(&mut message, hop, route.family());
            if let Some(link) = hop.link {
                message.u32(abi::RTA_OIF, link);
            }
        }
        several => write_hops(&mut message, several, route.family()),
    }
    message
}

fn write_metrics(message: &mut Message, route: &Route) {
    if route.mtu.is_none() && route.advertised_mss.is_none() {
        return;
    }
    message.nest(abi::RTA_METRICS, |metrics| {
        for (kind, value) in [(abi::RTAX_MTU, route.mtu), (abi::RTAX_ADVMSS, route.advertised_mss)] {
            if let Some(value) = value {
                metrics.u32(kind, value);
            }
        }
    });
}

/// A gateway of the other family travels with its family in front (`struct rtvia`).
fn write_gateway(message: &mut Message, hop: &Hop, family: Family) {
    let Some(gateway) = hop.gateway else { return };
    if Family::of(gateway) == family {
        message.ip(abi::RTA_GATEWAY, gateway);
        return;
    }
    let mut value = u16::from(Family::of(gateway).number()).to_ne_bytes().to_vec();
    match gateway {
        IpAddr::V4(address) => value.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => value.extend_from_slice(&address.octets()),
    }
    message.put(abi::RTA_VIA, &value);
}

fn write_hops(message: &mut Message, hops: &[Hop], family: Family) {
    message.nest(abi::RTA_MULTIPATH, |list| {
        for hop in hops {
            let start = list.length();
            let weight = u8::try_from(hop.weight.saturating_sub(1)).unwrap_or(u8::MAX);
            let [l0, l1, l2, l3] = hop.link.unwrap_or(0).to_ne_bytes();
            list.raw(&[0, 0, if hop.onlink { ONLINK } else { 0 }, weight, l0, l1, l2, l3]);
            write_gateway(list, hop, family);
            list.patch_length(start);
        }
    });
}

impl Route {
    /// Decodes a message about one route; `None` for a cached exception or a family other than IPv4 and IPv6.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn from_reply(reply: Reply<'_>) -> Result<Option<Self>, Malformed> {
        let (header, _) = reply.split::<{ Header::SIZE }>()?;
        let [family, .., f0, f1, f2, f3] = *header;
        let cached = u32::from_ne_bytes([f0, f1, f2, f3]) & abi::RTM_F_CLONED != 0;
        if cached || Family::from_number(family).is_none() {
            return Ok(None);
        }
        Self::decode(reply).map(Some)
    }

    pub(super) fn decode(reply: Reply<'_>) -> Result<Self, Malformed> {
        let (header, attributes) = reply.split::<{ Header::SIZE }>()?;
        let [family, length, _, _, table, protocol, scope, kind, f0, f1, f2, f3] = *header;
        let family = Family::from_number(family).ok_or(Malformed::Missing { what: "IP family" })?;
        let onlink = u32::from_ne_bytes([f0, f1, f2, f3]) & abi::RTNH_F_ONLINK != 0;
        let mut found = Found { destination: family.unspecified(), ..Found::new() };
        for attribute in attributes {
            found.apply(attribute?)?;
        }
        let destination = IpNet::new(found.destination, length)
            .map_err(|_| Malformed::Missing { what: "valid prefix length" })?;
        let mut hops = found.hops;
        if hops.is_empty() && (found.gateway.is_some() || found.link.is_some()) {
            hops.push(Hop { gateway: found.gateway, link: found.link, onlink, weight: 1 });
        }
        let kind = Kind::from_number(kind);
        if matches!(kind, Kind::Blackhole | Kind::Unreachable | Kind::Prohibit | Kind::Throw) {
            // IPv6 shows the loopback link on routes that lead nowhere.
            hops.clear();
        }
        Ok(Self {
            destination,
            table: found.table.unwrap_or_else(|| table.into()),
            kind,
            protocol,
            scope,
            metric: found.metric,
            source: found.source,
            hops,
            mtu: found.mtu,
            advertised_mss: found.advertised_mss,
        })
    }
}

/// Attributes of a route as they come.
struct Found {
    destination: IpAddr,
    table: Option<u32>,
    metric: u32,
    source: Option<IpAddr>,
    gateway: Option<IpAddr>,
    link: Option<u32>,
    hops: Vec<Hop>,
    mtu: Option<u32>,
    advertised_mss: Option<u32>,
}

impl Found {
    fn new() -> Self {
        Self {
            destination: Family::V4.unspecified(),
            table: None,
            metric: 0,
            source: None,
            gateway: None,
            link: None,
            hops: Vec::new(),
            mtu: None,
            advertised_mss: None,
        }
    }

    fn apply(&mut self, attribute: Attribute<'_>) -> Result<(), Malformed> {
        match attribute.kind {
            abi::RTA_DST => self.destination = attribute.ip()?,
            abi::RTA_TABLE => self.table = Some(attribute.u32()?),
            abi::RTA_PRIORITY => self.metric = attribute.u32()?,
            abi::RTA_PREFSRC => self.source = Some(attribute.ip()?),
            abi::RTA_GATEWAY | abi::RTA_VIA => self.gateway = Some(gateway(attribute)?),
            abi::RTA_OIF => self.link = Some(attribute.u32()?),
            abi::RTA_METRICS => self.apply_metrics(attribute.nested())?,
            abi::RTA_MULTIPATH => self.hops = hops(attribute)?,
            _ => {}
        }
        Ok(())
    }

    fn apply_metrics(&mut self, metrics: Attributes<'_>) -> Result<(), Malformed> {
        for metric in metrics {
            let metric = metric?;
            match metric.kind {
                abi::RTAX_MTU => self.mtu = Some(metric.u32()?),
                abi::RTAX_ADVMSS => self.advertised_mss = Some(metric.u32()?),
                _ => {}
            }
        }
        Ok(())
    }
}

fn gateway(attribute: Attribute<'_>) -> Result<IpAddr, Malformed> {
    if attribute.kind == abi::RTA_GATEWAY {
        return attribute.ip();
    }
    match attribute.value {
        [_, _, address @ ..] => Attribute { kind: attribute.kind, value: address }.ip(),
        _ => Err(attribute.malformed("a gateway with its family")),
    }
}

fn hops(attribute: Attribute<'_>) -> Result<Vec<Hop>, Malformed> {
    let mut rest = attribute.value;
    let mut hops = Vec::new();
    while let Some((header, _)) = rest.split_first_chunk::<HOP_HEADER>() {
        let [n0, n1, flags, weight, l0, l1, l2, l3] = *header;
        let length = usize::from(u16::from_ne_bytes([n0, n1]));
        let Some(attributes) = rest.get(HOP_HEADER..length) else {
            return Err(attribute.malformed("a list of next hops"));
        };
        let mut hop = Hop {
            gateway: None,
            link: Some(u32::from_ne_bytes([l0, l1, l2, l3])),
            onlink: flags & ONLINK != 0,
            weight: u16::from(weight) + 1,
        };
        for attribute in Attributes::new(attributes) {
            let attribute = attribute?;
            if matches!(attribute.kind, abi::RTA_GATEWAY | abi::RTA_VIA) {
                hop.gateway = Some(gateway(attribute)?);
            }
        }
        hops.push(hop);
        // Records are padded to four bytes.
        rest = rest.get((length + 3) & !3..).unwrap_or(&[]);
    }
    Ok(hops)
}
