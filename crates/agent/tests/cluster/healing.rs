//! Foreign hands on our objects, and ours off foreign ones: scenarios 17 to 22, 24, 25 and 46.

use std::process::Command;

use harness::talk::{ask, serve};
use harness::{eventually, run, run_ok};

use crate::rig::{Node, Rig, lines};
use crate::wired::WiredPod;

/// Waits until the node's tunnel is as it was.
fn await_healed(node: &Node, was: &str) {
    eventually(&format!("{}: the tunnel is as it was", node.name), || {
        let whole = run(node.netns.command("ip").args(["link", "show", "fairlead0"])).status.success();
        (whole && lines(&node.tunnel_text()) == lines(was)).then_some(())
    });
}

#[test]
fn scenarios_17_and_18_a_route_neighbour_or_forwarding_entry_deleted_by_hand_comes_back() {
    let rig = Rig::joined(2);
    rig.add_pods();
    let node = &rig.nodes[0];
    let was = node.tunnel_text();
    for route in node.tunnel_routes() {
        node.netns.ip(&format!("route del {route} dev fairlead0"));
        await_healed(node, &was);
    }
    for neighbour in node.neighbours() {
        node.netns.ip(&format!("neigh del {neighbour} dev fairlead0"));
        await_healed(node, &was);
    }
    let entries = node.netns.bridge_json("fdb show dev fairlead0");
    let mac = entries[0]["mac"].as_str().unwrap();
    run_ok(node.netns.command("bridge").args(["fdb", "del", mac, "dev", "fairlead0"]));
    await_healed(node, &was);
    node.netns.ip(&format!("neigh replace {} lladdr 02:00:00:00:00:01 dev fairlead0", node.neighbours()[0]));
    await_healed(node, &was);
    node.netns.ip("address flush dev fairlead0 scope global");
    await_healed(node, &was);
    node.netns.ip("link set fairlead0 down");
    await_healed(node, &was);
    node.netns.ip("link set fairlead0 mtu 1300");
    await_healed(node, &was);
    rig.assert_reachable();
}

#[test]
fn scenario_19_the_device_deleted_by_hand_comes_back_with_every_peer() {
    let rig = Rig::joined(3);
    rig.add_pods();
    let node = &rig.nodes[0];
    let was = node.tunnel_text();
    node.netns.ip("link del fairlead0");
    await_healed(node, &was);
    node.await_status("ready", |status| status.ready);
    rig.assert_reachable();
}

#[test]
fn scenario_20_a_flush_of_every_foreign_route_is_healed() {
    let rig = Rig::joined(2);
    rig.add_pods();
    let node = &rig.nodes[0];
    let was = node.tunnel_text();
    for family in ["-4", "-6"] {
        run_ok(node.netns.command("ip").args([family, "route", "flush", "proto", "70"]));
    }
    await_healed(node, &was);
    rig.assert_reachable();
}

#[test]
fn scenario_24_a_flushed_ruleset_comes_back() {
    let rig = Rig::joined(1);
    let node = &rig.nodes[0];
    let was = node.tunnel_text();
    assert!(was.contains("masquerade fully-random"), "{was}");
    run_ok(node.netns.command("nft").args(["flush", "ruleset"]));
    await_healed(node, &was);
    run_ok(node.netns.command("nft").args(["delete", "table", "inet", "fairlead"]));
    await_healed(node, &was);
    run_ok(node.netns.command("nft").args(["flush", "chain", "inet", "fairlead", "postrouting"]));
    await_healed(node, &was);
    run_ok(node.netns.command("nft").args(["add element inet fairlead cluster4 { 192.0.2.0/24 }"]));
    await_healed(node, &was);
}

#[test]
fn scenario_25_flushed_iptables_take_nothing_of_ours_along() {
    let rig = Rig::joined(1);
    let node = &rig.nodes[0];
    let ours = || run_ok(node.netns.command("nft").args(["list", "table", "inet", "fairlead"]));
    let was = ours();
    for tool in ["iptables", "ip6tables"] {
        // By these the tables come to be, as a firewall's start would have it.
        for words in ["-t nat -A POSTROUTING -j ACCEPT", "-A FORWARD -j ACCEPT"] {
            run_ok(node.netns.command(tool).args(words.split(' ')));
        }
        for words in ["-t nat -F", "-F", "-t nat -X", "-X"] {
            run_ok(node.netns.command(tool).args(words.split(' ')));
        }
    }
    assert_eq!(ours(), was);
}

#[test]
fn forwarding_switched_off_by_hand_is_switched_on_again() {
    let rig = Rig::joined(2);
    rig.add_pods();
    let node = &rig.nodes[0];
    for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        run_ok(node.netns.command("sysctl").args(["-q", "-w", &format!("{path}=0")]));
        eventually(path, || (node.netns.sysctl(path) == "1").then_some(()));
    }
    node.await_status("ready", |status| status.ready);
    rig.assert_reachable();
}

