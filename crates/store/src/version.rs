//! Versions of objects, by which writers notice each other.

use std::fmt;

use sha2::{Digest, Sha256};

/// A version of an object: a digest of its content, so that the same content is the same version in every
/// process and after every restart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version([u8; 16]);

/// What a writer expects to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Nothing: the object is to be created.
    Absent,
    /// This version: nobody changed the object since it was read.
    Version(Version),
    /// Whatever is there.
    Any,
}

impl Version {
    pub(crate) fn of(content: &[u8]) -> Self {
        let digest = Sha256::digest(content);
        let mut version = [0; 16];
        for (to, from) in version.iter_mut().zip(digest) {
            *to = from;
        }
        Self(version)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}
