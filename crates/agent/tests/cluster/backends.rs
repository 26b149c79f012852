//! The ways between nodes: host-gw, direct routing, none, and a cluster that is moved from one to another under traffic.

use agent::PeerState;
use harness::{eventually, run_ok};

use crate::rig::{Node, Rig};
use crate::witness::Witness;

const HOST_GW: &str = "backend: host-gw\n";

/// Two nodes with this configuration and a pod each.
fn joined(config: &str) -> Rig {
    Rig::flowing(2, config)
}

fn paths(node: &Node) -> Vec<String> {
    node.status().unwrap().peers.into_iter().map(|peer| peer.path).collect()
}

fn plain_routes(node: &Node) -> Vec<String> {
    let mut found = Vec::new();
    for family in ["-4", "-6"] {
        let routes = node.netns.ip_json(&format!("{family} route show proto 70"));
        let plain = routes.as_array().unwrap().iter().filter(|route| route["dev"] == "eth0");
        found
            .extend(plain.map(|route| format!("{} via {}", route["dst"], route["gateway"]).replace('"', "")));
    }
    found
}

#[test]
fn host_gw_joins_nodes_by_plain_routes_with_the_links_own_mtu() {
    let rig = joined(HOST_GW);
    rig.assert_reachable();
    let [first, second] = &rig.nodes[..] else { panic!("two nodes") };
    let cidrs = second.pod_cidrs();
    let wanted = [format!("{} via 198.18.0.2", cidrs[0]), format!("{} via fd00:198:18::2", cidrs[1])];
    assert_eq!(plain_routes(first), wanted);
    assert_eq!(first.network_file().unwrap()["mtu"], 1500);
    assert!(!first.netns.link_names().contains(&"fairlead0".to_owned()), "there is no tunnel");
    assert_eq!(paths(first), ["direct"]);
    eventually("ready, with its peer asked", || first.health("/readyz").ends_with("200").then_some(()));
}

#[test]
fn scenarios_11_and_17_host_gw_routes_come_back_when_they_are_deleted_and_when_the_link_is_up_again() {
    let rig = joined(HOST_GW);
    let [first, second] = &rig.nodes[..] else { panic!("two nodes") };
    let before = plain_routes(first);
    first.netns.ip(&format!("route delete {}", second.pod_cidrs()[0]));
    eventually("the route is back", || (plain_routes(first) == before).then_some(()));
    first.netns.ip("link set eth0 down");
    eventually("the kernel has taken the routes", || plain_routes(first).is_empty().then_some(()));
    first.netns.ip("link set eth0 up");
    // The administrator's own addresses of IPv6 go with the link.
    first.netns.ip("address add fd00:198:18::1/64 dev eth0 nodad");
    eventually("the routes are back", || (plain_routes(first) == before).then_some(()));
    rig.assert_reachable();
}

#[test]
fn direct_routing_takes_the_tunnel_only_where_it_must() {
    let rig = joined("vxlan: {directRouting: true}\n");
    rig.assert_reachable();
    let first = &rig.nodes[0];
    assert_eq!(paths(first), ["direct"]);
    assert_eq!(first.network_file().unwrap()["mtu"], 1450, "some peer may need the tunnel");
    assert_eq!((first.fdb().len(), first.neighbours().len()), (0, 0));
    assert!(first.netns.link_names().contains(&"fairlead0".to_owned()));
}

#[test]
fn backend_none_gives_a_node_its_cidrs_and_routes_nothing() {
    let rig = {
        let mut rig = Rig::new(2);
        for node in &mut rig.nodes {
            node.configure("backend: none\n");
            node.start();
        }
        rig
    };
    for node in &rig.nodes {
        let status = node.await_status("ready beside its peer", |status| {
            status.ready && status.peers.iter().all(|peer| peer.state == PeerState::Unrouted)
        });
        assert_eq!((status.pod_cidrs.len(), status.problems.len()), (2, 0), "{:?}", status.problems);
        assert_eq!((plain_routes(node).len(), node.tunnel_routes().len()), (0, 0));
        assert_eq!(node.netns.link_names(), ["eth0"]);
    }
}

