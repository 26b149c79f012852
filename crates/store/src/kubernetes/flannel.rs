//! Nodes of flannel in the same cluster: what they say in their Nodes, and what they are told in ours.
//!
//! Read [`lease_of`], then [`told`]. A node of flannel keeps in annotations of its Node what Fairlead's keep in
//! `fairlead.io/lease`; where both are, ours counts.
//!
//! IPv6 is beside IPv4 and never alone: flannel carries it by a tunnel of its own, over IPv6, and has an annotation each
//! for the end and the address of that. A node that lacks them is a peer by IPv4.
//!
//! What stays true: flannel's annotations of a Node are written only with a lease that says so ([`Flannel::Told`]), and
//! taken away only after one that said so. Those that a person writes for flannel are nobody's to change.
//!
//! flannel 0.28, annotations of its Kubernetes subnet manager.

use std::net::IpAddr;
use std::sync::Arc;

use cluster::{Backend, Flannel, Lease, MacAddress};

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

/// The same for IPv6.
const DATA_V6: &str = "flannel.alpha.coreos.com/backend-v6-data";
const ADDRESS_V6: &str = "flannel.alpha.coreos.com/public-ipv6";
const ADDRESS_V6_INSTEAD: &str = "flannel.alpha.coreos.com/public-ipv6-overwrite";

/// All that flannel writes itself.
const ALL: [&str; 6] = [TAKES_PART, TYPE, DATA, ADDRESS, DATA_V6, ADDRESS_V6];

/// Annotations of a Node, and what each is to say; none where it is not to be.
pub(crate) type Annotations = [(&'static str, Option<String>); 6];

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
    let has = |is_v4| cidrs.iter().any(|cidr| cidr.addr().is_ipv4() == is_v4);
    // Nobody is led to a node of an unknown backend, so what else it says may be anything.
    let known = !matches!(backend, Backend::Other(_));
    if known && !has(true) {
        let reason = "has no IPv4 CIDR, and a node of flannel is not reached by IPv6 alone";
        return Err(spec.get("podCIDRs")?.fault(reason.to_owned()));
    }
    let mut underlay = Vec::new();
    if known {
        let field = said_or_instead(&annotations, ADDRESS, ADDRESS_INSTEAD)?;
        underlay.push(address(&field, true)?);
    }
    let over_ipv6 = if known && has(false) { over_ipv6(&annotations, &backend)? } else { None };
    underlay.extend(over_ipv6.map(|(address, _)| address));
    let by_ipv6 = over_ipv6.is_some();
    let pod_cidrs = cidrs.iter().copied().filter(|cidr| by_ipv6 || cidr.addr().is_ipv4()).collect();
    let flannel = Flannel::Member { mac_over_ipv6: over_ipv6.and_then(|(_, mac)| mac) };
    let (node, underlay, mtu) = (Arc::from(name), underlay.into(), flannel::ANY_MTU);
    Ok(Some(Lease { node, pod_cidrs, underlay, backend, mtu, flannel }))
}

/// Where its IPv6 pods are reached, and the link address of the tunnel's end; nothing where it does not say.
fn over_ipv6(
    annotations: &Field<'_, '_>,
    backend: &Backend,
) -> Result<Option<(IpAddr, Option<MacAddress>)>, Fault> {
    let field = said_or_instead(annotations, ADDRESS_V6, ADDRESS_V6_INSTEAD)?;
    let data = annotations.get(DATA_V6)?;
    let is_said = match backend {
        Backend::HostGw => true,
        // Flannel's word for nothing.
        Backend::Vxlan { .. } => data.filled_text()?.is_some_and(|text| text != "null"),
        _ => false,
    };
    if !is_said || field.filled_text()?.is_none() {
        return Ok(None);
    }
    let of_vxlan = matches!(backend, Backend::Vxlan { .. });
    let mac = of_vxlan.then(|| in_json(&data, |data| flannel::mac_over_ipv6(backend, data))).transpose()?;
    Ok(Some((address(&field, false)?, mac)))
}

fn backend(annotations: &Field<'_, '_>) -> Result<Backend, Fault> {
    let kind = annotations.get(TYPE)?;
    let Some(text) = kind.text()? else { return Err(kind.fault("is missing".to_owned())) };
    flannel::backend(text, || in_json(&annotations.get(DATA)?, flannel::vxlan))
}

/// What the JSON in an annotation tells of a tunnel's end.
fn in_json<T>(
    annotation: &Field<'_, '_>,
    read: impl FnOnce(&Field<'_, '_>) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let text = annotation.required_text()?;
    let data = tree::read_json(text).map_err(|error| annotation.because(error.to_string().escape_debug()))?;
    read(&Field::root(&data)).map_err(|fault: Fault| {
        let field = fault.field.as_deref().unwrap_or("the whole");
        annotation.fault(format!("does not tell the end of a tunnel: {field} {}", fault.reason))
    })
}

/// The annotation that counts of flannel's own and a person's.
fn said_or_instead<'a, 't>(
    annotations: &'a Field<'a, 't>,
    said: &'a str,
    instead: &'a str,
) -> Result<Field<'a, 't>, Fault> {
    let instead = annotations.get(instead)?;
    if instead.filled_text()?.is_some() { Ok(instead) } else { annotations.get(said) }
}

fn address(field: &Field<'_, '_>, is_v4: bool) -> Result<IpAddr, Fault> {
    let address = own::underlay(field)?;
    if address.is_ipv4() == is_v4 {
        Ok(address)
    } else {
        Err(field.fault(format!("is {address}, not an {} address", if is_v4 { "IPv4" } else { "IPv6" })))
    }
}

/// What a Node says to flannel's nodes along with this lease; nothing if that is of a backend that they do not know, or
/// has no address that they could send to.
pub(crate) fn told(lease: &Lease) -> Annotations {
    let address = lease.underlay.iter().find(|address| address.is_ipv4());
    match (address, flannel::data(&lease.backend)) {
        (Some(address), Some(data)) => {
            let (address_v6, data_v6) = flannel::over_ipv6(lease).unzip();
            [
                (TAKES_PART, Some("true".to_owned())),
                (TYPE, Some(lease.backend.name().to_owned())),
                (DATA, Some(data.to_string())),
                (ADDRESS, Some(address.to_string())),
                (DATA_V6, data_v6.map(|data| data.to_string())),
                (ADDRESS_V6, address_v6.map(|address| address.to_string())),
            ]
        }
        _ => untold(),
    }
}

/// A Node that says nothing to them.
pub(crate) fn untold() -> Annotations {
    ALL.map(|key| (key, None))
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
