//! What a node's policies tell of their decisions.
//!
//! Read [`Policies::attribute`] for what the kernel counts, and [`Policies::record`] for what it logs.

use std::collections::HashMap;
use std::sync::Arc;

use cluster::NamespacedName;
use netstate::nft::Rule;

use super::{Emitted, Held, Policies, Work};
use crate::compile::origin::{Logging, Origin};
use crate::compile::profile::{Chain, Named};
use crate::counts::{Count, Reading, counts};
use crate::delta::Delta;
use crate::record::{Record, Told, record};

impl Policies {
    /// Lets the table tell so much from now on.
    pub fn set_logging(&mut self, logging: Logging) -> Emitted {
        let mut work = Work::new(Some(Delta::default()));
        if logging != self.logging {
            self.logging = logging;
            let chains: Vec<Arc<Named>> = self.chains.values().map(|held| held.chain.clone()).collect();
            chains.iter().for_each(|chain| self.rewrite(chain, &mut work));
        }
        self.finish(work)
    }

    /// Whether the node has IPVS, which is taken for granted at first. True if that is new: then the base chains are others.
    pub fn set_ipvs(&mut self, there: bool) -> bool {
        std::mem::replace(&mut self.ipvs, there) != there
    }

    /// Whose it is what the kernel counted: each reading is laid at the door of a policy's rule, or of an isolation.
    /// Readings of rules that are not in the table any more are left out.
    pub fn attribute<'r>(&self, readings: impl IntoIterator<Item = Reading<'r>>) -> Vec<Count> {
        counts(self, readings)
    }

    /// What the kernel told of a packet, with the names of those concerned; `None` if it is not from this table.
    pub fn record(&self, told: &Told<'_>) -> Option<Record> {
        record(self, told)
    }

    /// What a chain of the table stands for, by its name.
    pub(crate) fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.get(name).map(|held| &held.chain.chain)
    }

    /// The rules of a chain by its name, with what each stands for.
    pub(crate) fn rules(&self, chain: &str) -> impl Iterator<Item = (Rule, Origin)> {
        self.chains.get(chain).into_iter().flat_map(|held| self.rules_of(held))
    }

    /// The rules of a chain, with what each stands for.
    pub(super) fn rules_of(&self, held: &Held) -> impl Iterator<Item = (Rule, Origin)> + use<> {
        let written = held.chain.write(&self.cluster, self.logging, self.index.sets()).rules;
        written.rules.into_iter().zip(written.origins)
    }

    /// This node's pods by the chains that their packets go through.
    pub(crate) fn pods_by_chain(&self) -> HashMap<&str, Vec<&NamespacedName>> {
        let mut pods: HashMap<&str, Vec<&NamespacedName>> = HashMap::new();
        for (name, local) in &self.locals {
            for chain in local.profiles.iter().flatten() {
                pods.entry(&*chain.name).or_default().push(name);
            }
        }
        pods
    }
}
