//! Address translation of what leaves the cluster: the configuration, beside kube-proxy, many connections at once, and those
//! of pods that are gone. Scenarios 43, 44, 45 and 48.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::Duration;

use harness::{Namespace, eventually, run_ok};

use crate::rig::{Node, Rig};

fn nft(netns: &Namespace, commands: &str) {
    run_ok(netns.command("nft").arg(commands));
}

/// How many packets the rule with this comment has counted.
fn counted(netns: &Namespace, comment: &str) -> u64 {
    let rules = netns.nft_ruleset();
    let rule = rules.iter().find(|item| item["rule"]["comment"] == comment).expect("the counting rule");
    let counter =
        rule["rule"]["expr"].as_array().unwrap().iter().find_map(|part| part["counter"].as_object());
    counter.unwrap()["packets"].as_u64().unwrap()
}

/// A node with a pod, whose agent has a configuration to follow.
fn followed() -> Rig {
    let mut rig = Rig::new(1);
    rig.nodes[0].configure("{}\n");
    rig.nodes[0].start();
    rig.await_joined();
    rig.add_pods();
    rig
}

#[test]
fn exceptions_see_pods_own_addresses_and_a_family_can_be_left_out_while_the_agent_runs() {
    let mut rig = followed();
    let addresses = rig.nodes[0].pod_addresses();
    let outside = ["198.18.0.254", "fd00:198:18::fe"];
    rig.underlay.ip("address add 198.18.0.254/24 dev br0");
    rig.underlay.ip("address add fd00:198:18::fe/64 dev br0 nodad");
    // It knows the way back, and counts who comes as whom.
    rig.underlay.ip(&format!("route add {} via 198.18.0.1", addresses[0]));
    rig.underlay.ip(&format!("route add {} via fd00:198:18::1", addresses[1]));
    nft(
        &rig.underlay,
        &format!(
            "add table inet watch; add chain inet watch input {{ type filter hook input priority 0; }}; \
             add rule inet watch input ip saddr {} icmp type echo-request counter comment \"pod4\"; \
             add rule inet watch input ip6 saddr {} icmpv6 type echo-request counter comment \"pod6\"",
            addresses[0], addresses[1]
        ),
    );
    let node = &mut rig.nodes[0];
    let seen = |node: &Node| {
        let before = ["pod4", "pod6"].map(|comment| counted(&rig.underlay, comment));
        for (source, target) in addresses.iter().zip(outside) {
            assert!(node.pings(source, target), "{source} -> {target}");
        }
        let after = ["pod4", "pod6"].map(|comment| counted(&rig.underlay, comment));
        [after[0] - before[0], after[1] - before[1]]
    };
    assert_eq!(seen(node), [0, 0], "as the node");
    for (config, sees) in [
        ("masquerade: {exceptions: [198.18.0.254/32]}\n", [1, 0]),
        ("masquerade: {ipv6: false}\n", [0, 1]),
        ("masquerade: {enabled: false}\n", [1, 1]),
        ("masquerade: {randomFully: false}\n", [0, 0]),
    ] {
        node.configure(config);
        eventually(config, || (seen(node) == sees).then_some(()));
    }
}

/// What kube-proxy does for what it has marked, in its nftables mode; marks are set for echoes to one address.
fn kube_proxy_nftables(netns: &Namespace, target: &str) {
    nft(
        netns,
        &format!(
            "add table ip kube-proxy; \
             add chain ip kube-proxy nat-postrouting {{ type nat hook postrouting priority srcnat; }}; \
             add chain ip kube-proxy mark-output {{ type route hook output priority mangle; }}; \
             add rule ip kube-proxy mark-output ip daddr {target} ip protocol icmp meta mark set mark or 0x4000; \
             add rule ip kube-proxy nat-postrouting mark and 0x4000 == 0 return; \
             add rule ip kube-proxy nat-postrouting meta mark set mark xor 0x4000; \
             add rule ip kube-proxy nat-postrouting masquerade fully-random"
        ),
    );
}

/// The same in its iptables mode.
fn kube_proxy_iptables(netns: &Namespace, target: &str) {
    for line in [
        format!("-t mangle -A OUTPUT -p icmp -d {target} -j MARK --or-mark 0x4000"),
        "-t nat -N KUBE-POSTROUTING".to_owned(),
        "-t nat -A POSTROUTING -j KUBE-POSTROUTING".to_owned(),
        "-t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN".to_owned(),
        "-t nat -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000".to_owned(),
        "-t nat -A KUBE-POSTROUTING -j MASQUERADE --random-fully".to_owned(),
    ] {
        run_ok(netns.command("iptables-nft").arg("-w").args(line.split(' ')));
    }
}

