//! `dhcp`: addresses leased from the network's own DHCP server, kept by a daemon.
//!
//! Read [`machine`] first: the shape of the two clients, DHCPv4 and DHCPv6, which know neither sockets nor
//! clocks. The daemon (`fairlead-cni dhcp daemon`) holds one of them for each family of each attachment,
//! carries their packets, and applies what changes in the pods' namespaces.
//!
//! The codecs are our own: the crate at hand (`dhcproto`) brings a whole DNS library along, which this
//! binary has no room for.

#![allow(dead_code, reason = "the daemon and the plugin are not built yet")]

pub(crate) mod client;
pub(crate) mod config;
pub(crate) mod machine;
pub(crate) mod place;
pub(crate) mod v4;
pub mod v6;
pub(crate) mod wire;
