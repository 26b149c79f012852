//! Links: what they are, how they are found, made, changed and deleted.
//!
//! Read [`Link`] first (what the kernel says about one), then [`NewLink`] (what to make) and [`Change`] (what to
//! change). Functions that change return a [`Request`] for a [`Batch`](crate::netlink::Batch); functions that
//! read ask at once.
//!
//! A veth pair is made with its far end *inside* the pod's namespace by one message ([`NewPeer`]): about 1 ms.
//! Moving a link afterwards costs a kernel grace period (20 ms), so only what cannot be made anew is moved
//! ([`relocate`]). Deleting costs
//! such a period too, for any number of links in one request: [`delete_group`].

mod change;
mod create;
mod parse;
mod port;
mod tunnel;
mod upper;
mod vlan;

use std::net::{IpAddr, Ipv4Addr};

use netstate::Mac;
use rustix::io::Errno;

use crate::abi;
use crate::netlink::{Message, Purpose, Request, Socket};
use crate::{Error, Family};

pub use change::{AddressGeneration, Change, change, delete, delete_group, relocate, rename};
pub use create::{NewBridge, NewKind, NewLink, NewPeer, NewVxlan, create, create_and_report, is_supported};
pub use port::{PortChange, change_port};
pub use tunnel::NewIpTunnel;
pub use upper::{IpvlanIsolation, IpvlanMode, MacvlanMode, NewIpvlan, NewMacvlan, NewVlan, VlanProtocol};
pub use vlan::{PortVlans, Vlan, VlanSide, add_vlans, delete_vlans, list_vlans};

/// A link as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Number within its namespace.
    pub index: u32,
    /// Name within its namespace.
    pub name: String,
    /// What it is, with the settings of its kind.
    pub kind: Kind,
    /// Hardware address, for links that have an Ethernet-sized one.
    pub mac: Option<Mac>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// `IFF_*` flags; the common ones have methods.
    pub flags: u32,
    /// Whether frames can pass.
    pub operational_state: OperationalState,
    /// The bridge (or bond, or VRF) it is a port of.
    pub master: Option<u32>,
    /// The link it sits on: the underlay of a tunnel, the far end of a veth. Within `peer_namespace` if given.
    pub parent: Option<u32>,
    /// The kernel's id, in our namespace, of the namespace that holds `parent`; `None` means our own.
    pub peer_namespace: Option<i32>,
    /// Free text; carries our mark of ownership.
    pub alias: Option<String>,
    /// Packets that may wait for transmission.
    pub transmit_queue_length: u32,
    /// How many users want it promiscuous.
    pub promiscuity: u32,
    /// Group number, by which links are deleted together.
    pub group: u32,
    /// Whether IPv6 is on (sysctl `disable_ipv6`); `None` for a link that has none: the kernel lacks it, or packets are
    /// too small for it.
    pub ipv6: Option<bool>,
    /// Settings as a port of a bridge.
    pub port: Option<Port>,
}

/// What a link is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Loopback or hardware: the kernel names no kind.
    Device,
    /// A software bridge.
    Bridge {
        /// Whether it keeps VLANs apart.
        vlan_filtering: bool,
    },
    /// One end of a virtual cable.
    Veth,
    /// A VXLAN tunnel end.
    Vxlan {
        /// Network identifier.
        id: u32,
        /// UDP destination port.
        port: u16,
        /// Underlay address it sends from.
        local: Option<IpAddr>,
        /// Whether it learns addresses from traffic.
        learning: bool,
    },
    /// Puts packets into IPv4 packets.
    IpTunnel {
        /// What is inside.
        inner: Family,
        /// Underlay address it sends from; unspecified for any.
        local: Ipv4Addr,
        /// Whether the rest of it is as [`NewIpTunnel`] makes it: no far end, a fixed time to live, and nothing cut.
        as_ours: bool,
    },
    /// Another hardware address on its parent.
    Macvlan {
        /// Who can talk to whom; `None` for a mode that is not known here.
        mode: Option<MacvlanMode>,
        /// Broadcast frames that may wait, as it was asked for.
        broadcast_queue_length: u32,
    },
    /// Other IP addresses on its parent's hardware address.
    Ipvlan {
        /// Whether it switches or routes; `None` for a mode that is not known here.
        mode: Option<IpvlanMode>,
        /// Who can talk to whom.
        isolation: IpvlanIsolation,
    },
    /// What its parent carries with one tag.
    Vlan {
        /// Identifier.
        id: u16,
        /// Which kind of tag.
        protocol: VlanProtocol,
    },
    /// A routing domain of its own for its ports.
    Vrf {
        /// Its routing table.
        table: u32,
    },
    /// A link whose far end is a program.
    Tun {
        /// Whether it carries Ethernet frames (TAP), and not bare packets.
        tap: bool,
        /// Whether several programs may hold it at the same time.
        multi_queue: bool,
        /// The user who may hold it.
        owner: Option<u32>,
        /// The group who may hold it.
        group: Option<u32>,
    },
    /// Any other kind, by the kernel's name for it.
    Other(String),
}

