//! A design brought up to date where a few peers changed, at the cost of those few.
//!
//! Read [`amend`]. What a peer's part is stands in `design.rs`, once; here it is taken out and put in for those that changed.
//! [`design`](crate::design()) stays the definition: a property test walks through clusters and compares the two.
//!
//! Peers have to do with each other only where they have something in common: addresses for pods, an underlay or link address,
//! a key. Whether one of those that changed has, is looked for among all, which costs little; where one has or had, where too
//! many changed, and where anything else is another than before, only the whole computation can tell.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use cluster::{Backend, Lease, PublicKey};
use ipnet::IpNet;
use netstate::State;
use netstate::pool::overlaps;

use crate::by_family::ByFamily;
use crate::carried;
use crate::design::{Design, Inputs, Path, VxlanSettings, peer_part, tunnel_peer};
use crate::family::Family;
use crate::host::Host;
use crate::kernel_tunnel::{self, InKernel};
use crate::masquerade::Masquerade;
use crate::peers::{Peer, Seen, Way, carries, is_changing, peers};
use crate::problem::Problem;
use crate::senders::Senders;
use crate::tunnel::TunnelKind;
use crate::underlay::Underlay;

/// More changed peers than these are not worth the search.
const MOST: usize = 32;

/// What a design was made of.
#[derive(Debug, Clone)]
pub struct Basis {
    own: Own,
    /// The leases of the peers, in the order of their names.
    leases: Vec<Arc<Lease>>,
    /// Whether addresses that a node had before are another one's now: whose, claims decide as well.
    is_contested: bool,
}

/// What of it is not the peers'.
#[derive(Debug, Clone, PartialEq)]
struct Own {
    lease: Lease,
    sends: Backend,
    sends_next: bool,
    keeps: Vec<Backend>,
    former: BTreeMap<Arc<str>, Vec<Backend>>,
    underlay: Underlay,
    underlays: BTreeMap<Family, Underlay>,
    carried: u32,
    path_mtus: BTreeMap<IpAddr, u32>,
    vxlan: VxlanSettings,
    kernel: InKernel,
    udp_port: u16,
    senders: Senders,
    cluster: Vec<IpNet>,
    translated: (Vec<Family>, bool, Vec<IpNet>),
    host: Arc<Host>,
}

impl Basis {
    /// That of the design of these inputs.
    #[must_use]
    pub fn of(inputs: &Inputs<'_>) -> Self {
        let is_contested = !carried::find(inputs).cidrs.is_empty();
        Self { own: Own::of(inputs), leases: peers(inputs).cloned().collect(), is_contested }
    }

    fn follow(&mut self, changed: &[Changed]) {
        for Changed { node, after, .. } in changed {
            match (self.leases.binary_search_by(|lease| lease.node.cmp(node)), after) {
                (Ok(at), Some(lease)) => self.leases.splice(at..=at, [lease.clone()]).for_each(drop),
                (Ok(at), None) => drop(self.leases.remove(at)),
                (Err(at), Some(lease)) => self.leases.insert(at, lease.clone()),
                (Err(_), None) => {}
            }
        }
    }
}

impl Own {
    /// Whoever adds an input is asked here, by the compiler, whether a design can be amended when it changes.
    fn of(inputs: &Inputs<'_>) -> Self {
        let Inputs {
            // The peers' leases are in the basis, one by one; of nodes and claims see `Basis::is_contested`.
            snapshot: _,
            lease,
            sends,
            sends_next,
            keeps,
            former,
            underlay,
            underlays,
            carried,
            path_mtus,
            vxlan,
            kernel,
            udp_port,
            senders,
            cluster,
            masquerade: Masquerade { families, fully_random, exceptions },
            host,
        } = *inputs;
        Self {
            lease: lease.clone(),
            sends: sends.clone(),
            sends_next,
            keeps: keeps.to_vec(),
            former: former.clone(),
            underlay: underlay.clone(),
            underlays: underlays.clone(),
            carried,
            path_mtus: path_mtus.clone(),
            vxlan,
            kernel,
            udp_port,
            senders,
            cluster: cluster.to_vec(),
            translated: (families.to_vec(), fully_random, exceptions.to_vec()),
            host: Arc::clone(host),
        }
    }
}

/// What an amendment comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Amendment {
    /// What the peers that changed had in the state.
    pub before: State,
    /// What they have now.
    pub after: State,
    /// Those of them whose paths are others now, or that have none any more.
    pub moved: Vec<Arc<str>>,
}

/// A peer that changed.
struct Changed {
    node: Arc<str>,
    before: Option<Arc<Lease>>,
    after: Option<Arc<Lease>>,
}

