//! A scene for policies: nodes whose pods the real plugin wires, policies and pods put into the store.
//!
//! Read [`Scene`]. All pods are on its first node.

use std::path::PathBuf;

use harness::talk::{ask, is_deaf};
use harness::{Call, Namespace, Reply, run_ok};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::rig::{Node, Rig};

/// A rig of one node whose pods the plugin wires.
pub(crate) struct Scene {
    pub(crate) rig: Rig,
    pub(crate) bin: TempDir,
    pub(crate) ipam: TempDir,
    bridge: bool,
}

/// A pod that was attached, or is about to be.
pub(crate) struct Pod {
    pub(crate) name: &'static str,
    pub(crate) uid: String,
    pub(crate) netns: Namespace,
    pub(crate) addresses: Vec<String>,
}

impl Scene {
    /// The agent runs, and enforces.
    pub(crate) fn enforcing() -> Self {
        Self::of(1, false)
    }

    /// The same of so many nodes, of which the first has the pods, on a bridge or not.
    pub(crate) fn of(nodes: usize, bridge: bool) -> Self {
        let mut scene = Self {
            rig: Rig::new(nodes),
            bin: harness::plugin_directory(&["fairlead"]),
            ipam: tempfile::tempdir().unwrap(),
            bridge,
        };
        for node in &mut scene.rig.nodes {
            node.configure("policy: {attachmentPatienceSeconds: 10}\n");
            node.bridge = bridge;
        }
        scene.start();
        scene
    }

    pub(crate) fn start(&mut self) {
        self.rig.nodes[0].start();
        self.await_enforced();
    }

    pub(crate) fn await_enforced(&self) {
        self.node().await_status("policies are in force", |status| status.ready && status.policies.enforced);
    }

    pub(crate) fn node(&self) -> &Node {
        &self.rig.nodes[0]
    }

    /// Puts a manifest into the store, in place of an earlier one of that name.
    pub(crate) fn put(&self, name: &str, manifest: &Value) {
        let store = self.rig.store.path();
        let half = store.join(format!(".{name}.half"));
        std::fs::write(&half, manifest.to_string()).unwrap();
        std::fs::rename(half, store.join(format!("{name}.json"))).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_file(self.rig.store.path().join(format!("{name}.json"))).unwrap();
    }

    pub(crate) fn put_pod(&self, pod: &Pod, app: &str) {
        self.put(
            pod.name,
            &json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"namespace": "shop", "name": pod.name, "uid": pod.uid, "labels": {"app": app}},
                "spec": {"nodeName": "node1"},
            }),
        );
    }

    /// A policy of that name for the pods with this label; `spec` is what else it says.
    pub(crate) fn put_policy(&self, name: &str, app: &str, mut spec: Value) {
        spec["podSelector"] = json!({"matchLabels": {"app": app}});
        self.put(
            name,
            &json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
                "metadata": {"namespace": "shop", "name": name}, "spec": spec,
            }),
        );
    }

    pub(crate) fn config(&self) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "fairlead", "type": "fairlead",
            "stateDir": self.node().state_dir(), "dataDir": self.ipam.path(),
            "mode": if self.bridge { "bridge" } else { "routed" },
        })
    }

    pub(crate) fn call(&self, command: &str, pod: &Pod) -> Reply {
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={};K8S_POD_UID={}",
            pod.name, pod.uid
        );
        let mut call = Call::new(&self.node().netns, self.bin.path(), "fairlead", &pod.uid, &pod.netns);
        call.args = &args;
        call.run(command, &self.config())
    }

    pub(crate) fn attach(&self, pod: &mut Pod) {
        let result = self.call("ADD", pod).expect_success("ADD");
        let ips = result["ips"].as_array().unwrap().iter();
        let address = |ip: &Value| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned();
        pod.addresses = ips.map(address).collect();
    }

    /// A pod in the store and in the network.
    pub(crate) fn pod(&self, name: &'static str, app: &str) -> Pod {
        let mut pod = Pod::new(name, &format!("uid-of-{name}"));
        self.put_pod(&pod, app);
        self.attach(&mut pod);
        pod
    }

    pub(crate) fn attachments(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.node().state_dir().join("attachments")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// Whether all that goes to or comes from these addresses is dropped.
    pub(crate) fn is_closed(&self, pod: &Pod) -> bool {
        ["ingress", "egress"].iter().all(|direction| {
            let closed = json!({"goto": {"target": format!("{direction}-closed")}});
            let chains = self.map(&format!("{direction}-chains"));
            let Some((class, _)) = chains.into_iter().find(|(_, chain)| *chain == closed) else {
                return false;
            };
            let members = [4, 6].map(|version| self.map(&format!("{direction}{version}"))).concat();
            pod.addresses.iter().all(|address| members.contains(&(json!(address), class.clone())))
        })
    }

    /// The keys of a map of the table, with what they lead to.
    fn map(&self, name: &str) -> Vec<(Value, Value)> {
        let list = ["-j", "list", "map", "inet", "fairlead_policy", name];
        let listed: Value =
            serde_json::from_str(&run_ok(self.node().netns.command("nft").args(list))).unwrap();
        let listed = listed["nftables"].as_array().unwrap();
        let map = listed.iter().find_map(|object| object.get("map")).unwrap();
        let pairs = map["elem"].as_array().into_iter().flatten();
        pairs.map(|pair| (pair[0].clone(), pair[1].clone())).collect()
    }

    /// The table, without what it has counted.
    pub(crate) fn table(&self) -> String {
        run_ok(self.node().netns.command("nft").args(["-s", "list", "table", "inet", "fairlead_policy"]))
    }
}

impl Pod {
    pub(crate) fn new(name: &'static str, uid: &str) -> Self {
        Self { name, uid: uid.to_owned(), netns: Namespace::with_loopback(), addresses: Vec::new() }
    }

    pub(crate) fn asks(&self, other: &Self) -> bool {
        other
            .addresses
            .iter()
            .all(|address| ask(&self.netns, address, 80).as_deref() == Some(&*self.says(address, other)))
    }

    /// What a server says to this pod.
    pub(crate) fn says(&self, address: &str, other: &Self) -> String {
        let own = self.addresses.iter().find(|own| own.contains(':') == address.contains(':'));
        format!("{} {}", other.name, own.unwrap())
    }

    pub(crate) fn is_deaf_to(&self, other: &Self) -> bool {
        other.addresses.iter().all(|address| is_deaf(&self.netns, address, 80))
    }
}

/// What lets in only pods with that label.
pub(crate) fn only_from(app: &str) -> Value {
    json!({"ingress": [{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}]})
}