#[test]
fn scenario_44_what_kube_proxy_marked_is_translated_once_and_the_tunnel_around_it_is_not() {
    for (mode, proxy) in
        [("nftables", kube_proxy_nftables as fn(&Namespace, &str)), ("iptables", kube_proxy_iptables)]
    {
        // Whoever comes first: rules at one priority run in the order in which they were made.
        for proxy_first in [true, false] {
            let mut rig = Rig::new(2);
            let target = "10.244.200.9";
            rig.nodes[1].netns.ip("link add pod0 type bridge");
            rig.nodes[1].netns.ip(&format!("address add {target}/32 dev pod0"));
            rig.nodes[1].netns.ip("link set pod0 alias fairlead:test/pod/eth0 up");
            rig.put_node("node2", "{podCIDRs: [10.244.200.0/24, 'fd00:10:244:c8::/64']}");
            if proxy_first {
                proxy(&rig.nodes[0].netns, target);
            }
            rig.nodes.iter_mut().for_each(Node::start);
            rig.await_joined();
            if !proxy_first {
                proxy(&rig.nodes[0].netns, target);
            }
            rig.nodes[0].add_pod();
            let [first, second] = &rig.nodes[..] else { panic!("two nodes") };
            nft(
                &first.netns,
                "add table ip watch; add chain ip watch post { type filter hook postrouting priority 300; }; \
                 add rule ip watch post udp dport 8472 mark and 0x4000 != 0 counter comment \"marked\"; \
                 add rule ip watch post udp dport 8472 counter comment \"tunnelled\"",
            );
            let end = first.pod_cidrs()[0].split('/').next().unwrap().to_owned();
            nft(
                &second.netns,
                &format!(
                    "add table ip watch; add chain ip watch input {{ type filter hook input priority 0; }}; \
                     add rule ip watch input ip saddr {end} icmp type echo-request counter comment \"as the end\""
                ),
            );
            // A pod by way of a Service, and the node itself, which ours would translate, too.
            for (count, source) in [first.pod_addresses()[0].as_str(), "198.18.0.1"].iter().enumerate() {
                assert!(first.pings(source, target), "{mode}: {source} -> {target}");
                assert_eq!(counted(&second.netns, "as the end"), count as u64 + 1, "{mode}: {source}");
            }
            assert!(counted(&first.netns, "tunnelled") >= 2, "{mode}");
            assert_eq!(counted(&first.netns, "marked"), 0, "{mode}, proxy first: {proxy_first}");
        }
    }
}

/// Sends from two addresses of the node, from the same ports each, and says as whom they arrive.
fn arrivals(node: &Node, outside: &Namespace, port: u16) -> BTreeSet<std::net::SocketAddr> {
    const PORTS: std::ops::Range<u16> = 20_000..22_500;
    let server = outside.inside(|| UdpSocket::bind(("198.18.0.254", port)).unwrap());
    server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut seen = BTreeSet::new();
    let mut buffer = [0; 8];
    let first = node.pod_addresses().swap_remove(0);
    for source in [first.clone(), first.replace(".5", ".6")] {
        node.netns.inside(|| {
            for number in PORTS {
                let client = UdpSocket::bind((source.as_str(), number)).unwrap();
                client.send_to(b"hello", ("198.18.0.254", port)).unwrap();
                seen.insert(server.recv_from(&mut buffer).expect("every datagram arrives").1);
            }
        });
    }
    seen
}

#[test]
fn scenario_45_five_thousand_connections_to_one_place_get_a_port_each_randomly_or_not() {
    let mut rig = followed();
    rig.underlay.ip("address add 198.18.0.254/24 dev br0");
    let node = &mut rig.nodes[0];
    let other = node.pod_addresses()[0].replace(".5", ".6");
    node.netns.ip(&format!("address add {other} dev pod0"));
    for (config, port) in [("masquerade: {randomFully: false}\n", 9001), ("masquerade: {}\n", 9002)] {
        node.configure(config);
        let random = !config.contains("false");
        eventually("the rules follow", || {
            let rules = run_ok(node.netns.command("nft").args(["list", "table", "inet", "fairlead"]));
            (rules.contains("fully-random") == random).then_some(())
        });
        let seen = arrivals(node, &rig.underlay, port);
        assert!(seen.iter().all(|from| from.ip().to_string() == "198.18.0.1"));
        assert_eq!(seen.len(), 5000, "fully random: {random}");
        let kept = seen.iter().filter(|from| (20_000..22_500).contains(&from.port())).count();
        assert_eq!(kept >= 2500, !random, "{kept} kept their port");
    }
}

