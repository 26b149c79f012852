//! Nodes that know nothing of each other but by a real API server, with no more rights than deploy/ gives them.

use std::net::IpAddr;
use std::path::PathBuf;

use agent::PeerState;
use harness::{ApiServer, Credential};
use serde_json::{Value, json};

use crate::rig::Rig;

const RIGHTS: &str = include_str!("../../../../deploy/kubernetes/rbac.yaml");

/// A rig whose nodes have a kubeconfig with these rights and nothing else. Node N's Node object has the address that its
/// kubelet would tell, and `spec`.
fn rig(rights: &str, specs: &[Value]) -> Option<(Rig, ApiServer)> {
    let mut rig = Rig::new(specs.len());
    let address = IpAddr::from([198, 18, 0, 254]);
    rig.underlay.ip("address add 198.18.0.254/24 dev br0");
    let server = ApiServer::start_in(&rig.underlay, address)?;
    server.apply(rights);
    let token = server.token_of("kube-system", "fairlead");
    let kubeconfig: PathBuf = server.kubeconfig_for("fairlead", Credential::Token(&token));
    for (node, spec) in rig.nodes.iter_mut().zip(specs) {
        server.create("/api/v1/nodes", &json!({"metadata": {"name": node.name}, "spec": spec}));
        let address = json!({"type": "InternalIP", "address": format!("198.18.0.{}", node.number)});
        server.patch(
            &format!("/api/v1/nodes/{}/status", node.name),
            &json!({"status": {"addresses": [address]}}),
        );
        node.use_store(format!("kubernetes:{}", kubeconfig.display()));
        node.start();
    }
    Some((rig, server))
}

#[test]
fn nodes_with_only_a_kubeconfig_are_joined() {
    let given = json!({"podCIDR": "10.244.7.0/24", "podCIDRs": ["10.244.7.0/24"]});
    let Some((mut rig, mut server)) = rig(RIGHTS, &[given, json!({}), json!({})]) else { return };
    rig.await_joined();
    assert_eq!(rig.nodes[0].pod_cidrs()[0], "10.244.7.0/24", "what the cluster gave it");
    rig.add_pods();
    rig.assert_reachable();

    // Without the API server everything goes on, and what changed meanwhile is known afterwards.
    server.kill();
    for node in &rig.nodes {
        node.await_status("knows that the store is away", |status| status.store.away.is_some());
    }
    rig.assert_reachable();
    rig.nodes[2].kill();
    server.resume();
    assert!(server.delete("/api/v1/nodes/node3"));
    for node in &rig.nodes[..2] {
        node.await_status("knows that node3 has gone", |status| {
            status.ready && status.store.away.is_none() && status.peers.len() == 1
        });
        node.await_settled();
    }
    let claims = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases?labelSelector=fairlead.io/claim";
    let holders = |server: &ApiServer| -> Vec<Value> {
        let items = server.get(claims)["items"].as_array().cloned().unwrap_or_default();
        items.into_iter().map(|mut item| item["spec"]["holderIdentity"].take()).collect()
    };
    // There is no controller here that removes what a Node owned: the other agents do.
    harness::eventually("node3's claims are given back", || {
        (!holders(&server).contains(&json!("node3"))).then_some(())
    });
    rig.nodes.truncate(2);
    rig.assert_reachable();

    // A Node that is made anew, as when a kubelet registers again, gets its lease back.
    assert!(server.delete("/api/v1/nodes/node2"));
    rig.nodes[1].await_status("is not in the cluster", |status| !status.ready);
    server.create("/api/v1/nodes", &json!({"metadata": {"name": "node2"}}));
    rig.nodes[0].await_status("has its peer back", |status| {
        status.peers.iter().all(|peer| peer.state == PeerState::Programmed) && status.peers.len() == 1
    });
    rig.nodes[1].await_status("is ready", |status| status.ready);
    rig.assert_reachable();
}

