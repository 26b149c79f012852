//! What the API server says, as the cluster's objects.
//!
//! Read [`Item`]: one object of the API, which may stand for several of ours, a Node for a node and its lease. The
//! decoders are those of manifests, for Kubernetes' forms are the same wherever they stand; so here, too, a part
//! that cannot be read is a fault with its field, and the rest of the answer is good. A list is taken apart item by
//! item, so that never more than one of them is in memory in full.
//!
//! Kubernetes API as of 1.36: lists, watch events with bookmarks, `v1` Status.

use std::fmt;

use cluster::{Flannel, Key, Object};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};

use super::claim;
use super::flannel;
use super::resource::Resource;
use crate::Problem;
use crate::manifest::field::{Fault, Field};
use crate::manifest::tree::{self, Data, JsonTree, Tree};
use crate::manifest::{core, own, policy, service};
use crate::mirror::Item;

/// The annotation of a Node that holds its lease.
pub(crate) const LEASE: &str = "fairlead.io/lease";

/// A part of a list.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) items: Vec<Item>,
    /// The version of the list.
    pub(crate) version: String,
    /// What to ask for the next part with.
    pub(crate) next: Option<String>,
}

/// What an API server says of what it knows: its groups, or the resources of one version of a group.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Known {
    kind: String,
    groups: Vec<KnownGroup>,
    resources: Vec<KnownName>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct KnownGroup {
    name: String,
    versions: Vec<KnownVersion>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct KnownVersion {
    version: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct KnownName {
    name: String,
}

impl Known {
    /// Whether the version of the group that the resource is asked for in is among the groups.
    pub(crate) fn has_group_of(&self, resource: Resource) -> bool {
        let own = self.groups.iter().filter(|group| group.name == resource.group());
        own.flat_map(|group| &group.versions).any(|version| version.version == resource.version())
    }

    /// Whether the resource is among the resources.
    pub(crate) fn has(&self, resource: Resource) -> bool {
        self.resources.iter().any(|known| known.name == resource.plural())
    }
}

/// What a server knows, out of the body of an answer.
pub(crate) fn known(body: &[u8]) -> Result<Known, String> {
    let known: Known = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    match &*known.kind {
        "APIGroupList" | "APIResourceList" => Ok(known),
        other => Err(format!("a list of what the server knows is of kind {other:?}")),
    }
}

/// One line of a watch.
#[derive(Debug)]
pub(crate) enum Line {
    /// An object is there now.
    Set(Item),
    /// An object is gone.
    Gone { keys: Vec<Key>, version: String },
    /// Nothing happened up to this version.
    Bookmark { version: String },
    /// The watch ends.
    Error(Status),
}

/// Why the API server refuses (`v1` Status).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Status {
    pub(crate) code: u16,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) details: Option<Details>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Details {
    retry_after_seconds: Option<u32>,
    causes: Vec<Cause>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Cause {
    reason: String,
}

impl Status {
    /// How long to wait before the next try, if it says so.
    pub(crate) fn retry_after(&self) -> Option<u32> {
        self.details.as_ref()?.retry_after_seconds
    }

    /// True if the server knows no such resource.
    pub(crate) fn is_undefined(&self) -> bool {
        self.code == 404
    }

    /// True if the account may not do that.
    pub(crate) fn is_forbidden(&self) -> bool {
        self.code == 403
    }

    /// True if the version asked for is too old to go on from, or is one that the server never had.
    pub(crate) fn is_expired(&self) -> bool {
        let causes = self.details.iter().flat_map(|details| &details.causes);
        self.code == 410
            || matches!(&*self.reason, "Expired" | "Gone")
            || causes.into_iter().any(|cause| cause.reason == "ResourceVersionTooLarge")
    }
}

/// The objects of a list as the API server gives it, or all that is wrong with it. A store passes over what cannot be
/// read and keeps the rest.
///
/// # Errors
/// Every fault that was found, never none.
pub fn read_list(kind: cluster::Kind, answer: &[u8]) -> Result<Vec<Object>, Vec<Problem>> {
    let Some(resource) = Resource::of_kind(kind) else { return Ok(Vec::new()) };
    let place = resource.path("kube-system");
    let problem = |fault| Problem::of(place.clone().into(), fault);
    let page = page(resource, answer).map_err(|reason| vec![problem(Fault::new(reason))])?;
    let (mut objects, mut problems) = (Vec::new(), Vec::new());
    for item in page.items {
        problems
            .extend(item.faults.into_iter().map(|(key, fault)| problem(fault.about(Some(key.to_string())))));
        objects.extend(item.objects);
    }
    if problems.is_empty() { Ok(objects) } else { Err(problems) }
}

/// A list out of the body of an answer.
pub(crate) fn page(resource: Resource, body: &[u8]) -> Result<Page, String> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let page = PageOf(resource).deserialize(&mut deserializer).map_err(|error| unreadable(&error))?;
    deserializer.end().map_err(|error| unreadable(&error))?;
    Ok(page)
}

/// One object out of the body of an answer.
pub(crate) fn item(resource: Resource, body: &[u8]) -> Result<Item, String> {
    read(body).and_then(|tree| item_of(resource, &tree))
}

/// One line of a watch.
pub(crate) fn line(resource: Resource, line: &[u8]) -> Result<Line, String> {
    let event = read(line)?;
    let part = |wanted: &str| match &event.data {
        Data::Map(entries) => entries.iter().find(|(key, _)| **key == *wanted).map(|(_, part)| part),
        _ => None,
    };
    let Some(object) = part("object") else { return Err(unreadable(&"an event without an object")) };
    match part("type").map(|part| &part.data) {
        Some(Data::Text(kind)) => match &**kind {
            "BOOKMARK" => Ok(Line::Bookmark { version: Names::of(object)?.version }),
            "ADDED" | "MODIFIED" => item_of(resource, object).map(Line::Set),
            "DELETED" => {
                let names = Names::of(object)?;
                Ok(Line::Gone { keys: resource.keys(&names.namespace, &names.name), version: names.version })
            }
            "ERROR" => {
                #[derive(Deserialize)]
                struct Event {
                    object: Status,
                }
                serde_json::from_slice(line)
                    .map(|Event { object }| Line::Error(object))
                    .map_err(|error| unreadable(&error))
            }
            other => Err(unreadable(&format!("an event of the unknown type {other:?}"))),
        },
        _ => Err(unreadable(&"an event without a type")),
    }
}

fn read(body: &[u8]) -> Result<Tree, String> {
    let text = str::from_utf8(body).map_err(|error| unreadable(&error))?;
    tree::read_json(text).map_err(|error| unreadable(&error))
}

fn unreadable(error: &impl fmt::Display) -> String {
    format!("the API server's answer is not readable: {}", error.to_string().escape_debug())
}

/// What every object's metadata tells.
struct Names {
    namespace: String,
    name: String,
    uid: String,
    version: String,
}

impl Names {
    fn of(tree: &Tree) -> Result<Self, String> {
        let root = Field::root(tree);
        let told = |fault: Fault| {
            let field = fault.field.unwrap_or_default();
            format!("the API server's answer has an object whose {field} {}", fault.reason)
        };
        let metadata = root.get("metadata").map_err(told)?;
        let text = |key| -> Result<String, String> {
            Ok(metadata.get(key).map_err(told)?.text().map_err(told)?.unwrap_or_default().to_owned())
        };
        Ok(Self {
            namespace: text("namespace")?,
            name: text("name")?,
            uid: text("uid")?,
            version: text("resourceVersion")?,
        })
    }
}

/// An object of the API as those of the cluster. An error is about the whole answer: an object without a name leads
/// nowhere.
fn item_of(resource: Resource, tree: &Tree) -> Result<Item, String> {
    let names = Names::of(tree)?;
    if names.name.is_empty() {
        return Err("the API server's answer has an object without a name".to_owned());
    }
    let keys = resource.keys(&names.namespace, &names.name);
    let mut item =
        Item { keys, objects: Vec::new(), faults: Vec::new(), uid: names.uid, version: names.version };
    let root = Field::root(tree);
    let decoded = match resource {
        Resource::Nodes => core::node(&root).map(Object::from),
        Resource::Namespaces => core::namespace(&root).map(Object::from),
        Resource::Pods => core::pod(&root).map(Object::from),
        Resource::Services => service::service(&root).map(Object::from),
        Resource::EndpointSlices => service::endpoint_slice(&root).map(Object::from),
        Resource::Claims => claim::decode(&root).map(Object::from),
        Resource::NetworkPolicies => policy::network_policy(&root).map(Object::from),
        Resource::ServiceCidrs => service::service_cidr(&root).map(Object::from),
        Resource::ClusterNetworkPolicies => policy::cluster_network_policy(&root).map(Object::from),
    };
    match (decoded, item.keys.first()) {
        // Nobody's key but its own, so that it is found again.
        (Ok(object), Some(key)) if object.key() == *key => item.objects.push(object),
        (Ok(_), Some(key)) => {
            item.faults.push((key.clone(), Fault::new("has a name that cannot be".to_owned())))
        }
        (Err(fault), Some(key)) => item.faults.push((key.clone(), fault)),
        // A Lease object with our label and a name that is no claim's stands for nothing.
        (_, None) => {}
    }
    if resource == Resource::Nodes
        && let Some(key) = item.keys.get(1)
    {
        match lease_of(&root, &names.name) {
            Ok(lease) => item.objects.extend(lease),
            Err(fault) => item.faults.push((key.clone(), fault)),
        }
    }
    Ok(item)
}

/// The lease in a Node's annotation, else the one that flannel's annotations tell, if there is either.
fn lease_of(node: &Field<'_, '_>, name: &str) -> Result<Option<Object>, Fault> {
    let metadata = node.get("metadata")?;
    let annotations = metadata.get("annotations")?;
    let annotation = annotations.get(LEASE)?;
    let Some(text) = annotation.filled_text()? else {
        return Ok(flannel::lease_of(node, name)?.map(Object::from));
    };
    let spec = tree::read_json(text).map_err(|error| annotation.because(error.to_string().escape_debug()))?;
    let within = |fault: Fault| {
        let field = fault.field.as_deref().unwrap_or("the whole");
        annotation.fault(format!("is no lease: {field} {}", fault.reason))
    };
    let mut lease = own::lease_of(name.into(), &Field::root(&spec)).map_err(within)?;
    // Whoever published it sees that it is not so any more, as after a start of flannel on its node, and says it again,
    // or takes it away.
    if lease.flannel == Flannel::Told && !flannel::is_told(&annotations, &lease)? {
        lease.flannel = Flannel::Overwritten;
    }
    Ok(Some(lease.into()))
}

/// Reads a list, its items one by one.
struct PageOf(Resource);

impl<'de> DeserializeSeed<'de> for PageOf {
    type Value = Page;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Page, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for PageOf {
    type Value = Page;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Page, A::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct ListMeta {
            resource_version: String,
            #[serde(default, rename = "continue")]
            next: String,
        }
        let (mut metadata, mut items) = (None::<ListMeta>, None);
        while let Some(key) = access.next_key::<String>()? {
            match &*key {
                "metadata" => metadata = Some(access.next_value()?),
                "items" => items = Some(access.next_value_seed(ItemsOf(self.0))?),
                _ => drop(access.next_value::<IgnoredAny>()?),
            }
        }
        // An answer that lacks either is none: taken for an empty list, it would remove everything.
        let metadata = metadata.ok_or_else(|| de::Error::missing_field("metadata"))?;
        let items = items.ok_or_else(|| de::Error::missing_field("items"))?;
        let next = Some(metadata.next).filter(|next| !next.is_empty());
        Ok(Page { items, version: metadata.resource_version, next })
    }
}

/// Reads the items of a list. `null` is how Go may write a list of none.
struct ItemsOf(Resource);

impl<'de> DeserializeSeed<'de> for ItemsOf {
    type Value = Vec<Item>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Item>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ItemsOf {
    type Value = Vec<Item>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("the items of a list")
    }

    fn visit_unit<E>(self) -> Result<Vec<Item>, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Vec<Item>, A::Error> {
        let mut items = Vec::new();
        while let Some(tree) = access.next_element::<JsonTree>()? {
            items.push(item_of(self.0, &tree.into()).map_err(de::Error::custom)?);
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests;
