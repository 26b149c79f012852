//! Making links.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netstate::Mac;
use rustix::io::Errno;

use super::{Header, NewIpTunnel, NewIpvlan, NewMacvlan, NewVlan};
use crate::netlink::{Message, Purpose, Request, Socket};
use crate::{Error, Family, abi, wireguard};

/// A link to be made. Start with [`NewLink::new`] and set what matters:
/// `NewLink { mtu: Some(1450), up: true, ..NewLink::new("fairlead0", kind) }`.
#[derive(Debug, Clone)]
pub struct NewLink<'a> {
    /// Its name, 1 to 15 bytes.
    pub name: &'a str,
    /// What it is.
    pub kind: NewKind<'a>,
    /// Largest packet in bytes; `None` leaves the kernel's default.
    pub mtu: Option<u32>,
    /// Hardware address; `None` lets the kernel draw one.
    pub mac: Option<Mac>,
    /// Set up at once.
    pub up: bool,
    /// Bridge or VRF to become a port of, by index.
    pub master: Option<u32>,
    /// Group number, there from the first moment (an alias can only be given later). A veth's far end does not
    /// get it.
    pub group: Option<u32>,
    /// Namespace to be made in; `None` means the socket's. Must stay open until the request has been sent.
    pub namespace: Option<BorrowedFd<'a>>,
}

impl<'a> NewLink<'a> {
    /// A link that is down and has the kernel's defaults.
    pub fn new(name: &'a str, kind: NewKind<'a>) -> Self {
        Self { name, kind, mtu: None, mac: None, up: false, master: None, group: None, namespace: None }
    }
}

/// What to make.
#[derive(Debug, Clone)]
pub enum NewKind<'a> {
    /// A software bridge.
    Bridge(NewBridge),
    /// A virtual cable; the value describes its far end.
    Veth(NewPeer<'a>),
    /// A VXLAN tunnel end.
    Vxlan(NewVxlan),
    /// What puts packets into IPv4 packets.
    IpTunnel(NewIpTunnel),
    /// Another hardware address on a parent.
    Macvlan(NewMacvlan),
    /// Other IP addresses on a parent's hardware address.
    Ipvlan(NewIpvlan),
    /// What a parent carries with one tag.
    Vlan(NewVlan),
    /// A routing domain of its own for its ports; the value is its routing table.
    Vrf(u32),
    /// A kind that needs no settings, by the kernel's name for it ("ifb", "dummy").
    Plain(&'a str),
}

/// Settings of a new bridge; `None` leaves the kernel's default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NewBridge {
    /// Keep VLANs apart.
    pub vlan_filtering: Option<bool>,
    /// Follow multicast groups.
    pub multicast_snooping: Option<bool>,
}

/// The far end of a new veth pair. It starts down: the kernel refuses a far end that is up before it is paired.
#[derive(Debug, Clone, Copy)]
pub struct NewPeer<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its hardware address; `None` lets the kernel draw one.
    pub mac: Option<Mac>,
    /// Its largest packet; `None` takes the kernel's default, not the near end's.
    pub mtu: Option<u32>,
    /// The namespace it is made in; `None` means the near end's. Must stay open until the request has been sent.
    pub namespace: Option<BorrowedFd<'a>>,
}

impl<'a> NewPeer<'a> {
    /// A far end beside the near one.
    pub fn new(name: &'a str) -> Self {
        Self { name, mac: None, mtu: None, namespace: None }
    }
}

/// Settings of a new VXLAN device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewVxlan {
    /// Network identifier, 24 bits.
    pub id: u32,
    /// UDP destination port.
    pub port: u16,
    /// Underlay address to send from; its family is the underlay's.
    pub local: Option<IpAddr>,
    /// Underlay link to be bound to, by index.
    pub parent: Option<u32>,
    /// Learn addresses from traffic.
    pub learning: bool,
}

/// Makes a link. Its error for a taken name is [`Error::exists`](crate::Error::exists).
pub fn create(link: &NewLink<'_>) -> Request {
    encode(link, 0)
}

/// Makes a link and brings back a description of it, for [`Link::from_reply`](super::Link::from_reply), without
/// another request. It is what the link was *before* it joined its master. Kernels before 6.2 keep silent.
pub fn create_and_report(link: &NewLink<'_>) -> Request {
    encode(link, abi::NLM_F_ECHO)
}

