//! `bridge`: pods plugged into a bridge of their host, with every key of the reference plugin.
//!
//! Read [`Bridge`] first, then the life of an attachment: [`add`], `check`, [`teardown`]. The parts beside them:
//! `config` (what is asked for), `device` (the bridge), `gateway` (the gateway of a VLAN), `vlan` (the VLANs of
//! a port); shared with other plugins are the cable ([`super::veth`]) and the pod's side ([`super::pod`]).
//!
//! What stays true: a configuration is checked whole before anything is touched; an ADD that fails leaves
//! nothing; DEL and GC need neither the namespace nor the bridge nor a previous result, and go on after a
//! failure. Masquerading and the hardware address filter are nf_tables elements of ours, whatever backend the
//! configuration names.
//! Sources: the reference plugin's documented keys and observed behaviour; CNI specification 1.1.0, section 2.

mod add;
mod check;
pub(crate) mod config;
mod device;
mod gateway;
mod teardown;
mod vlan;

use std::net::IpAddr;

use cni::{AddResult, Code, Error, Plugin, Request, delegate};
use kernel::netlink::{Protocol, Socket};
use kernel::nft::Nft;

use crate::fault::fault;
use config::BridgeConfig;

const NAME: &str = "bridge";

/// The plugin.
#[derive(Debug)]
pub struct Bridge;

impl Plugin for Bridge {
    fn name(&self) -> &'static str {
        NAME
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        add_when(request, &mut |_| Ok(()))
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        teardown::del(request)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        check::check(request)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        teardown::gc(request)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        ready(request).map_err(|error| match error.code {
            Code::LIMITED => error,
            _ => Error { code: Code::NOT_READY, ..error },
        })
    }
}

/// ADD for a pod that can send only when `ready` says so of its addresses.
pub(super) fn add_when(
    request: &Request,
    ready: &mut dyn FnMut(Vec<IpAddr>) -> Result<(), Error>,
) -> Result<AddResult, Error> {
    add::add(request, ready)
}

/// Whether an ADD would get what it needs.
fn ready(request: &Request) -> Result<(), Error> {
    let config = BridgeConfig::of(request)?;
    let mut host = Socket::open(Protocol::Route).map_err(fault)?;
    device::check_name(&mut host, &config)?;
    if config.masquerade || config.spoof_check {
        let tables = Nft::open().and_then(|mut nft| nft.tables());
        tables.map_err(|error| fault(error).context("ipMasq and macspoofchk need nf_tables"))?;
    }
    match request.config.ipam_kind.as_str() {
        "" => Ok(()),
        kind => delegate::status(kind, request),
    }
}
