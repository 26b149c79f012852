//! Objects as Kubernetes JSON, so that reading gives the same object back.
//!
//! The same object gives the same bytes: what stands in an object's file is also what its version is a
//! digest of.

mod policy;

use cluster::{
    Backend, Claim, ContainerPort, Endpoint, EndpointSlice, Flannel, Labels, Lease, NamespacedName, Node,
    Object, Pod, PodStatus, Service, TargetPort, WireGuardKey,
};
use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::OWN_API;
use super::core::{ADVERTISE, NOT_READY};
use super::own::{MEMBER, OVERWRITTEN, TOLD};
use super::service::SERVICE_NAME;

/// The object's own file: one JSON object, a line break at the end.
pub(crate) fn encode(object: &Object) -> Vec<u8> {
    let value = value_of(object);
    // A value built here cannot fail to print: its keys are text and its numbers finite.
    let mut text = format!("{value:#}").into_bytes();
    text.push(b'\n');
    text
}

/// Several objects as one file: a List.
pub(crate) fn encode_list<'o>(objects: impl Iterator<Item = &'o Object>) -> Vec<u8> {
    let items: Value = objects.map(value_of).collect();
    format!("{:#}\n", json!({"apiVersion": "v1", "kind": "List", "items": items})).into_bytes()
}

/// What a lease says, on one line and without its node's name: an annotation's text.
pub(crate) fn encode_spec(lease: &Lease) -> String {
    without_nothing(of_lease(lease)["spec"].take()).to_string()
}

fn value_of(object: &Object) -> Value {
    without_nothing(match object {
        // An empty selector is not nothing.
        Object::NetworkPolicy(policy) => return policy::of_network_policy(policy),
        Object::ClusterNetworkPolicy(policy) => return policy::of_cluster_network_policy(policy),
        Object::Node(node) => of_node(node),
        Object::Namespace(namespace) => json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": *namespace.name, "labels": of_labels(&namespace.labels)},
        }),
        Object::Pod(pod) => of_pod(pod),
        Object::PodStatus(status) => of_pod_status(status),
        Object::Service(service) => of_service(service),
        Object::EndpointSlice(slice) => of_endpoint_slice(slice),
        Object::ServiceCidr(networks) => json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": *networks.name}, "spec": {"cidrs": texts(&networks.cidrs)},
        }),
        Object::Lease(lease) => of_lease(lease),
        Object::Claim(claim) => of_claim(claim),
    })
}

fn of_node(node: &Node) -> Value {
    let address = |address: &std::net::IpAddr| json!({"type": "InternalIP", "address": address});
    // Taint or condition is not kept apart; the taint stands for both.
    let taint = node.awaits_network.then(|| json!({"key": NOT_READY, "effect": "NoSchedule"}));
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": *node.name, "labels": of_labels(&node.labels), "annotations": {ADVERTISE: node.advertise},
        },
        "spec": {
            "podCIDR": node.pod_cidrs.first().map(ToString::to_string), "podCIDRs": texts(&node.pod_cidrs),
            "taints": taint.into_iter().collect::<Value>(),
        },
        "status": {"addresses": node.addresses.iter().map(address).collect::<Value>()},
    })
}

fn of_pod(pod: &Pod) -> Value {
    let mut metadata = of_name(&pod.name, &pod.labels);
    metadata["annotations"] = of_labels(&pod.annotations);
    if let Some(uid) = &pod.uid {
        metadata["uid"] = json!(uid);
    }
    // When it is to end is not kept.
    metadata["deletionTimestamp"] = pod.terminating.then_some("1970-01-01T00:00:00Z").into();
    // Which container a port belongs to is not kept; one stands for all.
    let containers = if pod.ports.is_empty() {
        Value::Null
    } else {
        json!([{"name": "ports", "ports": pod.ports.iter().map(of_container_port).collect::<Value>()}])
    };
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {
            "nodeName": pod.node.as_deref(), "hostNetwork": pod.host_network.then_some(true), "containers": containers,
        },
        "status": {
            "phase": pod.phase.as_str(),
            "podIP": pod.addresses.first(),
            "podIPs": pod.addresses.iter().map(|address| json!({"ip": address})).collect::<Value>(),
        },
    })
}

fn of_container_port(port: &ContainerPort) -> Value {
    json!({
        "name": port.name.as_deref(), "containerPort": port.port, "protocol": port.protocol.as_str(),
        "hostPort": port.host_port, "hostIP": port.host_address,
    })
}

fn of_pod_status(status: &PodStatus) -> Value {
    json!({
        "apiVersion": OWN_API, "kind": "PodStatus",
        "metadata": of_name(&status.pod, &Labels::default()),
        "status": {
            "nodeName": status.node.as_deref(), "phase": status.phase.as_str(), "addresses": texts(&status.addresses),
        },
    })
}

