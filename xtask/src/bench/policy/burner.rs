//! Large clusters as manifests, in the shape that public workloads for policies have: see [`Burner`].
//!
//! What will be changed has a file of its own; the rest is in one file for each namespace.

use std::{
    cell::RefCell,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use harness::{Namespace, Service};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::bench::{agent, put};

const NAMESPACES: usize = 1000;
const PODS: usize = 20_000;
/// Nodes that the pods of a wide cluster are spread over.
const NODES: usize = 200;
/// Teams that namespaces belong to in turn.
const TEAMS: usize = 20;
/// Pods of this node in a deep cluster.
const DEEP: usize = 300;
const CONFIG: &str =
    "cluster: {podCIDRs: [10.244.0.0/16, 'fd00:10:244::/48']}\nunderlay: {interface: eth0}\n";
/// Of which no policy is enforced.
pub(super) const WITHOUT: &str = "policy: {enforcement: false}\n";

/// A cluster in a directory.
pub(super) struct Burner {
    store: TempDir,
    is_deep: bool,
}

/// A file as it is to be put into the store.
pub(super) struct Change {
    file: String,
    manifest: Value,
}

impl Burner {
    /// 10,000 policies in 1,000 namespaces, 20,000 pods on 200 nodes.
    pub(super) fn wide() -> anyhow::Result<Self> {
        let policies = |namespace: usize| (namespace * 10..namespace * 10 + 10).collect();
        Self::new(false, &policies)
    }

    /// 1,000 policies of one namespace, all about its 300 pods, which are all on one node.
    pub(super) fn deep() -> anyhow::Result<Self> {
        let policies = |namespace: usize| if namespace == 0 { (0..1000).collect() } else { Vec::new() };
        Self::new(true, &policies)
    }

    /// The wide cluster with no other policies than the first few.
    pub(super) fn few(count: usize) -> anyhow::Result<Self> {
        let policies = |namespace: usize| if namespace == 0 { (0..count).collect() } else { Vec::new() };
        Self::new(false, &policies)
    }

    fn new(is_deep: bool, policies: &dyn Fn(usize) -> Vec<usize>) -> anyhow::Result<Self> {
        let cluster = Self { store: tempfile::tempdir()?, is_deep };
        let nodes = (1..=NODES).map(|number| {
            let spec = if number == 1 { json!({ "podCIDRs": ["10.244.0.0/24", "fd00:10:244::/64"] }) } else { json!({}) };
            json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": format!("node{number}") }, "spec": spec })
        });
        cluster.write("nodes.yaml", &list(nodes.collect()))?;
        let mut pods: Vec<Vec<usize>> = vec![Vec::new(); NAMESPACES];
        (0..PODS).for_each(|number| pods[cluster.namespace_of(number)].push(number));
        for (namespace, own) in pods.iter().enumerate() {
            let (single, bundled): (Vec<usize>, Vec<usize>) =
                own.iter().partition(|number| cluster.is_single(**number));
            for number in single {
                cluster.put(&cluster.pod(number, &[]))?;
            }
            let mut items: Vec<Value> =
                bundled.iter().map(|number| cluster.pod(*number, &[]).manifest).collect();
            for number in policies(namespace) {
                match number == about_all(namespace) || is_deep {
                    true => cluster.put(&cluster.policy(number, false))?,
                    false => items.push(cluster.policy(number, false).manifest),
                }
            }
            cluster.write(&format!("objects-{namespace}.yaml"), &list(items))?;
            cluster.put(&namespaced(namespace, namespace % TEAMS))?;
        }
        Ok(cluster)
    }

    pub(super) fn store(&self) -> &Path {
        self.store.path()
    }

    /// A pod of this node that those policies are about which are about all pods of the namespace `ns-0`, and that the first
    /// of them lets reach, and be reached by, others like it at port 8080.
    pub(super) fn put_guest(&self, name: &str, address: Option<&str>) -> anyhow::Result<()> {
        let ips: Vec<Value> = address.iter().map(|ip| json!({ "ip": ip })).collect();
        let manifest = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": "ns-0", "name": name, "labels": { "app": "app-0", "tier": "tier-2" } },
            "spec": { "nodeName": "node1", "containers": [{
                "name": "main", "image": "none", "ports": [{ "name": "http", "containerPort": 8080 }] }] },
            "status": { "phase": "Running", "podIPs": ips },
        });
        self.write(&format!("{name}.yaml"), &manifest)
    }

    pub(super) fn put(&self, change: &Change) -> anyhow::Result<()> {
        self.write(&change.file, &change.manifest)
    }

    fn write(&self, file: &str, manifest: &Value) -> anyhow::Result<()> {
        put(self.store.path(), file, &manifest.to_string())
    }

    /// So many changes of each kind that say something else to this node, each a file.
    pub(super) fn changes(&self, count: usize) -> anyhow::Result<Vec<(&'static str, Vec<Change>)>> {
        let here: Vec<usize> = (0..PODS).filter(|number| self.node_of(*number) == 1).collect();
        let here = |step: usize| -> anyhow::Result<usize> {
            here.get(step % here.len()).copied().context("there are pods here")
        };
        let mut kinds =
            vec![("a pod here has other labels", Vec::new()), ("a pod here has another address", Vec::new())];
        kinds.extend([
            ("a policy about pods here is edited", Vec::new()),
            ("a pod elsewhere has another address", Vec::new()),
        ]);
        if !self.is_deep {
            kinds.push(("a namespace has other labels", Vec::new()));
        }
        for step in 0..count {
            let pod = here(step)?;
            let namespace = self.namespace_of(pod);
            let elsewhere = if self.is_deep { DEEP + step } else { pod + 1 };
            let changes = [
                self.pod(pod, &[("app", "other")]),
                self.moved(pod, &[("app", "other")]),
                self.policy(if self.is_deep { step } else { about_all(namespace) }, true),
                self.moved(elsewhere, &[]),
                // Of the first team, which rules of this node select by.
                namespaced(step * TEAMS % NAMESPACES, TEAMS + step),
            ];
            kinds.iter_mut().zip(changes).for_each(|((_, kind), change)| kind.push(change));
        }
        Ok(kinds)
    }

    fn namespace_of(&self, pod: usize) -> usize {
        if self.is_deep && pod < DEEP { 0 } else { pod / (PODS / NAMESPACES) }
    }

    fn node_of(&self, pod: usize) -> usize {
        match self.is_deep {
            true => {
                if pod < DEEP {
                    1
                } else {
                    2
                }
            }
            false => pod % NODES + 1,
        }
    }

    /// Whether a pod will be changed.
    fn is_single(&self, pod: usize) -> bool {
        self.node_of(pod) == 1
            || self.node_of(pod) == 2 && pod < DEEP + 100
            || self.node_of(pod) == 2 && !self.is_deep
    }

    /// A pod as it is at first, but for these labels.
    fn pod(&self, number: usize, other: &[(&str, &str)]) -> Change {
        self.pod_at(number, 0, other)
    }

    /// The same pod at another address.
    fn moved(&self, number: usize, other: &[(&str, &str)]) -> Change {
        self.pod_at(number, 1, other)
    }

    fn pod_at(&self, number: usize, half: usize, other: &[(&str, &str)]) -> Change {
        let [high, low] = [number / 256 + half * 128, number % 256];
        let mut labels = json!({
            "app": format!("app-{}", number % 10), "tier": format!("tier-{}", number % 3),
            "pod-template-hash": format!("{:x}", number / 4 * 40_503 % 1_000_003),
        });
        for (key, value) in other {
            labels[*key] = (*value).into();
        }
        let name = format!("pod-{number}");
        let ips = json!([{ "ip": format!("10.244.{high}.{low}") }, { "ip": format!("fd00:10:244::{high:x}:{low:x}") }]);
        let ports = json!([{ "name": "http", "containerPort": 8080 }]);
        let manifest = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "namespace": format!("ns-{}", self.namespace_of(number)), "name": name, "labels": labels },
            "spec": { "nodeName": format!("node{}", self.node_of(number)),
                      "containers": [{ "name": "main", "image": "none", "ports": ports }] },
            "status": { "phase": "Running", "podIPs": ips },
        });
        Change { file: format!("{name}.yaml"), manifest }
    }

    /// A policy as it is at first, or edited.
    fn policy(&self, number: usize, is_edited: bool) -> Change {
        let namespace = if self.is_deep { 0 } else { number / 10 };
        let subjects = match number % 3 {
            _ if self.is_deep => json!({}),
            0 => json!({}),
            1 => json!({ "matchLabels": { "tier": format!("tier-{}", number % 3) } }),
            _ => json!({ "matchLabels": { "app": format!("app-{}", number % 10) } }),
        };
        let app = json!({ "matchLabels": { "app": format!("app-{}", number % 10) } });
        let other = |step: usize| json!({ "matchLabels": { "kubernetes.io/metadata.name": format!("ns-{}", (number * 7 + step) % NAMESPACES) } });
        let block = json!({ "ipBlock": {
            "cidr": format!("192.{}.0.0/16", number % 200), "except": [format!("192.{}.8.0/24", number % 200)],
        } });
        let ports = json!([{ "port": 80 }, { "port": 443 }, { "port": "http" }]);
        let ranges = json!([{ "port": 8000, "endPort": 8090 }, { "protocol": "UDP", "port": 53 }]);
        let rules = |way: &str, extra: Value| {
            let mut rules = vec![
                json!({ way: [{ "podSelector": app }, extra], "ports": ports }),
                json!({ way: [{ "namespaceSelector": other(1) }], "ports": ranges }),
                json!({ way: [block] }),
            ];
            if is_edited {
                rules.push(
                    json!({ way: [{ "podSelector": {} }], "ports": [{ "port": 9000 + number % 100 }] }),
                );
            }
            rules
        };
        let everywhere = json!({ "namespaceSelector": {}, "podSelector": app });
        let mut spec = json!({ "podSelector": subjects, "ingress": rules("from", everywhere) });
        if number.is_multiple_of(2) {
            let team = json!({ "matchLabels": { "team": format!("team-{}", number % TEAMS) } });
            spec["egress"] = rules("to", json!({ "namespaceSelector": team, "podSelector": app })).into();
        }
        let name = format!("policy-{number}");
        let manifest = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "namespace": format!("ns-{namespace}"), "name": name }, "spec": spec,
        });
        Change { file: format!("{name}.yaml"), manifest }
    }
}

