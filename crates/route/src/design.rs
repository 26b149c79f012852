//! From this node's lease and those of its peers to the state of its kernel.
//!
//! Read [`design`]; it is a function of its [`Inputs`] and computes the whole state (5,000 peers take
//! milliseconds), so the state after any history is the state of a fresh start; `amend.rs` does the same for a few peers. How a peer is reached is decided in
//! `peers.rs`; what that takes stands in a file for each way: `vxlan.rs`, `host_gw.rs`, `tunnel.rs` and, where the kernel
//! carries such a tunnel itself, `kernel_tunnel.rs`. A peer that
//! cannot be programmed whole is left out whole and reported as a [`Problem`].
//!
//! The node's own pod CIDRs lead to an `unreachable` route at a metric behind everything else: a pod's own
//! route, more specific, wins, and so does a bridge's connected route; an address no pod has is answered at
//! once instead of bouncing between nodes.
//!
//! What arrives by one way is also routed back by it, which even a strict `rp_filter` accepts, but for the two seconds in which
//! two nodes change their backend one after the other. So where it is strict the tunnels' own devices are made loose; the
//! host's links are left as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use cluster::{Backend, Lease, Snapshot};
use ipnet::IpNet;
use netstate::pool::{base_address, host as host_net};
use netstate::{Address, Link, LinkKind, LinkName, Route, RouteKey, RouteKind, RouteTarget, State};

use crate::by_family::ByFamily;
use crate::carried::{self, Overlaps};
use crate::family::Family;
use crate::host::Host;
use crate::kernel_tunnel::{self, InKernel};
use crate::keys;
use crate::masquerade::{self, Masquerade};
use crate::mtu;
use crate::peers::{Peer, Seen, Way, carries, former, is_changing, peers, ways_in};
use crate::problem::Problem;
use crate::senders::Senders;
use crate::tunnel::{TunnelDesign, TunnelKind, TunnelPeer};
use crate::tunnel_guard::Entrance;
use crate::underlay::Underlay;
use crate::{antispoof, host_gw, vxlan};

/// The metric of the `unreachable` routes to the node's own pod CIDRs: behind whatever a bridge or a person adds.
pub const UNREACHABLE_METRIC: u32 = 65_000;

/// The metric of the routes by which WireGuard refuses and counts what is behind no peer: in front of the `unreachable` ones.
const COUNTED_METRIC: u32 = UNREACHABLE_METRIC - 1;

/// All that the node's state follows from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The cluster: nodes, leases and claims.
    pub snapshot: &'a Snapshot,
    /// This node's lease, as published or about to be.
    pub lease: &'a Lease,
    /// By what this node sends: the backend of its lease, but while it changes from another one.
    pub sends: &'a Backend,
    /// Whether its peers have had the time to hear of the key that takes the place of the one in force.
    pub sends_next: bool,
    /// What it had before, while there may be peers that have not heard yet that it changes: it receives by that, too.
    pub keeps: &'a [Backend],
    /// What peers had before that have another backend since a moment ago: until they send by that they send by this.
    pub former: &'a BTreeMap<Arc<str>, Vec<Backend>>,
    /// Where tunnels start.
    pub underlay: &'a Underlay,
    /// The underlay of each family, for packets that travel plainly.
    pub underlays: &'a BTreeMap<Family, Underlay>,
    /// The largest packet, in bytes, that the underlay carries.
    pub carried: u32,
    /// The largest packet, in bytes, that was seen to reach an underlay address, where that is less than links and leases
    /// say.
    pub path_mtus: &'a BTreeMap<IpAddr, u32>,
    /// The VXLAN tunnels of the cluster.
    pub vxlan: VxlanSettings,
    /// Which of the tunnels this host's kernel carries itself.
    pub kernel: InKernel,
    /// The UDP port of [`TunnelKind::Udp`], where there is one.
    pub udp_port: u16,
    /// The cluster's pod networks.
    pub cluster: &'a [IpNet],
    /// How pod traffic that leaves the cluster is translated.
    pub masquerade: Masquerade<'a>,
    /// How far it is looked at who sends.
    pub senders: Senders,
    /// The host's links and addresses.
    pub host: &'a Arc<Host>,
}

