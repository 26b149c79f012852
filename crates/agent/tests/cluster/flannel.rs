//! A cluster that changes over from flannel node by node. Nodes of flannel are made by hand, as flannel programs them, and
//! know of the others only what their Nodes say in flannel's words; the agents have no more rights than deploy/ gives them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use agent::{PeerState, Status};
use harness::{ApiServer, Credential, eventually, run, run_ok};
use serde_json::{Value, json};

use crate::proxy::Proxy;
use crate::rig::{Node, Rig};

const PREFIX: &str = "flannel.alpha.coreos.com/";

/// Node 2 is Fairlead's from the start, 1 and 3 are flannel's.
struct Mixed {
    rig: Rig,
    server: ApiServer,
    backend: &'static str,
    /// Whether there is IPv6 beside IPv4.
    dual: bool,
    /// The programs of flannel's backend `udp`, by node.
    proxies: BTreeMap<usize, Proxy>,
}

impl Mixed {
    fn new(backend: &'static str, dual: bool) -> Option<Self> {
        let (mut rig, server) = nodes(backend, dual)?;
        rig.nodes[1].start();
        let mut mixed = Self { rig, server, backend, dual, proxies: BTreeMap::new() };
        for index in [0, 2] {
            mixed.set_up_flannel(index);
            let node = &mixed.rig.nodes[index];
            node.netns.ip("link add pod0 type bridge");
            node.netns.ip("link set pod0 alias fairlead:test/pod/eth0 up");
            node.netns.ip(&format!("address add {} dev pod0", pod(node)));
            if dual {
                node.netns.ip(&format!("address add {} dev pod0 nodad", pod_v6(node)));
            }
        }
        Some(mixed)
    }

    /// What flannel does on its own node when it starts.
    fn set_up_flannel(&mut self, index: usize) {
        let node = &self.rig.nodes[index];
        let mac = flannels_mac(node);
        if self.backend == "udp" {
            let proxy = Proxy::start(&node.netns, "flannel0", underlay(node).parse().unwrap());
            node.netns.ip("link set flannel0 mtu 1472 up");
            node.netns.ip(&format!("address add {}/32 dev flannel0", base(node)));
            node.netns.ip("route add 10.244.0.0/16 dev flannel0");
            self.proxies.insert(node.number, proxy);
        }
        if self.backend == "vxlan" {
            let local = underlay(node);
            node.netns.ip(&format!(
                "link add flannel.1 address {mac} mtu 1450 type vxlan id 1 dev eth0 local {local} dstport 8472 nolearning"
            ));
            node.netns.ip("link set flannel.1 up");
            node.netns.ip(&format!("address add {}/32 dev flannel.1", base(node)));
        }
        if self.backend == "vxlan" && self.dual {
            let (mac, local) = (flannels_mac_v6(node), underlay_v6(node));
            node.netns.ip(&format!(
                "link add flannel-v6.1 address {mac} type vxlan id 1 dev eth0 local {local} dstport 8472 nolearning"
            ));
            node.netns.ip("link set flannel-v6.1 mtu 1430 up");
            node.netns.ip(&format!("address add {}/128 dev flannel-v6.1 nodad", base_v6(node)));
        }
        self.tell_flannels_words(index);
    }

    /// The part of it that others read.
    fn tell_flannels_words(&self, index: usize) {
        let node = &self.rig.nodes[index];
        let data = match self.backend {
            "vxlan" => json!({"VNI": 1, "VtepMAC": flannels_mac(node)}).to_string(),
            _ => "null".to_owned(),
        };
        let mut annotations = json!({
            format!("{PREFIX}kube-subnet-manager"): "true", format!("{PREFIX}backend-type"): self.backend,
            format!("{PREFIX}backend-data"): data, format!("{PREFIX}public-ip"): underlay(node),
        });
        if self.dual {
            let data = match self.backend {
                "vxlan" => json!({"VNI": 1, "VtepMAC": flannels_mac_v6(node)}).to_string(),
                _ => "null".to_owned(),
            };
            annotations[format!("{PREFIX}backend-v6-data")] = data.into();
            annotations[format!("{PREFIX}public-ipv6")] = underlay_v6(node).into();
        }
        let patch = json!({"metadata": {"annotations": annotations}});
        self.server.patch(&format!("{}/status", path(node)), &patch);
    }

