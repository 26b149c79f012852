//! `loopback`: the pod's own `lo`, set up.

use cni::{AddResult, Error, Plugin, Request};

/// The plugin.
#[derive(Debug)]
pub struct Loopback;

impl Plugin for Loopback {
    fn name(&self) -> &'static str {
        "loopback"
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        Ok(request.config.prev_result()?.unwrap_or_default())
    }

    fn del(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    fn check(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    /// Nothing of a pod's `lo` is ever outside the pod's namespace.
    fn gc(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }

    /// Every kernel has `lo`.
    fn status(&self, _: &Request) -> Result<(), Error> {
        Ok(())
    }
}
