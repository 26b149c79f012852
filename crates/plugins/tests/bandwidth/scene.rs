//! A host with the plugins, and a chain: an interface plugin, perhaps `portmap`, then `bandwidth`.

use std::net::IpAddr;
use std::path::PathBuf;

use harness::{Call, Namespace, Reply, run_ok};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The interface plugins of ours that lay a cable.
pub(crate) const INTERFACES: [&str; 3] = ["bridge", "ptp", "fairlead"];

/// A host with the plugins installed and an empty address store.
pub(crate) struct Scene {
    pub(crate) host: Namespace,
    pub(crate) bin: TempDir,
    pub(crate) data: TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let scene = Self {
            host: Namespace::with_loopback(),
            bin: harness::plugin_directory(&[
                "bridge",
                "ptp",
                "fairlead",
                "host-local",
                "portmap",
                "bandwidth",
            ]),
            data: tempfile::tempdir().expect("a temporary directory"),
        };
        let network = json!({
            "node": "node1", "podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"],
            "clusterCIDRs": ["10.244.0.0/16", "fd00:10:244::/56"], "mtu": 1450,
        });
        std::fs::write(scene.data.path().join("network.json"), network.to_string()).unwrap();
        scene
    }

    /// The configuration of an interface plugin, with addresses of both families.
    pub(crate) fn interface(&self, kind: &str) -> Value {
        let mut config = json!({ "cniVersion": "1.1.0", "name": "test", "type": kind });
        let more = match kind {
            "fairlead" => json!({ "stateDir": self.data.path(), "dataDir": self.data.path() }),
            _ => json!({ "ipMasq": true, "bridge": "cni0", "isDefaultGateway": true, "macspoofchk": true,
                "ipam": { "type": "host-local", "dataDir": self.data.path(),
                    "ranges": [[{ "subnet": "10.1.2.0/24" }], [{ "subnet": "2001:db8:42::/64" }]] } }),
        };
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    }

    /// A pod in a chain of two.
    pub(crate) fn pod(&self, interface: Value, limits: Value) -> Pod<'_> {
        self.pod_in(vec![interface, chained("bandwidth", &limits)])
    }

    /// A pod in the whole chain: `portmap` with one port, and limits that spare a subnet.
    pub(crate) fn pod_with_port(&self) -> Pod<'_> {
        let ports = json!({ "runtimeConfig": { "portMappings": [
            { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] } });
        let mut limits = both_ways(8_000_000);
        limits["unshapedSubnets"] = json!(["10.0.0.0/8"]);
        self.pod_in(vec![self.interface("bridge"), chained("portmap", &ports), chained("bandwidth", &limits)])
    }

    fn pod_in(&self, configs: Vec<Value>) -> Pod<'_> {
        let namespace = Namespace::with_loopback();
        Pod { scene: self, namespace, netns: None, ifname: "eth0", configs }
    }

    /// The links made for pods.
    pub(crate) fn links(&self) -> Vec<String> {
        let names = self.host.link_names().into_iter();
        names.filter(|name| name.starts_with("veth") || name.starts_with("bwp")).collect()
    }

    pub(crate) fn ifbs(&self) -> Vec<String> {
        self.links().into_iter().filter(|name| name.starts_with("bwp")).collect()
    }

    /// Nothing that the chain makes for a pod is left.
    pub(crate) fn expect_clean(&self, what: &str) {
        assert_eq!(self.links(), [""; 0], "{what}: links are left");
        let entries = std::fs::read_dir(self.data.path().join("test")).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let reserved: Vec<String> = names.filter(|name| name.parse::<IpAddr>().is_ok()).collect();
        assert_eq!(reserved, [""; 0], "{what}: addresses are left");
        let elements = self.elements();
        assert!(elements.is_empty(), "{what}: nf_tables elements are left: {elements:?}");
    }

    /// Every element of every set and map in the host's nf_tables.
    pub(crate) fn elements(&self) -> Vec<String> {
        let ruleset = self.host.nft_ruleset();
        let sets = ruleset.iter().filter_map(|object| object.get("set").or_else(|| object.get("map")));
        sets.filter_map(|set| set["elem"].as_array()).flatten().map(Value::to_string).collect()
    }

    /// `tc -j` on the host.
    pub(crate) fn tc(&self, arguments: &str) -> Vec<Value> {
        let printed = run_ok(self.host.command("tc").arg("-j").args(arguments.split_whitespace()));
        if printed.trim().is_empty() { Vec::new() } else { serde_json::from_str(&printed).unwrap() }
    }
}