fn of_service(service: &Service) -> Value {
    let ports = service.ports.iter().map(|port| {
        let target = match &port.target {
            TargetPort::Number(number) => json!(number),
            TargetPort::Name(name) => json!(name),
        };
        json!({
            "name": port.name.as_deref(), "protocol": port.protocol.as_str(), "port": port.port, "targetPort": target,
            "nodePort": port.node_port,
        })
    });
    let single = service.cluster_addresses.first().map(ToString::to_string);
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": of_name(&service.name, &service.labels),
        "spec": {
            "type": service.service_type.as_str(),
            "selector": of_labels(&service.selector),
            "clusterIP": if service.headless { Some("None".to_owned()) } else { single },
            "clusterIPs": texts(&service.cluster_addresses),
            "ports": ports.collect::<Value>(),
            "externalName": service.external_name.as_deref(),
        },
    })
}

fn of_endpoint_slice(slice: &EndpointSlice) -> Value {
    let first = slice.endpoints.iter().find_map(|endpoint| endpoint.addresses.first());
    let ports = slice.ports.iter();
    let port = ports.map(
        |port| json!({"name": port.name.as_deref(), "protocol": port.protocol.as_str(), "port": port.port}),
    );
    let mut metadata = of_name(&slice.name, &slice.labels);
    if let Some(service) = &slice.service {
        metadata["labels"][SERVICE_NAME] = json!(**service);
    }
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata,
        "addressType": if first.is_some_and(std::net::IpAddr::is_ipv6) { "IPv6" } else { "IPv4" },
        "endpoints": slice.endpoints.iter().map(of_endpoint).collect::<Value>(),
        "ports": port.collect::<Value>(),
    })
}

fn of_endpoint(endpoint: &Endpoint) -> Value {
    json!({
        "addresses": texts(&endpoint.addresses),
        "conditions": {"ready": endpoint.ready, "serving": endpoint.serving, "terminating": endpoint.terminating},
        "nodeName": endpoint.node.as_deref(),
        "targetRef": endpoint.pod.as_deref().map(|name| json!({"kind": "Pod", "name": name})),
    })
}

/// The first generation is what nodes have that know of none.
fn of_key(key: &WireGuardKey) -> Value {
    let mut value = json!({"port": key.port, "publicKey": key.public_key.to_string()});
    if key.generation > 0 {
        value["generation"] = json!(key.generation);
    }
    value
}

fn of_lease(lease: &Lease) -> Value {
    let backend = match &lease.backend {
        Backend::Vxlan { vni, port, mac } => {
            json!({"type": lease.backend.name(), "vni": vni, "port": port, "mac": mac.to_string()})
        }
        Backend::Udp { port } => json!({"type": lease.backend.name(), "port": port}),
        Backend::WireGuard { key, next, strict } => {
            let mut value = of_key(key);
            value["type"] = json!(lease.backend.name());
            if let Some(next) = next {
                value["next"] = of_key(next);
            }
            // Nodes of a version that knows no other are strict, and say nothing.
            if !strict {
                value["strict"] = json!(false);
            }
            value
        }
        Backend::HostGw | Backend::Ipip | Backend::None | Backend::Other(_) => {
            json!({"type": lease.backend.name()})
        }
    };
    let (current, retained): (Vec<IpNet>, Vec<IpNet>) =
        (lease.current().collect(), lease.retained().collect());
    let mut value = json!({
        "apiVersion": OWN_API, "kind": "NodeLease", "metadata": {"name": *lease.node},
        "spec": {
            "podCIDRs": texts(&current), "underlay": texts(&lease.underlay), "backend": backend, "mtu": lease.mtu,
        },
    });
    if !retained.is_empty() {
        value["spec"]["retainedPodCIDRs"] = json!(texts(&retained));
    }
    match lease.flannel {
        Flannel::Apart => {}
        Flannel::Told => value["spec"]["flannel"] = TOLD.into(),
        Flannel::Overwritten => value["spec"]["flannel"] = OVERWRITTEN.into(),
        Flannel::Member { mac_over_ipv6 } => {
            value["spec"]["flannel"] = MEMBER.into();
            value["spec"]["macOverIPv6"] = json!(mac_over_ipv6.map(|mac| mac.to_string()));
        }
    }
    value
}

fn of_claim(claim: &Claim) -> Value {
    json!({
        "apiVersion": OWN_API, "kind": "PodCIDRClaim",
        "spec": {"cidr": claim.cidr.to_string(), "node": *claim.node},
    })
}

fn of_name(name: &NamespacedName, labels: &Labels) -> Value {
    json!({"namespace": *name.namespace, "name": *name.name, "labels": of_labels(labels)})
}

fn of_labels(labels: &Labels) -> Value {
    labels.iter().map(|(key, value)| (key.to_owned(), Value::from(value))).collect::<Map<_, _>>().into()
}

fn texts<T: ToString>(values: &[T]) -> Value {
    values.iter().map(|value| Value::from(value.to_string())).collect()
}

/// Leaves out what is null or empty, as Kubernetes does.
fn without_nothing(value: Value) -> Value {
    let nothing = |value: &Value| match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(key, value)| (key, without_nothing(value)));
            fields.filter(|(_, value)| !nothing(value)).collect::<Map<_, _>>().into()
        }
        Value::Array(items) => items.into_iter().map(without_nothing).collect(),
        other => other,
    }
}
