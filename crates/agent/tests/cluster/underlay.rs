//! The host's own network changes under the agent: scenarios 10, 11, 12, 14, 23 and 41, and an IPv6 underlay.

use std::io::Write;
use std::process::{Command, Stdio};

use cluster::Backend;
use harness::{Namespace, eventually, run_ok};

use crate::rig::{Node, Rig};
use crate::wired::WiredPod;

#[test]
fn scenario_10_a_changed_underlay_address_is_published_and_peers_follow() {
    let rig = Rig::joined(2);
    rig.add_pods();
    let netns = &rig.nodes[1].netns;
    netns.ip("address del 198.18.0.2/24 dev eth0");
    // As while a lease is renewed: for a moment there is no address, and the tunnel stays as it is.
    rig.nodes[1].await_status("says that the address is gone", |status| !status.ready);
    assert_eq!(rig.nodes[1].device()["linkinfo"]["info_data"]["local"], "198.18.0.2");
    netns.ip("address add 198.18.0.77/24 dev eth0");
    netns.ip("route replace default via 198.18.0.254");
    eventually("node1 sends to the new address", || (rig.nodes[0].fdb() == ["198.18.0.77"]).then_some(()));
    rig.await_joined();
    let link = rig.nodes[1].netns.ip_json("link show fairlead0");
    assert_eq!(link[0]["linkinfo"]["info_data"]["local"], "198.18.0.77");
    rig.assert_reachable();
}

#[test]
fn scenario_11_an_underlay_that_was_down_carries_pods_again() {
    let rig = Rig::joined(2);
    rig.add_pods();
    let netns = &rig.nodes[1].netns;
    netns.ip("link set eth0 down");
    netns.ip("link set eth0 up");
    netns.ip("route replace default via 198.18.0.254");
    netns.ip("address replace fd00:198:18::2/64 dev eth0 nodad");
    rig.await_joined();
    rig.nodes.iter().for_each(|node| node.await_settled());
    rig.assert_reachable();
}

#[test]
fn scenario_12_a_second_link_and_a_virtual_address_do_not_move_the_tunnel() {
    let rig = Rig::joined(2);
    let node = &rig.nodes[0];
    let before = node.status().unwrap();
    node.netns.ip("link add second0 type bridge");
    node.netns.ip("link set second0 up");
    node.netns.ip("address add 192.0.2.1/24 dev second0");
    node.netns.ip("address add 198.18.0.200/32 dev eth0");
    eventually("another look at the kernel", || {
        node.status().filter(|status| status.reconciles > before.reconciles)
    });
    node.await_settled();
    assert_eq!(node.status().unwrap().underlay, before.underlay);
}

#[test]
fn scenario_41_a_changed_underlay_mtu_reaches_the_device_and_the_plugin() {
    let rig = Rig::joined(1);
    let node = &rig.nodes[0];
    node.netns.ip("link set eth0 mtu 1400");
    eventually("the new MTU", || (node.network_file().unwrap()["mtu"] == 1350).then_some(()));
    assert_eq!(node.device()["mtu"], 1350);
    assert_eq!(node.status().unwrap().mtu, 1350);
}

#[test]
fn scenario_41_an_underlay_of_large_packets_and_back_reaches_device_plugin_and_flannels_file() {
    const WIREGUARD: &str = "backend: wireguard\nwireguard: {datapath: user}\n";
    for (config, device, ipv4, overhead) in [
        ("backend: vxlan\n", "fairlead0", true, 50),
        ("backend: vxlan\n", "fairlead0", false, 70),
        (WIREGUARD, "fairlead-wg", true, 60),
        (WIREGUARD, "fairlead-wg", false, 80),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("subnet.env");
        let mut rig = Rig::new(1);
        let node = &mut rig.nodes[0];
        if !ipv4 {
            node.netns.ip("-4 address flush dev eth0");
        }
        node.configure(&format!("{config}flannel: {{subnetFile: {}}}\n", file.display()));
        node.netns.ip("link set eth0 mtu 9000");
        node.start();
        for underlay in [9000, 1500, 9000] {
            node.netns.ip(&format!("link set eth0 mtu {underlay}"));
            let mtu = underlay - overhead;
            node.await_status(&format!("{config}{mtu}"), |status| status.ready && status.mtu == mtu);
            eventually("the plugin is told", || (node.network_file()?["mtu"] == mtu).then_some(()));
            eventually("flannel's file tells", || {
                let text = std::fs::read_to_string(&file).ok()?;
                text.contains(&format!("FLANNEL_MTU={mtu}\n")).then_some(())
            });
            let link = node.netns.ip_json(&format!("link show {device}"));
            assert_eq!(link[0]["mtu"], mtu, "{config}");
            let pod = WiredPod::attach(node);
            assert_eq!(pod.netns.ip_json("link show eth0")[0]["mtu"], mtu, "{config}");
            pod.detach(node);
        }
    }
}

