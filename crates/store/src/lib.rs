//! The cluster's state at rest: a directory of Kubernetes manifests.
//!
//! Read [`Directory`] first: it lists the cluster, watches it, and writes single objects with compare-and-swap
//! between processes. Read [`Event`] next: what a watcher is told, and in which order.
//!
//! Anybody may put manifests anywhere below the directory, YAML or JSON, one or many objects a file. Fairlead
//! writes only below `fairlead/`, one object a file, atomically. What holds always:
//!
//! - A file is taken whole or not at all. One that cannot be read is a [`Problem`], and its last good version
//!   stays in force.
//! - A directory that goes away takes nothing with it: watchers keep what they know and say
//!   [`Event::Unavailable`].
//! - Of one object in two files, the file that comes first by path counts, and the other is a [`Problem`].
//!
//! This is the only crate that knows Kubernetes' forms of the objects.

mod catalog;
mod directory;
mod error;
mod files;
mod manifest;
mod own;
mod problem;
mod scan;
mod version;
mod watch;

pub use directory::{Claimed, Directory, Listing};
pub use error::Error;
pub use problem::Problem;
pub use version::{Expect, Version};
pub use watch::{Event, StopHandle, Watch};
