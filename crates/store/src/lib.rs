//! The cluster's state at rest: the Kubernetes API, etcd, or a directory of Kubernetes manifests.
//!
//! Read [`Store`] first: it lists the cluster, watches it, and writes single objects with compare-and-swap between
//! processes. Read [`Event`] next: what a watcher is told, and in which order. Then one of the stores,
//! [`Kubernetes`], [`Etcd`] or [`Directory`]; [`Location`] opens each. What holds always:
//!
//! - Nothing is taken away because a list failed, or because the store is away: watchers keep what they know and
//!   say [`Event::Unavailable`].
//! - What cannot be read is a [`Problem`], and its last good version stays in force.
//! - A store that came back without what it had has lost it; nobody removed it, so it stays in force.
//!
//! In a directory anybody may put manifests anywhere, YAML or JSON, one or many objects a file. A file is taken
//! whole or not at all; of one object in two files, the file that comes first by path counts, and the other is a
//! [`Problem`]. Fairlead writes only below `fairlead/`, one object a file, atomically. In the Kubernetes API a node's
//! lease is an annotation of its Node object, and a claim is a Lease object (`coordination.k8s.io`). In etcd each object is
//! a key. How a node fares is
//! told the other way, from the agent to those who look after the cluster: see [`Report`] and [`Notice`].
//!
//! This is the only crate that knows Kubernetes' forms of the objects, and the only one that speaks HTTP.

mod backoff;
mod catalog;
mod directory;
mod error;
pub mod etcd;
mod files;
mod flannel;
mod kubernetes;
mod location;
mod manifest;
mod mirror;
mod overlap;
mod own;
mod problem;
mod report;
mod runtime;
mod scan;
mod share;
mod store;
mod transport;
mod version;
mod watch;

pub use directory::Directory;
pub use error::Error;
pub use etcd::Etcd;
pub use kubernetes::{Kubernetes, read_list};
pub use location::Location;
pub use problem::Problem;
pub use report::{Notice, Report};
pub use store::{Claimed, Events, Listing, Store};
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
