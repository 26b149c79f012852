//! Ends and ports as people name them, and what is told of the flows between.

use super::*;

const CLUSTER: &str = r#"
{apiVersion: v1, kind: Node, metadata: {name: node1}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}
---
apiVersion: fairlead/v1
kind: NodeLease
metadata: {name: node1}
spec: {podCIDRs: [10.1.0.0/24], mtu: 1450, underlay: [192.0.2.1], backend: {type: ipip}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
status: {podIPs: [{ip: 10.1.0.1}, {ip: "fd00::1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {nodeName: node2, containers: [{name: db, ports: [{name: sql, containerPort: 5432}]}]}
status: {podIPs: [{ip: 10.1.0.2}, {ip: "fd00::2"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: api-7d9f-x2v, namespace: shop, labels: {app: api, pod-template-hash: 7d9f}}
status: {podIPs: [{ip: 10.1.0.4}]}
---
apiVersion: v1
kind: Pod
metadata: {name: job, namespace: shop}
status: {phase: Succeeded, podIP: 10.1.0.3}
---
apiVersion: v1
kind: Service
metadata: {name: sql, namespace: shop}
spec: {selector: {app: db}, ports: [{port: 15432, targetPort: sql}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: sql}]}]}
"#;

fn cluster() -> Cluster {
    let mut snapshot = cluster::Snapshot::default();
    for object in store::read_manifest("cluster.yaml", CLUSTER.as_bytes()).unwrap() {
        snapshot.apply(cluster::Change::Set(object));
    }
    Cluster::new(snapshot)
}

fn ask(source: &str, destination: &str, port: &str) -> Result<Vec<Explanation>> {
    let port = port.parse().map_err(anyhow::Error::msg)?;
    explanations(&cluster(), &Asked { source, destination, port: &port, namespace: "shop" })
}

fn refusal(source: &str, destination: &str, port: &str) -> String {
    ask(source, destination, port).unwrap_err().to_string()
}

#[test]
fn what_holds_of_both_versions_of_ip_is_told_once() {
    let told = ask("web", "shop/db", "5432").unwrap();
    assert_eq!(told.len(), 1);
    assert!(told[0].allowed);
    let text = told[0].to_string();
    assert!(text.contains("NetworkPolicy shop/db ingress rule 1 allows it"), "{text}");
}

#[test]
fn a_port_has_its_number_or_the_name_that_the_pod_gives_it() {
    assert!(ask("web", "db", "sql/tcp").unwrap()[0].allowed);
    assert!(!ask("web", "db", "5433").unwrap()[0].allowed);
    assert!(!ask("web", "db", "5432/UDP").unwrap()[0].allowed);
    assert!(!ask("web", "db", "icmp").unwrap()[0].allowed);
    assert!(refusal("web", "db", "htpp").contains("[\"sql\"]"));
}

#[test]
fn a_service_stands_for_the_pods_behind_it_at_their_own_port() {
    let told = ask("web", "sql", "15432").unwrap();
    assert!(told[0].allowed && told[0].destination.contains("shop/db"), "{}", told[0]);
    assert!(refusal("web", "sql", "5432").contains("it has 15432/TCP"));
    assert!(refusal("sql", "db", "1").contains("begins no connections"));
}

#[test]
fn a_denied_flow_names_who_isolates_and_what_would_allow_it() {
    let told = ask("192.0.2.77", "db", "5432").unwrap();
    let text = told[0].to_string();
    assert!(!told[0].allowed);
    assert!(text.contains("isolated by NetworkPolicy shop/db"), "{text}");
    assert!(text.contains("is for this port, but from pods"), "{text}");
    assert!(text.contains("would allow it: an ingress rule"), "{text}");
}

#[test]
fn what_would_allow_it_selects_the_pods_of_the_next_rollout_too() {
    let told = ask("api-7d9f-x2v", "db", "5432").unwrap().remove(0);
    let remedy = told.ingress.remedy.unwrap();
    assert!(remedy.contains("podSelector app=api, ports TCP 5432"), "{remedy}");
}

#[test]
fn nodes_and_pods_of_other_namespaces_are_found_and_what_is_not_there_is_asked_back() {
    assert!(ask("node1", "web", "80").is_ok());
    let elsewhere = |port: &str| {
        let port = port.parse().unwrap();
        let asked = Asked { source: "web", destination: "db", port: &port, namespace: "default" };
        explanations(&cluster(), &asked)
    };
    assert!(elsewhere("5432").unwrap()[0].allowed);
    assert!(refusal("webb", "db", "80").contains("there is no pod, Service or node webb (namespace shop)"));
    assert!(refusal("other/web", "db", "80").contains("did you mean shop/web?"));
    assert!(refusal("job", "db", "80").contains("has no address now (it is ended)"));
}

#[test]
fn a_node_is_answered_for_by_each_address_that_a_pod_elsewhere_may_see() {
    let told = ask("node1", "db", "5432").unwrap();
    let sources: Vec<&str> = told.iter().map(|told| told.source.as_str()).collect();
    assert_eq!(sources, ["node node1 (192.0.2.1)", "node node1 (10.1.0.0, its address in the pod network)"]);
    let remedy = told[1].ingress.remedy.as_deref().unwrap();
    assert!(remedy.contains("from ipBlock 10.1.0.0/32"), "{remedy}");
    // Of a pod whose node is not known none can be told.
    assert_eq!(ask("node1", "web", "80").unwrap().len(), 1);
}

#[test]
fn a_port_that_is_none_is_told() {
    for (text, told) in
        [("0", "1 to 65535"), ("65536", "1 to 65535"), ("80/TPC", "none of TCP"), ("", "missing")]
    {
        assert!(text.parse::<Port>().unwrap_err().contains(told), "{text}");
    }
}

#[test]
fn a_denied_flow_fails_only_who_expects_another() {
    let denied = ask("192.0.2.77", "db", "5432").unwrap();
    let code = |expected| format!("{:?}", met(expected, &denied));
    let (good, bad) = (format!("{:?}", ExitCode::SUCCESS), format!("{:?}", ExitCode::FAILURE));
    assert_eq!([None, Some(Expected::Deny), Some(Expected::Allow)].map(code), [good.clone(), good, bad]);
}

#[test]
fn many_notes_are_shortened_where_nobody_asks_for_all() {
    let mut told = ask("web", "db", "1").unwrap().remove(0);
    told.ingress.notes = (0..9).map(|number| number.to_string()).collect();
    let short = shortened(told).ingress.notes;
    assert_eq!((short.len(), short[6].as_str()), (7, "and 3 more (-o wide)"));
}
