//! The API server that the tests of this binary share: one starts it, and they use it in turns.
//!
//! Read [`Turn`]. Each test finds a cluster with nothing in it but what the API server makes by itself, which
//! [`is_its_own`] knows. What kubectl, kubelets and controllers would write is written here, through the API.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cluster::{Key, Kind, Object};
use harness::ApiServer;
use serde_json::{Value, json};

pub(crate) type Server = Arc<Mutex<ApiServer>>;

/// The server, for one test.
pub(crate) struct Turn {
    pub(crate) server: Server,
    _turn: MutexGuard<'static, ()>,
}

impl Turn {
    /// None, once it was said why, where there is no server.
    pub(crate) fn take() -> Option<Self> {
        static TURNS: Mutex<()> = Mutex::new(());
        static SERVER: OnceLock<Option<Server>> = OnceLock::new();
        // A test that failed may have left anything; that is cleaned below.
        let turn = TURNS.lock().unwrap_or_else(PoisonError::into_inner);
        let started = SERVER.get_or_init(|| ApiServer::start().map(|server| Arc::new(Mutex::new(server))));
        let Some(server) = started.clone() else {
            harness::not_run("there is no API server; see the reason above");
            return None;
        };
        let mut guard = locked(&server);
        if !guard.is_running() {
            guard.resume();
        }
        clean(&guard);
        drop(guard);
        Some(Self { server, _turn: turn })
    }
}

pub(crate) fn locked(server: &Server) -> MutexGuard<'_, ApiServer> {
    server.lock().unwrap_or_else(PoisonError::into_inner)
}

const CLAIMS: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";

/// Removes whatever an earlier test left.
fn clean(server: &ApiServer) {
    for path in ["/api/v1/nodes", "/api/v1/namespaces/default/pods", CLAIMS] {
        let selector = if path == CLAIMS { "?labelSelector=fairlead.io/claim" } else { "" };
        let list = server.get(&format!("{path}{selector}"));
        for item in list["items"].as_array().into_iter().flatten() {
            server.delete(&format!("{path}/{}", item["metadata"]["name"].as_str().unwrap()));
        }
    }
    for path in [
        "/api/v1/namespaces/default/services/web",
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/web",
    ] {
        server.delete(path);
    }
    server.delete("/api/v1/namespaces/default/events");
    server.delete("/apis/networking.k8s.io/v1/namespaces/default/networkpolicies");
    for kind in ["validatingadmissionpolicybindings", "validatingadmissionpolicies"] {
        for name in ["fairlead", "fairlead-claims"] {
            server.delete(&format!("/apis/admissionregistration.k8s.io/v1/{kind}/{name}"));
        }
    }
    delete_namespace(server, "shop");
}

/// What the API server makes by itself.
pub(crate) fn is_its_own(key: &Key) -> bool {
    match key {
        Key::Namespace(name) => &**name == "default" || name.starts_with("kube-"),
        Key::Service(name) | Key::EndpointSlice(name) => &*name.name == "kubernetes",
        Key::ServiceCidr(name) => &**name == "kubernetes",
        _ => false,
    }
}

/// The path of an object in the API; none for kinds that it does not have.
fn path(key: &Key) -> Option<(String, String)> {
    let (list, name) = match key {
        Key::Node(name) => ("/api/v1/nodes".to_owned(), name),
        Key::Namespace(name) => ("/api/v1/namespaces".to_owned(), name),
        Key::Pod(name) => (format!("/api/v1/namespaces/{}/pods", name.namespace), &name.name),
        Key::Service(name) => (format!("/api/v1/namespaces/{}/services", name.namespace), &name.name),
        Key::EndpointSlice(name) => {
            (format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", name.namespace), &name.name)
        }
        Key::NetworkPolicy(name) => {
            (format!("/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies", name.namespace), &name.name)
        }
        Key::ClusterNetworkPolicy(name) => {
            ("/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies".to_owned(), name)
        }
        Key::ServiceCidr(name) => ("/apis/networking.k8s.io/v1/servicecidrs".to_owned(), name),
        Key::PodStatus(_) | Key::Lease(_) | Key::Claim(_) => return None,
    };
    Some((list.clone(), format!("{list}/{name}")))
}

/// Creates an object as its owner would: all of it, with the status that its kubelet would write.
pub(crate) fn put(server: &ApiServer, object: &Object) {
    let (list, path) = path(&object.key()).expect("a kind that the API has");
    let mut whole: Value = serde_json::from_slice(&store::write_manifest(object)).unwrap();
    if object.key().kind() == Kind::Pod {
        whole["spec"]["containers"] = match whole["spec"]["containers"].take() {
            Value::Null => json!([{"name": "c", "image": "x"}]),
            mut containers => {
                containers[0]["image"] = "x".into();
                containers
            }
        };
    }
    server.create(&list, &whole);
    if whole["status"].is_object() {
        server.patch(&format!("{path}/status"), &json!({"status": whole["status"]}));
    }
}

/// Removes an object as `kubectl delete` would. True if it was there.
pub(crate) fn remove(server: &ApiServer, key: &Key) -> bool {
    match key {
        Key::Namespace(name) => delete_namespace(server, name),
        key => server.delete(&path(key).expect("a kind that the API has").1),
    }
}

/// A namespace goes in two steps, the second of which is a controller's.
fn delete_namespace(server: &ApiServer, name: &str) -> bool {
    let path = format!("/api/v1/namespaces/{name}");
    if !server.delete(&path) {
        return false;
    }
    let (code, mut namespace) = server.request("GET", &path, None);
    if code == 200 {
        namespace["spec"]["finalizers"] = json!([]);
        server.request("PUT", &format!("{path}/finalize"), Some(&namespace));
    }
    true
}
