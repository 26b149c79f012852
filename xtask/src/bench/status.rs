//! STATUS: what a kubelet asks every five seconds, through its runtime, of every plugin of its network.
//!
//! On a node that carries a hundred pods of the chain, and with an address pool of which all but one are given: the more
//! a plugin has to look at, the longer it takes. Those that this machine's kernel has no links for are left out.

use std::{
    fs,
    process::{Child, Command, Stdio},
    time::Duration,
};

use harness::{Namespace, eventually};
use serde_json::{Value, json};

use super::{
    median,
    subject::{Network, Subject},
};
use crate::process;

const CALLS: usize = 200;
const PODS: u16 = 100;
/// As many addresses as a node ever has, and more.
const HELD: u16 = 4093;

/// Prints how long each plugin takes to answer, at the median and at the worst.
pub(crate) fn run() -> anyhow::Result<()> {
    println!("\nSTATUS, {CALLS} calls each, ms              median   slowest");
    let chain = Subject::fairlead(Network::Chain)?;
    let pods: Vec<(u16, Namespace)> = (1..=PODS).map(|number| (number, Namespace::new())).collect();
    for (number, pod) in &pods {
        chain.run("ADD", *number, pod)?;
    }
    process::run(Command::new("ip").args(["link", "add", "uplink", "up", "type", "bridge"]))?;
    let _daemon = daemon(&chain)?;
    for config in chain.plugins(0).into_iter().chain(others(&chain)?) {
        let took: anyhow::Result<Vec<Duration>> = (0..CALLS).map(|_| chain.status(&config)).collect();
        let took = took?;
        let slowest = took.iter().max().map_or(f64::NAN, |slowest| slowest.as_secs_f64() * 1000.0);
        let ipam = config["ipam"]["type"].as_str().map_or(String::new(), |kind| format!(" + {kind}"));
        let name = format!("{}{ipam}", config["type"].as_str().unwrap_or_default());
        println!("{name:<36}{:>8.2}  {slowest:>8.2}", median(took));
    }
    for (number, pod) in &pods {
        chain.run("DEL", *number, pod)?;
    }
    process::run(Command::new("ip").args(["link", "delete", "uplink"]))
}

/// Configurations of the plugins that are not in the chain.
fn others(subject: &Subject) -> anyhow::Result<Vec<Value>> {
    let dhcp = json!({ "type": "dhcp", "daemonSocketPath": subject.file("dhcp.sock") });
    let fixed = json!({ "type": "static", "addresses": [{ "address": "192.0.2.5/24" }] });
    let full = json!({ "type": "host-local", "dataDir": full_pool(subject)?, "subnet": "10.104.0.0/20" });
    let configs = [
        json!({ "type": "ptp", "ipam": full }),
        json!({ "type": "macvlan", "master": "uplink", "ipam": dhcp }),
        json!({ "type": "host-device", "device": "uplink", "ipam": fixed }),
        json!({ "type": "tap" }),
        json!({ "type": "loopback" }),
        json!({ "type": "firewall", "ingressPolicy": "same-bridge" }),
        json!({ "type": "tuning", "sysctl": { "net.core.somaxconn": "512" } }),
        json!({ "type": "sbr" }),
        json!({ "type": "route-override" }),
    ];
    let named = configs.into_iter().map(|mut config| {
        config["name"] = json!("status");
        config
    });
    Ok(named.collect())
}

/// A folder of host-local's in which all addresses but one of the network `status` are given.
fn full_pool(subject: &Subject) -> anyhow::Result<std::path::PathBuf> {
    let folder = subject.file("full");
    let network = folder.join("status");
    fs::create_dir_all(&network)?;
    // .0 is the network, .1 the gateway; the last but one is left.
    for number in 2..=HELD {
        let [high, low] = number.to_be_bytes();
        fs::write(network.join(format!("10.104.{high}.{low}")), format!("pod{number}\r\neth0"))?;
    }
    Ok(folder)
}

/// The daemon without which dhcp is not ready; it ends with the returned value.
fn daemon(subject: &Subject) -> anyhow::Result<Daemon> {
    let socket = subject.file("dhcp.sock");
    let mut command = Command::new(subject.program("dhcp"));
    command.args(["daemon", "-socketpath"]).arg(&socket);
    command.args(["-statepath"]).arg(subject.file("leases"));
    let daemon = Daemon(command.stdin(Stdio::null()).spawn()?);
    eventually("the dhcp daemon listens", || socket.exists().then_some(()));
    Ok(daemon)
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
