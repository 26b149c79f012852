//! Agents as processes in namespaces: two or three nodes on a bridge, a directory, a real API server or a real etcd for a store,
//! and outside tools to look with. The numbers in names are those of the project's list of scenarios for node-to-node networking (docs/scenarios.md).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test that cannot go on has failed, and tools are what it asserts with"
)]

mod alone;
mod backends;
mod beside_kube_proxy;
mod chaos;
mod cleaning;
mod clear_text;
mod encryption;
mod etcd;
mod flannel;
mod flannel_etcd;
mod flanneld;
mod healing;
mod inherited;
mod ipv6_only;
mod kube_proxy;
mod kubernetes;
mod masquerade;
mod membership;
mod moves;
mod operation;
mod path_mtu;
mod policies;
mod proxy;
mod restart;
mod rig;
mod rotation;
mod scenarios;
mod scene;
mod senders;
mod services;
mod store;
mod supply;
mod tunnel_guard;
mod underlay;
mod upgrade;
mod uplinks;
mod wired;
mod witness;
mod xtables_lock;

/// Who carries WireGuard here: the kernel's has a suite of its own.
const DATAPATH: &str = "user";

/// How many milliseconds are between two echoes of a witness.
const PAUSE: i64 = 5;

fn can_run() -> bool {
    true
}
