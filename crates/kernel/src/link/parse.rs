//! Decoding of `RTM_NEWLINK` and `RTM_DELLINK`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netstate::Mac;

use super::{Header, Kind, Link, OperationalState, Port, tunnel, upper};
use crate::netlink::{Attribute, Attributes, Malformed, Reply};
use crate::{Family, abi};

impl Link {
    /// Decodes a message about one link: an answer, an echo, or a notification.
    ///
    /// # Errors
    /// When it is not a link message.
    pub fn from_reply(reply: Reply<'_>) -> Result<Self, Malformed> {
        let (header, attributes) = reply.split::<{ Header::SIZE }>()?;
        let [_, _, _, _, i0, i1, i2, i3, f0, f1, f2, f3, ..] = *header;
        let mut link = Self {
            index: u32::from_ne_bytes([i0, i1, i2, i3]),
            name: String::new(),
            kind: Kind::Device,
            mac: None,
            mtu: 0,
            flags: u32::from_ne_bytes([f0, f1, f2, f3]),
            operational_state: OperationalState::Unknown,
            master: None,
            parent: None,
            peer_namespace: None,
            alias: None,
            transmit_queue_length: 0,
            promiscuity: 0,
            group: 0,
            ipv6: None,
            port: None,
        };
        for attribute in attributes {
            link.apply(attribute?)?;
        }
        // A link that sits on nothing names itself.
        if link.parent == Some(link.index) && link.peer_namespace.is_none() {
            link.parent = None;
        }
        Ok(link)
    }

