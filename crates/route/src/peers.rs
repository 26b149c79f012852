//! The other nodes: which of them this one can reach, and how.
//!
//! Read [`Peer::check`], then [`Way`]. Each node has the backend that it says in its lease. Where two nodes have the same
//! one, that is how they talk. Where they differ, as while a cluster is moved from one to the other node by node, both
//! take the one that is first in the order vxlan, udp, ipip, host-gw ([`meet`]): what it needs to know of a peer follows
//! from the peer's name and the cluster's configuration, and both decide alike, so no packet comes by another way than its
//! answer goes. Two nodes that both have WireGuard have no other way: what goes between them is encrypted. With all others one that is
//! strict has none, for a packet that is to be encrypted goes encrypted or not at all; one that is not is the last in that order,
//! so that the way is the other node's. A
//! node of flannel is reached by its own backend or not at all, for it would not answer by another one; and only by a
//! node that tells flannel's nodes of itself, for they would not answer one that they do not know.
//!
//! While a node changes its backend packets come by the one and by the other: [`ways_in`].

use std::collections::{BTreeMap, HashMap};
use std::mem::discriminant;
use std::net::IpAddr;
use std::sync::Arc;

use cluster::{Backend, Flannel, Lease, MacAddress, PublicKey};
use ipnet::IpNet;
use netstate::{LinkName, Mac};

use crate::by_family::ByFamily;
use crate::design::Inputs;
use crate::family::Family;
use crate::keys;
use crate::problem::Problem;
use crate::tunnel::TunnelKind;
use crate::underlay::Underlay;
use crate::vxlan;

/// How packets of one family travel to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// In VXLAN to the peer's tunnel end.
    Vxlan {
        /// The link address of that end.
        mac: Mac,
        /// The peer's underlay address.
        underlay: IpAddr,
    },
    /// By a program's tunnel.
    Tunnel {
        /// Its wire format.
        kind: TunnelKind,
        /// The peer's underlay address.
        underlay: IpAddr,
    },
    /// Plainly over a link that the peer is on, too.
    Direct {
        /// The link.
        link: LinkName,
        /// The peer's address there.
        gateway: IpAddr,
    },
}

impl Way {
    /// What people call it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Vxlan { .. } => "vxlan",
            Self::Tunnel { kind, .. } => kind.name(),
            Self::Direct { .. } => "direct",
        }
    }

    /// The underlay address that packets are sent to.
    #[must_use]
    pub fn underlay(&self) -> IpAddr {
        match self {
            Self::Vxlan { underlay, .. } | Self::Tunnel { underlay, .. } => *underlay,
            Self::Direct { gateway, .. } => *gateway,
        }
    }
}

/// What two nodes have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Common {
    Vxlan,
    Tunnel(TunnelKind),
    HostGw,
}

/// How this node sends to one of that backend.
fn between(inputs: &Inputs<'_>, theirs: &Backend) -> Option<Common> {
    meet(inputs, inputs.sends, theirs).or_else(|| {
        // As soon as both have said that they have it, if there is no other way from one to the other.
        let both = is_wireguard(&inputs.lease.backend) && is_wireguard(theirs);
        both.then(|| meet(inputs, &inputs.lease.backend, theirs)).flatten()
    })
}

/// What two backends have in common, of which the first is this node's; the answer is the same on both.
fn meet(inputs: &Inputs<'_>, ours: &Backend, theirs: &Backend) -> Option<Common> {
    if is_wireguard(ours) && is_wireguard(theirs) {
        return keys::between(inputs, theirs).map(Common::Tunnel);
    }
    let (one, other) = (ranked(ours)?, ranked(theirs)?);
    Some(if one.0 <= other.0 { one.1 } else { other.1 })
}

fn is_wireguard(backend: &Backend) -> bool {
    matches!(backend, Backend::WireGuard { .. })
}

/// How this node talks to the one of that lease. A node of flannel has no way but its own.
fn common(inputs: &Inputs<'_>, lease: &Lease) -> Option<Common> {
    let same = discriminant(inputs.sends) == discriminant(&lease.backend);
    if lease.flannel.is_member() && !same { None } else { between(inputs, &lease.backend) }
}

