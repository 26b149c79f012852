//! Which node carries which pods, and how to reach it.
//!
//! A [`Claim`] is the right to a pod CIDR: a store creates it only if nobody holds it, so two nodes can
//! never hold one CIDR. A [`Lease`] is the node's word to its peers: my pods are in these CIDRs, and this is
//! the way to me. Claims are taken before the lease is written, and outlive the agent's restarts.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;

/// What a node tells its peers: the pods it carries, and the way to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The node.
    pub node: Arc<str>,
    /// The pod CIDRs it carries. New pods get addresses of the [first of each family](Self::current); further ones are
    /// [of before](Self::retained), and carried for the pods that still run there.
    pub pod_cidrs: Box<[IpNet]>,
    /// Its addresses in the network that joins the nodes, at most one of each family.
    pub underlay: Box<[IpAddr]>,
    /// How packets to its pods travel.
    pub backend: Backend,
    /// The largest packet, in bytes, that its pods send.
    pub mtu: u32,
    /// What it has to do with nodes of flannel.
    pub flannel: Flannel,
}

/// What a node has to do with flannel, whose nodes may stand in the same cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flannel {
    /// Nothing: only Fairlead's nodes hear of it.
    #[default]
    Apart,
    /// Flannel's nodes are told of it as well, where the store is one that they read.
    Told,
    /// They were told, and somebody has written other words over that since.
    Overwritten,
    /// It is one of flannel's. It knows its one backend, and does not tell on which port its peers are to reach it: they
    /// take their own.
    Member {
        /// The link address of its tunnel over IPv6, where it has one: see [`Lease::mac_over_ipv6`].
        mac_over_ipv6: Option<MacAddress>,
    },
}

impl Flannel {
    /// Whether the node is one of flannel's.
    #[must_use]
    pub fn is_member(self) -> bool {
        matches!(self, Self::Member { .. })
    }
}

impl Lease {
    /// The pod CIDRs that new pods get addresses of: one of each family.
    pub fn current(&self) -> impl Iterator<Item = IpNet> {
        self.pod_cidrs.iter().copied().filter(|cidr| !self.is_retained(cidr))
    }

    /// The pod CIDRs that the node had before, and that pods of it still have addresses of.
    pub fn retained(&self) -> impl Iterator<Item = IpNet> {
        self.pod_cidrs.iter().copied().filter(|cidr| self.is_retained(cidr))
    }

    /// The link address of the node's other VXLAN tunnel, none if it has no other one.
    ///
    /// flannel carries IPv6 pods over IPv6, by a tunnel beside that for IPv4. A node of Fairlead's that flannel's nodes
    /// are told of has that one for them, where it has pods and an underlay of both families; among themselves
    /// Fairlead's nodes have one tunnel for both.
    #[must_use]
    pub fn mac_over_ipv6(&self) -> Option<MacAddress> {
        match (self.flannel, &self.backend) {
            (Flannel::Member { mac_over_ipv6 }, _) => mac_over_ipv6,
            (Flannel::Told | Flannel::Overwritten, Backend::Vxlan { mac, .. }) => {
                self.has_both_families().then(|| mac.over_ipv6())
            }
            _ => None,
        }
    }

    /// Whether there are pods and an underlay of both families.
    #[must_use]
    pub fn has_both_families(&self) -> bool {
        let both = [true, false];
        both.iter().all(|is_ipv4| {
            self.pod_cidrs.iter().any(|cidr| cidr.addr().is_ipv4() == *is_ipv4)
                && self.underlay.iter().any(|address| address.is_ipv4() == *is_ipv4)
        })
    }

    /// Whether a CIDR of this lease is one of before.
    pub fn is_retained(&self, cidr: &IpNet) -> bool {
        let of_family = |other: &&IpNet| other.addr().is_ipv4() == cidr.addr().is_ipv4();
        self.pod_cidrs.iter().find(of_family).is_some_and(|first| first != cidr)
    }
}

/// How packets to a node's pods travel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// In VXLAN (RFC 7348) to the node's tunnel end.
    Vxlan {
        /// The VXLAN network identifier, 24 bits.
        vni: u32,
        /// The UDP port.
        port: u16,
        /// The link address of the tunnel end.
        mac: MacAddress,
    },
    /// By a plain route over the nodes' common link.
    HostGw,
    /// As UDP datagrams that are the packets, by flannel's wire format.
    Udp {
        /// The UDP port.
        port: u16,
    },
    /// In IP packets (RFC 2003 and 4213).
    Ipip,
    /// Encrypted, by WireGuard.
    WireGuard {
        /// The key in force: what the node is sent to by those that have one of its generation.
        key: WireGuardKey,
        /// Another one, while one takes the place of the other: the node receives by both.
        next: Option<WireGuardKey>,
        /// Whether packets go encrypted or not at all. One that is not strict is reached by nodes of other backends by theirs.
        strict: bool,
    },
    /// By whatever others see to: the node has its pod CIDRs, and nobody is told a way.
    None,
    /// By a backend that this version does not know; peers report it and leave the node alone.
    Other(Box<str>),
}

impl Backend {
    /// The backend's name in configuration and leases.
    pub fn name(&self) -> &str {
        match self {
            Self::Vxlan { .. } => "vxlan",
            Self::HostGw => "host-gw",
            Self::Udp { .. } => "udp",
            Self::Ipip => "ipip",
            Self::WireGuard { .. } => "wireguard",
            Self::None => "none",
            Self::Other(name) => name,
        }
    }

