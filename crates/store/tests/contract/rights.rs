//! What an agent may do: the rules of deploy/kubernetes against what an agent does, and against what it is not to do.
//!
//! Read [`live`]. The role is compared with the API server's audit log; the admission policy bounds what a role cannot.

use std::collections::BTreeSet;

use cluster::{Key, Kind};
use harness::{ApiServer, Credential, eventually};
use ipnet::IpNet;
use serde_json::{Value, json};
use store::{Claimed, Error, Event, Expect, Kubernetes, Store};

use crate::api::{Turn, locked};
use crate::flannel::told_flannel;
use crate::kubernetes::{ENFORCING, Opened, cidr};
use crate::suite::{Witness, lease, notice, report, sent};

/// What an agent does in its life.
fn live(store: &dyn Store, wanted: IpNet) {
    let mut witness = Witness::in_sync(sent(store.watch(&ENFORCING).unwrap()));
    assert!(witness.available, "nothing is forbidden");
    // Asked for where the server has no ServiceCIDRs.
    assert!(!store.list(&[Kind::Service]).unwrap().snapshot.services.is_empty());
    assert_eq!(store.claim(wanted, "node1").unwrap(), Claimed::Granted);
    let version = store.write(&lease("node1", 1450), Expect::Any).unwrap();
    assert!(store.read(&Key::Node("node1".into())).unwrap().is_some());
    assert_eq!(store.read(&Key::Lease("node1".into())).unwrap().unwrap().1, version);
    assert!(matches!(store.claim(wanted, "node2").unwrap(), Claimed::Held { .. }));
    witness.until(|witness| witness.snapshot.leases.len() == 1 && witness.snapshot.claims.len() == 1);
    store.report(&report("node1", false)).unwrap();
    witness.until(|witness| witness.snapshot.nodes["node1"].awaits_network);
    store.report(&report("node1", true)).unwrap();
    witness.until(|witness| !witness.snapshot.nodes["node1"].awaits_network);
    assert_eq!(store.reports().unwrap(), [report("node1", true)]);
    (0..2).for_each(|_| store.notify(&notice("node1", "no lease")).unwrap());
    assert!(store.release(wanted, "node1").unwrap());
    assert!(store.delete(&Key::Lease("node1".into()), Expect::Version(version)).unwrap());
    witness.until(|witness| witness.snapshot.leases.is_empty() && witness.snapshot.claims.is_empty());
}

const RULES: &str = include_str!("../../../../deploy/kubernetes/rbac.yaml");

const POLICY: &str = include_str!("../../../../deploy/kubernetes/admission.yaml");

fn startup_taint() -> Value {
    json!({"key": "fairlead.io/not-ready", "effect": "NoSchedule"})
}

/// Gives the account its rules, unless it has them, and waits until they count.
fn allow(server: &ApiServer) {
    let (code, _) = server.request("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/fairlead", None);
    if code == 404 {
        server.apply(RULES);
    }
    for (namespace, resource) in [("", "nodes"), ("default", "events"), ("kube-system", "leases")] {
        let group = if resource == "leases" { "coordination.k8s.io" } else { "" };
        let verb = if resource == "leases" { "create" } else { "patch" };
        let wanted = json!({"namespace": namespace, "group": group, "resource": resource, "verb": verb});
        let user = "system:serviceaccount:kube-system:fairlead";
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {"user": user, "resourceAttributes": wanted},
        });
        eventually("the rules count", || {
            let answer = server.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review);
            (answer["status"]["allowed"] == true).then_some(())
        });
    }
}