/// What VXLAN tunnels of this node are like, where there are any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VxlanSettings {
    /// The network identifier, 24 bits.
    pub vni: u32,
    /// The UDP port.
    pub port: u16,
    /// Whether peers on the underlay's own link are reached without a tunnel.
    pub direct_routing: bool,
}

/// The wanted state of a node, and what could not be part of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Design {
    /// What the kernel shall hold.
    pub state: State,
    /// The tunnels that a program shall have, beside what the kernel holds.
    pub tunnels: BTreeMap<TunnelKind, TunnelDesign>,
    /// The peers that are programmed, and the path to each of their families.
    pub peers: BTreeMap<Arc<str>, ByFamily<Path>>,
    /// Why others are not, or in part only, by node; also this node's own trouble.
    pub problems: BTreeMap<Arc<str>, Problem>,
}

/// The path to a peer's pods of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// How packets travel.
    pub way: Way,
    /// The largest packet that pods of this node send there, in bytes.
    pub mtu: u32,
    /// What the largest packet on the way is, in bytes, as far as links and leases say: with what the tunnel adds.
    pub full: u32,
}

/// Pod CIDRs of before of these nodes that others have now.
type Superseded<'a> = BTreeSet<(&'a Arc<str>, IpNet)>;

/// Designs the node's state.
#[must_use]
pub fn design(inputs: &Inputs<'_>) -> Design {
    let mut design = Design::default();
    let Overlaps { nodes: overlaps, cidrs: superseded } = carried::find(inputs);
    if *inputs.sends != Backend::None {
        let mut seen = Seen::of(inputs);
        for lease in peers(inputs) {
            match Peer::check(inputs, lease, &overlaps, &mut seen) {
                Ok(peer) => {
                    let partly = peer.partly.clone();
                    design.problems.extend(partly.map(|problem| (lease.node.clone(), problem)));
                    let cidrs: Vec<IpNet> = carried_by(lease, &superseded).collect();
                    let paths = peer_part(&mut design.state, inputs, &peer, &cidrs);
                    design.peers.insert(lease.node.clone(), paths);
                }
                Err(problem) => drop(design.problems.insert(lease.node.clone(), problem)),
            }
        }
    }
    if let Some(problem) = overlaps.get(&inputs.lease.node) {
        design.problems.insert(inputs.lease.node.clone(), problem.clone());
    }
    own_part(&mut design, inputs, &superseded);
    design
}

