//! What is written down on this host about who is attached, read into a value, and whom of them a GC has to spare.
//!
//! Read [`Records::living`]: it decides, and touches nothing. Two kinds of record are read: the cache of results that
//! runtimes keep, and host-local's files with an address and its holder each.

use std::net::IpAddr;
use std::path::Path;

use cni::{Attachment, Cache, Error, Version};

use super::Living;
use crate::ipam::host_local::{self, Reserved};

/// All records.
#[derive(Debug, Default, Clone)]
pub(super) struct Records {
    /// The results that runtimes keep.
    pub(super) cached: Vec<Cached>,
    /// The addresses that host-local gave.
    pub(super) reserved: Vec<Reserved>,
}

/// One result.
#[derive(Debug, Clone)]
pub(super) struct Cached {
    /// The name of its file.
    pub(super) name: String,
    /// Network and attachment, unless it is of the format that does not say.
    pub(super) whose: Option<(String, Attachment)>,
    /// The addresses, if the result was kept.
    pub(super) addresses: Option<Vec<IpAddr>>,
}

impl Cached {
    fn is_of(&self, network: &str, attachment: &Attachment) -> bool {
        match &self.whose {
            Some((named, of)) => named == network && of == attachment,
            None => self.name == format!("{network}-{}-{}", attachment.container_id, attachment.ifname),
        }
    }
}

impl Records {
    /// Reads them.
    ///
    /// # Errors
    /// When one cannot be read or understood.
    pub(super) fn read(cache: &Cache, networks: &Path) -> Result<Self, Error> {
        let mut cached = Vec::new();
        for (name, found) in cache.all()? {
            let unusable = |error: Error| error.context(format!("cached result {name}"));
            let result = found.result(Version::UNSAID).map_err(unusable)?;
            let addresses = result.map(|result| result.ips.iter().map(|ip| ip.address.addr()).collect());
            let attachment = found.attachment();
            let is_said = !attachment.container_id.is_empty();
            let whose = is_said.then_some((found.network, attachment));
            cached.push(Cached { name, whose, addresses });
        }
        let reserved = host_local::every_reserved(networks).map_err(host_local::Error::from)?;
        Ok(Self { cached, reserved })
    }

    /// Whom a GC of `network` has to spare whose list is `valid`; `None` when the cache lacks one of these.
    pub(super) fn living(&self, network: &str, valid: &[Attachment]) -> Option<Living> {
        let kept =
            |attachment: &Attachment| self.cached.iter().any(|cached| cached.is_of(network, attachment));
        if !valid.iter().all(kept) {
            return None;
        }
        let mut living = Living { is_vouched_for: !valid.is_empty(), ..Living::default() };
        for attachment in valid {
            living.add(attachment, Some(&[]));
        }
        for cached in &self.cached {
            let addresses = cached.addresses.as_deref();
            match &cached.whose {
                Some((of, attachment)) if of == network && !valid.contains(attachment) => {}
                Some((_, attachment)) => living.add(attachment, addresses),
                None => {
                    living.unsaid.push(cached.name.clone());
                    living.addresses.extend(addresses.unwrap_or_default());
                }
            }
        }
        for reserved in &self.reserved {
            let is_valid = |holder: &Attachment| {
                // Very old files name no interface.
                let same = |of: &Attachment| holder.ifname.is_empty() || holder.ifname == of.ifname;
                valid.iter().any(|of| of.container_id == holder.container_id && same(of))
            };
            match &reserved.holder {
                Some(holder) if reserved.network == network && !is_valid(holder) => {}
                Some(holder) => living.add(holder, Some(&[reserved.address])),
                // Somebody is about to write his name there.
                None => drop(living.addresses.insert(reserved.address)),
            }
        }
        Some(living)
    }
}