/// What is nearly ours and is not: a link by its name and nearly our alias, routes of other protocols, one of them for a part of
/// the cluster's network and by our own device, a rule beside our priorities, and tables with nearly our name.
fn put_look_alikes(node: &Node) {
    for line in [
        "link add fairlead1 type bridge",
        "link set fairlead1 alias fairleads up",
        "route add 10.244.250.0/24 dev fairlead0 proto static",
        "route add 198.18.99.0/24 via 198.18.0.254 proto 69",
        "rule add from 192.0.2.0/24 lookup 101 priority 7599",
    ] {
        node.netns.ip(line);
    }
    run_ok(node.netns.command("nft").args(["add table inet fairlea; add table ip fairleads"]));
}

#[test]
fn scenario_21_what_is_put_onto_the_tunnels_own_device_goes_again() {
    let rig = Rig::joined(2);
    let node = &rig.nodes[0];
    let was = node.tunnel_text();
    // An entry bears no mark of who made it, so all that lasts on our own device is taken for ours: else what a node
    // left behind that is gone could never be told from somebody else's.
    let entry = ["fdb", "add", "02:00:00:00:00:09", "dev", "fairlead0", "dst", "198.18.0.9"];
    run_ok(node.netns.command("bridge").args(entry));
    node.netns.ip("neigh add 10.244.99.0 lladdr 02:00:00:00:00:09 dev fairlead0 nud permanent");
    await_healed(node, &was);
}

#[test]
fn a_reverse_path_filter_made_strict_by_hand_is_loose_on_the_tunnel_at_once() {
    let rig = Rig::joined(2);
    rig.add_pods();
    let node = &rig.nodes[0];
    let of_the_tunnel = "net/ipv4/conf/fairlead0/rp_filter";
    // Of the device itself, and of the whole host, as `sysctl --system` would have it.
    for path in [of_the_tunnel, "net/ipv4/conf/all/rp_filter", of_the_tunnel] {
        run_ok(node.netns.command("sysctl").args(["-q", "-w", &format!("{path}=1")]));
        eventually(path, || (node.netns.sysctl(of_the_tunnel) == "2").then_some(()));
        node.await_settled();
    }
    assert_eq!(node.netns.sysctl("net/ipv4/conf/all/rp_filter"), "1", "the host's own is left as it is");
    rig.assert_reachable();
}

/// The kernel tells nobody of these, so it is the agent that looks, once in ten seconds.
#[test]
fn whether_a_link_takes_router_advertisements_is_set_right_again() {
    let rig = Rig::joined(1);
    let node = &rig.nodes[0];
    let path = "net/ipv6/conf/fairlead0/accept_ra";
    assert_eq!(node.netns.sysctl(path), "0");
    run_ok(node.netns.command("sysctl").args(["-q", "-w", &format!("{path}=2")]));
    eventually(path, || (node.netns.sysctl(path) == "0").then_some(()));
    // And what the kernel does tell of by the addresses that it takes away.
    let path = "net/ipv6/conf/fairlead0/disable_ipv6";
    let was = node.tunnel_text();
    run_ok(node.netns.command("sysctl").args(["-q", "-w", &format!("{path}=1")]));
    eventually(path, || (node.netns.sysctl(path) == "0").then_some(()));
    await_healed(node, &was);
}

#[test]
fn scenario_21_foreign_objects_are_left_alone() {
    let mut rig = Rig::joined(2);
    let node = &mut rig.nodes[0];
    node.netns.ip("link add other0 type bridge");
    node.netns.ip("link set other0 up");
    node.netns.ip("address add 192.0.2.1/24 dev other0");
    node.netns.ip("route add 203.0.113.0/24 via 192.0.2.7");
    node.netns.ip("route add 2001:db8:7::/64 via fd00:198:18::fe");
    node.netns.ip("rule add from 192.0.2.0/24 lookup 100");
    node.netns.ip("neigh add 192.0.2.7 lladdr 02:00:00:00:00:07 dev other0 nud permanent");
    run_ok(node.netns.command("bridge").args(["fdb", "add", "02:00:00:00:00:08", "dev", "other0", "self"]));
    run_ok(
        node.netns
            .command("nft")
            .args(["add table inet foreign; add chain inet foreign c; add rule inet foreign c accept"]),
    );
    put_look_alikes(node);
    node.await_settled();
    let was = node.host_text();
    for there in ["table ip fairleads", "10.244.250.0/24 dev fairlead0 proto static", "203.0.113.0/24"] {
        assert!(was.contains(there), "{was}");
    }
    let passes = node.status().unwrap().reconciles;
    for round in 0..3 {
        node.netns.ip(&format!("link set other0 mtu {}", 1400 + round));
        node.netns.ip("link set other0 mtu 1500");
        eventually("another look at the kernel", || {
            node.status().filter(|status| status.reconciles > passes + round)
        });
        node.await_settled();
    }
    assert_eq!(node.host_text(), was);
    node.kill();
    node.start();
    node.await_status("ready again", |status| status.ready);
    assert_eq!(node.host_text(), was);
    // And cleaning takes away what is ours only, with what stood on it.
    assert_eq!(node.stop(), Some(0));
    run_ok(&mut node.command(&["clean"]));
    assert_eq!(node.netns.link_names(), ["eth0", "fairlead1", "other0"]);
    assert!(node.netns.ip("link show fairlead1").contains("alias fairleads"));
    let now = node.host_text();
    for kept in [
        "198.18.99.0/24",
        "lookup 101",
        "table inet fairlea",
        "table ip fairleads",
        "203.0.113.0/24",
        "2001:db8:7::/64",
        "lookup 100",
        "02:00:00:00:00:07",
        "02:00:00:00:00:08",
        "table inet foreign",
    ] {
        assert!(now.contains(kept), "{kept}");
    }
    assert!(!now.contains("10.244."), "{now}");
    assert!(!node.conflist().exists() && node.network_file().is_none());
}

