//! The node's network as a value. Read [`State`] first; every other type here is one kind of object in it.
//!
//! Each kind is kept in a map from what the kernel identifies the object by (its key) to the rest of it, so
//! two objects that the kernel cannot hold side by side cannot stand side by side here either. The insert
//! methods take the whole object; the iterators give it back whole.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::{LinkName, MAIN_TABLE, Mac, WireGuard, WireGuardPeer, WireGuardPeerKey, nft};

/// What one node's kernel holds, or should hold, for us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// Links by name.
    pub links: BTreeMap<LinkName, Link>,
    /// Addresses on links, with their prefix lengths.
    pub addresses: std::collections::BTreeSet<Address>,
    /// What WireGuard devices are told of themselves.
    pub wireguards: BTreeMap<LinkName, WireGuard>,
    /// Peers of WireGuard devices.
    pub wireguard_peers: BTreeMap<WireGuardPeerKey, WireGuardPeer>,
    /// Permanent neighbours.
    pub neighbours: BTreeMap<NeighbourKey, Mac>,
    /// Permanent forwarding entries: the underlay address behind a hardware address.
    pub fdb: BTreeMap<FdbKey, IpAddr>,
    /// Routes.
    pub routes: BTreeMap<RouteKey, RouteTarget>,
    /// Policy rules, within [`RULE_PRIORITIES`](crate::RULE_PRIORITIES).
    pub rules: std::collections::BTreeSet<PolicyRule>,
    /// nf_tables tables.
    pub tables: BTreeMap<nft::TableKey, nft::Table>,
    /// Sysctls by path below `/proc/sys`, such as `net/ipv4/ip_forward`. They are set, never removed: what a
    /// sysctl was before is not ours to know.
    pub sysctls: BTreeMap<String, String>,
}

/// A network interface of ours. Carries [`LINK_ALIAS`](crate::LINK_ALIAS) in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: LinkName,
    /// What it is; a change of it means a new link.
    pub kind: LinkKind,
    /// Largest packet in bytes; `None` leaves the kernel's choice.
    pub mtu: Option<u32>,
    /// Hardware address; `None` leaves the kernel's choice.
    pub mac: Option<Mac>,
    /// Administratively up.
    pub up: bool,
}

/// The kinds of link that the agent makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// A software bridge.
    Bridge,
    /// A VXLAN tunnel end.
    Vxlan(Vxlan),
    /// A link whose packets go to a program, through as many queues as it likes.
    Tun,
    /// A tunnel of the kernel's that puts packets into IPv4 packets.
    IpTunnel(IpTunnel),
    /// A WireGuard device. What it is told stands in [`State::wireguards`] and [`State::wireguard_peers`].
    WireGuard,
    /// A link with our mark that is not as we make any; in what was read back only, never wanted. The text says
    /// what is odd.
    Other(String),
}

/// The parameters of a VXLAN device. It never learns: its forwarding entries are ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vxlan {
    /// VXLAN network identifier, 24 bits.
    pub vni: u32,
    /// UDP destination port.
    pub port: u16,
    /// The underlay address that tunnelled packets leave from; its family is the underlay's.
    pub local: IpAddr,
    /// The underlay's link, if the device is to be bound to one.
    pub parent: Option<LinkName>,
}

/// The parameters of an IP in IPv4 device (`ipip`, RFC 2003; `sit`, RFC 4213). It has no far end: the gateway of each route
/// is where the outer packet goes, for IPv6 as an IPv4-compatible address. Outer packets live for 64 hops and are not cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpTunnel {
    /// True where the packets inside are IPv6.
    pub v6: bool,
    /// The underlay address that packets leave from, and are taken at.
    pub local: Ipv4Addr,
}

/// An address on a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The link that holds it.
    pub link: LinkName,
    /// The address and its prefix length.
    pub net: IpNet,
}

/// A permanent neighbour: this address on this link has this hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The link.
    pub link: LinkName,
    /// The neighbour's address.
    pub address: IpAddr,
    /// Its hardware address.
    pub mac: Mac,
}

/// What identifies a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NeighbourKey {
    /// The link.
    pub link: LinkName,
    /// The neighbour's address.
    pub address: IpAddr,
}

/// A permanent forwarding entry of a tunnel: frames for this hardware address go to that underlay address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdbEntry {
    /// The tunnel.
    pub link: LinkName,
    /// The hardware address of the far tunnel end.
    pub mac: Mac,
    /// Its underlay address.
    pub destination: IpAddr,
}

/// What identifies a forwarding entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbKey {
    /// The tunnel.
    pub link: LinkName,
    /// The hardware address.
    pub mac: Mac,
}

/// A route. Carries [`ROUTE_PROTOCOL`](crate::ROUTE_PROTOCOL) in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// What identifies it.
    pub key: RouteKey,
    /// Where it leads.
    pub target: RouteTarget,
}

/// What identifies a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// Where to.
    pub destination: IpNet,
    /// The routing table.
    pub table: u32,
    /// The metric; 0 is the kernel's default for the family (which IPv6 shows as 1024).
    pub metric: u32,
}

