//! The VXLAN backend: from this node's lease and those of its peers to the state of its kernel.
//!
//! Read [`design`]; it is a function of its [`Inputs`] and computes the whole state every time (5,000 peers take
//! milliseconds), so the state after any history is the state of a fresh start. One device, [`DEVICE`], carries
//! both families. It holds the base address of each of the node's pod CIDRs, never given to a pod, as the
//! tunnel's end; its link address follows from the node's name, so it survives reboots and reinstallation.
//!
//! For each peer: neighbours (base address to link address), one forwarding entry (link address to underlay
//! address), then the routes, through the base address and on-link. Nothing is learned and nothing is asked for.
//! A peer that cannot be programmed whole is left out whole and reported as a [`Problem`].
//!
//! The node's own pod CIDRs lead to an `unreachable` route at a metric behind everything else: a pod's own
//! route, more specific, wins, and so does a bridge's connected route; an address no pod has is answered at
//! once instead of bouncing between nodes.
//!
//! `rp_filter` needs no change: what arrives through the device is also routed back through it, which even the
//! strict form accepts.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use cluster::{Backend, Lease, MacAddress, Snapshot};
use ipnet::IpNet;
use netstate::pool::{base_address, host as host_net, overlaps};
use netstate::{
    Address, FdbEntry, Link, LinkKind, LinkName, Mac, Neighbour, Route, RouteKey, RouteKind, RouteTarget,
    State, Vxlan,
};
use sha2::{Digest, Sha256};

use crate::family::Family;
use crate::host::Host;
use crate::masquerade;
use crate::underlay::Underlay;

/// The name of the tunnel's device.
pub const DEVICE: &str = "fairlead0";

/// The metric of the `unreachable` routes to the node's own pod CIDRs: behind whatever a bridge or a person adds.
pub const UNREACHABLE_METRIC: u32 = 65_000;

/// All that the node's state follows from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The cluster: nodes, leases and claims.
    pub snapshot: &'a Snapshot,
    /// This node's lease, as published or about to be.
    pub lease: &'a Lease,
    /// Where the tunnel starts.
    pub underlay: &'a Underlay,
    /// The cluster's pod networks.
    pub cluster: &'a [IpNet],
    /// Whether pod traffic that leaves the cluster is translated.
    pub masquerade: bool,
    /// The host's links, for the sysctls that keep router advertisements working.
    pub host: &'a Host,
}

/// The wanted state of a node, and what could not be part of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Design {
    /// What the kernel shall hold.
    pub state: State,
    /// The peers that are programmed.
    pub peers: BTreeSet<Arc<str>>,
    /// Why others are not, by node; also this node's own trouble.
    pub problems: BTreeMap<Arc<str>, Problem>,
}

/// Why a peer is left out. It is looked at again whenever the cluster changes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The peer uses another backend.
    #[error(
        "reach node {node}: its backend is {theirs}, this node's is vxlan\nhint: give every node the same backend"
    )]
    Backend {
        /// The peer.
        node: Arc<str>,
        /// Its backend.
        theirs: Box<str>,
    },
    /// The peer's tunnel has another identifier or port.
    #[error(
        "reach node {node}: its tunnel uses {theirs}, this node's {ours}\nhint: give every node the same vxlan.vni \
         and vxlan.port"
    )]
    Tunnel {
        /// The peer.
        node: Arc<str>,
        /// Its identifier and port, as text.
        theirs: String,
        /// This node's.
        ours: String,
    },
    /// The peer has no underlay address of the family that this node's tunnel uses.
    #[error(
        "reach node {node}: it has no {family} underlay address, and this node's tunnel runs over {family}"
    )]
    Underlay {
        /// The peer.
        node: Arc<str>,
        /// The family of this node's tunnel.
        family: Family,
    },
    /// The peer carries pods outside the cluster's networks.
    #[error("reach node {node}: its pod CIDR {cidr} is in none of the cluster's networks")]
    Outside {
        /// The peer.
        node: Arc<str>,
        /// The CIDR.
        cidr: IpNet,
    },
    /// Two nodes carry the same pods.
    #[error("reach node {node}: its pod CIDR {cidr} overlaps {theirs} of node {holder}, which holds it")]
    Overlap {
        /// The node that is left out.
        node: Arc<str>,
        /// Its CIDR.
        cidr: IpNet,
        /// The node that was first.
        holder: Arc<str>,
        /// The CIDR of that one.
        theirs: IpNet,
    },
    /// Two nodes have the same underlay address or the same link address.
    #[error(
        "reach node {node}: its {what} is also that of node {holder}\nhint: was one machine copied from the other?"
    )]
    Twin {
        /// The node that is left out.
        node: Arc<str>,
        /// The address, as text.
        what: String,
        /// The node that keeps it.
        holder: Arc<str>,
    },
}

