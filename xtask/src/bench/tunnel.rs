//! One TCP connection from a pod on one node to a pod on another: by each backend, and by what `ip` makes of the same.
//!
//! Nodes and pods are namespaces, the underlay is a cable of 1500 bytes; sender, receiver and both tunnels share this
//! machine's processors, so what counts is the ratio. iperf3 measures.
//!
//! An agent's node also translates what leaves the cluster, so the kernel tracks every connection, which costs a tenth
//! and more at these rates. What is made by hand does the same in the rows that an agent's are compared with, and not in
//! the first two, which show what that costs.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, ensure};
use harness::{Namespace, Service, eventually};
use serde_json::Value;
use tempfile::TempDir;

const SECONDS: &str = "3";
const ROUNDS: usize = 7;

/// What carries packets between the nodes, and the largest packet it takes.
#[derive(Clone, Copy)]
enum Carrier {
    Cable(Translates),
    Vxlan(Translates),
    /// What agents with this backend program.
    Agents(&'static str),
    /// A tunnel of ours.
    Ours(&'static str, u16),
}

/// Whether a node made by hand translates the addresses of what leaves the cluster, as an agent's does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Translates {
    Nothing,
    Pods,
}

const CARRIERS: [(&str, Carrier); 9] = [
    ("routes by ip", Carrier::Cable(Translates::Nothing)),
    ("vxlan by ip", Carrier::Vxlan(Translates::Nothing)),
    ("routes, nat", Carrier::Cable(Translates::Pods)),
    ("our host-gw", Carrier::Agents("host-gw")),
    ("vxlan, nat", Carrier::Vxlan(Translates::Pods)),
    ("our vxlan", Carrier::Agents("vxlan")),
    ("our udp", Carrier::Ours("udp", 1472)),
    ("our ipip", Carrier::Ours("ipip", 1480)),
    ("our wireguard", Carrier::Ours("wireguard", 1440)),
];

/// The rows of [`CARRIERS`] that an agent's routes and its VXLAN are compared with.
const BY_HAND: [usize; 2] = [2, 4];

/// Prints Gb/s for each, the middle of a few rounds, and the middle of the rounds' ratios to routes and to VXLAN made by hand: what
/// else a machine does meanwhile changes from one minute to the next.
pub(crate) fn run() -> anyhow::Result<()> {
    println!("\none TCP connection between pods of two nodes, Gb/s");
    let mut rates = vec![Vec::new(); CARRIERS.len()];
    for _ in 0..ROUNDS {
        for ((_, carrier), rates) in CARRIERS.iter().zip(&mut rates) {
            rates.push(Cluster::new(*carrier)?.rate()?);
        }
    }
    let [routes, vxlan] = BY_HAND.map(|index| rates.get(index).map_or(&[][..], Vec::as_slice));
    for ((name, _), rates) in CARRIERS.iter().zip(&rates) {
        let to =
            |by_hand: &[f64]| super::middle(rates.iter().zip(by_hand).map(|(rate, by_hand)| rate / by_hand));
        let [rate, routes, vxlan] = [super::middle(rates.iter().copied()), to(routes), to(vxlan)];
        println!("{name:<14} {rate:>6.2}   {routes:>5.3}x routes   {vxlan:>5.3}x vxlan");
    }
    Ok(())
}

/// Two nodes with a pod each. Pods are 10.N.0.2.
struct Cluster {
    pods: [Namespace; 2],
    _tunnels: Vec<Tunnel>,
    _agents: Vec<Service>,
    _nodes: [Namespace; 2],
    _directory: TempDir,
}

/// A process that carries until its standard input closes.
struct Tunnel {
    process: Child,
    /// What it says in the end must find somebody who would hear it.
    _said: BufReader<ChildStdout>,
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

impl Cluster {
    fn new(carrier: Carrier) -> anyhow::Result<Self> {
        let nodes = [Namespace::with_loopback(), Namespace::with_loopback()];
        let pods = [Namespace::with_loopback(), Namespace::with_loopback()];
        let [first, second] = &nodes;
        first.ip(&format!("link add u type veth peer name u netns {}", second.path().display()));
        let directory = tempfile::tempdir()?;
        let (mut tunnels, mut agents) = (Vec::new(), Vec::new());
        for (number, (node, pod)) in (1..).zip(nodes.iter().zip(&pods)) {
            lay(node, pod, number);
            match carrier {
                Carrier::Agents(backend) => agents.push(agent(node, backend, number, directory.path())?),
                by_hand => tunnels.extend(join(node, by_hand, number)?),
            }
        }
        let [from, _] = &pods;
        eventually("the pods reach each other", || from.pings("10.2.0.2").then_some(()));
        Ok(Self { pods, _tunnels: tunnels, _agents: agents, _nodes: nodes, _directory: directory })
    }

