//! Paths that carry less than the links at their ends: a router with a smaller link, a black hole, a peer that is silent.
//! Scenario 42, and what becomes of it when the path is mended.

use harness::{Namespace, eventually, run, run_ok};

use crate::rig::{Node, Rig};

const OFTEN: &str = "underlay: {probeIntervalSeconds: 1}\n";

/// Two nodes and a router between them, which is the namespace of the underlay. Node2 has 198.19.0.2 and fd00:198:19::2,
/// behind the router's `port2`.
fn routed() -> Rig {
    let mut rig = Rig::new(2);
    for line in [
        "link set port2 nomaster",
        "address add 198.18.0.254/24 dev br0",
        "address add fd00:198:18::fe/64 dev br0 nodad",
        "address add 198.19.0.254/24 dev port2",
        "address add fd00:198:19::fe/64 dev port2 nodad",
    ] {
        rig.underlay.ip(line);
    }
    run_ok(rig.underlay.command("sysctl").args(["-qw", "net.ipv4.ip_forward=1"]));
    run_ok(rig.underlay.command("sysctl").args(["-qw", "net.ipv6.conf.all.forwarding=1"]));
    let far = &rig.nodes[1].netns;
    for line in [
        "address flush dev eth0 scope global",
        "address add 198.19.0.2/24 dev eth0",
        "address add fd00:198:19::2/64 dev eth0 nodad",
        "route replace default via 198.19.0.254",
        "-6 route replace default via fd00:198:19::fe dev eth0",
    ] {
        far.ip(line);
    }
    rig.nodes.iter_mut().for_each(|node| node.configure(OFTEN));
    rig
}

fn start(rig: &mut Rig) {
    rig.nodes.iter_mut().for_each(Node::start);
    rig.await_joined();
}

/// Waits until the node has seen so many bytes reach its peer.
fn await_probed(node: &Node, size: u32) {
    node.await_status(&format!("{size} bytes were seen to pass"), |status| {
        status.peers[0].probed_mtu == Some(size)
    });
}

/// The MTU of each route to the peer's pods.
fn route_mtus(node: &Node) -> Vec<Option<u64>> {
    let mut found = Vec::new();
    for family in ["-4", "-6"] {
        let routes = node.netns.ip_json(&format!("{family} route show proto 70"));
        let tunnelled = routes.as_array().unwrap().iter().filter(|route| route["dev"] == "fairlead0");
        found.extend(tunnelled.map(|route| route["metrics"][0]["mtu"].as_u64()));
    }
    found
}

/// A pod with a namespace of its own, so that its kernel hears of its packets what any machine hears.
fn add_real_pod(node: &Node) -> Namespace {
    let pod = Namespace::with_loopback();
    let address = &node.pod_addresses()[0];
    node.netns.ip(&format!("link add pod1 mtu 1450 type veth peer name eth0 netns {}", pod.path().display()));
    node.netns.ip("link set pod1 alias fairlead:test/pod1/eth0 up");
    pod.ip("link set eth0 mtu 1450 up");
    pod.ip(&format!("address add {address}/32 dev eth0"));
    pod.ip("route add 169.254.1.1 dev eth0 scope link");
    pod.ip("route add default via 169.254.1.1");
    node.netns.ip("address add 169.254.1.1/32 dev pod1");
    node.netns.ip(&format!("route add {address} dev pod1 proto 71"));
    pod
}