/// Brings `design`, which was made of `basis`, up to date with these inputs. None, and nothing is changed, where only
/// [`design`](crate::design()) can tell.
pub fn amend(design: &mut Design, basis: &mut Basis, inputs: &Inputs<'_>) -> Option<Amendment> {
    if *inputs.sends == Backend::None || basis.own != Own::of(inputs) {
        return None;
    }
    // Which devices are needed is not to be seen from the paths alone.
    if is_changing(inputs) {
        return None;
    }
    if basis.is_contested || design.problems.values().any(is_between_two) {
        return None;
    }
    let now: Vec<&Arc<Lease>> = peers(inputs).collect();
    let changed = changes(&basis.leases, &now)?;
    if changed.iter().any(|one| shares_addresses(one, &basis.leases, &now, inputs.lease)) {
        return None;
    }
    let checked = check(design, basis, inputs, &changed)?;
    let mut amendment = Amendment::default();
    let mut paths = Vec::with_capacity(changed.len());
    for one in &changed {
        paths.push(design.peers.get(&one.node).copied());
        take_out(design, &mut amendment.before, inputs, one);
    }
    remove(&mut design.state, &amendment.before);
    for (one, peer) in changed.iter().zip(checked) {
        put_in(design, &mut amendment.after, inputs, one, peer);
    }
    insert(&mut design.state, &amendment.after);
    basis.follow(&changed);
    let moved =
        changed.into_iter().zip(paths).filter(|(one, paths)| design.peers.get(&one.node) != paths.as_ref());
    amendment.moved.extend(moved.map(|(one, _)| one.node));
    Some(amendment)
}

/// Whether a problem is one that a peer has because of another one.
fn is_between_two(problem: &Problem) -> bool {
    matches!(problem, Problem::Overlap { .. } | Problem::Twin { .. })
}

/// Who changed, in the order of the names; none where those are too many.
fn changes(before: &[Arc<Lease>], now: &[&Arc<Lease>]) -> Option<Vec<Changed>> {
    let (mut before, mut now) = (before.iter().peekable(), now.iter().copied().peekable());
    let mut changed = Vec::new();
    loop {
        let (old, new) = match (before.peek(), now.peek()) {
            (None, None) => return Some(changed),
            (Some(old), Some(new)) if old.node == new.node => (before.next(), now.next()),
            (Some(old), new) if new.is_none_or(|new| old.node < new.node) => (before.next(), None),
            _ => (None, now.next()),
        };
        let is_same = old.zip(new).is_some_and(|(old, new)| Arc::ptr_eq(old, new) || old == new);
        let Some(node) = old.or(new).map(|lease| lease.node.clone()).filter(|_| !is_same) else { continue };
        if changed.len() == MOST {
            return None;
        }
        changed.push(Changed { node, before: old.cloned(), after: new.cloned() });
    }
}

/// Whether another node says that it carries some of the same addresses, or said so.
fn shares_addresses(one: &Changed, before: &[Arc<Lease>], now: &[&Arc<Lease>], own: &Lease) -> bool {
    let shares = |lease: &Lease, other: &Lease| {
        let theirs = &other.pod_cidrs;
        other.node != lease.node
            && lease.pod_cidrs.iter().any(|cidr| theirs.iter().any(|their| overlaps(*cidr, *their)))
    };
    let had = |lease: &Arc<Lease>| shares(lease, own) || before.iter().any(|other| shares(lease, other));
    let has = |lease: &Arc<Lease>| shares(lease, own) || now.iter().any(|other| shares(lease, other));
    one.before.as_ref().is_some_and(had) || one.after.as_ref().is_some_and(has)
}

/// What becomes of each that changed: a peer, a problem, or nothing for one that is gone. None where one has something in
/// common with another peer, or where they use other devices than were used before.
fn check<'a>(
    design: &Design,
    basis: &Basis,
    inputs: &Inputs<'a>,
    changed: &'a [Changed],
) -> Option<Vec<Option<Result<Peer<'a>, Problem>>>> {
    let mut seen = Seen::of(inputs);
    let none = BTreeMap::new();
    let mut checked = Vec::with_capacity(changed.len());
    for one in changed {
        let found = one.after.as_deref().map(|lease| Peer::check(inputs, lease, &none, &mut seen));
        if matches!(&found, Some(Err(problem)) if is_between_two(problem)) {
            return None;
        }
        checked.push(found);
    }
    let is_changed =
        |node: &Arc<str>| changed.binary_search_by(|one| one.node.as_ref().cmp(node.as_ref())).is_ok();
    let new: Vec<&Peer<'_>> = checked.iter().flatten().flatten().collect();
    let keys: Vec<_> = new.iter().flat_map(|peer| public_keys(peer.lease)).collect();
    let others = || design.peers.iter().filter(|(node, _)| !is_changed(node));
    let has_twin = others().any(|(_, paths)| new.iter().any(|peer| is_twin(&peer.ways, paths)));
    let unchanged = || basis.leases.iter().filter(|lease| !is_changed(&lease.node));
    let has_key = |lease: &Arc<Lease>| {
        design.peers.contains_key(&lease.node) && public_keys(lease).any(|key| keys.contains(&key))
    };
    if has_twin || !keys.is_empty() && unchanged().any(has_key) {
        return None;
    }
    let used = design.peers.values().flat_map(ByFamily::values).fold(0, |all, path| all | device(&path.way));
    let still = others().flat_map(|(_, paths)| paths.values()).fold(0, |all, path| all | device(&path.way));
    let uses = new.iter().flat_map(|peer| peer.ways.values()).fold(still, |all, way| all | device(way));
    (used == uses).then_some(checked)
}

