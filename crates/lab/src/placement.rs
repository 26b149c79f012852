//! Which node takes which pod: what a scheduler would say, made simple and the same every time.
//!
//! Pure. A pod whose manifest names a node goes there; any other goes to the node with the fewest pods, the
//! first of equals, in the order of the pods' names. A pod once placed stays.

use std::collections::BTreeMap;
use std::sync::Arc;

use cluster::{NamespacedName, Snapshot};

/// Where a pod goes, or why nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Node(Arc<str>),
    Nowhere(String),
}

/// Places every pod that has not ended. `placed` says where pods already are.
pub(crate) fn place(
    snapshot: &Snapshot,
    nodes: &[Arc<str>],
    placed: &BTreeMap<NamespacedName, Arc<str>>,
) -> BTreeMap<NamespacedName, Place> {
    let mut loads = vec![0_usize; nodes.len()];
    let mut places = BTreeMap::new();
    let pods = || snapshot.pods.iter().filter(|(_, pod)| !pod.phase.ended());
    for (name, pod) in pods() {
        let Some(node) = pod.node.as_ref().or_else(|| placed.get(name)) else { continue };
        let place = match nodes.iter().position(|candidate| candidate == node) {
            Some(index) => {
                loads[index] += 1;
                Place::Node(Arc::clone(&nodes[index]))
            }
            None => Place::Nowhere(format!("its node {node} is not part of the lab")),
        };
        places.insert(name.clone(), place);
    }
    for (name, _) in pods() {
        if places.contains_key(name) {
            continue;
        }
        let lightest = (0..nodes.len()).min_by_key(|index| loads[*index]);
        let place = match lightest {
            Some(index) => {
                loads[index] += 1;
                Place::Node(Arc::clone(&nodes[index]))
            }
            None => Place::Nowhere("the lab has no nodes".to_owned()),
        };
        places.insert(name.clone(), place);
    }
    places
}

#[cfg(test)]
mod tests {
    use cluster::{Change, Object, Phase, Pod};

    use super::*;

    fn pod(name: &str, node: Option<&str>) -> Pod {
        let mut pod = Pod::named(NamespacedName::new("default", name));
        pod.node = node.map(Arc::from);
        pod
    }

    fn snapshot(pods: impl IntoIterator<Item = Pod>) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for pod in pods {
            snapshot.apply(Change::Set(Object::from(pod)));
        }
        snapshot
    }

    fn nodes(count: usize) -> Vec<Arc<str>> {
        (1..=count).map(|number| Arc::from(format!("node{number}"))).collect()
    }

    fn text(places: &BTreeMap<NamespacedName, Place>) -> Vec<String> {
        places
            .iter()
            .map(|(name, place)| match place {
                Place::Node(node) => format!("{} {node}", name.name),
                Place::Nowhere(reason) => format!("{} nowhere: {reason}", name.name),
            })
            .collect()
    }

    #[test]
    fn a_named_node_is_honoured_and_the_rest_go_to_the_least_loaded() {
        let snapshot = snapshot([pod("a", None), pod("b", Some("node1")), pod("c", None), pod("d", None)]);
        let places = place(&snapshot, &nodes(3), &BTreeMap::new());
        assert_eq!(text(&places), ["a node2", "b node1", "c node3", "d node1"]);
    }

    #[test]
    fn a_pod_once_placed_stays() {
        let placed = BTreeMap::from([(NamespacedName::new("default", "z"), Arc::from("node2"))]);
        let snapshot = snapshot([pod("a", None), pod("z", None)]);
        assert_eq!(text(&place(&snapshot, &nodes(2), &placed)), ["a node1", "z node2"]);
    }

    #[test]
    fn a_node_outside_the_lab_is_told() {
        let places = place(&snapshot([pod("a", Some("mars"))]), &nodes(1), &BTreeMap::new());
        assert_eq!(text(&places), ["a nowhere: its node mars is not part of the lab"]);
    }

    #[test]
    fn a_pod_that_has_ended_takes_no_place() {
        let mut done = pod("a", None);
        done.phase = Phase::Succeeded;
        assert!(place(&snapshot([done]), &nodes(1), &BTreeMap::new()).is_empty());
    }
}
