//! The objects of a cluster of a size, as kubelets, agents and controllers write them.
//!
//! Read [`node`]: what a kubelet of a machine of a cloud says of it, with the lease of its agent; and [`pod`], one of a
//! Deployment. Everything is made of a number.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// A request: method, path and body.
pub(super) type Request = (&'static str, String, Value);

/// The annotation in which agents keep their leases.
pub(super) const LEASE: &str = "fairlead.io/lease";

/// The network of all pods: a /24 for each of a thousand nodes.
pub(super) const POD_NETWORK: &str = "10.244.0.0/14";

/// Where the nodes' machines are.
pub(super) const MACHINES: &str = "198.18.0.0/22";

/// Where the API server is.
pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 255, 254);

pub(super) fn node_name(number: usize) -> String {
    format!("ip-198-18-{}-{}.example.internal", number / 250, 1 + number % 250)
}

pub(super) fn pod_name(number: usize) -> String {
    format!("web-frontend-7c9d8b6f5-{number:05}")
}

/// The address of a node's machine.
pub(super) fn underlay_of(number: usize) -> Ipv4Addr {
    let [.., high, low] = (number / 250 * 256 + 1 + number % 250).to_be_bytes();
    Ipv4Addr::new(198, 18, high, low)
}

/// An address that no node has, for a change to be seen.
pub(super) fn mark(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 200, number)
}

fn pod_network(number: usize) -> String {
    format!("10.{}.{}.0/24", 244 + number / 256, number % 256)
}

/// The lease of a node's agent, in the form that the store gives it.
pub(super) fn lease(number: usize, underlay: Ipv4Addr) -> Value {
    let mac = format!("02:fa:00:00:{:02x}:{:02x}", number / 256, number % 256);
    json!({
        "podCIDRs": [pod_network(number)], "underlay": [underlay],
        "backend": {"type": "vxlan", "vni": 1, "port": 8472, "mac": mac}, "mtu": 1450,
    })
}

/// A Node of a kubelet; those of peers bear the lease of their agents.
pub(super) fn node(number: usize) -> Value {
    let name = node_name(number);
    let lease = lease(number, underlay_of(number)).to_string();
    let annotations = if number == super::OURS {
        json!({})
    } else {
        json!({LEASE: lease, "fairlead.io/agent-version": "0.1.0"})
    };
    let capacity = json!({
        "cpu": "16", "ephemeral-storage": "101430960Ki", "hugepages-1Gi": "0", "hugepages-2Mi": "0",
        "memory": "64589212Ki", "pods": "110",
    });
    let mut status = heartbeat(0)["status"].take();
    status["capacity"] = capacity.clone();
    status["allocatable"] = capacity;
    status["addresses"] = json!([
        {"type": "InternalIP", "address": underlay_of(number)}, {"type": "Hostname", "address": name},
    ]);
    status["daemonEndpoints"] = json!({"kubeletEndpoint": {"Port": 10250}});
    status["nodeInfo"] = json!({
        "architecture": "amd64", "bootID": uuid(number), "containerRuntimeVersion": "containerd://2.1.4",
        "kernelVersion": "6.12.43-cloud-amd64", "kubeProxyVersion": "", "kubeletVersion": "v1.36.0",
        "machineID": uuid(number), "operatingSystem": "linux", "osImage": "Debian GNU/Linux 13 (trixie)",
        "systemUUID": uuid(number),
    });
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "annotations": annotations, "labels": {
            "beta.kubernetes.io/arch": "amd64", "beta.kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux",
            "node.kubernetes.io/instance-type": "m5.4xlarge", "topology.kubernetes.io/region": "eu-central-1",
            "topology.kubernetes.io/zone": format!("eu-central-1{}", ["a", "b", "c"][number % 3]),
        }},
        "spec": {"podCIDR": pod_network(number), "podCIDRs": [pod_network(number)]},
        "status": status,
    })
}

/// What a kubelet says every so often: its conditions, with the time.
pub(super) fn heartbeat(count: usize) -> Value {
    let now = format!("2026-05-01T{:02}:{:02}:{:02}Z", 10 + count / 3600, count / 60 % 60, count % 60);
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": "2026-05-01T08:00:00Z",
        })
    };
    json!({"status": {"conditions": [
        condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    ]}})
}

/// A pod of a Deployment that is bound to a node.
pub(super) fn pod(number: usize, node: usize) -> Value {
    let labels = json!({"app": "web-frontend", "pod-template-hash": "7c9d8b6f5", "tier": "frontend"});
    let owner = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-frontend-7c9d8b6f5", "uid": uuid(1),
        "controller": true, "blockOwnerDeletion": true,
    });
    let probe = json!({"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 10});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": pod_name(number), "namespace": "default", "labels": labels, "ownerReferences": [owner],
        },
        "spec": {
            "nodeName": node_name(node), "serviceAccountName": "default", "priority": 0,
            "containers": [{
                "name": "web", "image": "registry.example.internal/shop/web-frontend:2.14.3",
                "ports": [{"name": "http", "containerPort": 8080}],
                "env": [{"name": "BACKEND", "value": "http://backend.default.svc.cluster.local:8080"}],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "readinessProbe": probe,
            }],
            "tolerations": [
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            ],
        },
    })
}

/// What a kubelet says of a pod once it runs.
pub(super) fn pod_running(number: usize) -> Value {
    let address = format!("10.{}.{}.7", 244 + number / 256, number % 256);
    json!({"status": {
        "phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "startTime": "2026-05-01T08:00:00Z",
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-05-01T08:00:05Z"}],
    }})
}

fn uuid(number: usize) -> String {
    format!("ec2f{number:04x}-5a1b-4c3d-8e9f-0123456789ab")
}
