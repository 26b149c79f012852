//! What the tunnel needs for itself: its UDP port, its network identifier, its device's name.

use ::agent::Config;
use anyhow::Error;
use kernel::link::{Kind, Link};
use kernel::udp::{self, Listener};
use route::vxlan::{DEVICE, DEVICE_V6};

use super::leftovers;
use super::network::Network;
use crate::finding::Finding;

/// Reads who listens, and judges.
pub(super) fn examine(config: &Config, network: &Network) -> Vec<Finding> {
    let mut findings = Vec::new();
    match udp::listeners(config.vxlan.port) {
        Ok(listeners) => findings.extend(judge_listeners(config.vxlan.port, &listeners)),
        Err(error) => findings.push(Finding::unseen("UDP sockets", &Error::from(error))),
    }
    findings.extend(network.foreign_links().filter_map(|link| judge_link(config, link)));
    findings
}

/// Sockets of the kernel's own are those of VXLAN devices, which share the port.
fn judge_listeners(port: u16, listeners: &[Listener]) -> Option<Finding> {
    let holder = listeners.iter().find(|listener| listener.inode != 0)?;
    Some(Finding::error(
        format!("UDP port {port}"),
        format!(
            "a program of user {} listens on {}:{port}: the tunnel cannot be made",
            holder.user, holder.address
        ),
        format!("stop it (ss -lunp 'sport = :{port}' names it), or give every node another vxlan.port"),
    ))
}

fn judge_link(config: &Config, link: &Link) -> Option<Finding> {
    if let Some(name) = [DEVICE, DEVICE_V6].into_iter().find(|name| *link.name == **name) {
        return Some(Finding::error(
            name,
            "a link of this name is there that is not Fairlead's: the tunnel cannot be made",
            format!("rename or remove it: ip link delete {name}"),
        ));
    }
    let Kind::Vxlan { id, port, .. } = link.kind else { return None };
    if (id, port) != (config.vxlan.vni, config.vxlan.port) {
        return None;
    }
    let owner = leftovers::owner_of_link(&link.name).map(|owner| format!(" of {owner}")).unwrap_or_default();
    Some(Finding::error(
        &link.name,
        format!("this tunnel{owner} has the identifier {id} and the port {port} that Fairlead's would have"),
        format!(
            "ip link delete {}, once its last pod is gone; or give every node another vxlan.vni or vxlan.port",
            link.name
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(inode: u64) -> Listener {
        Listener { address: "0.0.0.0".parse().unwrap(), user: 1000, inode }
    }

    #[test]
    fn a_program_on_the_tunnels_port_is_an_error_and_the_kernel_itself_is_not() {
        assert_eq!(judge_listeners(8472, &[]), None);
        assert_eq!(judge_listeners(8472, &[listener(0)]), None);
        let finding = judge_listeners(8472, &[listener(0), listener(4711)]).unwrap();
        assert_eq!(finding.subject, "UDP port 8472");
        assert!(finding.problem.contains("user 1000 listens on 0.0.0.0:8472"), "{finding:#?}");
        assert!(finding.fix.contains("vxlan.port"), "{finding:#?}");
    }
}