/// The link address of a node's tunnel end, from its name: locally administered, unicast.
#[must_use]
pub fn tunnel_mac(node: &str) -> MacAddress {
    let digest = Sha256::digest(node.as_bytes());
    let [a, b, c, d, e, f] = [digest[0], digest[1], digest[2], digest[3], digest[4], digest[5]];
    MacAddress([(a & 0xfc) | 0x02, b, c, d, e, f])
}

/// Designs the node's state.
#[must_use]
pub fn design(inputs: &Inputs<'_>) -> Design {
    let mut design = Design::default();
    let Ok(device) = DEVICE.parse::<LinkName>() else { return design };
    own_part(&mut design.state, inputs, device);
    let Overlaps { nodes: overlaps, cidrs: superseded } = find_overlaps(inputs);
    let mut seen = Seen::of(inputs);
    for lease in peers(inputs) {
        match check(inputs, lease, &overlaps, &mut seen) {
            Ok(tunnel) => {
                let cidrs =
                    lease.pod_cidrs.iter().filter(|cidr| !superseded.contains(&(&lease.node, **cidr)));
                peer_part(&mut design.state, inputs.lease, cidrs, &tunnel, device);
                design.peers.insert(lease.node.clone());
            }
            Err(problem) => {
                design.problems.insert(lease.node.clone(), problem);
            }
        }
    }
    if let Some(problem) = overlaps.get(&inputs.lease.node) {
        design.problems.insert(inputs.lease.node.clone(), problem.clone());
    }
    design
}

/// The leases of other nodes that are part of the cluster: a lease whose Node object is gone counts no more.
fn peers<'a>(inputs: &Inputs<'a>) -> impl Iterator<Item = &'a Lease> {
    let Inputs { snapshot, lease: own, .. } = *inputs;
    snapshot
        .leases
        .values()
        .map(|lease| &**lease)
        .filter(move |lease| lease.node != own.node && snapshot.nodes.contains_key(&lease.node))
}

/// The device, its addresses, the unreachable routes, the masquerade and the sysctls.
fn own_part(state: &mut State, inputs: &Inputs<'_>, device: LinkName) {
    let Backend::Vxlan { vni, port, mac } = inputs.lease.backend else { return };
    let vxlan =
        Vxlan { vni, port, local: inputs.underlay.address, parent: inputs.underlay.link.parse().ok() };
    state.insert_link(Link {
        name: device,
        kind: LinkKind::Vxlan(vxlan),
        mtu: Some(inputs.lease.mtu),
        mac: Some(Mac(mac.0)),
        up: true,
    });
    for cidr in &inputs.lease.pod_cidrs {
        state.insert_address(Address { link: device, net: host_net(base_address(*cidr)) });
        let key = RouteKey { metric: UNREACHABLE_METRIC, ..RouteKey::main(*cidr) };
        let target = RouteTarget { kind: RouteKind::Unreachable, ..Route::blackhole(*cidr).target };
        state.insert_route(Route { key, target });
    }
    if inputs.masquerade {
        state.insert_table(masquerade::table(inputs.cluster, device));
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
    state.insert_sysctl(format!("net/ipv6/conf/{DEVICE}/accept_ra"), "0");
    state.insert_sysctl(format!("net/ipv6/conf/{DEVICE}/disable_ipv6"), "0");
}

fn carries(lease: &Lease, family: Family) -> bool {
    lease.pod_cidrs.iter().any(|cidr| Family::of_net(cidr) == family)
}

/// Where a peer's tunnel ends.
struct Tunnel {
    mac: Mac,
    underlay: IpAddr,
}

/// A family that this node does not carry itself is left out: its kernel may have none of it.
fn peer_part<'a>(
    state: &mut State,
    own: &Lease,
    cidrs: impl Iterator<Item = &'a IpNet>,
    tunnel: &Tunnel,
    device: LinkName,
) {
    for cidr in cidrs.filter(|cidr| carries(own, Family::of_net(cidr))) {
        let gateway = base_address(*cidr);
        state.insert_neighbour(Neighbour { link: device, address: gateway, mac: tunnel.mac });
        state.insert_route(Route::via_onlink(*cidr, gateway, device));
    }
    state.insert_fdb(FdbEntry { link: device, mac: tunnel.mac, destination: tunnel.underlay });
}

/// The underlay and link addresses in use, and by whom.
struct Seen<'a> {
    underlay: HashMap<IpAddr, &'a Arc<str>>,
    macs: HashMap<MacAddress, &'a Arc<str>>,
}

impl<'a> Seen<'a> {
    fn of(inputs: &Inputs<'a>) -> Self {
        let mut seen = Self { underlay: HashMap::new(), macs: HashMap::new() };
        let own = inputs.lease;
        seen.underlay.extend(own.underlay.iter().map(|address| (*address, &own.node)));
        seen.underlay.insert(inputs.underlay.address, &own.node);
        if let Backend::Vxlan { mac, .. } = own.backend {
            seen.macs.insert(mac, &own.node);
        }
        seen
    }

