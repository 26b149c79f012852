//! Pods that the real plugins wire, of whichever node.

use std::io::Write;
use std::process::Stdio;

use harness::{Call, Namespace, Reply};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::rig::Node;

/// A pod, attached until [`WiredPod::detach`].
pub(crate) struct WiredPod {
    pub(crate) netns: Namespace,
    pub(crate) addresses: Vec<String>,
    /// Host port and own port.
    port: Option<(u16, u16)>,
    result: Value,
    bin: TempDir,
    ipam: TempDir,
}

impl WiredPod {
    pub(crate) fn attach(node: &Node) -> Self {
        let mut pod = Self {
            netns: Namespace::with_loopback(),
            addresses: Vec::new(),
            port: None,
            result: Value::Null,
            bin: harness::plugin_directory(&["fairlead", "portmap"]),
            ipam: tempfile::tempdir().unwrap(),
        };
        pod.result = pod.call(node, "ADD", "fairlead").expect_success("ADD");
        let address = |ip: &Value| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned();
        pod.addresses = pod.result["ips"].as_array().unwrap().iter().map(address).collect();
        pod
    }

    /// The same with a port of the node's that leads to one of its own, by the next plugin of the chain.
    pub(crate) fn with_host_port(node: &Node, host: u16, own: u16) -> Self {
        let mut pod = Self::attach(node);
        pod.port = Some((host, own));
        pod.call(node, "ADD", "portmap").expect_success("ADD");
        pod
    }

    /// DEL of the chain, last first.
    pub(crate) fn detach(&self, node: &Node) {
        if self.port.is_some() {
            self.call(node, "DEL", "portmap").expect_success("DEL");
        }
        self.call(node, "DEL", "fairlead").expect_success("DEL");
    }

    fn call(&self, node: &Node, command: &str, plugin: &str) -> Reply {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "fairlead", "type": plugin,
            "stateDir": node.state_dir(), "dataDir": self.ipam.path(),
        });
        if let Some((host, own)) = self.port {
            config["runtimeConfig"]["portMappings"] =
                json!([{"hostPort": host, "containerPort": own, "protocol": "tcp"}]);
        }
        if !self.result.is_null() {
            config["prevResult"] = self.result.clone();
        }
        let mut process = node.program(self.bin.path().join(plugin));
        Call::new(&node.netns, self.bin.path(), plugin, "pod", &self.netns)
            .environment(command, &mut process);
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = process.spawn().unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        Reply::from(child.wait_with_output().unwrap())
    }
}