#[test]
fn an_ipv6_underlay_carries_both_families_with_twenty_bytes_less() {
    let mut rig = Rig::new(2);
    for node in &mut rig.nodes {
        node.netns.ip("route del default");
        node.netns.ip("address flush dev eth0 scope global");
        let number = node.number;
        node.netns.ip(&format!("address add fd00:198:18::{number}/64 dev eth0 nodad"));
        node.netns.ip("-6 route replace default via fd00:198:18::fe dev eth0");
        node.start();
    }
    rig.await_joined();
    rig.add_pods();
    rig.assert_reachable();
    assert_eq!(rig.nodes[0].network_file().unwrap()["mtu"], 1430);
}

#[test]
fn an_underlay_that_is_not_there_is_said_and_waited_for() {
    let mut rig = Rig::new(1);
    let node = &mut rig.nodes[0];
    node.configure("underlay: {interface: eth1}\n");
    node.start();
    let status = node.await_status("says what is missing", |status| status.last_reconcile.is_some());
    assert!(status.reasons[0].contains("there is no link eth1"), "{:?}", status.reasons);
    assert!(!node.conflist().exists());
    node.netns.ip("link add eth1 type bridge");
    node.netns.ip("link set eth1 up");
    node.netns.ip("address add 198.18.1.1/24 dev eth1");
    node.netns.ip("address add fd00:198:19::1/64 dev eth1 nodad");
    let status = node.await_status("ready", |status| status.ready);
    assert_eq!(status.underlay.unwrap().link, "eth1");
    node.netns.ip("link del eth1");
    node.await_status("not ready", |status| !status.ready);
    // The runtime needs the conflist to delete pods by; that no new one is possible stands in the other file.
    assert!(node.conflist().exists());
    let told = node.network_file().unwrap()["notReady"].to_string();
    assert!(told.contains("there is no link eth1"), "{told}");
}

/// How many changes are more than a listener has room for: each takes some hundred bytes of its 32 megabytes.
const FLOOD: u32 = 80_000;

/// How many notifications the kernel dropped, for want of room, of what the node's agent listens with.
fn dropped_notifications(node: &Node) -> u64 {
    let sockets = run_ok(node.netns.command("cat").arg("/proc/net/netlink"));
    // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
    let drops =
        sockets.lines().skip(1).filter_map(|line| line.split_whitespace().nth(8)?.parse::<u64>().ok());
    drops.sum()
}

