//! Links that sit on another one (macvlan, ipvlan, vlan): their settings, to be written and as they are read.
//!
//! Read [`NewMacvlan`], [`NewIpvlan`] and [`NewVlan`]: each names its parent by index *in the socket's
//! namespace*, whatever namespace the new link itself is made in. That is how a pod gets a link on one of the
//! host's without anything being moved: one message through the host's socket, with
//! [`NewLink::namespace`](super::NewLink::namespace).
//! Sources: linux/if_link.h; the modes' numbers are those of the kernel.

use crate::abi;
use crate::netlink::{Attributes, Malformed, Message};

/// Settings of a new macvlan: another hardware address on the parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewMacvlan {
    /// The link it sits on, by index in the socket's namespace.
    pub parent: u32,
    /// Who of those on one parent can talk to whom.
    pub mode: MacvlanMode,
    /// Broadcast frames that may wait to be handed out; `None` leaves the kernel's default. The parent takes the
    /// largest value that any of its macvlans asks for.
    pub broadcast_queue_length: Option<u32>,
}

/// Who of the macvlans on one parent can talk to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MacvlanMode {
    /// Nobody with anybody.
    Private = 1,
    /// Through a switch that sends frames back.
    Vepa = 2,
    /// Directly.
    Bridge = 4,
    /// The only one takes the parent over.
    Passthru = 8,
    /// Only from listed hardware addresses.
    Source = 16,
}

impl MacvlanMode {
    /// Its name in the tools and in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Vepa => "vepa",
            Self::Bridge => "bridge",
            Self::Passthru => "passthru",
            Self::Source => "source",
        }
    }

    fn from_number(number: u32) -> Option<Self> {
        [Self::Private, Self::Vepa, Self::Bridge, Self::Passthru, Self::Source]
            .into_iter()
            .find(|mode| *mode as u32 == number)
    }
}

/// Settings of a new ipvlan: other IP addresses on the parent's hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewIpvlan {
    /// The link it sits on, by index in the socket's namespace.
    pub parent: u32,
    /// Whether it switches or routes. All ipvlans of one parent share it; the latest wins.
    pub mode: IpvlanMode,
    /// Who of those on one parent can talk to whom.
    pub isolation: IpvlanIsolation,
}

/// Whether an ipvlan switches or routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpvlanMode {
    /// Switches; neighbours are resolved inside.
    L2 = 0,
    /// Routes; no broadcast, no neighbour resolution inside.
    L3 = 1,
    /// As L3, and the host's packet filter sees the traffic.
    L3s = 2,
}

impl IpvlanMode {
    /// Its name in the tools and in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Self::L2 => "l2",
            Self::L3 => "l3",
            Self::L3s => "l3s",
        }
    }

    fn from_number(number: u16) -> Option<Self> {
        [Self::L2, Self::L3, Self::L3s].into_iter().find(|mode| *mode as u16 == number)
    }
}

/// Who of the ipvlans on one parent can talk to whom.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IpvlanIsolation {
    /// Directly.
    #[default]
    Bridge = 0,
    /// Nobody with anybody.
    Private = 1,
    /// Through a switch that sends frames back.
    Vepa = 2,
}

/// Settings of a new VLAN link: what the parent carries with this tag. The kernel allows one per parent, protocol
/// and identifier, in whatever namespace it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewVlan {
    /// The link it sits on, by index in the socket's namespace.
    pub parent: u32,
    /// Identifier, 0 to 4094.
    pub id: u16,
    /// Which kind of tag.
    pub protocol: VlanProtocol,
}

/// Which kind of tag a VLAN's frames carry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum VlanProtocol {
    /// IEEE 802.1Q, the usual one.
    #[default]
    Ieee8021Q = 0x8100,
    /// IEEE 802.1ad, the outer one of two.
    Ieee8021Ad = 0x88a8,
}

impl NewMacvlan {
    pub(super) fn write(&self, data: &mut Message) {
        data.u32(abi::IFLA_MACVLAN_MODE, self.mode as u32);
        if let Some(length) = self.broadcast_queue_length {
            data.u32(abi::IFLA_MACVLAN_BC_QUEUE_LEN, length);
        }
    }
}

impl NewIpvlan {
    pub(super) fn write(&self, data: &mut Message) {
        data.u16(abi::IFLA_IPVLAN_MODE, self.mode as u16);
        data.u16(abi::IFLA_IPVLAN_FLAGS, self.isolation as u16);
    }
}

impl NewVlan {
    pub(super) fn write(&self, data: &mut Message) {
        data.u16(abi::IFLA_VLAN_ID, self.id);
        data.be16(abi::IFLA_VLAN_PROTOCOL, self.protocol as u16);
    }
}

/// Mode (`None` for one that is not known here) and queue length of a macvlan.
pub(super) fn macvlan(data: Attributes<'_>) -> Result<(Option<MacvlanMode>, u32), Malformed> {
    let (mut mode, mut queue) = (None, 0);
    for attribute in data {
        let attribute = attribute?;
        match attribute.kind {
            abi::IFLA_MACVLAN_MODE => mode = MacvlanMode::from_number(attribute.u32()?),
            abi::IFLA_MACVLAN_BC_QUEUE_LEN => queue = attribute.u32()?,
            _ => {}
        }
    }
    Ok((mode, queue))
}

/// Mode and isolation of an ipvlan.
pub(super) fn ipvlan(data: Attributes<'_>) -> Result<(Option<IpvlanMode>, IpvlanIsolation), Malformed> {
    let (mut mode, mut isolation) = (None, IpvlanIsolation::Bridge);
    for attribute in data {
        let attribute = attribute?;
        match attribute.kind {
            abi::IFLA_IPVLAN_MODE => mode = IpvlanMode::from_number(attribute.u16()?),
            abi::IFLA_IPVLAN_FLAGS => {
                isolation = match attribute.u16()? {
                    1 => IpvlanIsolation::Private,
                    2 => IpvlanIsolation::Vepa,
                    _ => IpvlanIsolation::Bridge,
                }
            }
            _ => {}
        }
    }
    Ok((mode, isolation))
}

/// Identifier and kind of tag of a VLAN link.
pub(super) fn vlan(data: Attributes<'_>) -> Result<(u16, VlanProtocol), Malformed> {
    let (mut id, mut protocol) = (0, VlanProtocol::Ieee8021Q);
    for attribute in data {
        let attribute = attribute?;
        match attribute.kind {
            abi::IFLA_VLAN_ID => id = attribute.u16()?,
            abi::IFLA_VLAN_PROTOCOL if attribute.be16()? == VlanProtocol::Ieee8021Ad as u16 => {
                protocol = VlanProtocol::Ieee8021Ad;
            }
            _ => {}
        }
    }
    Ok((id, protocol))
}
