//! Handing a call on to another plugin: in this very process when the plugin is ours, as a process otherwise.
//!
//! A plugin calls [`add`] and its sisters with its own request; the delegate gets the same environment and the
//! same configuration. IPAM is the usual case: `delegate::add(&request.config.ipam_kind, &request)`.
//! A plugin that writes its delegate's configuration itself makes the request with [`Request::with_config`].
//! Source: CNI specification section 4, "Plugin Delegation".

use crate::error::Error;
use crate::plugin::Request;
use crate::result::AddResult;

/// ADD at the plugin `kind`, whatever command the request carries.
///
/// # Errors
/// The delegate's own error, or why it cannot be called.
pub fn add(kind: &str, request: &Request) -> Result<AddResult, Error> {
    let _ = (kind, request);
    Err(Error::internal("delegation is being built"))
}

/// DEL at the plugin `kind`, whatever command the request carries: also to undo an ADD.
///
/// # Errors
/// The delegate's own error, or why it cannot be called.
pub fn del(kind: &str, request: &Request) -> Result<(), Error> {
    add(kind, request).map(drop)
}

/// CHECK at the plugin `kind`.
///
/// # Errors
/// The delegate's own error, or why it cannot be called.
pub fn check(kind: &str, request: &Request) -> Result<(), Error> {
    add(kind, request).map(drop)
}

/// GC at the plugin `kind`.
///
/// # Errors
/// The delegate's own error, or why it cannot be called.
pub fn gc(kind: &str, request: &Request) -> Result<(), Error> {
    add(kind, request).map(drop)
}

/// STATUS at the plugin `kind`.
///
/// # Errors
/// The delegate's own error, or why it cannot be called.
pub fn status(kind: &str, request: &Request) -> Result<(), Error> {
    add(kind, request).map(drop)
}