/// An echo of so many bytes that must not be cut: whether it is answered, and what ping says.
fn whole(pod: &Namespace, target: &str, size: u32) -> (bool, String) {
    let size = (size - 28).to_string();
    let arguments = ["-n", "-c", "1", "-W", "2", "-M", "do", "-s", &size, target];
    let output = run(pod.command("ping").args(arguments));
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn scenario_42_a_routers_smaller_link_lowers_the_routes_behind_it_and_a_mended_one_raises_them() {
    let mut rig = routed();
    rig.underlay.ip("link set port2 mtu 1400");
    start(&mut rig);
    let [near, far] = &rig.nodes[..] else { panic!("two nodes") };
    await_probed(near, 1400);
    eventually("the routes follow", || (route_mtus(near) == [Some(1350); 2]).then_some(()));
    let status = near.await_status("tells it", |status| !status.problems.is_empty());
    assert_eq!(status.peers[0].mtu, 1350);
    assert!(status.problems[0].contains("the path to 198.19.0.2 carries 1400"), "{:?}", status.problems);
    assert_eq!(near.netns.ip_json("link show fairlead0")[0]["mtu"], 1450, "other peers get what they got");
    let pod = add_real_pod(near);
    far.add_pod();
    let target = far.pod_addresses().swap_remove(0);
    eventually("the largest packet passes", || whole(&pod, &target, 1350).0.then_some(()));
    let (passed, said) = whole(&pod, &target, 1351);
    assert!(!passed && said.contains("mtu = 1350"), "{said}");
    rig.underlay.ip("link set port2 mtu 1500");
    await_probed(near, 1500);
    near.await_status("nothing is wrong any more", |status| status.problems.is_empty());
    eventually("the routes follow", || (route_mtus(near) == [None; 2]).then_some(()));
    eventually("larger packets pass", || {
        // What the pod's kernel was told before, it keeps for ten minutes.
        pod.ip("route flush cache");
        whole(&pod, &target, 1450).0.then_some(())
    });
}

#[test]
fn over_ipv6_a_routers_word_is_heard_and_no_family_gets_less_than_its_least() {
    for (carries, left) in [(1400, [Some(1330); 2]), (1300, [Some(1230), Some(1280)])] {
        let mut rig = routed();
        for node in &rig.nodes {
            node.netns.ip("-4 address flush dev eth0");
        }
        rig.underlay.ip(&format!("link set port2 mtu {carries}"));
        start(&mut rig);
        await_probed(&rig.nodes[0], carries);
        eventually("the routes follow", || (route_mtus(&rig.nodes[0]) == left).then_some(()));
    }
}

#[test]
fn a_black_hole_is_found_from_either_side_without_a_word_of_the_router() {
    let mut rig = routed();
    let rule = "add table inet hole; add chain inet hole forward { type filter hook forward priority 0; }; \
                add rule inet hole forward meta length > 1400 drop";
    run_ok(rig.underlay.command("nft").arg(rule));
    start(&mut rig);
    for node in &rig.nodes {
        await_probed(node, 1400);
        eventually("the routes follow", || (route_mtus(node) == [Some(1350); 2]).then_some(()));
    }
    run_ok(rig.underlay.command("nft").args(["delete", "table", "inet", "hole"]));
    for node in &rig.nodes {
        await_probed(node, 1500);
        eventually("the routes follow", || (route_mtus(node) == [None; 2]).then_some(()));
    }
}

#[test]
fn a_restarted_agent_knows_what_a_path_carries_before_it_has_probed_it() {
    let mut rig = routed();
    rig.underlay.ip("link set port2 mtu 1400");
    start(&mut rig);
    eventually("the routes fit", || (route_mtus(&rig.nodes[0]) == [Some(1350); 2]).then_some(()));
    let deaf = "add table inet deaf; add chain inet deaf input { type filter hook input priority 0; }; \
                add rule inet deaf input icmp type echo-request drop";
    run_ok(rig.nodes[1].netns.command("nft").arg(deaf));
    let near = &mut rig.nodes[0];
    near.stop();
    near.start();
    let status = near.await_status("the node is ready", |status| status.ready && !status.peers.is_empty());
    assert_eq!((status.peers[0].probed_mtu, status.peers[0].mtu), (Some(1400), 1350));
    assert_eq!(route_mtus(near), [Some(1350); 2]);
}

#[test]
fn of_a_peer_that_answers_no_echoes_nothing_is_concluded_and_none_is_sent_where_that_is_off() {
    let mut rig = routed();
    let [near, far] = &mut rig.nodes[..] else { panic!("two nodes") };
    let deaf = "add table inet deaf; add chain inet deaf input { type filter hook input priority 0; }; \
                add rule inet deaf input icmp type echo-request counter drop";
    run_ok(far.netns.command("nft").arg(deaf));
    far.configure("underlay: {probeMTU: false}\n");
    let silent = "add table inet silent; add chain inet silent output { type filter hook output priority 0; }; \
                  add rule inet silent output icmp type echo-request counter";
    run_ok(far.netns.command("nft").arg(silent));
    near.start();
    far.start();
    rig.await_joined();
    let [near, far] = &rig.nodes[..] else { panic!("two nodes") };
    let count = |table: &str| {
        let listed = run_ok(far.netns.command("nft").args(["list", "table", "inet", table]));
        let rest = listed.split("counter packets ").nth(1).unwrap().to_owned();
        rest.split(' ').next().unwrap().parse::<u32>().unwrap()
    };
    // Three rounds of two, and some of the next search.
    eventually("it was tried", || (count("deaf") >= 8).then_some(()));
    let status = near.status().unwrap();
    assert_eq!((status.peers[0].probed_mtu, status.peers[0].mtu), (None, 1450));
    assert!(status.problems.is_empty(), "{:?}", status.problems);
    assert_eq!(route_mtus(near), [None; 2]);
    assert_eq!(count("silent"), 0);
}
