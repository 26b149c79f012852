//! The rig: [`Rig`] is an underlay with nodes on it, each a namespace with its own agent process and directories.
//!
//! Node N has 198.18.0.N and fd00:198:18::N on `eth0`. Everything ends with the value, also when a test panics.

use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use ::store::{Directory, Expect};
use agent::{PeerState, Status};
use cluster::{Backend, Claim, Flannel, Lease};
use harness::{Namespace, eventually, run, run_ok};
use kernel::notify::Keeper;
use serde_json::Value;
use tempfile::TempDir;

/// Where each agent answers health checks, in its own namespace.
const HEALTH: &str = "127.0.0.1:7670";

/// An underlay and the nodes on it.
pub(crate) struct Rig {
    pub(crate) underlay: Namespace,
    pub(crate) nodes: Vec<Node>,
    pub(crate) store: TempDir,
}

/// A node: its namespace, its directories and its agent.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) number: usize,
    pub(crate) netns: Namespace,
    directory: TempDir,
    /// What `--store` takes.
    store: String,
    config: Option<PathBuf>,
    /// Whether its pods are on a bridge.
    pub(crate) bridge: bool,
    agent: Option<Child>,
    /// What keeps the agent's descriptors while it is dead, as systemd would.
    keeper: Option<Arc<Keeper>>,
    /// The mount namespace that its programs run in; none for the test's own.
    mounts: Option<PathBuf>,
}

impl Rig {
    /// An underlay with `count` nodes named node1 to nodeN, in the store and with no agent yet.
    pub(crate) fn new(count: usize) -> Self {
        let underlay = Namespace::with_loopback();
        underlay.ip("link add br0 type bridge");
        underlay.ip("link set br0 up");
        let store = tempfile::tempdir().unwrap();
        let mut rig = Self { underlay, nodes: Vec::new(), store };
        for number in 1..=count {
            rig.add_node(number);
        }
        rig
    }

    /// The same with every agent running and every node ready and joined to the others.
    pub(crate) fn joined(count: usize) -> Self {
        let mut rig = Self::new(count);
        rig.nodes.iter_mut().for_each(Node::start);
        rig.await_joined();
        rig
    }

    /// So many nodes with this configuration, a pod each, and traffic between all of them.
    pub(crate) fn flowing(count: usize, config: &str) -> Self {
        let mut rig = Self::new(count);
        for node in &mut rig.nodes {
            node.configure(config);
            node.start();
        }
        rig.await_joined();
        rig.add_pods();
        rig.await_flow();
        rig
    }

    pub(crate) fn add_node(&mut self, number: usize) {
        let netns = Namespace::with_loopback();
        self.underlay
            .ip(&format!("link add port{number} type veth peer name eth0 netns {}", netns.path().display()));
        self.underlay.ip(&format!("link set port{number} master br0 up"));
        netns.ip("link set eth0 up");
        netns.ip(&format!("address add 198.18.0.{number}/24 dev eth0"));
        netns.ip(&format!("address add fd00:198:18::{number}/64 dev eth0 nodad"));
        netns.ip("route add default via 198.18.0.254");
        netns.ip("route add default via fd00:198:18::fe dev eth0");
        let node = Node {
            name: format!("node{number}"),
            number,
            netns,
            directory: tempfile::tempdir().unwrap(),
            store: format!("dir:{}", self.store.path().display()),
            config: None,
            bridge: false,
            agent: None,
            keeper: None,
            mounts: None,
        };
        self.put_node(&node.name, "");
        self.nodes.push(node);
    }

