//! Nodes of flannel without Kubernetes: those that share an etcd with Fairlead's, made by hand as flannel programs them,
//! and the file that it leaves on a node.

use std::net::Ipv4Addr;
use std::process::Command;

use agent::{PeerState, Status};
use harness::etcd::base64;
use harness::{Etcd, eventually, run_ok};
use serde_json::{Value, json};

use crate::rig::{Node, Rig};

const SUBNETS: &str = "/coreos.com/network/subnets/";

const CONFIGURATION: &str = "
cluster: {podCIDRs: [10.244.0.0/16], deletedNodeGraceSeconds: 0}
flannel: {etcdPrefix: /coreos.com/network}
";

const NETWORK_IN_ETCD: &str = "flannel: {etcdPrefix: /coreos.com/network, netConf: etcd}\n";

fn mac(number: usize) -> String {
    format!("ba:1d:00:00:00:0{number}")
}

/// What flannel says of one of its nodes, with a lease of a day.
fn say(etcd: &Etcd, subnet: &str, number: usize) {
    let said = json!({
        "PublicIP": format!("198.18.0.{number}"), "PublicIPv6": null, "BackendType": "vxlan",
        "BackendData": {"VNI": 1, "VtepMAC": mac(number)},
    });
    let granted = etcd.ask("/v3/lease/grant", &json!({"TTL": "86400"}));
    let (key, value) = (base64(&format!("{SUBNETS}{subnet}")), base64(&said.to_string()));
    etcd.ask("/v3/kv/put", &json!({"key": key, "value": value, "lease": granted["ID"]}));
}

/// What flannel reads of a node: its subnet, and what stands under its key.
fn said(etcd: &Etcd, subnet: &str) -> Option<Value> {
    let value = etcd.get(&format!("{SUBNETS}{subnet}"))?["value"].as_str()?.to_owned();
    let text = run_ok(Command::new("sh").args(["-c", &format!("printf %s '{value}' | base64 -d")]));
    Some(serde_json::from_str(&text).unwrap())
}

/// What flannel does on `node` when it hears of the node that has this subnet.
fn hear(node: &Node, base: &str, said: &Value) {
    assert_eq!((&said["BackendType"], &said["BackendData"]["VNI"]), (&json!("vxlan"), &json!(1)), "{said}");
    let (address, mac) =
        (said["PublicIP"].as_str().unwrap(), said["BackendData"]["VtepMAC"].as_str().unwrap());
    node.netns.ip(&format!("neigh replace {base} lladdr {mac} dev flannel.1 nud permanent"));
    let entry = ["fdb", "replace", mac, "dev", "flannel.1", "dst", address, "self", "permanent"];
    run_ok(node.netns.command("bridge").args(entry));
    node.netns.ip(&format!("route replace {base}/24 via {base} dev flannel.1 onlink"));
}

fn set_up_flannel(node: &Node, base: &str) {
    let (mac, local) = (mac(node.number), format!("198.18.0.{}", node.number));
    node.netns.ip(&format!(
        "link add flannel.1 address {mac} mtu 1450 type vxlan id 1 dev eth0 local {local} dstport 8472 nolearning"
    ));
    node.netns.ip("link set flannel.1 up");
    node.netns.ip(&format!("address add {base}/32 dev flannel.1"));
    node.netns.ip("link add pod0 type bridge");
    node.netns.ip("link set pod0 up");
    node.netns.ip(&format!("address add {}5 dev pod0", base.strip_suffix('0').unwrap()));
}

fn has_peers(count: usize) -> impl Fn(&Status) -> bool {
    move |status| {
        let programmed = status.peers.iter().filter(|peer| peer.state == PeerState::Programmed).count();
        status.ready && (programmed, status.peers.len()) == (count, count)
    }
}

