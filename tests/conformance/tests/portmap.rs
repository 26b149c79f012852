//! portmap: who reaches a pod through a port of its host. Behaviours 56 to 59; every way in, SCTP, conditions,
//! conflicts and kills stand with the plugin (`crates/plugins/tests/portmap`).
//!
//! The reference does it in iptables, so only what both can be asked is asked here: connections, results, errors.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use conformance::{Stage, Subject, ours, subjects};
use harness::talk::{Client, ask, is_deaf, serve};
use harness::{Namespace, Reply, eventually, run_ok};
use serde_json::{Value, json};

/// A stage with somebody outside, and a network `test` of bridge and portmap.
struct Scene<'a> {
    stage: Stage,
    outside: Namespace,
    subject: &'a Subject,
}

struct Pod {
    namespace: Namespace,
    container: &'static str,
    network: &'static str,
    result: Value,
}

impl<'a> Scene<'a> {
    fn new(subject: &'a Subject) -> Self {
        let stage = Stage::new();
        let outside = Namespace::with_loopback();
        let path = outside.path();
        let pid = path.iter().nth(2).unwrap().to_str().unwrap();
        stage.host.ip(&format!("link add up0 type veth peer name up0 netns {pid}"));
        for (namespace, last) in [(&stage.host, 1), (&outside, 9)] {
            namespace.ip("link set up0 up");
            namespace.ip(&format!("address add 192.0.2.{last}/24 dev up0"));
            namespace.ip(&format!("address add 2001:db8:9::{last}/64 dev up0 nodad"));
        }
        Self { stage, outside, subject }
    }

    fn host(&self) -> &Namespace {
        &self.stage.host
    }

    fn bridge(&self, network: &str) -> Value {
        let ipam = match network {
            "test" => self.stage.ipam(&["10.1.2.0/24", "2001:db8:42::/64"]),
            _ => self.stage.ipam(&["10.1.3.0/24"]),
        };
        json!({
            "cniVersion": "1.0.0", "name": network, "type": "bridge", "bridge": format!("br-{network}"),
            "isDefaultGateway": true, "hairpinMode": true, "ipam": ipam,
        })
    }

    fn pod(&self, network: &'static str, container: &'static str) -> Pod {
        let namespace = Namespace::new();
        let mut call = self.stage.call(self.subject, "bridge", container);
        call.netns = namespace.path();
        let result = call.add(&self.bridge(network));
        Pod { namespace, container, network, result }
    }

    fn pod_with(&self, container: &'static str, mappings: Value) -> Pod {
        let pod = self.pod("test", container);
        self.map(&pod, "ADD", mappings, json!({})).expect_success(self.subject.name);
        pod
    }

    fn map(&self, pod: &Pod, command: &str, mappings: Value, more: Value) -> Reply {
        let mut config = json!({
            "cniVersion": "1.0.0", "name": pod.network, "type": "portmap", "prevResult": pod.result,
            "runtimeConfig": { "portMappings": mappings },
        });
        for (key, value) in more.as_object().unwrap() {
            if value.is_null() {
                config.as_object_mut().unwrap().remove(key);
            } else {
                config[key] = value.clone();
            }
        }
        let mut call = self.stage.call(self.subject, "portmap", pod.container);
        call.netns = pod.namespace.path();
        call.run(command, &config)
    }

    /// DEL of the chain, the last plugin first.
    fn delete(&self, pod: &Pod, mappings: Value) {
        self.map(pod, "DEL", mappings, json!({})).expect_success(self.subject.name);
        let mut call = self.stage.call(self.subject, "bridge", pod.container);
        call.netns = pod.namespace.path();
        call.del(&self.bridge(pod.network));
    }

    /// All rules of iptables and nf_tables that have to do with this text.
    fn rules(&self, text: &str) -> Vec<String> {
        let mut listed = run_ok(self.host().command("nft").args(["list", "ruleset"]));
        if self.subject.is_reference() {
            listed.push_str(&run_ok(&mut self.host().command("iptables-save")));
        }
        listed.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }
}

fn ports(list: &[(u16, u16, &str)]) -> Value {
    list.iter()
        .map(|(host, container, protocol)| {
            json!({ "hostPort": host, "containerPort": container, "protocol": protocol })
        })
        .collect()
}

