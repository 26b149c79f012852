//! `host-local`: addresses out of ranges, remembered in files on the node.

pub mod range;
