//! Who is in which set: the index by which a change finds the sets that it changes.
//!
//! Read [`Index`]. It holds the sets that rules of this node look up, each once, with the number of chains that need it. A
//! set of pods is filed under the namespaces it is about: under one name, or under a selector of namespaces, whose matches
//! are known. So a pod's change asks the sets of its namespace, and a namespace's change asks each selector once.
//! What a set holds is not kept here; it follows from the cluster.
//!
//! What stays true: a namespace is known only while it has an object or a pod, so those that come and go leave nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use cluster::{NAMESPACE_NAME_LABEL, NamespacedName, Pod, Selector};
use netstate::nft::{self, Element, Key};

use crate::compile::set::{NamedSet, Scope, Sets, elements};
use crate::view::{Cluster, Member};

/// The sets in use.
#[derive(Debug, Clone, Default)]
pub(crate) struct Index {
    sets: Sets,
    within: HashMap<Arc<str>, Vec<NamedSet>>,
    across: HashMap<Selector, Group>,
    /// The namespaces that were looked at and have an object or a pod.
    known: HashSet<Arc<str>>,
}

/// Members of a cluster that does not change meanwhile: whoever fills many sets meets the same pods again and again.
pub(crate) struct Members<'c> {
    cluster: &'c Cluster,
    /// By where a pod of the cluster is in memory.
    known: HashMap<*const Pod, Option<Member>>,
}

impl<'c> Members<'c> {
    /// Nobody has been met yet.
    pub(crate) fn of(cluster: &'c Cluster) -> Self {
        Self { cluster, known: HashMap::new() }
    }

    fn member(&mut self, pod: &Arc<Pod>) -> Option<&Member> {
        self.known.entry(Arc::as_ptr(pod)).or_insert_with(|| self.cluster.member_of(pod)).as_ref()
    }
}

/// The sets about namespaces that one selector selects.
#[derive(Debug, Clone, Default)]
struct Group {
    namespaces: HashSet<Arc<str>>,
    sets: Vec<NamedSet>,
}

