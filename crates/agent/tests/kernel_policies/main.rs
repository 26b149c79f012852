//! Network policies on a kernel that has IPVS and SCTP, with packets: Services as kube-proxy's mode `ipvs` has them, and the third
//! protocol that policies know. Where the kernel has neither, a test says so.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test that cannot go on has failed, and tools are what it asserts with"
)]

#[path = "../cluster/rig.rs"]
#[allow(dead_code, reason = "another suite's, of which this one needs a part")]
mod rig;
#[path = "../cluster/scene.rs"]
#[allow(dead_code, reason = "another suite's, of which this one needs a part")]
mod scene;
#[path = "../cluster/services.rs"]
mod services;

use std::net::UdpSocket;
use std::time::Duration;

use harness::talk::{ask_sctp, serve, serve_sctp};
use harness::{Namespace, eventually, run, run_ok};
use serde_json::json;

use scene::{Pod, Scene, only_from};
use services::{NODE, NODE_PORTS, PORT, Play, SERVICE, TARGET, tell};

/// Longer than an answer takes on any machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn has_ipvs() -> bool {
    let namespace = Namespace::new();
    let there = std::process::Command::new("ipvsadm").arg("--version").output().is_ok()
        && run(namespace.command("ipvsadm").arg("-Ln")).status.success();
    if !there {
        harness::not_run("this machine has no IPVS, or no ipvsadm");
    }
    there
}

/// Where kube-proxy has the Service's addresses, and how.
fn prepare(netns: &Namespace) {
    run_ok(netns.command("sh").args(["-c", "echo 1 > /proc/sys/net/ipv4/vs/conntrack"]));
    netns.ip("link add kube-ipvs0 type dummy");
    for address in SERVICE {
        netns.ip(&format!("address add {address} dev kube-ipvs0"));
    }
}

fn socket(address: &str, port: u16) -> String {
    match address.contains(':') {
        true => format!("[{address}]:{port}"),
        false => format!("{address}:{port}"),
    }
}

/// Has the node carry the Service by IPVS, as kube-proxy would.
fn balance(play: &Play) {
    let netns = &play.scene.node().netns;
    prepare(netns);
    for (family, pod) in play.web.addresses.iter().enumerate() {
        let at_node = NODE_PORTS.map(|port| socket(NODE[family], port));
        for service in [&[socket(SERVICE[family], PORT)], &at_node[..]].concat() {
            for protocol in ["-t", "-u"] {
                let server = socket(pod, TARGET);
                run_ok(netns.command("ipvsadm").args(["-A", protocol, &service, "-s", "rr"]));
                run_ok(netns.command("ipvsadm").args(["-a", protocol, &service, "-r", &server, "-m"]));
            }
        }
        // What kube-proxy translates: a pod that reaches itself.
        let words = ["ip", "ip6"][family];
        let rules = format!(
            "add table {words} kube-proxy; \
             add chain {words} kube-proxy post {{ type nat hook postrouting priority srcnat; }}; \
             add rule {words} kube-proxy post {words} saddr {pod} {words} daddr {pod} masquerade"
        );
        run_ok(netns.command("nft").arg(rules));
    }
}

#[test]
fn what_ipvs_takes_is_judged_by_whom_it_comes_from_and_by_where_it_goes() {
    if !has_ipvs() {
        return;
    }
    let play = Play::new();
    balance(&play);
    tell(&play);
}

#[test]
fn what_ipvs_leads_to_the_tunnel_of_a_node_does_not_arrive_there() {
    if !has_ipvs() {
        return;
    }
    let scene = Scene::enforcing();
    let client = scene.pod("client", "client");
    let netns = &scene.node().netns;
    prepare(netns);
    let dropped = |packets: u32| {
        let table = run_ok(netns.command("nft").args(["list", "table", "inet", "fairlead_antispoof"]));
        let rule = table.lines().find(|rule| rule.contains("to a node's tunnel")).unwrap();
        rule.contains(&format!("counter packets {packets} ")).then_some(())
    };
    let mut sent = 0;
    for (family, service) in SERVICE.iter().enumerate() {
        // This node's own, which IPVS delivers, and another's, to which it sends.
        for (port, node) in [(53, NODE[family]), (54, ["198.18.0.9", "fd00:198:18::9"][family])] {
            let service = socket(service, port);
            run_ok(netns.command("ipvsadm").args(["-A", "-u", &service, "-s", "rr"]));
            run_ok(netns.command("ipvsadm").args(["-a", "-u", &service, "-r", &socket(node, 8472), "-m"]));
            let any = if family == 0 { "0.0.0.0:0" } else { "[::]:0" };
            let from = client.netns.inside(|| UdpSocket::bind(any).unwrap());
            from.send_to(b"vxlan", &service).unwrap();
            sent += 1;
            eventually("what the pod sent is dropped", || dropped(sent));
        }
    }
}

#[test]
fn what_is_said_of_sctp_is_about_sctp_alone() {
    let scene = Scene::enforcing();
    let (web, friend, client) =
        (scene.pod("web", "web"), scene.pod("friend", "friend"), scene.pod("client", "client"));
    if !serve_sctp(&web.netns, 80, "web") {
        return harness::not_run("this kernel has no SCTP sockets");
    }
    serve(&web.netns, 80, "web");
    let hears =
        |pod: &Pod| web.addresses.iter().all(|address| ask_sctp(&pod.netns, address, 80, PATIENCE).is_some());
    let hears_nothing = |pod: &Pod| {
        let impatience = Duration::from_millis(500);
        web.addresses.iter().all(|address| ask_sctp(&pod.netns, address, 80, impatience).is_none())
    };
    assert!(hears(&client) && client.asks(&web), "nobody is isolated");
    let mut spec = only_from("friend");
    spec["ingress"][0]["ports"] = json!([{"protocol": "SCTP", "port": 80}]);
    scene.put_policy("door", "web", spec.clone());
    eventually("who is not let in hears nothing", || hears_nothing(&client).then_some(()));
    assert!(hears(&friend));
    assert!(friend.is_deaf_to(&web), "SCTP is not TCP");
    spec["ingress"][0]["ports"] = json!([{"protocol": "SCTP", "port": 81}, {"protocol": "TCP", "port": 80}]);
    scene.put_policy("door", "web", spec);
    eventually("another port is another port", || hears_nothing(&friend).then_some(()));
    assert!(friend.asks(&web));
}