/// One pod: container `c`, and what the runtime knows of it.
pub(crate) struct Pod<'a> {
    pub(crate) scene: &'a Scene,
    pub(crate) namespace: Namespace,
    /// What the runtime says instead of the namespace's path.
    pub(crate) netns: Option<PathBuf>,
    pub(crate) ifname: &'a str,
    configs: Vec<Value>,
}

impl Pod<'_> {
    /// The place of the chain's last plugin, `bandwidth`.
    pub(crate) fn last(&self) -> usize {
        self.configs.len() - 1
    }

    /// A call of one of the chain's plugins.
    pub(crate) fn call(&self, plugin: usize) -> Call<'_> {
        let kind = self.configs[plugin]["type"].as_str().unwrap();
        let mut call = Call::new(&self.scene.host, self.scene.bin.path(), kind, "c", &self.namespace);
        call.ifname = self.ifname;
        if let Some(netns) = &self.netns {
            call.netns.clone_from(netns);
        }
        call
    }

    /// The configuration of one plugin with the result so far.
    pub(crate) fn config(&self, plugin: usize, previous: &Value) -> Value {
        let mut config = self.configs[plugin].clone();
        if !previous.is_null() {
            config["prevResult"] = previous.clone();
        }
        config
    }

    /// ADD of all plugins but the last.
    pub(crate) fn plug_in(&self) -> Value {
        let add = |previous, plugin| self.call(plugin).add(&self.config(plugin, &previous));
        (0..self.last()).fold(Value::Null, add)
    }

    /// ADD of the chain: the last result.
    pub(crate) fn add(&self) -> Value {
        self.call(self.last()).add(&self.config(self.last(), &self.plug_in()))
    }

    pub(crate) fn check(&self, result: &Value) -> Vec<Reply> {
        let check = |plugin| self.call(plugin).run("CHECK", &self.config(plugin, result));
        (0..self.configs.len()).map(check).collect()
    }

    pub(crate) fn expect_good(&self, result: &Value) {
        for reply in self.check(result) {
            reply.expect_success("CHECK");
        }
    }

    /// DEL of the chain, the last plugin first.
    pub(crate) fn del(&self, result: &Value) {
        for plugin in (0..self.configs.len()).rev() {
            self.call(plugin).del(&self.config(plugin, result));
        }
    }

    /// GC of the chain, with nobody left or just this pod.
    pub(crate) fn gc(&self, keep: bool) {
        for plugin in 0..self.configs.len() {
            let mut config = self.configs[plugin].clone();
            let own = json!([{ "containerID": "c", "ifname": self.ifname }]);
            config["cni.dev/valid-attachments"] = if keep { own } else { json!([]) };
            self.call(plugin).run("GC", &config).expect_success("GC");
        }
    }

    /// The pod's address of a family, and that of the host which it reaches.
    pub(crate) fn address(&self, result: &Value, v6: bool) -> String {
        let ips = result["ips"].as_array().unwrap();
        let addresses = ips.iter().map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap());
        addresses.map(str::to_owned).find(|address| address.contains(':') == v6).unwrap()
    }
}

/// The configuration of a chained plugin.
fn chained(kind: &str, more: &Value) -> Value {
    let mut config = json!({ "cniVersion": "1.1.0", "name": "test", "type": kind });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

/// Limits of `rate` bits a second each way, with a burst of a tenth of a second.
pub(crate) fn both_ways(rate: u64) -> Value {
    json!({ "ingressRate": rate, "ingressBurst": rate / 10, "egressRate": rate, "egressBurst": rate / 10 })
}
