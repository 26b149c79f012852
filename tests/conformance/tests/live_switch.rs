//! The plugins of a node are exchanged while its pods run: what the reference wired is recognised by our CHECK and
//! leaves nothing after our DEL and GC, and what ours wired is freed by the reference's DEL.
//!
//! Read [`Node`] first: a host with both sets of plugins, on which the reference's find one kind of packet filter
//! ([`Filter`]). "Nothing" is what the reference's own DEL leaves: chains that all pods share.
//! `FAIRLEAD_REFERENCE=DIR` names another build of the reference that is asked too.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and tools are what it asserts with"
)]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use conformance::{Stage, Subject, ours};
use harness::{Call, Namespace, Reply, not_run, run, run_ok};
use serde_json::{Value, json};

/// The kind of packet filter that the reference finds, or is told to use.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Filter {
    /// iptables that speaks nf_tables.
    Nft,
    /// iptables with the older interface.
    Legacy,
    /// No iptables: the reference's own nf_tables tables.
    Native,
}

/// A host with plugins of both kinds.
struct Node {
    stage: Stage,
    ours: Subject,
    reference: PathBuf,
    filter: Filter,
    /// Holds `iptables` and the like by these names.
    tools: tempfile::TempDir,
}

impl Node {
    fn new(reference: &Path, filter: Filter) -> Self {
        let tools = tempfile::tempdir().unwrap();
        let suffix = if filter == Filter::Legacy { "legacy" } else { "nft" };
        for family in ["iptables", "ip6tables"] {
            for tool in ["", "-save", "-restore"] {
                let target = format!("/usr/sbin/{family}-{suffix}{tool}");
                symlink(target, tools.path().join(format!("{family}{tool}"))).unwrap();
            }
        }
        Self { stage: Stage::new(), ours: ours(), reference: reference.to_owned(), filter, tools }
    }

    fn config(&self, kind: &str, version: &str, more: &Value) -> Value {
        let mut config = self.stage.config(kind, version, more);
        config["ipam"] = self.stage.ipam(&["10.1.2.0/24", "2001:db8:42::/64"]);
        if self.filter == Filter::Native {
            config["ipMasqBackend"] = json!("nftables");
        }
        config
    }

    /// Runs a plugin of the reference with the tools of this node first in its path.
    fn reference(&self, pod: &Pod, plugin: &str, command: &str, config: &Value) -> Reply {
        let call = pod.call(self, &self.reference, plugin);
        let mut process = call.command(command);
        let mut path = OsString::from(self.tools.path());
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        process.env("PATH", path).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = process.spawn().unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        Reply::from(child.wait_with_output().unwrap())
    }

    fn reference_adds(&self, pod: &Pod, plugin: &str, config: &Value) -> Value {
        self.reference(pod, plugin, "ADD", config).expect_success("the reference's ADD")
    }

    fn ours(&self, pod: &Pod, plugin: &str, command: &str, config: &Value) -> Reply {
        pod.call(self, &self.ours.bin, plugin).run(command, config)
    }

    /// Every line of every packet filter, every link and every address file: what is left on the host.
    fn left(&self) -> BTreeSet<String> {
        let mut lines = BTreeSet::new();
        for tool in
            ["iptables-legacy-save", "ip6tables-legacy-save", "iptables-nft-save", "ip6tables-nft-save"]
        {
            let printed = run_ok(&mut self.stage.host.command(tool));
            let rules = printed.lines().filter(|line| line.starts_with([':', '-']));
            // Without the counters of a chain.
            lines.extend(rules.map(|line| format!("{tool} {}", line.split(" [").next().unwrap())));
        }
        for object in self.stage.host.nft_ruleset() {
            if let Some(rule) = object.get("rule") {
                lines.insert(format!("nft {} {}", rule["table"], rule["comment"]));
            }
            if let Some(chain) = object.get("chain") {
                lines.insert(format!("nft chain {} {}", chain["table"], chain["name"]));
            }
            let set = object.get("set").or_else(|| object.get("map"));
            for element in set.and_then(|set| set["elem"].as_array()).into_iter().flatten() {
                lines.insert(format!("nft element {element}"));
            }
        }
        lines.extend(self.stage.host.link_names().iter().map(|name| format!("link {name}")));
        lines.extend(self.stage.reserved().iter().map(|address| format!("address {address}")));
        lines
    }
}

