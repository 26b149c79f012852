//! Tunnels that the host's kernel carries itself, where it can: WireGuard, and IP in IP.
//!
//! Read [`InKernel`], then [`devices`]. On the wire they are what a program's tunnels are, so a node with either talks with a
//! node with the other. WireGuard is one device, which finds the peer by the networks that each peer is allowed. IP in IP
//! is a device for each family, for the kernel has one for IPv4 in IPv4 and another for IPv6 in IPv4; neither has a far end:
//! the gateway of each route is the peer's underlay address.
//!
//! A device has the name that a program's would have, so that there is never one of each.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use netstate::{
    IpTunnel, Link, LinkKind, LinkName, PublicKey, Route, SecretKey, State, WireGuard, WireGuardPeer,
    WireGuardPeerKey,
};

use crate::design::{Inputs, own_port};
use crate::family::Family;
use crate::peers::carries;
use crate::tunnel::{TunnelKind, TunnelPeer};

/// The name of the device for IPv6 in IPv4. That for IPv4 in IPv4 has the name of the program's.
pub(crate) const SIT: &str = "fairlead-sit";

/// After how many idle seconds a node behind address translation lets itself be heard, so that its peers find it.
const KEEPALIVE: u16 = 25;

/// What of a program's tunnels the host's kernel carries itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InKernel {
    /// This node's private keys of an even and of an odd generation, where the kernel carries WireGuard.
    pub wireguard: [Option<SecretKey>; 2],
    /// Whether it carries IP in IP.
    pub ipip: bool,
}

impl InKernel {
    /// Whether a tunnel of that kind is the kernel's.
    #[must_use]
    pub fn carries(&self, kind: TunnelKind) -> bool {
        match kind {
            TunnelKind::Udp => false,
            TunnelKind::Ipip => self.ipip,
            TunnelKind::WireGuard | TunnelKind::WireGuardOdd => self.key(kind).is_some(),
        }
    }

    fn key(&self, kind: TunnelKind) -> Option<SecretKey> {
        let [even, odd] = self.wireguard;
        if kind == TunnelKind::WireGuardOdd { odd } else { even }
    }
}

/// The devices of a tunnel, each with the families that it carries.
pub(crate) fn devices(inputs: &Inputs<'_>, kind: TunnelKind, mtu: u32) -> Vec<(Link, Vec<Family>)> {
    let device = |name: &str, kind: LinkKind, families: &[Family]| {
        let name = name.parse().ok()?;
        Some((Link { name, kind, mtu: Some(mtu), mac: None, up: true }, families.to_vec()))
    };
    match (kind, inputs.underlay.address) {
        (TunnelKind::WireGuard | TunnelKind::WireGuardOdd, _) => {
            device(kind.device(), LinkKind::WireGuard, &Family::ALL).into_iter().collect()
        }
        (TunnelKind::Ipip, IpAddr::V4(local)) => {
            let carried = Family::ALL.into_iter().filter(|family| carries(inputs.lease, *family));
            let tunnel = |family| LinkKind::IpTunnel(IpTunnel { v6: family == Family::V6, local });
            carried.filter_map(|family| device(name_of(kind, family), tunnel(family), &[family])).collect()
        }
        // A program's alone, or without the underlay that it needs.
        _ => Vec::new(),
    }
}

/// The device that carries packets of a family.
fn name_of(kind: TunnelKind, family: Family) -> &'static str {
    if kind == TunnelKind::Ipip && family == Family::V6 { SIT } else { kind.device() }
}

/// The route to a peer's pod CIDR.
pub(crate) fn route(cidr: IpNet, kind: TunnelKind, underlay: IpAddr) -> Option<Route> {
    let family = Family::of_net(&cidr);
    let device: LinkName = name_of(kind, family).parse().ok()?;
    match (kind, underlay) {
        (TunnelKind::Ipip, IpAddr::V4(far)) => Some(Route::via_onlink(cidr, gateway(family, far), device)),
        (TunnelKind::Ipip, IpAddr::V6(_)) => None,
        _ => Some(Route::on_link(cidr, device)),
    }
}

/// Where outer packets go, in the words of the family inside: for IPv6 an IPv4-compatible address (RFC 4213, section 3).
fn gateway(family: Family, far: Ipv4Addr) -> IpAddr {
    match family {
        Family::V4 => far.into(),
        Family::V6 => far.to_ipv6_compatible().into(),
    }
}

/// What a WireGuard device is told: this node's key and port, and its peers.
pub(crate) fn configure(
    state: &mut State,
    inputs: &Inputs<'_>,
    kind: TunnelKind,
    link: LinkName,
    peers: Vec<TunnelPeer>,
) {
    let Some(private_key) = inputs.kernel.key(kind) else { return };
    state.insert_wireguard(link, WireGuard { private_key, port: own_port(inputs, kind) });
    tell(state, inputs, link, peers);
}

/// What a WireGuard device is told of these peers.
pub(crate) fn tell(state: &mut State, inputs: &Inputs<'_>, link: LinkName, peers: Vec<TunnelPeer>) {
    let translated = !inputs.lease.underlay.contains(&inputs.underlay.address);
    for peer in peers {
        let Some(key) = peer.public_key else { continue };
        let wanted = WireGuardPeer {
            endpoint: Some(SocketAddr::new(peer.underlay, peer.port)),
            allowed_ips: peer.pod_cidrs.into_iter().collect(),
            keepalive: translated.then_some(KEEPALIVE),
        };
        state.insert_wireguard_peer(WireGuardPeerKey { link, public_key: PublicKey(key.0) }, wanted);
    }
}
