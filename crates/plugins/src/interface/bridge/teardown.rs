//! DEL and GC: a pod is unplugged, or all that nobody knows any more.
//!
//! Both are the removal of what an attachment owns on the host ([`attachment`]); the bridge's own part is the
//! gateway of a VLAN, which goes with the last pod in it.

use cni::{Error, Request};
use kernel::netlink::Socket;

use super::{config, gateway};
use crate::attachment;

/// Unplugs a pod.
pub(super) fn del(request: &Request) -> Result<(), Error> {
    let kind = config::address_plugin(&request.config);
    attachment::remove(request, kind, |host| release_gateway(host, request))
}

/// Removes everything of this network that belongs to nobody in the list.
pub(super) fn gc(request: &Request) -> Result<(), Error> {
    let kind = config::address_plugin(&request.config);
    attachment::collect(request, kind, |host| release_gateway(host, request))
}

fn release_gateway(host: &mut Socket, request: &Request) -> Result<(), Error> {
    match (config::bridge_name(&request.config), config::access_vlan(&request.config)) {
        (Ok(bridge), Some(vlan)) => gateway::release(host, bridge, vlan),
        _ => Ok(()),
    }
}
