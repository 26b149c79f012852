//! Plugins that give a pod an interface, and what they share: the cable ([`veth`]) the pod's side of it
//! ([`pod`]) and waiting for either ([`patience`]).

pub mod bridge;
pub mod fairlead;
pub mod loopback;
pub(crate) mod patience;
pub(crate) mod pod;
pub(crate) mod veth;
