//! The plugins under real container runtimes: containerd, as a kubelet drives it, and podman.
//!
//! Read [`Machine`] first: a machine of its own for one runtime, made of namespaces (network, mounts, processes),
//! with `/run` and `/var/lib` empty and in memory, so that a runtime finds a fresh system and everything it starts
//! ends with the value. [`Containerd`] speaks the CRI ([`cri`]) to a containerd in there, [`Podman`] is a podman; [`story`]
//! has what both are asked; [`image`] makes the only
//! container image they need, from Debian's static busybox.
//!
//! What stays true: nothing is fetched from a registry, the runtimes are Debian's, and the network configuration is
//! a plain conflist with capabilities, as an operator of the reference plugins has it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "test support: a failure here is a failure of the test, and programs are what it drives"
)]

mod containerd;
pub mod cri;
pub mod image;
mod machine;
mod podman;
pub mod shaping;
pub mod story;

pub use containerd::{Containerd, Sandbox};
pub use machine::Machine;
pub use podman::Podman;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// The conflist of both runtimes' tests: bridge with masquerading, host ports, limits. Addresses are of
/// `subnet`, files of host-local in `directory`; `extra` goes into the entry of `bandwidth`.
#[must_use]
pub fn conflist(subnet: &str, directory: &Path, extra: &Value) -> Value {
    let mut bandwidth = json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } });
    for (key, value) in extra.as_object().into_iter().flatten() {
        bandwidth[key] = value.clone();
    }
    json!({
        "cniVersion": "1.0.0", "name": "testnet", "plugins": [
            {
                "type": "bridge", "bridge": "cni-test", "isDefaultGateway": true, "ipMasq": true, "hairpinMode": true,
                "ipam": {
                    "type": "host-local", "dataDir": directory.join("addresses"),
                    "ranges": [[{ "subnet": subnet }]],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
            bandwidth,
        ],
    })
}

/// The file of a program that is on the path.
#[must_use]
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}
