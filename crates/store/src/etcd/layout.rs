//! Which key of etcd holds which object.
//!
//! Read [`Keys`]. One key, one object: `/fairlead/nodes/node1`, `/fairlead/pods/default/web`,
//! `/fairlead/claims/10.244.3.0-24`; the value is a manifest as the directory has it, YAML or JSON. What stands under
//! another's key, or under a key that is no object's, is nobody's, and told. Flannel's keys are a part of their own
//! (`flannel.rs`).

use std::collections::BTreeSet;
use std::path::PathBuf;

use cluster::{Key, Kind, NamespacedName, Object, check_label, check_subdomain, is_flannel_name};

use super::flannel::Subnets;
use super::form::{self, Happened, KeyValue, Line};
use crate::Problem;
use crate::manifest::{self, Fault};
use crate::mirror::{Item, Layout};
use crate::own;

/// The keys of one cluster, which all begin alike; and flannel's, where its nodes are peers.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    prefix: String,
    flannel: Option<Subnets>,
}

/// What is listed and watched by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// The objects of one kind.
    Of(Kind),
    /// Nodes of flannel, with their leases.
    Flannel,
}

/// A key that is no object's, and why.
pub(crate) type Stray = Box<(PathBuf, Fault)>;

impl Layout for Keys {
    type Part = Part;
    const LOST: &'static str = "etcd came back with other data, as after a restore or with an empty disk; put back what is \
                                missing, or restart Fairlead to accept etcd as it is";

    fn parts(&self, kinds: &[Kind]) -> Vec<Part> {
        let flannel = kinds.iter().any(|kind| Self::kinds(Part::Flannel).contains(kind));
        let flannel = self.flannel.as_ref().filter(|_| flannel).map(|_| Part::Flannel);
        kinds.iter().copied().map(Part::Of).chain(flannel).collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn kinds(part: Part) -> &'static [Kind] {
        let kind = match part {
            Part::Of(kind) => kind,
            Part::Flannel => return &[Kind::Node, Kind::Lease],
        };
        Kind::ALL
            .iter()
            .position(|other| *other == kind)
            .and_then(|at| Kind::ALL.get(at..=at))
            .unwrap_or_default()
    }

    fn holds(&self, part: Part, key: &Key) -> bool {
        self.flannels(key).is_some() == (part == Part::Flannel)
    }

    fn place(&self, key: &Key) -> PathBuf {
        self.flannels(key).unwrap_or_else(|| self.of(key)).into()
    }
}

impl Keys {
    /// Those that begin with `prefix`, and those of flannel's that begin with another.
    pub(crate) fn new(prefix: &str, flannel: Option<&str>) -> Self {
        Self { prefix: prefix.to_owned(), flannel: flannel.map(Subnets::of) }
    }

    /// Flannel's keys, where its nodes are peers.
    pub(crate) fn flannel(&self) -> Option<&Subnets> {
        self.flannel.as_ref()
    }

    /// The key among flannel's, if the object is a node of flannel's or its lease.
    fn flannels(&self, key: &Key) -> Option<String> {
        match key {
            Key::Node(name) | Key::Lease(name) if is_flannel_name(name) => {
                Some(self.flannel.as_ref()?.place(name))
            }
            _ => None,
        }
    }

    /// What the keys of a part begin with.
    pub(crate) fn folder_of(&self, part: Part) -> String {
        match (part, &self.flannel) {
            (Part::Flannel, Some(subnets)) => subnets.folder().to_owned(),
            // Nobody asks for a part that there is not.
            (Part::Flannel, None) => String::new(),
            (Part::Of(kind), _) => self.folder(kind),
        }
    }

    /// Of flannel's part: a key, and the objects that it may stand for, which others may stand for as well.
    pub(crate) fn shown_by(&self, part: Part, kv: &KeyValue) -> Option<(String, Vec<Key>)> {
        let subnets = self.flannel.as_ref().filter(|_| part == Part::Flannel)?;
        let place = String::from_utf8_lossy(&kv.key.0).into_owned();
        let names = subnets.keys(&place)?;
        Some((place, names))
    }

    /// What a key of a part holds; the place and the fault, if it is no object's.
    pub(crate) fn item_of(&self, part: Part, kv: &KeyValue) -> Result<Item, Stray> {
        match (part, &self.flannel) {
            (Part::Flannel, Some(subnets)) => subnets.item(kv),
            (Part::Flannel, None) => self.item(Kind::Node, kv),
            (Part::Of(kind), _) => self.item(kind, kv),
        }
    }

    /// What the keys of all objects of a kind begin with.
    pub(crate) fn folder(&self, kind: Kind) -> String {
        format!("{}/{}/", self.prefix, own::folder(kind))
    }