#[test]
fn tunnels_of_the_agent_join_nodes_in_both_families_and_count_what_they_carry() {
    for (backend, device, mtu) in
        [("udp", "fairlead-udp", 1472), ("ipip", "fairlead-ipip", 1480), ("wireguard", "fairlead-wg", 1440)]
    {
        let rig = joined(&format!("backend: {backend}\n"));
        rig.assert_reachable();
        let [first, second] = &rig.nodes[..] else { panic!("two nodes") };
        assert_eq!(paths(first), [backend]);
        assert_eq!(first.network_file().unwrap()["mtu"], mtu);
        assert_eq!(first.netns.ip_json(&format!("link show {device}"))[0]["mtu"], mtu);
        eventually("ready, with its peer asked", || first.health("/readyz").ends_with("200").then_some(()));
        // A packet of exactly that size passes, and of one more its sender is told.
        let (source, target) = (&first.pod_addresses()[0], &second.pod_addresses()[0]);
        let sized = |size: u32| {
            let size = (size - 28).to_string();
            let arguments = ["-n", "-c", "1", "-W", "2", "-M", "do", "-s", &size, "-I", source, target];
            harness::run(first.netns.command("ping").args(arguments)).status.success()
        };
        assert!(sized(mtu) && !sized(mtu + 1), "{backend}");
        let counted = first.status().unwrap().tunnels;
        assert!(
            counted[0].peers[0].sent_packets > 0 && counted[0].peers[0].received_packets > 0,
            "{counted:?}"
        );
        assert!(first.health("/metrics").contains(&format!(
            "fairlead_tunnel_dropped_packets_total{{tunnel=\"{backend}\",reason=\"unknown-sender\"}} 0"
        )));
        // Deleted by hand, the device and the tunnel over it are back.
        first.netns.ip(&format!("link delete {device}"));
        eventually("a pod is reached again", || first.pings(source, target).then_some(()));
    }
}

