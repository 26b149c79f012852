//! What a tunnel is told: by what wire format it speaks, where, and with whom.
//!
//! Read [`Settings`], then [`Peer`]. What can be wrong with them is in [`Error`].

use std::net::IpAddr;

use boringtun::x25519::{PublicKey, StaticSecret};
use ipnet::IpNet;

/// The usual port of WireGuard.
pub const WIREGUARD_PORT: u16 = 51820;
/// The port of flannel's `udp` backend, whose wire format [`Encapsulation::Udp`] is.
pub const UDP_PORT: u16 = 8285;

/// How a tunnel is set up. Its device is made, addressed and routed to by others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The TUN device. It is made if there is none, but stays only when somebody has made it persistent
    /// ([`kernel::tun::create`]).
    pub device: String,
    /// How many queues it has, each with a thread; flows are spread over them.
    pub queues: usize,
    /// The UDP port to listen on and to send from; of no account over [`Encapsulation::Ipip`].
    pub port: u16,
    /// The host's addresses to listen on and to send from, at most one of each family.
    pub underlay: Vec<IpAddr>,
    /// The wire format.
    pub encapsulation: Encapsulation,
    /// The device's MTU: the largest packet to a peer that names no smaller one.
    pub mtu: u16,
}

/// How a packet is wrapped up for its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Encapsulation {
    /// The packet itself is the payload of a UDP datagram, as flannel's `udp` backend does it.
    Udp,
    /// The packet is the payload of an IPv4 packet, as the kernel's `ipip` and `sit` devices do it. The underlay is IPv4,
    /// and the device has one queue.
    Ipip,
    /// WireGuard. Each peer has a key, and sends from its pod CIDRs only.
    WireGuard {
        /// Who we are.
        private_key: Secret,
    },
}

/// A key that nobody shall see.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

impl Secret {
    /// The key that the others are told.
    #[must_use]
    pub fn public_key(&self) -> [u8; 32] {
        PublicKey::from(&StaticSecret::from(self.0)).to_bytes()
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Secret(..)")
    }
}

impl Encapsulation {
    /// What it adds to each packet on the way to an underlay address of this family.
    #[must_use]
    pub fn overhead(&self, underlay: IpAddr) -> u16 {
        let network = if underlay.is_ipv4() { 20 } else { 40 };
        match self {
            Self::Udp => network + 8,
            Self::Ipip => 20,
            Self::WireGuard { .. } => network + 8 + 32,
        }
    }
}

/// A node that packets go to and come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name, by which it is counted.
    pub name: String,
    /// Its underlay address. Packets from addresses of no peer are dropped.
    pub underlay: IpAddr,
    /// Its port; `None` for our own.
    pub port: Option<u16>,
    /// What is behind it.
    pub pod_cidrs: Vec<IpNet>,
    /// The largest packet that fits the way to it; `None` for the device's MTU.
    pub mtu: Option<u16>,
    /// Its WireGuard key. Without one nothing is sent to it, and nothing taken from it, over WireGuard.
    pub public_key: Option<[u8; 32]>,
    /// A key that both know besides, for WireGuard.
    pub preshared_key: Option<Secret>,
}

impl Peer {
    /// One that nothing is behind.
    #[must_use]
    pub fn new(name: &str, underlay: IpAddr) -> Self {
        Self {
            name: name.to_owned(),
            underlay,
            port: None,
            pod_cidrs: Vec::new(),
            mtu: None,
            public_key: None,
            preshared_key: None,
        }
    }
}

/// Why a tunnel does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The settings contradict themselves.
    #[error("a tunnel over {device} cannot be: {reason}")]
    Settings {
        /// The device.
        device: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The kernel refuses something.
    #[error("start a tunnel over {device}: {tried}")]
    Kernel {
        /// The device.
        device: String,
        /// What was tried.
        tried: &'static str,
        /// Why it failed.
        #[source]
        source: Box<kernel::Error>,
    },
    /// What a process before has handed over does not fit the settings.
    #[error("go on with the tunnel over {device}: {reason}")]
    Handles {
        /// The device.
        device: String,
        /// What does not fit.
        reason: &'static str,
    },
    /// A thread or a descriptor is not to be had.
    #[error("start a tunnel over {device}: {tried}")]
    System {
        /// The device.
        device: String,
        /// What was tried.
        tried: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}
