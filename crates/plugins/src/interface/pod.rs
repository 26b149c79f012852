//! The pod's side of an attachment: what is set inside its namespace, and whether it is still so.
//!
//! Read [`Pod`] first, then [`Setup`]. Everything inside goes through one netlink socket that was opened there,
//! so the thread enters the namespace only to open it and to set sysctls. A setup is one send: link up,
//! addresses, neighbours, routes.
//!
//! IPv6 addresses are usable at once unless duplicate detection was asked for: the far end of a new cable has
//! no neighbours to ask. With detection, [`Pod::await_detection`] listens to the kernel instead of polling it.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use cni::{AddResult, Error};
use ipnet::IpNet;
use kernel::address::{self, Address, NewAddress};
use kernel::link::{self, Change, Link};
use kernel::monitor::{Monitor, Topic};
use kernel::neighbour;
use kernel::netlink::{Batch, Protocol, Socket};
use kernel::netns::Netns;
use kernel::route::{self, Hop, Route};
use kernel::{Family, sysctl};
use netstate::Mac;

use super::patience;
use crate::fault::fault;

/// How long duplicate detection may take; the kernel needs a second or two.
const DETECTION: Duration = Duration::from_secs(10);

/// Where the sysctls of IPv6 for each link are.
const IPV6_LINKS: &str = "net/ipv6/conf";
const LOOPBACK: &str = "lo";

/// A pod's namespace, with a socket inside.
#[derive(Debug)]
pub(crate) struct Pod {
    /// The namespace.
    pub(crate) namespace: Netns,
    /// Its links, addresses and routes.
    pub(super) socket: Socket,
}

/// What a pod's interface shall have.
#[derive(Debug, Default)]
pub(crate) struct Setup {
    /// Addresses with the lengths of their prefixes.
    pub(crate) addresses: Vec<IpNet>,
    /// Permanent neighbours, by address.
    pub(crate) neighbours: Vec<(IpAddr, Mac)>,
    /// Routes, in the order in which they are to be added.
    pub(crate) routes: Vec<Route>,
    /// Check IPv6 addresses for duplicates.
    pub(crate) detect_duplicates: bool,
    /// With that: leave it to the sysctls that the pod has for new links whether and how.
    pub(crate) detection_as_set: bool,
    /// Leave the sysctls of IPv6 alone, unless it is switched off. The addresses then go when the link is set down, as
    /// the routes do anyway, and the link-local address is checked for duplicates.
    pub(crate) ipv6_as_it_is: bool,
    /// Make no routes to the subnets of the addresses.
    pub(crate) no_prefix_routes: bool,
}

