//! Nodes of flannel in the same cluster: what they say in their Nodes, and what they are told in ours.
//!
//! Read [`lease_of`], then [`told`]. A node of flannel keeps in annotations of its Node what Fairlead's keep in
//! `fairlead.io/lease`; where both are, ours counts.
//!
//! IPv4 alone: flannel's tunnel for IPv6 is another device, over an underlay of IPv6, and no part of this.
//!
//! What stays true: flannel's annotations of a Node are written only with a lease that says so ([`Flannel::Told`]), and
//! taken away only after one that said so. Those that a person writes for flannel are nobody's to change.
//!
//! flannel 0.28, annotations of its Kubernetes subnet manager.

use std::sync::Arc;

use cluster::{Backend, Flannel, Lease};

use crate::flannel;
use crate::manifest::field::{Fault, Field};
use crate::manifest::{core, own, tree};

/// "true" on a node that takes part.
const TAKES_PART: &str = "flannel.alpha.coreos.com/kube-subnet-manager";

/// How packets to its pods travel.
const TYPE: &str = "flannel.alpha.coreos.com/backend-type";

/// What the type needs to say of it, as JSON.
const DATA: &str = "flannel.alpha.coreos.com/backend-data";

/// The address that its peers send to.
const ADDRESS: &str = "flannel.alpha.coreos.com/public-ip";

/// What a person has its peers told instead. Flannel copies it when it starts.
const ADDRESS_INSTEAD: &str = "flannel.alpha.coreos.com/public-ip-overwrite";

/// Annotations of a Node, and what each is to say; none where it is not to be.
pub(crate) type Annotations = [(&'static str, Option<String>); 4];

/// The lease that a node of flannel tells in its Node; none if that is no node of flannel's.
pub(crate) fn lease_of(node: &Field<'_, '_>, name: &str) -> Result<Option<Lease>, Fault> {
    let metadata = node.get("metadata")?;
    let annotations = metadata.get("annotations")?;
    if annotations.get(TAKES_PART)?.text()? != Some("true") {
        return Ok(None);
    }
    let backend = backend(&annotations)?;
    let spec = node.get("spec")?;
    let cidrs = core::given_pod_cidrs(&spec)?;
    let pod_cidrs = cidrs.iter().copied().filter(|cidr| cidr.addr().is_ipv4()).collect::<Box<[_]>>();
    // Nobody is led to a node of an unknown backend, so what else it says may be anything.
    let known = !matches!(backend, Backend::Other(_));
    if known && pod_cidrs.is_empty() {
        let reason = "has no IPv4 CIDR, and a node of flannel is reached by IPv4 alone";
        return Err(spec.get("podCIDRs")?.fault(reason.to_owned()));
    }
    let underlay = if known { Box::from([address(&annotations)?]) } else { Box::default() };
    let (node, flannel) = (Arc::from(name), Flannel::Member);
    Ok(Some(Lease { node, pod_cidrs, underlay, backend, mtu: flannel::ANY_MTU, flannel }))
}

fn backend(annotations: &Field<'_, '_>) -> Result<Backend, Fault> {
    let kind = annotations.get(TYPE)?;
    let Some(text) = kind.text()? else { return Err(kind.fault("is missing".to_owned())) };
    flannel::backend(text, || vxlan(&annotations.get(DATA)?))
}

fn vxlan(annotation: &Field<'_, '_>) -> Result<Backend, Fault> {
    let text = annotation.required_text()?;
    let data = tree::read_json(text).map_err(|error| annotation.because(error.to_string().escape_debug()))?;
    flannel::vxlan(&Field::root(&data)).map_err(|fault: Fault| {
        let field = fault.field.as_deref().unwrap_or("the whole");
        annotation.fault(format!("does not tell the end of a tunnel: {field} {}", fault.reason))
    })
}

fn address(annotations: &Field<'_, '_>) -> Result<std::net::IpAddr, Fault> {
    let (told, instead) = (annotations.get(ADDRESS)?, annotations.get(ADDRESS_INSTEAD)?);
    let field = if instead.filled_text()?.is_some() { instead } else { told };
    let address = own::underlay(&field)?;
    if address.is_ipv4() {
        Ok(address)
    } else {
        Err(field.fault(format!("is {address}, not an IPv4 address")))
    }
}

/// What a Node says to flannel's nodes along with this lease; nothing if that is of a backend that they do not know, or
/// has no address that they could send to.
pub(crate) fn told(lease: &Lease) -> Annotations {
    let address = lease.underlay.iter().find(|address| address.is_ipv4());
    match (address, flannel::data(&lease.backend)) {
        (Some(address), Some(data)) => [
            (TAKES_PART, Some("true".to_owned())),
            (TYPE, Some(lease.backend.name().to_owned())),
            (DATA, Some(data.to_string())),
            (ADDRESS, Some(address.to_string())),
        ],
        _ => untold(),
    }
}

/// A Node that says nothing to them.
pub(crate) fn untold() -> Annotations {
    [TAKES_PART, TYPE, DATA, ADDRESS].map(|key| (key, None))
}

/// Whether a Node with these annotations says to flannel's nodes what it is to say along with this lease.
pub(crate) fn is_told(annotations: &Field<'_, '_>, lease: &Lease) -> Result<bool, Fault> {
    for (key, wanted) in told(lease) {
        if annotations.get(key)?.text()? != wanted.as_deref() {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
