//! Plugins that give a pod its addresses. Interface plugins call them in process where they can.

pub mod dhcp;
pub mod host_local;
pub mod static_addresses;
