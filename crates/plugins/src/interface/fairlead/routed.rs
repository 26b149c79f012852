//! The routed mode: each pod hangs on a cable of its own, and the host has a route to it.
//!
//! Read [`add`]. In the pod: the address as a single host (`/32`, `/128`), and a default route through a
//! link-local gateway that is the same on every node (169.254.1.1, fe80::1). On the host: a route to the pod's
//! address over the cable. Nobody has to ask who has which address: both ends know each other as permanent
//! neighbours, and the host's end has the same hardware address everywhere. So no broadcast ever crosses the
//! cable, and the gateway addresses need not be on any device.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cni::{AddResult, Error, Request, delegate};
use ipnet::IpNet;
use kernel::link::{self, Change, Kind, Link};
use kernel::monitor::{Monitor, Topic};
use kernel::neighbour;
use kernel::netlink::{Batch, Protocol, Socket};
use kernel::route::{self, Route};
use netstate::{Mac, POD_ROUTE_PROTOCOL};

use super::isolation::{Asked, Isolation};
use crate::fault::fault;
use crate::forwarding;
use crate::interface::mac;
use crate::interface::patience;
use crate::interface::pod::{Pod, Setup};
use crate::interface::report::{self, Previous, complain};
use crate::interface::veth::{self, Cable};
use crate::owner::Owner;
use crate::undo::{Made, Undo};

/// The hardware address of the host's end, on every node.
const HOST_MAC: Mac = Mac([0xee; 6]);

/// Where the pod's interface stands in the result.
const POD: usize = 1;

/// Wires a pod. With `isolation`, nothing passes its cable before its network policies are in force.
pub(super) fn add(
    request: &Request,
    mtu: u32,
    isolation: Option<&mut Isolation<'_>>,
) -> Result<AddResult, Error> {
    let mac = mac::requested(request, false)?;
    let owner = Owner::of(request);
    let mut host = Socket::open(Protocol::Route).map_err(fault)?;
    let mut pod = Pod::open(request.netns()?)?;
    let cable = Cable {
        owner: &owner,
        interface: &request.ifname,
        pod_mac: mac,
        host_mac: Some(HOST_MAC),
        mtu: Some(mtu),
        bridge: None,
        up: false,
    };
    let mut undo = Undo::new(request, &owner);
    let call = Call { request, isolation };
    match wire(&cable, &mut host, &mut pod, &mut undo, call) {
        Ok(result) => Ok(result),
        Err(error) => Err(undo.back(&mut host, error)),
    }
}

/// What is asked for.
struct Call<'a, 'i> {
    request: &'a Request,
    isolation: Option<&'a mut Isolation<'i>>,
}

fn wire(
    cable: &Cable<'_>,
    host: &mut Socket,
    pod: &mut Pod,
    undo: &mut Undo<'_>,
    call: Call<'_, '_>,
) -> Result<AddResult, Error> {
    let Call { request, isolation } = call;
    let host_link = cable.lay(host, pod)?;
    let index = host_link.index;
    undo.note(Made::Link(index));
    let own = Change { address_generation: veth::no_link_local(&host_link), ..Change::default() };
    veth::mark(host, &host_link, cable.owner, own, None)?;
    let found = pod.find(cable.interface)?;
    let pod_link =
        found.ok_or_else(|| Error::kernel(format!("{} vanished from the pod", cable.interface)))?;
    undo.note(Made::Addresses);
    let mut result = delegate::add(&request.config.ipam_kind, request)?;
    let addresses: Vec<IpAddr> = result.ips.iter().map(|ip| ip.address.addr()).collect();
    // The agent works meanwhile.
    let asked = isolation.map(|isolation| isolation.begin(addresses.clone())).transpose()?;
    veth::refuse_advertisements(&host_link.name)?;
    forwarding::enable(host, addresses.iter().copied())?;
    pod.configure(&pod_link, &setup(&addresses, pod_link.index))?;
    let Some(pod_mac) = pod_link.mac else {
        return Err(Error::kernel(format!("{} has no hardware address", pod_link.name)));
    };
    // The cable's end here is still down.
    asked.map(Asked::wait).transpose()?;
    let mut batch = Batch::from(link::change(index, &Change { up: Some(true), ..Change::default() }));
    batch.extend(addresses.iter().flat_map(|address| {
        [neighbour::set(index, *address, pod_mac), route::replace(&host_route(*address, index))]
    }));
    host.execute(batch).map_err(fault)?;
    let host_link = patience::carrier(host, &host_link, || Monitor::open(&[Topic::Links]))?;
    veth::forget_multicast(host, index);
    pod.await_carrier(&pod_link)?;
    complete(&mut result, &host_link, &pod_link, request)?;
    Ok(result)
}

/// Whether an ADD would get what it needs: addresses.
pub(super) fn status(request: &Request) -> Result<(), Error> {
    Socket::open(Protocol::Route).map_err(fault)?;
    delegate::status(&request.config.ipam_kind, request)
}

