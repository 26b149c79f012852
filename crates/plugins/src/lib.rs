//! fairlead-cni: every CNI plugin in one static binary.
//!
//! The plugins are named after the reference's and take its configuration keys, so existing conflists work
//! unchanged. Each is one file below [`interface`] or [`ipam`], with a folder of the same name for its parts.

pub mod interface;
pub mod ipam;
