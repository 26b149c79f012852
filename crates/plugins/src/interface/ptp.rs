//! `ptp`: each pod on a cable of its own, with the gateway's address on the host's end.
//!
//! Read [`Ptp`] first, then `add` (which also says what the pod gets) and `check`; an attachment's removal is the
//! same for every cable ([`attachment`]). The gateway may be the same on every cable: host and pod find each
//! other by routes, and there is nothing between two pods that either could disturb.
//!
//! What stays true: a configuration is checked whole before anything is touched; an ADD that fails leaves
//! nothing; DEL and GC need neither the namespace nor a previous result, and go on after a failure.
//! Sources: the reference plugin's documented keys and observed routes; CNI specification 1.1.0, section 2.

mod add;
mod check;
mod config;

use cni::{AddResult, Code, Error, Plugin, Request, delegate};
use kernel::netlink::{Protocol, Socket};
use kernel::nft::Nft;

use crate::attachment;
use crate::fault::fault;
use config::PtpConfig;

const NAME: &str = "ptp";

/// The plugin.
#[derive(Debug)]
pub struct Ptp;

impl Plugin for Ptp {
    fn name(&self) -> &'static str {
        NAME
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        add::add(request)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        attachment::remove(request, config::address_plugin(&request.config), |_| Ok(()))
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        check::check(request)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        attachment::collect(request, config::address_plugin(&request.config), |_| Ok(()))
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        ready(request).map_err(|error| match error.code {
            Code::LIMITED => error,
            _ => Error { code: Code::NOT_READY, ..error },
        })
    }
}

/// Whether an ADD would get what it needs.
fn ready(request: &Request) -> Result<(), Error> {
    let config = PtpConfig::of(request)?;
    Socket::open(Protocol::Route).map_err(fault)?;
    if config.masquerade {
        let tables = Nft::open().and_then(|mut nft| nft.tables());
        tables.map_err(|error| fault(error).context("ipMasq needs nf_tables"))?;
    }
    delegate::status(&request.config.ipam_kind, request)
}
