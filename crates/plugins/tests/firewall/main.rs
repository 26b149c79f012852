//! The `firewall` plugin beyond what the reference can be asked (behaviour 61): our own table, its owners, GC,
//! the administrator's chain, and a kill or a failure at every step. Judged by `nft`, `iptables` and `ping`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a failure here is a failure of the test, and tools are what it asserts with"
)]

mod crash;
mod policy;
mod removal;
mod scene;
