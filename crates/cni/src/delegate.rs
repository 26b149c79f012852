//! Handing a call on to another plugin: in this very process when the plugin is ours, as a process otherwise.
//!
//! A plugin calls [`add`] and its sisters with its own request; the delegate gets the same environment and the
//! same configuration. IPAM is the usual case: `delegate::add(&request.config.ipam_kind, &request)`.
//! A plugin that writes its delegate's configuration itself makes the request with [`Request::with_config`].
//!
//! Ours is a type that the request's resolver knows, unless CNI_PATH has another program's executable of that name:
//! an operator who installs another `host-local` gets that one.
//! Source: CNI specification section 4, "Plugin Delegation".

use std::borrow::Cow;
use std::path::PathBuf;

use crate::dispatch;
use crate::error::Error;
use crate::exec;
use crate::plugin::{Command, Plugin, Request, Resolver};
use crate::result::AddResult;
use crate::runtime_error::RuntimeError;

/// ADD at the plugin `kind`, whatever command the request carries.
///
/// # Errors
/// The delegate's own error, or why it cannot be called.
pub fn add(kind: &str, request: &Request) -> Result<AddResult, Error> {
    delegate(kind, request, Command::Add).map(Option::unwrap_or_default)
}

/// DEL at the plugin `kind`, whatever command the request carries: also to undo an ADD.
///
/// # Errors
/// The delegate's own error, or why it cannot be called.
pub fn del(kind: &str, request: &Request) -> Result<(), Error> {
    delegate(kind, request, Command::Del).map(drop)
}

/// CHECK at the plugin `kind`.
///
/// # Errors
/// The delegate's own error, or why it cannot be called.
pub fn check(kind: &str, request: &Request) -> Result<(), Error> {
    delegate(kind, request, Command::Check).map(drop)
}

/// GC at the plugin `kind`.
///
/// # Errors
/// The delegate's own error, or why it cannot be called.
pub fn gc(kind: &str, request: &Request) -> Result<(), Error> {
    delegate(kind, request, Command::Gc).map(drop)
}

/// STATUS at the plugin `kind`.
///
/// # Errors
/// The delegate's own error, or why it cannot be called.
pub fn status(kind: &str, request: &Request) -> Result<(), Error> {
    delegate(kind, request, Command::Status).map(drop)
}

fn delegate(kind: &str, request: &Request, command: Command) -> Result<Option<AddResult>, Error> {
    let request = match request.command == command {
        true => Cow::Borrowed(request),
        false => Cow::Owned(request.with_command(command)),
    };
    match locate(kind, &request.path, request.resolver)? {
        Place::Here(plugin) => dispatch::call(plugin, &request),
        Place::There(executable) => {
            let stdout = exec::run(kind, &executable, &request)?;
            read(&stdout, &request)
        }
    }
}

/// Where a plugin runs.
pub(crate) enum Place {
    /// In this process.
    Here(&'static dyn Plugin),
    /// As a process of this executable.
    There(PathBuf),
}

/// Decides where the plugin `kind` runs.
pub(crate) fn locate(
    kind: &str,
    path: &[PathBuf],
    resolver: Option<Resolver>,
) -> Result<Place, RuntimeError> {
    let ours = resolver.and_then(|resolve| resolve(kind));
    match (ours, exec::find(kind, path)) {
        (Some(plugin), Ok(executable)) if exec::is_this_program(&executable) => Ok(Place::Here(plugin)),
        (Some(plugin), Err(RuntimeError::PluginMissing { .. })) => Ok(Place::Here(plugin)),
        (_, found) => found.map(Place::There),
    }
}

/// The result in what a process printed, for the command that has one. A plugin may print nothing, or `null`.
pub(crate) fn read(stdout: &[u8], request: &Request) -> Result<Option<AddResult>, Error> {
    if request.command != Command::Add || matches!(stdout.trim_ascii(), b"" | b"null") {
        return Ok(None);
    }
    AddResult::decode(stdout, request.config.version).map(Some)
}

#[cfg(test)]
mod tests;
