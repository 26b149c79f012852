//! A machine for one container runtime, made of namespaces.
//!
//! Read [`Machine`]. Its first process is the end of everything in it: when the value goes, or the test dies, the
//! kernel ends every shim and container with the process namespace. Control groups are the only thing that such
//! a machine shares with the real one, so runtimes get a parent group of their own, which is removed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use harness::Namespace;
use tempfile::TempDir;

/// Namespaces with an empty `/run` and `/var/lib`.
#[derive(Debug)]
pub struct Machine {
    network: Namespace,
    holder: Child,
    first: u32,
    directory: TempDir,
    group: String,
}

impl Machine {
    /// Makes one.
    ///
    /// # Panics
    /// When that is not allowed here; ask [`Machine::obstacle`] before.
    #[expect(clippy::new_without_default, reason = "making namespaces is an act, not a default value")]
    #[must_use]
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let network = Namespace::with_loopback();
        let script = "mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib && mkdir -p /run/lock && \
                      echo ready && exec cat";
        let mut holder = network
            .command("unshare")
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare starts");
        let mut line = String::new();
        BufReader::new(holder.stdout.as_mut().expect("a pipe")).read_line(&mut line).expect("it answers");
        assert_eq!(line.trim(), "ready", "the machine's namespaces are made");
        let first = only_child(holder.id());
        let group = format!("fairlead-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Self { network, holder, first, directory: tempfile::tempdir().expect("a directory"), group }
    }

    /// Why a machine cannot be made here, if it cannot.
    #[must_use]
    pub fn obstacle(programs: &[&str]) -> Option<String> {
        if let Some(missing) = programs.iter().find(|name| crate::program(name).is_none()) {
            return Some(format!("{missing} is not installed"));
        }
        let users = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let whole = users.split_whitespace().eq(["0", "0", "4294967295"]);
        let root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
        (!root || !whole).then(|| "container runtimes need the machine's real root".to_owned())
    }

    /// The machine's network.
    #[must_use]
    pub fn network(&self) -> &Namespace {
        &self.network
    }

    /// A directory on the real machine's disk, seen under the same name inside.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A command that will run inside: its network, its files, its processes.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg("--target")
            .arg(self.first.to_string())
            .args(["--net", "--mount", "--pid", "--", program]);
        command
    }

    /// A file in there as seen from outside. The path must not lead through a symbolic link.
    #[must_use]
    pub fn outside(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.first))
    }

    /// The parent control group for containers.
    #[must_use]
    pub fn group(&self) -> &str {
        &self.group
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            remove_groups(&hierarchy.path().join(&self.group));
        }
    }
}

/// Control groups go from the leaves; their files go with them.
fn remove_groups(group: &Path) {
    for child in fs::read_dir(group).into_iter().flatten().flatten() {
        if child.path().is_dir() {
            remove_groups(&child.path());
        }
    }
    let _ = fs::remove_dir(group);
}

/// The one child of a process: first `nsenter` becomes `unshare`, then that forks.
fn only_child(parent: u32) -> u32 {
    let text = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).expect("/proc tells");
    text.split_whitespace().next().and_then(|child| child.parse().ok()).expect("unshare has forked")
}
