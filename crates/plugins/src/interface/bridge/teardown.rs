//! DEL and GC: a pod is unplugged, or all that nobody knows any more.
//!
//! Read [`del`]. Whatever is missing is a success, whatever fails does not keep the rest from being done, and
//! the address plugin is always reached. nf_tables comes before the link: the kernel finishes removing elements
//! in the background while deleting the link waits anyway.

use cni::{Error, Request, delegate};
use ipnet::IpNet;
use kernel::netlink::{Protocol, Socket};
use kernel::nft::Nft;

use super::{config, gateway};
use crate::fault::{Failures, fault};
use crate::interface::veth;
use crate::owner::Owner;
use crate::{macspoof, masquerade};

/// An address plugin that says goodbye over the very link has to do so before it goes.
const NEEDS_THE_LINK: &str = "dhcp";

/// Unplugs a pod.
pub(super) fn del(request: &Request) -> Result<(), Error> {
    let owner = Owner::of(request);
    let kind = config::address_plugin(&request.config);
    let mut failures = Failures::default();
    if kind == NEEDS_THE_LINK {
        failures.note(delegate::del(kind, request));
    }
    // Kept open until the end: closing it waits for what was removed through it.
    let mut nft = failures.note_kernel(Nft::open());
    if let Some(nft) = &mut nft {
        failures.note_kernel(masquerade::remove(nft, &owner, known_addresses(request).as_deref()));
        failures.note_kernel(macspoof::remove(nft, &owner));
    }
    if let Some(mut host) = failures.note_kernel(Socket::open(Protocol::Route)) {
        failures.note(veth::remove(&mut host, &owner, request.netns.as_deref(), &request.ifname));
        failures.note(release_gateway(&mut host, request));
    }
    // After the link: an address must not be given anew while its last holder still answers to it.
    if !kind.is_empty() && kind != NEEDS_THE_LINK {
        failures.note(delegate::del(kind, request));
    }
    failures.into_result()
}

/// Removes everything of this network that belongs to nobody in the list.
pub(super) fn gc(request: &Request) -> Result<(), Error> {
    if request.config.valid_attachments.is_none() {
        return Err(Error::invalid_config("cni.dev/valid-attachments: missing, so nothing is removed"));
    }
    let network = &request.config.name;
    let valid = Owner::valid(request);
    let mut failures = Failures::default();
    let mut nft = failures.note_kernel(Nft::open());
    if let Some(nft) = &mut nft {
        failures.note_kernel(masquerade::collect(nft, network, &valid));
        failures.note_kernel(macspoof::collect(nft, network, &valid));
    }
    if let Some(mut host) = failures.note(Socket::open(Protocol::Route).map_err(fault)) {
        failures.note(veth::collect(&mut host, network, &valid));
        failures.note(release_gateway(&mut host, request));
    }
    match config::address_plugin(&request.config) {
        "" => {}
        kind => drop(failures.note(delegate::gc(kind, request))),
    }
    failures.into_result()
}

/// The pod's addresses as the runtime remembers them; `None` when it does not, or says nonsense.
fn known_addresses(request: &Request) -> Option<Vec<IpNet>> {
    let result = request.config.prev_result().ok().flatten()?;
    let addresses: Vec<IpNet> = result.ips.iter().map(|ip| ip.address).collect();
    Some(addresses).filter(|addresses| !addresses.is_empty())
}

fn release_gateway(host: &mut Socket, request: &Request) -> Result<(), Error> {
    match (config::bridge_name(&request.config), config::access_vlan(&request.config)) {
        (Ok(bridge), Some(vlan)) => gateway::release(host, bridge, vlan),
        _ => Ok(()),
    }
}