#[test]
fn nodes_of_flannel_and_of_fairlead_are_one_cluster_by_an_etcd() {
    let mut rig = Rig::new(3);
    rig.underlay.ip("address add 198.18.0.254/24 dev br0");
    let Some(etcd) = Etcd::start_in(&rig.underlay, Ipv4Addr::new(198, 18, 0, 254)) else { return };
    // Node 1 is flannel's, and node 3 was until a moment ago.
    etcd.put("/coreos.com/network/config", r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#);
    say(&etcd, "10.244.0.0-24", 1);
    say(&etcd, "10.244.30.0-24", 3);
    set_up_flannel(&rig.nodes[0], "10.244.0.0");
    for node in &mut rig.nodes[1..] {
        let manifest = format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {}}}\n", node.name);
        etcd.put(&format!("/fairlead/nodes/{}", node.name), &manifest);
        node.use_store(format!("etcd:{}", etcd.url()));
        node.configure(CONFIGURATION);
        node.start();
    }
    for node in &rig.nodes[1..] {
        node.await_status("reaches both others", has_peers(2));
        node.add_pod();
    }
    let [first, second, third] = &rig.nodes[..] else { panic!("three nodes") };
    assert_eq!(second.pod_cidrs(), ["10.244.1.0/24"], "the first that is neither Fairlead's nor flannel's");
    assert_eq!(third.pod_cidrs(), ["10.244.30.0/24"], "what it had as one of flannel's");
    let ours = |subnet: &str| {
        eventually("flannel's nodes are told", || {
            said(&etcd, subnet).filter(|said| !said["Fairlead"].is_null())
        })
    };
    for (subnet, base) in [("10.244.1.0-24", "10.244.1.0"), ("10.244.30.0-24", "10.244.30.0")] {
        hear(first, base, &ours(subnet));
    }
    let pods = ["10.244.0.5", "10.244.1.5", "10.244.30.5"];
    for (from, source) in rig.nodes.iter().zip(pods) {
        for target in pods {
            assert!(from.pings(source, target), "{source} -> {target}");
        }
    }

    // An agent that starts gives its key another day; the node's network is as it was.
    let key = format!("{SUBNETS}10.244.1.0-24");
    let before = etcd.get(&key).unwrap()["lease"].clone();
    rig.nodes[1].kill();
    rig.nodes[1].start();
    eventually("the key has another lease", || {
        etcd.get(&key).filter(|kv| !kv["lease"].is_null() && kv["lease"] != before)
    });
    rig.nodes[1].await_status("is as it was", has_peers(2));

    // A node of flannel's is gone with its key, and one of ours with its Node.
    etcd.delete(&format!("{SUBNETS}10.244.0.0-24"));
    rig.nodes[1].await_status("has lost the node of flannel", has_peers(1));
    etcd.delete("/fairlead/nodes/node3");
    eventually("what node3 had is free", || said(&etcd, "10.244.30.0-24").is_none().then_some(()));
}

fn say_network(etcd: &Etcd, vni: u32) {
    let network = json!({
        "Network": "10.20.0.0/16", "SubnetMin": "10.20.16.0", "SubnetMax": "10.20.17.0",
        "Backend": {"Type": "vxlan", "VNI": vni},
    });
    etcd.put("/coreos.com/network/config", &network.to_string());
}

/// Nodes that have their network from an etcd, which says VNI 7; none of them is started.
fn with_network_in_etcd(nodes: usize) -> Option<(Rig, Etcd)> {
    let mut rig = Rig::new(nodes);
    rig.underlay.ip("address add 198.18.0.254/24 dev br0");
    let etcd = Etcd::start_in(&rig.underlay, Ipv4Addr::new(198, 18, 0, 254))?;
    say_network(&etcd, 7);
    for node in &mut rig.nodes {
        let manifest = format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {}}}\n", node.name);
        etcd.put(&format!("/fairlead/nodes/{}", node.name), &manifest);
        node.use_store(format!("etcd:{}", etcd.url()));
        node.configure(NETWORK_IN_ETCD);
    }
    Some((rig, etcd))
}

fn vni(node: &Node) -> Option<u64> {
    node.device()["linkinfo"]["info_data"]["id"].as_u64()
}

fn has_problem(what: &'static str) -> impl Fn(&Status) -> bool {
    move |status| status.problems.iter().any(|problem| problem.contains(what))
}

#[test]
fn flannels_network_in_etcd_is_the_configuration_its_bounds_hold_and_its_changes_are_followed() {
    let Some((mut rig, etcd)) = with_network_in_etcd(3) else { return };
    rig.nodes[..2].iter_mut().for_each(Node::start);
    for node in &rig.nodes[..2] {
        node.await_status("reaches the other", |status| {
            status.ready && status.peers.iter().any(|peer| peer.state == PeerState::Programmed)
        });
        node.add_pod();
        assert_eq!(vni(node), Some(7));
    }
    let mut cidrs: Vec<String> = rig.nodes[..2].iter().flat_map(Node::pod_cidrs).collect();
    cidrs.sort();
    assert_eq!(cidrs, ["10.20.16.0/24", "10.20.17.0/24"], "between the bounds");
    assert!(rig.nodes[0].pings(&rig.nodes[0].pod_addresses()[0], &rig.nodes[1].pod_addresses()[0]));
    rig.nodes[2].start();
    rig.nodes[2].await_status("finds nothing between the bounds", |status| {
        !status.ready && status.reasons.iter().any(|reason| reason.contains("all 2 are held"))
    });

    say_network(&etcd, 8);
    for node in &rig.nodes[..2] {
        eventually("the change is followed", || (vni(node) == Some(8)).then_some(()));
    }
    eventually("pods reach each other again", || {
        let [source, target] = [0, 1].map(|number| rig.nodes[number].pod_addresses()[0].clone());
        rig.nodes[0].pings(&source, &target).then_some(())
    });
    say_network(&etcd, 0);
    // With its own file the key is read too, sooner than it would be by itself.
    rig.nodes[0].configure(NETWORK_IN_ETCD);
    rig.nodes[0].await_status("refuses what cannot be", |status| {
        status.ready && has_problem("Backend.VNI is 0")(status)
    });
    assert_eq!(vni(&rig.nodes[0]), Some(8));
}

