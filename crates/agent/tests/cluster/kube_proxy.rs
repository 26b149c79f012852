//! Policies beside a real kube-proxy.
//!
//! Read [`beside`]. kube-proxy watches an API server that has one Service and nothing else, which is played here: it needs no
//! more, and needs that at once ([`serve_objects`]).

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::services::{NODE, NODE_PORTS, PORT, Play, SERVICE, TARGET, tell};

/// kube-proxy on the node, which ends with the value.
struct KubeProxy {
    process: Child,
    log: tempfile::NamedTempFile,
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!(
                "--- log of kube-proxy\n{}",
                std::fs::read_to_string(self.log.path()).unwrap_or_default()
            );
        }
    }
}

/// Where it is, as envtest finds such programs.
fn program() -> Option<PathBuf> {
    let named = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let folder = named.unwrap_or_else(|| PathBuf::from("/usr/local/kubebuilder/bin"));
    Some(folder.join("kube-proxy")).filter(|path| path.exists())
}

/// Tells the story beside kube-proxy in this mode.
pub(crate) fn beside(mode: &str) {
    let Some(program) = program() else {
        return harness::not_run(
            "there is no kube-proxy in $KUBEBUILDER_ASSETS or /usr/local/kubebuilder/bin",
        );
    };
    let play = Play::new();
    let netns = &play.scene.node().netns;
    let listener = netns.inside(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let server = format!("http://{}", listener.local_addr().unwrap());
    let objects = objects(&play);
    std::thread::spawn(move || serve_objects(&listener, &objects));
    let mut command = netns.command(program);
    command.args(["--master", &server, "--kube-api-content-type", "application/json"]);
    command.args(["--proxy-mode", mode, "--cluster-cidr", "10.244.0.0/16,fd00:10:244::/56"]);
    command.args([
        "--hostname-override",
        "node1",
        "--healthz-bind-address",
        "",
        "--metrics-bind-address",
        "",
    ]);
    command.args(["--masquerade-all=false", "--iptables-min-sync-period", "1ms"]);
    // The machine's own limits are nobody's here.
    for limit in ["max-per-core", "min", "tcp-timeout-established", "tcp-timeout-close-wait"] {
        command.args([&format!("--conntrack-{limit}"), "0"]);
    }
    let log = tempfile::NamedTempFile::new().unwrap();
    command.stdin(Stdio::null()).stdout(log.reopen().unwrap()).stderr(log.reopen().unwrap());
    let _proxy = KubeProxy { process: command.spawn().unwrap(), log };
    tell(&play);
}

/// The resources that kube-proxy asks for, each a list.
fn objects(play: &Play) -> Vec<(&'static str, Value)> {
    let list = |kind: &str, version: &str, items: Vec<Value>| json!({"kind": format!("{kind}List"), "apiVersion": version, "metadata": {"resourceVersion": "1"}, "items": items});
    let addresses: Vec<Value> =
        NODE.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
    let node = json!({"metadata": {"name": "node1", "uid": "n1", "resourceVersion": "1"},
        "spec": {"podCIDRs": ["10.244.0.0/24"]}, "status": {"addresses": addresses}});
    let service = |name: &str, kind: Value| {
        let ports = ["TCP", "UDP"].map(|protocol| {
            let mut port =
                json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": PORT, "targetPort": TARGET});
            if protocol == "TCP" && !kind["nodePort"].is_null() {
                port["nodePort"] = kind["nodePort"].clone();
            }
            port
        });
        let mut service = json!({"metadata": {"namespace": "shop", "name": name, "uid": name, "resourceVersion": "1"},
            "spec": {"type": kind["type"], "clusterIP": kind["addresses"][0], "clusterIPs": kind["addresses"],
                "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack", "sessionAffinity": "None",
                "internalTrafficPolicy": "Cluster", "ports": ports}});
        if !kind["policy"].is_null() {
            service["spec"]["externalTrafficPolicy"] = kind["policy"].clone();
        }
        service
    };
    let services = vec![
        service(
            "web",
            json!({"type": "NodePort", "addresses": SERVICE, "nodePort": NODE_PORTS[0], "policy": "Cluster"}),
        ),
        service(
            "near",
            json!({"type": "NodePort", "addresses": ["10.96.0.11", "fd00:10:96::11"],
            "nodePort": NODE_PORTS[1], "policy": "Local"}),
        ),
    ];
    let slice = |service: &str, family: usize| {
        let ports = ["TCP", "UDP"]
            .map(|protocol| json!({"name": protocol.to_lowercase(), "protocol": protocol, "port": TARGET}));
        json!({"metadata": {"namespace": "shop", "name": format!("{service}-{family}"), "uid": format!("{service}-{family}"),
                "resourceVersion": "1", "labels": {"kubernetes.io/service-name": service}},
            "addressType": (["IPv4", "IPv6"][family]), "ports": ports,
            "endpoints": [{"addresses": [play.web.addresses[family]], "nodeName": "node1",
                "conditions": {"ready": true, "serving": true, "terminating": false}}]})
    };
    let slices = ["web", "near"].iter().flat_map(|service| [slice(service, 0), slice(service, 1)]).collect();
    let networks = json!({"metadata": {"name": "kubernetes", "uid": "c", "resourceVersion": "1"},
        "spec": {"cidrs": ["10.96.0.0/12", "fd00:10:96::/112"]}});
    vec![
        ("/api/v1/nodes/node1", node.clone()),
        ("/api/v1/nodes", list("Node", "v1", vec![node])),
        ("/api/v1/services", list("Service", "v1", services)),
        ("/apis/discovery.k8s.io/v1/endpointslices", list("EndpointSlice", "discovery.k8s.io/v1", slices)),
        (
            "/apis/networking.k8s.io/v1/servicecidrs",
            list("ServiceCIDR", "networking.k8s.io/v1", vec![networks]),
        ),
    ]
}

/// Answers lists; a watch stays silent, for nothing ever changes.
fn serve_objects(listener: &TcpListener, objects: &[(&'static str, Value)]) {
    let mut watches = Vec::new();
    for stream in listener.incoming().map_while(Result::ok) {
        watches.extend(answer(stream, objects));
    }
}

/// Answers a request; returns the stream of a watch.
fn answer(mut stream: TcpStream, objects: &[(&'static str, Value)]) -> Option<TcpStream> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut request = String::new();
    reader.read_line(&mut request).ok()?;
    let mut line = String::new();
    while reader.read_line(&mut line).ok()? > 2 {
        line.clear();
    }
    let target = request.split(' ').nth(1)?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let is_watch = query.contains("watch=true");
    if is_watch && !query.contains("sendInitialEvents") {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).ok()?;
        return Some(stream);
    }
    let found = objects.iter().find(|(known, _)| *known == path).filter(|_| !is_watch);
    let refusal =
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid", "code": 422});
    let (status, body) = found.map_or(("422 No", &refusal), |(_, object)| ("200 OK", object));
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).ok()?;
    None
}
