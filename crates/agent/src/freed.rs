//! Addresses of pods that are gone, and the connections that the kernel still tracks for them.
//!
//! Read [`Addresses`], which belongs to the thread that listens to the kernel: it knows which addresses lead over which pod's
//! link by the plugin's routes, for when a link goes its IPv4 routes go without a word. [`forget`] runs in a thread of its own:
//! a tracked connection keeps the translation of its first packet, so what still comes for the pod that is gone would be
//! delivered to the next one that gets its address.
//!
//! What stays true: an address that leads over another link by now is left alone, since its connections may be the new pod's. A
//! pod can come and go without an agent; then its connections end by their own timers. Pods on a bridge have no route
//! of their own, and the same holds for them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, Sender};

use kernel::conntrack;
use kernel::monitor::Event;
use kernel::netlink::{Protocol, Socket};
use kernel::route::{self, Route};
use netstate::{MAIN_TABLE, POD_ROUTE_PROTOCOL};

/// The addresses of the pods that there are, by the index of their link.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    by_link: BTreeMap<u32, Vec<IpAddr>>,
}

impl Addresses {
    /// Reads those that there are.
    pub(crate) fn read(socket: &mut Socket) -> Result<Self, kernel::Error> {
        let mut addresses = Self::default();
        for route in pod_routes(socket)? {
            addresses.note(&route);
        }
        Ok(addresses)
    }

    fn note(&mut self, route: &Route) {
        let single = route.destination.prefix_len() == route.destination.max_prefix_len();
        let Some(link) = route.hops.first().and_then(|hop| hop.link).filter(|_| single) else { return };
        let known = self.by_link.entry(link).or_default();
        if !known.contains(&route.destination.addr()) {
            known.push(route.destination.addr());
        }
    }

    /// Learns from what the kernel tells; gives the addresses of a pod whose link is gone.
    pub(crate) fn learn(&mut self, event: &Event) -> Vec<IpAddr> {
        match event {
            Event::Route(route) if route.protocol == POD_ROUTE_PROTOCOL => {
                self.note(route);
                Vec::new()
            }
            Event::LinkGone(link) => self.by_link.remove(&link.index).unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    /// Takes what was read anew after changes went by unseen; gives the addresses that no pod has any more.
    pub(crate) fn renew(&mut self, read: Self) -> Vec<IpAddr> {
        let before = std::mem::replace(self, read);
        let mut gone: Vec<IpAddr> = before.by_link.into_values().flatten().collect();
        let there: BTreeSet<&IpAddr> = self.by_link.values().flatten().collect();
        gone.retain(|address| !there.contains(address));
        gone
    }
}

fn pod_routes(socket: &mut Socket) -> Result<Vec<Route>, kernel::Error> {
    let filter = route::Filter {
        table: Some(MAIN_TABLE),
        protocol: Some(POD_ROUTE_PROTOCOL),
        ..route::Filter::default()
    };
    route::list(socket, filter)
}

/// Has the connections of freed addresses forgotten, until the sender is gone.
pub(crate) fn serve(freed: &Receiver<Vec<IpAddr>>) {
    while let Ok(first) = freed.recv() {
        // Pods often go together: each look at the kernel's table is a look at all of it.
        let addresses: BTreeSet<IpAddr> = first.into_iter().chain(freed.try_iter().flatten()).collect();
        match forget(&addresses) {
            Ok(0) => {}
            Ok(count) => tracing::debug!(count, "connections of pods that are gone were forgotten"),
            Err(error) => {
                tracing::warn!(%error, "connections of pods that are gone stay tracked for a while")
            }
        }
    }
}

/// Has the connections of these addresses forgotten, and says how many there were.
fn forget(addresses: &BTreeSet<IpAddr>) -> Result<usize, kernel::Error> {
    if conntrack::is_empty() {
        return Ok(0);
    }
    let mut tracked = Socket::open(Protocol::Netfilter)?;
    let mut network = Socket::open(Protocol::Route)?;
    let mut forgotten = 0;
    for address in addresses {
        let flows = conntrack::list_of(&mut tracked, *address)?;
        // Last of all, so that a pod that gets the address meanwhile is seen.
        let taken = !flows.is_empty()
            && pod_routes(&mut network)?.iter().any(|route| route.destination.addr() == *address);
        if !taken {
            conntrack::forget(&mut tracked, &flows)?;
            forgotten += flows.len();
        }
    }
    Ok(forgotten)
}

/// Where the thread that listens sends what is free.
pub(crate) type Freed = Sender<Vec<IpAddr>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_unseen_is_free_and_what_another_link_has_by_now_is_not() {
        let address = |last| IpAddr::from([10, 244, 0, last]);
        let of = |links: &[(u32, &[u8])]| Addresses {
            by_link: links
                .iter()
                .map(|(link, last)| (*link, last.iter().copied().map(address).collect()))
                .collect(),
        };
        let mut addresses = of(&[(7, &[2]), (8, &[3]), (9, &[4])]);
        let gone = addresses.renew(of(&[(7, &[2]), (10, &[4, 5])]));
        assert_eq!(gone, [address(3)]);
        assert_eq!(addresses.by_link, of(&[(7, &[2]), (10, &[4, 5])]).by_link);
    }
}