    /// Puts a Node object into the store; `spec` is what stands behind `spec:`, such as `{podCIDRs: [...]}`.
    pub(crate) fn put_node(&self, name: &str, spec: &str) {
        let spec = if spec.is_empty() { String::new() } else { format!("spec: {spec}\n") };
        self.put_manifest(name, &format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n{spec}"));
    }

    /// The Node object of before with one annotation.
    pub(crate) fn annotate_node(&self, name: &str, key: &str, value: &str) {
        let metadata = format!("{{name: {name}, annotations: {{{key}: '{value}'}}}}");
        self.put_manifest(name, &format!("apiVersion: v1\nkind: Node\nmetadata: {metadata}\n"));
    }

    /// Puts a manifest into the store, or another one in its place.
    pub(crate) fn put_manifest(&self, name: &str, text: &str) {
        let half = self.store.path().join(format!(".{name}.half"));
        std::fs::write(&half, text).unwrap();
        std::fs::rename(half, self.store.path().join(format!("{name}.yaml"))).unwrap();
    }

    /// Takes lease and claims of a node out of the store, as if it had never been there.
    pub(crate) fn forget(&self, name: &str) {
        let store = Directory::open(self.store.path()).unwrap();
        store.delete(&cluster::Key::Lease(name.into()), Expect::Any).unwrap();
        for cidr in store.list().unwrap().snapshot.claims_of(name) {
            store.release(cidr, name).unwrap();
        }
    }

    pub(crate) fn remove_node(&self, name: &str) {
        std::fs::remove_file(self.store.path().join(format!("{name}.yaml"))).unwrap();
    }

    /// Waits until every agent is ready and has programmed every other node.
    pub(crate) fn await_joined(&self) {
        for node in &self.nodes {
            node.await_status("ready, with every peer programmed", |status| {
                let programmed =
                    status.peers.iter().filter(|peer| peer.state == PeerState::Programmed).count();
                status.ready && programmed == self.nodes.len() - 1
            });
        }
    }

    /// What stands in for so many other machines: their Node objects in one manifest, and what their agents would write.
    pub(crate) fn put_peers(&self, count: u16) {
        let store = Directory::open(self.store.path()).unwrap();
        let mut manifests = String::new();
        for number in 0..count {
            let node: Arc<str> = format!("peer{number}").into();
            manifests.push_str(&format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: {node}}}\n"));
            let [high, low] = number.to_be_bytes();
            // Behind what the nodes of the rig take for themselves.
            let cidrs = [
                format!("10.{}.{low}.0/24", 64 + high).parse().unwrap(),
                format!("fd00:10:244:{:x}::/64", 0x1000 + number).parse().unwrap(),
            ];
            for cidr in cidrs {
                let claim = Claim { cidr, node: node.clone() };
                store.write(&claim.into(), Expect::Any).unwrap();
            }
            let lease = Lease {
                node: node.clone(),
                pod_cidrs: Box::new(cidrs),
                underlay: Box::new([IpAddr::from([198, 18, 1 + high, low])]),
                backend: Backend::Vxlan { vni: 1, port: 8472, mac: route::vxlan::tunnel_mac(&node) },
                mtu: 1450,
                flannel: Flannel::Apart,
            };
            store.write(&lease.into(), Expect::Any).unwrap();
        }
        std::fs::write(self.store.path().join("peers.yaml"), manifests).unwrap();
    }

    /// Gives each node a pod's stand-in: an address out of each of its pod CIDRs, on a link of its own.
    pub(crate) fn add_pods(&self) {
        self.nodes.iter().for_each(Node::add_pod);
    }

    /// Whether every pod reaches every other one, in both families.
    pub(crate) fn is_reachable(&self) -> bool {
        let reaches = |from: &Node, to: &Node| {
            let pairs = from.pod_addresses().into_iter().zip(to.pod_addresses());
            pairs.into_iter().all(|(source, target)| from.pings(&source, &target))
        };
        self.nodes.iter().all(|from| self.nodes.iter().all(|to| reaches(from, to)))
    }

    /// Waits until the pods of all nodes reach each other: links come up, and neighbours are found, after what agents see to.
    pub(crate) fn await_flow(&self) {
        for (at, first) in self.nodes.iter().enumerate() {
            for second in &self.nodes[at + 1..] {
                for (from, to) in first.pod_addresses().iter().zip(second.pod_addresses()) {
                    eventually("traffic flows", || first.pings(from, &to).then_some(()));
                }
            }
        }
    }

