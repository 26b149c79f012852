//! The two internet protocols: [`IpVersion`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::KeyType;

/// Which of the two internet protocols an address field belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IpVersion {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpVersion {
    /// The version of an address.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The version of a network.
    #[must_use]
    pub fn of_net(net: IpNet) -> Self {
        Self::of(net.addr())
    }

    /// The set type of this version's addresses.
    #[must_use]
    pub fn key_type(self) -> KeyType {
        match self {
            Self::V4 => KeyType::Ipv4,
            Self::V6 => KeyType::Ipv6,
        }
    }

    /// The network of all link-local addresses.
    #[must_use]
    pub fn link_local(self) -> IpNet {
        let (address, prefix) = match self {
            Self::V4 => (IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16),
            Self::V6 => (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 10),
        };
        IpNet::new_assert(address, prefix)
    }

    /// The network of all multicast addresses.
    #[must_use]
    pub fn multicast(self) -> IpNet {
        let (address, prefix) = match self {
            Self::V4 => (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 4),
            Self::V6 => (IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8),
        };
        IpNet::new_assert(address, prefix)
    }
}
