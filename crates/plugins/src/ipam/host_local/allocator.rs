//! Giving addresses out, taking them back, and answering for them: host-local as a library.
//!
//! Read [`Allocator`] first. Interface plugins call it in process with a [`Pool`] they made themselves; the
//! plugin in `host_local.rs` calls it with what the configuration says.
//!
//! What stays true: an allocation gives one address from each set or nothing at all; everything that can be
//! refused is refused before the first address is taken; and giving back never fails because there is
//! nothing to give back.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use cni::{Attachment, IpConfig};

use super::error::{Error, FileError};
use super::files::{Claim, Files, Survey, View};
use super::range::{Pool, RangeSet};

/// The addresses of one network on this node.
///
/// ```
/// use plugins::ipam::host_local::{Allocator, Pool, release};
///
/// let directory = tempfile::tempdir()?;
/// let subnets = ["10.244.1.0/24".parse()?, "fd00:10:244:1::/64".parse()?];
/// let allocator = Allocator::new(directory.path(), "fairlead", Pool::of_subnets(&subnets)?);
/// let pod = cni::Attachment { container_id: "0a1b".into(), ifname: "eth0".into() };
/// let ips = allocator.allocate(&pod, &[])?;
/// assert_eq!(ips[0].address.to_string(), "10.244.1.2/24");
/// assert_eq!(ips[1].address.to_string(), "fd00:10:244:1::2/64");
/// release(directory.path(), "fairlead", &pod)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocator {
    data_dir: PathBuf,
    network: String,
    pool: Pool,
}

impl Allocator {
    /// The allocator that keeps its files in `<data_dir>/<network>`; touches nothing yet. The name must be
    /// one that [`cni::Config`] accepts.
    pub fn new(data_dir: impl Into<PathBuf>, network: impl Into<String>, pool: Pool) -> Self {
        Self { data_dir: data_dir.into(), network: network.into(), pool }
    }

    /// What may be given out.
    #[must_use]
    pub const fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Gives `attachment` one address from each set: one of `requested` where the set has it, otherwise the
    /// next one that is free.
    ///
    /// # Errors
    /// A request that cannot be met, a set without a free address, an attachment that holds an address
    /// already, or the file system. In each case nothing has been given out.
    pub fn allocate(&self, attachment: &Attachment, requested: &[IpAddr]) -> Result<Vec<IpConfig>, Error> {
        let wishes = self.wishes(requested)?;
        let mut files = Files::create(&self.data_dir, &self.network)?;
        let held = self.refuse_second(&mut files, attachment, &wishes)?;
        let claim = files.claim(attachment)?;
        let mut taken = Vec::with_capacity(wishes.len());
        for (index, wish) in wishes.into_iter().enumerate() {
            match self.take(&mut files, &claim, index, wish) {
                Ok(ip) => taken.push(ip),
                Err(error) => {
                    let error = undo(&mut files, &taken, error);
                    files.remember(attachment, &held);
                    files.finish();
                    return Err(error);
                }
            }
        }
        files.remember(attachment, &[held.as_slice(), &taken].concat());
        files.finish();
        Ok(taken.into_iter().filter_map(|ip| self.configured(ip)).collect())
    }

    /// Verifies that `attachment` holds an address and, if the result of its ADD is known, that it holds
    /// exactly those addresses of the result that belong to these ranges.
    ///
    /// # Errors
    /// It holds nothing, or something else; or the file system.
    pub fn check(&self, attachment: &Attachment, listed: Option<&[IpAddr]>) -> Result<(), Error> {
        let container_id = attachment.container_id.clone();
        let Some(mut files) = Files::open(&self.data_dir, &self.network)? else {
            return Err(Error::NothingHeld(container_id));
        };
        let mut held = files.held_by(attachment)?;
        files.finish();
        if held.is_empty() {
            return Err(Error::NothingHeld(container_id));
        }
        let Some(listed) = listed else { return Ok(()) };
        let mut listed: Vec<IpAddr> = listed.iter().copied().filter(|ip| self.pool.contains(*ip)).collect();
        held.retain(|ip| self.pool.contains(*ip));
        listed.sort_unstable();
        held.sort_unstable();
        if held == listed { Ok(()) } else { Err(Error::Differs { container_id, held, listed }) }
    }

    /// Whether an allocation would succeed now. Changes nothing and waits for nobody.
    ///
    /// # Errors
    /// A set without a free address, or files that could not be written.
    pub fn status(&self) -> Result<(), Error> {
        View::may_write(&self.data_dir, &self.network)?;
        let Some(view) = View::open(&self.data_dir, &self.network)? else { return Ok(()) };
        for (index, set) in self.pool.sets().iter().enumerate() {
            if !view.any_free(self.pool.candidates(index, view.last(index)))? {
                return Err(Error::Exhausted { index, set: set.to_string() });
            }
        }
        Ok(())
    }