#[test]
fn the_role_allows_exactly_what_an_agent_does() {
    let Some(turn) = Turn::take() else { return };
    let opened = Opened::new(turn.server.clone());
    ["node1", "node2"].iter().for_each(|name| opened.await_node(name));
    let server = locked(&turn.server);
    allow(&server);
    server.patch("/api/v1/nodes/node1", &json!({"spec": {"taints": [startup_taint()]}}));
    let token = server.token_of("kube-system", "fairlead");
    eventually("no policy of another test is in force any more", || {
        let beat = json!({"metadata": {"annotations": {"fairlead.io/x": "y"}}});
        let answer = server.request_as(&token, "PATCH", "/api/v1/nodes/node1/status", Some(&beat));
        (answer.0 == 200).then_some(())
    });
    let kubeconfig = server.kubeconfig_for("fairlead", Credential::Token(&token));
    drop(server);
    let store = Kubernetes::open(Some(&kubeconfig), "kube-system").unwrap();
    live(&store, cidr("10.244.1.0/24"));

    let mut allowed = BTreeSet::new();
    for manifest in serde_saphyr::from_multiple::<Value>(RULES).unwrap() {
        for rule in manifest["rules"].as_array().into_iter().flatten() {
            let texts = |key: &str| {
                rule[key].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned())
            };
            for (group, resource) in texts("apiGroups").zip(texts("resources")) {
                allowed.extend(texts("verbs").map(|verb| (verb, group.clone(), resource.clone())));
            }
        }
    }
    // Nobody has defined those here, so there is nothing to watch.
    let undefined = ["watch", "policy.networking.k8s.io", "clusternetworkpolicies"].map(str::to_owned);
    let [verb, group, resource] = undefined;
    assert!(allowed.remove(&(verb, group, resource)));
    let mut used = BTreeSet::new();
    for event in locked(&turn.server).audit() {
        if event["user"]["username"] != "system:serviceaccount:kube-system:fairlead" {
            continue;
        }
        assert_ne!(event["responseStatus"]["code"], 403, "{event}");
        let object = &event["objectRef"];
        if object.is_null() {
            // What the server knows at all, it tells everybody.
            assert_eq!(event["requestURI"], "/apis");
            continue;
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let resource = match object["subresource"].as_str() {
            Some(part) => format!("{}/{part}", text(&object["resource"])),
            None => text(&object["resource"]),
        };
        used.insert((text(&event["verb"]), text(&object["apiGroup"]), resource));
    }
    assert_eq!(used, allowed);
}

#[test]
fn what_is_forbidden_names_the_missing_rule() {
    let Some(turn) = Turn::take() else { return };
    let server = locked(&turn.server);
    let (account, list) =
        (json!({"metadata": {"name": "nobody"}}), "/api/v1/namespaces/kube-system/serviceaccounts");
    server.delete(&format!("{list}/nobody"));
    server.create(list, &account);
    let token = server.token_of("kube-system", "nobody");
    let kubeconfig = server.kubeconfig_for("nobody", Credential::Token(&token));
    let url = server.url();
    drop(server);
    let store = Kubernetes::open(Some(&kubeconfig), "kube-system").unwrap();
    let error = store.list(&[Kind::Claim]).unwrap_err().to_string();
    let who = format!("API server {url}/ (kubeconfig {})", kubeconfig.display());
    let want = format!(
        "{who} forbids to list leases in namespace kube-system (hint: add to the Role that this account is bound to: \
         {{apiGroups: [\"coordination.k8s.io\"], resources: [\"leases\"], verbs: [\"list\"]}})"
    );
    assert_eq!(error, want);
    let mut events = store.watch(&[Kind::Node]).unwrap();
    let Some(Event::Unavailable { reason }) = events.next() else { panic!("no events yet") };
    let want = format!(
        "{who} forbids to list nodes (hint: add to the ClusterRole that this account is bound to: {{apiGroups: [\"\"], \
         resources: [\"nodes\"], verbs: [\"list\"]}})"
    );
    assert_eq!(reason, want);
}

/// Gives the account `nobody` these rules, and no others.
fn give(server: &ApiServer, rules: &Value) {
    let name = json!({"name": "nobody"});
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let (roles, bindings) = (format!("{rbac}/clusterroles"), format!("{rbac}/clusterrolebindings"));
    for list in [&roles, &bindings] {
        server.delete(&format!("{list}/nobody"));
    }
    let subject = json!({"kind": "ServiceAccount", "name": "nobody", "namespace": "kube-system"});
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "nobody"});
    server.create(&roles, &json!({"metadata": name, "rules": rules}));
    server.create(&bindings, &json!({"metadata": name, "roleRef": role, "subjects": [subject]}));
}

