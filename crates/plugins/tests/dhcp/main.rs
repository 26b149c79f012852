//! The `dhcp` plugin and its daemon: the real binary, in namespaces, with real servers (`dnsmasq`, ISC `dhcpd`)
//! that say in their logs what they were asked. The numbers in the comments are those of the behaviours in
//! `docs/conformance.md`; what both implementations are asked stands in `tests/conformance/tests/dhcp.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a failure here is a failure of the test, and tools are what it asserts with"
)]

mod chain;
mod daemon;
mod leases;
mod life;
mod scene;
mod v6;