    /// What a Node says in flannel's words, once it says something that `good` holds for.
    fn said(&self, node: &Node, good: impl Fn(&Value) -> bool) -> Value {
        eventually(&format!("{} tells nodes of flannel", node.name), || {
            let annotations = self.server.get(&path(node))["metadata"]["annotations"].clone();
            let of = |key: &str| annotations[format!("{PREFIX}{key}")].as_str();
            if of("kube-subnet-manager") != Some("true") || of("backend-type") != Some(self.backend) {
                return None;
            }
            let data: Value = serde_json::from_str(of("backend-data")?).unwrap();
            let address = of("public-ip")?;
            let mut said = json!({"data": data, "address": address});
            if self.dual {
                let data: Value = serde_json::from_str(of("backend-v6-data")?).unwrap();
                said["v6"] = json!({"data": data, "address": of("public-ipv6")?});
            }
            good(&said["data"]).then_some(said)
        })
    }

    /// What flannel does on `node` when it hears of `peer`.
    fn hear(&self, node: &Node, peer: &Node, said: &Value) {
        if self.dual {
            self.hear_v6(node, peer, &said["v6"]);
        }
        let (address, cidr, base) = (said["address"].as_str().unwrap(), cidr(peer), base(peer));
        if self.backend == "host-gw" {
            node.netns.ip(&format!("route replace {cidr} via {address} dev eth0"));
            return;
        }
        if let Some(proxy) = self.proxies.get(&node.number) {
            proxy.route(peer.number.try_into().unwrap(), address.parse().unwrap());
            return;
        }
        assert_eq!(said["data"]["VNI"], 1);
        let mac = said["data"]["VtepMAC"].as_str().unwrap();
        node.netns.ip(&format!("neigh replace {base} lladdr {mac} dev flannel.1 nud permanent"));
        let entry = ["fdb", "replace", mac, "dev", "flannel.1", "dst", address, "self", "permanent"];
        run_ok(node.netns.command("bridge").args(entry));
        node.netns.ip(&format!("route replace {cidr} via {base} dev flannel.1 onlink"));
    }

    fn hear_v6(&self, node: &Node, peer: &Node, said: &Value) {
        let (address, cidr, base) = (said["address"].as_str().unwrap(), cidr_v6(peer), base_v6(peer));
        if self.backend == "host-gw" {
            node.netns.ip(&format!("-6 route replace {cidr} via {address} dev eth0"));
            return;
        }
        assert_eq!(said["data"]["VNI"], 1);
        let mac = said["data"]["VtepMAC"].as_str().unwrap();
        node.netns.ip(&format!("-6 neigh replace {base} lladdr {mac} dev flannel-v6.1 nud permanent"));
        let entry = ["fdb", "replace", mac, "dev", "flannel-v6.1", "dst", address, "self", "permanent"];
        run_ok(node.netns.command("bridge").args(entry));
        node.netns.ip(&format!("-6 route replace {cidr} via {base} dev flannel-v6.1 onlink"));
    }
}

/// Three nodes of a Kubernetes, whose agents, none of them started, are told of flannel.
pub(crate) fn nodes(backend: &str, dual: bool) -> Option<(Rig, ApiServer)> {
    let mut rig = Rig::new(3);
    rig.underlay.ip("address add 198.18.0.254/24 dev br0");
    let server = ApiServer::start_in(&rig.underlay, IpAddr::from([198, 18, 0, 254]))?;
    server.apply(include_str!("../../../../deploy/kubernetes/rbac.yaml"));
    server.apply(include_str!("../../../../deploy/kubernetes/admission.yaml"));
    for node in &mut rig.nodes {
        let cidr = cidr(node);
        let mut spec = json!({"podCIDR": cidr, "podCIDRs": [cidr]});
        if dual {
            spec["podCIDRs"] = json!([cidr, cidr_v6(node)]);
        }
        // Some annotation is always there on a Node; flannel counts on it.
        let metadata = json!({"name": node.name, "annotations": {"node.alpha.kubernetes.io/ttl": "0"}});
        server.create("/api/v1/nodes", &json!({"metadata": metadata, "spec": spec}));
        let own = [underlay(node), underlay_v6(node)];
        let addresses: Vec<Value> = own[..if dual { 2 } else { 1 }]
            .iter()
            .map(|address| json!({"type": "InternalIP", "address": address}))
            .collect();
        server.patch(&format!("{}/status", path(node)), &json!({"status": {"addresses": addresses}}));
        let token = server.token_on("kube-system", "fairlead", &node.name);
        let kubeconfig = server.kubeconfig_for(&node.name, Credential::Token(&token));
        node.use_store(format!("kubernetes:{}", kubeconfig.display()));
        node.configure(&configuration(backend, dual, true));
    }
    Some((rig, server))
}

