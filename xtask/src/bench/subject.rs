//! What is measured: a directory of plugins, and a network for them to work on.
//!
//! Read [`Subject::run`]: one verb over a network's plugins as a runtime calls them, one process after the other, each
//! ADD with the result of the one before, CHECK and DEL with the last. What is timed is the processes alone.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Context;
use harness::Namespace;
use serde_json::{Value, json};

use super::time;

/// The verbs, in the order of a pod's life.
pub(crate) const VERBS: [&str; 3] = ["ADD", "CHECK", "DEL"];

/// Those of ours that anything here measures.
const PLUGINS: [&str; 16] = [
    "bandwidth",
    "bridge",
    "dhcp",
    "fairlead",
    "firewall",
    "host-device",
    "host-local",
    "loopback",
    "macvlan",
    "portmap",
    "ptp",
    "route-override",
    "sbr",
    "static",
    "tap",
    "tuning",
];

/// Which plugins, one after the other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// bridge.
    Bridge,
    /// bridge, portmap with one TCP mapping, bandwidth both ways.
    Chain,
    /// ptp.
    Ptp,
    /// loopback.
    Loopback,
    /// The agent's own network, routed; there is no reference for it.
    Routed,
    /// The same with an IPv6 address beside the IPv4 one.
    RoutedDualStack,
}

/// One implementation of the plugins with its own bridge, addresses and files.
pub(crate) struct Subject {
    /// How the table calls it.
    pub(crate) name: &'static str,
    bin: PathBuf,
    scratch: tempfile::TempDir,
    number: u8,
    network: Network,
}

impl Subject {
    /// Ours.
    pub(crate) fn fairlead(network: Network) -> anyhow::Result<Self> {
        let scratch = scratch()?;
        let bin = scratch.path().join("bin");
        fs::create_dir(&bin)?;
        let program = super::release("fairlead-cni")?;
        fs::copy(&program, bin.join("fairlead-cni")).context("copying fairlead-cni")?;
        for plugin in PLUGINS {
            std::os::unix::fs::symlink("fairlead-cni", bin.join(plugin))?;
        }
        // What an agent leaves for the plugin `fairlead`.
        let cidrs = match network {
            Network::RoutedDualStack => json!(["10.103.0.0/16", "fd00:103::/64"]),
            _ => json!(["10.103.0.0/16"]),
        };
        let node = json!({ "node": "bench", "podCIDRs": cidrs, "clusterCIDRs": cidrs, "mtu": 1450 });
        fs::write(scratch.path().join("network.json"), node.to_string())?;
        Ok(Self { name: "fairlead", bin, scratch, number: 1, network })
    }

    /// The reference's, where they are installed; `FAIRLEAD_REFERENCE=DIR` names another build of them.
    pub(crate) fn reference(network: Network) -> anyhow::Result<Option<Self>> {
        let Some(bin) = harness::reference_plugins() else { return Ok(None) };
        Ok(Some(Self { name: "reference", bin, scratch: scratch()?, number: 2, network }))
    }

    /// Both, as far as they are there.
    pub(crate) fn all(network: Network) -> anyhow::Result<Vec<Self>> {
        let mut subjects = vec![Self::fairlead(network)?];
        match Self::reference(network)? {
            Some(reference) => subjects.push(reference),
            None => {
                println!("reference plugins: not run, because containernetworking-plugins is not installed");
            }
        }
        Ok(subjects)
    }

    /// The plugins' configurations for pod number `pod`.
    pub(crate) fn plugins(&self, pod: u16) -> Vec<Value> {
        // The ipMasq backend is not named: each takes its own default.
        let first = |kind: &str| {
            json!({
                "cniVersion": "1.0.0", "name": self.name, "type": kind, "ipMasq": true,
                "ipam": {
                    "type": "host-local", "dataDir": self.scratch.path().join("networks"),
                    "ranges": [[{ "subnet": format!("10.{}.0.0/16", 100 + self.number) }]],
                },
            })
        };
        let mut bridge = first("bridge");
        bridge["bridge"] = json!(format!("bench{}", self.number));
        bridge["isDefaultGateway"] = json!(true);
        bridge["hairpinMode"] = json!(true);
        let chained = |kind: &str, key: &str, capability: Value| json!({ "cniVersion": "1.0.0", "name": self.name, "type": kind, "runtimeConfig": { key: capability } });
        let mapping = json!([{ "hostPort": 20_000 + pod, "containerPort": 80, "protocol": "tcp" }]);
        let limits = json!({
            "ingressRate": 100_000_000, "ingressBurst": 8_000_000, "egressRate": 100_000_000, "egressBurst": 8_000_000,
        });
        match self.network {
            Network::Bridge => vec![bridge],
            Network::Chain => vec![
                bridge,
                chained("portmap", "portMappings", mapping),
                chained("bandwidth", "bandwidth", limits),
            ],
            Network::Ptp => vec![first("ptp")],
            Network::Routed | Network::RoutedDualStack => vec![json!({
                "cniVersion": "1.0.0", "name": self.name, "type": "fairlead",
                "stateDir": self.scratch.path(), "dataDir": self.scratch.path().join("networks"),
            })],
            Network::Loopback => {
                vec![json!({ "cniVersion": "1.0.0", "name": self.name, "type": "loopback" })]
            }
        }
    }