impl Kind {
    /// The kernel's name for the kind; `None` for hardware and loopback.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Device => None,
            Self::Bridge { .. } => Some("bridge"),
            Self::Veth => Some("veth"),
            Self::Vxlan { .. } => Some("vxlan"),
            Self::IpTunnel { inner, .. } => Some(NewIpTunnel::kind(*inner)),
            Self::Macvlan { .. } => Some("macvlan"),
            Self::Ipvlan { .. } => Some("ipvlan"),
            Self::Vlan { .. } => Some("vlan"),
            Self::Vrf { .. } => Some("vrf"),
            Self::Tun { .. } => Some("tun"),
            Self::Other(name) => Some(name),
        }
    }
}

/// Whether a link can carry frames (RFC 2863).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationalState {
    /// The driver does not say.
    Unknown,
    /// Down, absent, testing, or a lower layer is down.
    Down,
    /// Waiting for something outside.
    Dormant,
    /// Carries frames.
    Up,
}

/// A link's settings as a port of a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// `BR_STATE_*`: 0 disabled, 3 forwarding.
    pub state: u8,
    /// Frames may go back out where they came in.
    pub hairpin: bool,
    /// Cannot talk to other isolated ports.
    pub isolated: bool,
    /// Learns addresses from traffic.
    pub learning: bool,
    /// Answers ARP and neighbour discovery on behalf of hosts behind it.
    pub neighbour_suppression: bool,
}

impl Link {
    /// Administratively up.
    pub fn is_up(&self) -> bool {
        self.flags & abi::IFF_UP != 0
    }

    /// Up and with carrier.
    pub fn is_running(&self) -> bool {
        self.flags & abi::IFF_RUNNING != 0
    }

    /// Something is plugged in at the other end, whatever the kernel has made of it so far.
    pub fn has_carrier(&self) -> bool {
        self.flags & abi::IFF_LOWER_UP != 0
    }

    /// The loopback device.
    pub fn is_loopback(&self) -> bool {
        self.flags & abi::IFF_LOOPBACK != 0
    }

    /// Receives frames for others too (what `ip link set promisc on` sets).
    pub fn is_promiscuous(&self) -> bool {
        self.flags & abi::IFF_PROMISC != 0
    }

    /// Receives all multicast frames (what `ip link set allmulticast on` sets).
    pub fn is_all_multicast(&self) -> bool {
        self.flags & abi::IFF_ALLMULTI != 0
    }
}

/// Bytes of a link's name, without the closing NUL; its alternative names may be longer.
const LONGEST_NAME: usize = 15;

/// A link, by number or by name. Naming saves the look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// By index.
    Index(u32),
    /// By name, or by one of its alternative names.
    Name(&'a str),
}

impl From<u32> for Target<'_> {
    fn from(index: u32) -> Self {
        Self::Index(index)
    }
}

impl<'a> From<&'a str> for Target<'a> {
    fn from(name: &'a str) -> Self {
        Self::Name(name)
    }
}

impl<'a> From<&'a String> for Target<'a> {
    fn from(name: &'a String) -> Self {
        Self::Name(name)
    }
}

