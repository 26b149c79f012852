//! What is measured: a directory of plugins, and a network for it to work on.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context;
use harness::Namespace;
use serde_json::{Value, json};

/// One implementation of the bridge plugin with its own bridge, addresses and files.
pub(crate) struct Subject {
    /// How the table calls it.
    pub(crate) name: &'static str,
    /// The directory of its plugins, as CNI_PATH has it.
    pub(crate) bin: PathBuf,
    /// Where configurations and results lie between calls.
    pub(crate) scratch: tempfile::TempDir,
    /// The network configuration.
    pub(crate) config: Value,
}

impl Subject {
    /// Ours.
    pub(crate) fn fairlead() -> anyhow::Result<Self> {
        let scratch = scratch()?;
        let bin = scratch.path().join("bin");
        std::fs::create_dir(&bin)?;
        let program = super::release("fairlead-cni")?;
        std::fs::copy(&program, bin.join("fairlead-cni")).context("copying fairlead-cni")?;
        for plugin in ["bridge", "host-local"] {
            std::os::unix::fs::symlink("fairlead-cni", bin.join(plugin))?;
        }
        Ok(Self::new("fairlead", bin, scratch, 1))
    }

    /// The reference's, where they are installed; `FAIRLEAD_REFERENCE=DIR` names another build of them.
    pub(crate) fn reference() -> anyhow::Result<Option<Self>> {
        let named = std::env::var_os("FAIRLEAD_REFERENCE").map(PathBuf::from);
        let Some(bin) = named.or_else(harness::reference_plugins) else { return Ok(None) };
        Ok(Some(Self::new("reference", bin, scratch()?, 2)))
    }

    fn new(name: &'static str, bin: PathBuf, scratch: tempfile::TempDir, network: u8) -> Self {
        // The ipMasq backend is not named: each takes its own default.
        let config = json!({
            "cniVersion": "1.0.0", "name": name, "type": "bridge", "bridge": format!("bench{network}"),
            "isDefaultGateway": true, "ipMasq": true, "hairpinMode": true,
            "ipam": {
                "type": "host-local", "dataDir": scratch.path().join("networks"),
                "ranges": [[{ "subnet": format!("10.{}.0.0/16", 100 + network) }]],
            },
        });
        Self { name, bin, scratch, config }
    }

    /// The command for one call; standard input is the configuration, with the result of ADD in it but for ADD.
    pub(crate) fn call(&self, verb: &str, container: &str, pod: &Namespace) -> anyhow::Result<Command> {
        let result = self.scratch.path().join(format!("{container}.json"));
        let config = self.scratch.path().join(format!("{container}.conf"));
        let mut value = self.config.clone();
        if verb != "ADD" {
            let text = std::fs::read_to_string(&result).context("reading the result of ADD")?;
            value["prevResult"] = serde_json::from_str(&text).context("decoding the result of ADD")?;
        }
        std::fs::write(&config, value.to_string())?;
        let mut command = Command::new(self.bin.join("bridge"));
        command.stdin(File::open(&config)?).stderr(Stdio::inherit());
        command.stdout(if verb == "ADD" { Stdio::from(File::create(&result)?) } else { Stdio::null() });
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.bin);
        Ok(command)
    }

    /// The addresses that ADD gave this container.
    pub(crate) fn addresses(&self, container: &str) -> anyhow::Result<Vec<String>> {
        let text = std::fs::read_to_string(self.scratch.path().join(format!("{container}.json")))?;
        let result: Value = serde_json::from_str(&text)?;
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
    Ok(std::fs::metadata(path).with_context(|| format!("reading {}", path.display()))?.len())
}
