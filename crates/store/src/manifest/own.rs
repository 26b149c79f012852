//! Fairlead's own kinds (`fairlead/v1`): leases, claims, and what became of pods.

use cluster::{Backend, Claim, Lease, PodStatus, check_subdomain};

use super::core;
use super::field::{Fault, Field};

pub(super) fn lease(document: &Field<'_, '_>) -> Result<Lease, Fault> {
    let spec = document.get("spec")?;
    let pod_cidrs = spec.get("podCIDRs")?;
    let mtu = spec.get("mtu")?;
    Ok(Lease {
        node: document.cluster_name(check_subdomain)?,
        pod_cidrs: core::pod_cidrs(&pod_cidrs)?,
        underlay: spec.get("underlay")?.each(Field::address)?,
        backend: backend(&spec.get("backend")?)?,
        mtu: mtu.number(68, 65_535)?.ok_or_else(|| mtu.fault("is missing".into()))?,
    })
}

fn backend(field: &Field<'_, '_>) -> Result<Backend, Fault> {
    let name = field.get("type")?.required_text()?;
    if name != "vxlan" {
        return Ok(Backend::Other(name.into()));
    }
    let vni = field.get("vni")?;
    let port = field.get("port")?;
    let mac = field.get("mac")?;
    Ok(Backend::Vxlan {
        vni: vni.number(1, (1 << 24) - 1)?.ok_or_else(|| vni.fault("is missing".into()))?,
        port: port.port()?.ok_or_else(|| port.fault("is missing".into()))?,
        mac: mac.required_text()?.parse().map_err(|error| mac.because(format!("is wrong: {error}")))?,
    })
}

pub(super) fn claim(document: &Field<'_, '_>) -> Result<Claim, Fault> {
    let spec = document.get("spec")?;
    Ok(Claim { cidr: spec.get("cidr")?.cidr()?, node: spec.get("node")?.required_name(check_subdomain)? })
}

pub(super) fn pod_status(document: &Field<'_, '_>) -> Result<PodStatus, Fault> {
    let status = document.get("status")?;
    Ok(PodStatus {
        pod: document.namespaced_name(check_subdomain)?,
        node: status.get("nodeName")?.name(check_subdomain)?.map(Into::into),
        phase: core::phase(&status.get("phase")?)?,
        addresses: status.get("addresses")?.each(Field::address)?,
    })
}
