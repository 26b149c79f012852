//! The `fairlead` plugin, the network of the agent: routed by default, with the agent's file and without it.
//! The real binary in namespaces, judged by `ip`, `nft` and `ping`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a failure here is a failure of the test, and tools are what it asserts with"
)]

use std::path::Path;

use harness::{Call, Disturbance, Namespace, every_step, not_run, strace_works};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A node with what its agent left on disk.
struct Node {
    host: Namespace,
    bin: TempDir,
    directory: TempDir,
}

impl Node {
    fn new(pod_cidrs: &[&str]) -> Self {
        let node = Self {
            host: Namespace::with_loopback(),
            bin: harness::plugin_directory(&["fairlead"]),
            directory: tempfile::tempdir().expect("a temporary directory"),
        };
        let network = json!({
            "node": "node1",
            "podCIDRs": pod_cidrs,
            "clusterCIDRs": ["10.244.0.0/16", "fd00:10:244::/56"],
            "mtu": 1450,
        });
        std::fs::write(node.network_file(), network.to_string()).unwrap();
        node
    }

    fn dual() -> Self {
        Self::new(&["10.244.1.0/24", "fd00:10:244:1::/64"])
    }

    fn network_file(&self) -> std::path::PathBuf {
        self.directory.path().join("network.json")
    }

    fn config(&self, more: Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "fairlead", "type": "fairlead",
            "stateDir": self.directory.path(), "dataDir": self.directory.path().join("networks"),
        });
        let all = config.as_object_mut().unwrap();
        all.extend(more.as_object().unwrap().clone());
        config
    }

    fn call<'a>(&'a self, container_id: &'a str, pod: &Namespace) -> Call<'a> {
        Call::new(&self.host, self.bin.path(), "fairlead", container_id, pod)
    }

    fn reserved(&self) -> Vec<String> {
        reserved(&self.directory.path().join("networks/fairlead"))
    }

    fn expect_clean(&self, what: &str) {
        let links = self.host.link_names();
        assert!(!links.iter().any(|name| name.starts_with("veth")), "{what}: {links:?}");
        assert!(self.reserved().is_empty(), "{what}: {:?}", self.reserved());
        for family in ["-4", "-6"] {
            assert_eq!(self.host.ip_json(&format!("{family} route show proto 71")), json!([]), "{what}");
        }
    }
}

fn reserved(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect();
    names.sort();
    names
}

fn with_previous(config: &Value, result: &Value) -> Value {
    let mut config = config.clone();
    config["prevResult"] = result.clone();
    config
}

fn host_link(result: &Value) -> String {
    result["interfaces"][0]["name"].as_str().unwrap().to_owned()
}

