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
    /// By which question a pod is asked for; 0 where it need not be.
    pods: BTreeMap<NamespacedName, u64>,
}

impl Order {
    pub(super) fn new(store: Arc<dyn Store>, node: Arc<str>) -> Self {
        Self { store, node, asked: 0, confirmed: 0, pods: BTreeMap::new() }
    }

    /// Learns of pods that come and go.
    pub(super) fn hear(&mut self, change: &Change) {
        match change {
            Change::Set(Object::Pod(pod)) if pod.node.as_ref() == Some(&self.node) && !pod.host_network => {
                self.ask(&pod.name);
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
    pub(super) fn knows_what_came_before(&mut self, pod: &NamespacedName) -> bool {
        self.ask(pod) <= self.confirmed
    }

    /// The question by which a pod is asked for.
    fn ask(&mut self, pod: &NamespacedName) -> u64 {
        if let Some(number) = self.pods.get(pod) {
            return *number;
        }
        self.asked += 1;
        let number = if self.store.confirm(&pod.namespace, self.asked) { self.asked } else { 0 };
        self.pods.insert(pod.clone(), number);
        number
    }
}
