//! What an ADD has made so far, to be taken away again if the rest of it fails.
//!
//! Read [`Undo`] first. Steps are noted as they are done and undone in the opposite order; a failure while
//! undoing joins the error that caused it, and does not stop the rest. What all pods share (the bridge, its
//! addresses, nf_tables rules, sysctls) is not undone: another pod may be using it already.

use cni::{Error, Request, delegate};
use ipnet::IpNet;
use kernel::netlink::Socket;
use kernel::nft::Nft;

use crate::fault::fault;
use crate::interface::veth;
use crate::owner::Owner;
use crate::{macspoof, masquerade};

/// One thing that an ADD has made for its pod alone.
#[derive(Debug)]
pub(crate) enum Made {
    /// A link, by index; its other end goes with it.
    Link(u32),
    /// Addresses of the network's own address plugin.
    Addresses,
    /// An address among the masqueraded ones.
    Masqueraded(IpNet),
    /// The hardware address filter.
    SpoofCheck,
}

/// The notes of one ADD.
#[derive(Debug)]
pub(crate) struct Undo<'a> {
    request: &'a Request,
    owner: &'a Owner,
    made: Vec<Made>,
}

impl<'a> Undo<'a> {
    /// Nothing made yet. `request` is the call to make at the address plugin.
    pub(crate) fn new(request: &'a Request, owner: &'a Owner) -> Self {
        Self { request, owner, made: Vec::new() }
    }

    /// Notes what is about to be made or has just been made.
    pub(crate) fn note(&mut self, made: Made) {
        self.made.push(made);
    }

    /// Undoes everything, last first, and returns the error that the ADD fails with.
    pub(crate) fn back(self, host: &mut Socket, cause: Error) -> Error {
        let mut error = cause;
        for made in self.made.into_iter().rev() {
            let undone = match made {
                Made::Link(index) => veth::delete(host, index),
                Made::Addresses => delegate::del(&self.request.config.ipam_kind, self.request),
                Made::Masqueraded(address) => nft(|nft| masquerade::remove(nft, self.owner, address)),
                Made::SpoofCheck => nft(|nft| macspoof::remove(nft, self.owner)),
            };
            if let Err(failure) = undone {
                error.message = format!("{}; undoing it: {}", error.message, failure.message);
            }
        }
        error
    }
}

fn nft(work: impl FnOnce(&mut Nft) -> Result<(), kernel::Error>) -> Result<(), Error> {
    Nft::open().and_then(|mut nft| work(&mut nft)).map_err(fault)
}
