//! This node's WireGuard keys: which it has, and what its peers are told of them.
//!
//! Read [`NodeKeeper::take_keys`]. Where it is between two keys is in `key_turn.rs`; by which of them it speaks to a peer the
//! crate `route` decides. An agent that starts goes by what an earlier one published, as far as those keys are on its disk:
//! with a disk that was lost the node has new ones, as a new node does.

use std::time::Instant;

use cluster::{Backend, Lease, PublicKey, WireGuardKey};
use tunnel::Secret;

use super::NodeKeeper;
use super::key_turn::KeyTurn;
use crate::config::BackendKind;
use crate::files::FileError;
use crate::key_files::{forget_keys_but, key_generations, private_key};
use crate::report::Reason;
use crate::view::View;

impl NodeKeeper {
    /// What peers are told of this node's keys, where it needs some: they are made with it, or those of before read. A node
    /// that gives WireGuard up needs them a little longer.
    pub(super) fn take_keys(&mut self, view: &View, now: Instant) -> Result<Option<Backend>, FileError> {
        let makes = self.options.config.backend == BackendKind::WireGuard;
        if self.key_turn.is_none() {
            self.key_turn = self.found_keys(view, now)?;
        }
        let wanted = self.options.config.wireguard.key_generation;
        if self.key_turn.is_none() && makes {
            self.key_turn = Some(KeyTurn::new(self.first_generation(view).min(wanted), None, now));
        }
        let Some(mut turn) = self.key_turn.take() else { return Ok(None) };
        if makes {
            self.change_keys(view, &mut turn, now);
        }
        let kept = self.keep_keys(view, &turn);
        self.key_turn = Some(turn);
        kept.map(|()| self.told_keys())
    }

    /// The generation that a node begins with which has none yet: the oldest that any other has, for those may be in the middle
    /// of a change, and would not know it by a newer one before they have heard of it.
    fn first_generation(&self, view: &View) -> u32 {
        let keys = self.members(view).flat_map(|lease| lease.backend.keys());
        keys.map(|key| key.generation).min().unwrap_or(u32::MAX)
    }