    /// One verb over all plugins for pod number `number`, in its namespace: how long their processes took.
    pub(crate) fn run(&self, verb: &str, number: u16, pod: &Namespace) -> anyhow::Result<Duration> {
        let mut plugins = self.plugins(number);
        if verb == "DEL" {
            plugins.reverse();
        }
        let mut took = Duration::ZERO;
        for (index, config) in plugins.iter_mut().enumerate() {
            if verb != "ADD" || index > 0 {
                let text = fs::read_to_string(self.result(number)).context("reading the result of ADD")?;
                config["prevResult"] = serde_json::from_str(&text).context("decoding the result of ADD")?;
            }
            took += time(&mut self.call(verb, number, pod, config)?)?;
            if verb == "ADD" {
                fs::rename(self.scratch.path().join(format!("stdout{number}")), self.result(number))?;
            }
        }
        Ok(took)
    }

    /// The most memory, in KiB, that ADD of the plugin at `index` holds, as `floor peak` measures it; its result is kept
    /// for the plugin after it.
    pub(crate) fn peak(&self, number: u16, pod: &Namespace, index: usize) -> anyhow::Result<u64> {
        let mut config = self.plugins(number).swap_remove(index);
        if index > 0 {
            config["prevResult"] = serde_json::from_str(&fs::read_to_string(self.result(number))?)?;
        }
        let call = self.call("ADD", number, pod, &config)?;
        let mut command = Command::new(super::release("floor")?);
        command.arg("peak").arg(call.get_program());
        command.envs(call.get_envs().filter_map(|(key, value)| Some((key, value?))));
        command.stdin(File::open(self.scratch.path().join(format!("stdin{number}")))?);
        let output = command.output()?;
        fs::write(self.result(number), &output.stdout)?;
        let text = String::from_utf8_lossy(&output.stderr);
        text.trim().parse().with_context(|| format!("reading the peak of {}: {text}", self.name))
    }

    /// How long one plugin takes to say that it is ready, which it must be.
    pub(crate) fn status(&self, config: &Value) -> anyhow::Result<Duration> {
        let mut config = config.clone();
        config["cniVersion"] = json!("1.1.0");
        let stdin = self.file("stdin-status");
        fs::write(&stdin, config.to_string())?;
        let mut command =
            Command::new(self.program(config["type"].as_str().context("the type of a plugin")?));
        command.env_clear().env("CNI_COMMAND", "STATUS").env("CNI_PATH", &self.bin);
        time(command.stdin(File::open(&stdin)?).stdout(Stdio::inherit()))
    }

    /// A plugin's program.
    pub(crate) fn program(&self, plugin: &str) -> PathBuf {
        self.bin.join(plugin)
    }

    /// A file or folder for this subject alone, gone with it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// The command for one call.
    fn call(&self, verb: &str, number: u16, pod: &Namespace, config: &Value) -> anyhow::Result<Command> {
        let stdin = self.scratch.path().join(format!("stdin{number}"));
        fs::write(&stdin, config.to_string())?;
        let kind = config["type"].as_str().context("the type of a plugin")?;
        let mut command = Command::new(self.bin.join(kind));
        command.stdin(File::open(&stdin)?).stderr(Stdio::inherit());
        let stdout = self.scratch.path().join(format!("stdout{number}"));
        command.stdout(if verb == "ADD" { Stdio::from(File::create(&stdout)?) } else { Stdio::null() });
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("pod{number}"))
            .env("CNI_NETNS", pod.path())
            .env("CNI_IFNAME", if self.network == Network::Loopback { "lo" } else { "eth0" })
            .env("CNI_PATH", &self.bin);
        Ok(command)
    }

    fn result(&self, number: u16) -> PathBuf {
        self.scratch.path().join(format!("pod{number}.json"))
    }

    /// The addresses that ADD gave this pod.
    pub(crate) fn addresses(&self, number: u16) -> anyhow::Result<Vec<String>> {
        let result: Value = serde_json::from_str(&fs::read_to_string(self.result(number))?)?;
        let ips = result["ips"].as_array().context("ips in a result")?;
        Ok(ips.iter().filter_map(|ip| ip["address"].as_str()).map(str::to_owned).collect())
    }
}

/// A folder in memory where there is one: a disk's bad moment is nobody's merit.
fn scratch() -> std::io::Result<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }
}

/// The size of a file in bytes.
pub(crate) fn size(path: &Path) -> anyhow::Result<u64> {
    Ok(fs::metadata(path).with_context(|| format!("reading {}", path.display()))?.len())
}
