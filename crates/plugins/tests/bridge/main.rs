//! The `bridge` plugin, as a runtime sees it: the real binary in namespaces, judged by `ip`, `bridge`, `nft`
//! and `ping`. The numbers in the comments are those of the behaviours every implementation must show
//! (`docs/conformance.md` lists them); VLANs are in `tests/vlan.rs`, which also runs in a virtual machine.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a failure here is a failure of the test, and tools are what it asserts with"
)]

mod check;
mod crash;
mod filter;
mod garbage;
mod scene;
mod teardown;
mod wiring;
