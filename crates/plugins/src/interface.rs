//! Plugins that give a pod an interface.

pub mod loopback;
