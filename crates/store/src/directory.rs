//! A directory of manifests as a store: list, watch, write with compare-and-swap.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cluster::{Key, Object, Snapshot};
use ipnet::IpNet;

use crate::{Error, Expect, Problem, Version, Watch};

/// A directory of manifests. Holds nothing open; every call looks at the disk, any number of processes may
/// use one directory.
#[derive(Debug, Clone)]
pub struct Directory {
    path: PathBuf,
}

/// Everything in the directory at one time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// The objects.
    pub snapshot: Snapshot,
    /// The version of each.
    pub versions: BTreeMap<Key, Version>,
    /// What could not be taken as it stands, in the order of the files.
    pub problems: Vec<Problem>,
}

/// What came of asking for a pod CIDR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// The node holds it, from now on or since earlier.
    Granted,
    /// Another node holds it or a part of it.
    Held {
        /// What the other node holds: the CIDR asked for, or one that overlaps it.
        cidr: IpNet,
        /// The other node.
        node: String,
    },
}

impl Directory {
    /// The store in the directory `path`, which must be there.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it is not.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        Ok(Self { path: path.into() })
    }

    /// The store in the directory `path`, which may be away for now: a watcher will say when it is there.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Everything in it. Broken files are told in the listing.
    ///
    /// # Errors
    /// [`Error::Unavailable`], or the directory itself cannot be read.
    pub fn list(&self) -> Result<Listing, Error> {
        todo!()
    }

    /// Everything in it, and then every change; see [`Event`](crate::Event). Works also while it is away.
    ///
    /// # Errors
    /// The kernel's limits on watching are exhausted.
    pub fn watch(&self) -> Result<Watch, Error> {
        todo!()
    }

    /// One object and its version, if it is there.
    ///
    /// # Errors
    /// [`Error::Unavailable`], or it cannot be read.
    pub fn read(&self, key: &Key) -> Result<Option<(Object, Version)>, Error> {
        let _ = key;
        todo!()
    }

    /// Writes one object to a file of our own, if the store holds what the writer expects. Of any number of
    /// processes that write the same object at once, with [`Expect::Absent`] or one and the same version,
    /// exactly one succeeds. Returns the new version.
    ///
    /// # Errors
    /// [`Error::Conflict`] if it holds something else; [`Error::Foreign`] if a manifest that is not ours holds
    /// the object; [`Error::Invalid`] if it has an impossible name; [`Error::Unavailable`]; the disk's.
    pub fn write(&self, object: &Object, expect: Expect) -> Result<Version, Error> {
        let _ = (object, expect);
        todo!()
    }

    /// Removes one object of our own. True if it was there; nothing there is success unless a version was
    /// expected.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub fn delete(&self, key: &Key, expect: Expect) -> Result<bool, Error> {
        let _ = (key, expect);
        todo!()
    }

    /// Takes the pod CIDR `cidr` for `node`, unless another node holds it or one that overlaps it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a CIDR with host bits or an impossible node name; [`Error::Unavailable`]; the disk's.
    pub fn claim(&self, cidr: IpNet, node: &str) -> Result<Claimed, Error> {
        let _ = (cidr, node);
        todo!()
    }

    /// Gives `cidr` back, if `node` holds it. True if it did.
    ///
    /// # Errors
    /// [`Error::Unavailable`]; the disk's.
    pub fn release(&self, cidr: IpNet, node: &str) -> Result<bool, Error> {
        let _ = (cidr, node);
        todo!()
    }

    /// Puts a manifest into the directory, whole or not at all, under a file name such as `guestbook.yaml`
    /// that replaces an earlier one. Only a manifest that parses is taken.
    ///
    /// # Errors
    /// [`Error::Manifest`] with all that is wrong; [`Error::Unavailable`]; the disk's.
    pub fn install(&self, name: &str, manifest: &[u8]) -> Result<(), Error> {
        let _ = (name, manifest);
        todo!()
    }
}
