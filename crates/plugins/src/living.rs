//! Who is alive on this host: whose the traces of the reference may be that do not say whose they are.
//!
//! Read [`Living`] first. A GC is told the valid attachments of its own network and nothing of any other, but some of
//! what the reference plugins leave names no network: a rule only an address, a file only a container. Such a trace
//! goes when nobody alive can have it, and that is asked of everyone who may know:
//!
//! - the records ([`Records`]): the runtimes' cache of results and host-local's files, of every network. Of the
//!   network that the GC is about only the valid ones count: its list says more than what was forgotten there.
//! - the kernel: an address that our own `firewall` lets pass, or that an interface has in any namespace of this
//!   machine, is somebody's; so is a container whose processes run. A runtime may keep its cache elsewhere, and its
//!   pods still live.
//!
//! What stays true: every source only ever adds someone who is alive. One that cannot be read, or says what is not
//! understood, may hide anybody, so it is an error, and nothing is removed that depends on it. The cache is taken for
//! the runtime's only if every valid attachment is in it; if one is not, nothing is removed, and that is no error.
//! Whoever asks has looked at his traces *before*: an ADD leaves them after its address, so whoever left one in the
//! meantime cannot be missed. Nothing of this is on the way of an ADD or a DEL.

mod records;

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;

use cni::{Attachment, Cache, Error, Request};
use kernel::machine;
use kernel::nft::Nft;

use crate::fault::fault;
use crate::ipam::host_local;
use crate::meta::firewall;
use records::Records;

/// What an error here means for whoever reads it.
const SO_IT_STAYS: &str = "what the reference plugins left cannot be told from what is in use, so it stays";

/// Everyone on this host who is attached to a network, as far as a GC of one network has to spare them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Living {
    addresses: HashSet<IpAddr>,
    containers: HashSet<String>,
    /// Containers of which an attachment is known, but not what addresses it has.
    without_addresses: HashSet<String>,
    /// The names of records that do not say whose they are: `<network>-<containerID>-<ifname>`.
    unsaid: Vec<String>,
    /// Somebody is valid, and all who are stand in the cache.
    is_vouched_for: bool,
}

impl Living {
    /// Those whom the GC of `request` has to spare; `None` when a valid attachment is missing in the cache, which
    /// then is not the runtime's, or not all of it.
    ///
    /// # Errors
    /// When something that may name one of them cannot be read or understood.
    pub(crate) fn of(request: &Request) -> Result<Option<Self>, Error> {
        let cache = Cache::new(Cache::DEFAULT_DIRECTORY);
        let records = Records::read(&cache, Path::new(host_local::DATA_DIR));
        let records = records.map_err(|error| error.context(SO_IT_STAYS))?;
        Ok(records.living(&request.config.name, request.valid_attachments()))
    }

    /// Those of the addresses that nobody has.
    ///
    /// # Errors
    /// When there is a namespace that cannot be looked into.
    pub(crate) fn nobodys(&self, nft: &mut Nft, mut addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, Error> {
        let untold = |error| fault(error).context(SO_IT_STAYS);
        let admitted = firewall::every_address(nft).map_err(untold)?;
        addresses.retain(|address| !self.addresses.contains(address) && !admitted.contains(address));
        if addresses.is_empty() {
            return Ok(addresses);
        }
        let in_use = machine::addresses_in_use(&addresses).map_err(untold)?;
        addresses.retain(|address| !in_use.contains(address));
        Ok(addresses)
    }

    /// Whether some attachment of this container has addresses that are not known here.
    pub(crate) fn may_have_any_address(&self, container_id: &str) -> bool {
        self.without_addresses.contains(container_id)
    }

    /// Those of the texts `<containerID>_<ifname>` of which the container is nobody's. With nobody valid to vouch
    /// for the cache there are none: nothing in the kernel tells of every container.
    ///
    /// # Errors
    /// When there is a process that cannot be looked at.
    pub(crate) fn nobodys_containers(&self, mut texts: Vec<String>) -> Result<Vec<String>, Error> {
        if !self.is_vouched_for {
            return Ok(Vec::new());
        }
        texts.retain(|text| !self.may_name(text));
        if texts.is_empty() {
            return Ok(texts);
        }
        for process in machine::processes().map_err(|error| fault(error).context(SO_IT_STAYS))? {
            let path = process.join("cgroup");
            match std::fs::read(&path) {
                Ok(groups) => {
                    // Whoever may make a control group names it with any bytes; an id is of letters and digits.
                    let groups = String::from_utf8_lossy(&groups);
                    texts.retain(|text| !readings(text).any(|(container, _)| mentions(&groups, container)));
                }
                Err(cause) if machine::is_gone(&cause) => {}
                Err(cause) => {
                    let failure = Error::io(format!("read {}: {cause}", path.display()));
                    return Err(failure.context(SO_IT_STAYS));
                }
            }
        }
        Ok(texts)
    }

    /// Whether `<containerID>_<ifname>` can be read so that the container is one of the living.
    fn may_name(&self, text: &str) -> bool {
        readings(text).any(|(container, ifname)| {
            let ending = format!("-{container}-{ifname}");
            self.containers.contains(container) || self.unsaid.iter().any(|name| name.ends_with(&ending))
        })
    }

    fn add(&mut self, attachment: &Attachment, addresses: Option<&[IpAddr]>) {
        self.containers.insert(attachment.container_id.clone());
        match addresses {
            Some(addresses) => self.addresses.extend(addresses),
            None => drop(self.without_addresses.insert(attachment.container_id.clone())),
        }
    }
}

/// The ways to read `<containerID>_<ifname>`: both may have a `_` in them.
fn readings(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.match_indices('_')
        .map(|(at, _)| (&text[..at], &text[at + 1..]))
        .filter(|(container, ifname)| !container.is_empty() && !ifname.is_empty())
}

/// Whether the control groups of a process name this container: its id stands there, and not as a part of another.
fn mentions(groups: &str, container: &str) -> bool {
    groups.match_indices(container).any(|(at, _)| {
        let ends = [groups[..at].chars().next_back(), groups[at + container.len()..].chars().next()];
        !ends.into_iter().flatten().any(char::is_alphanumeric)
    })
}

#[cfg(test)]
mod tests;