#[test]
fn scenario_23_a_flood_of_changes_that_overruns_the_listener_is_survived() {
    let rig = Rig::joined(2);
    let node = &rig.nodes[0];
    node.await_settled();
    // As an agent that gets no time on a machine that is busy: what it does not take from its socket stays in there.
    let signal = |name: &str| run_ok(Command::new("kill").args([name, &node.pid().to_string()]));
    signal("-STOP");
    let mut batch = node.netns.command("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = batch.stdin.take().unwrap();
    let mut text = String::new();
    for number in 0..FLOOD {
        text.push_str(&format!(
            "route add 172.{}.{}.{}/32 via 198.18.0.254\n",
            16 + number / 65536,
            number / 256 % 256,
            number % 256
        ));
    }
    // The last of it, of which nobody is told any more.
    text.push_str("link del fairlead0\n");
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    assert!(batch.wait().unwrap().success());
    assert!(dropped_notifications(node) > 0, "{FLOOD} changes have room in the listener's buffer");
    signal("-CONT");
    eventually("the device is back", || {
        let whole = node.netns.link_names().contains(&"fairlead0".to_owned());
        (whole && node.fdb() == ["198.18.0.2"]).then_some(())
    });
    node.await_settled();
    assert_eq!(node.status().unwrap().peers.len(), 1);
    assert!(node.log().contains("changes of the kernel were missed"), "the agent says why it looked");
}

#[test]
fn scenario_14_peers_are_told_the_address_before_the_translation_and_the_tunnel_leaves_from_the_real_one() {
    let mut rig = Rig::new(2);
    rig.nodes[1].configure("underlay: {advertise: [203.0.113.2], mtu: 1400}\n");
    rig.nodes.iter_mut().for_each(|node| node.start());
    rig.await_joined();
    assert_eq!(rig.nodes[0].fdb(), ["203.0.113.2"]);
    let link = rig.nodes[1].netns.ip_json("link show fairlead0");
    assert_eq!(link[0]["linkinfo"]["info_data"]["local"], "198.18.0.2");
    assert_eq!(link[0]["mtu"], 1350);
    let underlay = rig.nodes[1].status().unwrap().underlay.unwrap();
    assert_eq!(underlay.address.to_string(), "198.18.0.2");
    assert_eq!(underlay.advertised[0].to_string(), "203.0.113.2");
}

/// What other nodes reach node 2 by, once it is [behind a translating router](put_behind_translation).
const OUTSIDE: [&str; 2] = ["198.18.0.77", "fd00:198:18::77"];

/// Puts a node behind a router that has `OUTSIDE` in the underlay and translates: what comes for these goes to the node, what the
/// node sends leaves with them, and nobody outside has a way to the node's own addresses.
fn put_behind_translation(rig: &Rig, node: &Node) -> Namespace {
    let router = Namespace::with_loopback();
    let (port, number) = (format!("port{}", node.number), node.number);
    rig.underlay.ip(&format!("link set {port} nomaster"));
    rig.underlay.ip(&format!("link set {port} netns {}", router.path().display()));
    rig.underlay
        .ip(&format!("link add wan{number} type veth peer name wan netns {}", router.path().display()));
    rig.underlay.ip(&format!("link set wan{number} master br0 up"));
    router.ip(&format!("link set {port} up"));
    router.ip("link set wan up");
    router.ip("address add 198.18.0.77/24 dev wan");
    router.ip("address add fd00:198:18::77/64 dev wan nodad");
    router.ip(&format!("address add 192.0.2.1/24 dev {port}"));
    router.ip(&format!("address add 2001:db8:2::1/64 dev {port} nodad"));
    for forwarding in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        run_ok(router.command("sysctl").args(["-qw", &format!("{forwarding}=1")]));
    }
    let rules = "table inet translate {
        chain in {
            type nat hook prerouting priority dstnat;
            iifname wan ip daddr 198.18.0.77 counter dnat ip to 192.0.2.2
            iifname wan ip6 daddr fd00:198:18::77 counter dnat ip6 to 2001:db8:2::2
        }
        chain out {
            type nat hook postrouting priority srcnat;
            oifname wan ip saddr 192.0.2.2 counter snat ip to 198.18.0.77
            oifname wan ip6 saddr 2001:db8:2::2 counter snat ip6 to fd00:198:18::77
        }
    }";
    run_ok(router.command("nft").arg(rules));
    let netns = &node.netns;
    netns.ip("address flush dev eth0 scope global");
    netns.ip("address add 192.0.2.2/24 dev eth0");
    netns.ip("address add 2001:db8:2::2/64 dev eth0 nodad");
    netns.ip("route add default via 192.0.2.1");
    netns.ip("route replace default via 2001:db8:2::1 dev eth0");
    router
}