/// Whether the kernel can make links of this kind ("macvlan"), without making one: it is asked for a link whose
/// hardware address is a group's and that sits on nothing. The first it refuses for every kind that checks
/// addresses, the second for those that do not; before either it says so when it does not know the kind. A module
/// that has the kind is loaded, as by a real request.
///
/// # Errors
/// When the kernel refuses for another reason, such as missing rights.
pub fn is_supported(socket: &mut Socket, kind: &str) -> Result<bool, Error> {
    let flags = abi::NLM_F_CREATE | abi::NLM_F_EXCL;
    let mut message = Message::new(abi::RTM_NEWLINK, flags, &Header::default().bytes());
    message.put(abi::IFLA_ADDRESS, &[1, 0, 0, 0, 0, 0]);
    message.nest(abi::IFLA_LINKINFO, |info| {
        info.text(abi::IFLA_INFO_KIND, kind);
    });
    match socket.execute(Request::new(message, Purpose::new("look for link kind", kind))) {
        Err(error) if error.is_unsupported() => Ok(false),
        Err(error) if matches!(error.errno(), Some(Errno::ADDRNOTAVAIL | Errno::INVAL)) => Ok(true),
        Err(error) => Err(error),
        Ok(()) => Ok(true),
    }
}

fn encode(link: &NewLink<'_>, flags: u16) -> Request {
    let up = if link.up { abi::IFF_UP } else { 0 };
    let header = Header { flags: up, changed: up, ..Header::default() };
    let flags = flags | abi::NLM_F_CREATE | abi::NLM_F_EXCL;
    let mut message = Message::new(abi::RTM_NEWLINK, flags, &header.bytes());
    common(&mut message, link.name, link.mac, link.mtu);
    if let Some(master) = link.master {
        message.u32(abi::IFLA_MASTER, master);
    }
    if let Some(group) = link.group {
        message.u32(abi::IFLA_GROUP, group);
    }
    if let Some(parent) = link.kind.parent() {
        message.u32(abi::IFLA_LINK, parent);
    }
    place(&mut message, link.namespace);
    message.nest(abi::IFLA_LINKINFO, |info| {
        info.text(abi::IFLA_INFO_KIND, link.kind.name());
        link.kind.data(info);
    });
    let purpose = Purpose::new(link.kind.operation(), link.name);
    Request::new(message, link.kind.needs().into_iter().fold(purpose, Purpose::needing))
}

fn common(message: &mut Message, name: &str, mac: Option<Mac>, mtu: Option<u32>) {
    message.text(abi::IFLA_IFNAME, name);
    if let Some(Mac(bytes)) = mac {
        message.put(abi::IFLA_ADDRESS, &bytes);
    }
    if let Some(mtu) = mtu {
        message.u32(abi::IFLA_MTU, mtu);
    }
}

