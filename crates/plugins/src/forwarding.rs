//! Packet forwarding on the host, switched on without cutting the host off.
//!
//! A host that forwards IPv6 stops listening to router advertisements, and so loses an autoconfigured default
//! route some minutes later. [`enable`] therefore first tells every link that listens now to go on listening
//! (`accept_ra` 2). Sysctls that are right already are not written, so this costs one question for
//! all pods but the first, and works where `/proc/sys` is read-only.

use std::collections::BTreeSet;
use std::net::IpAddr;

use cni::Error;
use kernel::netlink::Socket;
use kernel::{Family, forwarding, sysctl};

use crate::fault::fault;

const LINKS: &str = "/proc/sys/net/ipv6/conf";

/// Switches forwarding on for the family of each address.
pub(crate) fn enable(host: &mut Socket, addresses: impl IntoIterator<Item = IpAddr>) -> Result<(), Error> {
    let families: BTreeSet<Family> = addresses.into_iter().map(Family::of).collect();
    for family in families {
        if forwarding::is_on(host, family).map_err(fault)? {
            continue;
        }
        let path = match family {
            Family::V4 => "net/ipv4/ip_forward",
            Family::V6 => {
                keep_listening();
                "net/ipv6/conf/all/forwarding"
            }
        };
        sysctl::set(path, "1").map_err(fault)?;
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
