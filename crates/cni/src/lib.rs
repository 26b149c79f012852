//! The CNI protocol: configuration, results, errors, the plugin process, the chain runner and its cache.
//!
//! Read [`Plugin`] first: it is what a plugin implements, and [`Request`] what it is given. Then, a plugin's side:
//! [`serve`](serve()) is the process around a plugin, [`Config`] and [`Fields`] how it reads its configuration, [`AddResult`]
//! what ADD returns, [`Error`] how it fails, [`delegate`] how it calls another plugin.
//! No async, no clock, no unsafe. Only `serve`, `exec`, `conflist` and `cache` touch the world.
//!
//! Covers the CNI specification 1.1.0 and every version before it; where the specification and the reference
//! library differ, the file concerned says whom it follows.
//!
//! ```
//! use cni::{AddResult, Error, IpConfig, Plugin, Request};
//!
//! /// Hands out one address, whoever asks.
//! struct Generous;
//!
//! impl Plugin for Generous {
//!     fn name(&self) -> &'static str {
//!         "generous"
//!     }
//!     fn add(&self, request: &Request) -> Result<AddResult, Error> {
//!         let address = request.config.ipam()?.parse("address")?;
//!         let address = address.ok_or_else(|| Error::invalid_config("ipam.address: missing"))?;
//!         Ok(AddResult { ips: vec![IpConfig::new(address)], ..AddResult::default() })
//!     }
//!     fn del(&self, _: &Request) -> Result<(), Error> {
//!         Ok(())
//!     }
//!     fn check(&self, _: &Request) -> Result<(), Error> {
//!         Ok(())
//!     }
//!     fn gc(&self, _: &Request) -> Result<(), Error> {
//!         Ok(())
//!     }
//!     fn status(&self, _: &Request) -> Result<(), Error> {
//!         Ok(())
//!     }
//! }
//! ```

mod cache;
mod chain;
mod config;
mod conflist;
pub mod delegate;
mod dispatch;
mod environment;
mod error;
pub mod exec;
mod json;
mod plugin;
mod result;
mod runtime_error;
mod serve;
#[cfg(test)]
mod tests;
mod version;

pub use cache::{Cache, CachedAttachment};
pub use chain::{Runner, RuntimeArguments};
pub use config::{Attachment, Config, validate_network_name};
pub use conflist::{ConfList, PluginConf};
pub use environment::{Arguments, Environment, validate_container_id, validate_interface_name};
pub use error::{Code, Error};
pub use json::{FieldError, Fields, Item, Json, SyntaxError};
pub use plugin::{Command, Plugin, Request, Resolver};
pub use result::{AddResult, Dns, Interface, IpConfig, Route};
pub use runtime_error::RuntimeError;
pub use serve::{Process, serve};
pub use version::{UnknownVersion, Version};
