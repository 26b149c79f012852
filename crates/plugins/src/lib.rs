//! fairlead-cni: every CNI plugin in one static binary.
//!
//! Read [`find`] first: it is the list of the plugins. Each is one file below [`interface`], [`ipam`] or [`meta`],
//! with a folder of the same name for its parts; [`run()`] is the process around the one that is asked for.
//!
//! They take the names and configuration keys of the reference plugins, so existing conflists work
//! unchanged, and they need nothing that runs: no agent, no tool, no child process.
//!
//! ```
//! let plugin = plugins::find("host-local").expect("it is in the list");
//! assert_eq!(plugin.name(), "host-local");
//! assert!(plugins::find("no-such-plugin").is_none());
//! ```

mod attachment;
mod fault;
mod forwarding;
pub mod install;
pub mod interface;
pub mod ipam;
mod living;
mod macspoof;
mod masquerade;
pub mod meta;
mod owner;
mod reference;
pub mod removal;
mod run;
pub mod stale;
#[cfg(test)]
mod testing;
mod undo;

use cni::Plugin;

pub use run::{run, selected};

/// Every plugin in this binary. There is no other registration.
pub static PLUGINS: &[&dyn Plugin] = &[
    &interface::bridge::Bridge,
    &interface::dummy::Dummy,
    &interface::fairlead::Fairlead,
    &interface::host_device::HostDevice,
    &interface::ipvlan::Ipvlan,
    &interface::loopback::Loopback,
    &interface::macvlan::Macvlan,
    &interface::ptp::Ptp,
    &interface::tap::Tap,
    &interface::vlan::Vlan,
    &ipam::dhcp::Dhcp,
    &ipam::host_local::HostLocal,
    &ipam::static_addresses::Static,
    &meta::bandwidth::Bandwidth,
    &meta::firewall::Firewall,
    &meta::portmap::Portmap,
    &meta::route_override::RouteOverride,
    &meta::sbr::Sbr,
    &meta::tuning::Tuning,
    &meta::vrf::Vrf,
];

/// The plugin of this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static dyn Plugin> {
    PLUGINS.iter().copied().find(|plugin| plugin.name() == name)
}
