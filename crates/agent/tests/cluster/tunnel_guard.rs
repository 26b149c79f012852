//! Pods that send what only nodes may, with packets: to the nodes' tunnels, by each way that leads there.

use std::net::{SocketAddr, UdpSocket};

use harness::talk::{Client, serve};
use harness::{Namespace, eventually, run_ok};

use crate::rig::{Node, Rig};
use crate::scene::Scene;

/// The port of the nodes' tunnels.
const VXLAN: u16 = 8472;

/// Sends a datagram from the address, or from whatever the host chooses.
fn send(netns: &Namespace, from: &str, to: &str, port: u16) {
    let [from, to] = [from, to].map(|address| address.parse().unwrap());
    let socket = netns.inside(|| UdpSocket::bind(SocketAddr::new(from, 0)).unwrap());
    socket.set_broadcast(true).unwrap();
    socket.send_to(b"vxlan", SocketAddr::new(to, port)).unwrap();
}

/// How many packets the node has dropped that pods sent to tunnels.
fn dropped(node: &Node) -> u64 {
    let table = run_ok(node.netns.command("nft").args(["list", "table", "inet", "fairlead_antispoof"]));
    let rule = table.lines().find(|rule| rule.contains("to a node's tunnel")).unwrap();
    rule.split_once("counter packets ").unwrap().1.split(' ').next().unwrap().parse().unwrap()
}

fn await_dropped(node: &Node, packets: u64, what: &str) {
    eventually(what, || (dropped(node) == packets).then_some(()));
}

/// The node's own addresses among those of pods: the first of its pod CIDRs.
fn tunnel_addresses(node: &Node) -> Vec<String> {
    node.pod_cidrs().iter().map(|cidr| cidr.split('/').next().unwrap().to_owned()).collect()
}

#[test]
fn a_pod_does_not_speak_as_a_node_and_may_have_tunnels_of_its_own() {
    let scene = Scene::enforcing();
    let (web, client) = (scene.pod("web", "web"), scene.pod("client", "client"));
    serve(&web.netns, VXLAN, "web");
    for address in &web.addresses {
        Client::new(&client.netns, address, VXLAN).ask();
    }
    let own = tunnel_addresses(scene.node());
    let mut sent = 0;
    for (any, nodes) in [
        ("0.0.0.0", ["198.18.0.1", "198.18.0.9", &own[0], "224.0.0.1"]),
        ("::", ["fd00:198:18::1", "fd00:198:18::9", &own[1], "ff05::1"]),
    ] {
        for node in nodes {
            send(&client.netns, any, node, VXLAN);
            sent += 1;
            await_dropped(scene.node(), sent, node);
        }
    }
}

#[test]
fn a_pod_of_a_bridge_does_not_speak_to_its_node_by_the_bridge_s_own_addresses_either() {
    let scene = Scene::of(1, true);
    let (web, client) = (scene.pod("web", "web"), scene.pod("client", "client"));
    serve(&web.netns, VXLAN, "web");
    for address in &web.addresses {
        Client::new(&client.netns, address, VXLAN).ask();
    }
    let bridge = scene.node().netns.ip_json("address show dev cni0");
    let mut own = tunnel_addresses(scene.node());
    let addresses = bridge[0]["addr_info"].as_array().unwrap().iter();
    let global = addresses.filter(|address| address["scope"] == "global");
    own.extend(global.map(|address| address["local"].as_str().unwrap().to_owned()));
    own.push(own[0].strip_suffix(".0").unwrap().to_owned() + ".255");
    for (sent, node) in (1..).zip(own) {
        let any = if node.contains(':') { "::" } else { "0.0.0.0" };
        send(&client.netns, any, &node, VXLAN);
        await_dropped(scene.node(), sent, &node);
    }
}