/// What a backend has to offer a node of another one, and its place in the order.
fn ranked(backend: &Backend) -> Option<(u8, Common)> {
    match backend {
        Backend::Vxlan { .. } => Some((0, Common::Vxlan)),
        Backend::Udp { .. } => Some((1, Common::Tunnel(TunnelKind::Udp))),
        Backend::Ipip => Some((2, Common::Tunnel(TunnelKind::Ipip))),
        Backend::HostGw => Some((3, Common::HostGw)),
        Backend::WireGuard { key, strict: false, .. } => Some((4, Common::Tunnel(TunnelKind::by(*key)))),
        Backend::WireGuard { strict: true, .. } | Backend::None | Backend::Other(_) => None,
    }
}

/// Whether this node or a peer is between two backends: then packets may come by other ways than they are sent.
pub(crate) fn is_changing(inputs: &Inputs<'_>) -> bool {
    let sends = discriminant(inputs.sends);
    let mut others = [&inputs.lease.backend].into_iter().chain(inputs.keeps);
    !inputs.former.is_empty() || others.any(|other| discriminant(other) != sends)
}

/// What a peer had before: it may send by that until it has told everybody of what it has now.
pub(crate) fn former<'a>(inputs: &Inputs<'a>, lease: &Lease) -> &'a [Backend] {
    inputs.former.get(&lease.node).map_or(&[], Vec::as_slice)
}

/// By which ways a peer may send, as far as this node and it have or had these backends a moment ago.
pub(crate) fn ways_in(inputs: &Inputs<'_>, lease: &Lease) -> Vec<Way> {
    let own = || [inputs.sends, &inputs.lease.backend].into_iter().chain(inputs.keeps);
    let theirs = [&lease.backend].into_iter().chain(former(inputs, lease));
    let pairs = theirs.flat_map(|theirs| own().map(move |ours| (ours, theirs)));
    let is_possible = |ours: &Backend, theirs: &Backend| {
        !lease.flannel.is_member() || discriminant(ours) == discriminant(theirs)
    };
    let common = pairs
        .filter(|(ours, theirs)| is_possible(ours, theirs))
        .filter_map(|(ours, theirs)| meet(inputs, ours, theirs));
    let families = || Family::ALL.into_iter().filter(|family| carries(inputs.lease, *family));
    let each = common.flat_map(|common| families().map(move |family| (family, common)));
    each.filter_map(|(family, common)| way(inputs, lease, family, common).ok()).collect()
}

/// A node that can be reached.
pub(crate) struct Peer<'a> {
    pub(crate) lease: &'a Lease,
    /// One for each family that both nodes carry and that there is a way for.
    pub(crate) ways: ByFamily<Way>,
    /// Why there is none for the other, if it is so.
    pub(crate) partly: Option<Problem>,
}

/// The leases of other nodes that are part of the cluster: a lease whose Node object is gone counts no more, and those of
/// flannel's nodes only where this node is to stand beside them.
pub(crate) fn peers<'a>(inputs: &Inputs<'a>) -> impl Iterator<Item = &'a Arc<Lease>> {
    let Inputs { snapshot, lease: own, .. } = *inputs;
    snapshot
        .leases
        .values()
        .filter(move |lease| lease.node != own.node && snapshot.nodes.contains_key(&lease.node))
        .filter(|lease| !lease.flannel.is_member() || own.flannel == Flannel::Told)
}

