//! `host-device`: a device of the host, lent to a pod.
//!
//! Read [`HostDevice`] first, then `selector` (which device is meant), `sysfs` (where the kernel tells what is
//! behind an address on a bus) and `passage` (the way into the pod and home again). The rest is the common life of
//! [`super::child`]. A device that a program drives past the kernel (DPDK) is no link: it is not moved, and the
//! result only names it.
//!
//! What stays true: the device is somebody's hardware, and is never lost. While it is in a pod, its alias is the
//! name that it had on the host, from before it leaves until it is home; every failure and every kill in between
//! leaves it where DEL finds it. DEL needs neither the namespace nor a configuration that names a device.
//! Sources: the reference plugin's documented keys and observed behaviour; for the moves, `net/core/dev.c` and
//! `net/core/rtnetlink.c` of Linux 6.18.

mod passage;
mod selector;
mod sysfs;

use std::cell::OnceCell;

use cni::{AddResult, Error, Interface, Plugin, Request, delegate};
use kernel::link::Link;
use kernel::netlink::{Protocol, Socket};

use super::child::{self, Addresses, Child, Site, Terms};
use super::report::Previous;
use crate::attachment;
use crate::fault::{Failures, fault};
use crate::interface::pod::Pod;

use selector::{Device, Selector};

const NAME: &str = "host-device";

/// The plugin.
#[derive(Debug)]
pub struct HostDevice;

impl Plugin for HostDevice {
    fn name(&self) -> &'static str {
        NAME
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let (terms, selector) = (terms(request)?, Selector::required(request)?);
        let address = selector.pci_address().map(str::to_owned);
        let mut result = match selector.device()? {
            Device::Link(_) => {
                child::add(request, &Lent { selector: Some(selector), before: OnceCell::new() }, &terms)
            }
            Device::OutsideTheKernel => add_without_link(request, &terms),
        }?;
        for interface in &mut result.interfaces {
            interface.pci_id = address.clone().unwrap_or_default();
        }
        Ok(result)
    }

    /// Whatever the configuration says now: an address on a bus that is gone, or no device at all.
    fn del(&self, request: &Request) -> Result<(), Error> {
        child::take_away(request, child::address_plugin(&request.config), &mut || return_device(request))
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let terms = terms(request)?;
        match Selector::of(request)? {
            Some(selector) if selector.device().is_ok_and(|device| device == Device::OutsideTheKernel) => {
                Previous::of(request)?.interface(request)?;
                match request.config.ipam_kind.as_str() {
                    "" => Ok(()),
                    kind => delegate::check(kind, request),
                }
            }
            selector => child::check(request, &Lent { selector, before: OnceCell::new() }, &terms),
        }
    }

    /// A device whose pod has gone was brought home by the kernel, under the pod's name for it. It gets its own
    /// back if the configuration tells it from others.
    fn gc(&self, request: &Request) -> Result<(), Error> {
        attachment::valid(request)?;
        let mut failures = Failures::default();
        if let Some(mut host) = failures.note_kernel(Socket::open(Protocol::Route)) {
            failures.note(passage::rename_returned(&mut host, request));
        }
        failures.note(child::gc(request));
        failures.into_result()
    }

    /// A device that is in a pod now is no fault: that is what it is for.
    fn status(&self, request: &Request) -> Result<(), Error> {
        child::status(request, Selector::of(request).and_then(|_| terms(request)))
    }
}

/// Whoever is on the device's network may have the addresses.
fn terms(request: &Request) -> Result<Terms, Error> {
    let detect_duplicates = child::detects_duplicates(request)?;
    Ok(Terms { addresses: Addresses::optional(request)?, detect_duplicates })
}

/// A device on its way into a pod, or in it.
struct Lent {
    /// Which one; a CHECK can do without.
    selector: Option<Selector>,
    /// What it was on the host.
    before: OnceCell<Link>,
}

impl Child for Lent {
    fn make(&self, site: &mut Site<'_>) -> Result<Link, Error> {
        let Some(selector) = &self.selector else { return Err(selector::nothing_selected()) };
        let device = selector.find(&mut site.host)?;
        passage::lend(site, self.before.get_or_init(|| device))
    }

    fn unmake(&self, site: &mut Site<'_>, link: &Link) -> Result<(), Error> {
        passage::give_back(&mut site.host, &mut site.pod, link)?;
        self.before.get().map_or(Ok(()), |device| passage::restore(&mut site.host, device))
    }

    fn difference(&self, _: &mut Site<'_>, link: &Link) -> Result<Option<String>, Error> {
        let lost = passage::name_at_home(link).is_none();
        let lost =
            lost.then(|| format!("the name that {} had on the host is not its alias any more", link.name));
        Ok(lost)
    }
}

/// DEL's part of it: home from the pod, or renamed where the kernel has brought it home already.
fn return_device(request: &Request) -> Result<(), Error> {
    let mut host = Socket::open(Protocol::Route).map_err(fault)?;
    if let Some(mut pod) = Pod::open_if_there(request.netns.as_deref())?
        && let Some(link) = passage::lent_to(&mut host, &mut pod, request)?
    {
        return passage::give_back(&mut host, &mut pod, &link);
    }
    passage::rename_returned(&mut host, request)
}

/// ADD for a device that is no link: addresses, and a result that names the interface.
fn add_without_link(request: &Request, terms: &Terms) -> Result<AddResult, Error> {
    Pod::open(request.netns()?)?;
    let mut result = child::addresses(request, &terms.addresses).map_err(|cause| {
        match child::take_away(request, child::address_plugin(&request.config), &mut || Ok(())) {
            Ok(()) => cause,
            Err(failure) => child::undone_badly(cause, &failure),
        }
    })?;
    let sandbox = request.netns()?.to_string_lossy().into_owned();
    result.interfaces = vec![Interface { name: request.ifname.clone(), sandbox, ..Interface::default() }];
    Ok(result)
}
