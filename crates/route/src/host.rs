//! The host's own network as far as the deciders of this crate ask about it.
//!
//! [`Host`] is what the agent has read from the kernel: links, addresses and the main routing table, those that
//! Fairlead made itself included and marked (`ours`), but for the routes to peers, which nothing is decided by. The deciders
//! only read it. What a field means follows
//! rtnetlink(7).

use std::net::IpAddr;

use ipnet::IpNet;

use crate::family::Family;

/// The links, addresses and routes of a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Every link of the namespace.
    pub links: Vec<HostLink>,
    /// Every address of every link, in the kernel's order, which is the order of preference within a link.
    pub addresses: Vec<HostAddress>,
    /// The unicast routes of the main table.
    pub routes: Vec<HostRoute>,
    /// Whether a new link has the strict reverse-path filter (`rp_filter` 1): drops what comes by another link than its
    /// answer would leave by.
    pub strict_reverse_path: bool,
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostLink {
    /// Its name.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Whether it is set up by the administrator.
    pub up: bool,
    /// Whether it is the loopback link.
    pub loopback: bool,
    /// Whether it carries Fairlead's mark: the tunnel's device or the host end of a pod's link.
    pub ours: bool,
    /// Its `accept_ra` sysctl: whether it listens to router advertisements (0 no, 1 unless forwarding, 2 always).
    /// None where there is no IPv6.
    pub accept_ra: Option<u8>,
}

/// An address on a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAddress {
    /// The link that holds it.
    pub link: String,
    /// The address with the prefix of its subnet, host bits kept.
    pub address: IpNet,
    /// Whether the address means something beyond the link and the host (scope global).
    pub global: bool,
    /// Whether it must not be chosen for something that lasts: deprecated, temporary, tentative or failed
    /// duplicate detection.
    pub avoid: bool,
    /// Whether it was configured without a lifetime.
    pub permanent: bool,
}

/// A unicast route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRoute {
    /// Where it leads: `0.0.0.0/0` and `::/0` are default routes.
    pub destination: IpNet,
    /// The outgoing link of its first next hop, where it has one.
    pub link: Option<String>,
    /// The next hop, none for a directly attached network.
    pub gateway: Option<IpAddr>,
    /// The address the kernel would send from, where the route says so.
    pub source: Option<IpAddr>,
    /// Its metric; the smallest wins.
    pub metric: u32,
    /// Whether it carries one of Fairlead's route protocols.
    pub ours: bool,
}

impl Host {
    /// The link of that name.
    #[must_use]
    pub fn link(&self, name: &str) -> Option<&HostLink> {
        self.links.iter().find(|link| link.name == name)
    }

    /// Whether a link of that name is there and carries our mark.
    #[must_use]
    pub fn is_ours(&self, name: &str) -> bool {
        self.link(name).is_some_and(|link| link.ours)
    }

    /// The entry that holds exactly this address.
    #[must_use]
    pub fn holder(&self, address: IpAddr) -> Option<&HostAddress> {
        self.addresses.iter().find(|entry| entry.address.addr() == address)
    }

    /// The default route of a family that the kernel would take: the one of smallest metric.
    #[must_use]
    pub fn default_route(&self, family: Family) -> Option<&HostRoute> {
        self.routes
            .iter()
            .filter(|route| {
                route.destination.prefix_len() == 0 && Family::of_net(&route.destination) == family
            })
            .filter(|route| route.link.is_some() && !route.ours)
            .min_by_key(|route| route.metric)
    }

    /// The links that could be chosen as an underlay, now or once they are up: the host's own that hold an address with which
    /// peers could be spoken to. One that holds several is named several times.
    pub fn candidates(&self) -> impl Iterator<Item = &str> {
        let holders = self.addresses.iter().filter(|entry| entry.global).map(|entry| entry.link.as_str());
        holders.filter(|link| self.is_outside(link))
    }

    /// The link over which the kernel reaches an address without a router in between, as the main table's longest prefix has it.
    pub(crate) fn link_without_router(&self, address: IpAddr) -> Option<&str> {
        let best = self
            .routes
            .iter()
            .filter(|route| route.destination.contains(&address) && !route.ours)
            .max_by_key(|route| (route.destination.prefix_len(), std::cmp::Reverse(route.metric)))?;
        best.link.as_deref().filter(|link| best.gateway.is_none() && self.is_outside(link))
    }

    /// The links that listen to router advertisements and live by them: they hold a global IPv6 address with a
    /// lifetime. Others must not begin to listen: a pod could be at the far end.
    pub(crate) fn advertised_links(&self) -> impl Iterator<Item = &str> {
        let lives_by_them = |name: &str| {
            self.addresses.iter().any(|entry| {
                entry.link == name
                    && entry.global
                    && !entry.permanent
                    && Family::of_net(&entry.address) == Family::V6
            })
        };
        self.links
            .iter()
            .filter(|link| !link.loopback && !link.ours && link.accept_ra.is_some_and(|value| value != 0))
            .map(|link| link.name.as_str())
            .filter(move |name| lives_by_them(name))
    }

    /// Whether a link is the host's own: neither loopback nor one of ours.
    pub(crate) fn is_outside(&self, name: &str) -> bool {
        self.link(name).is_some_and(|link| !link.loopback && !link.ours)
    }
}