#[test]
fn a_routed_pod_has_a_route_here_and_a_gateway_there() {
    let node = Node::dual();
    let pod = Namespace::with_loopback();
    let result = node.call("c", &pod).add(&node.config(json!({})));
    let link = host_link(&result);
    let host_side = node.host.ip_json(&format!("link show {link}"));
    assert_eq!(host_side[0]["address"], "ee:ee:ee:ee:ee:ee");
    assert_eq!(host_side[0]["mtu"], 1450);
    assert_eq!(host_side[0]["ifalias"], "fairlead:fairlead/c/eth0");
    assert_eq!(host_side[0]["operstate"], "UP");
    assert_eq!(host_side[0]["inet6_addr_gen_mode"], "none");
    for (family, address, gateway) in
        [("-4", "10.244.1.2", "169.254.1.1"), ("-6", "fd00:10:244:1::2", "fe80::1")]
    {
        let routes = node.host.ip_json(&format!("{family} route show proto 71"));
        assert_eq!(routes[0]["dst"], address, "{routes}");
        assert_eq!(routes[0]["dev"], json!(link));
        let neighbours = node.host.ip_json(&format!("{family} neigh show dev {link} nud permanent"));
        assert_eq!(neighbours[0]["lladdr"], pod.ip_json("link show eth0")[0]["address"]);
        let default = pod.ip_json(&format!("{family} route show default"));
        assert_eq!(default[0]["gateway"], gateway);
        let gateways = pod.ip_json(&format!("{family} neigh show nud permanent"));
        assert_eq!(
            (&gateways[0]["dst"], &gateways[0]["lladdr"]),
            (&json!(gateway), &json!("ee:ee:ee:ee:ee:ee"))
        );
        assert!(pod.ip(&format!("{family} addr show eth0")).contains(address));
    }
    assert_eq!(pod.ip_json("link show eth0")[0]["mtu"], 1450);
    assert_eq!(node.host.sysctl("net/ipv4/ip_forward"), "1");
    assert_eq!(node.host.sysctl("net/ipv6/conf/all/forwarding"), "1");
    assert_eq!(result["interfaces"][1]["sandbox"], json!(pod.path()));
    assert_eq!(result["ips"][0]["address"], "10.244.1.2/32");
    assert_eq!(result["ips"][1]["address"], "fd00:10:244:1::2/128");
    assert_eq!((&result["ips"][0]["interface"], &result["ips"][1]["interface"]), (&json!(1), &json!(1)));
    assert_eq!(node.reserved(), ["10.244.1.2", "fd00:10:244:1::2"]);
}

#[test]
fn routed_pods_reach_each_other_their_host_and_back() {
    let node = Node::dual();
    let (first, second) = (Namespace::with_loopback(), Namespace::with_loopback());
    // What the agent gives the node: the base addresses of its CIDRs.
    node.host.ip("link add underlay type ifb");
    node.host.ip("addr add 10.244.1.0/32 dev underlay");
    node.host.ip("addr add fd00:10:244:1::/128 dev underlay nodad");
    node.host.ip("link set underlay up");
    node.call("first", &first).add(&node.config(json!({})));
    node.call("second", &second).add(&node.config(json!({})));
    for address in ["10.244.1.3", "fd00:10:244:1::3", "10.244.1.0", "10.244.1.2", "fd00:10:244:1::2"] {
        assert!(first.pings(address), "pod to {address}");
    }
    for address in ["10.244.1.2", "10.244.1.3", "fd00:10:244:1::2", "fd00:10:244:1::3"] {
        assert!(node.host.pings(address), "host to {address}");
    }
}

#[test]
fn ipv6_is_switched_on_in_a_pod_that_has_it_off() {
    let node = Node::new(&["10.244.1.0/24", "fd00:10:244:1::/64"]);
    let (pod, other) = (Namespace::with_loopback(), Namespace::with_loopback());
    for link in ["all", "default"] {
        let off = format!("echo 1 > /proc/sys/net/ipv6/conf/{link}/disable_ipv6");
        harness::run_ok(pod.command("sh").args(["-c", &off]));
    }
    let result = node.call("c", &pod).add(&node.config(json!({})));
    node.call("other", &other).add(&node.config(json!({})));
    let address = result["ips"][1]["address"].as_str().unwrap().split('/').next().unwrap();
    assert!(other.pings(address), "{result}");
}

#[test]
fn no_link_of_the_host_to_a_pod_has_a_part_in_ipv6_multicast() {
    let node = Node::new(&["10.244.1.0/24", "fd00:10:244:1::/64"]);
    let pod = Namespace::new();
    let name = host_link(&node.call("c", &pod).add(&node.config(json!({}))));
    let routes = node.host.ip(&format!("-6 route show table all dev {name}"));
    assert!(routes.contains("fd00") && !routes.contains("ff00::/8"), "{routes}");
}

