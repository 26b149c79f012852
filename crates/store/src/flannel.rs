//! How flannel says by what a node is reached, in whichever store: the backend's type, and its data as JSON.
//!
//! Read [`backend`] and [`data`]. It tells less than a lease of Fairlead's: not the port of its tunnel and not the size of
//! its packets. Its peers take their own port, and its packets limit nobody's.
//!
//! flannel 0.28, `LeaseAttrs`.

use std::net::IpAddr;

use cluster::{Backend, Lease, MacAddress};
use serde_json::{Value, json};

use crate::manifest::field::{Fault, Field};
use crate::manifest::own;

/// The VXLAN network of old versions, which do not tell theirs, where nobody chose another one.
const VNI: u32 = 1;

/// Flannel's ports where nobody chose others. It does not tell them; see [`cluster::Flannel::Member`].
pub(crate) const VXLAN_PORT: u16 = 8472;
const UDP_PORT: u16 = 8285;

/// A size of packets that limits nobody's.
pub(crate) const ANY_MTU: u32 = 65_535;

/// The backend of that type; `vxlan` reads the data of that one, for no other needs any.
pub(crate) fn backend(kind: &str, vxlan: impl FnOnce() -> Result<Backend, Fault>) -> Result<Backend, Fault> {
    match kind {
        "vxlan" => vxlan(),
        "host-gw" => Ok(Backend::HostGw),
        // It leaves its name out, as do backends that leave the routes to a cloud, whose nodes are not in one cluster with
        // others.
        "udp" | "" => Ok(Backend::Udp { port: UDP_PORT }),
        other => Ok(Backend::Other(format!("flannel-{other}").into())),
    }
}

/// The end of a VXLAN tunnel.
pub(crate) fn vxlan(data: &Field<'_, '_>) -> Result<Backend, Fault> {
    let vni = data.get("VNI")?.number(1, (1 << 24) - 1)?.unwrap_or(VNI);
    Ok(Backend::Vxlan { vni, port: VXLAN_PORT, mac: own::unicast(&data.get("VtepMAC")?)? })
}

/// What a node says of its tunnel over IPv6, flannel's second one, which has the network of the first.
pub(crate) fn mac_over_ipv6(backend: &Backend, data: &Field<'_, '_>) -> Result<MacAddress, Fault> {
    let vni = data.get("VNI")?;
    let theirs = vni.number(1, (1 << 24) - 1)?.unwrap_or(VNI);
    match backend {
        Backend::Vxlan { vni: ours, .. } if *ours != theirs => {
            Err(vni.fault(format!("is {theirs}, and that of its tunnel over IPv4 is {ours}")))
        }
        _ => own::unicast(&data.get("VtepMAC")?),
    }
}

/// Where and by what the IPv6 pods of a node of ours are reached by flannel's nodes: the address, and the data, which is
/// `null` where there is nothing to say; nothing if they are not. By flannel's `udp` there is no IPv6.
pub(crate) fn over_ipv6(lease: &Lease) -> Option<(IpAddr, Value)> {
    let data = match (&lease.backend, lease.mac_over_ipv6()) {
        (Backend::Vxlan { vni, .. }, Some(mac)) => json!({"VNI": vni, "VtepMAC": mac.to_string()}),
        (Backend::HostGw, _) if lease.has_both_families() => Value::Null,
        _ => return None,
    };
    Some((lease.underlay.iter().copied().find(IpAddr::is_ipv6)?, data))
}

/// What flannel itself has for that backend: `null` where there is nothing to say; nothing for one that it does not know.
pub(crate) fn data(backend: &Backend) -> Option<Value> {
    match backend {
        Backend::Vxlan { vni, mac, .. } => Some(json!({"VNI": vni, "VtepMAC": mac.to_string()})),
        Backend::HostGw | Backend::Udp { .. } => Some(Value::Null),
        Backend::Ipip | Backend::WireGuard { .. } | Backend::None | Backend::Other(_) => None,
    }
}
