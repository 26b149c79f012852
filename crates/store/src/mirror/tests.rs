//! The order of events, and that nothing is taken away but what somebody removed.

use std::collections::BTreeSet;

use cluster::{Change, Key, Kind, Snapshot};
use proptest::prelude::{Strategy, any, prop, prop_assert_eq, prop_oneof, proptest};

use super::{Delta, Item};
use crate::kubernetes::form;
use crate::kubernetes::resource::{Namespace, Resource};
use crate::{Event, Problem};

/// By the layout of Kubernetes, where a part has several kinds, and one thing stands for several objects.
type Mirror = super::Mirror<Namespace>;
type News = super::News<Resource>;

const KINDS: [Kind; 3] = [Kind::Node, Kind::Lease, Kind::Claim];

fn node(name: &str, lease: Option<u32>) -> Item {
    let text = lease.map(|mtu| format!("{{\"backend\":{{\"type\":\"test\"}},\"mtu\":{mtu}}}"));
    let annotations = text.map(|text| serde_json::json!({"fairlead.io/lease": text}));
    let object =
        serde_json::json!({"metadata": {"name": name, "resourceVersion": "7", "annotations": annotations}});
    form::item(Resource::Nodes, object.to_string().as_bytes()).unwrap()
}

fn broken(name: &str) -> Item {
    let object = serde_json::json!({"metadata": {"name": name, "annotations": {"fairlead.io/lease": "{"}}});
    form::item(Resource::Nodes, object.to_string().as_bytes()).unwrap()
}

fn claim(name: &str, node: &str) -> Item {
    let object = serde_json::json!({"metadata": {"name": name}, "spec": {"holderIdentity": node}});
    form::item(Resource::Claims, object.to_string().as_bytes()).unwrap()
}

fn nodes(items: Vec<Item>) -> News {
    News::Listed { part: Resource::Nodes, items, lost: false }
}

fn claims(items: Vec<Item>) -> News {
    News::Listed { part: Resource::Claims, items, lost: false }
}

fn events(mirror: &mut Mirror) -> Vec<Event> {
    std::iter::from_fn(|| mirror.next()).collect()
}

/// A mirror that is in sync with node1, its lease and one claim of it.
fn in_sync() -> Mirror {
    let mut mirror = Mirror::new(&KINDS, Namespace("kube-system".to_owned()));
    mirror.take(nodes(vec![node("node1", Some(1450))]));
    mirror.take(claims(vec![claim("fairlead-10-244-1-0-24", "node1")]));
    let told = events(&mut mirror);
    assert!(matches!(&told[..], [Event::Snapshot(_), Event::InSync]), "{told:?}");
    mirror
}

fn changed(delta: Delta) -> News {
    News::Changed(Resource::Nodes, vec![delta])
}

fn problems(events: &[Event]) -> Vec<Problem> {
    let last = events.iter().rev().find_map(|event| match event {
        Event::Problems(problems) => Some(problems.clone()),
        _ => None,
    });
    last.expect("problems are told")
}

#[test]
fn the_snapshot_waits_for_the_last_list() {
    let mut mirror = Mirror::new(&KINDS, Namespace("kube-system".to_owned()));
    mirror.take(nodes(vec![node("node1", Some(1450)), node("node2", None)]));
    mirror.take(News::Reached(Resource::Nodes));
    mirror.take(changed(Delta::Set(node("node3", None))));
    assert_eq!(events(&mut mirror), []);
    mirror.take(claims(Vec::new()));
    let told = events(&mut mirror);
    let [Event::Snapshot(snapshot), Event::InSync] = &told[..] else { panic!("{told:?}") };
    assert_eq!((snapshot.nodes.len(), snapshot.leases.len(), snapshot.claims.len()), (3, 1, 0));
    assert!(snapshot.leases.contains_key("node1"));
}

#[test]
fn a_watch_of_nothing_that_the_api_has_is_in_sync_at_once() {
    let mut mirror = Mirror::new(&[Kind::PodStatus], Namespace("kube-system".to_owned()));
    assert_eq!(events(&mut mirror), [Event::Snapshot(Snapshot::default()), Event::InSync]);
}

#[test]
fn of_a_node_only_the_kinds_asked_for_are_told() {
    let mut mirror = Mirror::new(&[Kind::Node], Namespace("kube-system".to_owned()));
    mirror.take(nodes(vec![node("node1", Some(1450)), broken("node2")]));
    let told = events(&mut mirror);
    let [Event::Snapshot(snapshot), Event::InSync] = &told[..] else { panic!("{told:?}") };
    assert_eq!((snapshot.nodes.len(), snapshot.leases.len()), (2, 0));
}

