//! What goes wrong on the runtime's side: loading lists, finding and starting plugins, keeping results.
//!
//! [`RuntimeError`] is for callers of `ConfList`, `Runner`, `Cache` and `exec`. A plugin's own failure is in it
//! as [`RuntimeError::Plugin`], with the code that the plugin gave: 11 says try again, everything else waits for a
//! change. Causes are in the text.

use std::path::{Path, PathBuf};

use crate::error::{Code, Error};
use crate::plugin::Command;
use crate::version::Version;

/// A failure of the runtime's side of the protocol.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The directory has no configuration at all.
    #[error("no net configurations found in {}", .directory.display())]
    NoConfiguration {
        /// Where was looked.
        directory: PathBuf,
    },
    /// The directory has configurations, but none of this network.
    #[error("no net configuration with name {name:?} in {}", .directory.display())]
    NoSuchNetwork {
        /// The network's name.
        name: String,
        /// Where was looked.
        directory: PathBuf,
    },
    /// A file or directory cannot be read.
    #[error("cannot read {}: {cause}", .path.display())]
    Unreadable {
        /// What was to be read.
        path: PathBuf,
        /// Why it cannot be.
        cause: std::io::Error,
    },
    /// A configuration cannot be used.
    #[error("{}: {reason}", .source_name.display())]
    BadConfiguration {
        /// The file it came from.
        source_name: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The argument of a call is malformed: container id, interface name.
    #[error("{0}")]
    BadArgument(Error),
    /// A plugin's type is no file name.
    #[error("invalid plugin name {kind:?}: must be a file name")]
    BadPluginName {
        /// The type.
        kind: String,
    },
    /// No directory has the plugin.
    #[error("failed to find plugin {kind:?} in path {path:?}")]
    PluginMissing {
        /// The plugin's type.
        kind: String,
        /// The directories that were searched.
        path: Vec<PathBuf>,
    },
    /// The plugin's executable cannot be run.
    #[error("cannot run {}: {cause}", .executable.display())]
    Start {
        /// The executable.
        executable: PathBuf,
        /// Why it cannot be.
        cause: std::io::Error,
    },
    /// A plugin says that it failed.
    #[error("plugin {kind} failed ({command}): {error}")]
    Plugin {
        /// The plugin's type.
        kind: String,
        /// What it was asked.
        command: Command,
        /// What it answered.
        error: Error,
    },
    /// The list's version has no such command.
    #[error("network {network:?}: configuration version {version} does not allow {command}")]
    VersionTooOld {
        /// The network's name.
        network: String,
        /// The version selected from the list.
        version: Version,
        /// What was asked.
        command: Command,
    },
    /// A file of the cache cannot be written, read or removed.
    #[error("cannot {action} cached result {}: {cause}", .path.display())]
    Cache {
        /// What was tried: write, read, remove.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        cause: std::io::Error,
    },
    /// A file of the cache has something in it that is no cached result.
    #[error("cached result {} cannot be used: {reason}", .path.display())]
    BadCache {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// CHECK needs the result of ADD, and there is none.
    #[error(
        "network {network:?}: no cached result for container {container_id} interface {ifname}; hint: CHECK follows an ADD with the same cache directory"
    )]
    NeverAdded {
        /// The network's name.
        network: String,
        /// The container's id.
        container_id: String,
        /// The interface's name.
        ifname: String,
    },
    /// Several failures of an action that went on after each.
    #[error("{}", join(.0))]
    Several(Vec<Self>),
}

impl RuntimeError {
    /// None, one, or several failures.
    pub(crate) fn join(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Several(errors)),
        }
    }

    pub(crate) fn unreadable(path: &Path, cause: std::io::Error) -> Self {
        Self::Unreadable { path: path.to_owned(), cause }
    }

    pub(crate) fn bad_configuration(source_name: &Path, reason: impl std::fmt::Display) -> Self {
        Self::BadConfiguration { source_name: source_name.to_owned(), reason: reason.to_string() }
    }

    /// The code that fits: a plugin's own where a plugin failed.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Plugin { error, .. } | Self::BadArgument(error) => error.code,
            Self::VersionTooOld { .. } => Code::INCOMPATIBLE_VERSION,
            Self::NoConfiguration { .. }
            | Self::NoSuchNetwork { .. }
            | Self::BadConfiguration { .. }
            | Self::BadPluginName { .. } => Code::INVALID_CONFIG,
            Self::Unreadable { .. } | Self::Cache { .. } | Self::Start { .. } => Code::IO_FAILURE,
            Self::Several(errors) => errors.first().map_or(Code::INTERNAL, Self::code),
            Self::PluginMissing { .. } | Self::BadCache { .. } | Self::NeverAdded { .. } => Code::INTERNAL,
        }
    }
}

/// For a plugin that passes on its delegate's failure: the delegate's own error, or why there is none.
impl From<RuntimeError> for Error {
    fn from(failure: RuntimeError) -> Self {
        let code = failure.code();
        match failure {
            RuntimeError::Plugin { kind, error, .. } => error.context(format_args!("plugin {kind}")),
            RuntimeError::BadArgument(error) => error,
            other => Self::new(code, other.to_string()),
        }
    }
}

fn join(errors: &[RuntimeError]) -> String {
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    texts.join("; ")
}
