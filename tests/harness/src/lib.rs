//! What the tests stand on: network namespaces, plugin calls and outside tools, with none of the code
//! under test in it.
//!
//! Read [`Namespace`] first: a fresh network namespace held open by a child process, named by a path that
//! any tool can enter. [`Call`] runs one CNI plugin binary as a runtime would. [`eventually`] waits for
//! something to become true, with a deadline; nothing here sleeps for a fixed time. [`not_run`] is how a
//! test says that this machine lacks what it needs. [`ApiServer`] is a real kube-apiserver of the test's own, and [`Etcd`] a
//! real etcd.
//!
//! What stays true: nothing here touches the namespace the tests were started in, and everything ends with
//! the value that made it, also when a test panics or is killed (the holder reads its standard input, and
//! the end of the test closes it).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "test support: a failure here is a failure of the test, and tools are what it asserts with"
)]

mod api_server;
mod call;
mod disturbance;
pub mod etcd;
mod namespace;
mod service;
pub mod talk;
mod wait;

pub use api_server::{ApiServer, Credential};
pub use call::{Call, Reply};
pub use disturbance::{Disturbance, Outcome, Step, Stopped, every_step, strace_works};
pub use etcd::Etcd;
pub use namespace::{Namespace, has_tunnels, run, run_ok};
pub use service::Service;
pub use wait::{eventually, not_run};

use std::path::PathBuf;

/// A binary of this workspace, beside the running test: `target/<triple>/<profile>/<name>`.
///
/// # Panics
/// When it has not been built; `cargo xtask test` and `cargo test --workspace` build it first.
pub fn binary(name: &str) -> PathBuf {
    let mut directory = std::env::current_exe().expect("a test knows its own path");
    directory.pop();
    if directory.ends_with("deps") {
        directory.pop();
    }
    let path = directory.join(name);
    assert!(path.exists(), "{} is not built; run `cargo build --workspace` first", path.display());
    path
}

/// The directory of the reference CNI plugins (Debian: `containernetworking-plugins`), if they are installed;
/// `FAIRLEAD_REFERENCE=DIR` names another build of them.
pub fn reference_plugins() -> Option<PathBuf> {
    let named = std::env::var_os("FAIRLEAD_REFERENCE").map(PathBuf::from);
    let installed = ["/usr/lib/cni", "/opt/cni/bin"].iter().map(PathBuf::from);
    named.into_iter().chain(installed).find(|path| path.join("bridge").exists())
}

/// A directory with `fairlead-cni` in it under the name of each plugin given, as `fairlead cni install` lays it.
pub fn plugin_directory(plugins: &[&str]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let program = binary("fairlead-cni");
    std::os::unix::fs::symlink(&program, directory.path().join("fairlead-cni")).expect("a link");
    for plugin in plugins {
        std::os::unix::fs::symlink(&program, directory.path().join(plugin)).expect("a link");
    }
    directory
}