/// A pod's namespace behind a link of that name, as the plugin wires one.
fn wire(node: &Node, link: &str, address: &str) -> Namespace {
    let pod = Namespace::with_loopback();
    node.netns.ip(&format!("link add {link} type veth peer name eth0 netns {}", pod.path().display()));
    node.netns.ip(&format!("link set {link} alias fairlead:test/{link}/eth0 up"));
    pod.ip("link set eth0 up");
    pod.ip(&format!("address add {address}/32 dev eth0"));
    pod.ip("route add 169.254.1.1 dev eth0 scope link");
    pod.ip("route add default via 169.254.1.1");
    node.netns.ip(&format!("address add 169.254.1.1/32 dev {link}"));
    node.netns.ip(&format!("route add {address} dev {link} proto 71"));
    pod
}

#[test]
fn scenario_43_a_pod_that_asks_its_own_service_is_answered_by_itself_as_by_the_service() {
    let rig = followed();
    let node = &rig.nodes[0];
    let address = node.pod_addresses()[0].replace(".5", ".77");
    let pod = wire(node, "pod1", &address);
    // What kube-proxy makes of a Service with that pod behind it.
    nft(
        &node.netns,
        &format!(
            "add table ip kube-proxy; \
             add chain ip kube-proxy services {{ type nat hook prerouting priority dstnat; }}; \
             add chain ip kube-proxy post {{ type nat hook postrouting priority srcnat; }}; \
             add rule ip kube-proxy services ip daddr 10.96.0.10 udp dport 80 meta mark set mark or 0x4000 \
             dnat to {address}:9004; \
             add rule ip kube-proxy post mark and 0x4000 == 0 return; \
             add rule ip kube-proxy post meta mark set mark xor 0x4000; \
             add rule ip kube-proxy post masquerade fully-random"
        ),
    );
    let [server, client] =
        [9004, 4002].map(|port| pod.inside(|| UdpSocket::bind((address.as_str(), port)).unwrap()));
    for socket in [&server, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    }
    client.connect("10.96.0.10:80").unwrap();
    client.send(b"hello").unwrap();
    let mut buffer = [0; 8];
    let (_, from) = server.recv_from(&mut buffer).expect("it comes back in");
    assert_ne!(from.ip().to_string(), address, "it would answer itself beside the Service");
    server.send_to(b"hello", from).unwrap();
    assert_eq!(client.recv(&mut buffer).expect("an answer of the Service"), 5);
}

#[test]
fn scenario_48_the_connections_of_a_pod_that_is_gone_are_forgotten_and_no_others() {
    let rig = followed();
    let node = &rig.nodes[0];
    rig.underlay.ip("address add 198.18.0.254/24 dev br0");
    let (kept, gone) = (node.pod_addresses().swap_remove(0), node.pod_addresses()[0].replace(".5", ".77"));
    let pod = wire(node, "pod1", &gone);
    // One that it began, through the masquerade, and one that leads to it; and another pod's.
    let server = rig.underlay.inside(|| UdpSocket::bind("198.18.0.254:9003").unwrap());
    server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut buffer = [0; 8];
    for (netns, source) in [(&pod, &gone), (&node.netns, &kept)] {
        netns.inside(|| {
            let client = UdpSocket::bind((source.as_str(), 4000)).unwrap();
            client.send_to(b"hello", "198.18.0.254:9003").unwrap();
        });
        server.recv_from(&mut buffer).unwrap();
    }
    node.netns.inside(|| {
        UdpSocket::bind("198.18.0.1:4001").unwrap().send_to(b"hello", (gone.as_str(), 9)).unwrap();
    });
    let flows = |address: &str| {
        let listed = run_ok(node.netns.command("conntrack").args(["-L", "-p", "udp"]));
        listed.lines().filter(|line| line.contains(&format!("={address} "))).count()
    };
    assert_eq!((flows(&gone), flows(&kept)), (2, 1));
    node.netns.ip("link delete pod1");
    eventually("they are forgotten", || (flows(&gone) == 0).then_some(()));
    assert_eq!(flows(&kept), 1);
    // Another pod is given the address: nothing of the one before is in its way, in or out.
    let next = wire(node, "pod2", &gone);
    let waiting = next.inside(|| UdpSocket::bind((gone.as_str(), 9)).unwrap());
    waiting.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    node.netns.inside(|| {
        UdpSocket::bind("198.18.0.1:4001").unwrap().send_to(b"anew", (gone.as_str(), 9)).unwrap();
    });
    waiting.recv_from(&mut buffer).expect("it goes to the pod that is there now");
    next.inside(|| {
        let client = UdpSocket::bind((gone.as_str(), 4000)).unwrap();
        client.send_to(b"anew", "198.18.0.254:9003").unwrap();
    });
    server.recv_from(&mut buffer).expect("its own goes out");
    assert_eq!((flows(&gone), flows(&kept)), (2, 1));
}
