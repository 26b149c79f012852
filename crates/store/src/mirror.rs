//! What a watch of a store on the network knows, and what of it is news.
//!
//! Read [`Mirror::take`]: lists and changes of the store's parts go in, [`Event`]s come out, in the order that
//! [`Event`] promises. What differs between the stores is [`Layout`]. It opens no connection and reads no clock, so its
//! rules are tested alone:
//!
//! - the snapshot is told when every part has been listed whole, never before;
//! - a list that comes later is compared with what is known, and only the difference is told;
//! - what cannot be read is a problem, and its last good version stays;
//! - a list of a store that has lost its objects (its versions run backwards) removes nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Debug;
use std::path::PathBuf;

use cluster::{Change, Key, Kind, Object, Snapshot};

use crate::manifest::Fault;
use crate::share::Shared;
use crate::{Event, Problem};

/// How a store is laid out.
pub(crate) trait Layout: Debug + Send {
    /// What is listed and watched by itself.
    type Part: Copy + Ord + Debug + Send;
    /// How a store comes to have lost objects, and what to do, for people.
    const LOST: &'static str;
    /// The parts that tell of these kinds.
    fn parts(&self, kinds: &[Kind]) -> Vec<Self::Part>;
    /// The kinds of objects that a part tells of.
    fn kinds(part: Self::Part) -> &'static [Kind];
    /// Whether it is this part that tells of an object of its kinds, where several do.
    fn holds(&self, _: Self::Part, _: &Key) -> bool {
        true
    }
    /// Where an object is, for people.
    fn place(&self, key: &Key) -> PathBuf;
}

/// What is kept at one place of a store.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Item {
    /// All that it may stand for.
    pub(crate) keys: Vec<Key>,
    /// What it stands for.
    pub(crate) objects: Vec<Object>,
    /// What of it cannot be read.
    pub(crate) faults: Vec<(Key, Fault)>,
    /// Its identity, which a name given twice does not repeat; empty where the store has none.
    pub(crate) uid: String,
    /// Its version, in the store's own count.
    pub(crate) version: String,
}

/// What is told of one part.
#[derive(Debug)]
pub(crate) enum News<P> {
    /// Everything there is.
    Listed {
        /// Of which part.
        part: P,
        /// All its objects.
        items: Vec<Item>,
        /// The store has lost objects since it was seen last.
        lost: bool,
    },
    /// What happened since, in order.
    Changed(P, Vec<Delta>),
    /// The places of a part that hold what nobody reads, all of them.
    Strays(P, BTreeMap<PathBuf, Fault>),
    /// What the store has beside objects is not as it is to be: the place and what is wrong; none once it is.
    Troubled(P, Option<(PathBuf, Fault)>),
    /// The watch was cut; whether the store is still what it was is being found out.
    Doubted(P),
    /// The store answers.
    Reached(P),
    /// It does not, or refuses.
    Failed(P, String),
    /// Everything has been told that was there when this question was asked.
    Confirmed(u64),
}

/// One change of a part.
#[derive(Debug)]
pub(crate) enum Delta {
    /// An object is there now.
    Set(Item),
    /// What had these keys is gone.
    Gone(Vec<Key>),
}

/// What a watch knows.
#[derive(Debug)]
pub(crate) struct Mirror<L: Layout> {
    layout: L,
    kinds: BTreeSet<Kind>,
    feeds: BTreeMap<L::Part, Feed>,
    snapshot: Snapshot,
    shared: Shared,
    problems: BTreeMap<Key, Problem>,
    strays: BTreeMap<L::Part, BTreeMap<PathBuf, Fault>>,
    troubles: BTreeMap<L::Part, (PathBuf, Fault)>,
    /// What was lost with the store's objects, and stays in force.
    orphans: BTreeSet<Key>,
    told: bool,
    told_problems: Vec<Problem>,
    told_lost: BTreeSet<Key>,
    told_away: Option<String>,
    confirmed: Option<u64>,
    queue: VecDeque<Event>,
}

#[derive(Debug, Default)]
struct Feed {
    listed: bool,
    doubted: bool,
    trouble: Option<String>,
}

/// What objects came to within one step: none stands for gone.
type Touched = BTreeMap<Key, Option<Object>>;

impl<L: Layout> Mirror<L> {
    /// A watch of these kinds that knows nothing yet.
    pub(crate) fn new(kinds: &[Kind], layout: L) -> Self {
        let feeds = layout.parts(kinds).into_iter().map(|part| (part, Feed::default())).collect();
        let mut mirror = Self {
            layout,
            kinds: kinds.iter().copied().collect(),
            feeds,
            snapshot: Snapshot::default(),
            shared: Shared::default(),
            problems: BTreeMap::new(),
            strays: BTreeMap::new(),
            troubles: BTreeMap::new(),
            orphans: BTreeSet::new(),
            told: false,
            told_problems: Vec::new(),
            told_lost: BTreeSet::new(),
            told_away: None,
            confirmed: None,
            queue: VecDeque::new(),
        };
        mirror.tell(Vec::new());
        mirror
    }

