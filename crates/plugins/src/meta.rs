//! Plugins that change what earlier plugins of the chain made, and what they share.
//!
//! Read [`previous`] first: each of them takes the result so far and passes it on. None of them makes an
//! interface or asks for an address.

pub mod bandwidth;
mod changes;
pub mod firewall;
mod lock;
pub mod portmap;
pub mod route_override;
pub mod sbr;
pub mod tuning;
pub mod vrf;

use cni::{AddResult, Error, IpConfig, Request};

/// The result of the plugins before this one.
///
/// # Errors
/// Code 7 when there is none: a plugin of this folder cannot stand first in a chain.
pub(crate) fn previous(request: &Request) -> Result<AddResult, Error> {
    request.config.prev_result()?.ok_or_else(|| {
        let name = &request.config.kind;
        Error::invalid_config(format!("{name}: must be called as chained plugin: prevResult is missing"))
            .with_details("hint: put it into the list of plugins after the one that makes the interface")
    })
}

/// The addresses of the result that sit on the pod's interface. One that does not say where it sits, or points
/// outside the list of interfaces, counts.
pub(crate) fn addresses<'a>(result: &'a AddResult, ifname: &'a str) -> impl Iterator<Item = &'a IpConfig> {
    result.ips.iter().filter(move |ip| result.interface_of(ip).is_none_or(|link| link.name == ifname))
}
