//! One step towards a wanted state: what `kernel::apply` carries out and `fairlead plan` prints.

use std::net::IpAddr;

use crate::{
    Address, FdbEntry, Link, LinkName, Mac, Neighbour, PolicyRule, Route, RouteTarget, WireGuard,
    WireGuardPeer, WireGuardPeerKey, nft,
};

/// One step. What a set-step replaces is told, so that a plan shows what was there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make a link.
    CreateLink(Link),
    /// Change a link's MTU, hardware address or up-ness to what `to` says.
    ChangeLink {
        /// The link as it is.
        from: Link,
        /// The link as it shall be; same name and kind.
        to: Link,
    },
    /// Remove a link and all that is on it.
    DeleteLink(LinkName),
    /// Write a sysctl.
    SetSysctl {
        /// Its path below `/proc/sys`.
        path: String,
        /// Its new value.
        value: String,
        /// Its value now; `None` when it could not be read.
        was: Option<String>,
    },
    /// Add an address.
    AddAddress(Address),
    /// Remove an address.
    DeleteAddress(Address),
    /// Tell a WireGuard device who it is and where it listens.
    SetWireGuard {
        /// The device.
        link: LinkName,
        /// What it is told.
        device: WireGuard,
        /// What it was told before.
        was: Option<WireGuard>,
    },
    /// Make a peer of a WireGuard device, or change it; its session goes on.
    SetWireGuardPeer {
        /// Which.
        key: WireGuardPeerKey,
        /// What it is to be.
        peer: WireGuardPeer,
        /// What it is now.
        was: Option<WireGuardPeer>,
    },
    /// Remove a peer of a WireGuard device.
    DeleteWireGuardPeer(WireGuardPeerKey),
    /// Make or replace a neighbour.
    SetNeighbour {
        /// The neighbour.
        neighbour: Neighbour,
        /// The hardware address it has now.
        was: Option<Mac>,
    },
    /// Remove a neighbour.
    DeleteNeighbour(Neighbour),
    /// Make or replace a forwarding entry.
    SetFdb {
        /// The entry.
        entry: FdbEntry,
        /// The underlay address it leads to now.
        was: Option<IpAddr>,
    },
    /// Remove a forwarding entry.
    DeleteFdb(FdbEntry),
    /// Make or replace a route.
    SetRoute {
        /// The route.
        route: Route,
        /// Where it leads now.
        was: Option<RouteTarget>,
    },
    /// Remove a route.
    DeleteRoute(Route),
    /// Add a policy rule.
    AddRule(PolicyRule),
    /// Remove a policy rule.
    DeleteRule(PolicyRule),
    /// A step within an nf_tables table; those of one table stand together and are one transaction.
    Nft(nft::Step),
}
