//! Namespaces that come and go leave nothing behind, and are right when they come again.

use cluster::{Change, Key, Namespace, NamespacedName, NetworkPolicy, Peer, Pod, Rule, Selector, Snapshot};

use super::Policies;

/// A node whose pod lets in the pods of every namespace.
fn policies() -> Policies {
    let mut web = Pod::named(NamespacedName::new("shop", "web"));
    web.node = Some("n1".into());
    web.addresses = Box::from(["10.0.0.1".parse().unwrap()]);
    let peers = Peer::Pods { namespaces: Some(Selector::default()), pods: Selector::default() };
    let rule = Rule { peers: Some(Box::from([peers])), ports: None };
    let policy = NetworkPolicy {
        name: NamespacedName::new("shop", "web"),
        subjects: Selector::default(),
        ingress: Some(Box::from([rule])),
        egress: None,
        audit: false,
        faults: Box::default(),
    };
    let mut snapshot = Snapshot::default();
    snapshot.apply(Change::Set(web.into()));
    snapshot.apply(Change::Set(policy.into()));
    Policies::new("n1", snapshot)
}

fn pod(namespace: &str) -> Pod {
    let addresses = Box::from(["10.0.0.9".parse().unwrap()]);
    Pod { addresses, ..Pod::named(NamespacedName::new(namespace, "p")) }
}

#[test]
fn a_namespace_is_known_as_long_as_it_has_an_object_or_a_pod() {
    let mut policies = policies();
    let known = |policies: &Policies| {
        let mut known: Vec<String> = policies.index.all_known().map(ToString::to_string).collect();
        known.dedup();
        known.join(" ")
    };
    for round in 0..3 {
        let name = format!("passing-{round}");
        let object = Namespace { name: (&*name).into(), labels: cluster::Labels::default() };
        let [come, born] = [Change::Set(object.into()), Change::Set(pod(&name).into())];
        let [gone, dead] = [Key::Namespace((&*name).into()), Key::Pod(NamespacedName::new(&*name, "p"))];
        let [gone, dead] = [gone, dead].map(Change::Removed);
        // The object goes before its last pod, or after it; and there may be a pod that has no address.
        for changes in
            [[&come, &born, &gone, &dead], [&come, &born, &dead, &gone], [&born, &come, &gone, &dead]]
        {
            for change in changes {
                policies.apply(change);
                let fresh = Policies::new("n1", policies.cluster().snapshot().clone());
                assert_eq!(policies.full().to_string(), fresh.full().to_string(), "after {change:?}");
            }
            assert_eq!(known(&policies), "shop", "after {changes:?}");
        }
        let silent = Change::Set(Pod { addresses: Box::default(), ..pod(&name) }.into());
        for change in [&come, &silent, &gone, &dead] {
            policies.apply(change);
        }
        assert_eq!(known(&policies), "shop");
    }
}
