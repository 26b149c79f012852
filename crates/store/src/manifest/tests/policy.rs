//! Policies are read as the API means them, and what is wrong in one opens nothing.

use cluster::{
    Action, ClusterNetworkPolicy, ClusterPeers, NetworkPolicy, Object, Peer, PortMatch, Protocol, Tier,
};

use super::{encode, objects};

fn policy(spec: &str) -> NetworkPolicy {
    let text = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
    );
    let read = objects(&text);
    let [object @ Object::NetworkPolicy(policy)] = &read[..] else { panic!("{text}") };
    assert_eq!(objects(str::from_utf8(&encode(object)).unwrap()), read, "it reads back as it was: {text}");
    (**policy).clone()
}

fn cluster_policy(spec: &str) -> ClusterNetworkPolicy {
    let text = format!(
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: c}}\nspec: {spec}\n"
    );
    let read = objects(&text);
    let [object @ Object::ClusterNetworkPolicy(policy)] = &read[..] else { panic!("{text}") };
    assert_eq!(objects(str::from_utf8(&encode(object)).unwrap()), read, "it reads back as it was: {text}");
    (**policy).clone()
}

#[test]
fn what_the_api_server_would_fill_in_is_filled_in() {
    let isolates = |spec| {
        let policy = policy(spec);
        (policy.ingress.is_some(), policy.egress.is_some())
    };
    assert_eq!(isolates("{}"), (true, false));
    assert_eq!(isolates("{egress: []}"), (true, false));
    assert_eq!(isolates("{egress: [{}]}"), (true, true));
    assert_eq!(isolates("{policyTypes: [Egress], ingress: [{}]}"), (false, true));
    let policy =
        policy("{ingress: [{from: [], ports: [{}, {port: http}, {port: 53, endPort: 90, protocol: UDP}]}]}");
    let rule = &policy.ingress.unwrap()[0];
    assert_eq!(rule.peers, None, "an empty list is everybody");
    let ports = rule.ports.as_deref().unwrap();
    let named = PortMatch::Named(Some(Protocol::Tcp), "http".into());
    assert_eq!(ports, [PortMatch::All(Protocol::Tcp), named, PortMatch::Range(Protocol::Udp, 53, 90)]);
}

#[test]
fn an_annotation_puts_a_policy_into_audit_and_a_slip_in_it_leaves_it_enforced() {
    let read = |(head, metadata, spec): (&str, &str, &str), value: &str| {
        let metadata = format!("{{name: p{metadata}, annotations: {{fairlead.io/audit: {value}}}}}");
        let text = format!("{head}\nmetadata: {metadata}\nspec: {spec}\n");
        let read = objects(&text);
        let [object] = &read[..] else { panic!("{text}") };
        let again = objects(str::from_utf8(&encode(object)).unwrap());
        assert_eq!(again, read, "it reads back as it was: {text}");
        match object {
            Object::NetworkPolicy(policy) => (policy.audit, policy.all_faults().map(str::to_owned).collect()),
            Object::ClusterNetworkPolicy(policy) => {
                (policy.audit, policy.all_faults().map(str::to_owned).collect::<Vec<_>>())
            }
            _ => panic!("{text}"),
        }
    };
    let of_namespace =
        ("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy", ", namespace: shop", "{podSelector: {}}");
    let of_cluster = (
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy",
        "",
        "{tier: Admin, priority: 1, subject: {namespaces: {}}}",
    );
    for kind in [of_namespace, of_cluster] {
        assert_eq!(read(kind, "\"true\""), (true, Vec::new()));
        assert_eq!(read(kind, "\"false\""), (false, Vec::new()));
        for slip in ["\"yes\"", "true", "[]"] {
            let (audit, faults) = read(kind, slip);
            assert!(!audit && faults[0].contains("it is enforced"), "{slip}: {faults:?}");
        }
    }
}

#[test]
fn absent_and_empty_selectors_are_told_apart() {
    let policy = policy("{ingress: [{from: [{podSelector: {}}, {namespaceSelector: {}}]}]}");
    let peers = policy.ingress.as_ref().unwrap()[0].peers.as_deref().unwrap();
    assert!(matches!(&peers[0], Peer::Pods { namespaces: None, pods } if pods.is_empty()));
    assert!(
        matches!(&peers[1], Peer::Pods { namespaces: Some(all), pods } if all.is_empty() && pods.is_empty())
    );
}

