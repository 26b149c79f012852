//! Ten thousand operations, sixteen at a time, with plugins killed at random: no address lost or given twice, nothing left.
//!
//! Read [`Node`] for the two networks and [`Worker::operate`] for what is done to them. The test plays a container
//! runtime that keeps to the rules (CNI specification, section 1): never two operations for one container at once, GC
//! alone on its network, DEL after an ADD that failed. A plugin that is killed leaves its container in doubt; from then
//! on it must be deleted, or collected, before it is added again. The subnets are barely larger than the number of
//! containers, so that a lost address is soon missed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests drive programs, and panic when they fail"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::Duration;

use harness::{Call, Namespace, plugin_directory, run_ok};
use serde_json::{Value, json};

const OPERATIONS: usize = 10_000;
const AT_A_TIME: usize = 16;
const CONTAINERS: usize = 24;

/// One operation of so many has a plugin killed.
const KILL_ONE_OF: u64 = 6;

/// What the runtime knows of one container in one network.
#[derive(Debug, Clone, Default)]
enum Attachment {
    #[default]
    Detached,
    Attached(Value),
    /// An ADD or DEL was killed; what the plugins said last, if anything.
    InDoubt(Option<Value>),
}

/// A network of the node: its plugins, and its attachments by container.
struct Network {
    name: &'static str,
    plugins: Vec<Value>,
    attachments: Vec<Mutex<Attachment>>,
    /// GC takes it alone.
    operation: RwLock<()>,
    addresses: PathBuf,
}

/// A host with its pods.
struct Node {
    host: Namespace,
    pods: Vec<Namespace>,
    networks: [Network; 2],
    bin: tempfile::TempDir,
    _directory: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let network = |name: &'static str, subnet: &str, kind: &str, more: Value, chained: Vec<Value>| {
            let addresses = directory.path().join(name);
            let mut first = json!({
                "type": kind, "ipMasq": true,
                "ipam": { "type": "host-local", "dataDir": addresses, "ranges": [[{ "subnet": subnet }]] },
            });
            first.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let mut plugins = vec![first];
            plugins.extend(chained);
            for plugin in &mut plugins {
                plugin["name"] = json!(name);
                plugin["cniVersion"] = json!("1.1.0");
            }
            let attachments = (0..CONTAINERS).map(|_| Mutex::default()).collect();
            Network {
                name,
                plugins,
                attachments,
                operation: RwLock::new(()),
                addresses: addresses.join(name),
            }
        };
        let limits = json!({ "type": "bandwidth", "ingressRate": 8_000_000, "ingressBurst": 8_000_000,
            "egressRate": 8_000_000, "egressBurst": 8_000_000 });
        let networks = [
            network(
                "bridged",
                "10.7.0.0/27",
                "bridge",
                json!({ "bridge": "br0", "isDefaultGateway": true, "macspoofchk": true }),
                vec![json!({ "type": "portmap" }), limits, json!({ "type": "firewall" })],
            ),
            network("wired", "10.8.0.0/27", "ptp", json!({}), vec![json!({ "type": "portmap" })]),
        ];
        let host = Namespace::with_loopback();
        let pods = (0..CONTAINERS).map(|_| Namespace::new()).collect();
        let bin = plugin_directory(&["bridge", "ptp", "host-local", "portmap", "bandwidth", "firewall"]);
        Self { host, pods, networks, bin, _directory: directory }
    }

    /// Runs one verb over a network's plugins for a container. `Err` when one was killed, with what was said before.
    fn chain(
        &self,
        (network, container): (&Network, usize),
        verb: &str,
        known: Option<&Value>,
        kill: &mut Option<Kill>,
    ) -> Result<Option<Value>, Option<Value>> {
        let id = format!("container{container}");
        let ifname = if network.name == "bridged" { "eth0" } else { "net1" };
        let mut plugins: Vec<&Value> = network.plugins.iter().collect();
        if verb == "DEL" {
            plugins.reverse();
        }
        let mut said = known.cloned();
        for plugin in plugins {
            let mut config = plugin.clone();
            if let Some(result) = &said {
                config["prevResult"] = result.clone();
            }
            if config["type"] == "portmap" {
                let port = 20_000 + container + if ifname == "eth0" { 0 } else { 1000 };
                config["runtimeConfig"] = json!({ "portMappings": [
                    { "hostPort": port, "containerPort": 80, "protocol": "tcp" },
                    { "hostPort": port, "containerPort": 53, "protocol": "udp" },
                ] });
            }
            let kind = plugin["type"].as_str().unwrap();
            let call =
                Call { ifname, ..Call::new(&self.host, self.bin.path(), kind, &id, &self.pods[container]) };
            let reply = killable(&call, verb, &config, kill).map_err(|()| said.clone())?;
            if verb == "ADD" {
                said = Some(reply.unwrap());
            }
        }
        Ok(said)
    }

    /// GC of a network, with everybody who is attached for certain.
    fn collect(&self, network: &Network, kill: &mut Option<Kill>) {
        let _alone = network.operation.write().unwrap();
        let ifname = if network.name == "bridged" { "eth0" } else { "net1" };
        let mut valid = Vec::new();
        for (container, attachment) in network.attachments.iter().enumerate() {
            if let Attachment::Attached(_) = &*attachment.lock().unwrap() {
                valid.push(json!({ "containerID": format!("container{container}"), "ifname": ifname }));
            }
        }
        for plugin in &network.plugins {
            let mut config = plugin.clone();
            config["cni.dev/valid-attachments"] = json!(valid);
            let kind = plugin["type"].as_str().unwrap();
            let call = Call::new(&self.host, self.bin.path(), kind, "", &self.host);
            if killable(&call, "GC", &config, kill).is_err() {
                return;
            }
        }
    }

    /// The addresses that are written down for a network.
    fn written(network: &Network) -> BTreeSet<String> {
        let entries = fs::read_dir(&network.addresses).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("10.")).collect()
    }
}