fn place(message: &mut Message, namespace: Option<BorrowedFd<'_>>) {
    if let Some(namespace) = namespace {
        message.put(abi::IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
    }
}

impl NewKind<'_> {
    /// The kernel's name for the kind.
    pub fn name(&self) -> &str {
        match self {
            Self::Bridge(_) => "bridge",
            Self::Veth(_) => "veth",
            Self::Vxlan(_) => "vxlan",
            Self::IpTunnel(tunnel) => NewIpTunnel::kind(tunnel.inner),
            Self::Macvlan(_) => "macvlan",
            Self::Ipvlan(_) => "ipvlan",
            Self::Vlan(_) => "vlan",
            Self::Vrf(_) => "vrf",
            Self::Plain(name) => name,
        }
    }

    fn operation(&self) -> &'static str {
        match self {
            Self::Bridge(_) => "create bridge",
            Self::Veth(_) => "create veth pair",
            Self::Vxlan(_) => "create vxlan device",
            Self::IpTunnel(_) => "create IP in IP device",
            Self::Macvlan(_) => "create macvlan link",
            Self::Ipvlan(_) => "create ipvlan link",
            Self::Vlan(_) => "create vlan link",
            Self::Vrf(_) => "create vrf device",
            Self::Plain(_) => "create link",
        }
    }

    fn needs(&self) -> Option<&'static str> {
        match self {
            Self::Bridge(NewBridge { vlan_filtering: Some(true), .. }) => {
                Some("the kernel needs CONFIG_BRIDGE and CONFIG_BRIDGE_VLAN_FILTERING")
            }
            Self::Bridge(_) => Some("the kernel needs CONFIG_BRIDGE"),
            Self::Veth(_) => Some("the kernel needs CONFIG_VETH"),
            Self::Vxlan(_) => Some("the kernel needs CONFIG_VXLAN"),
            Self::IpTunnel(NewIpTunnel { inner: Family::V4, .. }) => Some("the kernel needs CONFIG_NET_IPIP"),
            Self::IpTunnel(_) => Some("the kernel needs CONFIG_IPV6_SIT"),
            Self::Macvlan(_) => Some("the kernel needs CONFIG_MACVLAN"),
            Self::Ipvlan(_) => Some("the kernel needs CONFIG_IPVLAN"),
            Self::Vlan(_) => Some("the kernel needs CONFIG_VLAN_8021Q"),
            Self::Vrf(_) => Some("the kernel needs CONFIG_NET_VRF"),
            Self::Plain("dummy") => Some("the kernel needs CONFIG_DUMMY"),
            Self::Plain(wireguard::KIND) => Some("the kernel needs CONFIG_WIREGUARD"),
            Self::Plain("ifb") => Some("the kernel needs CONFIG_IFB"),
            Self::Plain(_) => None,
        }
    }

    /// The link it sits on.
    fn parent(&self) -> Option<u32> {
        match self {
            Self::Vxlan(vxlan) => vxlan.parent,
            Self::Macvlan(macvlan) => Some(macvlan.parent),
            Self::Ipvlan(ipvlan) => Some(ipvlan.parent),
            Self::Vlan(vlan) => Some(vlan.parent),
            Self::Bridge(_) | Self::Veth(_) | Self::IpTunnel(_) | Self::Vrf(_) | Self::Plain(_) => None,
        }
    }

    /// Writes `IFLA_INFO_DATA`, where the kind has any.
    fn data(&self, info: &mut Message) {
        if matches!(self, Self::Plain(_)) {
            return;
        }
        info.nest(abi::IFLA_INFO_DATA, |data| match self {
            Self::Bridge(bridge) => bridge.write(data),
            Self::Veth(peer) => peer.write(data),
            Self::Vxlan(vxlan) => vxlan.write(data),
            Self::IpTunnel(tunnel) => tunnel.write(data),
            Self::Macvlan(macvlan) => macvlan.write(data),
            Self::Ipvlan(ipvlan) => ipvlan.write(data),
            Self::Vlan(vlan) => vlan.write(data),
            Self::Vrf(table) => drop(data.u32(abi::IFLA_VRF_TABLE, *table)),
            Self::Plain(_) => {}
        });
    }
}

impl NewBridge {
    fn write(&self, data: &mut Message) {
        if let Some(filtering) = self.vlan_filtering {
            data.u8(abi::IFLA_BR_VLAN_FILTERING, filtering.into());
        }
        if let Some(snooping) = self.multicast_snooping {
            data.u8(abi::IFLA_BR_MCAST_SNOOPING, snooping.into());
        }
    }
}

impl NewPeer<'_> {
    fn write(&self, data: &mut Message) {
        data.nest(abi::VETH_INFO_PEER, |peer| {
            peer.raw(&Header::default().bytes());
            common(peer, self.name, self.mac, self.mtu);
            place(peer, self.namespace);
        });
    }
}

impl NewVxlan {
    fn write(&self, data: &mut Message) {
        data.u32(abi::IFLA_VXLAN_ID, self.id);
        data.be16(abi::IFLA_VXLAN_PORT, self.port);
        data.u8(abi::IFLA_VXLAN_LEARNING, self.learning.into());
        if let Some(parent) = self.parent {
            data.u32(abi::IFLA_VXLAN_LINK, parent);
        }
        match self.local {
            Some(local @ IpAddr::V4(_)) => data.ip(abi::IFLA_VXLAN_LOCAL, local),
            Some(local @ IpAddr::V6(_)) => data.ip(abi::IFLA_VXLAN_LOCAL6, local),
            None => data,
        };
    }
}