/// Whether all that [`add`] made is still there.
pub(super) fn check(request: &Request) -> Result<(), Error> {
    let previous = Previous::of(request)?;
    delegate::check(&request.config.ipam_kind, request)?;
    let owner = Owner::of(request);
    let mut host = Socket::open(Protocol::Route).map_err(fault)?;
    let mut pod = Pod::open(request.netns()?)?;
    let pod_link = previous.link(request, &mut pod)?;
    if pod_link.kind != Kind::Veth {
        return Err(Error::kernel(format!("{} in the pod is no longer a veth", request.ifname)));
    }
    let result = previous.about(&request.ifname);
    let addresses: Vec<IpAddr> = result.ips.iter().map(|ip| ip.address.addr()).collect();
    if !pod_link.is_up() {
        return Err(Error::kernel(format!("{} in the pod is down", request.ifname)));
    }
    complain(pod.missing(&pod_link, &setup(&addresses, pod_link.index))?)?;
    let lacking = match veth::find(&mut host, &owner)?.into_iter().next() {
        Some(link) => lacking_on_host(&mut host, &link, &pod_link, &addresses)?,
        None => Some(format!("the host's end {} is gone", owner.host_link_name(0))),
    };
    complain(lacking)
}

fn lacking_on_host(
    host: &mut Socket,
    link: &Link,
    pod_link: &Link,
    addresses: &[IpAddr],
) -> Result<Option<String>, Error> {
    let name = &link.name;
    if !link.is_up() {
        return Ok(Some(format!("the host's end {name} is down")));
    }
    if link.mac != Some(HOST_MAC) {
        return Ok(Some(format!("the host's end {name} does not have the hardware address {HOST_MAC}")));
    }
    let filter = route::Filter { link: Some(link.index), ..route::Filter::default() };
    let routes = route::list(host, filter).map_err(fault)?;
    let neighbours = neighbour::list(host, Some(link.index)).map_err(fault)?;
    for address in addresses {
        if !routes.iter().any(|route| route.destination == IpNet::from(*address)) {
            return Ok(Some(format!("the host's route to {address} over {name} is gone")));
        }
        let known = |found: &neighbour::Neighbour| {
            found.address == *address && found.mac == pod_link.mac && found.is_permanent()
        };
        if !neighbours.iter().any(known) {
            return Ok(Some(format!("the host's neighbour {address} on {name} is gone")));
        }
    }
    Ok(None)
}

/// What the pod's interface gets. Neighbours come before routes, gateways before the routes through them.
fn setup(addresses: &[IpAddr], link: u32) -> Setup {
    let gateways = gateways(addresses);
    let routes = gateways.iter().flat_map(|gateway| {
        [Route::on_link(IpNet::from(*gateway), link), Route::via(everywhere(*gateway), *gateway, link)]
    });
    Setup {
        addresses: addresses.iter().map(|address| IpNet::from(*address)).collect(),
        neighbours: gateways.iter().map(|gateway| (*gateway, HOST_MAC)).collect(),
        routes: routes.collect(),
        ipv6_as_it_is: true,
        ..Setup::default()
    }
}

/// The gateway of each family that is present.
fn gateways(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let mut gateways: Vec<IpAddr> = addresses.iter().map(|address| gateway_for(*address)).collect();
    gateways.dedup();
    gateways
}

fn gateway_for(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
    }
}

fn everywhere(gateway: IpAddr) -> IpNet {
    match gateway {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

/// The host's route to a pod. Its protocol number says that it is a plugin's, not the agent's.
fn host_route(address: IpAddr, link: u32) -> Route {
    Route { protocol: POD_ROUTE_PROTOCOL, ..Route::on_link(IpNet::from(address), link) }
}

/// Turns the address plugin's result into this plugin's.
fn complete(
    result: &mut AddResult,
    host_link: &Link,
    pod_link: &Link,
    request: &Request,
) -> Result<(), Error> {
    result.interfaces = vec![report::of_host(host_link), report::in_pod(pod_link, request)?];
    for ip in &mut result.ips {
        let address = ip.address.addr();
        ip.address = IpNet::from(address);
        ip.gateway = Some(gateway_for(address));
        ip.interface = Some(POD);
        result.routes.push(cni::Route::new(everywhere(address), ip.gateway));
    }
    if !request.config.dns.is_empty() {
        result.dns = request.config.dns.clone();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_one_gateway_on_the_link_and_a_default_route_through_it() {
        let addresses = ["10.244.1.2", "fd00:10:244:1::2"].map(|address| address.parse().unwrap());
        let setup = setup(&addresses, 7);
        let shown: Vec<String> = setup
            .routes
            .iter()
            .map(|route| format!("{} {:?}", route.destination, route.hops[0].gateway))
            .collect();
        assert_eq!(
            shown,
            ["169.254.1.1/32 None", "0.0.0.0/0 Some(169.254.1.1)", "fe80::1/128 None", "::/0 Some(fe80::1)"]
        );
        assert_eq!(setup.addresses[1].to_string(), "fd00:10:244:1::2/128");
        assert_eq!(setup.neighbours.len(), 2);
        assert_eq!(host_route(addresses[0], 7).protocol, POD_ROUTE_PROTOCOL);
    }
}
