//! One TCP connection from a pod on one node to a pod on another: by each backend of agents, and by what `ip` makes of the same.
//!
//! Nodes and pods are namespaces, the underlay is a cable of 1500 bytes; sender, receiver and both tunnels share this
//! machine's processors, so what counts is the ratio. iperf3 measures. All clusters stand from the beginning to the end, and each
//! round asks one after the other, there and back: where each was made anew for its turn, two that were made alike by hand
//! differed by more than what is looked for.
//!
//! An agent's node also translates what leaves the cluster, so the kernel tracks every connection, which costs a tenth
//! and more at these rates. What is made by hand does the same in the rows that an agent's are compared with, and not in
//! the first two, which show what that costs.

use std::path::Path;
use std::process::Stdio;

use anyhow::Context;
use harness::{Namespace, Service, eventually};
use serde_json::Value;
use tempfile::TempDir;

const SECONDS: &str = "1";
const ROUNDS: usize = 20;

/// What carries packets between the nodes.
#[derive(Clone, Copy)]
enum Carrier {
    Cable(Translates),
    Vxlan(Translates),
    /// What agents with this backend program, or carry themselves.
    Agents(&'static str),
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
    ("our udp", Carrier::Agents("udp")),
    ("our ipip", Carrier::Agents("ipip")),
    ("our wireguard", Carrier::Agents("wireguard")),
];

/// The rows of [`CARRIERS`] that the others are compared with.
const BY_HAND: [usize; 2] = [2, 4];

/// Prints Gb/s for each, the middle of all rounds, and the middle of the rounds' ratios to routes and to VXLAN made by hand: what
/// else a machine does meanwhile changes from one minute to the next.
pub(crate) fn run() -> anyhow::Result<()> {
    println!("\none TCP connection between pods of two nodes, Gb/s, {ROUNDS} rounds");
    let clusters: Vec<Cluster> =
        CARRIERS.iter().map(|(_, carrier)| Cluster::new(*carrier)).collect::<Result<_, _>>()?;
    let mut rates = vec![Vec::new(); CARRIERS.len()];
    for round in 0..ROUNDS {
        let mut turns: Vec<usize> = (0..clusters.len()).collect();
        if round % 2 == 1 {
            turns.reverse();
        }
        for turn in turns {
            if let (Some(cluster), Some(rates)) = (clusters.get(turn), rates.get_mut(turn)) {
                rates.push(cluster.rate()?);
            }
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
    _agents: Vec<Service>,
    _nodes: [Namespace; 2],
    _directory: TempDir,
}

impl Cluster {
    fn new(carrier: Carrier) -> anyhow::Result<Self> {
        let nodes = [Namespace::with_loopback(), Namespace::with_loopback()];
        let pods = [Namespace::with_loopback(), Namespace::with_loopback()];
        let [first, second] = &nodes;
        first.ip(&format!("link add u type veth peer name u netns {}", second.path().display()));
        let directory = tempfile::tempdir()?;
        let mut agents = Vec::new();
        for (number, (node, pod)) in (1..).zip(nodes.iter().zip(&pods)) {
            lay(node, pod, number);
            match carrier {
                Carrier::Agents(backend) => {
                    mark(node);
                    agents.push(agent(node, backend, number, directory.path())?);
                }
                by_hand => join(node, by_hand, number),
            }
        }
        let [from, _] = &pods;
        eventually("the pods reach each other", || from.pings("10.2.0.2").then_some(()));
        Ok(Self { pods, _agents: agents, _nodes: nodes, _directory: directory })
    }

    fn rate(&self) -> anyhow::Result<f64> {
        let [from, to] = &self.pods;
        let mut server = to.command("iperf3");
        let mut server = server.arg("-s").stdout(Stdio::null()).spawn().context("starting iperf3")?;
        let mut client = from.command("iperf3");
        client.args(["-c", "10.2.0.2", "-J", "-t", SECONDS]);
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

/// Has the pod's cable be known as one, as those are that the plugin lays: an agent's node looks at who sends. `ip` takes no such number.
fn mark(node: &Namespace) {
    let group = netstate::POD_LINK_GROUP;
    let words = format!("mount -t sysfs sysfs /sys && echo {group} > /sys/class/net/pod/netdev_group");
    harness::run_ok(node.command("unshare").args(["--mount", "sh", "-c", &words]));
}

/// The way to the other node's pod.
fn join(node: &Namespace, carrier: Carrier, number: u8) {
    let other = 3 - number;
    match carrier {
        Carrier::Agents(_) => {}
        Carrier::Cable(translates) => {
            translate(node, translates);
            node.ip(&format!("route add 10.{other}.0.0/24 via 192.0.2.{other}"));
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
