//! CHECK: is everything that ADD made still there, and still as it was?
//!
//! Read [`check`]. What is missing comes back in words that name it.

use cni::{AddResult, Error, Request, delegate};
use ipnet::IpNet;
use kernel::link::{self, Kind, Link};
use kernel::netlink::{Protocol, Socket};
use kernel::nft::Nft;
use kernel::{address, route};

use super::add::{gateways, host_routes, setup};
use super::config::PtpConfig;
use crate::fault::fault;
use crate::interface::pod::Pod;
use crate::interface::report::{Previous, complain, complain_of, same_mac};
use crate::masquerade;
use crate::owner::Owner;

/// Checks an attachment.
pub(super) fn check(request: &Request) -> Result<(), Error> {
    let config = PtpConfig::of(request)?;
    let previous = Previous::of(request)?;
    delegate::check(&request.config.ipam_kind, request)?;
    let name = &request.ifname;
    let mut pod = Pod::open(request.netns()?)?;
    let pod_link = previous.link(request, &mut pod)?;
    if pod_link.kind != Kind::Veth {
        return Err(Error::kernel(format!("{name} in the pod is no longer a veth")));
    }
    if !pod_link.is_up() {
        return Err(Error::kernel(format!("{name} in the pod is down")));
    }
    let result = previous.about(name);
    complain(pod.missing(&pod_link, &setup(&result, pod_link.index)?)?)?;
    let mut host = Socket::open(Protocol::Route).map_err(fault)?;
    let host_link = host_end(&mut host, &pod_link)?;
    same_mac(previous.of_host(&host_link.name)?, &host_link)?;
    complain(lacking_on_host(&mut host, &host_link, &result)?)?;
    if config.masquerade {
        let (owner, mut nft) = (Owner::of(request), Nft::open().map_err(fault)?);
        for ip in &result.ips {
            complain_of(masquerade::missing(&mut nft, &owner, ip.address))?;
        }
    }
    Ok(())
}

fn host_end(host: &mut Socket, pod_link: &Link) -> Result<Link, Error> {
    let end = pod_link.parent.map(|index| link::find(host, index).map_err(fault)).transpose()?.flatten();
    let is_other_end = |link: &Link| link.kind == Kind::Veth && link.parent == Some(pod_link.index);
    end.filter(is_other_end)
        .ok_or_else(|| Error::kernel(format!("the host's end of {} is gone", pod_link.name)))
}

fn lacking_on_host(host: &mut Socket, link: &Link, result: &AddResult) -> Result<Option<String>, Error> {
    let name = &link.name;
    if !link.is_up() {
        return Ok(Some(format!("the host's end {name} is down")));
    }
    let held = address::list(host, Some(link.index), None).map_err(fault)?;
    for gateway in gateways(result)? {
        if !held.iter().any(|held| held.net == IpNet::from(gateway)) {
            return Ok(Some(format!("{name} does not have the gateway address {gateway}")));
        }
    }
    let filter = route::Filter { link: Some(link.index), ..route::Filter::default() };
    let routes = route::list(host, filter).map_err(fault)?;
    let gone = host_routes(result, link.index)
        .into_iter()
        .find(|wanted| !routes.iter().any(|route| route.destination == wanted.destination));
    Ok(gone.map(|route| format!("the host's route to {} over {name} is gone", route.destination.addr())))
}