#[test]
fn one_family_is_enough() {
    for (cidr, address) in
        [("10.244.1.0/24", "10.244.1.2/32"), ("fd00:10:244:1::/64", "fd00:10:244:1::2/128")]
    {
        let node = Node::new(&[cidr]);
        let (pod, other) = (Namespace::with_loopback(), Namespace::with_loopback());
        let result = node.call("c", &pod).add(&node.config(json!({})));
        assert_eq!(result["ips"].as_array().unwrap().len(), 1);
        assert_eq!(result["ips"][0]["address"], address);
        node.call("other", &other).add(&node.config(json!({})));
        let (own, _) = address.split_once('/').unwrap();
        assert!(other.pings(own));
    }
}

#[test]
fn without_the_agents_file_nobody_is_attached_but_everybody_leaves() {
    let node = Node::dual();
    let pod = Namespace::new();
    let config = node.config(json!({}));
    let call = node.call("c", &pod);
    let previous = with_previous(&config, &call.add(&config));
    std::fs::remove_file(node.network_file()).unwrap();
    let other = Namespace::new();
    let reply = node.call("other", &other).run("ADD", &config);
    assert_eq!(reply.error_code(), 11);
    assert!(reply.error_text().contains("hint:"), "{reply:?}");
    assert_eq!(call.run("STATUS", &config).error_code(), 50);
    assert_eq!(call.run("CHECK", &previous).exit, Some(0));
    call.del(&config);
    node.expect_clean("DEL without the agent's file");
    assert!(other.link_names().is_empty());
    std::fs::write(node.network_file(), "{").unwrap();
    assert_eq!(node.call("other", &other).run("ADD", &config).error_code(), 11);
}

#[test]
fn status_is_content_when_the_agent_is() {
    let node = Node::dual();
    let pod = Namespace::new();
    let reply = node.call("c", &pod).run("STATUS", &node.config(json!({})));
    assert_eq!((reply.exit, reply.stdout.as_str()), (Some(0), ""));
    assert!(node.host.link_names().is_empty());
}

#[test]
fn check_notices_each_thing_taken_away() {
    type Break = fn(&Node, &Namespace, &str);
    let breaks: [(&str, Break); 12] = [
        ("10.244.1.2", |node, _, _| drop(node.host.ip("-4 route del 10.244.1.2"))),
        ("fd00:10:244:1::2", |node, _, _| drop(node.host.ip("-6 route del fd00:10:244:1::2"))),
        ("10.244.1.2", |node, _, link| drop(node.host.ip(&format!("neigh del 10.244.1.2 dev {link}")))),
        ("veth", |node, _, link| drop(node.host.ip(&format!("link set {link} down")))),
        ("eth0", |node, _, link| drop(node.host.ip(&format!("link del {link}")))),
        ("veth", |node, _, link| drop(node.host.ip(&format!("link set {link} address 02:00:00:00:00:66")))),
        ("10.244.1.2", |_, pod, _| drop(pod.ip("-4 addr flush dev eth0"))),
        ("fd00:10:244:1::2", |_, pod, _| drop(pod.ip("-6 addr del fd00:10:244:1::2/128 dev eth0"))),
        ("0.0.0.0/0", |_, pod, _| drop(pod.ip("route del default"))),
        ("::/0", |_, pod, _| drop(pod.ip("-6 route del default"))),
        ("169.254.1.1", |_, pod, _| drop(pod.ip("neigh del 169.254.1.1 dev eth0"))),
        ("eth0", |_, pod, _| drop(pod.ip("link set eth0 address 02:00:00:00:00:66"))),
    ];
    for (number, (named, break_it)) in breaks.into_iter().enumerate() {
        let node = Node::dual();
        let pod = Namespace::with_loopback();
        let config = node.config(json!({}));
        let call = node.call("c", &pod);
        let result = call.add(&config);
        let previous = with_previous(&config, &result);
        let before = call.run("CHECK", &previous);
        assert_eq!((before.exit, before.stdout.as_str()), (Some(0), ""), "{before:?}");
        break_it(&node, &pod, &host_link(&result));
        let reply = call.run("CHECK", &previous);
        assert_ne!(reply.exit, Some(0), "break {number} ({named}) is not noticed");
        assert!(reply.error_text().contains(named), "break {number}: {reply:?} should name {named}");
    }
}