#[test]
fn a_report_that_is_forbidden_names_the_missing_rule() {
    let Some(turn) = Turn::take() else { return };
    let server = locked(&turn.server);
    let node = json!({"metadata": {"name": "node1"}, "spec": {"taints": [startup_taint()]}});
    server.create("/api/v1/nodes", &node);
    let (account, list) =
        (json!({"metadata": {"name": "nobody"}}), "/api/v1/namespaces/kube-system/serviceaccounts");
    server.delete(&format!("{list}/nobody"));
    server.create(list, &account);
    let token = server.token_of("kube-system", "nobody");
    let kubeconfig = server.kubeconfig_for("nobody", Credential::Token(&token));
    let store = Kubernetes::open(Some(&kubeconfig), "kube-system").unwrap();
    let rule =
        |resource: &str, verb: &str| json!({"apiGroups": [""], "resources": [resource], "verbs": [verb]});
    let told = |verb: &str, resource: &str| {
        format!(
            " forbids to {verb} {resource} (hint: add to the ClusterRole that this account is bound to: \
             {{apiGroups: [\"\"], resources: [\"{resource}\"], verbs: [\"{verb}\"]}})"
        )
    };
    let mut rules = Vec::new();
    for (resource, verb) in [("nodes", "get"), ("nodes/status", "patch"), ("nodes", "patch")] {
        give(&server, &json!(rules));
        eventually("the rules count", || {
            let error = store.report(&report("node1", true)).err()?.to_string();
            error.ends_with(&told(verb, resource)).then_some(())
        });
        rules.push(rule(resource, verb));
    }
    give(&server, &json!(rules));
    eventually("all rules count", || store.report(&report("node1", true)).ok());
    let error = store.reports().unwrap_err().to_string();
    assert!(error.ends_with(&told("list", "nodes")), "{error}");
    let error = store.notify(&notice("node1", "no lease")).unwrap_err().to_string();
    let want = " forbids to create events in namespace default (hint: add to the Role that this account is bound to: \
                {apiGroups: [\"\"], resources: [\"events\"], verbs: [\"create\"]})";
    assert!(error.ends_with(want), "{error}");
}

#[test]
fn an_agent_writes_the_node_it_runs_on_and_no_other() {
    let Some(turn) = Turn::take() else { return };
    let opened = Opened::new(turn.server.clone());
    ["node1", "node2"].iter().for_each(|name| opened.await_node(name));
    let server = locked(&turn.server);
    let bounds = Bounds::set(&server);
    server.patch("/api/v1/nodes/node1", &json!({"spec": {"taints": [startup_taint()]}}));
    let kubeconfig = server.kubeconfig_for("bound", Credential::Token(&bounds.token));
    let unbound = server.token_of("kube-system", "fairlead");
    let outside = server.kubeconfig_for("unbound", Credential::Token(&unbound));
    drop(server);
    let store = Kubernetes::open(Some(&kubeconfig), "kube-system").unwrap();
    live(&store, cidr("10.244.1.0/24"));
    let policy = "ValidatingAdmissionPolicy 'fairlead' with binding 'fairlead' denied request: ";
    let refused = |error: Error, why: &str| {
        let told = error.to_string();
        assert!(matches!(error, Error::Refused { .. }), "no rule is missing: {told}");
        assert!(told.contains(&format!("{policy}{why}")), "{told}");
    };
    let why = "an agent on node node1 may not write node node2";
    refused(store.report(&report("node2", true)).unwrap_err(), why);
    refused(store.write(&lease("node2", 1450), Expect::Any).unwrap_err(), why);
    refused(store.write(&told_flannel("node2"), Expect::Any).unwrap_err(), why);
    store.write(&told_flannel("node1"), Expect::Any).unwrap();
    assert!(store.delete(&Key::Lease("node1".into()), Expect::Any).unwrap());
    let outside = Kubernetes::open(Some(&outside), "kube-system").unwrap();
    refused(outside.report(&report("node1", true)).unwrap_err(), "the token is bound to no node");
    assert_eq!(outside.reports().unwrap(), [report("node1", true)]);
}

/// Why the policy refuses a change of the agent's own Node.
const TAINTS: &str = "of a Node's taints, an agent may only take off fairlead.io/not-ready";
const SPEC: &str = "of a Node's spec, an agent may change only the taint";
const METADATA: &str = "an agent may not change a Node's labels, finalizers or owners";
const ANNOTATIONS: &str = "of a Node's annotations, an agent may change only those of fairlead.io";
const STATUS: &str = "of a Node's status, an agent may change only the condition NetworkUnavailable";