// 56
#[test]
fn the_known_mappings_lead_where_they_should_and_check_is_content() {
    for subject in subjects() {
        let scene = Scene::new(&subject);
        scene.host().ip("address add 192.168.0.2/24 dev up0");
        scene.host().ip("address add 2001:db8:a::1/64 dev up0 nodad");
        scene.outside.ip("address add 192.168.0.9/24 dev up0");
        scene.outside.ip("address add 2001:db8:a::9/64 dev up0 nodad");
        let mut known = ports(&[(8080, 80, "tcp"), (8081, 80, "tcp"), (8080, 81, "udp"), (8082, 82, "udp")]);
        for (port, address) in [(83, "192.168.0.2"), (84, "0.0.0.0"), (85, "2001:db8:a::1"), (86, "::")] {
            known.as_array_mut().unwrap().push(json!(
                { "hostPort": 8000 + port, "containerPort": port, "protocol": "tcp", "hostIP": address }
            ));
        }
        let pod = scene.pod_with("icee6giejonei6so", known.clone());
        for port in [80, 81, 82, 83, 84, 85, 86] {
            serve(&pod.namespace, port, ["80", "81", "82", "83", "84", "85", "86"][usize::from(port - 80)]);
        }
        eventually("the IPv6 gateway", || pod.namespace.pings("2001:db8:42::1").then_some(()));
        let name = subject.name;
        let said = |address: &str, port: u16| {
            ask(&scene.outside, address, port).map(|text| text.split_once(' ').unwrap().0.to_owned())
        };
        for (address, port, word) in [
            ("192.0.2.1", 8080, "80"),
            ("2001:db8:9::1", 8081, "80"),
            ("192.168.0.2", 8083, "83"),
            ("192.0.2.1", 8084, "84"),
            ("2001:db8:a::1", 8085, "85"),
            ("2001:db8:9::1", 8086, "86"),
        ] {
            assert_eq!(said(address, port).as_deref(), Some(word), "{name}: {address} {port}");
        }
        for (address, port) in [("192.0.2.1", 8083), ("2001:db8:9::1", 8084), ("192.0.2.1", 8086)] {
            assert!(is_deaf(&scene.outside, address, port), "{name}: {address} {port}");
        }
        assert!(Client::new(&scene.outside, "192.0.2.1", 8080).ask().starts_with("81 "), "{name}");
        assert!(Client::new(&scene.outside, "2001:db8:9::1", 8082).ask().starts_with("82 "), "{name}");
        // Debian's reference looks for the rules of IPv4 among those of IPv6, too, and never finds them.
        if !subject.is_reference() {
            scene.map(&pod, "CHECK", known.clone(), json!({})).expect_success(name);
            // One rule for all of them, and an element with its owner for each.
            assert_eq!(scene.rules("map @hostports4 ").len(), 1);
            assert_eq!(scene.rules("comment \"fairlead:test/icee6giejonei6so/eth0\" : ").len(), 12);
        }
        scene.delete(&pod, known);
        assert_eq!(scene.rules("icee6giejonei6so"), [""; 0], "{name}");
    }
}

// 57
#[test]
fn a_host_port_is_reached_from_outside_the_host_the_pod_and_another_pod() {
    for subject in subjects() {
        let scene = Scene::new(&subject);
        let mappings = ports(&[(8080, 80, "tcp"), (8080, 80, "udp")]);
        let pod = scene.pod_with("c1", mappings);
        let other = scene.pod("test", "c2");
        serve(&pod.namespace, 80, "c1");
        for (from, address, seen) in [
            (&scene.outside, "192.0.2.1", "c1 192.0.2.9"),
            (scene.host(), "127.0.0.1", "c1 10.1.2.1"),
            (scene.host(), "192.0.2.1", "c1 192.0.2.1"),
            (&pod.namespace, "192.0.2.1", "c1 10.1.2.1"),
            (&other.namespace, "192.0.2.1", "c1 10.1.2.1"),
        ] {
            assert_eq!(ask(from, address, 8080).as_deref(), Some(seen), "{}: {address}", subject.name);
            assert_eq!(Client::new(from, address, 8080).ask(), seen, "{}: UDP {address}", subject.name);
        }
    }
}

