//! What one attachment owns on the host, and its removal in one go.
//!
//! Read [`remove`] first: what DEL of an interface plugin with a cable on the host does. A chain's DEL is
//! several processes, the last plugin's first, and the kernel charges each of them a grace period of some 20 ms
//! for deleting a device or nf_tables elements. So the chained plugins leave theirs alone while the attachment's
//! own cable stands ([`is_held`]), and the interface plugin, whose DEL is still to come, takes it along: every
//! element in one transaction, then every link in one request.
//!
//! What stays true: nothing of another owner is touched; what is missing is no error, and what fails does not
//! keep the rest from being done; the address plugin is always reached.
//!
//! A plugin that puts something into nf_tables for an attachment adds the function that finds it to [`FINDERS`]
//! and asks [`is_held`] in its own DEL.

use std::cell::RefCell;
use std::path::Path;

use cni::{Error, Request, delegate};
use ipnet::IpNet;
use kernel::link::{self, Change, Filter, Kind, Link};
use kernel::netlink::{Batch, Protocol, Socket};
use kernel::nft::{Nft, Transaction};

use crate::fault::{Failures, fault};
use crate::interface::veth;
use crate::meta::{firewall, portmap};
use crate::owner::Owner;
use crate::{macspoof, masquerade, reference};

/// An address plugin that says goodbye over the very link has to do so before it goes.
pub(crate) const NEEDS_THE_LINK: &str = "dhcp";

/// How often it is looked again for elements when others remove the same ones at the same time.
const ATTEMPTS: usize = 10;

/// An attachment that is being removed: what a [`Finder`] has to go by.
#[derive(Debug)]
pub(crate) struct Leaving<'a> {
    /// Whose elements to find.
    pub(crate) owner: &'a Owner,
    /// The pod's addresses, if the runtime remembers them. Without them everything of the network is looked at.
    pub(crate) addresses: Option<Vec<IpNet>>,
    /// Where the host ports led that [`portmap::leave`] found: their connections end with them.
    pub(crate) host_ports: RefCell<Vec<portmap::HostPort>>,
}

impl<'a> Leaving<'a> {
    /// The owner with what is known of his addresses.
    pub(crate) fn new(owner: &'a Owner, addresses: Option<Vec<IpNet>>) -> Self {
        Self { owner, addresses, host_ports: RefCell::default() }
    }
}

