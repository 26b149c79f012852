//! The policies of one node, kept up to date change by change.
//!
//! Read [`Policies::apply`]. A change goes through four questions, each answered by an index: which pods are different,
//! which sets they leave and enter, which local pods have another profile now, and which chains say something else. The
//! whole table, computed anew ([`Policies::full`] of a fresh value), is what a property test compares with.
//!
//! What stays true: chains and sets are there exactly while somebody needs them, but the chains of `closed` always; the
//! steps of a change turn the table of before into the table of after; nothing here depends on the order in which the
//! cluster came to be as it is.

mod blame;
mod closed;
mod entries;
#[cfg(test)]
mod namespaces;
mod telling;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use cluster::{Change, Direction, Key, NamespacedName, NetworkPolicy, Object, ResolvedName, Snapshot};
use netstate::nft::{self, Element, Rule, Step, Table};

use crate::compile::class::{Class, Classes};
use crate::compile::frame;
use crate::compile::origin::Logging;
use crate::compile::profile::{ByChain, Chain, Named, Profile, Written, chain};
use crate::compile::rules::Compiled;
use crate::compile::set::{NamedSet, Set};
use crate::delta::Delta;
use crate::explain::{Explanation, explain};
use crate::judge::{Flow, Judgement, judge};
use crate::select::{Index, Members, difference};
use crate::view::{Attached, Cluster, Member};
use entries::{Entries, move_entries};

/// What this node's kernel is to enforce, and what any flow of the cluster is judged by.
#[derive(Debug, Clone)]
pub struct Policies {
    node: Arc<str>,
    cluster: Cluster,
    locals: BTreeMap<NamespacedName, Local>,
    /// Addresses that are attached here without a living pod, where that is not left open.
    closed: BTreeSet<IpAddr>,
    chains: HashMap<Arc<str>, Held>,
    /// The same chains, to be found by what they stand for.
    named: HashSet<ByChain>,
    classes: Classes,
    index: Index,
    frame: Table,
    logging: Logging,
    /// Whether the node may have IPVS.
    ipvs: bool,
    /// Whether the table has its base chains.
    based: bool,
}

/// A pod of this node.
#[derive(Debug, Clone)]
struct Local {
    member: Member,
    /// For ingress and egress; `None` where no policy is about it.
    profiles: [Option<Arc<Named>>; 2],
}

impl Local {
    fn is_subject(&self) -> bool {
        self.profiles.iter().any(Option::is_some)
    }

    /// Whether a policy decides of it, and not only policies in audit.
    fn is_policed(&self) -> bool {
        self.profiles.iter().flatten().any(|named| named.chain.enforces())
    }
}

/// A chain of the table. Its rules are not kept, for they are written from the policies at any time, and there can be
/// tens of thousands.
#[derive(Debug, Clone)]
struct Held {
    chain: Arc<Named>,
    /// By which local pods are led to it, if they are, and in which direction.
    class: Option<(Class, Direction)>,
    users: usize,
    /// By which others than these are told.
    rules: Digest,
    sets: Box<[NamedSet]>,
    chains: Box<[Arc<Named>]>,
}

impl Held {
    /// What leads to the chain.
    fn lead(&self) -> Option<(String, nft::Key, Element)> {
        self.class.map(|(class, direction)| frame::lead(class, direction, &self.chain.name))
    }
}

/// What rules are told apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Digest {
    count: usize,
    hash: u64,
}

impl Digest {
    fn of(rules: &[Rule]) -> Self {
        let mut hasher = DefaultHasher::new();
        rules.hash(&mut hasher);
        Self { count: rules.len(), hash: hasher.finish() }
    }
}

/// What a change makes of the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Emitted {
    /// In the order in which the kernel can take them, in one transaction.
    pub steps: Vec<Step>,
}

/// What goes on while a change is worked in.
struct Work {
    /// `None` while nobody asks, because the whole table will be.
    delta: Option<Delta>,
    /// Needs that ended. They are given up last, so that what is needed again at once never goes.
    chains_left: Vec<Arc<Named>>,
    sets_left: Vec<NamedSet>,
}

impl Work {
    fn new(delta: Option<Delta>) -> Self {
        Self { delta, chains_left: Vec::new(), sets_left: Vec::new() }
    }
}

impl Policies {
    /// The policies of the node `node` in that cluster. They tell of nothing, and count.
    pub fn new(node: impl Into<Arc<str>>, snapshot: Snapshot) -> Self {
        Self::with_logging(node, snapshot, Logging::default())
    }

