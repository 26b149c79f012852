//! Policies that the kernel refuses: closed, so that all others can be enforced, and tried again later.
//!
//! Read [`Refused::close`]. What stands for such a policy isolates its pods all the same and opens nothing
//! (`NetworkPolicy::closed`), so evaluator, table and explanation agree on it. [`culprits`] finds out by trying which
//! they are, where the kernel does not say.
//!
//! What stays true: a policy that says something else than the refused one is tried at once; so is nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use cluster::{Change, Key, Object};

/// After so long a refused policy is tried again the first time; then after twice as long, and so on.
const FIRST_PAUSE: Duration = Duration::from_secs(2);

/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The policies that the kernel refused.
#[derive(Debug, Default)]
pub(super) struct Refused {
    policies: BTreeMap<Key, Refusal>,
}

#[derive(Debug)]
struct Refusal {
    original: Object,
    reason: String,
    failures: u32,
    again: Instant,
    /// It is not closed now: whether the kernel takes it is about to be seen.
    tried: bool,
}

impl Refused {
    /// Notes that the kernel refused this policy, and why. What is to stand for it; `None` if that does already.
    pub(super) fn close(&mut self, policy: Object, reason: &str) -> Option<Change> {
        let key = policy.key();
        let failures = match self.policies.get(&key) {
            Some(known) if !known.tried => return None,
            Some(known) => known.failures,
            None => 0,
        };
        let closed = match &policy {
            Object::NetworkPolicy(policy) => policy.closed(reason).into(),
            Object::ClusterNetworkPolicy(policy) => policy.closed(reason).into(),
            _ => return None,
        };
        let pause = FIRST_PAUSE.saturating_mul(1 << failures.min(10)).min(LONGEST_PAUSE);
        let refusal = Refusal {
            original: policy,
            reason: reason.to_owned(),
            failures: failures.saturating_add(1),
            again: Instant::now() + pause,
            tried: false,
        };
        self.policies.insert(key, refusal);
        Some(Change::Set(closed))
    }

    /// The cluster says something else of a policy than before.
    pub(super) fn forget(&mut self, key: &Key) {
        self.policies.remove(key);
    }

    /// The policies that are to be tried again by now.
    pub(super) fn reopen(&mut self, now: Instant) -> Vec<Change> {
        let due = self.policies.values_mut().filter(|refusal| !refusal.tried && refusal.again <= now);
        due.map(|refusal| {
            refusal.tried = true;
            Change::Set(refusal.original.clone())
        })
        .collect()
    }

    /// The kernel has taken all that it was given.
    pub(super) fn settle(&mut self) {
        self.policies.retain(|key, refusal| {
            if refusal.tried {
                tracing::info!("{key}: the kernel takes it now, and it is enforced");
            }
            !refusal.tried
        });
    }

    /// When the next of them is to be tried again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.policies.values().filter(|refusal| !refusal.tried).map(|refusal| refusal.again).min()
    }

    /// Those that are closed, for people.
    pub(super) fn told(&self) -> impl Iterator<Item = String> {
        let closed = self.policies.iter().filter(|(_, refusal)| !refusal.tried);
        closed.map(|(key, refusal)| format!("{key}: {}", refusal.reason))
    }
}

/// The policies of `all` that are not taken, each by itself, found by halves.
pub(super) fn culprits(all: BTreeSet<Key>, takes: &mut impl FnMut(&BTreeSet<Key>) -> bool) -> BTreeSet<Key> {
    let mut found = BTreeSet::new();
    let mut open = vec![all];
    while let Some(mut part) = open.pop() {
        if part.is_empty() || takes(&part) {
            continue;
        }
        let Some(middle) = part.iter().nth(part.len() / 2).filter(|_| part.len() > 1).cloned() else {
            found.extend(part);
            continue;
        };
        open.push(part.split_off(&middle));
        open.push(part);
    }
    found
}

#[cfg(test)]
mod tests {
    use cluster::NamespacedName;

    use super::*;

    #[test]
    fn those_that_are_not_taken_are_found_in_few_tries_however_many_others_there_are() {
        let key = |number: u32| Key::NetworkPolicy(NamespacedName::new("shop", format!("{number:04}")));
        let all: BTreeSet<Key> = (0..1000).map(key).collect();
        for bad in [vec![], vec![0], vec![999], vec![3, 500, 501]] {
            let bad: BTreeSet<Key> = bad.into_iter().map(key).collect();
            let mut tries = 0;
            let found = culprits(all.clone(), &mut |part| {
                tries += 1;
                part.is_disjoint(&bad)
            });
            assert_eq!(found, bad);
            assert!(tries <= 1 + 20 * bad.len(), "{tries}");
        }
    }

    #[test]
    fn a_refused_policy_is_closed_once_and_tried_again_until_it_is_taken() {
        let policy = cluster::NetworkPolicy {
            name: NamespacedName::new("shop", "door"),
            subjects: cluster::Selector::default(),
            ingress: Some(Box::from([cluster::Rule::default()])),
            egress: None,
            audit: false,
            faults: Box::default(),
        };
        let original = Object::from(policy);
        let mut refused = Refused::default();
        let closed = refused.close(original.clone(), "no room");
        let Some(Change::Set(Object::NetworkPolicy(closed))) = closed else { panic!("{closed:?}") };
        assert_eq!(closed.ingress.as_deref(), Some(&[][..]), "it isolates, and allows nothing");
        assert!(closed.egress.is_none() && closed.all_faults().eq(["no room"]));
        let in_audit = cluster::NetworkPolicy { audit: true, ..closed.as_ref().clone() }.closed("no room");
        assert!(in_audit.ingress.is_none(), "what is in audit is not looked at meanwhile");
        assert_eq!(refused.close(original.clone(), "no room"), None);
        let first = refused.due().unwrap();
        assert_eq!(refused.reopen(first - Duration::from_millis(1)), []);
        assert_eq!(refused.reopen(first), [Change::Set(original.clone())]);
        assert!(refused.close(original.clone(), "no room").is_some(), "and refused again");
        let second = refused.due().unwrap();
        assert!(second > first, "later each time");
        assert_eq!(refused.told().count(), 1);
        refused.reopen(second);
        refused.settle();
        assert!(refused.due().is_none() && refused.told().count() == 0);
    }
}
