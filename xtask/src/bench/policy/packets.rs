//! What policies cost packets and pods that start: see [`run`] and [`attach`].
//!
//! Two pods of one node, so that each packet is judged for both of them: by none, by ten, and by ten of ten thousand policies.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context;
use harness::{Namespace, eventually};
use rustix::thread::{self, CpuSet};
use serde_json::Value;

use super::await_enforced;
use super::burner::{Burner, Node, WITHOUT};
use crate::bench::{median, middle, release};

const ROUNDS: usize = 5;
/// Of round trips in each of the rounds: short and many, since their differences are small beside what else a machine does.
const TRIPS: usize = 9;
const EXCHANGES: u32 = 4_000;
const CONNECTIONS: u32 = 2_000;
/// Pods that are attached, one after the other.
const PODS: usize = 41;
const SERVER: &str = "10.244.0.200";
const CLIENT: &str = "10.244.0.201";

/// Prints it, with the goals beside.
pub(crate) fn run() -> anyhow::Result<()> {
    println!("\ntwo pods of one node, isolated in both directions");
    let clusters = [("none", 0), ("10", 10), ("10,000", 10_000)];
    let mut pairs = Vec::new();
    for (name, count) in clusters {
        let cluster = if count > 10 { Burner::wide()? } else { Burner::few(count)? };
        pairs.push((name, Pair::new(cluster)?));
    }
    println!("{:<12}{:>12}{:>16}{:>20}", "policies", "Gb/s", "round trip us", "new connection us");
    let mut seen = vec![[const { Vec::new() }; 3]; pairs.len()];
    for _ in 0..ROUNDS {
        for ((_, pair), [rates, _, connections]) in pairs.iter().zip(&mut seen) {
            rates.push(pair.rate()?);
            connections.push(pair.connection()?);
        }
        for _ in 0..TRIPS {
            for ((_, pair), [_, trips, _]) in pairs.iter().zip(&mut seen) {
                trips.push(pair.round_trip()?);
            }
        }
    }
    for ((name, _), seen) in pairs.iter().zip(seen) {
        let [rate, trip, connection] = seen.map(middle);
        println!("{name:<12}{rate:>12.2}{trip:>16.2}{connection:>20.2}");
    }
    println!(
        "goals: rate and round trip within 3 % of none, a connection <= 20 us more, and flat from 10 to 10,000"
    );
    Ok(())
}

/// A client and a server on one node.
struct Pair {
    client: Namespace,
    server: Namespace,
    _node: Node,
    _cluster: Burner,
}

impl Pair {
    fn new(cluster: Burner) -> anyhow::Result<Self> {
        cluster.put_guest("server", Some(SERVER))?;
        cluster.put_guest("client", Some(CLIENT))?;
        let node = Node::new(cluster.store(), "node1", "")?;
        node.start()?;
        await_enforced(&node);
        let [server, client] =
            [(SERVER, "server"), (CLIENT, "client")].map(|(address, name)| lay(&node, address, name));
        eventually("the client reaches the server's port", || {
            let listener = server.inside(|| TcpListener::bind((SERVER, 8080))).ok()?;
            let reached = client.inside(|| {
                TcpStream::connect_timeout(
                    &SocketAddr::new(SERVER.parse().ok()?, 8080),
                    Duration::from_secs(1),
                )
                .ok()
            });
            drop(listener);
            reached.map(drop)
        });
        Ok(Self { client, server, _node: node, _cluster: cluster })
    }

    /// One TCP stream, in Gb/s.
    fn rate(&self) -> anyhow::Result<f64> {
        let mut server = self.server.command("iperf3");
        let mut server =
            server.args(["-s", "-p", "8080"]).stdout(Stdio::null()).spawn().context("starting iperf3")?;
        let mut client = self.client.command("iperf3");
        client.args(["-c", SERVER, "-p", "8080", "-J", "-O", "1", "-t", "3"]);
        let rate = eventually("iperf3 measures", || {
            let said: Value = serde_json::from_slice(&client.output().ok()?.stdout).ok()?;
            said["end"]["sum_received"]["bits_per_second"].as_f64()
        });
        server.kill().context("ending iperf3")?;
        server.wait()?;
        Ok(rate / 1e9)
    }

    /// One byte there and back on an open connection, in microseconds. Both ends share one processor: where the scheduler puts them
    /// makes more difference than all that a packet meets.
    fn round_trip(&self) -> anyhow::Result<f64> {
        let listener = self.server.inside(|| TcpListener::bind((SERVER, 8080))).context("listening")?;
        let client = &self.client;
        let one = one_processor()?;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Elsewhere it would be as right, and slower.
                let _ = thread::sched_setaffinity(None, &one);
                echo(&listener);
            });
            let exchanges = scope.spawn(|| -> anyhow::Result<f64> {
                thread::sched_setaffinity(None, &one).context("keeping to one processor")?;
                let mut stream =
                    client.inside(|| TcpStream::connect((SERVER, 8080))).context("connecting")?;
                stream.set_nodelay(true)?;
                let mut byte = [0];
                let start = Instant::now();
                for _ in 0..EXCHANGES {
                    stream.write_all(&[1])?;
                    stream.read_exact(&mut byte)?;
                }
                Ok(per(start.elapsed(), EXCHANGES))
            });
            exchanges.join().map_err(|_| anyhow::anyhow!("the client's thread panicked"))?
        })
    }

    /// A connection opened, accepted and closed, in microseconds.
    fn connection(&self) -> anyhow::Result<f64> {
        let listener = self.server.inside(|| TcpListener::bind((SERVER, 8080))).context("listening")?;
        let took = self.client.inside(|| -> std::io::Result<Duration> {
            let start = Instant::now();
            for _ in 0..CONNECTIONS {
                let stream = TcpStream::connect((SERVER, 8080))?;
                drop(listener.accept()?);
                drop(stream);
            }
            Ok(start.elapsed())
        });
        Ok(per(took.context("connecting")?, CONNECTIONS))
    }
}