#[test]
fn del_succeeds_whatever_is_missing() {
    let node = Node::dual();
    let config = node.config(json!({}));
    let pod = Namespace::new();
    node.call("never", &pod).del(&config);
    for netns in ["keep", "", "/var/run/netns/there-is-no-such-name"] {
        let pod = Namespace::new();
        let mut call = node.call("c", &pod);
        call.add(&config);
        if netns != "keep" {
            call.netns = netns.into();
        }
        call.del(&config);
        call.del(&config);
        node.expect_clean(&format!("DEL with namespace {netns:?}"));
        assert!(pod.link_names().is_empty());
    }
    let pod = Namespace::new();
    let mut call = node.call("c", &pod);
    call.add(&config);
    drop(pod);
    call.netns = "".into();
    call.del(&config);
    node.expect_clean("DEL after the namespace went");
}

#[test]
fn gc_takes_what_is_not_listed() {
    let node = Node::dual();
    let (stale, kept) = (Namespace::new(), Namespace::new());
    let mut config = node.config(json!({}));
    node.call("stale", &stale).add(&config);
    node.call("kept", &kept).add(&config);
    assert_eq!(node.call("", &stale).run("GC", &config).error_code(), 7);
    std::fs::remove_file(node.network_file()).unwrap();
    config["cni.dev/valid-attachments"] = json!([{ "containerID": "kept", "ifname": "eth0" }]);
    node.call("", &stale).run("GC", &config).expect_success("GC");
    assert!(stale.link_names().is_empty());
    assert_eq!(kept.link_names(), ["eth0"]);
    assert_eq!(node.reserved(), ["10.244.1.3", "fd00:10:244:1::3"]);
}

#[test]
fn a_failed_add_leaves_nothing() {
    let node = Node::dual();
    let pod = Namespace::new();
    pod.ip("link add eth0 type ifb");
    let reply = node.call("c", &pod).run("ADD", &node.config(json!({})));
    assert!(reply.error_text().contains("already exists"), "{reply:?}");
    node.expect_clean("a refused interface");
    // Every address taken: the pool says no after the link was made.
    let node = Node::new(&["10.244.1.0/30"]);
    let (first, second) = (Namespace::new(), Namespace::new());
    node.call("first", &first).add(&node.config(json!({})));
    assert_ne!(node.call("second", &second).run("ADD", &node.config(json!({}))).exit, Some(0));
    assert!(second.link_names().is_empty());
    assert_eq!(node.host.link_names().len(), 1);
}

#[test]
fn the_runtimes_hardware_address_and_addresses_are_honoured() {
    let node = Node::dual();
    let pod = Namespace::new();
    let wanted = json!({ "runtimeConfig": { "mac": "02:00:00:00:00:07", "ips": ["10.244.1.77", "fd00:10:244:1::77"] } });
    let result = node.call("c", &pod).add(&node.config(wanted));
    assert_eq!(result["interfaces"][1]["mac"], "02:00:00:00:00:07");
    assert_eq!(result["ips"][0]["address"], "10.244.1.77/32");
    assert_eq!(result["ips"][1]["address"], "fd00:10:244:1::77/128");
    let other = Namespace::new();
    let result = node.call("other", &other).add(&node.config(json!({ "mtu": 1300 })));
    assert_eq!(other.ip_json("link show eth0")[0]["mtu"], 1300);
    assert_eq!(node.host.ip_json(&format!("link show {}", host_link(&result)))[0]["mtu"], 1300);
}

