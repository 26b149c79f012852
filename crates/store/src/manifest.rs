//! Kubernetes' written forms of the objects: the only place in the house that knows them.
//!
//! [`parse`] turns the bytes of one file into objects, or into everything that is wrong with it; [`encode()`]
//! writes one object so that `parse` gives it back. A file is first read into a [`tree`](tree::Tree) of plain
//! values with their places, then taken apart field by field, so that every complaint names line, object and
//! field. Kinds that pod networking does not decide by are passed over.
//!
//! Kubernetes API as of 1.35: `v1` Node, Namespace, Pod, Service, List; `discovery.k8s.io/v1` EndpointSlice;
//! `networking.k8s.io/v1` NetworkPolicy, ServiceCIDR. Network Policy API: `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.
//! Fairlead's own: `fairlead/v1` NodeLease, PodCIDRClaim, PodStatus.

pub(crate) mod core;
mod encode;
pub(crate) mod field;
pub(crate) mod own;
pub(crate) mod policy;
pub(crate) mod service;
pub(crate) mod tree;

use cluster::Object;

use field::Field;
use tree::Tree;

pub(crate) use encode::{encode, encode_list, encode_spec};
pub(crate) use field::Fault;

/// The group and version of Fairlead's own kinds.
pub(crate) const OWN_API: &str = "fairlead/v1";

/// The largest file that is read, in bytes.
pub(crate) const LARGEST_FILE: u64 = 64 << 20;

/// How many faults of one file are told; more would help nobody.
const MOST_FAULTS: usize = 20;

/// Bytes of stack for reading YAML; only what is used costs memory.
const YAML_STACK: usize = 16 << 20;

/// Lists in lists: deeper ones are a mistake or an attack.
const DEEPEST_LIST: usize = 4;

/// An object and where it stands in its file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Placed {
    pub(crate) object: Object,
    /// From 1; 0 if unknown.
    pub(crate) line: u32,
}

/// All objects of one file, or all that is wrong with it.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vec<Placed>, Vec<Fault>> {
    let text = str::from_utf8(bytes).map_err(|error| vec![not_utf8(bytes, error.valid_up_to())])?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_start().starts_with('{') {
        // Our own files and what other programs write: much faster, but without places. A file with faults
        // is read once more as YAML, of which JSON is a part, to find the places.
        let mut objects = Objects::default();
        objects.extend(tree::read_json(text).ok());
        if objects.documents > 0 && objects.faults.is_empty() {
            return Ok(objects.placed);
        }
    }
    let objects = read_yaml(text).map_err(|fault| vec![fault])?;
    if objects.faults.is_empty() { Ok(objects.placed) } else { Err(objects.faults) }
}

/// Reads on a stack of its own: the deepest nesting allowed needs more than a thread commonly has.
fn read_yaml(text: &str) -> Result<Objects, Fault> {
    let failed = |what: &str| Fault::new(format!("cannot be read now: {what}"));
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().name("yaml".into()).stack_size(YAML_STACK);
        let reader = builder.spawn_scoped(scope, || tree::read_yaml::<Objects>(text));
        let reader = reader.map_err(|error| failed(&format!("no thread to read it ({error})")))?;
        reader.join().unwrap_or_else(|_| Err(failed("the YAML reader gave up")))
    })
}

fn not_utf8(bytes: &[u8], good: usize) -> Fault {
    let before = bytes.get(..good).unwrap_or_default();
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let mut fault = Fault::new("is not UTF-8 text".to_owned());
    fault.place.line = u32::try_from(line).unwrap_or(u32::MAX);
    fault.hint =
        Some("manifests are text files; keep other files elsewhere, or give them another suffix".into());
    fault
}

/// Collects objects document by document, so that only one document's tree is in memory.
#[derive(Default)]
struct Objects {
    documents: usize,
    placed: Vec<Placed>,
    faults: Vec<Fault>,
}

impl Extend<Tree> for Objects {
    fn extend<I: IntoIterator<Item = Tree>>(&mut self, trees: I) {
        for tree in trees {
            self.documents += 1;
            self.take(&Field::root(&tree), None, 0);
        }
    }
}

impl Objects {
    fn take(&mut self, document: &Field<'_, '_>, item_of: Option<(&str, &str)>, depth: usize) {
        if document.is_absent() || self.faults.len() >= MOST_FAULTS {
            return;
        }
        if let Err(fault) = self.try_take(document, item_of, depth) {
            self.faults.push(fault.about(describe(document).map(field::shortened)));
        }
    }

    /// `item_of` is the version and kind that the items of a typed list, such as a PodList, have when they
    /// do not say.
    fn try_take(
        &mut self,
        document: &Field<'_, '_>,
        item_of: Option<(&str, &str)>,
        depth: usize,
    ) -> Result<(), Fault> {
        document.entries()?;
        let version = document.get("apiVersion")?;
        let kind = document.get("kind")?;
        let (version, kind) = match item_of {
            Some((version_of_items, kind_of_items)) if kind.is_absent() => (version_of_items, kind_of_items),
            _ => (version.required_text()?, kind.required_text()?),
        };
        let items = document.get("items")?;
        if let Some(kind_of_items) = kind.strip_suffix("List").filter(|_| !items.is_absent()) {
            if depth >= DEEPEST_LIST {
                return Err(items.fault(format!("is a list within more than {DEEPEST_LIST} lists")));
            }
            let item_of = (!kind_of_items.is_empty()).then_some((version, kind_of_items));
            for item in items.items()? {
                self.take(&item, item_of, depth + 1);
            }
            return Ok(());
        }
        if let Some(object) = decode(version, kind, document)? {
            self.placed.push(Placed { object, line: document.line() });
        }
        Ok(())
    }
}

fn decode(version: &str, kind: &str, document: &Field<'_, '_>) -> Result<Option<Object>, Fault> {
    Ok(Some(match (version, kind) {
        ("v1", "Node") => core::node(document)?.into(),
        ("v1", "Namespace") => core::namespace(document)?.into(),
        ("v1", "Pod") => core::pod(document)?.into(),
        ("v1", "Service") => service::service(document)?.into(),
        ("discovery.k8s.io/v1", "EndpointSlice") => service::endpoint_slice(document)?.into(),
        ("networking.k8s.io/v1", "NetworkPolicy") => policy::network_policy(document)?.into(),
        ("networking.k8s.io/v1", "ServiceCIDR") => service::service_cidr(document)?.into(),
        ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy") => {
            policy::cluster_network_policy(document)?.into()
        }
        (OWN_API, "NodeLease") => own::lease(document)?.into(),
        (OWN_API, "PodCIDRClaim") => own::claim(document)?.into(),
        (OWN_API, "PodStatus") => own::pod_status(document)?.into(),
        _ => return Ok(None),
    }))
}

/// Kind and name, as far as the document tells them.
fn describe(document: &Field<'_, '_>) -> Option<String> {
    let text = |field: &Field<'_, '_>, name| field.get(name).ok()?.text().ok().flatten().map(str::to_owned);
    let kind = text(document, "kind")?;
    let metadata = document.get("metadata").ok()?;
    let Some(name) = text(&metadata, "name") else { return Some(kind) };
    match text(&metadata, "namespace") {
        Some(namespace) => Some(format!("{kind} {namespace}/{name}")),
        None => Some(format!("{kind} {name}")),
    }
}

#[cfg(test)]
mod tests;
