//! Fairlead's own kinds (`fairlead/v1`): leases, claims, and what became of pods.

use std::net::IpAddr;
use std::sync::Arc;

use cluster::{Backend, Claim, Flannel, Lease, MacAddress, PodStatus, WireGuardKey, check_subdomain};
use ipnet::IpNet;

use super::core;
use super::field::{Fault, Field};

/// How a lease says that flannel's nodes are told of it.
pub(super) const TOLD: &str = "told";

/// How it says that they were told something else since.
pub(super) const OVERWRITTEN: &str = "overwritten";

/// How it says that its node is one of them.
pub(super) const MEMBER: &str = "member";

pub(super) fn lease(document: &Field<'_, '_>) -> Result<Lease, Fault> {
    lease_of(document.cluster_name(check_subdomain)?, &document.get("spec")?)
}

/// The lease of `node` that `spec` tells: what stands in a NodeLease, and in an annotation of a Node.
pub(crate) fn lease_of(node: Arc<str>, spec: &Field<'_, '_>) -> Result<Lease, Fault> {
    let mtu = spec.get("mtu")?;
    Ok(Lease {
        node,
        pod_cidrs: all_pod_cidrs(spec)?,
        underlay: spec.get("underlay")?.each(underlay)?,
        backend: backend(&spec.get("backend")?)?,
        mtu: mtu.number(68, 65_535)?.ok_or_else(|| mtu.fault("is missing".into()))?,
        flannel: flannel(spec)?,
    })
}

fn flannel(spec: &Field<'_, '_>) -> Result<Flannel, Fault> {
    let (field, mac) = (spec.get("flannel")?, spec.get("macOverIPv6")?);
    match field.filled_text()? {
        None => Ok(Flannel::Apart),
        Some(TOLD) => Ok(Flannel::Told),
        Some(OVERWRITTEN) => Ok(Flannel::Overwritten),
        Some(MEMBER) => {
            let mac_over_ipv6 = mac.filled_text()?.map(|_| unicast(&mac)).transpose()?;
            Ok(Flannel::Member { mac_over_ipv6 })
        }
        Some(other) => Err(field.fault(format!("is {other:?}, not {TOLD}, {OVERWRITTEN} or {MEMBER}"))),
    }
}

/// Those that new pods get addresses of, then those that some pods still have addresses of: the fields are two, so that
/// the first reads as it does in a Node.
fn all_pod_cidrs(spec: &Field<'_, '_>) -> Result<Box<[IpNet]>, Fault> {
    let mut all = core::pod_cidrs(&spec.get("podCIDRs")?)?.into_vec();
    let retained = spec.get("retainedPodCIDRs")?;
    for cidr in retained.each(Field::cidr)? {
        if !all.iter().any(|other| other.addr().is_ipv4() == cidr.addr().is_ipv4()) {
            return Err(retained.fault(format!("has {cidr}, of a family that podCIDRs has none of")));
        }
        all.push(cidr);
    }
    Ok(all.into())
}

/// An address that one machine in the network can have: tunnels to any other would lead astray on every peer.
pub(crate) fn underlay(field: &Field<'_, '_>) -> Result<IpAddr, Fault> {
    let address = field.address()?;
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
        return Err(field.fault(format!("is {address}, not the address of a machine in the network")));
    }
    Ok(address)
}

/// A link address of one machine. To the kernel the one of all zeros means every unknown one.
pub(crate) fn unicast(field: &Field<'_, '_>) -> Result<MacAddress, Fault> {
    let mac: MacAddress =
        field.required_text()?.parse().map_err(|error| field.because(format!("is wrong: {error}")))?;
    if mac.0 == [0; 6] || mac.0[0] & 1 != 0 {
        return Err(field.fault(format!("is {mac}, not the link-layer address of one machine")));
    }
    Ok(mac)
}

fn backend(field: &Field<'_, '_>) -> Result<Backend, Fault> {
    match field.get("type")?.required_text()? {
        "vxlan" => vxlan(field),
        "host-gw" => Ok(Backend::HostGw),
        "udp" => Ok(Backend::Udp { port: port(field)? }),
        "ipip" => Ok(Backend::Ipip),
        "wireguard" => {
            let (key, next) = (wireguard_key(field)?, field.get("next")?);
            let next = (!next.is_absent()).then(|| wireguard_key(&next)).transpose()?;
            if next.is_some_and(|next| next.generation % 2 == key.generation % 2) {
                let reason = "is of a generation whose device the key in force has".to_owned();
                return Err(field.get("next")?.fault(reason));
            }
            let strict = field.get("strict")?.truth()?.unwrap_or(true);
            Ok(Backend::WireGuard { key, next, strict })
        }
        "none" => Ok(Backend::None),
        other => Ok(Backend::Other(other.into())),
    }
}

fn wireguard_key(field: &Field<'_, '_>) -> Result<WireGuardKey, Fault> {
    let key = field.get("publicKey")?;
    let public_key =
        key.required_text()?.parse().map_err(|error| key.because(format!("is wrong: {error}")))?;
    let generation = field.get("generation")?.number(0, u32::MAX)?.unwrap_or(0);
    Ok(WireGuardKey { port: port(field)?, public_key, generation })
}

fn port(backend: &Field<'_, '_>) -> Result<u16, Fault> {
    let port = backend.get("port")?;
    port.port()?.ok_or_else(|| port.fault("is missing".into()))
}

fn vxlan(field: &Field<'_, '_>) -> Result<Backend, Fault> {
    let vni = field.get("vni")?;
    Ok(Backend::Vxlan {
        vni: vni.number(1, (1 << 24) - 1)?.ok_or_else(|| vni.fault("is missing".into()))?,
        port: port(field)?,
        mac: unicast(&field.get("mac")?)?,
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
