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
mod share;
mod version;
mod watch;

pub use directory::{Claimed, Directory, Listing};
pub use error::Error;
pub use problem::Problem;
pub use version::{Expect, Version};
pub use watch::{Event, StopHandle, Watch};

use std::path::Path;

use cluster::Object;

/// The objects of one manifest, or all that is wrong with it, told of a file `name`. Unlike a store, this does
/// not ask whether Fairlead's own kinds stand where they belong.
///
/// ```
/// let good = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\napiVersion: v1\nkind: Secret\n";
/// assert_eq!(store::read_manifest("shop.yaml", good.as_bytes()).unwrap().len(), 1);
/// let problems = store::read_manifest("shop.yaml", good.replace("shop", "Shop").as_bytes()).unwrap_err();
/// assert!(problems[0].to_string().starts_with("shop.yaml:3:18: Namespace Shop: metadata.name"));
/// ```
///
/// # Errors
/// Every fault that was found, never none.
pub fn read_manifest(name: impl AsRef<Path>, manifest: &[u8]) -> Result<Vec<Object>, Vec<Problem>> {
    let name = name.as_ref();
    match manifest::parse(manifest) {
        Ok(placed) => Ok(placed.into_iter().map(|placed| placed.object).collect()),
        Err(faults) => Err(faults.into_iter().map(|fault| Problem::of(name.to_owned(), fault)).collect()),
    }
}

/// The object as a manifest, in Kubernetes' JSON; the same object gives the same bytes.
pub fn write_manifest(object: &Object) -> Vec<u8> {
    manifest::encode(object)
}
