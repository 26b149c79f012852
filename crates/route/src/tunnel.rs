//! Tunnels of a program: what leads into them in the kernel, and what the program has to be told.
//!
//! Read [`TunnelKind`], then [`TunnelDesign`]. A tunnel has a TUN device, with the base address of each of the node's pod
//! CIDRs like any tunnel's end, and a route to each peer's CIDRs that leaves by it. Which peer a packet is for the program
//! finds out by itself, so the kernel needs no neighbours.

use std::net::IpAddr;
use std::sync::Arc;

use cluster::{Backend, PublicKey, WireGuardKey};
use ipnet::IpNet;
use netstate::LinkName;

use crate::family::Family;

/// The wire formats of which a program makes tunnels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TunnelKind {
    /// The packet is the payload of a UDP datagram, by flannel's format.
    Udp,
    /// The packet is the payload of an IPv4 packet (RFC 2003, 4213).
    Ipip,
    /// WireGuard by a key of an even generation, as nodes have that know of one alone.
    WireGuard,
    /// The same by a key of an odd one: while keys are changed a node receives by both.
    WireGuardOdd,
}

/// A tunnel that the program is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelDesign {
    /// The TUN device.
    pub device: LinkName,
    /// Which generation the key is of by which this node is known; of no account but for WireGuard.
    pub generation: u32,
    /// The UDP port; of no account for [`TunnelKind::Ipip`].
    pub port: u16,
    /// The host's address that packets leave from.
    pub underlay: IpAddr,
    /// The device's MTU in bytes.
    pub mtu: u32,
    /// With whom it speaks.
    pub peers: Vec<TunnelPeer>,
}

/// A node at the other end of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelPeer {
    /// Its name.
    pub node: Arc<str>,
    /// Its underlay address.
    pub underlay: IpAddr,
    /// Its UDP port.
    pub port: u16,
    /// What is behind it.
    pub pod_cidrs: Vec<IpNet>,
    /// The largest packet to it, in bytes.
    pub mtu: u32,
    /// Its WireGuard key.
    pub public_key: Option<PublicKey>,
}

impl TunnelKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Udp, Self::Ipip, Self::WireGuard, Self::WireGuardOdd];

    /// The kind that a backend is, if it is one; of two keys that of the one in force.
    #[must_use]
    pub fn of(backend: &Backend) -> Option<Self> {
        match backend {
            Backend::Udp { .. } => Some(Self::Udp),
            Backend::Ipip => Some(Self::Ipip),
            Backend::WireGuard { key, .. } => Some(Self::by(*key)),
            Backend::Vxlan { .. } | Backend::HostGw | Backend::None | Backend::Other(_) => None,
        }
    }

    /// All kinds that a backend takes, which are two while a key of WireGuard gives way to the next.
    pub fn all_of(backend: &Backend) -> impl Iterator<Item = Self> {
        let first = Self::of(backend);
        first.into_iter().chain(backend.keys().skip(1).map(Self::by))
    }

    /// The kind of tunnel that a key is for.
    #[must_use]
    pub fn by(key: WireGuardKey) -> Self {
        if key.generation.is_multiple_of(2) { Self::WireGuard } else { Self::WireGuardOdd }
    }

    /// Whether it is one of WireGuard's.
    #[must_use]
    pub fn is_wireguard(self) -> bool {
        matches!(self, Self::WireGuard | Self::WireGuardOdd)
    }

    /// The name of its device.
    #[must_use]
    pub fn device(self) -> &'static str {
        match self {
            Self::Udp => "fairlead-udp",
            Self::Ipip => "fairlead-ipip",
            Self::WireGuard => "fairlead-wg",
            Self::WireGuardOdd => "fairlead-wg1",
        }
    }

    /// What people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Ipip => "ipip",
            Self::WireGuard | Self::WireGuardOdd => "wireguard",
        }
    }

    /// By what it is told apart from the others, which a name does not do: two of them are WireGuard.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::WireGuardOdd => "wireguard-odd",
            other => other.name(),
        }
    }

    /// What it adds to a packet on an underlay of that family, in bytes.
    pub(crate) fn overhead(self, underlay: Family) -> u32 {
        let network = match underlay {
            Family::V4 => 20,
            Family::V6 => 40,
        };
        match self {
            Self::Udp => network + 8,
            Self::Ipip => network,
            // Header, counter and tag.
            Self::WireGuard | Self::WireGuardOdd => network + 8 + 32,
        }
    }
}