    /// The key of an object.
    pub(crate) fn of(&self, key: &Key) -> String {
        self.folder(key.kind()) + &own::name(key, '/')
    }

    /// The key of what a node reports; without a node, what all of them begin with.
    pub(crate) fn report(&self, node: &str) -> String {
        format!("{}/reports/{node}", self.prefix)
    }

    /// The key of something that happened on a node.
    pub(crate) fn notice(&self, node: &str, name: &str) -> String {
        format!("{}/events/{node}/{name}", self.prefix)
    }

    /// The key of the text that no other store has.
    pub(crate) fn identity(&self) -> String {
        format!("{}/identity", self.prefix)
    }

    /// The object whose key this is.
    pub(crate) fn object(&self, kind: Kind, key: &str) -> Option<Key> {
        let name = key.strip_prefix(&self.folder(kind))?;
        let free = self.flannel.is_none() || !is_flannel_name(name);
        let named = || (free && check_subdomain(name).is_ok()).then(|| name.into());
        let namespaced = || {
            let (namespace, name) = name.split_once('/')?;
            let good = check_label(namespace).is_ok() && check_subdomain(name).is_ok();
            good.then(|| NamespacedName::new(namespace, name))
        };
        match kind {
            Kind::Node => named().map(Key::Node),
            Kind::Namespace => named().map(Key::Namespace),
            Kind::Lease => named().map(Key::Lease),
            Kind::Pod => namespaced().map(Key::Pod),
            Kind::PodStatus => namespaced().map(Key::PodStatus),
            Kind::Service => namespaced().map(Key::Service),
            Kind::EndpointSlice => namespaced().map(Key::EndpointSlice),
            Kind::NetworkPolicy => namespaced().map(Key::NetworkPolicy),
            Kind::ClusterNetworkPolicy => named().map(Key::ClusterNetworkPolicy),
            Kind::ServiceCidr => named().map(Key::ServiceCidr),
            // One name for one CIDR: neither host bits nor another spelling.
            Kind::Claim => own::cidr_of_claim(name)
                .filter(|cidr| cidr.trunc() == *cidr && own::claim_name(*cidr) == name)
                .map(Key::Claim),
        }
    }

    /// What a key of that kind holds; the place and the fault, if it is no object's.
    pub(crate) fn item(&self, kind: Kind, kv: &KeyValue) -> Result<Item, Stray> {
        let text = String::from_utf8_lossy(&kv.key.0);
        let Some(key) = self.object(kind, &text) else {
            let fault = Fault::new(format!("is no key of {}", example(kind)));
            return Err(Box::new((
                text.as_ref().into(),
                fault.hint("put it under its own name, and delete this key"),
            )));
        };
        let (objects, faults) = match self.read(&key, &kv.value.0) {
            Ok(object) => (vec![object], Vec::new()),
            Err(fault) => (Vec::new(), vec![(key.clone(), fault)]),
        };
        let version = kv.mod_revision.0.to_string();
        Ok(Item { keys: vec![key], objects, faults, uid: String::new(), version })
    }

    /// The object in the value of its own key.
    pub(crate) fn read(&self, key: &Key, value: &[u8]) -> Result<Object, Fault> {
        if value.is_empty() {
            return Err(Fault::new("is empty".to_owned()).hint("delete the key if its object is to go"));
        }
        let placed = manifest::parse(value).map_err(|faults| {
            faults.into_iter().next().unwrap_or_else(|| Fault::new("cannot be read".to_owned()))
        })?;
        let mut objects = placed.into_iter().map(|placed| placed.object);
        match (objects.next(), objects.next()) {
            (Some(object), None) if object.key() == *key => Ok(object),
            (Some(object), None) => {
                let fault = Fault::new(format!("holds another object: {}", object.key()));
                Err(fault.hint("the key is the object's kind and name; put it under its own"))
            }
            (Some(_), Some(_)) => {
                let fault = Fault::new("holds more than one object".to_owned());
                Err(fault.hint("give each object a key of its own"))
            }
            (None, _) => Err(Fault::new("holds no object that Fairlead knows".to_owned())),
        }
    }
}