/// Adds the deletion of every element that the attachment has in one part of nf_tables. A part that is not
/// there holds nothing and is no error.
type Finder = fn(&mut Nft, &Leaving<'_>, &mut Transaction) -> Result<(), kernel::Error>;

/// The parts of nf_tables in which an attachment may have elements.
const FINDERS: &[Finder] =
    &[masquerade::leave, macspoof::leave, portmap::leave, firewall::leave, reference::leave];

/// Whether the attachment's own cable, marked as such by our bridge, ptp or fairlead, stands on the host. Then
/// that plugin's DEL is still to come and removes all that the attachment owns; DEL of a chained plugin has
/// nothing to do. Otherwise (another's cable, none, or a link of another kind) it removes its own at once.
///
/// # Errors
/// When the kernel refuses to tell.
pub(crate) fn is_held(host: &mut Socket, owner: &Owner) -> Result<bool, Error> {
    Ok(cable(host, owner)?.is_some())
}

/// The host's end of the attachment's own cable, if it stands and is marked.
///
/// # Errors
/// When the kernel refuses to tell.
pub(crate) fn cable(host: &mut Socket, owner: &Owner) -> Result<Option<Link>, Error> {
    let alias = owner.alias();
    let is_own = |link: &Link| link.kind == Kind::Veth && link.alias.as_ref() == Some(&alias);
    // It has its first name, unless a foreign link had that.
    let first = link::find(host, &*owner.host_link_name(0)).map_err(fault)?;
    match first.filter(is_own) {
        Some(cable) => Ok(Some(cable)),
        None => Ok(veth::find(host, owner)?.into_iter().find(is_own)),
    }
}

/// Removes all of the request's attachment: elements, links, addresses. `afterwards` is for what the plugin has
/// beside them, and comes when the links are gone.
///
/// # Errors
/// All that failed, in one.
pub(crate) fn remove(
    request: &Request,
    address_plugin: &str,
    afterwards: impl FnOnce(&mut Socket) -> Result<(), Error>,
) -> Result<(), Error> {
    let owner = Owner::of(request);
    let mut failures = Failures::default();
    if address_plugin == NEEDS_THE_LINK {
        failures.note(delegate::del(address_plugin, request));
    }
    // Before the links, and kept open until the end: closing it waits for what was removed through it, and
    // that wait is over by the time the links are gone.
    let mut nft = failures.note_kernel(Nft::open());
    if let Some(nft) = &mut nft {
        let leaving = Leaving::new(&owner, known_addresses(request));
        remove_elements(nft, &leaving, &mut failures);
        failures.note(portmap::end_connections(&leaving.host_ports.take()));
        failures.note_kernel(reference::remove_older(&leaving, reference::EVERYTHING));
    }
    if let Some(mut host) = failures.note_kernel(Socket::open(Protocol::Route)) {
        failures.note(remove_links(&mut host, &owner, request.netns.as_deref(), &request.ifname));
        failures.note(afterwards(&mut host));
    }
    // After the link: an address must not be given anew while its last holder still answers to it.
    if !address_plugin.is_empty() && address_plugin != NEEDS_THE_LINK {
        failures.note(delegate::del(address_plugin, request));
    }
    failures.into_result()
}

/// Removes everything that an interface plugin made in this network for attachments the request does not list.
/// `afterwards` as for [`remove`]. The chained plugins collect their elements themselves.
///
/// # Errors
/// Code 7 without a list, else all that failed, in one.
pub(crate) fn collect(
    request: &Request,
    address_plugin: &str,
    afterwards: impl FnOnce(&mut Socket) -> Result<(), Error>,
) -> Result<(), Error> {
    let valid = valid(request)?;
    let network = &request.config.name;
    let mut failures = Failures::default();
    let mut nft = failures.note_kernel(Nft::open());
    if let Some(nft) = &mut nft {
        failures.note_kernel(masquerade::collect(nft, network, &valid));
        failures.note_kernel(macspoof::collect(nft, network, &valid));
        failures.note_kernel(reference::collect(nft, network, &valid, reference::OF_CABLES));
    }
    failures.note_kernel(reference::collect_older(network, &valid, reference::OF_CABLES));
    if let Some(mut host) = failures.note_kernel(Socket::open(Protocol::Route)) {
        failures.note(collect_links(&mut host, network, &valid, &["veth", "ifb"]));
        failures.note(afterwards(&mut host));
    }
    if !address_plugin.is_empty() {
        failures.note(delegate::gc(address_plugin, request));
    }
    failures.into_result()
}

/// Those whom a GC keeps.
///
/// # Errors
/// Code 7 when there is no list: that is a mistake, and does not mean that nobody is left.
pub(crate) fn valid(request: &Request) -> Result<Vec<Owner>, Error> {
    if request.config.valid_attachments.is_none() {
        return Err(Error::invalid_config("cni.dev/valid-attachments: missing, so nothing is removed"));
    }
    Ok(Owner::valid(request))
}

/// Removes the host's links of this network and these kinds (the kernel's names) that are marked as somebody's
/// who is not among `valid`, all in one request.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn collect_links(
    host: &mut Socket,
    network: &str,
    valid: &[Owner],
    kinds: &[&str],
) -> Result<(), Error> {
    let keep: Vec<String> = valid.iter().map(Owner::alias).collect();
    let prefix = Owner::alias_prefix(network);
    // A link without a mark is one that an ADD has just made, or was killed over.
    let names: Vec<String> = valid.iter().flat_map(Owner::link_names).collect();
    let is_stale = |link: &Link| match &link.alias {
        Some(alias) => alias.starts_with(&prefix) && !keep.contains(alias),
        None => link.group == Owner::group(network) && !names.contains(&link.name),
    };
    let mut stale = Vec::new();
    for kind in kinds {
        let links = link::list(host, Filter { kind: Some(kind), ..Filter::default() }).map_err(fault)?;
        stale.extend(links.into_iter().filter(is_stale));
    }
    delete_together(host, &stale, &Owner::stale_alias(network))
}

