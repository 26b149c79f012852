//! The facts about the node's network that several families of checks look at.

use kernel::link::{self, Link};
use kernel::netlink::{Protocol, Socket};
use kernel::route::{self, Route};

/// What there is in this network namespace.
pub(super) struct Network {
    /// As the agent's deciders see it.
    pub(super) host: ::route::Host,
    /// The links, with their kinds.
    pub(super) links: Vec<Link>,
    /// The routes of all tables.
    pub(super) routes: Vec<Route>,
    /// How the kernel reaches the addresses by which the underlay is to be chosen.
    pub(super) reached: Vec<::route::Reached>,
}

impl Network {
    /// Reads it, for a configuration that chooses the underlay by the way to these addresses. Needs no rights.
    pub(super) fn read(can_reach: &[std::net::IpAddr]) -> Result<Self, kernel::Error> {
        let mut socket = Socket::open(Protocol::Route)?;
        Ok(Self {
            host: ::agent::read_host(&mut socket)?,
            links: link::list(&mut socket, link::Filter::default())?,
            routes: route::list(&mut socket, route::Filter::default())?,
            reached: ::agent::read_reached(&mut socket, can_reach)?,
        })
    }

    /// Links that are not Fairlead's.
    pub(super) fn foreign_links(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(|link| self.host.link(&link.name).is_none_or(|link| !link.ours))
    }
}
