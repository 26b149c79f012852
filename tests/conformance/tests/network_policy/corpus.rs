//! Cases of a corpus, schema 1: a cluster, policies, steps, and a table of verdicts for each.
//!
//! Read [`play`]. A case is one JSON object. Its tables have a row for each source and a character for each destination:
//! `.` allowed, `X` denied, anything else undefined or impossible and not asked.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cluster::{
    ContainerPort, Key, Labels, Namespace, NamespacedName, Node, Phase, Pod, Protocol, ResolvedName,
};
use ipnet::IpNet;
use policy::{Flow, Traffic};
use serde_json::Value;

use crate::world::World;

/// Plays a case. Returns how many verdicts were asked, or the first that are wrong.
pub(crate) fn play(case: &Value) -> Result<usize, String> {
    let mut game = Game { case, world: World::new() };
    game.begin();
    let mut asked = 0;
    if let Some(expected) = case.get("expected") {
        asked += game.ask(expected, case.get("service_expected"), "at first")?;
    }
    for (number, step) in list(&case["steps"]).enumerate() {
        list(&step["apply"]).for_each(|action| game.act(action));
        asked +=
            game.ask(&step["expected"], step.get("service_expected"), &format!("after step {number}"))?;
    }
    Ok(asked)
}

struct Game<'c> {
    case: &'c Value,
    world: World,
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn labels(value: &Value) -> Labels {
    value.as_object().into_iter().flatten().map(|(key, value)| (key.as_str(), text(value))).collect()
}