/// What peers of node 2 are told, by its own word.
fn told(rig: &Rig) -> Vec<String> {
    let underlay = rig.nodes[1].status().and_then(|status| status.underlay);
    underlay.into_iter().flat_map(|underlay| underlay.advertised).map(|address| address.to_string()).collect()
}

#[test]
fn scenario_14_a_node_behind_a_translating_router_is_reached_by_what_the_annotation_of_its_node_says() {
    let mut rig = Rig::new(2);
    let router = put_behind_translation(&rig, &rig.nodes[1]);
    rig.nodes.iter_mut().for_each(Node::start);
    rig.await_joined();
    rig.add_pods();
    let pods: Vec<Vec<String>> = rig.nodes.iter().map(Node::pod_addresses).collect();
    let reached = |rig: &Rig| {
        pods[0]
            .iter()
            .zip(&pods[1])
            .all(|(near, far)| rig.nodes[0].pings(near, far) && rig.nodes[1].pings(far, near))
    };
    // One configuration for all nodes says nothing of the one that is behind a router.
    assert_eq!(rig.nodes[0].fdb(), ["192.0.2.2"]);
    assert!(!reached(&rig), "nobody leads to the address that the node has");

    let annotate =
        |rig: &Rig, value: &str| rig.annotate_node("node2", "fairlead.io/underlay-advertise", value);
    annotate(&rig, &OUTSIDE.join(", "));
    eventually("node1 sends to the router", || (rig.nodes[0].fdb() == [OUTSIDE[0]]).then_some(()));
    assert_eq!(told(&rig), OUTSIDE);
    let tunnel = rig.nodes[1].device();
    assert_eq!(tunnel["linkinfo"]["info_data"]["local"], "192.0.2.2");
    eventually("pods reach each other", || reached(&rig).then_some(()));
    // Large ones too: what the tunnel carries is not cut, and is translated as it is.
    let large = ["-n", "-q", "-c", "1", "-W", "3", "-M", "do", "-s", "1422", "-I", &pods[0][0], &pods[1][0]];
    run_ok(rig.nodes[0].netns.command("ping").args(large));
    let counters = run_ok(router.command("nft").args(["list", "table", "inet", "translate"]));
    let translated =
        counters.lines().filter(|line| line.contains("nat ip to") && !line.contains("packets 0 "));
    assert_eq!(translated.count(), 2, "both ways through the router's translation\n{counters}");
    rig.nodes.iter().for_each(Node::await_settled);

    // A slip costs nobody anything, and is told; also by an agent that knows nothing of before but the lease.
    annotate(&rig, "203.0.113");
    let says = |status: &agent::Status| {
        status.problems.iter().any(|problem| problem.contains("\"203.0.113\" is no IP address"))
    };
    rig.nodes[1].await_status("tells the slip and is ready", |status| status.ready && says(status));
    assert!(reached(&rig));
    rig.nodes[1].kill();
    std::fs::remove_dir_all(rig.nodes[1].state_dir()).unwrap();
    rig.nodes[1].start();
    rig.nodes[1].await_status("tells the slip again", |status| status.ready && says(status));
    assert_eq!(
        (told(&rig), rig.nodes[0].fdb()),
        (OUTSIDE.map(str::to_owned).into(), vec![OUTSIDE[0].to_owned()])
    );
    assert!(reached(&rig));

    // It goes before the configuration, each family by itself; and taken away it leaves what the configuration says.
    rig.nodes[1].configure("underlay: {advertise: [203.0.113.2, '2001:db8::9']}\n");
    annotate(&rig, OUTSIDE[0]);
    rig.nodes[1].kill();
    rig.nodes[1].start();
    rig.nodes[1].await_status("has both words", |status| {
        let advertised =
            status.underlay.as_ref().map(|underlay| underlay.advertised.clone()).unwrap_or_default();
        status.ready && advertised.iter().map(ToString::to_string).eq([OUTSIDE[0], "2001:db8::9"])
    });
    rig.put_node("node2", "");
    eventually("node1 hears the configuration's word", || {
        (rig.nodes[0].fdb() == ["203.0.113.2"]).then_some(())
    });
}