impl Pod {
    /// Opens the namespace at `path`.
    ///
    /// # Errors
    /// Code 8 when there is none.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let namespace = Netns::open(path).map_err(fault)?;
        let socket = namespace.socket(Protocol::Route).map_err(fault)?;
        Ok(Self { namespace, socket })
    }

    /// The same for a DEL, to which a namespace that has gone is no error.
    ///
    /// # Errors
    /// When it is there but cannot be entered.
    pub(crate) fn open_if_there(path: Option<&Path>) -> Result<Option<Self>, Error> {
        let Some(path) = path else { return Ok(None) };
        match Netns::open(path) {
            Ok(namespace) => {
                let socket = namespace.socket(Protocol::Route).map_err(fault)?;
                Ok(Some(Self { namespace, socket }))
            }
            Err(kernel::Error::NamespaceMissing { .. } | kernel::Error::NotANamespace { .. }) => Ok(None),
            Err(error) => Err(fault(error)),
        }
    }

    /// The socket inside, for what only one plugin asks.
    pub(crate) fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    /// The pod's link of this name.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub(crate) fn find(&mut self, name: &str) -> Result<Option<Link>, Error> {
        link::find(&mut self.socket, name).map_err(fault)
    }

    /// Deletes a link of the pod. That it is gone is a success.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn delete(&mut self, index: u32) -> Result<(), Error> {
        super::veth::delete(&mut self.socket, index)
    }

    /// Sets a link up with all that `setup` says.
    ///
    /// # Errors
    /// When the kernel refuses any of it, or an address turns out to be a duplicate.
    pub(crate) fn configure(&mut self, link: &Link, setup: &Setup) -> Result<(), Error> {
        self.set_sysctls(link, setup)?;
        let index = link.index;
        let up = Change { up: Some(true), arp_notify: Some(true), ..Change::default() };
        let mut batch = Batch::from(link::change(index, &up));
        batch.extend(setup.addresses.iter().map(|net| {
            let skip = net.addr().is_ipv6() && !setup.detect_duplicates;
            address::add(&NewAddress {
                skip_duplicate_detection: skip,
                skip_prefix_route: setup.no_prefix_routes,
                ..NewAddress::new(index, *net)
            })
        }));
        batch.extend(setup.neighbours.iter().map(|(address, mac)| neighbour::set(index, *address, *mac)));
        batch.extend(setup.routes.iter().map(route::append));
        self.socket.execute(batch).map_err(fault).map_err(|error| error.context(&link.name))?;
        if setup.detect_duplicates && setup.addresses.iter().any(|net| net.addr().is_ipv6()) {
            return self.await_detection(link);
        }
        Ok(())
    }

    /// What of `setup` the link lacks, in words; `None` when all is there. More than that is nobody's business
    /// here: plugins further down the chain may have added it.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub(crate) fn missing(&mut self, link: &Link, setup: &Setup) -> Result<Option<String>, Error> {
        let name = &link.name;
        let family = only_family(setup.addresses.iter().map(IpNet::addr));
        let addresses = address::list(&mut self.socket, Some(link.index), family).map_err(fault)?;
        if let Some(net) =
            setup.addresses.iter().find(|net| !addresses.iter().any(|found| found.net == **net))
        {
            return Ok(Some(format!("{name} does not have the address {net}")));
        }
        let family = only_family(setup.routes.iter().map(|route| route.destination.addr()));
        let filter = route::Filter { link: Some(link.index), family, ..route::Filter::default() };
        let routes = route::list(&mut self.socket, filter).map_err(fault)?;
        if let Some(wanted) = setup.routes.iter().find(|wanted| !leads(&routes, wanted)) {
            return Ok(Some(format!("the route to {} over {name} is gone", wanted.destination)));
        }
        if setup.neighbours.is_empty() {
            return Ok(None);
        }
        let neighbours = neighbour::list(&mut self.socket, Some(link.index)).map_err(fault)?;
        let known = |address: IpAddr, mac: Mac| {
            neighbours
                .iter()
                .any(|found| found.address == address && found.mac == Some(mac) && found.is_permanent())
        };
        let lost = setup.neighbours.iter().find(|(address, mac)| !known(*address, *mac));
        Ok(lost.map(|(address, mac)| format!("the neighbour {address} at {mac} on {name} is gone")))
    }

    /// Sysctls have to be right before the link comes up.
    ///
    /// A pod without IPv6 addresses needs none, and the others find the way to theirs once, if at all. That is worth
    /// the words: the kernel keeps the names below `/proc/sys/net` of all namespaces in one list, so each look-up there
    /// costs more with every pod that had one.
    fn set_sysctls(&mut self, link: &Link, setup: &Setup) -> Result<(), Error> {
        let has_ipv6 = setup.addresses.iter().any(|net| net.addr().is_ipv6());
        if !has_ipv6 && !setup.detect_duplicates {
            return Ok(());
        }
        let is_off = |link: &Link| link.ipv6 == Some(false);
        if setup.ipv6_as_it_is && !is_off(link) && !self.find(LOOPBACK)?.as_ref().is_some_and(is_off) {
            return Ok(());
        }
        let _inside = self.namespace.enter().map_err(fault)?;
        let links = match sysctl::Directory::open(IPV6_LINKS) {
            Ok(links) => links,
            // Without IPv6 there is nothing to set; an address of it will be refused by the kernel.
            Err(error) if error.is_missing() && !has_ipv6 => return Ok(()),
            Err(error) => return Err(fault(error)),
        };
        let own = |key: &str| format!("{}/{key}", link.name);
        if has_ipv6 {
            for path in [format!("{LOOPBACK}/disable_ipv6"), own("disable_ipv6")] {
                links.set(&path, "0").map_err(fault)?;
            }
            put(&links, &own("keep_addr_on_down"), "1")?;
        }
        if setup.detect_duplicates {
            // Where others may have known an address's last holder, they are told of the new one.
            put(&links, &own("ndisc_notify"), "1")?;
            if setup.detection_as_set {
                return Ok(());
            }
            put(&links, &own("enhanced_dad"), "1")?;
        }
        put(&links, &own("accept_dad"), if setup.detect_duplicates { "1" } else { "0" })
    }

    /// Waits until the link carries frames; until then the kernel drops what is sent over it.
    ///
    /// # Errors
    /// When that takes unreasonably long.
    pub(crate) fn await_carrier(&mut self, link: &Link) -> Result<(), Error> {
        let namespace = &self.namespace;
        patience::carrier(&mut self.socket, link, || Monitor::open_in(namespace, &[Topic::Links])).map(drop)
    }

    /// Waits until no address of the link is tentative any more. Without a carrier detection does not even
    /// begin, which is no error: the master's cable may be plugged in later.
    fn await_detection(&mut self, link: &Link) -> Result<(), Error> {
        let (namespace, socket) = (&self.namespace, &mut self.socket);
        let listen = || Monitor::open_in(namespace, &[Topic::Addresses]);
        let settled = patience::until(DETECTION, listen, || {
            let found = link::find(socket, link.index).map_err(fault)?;
            if found.is_some_and(|found| !found.has_carrier()) {
                return Ok(Some(()));
            }
            let addresses = address::list(socket, Some(link.index), None).map_err(fault)?;
            if let Some(duplicate) = addresses.iter().find(|found| found.is_duplicate()) {
                let text = format!("{} on {} is a duplicate: somebody else has it", duplicate.net, link.name);
                return Err(
                    Error::kernel(text).with_details("hint: duplicate address detection (DAD) failed")
                );
            }
            Ok((!addresses.iter().any(Address::is_tentative)).then_some(()))
        })?;
        settled.ok_or_else(|| {
            Error::try_again(format!("{} still has tentative addresses after {DETECTION:?}", link.name))
        })
    }
}