    /// The policies of the node `node` in that cluster, which tell so much of what they decide.
    pub fn with_logging(node: impl Into<Arc<str>>, snapshot: Snapshot, logging: Logging) -> Self {
        let cluster = Cluster::new(snapshot);
        let index = Index::new(cluster.namespaces());
        let mut policies = Self {
            node: node.into(),
            cluster,
            locals: BTreeMap::new(),
            closed: BTreeSet::new(),
            chains: HashMap::new(),
            named: HashSet::new(),
            classes: Classes::default(),
            index,
            frame: frame::frame(),
            logging,
            ipvs: true,
            based: false,
        };
        let here: Vec<NamespacedName> = policies.pods_here().collect();
        let mut work = Work::new(None);
        policies.make_closed(&mut work);
        here.iter().for_each(|name| policies.settle(name, &mut work));
        policies.settle_bases(&mut work);
        policies
    }

    /// Takes one change of the cluster. Kinds that policies do not decide by change nothing.
    pub fn apply(&mut self, change: &Change) -> Emitted {
        let mut work = Work::new(Some(Delta::default()));
        match change.key() {
            Key::Pod(_) | Key::PodStatus(_) => self.change_pod(change, &mut work),
            Key::Namespace(name) => self.change_namespace(&name, change, &mut work),
            Key::Node(_) => {
                self.change_others(&mut work, |cluster| cluster.apply(change));
            }
            Key::NetworkPolicy(name) => self.change_policy(&name, change, &mut work),
            Key::ClusterNetworkPolicy(name) => self.change_cluster_policy(&name, change, &mut work),
            Key::Service(_) | Key::EndpointSlice(_) | Key::ServiceCidr(_) | Key::Lease(_) | Key::Claim(_) => {
            }
        }
        self.finish(work)
    }

    /// Takes what a domain name resolves to from now on.
    pub fn resolve(&mut self, name: ResolvedName) -> Emitted {
        let mut work = Work::new(Some(Delta::default()));
        self.change_others(&mut work, |cluster| cluster.resolve(name));
        self.finish(work)
    }

    /// Takes what of a pod is attached to this node from now on, all of its interfaces together.
    pub fn attach(&mut self, pod: &NamespacedName, attached: &[Attached]) -> Emitted {
        let mut work = Work::new(Some(Delta::default()));
        let touched = self.cluster.touched_by_attaching(pod, attached);
        let before = self.cluster.attached_addresses(pod);
        self.change_members(touched, &mut work, |cluster| cluster.attach(pod, attached));
        self.settle_closed(before, &mut work);
        self.settle_closed(self.cluster.attached_addresses(pod), &mut work);
        self.finish(work)
    }

    /// How many pods run here that policies could be about.
    pub fn local_pods(&self) -> usize {
        self.locals.len()
    }

    /// The pods that run here and that some policy is about.
    pub fn subjects(&self) -> impl Iterator<Item = &Member> {
        self.locals.values().filter(|local| local.is_subject()).map(|local| &local.member)
    }

    /// Whether a policy that is not in audit is about this pod, and it runs here.
    pub fn is_policed(&self, pod: &NamespacedName) -> bool {
        self.locals.get(pod).is_some_and(Local::is_policed)
    }

    /// Whether there is any such pod.
    pub fn police_anybody(&self) -> bool {
        self.locals.values().any(Local::is_policed)
    }

    /// The whole table.
    pub fn full(&self) -> Table {
        let mut table = self.frame.clone();
        let bases = self.based.then(|| frame::bases(self.ipvs)).into_iter().flatten();
        table.chains.extend(bases.map(|chain| (chain.name.clone(), chain)));
        for (name, held) in &self.chains {
            let rules = held.chain.write(&self.cluster, self.logging, self.index.sets()).rules.rules;
            table = table.with_chain(chain(name.to_string(), rules));
        }
        let leads = self.chains.values().filter_map(Held::lead);
        let mut members = Members::of(&self.cluster);
        for set in self.index.sets().iter() {
            table = table.with_set(self.index.filled(set, &mut members, &self.node));
        }
        let of_closed = self.closed.iter().flat_map(|address| self.closed_entries(*address));
        let of_pods = self.locals.values().flat_map(|local| self.entries(local));
        for (set, key, element) in leads.chain(of_pods).chain(of_closed) {
            if let Some(set) = table.sets.get_mut(&set) {
                set.elements.insert(key, element);
            }
        }
        table
    }