    fn twin(&mut self, lease: &'a Lease, underlay: IpAddr, mac: MacAddress) -> Option<Problem> {
        let problem = |what: String, holder: &Arc<str>| {
            Some(Problem::Twin { node: lease.node.clone(), what, holder: holder.clone() })
        };
        if let Some(holder) = self.underlay.get(&underlay) {
            return problem(format!("underlay address {underlay}"), holder);
        }
        if let Some(holder) = self.macs.get(&mac) {
            return problem(format!("link address {mac}"), holder);
        }
        self.underlay.insert(underlay, &lease.node);
        self.macs.insert(mac, &lease.node);
        None
    }
}

fn check<'a>(
    inputs: &Inputs<'_>,
    lease: &'a Lease,
    overlaps: &BTreeMap<Arc<str>, Problem>,
    seen: &mut Seen<'a>,
) -> Result<Tunnel, Problem> {
    let node = || lease.node.clone();
    let Backend::Vxlan { vni, port, mac } = lease.backend else {
        return Err(Problem::Backend { node: node(), theirs: lease.backend.name().into() });
    };
    if let Backend::Vxlan { vni: own_vni, port: own_port, .. } = inputs.lease.backend
        && (own_vni, own_port) != (vni, port)
    {
        let text = |vni, port| format!("VNI {vni} on port {port}");
        return Err(Problem::Tunnel { node: node(), theirs: text(vni, port), ours: text(own_vni, own_port) });
    }
    let family = Family::of(inputs.underlay.address);
    let underlay = lease.underlay.iter().copied().find(|address| Family::of(*address) == family);
    let underlay = underlay.ok_or_else(|| Problem::Underlay { node: node(), family })?;
    let inside = |cidr: &&IpNet| inputs.cluster.iter().any(|net| net.contains(*cidr));
    if let Some(cidr) = lease.pod_cidrs.iter().find(|cidr| !inside(cidr)) {
        return Err(Problem::Outside { node: node(), cidr: *cidr });
    }
    if let Some(problem) = overlaps.get(&lease.node) {
        return Err(problem.clone());
    }
    match seen.twin(lease, underlay, mac) {
        Some(problem) => Err(problem),
        None => Ok(Tunnel { mac: Mac(mac.0), underlay }),
    }
}

/// One node's pod CIDR as it stands in the sweep for overlaps.
struct Carried<'a> {
    cidr: IpNet,
    node: &'a Arc<str>,
    retained: bool,
    claimed: bool,
}

impl Carried<'_> {
    /// The smaller rank keeps the addresses: what is given to pods now goes before what was, a claim before none, and
    /// then the node's name decides.
    fn rank(&self) -> (bool, bool, &str) {
        (self.retained, !self.claimed, self.node)
    }
}

/// What must be left out because another node holds the addresses.
#[derive(Default)]
struct Overlaps<'a> {
    /// Whole nodes.
    nodes: BTreeMap<Arc<str>, Problem>,
    /// CIDRs of before of nodes that are otherwise well.
    cidrs: BTreeSet<(&'a Arc<str>, IpNet)>,
}

/// CIDRs nest or are apart, so one sweep in address order with a stack of what encloses the current one finds every
/// pair.
fn find_overlaps<'a>(inputs: &Inputs<'a>) -> Overlaps<'a> {
    let claims = &inputs.snapshot.claims;
    let mut carried: Vec<Carried<'_>> = peers(inputs)
        .chain([inputs.lease])
        .flat_map(|lease| lease.pod_cidrs.iter().map(move |cidr| (lease, *cidr)))
        .map(|(lease, cidr)| {
            let claimed = claims.get(&cidr).is_some_and(|claim| claim.node == lease.node);
            Carried { cidr, node: &lease.node, retained: lease.is_retained(&cidr), claimed }
        })
        .collect();
    carried.sort_by_key(|one| (one.cidr.network(), one.cidr.prefix_len()));
    let mut losers = Overlaps::default();
    let mut enclosing: Vec<&Carried<'_>> = Vec::new();
    for one in &carried {
        enclosing.retain(|outer| overlaps(outer.cidr, one.cidr));
        for outer in enclosing.iter().filter(|outer| outer.node != one.node) {
            let (keeps, loses) = if outer.rank() <= one.rank() { (*outer, one) } else { (one, *outer) };
            if loses.retained {
                losers.cidrs.insert((loses.node, loses.cidr));
                continue;
            }
            losers.nodes.entry(loses.node.clone()).or_insert_with(|| Problem::Overlap {
                node: loses.node.clone(),
                cidr: loses.cidr,
                holder: keeps.node.clone(),
                theirs: keeps.cidr,
            });
        }
        enclosing.push(one);
    }
    losers
}