fn flannels_mac(node: &Node) -> String {
    format!("ba:1d:00:00:00:0{}", node.number)
}

pub(crate) fn configuration(backend: &str, dual: bool, annotations: bool) -> String {
    let networks = if dual { "10.244.0.0/16, fd00:10:244::/48" } else { "10.244.0.0/16" };
    format!(
        "cluster: {{podCIDRs: [{networks}]}}\nbackend: {backend}\nflannel: {{annotations: {annotations}}}\n"
    )
}

fn path(node: &Node) -> String {
    format!("/api/v1/nodes/{}", node.name)
}

pub(crate) fn underlay(node: &Node) -> String {
    format!("198.18.0.{}", node.number)
}

pub(crate) fn base(node: &Node) -> String {
    format!("10.244.{}.0", node.number)
}

pub(crate) fn cidr(node: &Node) -> String {
    format!("{}/24", base(node))
}

pub(crate) fn pod(node: &Node) -> String {
    format!("10.244.{}.5", node.number)
}

fn flannels_mac_v6(node: &Node) -> String {
    format!("ba:1d:00:00:06:0{}", node.number)
}

fn underlay_v6(node: &Node) -> String {
    format!("fd00:198:18::{}", node.number)
}

fn base_v6(node: &Node) -> String {
    format!("fd00:10:244:{}::", node.number)
}

fn cidr_v6(node: &Node) -> String {
    format!("{}/64", base_v6(node))
}

pub(crate) fn pod_v6(node: &Node) -> String {
    format!("{}5", base_v6(node))
}

/// Every pod reaches every other one, with packets as large as pods of either kind send.
fn assert_reachable(nodes: &[Node], backend: &str, dual: bool) {
    for from in nodes {
        for to in nodes {
            let (reached, said) = reaches(from, to, backend);
            assert!(reached, "{} -> {}: {said}", from.name, to.name);
            let (reached, said) = if dual { reaches_v6(from, to, backend) } else { (true, String::new()) };
            assert!(reached, "{} -> {} by IPv6: {said}", from.name, to.name);
        }
    }
}

/// The same by IPv6, whose tunnel to nodes of flannel costs twenty bytes more.
pub(crate) fn reaches_v6(from: &Node, to: &Node, backend: &str) -> (bool, String) {
    let mtu = if backend == "vxlan" { 1430 } else { 1500 };
    let payload = (mtu - 48).to_string();
    let (source, target) = (pod_v6(from), pod_v6(to));
    let arguments = ["-6", "-n", "-c", "1", "-W", "3", "-M", "do", "-s", &payload, "-I", &source, &target];
    let echo = run(from.netns.command("ping").args(arguments));
    (echo.status.success(), String::from_utf8_lossy(&echo.stdout).into_owned())
}

/// Whether a pod reaches another one with a packet as large as pods of either kind send, and what `ping` said.
pub(crate) fn reaches(from: &Node, to: &Node, backend: &str) -> (bool, String) {
    let mtu = match backend {
        "vxlan" => 1450,
        "udp" => 1472,
        _ => 1500,
    };
    let payload = (mtu - 28).to_string();
    let (source, target) = (pod(from), pod(to));
    let arguments = ["-n", "-c", "1", "-W", "3", "-M", "do", "-s", &payload, "-I", &source, &target];
    let echo = run(from.netns.command("ping").args(arguments));
    (echo.status.success(), String::from_utf8_lossy(&echo.stdout).into_owned())
}

