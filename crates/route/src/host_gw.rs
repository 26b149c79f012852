//! Plain routes: a peer on the underlay's own link is the gateway to its pods.
//!
//! Read [`route`]. No tunnel, so nothing is added to a packet; and no neighbour either, for the underlay's own are found
//! by the kernel as always. The route is on-link, so that it can stand a moment before the link's own network does.

use std::net::IpAddr;

use ipnet::IpNet;
use netstate::{LinkName, Route};

/// The route to a pod CIDR of a peer.
pub(crate) fn route(cidr: IpNet, gateway: IpAddr, link: LinkName) -> Route {
    Route::via_onlink(cidr, gateway, link)
}