#[test]
fn scenario_14_an_annotation_in_the_api_says_what_peers_are_told_and_is_followed() {
    let Some((rig, server)) = rig(RIGHTS, &[json!({}), json!({})]) else { return };
    rig.await_joined();
    let annotate = |text: Value| {
        let annotations = json!({"fairlead.io/underlay-advertise": text});
        server.patch("/api/v1/nodes/node2", &json!({"metadata": {"annotations": annotations}}));
    };
    let sends_to = |address: &str| {
        harness::eventually(address, || (rig.nodes[0].fdb() == [address]).then_some(()));
    };
    annotate(json!("203.0.113.2"));
    sends_to("203.0.113.2");
    annotate(json!("node2.example.org"));
    rig.nodes[1].await_status("tells the slip and is ready", |status| {
        status.ready && status.problems.iter().any(|problem| problem.contains("is no IP address"))
    });
    harness::eventually("people are told", || {
        let events = server.get("/api/v1/namespaces/default/events");
        let told = |event: &Value| {
            let message = event["message"].as_str().unwrap_or_default();
            event["reason"] == "ConfigurationRefused" && message.contains("node2.example.org")
        };
        events["items"].as_array()?.iter().any(told).then_some(())
    });
    assert_eq!(rig.nodes[0].fdb(), ["203.0.113.2"]);
    annotate(Value::Null);
    sends_to("198.18.0.2");
}

#[test]
fn scenario_50_networks_of_services_are_the_api_servers_and_a_node_that_takes_part_stays_up() {
    let Some((mut rig, server)) = rig(RIGHTS, &[json!({})]) else { return };
    rig.await_joined();
    let cidrs = json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.244.64.0/24"]}});
    server.create("/apis/networking.k8s.io/v1/servicecidrs", &cidrs);
    let pair =
        "use 10.244.0.0/16 for pods: it overlaps 10.244.64.0/24, which ServiceCIDR more gives to Services";
    rig.nodes[0].await_status("tells the pair and stays up", |status| {
        status.ready && status.problems.iter().any(|problem| problem.contains(pair))
    });
    // One that is new does not come up, nor one whose pods would have the addresses of the server's own network.
    let token = server.token_of("kube-system", "fairlead");
    let kubeconfig = server.kubeconfig_for("fairlead", Credential::Token(&token));
    let own =
        "use 10.96.0.0/15 for pods: it overlaps 10.96.0.0/16, which ServiceCIDR kubernetes gives to Services";
    for (number, pods, refused) in [(2, "10.244.0.0/16", pair), (3, "10.96.0.0/15", own)] {
        rig.add_node(number);
        let node = rig.nodes.last_mut().unwrap();
        server.create("/api/v1/nodes", &json!({"metadata": {"name": node.name}}));
        node.use_store(format!("kubernetes:{}", kubeconfig.display()));
        node.configure(&format!("cluster: {{podCIDRs: [{pods}]}}\n"));
        node.start();
        node.await_status("refuses it", |status| {
            !status.ready && status.reasons.iter().any(|reason| reason.contains(refused))
        });
        let object = server.get(&format!("/api/v1/nodes/{}", node.name));
        assert_eq!(object["metadata"]["annotations"]["fairlead.io/lease"], Value::Null, "{object}");
    }
    harness::eventually("people are told", || {
        let events = server.get("/api/v1/namespaces/default/events");
        let told = |event: &Value| {
            let message = event["message"].as_str().unwrap_or_default();
            event["reason"] == "NetworkOverlap" && message.contains(own)
        };
        events["items"].as_array()?.iter().any(told).then_some(())
    });
}

/// These rights without those to a resource.
fn without(rights: &str, resource: &str) -> String {
    let less = rights.replace(&format!("resources: [{resource}]"), "resources: [none]");
    assert_ne!(less, rights);
    less
}

/// What an agent was allowed before it looked at Services' networks.
fn older_rights() -> String {
    without(&without(RIGHTS, "servicecidrs"), "services")
}

/// Makes the role of the account what these rights say.
fn change_role(server: &ApiServer, rights: &str) {
    let objects: Vec<Value> = serde_saphyr::from_multiple(rights).unwrap();
    let role = objects.iter().find(|object| object["kind"] == "ClusterRole").unwrap();
    server
        .patch("/apis/rbac.authorization.k8s.io/v1/clusterroles/fairlead", &json!({"rules": role["rules"]}));
}