#[test]
fn neither_a_network_that_is_gone_from_etcd_nor_an_etcd_that_is_away_takes_away_what_was_known() {
    let Some((mut rig, mut etcd)) = with_network_in_etcd(1) else { return };
    let node = &mut rig.nodes[0];
    node.start();
    node.await_status("is ready", |status| status.ready);
    let is_as_it_was = |node: &Node| {
        let cidrs: Vec<String> =
            node.status().unwrap().cluster_cidrs.iter().map(ToString::to_string).collect();
        (vni(node), cidrs) == (Some(7), vec!["10.20.0.0/16".to_owned()])
    };
    assert!(is_as_it_was(node));
    etcd.delete("/coreos.com/network/config");
    node.configure(NETWORK_IN_ETCD);
    eventually("the key is missed", || {
        let missed = "stays as it was: etcd has no key /coreos.com/network/config";
        node.log().contains(missed).then_some(())
    });
    assert!(is_as_it_was(node));
    etcd.kill();
    node.kill();
    node.start();
    node.await_status("goes on without etcd", |status| status.backend.kind == "vxlan");
    assert!(is_as_it_was(node));
    assert!(node.log().contains("flannel.netConf is etcd: read key"));
    etcd.resume();
    node.configure(NETWORK_IN_ETCD);
    node.await_status("misses the key", |status| {
        status.ready && has_problem("flannel.netConf is etcd: etcd has no key")(status)
    });
    assert!(is_as_it_was(node));
    say_network(&etcd, 9);
    node.configure(NETWORK_IN_ETCD);
    eventually("the key is there again", || (vni(node) == Some(9)).then_some(()));
    // What one key said is not taken for what another one says.
    node.configure("flannel: {etcdPrefix: /other, netConf: etcd}\n");
    node.await_status("misses the other key", has_problem("etcd has no key /other/config"));
    assert_eq!(vni(node), Some(9));
}

#[test]
fn a_network_in_etcd_that_is_not_there_or_not_to_be_had_ends_the_start_with_the_reason() {
    let mut rig = Rig::new(1);
    rig.nodes[0].configure(NETWORK_IN_ETCD);
    let said = |rig: &Rig| {
        let output = harness::run(&mut rig.nodes[0].command(&[]));
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let text = said(&rig);
    assert!(
        text.contains("flannel.netConf is etcd, and the store, dir:") && text.contains("is another one"),
        "{text}"
    );
    rig.underlay.ip("address add 198.18.0.254/24 dev br0");
    let Some(etcd) = Etcd::start_in(&rig.underlay, Ipv4Addr::new(198, 18, 0, 254)) else { return };
    rig.nodes[0].use_store(format!("etcd:{}", etcd.url()));
    let text = said(&rig);
    assert!(text.contains("etcd has no key /coreos.com/network/config") && text.contains("hint: "), "{text}");
    assert_eq!(rig.nodes[0].netns.link_names(), ["eth0"]);
}

#[test]
fn the_subnet_that_flannel_left_in_its_file_is_kept_and_the_file_is_kept_true() {
    let mut rig = Rig::new(1);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("flannel/subnet.env");
    std::fs::create_dir(directory.path().join("flannel")).unwrap();
    let left = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.77.1/24\nFLANNEL_MTU=1400\nFLANNEL_IPMASQ=true\n";
    std::fs::write(&file, left).unwrap();
    let configuration = |more: &str| {
        format!("cluster: {{podCIDRs: [10.244.0.0/16]}}\nflannel: {{subnetFile: {}}}\n{more}", file.display())
    };
    rig.nodes[0].configure(&configuration(""));
    rig.nodes[0].start();
    rig.nodes[0].await_status("is ready", |status| status.ready);
    assert_eq!(rig.nodes[0].pod_cidrs(), ["10.244.77.0/24"]);
    let says = |mtu: &str| {
        eventually("the file is true", || {
            let text = std::fs::read_to_string(&file).ok()?;
            (text == left.replace("1400", mtu)).then_some(())
        });
    };
    says("1450");
    rig.nodes[0].configure(&configuration("underlay: {mtu: 1300}\n"));
    says("1250");
    rig.nodes[0].configure(&configuration("masquerade: {enabled: false}\n"));
    eventually("the file tells who translates", || {
        std::fs::read_to_string(&file)
            .ok()?
            .ends_with("FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n")
            .then_some(())
    });
    rig.nodes[0].kill();
    run_ok(&mut rig.nodes[0].command(&["clean"]));
    assert!(!file.exists());
    let rest: Vec<_> = std::fs::read_dir(directory.path().join("flannel")).unwrap().collect();
    assert!(rest.is_empty(), "{rest:?}");
}
