//! Why host-local could not do what it was asked, and what the runtime should make of it.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use cni::Code;

use super::range::RangeError;

/// An ADD for an attachment that holds an address already.
const ALREADY_ATTACHED: Code = Code(110);

/// A CHECK that found other addresses than it was told.
const NOT_AS_RECORDED: Code = Code(111);

/// What can go wrong. [`Error::Exhausted`] and [`Error::NotAvailable`] may be gone at the next try, when
/// another pod has ended; a wrong range or request stays wrong; [`Error::File`] is the node's trouble.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The ranges are not usable.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// Every address of a set is taken.
    #[error("failed to allocate for range {index}: no IP addresses available in range set: {set}")]
    Exhausted {
        /// The set's place in the configuration, from 0.
        index: usize,
        /// Its ranges.
        set: String,
    },
    /// The attachment holds an address of this set.
    #[error(
        "failed to allocate for range {index}: {ip} has been allocated to {container_id}, \
         duplicate allocation is not allowed"
    )]
    Duplicate {
        /// The set's place in the configuration, from 0.
        index: usize,
        /// What it holds.
        ip: IpAddr,
        /// The attachment's container.
        container_id: String,
    },
    /// The gateway's address was asked for.
    #[error("failed to allocate for range {index}: requested ip {ip} is subnet's gateway")]
    IsGateway {
        /// The set's place in the configuration, from 0.
        index: usize,
        /// What was asked for.
        ip: IpAddr,
    },
    /// Another attachment has the address that was asked for.
    #[error(
        "failed to allocate for range {index}: requested IP address {ip} is not available in range set {set}"
    )]
    NotAvailable {
        /// The set's place in the configuration, from 0.
        index: usize,
        /// What was asked for.
        ip: IpAddr,
        /// The set's ranges.
        set: String,
    },
    /// Addresses were asked for that no set has, or a second one of a set.
    #[error("failed to allocate all requested IPs: {}", spaced(.0))]
    NotInRanges(Vec<IpAddr>),
    /// CHECK: the attachment holds nothing.
    #[error("host-local: failed to find address added by container {0}")]
    NothingHeld(String),
    /// CHECK: the result lists other addresses than the attachment holds.
    #[error("host-local: container {container_id} holds {}, but its result lists {}", spaced(.held), spaced(.listed))]
    Differs {
        /// The attachment's container.
        container_id: String,
        /// What the files say.
        held: Vec<IpAddr>,
        /// What prevResult says.
        listed: Vec<IpAddr>,
    },
    /// The node's file system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// Files could not be read or removed.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Files(Vec<FileError>),
}

impl From<Error> for cni::Error {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Range(_) | Error::IsGateway { .. } | Error::NotInRanges(_) => Code::INVALID_CONFIG,
            Error::Exhausted { .. } | Error::NotAvailable { .. } => Code::TRY_AGAIN,
            Error::Duplicate { .. } => ALREADY_ATTACHED,
            Error::NothingHeld(_) | Error::Differs { .. } => NOT_AS_RECORDED,
            Error::File(_) | Error::Files(_) => Code::IO_FAILURE,
        };
        Self::new(code, error.to_string())
    }
}

/// A step on a file that failed.
#[derive(Debug, thiserror::Error)]
#[error("host-local: could not {step} {}: {cause}", path.display())]
pub struct FileError {
    step: &'static str,
    path: PathBuf,
    cause: io::Error,
}

impl FileError {
    pub(super) fn new(step: &'static str, path: &Path, cause: impl Into<io::Error>) -> Self {
        Self { step, path: path.to_owned(), cause: cause.into() }
    }
}

fn spaced(ips: &[IpAddr]) -> String {
    if ips.is_empty() {
        return "none".to_owned();
    }
    ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ")
}
