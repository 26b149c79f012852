//! Network namespaces for tests, and running tools inside them.
//!
//! Read [`Namespace`]. The namespace lives as long as a child (`unshare --net cat`) does, and the child lives
//! until its standard input closes: dropping the value, a panic and `kill -9` of the test all end it.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use serde_json::Value;

use crate::not_run;

/// A network namespace of its own, empty but for `lo` (down).
#[derive(Debug)]
pub struct Namespace {
    holder: Child,
}

impl Namespace {
    /// Makes one.
    ///
    /// # Panics
    /// When the machine lets us make none: run as root, or under `unshare --user --map-root-user`.
    #[expect(clippy::new_without_default, reason = "making a namespace is an act, not a default value")]
    pub fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare (util-linux) starts");
        let mut line = String::new();
        let stdout = holder.stdout.as_mut().expect("stdout is piped");
        BufReader::new(stdout).read_line(&mut line).expect("the holder answers");
        assert_eq!(line.trim(), "ready", "unshare --net failed: are you root, or in a user namespace?");
        Self { holder }
    }

    /// One with `lo` up.
    pub fn with_loopback() -> Self {
        let namespace = Self::new();
        namespace.ip("link set lo up");
        namespace
    }

    /// The path that `setns` and `nsenter --net=` take.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holder.id()))
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs `work` on a thread of its own inside. A socket that it makes stays inside wherever it is used.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let path = std::fs::File::open(self.path()).expect("the namespace is there");
                let kind = Some(rustix::thread::LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&path), kind)
                    .expect("the namespace can be entered");
                work()
            });
            inside.join().expect("the work does not panic")
        })
    }

    /// Runs `ip ARGUMENTS` inside (words separated by blanks) and returns what it prints.
    ///
    /// # Panics
    /// When `ip` fails.
    pub fn ip(&self, arguments: &str) -> String {
        run_ok(self.command("ip").args(arguments.split_whitespace()))
    }

    /// `ip -j -d ARGUMENTS` inside, decoded; an empty answer is an empty array.
    pub fn ip_json(&self, arguments: &str) -> Value {
        json(&run_ok(self.command("ip").args(["-j", "-d"]).args(arguments.split_whitespace())))
    }

    /// `bridge -j ARGUMENTS` inside, decoded.
    pub fn bridge_json(&self, arguments: &str) -> Value {
        json(&run_ok(self.command("bridge").args(["-j", "-d"]).args(arguments.split_whitespace())))
    }

    /// `nft -j list ruleset` inside: the array under `nftables`.
    pub fn nft_ruleset(&self) -> Vec<Value> {
        let printed = json(&run_ok(self.command("nft").args(["-j", "list", "ruleset"])));
        printed["nftables"].as_array().cloned().unwrap_or_default()
    }

    /// The value of a sysctl inside, by its path below `/proc/sys`, without the newline.
    pub fn sysctl(&self, path: &str) -> String {
        run_ok(self.command("cat").arg(Path::new("/proc/sys").join(path))).trim_end().to_owned()
    }

    /// The names of the links inside, sorted, without `lo`.
    pub fn link_names(&self) -> Vec<String> {
        let links = self.ip_json("link show");
        let mut names: Vec<String> = links
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|link| link["ifname"].as_str())
            .filter(|name| *name != "lo")
            .map(str::to_owned)
            .collect();
        names.sort();
        names
    }

    /// Whether an ICMP echo from inside to `address` is answered within a second or two.
    pub fn pings(&self, address: &str) -> bool {
        run(self.command("ping").args(["-n", "-q", "-c", "1", "-W", "2", address])).status.success()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Runs a command to its end and returns all it said.
///
/// # Panics
/// When it cannot be started.
pub fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?} starts: {error}"))
}

/// Runs a command that must succeed and returns its standard output.
///
/// # Panics
/// When it fails, with both of its outputs.
pub fn run_ok(command: &mut Command) -> String {
    let output = run(command);
    assert!(
        output.status.success(),
        "{command:?} ended with {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("tools print UTF-8")
}

fn json(text: &str) -> Value {
    if text.trim().is_empty() {
        return Value::Array(Vec::new());
    }
    serde_json::from_str(text).unwrap_or_else(|error| panic!("JSON from a tool: {error}\n{text}"))
}

/// Whether the kernel makes tunnels of these kinds of link (`wireguard`, `ipip`, `sit`); says so where it does not.
pub fn has_tunnels(kinds: &[&str]) -> bool {
    let namespace = Namespace::new();
    let makes = |kind: &&&str| {
        // Without a local address it would be the kernel's own, which is there already.
        let local = if **kind == "wireguard" { "" } else { "local 127.0.0.1" };
        let words = format!("link add one type {kind} {local}");
        run(namespace.command("ip").args(words.split_whitespace())).status.success()
            && run(namespace.command("ip").args(["link", "delete", "one"])).status.success()
    };
    let missing = kinds.iter().find(|kind| !makes(kind));
    if let Some(kind) = missing {
        not_run(&format!("this kernel has no {kind}"));
    }
    missing.is_none()
}
