//! Plugins that give a pod an interface, and what they share: the cable ([`veth`]), the life of a single link
//! ([`child`], [`master`]), the pod's side of either ([`pod`]), the hardware address asked for ([`mac`]), waiting
//! for the kernel ([`patience`]), and telling of an interface in results ([`report`]).

pub mod bridge;
pub(crate) mod child;
pub mod dummy;
pub mod fairlead;
pub mod host_device;
pub mod ipvlan;
pub mod loopback;
pub(crate) mod mac;
pub mod macvlan;
pub(crate) mod master;
pub(crate) mod patience;
pub(crate) mod pod;
pub mod ptp;
pub(crate) mod report;
pub mod tap;
pub(crate) mod veth;
pub mod vlan;
