//! Nodes on one bridge, and the files of many others in the store: see [`Rig`].
//!
//! Node N has 198.18.0.N. A peer is number N of the store; it has nothing in the kernel of this machine.

use std::{cell::RefCell, fs, path::PathBuf};

use anyhow::Context;
use harness::{Namespace, Service};
use serde_json::json;
use tempfile::TempDir;

use crate::bench::{agent, put};

/// The pods of all nodes: enough for every peer, in both families.
const NETWORKS: &str = "cluster: {podCIDRs: [10.0.0.0/9, 'fd00:10::/32']}\n";

/// A bridge, the nodes on it, and the store that they share.
pub(super) struct Rig {
    underlay: Namespace,
    pub(super) nodes: Vec<Node>,
    store: TempDir,
}

/// A node, with an agent when it has been started.
pub(super) struct Node {
    // Ends first.
    agent: RefCell<Option<Service>>,
    number: usize,
    pub(super) netns: Namespace,
    directory: TempDir,
    store: PathBuf,
}

impl Rig {
    pub(super) fn new() -> anyhow::Result<Self> {
        let underlay = Namespace::with_loopback();
        underlay.ip("link add br0 up type bridge");
        let store = tempfile::tempdir()?;
        fs::create_dir_all(store.path().join("fairlead/leases"))?;
        Ok(Self { underlay, nodes: Vec::new(), store })
    }

    /// A node that the store knows, without an agent.
    pub(super) fn add(&mut self, number: usize) -> anyhow::Result<&Node> {
        let netns = Namespace::with_loopback();
        let port = format!("port{number}");
        self.underlay
            .ip(&format!("link add {port} type veth peer name eth0 netns {}", netns.path().display()));
        self.underlay.ip(&format!("link set {port} master br0 up"));
        netns.ip("link set eth0 up");
        netns.ip(&format!("address add 198.18.0.{number}/15 dev eth0"));
        netns.ip("route add default via 198.18.255.254");
        // Nobody has it; but what waits for an answer of nobody would hold the witness's own buffer.
        netns.ip("neigh add 198.18.255.254 lladdr 02:00:00:00:ff:fe dev eth0 nud permanent");
        let manifest = node(&format!("node{number}"), &own_cidrs(number));
        put(self.store.path(), &format!("node{number}.yaml"), &manifest)?;
        let store = self.store.path().to_owned();
        let directory = tempfile::tempdir()?;
        fs::write(directory.path().join("config.yaml"), NETWORKS)?;
        self.nodes.push(Node { agent: RefCell::default(), number, netns, directory, store });
        self.nodes.last().context("a node was added")
    }

    /// The file that node `number`'s lease will be in.
    pub(super) fn lease(&self, number: usize) -> PathBuf {
        self.store.path().join(format!("fairlead/leases/node{number}.json"))
    }

    /// Writes so many peers, as their agents and a cluster's owner would.
    pub(super) fn put_peers(&self, count: usize) -> anyhow::Result<()> {
        (0..count).try_for_each(|number| self.put_peer(number, number))?;
        let nodes: String = (0..count).map(|number| node(&format!("peer{number}"), &[])).collect();
        put(self.store.path(), "peers.yaml", &nodes)
    }

    /// Writes the lease of a peer that has the pod CIDRs of this number.
    pub(super) fn put_peer(&self, number: usize, cidr: usize) -> anyhow::Result<()> {
        let name = format!("peer{number}");
        let [high, low] = [number / 256, number % 256];
        let lease = json!({
            "apiVersion": "fairlead/v1",
            "kind": "NodeLease",
            "metadata": {"name": name},
            "spec": {
                "backend": {
                    "type": "vxlan", "vni": 1, "port": 8472, "mac": format!("02:00:00:00:{high:02x}:{low:02x}"),
                },
                "mtu": 1450,
                "podCIDRs": [peer_cidr(cidr), format!("fd00:10:1:{cidr:x}::/64")],
                "underlay": [format!("198.19.{high}.{low}")],
            },
        });
        put(&self.store.path().join("fairlead/leases"), &format!("{name}.json"), &lease.to_string())
    }
}

/// The IPv4 pod CIDR number `number` of those that peers have.
pub(super) fn peer_cidr(number: usize) -> String {
    format!("10.{}.{}.0/24", 64 + number / 256, number % 256)
}

fn own_cidrs(number: usize) -> [String; 2] {
    [format!("10.0.{number}.0/24"), format!("fd00:10:0:{number:x}::/64")]
}

/// The manifest of a Node.
fn node(name: &str, cidrs: &[String]) -> String {
    let spec = if cidrs.is_empty() { String::new() } else { format!("spec: {{podCIDRs: {cidrs:?}}}\n") };
    format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n{spec}")
}

/// The manifest of a pod on that node.
pub(super) fn pod(node: usize) -> String {
    let containers = "containers: [{name: main, image: none}]";
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: pod{node}}}\nspec: {{nodeName: node{node}, {containers}}}\n"
    )
}

impl Node {
    /// Starts its agent.
    pub(super) fn start(&self) -> anyhow::Result<()> {
        let own = self.directory.path();
        let store = format!("dir:{}", self.store.display());
        let mut command = agent(&self.netns, &format!("node{}", self.number), &store, own)?;
        *self.agent.borrow_mut() = Some(Service::start(&mut command, own.join("agent.log")));
        Ok(())
    }

    /// A pod's stand-in: an address on a link as if a plugin had made it.
    pub(super) fn add_pod(&self) -> String {
        let address = format!("10.0.{}.5", self.number);
        self.netns.ip("link add pod0 type bridge");
        self.netns.ip("link set pod0 alias fairlead:bench/pod/eth0 up");
        self.netns.ip(&format!("address add {address}/32 dev pod0"));
        address
    }

    pub(super) fn state_dir(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    /// What its agent has said.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("agent.log")).unwrap_or_default()
    }

    pub(super) fn process(&self) -> anyhow::Result<u64> {
        Ok(self.agent.borrow().as_ref().context("the agent runs")?.id().into())
    }
}
