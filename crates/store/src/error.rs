//! What can go wrong with the store as a whole. A single broken file is no error but a [`Problem`].

use std::io;
use std::path::PathBuf;

use cluster::Key;

use crate::{Problem, Version};

/// Why the store could not do what was asked.
///
/// [`Unavailable`](Self::Unavailable) may pass: keep working with what is known and try again when a watcher
/// says so. [`Conflict`](Self::Conflict) asks for a fresh look at the object. The others need a person.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The directory is not there, is no directory, or cannot be read.
    #[error("store directory {path} is not available (hint: create it, or correct --store dir:PATH)")]
    Unavailable {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The operating system refused something.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// Changes cannot be watched.
    #[error("cannot watch {path} for changes (hint: raise sysctl {limit})")]
    WatchLimit {
        /// The directory.
        path: PathBuf,
        /// The limit that is exhausted.
        limit: &'static str,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The object is not as the writer expected.
    #[error("{key} is not as expected: {}", found.map_or_else(|| "it is not there, or cannot be read".to_owned(), |version| format!("its version is {version}")))]
    Conflict {
        /// The object.
        key: Key,
        /// Its version now; none if it is not there or cannot be read.
        found: Option<Version>,
    },
    /// The object stands in a manifest that is not ours to change.
    #[error("{key} is given by {file}, which Fairlead does not write (hint: edit that file)")]
    Foreign {
        /// The object.
        key: Key,
        /// The manifest.
        file: PathBuf,
    },
    /// The object would not be readable again.
    #[error("cannot write {key}: {reason}")]
    Invalid {
        /// The object.
        key: Key,
        /// What is wrong with it.
        reason: String,
    },
    /// A manifest that was to be put into the store is not good.
    #[error("cannot take the manifest: {}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Manifest {
        /// All that is wrong with it.
        problems: Vec<Problem>,
    },
}