/// What the node needs whoever its peers are: its tunnels' ends, the unreachable routes, the masquerade and the sysctls.
fn own_part(design: &mut Design, inputs: &Inputs<'_>, superseded: &Superseded<'_>) {
    for cidr in &inputs.lease.pod_cidrs {
        design.state.insert_route(unreachable(*cidr));
    }
    let mut used: Vec<Way> = design.peers.values().flat_map(ByFamily::values).map(|path| path.way).collect();
    if is_changing(inputs) {
        let leases = design.peers.keys().filter_map(|node| inputs.snapshot.leases.get(node));
        used.extend(leases.flat_map(|lease| ways_in(inputs, lease)));
    }
    let backends: Vec<&Backend> =
        [inputs.sends, &inputs.lease.backend].into_iter().chain(inputs.keeps).collect();
    let mut devices: Vec<LinkName> = Vec::new();
    let mut entrances: Vec<Entrance> = Vec::new();
    if backends.iter().any(|backend| matches!(backend, Backend::WireGuard { .. })) {
        let families: Vec<Family> =
            Family::ALL.into_iter().filter(|family| carries(inputs.lease, *family)).collect();
        guard(inputs.cluster, &families).routes().for_each(|route| design.state.insert_route(route));
        counted(inputs, &families).for_each(|route| design.state.insert_route(route));
    }
    let is_vxlan = |backend: &&Backend| matches!(backend, Backend::Vxlan { .. });
    if backends.iter().any(is_vxlan) || used.iter().any(|way| matches!(way, Way::Vxlan { .. })) {
        let link = vxlan::device(inputs);
        entrances.push(Entrance::Udp(inputs.vxlan.port));
        let devices_of = [(link, &Family::ALL[..]), (vxlan::device_v6(inputs), &[Family::V6])];
        let made = devices_of.into_iter().filter_map(|(link, families)| Some((link?, families)));
        devices.extend(made.map(|(link, families)| device_part(&mut design.state, inputs, link, families)));
    }
    for kind in TunnelKind::ALL {
        let uses = |way: &Way| matches!(way, Way::Tunnel { kind: of, .. } if *of == kind);
        let takes = |backend: &&Backend| TunnelKind::all_of(backend).any(|taken| taken == kind);
        if backends.iter().any(takes) || used.iter().any(uses) {
            devices.extend(tunnel_part(design, inputs, kind, superseded));
            entrances.extend(match kind {
                TunnelKind::Udp => Some(Entrance::Udp(inputs.udp_port)),
                TunnelKind::Ipip => Some(Entrance::IpInIp),
                TunnelKind::WireGuard | TunnelKind::WireGuardOdd => None,
            });
        }
    }
    if !inputs.masquerade.families.is_empty() {
        design.state.insert_table(masquerade::table(&inputs.masquerade, inputs.cluster, &devices));
    }
    if let Some(table) = antispoof::table(inputs, &entrances) {
        design.state.insert_table(table);
    }
    sysctls(&mut design.state, inputs);
}

/// What keeps packets to the cluster's pods from leaving by any way but one to their own node: where pods' packets are to
/// be encrypted, they must not take the default route while there is no tunnel. It stays where a node leaves the cluster.
/// `families` are those that the node takes part with: a kernel without IPv6 has no such routes either.
#[must_use]
pub fn guard(cluster: &[IpNet], families: &[Family]) -> State {
    let mut state = State::default();
    let networks = cluster.iter().filter(|net| families.contains(&Family::of_net(net)));
    networks.for_each(|net| state.insert_route(unreachable(net.trunc())));
    state
}

/// Routes of the same networks into the tunnel, in front of those of [`guard`]. WireGuard refuses what is behind no peer, tells the
/// sender and counts it, which an `unreachable` route does not; that is there for when the device is away. What has a way
/// takes the route to its node, and is asked nothing for it.
fn counted(inputs: &Inputs<'_>, families: &[Family]) -> impl Iterator<Item = Route> {
    let device = keys::ours(inputs).and_then(TunnelKind::of).and_then(|kind| kind.device().parse().ok());
    let networks = inputs.cluster.iter().filter(|net| families.contains(&Family::of_net(net)));
    networks.filter_map(move |net| {
        let mut route = Route::on_link(net.trunc(), device?);
        route.key.metric = COUNTED_METRIC;
        Some(route)
    })
}

fn unreachable(destination: IpNet) -> Route {
    let key = RouteKey { metric: UNREACHABLE_METRIC, ..RouteKey::main(destination) };
    let target = RouteTarget { kind: RouteKind::Unreachable, ..Route::blackhole(destination).target };
    Route { key, target }
}

/// A tunnel's device for these families, with the base address of each of the node's pod CIDRs as the tunnel's end.
fn device_part(state: &mut State, inputs: &Inputs<'_>, link: Link, families: &[Family]) -> LinkName {
    let name = link.name;
    state.insert_link(link);
    for cidr in inputs.lease.pod_cidrs.iter().filter(|cidr| families.contains(&Family::of_net(cidr))) {
        state.insert_address(Address { link: name, net: host_net(base_address(*cidr)) });
    }
    // Loose: while two nodes change their way one after the other, what comes by the tunnel is answered by another one.
    if inputs.host.strict_reverse_path {
        state.insert_sysctl(format!("net/ipv4/conf/{name}/rp_filter"), "2");
    }
    if families.contains(&Family::V6) && carries(inputs.lease, Family::V6) {
        state.insert_sysctl(format!("net/ipv6/conf/{name}/accept_ra"), "0");
        state.insert_sysctl(format!("net/ipv6/conf/{name}/disable_ipv6"), "0");
    }
    name
}