#[test]
fn bridge_mode_is_a_bridge_with_the_nodes_ranges() {
    let node = Node::dual();
    let (pod, other) = (Namespace::with_loopback(), Namespace::with_loopback());
    let config = node.config(json!({ "mode": "bridge" }));
    let call = node.call("c", &pod);
    let result = call.add(&config);
    node.call("other", &other).add(&config);
    assert_eq!(result["interfaces"][0]["name"], "cni0");
    assert_eq!(result["ips"][0]["address"], "10.244.1.2/24");
    assert_eq!(pod.ip_json("link show eth0")[0]["mtu"], 1450);
    assert_eq!(pod.ip_json("route show default")[0]["gateway"], "10.244.1.1");
    assert!(pod.pings("10.244.1.3") && pod.pings("fd00:10:244:1::3") && pod.pings("10.244.1.1"));
    let previous = with_previous(&config, &result);
    assert_eq!(call.run("CHECK", &previous).exit, Some(0));
    assert_eq!(call.run("STATUS", &config).exit, Some(0));
    std::fs::remove_file(node.network_file()).unwrap();
    call.del(&previous);
    node.call("other", &other).del(&config);
    node.expect_clean("bridge mode");
}

#[test]
fn a_hundred_pods_at_once_get_a_hundred_addresses() {
    let node = Node::dual();
    let config = node.config(json!({}));
    let pods: Vec<Namespace> = (0..100).map(|_| Namespace::new()).collect();
    let mut given: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = pods
            .iter()
            .enumerate()
            .map(|(number, pod)| {
                let (node, config) = (&node, &config);
                scope.spawn(move || {
                    let result = node.call(&format!("c{number}"), pod).add(config);
                    [0, 1].map(|index| result["ips"][index]["address"].as_str().unwrap().to_owned())
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    given.sort();
    given.dedup();
    assert_eq!(given.len(), 200);
    assert_eq!(node.host.ip_json("route show proto 71").as_array().unwrap().len(), 100);
}

#[test]
fn a_call_killed_at_any_step_is_cleaned_by_del_or_gc() {
    if !strace_works() {
        return not_run("strace cannot trace here");
    }
    let node = Node::dual();
    let config = node.config(json!({}));
    let mut collecting = config.clone();
    collecting["cni.dev/valid-attachments"] = json!([]);
    for (command, mend) in [("ADD", "DEL"), ("ADD", "GC"), ("DEL", "DEL")] {
        let steps = every_step(|step| {
            let pod = Namespace::new();
            let call = node.call("c", &pod);
            if command == "DEL" {
                call.add(&config);
            }
            let outcome = call.disturbed(command, &config, Disturbance::Kill, step);
            let mending = if mend == "GC" { &collecting } else { &config };
            call.run(mend, mending).expect_success(mend);
            node.expect_clean(&format!("{command} killed at {step:?}, then {mend}"));
            assert!(pod.link_names().is_empty(), "{command} killed at {step:?}, then {mend}");
            outcome.reached
        });
        assert!(steps > 30, "only {steps} steps: strace killed nothing");
    }
}

#[test]
fn an_add_that_fails_at_any_step_leaves_nothing() {
    if !strace_works() {
        return not_run("strace cannot trace here");
    }
    let node = Node::dual();
    let config = node.config(json!({}));
    let mut failed = 0;
    every_step(|step| {
        let pod = Namespace::new();
        let call = node.call("c", &pod);
        let outcome = call.disturbed("ADD", &config, Disturbance::Fail, step);
        if outcome.reply.exit == Some(0) || (step.name == "setns" && outcome.reply.stdout.is_empty()) {
            // A step that is allowed to fail, or none was disturbed; or the way home from the pod's namespace
            // was barred, where a process must not go on, not even to undo.
            call.del(&config);
        } else {
            failed += 1;
        }
        node.expect_clean(&format!("ADD failed at {step:?}: {outcome:?}"));
        assert!(pod.link_names().is_empty(), "ADD failed at {step:?}: {outcome:?}");
        outcome.reached
    });
    assert!(failed > 25, "only {failed} steps can fail: strace disturbed nothing");
}