#[test]
fn what_leads_a_pod_to_a_node_s_tunnel_by_translating_addresses_does_not_lead_it_there() {
    let scene = Scene::enforcing();
    let (web, client) = (scene.pod("web", "web"), scene.pod("client", "client"));
    serve(&web.netns, VXLAN, "web");
    let services = [
        ("ip", "10.96.0.1", "198.18.0.1"),
        ("ip", "10.96.0.2", "198.18.0.9"),
        ("ip", "10.96.0.3", &*web.addresses[0]),
        ("ip6", "fd00:96::1", "fd00:198:18::1"),
        ("ip6", "fd00:96::2", "fd00:198:18::9"),
        ("ip6", "fd00:96::3", &*web.addresses[1]),
    ];
    // Also at the port of the tunnel itself: what counts is where it leads.
    let ports = [53, VXLAN];
    let rules = services.map(|(version, service, end)| {
        let end = if version == "ip" { end.to_owned() } else { format!("[{end}]") };
        format!("{version} daddr {service} meta l4proto {{ tcp, udp }} th dport {{ 53, {VXLAN} }} dnat {version} to {end}:{VXLAN}")
    });
    let chains = format!(
        "add table inet services; \
         add chain inet services arriving {{ type nat hook prerouting priority dstnat; {}; }}; \
         add chain inet services leaving {{ type nat hook postrouting priority srcnat; masquerade; }}",
        rules.join("; ")
    );
    run_ok(scene.node().netns.command("nft").arg(chains));
    let mut dropped = 0;
    for (version, service, end) in services {
        let any = if version == "ip" { "0.0.0.0" } else { "::" };
        for port in ports {
            if web.addresses.iter().any(|address| address == end) {
                Client::new(&client.netns, service, port).ask();
                continue;
            }
            send(&client.netns, any, service, port);
            dropped += 1;
            await_dropped(scene.node(), dropped, service);
        }
    }
}

#[test]
fn a_pod_s_answer_reaches_whom_translation_gave_the_number_of_the_tunnel_s_port_and_never_a_node() {
    let mut scene = Scene::of(2, false);
    scene.rig.nodes[1].start();
    scene.rig.await_joined();
    let web = scene.pod("web", "web");
    serve(&web.netns, 53, "web");
    let asking = &scene.rig.nodes[1];
    let in_tunnel = tunnel_addresses(asking);
    let own = ["198.18.0.2", "fd00:198:18::2"];
    for ((version, address), sources) in
        ["ip", "ip6"].into_iter().zip(&web.addresses).zip(in_tunnel.iter().zip(own))
    {
        let translate = |source: &str| {
            let end = if version == "ip" { source.to_owned() } else { format!("[{source}]") };
            let rule = format!("{version} daddr {address} udp dport 53 snat {version} to {end}:{VXLAN}");
            let chain = format!(
                "add table inet asking; delete table inet asking; add table inet asking; \
                 add chain inet asking leaving {{ type nat hook postrouting priority srcnat; {rule}; }}"
            );
            run_ok(asking.netns.command("nft").arg(chain));
        };
        // As what is translated on its way through the tunnel has it.
        let before = dropped(scene.node());
        translate(sources.0);
        assert_eq!(Client::new(&asking.netns, address, 53).ask(), format!("web {}", sources.0));
        assert_eq!([dropped(scene.node()), dropped(asking)], [before, 0]);
        // The answer would be for the node's tunnel, whoever asked.
        translate(sources.1);
        send(&asking.netns, sources.1, address, 53);
        await_dropped(scene.node(), before + 1, sources.1);
    }
}

#[test]
fn what_comes_from_the_pods_of_another_node_does_not_reach_the_tunnel() {
    let rig = Rig::joined(2);
    let [here, there] = [&rig.nodes[0], &rig.nodes[1]];
    // The other node's own addresses in the tunnel are the cluster's, and nobody asks there what the node sends.
    for (sent, (from, to)) in (1..).zip(tunnel_addresses(there).iter().zip(&tunnel_addresses(here))) {
        send(&there.netns, from, to, VXLAN);
        await_dropped(here, sent, to);
    }
}

#[test]
fn tables_that_versions_before_had_go_when_the_agent_starts() {
    let mut rig = Rig::new(1);
    let [senders, tunnels] = ["fairlead_senders", "fairlead_tunnels"];
    let chain = "type filter hook prerouting priority raw; iifgroup 5 counter drop;";
    let rules = format!(
        "add table inet {senders}; add chain inet {senders} prerouting {{ {chain} }}; \
         add table inet {tunnels}; add chain inet {tunnels} forward {{ type filter hook forward priority filter; }}"
    );
    run_ok(rig.nodes[0].netns.command("nft").arg(rules));
    rig.nodes[0].start();
    rig.nodes[0].await_status("ready", |status| status.ready);
    rig.nodes[0].await_settled();
    let tables = run_ok(rig.nodes[0].netns.command("nft").args(["list", "tables"]));
    assert!(tables.contains("fairlead_antispoof"), "{tables}");
    assert!(!tables.contains(senders) && !tables.contains(tunnels), "{tables}");
}
