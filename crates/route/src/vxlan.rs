//! VXLAN: one device for both families, and what leads through it to each peer.
//!
//! Read [`device`], then [`peer_part`]. The device, [`DEVICE`], holds the base address of each of the node's pod CIDRs,
//! never given to a pod, as the tunnel's end; its link address follows from the node's name ([`tunnel_mac`]), so it
//! survives reboots and reinstallation. For each peer: a neighbour (base address to link address), one forwarding entry
//! (link address to underlay address), then the route, through the base address and on-link. Nothing is learned and
//! nothing is asked for.

use std::net::IpAddr;

use cluster::MacAddress;
use ipnet::IpNet;
use netstate::pool::base_address;
use netstate::{FdbEntry, Link, LinkKind, Mac, Neighbour, Route, State, Vxlan};
use sha2::{Digest, Sha256};

use crate::design::Inputs;
use crate::family::Family;
use crate::mtu;

/// The name of the tunnel's device.
pub const DEVICE: &str = "fairlead0";

/// The link address of a node's tunnel end, from its name: locally administered, unicast.
#[must_use]
pub fn tunnel_mac(node: &str) -> MacAddress {
    let digest = Sha256::digest(node.as_bytes());
    let [a, b, c, d, e, f] = [digest[0], digest[1], digest[2], digest[3], digest[4], digest[5]];
    MacAddress([(a & 0xfc) | 0x02, b, c, d, e, f])
}

/// The device.
pub(crate) fn device(inputs: &Inputs<'_>) -> Option<Link> {
    let vxlan = Vxlan {
        vni: inputs.vxlan.vni,
        port: inputs.vxlan.port,
        local: inputs.underlay.address,
        parent: inputs.underlay.link.parse().ok(),
    };
    let overhead = mtu::vxlan_overhead(Family::of(inputs.underlay.address));
    Some(Link {
        name: DEVICE.parse().ok()?,
        kind: LinkKind::Vxlan(vxlan),
        mtu: Some(inputs.carried.saturating_sub(overhead)),
        mac: Some(Mac(tunnel_mac(&inputs.lease.node).0)),
        up: true,
    })
}

/// What stands before the route to a pod CIDR of a peer, and that route.
pub(crate) fn peer_part(state: &mut State, cidr: IpNet, mac: Mac, underlay: IpAddr) -> Option<Route> {
    let device = DEVICE.parse().ok()?;
    let gateway = base_address(cidr);
    state.insert_neighbour(Neighbour { link: device, address: gateway, mac });
    state.insert_fdb(FdbEntry { link: device, mac, destination: underlay });
    Some(Route::via_onlink(cidr, gateway, device))
}