/// The first policy of a namespace that is about all of its pods, whatever labels they have.
fn about_all(namespace: usize) -> usize {
    (namespace * 10).next_multiple_of(3)
}

fn namespaced(number: usize, team: usize) -> Change {
    let name = format!("ns-{number}");
    let labels = json!({ "team": format!("team-{team}"), "kubernetes.io/metadata.name": name });
    let manifest =
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } });
    Change { file: format!("{name}.yaml"), manifest }
}

fn list(items: Vec<Value>) -> Value {
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

/// A node of such a cluster, with an agent once it has been started.
pub(super) struct Node {
    // Ends first.
    agent: RefCell<Option<Service>>,
    name: String,
    pub(super) netns: Namespace,
    directory: TempDir,
    store: PathBuf,
}

impl Node {
    /// Its configuration says this beside what all say.
    pub(super) fn new(store: &Path, name: &str, config: &str) -> anyhow::Result<Self> {
        let netns = Namespace::with_loopback();
        netns.ip("link add eth0 up type veth peer name far");
        netns.ip("link set far up");
        netns.ip("link set eth0 up");
        netns.ip("address add 198.18.0.1/24 dev eth0");
        let directory = tempfile::tempdir()?;
        fs::write(directory.path().join("config.yaml"), format!("{CONFIG}{config}"))?;
        Ok(Self {
            agent: RefCell::default(),
            name: name.to_owned(),
            netns,
            directory,
            store: store.to_owned(),
        })
    }

    /// Starts its agent.
    pub(super) fn start(&self) -> anyhow::Result<()> {
        let own = self.directory.path();
        let store = format!("dir:{}", self.store.display());
        let mut command = agent(&self.netns, &self.name, &store, own)?;
        *self.agent.borrow_mut() = Some(Service::start(&mut command, own.join("agent.log")));
        Ok(())
    }

    pub(super) fn state_dir(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    /// The files that its agent writes for the container runtime.
    pub(super) fn conf_dir(&self) -> PathBuf {
        self.directory.path().join("net.d")
    }

    pub(super) fn process(&self) -> anyhow::Result<u64> {
        Ok(self.agent.borrow().as_ref().context("the agent runs")?.id().into())
    }
}