#[test]
fn scenario_14_tunnels_that_the_agent_carries_pass_a_translating_router_as_well() {
    for backend in ["udp", "ipip", "wireguard"] {
        let mut rig = Rig::new(2);
        let _router = put_behind_translation(&rig, &rig.nodes[1]);
        rig.annotate_node("node2", "fairlead.io/underlay-advertise", &OUTSIDE.join(","));
        let config = format!("backend: {backend}\nipip: {{datapath: user}}\nwireguard: {{datapath: user}}\n");
        for node in &mut rig.nodes {
            node.configure(&config);
            node.start();
        }
        rig.await_joined();
        rig.add_pods();
        rig.assert_reachable();
    }
}

#[test]
fn a_node_that_peers_were_never_told_of_waits_while_its_annotation_cannot_be_read() {
    let mut rig = Rig::new(1);
    let annotate =
        |rig: &Rig, value: &str| rig.annotate_node("node1", "fairlead.io/underlay-advertise", value);
    annotate(&rig, "198.18.0.9, 198.18.0.10");
    rig.nodes[0].start();
    rig.nodes[0].await_status("says why it waits", |status| {
        let says = |text: &String| {
            text.contains("fairlead.io/underlay-advertise of Node node1")
                && text.contains("two of family IPv4")
        };
        !status.ready && status.reasons.iter().any(says)
    });
    annotate(&rig, "198.18.0.9");
    let status = rig.nodes[0].await_status("is ready", |status| status.ready);
    assert_eq!(status.underlay.unwrap().advertised[0].to_string(), "198.18.0.9");
}

#[test]
fn an_address_that_the_host_had_is_not_taken_for_one_that_was_advertised() {
    let mut rig = Rig::new(1);
    let advertised = |node: &Node| {
        let underlay = node.status().and_then(|status| status.underlay);
        let told = underlay.map(|underlay| underlay.advertised).unwrap_or_default();
        told.first().map(ToString::to_string)
    };
    rig.nodes[0].start();
    rig.nodes[0].await_status("is ready", |status| status.ready);
    assert_eq!(advertised(&rig.nodes[0]).as_deref(), Some("198.18.0.1"));
    rig.nodes[0].kill();
    rig.nodes[0].netns.ip("address del 198.18.0.1/24 dev eth0");
    rig.nodes[0].netns.ip("address add 198.18.0.77/24 dev eth0");
    rig.nodes[0].netns.ip("route replace default via 198.18.0.254");
    rig.annotate_node("node1", "fairlead.io/underlay-advertise", "nat");
    rig.nodes[0].start();
    eventually("peers are told the address that the host has", || {
        (advertised(&rig.nodes[0]).as_deref() == Some("198.18.0.77")).then_some(())
    });
}

#[test]
fn scenario_29_a_rebooted_node_has_the_same_cidrs_and_the_same_link_address() {
    let mut rig = Rig::joined(2);
    let cidrs = rig.nodes[0].pod_cidrs();
    let address = |rig: &Rig| rig.nodes[0].device()["address"].clone();
    let was = address(&rig);
    rig.nodes[0].kill();
    std::fs::remove_dir_all(rig.nodes[0].state_dir()).unwrap();
    rig.nodes[0].netns.ip("link del fairlead0");
    run_ok(rig.nodes[0].netns.command("nft").args(["flush", "ruleset"]));
    rig.nodes[0].start();
    rig.await_joined();
    assert_eq!(rig.nodes[0].pod_cidrs(), cidrs);
    assert_eq!(address(&rig), was);
}

/// What a node tells its peers of its WireGuard key.
fn told_key(rig: &Rig, node: &str) -> Option<String> {
    let listing = ::store::Directory::open(rig.store.path()).unwrap().list().unwrap();
    let lease = listing.snapshot.leases.get(node)?;
    match &lease.backend {
        key @ Backend::WireGuard { .. } => Some(format!("{key:?}")),
        _ => None,
    }
}

