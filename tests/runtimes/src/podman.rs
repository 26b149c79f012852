//! podman with CNI as its network, on a machine of its own.
//!
//! Read [`Podman`]. Everything that podman keeps lies in the machine's directory or its `/run`; it is told of the plugins
//! and the conflist by a `containers.conf`, as an operator would tell it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use harness::{run, run_ok};
use serde_json::Value;

use crate::{Machine, image};

/// A podman whose only network is `testnet`.
#[derive(Debug)]
pub struct Podman {
    machine: Machine,
}

impl Podman {
    /// Prepares one with the plugins in this directory and this conflist.
    ///
    /// # Panics
    /// When podman cannot load an image.
    #[must_use]
    pub fn prepare(plugins: &Path, conflist: impl FnOnce(&Machine) -> Value) -> Self {
        let machine = Machine::new();
        let directory = machine.directory();
        let networks = directory.join("net.d");
        fs::create_dir(&networks).unwrap();
        fs::write(networks.join("10-test.conflist"), conflist(&machine).to_string()).unwrap();
        let configuration = format!(
            "[containers]\ndefault_sysctls = []\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\nruntime = \"runc\"\n\
             [network]\nnetwork_backend = \"cni\"\ncni_plugin_dirs = [\"{}\"]\nnetwork_config_dir = \"{}\"\n\
             default_network = \"testnet\"\n",
            plugins.display(),
            networks.display(),
        );
        fs::write(directory.join("containers.conf"), configuration).unwrap();
        let archive = image::archive(directory);
        let podman = Self { machine };
        run_ok(podman.command("load").arg("--input").arg(archive));
        podman
    }

    /// The machine it runs on.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// `podman VERB`.
    #[must_use]
    pub fn command(&self, verb: &str) -> Command {
        let mut command = self.machine.command("podman");
        command.env("CONTAINERS_CONF", self.machine.directory().join("containers.conf"));
        command.arg("--root").arg(self.machine.directory().join("root"));
        command.args(["--runroot", "/run/podman", "--storage-driver", "vfs", verb]);
        command
    }

    /// Starts a container with published ports (`HOST:CONTAINER`) that runs `script` in a shell.
    #[must_use]
    pub fn start(&self, name: &str, ports: &[&str], script: &str) -> Output {
        let mut command = self.command("run");
        command.args(["--detach", "--network", "testnet", "--name", name]);
        command.arg(format!("--cgroup-parent=/{}", self.machine.group()));
        for port in ports {
            command.args(["--publish", port]);
        }
        run(command.args([image::NAME, "sh", "-c", script]))
    }

    /// What `podman inspect` says of a container's network.
    ///
    /// # Panics
    /// When there is no such container.
    #[must_use]
    pub fn network_of(&self, name: &str) -> Value {
        let text = run_ok(self.command("inspect").arg(name));
        let all: Value = serde_json::from_str(&text).expect("podman prints JSON");
        all[0]["NetworkSettings"].clone()
    }

    /// The network namespace of a container, to be entered from outside.
    ///
    /// # Panics
    /// When there is no such container.
    #[must_use]
    pub fn netns(&self, name: &str) -> PathBuf {
        let settings = self.network_of(name);
        self.machine.outside(settings["SandboxKey"].as_str().expect("a path"))
    }

    /// Removes a container.
    ///
    /// # Panics
    /// When podman complains.
    pub fn remove(&self, name: &str) {
        run_ok(self.command("rm").args(["--force", "--time", "0", name]));
    }
}