#[test]
fn a_role_of_before_keeps_no_node_from_its_network_and_one_that_shrinks_takes_none_away() {
    let Some((rig, mut server)) = rig(&older_rights(), &[json!({})]) else { return };
    let rule = "forbids to list servicecidrs (hint: add to the ClusterRole that this account is bound to: {apiGroups: \
                [\"networking.k8s.io\"], resources: [\"servicecidrs\"], verbs: [\"list\"]})";
    let tells = |status: &agent::Status| status.store.broken.iter().any(|problem| problem.contains(rule));
    let node = &rig.nodes[0];
    node.await_status("is ready and says what it lacks", |status| {
        status.ready && status.store.in_sync && status.store.away.is_none() && tells(status)
    });

    // The rule comes later, as when the role is applied behind the agents.
    change_role(&server, RIGHTS);
    let cidrs = json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.244.64.0/24"]}});
    server.create("/apis/networking.k8s.io/v1/servicecidrs", &cidrs);
    let overlaps = |status: &agent::Status| {
        status.ready && status.problems.iter().any(|problem| problem.contains("10.244.64.0/24"))
    };
    node.await_status("follows them", |status| overlaps(status) && status.store.broken.is_empty());

    // And it goes again, as in a rollback: what is known stays, and the store is not away for it.
    change_role(&server, &older_rights());
    server.kill();
    node.await_status("knows that the store is away", |status| status.store.away.is_some());
    server.resume();
    node.await_status("has its store back", |status| {
        overlaps(status) && status.store.away.is_none() && tells(status)
    });
}

#[test]
fn a_node_that_a_service_keeps_out_does_not_list_all_services_with_every_try() {
    let Some((mut rig, server)) = rig(&without(RIGHTS, "servicecidrs"), &[]) else { return };
    rig.add_node(1);
    let token = server.token_of("kube-system", "fairlead");
    let kubeconfig = server.kubeconfig_for("fairlead", Credential::Token(&token));
    let node = &mut rig.nodes[0];
    server.create("/api/v1/nodes", &json!({"metadata": {"name": node.name}}));
    node.use_store(format!("kubernetes:{}", kubeconfig.display()));
    node.configure("cluster: {podCIDRs: [10.96.0.0/15]}\n");
    node.start();
    let pair =
        "use 10.96.0.0/15 for pods: it overlaps 10.96.0.1/32, the address of Service default/kubernetes";
    let status = node.await_status("tries again and again", |status| {
        status.failures >= 5 && status.reasons.iter().any(|reason| reason.contains(pair))
    });
    let is_list = |event: &&Value| {
        event["verb"] == "list"
            && event["objectRef"]["resource"] == "services"
            && event["user"]["username"] == "system:serviceaccount:kube-system:fairlead"
    };
    let lists = server.audit().iter().filter(is_list).count() as u64;
    assert!((1..status.failures).contains(&lists), "{lists} lists in {} passes", status.failures);
    node.configure("cluster: {podCIDRs: [10.96.0.0/15], allowOverlap: [10.96.0.0/16]}\n");
    node.await_status("looks again with another configuration", |status| status.ready);
}

#[test]
fn an_agent_that_may_not_read_pods_says_which_rule_is_missing_and_attaches_none() {
    let Some((rig, server)) = rig(&without(RIGHTS, "pods"), &[json!({})]) else { return };
    let rule = "forbids to list pods (hint: add to the ClusterRole that this account is bound to: {apiGroups: [\"\"], \
                resources: [\"pods\"], verbs: [\"list\"]})";
    rig.nodes[0].await_status("says what it lacks", |status| {
        let told = status.policies.reason.as_deref().unwrap_or_default();
        let whole = told.contains(rule) && told.ends_with("; the rules of before stay in force");
        whole && !status.ready && status.reasons.iter().any(|reason| reason.contains(rule))
    });
    assert!(rig.nodes[0].network_file().is_none(), "no plugin has what it needs to attach a pod");
    harness::eventually("people are told", || {
        let events = server.get("/api/v1/namespaces/default/events");
        let told = |event: &Value| {
            let message = event["message"].as_str().unwrap_or_default();
            event["reason"] == "PolicyNotEnforced" && message.contains(rule)
        };
        events["items"].as_array()?.iter().any(told).then_some(())
    });
}