/// The last of the processors that may be used: the first has most of the machine's interrupts.
fn one_processor() -> anyhow::Result<CpuSet> {
    let may = thread::sched_getaffinity(None).context("asking for processors")?;
    let mut numbers = (0..CpuSet::MAX_CPU).rev();
    let last = numbers.find(|number| may.is_set(*number)).context("there are processors")?;
    let mut one = CpuSet::new();
    one.set(last);
    Ok(one)
}

fn per(took: Duration, count: u32) -> f64 {
    took.as_secs_f64() * 1e6 / f64::from(count)
}

/// Gives back what the first client sends, until it has gone.
fn echo(listener: &TcpListener) {
    let Ok((mut stream, _)) = listener.accept() else { return };
    let mut byte = [0];
    while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
}

/// A pod on the node, wired as the plugin does it.
fn lay(node: &Node, address: &str, name: &str) -> Namespace {
    let pod = Namespace::with_loopback();
    node.netns.ip(&format!("link add {name} type veth peer name eth0 netns {}", pod.path().display()));
    node.netns.ip(&format!("link set {name} alias fairlead:bench/{name}/eth0 up"));
    node.netns.ip(&format!("address add 169.254.1.1/32 dev {name}"));
    node.netns.ip(&format!("route add {address} dev {name}"));
    for words in [
        &format!("address add {address}/32 dev eth0"),
        "link set eth0 up",
        "route add 169.254.1.1 dev eth0",
        "route add default via 169.254.1.1",
    ] {
        pod.ip(words);
    }
    pod
}

/// How long a pod's ADD takes where policies are enforced, and where they are not.
pub(crate) fn attach() -> anyhow::Result<()> {
    println!("\none pod attached, 10,000 policies in the cluster");
    let cluster = Burner::wide()?;
    (0..PODS * 2).try_for_each(|number| cluster.put_guest(&format!("born-{number}"), None))?;
    let nodes = [("enforced", ""), ("not enforced", WITHOUT)].map(|(name, config)| (name, config));
    let mut subjects = Vec::new();
    for (name, config) in nodes {
        let node = Node::new(cluster.store(), "node1", config)?;
        node.start()?;
        if config.is_empty() {
            await_enforced(&node);
        }
        let conflist = eventually("the agent writes the conflist", || {
            let file = std::fs::read_dir(node.conf_dir()).ok()?.flatten().next()?;
            serde_json::from_slice::<Value>(&std::fs::read(file.path()).ok()?).ok()
        });
        subjects.push((name, node, network(&conflist)?, Vec::new()));
    }
    for number in 0..PODS {
        for (place, (_, node, network, took)) in subjects.iter_mut().enumerate() {
            took.push(add(node, network, number * 2 + place)?);
        }
    }
    let [mut with, mut without] = [f64::NAN; 2];
    for (name, _, _, took) in subjects {
        let middle = median(took);
        println!("  ADD, {name:<16}{middle:>8.2} ms, median of {PODS}");
        if name == "enforced" { with = middle } else { without = middle }
    }
    println!("  {:<21}{:>8.2} ms   <= 2 ms", "more", with - without);
    Ok(())
}

/// The conflist's first plugin with what a runtime adds.
fn network(conflist: &Value) -> anyhow::Result<String> {
    let mut network = conflist["plugins"][0].clone();
    for key in ["name", "cniVersion"] {
        network[key] = conflist[key].clone();
    }
    anyhow::ensure!(network["type"] == "fairlead", "the conflist begins with another plugin: {conflist}");
    Ok(network.to_string())
}

fn add(node: &Node, network: &str, number: usize) -> anyhow::Result<Duration> {
    let pod = Namespace::with_loopback();
    let mut command: Command = node.netns.command(release("fairlead-cni")?);
    let container = format!("born-{number}");
    command
        .arg("fairlead")
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", &container)
        .env("CNI_IFNAME", "eth0");
    command.env("CNI_NETNS", pod.path()).env("CNI_PATH", "/nowhere");
    command.env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=ns-0;K8S_POD_NAME={container}"));
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting the plugin")?;
    let start = Instant::now();
    child.stdin.take().context("its input")?.write_all(network.as_bytes())?;
    let output = child.wait_with_output()?;
    let took = start.elapsed();
    anyhow::ensure!(output.status.success(), "ADD fails: {}", String::from_utf8_lossy(&output.stdout));
    // The addresses of one node's range are fewer than pods: gone with their namespace, given back by DEL.
    Ok(took)
}
