//! Whose policies a part of the table is, for when the kernel refuses it.
//!
//! Read [`Policies::blame`] for what the kernel names, and [`Policies::part`] for what has to be found out by trying.

use std::collections::BTreeSet;

use cluster::Key;
use netstate::nft::{Rule, Table};

use super::{Held, Policies};
use crate::compile::frame;
use crate::compile::origin::Origin;
use crate::compile::profile::{Chain, chain};
use crate::select::Members;

impl Policies {
    /// The policies that a chain's rule, a chain or a set is made of, as a refusal words it: the object's name, and what may
    /// follow it, as in `pods4-0123 10.244.1.7`. None for what is of no policy.
    pub fn blame(&self, object: &str) -> BTreeSet<Key> {
        let (name, rest) = object.split_once(' ').unwrap_or((object, ""));
        let mentions = format!("@{name}");
        let named_by =
            |rule: &Rule| rule.to_string().split([' ', '{', '}', ',']).any(|word| word == mentions);
        let mut found = BTreeSet::new();
        for held in self.chains.values() {
            if *held.chain.name == *name {
                let exactly = self.behind(held, |rule| rule.to_string() == rest);
                found.extend(if exactly.is_empty() { self.behind(held, |_| true) } else { exactly });
            } else if held.sets.iter().any(|set| *set.name == *name) {
                found.extend(self.behind(held, named_by));
            }
        }
        found
    }

    /// The policies that have rules of their own in the table.
    pub fn written(&self) -> BTreeSet<Key> {
        self.chains.values().flat_map(|held| self.behind(held, |_| true)).collect()
    }

    /// What of the table is these policies' own: their rules and the sets that these look up, which lean on nothing else.
    pub fn part(&self, policies: &BTreeSet<Key>) -> Table {
        let mut table = frame::empty();
        let mut members = Members::of(&self.cluster);
        for held in self.chains.values() {
            let all = self.rules_of(held);
            let own = all
                .filter(|(_, origin)| self.owner(held, *origin).is_some_and(|key| policies.contains(&key)));
            let rules: Vec<Rule> = own.map(|(rule, _)| rule).collect();
            // Others of theirs may jump to one that is empty.
            let audit = matches!(&held.chain.chain, Chain::Audit(_, name) if policies.contains(&Key::ClusterNetworkPolicy(name.clone())));
            if rules.is_empty() && !audit {
                continue;
            }
            for set in &held.sets {
                table = table.with_set(self.index.filled(set, &mut members, &self.node));
            }
            table = table.with_chain(chain(held.chain.name.to_string(), rules));
        }
        table
    }

    /// The policies of those rules of a chain.
    fn behind(&self, held: &Held, which: impl Fn(&Rule) -> bool) -> BTreeSet<Key> {
        let rules = self.rules_of(held).filter(|(rule, _)| which(rule));
        rules.filter_map(|(_, origin)| self.owner(held, origin)).collect()
    }

    /// The policy of a rule of a chain.
    fn owner(&self, held: &Held, origin: Origin) -> Option<Key> {
        match &held.chain.chain {
            Chain::Policy(_, name) => Some(Key::NetworkPolicy(name.clone())),
            Chain::Tier(_, _, names) => {
                let Origin::ClusterRule(which, _) = origin else { return None };
                let there = &self.cluster.snapshot().cluster_network_policies;
                let name = names.iter().filter(|name| there.contains_key(*name)).nth(which.into());
                name.cloned().map(Key::ClusterNetworkPolicy)
            }
            Chain::Audit(_, name) => Some(Key::ClusterNetworkPolicy(name.clone())),
            Chain::Profile(_) | Chain::Closed(_) => None,
        }
    }
}
