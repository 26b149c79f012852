//! A cluster on one machine, from namespaces.
//!
//! Read [`Lab`] first: it is what a client can do with a lab. Then `supervisor.rs`, the process that *is* the
//! lab: it holds the namespaces of the nodes and pods as open descriptors, starts an agent in each node, and
//! stands in for the parts of Kubernetes that are missing: it places pods on nodes, runs the CNI chain for
//! them, writes their addresses back, keeps EndpointSlices, and answers on the ports that pods declare.
//!
//! What stays true:
//! - The machine's own network is never touched: the first thing a supervisor does is to leave it.
//! - Nothing outlives the supervisor but files: namespaces hang on its descriptors, agents die with it. A lab
//!   whose supervisor was killed is cleaned by removing its directory.
//! - The store directory is the only way in: what is not a manifest there is not in the cluster.
//! - No polling: every thread waits for its own descriptor and sends what it hears to one loop that decides.
//!
//! ```
//! let error = lab::Lab::open("never-started").expect_err("nobody has started it");
//! assert!(error.to_string().starts_with("lab never-started is not up"));
//! ```

mod answer;
mod client;
mod control;
mod endpoints;
mod error;
mod home;
mod listing;
mod manifests;
mod placement;
mod probe;
mod supervisor;

pub use client::{Ender, Lab, UpOptions};
pub use control::{Part, Progress};
pub use error::{Error, Result};
pub use home::{Home, NodeHome, check_name};
pub use listing::{ListedNode, ListedPod, Listing};
pub use manifests::Manifest;
pub use probe::{Probe, ProbedPod, Reach, Throughput};
pub use supervisor::{Options, supervise};