#[test]
fn scenario_46_a_checksum_offload_that_an_administrator_switched_off_stays_off_and_a_node_port_is_answered() {
    const FEATURE: &str = "tx-checksum-ip-generic";
    let mut rig = Rig::joined(2);
    let pod = WiredPod::attach(&rig.nodes[1]);
    serve(&pod.netns, 80, "pod");
    rig.underlay.ip("address add 198.18.0.254/24 dev br0");
    let port = format!(
        "add table ip ports; add chain ip ports pre {{ type nat hook prerouting priority dstnat; }}; \
         add rule ip ports pre tcp dport 30080 dnat to {}:80",
        pod.addresses[0]
    );
    run_ok(rig.nodes[0].netns.command("nft").arg(port));
    let is_on = |node: &Node| {
        let listed = run_ok(node.netns.command("ethtool").args(["-k", "fairlead0"]));
        let line = listed.lines().find(|line| line.contains(FEATURE)).expect("the feature is listed");
        line.ends_with(": on")
    };
    let is_answered =
        || ask(&rig.underlay, "198.18.0.1", 30080).is_some_and(|answer| answer.starts_with("pod "));
    assert!(is_on(&rig.nodes[0]) && is_answered());
    for node in &rig.nodes {
        run_ok(node.netns.command("ethtool").args(["-K", "fairlead0", FEATURE, "off"]));
    }
    assert!(!is_on(&rig.nodes[0]) && is_answered());
    // Neither a healing nor another agent makes the device anew for it.
    let node = &mut rig.nodes[0];
    let was = node.tunnel_text();
    node.netns.ip("link set fairlead0 mtu 1300");
    await_healed(node, &was);
    node.kill();
    node.start();
    node.await_status("ready again", |status| status.ready);
    node.await_settled();
    assert!(!is_on(node));
    assert!(ask(&rig.underlay, "198.18.0.1", 30080).is_some());
}

#[test]
fn scenario_22_a_foreign_route_in_the_place_of_ours_is_reported_and_kept() {
    let rig = Rig::joined(2);
    let node = &rig.nodes[0];
    let route = node.tunnel_routes()[0].clone();
    node.netns.ip(&format!("route replace {route} via 198.18.0.254 proto static"));
    let status = node.await_status("reports it", |status| !status.conflicts.is_empty());
    assert!(status.conflicts[0].contains(&route), "{:?}", status.conflicts);
    let kept = node.netns.ip(&format!("route show {route} proto static"));
    assert!(kept.contains("198.18.0.254"), "{kept}");
    node.netns.ip(&format!("route del {route} proto static"));
    node.await_status("nothing in the way", |status| status.conflicts.is_empty());
    eventually("our route is back", || node.tunnel_routes().contains(&route).then_some(()));
}

#[test]
fn a_foreign_link_with_our_devices_name_is_reported_and_kept() {
    let mut rig = Rig::new(1);
    let node = &mut rig.nodes[0];
    node.netns.ip("link add fairlead0 type bridge");
    node.start();
    let status = node.await_status("reports it", |status| !status.conflicts.is_empty());
    assert!(!status.ready, "{status:?}");
    assert!(!node.conflist().exists());
    node.netns.ip("link del fairlead0");
    node.await_status("ready once it is gone", |status| status.ready);
}

#[test]
fn an_idle_agent_sleeps() {
    let rig = Rig::joined(2);
    rig.nodes.iter().for_each(Node::await_settled);
    // The kernel still has things to say for a while (duplicate address detection); what counts is that there comes
    // a second in which no thread of the agent does anything at all.
    for _ in 0..10 {
        let Some(calls) = system_calls_in_a_second(rig.nodes[0].pid()) else {
            harness::not_run("strace cannot be used here");
            return;
        };
        if calls == 0 {
            return;
        }
    }
    panic!("the agent never sleeps");
}

/// How many system calls a process enters while strace looks on; those it sits in already do not count.
fn system_calls_in_a_second(pid: u32) -> Option<usize> {
    let pid = pid.to_string();
    let output = run(Command::new("timeout").args(["-s", "INT", "1", "strace", "-f", "-p", &pid]));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let calls = text.lines().filter(|line| line.contains('(') && !line.contains("resumed"));
    // The first line of each thread is the call that it sits in.
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count();
    text.contains("attached").then(|| calls.count().saturating_sub(threads))
}
