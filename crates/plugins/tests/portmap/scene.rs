//! A host with a bridge network and somebody outside, and pods with host ports.

use harness::{Call, Namespace, Reply};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The host's addresses towards the outside, and those of who is there.
pub(crate) const HOST: [&str; 2] = ["192.0.2.1", "2001:db8:9::1"];
pub(crate) const OUTSIDE: [&str; 2] = ["192.0.2.9", "2001:db8:9::9"];

/// The gateways of the bridge network: what translated sources become.
pub(crate) const GATEWAY: [&str; 2] = ["10.1.2.1", "2001:db8:42::1"];

/// The host.
pub(crate) struct Scene {
    pub(crate) host: Namespace,
    pub(crate) outside: Namespace,
    pub(crate) bin: TempDir,
    pub(crate) data: TempDir,
}

/// A pod on the network `test`, or on the one it was made for.
pub(crate) struct Pod {
    pub(crate) namespace: Namespace,
    pub(crate) name: String,
    pub(crate) network: String,
    pub(crate) result: Value,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let scene = Self {
            host: Namespace::with_loopback(),
            outside: Namespace::with_loopback(),
            bin: harness::plugin_directory(&["bridge", "host-local", "portmap"]),
            data: tempfile::tempdir().expect("a temporary directory"),
        };
        let path = scene.outside.path();
        let pid = path.iter().nth(2).unwrap().to_str().unwrap();
        scene.host.ip(&format!("link add up0 type veth peer name up0 netns {pid}"));
        for (namespace, addresses) in [(&scene.host, HOST), (&scene.outside, OUTSIDE)] {
            namespace.ip("link set up0 up");
            namespace.ip(&format!("address add {}/24 dev up0", addresses[0]));
            namespace.ip(&format!("address add {}/64 dev up0 nodad", addresses[1]));
        }
        scene.outside.ip("route add default via 192.0.2.1");
        scene
    }

    /// The same on a host whose bridges ask the packet filter about what they forward, or do not.
    pub(crate) fn with_filtered_bridges(filtered: bool) -> Self {
        let scene = Self::new();
        for program in ["iptables", "ip6tables"] {
            // A kernel without the file never asks.
            let file = format!("/proc/sys/net/bridge/bridge-nf-call-{program}");
            let line = format!("[ ! -e {file} ] || echo {} > {file}", u8::from(filtered));
            harness::run_ok(scene.host.command("sh").args(["-c", &line]));
        }
        scene
    }

    /// The configuration of the bridge network `network`.
    pub(crate) fn bridge(&self, network: &str) -> Value {
        let subnets = match network {
            "test" => ["10.1.2.0/24", "2001:db8:42::/64"],
            _ => ["10.1.3.0/24", "2001:db8:43::/64"],
        };
        let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
        json!({
            "cniVersion": "1.1.0", "name": network, "type": "bridge", "bridge": format!("br-{network}"),
            "isDefaultGateway": true, "hairpinMode": true,
            "ipam": { "type": "host-local", "ranges": ranges, "dataDir": self.data.path() },
        })
    }

    /// A pod of network `test`, without host ports yet.
    pub(crate) fn pod(&self, name: &str) -> Pod {
        self.pod_of("test", name)
    }

    pub(crate) fn pod_of(&self, network: &str, name: &str) -> Pod {
        let namespace = Namespace::new();
        let call = Call::new(&self.host, self.bin.path(), "bridge", name, &namespace);
        let result = call.add(&self.bridge(network));
        Pod { namespace, name: name.into(), network: network.into(), result }
    }

    /// A pod that has these host ports.
    pub(crate) fn pod_with(&self, name: &str, mappings: Value) -> Pod {
        let pod = self.pod(name);
        self.map(&pod, "ADD", mappings, json!({})).expect_success("ADD");
        pod
    }

    /// The configuration of portmap for a pod with these host ports and more keys.
    pub(crate) fn config(&self, pod: &Pod, mappings: Value, more: Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": pod.network, "type": "portmap", "prevResult": pod.result,
            "runtimeConfig": { "portMappings": mappings },
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            config[key] = value.clone();
        }
        config
    }

    /// Calls portmap for a pod.
    pub(crate) fn map(&self, pod: &Pod, command: &str, mappings: Value, more: Value) -> Reply {
        self.call(pod).run(command, &self.config(pod, mappings, more))
    }

    pub(crate) fn call<'a>(&'a self, pod: &'a Pod) -> Call<'a> {
        Call::new(&self.host, self.bin.path(), "portmap", &pod.name, &pod.namespace)
    }

    /// DEL of the whole chain, as a runtime makes it: the last plugin first.
    pub(crate) fn delete(&self, pod: &Pod, mappings: Value) {
        self.call(pod).del(&self.config(pod, mappings, json!({})));
        let call = Call::new(&self.host, self.bin.path(), "bridge", &pod.name, &pod.namespace);
        call.del(&self.bridge(&pod.network));
    }

    /// GC of network `test` that keeps nobody.
    pub(crate) fn collect(&self, network: &str, keep: &[&Pod]) -> Reply {
        let keep: Vec<Value> =
            keep.iter().map(|pod| json!({ "containerID": pod.name, "ifname": "eth0" })).collect();
        let config = json!({
            "cniVersion": "1.1.0", "name": network, "type": "portmap", "cni.dev/valid-attachments": keep,
        });
        let mut call = Call::new(&self.host, self.bin.path(), "portmap", "", &self.host);
        call.netns = std::path::PathBuf::new();
        call.ifname = "";
        call.run("GC", &config)
    }

    /// Every element that stands for a host port, as nft prints it.
    pub(crate) fn elements(&self) -> Vec<String> {
        let ruleset = self.host.nft_ruleset();
        let sets = ruleset.iter().filter_map(|object| object.get("set").or_else(|| object.get("map")));
        let ours = sets.filter(|set| set["name"].as_str().is_some_and(|name| name.starts_with("hostport")));
        ours.filter_map(|set| set["elem"].as_array()).flatten().map(Value::to_string).collect()
    }

    /// The ruleset as a person reads it.
    pub(crate) fn listing(&self) -> String {
        harness::run_ok(self.host.command("nft").args(["list", "table", "inet", "fairlead_cni"]))
    }
}

/// One TCP mapping.
pub(crate) fn tcp(host_port: u16, port: u16) -> Value {
    json!([{ "hostPort": host_port, "containerPort": port, "protocol": "tcp" }])
}