/// The routes of a result on the pod's link: through their own gateway, else through the one of the first
/// address of their family, else on the link itself. A scope narrower than global asks for the last. What leads
/// to one destination by several gateways is one route with several ways, or IPv4 would use the first alone.
pub(crate) fn routes(result: &AddResult, link: u32) -> Vec<Route> {
    let gateway_of = |v4: bool| {
        let first = result.ips.iter().find(|ip| ip.address.addr().is_ipv4() == v4);
        first.and_then(|ip| ip.gateway).filter(|gateway| !gateway.is_unspecified())
    };
    let on_link = |scope: Option<u8>| scope.is_some_and(|scope| scope != 0);
    let route = |wanted: &cni::Route| {
        let destination = wanted.dst.trunc();
        let default = gateway_of(destination.addr().is_ipv4()).filter(|_| !on_link(wanted.scope));
        let route = match wanted.gw.or(default) {
            Some(gateway) => Route::via(destination, gateway, link),
            None => Route::on_link(destination, link),
        };
        Route {
            metric: wanted.priority,
            table: wanted.table.unwrap_or(route.table),
            scope: wanted.scope.unwrap_or(route.scope),
            mtu: Some(wanted.mtu).filter(|mtu| *mtu != 0),
            advertised_mss: Some(wanted.advmss).filter(|size| *size != 0),
            ..route
        }
    };
    join_ways(result.routes.iter().map(route))
}

/// Joins routes that differ in their gateway alone. The joined one stands where the last of them stood: by then
/// every gateway can be reached.
fn join_ways(routes: impl Iterator<Item = Route>) -> Vec<Route> {
    let mut joined: Vec<Route> = Vec::new();
    for mut route in routes {
        let has_gateway = |route: &Route| route.hops.iter().all(|hop| hop.gateway.is_some());
        let same = |earlier: &Route| {
            has_gateway(earlier) && Route { hops: route.hops.clone(), ..earlier.clone() } == route
        };
        if let Some(place) = joined.iter().position(same).filter(|_| has_gateway(&route)) {
            let mut hops = joined.remove(place).hops;
            hops.extend(route.hops.iter().filter(|hop| !hops.contains(hop)).copied().collect::<Vec<_>>());
            route.hops = hops;
        }
        joined.push(route);
    }
    joined
}

/// The family of all these addresses; `None` when both are among them, or there are none.
pub(crate) fn only_family(addresses: impl IntoIterator<Item = IpAddr>) -> Option<Family> {
    let mut families = addresses.into_iter().map(Family::of);
    let first = families.next()?;
    families.all(|family| family == first).then_some(first)
}

/// Whether routes of the kernel do what another one asks for, together. Their table may differ: source-based
/// routing moves routes.
fn leads(found: &[Route], wanted: &Route) -> bool {
    let there = found.iter().filter(|route| route.destination == wanted.destination);
    let ways: Vec<&Hop> = there.flat_map(|route| &route.hops).collect();
    !ways.is_empty() && wanted.hops.iter().all(|hop| ways.iter().any(|way| way.gateway == hop.gateway))
}

