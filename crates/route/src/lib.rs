//! Node to node: which links, routes, neighbours and masquerade join this node with the others.
//!
//! Read [`design()`] first: it turns the cluster and one node's lease into the wanted [`netstate::State`] of that node.
//! Around it stand the decisions a lease is made of: [`choose_underlay`] (which of the host's links and addresses),
//! [`pod_mtu`] (how large a packet), [`choose_pod_cidr`] (which addresses for its pods) and [`retained`] (which of
//! before; [`Supply`] says how many are left), and [`overlaps`] and [`service_overlaps`], which refuse networks that collide with the
//! host's own or Services'.
//!
//! Pure: values in, values out; no kernel, no clock, no disk. The same inputs give the same state, and the whole
//! state is computed every time.
//!
//! ```
//! use cluster::Backend;
//! use route::{Family, pod_mtu, vxlan};
//!
//! assert_eq!(pod_mtu(&Backend::HostGw, "eth0", 1500, Family::V4, &Family::ALL)?, 1500);
//! assert_eq!(vxlan::tunnel_mac("node1"), vxlan::tunnel_mac("node1"));
//! # Ok::<(), route::MtuError>(())
//! ```

mod allocate;
mod amend;
mod antispoof;
mod by_family;
mod carried;
mod design;
mod family;
mod host;
mod host_gw;
mod kernel_tunnel;
mod keys;
mod masquerade;
mod mtu;
mod overlap;
mod peers;
mod problem;
mod retain;
mod senders;
mod supply;
#[cfg(test)]
mod testing;
mod tunnel;
mod tunnel_guard;
mod underlay;
pub mod vxlan;

pub use allocate::{AllocateError, Request, Taken, choose as choose_pod_cidr};
pub use amend::{Amendment, Basis, amend};
pub use by_family::ByFamily;
pub use design::{Design, Inputs, Path, UNREACHABLE_METRIC, VxlanSettings, design, guard};
pub use family::Family;
pub use host::{Host, HostAddress, HostLink, HostRoute};
pub use kernel_tunnel::InKernel;
pub use masquerade::{Masquerade, TABLE as MASQUERADE_TABLE, table as masquerade};
pub use mtu::{MtuError, pods as pod_mtu, smallest as smallest_mtu, vxlan_overhead};
pub use overlap::{
    Networks, Overlap, ServiceOverlap, conflicts as overlaps, service_conflicts as service_overlaps,
};
pub use peers::Way;
pub use problem::Problem;
pub use retain::{Retained, Retention, retained};
pub use senders::Senders;
pub use supply::{Shortage, Supply, pod_addresses, pod_cidrs};
pub use tunnel::{TunnelDesign, TunnelKind, TunnelPeer};
pub use underlay::{Reached, Underlay, UnderlayError, Wish, choose as choose_underlay};