pub(crate) fn has_both_peers(status: &Status) -> bool {
    let programmed = status.peers.iter().filter(|peer| peer.state == PeerState::Programmed);
    status.ready && programmed.count() == 2
}

/// The tunnel to flannel's nodes over IPv6 takes what IPv6 leaves, and heals.
fn assert_second_tunnel(node: &Node, peer: &Node) {
    let device = node.netns.ip_json("-d link show fairlead-v6");
    assert_eq!(
        (&device[0]["mtu"], &device[0]["linkinfo"]["info_data"]["port"]),
        (&json!(1430), &json!(8472))
    );
    // What is deleted there by hand comes back, as at the first tunnel.
    node.netns.ip(&format!("-6 neigh del {} dev fairlead-v6", base_v6(peer)));
    eventually("the neighbour is there again", || {
        let there = node.netns.ip_json("-6 neigh show nud permanent");
        let mut found = there.as_array()?.iter();
        found.find(|entry| entry["dev"] == "fairlead-v6" && entry["dst"] == *base_v6(peer)).map(drop)
    });
}

/// A cluster of both kinds whose first node changes over.
fn change_over(backend: &'static str, dual: bool) {
    let Some(mut mixed) = Mixed::new(backend, dual) else { return };
    mixed.rig.nodes[1].await_status("reaches the nodes of flannel", has_both_peers);
    mixed.rig.nodes[1].add_pod();
    let [first, second, third] = &mixed.rig.nodes[..] else { panic!("three nodes") };
    for (node, peer) in [(first, second), (first, third), (third, first), (third, second)] {
        mixed.hear(node, peer, &mixed.said(peer, |_| true));
    }
    assert_reachable(&mixed.rig.nodes, backend, dual);

    if dual && backend == "vxlan" {
        assert_second_tunnel(second, first);
    }

    // What a reboot would do; the pods that come back are Fairlead's.
    let before = mixed.said(first, |_| true);
    match backend {
        "vxlan" => {
            let devices: &[&str] = if dual { &["flannel.1", "flannel-v6.1"] } else { &["flannel.1"] };
            devices.iter().for_each(|device| drop(first.netns.ip(&format!("link delete {device}"))));
        }
        "udp" => drop(mixed.proxies.remove(&1)),
        _ => [second, third].iter().for_each(|peer| {
            first.netns.ip(&format!("route delete {}", cidr(peer)));
            if dual {
                first.netns.ip(&format!("-6 route delete {}", cidr_v6(peer)));
            }
        }),
    }
    mixed.rig.nodes[0].start();
    for node in &mixed.rig.nodes[..2] {
        node.await_status("reaches the others", has_both_peers);
        node.await_settled();
    }
    let [first, _, third] = &mixed.rig.nodes[..] else { panic!("three nodes") };
    let own = [cidr(first), cidr_v6(first)];
    assert_eq!(first.pod_cidrs(), own[..if dual { 2 } else { 1 }], "it keeps its pod CIDRs");
    let ours = route::vxlan::tunnel_mac("node1").to_string();
    let said = mixed.said(first, |data| backend != "vxlan" || data["VtepMAC"] == *ours);
    assert_eq!(said == before, backend != "vxlan");
    mixed.hear(third, first, &said);
    assert_reachable(&mixed.rig.nodes, backend, dual);

    // A flannel that is started there by mistake does not stay the last to speak, and is nobody's double.
    mixed.tell_flannels_words(0);
    assert_eq!(mixed.said(&mixed.rig.nodes[0], |data| backend != "vxlan" || data["VtepMAC"] == *ours), said);
    let status = mixed.rig.nodes[0].await_status("is ready", |status| status.ready);
    assert!(status.problems.is_empty(), "{:?}", status.problems);

    // Once there is none of flannel left, nobody need be told.
    mixed.rig.nodes[0].configure(&configuration(backend, dual, false));
    eventually("nothing is said in flannel's words", || {
        let annotations = mixed.server.get("/api/v1/nodes/node1")["metadata"]["annotations"].clone();
        let keys: Vec<&String> = annotations.as_object()?.keys().collect();
        keys.iter().all(|key| !key.starts_with(PREFIX)).then_some(())
    });
    // Nor are nodes of flannel's peers of one that tells them nothing.
    mixed.rig.nodes[0].await_status("leaves the node of flannel alone", |status| {
        let state = |name: &str| status.peers.iter().find(|peer| peer.node == name).map(|peer| peer.state);
        (state("node2"), state("node3")) == (Some(PeerState::Programmed), Some(PeerState::Unrouted))
    });
    assert_reachable(&mixed.rig.nodes[..2], backend, dual);
}

