//! Changing and deleting links.

use std::os::fd::{AsRawFd, BorrowedFd};

use netstate::Mac;

use super::{Header, Target};
use crate::abi;
use crate::netlink::{Message, Purpose, Request};

/// What to change; `None` leaves as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change<'a> {
    /// Administratively up or down.
    pub up: Option<bool>,
    /// Largest packet in bytes.
    pub mtu: Option<u32>,
    /// Hardware address. Giving a bridge its own present address pins it.
    pub mac: Option<Mac>,
    /// Free text; empty removes it.
    pub alias: Option<&'a str>,
    /// Bridge or VRF to become a port of, by index; 0 for none.
    pub master: Option<u32>,
    /// Receive frames for others too.
    pub promiscuous: Option<bool>,
    /// Receive all multicast frames.
    pub all_multicast: Option<bool>,
    /// Group number, for [`delete_group`].
    pub group: Option<u32>,
    /// Packets that may wait for transmission.
    pub transmit_queue_length: Option<u32>,
    /// How IPv6 link-local addresses come about.
    pub address_generation: Option<AddressGeneration>,
    /// The sysctl `net/ipv4/conf/LINK/arp_notify`: tell the neighbours when the link comes up or changes its
    /// hardware address.
    pub arp_notify: Option<bool>,
    /// Whether a bridge keeps VLANs apart.
    pub vlan_filtering: Option<bool>,
}

/// How a link gets its IPv6 link-local address (`IFLA_INET6_ADDR_GEN_MODE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressGeneration {
    /// From the hardware address.
    Eui64,
    /// Not at all.
    None,
    /// From a secret that must have been set (RFC 7217).
    StablePrivacy,
    /// From a secret that the kernel draws.
    Random,
}

/// Changes a link.
pub fn change<'a>(target: impl Into<Target<'a>>, change: &Change<'_>) -> Request {
    let target = target.into();
    let mut header = Header::default();
    let flags = [
        (change.up, abi::IFF_UP),
        (change.promiscuous, abi::IFF_PROMISC),
        (change.all_multicast, abi::IFF_ALLMULTI),
    ];
    for (wanted, flag) in flags {
        if let Some(on) = wanted {
            header.changed |= flag;
            header.flags |= if on { flag } else { 0 };
        }
    }
    // Kind data is taken by RTM_NEWLINK alone, which without NLM_F_CREATE changes an existing link.
    let kind = if change.vlan_filtering.is_some() { abi::RTM_NEWLINK } else { abi::RTM_SETLINK };
    let mut message = target.message(kind, 0, header);
    write(&mut message, change);
    let purpose = Purpose::new("change link", target.object());
    let purpose = match change.vlan_filtering {
        Some(_) => purpose.needing("the kernel needs CONFIG_BRIDGE_VLAN_FILTERING"),
        None => purpose,
    };
    Request::new(message, purpose)
}

fn write(message: &mut Message, change: &Change<'_>) {
    if let Some(Mac(bytes)) = change.mac {
        message.put(abi::IFLA_ADDRESS, &bytes);
    }
    if let Some(alias) = change.alias {
        message.put(abi::IFLA_IFALIAS, alias.as_bytes());
    }
    let numbers = [
        (abi::IFLA_MTU, change.mtu),
        (abi::IFLA_MASTER, change.master),
        (abi::IFLA_GROUP, change.group),
        (abi::IFLA_TXQLEN, change.transmit_queue_length),
    ];
    for (kind, value) in numbers {
        if let Some(value) = value {
            message.u32(kind, value);
        }
    }
    if change.arp_notify.is_some() || change.address_generation.is_some() {
        message.nest(abi::IFLA_AF_SPEC, |families| write_families(families, change));
    }
    if let Some(filtering) = change.vlan_filtering {
        message.nest(abi::IFLA_LINKINFO, |info| {
            info.text(abi::IFLA_INFO_KIND, "bridge").nest(abi::IFLA_INFO_DATA, |data| {
                data.u8(abi::IFLA_BR_VLAN_FILTERING, filtering.into());
            });
        });
    }
}

/// What belongs to an address family.
fn write_families(families: &mut Message, change: &Change<'_>) {
    if let Some(on) = change.arp_notify {
        families.nest(libc::AF_INET as u16, |family| {
            family.nest(abi::IFLA_INET_CONF, |sysctls| {
                sysctls.u32(abi::IPV4_DEVCONF_ARP_NOTIFY, on.into());
            });
        });
    }
    if let Some(mode) = change.address_generation {
        families.nest(libc::AF_INET6 as u16, |family| {
            family.u8(abi::IFLA_INET6_ADDR_GEN_MODE, mode as u8);
        });
    }
}

/// Renames a link, which needs its index: two names in one message would be ambiguous.
pub fn rename(index: u32, name: &str) -> Request {
    let mut message = Message::new(abi::RTM_SETLINK, 0, &Header { index, ..Header::default() }.bytes());
    message.text(abi::IFLA_IFNAME, name);
    Request::new(message, Purpose::new("rename link", format!("number {index} to {name}")))
}

/// Moves a link to another namespace, which sets it down, and renames it there if a name is given. Costs a grace
/// period of the kernel (20 ms). The namespace must stay open until the request has been sent.
///
/// The kernel moves first and renames then: when the new name is taken there and the old one is not, the link *has*
/// moved, under its old name, although this is refused.
pub fn relocate(index: u32, namespace: BorrowedFd<'_>, name: Option<&str>) -> Request {
    let mut message = Message::new(abi::RTM_SETLINK, 0, &Header { index, ..Header::default() }.bytes());
    message.put(abi::IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
    if let Some(name) = name {
        message.text(abi::IFLA_IFNAME, name);
    }
    let object = match name {
        Some(name) => format!("number {index} to another namespace as {name}"),
        None => format!("number {index} to another namespace"),
    };
    Request::new(message, Purpose::new("move link", object))
}

/// Deletes a link; with one end of a veth pair goes the other.
pub fn delete<'a>(target: impl Into<Target<'a>>) -> Request {
    let target = target.into();
    let message = target.message(abi::RTM_DELLINK, 0, Header::default());
    Request::new(message, Purpose::new("delete link", target.object()))
}

/// Deletes all links of a group ([`Change::group`]) for the price of one. Group 0 holds every link nobody put
/// elsewhere, hardware included, so the kernel is asked to refuse it.
pub fn delete_group(group: u32) -> Request {
    let mut message = Message::new(abi::RTM_DELLINK, 0, &Header::default().bytes());
    if group != 0 {
        message.u32(abi::IFLA_GROUP, group);
    }
    Request::new(message, Purpose::new("delete links of group", group.to_string()))
}