/// A container to wire.
struct Pod {
    namespace: Namespace,
    container: String,
    ifname: &'static str,
}

impl Pod {
    fn new(container: &str) -> Self {
        Self { namespace: Namespace::with_loopback(), container: container.to_owned(), ifname: "eth0" }
    }

    fn call<'a>(&'a self, node: &'a Node, bin: &'a Path, plugin: &'a str) -> Call<'a> {
        let call = Call::new(&node.stage.host, bin, plugin, &self.container, &self.namespace);
        Call { ifname: self.ifname, ..call }
    }
}

/// The reference's plugins with each packet filter that they know.
fn nodes() -> Vec<Node> {
    let debian = harness::reference_plugins();
    if debian.is_none() {
        not_run("containernetworking-plugins is not installed");
    }
    let mut nodes = Vec::new();
    let newer = std::env::var_os("FAIRLEAD_REFERENCE").map(PathBuf::from);
    let mut filters = vec![Filter::Nft];
    let host = Namespace::new();
    match run(host.command("iptables-legacy").args(["-t", "nat", "-S"])).status.success() {
        true => filters.push(Filter::Legacy),
        false => not_run("the kernel has no older iptables interface (CONFIG_IP_NF_IPTABLES_LEGACY)"),
    }
    for reference in debian.iter().chain(&newer) {
        nodes.extend(filters.iter().map(|filter| Node::new(reference, *filter)));
    }
    nodes.extend(newer.iter().map(|reference| Node::new(reference, Filter::Native)));
    nodes
}