    /// Asserts that every pod reaches every other one, in both families. An echo may come too late on a busy machine; what is
    /// lost is for witnesses to count.
    pub(crate) fn assert_reachable(&self) {
        for from in &self.nodes {
            for to in &self.nodes {
                for (source, target) in from.pod_addresses().iter().zip(to.pod_addresses()) {
                    let reaches = (0..3).any(|_| from.pings(source, &target));
                    assert!(reaches, "{} {source} -> {} {target}", from.name, to.name);
                }
            }
        }
    }
}

impl Node {
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    /// Where host-local would keep the addresses of this node's pods.
    pub(crate) fn addresses(&self) -> PathBuf {
        self.directory.path().join("ipam/fairlead")
    }

    pub(crate) fn conflist(&self) -> PathBuf {
        self.directory.path().join("net.d/10-fairlead.conflist")
    }

    pub(crate) fn network_file(&self) -> Option<Value> {
        let text = std::fs::read(self.state_dir().join("network.json")).ok()?;
        Some(serde_json::from_slice(&text).expect("network.json is JSON at every moment"))
    }

    /// Lets the agent use another store; `store` is what `--store` takes.
    pub(crate) fn use_store(&mut self, store: String) {
        self.store = store;
    }

    pub(crate) fn configure(&mut self, text: &str) {
        let path = self.directory.path().join("config.yaml");
        // As an editor would: a file that is written in place can be seen half.
        let half = path.with_extension("half");
        std::fs::write(&half, text).unwrap();
        std::fs::rename(half, &path).unwrap();
        self.config = Some(path);
    }

    /// From the next start on the agent has a service manager that keeps descriptors.
    pub(crate) fn keep_descriptors(&mut self) {
        let keeper = self.netns.inside(|| Keeper::open("service-manager")).unwrap();
        let keeper = Arc::new(keeper);
        let serving = Arc::clone(&keeper);
        std::thread::spawn(move || serving.serve());
        self.keeper = Some(keeper);
    }

    /// From now on its programs run in the mount namespace that this path leads to.
    pub(crate) fn use_mounts(&mut self, mounts: PathBuf) {
        self.mounts = Some(mounts);
    }

