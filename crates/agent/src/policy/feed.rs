//! One watch of the store for two: what the loop of `reconcile.rs` decides by, and what policies do.
//!
//! Read [`Feed::share`]. Neither is woken by what concerns the other alone. Objects are behind `Arc`s, so each is in
//! memory once. Policies that are switched on later have a watch of their own ([`feed`]).

use std::sync::mpsc::Sender;
use std::time::Instant;

use cluster::{Change, Kind, Snapshot};
use store::{Event, Events};

use super::keeper::News;

/// What policies decide by, beside nodes.
pub(crate) const KINDS: [Kind; 5] =
    [Kind::Namespace, Kind::Pod, Kind::PodStatus, Kind::NetworkPolicy, Kind::ClusterNetworkPolicy];

/// Tells the keeper of policies everything of a watch of their own ([`all_kinds`]).
pub(super) fn feed(news: &Sender<News>, watch: Events) {
    for event in watch {
        if !tell(news, event) {
            return;
        }
    }
}

/// All that policies decide by.
pub(super) fn all_kinds() -> Vec<Kind> {
    [&KINDS[..], &[Kind::Node]].concat()
}

/// False if nobody listens any more.
fn tell(news: &Sender<News>, event: Event) -> bool {
    news.send(News::Store(Instant::now(), Box::new(event))).is_ok()
}

/// Hands policies their part of the store's news.
#[derive(Debug)]
pub(crate) struct Feed {
    news: Option<Sender<News>>,
}

impl Feed {
    /// For a keeper of policies, if there is one.
    pub(super) fn new(news: Option<Sender<News>>) -> Self {
        Self { news }
    }

    /// Tells the keeper of policies what is for it, and returns what is for others.
    pub(crate) fn share(&self, event: Event) -> Option<Event> {
        let Some(news) = &self.news else { return Some(event) };
        let tell = |event| {
            // A keeper that is gone is no reason to stop the others.
            let _ = tell(news, event);
        };
        match event {
            Event::Snapshot(snapshot) => {
                let Snapshot { nodes, leases, claims, services, endpoint_slices, service_cidrs, .. } =
                    snapshot;
                tell(Event::Snapshot(Snapshot {
                    nodes: nodes.clone(),
                    namespaces: snapshot.namespaces,
                    pods: snapshot.pods,
                    pod_statuses: snapshot.pod_statuses,
                    network_policies: snapshot.network_policies,
                    cluster_network_policies: snapshot.cluster_network_policies,
                    ..Snapshot::default()
                }));
                Some(Event::Snapshot(Snapshot {
                    nodes,
                    leases,
                    claims,
                    services,
                    endpoint_slices,
                    service_cidrs,
                    ..Snapshot::default()
                }))
            }
            Event::Confirmed(_) => {
                tell(event);
                None
            }
            Event::InSync => {
                tell(Event::InSync);
                Some(Event::InSync)
            }
            Event::Changes(changes) => {
                let about = |change: &Change| change.key().kind();
                let ours = |change: &Change| about(change) == Kind::Node || KINDS.contains(&about(change));
                let for_policies: Vec<Change> =
                    changes.iter().filter(|change| ours(change)).cloned().collect();
                if !for_policies.is_empty() {
                    tell(Event::Changes(for_policies));
                }
                let mut rest = changes;
                rest.retain(|change| !KINDS.contains(&about(change)));
                (!rest.is_empty()).then_some(Event::Changes(rest))
            }
            other => {
                if matches!(other, Event::Unavailable { .. } | Event::Available) {
                    tell(other.clone());
                }
                Some(other)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use cluster::{Namespace, Node};

    use super::*;

    #[test]
    fn each_hears_of_what_concerns_it_alone() {
        let (news, heard) = mpsc::channel();
        let feed = Feed::new(Some(news));
        let told = || match heard.try_recv() {
            Ok(News::Store(_, event)) => Some(*event),
            _ => None,
        };
        let node = Change::Set(Node::named("node1").into());
        let namespace =
            Change::Set(Namespace { name: "shop".into(), labels: cluster::Labels::default() }.into());
        let mut snapshot = Snapshot::default();
        for change in [&node, &namespace] {
            snapshot.apply(change.clone());
        }
        let Some(Event::Snapshot(rest)) = feed.share(Event::Snapshot(snapshot)) else { panic!() };
        assert!(rest.nodes.len() == 1 && rest.namespaces.is_empty());
        assert!(
            matches!(told(), Some(Event::Snapshot(whole)) if whole.nodes.len() + whole.namespaces.len() == 2)
        );

        assert_eq!(feed.share(Event::Changes(vec![namespace.clone()])), None, "the loop sleeps on");
        assert_eq!(told(), Some(Event::Changes(vec![namespace.clone()])));
        let both = feed.share(Event::Changes(vec![namespace, node.clone()]));
        assert_eq!(both, Some(Event::Changes(vec![node])));
        assert!(matches!(told(), Some(Event::Changes(changes)) if changes.len() == 2));
        assert_eq!(feed.share(Event::Available), Some(Event::Available));
        assert_eq!(told(), Some(Event::Available), "whether the store is away concerns both");
        assert_eq!(feed.share(Event::Lost(Vec::new())), Some(Event::Lost(Vec::new())));
        assert_eq!(told(), None);
    }
}