// 57
#[test]
fn a_udp_client_reaches_the_next_pod() {
    for subject in subjects() {
        let scene = Scene::new(&subject);
        let mappings = ports(&[(8053, 53, "udp")]);
        let first = scene.pod_with("c1", mappings.clone());
        serve(&first.namespace, 53, "first");
        let client = Client::new(&scene.outside, "192.0.2.1", 8053);
        assert_eq!(client.ask(), "first 192.0.2.9", "{}", subject.name);
        scene.delete(&first, mappings.clone());
        let second = scene.pod_with("c2", mappings);
        serve(&second.namespace, 53, "second");
        assert_eq!(client.ask(), "second 192.0.2.9", "{}", subject.name);
    }
}

/// P#1190: the port goes from a pod to a process of the host, without an ADD.
#[test]
fn a_udp_client_reaches_the_host_when_the_pod_is_gone() {
    for subject in subjects() {
        let scene = Scene::new(&subject);
        let mappings = ports(&[(8053, 53, "udp")]);
        let pod = scene.pod_with("c1", mappings.clone());
        serve(&pod.namespace, 53, "pod");
        let client = Client::new(&scene.outside, "192.0.2.1", 8053);
        assert_eq!(client.ask(), "pod 192.0.2.9", "{}", subject.name);
        scene.delete(&pod, mappings);
        serve(scene.host(), 8053, "host");
        if subject.is_reference() {
            // The old flow lives on as long as the client does.
            assert_eq!(client.try_ask(), None);
        } else {
            assert_eq!(client.ask(), "host 192.0.2.9");
        }
    }
}

// 58
#[test]
fn more_than_fifteen_ports_of_one_protocol_are_no_matter() {
    for subject in subjects() {
        let scene = Scene::new(&subject);
        let list: Vec<(u16, u16, &str)> = (0..40).map(|number| (8000 + number, 80, "tcp")).collect();
        let pod = scene.pod("two", "c1");
        scene.map(&pod, "ADD", ports(&list), json!({})).expect_success(subject.name);
        serve(&pod.namespace, 80, "c1");
        for port in [8000, 8015, 8039] {
            let said = ask(&scene.outside, "192.0.2.1", port);
            assert_eq!(said.as_deref(), Some("c1 192.0.2.9"), "{}: {port}", subject.name);
        }
        if !subject.is_reference() {
            scene.map(&pod, "CHECK", ports(&list), json!({})).expect_success(subject.name);
        }
        scene.delete(&pod, ports(&list));
        assert!(is_deaf(&scene.outside, "192.0.2.1", 8015), "{}", subject.name);
    }
}

// 58
#[test]
fn what_cannot_be_is_refused_in_the_same_words() {
    for subject in subjects() {
        let scene = Scene::new(&subject);
        let pod = scene.pod("test", "c1");
        let one = |host: i64, container: i64| json!([{ "hostPort": host, "containerPort": container, "protocol": "tcp" }]);
        let chain = json!({ "markMasqBit": 5, "externalSetMarkChain": "X" });
        for (mappings, more, words) in [
            (one(0, 80), json!({}), "Invalid host port number: 0"),
            (one(-1, 80), json!({}), "Invalid host port number: -1"),
            (one(8080, 0), json!({}), "Invalid container port number: 0"),
            (one(8080, 80), json!({ "markMasqBit": 32 }), "MasqMarkBit must be between 0 and 31"),
            (one(8080, 80), chain, "Cannot specify externalSetMarkChain and markMasqBit"),
            (one(8080, 80), json!({ "prevResult": null }), "must be called as chained plugin"),
        ] {
            let reply = scene.map(&pod, "ADD", mappings, more);
            assert!(reply.error_text().contains(words), "{}: {reply:?}", subject.name);
            assert_eq!(scene.rules("8080"), [""; 0], "{}", subject.name);
        }
        let reply = scene.map(&pod, "ADD", one(65536, 80), json!({}));
        assert_ne!(reply.exit, Some(0), "{}", subject.name);
        if !subject.is_reference() {
            assert!(reply.error_text().contains("Invalid host port number: 65536"), "{reply:?}");
        }
    }
}