    /// What is asked of each set: its first among `requested`.
    fn wishes(&self, requested: &[IpAddr]) -> Result<Vec<Option<IpAddr>>, Error> {
        let mut left: Vec<IpAddr> = Vec::with_capacity(requested.len());
        for ip in requested {
            if !left.contains(ip) {
                left.push(*ip);
            }
        }
        let mut wish = |(index, set): (usize, &RangeSet)| {
            let Some(place) = left.iter().position(|ip| set.range_of(*ip).is_some()) else { return Ok(None) };
            let ip = left.remove(place);
            if self.pool.is_gateway(ip) { Err(Error::IsGateway { index, ip }) } else { Ok(Some(ip)) }
        };
        let wishes = self.pool.sets().iter().enumerate().map(&mut wish).collect::<Result<_, _>>()?;
        if left.is_empty() { Ok(wishes) } else { Err(Error::NotInRanges(left)) }
    }

    /// What the attachment holds outside these sets. Inside one, it may hold nothing yet.
    fn refuse_second(
        &self,
        files: &mut Files,
        attachment: &Attachment,
        wishes: &[Option<IpAddr>],
    ) -> Result<Vec<IpAddr>, Error> {
        let held = files.held_by(attachment)?;
        for (index, (set, wish)) in self.pool.sets().iter().zip(wishes).enumerate() {
            // The very address it asks for: the reference finds that taken before it looks who has it.
            if let Some(ip) = wish.filter(|ip| held.contains(ip)) {
                return Err(Error::NotAvailable { index, ip, set: set.to_string() });
            }
            let Some(ip) = held.iter().copied().find(|ip| set.range_of(*ip).is_some()) else { continue };
            return Err(Error::Duplicate { index, ip, container_id: attachment.container_id.clone() });
        }
        Ok(held)
    }

    fn take(
        &self,
        files: &mut Files,
        claim: &Claim,
        index: usize,
        wish: Option<IpAddr>,
    ) -> Result<IpAddr, Error> {
        let set = &self.pool.sets()[index];
        let last = files.last(index)?;
        let taken = match wish {
            Some(ip) if files.take(claim, ip)? => ip,
            Some(ip) => return Err(Error::NotAvailable { index, ip, set: set.to_string() }),
            None => match files.take_first(claim, self.pool.candidates(index, last.address()))? {
                Some(ip) => ip,
                None => return Err(Error::Exhausted { index, set: set.to_string() }),
            },
        };
        match last.note(taken) {
            Ok(()) => Ok(taken),
            Err(error) => Err(undo(files, &[taken], error.into())),
        }
    }

    fn configured(&self, ip: IpAddr) -> Option<IpConfig> {
        let range = self.pool.sets().iter().find_map(|set| set.range_of(ip))?;
        Some(IpConfig { gateway: Some(range.gateway()), ..IpConfig::new(range.with_prefix(ip)) })
    }
}

/// Gives back everything `attachment` holds in `<data_dir>/<network>`, whatever the ranges are now, and says what
/// that was.
///
/// # Errors
/// Every file that could not be read or removed; all others have been. That nothing is held is none.
pub fn release(data_dir: &Path, network: &str, attachment: &Attachment) -> Result<Vec<IpAddr>, Error> {
    let Some(mut files) = Files::open(data_dir, network)? else { return Ok(Vec::new()) };
    let (released, failures) = files.release(attachment)?;
    files.finish();
    if failures.is_empty() { Ok(released) } else { Err(Error::Files(failures)) }
}

/// Gives back what in `<data_dir>/<network>` no attachment in `valid` holds, and says what that was. An address noted for a
/// container alone, as very old plugins did, is kept while any interface of the container is valid.
///
/// # Errors
/// Every file that could not be read or removed; all others have been.
pub fn collect(data_dir: &Path, network: &str, valid: &[Attachment]) -> Result<Vec<IpAddr>, Error> {
    let Some(mut files) = Files::open(data_dir, network)? else { return Ok(Vec::new()) };
    let attachments: HashSet<&Attachment> = valid.iter().collect();
    let containers: HashSet<&str> = valid.iter().map(|valid| valid.container_id.as_str()).collect();
    let stays = |holder: &Attachment| {
        let noted_alone = holder.ifname.is_empty() && containers.contains(holder.container_id.as_str());
        noted_alone || attachments.contains(holder)
    };
    let Survey { held, mut failures } = files.survey()?;
    let mut released = Vec::new();
    for (ip, holder) in held.into_iter().filter(|(_, holder)| !stays(holder)) {
        match files.remove(ip) {
            Ok(()) => {
                files.forget(&holder);
                released.push(ip);
            }
            Err(error) => failures.push(error),
        }
    }
    files.finish();
    if failures.is_empty() { Ok(released) } else { Err(Error::Files(failures)) }
}

/// Gives back what was taken before `error` came.
fn undo(files: &mut Files, taken: &[IpAddr], error: Error) -> Error {
    let failures: Vec<FileError> = taken.iter().filter_map(|ip| files.remove(*ip).err()).collect();
    if failures.is_empty() { error } else { Error::Files(failures) }
}
