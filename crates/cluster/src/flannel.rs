//! Nodes of flannel that have no Node object: what they are called.
//!
//! Where flannel's nodes share an etcd with Fairlead's, all that is known of one is its subnet and its address. It is
//! named after the subnet, `flannel-10.244.5.0-24`, and no other node may be called so there.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

const BEGIN: &str = "flannel-";

/// What the node of flannel is called that has this subnet.
///
/// ```
/// let name = cluster::flannel_name("10.244.5.0/24".parse().unwrap());
/// assert_eq!(&*name, "flannel-10.244.5.0-24");
/// assert!(cluster::is_flannel_name(&name) && cluster::check_subdomain(&name).is_ok());
/// ```
#[must_use]
pub fn flannel_name(subnet: IpNet) -> Arc<str> {
    // Colons stand in no name of a node.
    let address = subnet.network().to_string().replace(':', "-");
    format!("{BEGIN}{address}-{}", subnet.prefix_len()).into()
}

/// Whether a node of that name is known by its subnet alone.
#[must_use]
pub fn is_flannel_name(name: &str) -> bool {
    let subnet = || {
        let (address, length) = name.strip_prefix(BEGIN)?.rsplit_once('-')?;
        let address: IpAddr = address.parse().or_else(|_| address.replace('-', ":").parse()).ok()?;
        IpNet::new(address, length.parse().ok()?).ok()
    };
    subnet().is_some_and(|subnet| *flannel_name(subnet) == *name)
}

#[cfg(test)]
mod tests {
    use super::{flannel_name, is_flannel_name};

    #[test]
    fn a_subnets_name_is_known_for_one_and_no_other_is() {
        for (subnet, want) in
            [("10.244.5.0/24", "flannel-10.244.5.0-24"), ("fd00:10:244:5::/64", "flannel-fd00-10-244-5---64")]
        {
            assert_eq!(&*flannel_name(subnet.parse().unwrap()), want);
            assert!(is_flannel_name(want) && crate::check_subdomain(want).is_ok());
        }
        for other in
            ["flannel-1", "flannel-", "flannel", "node1", "flannel-10.244.5.1-24", "flannel-10.244.5.0-33"]
        {
            assert!(!is_flannel_name(other), "{other}");
        }
    }
}
