//! ADD: a cable is laid, and both of its ends are set up.
//!
//! Read [`add`], then [`setup`] and [`host_side`]: what either end gets. In the pod the address keeps the length of
//! its subnet, but the subnet is not on the link: everything goes by way of the gateway, which alone is. On the
//! host the gateway's address is on the cable, and a route leads to each of the pod's addresses. Each side is one
//! send, and so is making the cable.

use std::net::IpAddr;

use cni::{AddResult, Error, IpConfig, Request, delegate};
use ipnet::IpNet;
use kernel::address::{self, NewAddress};
use kernel::link::{self, Change};
use kernel::monitor::{Monitor, Topic};
use kernel::netlink::{Batch, Protocol, Socket};
use kernel::nft::Nft;
use kernel::route::{self, Route};
use netstate::POD_ROUTE_PROTOCOL;

use super::config::PtpConfig;
use crate::fault::fault;
use crate::interface::patience;
use crate::interface::pod::{Pod, Setup, routes};
use crate::interface::report;
use crate::interface::veth::{self, Cable};
use crate::owner::Owner;
use crate::undo::{Made, Undo};
use crate::{forwarding, masquerade};

/// Where the pod's interface stands in the result.
const POD: usize = 1;

/// The scope of a destination within this host (`RT_SCOPE_HOST`): the host's routes to its own pods.
const THIS_HOST: u8 = 254;

/// Wires a pod.
pub(super) fn add(request: &Request) -> Result<AddResult, Error> {
    let config = PtpConfig::of(request)?;
    let replaces_dns = report::says_dns(request)?;
    let owner = Owner::of(request);
    let mut wiring = Wiring {
        request,
        config: &config,
        owner: &owner,
        host: Socket::open(Protocol::Route).map_err(fault)?,
        pod: Pod::open(request.netns()?)?,
        undo: Undo::new(request, &owner),
    };
    match wiring.run() {
        Ok(result) if replaces_dns => Ok(AddResult { dns: request.config.dns.clone(), ..result }),
        Ok(result) => Ok(result),
        Err(error) => Err(wiring.undo.back(&mut wiring.host, error)),
    }
}

/// One ADD under way.
struct Wiring<'a> {
    request: &'a Request,
    config: &'a PtpConfig,
    owner: &'a Owner,
    host: Socket,
    pod: Pod,
    undo: Undo<'a>,
}

impl Wiring<'_> {
    fn run(&mut self) -> Result<AddResult, Error> {
        let name = &self.request.ifname;
        let cable = Cable {
            owner: self.owner,
            interface: name,
            pod_mac: None,
            host_mac: None,
            mtu: self.config.mtu,
            bridge: None,
            up: false,
        };
        let host_link = cable.lay(&mut self.host, &mut self.pod)?;
        self.undo.note(Made::Link(host_link.index));
        let found = self.pod.find(name)?;
        let pod_link = found
            .ok_or_else(|| Error::kernel(format!("{name} vanished from the pod while it was set up")))?;
        let mut result = self.addresses()?;
        let addresses: Vec<IpAddr> = result.ips.iter().map(|ip| ip.address.addr()).collect();
        veth::refuse_advertisements(&host_link.name)?;
        forwarding::enable(&mut self.host, addresses.iter().copied())?;
        self.pod.configure(&pod_link, &setup(&result, pod_link.index)?)?;
        let alias = self.owner.alias();
        let has_ipv6 = addresses.iter().any(IpAddr::is_ipv6);
        // Of use to no pod without IPv6, and each costs every later pod: see `Cable::up`.
        let without = if has_ipv6 { None } else { veth::no_link_local(&host_link) };
        let own = Change { alias: Some(&alias), address_generation: without, ..Change::default() };
        let up = Change { up: Some(true), ..Change::default() };
        let mut batch: Batch = [own, up].iter().map(|change| link::change(host_link.index, change)).collect();
        host_side(&result, host_link.index, &mut batch)?;
        self.host.execute(batch).map_err(|error| fault(error).context(&host_link.name))?;
        if self.config.masquerade {
            self.masquerade(&result)?;
        }
        let host_link = patience::carrier(&mut self.host, &host_link, || Monitor::open(&[Topic::Links]))?;
        if !has_ipv6 {
            veth::forget_multicast(&mut self.host, host_link.index);
        }
        self.pod.await_carrier(&pod_link)?;
        result.interfaces = vec![report::of_host(&host_link), report::in_pod(&pod_link, self.request)?];
        Ok(result)
    }

    fn addresses(&mut self) -> Result<AddResult, Error> {
        // Noted before it is asked: one that fails may have kept something.
        self.undo.note(Made::Addresses);
        let mut result = delegate::add(&self.request.config.ipam_kind, self.request)?;
        if result.ips.is_empty() {
            return Err(Error::internal("IPAM plugin returned missing IP config"));
        }
        result.ips.iter_mut().for_each(|ip| ip.interface = Some(POD));
        Ok(result)
    }

    fn masquerade(&mut self, result: &AddResult) -> Result<(), Error> {
        let mut nft = Nft::open().map_err(fault)?;
        for ip in &result.ips {
            self.undo.note(Made::Masqueraded(ip.address));
            let added = masquerade::add(&mut nft, self.owner, ip.address);
            added.map_err(|error| fault(error).context("ipMasq"))?;
        }
        Ok(())
    }
}