    /// What becomes of a flow between any two ends.
    pub fn verdict(&self, flow: &Flow) -> Judgement {
        judge(&self.cluster, flow)
    }

    /// What becomes of a flow, and why.
    pub fn explain(&self, flow: &Flow) -> Explanation {
        explain(&self.cluster, flow)
    }

    /// The cluster as policies see it.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    fn pods_here(&self) -> impl Iterator<Item = NamespacedName> {
        let snapshot = self.cluster.snapshot();
        let here = |name: &&NamespacedName| self.cluster.node_of(name) == Some(&self.node);
        snapshot.pods.keys().filter(here).cloned()
    }

    fn change_pod(&mut self, change: &Change, work: &mut Work) {
        let touched = self.cluster.touched(change);
        self.change_members(touched, work, |cluster| cluster.apply(change));
        if let Key::Pod(name) | Key::PodStatus(name) = change.key() {
            self.settle_closed(self.cluster.attached_addresses(&name), work);
            self.index.forget_if_gone(&name.namespace, &self.cluster);
        }
    }

    /// A change of pods, of which no others than the touched ones can be different afterwards.
    fn change_members(
        &mut self,
        touched: Vec<NamespacedName>,
        work: &mut Work,
        change: impl FnOnce(&mut Cluster) -> bool,
    ) {
        let before: Vec<Option<Member>> = touched.iter().map(|name| self.cluster.member(name)).collect();
        if !change(&mut self.cluster) {
            return;
        }
        // First the sets that are there: those that chains are about to need will be made of what is then.
        let mut settled = Vec::new();
        for (name, before) in touched.into_iter().zip(before) {
            let after = self.cluster.member(&name);
            if before != after {
                self.move_between_sets(&name.namespace, [before.as_ref(), after.as_ref()], work);
                settled.push(name);
            }
        }
        settled.iter().for_each(|name| self.settle(name, work));
    }

    /// Lets a pod leave the sets that it was in, and enter those that it is in now.
    fn move_between_sets(&mut self, namespace: &Arc<str>, member: [Option<&Member>; 2], work: &mut Work) {
        // A namespace need not have an object; its first pod is enough.
        if !self.index.knows(namespace) {
            self.index.look_again(namespace, &self.cluster);
        }
        for set in self.index.about(namespace) {
            let keys =
                |member: Option<&Member>| member.map_or(Vec::new(), |member| set.keys_of(member, &self.node));
            let [before, after] = member.map(keys);
            if before == after {
                continue;
            }
            let (gone, new) = difference(before, after);
            if let Some(delta) = &mut work.delta {
                delta.elements(&set.empty(), gone, new);
            }
        }
    }

    fn change_namespace(&mut self, name: &Arc<str>, change: &Change, work: &mut Work) {
        if !self.cluster.apply(change) {
            return;
        }
        let (entered, left) = self.index.look_again(name, &self.cluster);
        for (sets, enters) in [(entered, true), (left, false)] {
            for set in sets {
                let members = self.cluster.members_of(name);
                let keys = members.flat_map(|member| set.keys_of(&member, &self.node)).collect();
                let (gone, new) =
                    if enters { difference(Vec::new(), keys) } else { difference(keys, Vec::new()) };
                if let Some(delta) = &mut work.delta {
                    delta.elements(&set.empty(), gone, new);
                }
            }
        }
        self.settle_namespace(name, work);
    }

    /// A change that is not about pods: sets of nodes and names may hold others than before.
    fn change_others(&mut self, work: &mut Work, change: impl FnOnce(&mut Cluster) -> bool) {
        let concerned = |set: &&NamedSet| matches!(***set, Set::Nodes(..) | Set::DomainNames(..));
        let sets: Vec<NamedSet> = self.index.sets().iter().filter(concerned).cloned().collect();
        let before: Vec<_> = sets.iter().map(|set| set.keys(&self.cluster)).collect();
        if !change(&mut self.cluster) {
            return;
        }
        for (set, before) in sets.iter().zip(before) {
            let (gone, new) = difference(before, set.keys(&self.cluster));
            if let Some(delta) = &mut work.delta {
                delta.elements(&set.empty(), gone, new);
            }
        }
    }

    fn change_policy(&mut self, name: &NamespacedName, change: &Change, work: &mut Work) {
        let policy = |policies: &Self| policies.cluster.snapshot().network_policies.get(name).cloned();
        let before = policy(self);
        if !self.apply_to_policies(change, work) {
            return;
        }
        self.settle_for(name, [before, policy(self)], work);
        for direction in Direction::ALL {
            if let Some(ByChain(chain)) = self.named.get(&Chain::Policy(direction, name.clone())).cloned() {
                self.rewrite(&chain, work);
            }
        }
    }

    fn change_cluster_policy(&mut self, name: &str, change: &Change, work: &mut Work) {
        if !self.apply_to_policies(change, work) {
            return;
        }
        let here: Vec<NamespacedName> = self.locals.keys().cloned().collect();
        here.iter().for_each(|pod| self.settle(pod, work));
        let made = self.chains.values().map(|held| &held.chain).filter(|named| named.chain.is_made_of(name));
        let made: Vec<Arc<Named>> = made.cloned().collect();
        made.iter().for_each(|chain| self.rewrite(chain, work));
    }

    fn settle_namespace(&mut self, namespace: &Arc<str>, work: &mut Work) {
        let own = self.locals.keys().filter(|name| name.namespace == *namespace);
        let own: Vec<NamespacedName> = own.cloned().collect();
        own.iter().for_each(|name| self.settle(name, work));
    }

    /// Brings what the table has of a pod up to date, if it is one of this node's.
    fn settle(&mut self, name: &NamespacedName, work: &mut Work) {
        let member = self.cluster.member(name).filter(|member| member.node.as_ref() == Some(&self.node));
        let after = member.map(|member| {
            let profile = |direction| {
                Profile::of(&self.cluster, &member, direction)
                    .map(|profile| self.named(Chain::Profile(profile)))
            };
            Local { profiles: Direction::ALL.map(profile), member }
        });
        self.put(name, after, work);
    }

    /// A chain with its name: the one that is there, if it is.
    fn named(&self, chain: Chain) -> Arc<Named> {
        self.named.get(&chain).map_or_else(|| Named::new(chain), |known| known.0.clone())
    }

    /// Brings this node's pods up to date with a NetworkPolicy that was one thing and is another now. Only where it is
    /// newly about a pod, or not any more, something changes; and pods that were alike stay alike.
    fn settle_for(
        &mut self,
        name: &NamespacedName,
        policies: [Option<Arc<NetworkPolicy>>; 2],
        work: &mut Work,
    ) {
        let mut known: HashMap<(Arc<str>, bool), Arc<Named>> = HashMap::new();
        let of_namespace = self.locals.range(NamespacedName::new(name.namespace.clone(), "")..);
        let own = of_namespace.take_while(|(pod, _)| pod.namespace == name.namespace);
        let own: Vec<(NamespacedName, Local)> =
            own.map(|(pod, local)| (pod.clone(), local.clone())).collect();
        for (pod, local) in own {
            let mut after = local.clone();
            for (direction, profile) in Direction::ALL.into_iter().zip(&mut after.profiles) {
                // Whether it is about the pod, and if so whether in audit.
                let [was, is] = policies.each_ref().map(|policy| {
                    let about = policy.as_ref().filter(|policy| {
                        policy.rules(direction).is_some() && policy.subjects.matches(&local.member.pod.labels)
                    });
                    about.map(|policy| policy.audit)
                });
                if was == is {
                    continue;
                }
                let isolates = is == Some(false);
                let old = profile.as_ref().map(|named| (named.name.clone(), isolates));
                if let Some(alike) = old.as_ref().and_then(|old| known.get(old)) {
                    *profile = Some(alike.clone());
                    continue;
                }
                let one_more = profile.as_ref().and_then(|named| match &named.chain {
                    Chain::Profile(profile) => profile.with(name, isolates),
                    _ => None,
                });
                let Some((old, one_more)) = old.zip(one_more) else {
                    let anew = Profile::of(&self.cluster, &local.member, direction);
                    *profile = anew.map(|profile| self.named(Chain::Profile(profile)));
                    continue;
                };
                let named = self.named(Chain::Profile(one_more));
                known.insert(old, named.clone());
                *profile = Some(named);
            }
            if after.profiles != local.profiles {
                self.put(&pod, Some(after), work);
            }
        }
    }

    /// Puts a pod in place of what it was, or away.
    fn put(&mut self, name: &NamespacedName, mut after: Option<Local>, work: &mut Work) {
        for chain in after.iter_mut().flat_map(|local| local.profiles.iter_mut().flatten()) {
            *chain = self.acquire(chain, work);
        }
        let before = match after.clone() {
            Some(local) => self.locals.insert(name.clone(), local),
            None => self.locals.remove(name),
        };
        if let Some(delta) = &mut work.delta {
            let [before, after] =
                [&before, &after].map(|local| local.as_ref().map_or(Vec::new(), |local| self.entries(local)));
            move_entries(delta, &self.frame, before, after);
        }
        work.chains_left.extend(before.into_iter().flat_map(|local| local.profiles).flatten());
    }

    /// Notes one more need of a chain; returns it as others have it, so that what it stands for is there once.
    fn acquire(&mut self, named: &Arc<Named>, work: &mut Work) -> Arc<Named> {
        if let Some(held) = self.chains.get_mut(&named.name) {
            held.users += 1;
            return held.chain.clone();
        }
        let Written { rules, chains } = named.write(&self.cluster, self.logging, self.index.sets());
        let Compiled { rules, sets, .. } = rules;
        let chains = chains.iter().map(|other| self.acquire(other, work)).collect();
        sets.iter().for_each(|set| self.acquire_set(set, work));
        let (users, digest) = (1, Digest::of(&rules));
        let class = named.chain.leads().map(|direction| (self.classes.acquire(&named.name), direction));
        let held = Held { chain: named.clone(), class, users, rules: digest, sets: sets.into(), chains };
        if let Some(delta) = &mut work.delta {
            delta.chain_made(chain(named.name.to_string(), rules));
            move_entries(delta, &self.frame, Entries::new(), held.lead().into_iter().collect());
        }
        self.chains.insert(named.name.clone(), held);
        self.named.insert(ByChain(named.clone()));
        named.clone()
    }

    fn acquire_set(&mut self, set: &NamedSet, work: &mut Work) {
        if self.index.acquire(set, &self.cluster)
            && let Some(delta) = &mut work.delta
        {
            delta.set_made(self.index.filled(set, &mut Members::of(&self.cluster), &self.node));
        }
    }

    /// Writes a chain again whose policies say something else now.
    fn rewrite(&mut self, named: &Named, work: &mut Work) {
        if !self.chains.contains_key(&named.name) {
            return;
        }
        let Written { rules, chains } = named.write(&self.cluster, self.logging, self.index.sets());
        let Compiled { rules, sets, .. } = rules;
        let chains = chains.iter().map(|other| self.acquire(other, work)).collect();
        sets.iter().for_each(|set| self.acquire_set(set, work));
        let Some(held) = self.chains.get_mut(&named.name) else { return };
        work.chains_left.extend(std::mem::replace(&mut held.chains, chains));
        work.sets_left.extend(std::mem::replace(&mut held.sets, sets.into()));
        let new = Digest::of(&rules);
        let old = std::mem::replace(&mut held.rules, new);
        if let Some(delta) = work.delta.as_mut().filter(|_| old != new) {
            delta.chain_changed(old.count, chain(named.name.to_string(), rules));
        }
    }

    fn finish(&mut self, mut work: Work) -> Emitted {
        while let Some(chain) = work.chains_left.pop() {
            self.release(&chain, &mut work);
        }
        for set in std::mem::take(&mut work.sets_left) {
            if self.index.release(&set)
                && let Some(delta) = &mut work.delta
            {
                delta.set_left(set.empty());
            }
        }
        self.settle_bases(&mut work);
        Emitted { steps: work.delta.map_or(Vec::new(), |delta| delta.steps()) }
    }

    fn release(&mut self, named: &Named, work: &mut Work) {
        let Some(held) = self.chains.get_mut(&named.name) else { return };
        held.users -= 1;
        if held.users > 0 {
            return;
        }
        self.named.remove(&named.chain);
        if let Some(held) = self.chains.remove(&named.name) {
            if let Some(delta) = &mut work.delta {
                delta.chain_left(&named.name, held.rules.count);
                move_entries(delta, &self.frame, held.lead().into_iter().collect(), Entries::new());
            }
            if let Some((class, _)) = held.class {
                self.classes.release(class);
            }
            work.chains_left.extend(held.chains);
            work.sets_left.extend(held.sets);
        }
    }
}

/// Whether an object is one that policies decide by.
pub fn concerns(object: &Object) -> bool {
    matches!(
        object,
        Object::Pod(_)
            | Object::PodStatus(_)
            | Object::Namespace(_)
            | Object::Node(_)
            | Object::NetworkPolicy(_)
            | Object::ClusterNetworkPolicy(_)
    )
}