    /// The next event, if something is to be told.
    pub(crate) fn next(&mut self) -> Option<Event> {
        self.queue.pop_front()
    }

    /// The cluster as far as it is known, and all that is wrong in it.
    pub(crate) fn into_parts(self) -> (Snapshot, Vec<Problem>) {
        let problems = self.all_problems();
        (self.snapshot, problems)
    }

    /// Takes news in.
    pub(crate) fn take(&mut self, news: News<L::Part>) {
        match news {
            News::Listed { part, items, lost } => {
                let touched = self.compare(part, items, lost);
                self.feed(part).listed = true;
                let changes = self.settle(touched);
                self.recover(part);
                self.tell(changes);
            }
            News::Strays(part, strays) => {
                self.strays.insert(part, strays);
                self.tell(Vec::new());
            }
            News::Troubled(part, trouble) => {
                match trouble {
                    Some(trouble) => drop(self.troubles.insert(part, trouble)),
                    None => drop(self.troubles.remove(&part)),
                }
                self.tell(Vec::new());
            }
            News::Changed(_, deltas) => {
                let mut touched = Touched::new();
                for delta in deltas {
                    match delta {
                        Delta::Set(item) => self.touch(item, &mut touched),
                        Delta::Gone(keys) => {
                            keys.into_iter().for_each(|key| self.touch_gone(key, &mut touched))
                        }
                    }
                }
                let changes = self.settle(touched);
                self.tell(changes);
            }
            News::Doubted(part) => self.feed(part).doubted = true,
            News::Reached(part) => self.recover(part),
            News::Failed(part, reason) => {
                self.feed(part).trouble = Some(reason);
                self.tell_away();
            }
            News::Confirmed(question) => {
                self.confirmed = Some(question);
                self.tell(Vec::new());
            }
        }
        self.tell_lost();
    }

    fn feed(&mut self, part: L::Part) -> &mut Feed {
        self.feeds.entry(part).or_default()
    }

    fn recover(&mut self, part: L::Part) {
        let feed = self.feed(part);
        (feed.doubted, feed.trouble) = (false, None);
        self.tell_away();
    }

    /// What a list says against what is known.
    fn compare(&mut self, part: L::Part, items: Vec<Item>, lost: bool) -> Touched {
        let mut touched = Touched::new();
        let mut there = BTreeSet::new();
        for item in items {
            if lost {
                let lacks = |key: &Key| item.objects.iter().all(|object| object.key() != *key);
                let without =
                    item.keys.iter().filter(|key| lacks(key) && self.snapshot.object(key).is_some());
                self.orphans.extend(without.cloned());
            }
            there.extend(item.keys.iter().cloned());
            self.touch(item, &mut touched);
        }
        let kinds = L::kinds(part);
        let known = kinds.iter().flat_map(|kind| keys(&self.snapshot, *kind));
        let doubted = self.problems.keys().filter(|key| kinds.contains(&key.kind())).cloned();
        let ours = |key: &Key| !there.contains(key) && self.layout.holds(part, key);
        let missing: BTreeSet<Key> = known.chain(doubted).filter(ours).collect();
        for key in missing {
            if lost {
                self.orphans.insert(key);
            } else if !self.orphans.contains(&key) {
                self.touch_gone(key, &mut touched);
            }
        }
        touched
    }

    fn touch(&mut self, item: Item, touched: &mut Touched) {
        let Item { keys, objects, faults, .. } = item;
        let place = keys.first().filter(|_| !faults.is_empty()).map(|key| self.layout.place(key));
        let mut gone: BTreeSet<Key> = keys.into_iter().collect();
        for object in objects {
            let key = object.key();
            gone.remove(&key);
            self.mend(&key);
            touched.insert(key, Some(object));
        }
        for (key, fault) in faults {
            gone.remove(&key);
            self.orphans.remove(&key);
            if self.kinds.contains(&key.kind()) {
                let problem =
                    Problem::of(place.clone().unwrap_or_default(), fault.about(Some(key.to_string())));
                self.problems.insert(key, problem);
            }
        }
        for key in gone {
            // A Node that is made anew has no lease yet; the one that was lost stays until there is another.
            if !self.orphans.contains(&key) {
                self.touch_gone(key, touched);
            }
        }
    }

    fn touch_gone(&mut self, key: Key, touched: &mut Touched) {
        self.mend(&key);
        touched.insert(key, None);
    }

    fn mend(&mut self, key: &Key) {
        self.problems.remove(key);
        self.orphans.remove(key);
    }