/// When a plugin of an operation is to be killed.
#[derive(Debug, Clone, Copy)]
struct Kill {
    /// How many plugins of the chain are spared.
    spared: u64,
    after: Duration,
}

/// Calls a plugin; `Err` when it was killed, `Ok` with its result (of ADD) when it succeeded.
fn killable(
    call: &Call<'_>,
    verb: &str,
    config: &Value,
    kill: &mut Option<Kill>,
) -> Result<Option<Value>, ()> {
    let mut command = call.command(verb);
    if verb == "GC" {
        for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the plugin starts");
    let _ = child.stdin.take().expect("a pipe").write_all(config.to_string().as_bytes());
    let mut killed = false;
    match kill {
        Some(Kill { spared: 0, after }) => {
            std::thread::sleep(*after);
            killed = child.kill().is_ok();
            *kill = None;
        }
        Some(Kill { spared, .. }) => *spared -= 1,
        None => {}
    }
    let output = child.wait_with_output().expect("it ends");
    if output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        return Ok((verb == "ADD").then(|| serde_json::from_str(&said).expect("a result")));
    }
    // One that ended by itself before the signal came has failed by itself.
    assert!(killed && output.status.code().is_none(), "{call:?} {verb} {config}: {output:?}");
    Err(())
}

/// Numbers that look random and come again with the same seed (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// One of those who operate at the same time.
struct Worker<'a> {
    node: &'a Node,
    random: Random,
}

