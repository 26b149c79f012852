//! The host's own network, read from the kernel for those who decide.
//!
//! Read [`read_host`]: it fills `route::Host`, on which the choice of the underlay and the check for overlaps stand, without the
//! agent's own routes, which are as many as there are peers and decide nothing;
//! [`read_reached`] asks the kernel for the way to single addresses. The
//! agent looks through it, and so does whoever wants to know beforehand what the agent will decide.

use std::net::IpAddr;

use kernel::netlink::Socket;
use kernel::{address, link, route as routes, sysctl};
use netstate::{BRIDGE_ALIAS, LINK_ALIAS, MAIN_TABLE, POD_ROUTE_PROTOCOL, ROUTE_PROTOCOL};
use route::{Family, Host, HostAddress, HostLink, HostRoute, Reached};

/// The links, addresses and routes of the socket's namespace, which must be the calling thread's too: sysctls are read.
///
/// # Errors
/// When the kernel refuses to list them.
pub fn read_host(socket: &mut Socket) -> Result<Host, kernel::Error> {
    let links = link::list(socket, link::Filter::default())?;
    let name = |index: u32| links.iter().find(|link| link.index == index).map(|link| link.name.clone());
    let addresses = address::list(socket, None, None)?
        .iter()
        .filter_map(|entry| Some(host_address(entry, name(entry.link)?)))
        .collect();
    let main = routes::Filter { table: Some(MAIN_TABLE), ..routes::Filter::default() };
    let routes = routes::list(socket, main)?
        .iter()
        .filter(|route| route.kind == routes::Kind::Unicast && route.protocol != ROUTE_PROTOCOL)
        .map(|route| host_route(route, name))
        .collect();
    let strict_reverse_path = is_strict(links.iter().filter(|link| is_agents(link)));
    let links = links.iter().map(host_link).collect();
    Ok(Host { links, addresses, routes, strict_reverse_path })
}

/// How the kernel reaches these addresses now: what it finds no way to is among them, without one.
///
/// # Errors
/// When the kernel refuses to look.
pub fn read_reached(socket: &mut Socket, targets: &[IpAddr]) -> Result<Vec<Reached>, kernel::Error> {
    let mut reached = Vec::with_capacity(targets.len());
    for target in targets {
        let found = routes::get(socket, *target)?.filter(|route| route.kind == routes::Kind::Unicast);
        let hop = found.as_ref().and_then(|route| route.hops.first()).and_then(|hop| hop.link);
        let link = hop.map(|index| link::find(socket, index)).transpose()?.flatten();
        reached.push(Reached {
            target: *target,
            link: link.map(|link| link.name),
            source: found.and_then(|route| route.source),
        });
    }
    Ok(reached)
}

/// Whether one of these links filters strictly, or one made now would. Of the value for all links and a link's own the larger counts;
/// a new link has the default one.
fn is_strict<'a>(mut links: impl Iterator<Item = &'a link::Link>) -> bool {
    let value = |name: &str| {
        let read = sysctl::read(&format!("net/ipv4/conf/{name}/rp_filter")).ok();
        read.and_then(|value| value.parse::<u8>().ok()).unwrap_or_default()
    };
    let all = value("all");
    all.max(value("default")) == 1 || links.any(|link| all.max(value(&link.name)) == 1)
}

fn host_link(link: &link::Link) -> HostLink {
    let outside = !link.is_loopback() && !is_ours(link);
    // A link that goes away meanwhile, or a kernel without IPv6, has no such sysctl.
    let accept_ra = outside
        .then(|| sysctl::read(&format!("net/ipv6/conf/{}/accept_ra", link.name)).ok())
        .flatten()
        .and_then(|value| value.parse().ok());
    HostLink {
        name: link.name.clone(),
        mtu: link.mtu,
        up: link.is_up(),
        loopback: link.is_loopback(),
        ours: is_ours(link),
        accept_ra,
    }
}

/// Whether a link carries the agent's mark or that of the plugins.
fn is_ours(link: &link::Link) -> bool {
    is_agents(link) || link.alias.as_deref().is_some_and(|alias| alias == BRIDGE_ALIAS || is_pod_alias(alias))
}

/// Whether a link carries the agent's mark.
pub(crate) fn is_agents(link: &link::Link) -> bool {
    link.alias.as_deref() == Some(LINK_ALIAS)
}

pub(crate) fn is_pod_alias(alias: &str) -> bool {
    alias.strip_prefix(LINK_ALIAS).is_some_and(|rest| rest.starts_with(':'))
}

fn host_address(entry: &address::Address, link: String) -> HostAddress {
    /// Address flags of linux/if_addr.h. The first means "temporary" for IPv6 only.
    const TEMPORARY: u32 = 0x01;
    const DEPRECATED: u32 = 0x20;
    /// `RT_SCOPE_UNIVERSE`.
    const GLOBAL: u8 = 0;
    let temporary = Family::of_net(&entry.net) == Family::V6 && entry.flags & TEMPORARY != 0;
    HostAddress {
        link,
        address: entry.net,
        global: entry.scope == GLOBAL,
        avoid: temporary || entry.flags & DEPRECATED != 0 || entry.is_tentative() || entry.is_duplicate(),
        permanent: entry.is_permanent(),
    }
}

fn host_route(route: &routes::Route, name: impl Fn(u32) -> Option<String>) -> HostRoute {
    let hop = route.hops.first();
    HostRoute {
        destination: route.destination,
        link: hop.and_then(|hop| hop.link).and_then(name),
        gateway: hop.and_then(|hop| hop.gateway),
        source: route.source,
        metric: route.metric,
        ours: route.protocol == POD_ROUTE_PROTOCOL,
    }
}