/// The chained plugins after an interface plugin, and what each is given.
fn chained(node: &Node) -> [(&'static str, Value); 3] {
    let mut ports = json!({ "runtimeConfig": { "portMappings": [
        { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
        { "hostPort": 8081, "containerPort": 81, "protocol": "udp", "hostIP": "127.0.0.1" },
    ] } });
    if node.filter == Filter::Native {
        ports["backend"] = json!("nftables");
    }
    let rate = json!({ "ingressRate": 8_000_000, "ingressBurst": 8_000_000,
        "egressRate": 8_000_000, "egressBurst": 8_000_000 });
    [("portmap", ports), ("bandwidth", rate), ("firewall", json!({ "backend": "iptables" }))]
}

/// A whole list as a runtime calls it: each plugin's configuration with the result of those before it.
struct Chain {
    configs: Vec<(&'static str, Value)>,
    result: Value,
}

impl Chain {
    /// ADD of every plugin by the reference's.
    fn added(node: &Node, pod: &Pod) -> Self {
        let (plugin, more) = cables()[0].clone();
        let mut configs = vec![(plugin, node.config(plugin, "1.0.0", &more))];
        configs
            .extend(chained(node).map(|(plugin, more)| (plugin, node.stage.config(plugin, "1.0.0", &more))));
        let mut result = Value::Null;
        for (plugin, config) in &configs {
            let config = if result.is_null() { config.clone() } else { with_previous(config, &result) };
            result = node.reference_adds(pod, plugin, &config);
        }
        Self { configs, result }
    }

    /// The calls after ADD, each with the final result.
    fn known(&self) -> Vec<(&'static str, Value)> {
        self.configs.iter().map(|(plugin, config)| (*plugin, with_previous(config, &self.result))).collect()
    }
}

/// What each interface plugin that masquerades is given.
fn cables() -> [(&'static str, Value); 2] {
    let bridge = json!({ "bridge": "br0", "isGateway": true, "ipMasq": true, "macspoofchk": true });
    [("bridge", bridge), ("ptp", json!({ "ipMasq": true }))]
}

fn with_previous(config: &Value, result: &Value) -> Value {
    let mut config = config.clone();
    config["prevResult"] = result.clone();
    config
}

#[test]
fn a_pod_that_the_reference_wired_is_checked_and_deleted_by_ours() {
    for (plugin, more) in cables() {
        for node in nodes() {
            let what = format!("{plugin} {:?} {}", node.filter, node.reference.display());
            let pod = Pod::new("c1");
            let config = node.config(plugin, "1.0.0", &more);
            let result = node.reference_adds(&pod, plugin, &config);
            let made = node.left();
            let known = with_previous(&config, &result);
            assert_eq!(node.reference(&pod, plugin, "DEL", &known).exit, Some(0), "{what}");
            let allowed = node.left();
            assert!(!made.is_subset(&allowed), "{what}: the reference made something");
            for previous in [true, false] {
                let result = node.reference_adds(&pod, plugin, &config);
                let known = with_previous(&config, &result);
                let reply = node.ours(&pod, plugin, "CHECK", &known);
                assert_eq!(reply.exit, Some(0), "{what}: {reply:?}");
                for _ in 0..2 {
                    let given = if previous { &known } else { &config };
                    let reply = node.ours(&pod, plugin, "DEL", given);
                    assert_eq!(reply.exit, Some(0), "{what}: {reply:?}");
                    let left: Vec<String> = node.left().difference(&allowed).cloned().collect();
                    assert_eq!(left, [""; 0], "{what}, prevResult {previous}");
                }
            }
        }
    }
}

#[test]
fn host_ports_that_the_reference_mapped_are_checked_deleted_and_collected_by_ours() {
    let bridge = json!({ "bridge": "br0", "isGateway": true });
    let ports = json!({ "portMappings": [
        { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
        { "hostPort": 8053, "containerPort": 53, "protocol": "udp" },
    ]});
    for node in nodes() {
        let what = format!("{:?} {}", node.filter, node.reference.display());
        let pod = Pod::new("c1");
        let cable = node.config("bridge", "1.0.0", &bridge);
        let result = node.reference_adds(&pod, "bridge", &cable);
        let mut config = with_previous(&node.config("portmap", "1.0.0", &json!({})), &result);
        config.as_object_mut().unwrap().remove("ipam");
        config["runtimeConfig"] = ports.clone();
        if node.filter == Filter::Native {
            config["backend"] = json!("nftables");
        }
        node.reference_adds(&pod, "portmap", &config);
        let made = node.left();
        assert_eq!(node.reference(&pod, "portmap", "DEL", &config).exit, Some(0), "{what}");
        let allowed = node.left();
        assert!(!made.is_subset(&allowed), "{what}: the reference made something");
        for verb in ["DEL", "GC"] {
            node.reference_adds(&pod, "portmap", &config);
            let reply = node.ours(&pod, "portmap", "CHECK", &config);
            assert_eq!(reply.exit, Some(0), "{what}: {reply:?}");
            let mut other = config.clone();
            other["runtimeConfig"]["portMappings"][0]["hostPort"] = json!(8081);
            let reply = node.ours(&pod, "portmap", "CHECK", &other);
            assert!(reply.error_text().contains("8081/tcp is gone"), "{what}: {reply:?}");
            let mut asked = config.clone();
            if verb == "GC" {
                asked["cniVersion"] = json!("1.1.0");
                asked["cni.dev/valid-attachments"] = json!([]);
            } else {
                asked.as_object_mut().unwrap().remove("runtimeConfig");
            }
            let reply = node.ours(&pod, "portmap", verb, &asked);
            assert_eq!(reply.exit, Some(0), "{what}: {reply:?}");
            let left: Vec<String> = node.left().difference(&allowed).cloned().collect();
            // The rules of nftables name the container and no network, so no GC can tell whose they are.
            if verb == "DEL" || node.filter != Filter::Native {
                assert_eq!(left, [""; 0], "{what}, {verb}");
            }
        }
    }
}

#[test]
fn check_names_what_is_gone_of_what_the_reference_made() {
    let (plugin, more) = cables()[0].clone();
    for node in nodes() {
        let what = format!("{:?} {}", node.filter, node.reference.display());
        let pod = Pod::new("c1");
        let config = node.config(plugin, "1.0.0", &more);
        let known = with_previous(&config, &node.reference_adds(&pod, plugin, &config));
        let host = &node.stage.host;
        let missing = |what: &str| {
            let reply = node.ours(&pod, plugin, "CHECK", &known);
            assert_ne!(reply.exit, Some(0), "{what}");
            reply.error_text()
        };
        match node.filter {
            Filter::Native => {
                run_ok(
                    host.command("nft")
                        .args("flush chain inet cni_plugins_masquerade masq_checks".split(' ')),
                );
            }
            Filter::Nft => {
                run_ok(
                    host.command("iptables-nft")
                        .args("-t nat -D POSTROUTING -s 10.1.2.2 -m comment".split(' '))
                        .args([
                            "--comment",
                            r#"name: "test" id: "c1""#,
                            "-j",
                            "CNI-917f9005c929d67b6ac60e32",
                        ]),
                );
            }
            Filter::Legacy => {
                run_ok(
                    host.command("iptables-legacy").args("-t nat -F CNI-917f9005c929d67b6ac60e32".split(' ')),
                );
            }
        }
        let text = missing(&what);
        assert!(text.contains("masquerading of 10.1.2.2 is gone"), "{what}: {text}");
        run_ok(host.command("nft").args("flush chain bridge nat cni-br-iface-c1-eth0-mac".split(' ')));
        let text = missing(&what);
        assert!(text.contains("hardware address filter"), "{what}: {text}");
    }
}

#[test]
fn deleting_one_pod_of_the_reference_leaves_the_others_whole() {
    let (plugin, more) = cables()[0].clone();
    for node in nodes() {
        let what = format!("{:?} {}", node.filter, node.reference.display());
        let pods = ["c1", "c2", "c3"].map(Pod::new);
        let config = node.config(plugin, "1.0.0", &more);
        let known: Vec<Value> = pods
            .iter()
            .map(|pod| with_previous(&config, &node.reference_adds(pod, plugin, &config)))
            .collect();
        for index in [1, 0] {
            assert_eq!(node.ours(&pods[index], plugin, "DEL", &known[index]).exit, Some(0), "{what}");
            for (pod, known) in pods.iter().zip(&known).skip(2).chain(pods.iter().zip(&known).take(index)) {
                let reply = node.ours(pod, plugin, "CHECK", known);
                assert_eq!(reply.exit, Some(0), "{what}: {reply:?}");
            }
            assert!(
                !node.left().iter().any(|line| line.contains(&format!("\"{}\"", pods[index].container))),
                "{what}"
            );
        }
    }
}

#[test]
fn two_interfaces_of_one_container_in_one_network_do_not_share_their_end() {
    let (plugin, mut more) = cables()[0].clone();
    more["macspoofchk"] = json!(false);
    for node in nodes() {
        let what = format!("{:?} {}", node.filter, node.reference.display());
        let first = Pod::new("c1");
        let second = Pod { namespace: Namespace::with_loopback(), container: "c1".into(), ifname: "net1" };
        let config = node.config(plugin, "1.0.0", &more);
        let known = with_previous(&config, &node.reference_adds(&first, plugin, &config));
        let other = with_previous(&config, &node.reference_adds(&second, plugin, &config));
        assert_eq!(node.ours(&first, plugin, "DEL", &known).exit, Some(0), "{what}");
        let reply = node.ours(&second, plugin, "CHECK", &other);
        assert_eq!(reply.exit, Some(0), "{what}: {reply:?}");
        assert_eq!(node.ours(&second, plugin, "DEL", &other).exit, Some(0), "{what}");
        let left = node.left();
        assert!(
            !left.iter().any(|line| line.contains("10.1.2.") || line.contains("c1")),
            "{what}: {left:#?}"
        );
    }
}

#[test]
fn gc_takes_what_the_reference_left_behind_and_keeps_the_valid_and_the_other_networks() {
    let (plugin, more) = cables()[0].clone();
    for node in nodes() {
        let what = format!("{:?} {}", node.filter, node.reference.display());
        let config = node.config(plugin, "1.1.0", &more);
        let older = json!({ "cniVersion": "1.0.0" });
        let config_of = |name: &str| {
            let mut config = config.clone();
            config["name"] = json!(name);
            config["cniVersion"] = older["cniVersion"].clone();
            config
        };
        let (valid, elsewhere) = (Pod::new("valid"), Pod::new("elsewhere"));
        let known =
            with_previous(&config_of("test"), &node.reference_adds(&valid, plugin, &config_of("test")));
        let mut other = config_of("other");
        other["ipam"]["ranges"] = json!([[{ "subnet": "10.9.9.0/24" }]]);
        other["bridge"] = json!("br9");
        let other = with_previous(&other, &node.reference_adds(&elsewhere, plugin, &other));
        // Their namespaces go without a DEL.
        for number in 0..5 {
            let lost = Pod::new(&format!("lost{number}"));
            node.reference_adds(&lost, plugin, &config_of("test"));
        }
        harness::eventually("the lost pods' cables are gone", || {
            let ports = node.stage.host.link_names().iter().filter(|name| name.starts_with("veth")).count();
            (ports == 2).then_some(())
        });
        let mut request = config.clone();
        request["cni.dev/valid-attachments"] = json!([{ "containerID": "valid", "ifname": "eth0" }]);
        for _ in 0..2 {
            let reply = node.ours(&valid, plugin, "GC", &request);
            assert_eq!(reply.exit, Some(0), "{what}: {reply:?}");
            let left = node.left();
            assert!(!left.iter().any(|line| line.contains("lost")), "{what}: {left:#?}");
            let chains =
                left.iter().filter(|line| line.contains("tables-") && line.contains(" :CNI-")).count();
            // Of each of the two pods one chain of each family, and those of the filter that was not chosen: none.
            assert!(chains <= 4, "{what}: {left:#?}");
            for (pod, known) in [(&valid, &known), (&elsewhere, &other)] {
                let reply = node.ours(pod, plugin, "CHECK", known);
                assert_eq!(reply.exit, Some(0), "{what} {}: {reply:?}", pod.container);
            }
        }
    }
}

#[test]
fn a_pod_that_ours_wired_is_freed_by_the_references_del() {
    for (plugin, more) in cables() {
        for node in nodes() {
            let what = format!("{plugin} {:?} {}", node.filter, node.reference.display());
            let pod = Pod::new("c1");
            let config = node.config(plugin, "1.0.0", &more);
            let result = node.ours(&pod, plugin, "ADD", &config).expect_success("ADD");
            let known = with_previous(&config, &result);
            let reply = node.reference(&pod, plugin, "DEL", &known);
            // It misses a chain of its own, and takes that for gone only by words that iptables no longer says.
            let of_chain = reply.error_text().contains("-j CNI-917f9005c929d67b6ac60e32");
            assert!(reply.exit == Some(0) || of_chain, "{what}: {reply:?}");
            assert_eq!(node.stage.reserved(), [""; 0], "{what}");
            assert!(!node.stage.host.link_names().iter().any(|name| name.starts_with("veth")), "{what}");
            assert_eq!(pod.namespace.link_names(), [""; 0], "{what}");
            // What only ours knows of goes with our own DEL or GC, which may come at any time.
            assert_eq!(node.ours(&pod, plugin, "DEL", &known).exit, Some(0), "{what}");
            let left = node.left();
            assert!(!left.iter().any(|line| line.contains("element")), "{what}: {left:#?}");
        }
    }
}

#[test]
fn a_whole_list_of_the_reference_is_checked_and_deleted_by_ours() {
    for node in nodes() {
        let what = format!("{:?} {}", node.filter, node.reference.display());
        let pod = Pod::new("c1");
        for (plugin, config) in Chain::added(&node, &pod).known().iter().rev() {
            assert_eq!(node.reference(&pod, plugin, "DEL", config).exit, Some(0), "{what} {plugin}");
        }
        let allowed = node.left();
        let list = Chain::added(&node, &pod).known();
        for (plugin, config) in &list {
            let reply = node.ours(&pod, plugin, "CHECK", config);
            assert_eq!(reply.exit, Some(0), "{what} {plugin}: {reply:?}");
        }
        for (plugin, config) in list.iter().rev().chain(list.iter().rev()) {
            let reply = node.ours(&pod, plugin, "DEL", config);
            assert_eq!(reply.exit, Some(0), "{what} {plugin}: {reply:?}");
            // What is this plugin's own is gone with its own DEL: the pod's cable is not one of ours.
            let gone = match *plugin {
                "portmap" => "8080",
                "bandwidth" => "link bwp",
                "firewall" => "-A CNI-FORWARD -s",
                _ => "c1",
            };
            let left = node.left();
            assert!(!left.iter().any(|line| line.contains(gone)), "{what} {plugin}: {left:#?}");
        }
        let left: Vec<String> = node.left().difference(&allowed).cloned().collect();
        assert_eq!(left, [""; 0], "{what}");
    }
}

#[test]
fn check_of_a_host_port_or_an_accepting_rule_of_the_reference_names_what_is_gone() {
    for node in nodes() {
        let what = format!("{:?} {}", node.filter, node.reference.display());
        let pod = Pod::new("c1");
        let list = Chain::added(&node, &pod).known();
        let host = &node.stage.host;
        let iptables = node.tools.path().join("iptables");
        match node.filter {
            Filter::Native => {
                drop(run_ok(host.command("nft").args("flush chain ip cni_hostport hostports".split(' '))))
            }
            _ => drop(run_ok(host.command(&iptables).args("-w -t nat -F CNI-HOSTPORT-DNAT".split(' ')))),
        }
        run_ok(host.command(&iptables).args("-w -D CNI-FORWARD -s 10.1.2.2 -j ACCEPT".split(' ')));
        for (plugin, config) in &list {
            let reply = node.ours(&pod, plugin, "CHECK", config);
            let text = match *plugin {
                "portmap" => "host port",
                "firewall" => "10.1.2.2 is not let through",
                _ => {
                    assert_eq!(reply.exit, Some(0), "{what} {plugin}: {reply:?}");
                    continue;
                }
            };
            assert!(reply.error_text().contains(text), "{what} {plugin}: {reply:?}");
        }
    }
}

#[test]
fn a_host_port_of_the_containers_other_network_stays() {
    for node in nodes() {
        let what = format!("{:?} {}", node.filter, node.reference.display());
        let pods = [Pod::new("c1"), Pod { ifname: "net1", ..Pod::new("c1") }];
        let (_, ports) = chained(&node)[0].clone();
        let mut known = Vec::new();
        for (number, pod) in pods.iter().enumerate() {
            let (plugin, more) = cables()[0].clone();
            let mut config = node.config(plugin, "1.0.0", &more);
            config["name"] = json!(format!("net{number}"));
            config["bridge"] = json!(format!("br{number}"));
            config["ipam"] = node.stage.ipam(&[&format!("10.{number}.0.0/24")]);
            let result = node.reference_adds(pod, plugin, &config);
            let mut config = with_previous(&node.stage.config("portmap", "1.0.0", &ports), &result);
            config["name"] = json!(format!("net{number}"));
            config["runtimeConfig"]["portMappings"][0]["hostPort"] = json!(8000 + number);
            config["runtimeConfig"]["portMappings"].as_array_mut().unwrap().truncate(1);
            node.reference_adds(pod, "portmap", &config);
            known.push(config);
        }
        assert_eq!(node.ours(&pods[0], "portmap", "DEL", &known[0]).exit, Some(0), "{what}");
        assert_ne!(node.ours(&pods[0], "portmap", "CHECK", &known[0]).exit, Some(0), "{what}");
        let reply = node.ours(&pods[1], "portmap", "CHECK", &known[1]);
        assert_eq!(reply.exit, Some(0), "{what}: {reply:?}");
    }
}

#[test]
fn gc_of_host_ports_takes_those_whose_network_and_container_are_told() {
    for node in nodes() {
        let what = format!("{:?} {}", node.filter, node.reference.display());
        let (lost, valid) = (Pod::new("lost"), Pod::new("valid"));
        let (_, ports) = chained(&node)[0].clone();
        let mut known = Vec::new();
        for (number, pod) in [&lost, &valid].into_iter().enumerate() {
            let (plugin, more) = cables()[0].clone();
            let result = node.reference_adds(pod, plugin, &node.config(plugin, "1.0.0", &more));
            let mut config = with_previous(&node.stage.config("portmap", "1.0.0", &ports), &result);
            config["runtimeConfig"]["portMappings"][0]["hostPort"] = json!(8000 + number);
            config["runtimeConfig"]["portMappings"].as_array_mut().unwrap().truncate(1);
            node.reference_adds(pod, "portmap", &config);
            known.push(config);
        }
        let mut request = node.stage.config("portmap", "1.1.0", &json!({}));
        request["cni.dev/valid-attachments"] = json!([{ "containerID": "valid", "ifname": "eth0" }]);
        let reply = node.ours(&valid, "portmap", "GC", &request);
        assert_eq!(reply.exit, Some(0), "{what}: {reply:?}");
        // In the reference's own tables a host port tells its container only, which may be in another network.
        let told = node.filter != Filter::Native;
        assert_eq!(node.ours(&lost, "portmap", "CHECK", &known[0]).exit != Some(0), told, "{what}");
        let reply = node.ours(&valid, "portmap", "CHECK", &known[1]);
        assert_eq!(reply.exit, Some(0), "{what}: {reply:?}");
    }
}

/// Lists of plugins that touch no packet filter, with what each is given; the host has a cable `up0` to spare.
fn plain_lists(node: &Node) -> Vec<Vec<(&'static str, Value)>> {
    let data = node.stage.data.path().join("tuning");
    let ipam = node.stage.ipam(&["10.1.2.0/24"]);
    let bridge = ("bridge", json!({ "bridge": "br0", "isDefaultGateway": true, "ipam": ipam }));
    // Debian's CHECK does not know the word IFNAME, which its ADD does.
    let tuning = json!({ "mac": "02:00:00:00:00:42", "mtu": 1400, "promisc": true, "dataDir": data,
        "sysctl": { "net.ipv4.conf.eth0.arp_filter": "1" } });
    let fixed = json!({ "type": "static", "addresses": [{ "address": "10.7.0.2/24" }] });
    vec![
        vec![("loopback", json!({}))],
        vec![("macvlan", json!({ "master": "up0", "ipam": ipam }))],
        vec![("macvlan", json!({ "master": "up0", "mode": "private", "ipam": fixed }))],
        vec![("host-device", json!({ "device": "up0", "ipam": ipam }))],
        vec![bridge.clone(), ("tuning", tuning)],
        vec![bridge, ("sbr", json!({}))],
    ]
}

fn spare_cable(node: &Node) {
    if !node.stage.host.link_names().contains(&"up0".to_owned()) {
        node.stage.host.ip("link add up0 type veth peer name up1");
        node.stage.host.ip("link set up1 up");
    }
    node.stage.host.ip("link set up0 up");
}

/// ADD by the one, CHECK and DEL by the other, both ways round: nothing is left of the pod.
#[test]
fn either_finishes_what_the_other_began() {
    for node in nodes().into_iter().filter(|node| node.filter == Filter::Nft) {
        for list in plain_lists(&node) {
            for ours_adds in [false, true] {
                let names: Vec<&str> = list.iter().map(|(plugin, _)| *plugin).collect();
                let what = format!("{names:?} {}, ours adds: {ours_adds}", node.reference.display());
                let pod = Pod::new("c1");
                let pod = if names == ["loopback"] { Pod { ifname: "lo", ..pod } } else { pod };
                spare_cable(&node);
                let call = |ours: bool, plugin: &str, command: &str, config: &Value| {
                    let reply = match ours {
                        true => node.ours(&pod, plugin, command, config),
                        false => node.reference(&pod, plugin, command, config),
                    };
                    assert_eq!(reply.exit, Some(0), "{what}: {command} {plugin}: {reply:?}");
                    reply
                };
                let mut configs: Vec<(&str, Value)> = Vec::new();
                let mut result = Value::Null;
                for (plugin, more) in &list {
                    let mut config = node.stage.config(plugin, "1.0.0", more);
                    if !result.is_null() {
                        config["prevResult"] = result.clone();
                    }
                    result = call(ours_adds, plugin, "ADD", &config).json();
                    configs.push((plugin, config));
                }
                for (_, config) in &mut configs {
                    config["prevResult"] = result.clone();
                }
                for (plugin, config) in &configs {
                    // Behind sbr the reference's bridge does not find the gateway, whoever made it.
                    if !(ours_adds && *plugin == "bridge" && names.contains(&"sbr")) {
                        call(!ours_adds, plugin, "CHECK", config);
                    }
                }
                for (plugin, config) in configs.iter().rev() {
                    call(!ours_adds, plugin, "DEL", config);
                }
                let left = node.left();
                let of_pod =
                    |line: &&String| ["address", "link veth"].iter().any(|what| line.starts_with(what));
                assert_eq!(left.iter().find(of_pod), None, "{what}");
                assert_eq!(pod.namespace.link_names(), [""; 0], "{what}");
                assert!(left.contains("link up0"), "{what}: {left:?}");
                let backups = std::fs::read_dir(node.stage.data.path().join("tuning"));
                assert!(backups.map_or(0, Iterator::count) == 0, "{what}: a backup is left");
            }
        }
    }
}
