//! The `portmap` plugin, as a runtime sees it: the real binary after `bridge` in namespaces, judged by real
//! connections, `nft` and `conntrack`. The numbers in the comments are those of the behaviours every implementation
//! must show (`docs/conformance.md` lists them); SCTP is in `tests/portmap_sctp.rs`, which also runs in a virtual
//! machine.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a failure here is a failure of the test, and tools are what it asserts with"
)]

mod answers;
mod conditions;
mod crash;
mod owners;
mod rules;
mod scene;