    fn apply(&mut self, attribute: Attribute<'_>) -> Result<(), Malformed> {
        match attribute.kind {
            abi::IFLA_IFNAME => self.name = attribute.foreign_text(),
            abi::IFLA_ADDRESS => self.mac = attribute.array("a hardware address").ok().map(Mac),
            abi::IFLA_MTU => self.mtu = attribute.u32()?,
            abi::IFLA_OPERSTATE => self.operational_state = operational_state(attribute.u8()?),
            abi::IFLA_MASTER => self.master = Some(attribute.u32()?).filter(|index| *index != 0),
            abi::IFLA_LINK => self.parent = Some(attribute.u32()?).filter(|index| *index != 0),
            abi::IFLA_LINK_NETNSID => self.peer_namespace = Some(attribute.i32()?),
            abi::IFLA_IFALIAS => self.alias = Some(attribute.foreign_text()),
            abi::IFLA_TXQLEN => self.transmit_queue_length = attribute.u32()?,
            abi::IFLA_PROMISCUITY => self.promiscuity = attribute.u32()?,
            abi::IFLA_GROUP => self.group = attribute.u32()?,
            abi::IFLA_AF_SPEC => self.ipv6 = ipv6(attribute.nested())?,
            abi::IFLA_LINKINFO => {
                self.kind = kind(attribute.nested())?;
                self.port = port(attribute.nested())?;
                if matches!(self.kind, Kind::Vxlan { .. }) {
                    self.parent = underlay(attribute.nested())?.or(self.parent);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The packets that a link could not send, from a message about it with its counters: the sixth of them.
pub(super) fn unsent(reply: Reply<'_>) -> Result<u64, Malformed> {
    let (_, attributes) = reply.split::<{ Header::SIZE }>()?;
    let counters = attributes.find(abi::IFLA_STATS64)?;
    let mut numbers = counters.iter().flat_map(|counters| counters.value.chunks_exact(size_of::<u64>()));
    let errors = numbers.nth(abi::STATS64_TX_ERRORS).and_then(|number| number.try_into().ok());
    Ok(errors.map_or(0, u64::from_ne_bytes))
}

/// Of the settings of each address family, the one that switches IPv6 off. Kernels number the settings alike, but know
/// more and more of them.
fn ipv6(families: Attributes<'_>) -> Result<Option<bool>, Malformed> {
    let Some(ipv6) = families.find(libc::AF_INET6 as u16)? else { return Ok(None) };
    let Some(settings) = ipv6.nested().find(abi::IFLA_INET6_CONF)? else { return Ok(None) };
    let mut numbers = settings.value.chunks_exact(size_of::<i32>());
    let off = numbers.nth(abi::DEVCONF_DISABLE_IPV6);
    Ok(off.map(|number| number.iter().all(|byte| *byte == 0)))
}

/// RFC 2863 `ifOperStatus` as `IF_OPER_*` numbers it.
fn operational_state(number: u8) -> OperationalState {
    match number {
        1..=4 => OperationalState::Down,
        5 => OperationalState::Dormant,
        6 => OperationalState::Up,
        _ => OperationalState::Unknown,
    }
}

fn kind(info: Attributes<'_>) -> Result<Kind, Malformed> {
    let Some(name) = info.find(abi::IFLA_INFO_KIND)? else { return Ok(Kind::Device) };
    let data = info.find(abi::IFLA_INFO_DATA)?.map_or(Attributes::new(&[]), |data| data.nested());
    match name.text()? {
        "bridge" => {
            let filtering = data.find(abi::IFLA_BR_VLAN_FILTERING)?;
            Ok(Kind::Bridge { vlan_filtering: filtering.map_or(Ok(0), |flag| flag.u8())? != 0 })
        }
        "veth" => Ok(Kind::Veth),
        "vxlan" => vxlan(data),
        "ipip" => tunnel::read(Family::V4, data),
        "sit" => tunnel::read(Family::V6, data),
        "macvlan" => {
            let (mode, broadcast_queue_length) = upper::macvlan(data)?;
            Ok(Kind::Macvlan { mode, broadcast_queue_length })
        }
        "ipvlan" => {
            let (mode, isolation) = upper::ipvlan(data)?;
            Ok(Kind::Ipvlan { mode, isolation })
        }
        "vlan" => {
            let (id, protocol) = upper::vlan(data)?;
            Ok(Kind::Vlan { id, protocol })
        }
        "vrf" => {
            let table = data.find(abi::IFLA_VRF_TABLE)?;
            Ok(Kind::Vrf { table: table.map_or(Ok(0), |table| table.u32())? })
        }
        "tun" => tun(data),
        other => Ok(Kind::Other(other.to_owned())),
    }
}

fn tun(data: Attributes<'_>) -> Result<Kind, Malformed> {
    let (mut tap, mut multi_queue, mut owner, mut group) = (false, false, None, None);
    for attribute in data {
        let attribute = attribute?;
        match attribute.kind {
            abi::IFLA_TUN_TYPE => tap = u16::from(attribute.u8()?) == abi::IFF_TAP,
            abi::IFLA_TUN_MULTI_QUEUE => multi_queue = attribute.u8()? != 0,
            abi::IFLA_TUN_OWNER => owner = Some(attribute.u32()?),
            abi::IFLA_TUN_GROUP => group = Some(attribute.u32()?),
            _ => {}
        }
    }
    Ok(Kind::Tun { tap, multi_queue, owner, group })
}

fn vxlan(data: Attributes<'_>) -> Result<Kind, Malformed> {
    let (mut id, mut port, mut local, mut learning) = (0, 0, None, true);
    for attribute in data {
        let attribute = attribute?;
        match attribute.kind {
            abi::IFLA_VXLAN_ID => id = attribute.u32()?,
            abi::IFLA_VXLAN_PORT => port = attribute.be16()?,
            abi::IFLA_VXLAN_LEARNING => learning = attribute.u8()? != 0,
            abi::IFLA_VXLAN_LOCAL => {
                local = Some(IpAddr::V4(Ipv4Addr::from(attribute.array::<4>("an IPv4 address")?)));
            }
            abi::IFLA_VXLAN_LOCAL6 => {
                local = Some(IpAddr::V6(Ipv6Addr::from(attribute.array::<16>("an IPv6 address")?)));
            }
            _ => {}
        }
    }
    Ok(Kind::Vxlan { id, port, local, learning })
}

/// The link that a tunnel is bound to, which it says among its settings and not as `IFLA_LINK`.
fn underlay(info: Attributes<'_>) -> Result<Option<u32>, Malformed> {
    let Some(data) = info.find(abi::IFLA_INFO_DATA)? else { return Ok(None) };
    let link = data.nested().find(abi::IFLA_VXLAN_LINK)?.map(|link| link.u32()).transpose()?;
    Ok(link.filter(|index| *index != 0))
}

fn port(info: Attributes<'_>) -> Result<Option<Port>, Malformed> {
    match info.find(abi::IFLA_INFO_SLAVE_KIND)? {
        Some(kind) if kind.text()? == "bridge" => {}
        _ => return Ok(None),
    }
    let Some(data) = info.find(abi::IFLA_INFO_SLAVE_DATA)? else { return Ok(None) };
    let mut port =
        Port { state: 0, hairpin: false, isolated: false, learning: true, neighbour_suppression: false };
    for attribute in data.nested() {
        let attribute = attribute?;
        match attribute.kind {
            abi::IFLA_BRPORT_STATE => port.state = attribute.u8()?,
            abi::IFLA_BRPORT_MODE => port.hairpin = attribute.u8()? != 0,
            abi::IFLA_BRPORT_ISOLATED => port.isolated = attribute.u8()? != 0,
            abi::IFLA_BRPORT_LEARNING => port.learning = attribute.u8()? != 0,
            abi::IFLA_BRPORT_NEIGH_SUPPRESS => port.neighbour_suppression = attribute.u8()? != 0,
            _ => {}
        }
    }
    Ok(Some(port))
}