#[test]
fn scenarios_29_and_51_a_node_that_rebooted_without_its_key_has_another_and_is_spoken_to_at_once() {
    let mut rig = Rig::new(2);
    for node in &mut rig.nodes {
        node.configure("backend: wireguard\nwireguard: {datapath: user}\n");
        node.start();
    }
    rig.await_joined();
    rig.add_pods();
    await_reachable(&rig);
    let (was, cidrs) = (told_key(&rig, "node1").unwrap(), rig.nodes[0].pod_cidrs());
    let node = &mut rig.nodes[0];
    node.kill();
    std::fs::remove_dir_all(node.state_dir()).unwrap();
    node.netns.ip("link del fairlead-wg");
    run_ok(node.netns.command("nft").args(["flush", "ruleset"]));
    node.start();
    eventually("the peers are told another key", || {
        told_key(&rig, "node1").filter(|key| *key != was).map(drop)
    });
    rig.await_joined();
    assert_eq!(rig.nodes[0].pod_cidrs(), cidrs);
    await_reachable(&rig);
}

/// Every pod reaches every other one in both families, at the latest in a moment.
fn await_reachable(rig: &Rig) {
    for (from, to) in [(&rig.nodes[0], &rig.nodes[1]), (&rig.nodes[1], &rig.nodes[0])] {
        for (source, target) in from.pod_addresses().iter().zip(to.pod_addresses()) {
            let what = format!("{} {source} reaches {target}", from.name);
            eventually(&what, || from.pings(source, &target).then_some(()));
        }
    }
}

#[test]
fn pods_leave_the_cluster_with_their_nodes_address_and_keep_their_own_within_it() {
    let rig = Rig::joined(2);
    rig.add_pods();
    // Something outside that answers only what comes from the underlay's addresses: it knows no way to any pod.
    rig.underlay.ip("address add 198.18.0.254/24 dev br0");
    rig.underlay.ip("address add fd00:198:18::fe/64 dev br0 nodad");
    for (source, outside) in rig.nodes[0].pod_addresses().iter().zip(["198.18.0.254", "fd00:198:18::fe"]) {
        assert!(rig.nodes[0].pings(source, outside), "{source} -> {outside}");
    }
    // Within the cluster the source stays: seen by a counting rule on the other node.
    let (source, target) = (&rig.nodes[0].pod_addresses()[0], &rig.nodes[1].pod_addresses()[0]);
    let netns = &rig.nodes[1].netns;
    let rule = format!(
        "add table ip watch; add chain ip watch input {{ type filter hook input priority 0; }}; \
         add rule ip watch input ip saddr {source} icmp type echo-request counter"
    );
    run_ok(netns.command("nft").arg(rule));
    assert!(rig.nodes[0].pings(source, target));
    assert!(run_ok(netns.command("nft").args(["list", "ruleset"])).contains("packets 1 "));
    // A process of the node that insists on the node's own address is answered through the tunnel as well.
    assert!(rig.nodes[0].pings("198.18.0.1", target));
}

#[test]
fn an_underlay_that_appears_later_or_is_given_the_name_that_is_looked_for_is_followed_at_once() {
    let mut rig = Rig::new(1);
    let node = &mut rig.nodes[0];
    // A link that looks like a pod's, as the underlay of a node that is a namespace does; of its address nothing is told later.
    node.netns.ip("link add spare0 type veth peer name far0");
    node.netns.ip("link set spare0 addrgenmode none");
    node.netns.ip("link set far0 up");
    node.netns.ip("link set spare0 up");
    node.netns.ip("address add 192.0.2.1/24 dev spare0");
    node.configure("underlay: {interfacePattern: '^(eth0|wan[0-9])$'}\n");
    node.start();
    let link = |status: &agent::Status| status.underlay.as_ref().map(|underlay| underlay.link.clone());
    node.await_status("is ready", |status| status.ready && link(status).as_deref() == Some("eth0"));
    node.netns.ip("link set eth0 down");
    node.await_settled();
    node.netns.ip("link set spare0 name wan0");
    node.await_status("has moved", |status| link(status).as_deref() == Some("wan0"));
    eventually("the tunnel begins there", || {
        let tunnel = node.device();
        (tunnel["linkinfo"]["info_data"]["local"] == "192.0.2.1").then_some(())
    });
}