#[test]
fn addresses_are_read_in_every_form_that_was_ever_accepted() {
    let blocks = ["10.244.3.10/24", "010.244.003.010/24", "::ffff:10.244.3.10/120", "fd00::7/64"];
    let peers: String = blocks.map(|block| format!("{{ipBlock: {{cidr: '{block}'}}}}")).join(", ");
    let policy = policy(&format!("{{ingress: [{{from: [{peers}]}}]}}"));
    let peers = policy.ingress.as_ref().unwrap()[0].peers.as_deref().unwrap();
    let cidrs: Vec<String> = peers
        .iter()
        .map(|peer| match peer {
            Peer::Block(block) => block.cidr.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(cidrs, ["10.244.3.0/24", "10.244.3.0/24", "10.244.3.0/24", "fd00::/64"]);
}

#[test]
fn what_is_wrong_in_a_policy_opens_nothing_and_isolates_all_the_same() {
    for (peer, wrong) in [
        ("{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/x]}}", "except"),
        ("{ipBlock: {cidr: 10.0.0.256/8}}", "cidr"),
        ("{podselector: {}}", "podselector"),
        ("{podSelector: {}, zone: here}", "zone"),
        ("{}", "nobody"),
        ("{podSelector: {matchExpressions: [{key: a, operator: Like, values: [b]}]}}", "Like"),
        ("{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}", "ipBlock"),
    ] {
        let policy = policy(&format!("{{ingress: [{{from: [{peer}]}}]}}"));
        let peers = policy.ingress.as_ref().unwrap()[0].peers.as_deref().unwrap();
        assert!(matches!(peers, [Peer::Unreadable(_)]), "{peer}: {peers:?}");
        let faults: Vec<&str> = policy.all_faults().collect();
        assert!(matches!(faults[..], [fault] if fault.contains(wrong)), "{peer}: {faults:?}");
    }
    for port in [
        "{port: 70000}",
        "{endPort: 7}",
        "{port: web, endPort: 9}",
        "{port: 9, endPort: 8}",
        "{protocol: ICMP}",
    ] {
        let policy = policy(&format!("{{ingress: [{{ports: [{port}]}}]}}"));
        let rules = policy.ingress.as_deref().unwrap();
        assert!(matches!(rules[0].ports.as_deref(), Some([PortMatch::Unreadable(_)])), "{port}: {rules:?}");
    }
    let odd = policy("{podSelector: {matchLabels: {a: b}}, policyTypes: [Ingress, Sideways]}");
    assert!(odd.ingress.is_some() && odd.egress.is_some());
    let wide = policy("{podSelector: {matchLabel: {a: b}}, ingress: [{}]}");
    assert!(wide.subjects.is_empty() && wide.faults.len() == 1, "{wide:?}");
    let rule = policy("{ingress: [{from: [{podSelector: {}}], schedule: nights}]}");
    assert!(matches!(rule.ingress.as_deref().unwrap()[0].peers.as_deref(), Some([Peer::Unreadable(_)])));
}

#[test]
fn a_policy_of_the_cluster_is_read_and_what_is_unknown_in_it_denies() {
    let policy = cluster_policy(
        "{tier: Baseline, priority: 7, subject: {namespaces: {matchLabels: {team: red}}}, ingress: [
           {name: first, action: Pass, from: [{pods: {namespaceSelector: {}, podSelector: {}}}], protocols: [
             {tcp: {destinationPort: {number: 80}}}, {udp: {destinationPort: {range: {start: 5, end: 9}}}}, {sctp: {}},
             {destinationNamedPort: http}]},
           {action: Accept, from: [{moons: {}}]}, {action: Deny, from: [{moons: {}}]}, {action: Pass, from: [{moons: {}}]},
           {action: Log, from: [{namespaces: {}}]}],
         egress: [{action: Accept, to: [{nodes: {}}, {networks: [10.0.0.7/8]}, {domainNames: ['*.Example.org']}]}]}",
    );
    assert_eq!((policy.tier, policy.priority), (Tier::Baseline, 7));
    let actions: Vec<Action> = policy.ingress.iter().map(|rule| rule.action).collect();
    assert_eq!(actions, [Action::Pass, Action::Accept, Action::Deny, Action::Deny, Action::Deny]);
    let unreadable = policy.ingress.iter().filter(|rule| matches!(rule.peers, ClusterPeers::Unreadable(_)));
    assert_eq!(unreadable.count(), 4);
    assert_eq!(policy.ingress[0].ports.as_ref().unwrap().len(), 4);
    assert_eq!(policy.all_faults().count(), 4);
    let late = cluster_policy(
        "{tier: Evening, priority: 7, subject: {namespaces: {}}, egress: [{action: Accept, to: [{nodes: {}}]}]}",
    );
    assert_eq!((late.tier, late.priority, late.egress[0].action), (Tier::Admin, 0, Action::Deny));
    assert_eq!(cluster_policy("{tier: Admin, priority: 1, subject: {zones: {}}}").subject, None);
}

#[test]
fn a_rule_that_would_be_millions_of_the_kernels_opens_nothing_and_says_so() {
    let peers: String =
        (0..200).map(|number| format!("{{podSelector: {{matchLabels: {{a: b{number}}}}}}},")).collect();
    let ports: String = (1..=101).map(|port| format!("{{port: {port}}},")).collect();
    let read = policy(&format!("{{ingress: [{{from: [{peers}], ports: [{ports}]}}, {{from: [{peers}]}}]}}"));
    let rules = read.ingress.as_deref().unwrap();
    let told: Vec<&str> = read.all_faults().collect();
    assert!(matches!(rules[0].peers.as_deref(), Some([Peer::Unreadable(_)])), "{told:?}");
    assert_eq!(
        rules[1].peers.as_ref().map(|peers| peers.len()),
        Some(200),
        "one rule is no matter of the others"
    );
    assert!(told[0].contains("20200 pairs"), "{told:?}");
    let except: String =
        (0..1001).map(|number| format!("10.{}.{}.0/24,", number / 256, number % 256)).collect();
    let read =
        policy(&format!("{{ingress: [{{from: [{{ipBlock: {{cidr: 10.0.0.0/8, except: [{except}]}}}}]}}]}}"));
    assert!(matches!(read.ingress.as_deref().unwrap()[0].peers.as_deref(), Some([Peer::Unreadable(_)])));
}