/// What the pod's end gets: the gateway on the link, the subnet by way of it, then the address plugin's routes.
pub(super) fn setup(result: &AddResult, link: u32) -> Result<Setup, Error> {
    let mut all = Vec::with_capacity(2 * result.ips.len() + result.routes.len());
    for ip in &result.ips {
        let (gateway, source) = (gateway(ip)?, Some(ip.address.addr()));
        all.push(Route { source, ..Route::on_link(IpNet::from(gateway), link) });
        if ip.address.prefix_len() < ip.address.max_prefix_len() {
            all.push(Route { source, ..Route::via(ip.address.trunc(), gateway, link) });
        }
    }
    all.extend(routes(result, link).into_iter().map(|route| reachable(route, result)));
    Ok(Setup {
        addresses: result.ips.iter().map(|ip| ip.address).collect(),
        routes: all,
        no_prefix_routes: true,
        ..Setup::default()
    })
}

/// A gateway within the pod's subnet counts as being on the link, although the subnet is not.
fn reachable(mut route: Route, result: &AddResult) -> Route {
    for hop in &mut route.hops {
        hop.onlink = hop.gateway.is_some_and(|gateway| {
            let mut ips = result.ips.iter();
            ips.all(|ip| ip.gateway != Some(gateway))
                && result.ips.iter().any(|ip| ip.address.contains(&gateway))
        });
    }
    route
}

/// What the host's end gets: the gateways' addresses, and routes to the pod's.
fn host_side(result: &AddResult, link: u32, batch: &mut Batch) -> Result<(), Error> {
    for gateway in gateways(result)? {
        batch.push(address::add(&NewAddress {
            skip_duplicate_detection: gateway.is_ipv6(),
            skip_prefix_route: true,
            ..NewAddress::new(link, IpNet::from(gateway))
        }));
    }
    for route in host_routes(result, link) {
        batch.push(route::replace(&route));
    }
    Ok(())
}

/// The gateways, each once.
pub(super) fn gateways(result: &AddResult) -> Result<Vec<IpAddr>, Error> {
    let mut gateways = result.ips.iter().map(gateway).collect::<Result<Vec<_>, _>>()?;
    gateways.sort_unstable();
    gateways.dedup();
    Ok(gateways)
}

/// The host's routes to the pod. Their protocol number says that they are a plugin's, not the agent's.
pub(super) fn host_routes(result: &AddResult, link: u32) -> Vec<Route> {
    let route = |ip: &IpConfig| Route {
        scope: THIS_HOST,
        protocol: POD_ROUTE_PROTOCOL,
        ..Route::on_link(IpNet::from(ip.address.addr()), link)
    };
    result.ips.iter().map(route).collect()
}

fn gateway(ip: &IpConfig) -> Result<IpAddr, Error> {
    let missing = || Error::invalid_config(format!("ipam: no gateway for {}, and ptp needs one", ip.address));
    ip.gateway.ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(ips: &[(&str, Option<&str>)], routes: &[(&str, Option<&str>)]) -> AddResult {
        let parse = |text: &str| text.parse().unwrap();
        let ip = |(net, gateway): &(&str, Option<&str>)| IpConfig {
            gateway: gateway.map(parse),
            ..IpConfig::new(net.parse().unwrap())
        };
        let route =
            |(net, gateway): &(&str, Option<&str>)| cni::Route::new(net.parse().unwrap(), gateway.map(parse));
        AddResult {
            ips: ips.iter().map(ip).collect(),
            routes: routes.iter().map(route).collect(),
            ..AddResult::default()
        }
    }

    #[test]
    fn only_the_gateway_is_on_the_link() {
        let result = result(
            &[("10.1.2.7/24", Some("10.1.2.1")), ("2001:db8::7/64", Some("2001:db8::1"))],
            &[("0.0.0.0/0", None), ("192.0.2.0/24", Some("10.1.2.9"))],
        );
        let shown: Vec<String> = setup(&result, 7)
            .unwrap()
            .routes
            .iter()
            .map(|route| {
                let hop = route.hops[0];
                format!("{} {:?} {:?} {}", route.destination, hop.gateway, route.source, hop.onlink)
            })
            .collect();
        assert_eq!(
            shown,
            [
                "10.1.2.1/32 None Some(10.1.2.7) false",
                "10.1.2.0/24 Some(10.1.2.1) Some(10.1.2.7) false",
                "2001:db8::1/128 None Some(2001:db8::7) false",
                "2001:db8::/64 Some(2001:db8::1) Some(2001:db8::7) false",
                "0.0.0.0/0 Some(10.1.2.1) None false",
                "192.0.2.0/24 Some(10.1.2.9) None true",
            ]
        );
    }

    #[test]
    fn two_addresses_of_one_subnet_share_the_gateway() {
        let result = result(&[("10.1.2.7/24", Some("10.1.2.1")), ("10.1.2.8/24", Some("10.1.2.1"))], &[]);
        assert_eq!(gateways(&result).unwrap().len(), 1);
        assert_eq!(host_routes(&result, 3).len(), 2);
    }

    #[test]
    fn an_address_alone_in_its_subnet_has_a_route_to_the_gateway_only() {
        let setup =
            setup(&result(&[("10.1.2.7/32", Some("169.254.1.1"))], &[("0.0.0.0/0", None)]), 7).unwrap();
        let destinations: Vec<String> =
            setup.routes.iter().map(|route| route.destination.to_string()).collect();
        assert_eq!(destinations, ["169.254.1.1/32", "0.0.0.0/0"]);
    }

    #[test]
    fn an_address_without_gateway_is_refused() {
        let error = setup(&result(&[("10.1.2.7/24", None)], &[]), 7).unwrap_err();
        assert!(error.message.contains("no gateway for 10.1.2.7/24"), "{error}");
    }
}
