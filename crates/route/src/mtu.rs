//! The largest packet a pod may send, from the largest the underlay carries.
//!
//! Read [`pods`]. VXLAN (RFC 7348) wraps the pod's Ethernet frame: outer IP header (20 bytes for IPv4, 40 for
//! IPv6), UDP 8, VXLAN 8, inner Ethernet 14.

use cluster::Backend;

use crate::family::Family;
use crate::tunnel::TunnelKind;

/// What VXLAN adds to a packet on an underlay of that family, in bytes.
#[must_use]
pub fn vxlan_overhead(underlay: Family) -> u32 {
    match underlay {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

/// The smallest MTU with which a family works: RFC 791 for IPv4, RFC 8200 section 5 for IPv6.
#[must_use]
pub fn smallest(family: Family) -> u32 {
    match family {
        Family::V4 => 68,
        Family::V6 => 1280,
    }
}

/// An MTU that does not fit through the tunnel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "choose the pods' MTU: underlay {link} carries {underlay} bytes, which leaves {left} for pods by {backend}, \
     but {pods} needs {needed}\nhint: raise the MTU of {link} to at least {enough}"
)]
pub struct MtuError {
    /// What packets travel by.
    pub backend: Box<str>,
    /// The underlay's link.
    pub link: String,
    /// Its MTU.
    pub underlay: u32,
    /// What is left for pods.
    pub left: u32,
    /// The family of the pods that do not fit.
    pub pods: Family,
    /// What that family needs.
    pub needed: u32,
    /// The smallest underlay MTU that would do.
    pub enough: u32,
}

/// What a backend adds to a packet on an underlay of that family, in bytes.
fn overhead(backend: &Backend, underlay: Family) -> u32 {
    match backend {
        Backend::Vxlan { .. } => vxlan_overhead(underlay),
        Backend::Udp { .. } => TunnelKind::Udp.overhead(underlay),
        Backend::Ipip => TunnelKind::Ipip.overhead(underlay),
        Backend::WireGuard { .. } => TunnelKind::WireGuard.overhead(underlay),
        Backend::HostGw | Backend::None | Backend::Other(_) => 0,
    }
}

/// The MTU of every pod of a node.
///
/// # Errors
/// When a family the pods use does not work with what is left.
pub fn pods(
    backend: &Backend,
    link: &str,
    underlay: u32,
    outer: Family,
    pods: &[Family],
) -> Result<u32, MtuError> {
    let overhead = overhead(backend, outer);
    let left = underlay.saturating_sub(overhead);
    match pods.iter().find(|&&family| left < smallest(family)) {
        None => Ok(left),
        Some(&family) => Err(MtuError {
            backend: backend.name().into(),
            link: link.to_owned(),
            underlay,
            left,
            pods: family,
            needed: smallest(family),
            enough: smallest(family) + overhead,
        }),
    }
}

#[cfg(test)]
mod tests {
    use cluster::MacAddress;

    use super::*;

    const VXLAN: Backend = Backend::Vxlan { vni: 1, port: 8472, mac: MacAddress([2, 0, 0, 0, 0, 1]) };

    #[test]
    fn vxlan_costs_fifty_bytes_over_ipv4_and_seventy_over_ipv6_and_a_plain_route_nothing() {
        assert_eq!(pods(&VXLAN, "eth0", 1500, Family::V4, &Family::ALL), Ok(1450));
        assert_eq!(pods(&VXLAN, "eth0", 1500, Family::V6, &Family::ALL), Ok(1430));
        assert_eq!(pods(&VXLAN, "eth0", 9000, Family::V4, &[Family::V4]), Ok(8950));
        assert_eq!(pods(&Backend::HostGw, "eth0", 1500, Family::V4, &Family::ALL), Ok(1500));
    }

    #[test]
    fn pods_with_ipv6_need_an_underlay_that_leaves_1280_bytes() {
        assert_eq!(pods(&VXLAN, "eth0", 1300, Family::V4, &[Family::V4]), Ok(1250));
        let error = pods(&VXLAN, "eth0", 1300, Family::V4, &Family::ALL).unwrap_err();
        assert!(error.to_string().contains("at least 1330"), "{error}");
    }
}