/// Where a route leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteTarget {
    /// What is done with a packet.
    pub kind: RouteKind,
    /// The gateway. A unicast route without one has link scope.
    pub via: Option<IpAddr>,
    /// The link it leaves by.
    pub link: Option<LinkName>,
    /// Take the gateway to be on the link whatever the addresses say.
    pub onlink: bool,
    /// The source address that local sockets get.
    pub source: Option<IpAddr>,
    /// The path's MTU in bytes, where it is smaller than the link's.
    pub mtu: Option<u32>,
}

/// What is done with a packet that a route matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteKind {
    /// Forward it.
    Unicast,
    /// Drop it silently.
    Blackhole,
    /// Drop it and tell the sender.
    Unreachable,
}

/// A policy rule: packets that match look up this table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyRule {
    /// Its place; within [`RULE_PRIORITIES`](crate::RULE_PRIORITIES).
    pub priority: u32,
    /// True for IPv6.
    pub v6: bool,
    /// Match on the source.
    pub from: Option<IpNet>,
    /// Match on the destination.
    pub to: Option<IpNet>,
    /// Match on the packet's mark: value and mask.
    pub mark: Option<(u32, u32)>,
    /// The table to look up.
    pub table: u32,
}

impl State {
    /// Puts a link in, in place of one with the same name.
    pub fn insert_link(&mut self, link: Link) {
        self.links.insert(link.name, link);
    }

    /// Puts an address in.
    pub fn insert_address(&mut self, address: Address) {
        self.addresses.insert(address);
    }

    /// Puts in what a WireGuard device is told of itself.
    pub fn insert_wireguard(&mut self, link: LinkName, device: WireGuard) {
        self.wireguards.insert(link, device);
    }

    /// Puts a peer of a WireGuard device in, in place of one with the same key.
    pub fn insert_wireguard_peer(&mut self, key: WireGuardPeerKey, peer: WireGuardPeer) {
        self.wireguard_peers.insert(key, peer);
    }

    /// Puts a neighbour in, in place of one with the same link and address.
    pub fn insert_neighbour(&mut self, neighbour: Neighbour) {
        self.neighbours.insert(neighbour.key(), neighbour.mac);
    }

    /// Puts a forwarding entry in, in place of one with the same link and hardware address.
    pub fn insert_fdb(&mut self, entry: FdbEntry) {
        self.fdb.insert(entry.key(), entry.destination);
    }

    /// Puts a route in, in place of one with the same destination, table and metric.
    pub fn insert_route(&mut self, route: Route) {
        self.routes.insert(route.key, route.target);
    }

    /// Puts a policy rule in.
    pub fn insert_rule(&mut self, rule: PolicyRule) {
        self.rules.insert(rule);
    }

    /// Puts an nf_tables table in, in place of one with the same family and name.
    pub fn insert_table(&mut self, table: nft::Table) {
        self.tables.insert(table.key.clone(), table);
    }

    /// Wants the sysctl at `path` (below `/proc/sys`, separated by `/`) to be `value`.
    pub fn insert_sysctl(&mut self, path: impl Into<String>, value: impl Into<String>) {
        self.sysctls.insert(path.into(), value.into());
    }

    /// The neighbours in order.
    pub fn neighbours(&self) -> impl Iterator<Item = Neighbour> {
        self.neighbours.iter().map(|(key, mac)| Neighbour { link: key.link, address: key.address, mac: *mac })
    }

    /// The forwarding entries in order.
    pub fn fdb(&self) -> impl Iterator<Item = FdbEntry> {
        self.fdb.iter().map(|(key, to)| FdbEntry { link: key.link, mac: key.mac, destination: *to })
    }

    /// The routes in order.
    pub fn routes(&self) -> impl Iterator<Item = Route> {
        self.routes.iter().map(|(key, target)| Route { key: *key, target: *target })
    }

    /// True when there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Neighbour {
    /// What identifies it.
    #[must_use]
    pub fn key(&self) -> NeighbourKey {
        NeighbourKey { link: self.link, address: self.address }
    }
}

impl FdbEntry {
    /// What identifies it.
    #[must_use]
    pub fn key(&self) -> FdbKey {
        FdbKey { link: self.link, mac: self.mac }
    }
}

impl Route {
    /// A route of the main table that leaves by `link`, scope link.
    #[must_use]
    pub fn on_link(destination: IpNet, link: LinkName) -> Self {
        let target = RouteTarget { link: Some(link), ..RouteTarget::none(RouteKind::Unicast) };
        Self { key: RouteKey::main(destination), target }
    }

    /// A route of the main table through `gateway`, taken to be on `link`.
    #[must_use]
    pub fn via_onlink(destination: IpNet, gateway: IpAddr, link: LinkName) -> Self {
        let mut route = Self::on_link(destination, link);
        route.target.via = Some(gateway);
        route.target.onlink = true;
        route
    }

    /// A route of the main table that drops what it matches.
    #[must_use]
    pub fn blackhole(destination: IpNet) -> Self {
        Self { key: RouteKey::main(destination), target: RouteTarget::none(RouteKind::Blackhole) }
    }
}

impl RouteKey {
    /// The key of a route of the main table with the default metric.
    #[must_use]
    pub fn main(destination: IpNet) -> Self {
        Self { destination, table: MAIN_TABLE, metric: 0 }
    }
}

impl RouteTarget {
    fn none(kind: RouteKind) -> Self {
        Self { kind, via: None, link: None, onlink: false, source: None, mtu: None }
    }
}
