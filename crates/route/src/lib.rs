//! Node to node: which links, routes, neighbours and masquerade join this node with the others.
//!
//! Read [`vxlan::design`] first: it turns the cluster and one node's lease into the wanted
//! [`netstate::State`] of that node. Around it stand the decisions a lease is made of: [`choose_underlay`] (which
//! of the host's links and addresses), [`vxlan_mtu`] (how large a packet), [`choose_pod_cidr`] (which addresses
//! for its pods), and [`overlaps`], which refuses networks that collide with the host's own.
//!
//! Pure: values in, values out; no kernel, no clock, no disk. The same inputs give the same state, and the whole
//! state is computed every time.
//!
//! ```
//! use route::{Family, vxlan, vxlan_mtu};
//!
//! assert_eq!(vxlan_mtu("eth0", 1500, Family::V4, &Family::ALL)?, 1450);
//! assert_eq!(vxlan::tunnel_mac("node1"), vxlan::tunnel_mac("node1"));
//! # Ok::<(), route::MtuError>(())
//! ```

mod allocate;
mod family;
mod host;
mod masquerade;
mod mtu;
mod overlap;
mod retain;
#[cfg(test)]
mod testing;
mod underlay;
pub mod vxlan;

pub use allocate::{AllocateError, Request, Taken, choose as choose_pod_cidr};
pub use family::Family;
pub use host::{Host, HostAddress, HostLink, HostRoute};
pub use masquerade::{TABLE as MASQUERADE_TABLE, table as masquerade};
pub use mtu::{MtuError, smallest as smallest_mtu, vxlan as vxlan_mtu, vxlan_overhead};
pub use overlap::{Networks, Overlap, conflicts as overlaps};
pub use retain::{Retained, Retention, retained};
pub use underlay::{Underlay, UnderlayError, Wish, choose as choose_underlay};