/// A Node with something of everybody's in it.
fn put_furnished_node(server: &ApiServer) {
    let taint = json!({"key": "gpu", "value": "yes", "effect": "NoSchedule"});
    let node = json!({
        "metadata": {"name": "node1", "labels": {"zone": "a"}, "annotations": {"other.io/x": "y"}},
        "spec": {"taints": [startup_taint(), taint]},
    });
    server.create("/api/v1/nodes", &node);
    let ready = json!({"type": "Ready", "status": "True"});
    let address = json!({"type": "InternalIP", "address": "198.18.0.1"});
    server.patch(
        "/api/v1/nodes/node1/status",
        &json!({"status": {"conditions": [ready], "addresses": [address], "capacity": {"cpu": "1"}}}),
    );
}

/// That the policy refuses each of these changes of node1, for that reason.
fn assert_refused(server: &ApiServer, bounds: &Bounds, changes: &[(&str, Value, &str)]) {
    for (part, patch, what) in changes {
        let (code, answer) = bounds.ask(server, "node1", part, patch);
        let told = answer["message"].as_str().unwrap_or_default();
        assert!(
            code == 422 && told.contains("ValidatingAdmissionPolicy 'fairlead'"),
            "{patch}: {code} {answer}"
        );
        assert!(told.contains(&format!("denied request: {what}")), "{patch}: {told}");
    }
}

#[test]
fn of_flannels_annotations_an_agent_writes_those_that_flannel_does() {
    let Some(turn) = Turn::take() else { return };
    let server = locked(&turn.server);
    put_furnished_node(&server);
    let bounds = Bounds::set(&server);
    let change = |key: &str, text: Value| {
        let annotation = json!({format!("flannel.alpha.coreos.com/{key}"): text});
        ("/status", json!({"metadata": {"annotations": annotation}}), ANNOTATIONS)
    };
    server.patch("/api/v1/nodes/node1", &change("public-ip-overwrite", json!("198.18.0.7")).1);
    // What people write for flannel, and what only begins as its do.
    let refused = [
        change("public-ip-overwrite", json!("198.18.0.9")),
        change("public-ip-overwrite", Value::Null),
        change("node-public-ip", json!("198.18.0.9")),
        change("backend-type-x", json!("vxlan")),
        change("public-ipv6-overwrite", json!("fd00::9")),
    ];
    assert_refused(&server, &bounds, &refused);
    for (key, text) in [
        ("kube-subnet-manager", "true"),
        ("backend-type", "vxlan"),
        ("backend-data", "{}"),
        ("public-ip", "::"),
        ("backend-v6-data", "{}"),
        ("public-ipv6", "::"),
    ] {
        for text in [json!(text), Value::Null] {
            let (part, patch, _) = change(key, text);
            let (code, answer) = bounds.ask(&server, "node1", part, &patch);
            assert_eq!(code, 200, "{patch}: {answer}");
        }
    }
}

