//! The cluster's state at rest: a directory of Kubernetes manifests.
//!
//! Read [`Directory`] first.
