//! What can go wrong between us and the kernel, written for the person on call.
//!
//! Read [`Error`] first. Callers mostly ask [`Error::is_missing`] (teardown: already gone is success),
//! [`Error::exists`] (creation lost a race) and [`Error::is_unsupported`] (kernel option missing). Retrying
//! helps for `Interrupted` and `Overrun` only.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::netlink::{Malformed, Purpose};

/// A failed conversation with the kernel. The errno decides what to do; the text is for people.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel understood the request and said no.
    #[error("{purpose}: {errno}{}{}", Detail(.detail), Hint(hint(.purpose, *.errno)))]
    Refused {
        /// What was asked for, on what.
        purpose: Purpose,
        /// The kernel's answer.
        errno: Errno,
        /// The kernel's explanation (extended acknowledgement), when it gave one.
        detail: Option<String>,
    },
    /// A socket, namespace or other descriptor could not be made or used.
    #[error("{tried}")]
    System {
        /// What was tried.
        tried: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file of the kernel could not be read or written.
    #[error("{tried} {path:?}")]
    File {
        /// What was tried: "read", "write", "open".
        tried: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The kernel dropped notifications because we read too slowly: what we know is stale, list everything.
    #[error("the kernel dropped netlink messages because they were read too slowly")]
    Overrun,
    /// The listing changed under us on every attempt. Try later.
    #[error("{purpose}: the listing changed while it was read, {attempts} times in a row")]
    Interrupted {
        /// What was being listed.
        purpose: Purpose,
        /// How often it was tried.
        attempts: usize,
    },
    /// The kernel's answer could not be decoded.
    #[error("{purpose}: the kernel's answer could not be understood: {malformed}")]
    Answer {
        /// What was asked for.
        purpose: Purpose,
        /// What was wrong with the answer.
        malformed: Malformed,
    },
    /// No answer came although the kernel took the request.
    #[error("{purpose}: the kernel did not answer")]
    Silence {
        /// What was asked for.
        purpose: Purpose,
    },
    /// A request does not fit: one attribute over 65,535 bytes, or a transaction over the send buffer.
    #[error(
        "{purpose}: the request is too large ({bytes} bytes){}",
        Hint(Some("split it, or raise net.core.wmem_max"))
    )]
    Oversized {
        /// What was asked for.
        purpose: Purpose,
        /// Size of the request.
        bytes: usize,
    },
    /// A namespace path that is not there. For teardown that is success.
    #[error("network namespace {path:?} does not exist")]
    NamespaceMissing {
        /// The path given.
        path: PathBuf,
    },
    /// A path that exists but leads to something else.
    #[error(
        "{path:?} is not a network namespace{}",
        Hint(Some("expected a path like /var/run/netns/NAME or /proc/PID/ns/net"))
    )]
    NotANamespace {
        /// The path given.
        path: PathBuf,
    },
}

impl Error {
    /// The kernel's errno, where there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::System { source, .. } | Self::File { source, .. } => Errno::from_io_error(source),
            Self::NamespaceMissing { .. } => Some(Errno::NOENT),
            Self::Overrun => Some(Errno::NOBUFS),
            _ => None,
        }
    }

    /// The object (or the thing it hangs on) is not there. Success for a deletion.
    pub fn is_missing(&self) -> bool {
        matches!(
            self.errno(),
            Some(Errno::NOENT | Errno::NODEV | Errno::NXIO | Errno::SRCH | Errno::ADDRNOTAVAIL)
        )
    }

    /// An object of this name is there already.
    pub fn exists(&self) -> bool {
        self.errno() == Some(Errno::EXIST)
    }

    /// Something has changed since the generation that the request was made for. Look again.
    pub fn is_outdated(&self) -> bool {
        self.errno() == Some(Errno::RESTART)
    }

    /// The kernel cannot do it at all: an option was not compiled in or a module is missing.
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self.errno(),
            Some(Errno::OPNOTSUPP | Errno::AFNOSUPPORT | Errno::PROTONOSUPPORT | Errno::NOSYS)
        )
    }

    /// The kernel's own explanation, when it gave one.
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Refused { detail, .. } => detail.as_deref(),
            _ => None,
        }
    }
}

/// What the errno usually means for this request.
fn hint(purpose: &Purpose, errno: Errno) -> Option<&'static str> {
    match errno {
        Errno::OPNOTSUPP | Errno::AFNOSUPPORT | Errno::PROTONOSUPPORT => Some(
            purpose.kernel_option().unwrap_or("the running kernel was built without the option for this"),
        ),
        // nf_tables finds its expressions and chain types by name: one it does not have is "not found".
        Errno::NOENT if matches!(purpose.operation(), "add rule" | "add chain") => purpose.kernel_option(),
        // So does the packet scheduler.
        Errno::NOENT if purpose.kernel_option().is_some_and(|option| option.contains("CONFIG_NET_")) => {
            purpose.kernel_option()
        }
        Errno::PERM | Errno::ACCESS => {
            Some("needs CAP_NET_ADMIN in the user namespace that owns this network namespace")
        }
        Errno::NOBUFS | Errno::NOMEM => {
            Some("the kernel is short of memory or a limit of net.core was reached")
        }
        _ => None,
    }
}

struct Detail<'a>(&'a Option<String>);

impl std::fmt::Display for Detail<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(text) => write!(formatter, ": {text}"),
            None => Ok(()),
        }
    }
}

struct Hint(Option<&'static str>);

impl std::fmt::Display for Hint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(text) => write!(formatter, "; hint: {text}"),
            None => Ok(()),
        }
    }
}
