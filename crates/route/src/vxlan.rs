//! VXLAN: one device for both families, and what leads through it to each peer; and a second one, for flannel's nodes.
//!
//! Read [`device`], then [`peer_part`], then [`over_ipv6`]. The device, [`DEVICE`], holds the base address of each of the node's pod CIDRs,
//! never given to a pod, as the tunnel's end; its link address follows from the node's name ([`tunnel_mac`]), so it
//! survives reboots and reinstallation. For each peer: a neighbour (base address to link address), one forwarding entry
//! (link address to underlay address), then the route, through the base address and on-link. Nothing is learned and
//! nothing is asked for.
//!
//! flannel carries IPv6 pods over IPv6, by a device of its own. A node that flannel's nodes are told of and that has both
//! families has such a one as well, [`DEVICE_V6`]; by which device a peer is reached follows from the family of the
//! underlay address that it is reached at.

use std::net::IpAddr;

use cluster::{Flannel, MacAddress};
use ipnet::IpNet;
use netstate::pool::base_address;
use netstate::{FdbEntry, Link, LinkKind, Mac, Neighbour, Route, State, Vxlan};
use sha2::{Digest, Sha256};

use crate::design::Inputs;
use crate::family::Family;
use crate::mtu;
use crate::underlay::Underlay;

/// The name of the tunnel's device.
pub const DEVICE: &str = "fairlead0";

/// The name of the second tunnel's device, over IPv6 to flannel's nodes.
pub const DEVICE_V6: &str = "fairlead-v6";

/// The link address of a node's tunnel end, from its name: locally administered, unicast.
#[must_use]
pub fn tunnel_mac(node: &str) -> MacAddress {
    let digest = Sha256::digest(node.as_bytes());
    let [a, b, c, d, e, f] = [digest[0], digest[1], digest[2], digest[3], digest[4], digest[5]];
    MacAddress([(a & 0xfc) | 0x02, b, c, d, e, f])
}

/// The device.
pub(crate) fn device(inputs: &Inputs<'_>) -> Option<Link> {
    device_over(inputs, inputs.underlay, tunnel_mac(&inputs.lease.node))
}

/// The second device, if there is one.
pub(crate) fn device_v6(inputs: &Inputs<'_>) -> Option<Link> {
    device_over(inputs, over_ipv6(inputs)?, tunnel_mac(&inputs.lease.node).over_ipv6())
}

fn device_over(inputs: &Inputs<'_>, underlay: &Underlay, mac: MacAddress) -> Option<Link> {
    let vxlan = Vxlan {
        vni: inputs.vxlan.vni,
        port: inputs.vxlan.port,
        local: underlay.address,
        parent: underlay.link.parse().ok(),
    };
    Some(Link {
        name: name(inputs, underlay.address).parse().ok()?,
        kind: LinkKind::Vxlan(vxlan),
        mtu: Some(largest(inputs, underlay.address)),
        mac: Some(Mac(mac.0)),
        up: true,
    })
}

/// The underlay of the second tunnel; none where the node has no such tunnel.
pub(crate) fn over_ipv6<'a>(inputs: &Inputs<'a>) -> Option<&'a Underlay> {
    let lease = inputs.lease;
    let wanted = lease.flannel == Flannel::Told && lease.has_both_families();
    inputs.underlays.get(&Family::V6).filter(|_| wanted && inputs.underlay.address.is_ipv4())
}

/// The device by which packets to or from that underlay address travel.
fn name(inputs: &Inputs<'_>, underlay: IpAddr) -> &'static str {
    if underlay.is_ipv6() && inputs.underlay.address.is_ipv4() { DEVICE_V6 } else { DEVICE }
}

/// The largest packet, in bytes, that the underlay of that address's family carries.
pub(crate) fn carried(inputs: &Inputs<'_>, underlay: IpAddr) -> u32 {
    let own = inputs.underlays.get(&Family::of(underlay));
    own.map_or(inputs.carried, |own| inputs.carried.min(own.mtu))
}

/// The largest packet that a tunnel to or from that underlay address takes, in bytes.
pub(crate) fn largest(inputs: &Inputs<'_>, underlay: IpAddr) -> u32 {
    carried(inputs, underlay).saturating_sub(mtu::vxlan_overhead(Family::of(underlay)))
}

/// What stands before the route to a pod CIDR of a peer, and that route.
pub(crate) fn peer_part(
    state: &mut State,
    inputs: &Inputs<'_>,
    cidr: IpNet,
    (mac, underlay): (Mac, IpAddr),
) -> Option<Route> {
    let device = name(inputs, underlay).parse().ok()?;
    let gateway = base_address(cidr);
    state.insert_neighbour(Neighbour { link: device, address: gateway, mac });
    state.insert_fdb(FdbEntry { link: device, mac, destination: underlay });
    Some(Route::via_onlink(cidr, gateway, device))
}