impl<'a> Peer<'a> {
    /// Finds out how a node is reached, or why it is not. A family without a way is no reason to give up the other.
    pub(crate) fn check(
        inputs: &Inputs<'_>,
        lease: &'a Lease,
        overlaps: &BTreeMap<Arc<str>, Problem>,
        seen: &mut Seen<'a>,
    ) -> Result<Self, Problem> {
        let node = || lease.node.clone();
        let common = common(inputs, lease).ok_or_else(|| Problem::Backend {
            node: node(),
            theirs: lease.backend.name().into(),
            ours: inputs.sends.name().into(),
        })?;
        check_tunnel(inputs, lease)?;
        let (mut ways, mut partly) = (ByFamily::default(), None);
        for family in Family::ALL {
            // A family that this node does not carry itself is left out: its kernel may have none of it.
            if !carries(inputs.lease, family) || !carries(lease, family) {
                continue;
            }
            match way(inputs, lease, family, common) {
                Ok(way) => ways.insert(family, way),
                Err(problem) => drop(partly.get_or_insert(problem)),
            }
        }
        if let (true, Some(problem)) = (ways.is_empty(), &partly) {
            return Err(problem.clone());
        }
        let inside = |cidr: &&IpNet| inputs.cluster.iter().any(|net| net.contains(*cidr));
        if let Some(cidr) = lease.pod_cidrs.iter().find(|cidr| !inside(cidr)) {
            return Err(Problem::Outside { node: node(), cidr: *cidr });
        }
        if let Some(problem) = overlaps.get(&lease.node) {
            return Err(problem.clone());
        }
        match seen.twin(inputs, lease, &ways) {
            Some(problem) => Err(problem),
            None => Ok(Self { lease, ways, partly }),
        }
    }
}

pub(crate) fn carries(lease: &Lease, family: Family) -> bool {
    lease.pod_cidrs.iter().any(|cidr| Family::of_net(cidr) == family)
}

/// Whether a peer's tunnel speaks as this node's would.
fn check_tunnel(inputs: &Inputs<'_>, lease: &Lease) -> Result<(), Problem> {
    let own = inputs.vxlan;
    // A node of flannel does not tell its port.
    let differs = |port| !lease.flannel.is_member() && port != own.port;
    match lease.backend {
        Backend::Vxlan { vni, port, .. } if vni != own.vni || differs(port) => {
            let text = |vni, port| format!("VNI {vni} on port {port}");
            Err(Problem::Tunnel {
                node: lease.node.clone(),
                theirs: text(vni, port),
                ours: text(own.vni, own.port),
            })
        }
        _ => Ok(()),
    }
}

fn way(inputs: &Inputs<'_>, lease: &Lease, family: Family, common: Common) -> Result<Way, Problem> {
    match common {
        Common::HostGw => direct(inputs, lease, family, Reach::AnyLink),
        Common::Vxlan if inputs.vxlan.direct_routing => {
            direct(inputs, lease, family, Reach::Underlay).or_else(|_| vxlan_way(inputs, lease, family))
        }
        Common::Vxlan => vxlan_way(inputs, lease, family),
        Common::Tunnel(kind) => tunnel(inputs, lease, kind),
    }
}

fn tunnel(inputs: &Inputs<'_>, lease: &Lease, kind: TunnelKind) -> Result<Way, Problem> {
    let own = Family::of(inputs.underlay.address);
    // IP in IP is in IPv4.
    let family = if kind == TunnelKind::Ipip { Family::V4 } else { own };
    if family != own {
        return Err(Problem::OwnUnderlay { node: lease.node.clone(), family });
    }
    Ok(Way::Tunnel { kind, underlay: underlay_of(lease, family)? })
}

fn vxlan_way(inputs: &Inputs<'_>, lease: &Lease, family: Family) -> Result<Way, Problem> {
    if lease.flannel.is_member() {
        return flannels_way(inputs, lease, family);
    }
    let underlay = underlay_of(lease, Family::of(inputs.underlay.address))?;
    let mac = match lease.backend {
        Backend::Vxlan { mac, .. } => mac,
        // It makes its end as soon as it hears of this node.
        _ => vxlan::tunnel_mac(&lease.node),
    };
    Ok(Way::Vxlan { mac: Mac(mac.0), underlay })
}

/// In flannel's VXLAN each family travels over its own, by a tunnel of its own.
fn flannels_way(inputs: &Inputs<'_>, lease: &Lease, family: Family) -> Result<Way, Problem> {
    let node = || lease.node.clone();
    let underlay = underlay_of(lease, family)?;
    let (has_tunnel, mac) = match (family, &lease.backend) {
        (Family::V4, Backend::Vxlan { mac, .. }) => (inputs.underlay.address.is_ipv4(), Some(*mac)),
        _ => (vxlan::over_ipv6(inputs).is_some(), lease.mac_over_ipv6()),
    };
    if !has_tunnel {
        return Err(Problem::OwnUnderlay { node: node(), family });
    }
    let mac = mac.ok_or_else(|| Problem::Underlay { node: node(), family })?;
    Ok(Way::Vxlan { mac: Mac(mac.0), underlay })
}