// 58, of what Debian's reference is too old for
#[test]
fn a_backend_and_the_other_ones_options_exclude_each_other() {
    let subject = ours();
    let scene = Scene::new(&subject);
    let pod = scene.pod("test", "c1");
    for (more, words) in [
        (
            json!({ "backend": "nftables", "conditionsV4": ["-s", "10.0.0.0/8"] }),
            "nftables backend was requested but configuration contains iptables-specific options [conditionsV4]",
        ),
        (
            json!({ "backend": "iptables", "conditionsV6": ["ip6", "saddr", "::2"] }),
            "iptables backend was requested but configuration contains nftables-specific options [conditionsV6]",
        ),
        (json!({ "backend": "x" }), "unrecognized backend \"x\""),
    ] {
        let reply = scene.map(&pod, "ADD", ports(&[(8080, 80, "tcp")]), more);
        assert!(reply.error_text().contains(words), "{reply:?}");
    }
}

// 58
#[test]
fn without_mappings_the_result_passes_and_nothing_is_touched() {
    for subject in subjects() {
        let scene = Scene::new(&subject);
        let pod = scene.pod("test", "c1");
        for command in ["ADD", "CHECK", "DEL"] {
            let reply = scene.map(&pod, command, json!([]), json!({}));
            let result = reply.expect_success(subject.name);
            if command == "ADD" {
                assert_eq!(result["ips"], pod.result["ips"], "{}", subject.name);
                assert_eq!(result["interfaces"], pod.result["interfaces"], "{}", subject.name);
            }
        }
        assert_eq!(scene.rules(""), [""; 0], "{}", subject.name);
    }
}

// 58
#[test]
fn an_address_without_an_interface_counts() {
    for subject in subjects() {
        let scene = Scene::new(&subject);
        let mut pod = scene.pod("test", "c1");
        for ip in pod.result["ips"].as_array_mut().unwrap() {
            ip.as_object_mut().unwrap().remove("interface");
        }
        scene.map(&pod, "ADD", ports(&[(8080, 80, "tcp")]), json!({})).expect_success(subject.name);
        serve(&pod.namespace, 80, "c1");
        let said = ask(&scene.outside, "192.0.2.1", 8080);
        assert_eq!(said.as_deref(), Some("c1 192.0.2.9"), "{}", subject.name);
    }
}

// 59
#[test]
fn the_other_network_of_a_container_keeps_its_ports() {
    for subject in subjects() {
        let scene = Scene::new(&subject);
        let pods = ["test", "two"].map(|network| scene.pod(network, "c1"));
        for (pod, port) in pods.iter().zip([8081, 8082]) {
            scene.map(pod, "ADD", ports(&[(port, 80, "tcp")]), json!({})).expect_success(subject.name);
            serve(&pod.namespace, 80, pod.network);
        }
        scene.delete(&pods[0], ports(&[(8081, 80, "tcp")]));
        assert!(is_deaf(&scene.outside, "192.0.2.1", 8081), "{}", subject.name);
        let said = ask(&scene.outside, "192.0.2.1", 8082);
        assert_eq!(said.as_deref(), Some("two 192.0.2.9"), "{}", subject.name);
    }
}

// 59
#[test]
fn a_del_that_was_not_told_the_ports_still_frees_them() {
    for subject in subjects() {
        let scene = Scene::new(&subject);
        let pod = scene.pod_with("forgotten", ports(&[(8080, 80, "tcp")]));
        scene.delete(&pod, json!([]));
        // The reference returns at once, and its rules stay for ever.
        assert_eq!(scene.rules("forgotten").is_empty(), !subject.is_reference(), "{}", subject.name);
    }
}

/// Two containers, one port: the reference appends a rule behind the first one's, which wins in silence.
#[test]
fn a_port_that_is_taken_is_shadowed_by_the_reference_and_refused_by_us() {
    for subject in subjects() {
        let scene = Scene::new(&subject);
        let first = scene.pod_with("first", ports(&[(8080, 80, "tcp")]));
        serve(&first.namespace, 80, "first");
        let second = scene.pod("test", "second");
        let reply = scene.map(&second, "ADD", ports(&[(8080, 80, "tcp")]), json!({}));
        if subject.is_reference() {
            reply.expect_success("ADD");
        } else {
            assert!(reply.error_text().contains("8080/tcp is taken by test/first/eth0"), "{reply:?}");
        }
        let said = ask(&scene.outside, "192.0.2.1", 8080);
        assert_eq!(said.as_deref(), Some("first 192.0.2.9"), "{}", subject.name);
    }
}