/// Writes a sysctl that a new link never has right. Where `/proc/sys` cannot be written, it must be right
/// already; where this kernel has none (IPv6 switched off), there is nothing to set.
pub(crate) fn put(directory: &sysctl::Directory, path: &str, value: &str) -> Result<(), Error> {
    match directory.write(path, value) {
        Ok(()) => Ok(()),
        Err(error) if error.is_missing() => Ok(()),
        Err(_) => directory.set(path, value).map(drop).map_err(fault),
    }
}

#[cfg(test)]
mod tests {
    use cni::IpConfig;

    use super::*;

    fn result(routes: Vec<cni::Route>) -> AddResult {
        let v4 = IpConfig {
            gateway: Some("10.1.2.1".parse().unwrap()),
            ..IpConfig::new("10.1.2.2/24".parse().unwrap())
        };
        let v6 = IpConfig::new("2001:db8::2/64".parse().unwrap());
        AddResult { ips: vec![v4, v6], routes, ..AddResult::default() }
    }

    #[test]
    fn a_route_takes_its_own_gateway_then_its_familys_then_the_link() {
        let plain = |net: &str, gateway: Option<&str>| {
            cni::Route::new(net.parse().unwrap(), gateway.map(|gateway| gateway.parse().unwrap()))
        };
        let routes = routes(
            &result(vec![
                plain("192.0.2.0/24", Some("10.1.2.9")),
                plain("0.0.0.0/0", None),
                plain("::/0", None),
                cni::Route { scope: Some(253), ..plain("198.51.100.0/24", None) },
                cni::Route { mtu: 1300, advmss: 1200, priority: 7, table: Some(100), ..plain("::/0", None) },
            ]),
            7,
        );
        let gateways: Vec<Option<IpAddr>> = routes.iter().map(|route| route.hops[0].gateway).collect();
        let [own, familys] = ["10.1.2.9", "10.1.2.1"].map(|address| address.parse().ok());
        assert_eq!(gateways, [own, familys, None, None, None]);
        assert_eq!(routes[3].scope, 253);
        let last = &routes[4];
        assert_eq!((last.mtu, last.advertised_mss), (Some(1300), Some(1200)));
        assert_eq!((last.metric, last.table), (7, 100));
    }

    #[test]
    fn a_route_in_another_table_still_leads_and_one_by_another_way_does_not() {
        let wanted = Route::via("0.0.0.0/0".parse().unwrap(), "10.1.2.1".parse().unwrap(), 7);
        assert!(leads(&[Route { table: 100, ..wanted.clone() }], &wanted));
        let elsewhere = Route::via("0.0.0.0/0".parse().unwrap(), "10.1.2.9".parse().unwrap(), 7);
        assert!(!leads(std::slice::from_ref(&elsewhere), &wanted));
        assert!(!leads(&[Route::on_link("0.0.0.0/0".parse().unwrap(), 7)], &wanted));
        let both = Route { hops: [wanted.hops.clone(), elsewhere.hops.clone()].concat(), ..wanted.clone() };
        assert!(leads(&[wanted.clone(), elsewhere.clone()], &both), "as the reference leaves them");
        assert!(!leads(&[wanted], &both));
        assert!(!leads(&[], &both));
    }

    #[test]
    fn routes_that_differ_in_their_gateway_alone_are_one_route_with_several_ways() {
        let by = |net: &str, gateway: &str| cni::Route::new(net.parse().unwrap(), gateway.parse().ok());
        let joined = routes(
            &result(vec![
                by("192.0.2.0/24", "10.1.2.8"),
                by("198.51.100.0/24", "10.1.2.8"),
                by("192.0.2.0/24", "10.1.2.9"),
                cni::Route { priority: 5, ..by("192.0.2.0/24", "10.1.2.7") },
                by("192.0.2.0/24", "10.1.2.9"),
            ]),
            7,
        );
        let ways: Vec<(String, usize)> =
            joined.iter().map(|route| (route.destination.to_string(), route.hops.len())).collect();
        let expected = [("198.51.100.0/24", 1), ("192.0.2.0/24", 1), ("192.0.2.0/24", 2)];
        assert_eq!(ways, expected.map(|(net, hops)| (net.to_owned(), hops)));
    }
}
