//! `dummy`: a link that leads nowhere, for addresses that have to be on some link.
//!
//! [`Dummy`] is all of it; the rest is the common life of [`super::child`]. It has no keys of its own, and without
//! addresses it would be of no use, so it must have an address plugin.

use cni::{AddResult, Error, Plugin, Request};
use kernel::link::{Link, NewKind};
use kernel::netlink::{Protocol, Socket};

use super::child::{self, Addresses, Child, New, Site, Terms};
use crate::fault::fault;

const NAME: &str = "dummy";

/// The plugin.
#[derive(Debug)]
pub struct Dummy;

impl Plugin for Dummy {
    fn name(&self) -> &'static str {
        NAME
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        child::add(request, self, &terms(request)?)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        child::del(request, NAME)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        child::check(request, self, &terms(request)?)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        child::gc(request)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        child::status(request, ready(request))
    }
}

/// Nobody else is on the network of a dummy, so nobody can have its addresses.
fn terms(request: &Request) -> Result<Terms, Error> {
    Ok(Terms { addresses: Addresses::required(request)?, detect_duplicates: false })
}

fn ready(request: &Request) -> Result<Terms, Error> {
    let terms = terms(request)?;
    let mut host = Socket::open(Protocol::Route).map_err(fault)?;
    child::require_kind(&mut host, NAME, "CONFIG_DUMMY")?;
    Ok(terms)
}

impl Child for Dummy {
    fn make(&self, site: &mut Site<'_>) -> Result<Link, Error> {
        let new = New { kind: NewKind::Plain(NAME), mtu: None, mac: None };
        Ok(site.make(&new, true)?)
    }

    fn difference(&self, _: &mut Site<'_>, link: &Link) -> Result<Option<String>, Error> {
        let differs = link.kind.name() != Some(NAME);
        Ok(differs.then(|| format!("{} in the pod is no longer a dummy", link.name)))
    }
}