/// Which links a plain route may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// The underlay's alone: where there is a tunnel as well, a peer that sees things otherwise would answer by that.
    Underlay,
    /// Any on which the kernel sees the peer without a router.
    AnyLink,
}

fn direct(inputs: &Inputs<'_>, lease: &Lease, family: Family, reach: Reach) -> Result<Way, Problem> {
    let gateway = underlay_of(lease, family)?;
    let missing = || Problem::OwnUnderlay { node: lease.node.clone(), family };
    let Underlay { link, address, .. } = inputs.underlays.get(&family).ok_or_else(missing)?;
    // A node that tells its peers another address than it has is reached by way of somebody else.
    let told = inputs.lease.underlay.contains(address);
    let on_underlay = inputs.host.addresses.iter().any(|entry| {
        let is_shared = entry.address.contains(&gateway) && entry.address.prefix_len() < family.bits();
        entry.link == *link && is_shared
    });
    let found = match reach {
        _ if !told => None,
        _ if on_underlay => Some(link.as_str()),
        Reach::Underlay => None,
        Reach::AnyLink => inputs.host.link_without_router(gateway),
    };
    match found.map(str::parse) {
        Some(Ok(link)) => Ok(Way::Direct { link, gateway }),
        _ => Err(Problem::OffLink { node: lease.node.clone(), address: gateway, link: link.clone() }),
    }
}

fn underlay_of(lease: &Lease, family: Family) -> Result<IpAddr, Problem> {
    let address = lease.underlay.iter().copied().find(|address| Family::of(*address) == family);
    address.ok_or_else(|| Problem::Underlay { node: lease.node.clone(), family })
}

/// The underlay and link addresses and WireGuard's keys in use, and by whom.
pub(crate) struct Seen<'a> {
    underlay: HashMap<IpAddr, &'a Arc<str>>,
    macs: HashMap<MacAddress, &'a Arc<str>>,
    keys: HashMap<PublicKey, &'a Arc<str>>,
}

impl<'a> Seen<'a> {
    pub(crate) fn of(inputs: &Inputs<'a>) -> Self {
        let mut seen = Self { underlay: HashMap::new(), macs: HashMap::new(), keys: HashMap::new() };
        let own = inputs.lease;
        seen.underlay.extend(own.underlay.iter().map(|address| (*address, &own.node)));
        seen.underlay.insert(inputs.underlay.address, &own.node);
        let mac = vxlan::tunnel_mac(&own.node);
        seen.macs.extend([mac, mac.over_ipv6()].map(|mac| (mac, &own.node)));
        seen.keys.extend(own.backend.keys().map(|key| (key.public_key, &own.node)));
        seen
    }

    fn twin(&mut self, inputs: &Inputs<'_>, lease: &'a Lease, ways: &ByFamily<Way>) -> Option<Problem> {
        let problem = |what: String, holder: &Arc<str>| {
            Some(Problem::Twin { node: lease.node.clone(), what, holder: holder.clone() })
        };
        for way in ways.values() {
            let underlay = way.underlay();
            if let Some(holder) = self.underlay.get(&underlay) {
                return problem(format!("underlay address {underlay}"), holder);
            }
            if let Way::Vxlan { mac, .. } = way
                && let Some(holder) = self.macs.get(&MacAddress(mac.0))
            {
                return problem(format!("link address {}", MacAddress(mac.0)), holder);
            }
        }
        // A disk that was copied, with the key on it: a device cannot tell two peers with one key apart.
        let backends = || [&lease.backend].into_iter().chain(former(inputs, lease));
        let keys = || backends().flat_map(Backend::keys).map(|key| key.public_key);
        if let Some((key, holder)) = keys().find_map(|key| Some((key, self.keys.get(&key)?))) {
            return problem(format!("WireGuard key {key}"), holder);
        }
        self.keys.extend(keys().map(|key| (key, &lease.node)));
        for way in ways.values() {
            self.underlay.insert(way.underlay(), &lease.node);
            if let Way::Vxlan { mac, .. } = way {
                self.macs.insert(MacAddress(mac.0), &lease.node);
            }
        }
        None
    }
}