/// The objects that one line of a watch's stream tells of, as the store takes them, or all that is wrong with it.
///
/// # Errors
/// Every fault that was found, never none.
pub fn read_watch(line: &[u8]) -> Result<Vec<Object>, Vec<Problem>> {
    let keys = Keys::new("/fairlead", Some("/coreos.com/network"));
    let events = match form::line(line) {
        Ok(Line::Events { events, .. }) => events,
        Ok(_) => return Ok(Vec::new()),
        Err(reason) => return Err(vec![Problem::of(keys.prefix.into(), Fault::new(reason))]),
    };
    let (mut objects, mut problems) = (Vec::new(), Vec::new());
    for Happened { kv, .. } in events.into_iter().filter(|event| !event.gone) {
        let place = String::from_utf8_lossy(&kv.key.0).into_owned();
        let parts = Kind::ALL.map(Part::Of).into_iter().chain([Part::Flannel]);
        let part = parts.into_iter().find(|part| place.starts_with(&keys.folder_of(*part)));
        match keys.item_of(part.unwrap_or(Part::Of(Kind::Node)), &kv) {
            Ok(item) => {
                objects.extend(item.objects);
                let told = |(key, fault): (Key, Fault)| {
                    Problem::of(place.clone().into(), fault.about(Some(key.to_string())))
                };
                problems.extend(item.faults.into_iter().map(told));
            }
            Err(stray) => problems.push(Problem::of(stray.0, stray.1)),
        }
    }
    if problems.is_empty() { Ok(objects) } else { Err(problems) }
}

fn example(kind: Kind) -> &'static str {
    match kind {
        Kind::Node => "a node, such as nodes/node1",
        Kind::Namespace => "a namespace, such as namespaces/default",
        Kind::Lease => "a lease, such as leases/node1",
        Kind::Pod => "a pod, such as pods/default/web",
        Kind::PodStatus => "a pod's status, such as pod-statuses/default/web",
        Kind::Service => "a service, such as services/default/web",
        Kind::EndpointSlice => "an endpoint slice, such as endpoint-slices/default/web",
        Kind::Claim => "a claim, such as claims/10.244.3.0-24",
        Kind::NetworkPolicy => "a network policy, such as network-policies/default/web",
        Kind::ClusterNetworkPolicy => "a cluster network policy, such as cluster-network-policies/tenants",
        Kind::ServiceCidr => "a ServiceCIDR, such as service-cidrs/kubernetes",
    }
}

#[cfg(test)]
mod tests {
    use cluster::{Key, Kind, NamespacedName, Node, Object};

    use super::super::form::{KeyValue, Raw};
    use super::Keys;

    fn keys() -> Keys {
        Keys::new("/fairlead", None)
    }

    #[test]
    fn every_object_has_one_key_and_the_key_leads_back() {
        let name = || NamespacedName::new("default", "web.1");
        for (key, want) in [
            (Key::Node("node1".into()), "nodes/node1"),
            (Key::Namespace("shop".into()), "namespaces/shop"),
            (Key::Lease("node1".into()), "leases/node1"),
            (Key::Pod(name()), "pods/default/web.1"),
            (Key::PodStatus(name()), "pod-statuses/default/web.1"),
            (Key::Service(name()), "services/default/web.1"),
            (Key::EndpointSlice(name()), "endpoint-slices/default/web.1"),
            (Key::Claim("10.244.3.0/24".parse().unwrap()), "claims/10.244.3.0-24"),
            (Key::Claim("fd00:1::/64".parse().unwrap()), "claims/fd00:1::-64"),
        ] {
            assert_eq!(keys().of(&key), format!("/fairlead/{want}"));
            assert_eq!(keys().object(key.kind(), &keys().of(&key)), Some(key));
        }
        for (kind, bad) in [
            (Kind::Node, "nodes/Node1"),
            (Kind::Node, "nodes/"),
            (Kind::Node, "leases/node1"),
            (Kind::Pod, "pods/web"),
            (Kind::Pod, "pods/default/web/x"),
            (Kind::Claim, "claims/10.244.3.1-24"),
            (Kind::Claim, "claims/10.244.3.0-33"),
            (Kind::Claim, "claims/fd00:1:0::-64"),
        ] {
            assert_eq!(keys().object(kind, &format!("/fairlead/{bad}")), None, "{bad}");
        }
    }

    #[test]
    fn a_value_is_the_manifest_of_its_own_key_and_nothing_else() {
        let key = Key::Node("node1".into());
        let read = |text: &str| keys().read(&key, text.as_bytes()).map_err(|fault| fault.reason);
        let node = "apiVersion: v1\nkind: Node\nmetadata: {name: node1}\n";
        assert_eq!(read(node), Ok(Object::from(Node::named("node1"))));
        for (text, want) in [
            (String::new(), "is empty"),
            (node.replace("node1", "node2"), "holds another object: node node2"),
            (format!("{node}---\n{node}"), "holds more than one object"),
            ("apiVersion: v1\nkind: Secret\n".to_owned(), "holds no object that Fairlead knows"),
        ] {
            assert_eq!(read(&text).unwrap_err(), want);
        }
        assert!(read("{").is_err());
        let stray = KeyValue { key: Raw(b"/fairlead/nodes/Node1".into()), ..KeyValue::default() };
        let (place, fault) = *keys().item(Kind::Node, &stray).unwrap_err();
        assert_eq!(place.to_str(), Some("/fairlead/nodes/Node1"));
        assert_eq!(fault.reason, "is no key of a node, such as nodes/node1");
    }
}
