//! The `bandwidth` plugin behind our own interface plugins, as a runtime runs the chain: the real binaries in
//! namespaces, judged by `tc`, `ip`, `nft` and `iperf3`. What it does to a veth of anybody's is asked in
//! `tests/conformance`, of the reference too.
//!
//! Read [`scene::Scene`] first. The number 60 in comments is that of the behaviour in `docs/conformance.md`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a failure here is a failure of the test, and tools are what it asserts with"
)]

mod chain;
mod crash;
mod limits;
mod scene;