impl Worker<'_> {
    /// One operation on a container that nobody else operates on.
    fn operate(&mut self) {
        let node = self.node;
        let network = &node.networks[usize::from(self.random.below(3) == 0)];
        let mut kill = (self.random.below(KILL_ONE_OF) == 0).then(|| Kill {
            spared: self.random.below(network.plugins.len() as u64),
            after: Duration::from_micros(self.random.below(8000)),
        });
        if self.random.below(100) == 0 {
            return node.collect(network, &mut kill);
        }
        let _shared = network.operation.read().unwrap();
        let (container, mut attachment) = loop {
            let container = self.random.below(CONTAINERS as u64) as usize;
            if let Ok(attachment) = network.attachments[container].try_lock() {
                break (container, attachment);
            }
            std::thread::yield_now();
        };
        let kill = &mut kill;
        *attachment = match std::mem::take(&mut *attachment) {
            Attachment::Detached if self.random.below(8) == 0 => {
                let gone = node.chain((network, container), "DEL", None, kill);
                gone.map_or(Attachment::InDoubt(None), |_| Attachment::Detached)
            }
            Attachment::Detached => match node.chain((network, container), "ADD", None, kill) {
                Ok(result) => Attachment::Attached(result.unwrap()),
                Err(said) => Attachment::InDoubt(said),
            },
            Attachment::Attached(result) if self.random.below(2) == 0 => {
                let _ = node.chain((network, container), "CHECK", Some(&result), kill);
                Attachment::Attached(result)
            }
            Attachment::Attached(result) => {
                let gone = node.chain((network, container), "DEL", Some(&result), kill);
                gone.map_or(Attachment::InDoubt(Some(result)), |_| Attachment::Detached)
            }
            Attachment::InDoubt(said) => {
                // Sometimes the runtime has forgotten what was said.
                let said = said.filter(|_| self.random.below(2) == 0);
                let gone = node.chain((network, container), "DEL", said.as_ref(), kill);
                gone.map_or(Attachment::InDoubt(said), |_| Attachment::Detached)
            }
        };
        drop(attachment);
        distinct(network);
    }
}

/// No two attachments have one address.
fn distinct(network: &Network) {
    let mut seen = BTreeSet::new();
    for attachment in &network.attachments {
        let Ok(attachment) = attachment.try_lock() else { continue };
        if let Attachment::Attached(result) = &*attachment {
            let address = result["ips"][0]["address"].as_str().unwrap().to_owned();
            assert!(seen.insert(address.clone()), "{address} was given twice in {}", network.name);
        }
    }
}

fn address(result: &Value) -> String {
    result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap().to_owned()
}

#[test]
fn ten_thousand_operations_with_random_kills_lose_nothing_give_nothing_twice_and_leave_nothing() {
    let node = Node::new();
    let seed =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64 | 1;
    println!("seed {seed}");
    let done = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for number in 0..AT_A_TIME as u64 {
            let (node, done) = (&node, &done);
            scope.spawn(move || {
                let mut worker = Worker { node, random: Random(seed ^ (number << 32) ^ 0x9e37_79b9) };
                while done.fetch_add(1, Ordering::Relaxed) < OPERATIONS {
                    worker.operate();
                }
            });
        }
    });
    for network in &node.networks {
        // Whoever is in doubt is collected; whoever is attached stays, whole.
        node.collect(network, &mut None);
        let mut attached = BTreeSet::new();
        for (container, attachment) in network.attachments.iter().enumerate() {
            let attachment = attachment.lock().unwrap();
            if let Attachment::Attached(result) = &*attachment {
                attached.insert(address(result));
                node.chain((network, container), "CHECK", Some(result), &mut None).unwrap();
            }
        }
        assert_eq!(Node::written(network), attached, "{}", network.name);
    }
    for network in &node.networks {
        for attachment in &network.attachments {
            *attachment.lock().unwrap() = Attachment::Detached;
        }
        node.collect(network, &mut None);
        assert_eq!(Node::written(network), BTreeSet::new());
        left_over_files(&network.addresses);
    }
    nothing_is_left(&node);
}

/// host-local keeps a lock, hints and an index; nothing that grows with the number of operations.
fn left_over_files(directory: &Path) {
    let names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name != "lock" && !name.starts_with("last_reserved_ip."))
        .collect();
    assert!(names.len() <= 2, "{names:?}");
}

fn nothing_is_left(node: &Node) {
    assert_eq!(node.host.link_names(), ["br0"], "only the bridge stays");
    for pod in &node.pods {
        assert_eq!(pod.link_names(), Vec::<String>::new());
    }
    let ruleset = node.host.nft_ruleset();
    for item in &ruleset {
        for kind in ["set", "map"] {
            assert!(item[kind]["elem"].as_array().is_none_or(Vec::is_empty), "{item:#}");
        }
    }
    let routes = run_ok(node.host.command("ip").args(["route", "show"]));
    assert!(routes.lines().all(|route| route.contains("dev br0")), "{routes}");
}
