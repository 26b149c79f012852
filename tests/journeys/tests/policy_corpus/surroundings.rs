//! What a lab has not by itself and cases need: hosts outside the cluster, Services, nodes with labels.
//!
//! Read [`Surroundings`]. The namespace in the middle of a lab stands for everything outside, so the hosts outside are addresses of
//! that, and it has the routes to pods that a router would be told of. A Service is a translation of addresses in each node, as
//! kube-proxy makes one, with one pod behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::run_ok;
use journeys::TestLab;
use serde_json::{Value, json};

use crate::cases::{End, list, text};

/// The link in the middle of a lab.
const OUTSIDE: &str = "underlay";

/// Of a namespace that is asked much and quickly.
const SYSCTLS: [(&str, &str); 7] = [
    ("ipv4/icmp_ratelimit", "0"),
    ("ipv6/icmp/ratelimit", "0"),
    ("ipv4/icmp_msgs_per_sec", "10000"),
    ("ipv4/icmp_msgs_burst", "1000"),
    ("netfilter/nf_conntrack_udp_timeout", "5"),
    ("netfilter/nf_conntrack_udp_timeout_stream", "5"),
    ("netfilter/nf_conntrack_tcp_timeout_close", "1"),
];

/// What was added to a lab.
#[derive(Default)]
pub(crate) struct Surroundings {
    /// The addresses outside.
    outside: BTreeSet<String>,
    /// The labels of nodes by the files of their manifests.
    labelled: BTreeMap<String, String>,
}

impl Surroundings {
    /// Nothing added yet, but that nodes and hosts outside answer every question.
    pub(crate) fn of(lab: &TestLab) -> Self {
        let nodes = lab.list();
        let own = list(&nodes["nodes"]).map(|node| PathBuf::from(text(&node["netns"])));
        own.chain([middle(&nodes)]).for_each(|netns| have_answer(&netns));
        Self::default()
    }

    /// The hosts outside that the case has, each with the addresses that it says.
    pub(crate) fn hosts(&mut self, lab: &TestLab, case: &Value) -> Vec<(String, End)> {
        let names: Vec<String> =
            list(&case["externals"]).map(|host| format!("ext/{}", text(&host["name"]))).collect();
        if names.is_empty() {
            return Vec::new();
        }
        let nodes = lab.list();
        let netns = middle(&nodes);
        let ip = |words: &str| {
            let words = words.split(' ');
            run_ok(Command::new("nsenter").arg(format!("--net={}", netns.display())).arg("ip").args(words));
        };
        for node in list(&nodes["nodes"]) {
            for cidr in list(&node["podCIDRs"]).map(text) {
                let via = list(&node["addresses"]).map(text);
                let via = via.into_iter().find(|address| address.contains(':') == cidr.contains(':'));
                ip(&format!("route replace {cidr} via {}", via.unwrap()));
            }
        }
        let end = |name: String| {
            let addresses: Vec<IpAddr> =
                list(&case["ips"][&name]).map(|address| text(address).parse().unwrap()).collect();
            for address in &addresses {
                if self.outside.insert(address.to_string()) {
                    let more = if address.is_ipv4() { "/32" } else { "/128 nodad" };
                    ip(&format!("address add {address}{more} dev {OUTSIDE}"));
                }
            }
            (name, End { netns: netns.clone(), addresses, binds: true })
        };
        names.into_iter().map(end).collect()
    }

    /// Gives the nodes the labels that the case has for them, and takes away those of the case before.
    pub(crate) fn label_nodes(&mut self, lab: &TestLab, case: &Value) {
        let labels = |name: &str| {
            let own = name.replacen("node", "n", 1);
            let mut nodes = list(&case["nodes"]);
            let found = nodes.find(|node| node["name"] == own).map(|node| node["labels"].clone());
            found.filter(Value::is_object).unwrap_or_else(|| json!({"kubernetes.io/hostname": name}))
        };
        let listed = lab.list();
        for node in list(&listed["nodes"]) {
            let name = text(&node["name"]);
            let addresses: Vec<Value> = list(&node["addresses"])
                .map(|address| json!({"type": "InternalIP", "address": address}))
                .collect();
            let manifest = json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels(name)},
                "status": {"addresses": addresses},
            });
            let (file, manifest) = (format!("{name}.yaml"), manifest.to_string());
            if self.labelled.get(&file) != Some(&manifest) {
                lab.put(&file, &manifest);
                self.labelled.insert(file, manifest);
            }
        }
    }
}

