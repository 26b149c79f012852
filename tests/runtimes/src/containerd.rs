//! A containerd of the test's own, asked as a kubelet asks it.
//!
//! Read [`Containerd::start`], then [`Containerd::run_pod`]. The configuration is Debian's with a snapshotter that needs
//! nothing from the kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use harness::{eventually, run_ok};
use serde_json::Value;

use crate::cri::{Client, Message};
use crate::{Machine, image};

/// A containerd that serves the CRI on a machine of its own.
#[derive(Debug)]
pub struct Containerd {
    machine: Machine,
    process: Child,
    client: Client,
}

/// A pod sandbox that runs.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// Its id.
    pub id: String,
    /// Its addresses, as a kubelet learns them.
    pub addresses: Vec<String>,
    /// Its network namespace, to be entered from outside.
    pub netns: PathBuf,
    config: Message,
}

impl Containerd {
    /// Starts one with the plugins in this directory and this conflist.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start(plugins: &Path, conflist: impl FnOnce(&Machine) -> Value) -> Self {
        let machine = Machine::new();
        let directory = machine.directory();
        fs::create_dir(directory.join("net.d")).unwrap();
        fs::write(directory.join("net.d/10-test.conflist"), conflist(&machine).to_string()).unwrap();
        let config = directory.join("config.toml");
        fs::write(&config, configuration(&machine, plugins)).unwrap();
        let log = fs::File::create(directory.join("log")).unwrap();
        let mut command = machine.command("containerd");
        command.arg("--config").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let process = command.spawn().expect("containerd starts");
        let socket = directory.join("containerd.sock");
        let client = Client::new(&socket);
        let this = Self { machine, process, client };
        eventually("containerd serves the CRI", || {
            this.client.call("Version", &Message::new()).ok().map(drop)
        });
        let archive = image::archive(this.machine.directory());
        let mut import = this.machine.command("ctr");
        import.arg("--address").arg(&socket).args(["--namespace", "k8s.io", "images", "import"]).arg(archive);
        run_ok(&mut import);
        this
    }

    /// The machine it runs on.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The conditions of the runtime that are not as they should be: what makes a kubelet say NotReady.
    ///
    /// # Panics
    /// When it does not answer.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        let status = self.client.call("Status", &Message::new()).expect("Status");
        let conditions = status.message(1).messages(1);
        let bad = conditions.iter().filter(|condition| condition.number(2) == 0);
        bad.map(|condition| format!("{}: {}", condition.text(1), condition.text(4))).collect()
    }

    /// Starts a pod with a host port (TCP) and annotations, and a container in it that runs `script` in a shell.
    ///
    /// # Errors
    /// What containerd says.
    ///
    /// # Panics
    /// When containerd's answer makes no sense.
    pub fn run_pod(
        &self,
        name: &str,
        ports: &[(u16, u16)],
        annotations: &[(&str, &str)],
        script: &str,
    ) -> Result<Sandbox, String> {
        let metadata = Message::new().text(1, name).text(2, name).text(3, "default");
        let linux = Message::new().text(1, &format!("/{}", self.machine.group()));
        let log = self.machine.directory().join(name);
        let mut config =
            Message::new().message(1, &metadata).text(3, &log.display().to_string()).message(8, &linux);
        for (host, container) in ports {
            let mapping = Message::new().number(3, u64::from(*host)).number(2, u64::from(*container));
            config = config.message(5, &mapping);
        }
        for (key, value) in annotations {
            config = config.pair(7, key, value);
        }
        let id = self.client.call("RunPodSandbox", &Message::new().message(1, &config))?.text(1);
        let mut words = Message::new()
            .message(1, &Message::new().text(1, "main"))
            .message(2, &Message::new().text(1, image::NAME))
            .text(11, "main.log");
        for word in ["sh", "-c", script] {
            words = words.text(3, word);
        }
        let create = Message::new().text(1, &id).message(2, &words).message(3, &config);
        let container = self.client.call("CreateContainer", &create)?.text(1);
        self.client.call("StartContainer", &Message::new().text(1, &container))?;
        self.sandbox(id, config)
    }

    fn sandbox(&self, id: String, config: Message) -> Result<Sandbox, String> {
        let status = self.client.call("PodSandboxStatus", &Message::new().text(1, &id).number(2, 1))?;
        let network = status.message(1).message(5);
        let more = network.messages(2).into_iter().map(|address| address.text(1));
        let addresses = [network.text(1)].into_iter().chain(more).collect();
        let info = status.pairs(2).into_iter().find(|(key, _)| key == "info").expect("verbose information").1;
        let info: Value = serde_json::from_str(&info).expect("JSON");
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().expect("namespaces").clone();
        let network = namespaces.iter().find(|namespace| namespace["type"] == "network").expect("a network");
        let path = network["path"].as_str().expect("a path").replacen("/var/run/", "/run/", 1);
        Ok(Sandbox { netns: self.machine.outside(&path), id, addresses, config })
    }

    /// Stops and removes a pod.
    ///
    /// # Errors
    /// What containerd says.
    pub fn remove_pod(&self, sandbox: &Sandbox) -> Result<(), String> {
        self.client.call("StopPodSandbox", &Message::new().text(1, &sandbox.id))?;
        self.client.call("RemovePodSandbox", &Message::new().text(1, &sandbox.id)).map(drop)
    }

    /// Removes a pod and starts another with the same configuration: what a kubelet does when a sandbox dies.
    ///
    /// # Errors
    /// What containerd says.
    pub fn replace_pod(&self, sandbox: &Sandbox) -> Result<Sandbox, String> {
        self.remove_pod(sandbox)?;
        let id = self.client.call("RunPodSandbox", &Message::new().message(1, &sandbox.config))?.text(1);
        self.sandbox(id, sandbox.config.clone())
    }

    /// Ends containerd with SIGKILL and starts it again on what it left.
    ///
    /// # Panics
    /// When it does not come up again.
    pub fn crash(&mut self) {
        run_ok(self.machine.command("pkill").args(["-KILL", "-x", "containerd"]));
        let _ = self.process.wait();
        let log = fs::File::options().append(true).open(self.machine.directory().join("log")).unwrap();
        let mut command = self.machine.command("containerd");
        let config = self.machine.directory().join("config.toml");
        command.arg("--config").arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.process = command.spawn().expect("containerd starts");
        eventually("containerd serves the CRI", || {
            self.client.call("Version", &Message::new()).ok().map(drop)
        });
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.machine.directory().join("log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(20).collect();
            let _ = std::io::Write::write_all(&mut std::io::stderr(), tail.join("\n").as_bytes());
        }
        let _ = self.machine.command("pkill").args(["-TERM", "-x", "containerd"]).output();
        let _ = self.process.wait();
    }
}

fn configuration(machine: &Machine, plugins: &Path) -> String {
    let directory = machine.directory().display();
    format!(
        "version = 2\nroot = \"{directory}/root\"\nstate = \"/run/containerd\"\n\
         [grpc]\n  address = \"{directory}/containerd.sock\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"{}\"\n  restrict_oom_score_adj = true\n  \
         disable_apparmor = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  snapshotter = \"native\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\n  bin_dir = \"{}\"\n  conf_dir = \"{directory}/net.d\"\n",
        image::NAME,
        plugins.display(),
    )
}
