//! What every store must do, as one suite that each store runs.
//!
//! Read [`suite::Subject`] first: it is all that the suite knows of a store. A new store implements it in a file
//! beside `contract/directory.rs` and lists the same tests.

// Tests end by panicking, and one of them starts itself as another process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods)]

#[path = "contract/suite.rs"]
mod suite;

#[path = "contract/directory.rs"]
mod directory;

#[path = "contract/etcd.rs"]
mod etcd;

#[path = "contract/kubernetes.rs"]
mod kubernetes;

#[path = "contract/flannel.rs"]
mod flannel;

#[path = "contract/report.rs"]
mod report;

#[path = "contract/rights.rs"]
mod rights;

#[path = "contract/api.rs"]
mod api;

#[path = "contract/definition.rs"]
mod definition;

#[path = "contract/flannel_etcd.rs"]
mod flannel_etcd;
