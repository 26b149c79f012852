//! This node's WireGuard keys: which it has, and what its peers are told of them.
//!
//! Read [`NodeKeeper::take_keys`]. Where it is between two keys is in `key_turn.rs`; by which of them it speaks to a peer the
//! crate `route` decides. An agent that starts goes by what an earlier one published, as far as those keys are on its disk:
//! with a disk that was lost the node has new ones, as a new node does.

use std::time::Instant;

use cluster::{Backend, PublicKey, WireGuardKey};
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
            self.key_turn = Some(KeyTurn::new(wanted, None, now));
        }
        let Some(mut turn) = self.key_turn.take() else { return Ok(None) };
        if makes {
            self.change_keys(view, &mut turn, now);
        }
        let kept = self.keep_keys(view, &turn);
        self.key_turn = Some(turn);
        kept.map(|()| self.told_keys())
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
        let wanted = self.options.config.wireguard.key_generation;
        // Nobody knows of any of them: what is wanted now before what there was last.
        let stored = key_generations(&directories);
        let left = stored.iter().find(|stored| **stored == wanted).or(stored.last()).copied();
        let mut found = generations
            .into_iter()
            .chain(left.filter(|_| published.is_none_or(|lease| lease.backend.keys().next().is_none())));
        Ok(found.next().map(|in_force| KeyTurn::new(in_force, found.next(), now)))
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
        let own = &*self.options.node;
        if let Some(lease) = view.snapshot.leases.get(own) {
            turn.publish(&lease.backend, now);
        }
        let others = view.snapshot.leases.values().filter(|lease| *lease.node != *own);
        let members = others.filter(|lease| view.snapshot.nodes.contains_key(&lease.node));
        let waited: Vec<_> = members.filter(|lease| turn.is_waited_for(&lease.backend)).collect();
        let late = waited.iter().filter(|lease| turn.is_late(&lease.backend, now));
        let late: Vec<&str> = late.map(|lease| &*lease.node).collect();
        if let Some(first) = late.first() {
            let others = match late.len() - 1 {
                0 => String::new(),
                count => format!(" and {count} others"),
            };
            self.report.problem(
                Reason::KeyRetained,
                format!(
                    "give up the WireGuard key of generation {current}: node {first}{others} has no newer one yet, or \
                     is not ready for it\nhint: is the agent there away, or of an older version, or its configuration?"
                ),
            );
        }
        turn.settle(!waited.is_empty(), now);
    }

    /// Has the keys of these generations, and no others once no peer knows of another.
    fn keep_keys(&mut self, view: &View, turn: &KeyTurn) -> Result<(), FileError> {
        let directories = self.options.key_directories();
        let generations: Vec<u32> = turn.generations().collect();
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
        if has_others && known.all(|key| generations.contains(&key.generation)) {
            self.keys.retain(|generation, _| generations.contains(generation));
            forget_keys_but(&directories, &generations)?;
        }
        Ok(())
    }

    /// What peers are told of the keys.
    fn told_keys(&self) -> Option<Backend> {
        let port = self.options.config.wireguard.port;
        let mut keys = self.key_turn.as_ref()?.generations().filter_map(|generation| {
            let public_key = PublicKey(self.keys.get(&generation)?.public_key());
            // Each device has a port of its own.
            let port = port.saturating_add(u16::from(generation % 2 == 1));
            Some(WireGuardKey { port, public_key, generation })
        });
        Some(Backend::WireGuard { key: keys.next()?, next: keys.next() })
    }
}