/// Has the kernel say of every datagram in this namespace that nobody serves its port: usually it says so once a second to one
/// asker. And what it tracks it forgets soon, for there are more flows in a minute here than on a node.
pub(crate) fn have_answer(netns: &Path) {
    harness::inside(netns, || {
        for (file, value) in SYSCTLS {
            let path = Path::new("/proc/sys/net").join(file);
            match std::fs::write(&path, value) {
                Ok(()) => {}
                // Some are the machine's own in some kernels, and not seen in here.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => panic!("{}: {error}", path.display()),
            }
        }
    });
}

/// The Services of the case with their addresses, carried by every node from now on.
pub(crate) fn carry_services(
    lab: &TestLab,
    case: &Value,
    ends: &BTreeMap<String, End>,
) -> BTreeMap<String, [IpAddr; 2]> {
    let mut addresses = BTreeMap::new();
    let mut rules = String::new();
    for family in ["ip", "ip6"] {
        rules.push_str(&format!(
            "table {family} corpus\ndelete table {family} corpus\ntable {family} corpus {{\n\
             chain post {{ type nat hook postrouting priority srcnat; }}\n\
             chain pre {{ type nat hook prerouting priority dstnat; }}\n}}\n"
        ));
    }
    for (number, service) in list(&case["services"]).enumerate() {
        let own = [format!("10.96.0.{}", number + 10), format!("fd00:10:96::{:x}", number + 10)]
            .map(|address| address.parse::<IpAddr>().unwrap());
        let behind = backend(case, service);
        let id = format!("{}/{}", text(&behind["ns"]), text(&behind["name"]));
        for (address, family) in own.iter().zip(["ip", "ip6"]) {
            let Some(pod) = ends[&id].address(address.is_ipv6()) else { continue };
            rules.push_str(&format!(
                "add rule {family} corpus post {family} saddr {pod} {family} daddr {pod} masquerade\n"
            ));
            for port in list(&service["ports"]) {
                let protocol = text(&port["protocol"]).to_lowercase();
                let to = SocketAddr::new(pod, target(behind, &port["targetPort"]));
                let at = &port["port"];
                rules.push_str(&format!("add rule {family} corpus pre {family} daddr {address} {protocol} dport {at} dnat to {to}\n"));
            }
        }
        addresses.insert(format!("{}/{}", text(&service["ns"]), text(&service["name"])), own);
    }
    for node in list(&lab.list()["nodes"]) {
        lab.in_node(text(&node["name"]), "nft", &[&rules]);
    }
    addresses
}

/// The one pod behind a Service.
fn backend<'v>(case: &'v Value, service: &Value) -> &'v Value {
    let wanted = service["selector"].as_object().expect("it selects pods");
    let selected = |pod: &&Value| {
        pod["ns"] == service["ns"] && wanted.iter().all(|(key, value)| pod["labels"][key] == *value)
    };
    let mut selected = list(&case["pods"]).filter(selected);
    let only = selected.next().expect("a pod is behind the Service");
    assert!(selected.next().is_none(), "a Service here leads to one pod: {service}");
    only
}

/// The port of a pod that a Service means.
fn target(pod: &Value, port: &Value) -> u16 {
    let number = match port.as_str() {
        None => port.as_u64(),
        Some(name) => {
            list(&pod["ports"]).find(|port| port["name"] == name).and_then(|port| port["port"].as_u64())
        }
    };
    number.and_then(|number| number.try_into().ok()).expect("a target port")
}

/// The namespace in the middle: that of the agents' parent.
fn middle(listed: &Value) -> PathBuf {
    let agent = list(&listed["nodes"]).find_map(|node| node["agentPid"].as_u64()).expect("an agent runs");
    let status = std::fs::read_to_string(format!("/proc/{agent}/status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("it has a parent");
    PathBuf::from(format!("/proc/{}/ns/net", parent.trim()))
}
