//! Whether what came before a pod is known, where a store tells of pods and of policies by watches of their own.
//!
//! Read [`Order::knows_what_came_before`]. When a pod of this node is heard of, the store is asked to say when it has told all that
//! there is by then of the pod's policies ([`store::Store::confirm`]); that is long before a runtime attaches the pod, so mostly
//! nobody waits for the answer.
//!
//! What stays true: a policy, or a label of the pod's own namespace, that was written before the pod is in force before the
//! pod's first packet. Labels of other namespaces, and of pods that were there, are not waited for; nor is it for what is
//! gone.

use std::collections::BTreeMap;
use std::sync::Arc;

use cluster::{Change, Key, NamespacedName, Object};
use store::Store;

/// What is asked, and how far it is answered.
#[derive(Debug)]
pub(super) struct Order {
    store: Arc<dyn Store>,
    node: Arc<str>,
    /// The last question.
    asked: u64,
    /// The last one that was answered, with all before it.
    confirmed: u64,
    pods: BTreeMap<NamespacedName, Asked>,
}

/// What is asked for a pod.
#[derive(Debug)]
struct Asked {
    /// The next one of that name is another pod.
    uid: Option<Box<str>>,
    /// By which question; 0 where it need not be.
    number: u64,
}

impl Order {
    pub(super) fn new(store: Arc<dyn Store>, node: Arc<str>) -> Self {
        Self { store, node, asked: 0, confirmed: 0, pods: BTreeMap::new() }
    }

    /// Learns of pods that come and go.
    pub(super) fn hear(&mut self, change: &Change) {
        match change {
            Change::Set(Object::Pod(pod)) => {
                // A store may tell in one change that a pod went and another one of its name came.
                if self.pods.get(&pod.name).is_some_and(|asked| asked.uid != pod.uid) {
                    self.pods.remove(&pod.name);
                }
                if pod.node.as_ref() == Some(&self.node) && !pod.host_network {
                    self.ask(&pod.name, pod.uid.as_deref());
                }
            }
            Change::Removed(Key::Pod(name)) => drop(self.pods.remove(name)),
            _ => {}
        }
    }

    /// The store has told all there was when this was asked.
    pub(super) fn confirm(&mut self, number: u64) {
        self.confirmed = self.confirmed.max(number);
    }

    /// Whether all is known that was written before that pod, which is there.
    pub(super) fn knows_what_came_before(&mut self, pod: &NamespacedName, uid: Option<&str>) -> bool {
        self.ask(pod, uid) <= self.confirmed
    }

    /// The question by which a pod is asked for.
    fn ask(&mut self, pod: &NamespacedName, uid: Option<&str>) -> u64 {
        if let Some(asked) = self.pods.get(pod) {
            return asked.number;
        }
        self.asked += 1;
        let number = if self.store.confirm(&pod.namespace, self.asked) { self.asked } else { 0 };
        self.pods.insert(pod.clone(), Asked { uid: uid.map(Into::into), number });
        number
    }
}