#[test]
fn a_heartbeat_is_no_change_and_a_new_list_tells_the_difference_only() {
    let mut mirror = in_sync();
    mirror.take(changed(Delta::Set(node("node1", Some(1450)))));
    mirror.take(nodes(vec![node("node1", Some(1450))]));
    assert_eq!(events(&mut mirror), []);
    mirror.take(nodes(vec![node("node1", Some(1400)), node("node2", None)]));
    let told = events(&mut mirror);
    let [Event::Changes(changes)] = &told[..] else { panic!("{told:?}") };
    let keys: BTreeSet<Key> = changes.iter().map(Change::key).collect();
    assert_eq!(keys, [Key::Node("node2".into()), Key::Lease("node1".into())].into());
    mirror.take(nodes(vec![node("node2", None)]));
    let told = events(&mut mirror);
    let want = [Key::Node("node1".into()), Key::Lease("node1".into())].map(Change::Removed);
    assert_eq!(told, [Event::Changes(want.into())], "a claim is another resource's");
}

#[test]
fn a_node_takes_its_lease_with_it_and_what_is_gone_comes_first() {
    let mut mirror = in_sync();
    let deltas = vec![
        Delta::Set(node("node0", None)),
        Delta::Gone(Resource::Nodes.keys("", "node1")),
        Delta::Set(node("node2", None)),
    ];
    mirror.take(News::Changed(Resource::Nodes, deltas));
    let told = events(&mut mirror);
    let [Event::Changes(changes)] = &told[..] else { panic!("{told:?}") };
    let removed: Vec<bool> = changes.iter().map(|change| matches!(change, Change::Removed(_))).collect();
    assert_eq!(removed, [true, true, false, false]);
    // Gone and back within one step is one change at most.
    let deltas = vec![Delta::Gone(Resource::Nodes.keys("", "node2")), Delta::Set(node("node2", None))];
    mirror.take(News::Changed(Resource::Nodes, deltas));
    assert_eq!(events(&mut mirror), []);
    mirror.take(changed(Delta::Set(node("node2", Some(1450)))));
    mirror.take(changed(Delta::Set(node("node2", None))));
    assert!(matches!(&events(&mut mirror)[1..], [Event::Changes(changes)] if changes.len() == 1));
}

#[test]
fn a_broken_lease_is_told_and_its_last_good_version_stays() {
    let mut mirror = in_sync();
    mirror.take(changed(Delta::Set(broken("node1"))));
    let told = events(&mut mirror);
    let [problem] = &problems(&told)[..] else { panic!("{told:?}") };
    let told = problem.to_string();
    let want =
        "/api/v1/nodes/node1: lease of node node1: metadata.annotations[\"fairlead.io/lease\"] EOF while";
    assert!(told.starts_with(want), "{told}");
    mirror.take(nodes(vec![broken("node1")]));
    assert_eq!(events(&mut mirror), [], "the same problem is told once");
    mirror.take(changed(Delta::Set(node("node1", Some(1450)))));
    assert_eq!(events(&mut mirror), [Event::Problems(Vec::new())], "it never went");
    mirror.take(changed(Delta::Set(broken("node1"))));
    mirror.take(changed(Delta::Gone(Resource::Nodes.keys("", "node1"))));
    let told = events(&mut mirror);
    assert_eq!(problems(&told), []);
    assert!(matches!(&told[1], Event::Changes(changes) if changes.len() == 2), "{told:?}");
}

#[test]
fn an_outage_is_told_once_and_takes_nothing_away() {
    let mut mirror = in_sync();
    let failed = |resource| News::Failed(resource, "away".to_owned());
    mirror.take(failed(Resource::Nodes));
    mirror.take(failed(Resource::Claims));
    mirror.take(failed(Resource::Nodes));
    assert_eq!(events(&mut mirror), [Event::Unavailable { reason: "away".to_owned() }]);
    mirror.take(News::Reached(Resource::Nodes));
    assert_eq!(events(&mut mirror), [], "claims cannot be read yet");
    mirror.take(News::Reached(Resource::Claims));
    assert_eq!(events(&mut mirror), [Event::Available]);
    let mut late = Mirror::new(&KINDS, Namespace("kube-system".to_owned()));
    late.take(failed(Resource::Nodes));
    late.take(nodes(Vec::new()));
    late.take(claims(Vec::new()));
    let told = events(&mut late);
    assert!(
        matches!(&told[..], [Event::Unavailable { .. }, Event::Available, Event::Snapshot(_), Event::InSync]),
        "{told:?}"
    );
}