fn protocol(value: &Value) -> Protocol {
    match value.as_str() {
        None | Some("TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        Some(other) => panic!("protocol {other}"),
    }
}

fn number(value: &Value) -> u16 {
    value
        .as_u64()
        .and_then(|number| u16::try_from(number).ok())
        .unwrap_or_else(|| panic!("{value} is no port"))
}

fn named(value: &Value) -> NamespacedName {
    NamespacedName::new(text(&value["ns"]), text(&value["name"]))
}

impl Game<'_> {
    fn begin(&mut self) {
        let case = self.case;
        for (name, namespace) in case["namespaces"].as_object().into_iter().flatten() {
            self.namespace(name, &namespace["labels"]);
        }
        for node in list(&case["nodes"]) {
            let name = text(&node["name"]);
            let addresses = self.addresses(&format!("node/{name}"), node).into();
            self.world.set(Node { labels: labels(&node["labels"]), addresses, ..Node::named(name) });
        }
        list(&case["pods"]).for_each(|pod| self.pod(pod));
        for (name, addresses) in case["dns"].as_object().into_iter().flatten() {
            let addresses = list(addresses).map(|address| text(address).parse().unwrap()).collect();
            self.world.resolve(&ResolvedName { name: name.as_str().into(), addresses });
        }
        for policy in list(&case["policies"]).chain(list(&case["cluster_policies"])) {
            self.policy(policy);
        }
    }

    fn namespace(&mut self, name: &str, given: &Value) {
        self.world.set(Namespace { name: name.into(), labels: labels(given) });
    }

    fn addresses(&self, id: &str, object: &Value) -> Vec<IpAddr> {
        let planned = &self.case["ips"][id];
        let own = if planned.is_null() { &object["ips"] } else { planned };
        let several = list(own).chain(Some(own).filter(|one| one.is_string()));
        several.map(|address| text(address).parse().unwrap()).collect()
    }

    fn pod(&mut self, given: &Value) {
        let name = named(given);
        let port = |port: &Value| ContainerPort {
            name: port["name"].as_str().map(Box::from),
            port: number(&port["port"]),
            protocol: protocol(&port["protocol"]),
            host_port: None,
            host_address: None,
        };
        let node = given["node"].as_str().unwrap_or(self.world.next_node());
        let pod = Pod {
            labels: labels(&given["labels"]),
            node: Some(node.into()),
            host_network: given["hostNetwork"].as_bool().unwrap_or(false),
            ports: list(&given["ports"]).map(port).collect(),
            phase: Phase::Running,
            addresses: self.addresses(&name.to_string(), given).into(),
            ..Pod::named(name)
        };
        self.world.set(pod);
    }

    fn policy(&mut self, policy: &Value) {
        let manifest = self.filled(&policy.to_string());
        let objects =
            store::read_manifest("case", manifest.as_bytes()).unwrap_or_else(|faults| panic!("{faults:?}"));
        assert_eq!(objects.len(), 1, "{manifest}");
        objects.into_iter().for_each(|object| self.world.set(object));
    }

    fn change_pod(&mut self, pod: &Value, change: impl FnOnce(&mut Pod)) {
        let mut changed = self.world.pod(&named(pod));
        change(&mut changed);
        self.world.set(changed);
    }

    fn act(&mut self, action: &Value) {
        let entries = action.as_object().into_iter().flatten();
        for (what, value) in entries.filter(|(what, _)| *what != "comment") {
            match what.as_str() {
                "create_policy" | "update_policy" | "create_cluster_policy" | "update_cluster_policy" => {
                    self.policy(value);
                }
                "delete_policy" => self.world.remove(Key::NetworkPolicy(named(value))),
                "delete_cluster_policy" => {
                    self.world.remove(Key::ClusterNetworkPolicy(text(&value["name"]).into()));
                }
                "create_namespace" | "set_namespace_labels" => {
                    self.namespace(text(&value["name"]), &value["labels"]);
                }
                "delete_namespace" => self.delete_namespace(text(&value["name"])),
                "create_pod" => self.pod(value),
                "delete_pod" => self.world.remove(Key::Pod(named(value))),
                "set_pod_labels" => self.change_pod(value, |pod| pod.labels = labels(&value["labels"])),
                "set_pod_terminating" => self.change_pod(value, |pod| pod.terminating = true),
                "set_pod_phase" => self.change_pod(value, |pod| {
                    pod.phase = match text(&value["phase"]) {
                        "Succeeded" => Phase::Succeeded,
                        "Failed" => Phase::Failed,
                        "Running" => Phase::Running,
                        other => panic!("phase {other}"),
                    };
                }),
                "restart_agent" | "wait" | "noop" => {}
                other => panic!("action {other}"),
            }
        }
    }

    fn delete_namespace(&mut self, name: &str) {
        let snapshot = self.world.snapshot();
        let pods = snapshot.pods.keys().cloned().map(Key::Pod);
        let policies = snapshot.network_policies.keys().cloned().map(Key::NetworkPolicy);
        let inside = |key: &Key| match key {
            Key::Pod(inner) | Key::NetworkPolicy(inner) => &*inner.namespace == name,
            _ => false,
        };
        let gone: Vec<Key> = pods.chain(policies).filter(inside).collect();
        gone.into_iter().for_each(|key| self.world.remove(key));
        self.world.remove(Key::Namespace(name.into()));
    }

    fn ask(&self, expected: &Value, services: Option<&Value>, when: &str) -> Result<usize, String> {
        let ids: Vec<&str> = list(&self.case["order"]).map(text).collect();
        let nodes = self.world.stand();
        let at = [false, true].map(|v6| ids.iter().map(|id| self.try_address(id, v6)).collect::<Vec<_>>());
        let mut asked = 0;
        for (target, rows) in expected.as_object().into_iter().flatten() {
            let mut parts = target.split('/');
            let traffic = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let traffic = Traffic::Port(protocol(&traffic.0.into()), traffic.1.parse().unwrap());
            let v6 = parts.next() == Some("v6");
            let at = &at[usize::from(v6)];
            for (source, from) in at.iter().zip(&ids) {
                for ((destination, to), wanted) in at.iter().zip(&ids).zip(text(&rows[from]).chars()) {
                    let wanted = match wanted {
                        '.' => true,
                        'X' => false,
                        _ => continue,
                    };
                    let (source, destination) = (source.unwrap(), destination.unwrap());
                    let flow = Flow { source, destination, traffic, through_service: false };
                    asked += 1;
                    if self.world.passes(&nodes, &flow) != wanted {
                        return Err(format!(
                            "{when}, {from} -> {to}: {}",
                            self.world.policies().explain(&flow)
                        ));
                    }
                }
            }
        }
        for probe in services.into_iter().flat_map(list) {
            asked += self.ask_service(&nodes, probe)?;
        }
        Ok(asked)
    }

    /// Every pod behind a Service must be reached, or none.
    fn ask_service(&self, nodes: &[crate::interpreter::Node], probe: &Value) -> Result<usize, String> {
        let wanted = match text(&probe["expected"]) {
            "." => true,
            "X" => false,
            _ => return Ok(0),
        };
        let is_it = |service: &&Value| named(service).to_string() == text(&probe["service"]);
        let service = list(&self.case["services"]).find(is_it).unwrap();
        let is_port = |port: &&Value| {
            port["port"] == probe["port"] && protocol(&port["protocol"]) == protocol(&probe["protocol"])
        };
        let port = list(&service["ports"]).find(is_port).unwrap();
        let wanted_protocol = protocol(&port["protocol"]);
        let selector = labels(&service["selector"]);
        let mut asked = 0;
        for pod in self.world.snapshot().pods.values() {
            if *pod.name.namespace != *text(&service["ns"]) || !pod.labels.contains_all(&selector) {
                continue;
            }
            let target = match &port["targetPort"] {
                Value::Null => Some(number(&port["port"])),
                Value::String(name) => pod
                    .ports
                    .iter()
                    .find(|port| port.name.as_deref() == Some(name) && port.protocol == wanted_protocol)
                    .map(|port| port.port),
                given => Some(number(given)),
            };
            let Some(target) = target else { continue };
            let v6 = probe["family"].as_str() == Some("v6");
            let flow = Flow {
                source: self.address(text(&probe["from"]), v6),
                destination: self.address(&pod.name.to_string(), v6),
                traffic: Traffic::Port(wanted_protocol, target),
                through_service: true,
            };
            asked += 1;
            if self.world.passes(nodes, &flow) != wanted {
                return Err(format!("through a Service: {}", self.world.policies().explain(&flow)));
            }
        }
        Ok(asked)
    }

    fn try_address(&self, id: &str, v6: bool) -> Option<IpAddr> {
        let own = self.addresses(id, self.object(id));
        own.into_iter().find(|address| address.is_ipv6() == v6)
    }

    fn address(&self, id: &str, v6: bool) -> IpAddr {
        self.try_address(id, v6).unwrap_or_else(|| panic!("no address of {id}"))
    }

    /// What the case says of a node, an outside end or a pod, whose address may stand there.
    fn object(&self, id: &str) -> &Value {
        let kinds = BTreeMap::from([("node", "nodes"), ("ext", "externals")]);
        let (head, name) = id.split_once('/').unwrap();
        let found = kinds
            .get(head)
            .and_then(|kind| list(&self.case[kind]).find(|object| object["name"].as_str() == Some(name)));
        found.unwrap_or(&Value::Null)
    }

    /// A manifest with its placeholders replaced by addresses.
    fn filled(&self, manifest: &str) -> String {
        let mut filled = String::new();
        let mut rest = manifest;
        while let Some((head, tail)) = rest.split_once("{{") {
            let (tag, tail) = tail.split_once("}}").unwrap();
            let digits =
                tail.strip_prefix('/').map_or(0, |tail| tail.bytes().take_while(u8::is_ascii_digit).count());
            let (length, tail) = if digits > 0 { tail.split_at(digits + 1) } else { ("", tail) };
            filled.push_str(head);
            filled.push_str(&self.replaced(tag, length));
            rest = tail;
        }
        filled + rest
    }

    fn replaced(&self, tag: &str, length: &str) -> String {
        let (word, argument) = tag.split_once(':').unwrap_or((tag, ""));
        let own_family = self.case["family"].as_str() == Some("v6");
        let (word, v6) = match word.strip_suffix(['4', '6']) {
            Some(bare) => (bare, word.ends_with('6')),
            None => (word, own_family),
        };
        let network =
            |id: &str, length: u8| IpNet::new(self.address(id, v6), length).unwrap().trunc().to_string();
        match word {
            "any" if v6 => format!("::/0{length}"),
            "any" => format!("0.0.0.0/0{length}"),
            "podcidr" if v6 => {
                format!("{}{length}", self.case["podcidr6"].as_str().unwrap_or("fd00:10:244::/48"))
            }
            "podcidr" => format!("{}{length}", self.case["podcidr"].as_str().unwrap_or("10.244.0.0/16")),
            "ip" => {
                let length = if length == "/32" && v6 { "/128" } else { length };
                format!("{}{length}", self.address(argument, v6))
            }
            "block" | "prefix" => {
                let (id, bits) = argument.rsplit_once(':').unwrap();
                let bits: u8 = bits.parse().unwrap();
                let whole = if v6 { 128 } else { 32 };
                network(id, if word == "block" { whole - bits } else { bits })
            }
            other => panic!("placeholder {other}"),
        }
    }
}
