//! IP in IPv4 devices: `ipip` for IPv4 within, `sit` for IPv6 (linux/if_tunnel.h).
//!
//! Read [`NewIpTunnel`]. Such a device has no far end of its own: where an outer packet goes says the gateway of the route,
//! which for `sit` is written as the IPv4-compatible address `::a.b.c.d`. The first device of a kind makes the kernel put
//! one of its own beside it, `tunl0` or `sit0`, which stays down.

use std::net::Ipv4Addr;

use super::Kind;
use crate::netlink::{Attributes, Malformed, Message};
use crate::{Family, abi};

/// How many hops an outer packet lives. The far end is one hop away for what is inside, however long the way is.
const TIME_TO_LIVE: u8 = 64;

/// Settings of a new IP in IPv4 device. Outer packets are not to be cut on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewIpTunnel {
    /// What is inside.
    pub inner: Family,
    /// The underlay address to send from and to listen at.
    pub local: Ipv4Addr,
}

impl NewIpTunnel {
    /// The kernel's name for the kind of device.
    pub(super) fn kind(inner: Family) -> &'static str {
        match inner {
            Family::V4 => "ipip",
            Family::V6 => "sit",
        }
    }

    pub(super) fn write(&self, data: &mut Message) {
        data.put(abi::IFLA_IPTUN_LOCAL, &self.local.octets());
        data.u8(abi::IFLA_IPTUN_TTL, TIME_TO_LIVE);
        data.u8(abi::IFLA_IPTUN_PMTUDISC, 1);
    }
}

pub(super) fn read(inner: Family, data: Attributes<'_>) -> Result<Kind, Malformed> {
    let (mut local, mut remote) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED);
    let (mut lives, mut uncut, mut collects) = (0, false, false);
    for attribute in data {
        let attribute = attribute?;
        match attribute.kind {
            abi::IFLA_IPTUN_LOCAL => local = attribute.array::<4>("an IPv4 address")?.into(),
            abi::IFLA_IPTUN_REMOTE => remote = attribute.array::<4>("an IPv4 address")?.into(),
            abi::IFLA_IPTUN_TTL => lives = attribute.u8()?,
            abi::IFLA_IPTUN_PMTUDISC => uncut = attribute.u8()? != 0,
            abi::IFLA_IPTUN_COLLECT_METADATA => collects = true,
            _ => {}
        }
    }
    let as_ours = remote.is_unspecified() && lives == TIME_TO_LIVE && uncut && !collects;
    Ok(Kind::IpTunnel { inner, local, as_ours })
}