impl Index {
    /// Without sets, for a cluster of these namespaces.
    pub(crate) fn new<'n>(namespaces: impl Iterator<Item = &'n Arc<str>>) -> Self {
        let mut index = Self::default();
        for name in namespaces {
            if !index.known.contains(name) {
                index.known.insert(name.clone());
            }
        }
        index
    }

    /// The namespaces that were looked at, and those that somebody selects.
    #[cfg(test)]
    pub(crate) fn all_known(&self) -> impl Iterator<Item = &Arc<str>> {
        self.known.iter().chain(self.across.values().flat_map(|group| &group.namespaces))
    }

    /// Whether a namespace was looked at.
    pub(crate) fn knows(&self, namespace: &str) -> bool {
        self.known.contains(namespace)
    }

    /// Notes one more need of a set. True if it is the first.
    pub(crate) fn acquire(&mut self, set: &NamedSet, cluster: &Cluster) -> bool {
        if !self.sets.acquire(set) {
            return false;
        }
        let one_more = set.clone();
        match set.scope() {
            Some(Scope::Within(namespace, _)) => {
                self.within.entry(namespace.clone()).or_default().push(one_more);
            }
            Some(Scope::Across(selector, _)) => self.group(selector, cluster).sets.push(one_more),
            // This node's pods are asked whatever their namespace.
            Some(Scope::Local) => self.group(&Selector::default(), cluster).sets.push(one_more),
            None => {}
        }
        true
    }

    /// Notes one need less. True if it was the last.
    pub(crate) fn release(&mut self, set: &NamedSet) -> bool {
        if !self.sets.release(set) {
            return false;
        }
        let drop_from = |sets: &mut Vec<NamedSet>| {
            sets.retain(|other| other != set);
            sets.is_empty()
        };
        let selector = match set.scope() {
            Some(Scope::Within(namespace, _)) => {
                if self.within.get_mut(namespace).is_some_and(drop_from) {
                    self.within.remove(namespace);
                }
                return true;
            }
            Some(Scope::Across(selector, _)) => selector.clone(),
            Some(Scope::Local) => Selector::default(),
            None => return true,
        };
        if self.across.get_mut(&selector).is_some_and(|group| drop_from(&mut group.sets)) {
            self.across.remove(&selector);
        }
        true
    }

    fn group(&mut self, selector: &Selector, cluster: &Cluster) -> &mut Group {
        let known = &self.known;
        self.across.entry(selector.clone()).or_insert_with(|| {
            let matches = |name: &&Arc<str>| selector.matches(&cluster.namespace_labels(name));
            let namespaces = match selector.certain_pair() {
                // The most common selector of all names one namespace.
                Some((NAMESPACE_NAME_LABEL, name)) => {
                    known.get(name).into_iter().filter(matches).cloned().collect()
                }
                _ => known.iter().filter(matches).cloned().collect(),
            };
            Group { namespaces, sets: Vec::new() }
        })
    }

    /// Every set in use.
    pub(crate) fn sets(&self) -> &Sets {
        &self.sets
    }

    /// The sets that pods of a namespace can be in.
    pub(crate) fn about(&self, namespace: &str) -> impl Iterator<Item = &NamedSet> {
        let within = self.within.get(namespace).into_iter().flatten();
        let across = self.across.values().filter(|group| group.namespaces.contains(namespace));
        within.chain(across.flat_map(|group| &group.sets))
    }

    /// Looks at a namespace again, which may be new or have other labels. Returns the sets that its pods can be in
    /// from now on, and those that they cannot be in any more: if it has no object and no pods any more, there is nobody.
    pub(crate) fn look_again(
        &mut self,
        namespace: &Arc<str>,
        cluster: &Cluster,
    ) -> (Vec<NamedSet>, Vec<NamedSet>) {
        if !cluster.has_namespace(namespace) {
            self.forget(namespace);
            return (Vec::new(), Vec::new());
        }
        self.known.insert(namespace.clone());
        let labels = cluster.namespace_labels(namespace);
        let (mut entered, mut left) = (Vec::new(), Vec::new());
        for (selector, group) in &mut self.across {
            match (group.namespaces.contains(namespace), selector.matches(&labels)) {
                (false, true) => {
                    group.namespaces.insert(namespace.clone());
                    entered.extend(group.sets.iter().cloned());
                }
                (true, false) => {
                    group.namespaces.remove(namespace);
                    left.extend(group.sets.iter().cloned());
                }
                _ => {}
            }
        }
        (entered, left)
    }

    /// Forgets a namespace if a pod of it that is gone was all that there was of it.
    pub(crate) fn forget_if_gone(&mut self, namespace: &Arc<str>, cluster: &Cluster) {
        if self.known.contains(namespace) && !cluster.has_namespace(namespace) {
            self.forget(namespace);
        }
    }

    fn forget(&mut self, namespace: &str) {
        self.known.remove(namespace);
        for group in self.across.values_mut() {
            group.namespaces.remove(namespace);
        }
    }

    /// A set with all that is in it; `node` is this one.
    pub(crate) fn filled(&self, set: &NamedSet, members: &mut Members<'_>, node: &str) -> nft::Set {
        let keys: Vec<Key> = match set.scope() {
            None => set.keys(members.cluster),
            Some(scope) => {
                let mut keys = Vec::new();
                self.each_candidate(scope, members, node, |member| keys.extend(set.keys_of(member, node)));
                keys
            }
        };
        nft::Set { elements: elements(keys), ..set.empty() }
    }

    /// Hands over the pods that may be in a scope, few too many at most. Labels are looked at first, for that is cheap.
    fn each_candidate(
        &self,
        scope: &Scope,
        members: &mut Members<'_>,
        node: &str,
        mut take: impl FnMut(&Member),
    ) {
        let cluster = members.cluster;
        let mut offer = |pod: &Arc<Pod>| {
            if let Some(member) = members.member(pod) {
                take(member);
            }
        };
        let (selector, pods) = match scope {
            Scope::Within(namespace, pods) => {
                let own = cluster.pods_of(namespace).filter(|pod| pods.matches(&pod.labels));
                return own.for_each(&mut offer);
            }
            Scope::Local => {
                let snapshot = cluster.snapshot();
                let here = |name: &NamespacedName| cluster.node_of(name).is_some_and(|have| **have == *node);
                return snapshot.pods.values().filter(|pod| here(&pod.name)).for_each(&mut offer);
            }
            Scope::Across(selector, pods) => (selector, pods),
        };
        let Some(group) = self.across.get(selector) else { return };
        let wanted = |pod: &&Arc<Pod>| pods.matches(&pod.labels);
        // By label or by namespace, whichever is likely to be about fewer pods.
        let by_namespace = cluster.snapshot().pods.len() * group.namespaces.len() / self.known.len().max(1);
        if let Some(pair) = pods.certain_pair().filter(|pair| cluster.labelled(*pair).len() < by_namespace) {
            let names =
                cluster.labelled(pair).iter().filter(|name| group.namespaces.contains(&name.namespace));
            let own = names.filter_map(|name| cluster.snapshot().pods.get(name));
            return own.filter(wanted).for_each(&mut offer);
        }
        for namespace in &group.namespaces {
            cluster.pods_of(namespace).filter(wanted).for_each(&mut offer);
        }
    }
}

/// What of `before` is not in `after`, and the other way round.
pub(crate) fn difference(
    before: Vec<Key>,
    after: Vec<Key>,
) -> (BTreeMap<Key, Element>, BTreeMap<Key, Element>) {
    let (mut gone, mut new) = (elements(before), elements(after));
    gone.retain(|key, _| new.remove(key).is_none());
    (gone, new)
}
