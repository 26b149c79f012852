//! Whose it is what the kernel counted.
//!
//! Read [`Policies::attribute`], then [`Tally`]. Chains are shared: a NetworkPolicy has one for each direction on a node,
//! whoever its pods are, and pods that the same policies isolate share the rule that drops. So a count is of a policy's
//! rule, over all of this node's pods that it is about; and what nothing allowed is counted by who isolates, for the pods
//! that are isolated alike. The kernel's counters begin anew where a policy's rules are written again; a tally goes on.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use cluster::{Direction, NamespacedName};

use crate::compile::origin::Origin;
use crate::compile::profile::Chain;
use crate::policies::Policies;

/// What a rule of the table has counted, as the kernel says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading<'r> {
    /// The chain it stands in.
    pub chain: &'r str,
    /// The rule's digest.
    pub digest: u64,
    /// How much.
    pub amount: Amount,
}

/// So much traffic. Of each connection, what was looked at before it was established: mostly its first packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What can be counted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Counted {
    /// What a rule of a NetworkPolicy let pass; in audit, what it would have.
    Rule(Direction, NamespacedName, usize),
    /// What a rule of a ClusterNetworkPolicy decided; in audit, what it would have.
    ClusterRule(Direction, Arc<str>, usize),
    /// What these NetworkPolicies isolate from, and no rule of theirs allowed: it was dropped.
    Isolated(Direction, Arc<[NamespacedName]>),
    /// What these NetworkPolicies in audit would have denied: it passed.
    WouldDeny(Direction, Arc<[NamespacedName]>),
    /// What is attached without a living pod: it was dropped.
    Closed(Direction),
}

/// What was counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// Of what.
    pub of: Counted,
    /// Of which of this node's pods, where only those that are isolated alike share the counter; else empty.
    pub pods: Vec<NamespacedName>,
    /// How much.
    pub amount: Amount,
}

impl std::ops::AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.packets = self.packets.saturating_add(other.packets);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

pub(crate) fn counts<'r>(policies: &Policies, readings: impl IntoIterator<Item = Reading<'r>>) -> Vec<Count> {
    let mut sought: HashMap<&str, BTreeMap<u64, Amount>> = HashMap::new();
    for reading in readings {
        let amount = sought.entry(reading.chain).or_default().entry(reading.digest).or_default();
        *amount += reading.amount;
    }
    let pods = policies.pods_by_chain();
    let mut found: BTreeMap<Counted, (Vec<NamespacedName>, Amount)> = BTreeMap::new();
    for (name, amounts) in sought {
        let Some(chain) = policies.chain(name) else { continue };
        for (rule, origin) in policies.rules(name) {
            let Some(of) = whose(policies, chain, origin) else { continue };
            let Some(amount) = amounts.get(&rule.digest()) else { continue };
            let (whom, total) = found.entry(of).or_default();
            *total += *amount;
            if matches!(origin, Origin::Isolated | Origin::Audited) {
                whom.extend(pods.get(name).into_iter().flatten().map(|pod| (*pod).clone()));
            }
        }
    }
    found.into_iter().map(|(of, (pods, amount))| Count { of, pods, amount }).collect()
}

/// What a rule of a chain counts.
pub(crate) fn whose(policies: &Policies, chain: &Chain, origin: Origin) -> Option<Counted> {
    Some(match (chain, origin) {
        (Chain::Policy(direction, name), Origin::Rule(place)) => {
            Counted::Rule(*direction, name.clone(), place.into())
        }
        (Chain::Tier(_, direction, names), Origin::ClusterRule(which, place)) => {
            // Those of the chain that are there, as its rules were made of.
            let there = &policies.cluster().snapshot().cluster_network_policies;
            let mut names = names.iter().filter(|name| there.contains_key(*name));
            Counted::ClusterRule(*direction, names.nth(which.into())?.clone(), place.into())
        }
        (Chain::Audit(direction, name), Origin::ClusterRule(_, place)) => {
            Counted::ClusterRule(*direction, name.clone(), place.into())
        }
        (Chain::Profile(profile), Origin::Isolated) => {
            Counted::Isolated(profile.direction, profile.isolating.clone())
        }
        (Chain::Closed(direction), Origin::Isolated) => Counted::Closed(*direction),
        (Chain::Profile(profile), Origin::Audited) => {
            Counted::WouldDeny(profile.direction, profile.audited.clone())
        }
        _ => return None,
    })
}

/// Totals over any number of readings. Read the counters now and then, and before a change is carried out if nothing is to
/// be lost: what a chain counted between the last reading and its end is not known.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    last: HashMap<(Box<str>, u64), Amount>,
    totals: BTreeMap<Counted, Count>,
}

impl Tally {
    /// Takes what came on top since the last reading. A counter that says less than it did has begun anew.
    pub fn add<'r>(&mut self, policies: &Policies, readings: impl IntoIterator<Item = Reading<'r>>) {
        let mut last = HashMap::new();
        let mut new = Vec::new();
        for reading in readings {
            let key = (Box::from(reading.chain), reading.digest);
            let before = self.last.get(&key).copied().unwrap_or_default();
            let amount = match reading.amount.packets.checked_sub(before.packets) {
                Some(packets) => Amount { packets, bytes: reading.amount.bytes.saturating_sub(before.bytes) },
                None => reading.amount,
            };
            last.insert(key, reading.amount);
            new.push(Reading { amount, ..reading });
        }
        self.last = last;
        let snapshot = policies.cluster().snapshot();
        self.totals.retain(|of, _| match of {
            Counted::Rule(_, name, _) => snapshot.network_policies.contains_key(name),
            Counted::ClusterRule(_, name, _) => snapshot.cluster_network_policies.contains_key(name),
            Counted::Isolated(_, names) | Counted::WouldDeny(_, names) => {
                names.iter().all(|name| snapshot.network_policies.contains_key(name))
            }
            Counted::Closed(_) => true,
        });
        for Count { of, pods, amount } in policies.attribute(new) {
            let empty = || Count { of: of.clone(), pods: Vec::new(), amount: Amount::default() };
            let total = self.totals.entry(of.clone()).or_insert_with(empty);
            total.amount += amount;
            total.pods = pods;
        }
    }

    /// The totals, in order.
    pub fn totals(&self) -> impl Iterator<Item = &Count> {
        self.totals.values()
    }
}
