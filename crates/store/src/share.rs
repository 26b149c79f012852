//! One copy of what thousands of objects have in common.
//!
//! Pods repeat the names of a few nodes and namespaces and the labels and ports of a few workloads, and a pod's status
//! repeats the pod's name; parsed one by one each would bring copies of its own. [`Shared`] replaces them by one.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

use cluster::{ContainerPort, Endpoint, Labels, NamespacedName, NetworkPolicy, Object, Peer, Selector};

/// What is kept once.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    texts: Pool<Arc<str>>,
    labels: Pool<Labels>,
    selectors: Pool<Selector>,
    ports: Pool<Arc<[ContainerPort]>>,
}

impl Shared {
    /// Lets the parts of `object` be those of the objects before it, where they are equal.
    pub(crate) fn share(&mut self, object: &mut Object) {
        // Just parsed, an object has no other owner, so `make_mut` copies nothing.
        match object {
            Object::Pod(pod) => {
                let pod = Arc::make_mut(pod);
                self.name(&mut pod.name);
                self.labels.unite(&mut pod.labels);
                self.labels.unite(&mut pod.annotations);
                self.ports.unite(&mut pod.ports);
                pod.node.iter_mut().for_each(|node| self.texts.unite(node));
            }
            Object::PodStatus(status) => {
                let status = Arc::make_mut(status);
                self.name(&mut status.pod);
                status.node.iter_mut().for_each(|node| self.texts.unite(node));
            }
            Object::EndpointSlice(slice) => {
                let slice = Arc::make_mut(slice);
                self.name(&mut slice.name);
                self.labels.unite(&mut slice.labels);
                slice.service.iter_mut().for_each(|service| self.texts.unite(service));
                slice.endpoints.iter_mut().for_each(|endpoint| self.endpoint(endpoint));
            }
            Object::Service(service) => self.name(&mut Arc::make_mut(service).name),
            Object::Node(node) => self.texts.unite(&mut Arc::make_mut(node).name),
            Object::Namespace(namespace) => self.texts.unite(&mut Arc::make_mut(namespace).name),
            Object::Lease(lease) => self.texts.unite(&mut Arc::make_mut(lease).node),
            Object::Claim(claim) => self.texts.unite(&mut Arc::make_mut(claim).node),
            Object::NetworkPolicy(policy) => self.policy(Arc::make_mut(policy)),
            // There are few, and they have little in common.
            Object::ClusterNetworkPolicy(_) | Object::ServiceCidr(_) => {}
        }
    }

    fn policy(&mut self, policy: &mut NetworkPolicy) {
        self.name(&mut policy.name);
        self.selectors.unite(&mut policy.subjects);
        for rule in policy.ingress.iter_mut().chain(&mut policy.egress).flatten() {
            for peer in rule.peers.iter_mut().flatten() {
                if let Peer::Pods { namespaces, pods } = peer {
                    namespaces.iter_mut().for_each(|selector| self.selectors.unite(selector));
                    self.selectors.unite(pods);
                }
            }
        }
    }

    fn name(&mut self, name: &mut NamespacedName) {
        self.texts.unite(&mut name.namespace);
        self.texts.unite(&mut name.name);
    }

    fn endpoint(&mut self, endpoint: &mut Endpoint) {
        endpoint.node.iter_mut().chain(&mut endpoint.pod).for_each(|text| self.texts.unite(text));
    }
}

/// Equal values once. Those that nobody else holds any more are dropped now and then.
#[derive(Debug)]
struct Pool<T> {
    values: HashSet<T>,
    /// How many there may be before the next look for unused ones.
    limit: usize,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { values: HashSet::new(), limit: 64 }
    }
}

/// A value with several owners.
trait Owned {
    fn owners(&self) -> usize;
}

impl<T: ?Sized> Owned for Arc<T> {
    fn owners(&self) -> usize {
        Self::strong_count(self)
    }
}

impl Owned for Labels {
    fn owners(&self) -> usize {
        self.owner_count()
    }
}

impl Owned for Selector {
    fn owners(&self) -> usize {
        self.owner_count()
    }
}

impl<T: Clone + Eq + Hash + Owned> Pool<T> {
    fn unite(&mut self, value: &mut T) {
        if let Some(known) = self.values.get(value) {
            *value = known.clone();
            return;
        }
        if self.values.len() >= self.limit {
            self.values.retain(|value| value.owners() > 1);
            self.limit = (self.values.len() * 2).max(64);
        }
        self.values.insert(value.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cluster::{ContainerPort, NamespacedName, Object, Pod, Protocol};

    use super::Shared;

    #[test]
    fn equal_parts_are_kept_once_and_unused_ones_are_dropped() {
        let mut shared = Shared::default();
        let mut pod = |number: usize| {
            let mut pod = Pod::named(NamespacedName::new("shop", format!("web-{number}")));
            pod.labels = [("app", "web")].into_iter().collect();
            let (name, protocol) = (Some("http".into()), Protocol::Tcp);
            pod.ports =
                [ContainerPort { name, port: 80, protocol, host_port: None, host_address: None }].into();
            let mut object = Object::from(pod);
            shared.share(&mut object);
            object
        };
        let (Object::Pod(one), Object::Pod(two)) = (pod(1), pod(2)) else { panic!() };
        assert!(Arc::ptr_eq(&one.name.namespace, &two.name.namespace));
        assert!(Arc::ptr_eq(&one.ports, &two.ports));
        assert_eq!(one.labels.owner_count(), 3, "two pods and the pool");
        (3..10_000).for_each(|number| drop(pod(number)));
        assert!(shared.texts.values.len() < 200, "{}", shared.texts.values.len());
    }
}
