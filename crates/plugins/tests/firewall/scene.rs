//! A host, the plugins, and pods that a bridge plugin has wired: what every test here starts from.

use harness::{Call, Namespace, run, run_ok};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A host with the plugins installed.
pub(crate) struct Scene {
    pub(crate) host: Namespace,
    pub(crate) bin: TempDir,
    pub(crate) data: TempDir,
}

/// A pod with the result of its bridge.
pub(crate) struct Pod {
    pub(crate) namespace: Namespace,
    pub(crate) container: String,
    pub(crate) bridge: Value,
    pub(crate) result: Value,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self {
            host: Namespace::with_loopback(),
            bin: harness::plugin_directory(&["bridge", "firewall", "host-local"]),
            data: tempfile::tempdir().expect("a temporary directory"),
        }
    }

    /// Drops what is forwarded in iptables' own table, as container engines do.
    pub(crate) fn drop_forwarded(&self) {
        for program in ["iptables-nft", "ip6tables-nft"] {
            run_ok(self.host.command(program).args(["-w", "-P", "FORWARD", "DROP"]));
            run_ok(self.host.command(program).args(["-w", "-A", "FORWARD", "-i", "none0", "-j", "RETURN"]));
        }
    }

    /// A pod of network `network` on the bridge of that name, with an address of each family.
    pub(crate) fn pod(&self, network: &str, number: u8, container: &str) -> Pod {
        let ranges = [format!("10.{number}.0.0/24"), format!("2001:db8:{number}::/64")];
        let ranges: Vec<Value> = ranges.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
        let bridge = json!({
            "cniVersion": "1.1.0",
            "name": network,
            "type": "bridge",
            "bridge": network,
            "isDefaultGateway": true,
            "ipam": { "type": "host-local", "ranges": ranges, "dataDir": self.data.path() },
        });
        let namespace = Namespace::with_loopback();
        let mut pod = Pod { namespace, container: container.into(), bridge, result: Value::Null };
        pod.result = pod.call(self, "bridge").add(&pod.bridge);
        pod
    }

    /// Every element of every set.
    pub(crate) fn elements(&self) -> Vec<String> {
        let ruleset = self.host.nft_ruleset();
        let sets = ruleset.iter().filter_map(|object| object.get("set").or_else(|| object.get("map")));
        sets.filter_map(|set| set["elem"].as_array()).flatten().map(Value::to_string).collect()
    }

    /// The rules for pods in iptables' own table, of both families.
    pub(crate) fn accepting(&self) -> Vec<String> {
        let mut all = Vec::new();
        for program in ["iptables-nft", "ip6tables-nft"] {
            let listed = run(self.host.command(program).args(["-w", "-S", "CNI-FORWARD"]));
            let text = String::from_utf8(listed.stdout).unwrap();
            all.extend(text.lines().filter(|line| line.ends_with("-j ACCEPT")).map(str::to_owned));
        }
        all
    }

    /// Nothing that ADD makes for a pod is left.
    pub(crate) fn expect_clean(&self, what: &str) {
        assert_eq!(self.elements(), [""; 0], "{what}");
        assert_eq!(self.accepting(), [""; 0], "{what}");
    }
}

impl Pod {
    pub(crate) fn call<'a>(&'a self, scene: &'a Scene, plugin: &'a str) -> Call<'a> {
        Call::new(&scene.host, scene.bin.path(), plugin, &self.container, &self.namespace)
    }

    /// What the firewall is given; `more` is laid over it, and `null` removes a key.
    pub(crate) fn config(&self, more: Value) -> Value {
        let name = &self.bridge["name"];
        let mut config = json!({ "cniVersion": "1.1.0", "name": name, "type": "firewall",
            "backend": "iptables", "prevResult": self.result });
        for (key, value) in more.as_object().unwrap() {
            match value {
                Value::Null => drop(config.as_object_mut().unwrap().remove(key)),
                value => config[key] = value.clone(),
            }
        }
        config
    }

    pub(crate) fn admit(&self, scene: &Scene, more: Value) {
        assert_eq!(self.call(scene, "firewall").add(&self.config(more)), self.result);
    }

    /// The pod is gone without a DEL.
    pub(crate) fn lose_cable(&self, scene: &Scene) {
        let link = self.result["interfaces"][1]["name"].as_str().unwrap();
        scene.host.ip(&format!("link del {link}"));
    }

    pub(crate) fn address(&self) -> &str {
        self.result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap()
    }
}
