//! Nodes, namespaces and pods (API group `v1`).

use std::sync::Arc;

use cluster::{ContainerPort, Labels, Namespace, Node, Phase, Pod, check_label, check_subdomain};
use ipnet::IpNet;

use super::field::{Fault, Field};

/// The taint that keeps pods off a node until Fairlead takes it off: a cluster may let its nodes start with it.
pub(crate) const NOT_READY: &str = "fairlead.io/not-ready";

/// The condition of a Node that says whether pods can be given a network there.
pub(crate) const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";

/// The annotation of a Node with the addresses that its peers are to be told instead of its own.
pub(crate) const ADVERTISE: &str = "fairlead.io/underlay-advertise";

/// The annotation of a mirror pod with the UID of the pod that it mirrors.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The annotations that pod networking reads, or the beginnings of their keys.
const KEPT_ANNOTATIONS: [&str; 4] = [
    "fairlead/",
    "kubernetes.io/ingress-bandwidth",
    "kubernetes.io/egress-bandwidth",
    "k8s.v1.cni.cncf.io/networks",
];

pub(crate) fn node(document: &Field<'_, '_>) -> Result<Node, Fault> {
    let spec = document.get("spec")?;
    let status = document.get("status")?;
    let metadata = document.get("metadata")?;
    let mut addresses = Vec::new();
    for entry in status.get("addresses")?.items()? {
        if entry.get("type")?.text()? == Some("InternalIP") {
            addresses.push(entry.get("address")?.address()?);
        }
    }
    Ok(Node {
        name: document.cluster_name(check_subdomain)?,
        labels: metadata.get("labels")?.labels()?,
        addresses: addresses.into(),
        pod_cidrs: given_pod_cidrs(&spec)?,
        awaits_network: has_startup_taint(&spec.get("taints")?)? || is_without_network(&status)?,
        advertise: metadata.get("annotations")?.get(ADVERTISE)?.filled_text()?.map(Into::into),
    })
}

/// The pod CIDRs in a Node's spec, in either of the two forms that it has for them.
pub(crate) fn given_pod_cidrs(spec: &Field<'_, '_>) -> Result<Box<[IpNet]>, Fault> {
    let several = spec.get("podCIDRs")?;
    let single = spec.get("podCIDR")?;
    if several.items()?.is_empty() && single.filled_text()?.is_some() {
        return Ok(Box::from([single.cidr()?]));
    }
    pod_cidrs(&several)
}

fn has_startup_taint(taints: &Field<'_, '_>) -> Result<bool, Fault> {
    Ok(taints.each(|taint| taint.get("key")?.text().map(|key| key == Some(NOT_READY)))?.contains(&true))
}

fn is_without_network(status: &Field<'_, '_>) -> Result<bool, Fault> {
    let holds = |condition: &Field<'_, '_>| {
        Ok(condition.get("type")?.text()? == Some(NETWORK_UNAVAILABLE)
            && condition.get("status")?.text()? == Some("True"))
    };
    Ok(status.get("conditions")?.each(|condition| holds(condition))?.contains(&true))
}

/// At most one pod CIDR of each family, as Kubernetes has it.
pub(crate) fn pod_cidrs(field: &Field<'_, '_>) -> Result<Box<[IpNet]>, Fault> {
    let cidrs = field.each(Field::cidr)?;
    let of_v4 = cidrs.iter().filter(|cidr| cidr.addr().is_ipv4()).count();
    if of_v4 > 1 || cidrs.len() - of_v4 > 1 {
        return Err(field.fault("has two CIDRs of one family".into()));
    }
    Ok(cidrs)
}

pub(crate) fn namespace(document: &Field<'_, '_>) -> Result<Namespace, Fault> {
    let name = document.cluster_name(check_label)?;
    Ok(Namespace { name, labels: document.get("metadata")?.get("labels")?.labels()? })
}

pub(crate) fn pod(document: &Field<'_, '_>) -> Result<Pod, Fault> {
    let metadata = document.get("metadata")?;
    let spec = document.get("spec")?;
    let status = document.get("status")?;
    Ok(Pod {
        name: document.namespaced_name(check_subdomain)?,
        uid: pod_uid(&metadata)?,
        labels: metadata.get("labels")?.labels()?,
        annotations: annotations(&metadata.get("annotations")?)?,
        node: spec.get("nodeName")?.name(check_subdomain)?.map(Into::into),
        host_network: spec.get("hostNetwork")?.truth()?.unwrap_or(false),
        ports: container_ports(&spec.get("containers")?)?,
        phase: phase(&status.get("phase")?)?,
        addresses: pod_addresses(&status)?,
        terminating: !metadata.get("deletionTimestamp")?.is_absent(),
    })
}

/// The UID by which the kubelet speaks of a pod to its runtime. Of a pod out of the kubelet's own files the API has a
/// mirror, with another UID and this one in an annotation.
fn pod_uid(metadata: &Field<'_, '_>) -> Result<Option<Box<str>>, Fault> {
    let (annotations, own) = (metadata.get("annotations")?, metadata.get("uid")?);
    let mirrored = annotations.get(MIRROR)?.filled_text()?;
    Ok(mirrored.or(own.filled_text()?).map(Into::into))
}

pub(crate) fn phase(field: &Field<'_, '_>) -> Result<Phase, Fault> {
    let known = [Phase::Pending, Phase::Running, Phase::Succeeded, Phase::Failed, Phase::Unknown];
    let Some(text) = field.filled_text()? else { return Ok(Phase::Pending) };
    let found = known.into_iter().find(|phase| phase.as_str() == text);
    found.ok_or_else(|| {
        field.fault(format!("is {text:?}, none of Pending, Running, Succeeded, Failed, Unknown"))
    })
}

fn annotations(field: &Field<'_, '_>) -> Result<Labels, Fault> {
    let mut kept = Vec::new();
    for (key, _) in field.entries()? {
        if KEPT_ANNOTATIONS.iter().any(|wanted| key.starts_with(wanted)) {
            kept.push((&**key, field.get(key)?.text()?.unwrap_or_default()));
        }
    }
    Ok(kept.into_iter().collect())
}

fn container_ports(containers: &Field<'_, '_>) -> Result<Arc<[ContainerPort]>, Fault> {
    let mut ports = Vec::new();
    for container in containers.items()? {
        ports.extend(container.get("ports")?.each(container_port)?);
    }
    Ok(ports.into())
}

fn container_port(field: &Field<'_, '_>) -> Result<ContainerPort, Fault> {
    let port = field.get("containerPort")?;
    let host_address = field.get("hostIP")?;
    Ok(ContainerPort {
        name: field.get("name")?.name(check_label)?.map(Into::into),
        port: port.port()?.ok_or_else(|| port.fault("is missing".into()))?,
        protocol: field.get("protocol")?.protocol()?,
        host_port: field.get("hostPort")?.port_or_zero()?,
        host_address: host_address.filled_text()?.map(|_| host_address.address()).transpose()?,
    })
}

fn pod_addresses(status: &Field<'_, '_>) -> Result<Box<[std::net::IpAddr]>, Fault> {
    let several = status.get("podIPs")?;
    let single = status.get("podIP")?;
    if several.items()?.is_empty() && single.filled_text()?.is_some() {
        return Ok(Box::from([single.address()?]));
    }
    several.each(|entry| entry.get("ip")?.address())
}
