//! Packet forwarding on the host, switched on without cutting the host off.
//!
//! A host that forwards IPv6 stops listening to router advertisements, and so loses an autoconfigured default
//! route some minutes later. [`enable`] therefore first tells every link that listens now to go on listening
//! (`accept_ra` 2). Sysctls that are right already are not written, so this costs two reads for all pods but
//! the first, and works where `/proc/sys` is read-only.

use std::net::IpAddr;

use cni::Error;
use kernel::sysctl;

use crate::fault::fault;

const LINKS: &str = "/proc/sys/net/ipv6/conf";

/// Switches forwarding on for the family of each address.
pub(crate) fn enable(addresses: impl IntoIterator<Item = IpAddr>) -> Result<(), Error> {
    let (mut v4, mut v6) = (false, false);
    for address in addresses {
        v4 |= address.is_ipv4();
        v6 |= address.is_ipv6();
    }
    if v4 {
        sysctl::set("net/ipv4/ip_forward", "1").map_err(fault)?;
    }
    if v6 && sysctl::read("net/ipv6/conf/all/forwarding").map_err(fault)? != "1" {
        keep_listening();
        sysctl::set("net/ipv6/conf/all/forwarding", "1").map_err(fault)?;
    }
    Ok(())
}

/// Lets every link that accepts router advertisements as a host go on doing so as a router. A link that goes
/// away meanwhile needs nothing; what cannot be read or written stays as it is, for a pod must not wait for it.
fn keep_listening() {
    let Ok(links) = std::fs::read_dir(LINKS) else { return };
    for link in links.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        if matches!(link.as_str(), "all" | "default" | "lo") {
            continue;
        }
        let accepts = format!("net/ipv6/conf/{link}/accept_ra");
        if sysctl::read(&accepts).is_ok_and(|value| value == "1") {
            let _ = sysctl::write(&accepts, "2");
        }
    }
}