    /// The keys of WireGuard that it has, the one in force first.
    pub fn keys(&self) -> impl Iterator<Item = WireGuardKey> {
        let (key, next) = match self {
            Self::WireGuard { key, next, .. } => (Some(*key), *next),
            _ => (None, None),
        };
        key.into_iter().chain(next)
    }

    /// Strict WireGuard by a key of the first generation.
    #[must_use]
    pub fn wireguard(port: u16, public_key: PublicKey) -> Self {
        Self::WireGuard { key: WireGuardKey { port, public_key, generation: 0 }, next: None, strict: true }
    }
}

/// A key by which a node is known over WireGuard, and where it is used: each has a device of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WireGuardKey {
    /// The UDP port of its device.
    pub port: u16,
    /// The node's public key.
    pub public_key: PublicKey,
    /// Which of the cluster's keys it is: two nodes that have one of the same generation speak by those.
    pub generation: u32,
}

/// A public key of WireGuard: a point of Curve25519.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

/// A text that is no public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a WireGuard key; one is 32 bytes in base64, 44 letters that end with =")]
pub struct PublicKeyError(pub String);

impl fmt::Display for PublicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl FromStr for PublicKey {
    type Err = PublicKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| PublicKeyError(text.to_owned()))
    }
}

/// The right of one node to one pod CIDR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The pod CIDR, without host bits.
    pub cidr: IpNet,
    /// Who holds it.
    pub node: Arc<str>,
}

/// A link-layer address of six bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

/// A text that is no link-layer address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a link-layer address; one is six bytes in hexadecimal, such as 0a:58:c6:33:64:01")]
pub struct MacAddressError(pub String);

impl MacAddress {
    /// The link address of a node's tunnel over IPv6, from that of its first tunnel: another one, of the same kind.
    #[must_use]
    pub fn over_ipv6(self) -> Self {
        let Self([first, rest @ ..]) = self;
        let [b, c, d, e, f] = rest;
        // The lowest two bits say what kind of address it is.
        Self([first ^ 0x04, b, c, d, e, f])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || MacAddressError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
            if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Ok(Self(bytes)) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Backend, Flannel, Lease, MacAddress, PublicKey};

    #[test]
    fn a_public_key_reads_back_as_it_prints() {
        let key = PublicKey([7; 32]);
        assert_eq!(key.to_string(), "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=");
        assert_eq!(key.to_string().parse(), Ok(key));
        for bad in [
            "",
            "BwcH",
            "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc",
            "*wcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",
        ] {
            assert!(bad.parse::<PublicKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_first_cidr_of_each_family_is_the_current_one_and_the_others_are_of_before() {
        let cidrs = ["10.244.1.0/24", "fd00:1::/64", "10.244.9.0/24", "fd00:9::/64", "10.244.7.0/24"];
        let lease = Lease {
            node: "node1".into(),
            pod_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            underlay: Box::default(),
            backend: Backend::Other("any".into()),
            mtu: 1450,
            flannel: Flannel::Apart,
        };
        let texts = |nets: Vec<ipnet::IpNet>| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(texts(lease.current().collect()), cidrs[..2]);
        assert_eq!(texts(lease.retained().collect()), cidrs[2..]);
    }

    #[test]
    fn a_node_that_flannel_is_told_of_has_a_second_tunnel_where_it_has_both_families() {
        let mac: MacAddress = "02:00:00:00:00:01".parse().unwrap();
        let lease = Lease {
            node: "node1".into(),
            pod_cidrs: ["10.244.1.0/24", "fd00:1::/64"].map(|cidr| cidr.parse().unwrap()).into(),
            underlay: ["198.18.0.1", "fd00::1"].map(|address| address.parse().unwrap()).into(),
            backend: Backend::Vxlan { vni: 1, port: 8472, mac },
            mtu: 1450,
            flannel: Flannel::Told,
        };
        assert_eq!(lease.mac_over_ipv6(), Some(MacAddress([6, 0, 0, 0, 0, 1])));
        let mut others = vec![lease.clone(); 4];
        others[0].flannel = Flannel::Apart;
        others[1].backend = Backend::HostGw;
        others[2].pod_cidrs = Box::new([lease.pod_cidrs[0]]);
        others[3].underlay = Box::new([lease.underlay[0]]);
        others.iter().for_each(|other| assert_eq!(other.mac_over_ipv6(), None, "{other:?}"));
        let flannel = Flannel::Member { mac_over_ipv6: Some(mac) };
        assert_eq!(Lease { flannel, ..lease }.mac_over_ipv6(), Some(mac), "it says so itself");
    }

    #[test]
    fn a_link_layer_address_reads_back_as_it_prints() {
        let address = MacAddress([0x0a, 0x58, 0, 0xff, 9, 1]);
        assert_eq!(address.to_string(), "0a:58:00:ff:09:01");
        assert_eq!("0A:58:00:fF:09:01".parse(), Ok(address));
        for bad in [
            "",
            "0a:58:00:ff:09",
            "0a:58:00:ff:09:01:02",
            "a:58:00:ff:09:01",
            "+a:58:00:ff:09:01",
            "0a-58-00-ff-09-01",
        ] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
        }
    }
}