/// The devices of a tunnel, and what whoever carries it is told: the kernel, or a program.
fn tunnel_part(
    design: &mut Design,
    inputs: &Inputs<'_>,
    kind: TunnelKind,
    superseded: &Superseded<'_>,
) -> Vec<LinkName> {
    let Ok(device) = kind.device().parse::<LinkName>() else { return Vec::new() };
    let mtu = inputs.carried.saturating_sub(kind.overhead(Family::of(inputs.underlay.address)));
    let peers = tunnel_peers(design, inputs, kind, superseded);
    if inputs.kernel.carries(kind) {
        let devices = kernel_tunnel::devices(inputs, kind, mtu).into_iter();
        let made: Vec<LinkName> =
            devices.map(|(link, families)| device_part(&mut design.state, inputs, link, &families)).collect();
        if kind.is_wireguard() {
            kernel_tunnel::configure(&mut design.state, inputs, kind, device, peers);
        }
        return made;
    }
    let link = Link { name: device, kind: LinkKind::Tun, mtu: Some(mtu), mac: None, up: true };
    device_part(&mut design.state, inputs, link, &Family::ALL);
    let generation = keys::own(inputs, kind).map_or(0, |key| key.generation);
    let (port, underlay) = (own_port(inputs, kind), inputs.underlay.address);
    let tunnel = TunnelDesign { device, generation, port, underlay, mtu, peers };
    design.tunnels.insert(kind, tunnel);
    vec![device]
}

/// With whom a tunnel speaks.
fn tunnel_peers(
    design: &Design,
    inputs: &Inputs<'_>,
    kind: TunnelKind,
    superseded: &Superseded<'_>,
) -> Vec<TunnelPeer> {
    let leases = design.peers.keys().filter_map(|node| inputs.snapshot.leases.get(node));
    let peers = leases.filter_map(|lease| {
        let cidrs = carried_by(lease, superseded).filter(|cidr| carries(inputs.lease, Family::of_net(cidr)));
        tunnel_peer(inputs, lease, kind, cidrs.collect())
    });
    peers.collect()
}

/// The pod CIDRs of a peer, but those of before that are another node's now.
fn carried_by<'a>(lease: &'a Lease, superseded: &'a Superseded<'_>) -> impl Iterator<Item = IpNet> + 'a {
    lease.pod_cidrs.iter().copied().filter(|cidr| !superseded.contains(&(&lease.node, *cidr)))
}

/// The port that a tunnel of this node listens on; 0 for what has none.
pub(crate) fn own_port(inputs: &Inputs<'_>, kind: TunnelKind) -> u16 {
    match kind {
        TunnelKind::Udp => inputs.udp_port,
        TunnelKind::WireGuard | TunnelKind::WireGuardOdd => keys::own(inputs, kind).map_or(0, |key| key.port),
        TunnelKind::Ipip => 0,
    }
}

fn sysctls(state: &mut State, inputs: &Inputs<'_>) {
    if carries(inputs.lease, Family::V4) {
        state.insert_sysctl("net/ipv4/ip_forward", "1");
    }
    if !carries(inputs.lease, Family::V6) {
        return;
    }
    // A host that forwards ignores router advertisements unless told to go on: without this, a machine that has its
    // address and default route from them would lose both soon after the agent starts.
    for link in inputs.host.advertised_links() {
        state.insert_sysctl(format!("net/ipv6/conf/{link}/accept_ra"), "2");
    }
    state.insert_sysctl("net/ipv6/conf/all/forwarding", "1");
}