    /// The leases of the other nodes.
    fn members<'a>(&self, view: &'a View) -> impl Iterator<Item = &'a Lease> + use<'a> {
        let (own, nodes) = (self.options.node.clone(), &view.snapshot.nodes);
        let leases = view.snapshot.leases.values().map(|lease| &**lease);
        leases.filter(move |lease| *lease.node != *own && nodes.contains_key(&lease.node))
    }

    /// Where an earlier agent was between two keys.
    fn found_keys(&mut self, view: &View, now: Instant) -> Result<Option<KeyTurn>, FileError> {
        let directories = self.options.key_directories();
        let published = view.snapshot.leases.get(&*self.options.node);
        let mut generations = Vec::new();
        for key in published.into_iter().flat_map(|lease| lease.backend.keys()) {
            let stored = private_key(&directories, key.generation, false)?.map(Secret);
            if stored.is_some_and(|secret| secret.public_key() == key.public_key.0) {
                generations.push(key.generation);
            }
        }
        let stored = key_generations(&directories);
        let mut found = generations.into_iter();
        if let Some(in_force) = found.next() {
            // The last one before it may be needed still.
            let older = stored.iter().rfind(|stored| **stored < in_force).copied();
            return Ok(Some(KeyTurn::new(in_force, found.next(), now).holding(older, now)));
        }
        // Nobody knows of any of them: what is wanted now before what there was last.
        let wanted = self.options.config.wireguard.key_generation;
        let left = stored.iter().find(|stored| **stored == wanted).or(stored.last()).copied();
        let left = left.filter(|_| published.is_none_or(|lease| lease.backend.keys().next().is_none()));
        Ok(left.map(|in_force| KeyTurn::new(in_force, None, now)))
    }

    /// Goes on with the change of the key, if there is one.
    fn change_keys(&mut self, view: &View, turn: &mut KeyTurn, now: Instant) {
        let wanted = self.options.config.wireguard.key_generation;
        let current = turn.current();
        if wanted < current {
            self.report.problem(
                Reason::ConfigurationRefused,
                format!(
                    "have a WireGuard key of generation {wanted}: this node has one of generation {current}\nhint: keys do \
                     not go back; set wireguard.keyGeneration to {} for another one",
                    current.saturating_add(1)
                ),
            );
        }
        turn.want(wanted);
        // A configuration that wants the first key alone does not ask for that port, but keys do not go back.
        let port = self.options.config.wireguard.port;
        if let (true, Some(taken)) =
            (turn.all().any(|generation| generation % 2 == 1), self.options.config.taken_beside(port))
        {
            self.report.problem(
                Reason::ConfigurationRefused,
                format!(
                    "have a tunnel for the WireGuard key of this node, which needs the port after wireguard.port {port}: \
                     {taken}\nhint: set another wireguard.port on all nodes"
                ),
            );
        }
        if let Some(lease) = view.snapshot.leases.get(&*self.options.node) {
            turn.publish(&lease.backend, now);
        }
        let waited: Vec<_> = self.members(view).filter(|lease| turn.is_waited_for(&lease.backend)).collect();
        let late = waited.iter().filter(|lease| turn.is_late(&lease.backend, now));
        let late: Vec<&str> = late.map(|lease| &*lease.node).collect();
        if let Some(first) = late.first() {
            let others = match late.len() - 1 {
                0 => String::new(),
                count => format!(" and {count} others"),
            };
            let (retained, why) = match turn.held() {
                Some(held) => (held, "has not said that it sends by the new one to all"),
                None => (current, "has no newer one yet, or is not ready for it"),
            };
            self.report.problem(
                Reason::KeyRetained,
                format!(
                    "give up the WireGuard key of generation {retained}: node {first}{others} {why}\n\
                     hint: is the agent there away, or of an older version, or its configuration?"
                ),
            );
        }
        turn.settle(!waited.is_empty(), now);
    }

    /// Has the keys of these generations, and no others once no peer knows of another; nor what an earlier agent left.
    fn keep_keys(&mut self, view: &View, turn: &KeyTurn) -> Result<(), FileError> {
        let directories = self.options.key_directories();
        let generations: Vec<u32> = turn.all().collect();
        let begins = self.keys.is_empty();
        for generation in &generations {
            if !self.keys.contains_key(generation)
                && let Some(key) = private_key(&directories, *generation, true)?
            {
                self.keys.insert(*generation, Secret(key));
            }
        }
        let published = view.snapshot.leases.get(&*self.options.node);
        let mut known = published.into_iter().flat_map(|lease| lease.backend.keys());
        let has_others = self.keys.keys().any(|generation| !generations.contains(generation));
        if (has_others || begins) && known.all(|key| generations.contains(&key.generation)) {
            self.keys.retain(|generation, _| generations.contains(generation));
            forget_keys_but(&directories, &generations)?;
        }
        Ok(())
    }

    /// What peers are told of the keys.
    fn told_keys(&self) -> Option<Backend> {
        let mut keys = self.key_turn.as_ref()?.generations().filter_map(|generation| self.key(generation));
        let strict = self.options.config.wireguard.strict;
        Some(Backend::WireGuard { key: keys.next()?, next: keys.next(), strict })
    }

    /// What the node receives by though its peers are told no more of it. Nothing once the node has left WireGuard; `keeps` are the backends that it still receives by.
    pub(super) fn held_key(&self, keeps: &[Backend]) -> Option<Backend> {
        let is_wire_guard = |backend: &Backend| matches!(backend, Backend::WireGuard { .. });
        if self.options.config.backend != BackendKind::WireGuard && !keeps.iter().any(is_wire_guard) {
            return None;
        }
        let key = self.key(self.key_turn.as_ref()?.held()?)?;
        Some(Backend::WireGuard { key, next: None, strict: self.options.config.wireguard.strict })
    }

    fn key(&self, generation: u32) -> Option<WireGuardKey> {
        let public_key = PublicKey(self.keys.get(&generation)?.public_key());
        // Each device has a port of its own.
        let port = self.options.config.wireguard.port.saturating_add(u16::from(generation % 2 == 1));
        Some(WireGuardKey { port, public_key, generation })
    }
}