impl Target<'_> {
    fn object(self) -> String {
        match self {
            Self::Index(index) => format!("number {index}"),
            Self::Name(name) => name.to_owned(),
        }
    }

    /// Starts a link message about this link.
    fn message(self, kind: u16, flags: u16, header: Header) -> Message {
        match self {
            Self::Index(index) => Message::new(kind, flags, &Header { index, ..header }.bytes()),
            Self::Name(name) => {
                let mut message = Message::new(kind, flags, &header.bytes());
                let kind = if name.len() > LONGEST_NAME { abi::IFLA_ALT_IFNAME } else { abi::IFLA_IFNAME };
                message.text(kind, name);
                message
            }
        }
    }
}

/// Which links a listing is about; the kernel does the choosing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filter<'a> {
    /// Only ports of this bridge.
    pub master: Option<u32>,
    /// Only links of this kind, by the kernel's name ("veth").
    pub kind: Option<&'a str>,
}

/// One link, or `None` when there is none of that name or number.
///
/// # Errors
/// When the kernel refuses for another reason.
pub fn find<'a>(socket: &mut Socket, target: impl Into<Target<'a>>) -> Result<Option<Link>, Error> {
    match socket.ask(&look_up(target), Link::from_reply) {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.errno() == Some(Errno::NODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The request behind [`find`], for use within a batch; decode its answer with [`Link::from_reply`].
pub fn look_up<'a>(target: impl Into<Target<'a>>) -> Request {
    let target = target.into();
    let mut message = target.message(abi::RTM_GETLINK, 0, Header::default());
    message.u32(abi::IFLA_EXT_MASK, abi::RTEXT_FILTER_SKIP_STATS);
    Request::new(message, Purpose::new("find link", target.object()))
}

/// How many packets a link was to send and could not, by its own count; `None` if there is no such link. WireGuard's are
/// those that are behind no peer.
///
/// # Errors
/// When the kernel refuses.
pub fn unsent<'a>(socket: &mut Socket, target: impl Into<Target<'a>>) -> Result<Option<u64>, Error> {
    let target = target.into();
    let message = target.message(abi::RTM_GETLINK, 0, Header::default());
    let request = Request::new(message, Purpose::new("read what was counted of link", target.object()));
    match socket.ask(&request, parse::unsent) {
        Ok(count) => Ok(Some(count)),
        Err(error) if error.errno() == Some(Errno::NODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the kernel has links of this kind that needs no settings, by the kernel's name for it (and loads its
/// module, if it is one). Asks for one with a name that cannot be.
///
/// # Errors
/// When it has not, or the question was refused for another reason.
pub fn probe(socket: &mut Socket, kind: &str) -> Result<(), Error> {
    match socket.execute(create(&NewLink::new(".", NewKind::Plain(kind)))) {
        Err(error) if error.errno() == Some(Errno::INVAL) => Ok(()),
        other => other,
    }
}

/// All links that pass the filter.
///
/// # Errors
/// When the kernel refuses.
pub fn list(socket: &mut Socket, filter: Filter<'_>) -> Result<Vec<Link>, Error> {
    let mut message = Message::new(abi::RTM_GETLINK, 0, &Header::default().bytes());
    message.u32(abi::IFLA_EXT_MASK, abi::RTEXT_FILTER_SKIP_STATS);
    if let Some(master) = filter.master {
        message.u32(abi::IFLA_MASTER, master);
    }
    if let Some(kind) = filter.kind {
        message.nest(abi::IFLA_LINKINFO, |info| {
            info.text(abi::IFLA_INFO_KIND, kind);
        });
    }
    let request = Request::new(message, Purpose::new("list", "links"));
    let wanted = |link: &Link| {
        // Kernels before strict checking (4.20) list everything.
        filter.master.is_none_or(|master| link.master == Some(master))
            && filter.kind.is_none_or(|kind| link.kind.name() == Some(kind))
    };
    socket.dump(&request, |reply| Link::from_reply(reply).map(|link| Some(link).filter(wanted)))
}

/// `struct ifinfomsg`: family (u8), padding, type (u16), index (i32), flags (u32), mask of changed flags (u32).
#[derive(Debug, Clone, Copy, Default)]
struct Header {
    family: u8,
    index: u32,
    flags: u32,
    changed: u32,
}

impl Header {
    const SIZE: usize = 16;

    fn bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0] = self.family;
        bytes[4..8].copy_from_slice(&self.index.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.changed.to_ne_bytes());
        bytes
    }
}