#[test]
fn scenario_52_what_is_to_be_encrypted_is_refused_where_there_is_no_tunnel_and_the_key_is_roots() {
    let rig = joined("backend: wireguard\n");
    let first = &rig.nodes[0];
    let key = first.state_dir().join("wireguard.key");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(key).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    // An address of the cluster that no node has: it must not take the default route. The tunnel refuses it, and counts; who
    // takes the tunnel away finds the kernel's refusal behind it.
    let source = &first.pod_addresses()[0];
    let route = || harness::run(first.netns.command("ip").args(["-j", "route", "get", "10.244.250.1"]));
    assert!(String::from_utf8_lossy(&route().stdout).contains(r#""dev":"fairlead-wg""#), "{:?}", route());
    let refused = || first.status().unwrap().backend.refused.unwrap();
    assert_eq!(refused(), 0);
    let words = ["-n", "-c", "3", "-i", "0.01", "-W", "5", "-I", source, "10.244.250.1"];
    let said = harness::run(first.netns.command("ping").args(words));
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("Unreachable"), "the sender is told: {said}");
    eventually("all are counted", || (refused() == 3).then_some(()));
    let status = first.status().unwrap();
    assert!(status.problems.is_empty(), "{:?}", status.problems);
}

/// How often an agent is killed in [`lost_by_kills`].
const KILLS: i64 = 3;

/// How many packets two witnesses, one each way and an echo in so many milliseconds, miss while the second node's agent is
/// killed and started a few times, and how many were sent meanwhile.
fn lost_by_kills(rig: &mut Rig, pause: i64) -> ([i64; 2], i64) {
    let [first, second] = &mut rig.nodes[..] else { panic!("two nodes") };
    let (source, target) = (first.pod_addresses().swap_remove(0), second.pod_addresses().swap_remove(0));
    // What the tunnels are is written down soon after they have changed, not at the same moment.
    let is_known = |text: String| text.contains(&first.name) || !text.contains("tunnels");
    eventually("the design is on disk", || {
        let text = std::fs::read_to_string(second.state_dir().join("tunnels.json")).unwrap_or_default();
        is_known(text).then_some(())
    });
    let witnesses = [Witness::every(pause, first, second, 0), Witness::every(pause, second, first, 1)];
    let mut absent = 0;
    for _ in 0..KILLS {
        second.kill();
        let killed = std::time::Instant::now();
        second.start();
        second.await_status("ready again", |status| status.ready);
        eventually("traffic flows again", || first.pings(&source, &target).then_some(()));
        absent += i64::try_from(killed.elapsed().as_millis()).unwrap() / pause + 1;
    }
    (witnesses.map(Witness::lost), absent)
}

#[test]
fn scenario_30_a_killed_agent_costs_nothing_where_the_kernel_carries_and_its_own_absence_where_it_carries_itself()
 {
    for (config, carries_itself) in [
        (HOST_GW, false),
        ("backend: udp\n", true),
        ("backend: ipip\n", true),
        ("backend: wireguard\n", true),
    ] {
        let (lost, absent) = lost_by_kills(&mut joined(config), 5);
        println!("{}: {lost:?} packets lost, {absent} sent meanwhile", config.trim());
        // On a busy machine ping sends what it is late with all at once, so some more are sent in that time.
        let most = if carries_itself { absent * 5 / 4 } else { 0 };
        assert!(lost.iter().all(|lost| *lost <= most), "{config}: {lost:?} lost, {absent} sent meanwhile");
    }
}

#[test]
fn a_killed_agent_costs_what_was_in_its_hands_where_the_service_manager_keeps_its_descriptors() {
    for config in ["backend: udp\n", "backend: ipip\n", "backend: wireguard\n"] {
        let mut rig = Rig::new(2);
        for node in &mut rig.nodes {
            node.keep_descriptors();
            node.configure(config);
            node.start();
        }
        rig.await_joined();
        rig.add_pods();
        rig.await_flow();
        let (lost, absent) = lost_by_kills(&mut rig, 1);
        println!("{}: {lost:?} packets lost with a keeper, {absent} sent meanwhile", config.trim());
        // What was sealed for an agent that is dead nobody can open any more. Of the others only what its threads have in
        // their hands dies with it.
        let most = if config.contains("wireguard") { absent } else { 2 * KILLS };
        assert!(lost.iter().all(|lost| *lost <= most), "{config}: {lost:?} lost, {absent} sent meanwhile");
    }
}

#[test]
fn a_cluster_moves_to_a_tunnel_of_the_agent_and_back_and_loses_no_packet() {
    let mut rig = joined("backend: vxlan\n");
    let [first, second] = &mut rig.nodes[..] else { panic!("two nodes") };
    let witnesses = [Witness::start(first, second, 0), Witness::start(second, first, 1)];
    for config in ["backend: udp\n", "backend: vxlan\n"] {
        let path = config.trim().trim_start_matches("backend: ");
        for node in [&mut *first, &mut *second] {
            node.configure(config);
        }
        for node in [&*first, &*second] {
            node.await_status("the path is the other one", |status| status.peers[0].path == path);
        }
    }
    assert_eq!(witnesses.map(Witness::lost), [0, 0]);
}

/// How many packets the reverse-path filter of a node has dropped.
fn filtered(node: &Node) -> u64 {
    let text = run_ok(node.netns.command("cat").arg("/proc/net/netstat"));
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, numbers) = (lines.next().unwrap(), lines.next().unwrap());
    let position = names.split(' ').position(|name| name == "IPReversePathFilter").unwrap();
    numbers.split(' ').nth(position).unwrap().parse().unwrap()
}

