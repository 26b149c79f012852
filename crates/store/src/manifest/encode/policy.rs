//! Policies as Kubernetes JSON. What could not be read stays what it was: it is written as a field of its own, which no
//! API has, so that reading it again opens no more than before.

use cluster::{
    AUDIT_ANNOTATION, ClusterNetworkPolicy, ClusterPeer, ClusterPeers, ClusterRule, Labels, NetworkPolicy,
    Peer, PodSelector, PortMatch, Rule, Selector,
};
use serde_json::{Value, json};

use super::{of_name, texts};
use crate::manifest::policy::UNREADABLE;

pub(super) fn of_network_policy(policy: &NetworkPolicy) -> Value {
    let types = [(&policy.ingress, "Ingress"), (&policy.egress, "Egress")];
    let types = types.into_iter().filter(|(rules, _)| rules.is_some()).map(|(_, name)| json!(name));
    let rules = |rules: &Option<Box<[Rule]>>, peers| {
        rules.iter().flatten().map(|rule| of_rule(rule, peers)).collect::<Value>()
    };
    let mut metadata = of_name(&policy.name, &Labels::default());
    if policy.audit {
        metadata["annotations"] = json!({AUDIT_ANNOTATION: "true"});
    }
    without_absent(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": metadata,
        "spec": {
            "podSelector": of_selector(&policy.subjects),
            "policyTypes": types.collect::<Value>(),
            "ingress": rules(&policy.ingress, "from"),
            "egress": rules(&policy.egress, "to"),
            UNREADABLE: texts(&policy.faults),
        },
    }))
}

fn of_rule(rule: &Rule, peers: &str) -> Value {
    json!({
        peers: rule.peers.iter().flatten().map(of_peer).collect::<Value>(),
        "ports": rule.ports.iter().flatten().map(of_port).collect::<Value>(),
    })
}

fn of_peer(peer: &Peer) -> Value {
    match peer {
        Peer::Pods { namespaces: None, pods } => json!({"podSelector": of_selector(pods)}),
        Peer::Pods { namespaces: Some(namespaces), pods } => {
            json!({"namespaceSelector": of_selector(namespaces), "podSelector": of_selector(pods)})
        }
        Peer::Block(block) => {
            json!({"ipBlock": {"cidr": block.cidr.to_string(), "except": texts(&block.except)}})
        }
        Peer::Unreadable(reason) => json!({UNREADABLE: reason}),
    }
}

fn of_port(port: &PortMatch) -> Value {
    match port {
        PortMatch::All(protocol) => json!({"protocol": protocol.as_str()}),
        PortMatch::Range(protocol, first, last) => {
            json!({"protocol": protocol.as_str(), "port": first, "endPort": (first != last).then_some(last)})
        }
        PortMatch::Named(protocol, name) => {
            json!({"protocol": protocol.map(cluster::Protocol::as_str), "port": name})
        }
        PortMatch::Unreadable(reason) => json!({UNREADABLE: reason}),
    }
}

/// A selector of everything is an empty one, and must stay one: the fields of nothing are left out.
fn of_selector(selector: &Selector) -> Value {
    let requirement = |requirement: &cluster::Requirement| {
        let values = requirement.values.iter().map(|value| json!(value)).collect::<Value>();
        json!({"key": requirement.key, "operator": requirement.operator.as_str(), "values": values})
    };
    json!({"matchExpressions": selector.requirements().iter().map(requirement).collect::<Value>()})
}

pub(super) fn of_cluster_network_policy(policy: &ClusterNetworkPolicy) -> Value {
    let rules = |rules: &[ClusterRule], peers| {
        rules.iter().map(|rule| of_cluster_rule(rule, peers)).collect::<Value>()
    };
    let annotations = policy.audit.then(|| json!({AUDIT_ANNOTATION: "true"}));
    without_absent(json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": *policy.name, "annotations": annotations},
        "spec": {
            "tier": policy.tier.as_str(), "priority": policy.priority,
            "subject": policy.subject.as_ref().map(of_pods),
            "ingress": rules(&policy.ingress, "from"),
            "egress": rules(&policy.egress, "to"),
            UNREADABLE: texts(&policy.faults),
        },
    }))
}

fn of_pods(selector: &PodSelector) -> Value {
    json!({"pods": {
        "namespaceSelector": of_selector(&selector.namespaces), "podSelector": of_selector(&selector.pods),
    }})
}

fn of_cluster_rule(rule: &ClusterRule, peers: &str) -> Value {
    let (listed, reason) = match &rule.peers {
        ClusterPeers::Any(listed) => (listed.iter().map(of_cluster_peer).collect::<Value>(), None),
        ClusterPeers::Unreadable(reason) => (Value::Null, Some(reason)),
    };
    json!({
        "name": Some(&rule.name).filter(|name| !name.is_empty()), "action": rule.action.as_str(), peers: listed,
        "protocols": rule.ports.iter().flatten().map(of_cluster_port).collect::<Value>(), UNREADABLE: reason,
    })
}

fn of_cluster_peer(peer: &ClusterPeer) -> Value {
    match peer {
        ClusterPeer::Pods(pods) => of_pods(pods),
        ClusterPeer::Nodes(nodes) => json!({"nodes": of_selector(nodes)}),
        ClusterPeer::Networks(networks) => json!({"networks": texts(networks)}),
        ClusterPeer::DomainNames(names) => json!({"domainNames": texts(names)}),
    }
}

fn of_cluster_port(port: &PortMatch) -> Value {
    let transport = |protocol: &cluster::Protocol, port: Value| json!({protocol.as_str().to_lowercase(): {"destinationPort": port}});
    match port {
        PortMatch::All(protocol) => transport(protocol, Value::Null),
        PortMatch::Range(protocol, first, last) if first == last => {
            transport(protocol, json!({"number": first}))
        }
        PortMatch::Range(protocol, first, last) => {
            transport(protocol, json!({"range": {"start": first, "end": last}}))
        }
        PortMatch::Named(_, name) => json!({"destinationNamedPort": name}),
        PortMatch::Unreadable(reason) => json!({UNREADABLE: reason}),
    }
}

/// Leaves out what is null and what is an empty list, but not what is an empty object.
fn without_absent(value: Value) -> Value {
    let absent = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(key, value)| (key, without_absent(value)));
            fields.filter(|(_, value)| !absent(value)).collect::<serde_json::Map<_, _>>().into()
        }
        Value::Array(items) => items.into_iter().map(without_absent).collect(),
        other => other,
    }
}