#[test]
fn of_its_own_node_an_agent_writes_only_what_is_fairleads() {
    let Some(turn) = Turn::take() else { return };
    let server = locked(&turn.server);
    put_furnished_node(&server);
    let bounds = Bounds::set(&server);
    let taints = server.get("/api/v1/nodes/node1")["spec"]["taints"].clone();
    let others: Vec<&Value> =
        taints.as_array().unwrap().iter().filter(|taint| taint["key"] != "fairlead.io/not-ready").collect();
    let mut more = taints.clone();
    more.as_array_mut().unwrap().push(json!({"key": "x", "effect": "NoExecute"}));
    let beside = |change: Value| {
        let mut whole = json!({"spec": {"taints": others}});
        whole.as_object_mut().unwrap().extend(change.as_object().cloned().unwrap());
        whole
    };
    let refused: [(&str, Value, &str); 16] = [
        ("", json!({"spec": {"taints": more}}), TAINTS),
        ("", json!({"spec": {"taints": null}}), TAINTS),
        ("", json!({"spec": {"taints": [startup_taint()]}}), TAINTS),
        ("", json!({"spec": {"unschedulable": true}}), SPEC),
        ("", json!({"spec": {"podCIDR": "10.9.0.0/24", "podCIDRs": ["10.9.0.0/24"]}}), SPEC),
        ("", json!({"spec": {"providerID": "x://y"}}), SPEC),
        ("", json!({"metadata": {"labels": {"zone": "b"}}}), METADATA),
        ("", beside(json!({"metadata": {"labels": {"zone": null}}})), METADATA),
        ("", json!({"metadata": {"finalizers": ["x.io/y"]}}), METADATA),
        ("/status", json!({"metadata": {"labels": {"more": "b"}}}), METADATA),
        ("/status", json!({"metadata": {"annotations": {"other.io/x": "z"}}}), ANNOTATIONS),
        ("/status", json!({"metadata": {"annotations": {"other.io/x": null}}}), ANNOTATIONS),
        ("/status", json!({"metadata": {"annotations": {"other.io/new": "z"}}}), ANNOTATIONS),
        ("/status", json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}), STATUS),
        ("/status", json!({"status": {"addresses": []}}), STATUS),
        ("/status", json!({"status": {"capacity": {"cpu": "9"}}}), STATUS),
    ];
    assert_refused(&server, &bounds, &refused);
    let before = server.get("/api/v1/nodes/node1");
    assert_eq!((&before["spec"]["taints"], &before["metadata"]["labels"]["zone"]), (&taints, &json!("a")));
    let good = [
        ("/status", json!({"metadata": {"annotations": {"fairlead.io/x": "y"}}})),
        ("/status", json!({"metadata": {"annotations": {"fairlead.io/x": null}}})),
        ("", beside(json!({}))),
        ("", beside(json!({}))),
    ];
    for (part, patch) in good {
        let (code, answer) = bounds.ask(&server, "node1", part, &patch);
        assert_eq!(code, 200, "{patch}: {answer}");
    }
    assert_eq!(server.get("/api/v1/nodes/node1")["spec"]["taints"], json!(others));
    // Everybody else is free to do what the cluster lets them.
    server.patch("/api/v1/nodes/node1", &json!({"metadata": {"labels": {"zone": "b"}}}));
}

#[test]
fn of_lease_objects_an_agent_writes_only_claims() {
    let Some(turn) = Turn::take() else { return };
    let server = locked(&turn.server);
    put_furnished_node(&server);
    let bounds = Bounds::set(&server);
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
    let lease = |name: &str, labels: Value| json!({"metadata": {"name": name, "labels": labels}});
    // Those by which the control plane elects its leaders.
    let lock = format!("{leases}/kube-scheduler");
    server.delete(&lock);
    server.create(leases, &lease("kube-scheduler", json!({})));
    let rehearse = format!("{leases}?dryRun=All");
    let (_, told) = eventually("the policy is in force", || {
        let answer = server.request_as(&bounds.token, "POST", &rehearse, Some(&lease("leader", json!({}))));
        (answer.0 == 422).then_some(answer)
    });
    assert!(told["message"].as_str().unwrap().contains("may only create and delete claims"), "{told}");
    let (code, told) = server.request_as(&bounds.token, "DELETE", &lock, None);
    assert!(code == 422 && told.to_string().contains("fairlead-claims"), "{code} {told}");
    let claim = lease("fairlead-10-244-3-0-24", json!({"fairlead.io/claim": "pod-cidr"}));
    assert_eq!(server.request_as(&bounds.token, "POST", &rehearse, Some(&claim)).0, 201);
    assert!(server.delete(&lock));
}

/// The policy in force, and the token of an agent on node1.
struct Bounds {
    token: String,
}

impl Bounds {
    fn set(server: &ApiServer) -> Self {
        allow(server);
        server.apply(POLICY);
        let token = server.token_on("kube-system", "fairlead", "node1");
        let bounds = Self { token };
        // A Node that is not there is nobody's to write either, but by its absence.
        server.delete("/api/v1/nodes/probe");
        server.create("/api/v1/nodes", &json!({"metadata": {"name": "probe"}}));
        eventually("the policy is in force", || {
            let beat = json!({"metadata": {"annotations": {"fairlead.io/x": "y"}}});
            (bounds.ask(server, "probe", "/status", &beat).0 == 422).then_some(())
        });
        server.delete("/api/v1/nodes/probe");
        bounds
    }

    /// A merge patch by the agent.
    fn ask(&self, server: &ApiServer, node: &str, part: &str, patch: &Value) -> (u16, Value) {
        server.request_as(&self.token, "PATCH", &format!("/api/v1/nodes/{node}{part}"), Some(patch))
    }
}