#[test]
fn a_cluster_changes_over_from_flannels_vxlan_node_by_node() {
    change_over("vxlan", false);
}

#[test]
fn a_cluster_changes_over_from_flannels_host_gw_node_by_node() {
    change_over("host-gw", false);
}

#[test]
fn a_cluster_changes_over_from_flannels_udp_node_by_node() {
    change_over("udp", false);
}

#[test]
fn a_cluster_of_both_families_changes_over_from_flannels_vxlan_node_by_node() {
    change_over("vxlan", true);
}

#[test]
fn a_cluster_of_both_families_changes_over_from_flannels_host_gw_node_by_node() {
    change_over("host-gw", true);
}

#[test]
fn an_underlay_too_narrow_for_flannels_ipv6_carries_all_the_rest_and_the_node_says_what_is_missing() {
    let Some((mut rig, server)) = nodes("vxlan", true) else { return };
    // 1290 bytes are left by IPv4, which is enough for IPv6, and 1270 by IPv6.
    for node in &mut rig.nodes[..2] {
        node.netns.ip("link set eth0 mtu 1340");
        node.start();
    }
    for node in &rig.nodes[..2] {
        node.await_status("is ready, and says so", |status| {
            let says = |problem: &String| problem.contains("IPv6 to and from flannel's nodes");
            let programmed = status.peers.iter().filter(|peer| peer.state == PeerState::Programmed);
            status.ready && status.problems.iter().any(says) && programmed.count() == 1
        });
        node.add_pod();
        let annotations = server.get(&path(node))["metadata"]["annotations"].clone();
        assert_eq!(annotations[format!("{PREFIX}public-ip")], *underlay(node));
        assert!(annotations[format!("{PREFIX}public-ipv6")].is_null(), "{annotations}");
    }
    let [first, second, _] = &rig.nodes[..] else { panic!("three nodes") };
    for (source, target) in first.pod_addresses().iter().zip(second.pod_addresses()) {
        assert!(first.pings(source, &target), "{source} -> {target}");
    }
}

#[test]
fn an_agent_with_flannels_tunnel_in_its_way_draws_nobodys_packets() {
    let Some(mut mixed) = Mixed::new("vxlan", false) else { return };
    let before = mixed.said(&mixed.rig.nodes[0], |_| true);
    // Without the word that the networks may overlap, it does not even start.
    mixed.rig.nodes[0].configure(
        "cluster: {podCIDRs: [10.244.0.0/16], allowOverlap: [10.244.0.0/16]}\nflannel: {annotations: true}\n",
    );
    mixed.rig.nodes[0].start();
    mixed.rig.nodes[0].await_status("cannot make its tunnel", |status| {
        status.reasons.iter().any(|reason| reason.contains("fairlead0"))
    });
    assert_eq!(mixed.said(&mixed.rig.nodes[0], |_| true), before);
    assert!(
        mixed.server.get("/api/v1/nodes/node1")["metadata"]["annotations"]["fairlead.io/lease"].is_null()
    );
}

#[test]
fn on_a_directory_the_key_has_no_effect_and_the_log_says_so() {
    let mut rig = Rig::new(1);
    rig.nodes[0].configure("flannel: {annotations: true}\n");
    rig.nodes[0].start();
    rig.nodes[0].await_status("is ready", |status| status.ready);
    assert!(rig.nodes[0].log().contains("flannel.annotations has no effect"), "{}", rig.nodes[0].log());
    let store = store::Directory::open(rig.store.path()).unwrap();
    assert_eq!(store.list().unwrap().snapshot.leases["node1"].flannel, cluster::Flannel::Apart);
}