    fn rate(&self) -> anyhow::Result<f64> {
        let [from, to] = &self.pods;
        let mut server = to.command("iperf3");
        let mut server = server.arg("-s").stdout(Stdio::null()).spawn().context("starting iperf3")?;
        let mut client = from.command("iperf3");
        client.args(["-c", "10.2.0.2", "-J", "-O", "1", "-t", SECONDS]);
        // It says so in its JSON, not by its exit, when there is no server yet.
        let rate = eventually("iperf3 measures", || {
            let said: Value = serde_json::from_slice(&client.output().ok()?.stdout).ok()?;
            said["end"]["sum_received"]["bits_per_second"].as_f64()
        });
        server.kill().context("ending iperf3")?;
        server.wait()?;
        Ok(rate / 1e9)
    }
}

/// A node's underlay and its pod.
fn lay(node: &Namespace, pod: &Namespace, number: u8) {
    for words in [
        format!("address add 192.0.2.{number}/24 dev u"),
        "link set u up".to_owned(),
        format!("link add pod type veth peer name eth0 netns {}", pod.path().display()),
        "link set pod up".to_owned(),
        format!("address add 10.{number}.0.1/24 dev pod"),
    ] {
        node.ip(&words);
    }
    for words in [
        format!("address add 10.{number}.0.2/24 dev eth0"),
        "link set eth0 up".to_owned(),
        format!("route add default via 10.{number}.0.1"),
    ] {
        pod.ip(&words);
    }
    harness::run_ok(node.command("sysctl").args(["-q", "-w", "net.ipv4.ip_forward=1"]));
}

/// The way to the other node's pod.
fn join(node: &Namespace, carrier: Carrier, number: u8) -> anyhow::Result<Option<Tunnel>> {
    let other = 3 - number;
    match carrier {
        Carrier::Agents(_) => Ok(None),
        Carrier::Cable(translates) => {
            translate(node, translates);
            node.ip(&format!("route add 10.{other}.0.0/24 via 192.0.2.{other}"));
            Ok(None)
        }
        Carrier::Vxlan(translates) => {
            translate(node, translates);
            let device = "link add vx type vxlan id 1 dstport 8472 dev u nolearning";
            node.ip(&format!("{device} local 192.0.2.{number}"));
            node.ip(&format!("link set vx address 02:00:00:00:00:0{number} mtu 1450 up"));
            node.ip(&format!("address add 10.{number}.0.0/32 dev vx"));
            node.ip(&format!("neigh add 10.{other}.0.0 lladdr 02:00:00:00:00:0{other} dev vx nud permanent"));
            let entry = format!("fdb add 02:00:00:00:00:0{other} dev vx dst 192.0.2.{other}");
            harness::run_ok(node.command("bridge").args(entry.split_whitespace()));
            node.ip(&format!("route add 10.{other}.0.0/24 via 10.{other}.0.0 dev vx onlink"));
            Ok(None)
        }
        Carrier::Ours(encapsulation, mtu) => {
            node.ip("tuntap add dev tun0 mode tun multi_queue vnet_hdr");
            node.ip(&format!("link set tun0 mtu {mtu} txqueuelen 1000 up"));
            node.ip(&format!("route add 10.{other}.0.0/24 dev tun0"));
            let program = super::release("examples/carry")?;
            let words = format!("{encapsulation} tun0 {mtu} 8285 192.0.2.{number}");
            let peer = format!("peer=192.0.2.{other}=10.{other}.0.0/24");
            start(node.command(program).args(words.split_whitespace()).arg(peer)).map(Some)
        }
    }
}

/// What everybody writes who writes it by hand.
fn translate(node: &Namespace, translates: Translates) {
    if translates == Translates::Pods {
        let leaves = "ip saddr 10.0.0.0/8 ip daddr != 10.0.0.0/8 masquerade";
        let chain = format!("type nat hook postrouting priority srcnat; {leaves};");
        harness::run_ok(
            node.command("nft").arg(format!("table ip nat {{ chain postrouting {{ {chain} }}; }}")),
        );
    }
}

/// An agent for a node whose pod is there already.
fn agent(node: &Namespace, backend: &str, number: u8, directory: &Path) -> anyhow::Result<Service> {
    let store = directory.join("store");
    std::fs::create_dir_all(&store)?;
    let cidr = format!("10.{number}.0.0/24");
    let spec = format!("spec: {{podCIDRs: [{cidr}]}}");
    let manifest = format!("apiVersion: v1\nkind: Node\nmetadata: {{name: node{number}}}\n{spec}\n");
    super::put(&store, &format!("node{number}.yaml"), &manifest)?;
    let own = directory.join(format!("of-node{number}"));
    std::fs::create_dir(&own)?;
    let config = format!(
        "backend: {backend}\nunderlay: {{interface: u}}\ncluster: {{podCIDRs: [10.0.0.0/8], allowOverlap: [{cidr}]}}\n"
    );
    std::fs::write(own.join("config.yaml"), config)?;
    let store = format!("dir:{}", store.display());
    let mut command = super::agent(node, &format!("node{number}"), &store, &own)?;
    Ok(Service::start(&mut command, own.join("agent.log")))
}

fn start(command: &mut Command) -> anyhow::Result<Tunnel> {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting a tunnel")?;
    let mut line = String::new();
    let mut said = BufReader::new(child.stdout.take().context("a tunnel's output")?);
    said.read_line(&mut line)?;
    ensure!(line.trim() == "carrying", "a tunnel starts: {line:?}");
    Ok(Tunnel { process: child, _said: said })
}