/// The pod's addresses as the runtime remembers them; `None` when it does not, or says nonsense.
pub(crate) fn known_addresses(request: &Request) -> Option<Vec<IpNet>> {
    let result = request.config.prev_result().ok().flatten()?;
    let addresses: Vec<IpNet> = result.ips.iter().map(|ip| ip.address).collect();
    Some(addresses).filter(|addresses| !addresses.is_empty())
}

/// In one transaction; part by part only if the kernel will not have them together.
fn remove_elements(nft: &mut Nft, leaving: &Leaving<'_>, failures: &mut Failures) {
    if leave(nft, leaving, FINDERS).is_err() {
        for finder in FINDERS {
            failures.note_kernel(leave(nft, leaving, &[*finder]));
        }
    }
}

fn leave(nft: &mut Nft, leaving: &Leaving<'_>, finders: &[Finder]) -> Result<(), kernel::Error> {
    let mut attempts = 0..ATTEMPTS;
    loop {
        let mut transaction = Transaction::new();
        for find in finders {
            find(nft, leaving, &mut transaction)?;
        }
        match nft.commit(transaction) {
            // Somebody else removed one of them in between; the others are still there.
            Err(error) if error.is_missing() && attempts.next().is_some() => {}
            other => return other,
        }
    }
}

/// The attachment's links on the host; if the cable is not among them, its end in the pod.
fn remove_links(
    host: &mut Socket,
    owner: &Owner,
    netns: Option<&Path>,
    interface: &str,
) -> Result<(), Error> {
    let names = owner.link_names();
    let found = links(host, &names, |link| owner.owns(link))?;
    let result = delete_together(host, &found, &owner.alias());
    if found.iter().any(|link| link.kind == Kind::Veth) {
        return result;
    }
    result.and(veth::remove_from_pod(host, owner, netns, interface))
}

/// Those of the links with these names that are wanted, asked for in one send.
///
/// # Errors
/// When the kernel refuses to tell.
pub(crate) fn links(
    host: &mut Socket,
    names: &[String],
    wanted: impl Fn(&Link) -> bool,
) -> Result<Vec<Link>, Error> {
    let batch: Batch = names.iter().map(link::look_up).collect();
    let mut found = Vec::new();
    let failures = host
        .run(&batch, |_, reply| {
            found.push(Link::from_reply(reply)?);
            Ok(())
        })
        .map_err(fault)?;
    match failures.into_iter().find(|failure| !failure.error.is_missing()) {
        Some(failure) => Err(fault(failure.error)),
        None => Ok(found.into_iter().filter(wanted).collect()),
    }
}

/// Deletes links for the price of one, by way of a group that holds nothing else. A link without a mark gets
/// `mark` on its way there, so that one that stays behind, should we be killed, is found again.
///
/// # Errors
/// When the kernel refuses; that one has gone by itself is none.
pub(crate) fn delete_together(host: &mut Socket, links: &[Link], mark: &str) -> Result<(), Error> {
    if let [] | [_] = links {
        return links.iter().try_for_each(|link| veth::delete(host, link.index));
    }
    let doomed = doomed_group(std::process::id());
    let mut batch: Batch = links
        .iter()
        .map(|link| {
            let alias = link.alias.is_none().then_some(mark);
            link::change(link.index, &Change { group: Some(doomed), alias, ..Change::default() })
        })
        .collect();
    batch.push(link::delete_group(doomed));
    let failures = host.run(&batch, |_, _| Ok(())).map_err(fault)?;
    match failures.into_iter().find(|failure| !failure.error.is_missing()) {
        Some(failure) => Err(fault(failure.error)),
        None => Ok(()),
    }
}

/// The group of the links that this process is about to delete. Its first byte is even, those of the networks'
/// groups are odd ([`Owner::group`]), so no standing link is in it; and should a process have been killed that
/// had the same number, what it left there was to be deleted too.
fn doomed_group(process: u32) -> u32 {
    0xfe00_0000 | process & 0x00ff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_networks_group_is_one_that_is_about_to_be_deleted() {
        for number in 0..1000 {
            assert_ne!(Owner::group(&format!("net{number}")) >> 24, doomed_group(number) >> 24);
        }
        assert_ne!(doomed_group(1), doomed_group(2));
        assert_eq!(doomed_group(u32::MAX) >> 24, 0xfe);
    }
}