#[test]
fn what_a_server_has_lost_stays_in_force() {
    let mut mirror = in_sync();
    mirror.take(News::Listed { part: Resource::Nodes, items: Vec::new(), lost: true });
    mirror.take(News::Listed { part: Resource::Claims, items: Vec::new(), lost: true });
    let told = events(&mut mirror);
    assert!(told.iter().all(|event| matches!(event, Event::Problems(_))), "{told:?}");
    assert!(problems(&told)[0].to_string().contains("lost 3 of its objects; they stay in force"));
    // The kubelet makes its Node anew; only then can the agent write what was its own.
    mirror.take(changed(Delta::Set(node("node1", None))));
    let told = events(&mut mirror);
    assert!(problems(&told)[0].to_string().contains("lost 2 of its objects"), "{told:?}");
    let lost = vec![Key::Lease("node1".into()), Key::Claim("10.244.1.0/24".parse().unwrap())];
    assert_eq!(told[1..], [Event::Lost(lost)]);
    mirror.take(nodes(vec![node("node1", None)]));
    assert_eq!(events(&mut mirror), [], "it was told");
    mirror.take(changed(Delta::Set(node("node1", Some(1450)))));
    mirror.take(claims(vec![claim("fairlead-10-244-1-0-24", "node1")]));
    let told = events(&mut mirror);
    assert!(matches!(&told[..], [Event::Problems(_), Event::Problems(none)] if none.is_empty()), "{told:?}");
    // From now on what goes was removed by somebody.
    mirror.take(changed(Delta::Set(node("node1", None))));
    mirror.take(claims(Vec::new()));
    assert!(matches!(&events(&mut mirror)[..], [Event::Changes(_), Event::Changes(_)]));
}

#[test]
fn what_was_lost_is_told_once_every_part_has_been_looked_at_again() {
    let mut mirror = in_sync();
    mirror.take(News::Doubted(Resource::Nodes));
    mirror.take(News::Doubted(Resource::Claims));
    mirror.take(News::Listed { part: Resource::Claims, items: Vec::new(), lost: true });
    let told = events(&mut mirror);
    assert!(matches!(&told[..], [Event::Problems(_)]), "its Node may be lost, too: {told:?}");
    mirror.take(News::Reached(Resource::Nodes));
    let told = events(&mut mirror);
    assert!(matches!(&told[..], [Event::Lost(keys)] if keys.len() == 1), "{told:?}");
}

#[test]
fn a_node_that_is_removed_after_a_loss_takes_its_lease_with_it() {
    let mut mirror = in_sync();
    mirror.take(News::Listed { part: Resource::Nodes, items: vec![node("node1", None)], lost: true });
    let told = events(&mut mirror);
    assert!(matches!(&told[..], [Event::Problems(_), Event::Lost(keys)] if keys.len() == 1), "{told:?}");
    mirror.take(changed(Delta::Gone(Resource::Nodes.keys("", "node1"))));
    let told = events(&mut mirror);
    assert!(
        matches!(&told[..], [Event::Changes(changes), Event::Problems(_)] if changes.len() == 2),
        "{told:?}"
    );
}

/// What may happen at the server, or on the way.
#[derive(Debug, Clone)]
enum Step {
    Put(usize, Option<u32>),
    Remove(usize),
    /// The watch is lost, and everything listed again.
    Relist,
    Fail,
    Reach,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..5usize, any::<bool>().prop_map(|lease| lease.then_some(1450)))
            .prop_map(|(node, lease)| Step::Put(node, lease)),
        2 => (0..5usize).prop_map(Step::Remove),
        1 => proptest::strategy::Just(Step::Relist),
        1 => proptest::strategy::Just(Step::Fail),
        1 => proptest::strategy::Just(Step::Reach),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_the_events_add_up_to_what_the_server_has(
        steps in prop::collection::vec((step(), any::<bool>()), 0..40),
    ) {
        let mut server = std::collections::BTreeMap::<usize, Option<u32>>::new();
        let mut mirror = Mirror::new(&[Kind::Node, Kind::Lease], Namespace("kube-system".to_owned()));
        let list = |server: &std::collections::BTreeMap<usize, Option<u32>>| {
            nodes(server.iter().map(|(number, lease)| node(&format!("node{number}"), *lease)).collect())
        };
        mirror.take(list(&server));
        let mut known = Snapshot::default();
        for (step, seen) in steps {
            // What the watch does not see is lost until the next list.
            let news = match step {
                Step::Put(number, lease) => {
                    server.insert(number, lease);
                    changed(Delta::Set(node(&format!("node{number}"), lease)))
                }
                Step::Remove(number) => {
                    server.remove(&number);
                    changed(Delta::Gone(Resource::Nodes.keys("", &format!("node{number}"))))
                }
                Step::Relist => list(&server),
                Step::Fail => News::Failed(Resource::Nodes, "away".to_owned()),
                Step::Reach => News::Reached(Resource::Nodes),
            };
            if seen {
                mirror.take(news);
            }
        }
        mirror.take(list(&server));
        for event in events(&mut mirror) {
            match event {
                Event::Snapshot(snapshot) => known = snapshot,
                Event::Changes(changes) => {
                    for change in changes {
                        assert!(known.apply(change.clone()), "nothing changed by {change:?}");
                    }
                }
                _ => {}
            }
        }
        let mut fresh = Mirror::new(&[Kind::Node, Kind::Lease], Namespace("kube-system".to_owned()));
        fresh.take(list(&server));
        prop_assert_eq!(known, fresh.into_parts().0);
    }
}
