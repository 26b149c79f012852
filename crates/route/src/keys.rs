//! By which of their keys two nodes speak over WireGuard, while a cluster changes its keys.
//!
//! Read [`between`], then [`of_peer`]. A device of WireGuard has one key of its own, and takes what has a peer's addresses by
//! one key of that peer. So a key cannot be changed in a device without losing what is under way, and a node that changes
//! its key has two devices, each with a key of its own and all peers. Keys are of generations, and two nodes speak by
//! those of one generation: by the new ones to a node that says, by naming that one first in its lease, that it knows everybody's
//! new key. Until a node has given the old key up it receives by both, in whatever order the nodes hear of each other, and
//! whatever its agent does not hear of for a while.
//!
//! A node of one generation alone whom another has none in common with, as one that has just joined, is spoken to by what
//! each has.

use cluster::{Backend, WireGuardKey};

use crate::design::Inputs;
use crate::tunnel::TunnelKind;

/// By which tunnel this node sends to one of that backend.
pub(crate) fn between(inputs: &Inputs<'_>, theirs: &Backend) -> Option<TunnelKind> {
    let ours = ours(inputs)?;
    let in_force = ours.keys().next()?;
    let mut common: Vec<WireGuardKey> = ours.keys().filter(|key| has(theirs, *key)).collect();
    common.sort_by_key(|key| key.generation);
    let awaited = theirs.keys().next().filter(|_| inputs.sends_next);
    let awaited =
        common.iter().find(|key| awaited.is_some_and(|awaited| awaited.generation == key.generation));
    // Of one that has given the old key up there is no choice: it has waited until nobody needs it.
    let chosen = awaited.or(common.first());
    Some(TunnelKind::by(chosen.copied().unwrap_or(in_force)))
}

/// The key by which a peer of that backend is known in this node's tunnel of that kind.
pub(crate) fn of_peer(inputs: &Inputs<'_>, kind: TunnelKind, theirs: &Backend) -> Option<WireGuardKey> {
    let own = own(inputs, kind)?;
    let same = theirs.keys().find(|key| key.generation == own.generation);
    same.or_else(|| {
        let ours = ours(inputs)?;
        let apart = !ours.keys().any(|own| has(theirs, own));
        let in_force = ours.keys().next() == Some(own);
        theirs.keys().next().filter(|_| apart && in_force)
    })
}

/// This node's key of that kind: of its lease, or of what it had before.
pub(crate) fn own(inputs: &Inputs<'_>, kind: TunnelKind) -> Option<WireGuardKey> {
    backends(inputs).flat_map(Backend::keys).find(|key| TunnelKind::by(*key) == kind)
}

/// What this node says of its keys, or said last where it gives WireGuard up.
pub(crate) fn ours<'a>(inputs: &Inputs<'a>) -> Option<&'a Backend> {
    backends(inputs).find(|backend| matches!(backend, Backend::WireGuard { .. }))
}

fn backends<'a>(inputs: &Inputs<'a>) -> impl Iterator<Item = &'a Backend> + use<'a> {
    [&inputs.lease.backend, inputs.sends].into_iter().chain(inputs.keeps)
}

fn has(backend: &Backend, key: WireGuardKey) -> bool {
    backend.keys().any(|other| other.generation == key.generation)
}
