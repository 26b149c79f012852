//! `host-local`: addresses out of ranges, remembered in files on the node.
//!
//! Read [`Allocator`] first: it is the whole of it as a library, for plugins in this binary that bring their
//! own ranges. [`HostLocal`] is the plugin around it, which takes them from the `ipam` section.
//!
//! It takes the reference plugin's keys and shares its files, so either may run at any time. What it does
//! beyond the reference: GC and STATUS are real, CHECK compares addresses, a killed ADD loses no address,
//! and nothing takes longer because there are many pods.
//! Sources: the reference plugin's documented keys and observed behaviour; CNI specification sections 2 and 4.

mod allocator;
mod config;
mod error;
mod files;
mod hints;
mod range;
mod resolv;

use std::net::IpAddr;

use cni::{AddResult, Dns, Error as CniError, Plugin, Request};

pub use allocator::{Allocator, collect, release};
pub use config::{DATA_DIR, Settings};
pub use error::{Error, FileError};
pub(crate) use files::{Reserved, every_reserved};
pub(crate) use hints::FOLDER as INDEX;
pub use range::{Pool, Range, RangeError, RangeSet, RangeSpec};
pub use resolv::parse as parse_resolv_conf;

/// The plugin.
#[derive(Debug)]
pub struct HostLocal;

impl Plugin for HostLocal {
    fn name(&self) -> &'static str {
        "host-local"
    }

    fn add(&self, request: &Request) -> Result<AddResult, CniError> {
        let settings = Settings::of(&request.config)?;
        let wishes = config::wishes(request)?;
        let dns = dns_of(&settings)?;
        let ips = allocator(request, &settings).allocate(&request.attachment(), &wishes)?;
        Ok(AddResult { ips, routes: settings.routes, dns, ..AddResult::default() })
    }

    fn del(&self, request: &Request) -> Result<(), CniError> {
        // Ranges play no part, so even ranges that are wrong by now do not keep an address from coming back.
        let data_dir = config::data_dir(&request.config)?;
        release(&data_dir, &request.config.name, &request.attachment())?;
        Ok(())
    }

    fn check(&self, request: &Request) -> Result<(), CniError> {
        let settings = Settings::of(&request.config)?;
        let listed = request.config.prev_result()?.map(|result| addresses(&result));
        Ok(allocator(request, &settings).check(&request.attachment(), listed.as_deref())?)
    }

    fn gc(&self, request: &Request) -> Result<(), CniError> {
        let data_dir = config::data_dir(&request.config)?;
        let Some(valid) = &request.config.valid_attachments else {
            return Err(CniError::invalid_config(
                "cni.dev/valid-attachments: missing, so nothing is removed",
            ));
        };
        collect(&data_dir, &request.config.name, valid)?;
        Ok(())
    }

    fn status(&self, request: &Request) -> Result<(), CniError> {
        let ready = || -> Result<(), CniError> {
            let settings = Settings::of(&request.config)?;
            dns_of(&settings)?;
            Ok(allocator(request, &settings).status()?)
        };
        ready().map_err(|error| CniError { code: cni::Code::NOT_READY, ..error })
    }
}

fn allocator(request: &Request, settings: &Settings) -> Allocator {
    Allocator::new(&settings.data_dir, &request.config.name, settings.pool.clone())
}

fn dns_of(settings: &Settings) -> Result<Dns, CniError> {
    let Some(path) = &settings.resolv_conf else { return Ok(Dns::default()) };
    match std::fs::read(path) {
        Ok(text) => Ok(resolv::parse(&String::from_utf8_lossy(&text))),
        Err(cause) => Err(Error::File(FileError::new("read", path, cause)).into()),
    }
}

fn addresses(result: &AddResult) -> Vec<IpAddr> {
    result.ips.iter().map(|ip| ip.address.addr()).collect()
}
