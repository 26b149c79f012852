//! From this node's lease and those of its peers to the state of its kernel.
//!
//! Read [`design`]; it is a function of its [`Inputs`] and computes the whole state every time (5,000 peers take
//! milliseconds), so the state after any history is the state of a fresh start. How a peer is reached is decided in
//! `peers.rs`; what that takes in the kernel stands in a file for each way, `vxlan.rs` and `host_gw.rs`. A peer that
//! cannot be programmed whole is left out whole and reported as a [`Problem`].
//!
//! The node's own pod CIDRs lead to an `unreachable` route at a metric behind everything else: a pod's own
//! route, more specific, wins, and so does a bridge's connected route; an address no pod has is answered at
//! once instead of bouncing between nodes.
//!
//! `rp_filter` needs no change: what arrives by one way is also routed back by it, which even the strict form accepts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cluster::{Backend, Lease, Snapshot};
use ipnet::IpNet;
use netstate::{LinkName, Route, RouteKey, RouteKind, RouteTarget, State};

use crate::carried::{self, Overlaps};
use crate::family::Family;
use crate::host::Host;
use crate::masquerade;
use crate::mtu;
use crate::peers::{Peer, Seen, Way, carries, peers};
use crate::problem::Problem;
use crate::underlay::Underlay;
use crate::{host_gw, vxlan};

/// The metric of the `unreachable` routes to the node's own pod CIDRs: behind whatever a bridge or a person adds.
pub const UNREACHABLE_METRIC: u32 = 65_000;

/// All that the node's state follows from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The cluster: nodes, leases and claims.
    pub snapshot: &'a Snapshot,
    /// This node's lease, as published or about to be.
    pub lease: &'a Lease,
    /// By what this node sends: the backend of its lease, but while it changes from another one.
    pub sends: &'a Backend,
    /// Whether it keeps the VXLAN tunnel's end for peers that have not heard yet that it changes.
    pub keeps_tunnel: bool,
    /// Where tunnels start.
    pub underlay: &'a Underlay,
    /// The underlay of each family, for packets that travel plainly.
    pub underlays: &'a BTreeMap<Family, Underlay>,
    /// The largest packet, in bytes, that the underlay carries.
    pub carried: u32,
    /// The VXLAN tunnels of the cluster.
    pub vxlan: VxlanSettings,
    /// The cluster's pod networks.
    pub cluster: &'a [IpNet],
    /// Whether pod traffic that leaves the cluster is translated.
    pub masquerade: bool,
    /// The host's links and addresses.
    pub host: &'a Host,
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
    /// The peers that are programmed, and the path to each of their families.
    pub peers: BTreeMap<Arc<str>, BTreeMap<Family, Path>>,
    /// Why others are not, by node; also this node's own trouble.
    pub problems: BTreeMap<Arc<str>, Problem>,
}

/// The path to a peer's pods of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// How packets travel.
    pub way: Way,
    /// The largest packet that pods of this node send there, in bytes.
    pub mtu: u32,
}

/// Designs the node's state.
#[must_use]
pub fn design(inputs: &Inputs<'_>) -> Design {
    let mut design = Design::default();
    let Overlaps { nodes: overlaps, cidrs: superseded } = carried::find(inputs);
    let overlaps = Overlaps { nodes: overlaps, cidrs: BTreeSet::new() };
    if *inputs.sends != Backend::None {
        let mut seen = Seen::of(inputs);
        for lease in peers(inputs) {
            match Peer::check(inputs, lease, &overlaps, &mut seen) {
                Ok(peer) => {
                    let is_theirs = |cidr: &&IpNet| !superseded.contains(&(&lease.node, **cidr));
                    let cidrs: Vec<IpNet> = lease.pod_cidrs.iter().filter(is_theirs).copied().collect();
                    let paths = peer_part(&mut design.state, inputs, &peer, &cidrs);
                    design.peers.insert(lease.node.clone(), paths);
                }
                Err(problem) => drop(design.problems.insert(lease.node.clone(), problem)),
            }
        }
    }
    if let Some(problem) = overlaps.nodes.get(&inputs.lease.node) {
        design.problems.insert(inputs.lease.node.clone(), problem.clone());
    }
    let mut paths = design.peers.values().flat_map(BTreeMap::values);
    let tunnelled = paths.any(|path| matches!(path.way, Way::Vxlan { .. }));
    own_part(&mut design.state, inputs, tunnelled);
    design
}

/// What the node needs whoever its peers are: its tunnel's end, the unreachable routes, the masquerade and the sysctls.
fn own_part(state: &mut State, inputs: &Inputs<'_>, tunnelled: bool) {
    for cidr in &inputs.lease.pod_cidrs {
        let key = RouteKey { metric: UNREACHABLE_METRIC, ..RouteKey::main(*cidr) };
        let target = RouteTarget { kind: RouteKind::Unreachable, ..Route::blackhole(*cidr).target };
        state.insert_route(Route { key, target });
    }
    let mut devices: Vec<LinkName> = Vec::new();
    let is_vxlan = |backend: &Backend| matches!(backend, Backend::Vxlan { .. });
    if tunnelled || inputs.keeps_tunnel || is_vxlan(inputs.sends) || is_vxlan(&inputs.lease.backend) {
        devices.extend(vxlan::own_part(state, inputs));
    }
    if inputs.masquerade {
        state.insert_table(masquerade::table(inputs.cluster, &devices));
    }
    sysctls(state, inputs);
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

fn peer_part(
    state: &mut State,
    inputs: &Inputs<'_>,
    peer: &Peer<'_>,
    cidrs: &[IpNet],
) -> BTreeMap<Family, Path> {
    let mut paths = BTreeMap::new();
    for (family, way) in &peer.ways {
        let mtu = path_mtu(inputs, peer.lease, *family, way);
        paths.insert(*family, Path { way: *way, mtu });
        for cidr in cidrs.iter().copied().filter(|cidr| Family::of_net(cidr) == *family) {
            let mut route = match way {
                Way::Vxlan { mac, underlay } => vxlan::peer_part(state, cidr, *mac, *underlay),
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

/// The largest packet to a peer: the way, or the peer's pods, may take less than pods of this node send.
fn path_mtu(inputs: &Inputs<'_>, lease: &Lease, family: Family, way: &Way) -> u32 {
    let overhead = match way {
        Way::Vxlan { .. } => mtu::vxlan_overhead(Family::of(inputs.underlay.address)),
        Way::Direct { .. } => 0,
    };
    inputs.carried.saturating_sub(overhead).min(lease.mtu).min(inputs.lease.mtu).max(mtu::smallest(family))
}