    /// Makes the snapshot so; returns what changed by it, removals first.
    fn settle(&mut self, touched: Touched) -> Vec<Change> {
        let (mut removed, mut set) = (Vec::new(), Vec::new());
        for (key, object) in touched {
            if !self.kinds.contains(&key.kind()) {
                continue;
            }
            match object {
                Some(mut object) => {
                    if self.snapshot.object(&key).as_ref() == Some(&object) {
                        continue;
                    }
                    self.shared.share(&mut object);
                    self.snapshot.apply(Change::Set(object.clone()));
                    set.push(Change::Set(object));
                }
                None => {
                    if self.snapshot.apply(Change::Removed(key.clone())) {
                        removed.push(Change::Removed(key));
                    }
                }
            }
        }
        removed.extend(set);
        removed
    }

    fn tell(&mut self, changes: Vec<Change>) {
        let first = !self.told;
        if first {
            if !self.feeds.values().all(|feed| feed.listed) {
                return;
            }
            self.told = true;
            self.queue.push_back(Event::Snapshot(self.snapshot.clone()));
        } else if !changes.is_empty() {
            self.queue.push_back(Event::Changes(changes));
        }
        let problems = self.all_problems();
        if problems != self.told_problems {
            self.told_problems.clone_from(&problems);
            self.queue.push_back(Event::Problems(problems));
        }
        if first {
            self.queue.push_back(Event::InSync);
        }
        self.queue.extend(self.confirmed.take().map(Event::Confirmed));
    }

    /// What was lost and can be written again, once it can be. Before every part has been read again, a Node that
    /// seems to be there may be lost too.
    fn tell_lost(&mut self) {
        if self.told_away.is_some() || self.feeds.values().any(|feed| feed.doubted) {
            return;
        }
        let lost: BTreeSet<Key> =
            self.orphans.iter().filter(|key| self.can_be_written(key)).cloned().collect();
        let new: Vec<Key> = lost.difference(&self.told_lost).cloned().collect();
        self.told_lost = lost;
        if !new.is_empty() {
            self.queue.push_back(Event::Lost(new));
        }
    }

    /// A lease and a claim need the Node that they belong to.
    fn can_be_written(&self, key: &Key) -> bool {
        let node = match key {
            Key::Lease(node) => Some(node),
            Key::Claim(cidr) => self.snapshot.claims.get(cidr).map(|claim| &claim.node),
            _ => None,
        };
        node.is_some_and(|node| !self.orphans.contains(&Key::Node(node.clone())))
    }

    /// The store is away as long as any of its parts cannot be read.
    fn tell_away(&mut self) {
        let reason = self.feeds.values().find_map(|feed| feed.trouble.clone());
        if reason == self.told_away {
            return;
        }
        self.queue.push_back(match &reason {
            Some(reason) => Event::Unavailable { reason: reason.clone() },
            None => Event::Available,
        });
        self.told_away = reason;
    }

    fn all_problems(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self.problems.values().cloned().collect();
        let troubles = self.troubles.values().map(|(place, fault)| (place, fault));
        let strays = self.strays.values().flatten().chain(troubles);
        problems.extend(strays.map(|(place, fault)| Problem::of(place.clone(), fault.clone())));
        if !self.orphans.is_empty() {
            let reason = format!("lost {} of its objects; they stay in force", self.orphans.len());
            let fault = Fault::new(reason).hint(L::LOST);
            problems.push(Problem::of("/".into(), fault));
        }
        problems.sort();
        problems
    }
}

/// The keys of all objects of one kind.
fn keys(snapshot: &Snapshot, kind: Kind) -> Vec<Key> {
    match kind {
        Kind::Node => snapshot.nodes.keys().cloned().map(Key::Node).collect(),
        Kind::Namespace => snapshot.namespaces.keys().cloned().map(Key::Namespace).collect(),
        Kind::Pod => snapshot.pods.keys().cloned().map(Key::Pod).collect(),
        Kind::PodStatus => snapshot.pod_statuses.keys().cloned().map(Key::PodStatus).collect(),
        Kind::Service => snapshot.services.keys().cloned().map(Key::Service).collect(),
        Kind::EndpointSlice => snapshot.endpoint_slices.keys().cloned().map(Key::EndpointSlice).collect(),
        Kind::Lease => snapshot.leases.keys().cloned().map(Key::Lease).collect(),
        Kind::Claim => snapshot.claims.keys().copied().map(Key::Claim).collect(),
        Kind::NetworkPolicy => snapshot.network_policies.keys().cloned().map(Key::NetworkPolicy).collect(),
        Kind::ClusterNetworkPolicy => {
            snapshot.cluster_network_policies.keys().cloned().map(Key::ClusterNetworkPolicy).collect()
        }
        Kind::ServiceCidr => snapshot.service_cidrs.keys().cloned().map(Key::ServiceCidr).collect(),
    }
}

#[cfg(test)]
mod tests;