/// What packets to a peer take in the kernel; returns the paths.
pub(crate) fn peer_part(
    state: &mut State,
    inputs: &Inputs<'_>,
    peer: &Peer<'_>,
    cidrs: &[IpNet],
) -> ByFamily<Path> {
    let mut paths = ByFamily::default();
    for (family, way) in peer.ways.iter() {
        let path = path(inputs, peer.lease, family, way);
        let mtu = path.mtu;
        paths.insert(family, path);
        for cidr in cidrs.iter().copied().filter(|cidr| Family::of_net(cidr) == family) {
            let mut route = match way {
                Way::Vxlan { mac, underlay } => vxlan::peer_part(state, inputs, cidr, (*mac, *underlay)),
                Way::Tunnel { kind, underlay } if inputs.kernel.carries(*kind) => {
                    kernel_tunnel::route(cidr, *kind, *underlay)
                }
                Way::Tunnel { kind, .. } => {
                    kind.device().parse().ok().map(|device| Route::on_link(cidr, device))
                }
                Way::Direct { link, gateway } => Some(host_gw::route(cidr, *gateway, *link)),
            };
            if let Some(route) = &mut route {
                // The pods' own links say no more than the node's.
                route.target.mtu = Some(mtu).filter(|mtu| *mtu < inputs.lease.mtu);
                state.insert_route(*route);
            }
        }
    }
    paths
}

/// What a program is told of a peer, whichever way packets to it travel now: it may send by this tunnel already.
pub(crate) fn tunnel_peer(
    inputs: &Inputs<'_>,
    lease: &Lease,
    kind: TunnelKind,
    cidrs: Vec<IpNet>,
) -> Option<TunnelPeer> {
    let family = Family::of(inputs.underlay.address);
    let underlay = lease.underlay.iter().copied().find(|address| Family::of(*address) == family)?;
    let (port, public_key) = match (kind, &lease.backend) {
        // A node of flannel does not tell its port.
        (TunnelKind::Udp, Backend::Udp { port }) if !lease.flannel.is_member() => (*port, None),
        (kind, theirs) if kind.is_wireguard() => {
            let mut theirs = [theirs].into_iter().chain(former(inputs, lease));
            let key = theirs.find_map(|theirs| keys::of_peer(inputs, kind, theirs))?;
            (key.port, Some(key.public_key))
        }
        (kind, _) => (own_port(inputs, kind), None),
    };
    let way = Way::Tunnel { kind, underlay };
    let families = Family::ALL.into_iter().filter(|family| carries(inputs.lease, *family));
    let mtu = families.map(|family| path(inputs, lease, family, &way).mtu).min().unwrap_or_default();
    Some(TunnelPeer { node: lease.node.clone(), underlay, port, pod_cidrs: cidrs, mtu, public_key })
}

/// The path to a peer: the way, or the peer's pods, may take less than pods of this node send.
fn path(inputs: &Inputs<'_>, lease: &Lease, family: Family, way: &Way) -> Path {
    let overhead = match way {
        Way::Vxlan { underlay, .. } => mtu::vxlan_overhead(Family::of(*underlay)),
        Way::Tunnel { kind, .. } => kind.overhead(Family::of(inputs.underlay.address)),
        Way::Direct { .. } => 0,
    };
    let link = match way {
        Way::Direct { link, .. } => inputs.host.link(link.as_str()).map(|link| link.mtu),
        Way::Vxlan { underlay, .. } => Some(vxlan::carried(inputs, *underlay)),
        Way::Tunnel { .. } => None,
    };
    let pods = lease.mtu.min(inputs.lease.mtu).saturating_add(overhead);
    let full = inputs.carried.min(pods).min(link.unwrap_or(u32::MAX));
    let seen = inputs.path_mtus.get(&way.underlay()).copied().unwrap_or(full);
    Path { way: *way, mtu: full.min(seen).saturating_sub(overhead).max(mtu::smallest(family)), full }
}
