//! The behaviours that a CNI plugin shows from outside, asked of ours and of the reference plugins alike.
//!
//! Read [`subjects`] first: every test loops over it. Where the two differ on purpose, the test says so at
//! the place ([`Subject::is_reference`]), and docs/conformance.md lists the difference and its reason. The
//! reference is what Debian ships (`containernetworking-plugins`); keys that it is too old for are asked of
//! ours alone.
//!
//! Tests are named and grouped by what they ask: `protocol`, `loopback`, `host_local`, `bridge`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::disallowed_methods, reason = "test support")]

use std::{path::PathBuf, process::Command};

use harness::{Call, Namespace};
use serde_json::{Value, json};

/// All protocol versions that these plugins speak.
pub const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The names that ours answers to.
const OURS: [&str; 20] = [
    "bandwidth",
    "bridge",
    "dhcp",
    "dummy",
    "fairlead",
    "firewall",
    "host-device",
    "host-local",
    "ipvlan",
    "loopback",
    "macvlan",
    "portmap",
    "ptp",
    "route-override",
    "sbr",
    "static",
    "tap",
    "tuning",
    "vlan",
    "vrf",
];

/// One implementation of the plugins.
#[derive(Debug)]
pub struct Subject {
    /// How messages call it.
    pub name: &'static str,
    /// The directory of its plugins.
    pub bin: PathBuf,
    keep: Option<tempfile::TempDir>,
}

impl Subject {
    /// Whether it is the reference's.
    pub fn is_reference(&self) -> bool {
        self.keep.is_none()
    }

    /// The versions it speaks: Debian's reference is older than 1.1.0.
    pub fn versions(&self) -> &'static [&'static str] {
        if self.is_recent() { &VERSIONS } else { &VERSIONS[..6] }
    }

    /// Whether it is a plugin suite of 2024 or later, which speaks 1.1.0: Debian's reference is not.
    pub fn is_recent(&self) -> bool {
        let mut asked = Command::new(self.bin.join("host-local"));
        let said = harness::run(asked.env_clear().env("CNI_COMMAND", "VERSION")).stdout;
        String::from_utf8_lossy(&said).contains("1.1.0")
    }
}

/// Ours alone, for what the reference has not.
pub fn ours() -> Subject {
    let directory = harness::plugin_directory(&OURS);
    Subject { name: "fairlead", bin: directory.path().to_path_buf(), keep: Some(directory) }
}

/// Ours, and the reference's where it is installed.
pub fn subjects() -> Vec<Subject> {
    let mut all = vec![ours()];
    match harness::reference_plugins() {
        Some(bin) => all.push(Subject { name: "reference", bin, keep: None }),
        None => harness::not_run("containernetworking-plugins is not installed: asked of ours alone"),
    }
    all
}

/// Those of them that have what came into the reference after Debian's: dummy and tap, `linkInContainer` and the like.
pub fn recent_subjects() -> Vec<Subject> {
    subjects().into_iter().filter(Subject::is_recent).collect()
}

/// Whether this kernel has links of a kind, which the words after `type` in `ip link add` name; says so if not.
pub fn kernel_has(kind: &str) -> bool {
    let probe = Namespace::new();
    probe.ip("link add parent type veth peer name other");
    let sits = ["vlan", "ipvlan", "macvlan"].iter().any(|upper| kind.starts_with(upper));
    let parent = if sits { "link parent" } else { "" };
    let words = format!("link add {parent} name probe type {kind}");
    let has = harness::run(probe.command("ip").args(words.split_whitespace())).status.success();
    if !has {
        harness::not_run(&format!("the kernel has no {kind} links"));
    }
    has
}

/// A host, a pod and a place for files, all fresh.
#[derive(Debug)]
pub struct Stage {
    /// The namespace that plays the host, `lo` up.
    pub host: Namespace,
    /// The pod's namespace.
    pub pod: Namespace,
    /// For host-local's files.
    pub data: tempfile::TempDir,
}

impl Stage {
    /// A fresh one.
    #[expect(clippy::new_without_default, reason = "making namespaces is an act, not a default value")]
    pub fn new() -> Self {
        let data = tempfile::tempdir().expect("a temporary directory");
        Self { host: Namespace::with_loopback(), pod: Namespace::new(), data }
    }

    /// A call of `plugin` for container `container` in this stage's pod.
    pub fn call<'a>(&'a self, subject: &'a Subject, plugin: &'a str, container: &'a str) -> Call<'a> {
        Call::new(&self.host, &subject.bin, plugin, container, &self.pod)
    }

    /// An `ipam` object for host-local with one range set a subnet.
    pub fn ipam(&self, subnets: &[&str]) -> Value {
        let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
        json!({ "type": "host-local", "dataDir": self.data.path(), "ranges": ranges })
    }

    /// Gives the host an uplink: `uplink`, up and with a carrier, in a default route's subnet. Its far end is `far`.
    pub fn uplink(&self) {
        self.host.ip("link add uplink type veth peer name far");
        self.host.ip("link set far up");
        self.host.ip("link set uplink up");
        self.host.ip("address add 192.0.2.1/24 dev uplink");
    }

    /// A configuration of network `test` for `plugin`, with `more` keys laid over it.
    pub fn config(&self, plugin: &str, version: &str, more: &Value) -> Value {
        let mut config = json!({ "cniVersion": version, "name": "test", "type": plugin });
        for (key, value) in more.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        config
    }

    /// The address files of network `test`, sorted, without host-local's own.
    pub fn reserved(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.data.path().join("test")) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
            .filter(|name| name.parse::<std::net::IpAddr>().is_ok())
            .collect();
        names.sort();
        names
    }
}