fn public_keys(lease: &Lease) -> impl Iterator<Item = PublicKey> {
    lease.backend.keys().map(|key| key.public_key)
}

/// Whether two peers are reached at one address.
fn is_twin(ways: &ByFamily<Way>, paths: &ByFamily<Path>) -> bool {
    ways.values().any(|way| {
        paths.values().any(|path| {
            let same_mac = match (way, &path.way) {
                (Way::Vxlan { mac, .. }, Way::Vxlan { mac: other, .. }) => mac == other,
                _ => false,
            };
            same_mac || way.underlay() == path.way.underlay()
        })
    })
}

/// The devices that a way needs, each as a bit.
fn device(way: &Way) -> u8 {
    match way {
        Way::Direct { .. } => 0,
        Way::Vxlan { .. } => 1,
        Way::Tunnel { kind: TunnelKind::Udp, .. } => 2,
        Way::Tunnel { kind: TunnelKind::Ipip, .. } => 4,
        Way::Tunnel { kind: TunnelKind::WireGuard, .. } => 8,
        Way::Tunnel { kind: TunnelKind::WireGuardOdd, .. } => 16,
    }
}

/// Takes a peer as it was out of the design, and puts what it had in the state into `part`.
fn take_out(design: &mut Design, part: &mut State, inputs: &Inputs<'_>, one: &Changed) {
    design.problems.remove(&one.node);
    for tunnel in design.tunnels.values_mut() {
        if let Ok(at) = tunnel.peers.binary_search_by(|peer| peer.node.cmp(&one.node)) {
            tunnel.peers.remove(at);
        }
    }
    let (Some(paths), Some(lease)) = (design.peers.remove(&one.node), &one.before) else { return };
    let mut ways = ByFamily::default();
    paths.iter().for_each(|(family, path)| ways.insert(family, path.way));
    let peer = Peer { lease, ways, partly: None };
    peer_part(part, inputs, &peer, &lease.pod_cidrs);
    wireguard_part(design, part, inputs, lease);
}

/// Puts a peer as it is now into the design, and what it has in the state into `part`.
fn put_in(
    design: &mut Design,
    part: &mut State,
    inputs: &Inputs<'_>,
    one: &Changed,
    checked: Option<Result<Peer<'_>, Problem>>,
) {
    let peer = match checked {
        None => return,
        Some(Err(problem)) => return drop(design.problems.insert(one.node.clone(), problem)),
        Some(Ok(peer)) => peer,
    };
    design.problems.extend(peer.partly.clone().map(|problem| (one.node.clone(), problem)));
    let paths = peer_part(part, inputs, &peer, &peer.lease.pod_cidrs);
    design.peers.insert(one.node.clone(), paths);
    for (kind, tunnel) in &mut design.tunnels {
        let told = tunnel_peer(inputs, peer.lease, *kind, carried(inputs, peer.lease));
        if let (Some(told), Err(at)) = (told, tunnel.peers.binary_search_by(|peer| peer.node.cmp(&one.node)))
        {
            tunnel.peers.insert(at, told);
        }
    }
    wireguard_part(design, part, inputs, peer.lease);
}

/// What the kernel's WireGuard is told of a peer, by each such device.
fn wireguard_part(design: &Design, part: &mut State, inputs: &Inputs<'_>, lease: &Lease) {
    for kind in [TunnelKind::WireGuard, TunnelKind::WireGuardOdd] {
        let device = design.state.wireguards.keys().find(|device| device.as_str() == kind.device());
        let told = tunnel_peer(inputs, lease, kind, carried(inputs, lease));
        if let (Some(device), Some(told)) = (device, told) {
            kernel_tunnel::tell(part, inputs, *device, vec![told]);
        }
    }
}

/// The networks behind a peer, of families that this node carries.
fn carried(inputs: &Inputs<'_>, lease: &Lease) -> Vec<IpNet> {
    let cidrs = lease.pod_cidrs.iter().copied();
    cidrs.filter(|cidr| carries(inputs.lease, Family::of_net(cidr))).collect()
}

fn remove(state: &mut State, part: &State) {
    for key in part.routes.keys() {
        state.routes.remove(key);
    }
    for key in part.neighbours.keys() {
        state.neighbours.remove(key);
    }
    for key in part.fdb.keys() {
        state.fdb.remove(key);
    }
    for key in part.wireguard_peers.keys() {
        state.wireguard_peers.remove(key);
    }
}

fn insert(state: &mut State, part: &State) {
    state.routes.extend(part.routes.iter().map(|(key, target)| (*key, *target)));
    state.neighbours.extend(part.neighbours.iter().map(|(key, mac)| (*key, *mac)));
    state.fdb.extend(part.fdb.iter().map(|(key, to)| (*key, *to)));
    state.wireguard_peers.extend(part.wireguard_peers.iter().map(|(key, peer)| (*key, peer.clone())));
}
