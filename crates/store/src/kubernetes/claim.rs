//! Claims of pod CIDRs as Lease objects (`coordination.k8s.io/v1`): names and forms.
//!
//! A claim is named after its CIDR, so of two nodes that claim one CIDR the API server lets one create it. Of those that
//! overlap `overlap.rs` beside the store says which stays.
//!
//! The claim bears an owner reference to its Node object: Kubernetes removes it with the node.

use std::net::IpAddr;

use cluster::{Claim, check_subdomain};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::manifest::field::{Fault, Field};

/// The label that tells claims from other people's Lease objects.
pub(crate) const LABEL: (&str, &str) = ("fairlead.io/claim", "pod-cidr");

/// The annotation that says the CIDR as people write it.
const CIDR: &str = "fairlead.io/pod-cidr";

/// The name of the claim of `cidr`: `fairlead-10-244-3-0-24`, or all eight groups and the length for IPv6.
pub(crate) fn name(cidr: IpNet) -> String {
    let parts: Vec<String> = match cidr.addr() {
        IpAddr::V4(address) => address.octets().iter().map(ToString::to_string).collect(),
        IpAddr::V6(address) => address.segments().iter().map(|group| format!("{group:x}")).collect(),
    };
    format!("fairlead-{}-{}", parts.join("-"), cidr.prefix_len())
}

/// The CIDR whose claim has this name.
pub(crate) fn cidr(of_name: &str) -> Option<IpNet> {
    let (address, length) = of_name.strip_prefix("fairlead-")?.rsplit_once('-')?;
    let separator = if address.matches('-').count() == 3 { "." } else { ":" };
    let address: IpAddr = address.replace('-', separator).parse().ok()?;
    let cidr = IpNet::new(address, length.parse().ok()?).ok()?;
    // One name for one CIDR: neither host bits nor leading zeros.
    (cidr.trunc() == cidr && name(cidr) == of_name).then_some(cidr)
}

/// The claim as it is created. `uid` is that of the node's Node object.
pub(crate) fn encode(claim: &Claim, namespace: &str, uid: &str) -> Value {
    let (label, value) = LABEL;
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {
            "name": name(claim.cidr), "namespace": namespace,
            "labels": {label: value},
            "annotations": {CIDR: claim.cidr.to_string()},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": *claim.node, "uid": uid}],
        },
        "spec": {"holderIdentity": *claim.node},
    })
}

/// A claim out of its Lease object.
pub(crate) fn decode(document: &Field<'_, '_>) -> Result<Claim, Fault> {
    let metadata = document.get("metadata")?;
    let of_name = metadata.get("name")?;
    let Some(cidr) = cidr(of_name.required_text()?) else {
        return Err(of_name.fault("is not the name of a claim, such as fairlead-10-244-3-0-24".to_owned()));
    };
    let spec = document.get("spec")?;
    Ok(Claim { cidr, node: spec.get("holderIdentity")?.required_name(check_subdomain)? })
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;

    use super::{cidr, name};

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_claim_is_named_after_its_cidr_and_the_name_leads_back() {
        for (text, want) in [
            ("10.244.3.0/24", "fairlead-10-244-3-0-24"),
            ("0.0.0.0/0", "fairlead-0-0-0-0-0"),
            ("fd00:10:244:1::/64", "fairlead-fd00-10-244-1-0-0-0-0-64"),
            ("::/0", "fairlead-0-0-0-0-0-0-0-0-0"),
        ] {
            assert_eq!(name(net(text)), want);
            assert_eq!(cidr(want), Some(net(text)));
            assert_eq!(cluster::check_subdomain(want), Ok(()));
        }
        for bad in [
            "",
            "fairlead-",
            "node1",
            "fairlead-10-244-3-0",
            "fairlead-10-244-3-1-24",
            "fairlead-10-244-03-0-24",
            "fairlead-10-244-3-0-33",
            "fairlead-10-244-3-0--24",
            "fairlead-fd00-10-244-1-0-0-0-64",
            "fairlead-FD00-10-244-1-0-0-0-0-64",
        ] {
            assert_eq!(cidr(bad), None, "{bad}");
        }
    }
}
