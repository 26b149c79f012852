//! The network that joins the nodes: a bridge in the supervisor's own namespace, a cable to each node.
//!
//! ```text
//!   supervisor's namespace                      node N's namespace
//!     bridge underlay  198.18.0.254/24   ____     eth0  198.18.0.N/24   default via .254
//!                      fd00:198:18::fe/64           fd00:198:18::N/64   default via ::fe
//! ```
//!
//! 198.18.0.0/15 is set aside for such use (RFC 2544). The bridge's own addresses stand for everything outside
//! the cluster: what a node sends there has left it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::sync::Arc;

use ipnet::IpNet;
use kernel::address::{self, NewAddress};
use kernel::link::{Change, NewBridge, NewKind, NewLink, NewPeer, change, create, find};
use kernel::netlink::{Batch, Protocol, Request, Socket};
use kernel::netns::Netns;
use kernel::route::{self, Route};

use super::nodes::Node;
use crate::control::{Part, Progress};
use crate::error::{Error, Result};
use crate::home::NodeHome;

const BRIDGE: &str = "underlay";
/// A node's end of the cable.
const UPLINK: &str = "eth0";
/// The host part of the bridge's addresses.
const OUTSIDE: u8 = 254;

/// Makes the nodes' namespaces and joins them. The calling thread's namespace becomes the one in the middle.
pub(super) fn build(count: usize, told: &mut dyn FnMut(Progress)) -> Result<Vec<Node>> {
    let mut outside = Socket::open(Protocol::Route).map_err(Error::kernel("open a netlink socket"))?;
    let bridge = bridge(&mut outside).map_err(Error::kernel("make the underlay"))?;
    let mut nodes = Vec::new();
    for number in 1..=count {
        let name = format!("node{number}");
        let node =
            node(&mut outside, bridge, &name, number).map_err(Error::kernel(format!("make {name}")))?;
        told(Progress { part: Part::Namespaces, done: number, total: count, what: name });
        nodes.push(node);
    }
    Ok(nodes)
}

fn bridge(outside: &mut Socket) -> std::result::Result<u32, kernel::Error> {
    // Without snooping, a solicitation reaches a node before it has joined the group by a report.
    let kind = NewKind::Bridge(NewBridge { multicast_snooping: Some(false), ..NewBridge::default() });
    let mut batch = Batch::new();
    batch.push(create(&NewLink { up: true, ..NewLink::new(BRIDGE, kind) }));
    batch.push(change("lo", &Change { up: Some(true), ..Change::default() }));
    outside.execute(batch)?;
    let index = find(outside, BRIDGE)?.map_or(0, |link| link.index);
    outside.execute(addressing(index, &addresses(OUTSIDE.into())))?;
    Ok(index)
}

fn node(
    outside: &mut Socket,
    bridge: u32,
    name: &str,
    number: usize,
) -> std::result::Result<Node, kernel::Error> {
    let netns = Netns::create()?;
    let peer = NewPeer { namespace: Some(netns.as_fd()), ..NewPeer::new(UPLINK) };
    let cable = NewLink { master: Some(bridge), up: true, ..NewLink::new(name, NewKind::Veth(peer)) };
    outside.execute(create(&cable))?;
    let mut inside = netns.socket(Protocol::Route)?;
    let mut batch = Batch::new();
    for link in ["lo", UPLINK] {
        batch.push(change(link, &Change { up: Some(true), ..Change::default() }));
    }
    inside.execute(batch)?;
    let index = find(&mut inside, UPLINK)?.map_or(0, |link| link.index);
    let addresses = addresses(number);
    let mut batch = addressing(index, &addresses);
    for gateway in self::addresses(OUTSIDE.into()) {
        batch.push(default_route(index, gateway));
    }
    inside.execute(batch)?;
    Ok(Node {
        name: name.into(),
        netns: Arc::new(netns),
        addresses,
        home: NodeHome::default(),
        agent_pid: None,
        ends: 0,
        last_end: None,
        ready: false,
        routes: BTreeSet::new(),
    })
}

/// The addresses of host `number` on the underlay, one of each family.
fn addresses(number: usize) -> Vec<IpAddr> {
    // Options::check bounds the number by the IPv4 prefix.
    let host = u8::try_from(number).unwrap_or(u8::MAX);
    vec![IpAddr::from([198, 18, 0, host]), IpAddr::from([0xfd00, 0x198, 0x18, 0, 0, 0, 0, u16::from(host)])]
}

/// Requests that give a link its addresses, usable at once: nobody else can have them here.
fn addressing(link: u32, addresses: &[IpAddr]) -> Batch {
    let mut batch = Batch::new();
    for address in addresses {
        let prefix = if address.is_ipv4() { 24 } else { 64 };
        // Both prefixes fit their families.
        let net = IpNet::new(*address, prefix).unwrap_or_else(|_| IpNet::from(*address));
        batch
            .push(address::add(&NewAddress { skip_duplicate_detection: true, ..NewAddress::new(link, net) }));
    }
    batch
}

fn default_route(link: u32, gateway: IpAddr) -> Request {
    let everything: IpAddr = match gateway {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let destination = IpNet::new(everything, 0).unwrap_or_else(|_| IpNet::from(everything));
    route::add(&Route::via(destination, gateway, link))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_its_number_in_both_families() {
        let text: Vec<String> = addresses(3).iter().map(ToString::to_string).collect();
        assert_eq!(text, ["198.18.0.3", "fd00:198:18::3"]);
    }
}