#[test]
fn a_strict_reverse_path_filter_drops_nothing_while_the_way_changes_from_tunnel_to_tunnel() {
    let mut rig = Rig::new(2);
    for node in &mut rig.nodes {
        run_ok(node.netns.command("sysctl").args(["-qw", "net.ipv4.conf.all.rp_filter=1"]));
        node.configure("backend: vxlan\n");
        node.start();
    }
    rig.await_joined();
    rig.add_pods();
    let [first, second] = &mut rig.nodes[..] else { panic!("two nodes") };
    let witnesses = [Witness::start(first, second, 0), Witness::start(second, first, 0)];
    first.configure("backend: udp\n");
    first.await_status("its backend is the other one", |status| status.backend.kind == "udp");
    second.configure("backend: udp\n");
    for node in [&*first, &*second] {
        node.await_status("the path is the other one", |status| status.peers[0].path == "udp");
    }
    // To the end of what the change takes.
    for node in [&*first, &*second] {
        node.await_settled();
    }
    let lost = witnesses.map(Witness::lost);
    assert_eq!([filtered(first), filtered(second)], [0, 0], "{lost:?} lost");
    assert_eq!(first.netns.sysctl("net/ipv4/conf/eth0/rp_filter"), "0", "the host's links are its own");
    assert_eq!(first.netns.sysctl("net/ipv4/conf/fairlead-udp/rp_filter"), "2");
}

#[test]
fn a_cluster_moves_to_host_gw_and_back_node_by_node_and_loses_no_packet() {
    let mut rig = joined("backend: vxlan\n");
    let [first, second] = &mut rig.nodes[..] else { panic!("two nodes") };
    let witnesses = [
        Witness::start(first, second, 0),
        Witness::start(second, first, 0),
        Witness::start(first, second, 1),
    ];
    for (config, path) in [(HOST_GW, "direct"), ("backend: vxlan\n", "vxlan")] {
        first.configure(config);
        first.await_status("its backend is the other one", |status| config.contains(&status.backend.kind));
        assert_eq!(paths(second), ["vxlan"], "two nodes that differ take the tunnel");
        second.configure(config);
        for node in [&*first, &*second] {
            node.await_status("the path is the other one", |status| status.peers[0].path == path);
        }
    }
    // To the end of what the change back takes.
    for node in [&*first, &*second] {
        node.await_settled();
    }
    assert_eq!(witnesses.map(Witness::lost), [0, 0, 0]);
}

#[test]
fn two_nodes_of_which_one_alone_routes_directly_reach_each_other_and_the_strict_one_drops_nothing() {
    let mut rig = Rig::new(2);
    run_ok(rig.nodes[0].netns.command("sysctl").args(["-qw", "net.ipv4.conf.all.rp_filter=1"]));
    for (node, direct) in rig.nodes.iter_mut().zip([true, false]) {
        node.configure(&format!("vxlan: {{directRouting: {direct}}}\n"));
        node.start();
    }
    rig.await_joined();
    rig.add_pods();
    let [first, second] = &rig.nodes[..] else { panic!("two nodes") };
    assert_eq!([paths(first), paths(second)], [["direct"], ["vxlan"]]);
    // Each way by another road: with the largest packet that pods send, and tracked from end to end.
    for (from, to) in [(first, second), (second, first)] {
        for (family, (source, target)) in from.pod_addresses().iter().zip(to.pod_addresses()).enumerate() {
            let size = (1450 - [28, 48][family]).to_string();
            let words = [
                "-n", "-q", "-c", "3", "-i", "0.01", "-W", "3", "-M", "do", "-s", &size, "-I", source,
                &target,
            ];
            let said = run_ok(from.netns.command("ping").args(words));
            assert!(said.contains(" 3 received"), "{said}");
        }
    }
    assert_eq!(filtered(first), 0, "what comes by the tunnel is answered by the link");
    for node in [first, second] {
        let invalid = run_ok(node.netns.command("conntrack").args(["-S"]));
        assert!(
            invalid.split_whitespace().all(|word| !word.starts_with("invalid=") || word == "invalid=0"),
            "{invalid}"
        );
    }
}