    /// A command that will run as a program of the node.
    pub(crate) fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let Some(mounts) = &self.mounts else { return self.netns.command(program) };
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount={}", mounts.display()));
        command.arg(format!("--net={}", self.netns.path().display())).arg("--").arg(program);
        command
    }

    /// The command line of the agent (or, with `clean` before the arguments, of the cleaning).
    pub(crate) fn command(&self, first: &[&str]) -> Command {
        self.command_of(
            &[&[harness::binary("examples/agent").to_str().unwrap()], first].concat(),
            self.directory.path(),
        )
    }

    /// The same with the words that begin it and with directories of its own.
    pub(crate) fn command_of(&self, words: &[&str], directory: &Path) -> Command {
        let mut command = self.program(words[0]);
        command.args(&words[1..]).arg(&self.name).arg(&self.store).arg(directory.join("run"));
        command.arg(directory.join("net.d")).args(&self.config);
        command.env("AGENT_HEALTH", HEALTH).env("AGENT_IPAM", directory.join("ipam"));
        if self.bridge {
            command.env("AGENT_BRIDGE", "yes");
        }
        command
    }

    /// Starts the agent; its log is in `agent.log` and printed when the test fails.
    pub(crate) fn start(&mut self) {
        assert!(self.agent.is_none(), "the agent of {} runs already", self.name);
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        let mut command = self.command(&[]);
        let level = std::env::var("RUST_LOG").unwrap_or_else(|_| "debug".to_owned());
        command.env("RUST_LOG", level).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        if let Some(keeper) = &self.keeper {
            keeper.pass(&mut command).unwrap();
        }
        self.agent = Some(command.spawn().unwrap());
    }

    /// Runs the agent under `strace`, which kills it before it makes the system call `name` for the `number`th time.
    /// True if it came to that; else the agent became ready first, and is killed then.
    pub(crate) fn start_and_kill_at(&self, name: &str, number: u32) -> bool {
        let plain = self.command(&[]);
        // Behind `nsenter --net=PATH --` stands the agent with its arguments.
        let mut words = plain.get_args().skip(2);
        let mut command = self.netns.command("strace");
        let inject = format!("inject={name}:signal=SIGKILL:when={number}");
        command.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={name}"), "-e", &inject]);
        command.arg(words.next().unwrap()).args(words).stdin(Stdio::null()).stderr(Stdio::null());
        let mut strace = command.spawn().unwrap();
        let killed = eventually("the agent is killed or ready", || match strace.try_wait().unwrap() {
            Some(_) => Some(true),
            None => self.status().filter(|status| status.ready).map(|status| {
                run_ok(Command::new("kill").args(["-9", &status.pid.to_string()]));
                false
            }),
        });
        strace.wait().unwrap();
        killed
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("agent.log")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// The process of the agent: `nsenter` has become it.
    pub(crate) fn pid(&self) -> u32 {
        self.agent.as_ref().expect("the agent runs").id()
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        let mut agent = self.agent.take().expect("the agent runs");
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    /// SIGTERM, and the exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        let mut agent = self.agent.take().expect("the agent runs");
        run_ok(Command::new("kill").arg(agent.id().to_string()));
        agent.wait().unwrap().code()
    }

    pub(crate) fn status(&self) -> Option<Status> {
        agent::ask_status(&self.state_dir()).ok()
    }

    /// What a kubelet is answered, status line and body, asked by `curl`.
    pub(crate) fn health(&self, path: &str) -> String {
        let url = format!("http://{HEALTH}{path}");
        let output = self.netns.command("curl").args(["-s", "-m", "10", "-w", "%{http_code}", &url]).output();
        String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
    }

    pub(crate) fn await_status(&self, what: &str, good: impl Fn(&Status) -> bool) -> Status {
        let what = format!("{}: {what}", self.name);
        eventually(&what, || self.status().filter(&good))
    }

    /// Waits until the agent has nothing left to do.
    pub(crate) fn await_settled(&self) {
        eventually(&format!("{}: an empty plan", self.name), || {
            agent::ask_plan(&self.state_dir()).ok().filter(|plan| plan.steps.is_empty())
        });
    }

    pub(crate) fn pod_cidrs(&self) -> Vec<String> {
        let status = self.await_status("holds pod CIDRs", |status| !status.pod_cidrs.is_empty());
        status.pod_cidrs.iter().map(ToString::to_string).collect()
    }

    /// Address number five of each pod CIDR.
    pub(crate) fn pod_addresses(&self) -> Vec<String> {
        let base = |cidr: &String| cidr.split('/').next().unwrap().to_owned();
        self.pod_cidrs()
            .iter()
            .map(base)
            .map(|base| match base.strip_suffix(".0") {
                Some(network) => format!("{network}.5"),
                None => format!("{base}5"),
            })
            .collect()
    }

    /// The routes that the plugin makes for pods: they stay when the node gets another pod CIDR.
    pub(crate) fn add_pod_routes(&self, addresses: &[String]) {
        for address in addresses {
            self.netns.ip(&format!("route add {address} dev pod0 proto 71"));
        }
    }

    pub(crate) fn add_pod(&self) {
        self.netns.ip("link add pod0 type bridge");
        self.netns.ip("link set pod0 alias fairlead:test/pod/eth0 up");
        for address in self.pod_addresses() {
            self.netns.ip(&format!("address add {address} dev pod0 nodad"));
            // The kernel takes packets for an address of IPv6 a moment after it has it; until then the node's own
            // `unreachable` route answers.
            eventually("the pod's address is in force", || {
                let route = self.netns.ip_json(&format!("route get {address}"));
                (route[0]["type"] == "local").then_some(())
            });
        }
    }

    /// Whether an echo from one address of this node to another address anywhere is answered.
    pub(crate) fn pings(&self, source: &str, target: &str) -> bool {
        let arguments = ["-n", "-q", "-c", "1", "-W", "3", "-I", source, target];
        run(self.netns.command("ping").args(arguments)).status.success()
    }

    /// The destinations of the routes through the tunnel, both families.
    pub(crate) fn tunnel_routes(&self) -> Vec<String> {
        let mut found = Vec::new();
        for family in ["-4", "-6"] {
            let routes = self.netns.ip_json(&format!("{family} route show proto 70"));
            let routes = routes.as_array().cloned().unwrap_or_default();
            let tunnelled = routes.iter().filter(|route| route["dev"] == "fairlead0");
            found.extend(tunnelled.filter_map(|route| route["dst"].as_str().map(str::to_owned)));
        }
        found.sort();
        found
    }

    /// Waits until the kernel has looked into the uniqueness of every address: its routes come only afterwards.
    pub(crate) fn await_addresses(&self) {
        eventually("no address is tentative", || {
            self.netns.ip("-6 address show tentative").trim().is_empty().then_some(())
        });
    }

    /// Everything about the tunnel as text: what must not change when something else does.
    pub(crate) fn tunnel_text(&self) -> String {
        self.await_addresses();
        let parts = [
            self.netns.ip("-d link show fairlead0"),
            self.netns.ip("address show fairlead0"),
            self.netns.ip("neigh show dev fairlead0"),
            run_ok(self.netns.command("bridge").args(["fdb", "show", "dev", "fairlead0"])),
            self.netns.ip("-4 route show"),
            self.netns.ip("-6 route show"),
            run_ok(self.netns.command("nft").args(["list", "ruleset"])),
        ];
        parts.join("\n")
    }

    /// All of the host's network as text.
    pub(crate) fn host_text(&self) -> String {
        self.await_addresses();
        let tool = |line: &str| {
            let (program, arguments) = line.split_once(' ').unwrap();
            run_ok(self.netns.command(program).args(arguments.split_whitespace()))
        };
        let tools = [
            "ip address show",
            "ip -4 route show table all",
            "ip -6 route show table main",
            "ip rule show",
            "ip neigh show nud permanent",
            "bridge fdb show",
            "nft list ruleset",
        ];
        // What the kernel joins by itself once it forwards is no object of anybody's.
        let groups = |line: &&str| line.starts_with("33:33:") || line.starts_with("01:00:5e:");
        tools.map(tool).join("\n").lines().filter(|line| !groups(line)).collect::<Vec<_>>().join("\n")
    }

    /// What `ip -d link show` says of the tunnel's device: `null` while there is none.
    pub(crate) fn device(&self) -> Value {
        let links = self.netns.ip_json("link show");
        let mut links = links.as_array().into_iter().flatten();
        links.find(|link| link["ifname"] == "fairlead0").cloned().unwrap_or_default()
    }

    /// Forwarding entries of the tunnel: the underlay addresses.
    pub(crate) fn fdb(&self) -> Vec<String> {
        destinations(&self.netns.bridge_json("fdb show"), "ifname")
    }

    /// Neighbours on the tunnel.
    pub(crate) fn neighbours(&self) -> Vec<String> {
        destinations(&self.netns.ip_json("neigh show nud permanent"), "dev")
    }
}

/// The `dst` of each entry of the tunnel's device, which the key `device` names, that a tool listed, sorted. Tools are
/// asked for the entries of every device, since they fail where they are to name one that is away: none then.
fn destinations(entries: &Value, device: &str) -> Vec<String> {
    let mut found: Vec<String> = entries
        .as_array()
        .into_iter()
        .flatten()
        .filter(|entry| entry[device] == "fairlead0")
        .filter_map(|entry| entry["dst"].as_str().map(str::to_owned))
        .collect();
    found.sort();
    found
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(agent) = &mut self.agent {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        if let Some(keeper) = &self.keeper {
            keeper.close();
        }
        if std::thread::panicking() {
            eprintln!("--- log of the agent of {}\n{}", self.name, self.log());
        }
    }
}

/// The lines of a text in order, without what differs between two objects made alike: indexes and counters.
pub(crate) fn lines(text: &str) -> Vec<String> {
    let words = |line: &str| {
        line.split_whitespace().filter(|word| !word.ends_with(':')).collect::<Vec<_>>().join(" ")
    };
    let mut lines: Vec<String> = text.lines().map(words).collect();
    lines.sort();
    lines
}
