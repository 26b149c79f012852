//! What the agent counts, as Prometheus reads it.
//!
//! Read [`text`]: a [`Status`] in, its numbers out, in the OpenMetrics format 1.0. They are what `fairlead status` shows, so
//! there is one account of the node; only what the rules of policies have counted is read when it is asked for
//! (`policy_counts.rs`). Names and units follow Prometheus' conventions:
//! base units, and `_total` behind what only grows.

mod policy_counts;

use std::sync::atomic::AtomicU64;

use policy::Count;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::status::{PeerState, Status, SupplyStatus};

/// The content type of the text.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;

/// A node's numbers.
pub(crate) fn text(status: &Status, counts: &[Count]) -> String {
    let mut registry = Registry::with_prefix("fairlead");
    node(&mut registry, status);
    peers(&mut registry, status);
    store(&mut registry, status);
    work(&mut registry, status);
    tunnels(&mut registry, status);
    wireguard(&mut registry, status);
    policies(&mut registry, status);
    policy_counts::register(&mut registry, counts);
    let mut text = String::new();
    // To write into a string does not fail.
    let _ = encode(&mut text, &registry);
    text
}

fn node(registry: &mut Registry, status: &Status) {
    let labels = vec![
        ("node", status.node.clone()),
        ("version", status.version.clone()),
        ("backend", status.backend.kind.clone()),
    ];
    registry.register("agent", "The agent and its node", Info::new(labels));
    gauge(registry, "node_ready", "Whether the node can carry a new pod", status.ready.into());
    gauge(
        registry,
        "node_problems",
        "What is wrong and keeps no pod from being carried",
        count(&status.problems),
    );
    gauge(
        registry,
        "host_firewall_closed",
        "Chains of the host's own firewall that drop what pods send to other nodes",
        count(&status.firewall_closed),
    );
    gauge(registry, "node_conflicts", "Foreign kernel objects in the way", count(&status.conflicts));
    let mtu = Gauge::<i64>::default();
    mtu.set(status.mtu.into());
    registry.register_with_unit("pod_mtu", "The largest packet that a pod sends", Unit::Bytes, mtu);
    let help = "Pod CIDRs in the cluster's network that nodes take theirs out of";
    supply(registry, "pod_cidrs", help, &status.pod_cidr_supply);
    let help = "Addresses in the node's pod CIDR that pods have, or can";
    supply(registry, "pod_addresses", help, &status.pod_address_supply);
}

/// How much of each network is taken, and how much is left.
fn supply(registry: &mut Registry, name: &str, help: &str, supplies: &[SupplyStatus]) {
    let gauges = Family::<Labels, Gauge<i64>>::default();
    for supply in supplies {
        for (state, number) in [("taken", supply.taken), ("free", supply.free)] {
            let labels = vec![("network", supply.network.to_string()), ("state", state.to_owned())];
            gauges.get_or_create(&labels).set(i64::try_from(number).unwrap_or(i64::MAX));
        }
    }
    registry.register(name, help, gauges);
}

fn peers(registry: &mut Registry, status: &Status) {
    let states = Family::<Labels, Gauge<i64>>::default();
    for state in PeerState::ALL {
        let found = status.peers.iter().filter(|peer| peer.state == state).count();
        let gauge = states.get_or_create(&vec![("state", state.name().to_owned())]);
        gauge.set(i64::try_from(found).unwrap_or(i64::MAX));
    }
    registry.register("peers", "The other nodes, by how this one stands to them", states);
    let probed = status.peers.iter().filter_map(|peer| peer.probed_mtu);
    let answering = i64::try_from(probed.clone().count()).unwrap_or(i64::MAX);
    gauge(registry, "peers_probed", "Peers of which is known what the path to them carries", answering);
    let smallest = Gauge::<i64>::default();
    smallest.set(probed.min().unwrap_or_default().into());
    let help = "The least that a path to a peer was seen to carry; 0 before any is known";
    registry.register_with_unit("smallest_path_mtu", help, Unit::Bytes, smallest);
}

fn store(registry: &mut Registry, status: &Status) {
    let store = &status.store;
    gauge(registry, "store_in_sync", "Whether the store has been read whole once", store.in_sync.into());
    gauge(registry, "store_away", "Whether the store cannot be read now", store.away.is_some().into());
    gauge(
        registry,
        "store_broken_objects",
        "Objects whose last good version is in force",
        count(&store.broken),
    );
}

fn work(registry: &mut Registry, status: &Status) {
    counter(registry, "reconciles", "Looks at the kernel", status.reconciles);
    counter(registry, "kernel_changes", "Changes that were made in the kernel", status.changes);
    counter(registry, "heals", "Looks that put right what somebody else had changed", status.heals);
    counter(registry, "failures", "Looks in which something failed", status.failures);
    time(registry, "reconcile", "Time spent in looks at the kernel", status.spent);
}

/// What the agent carries itself.
fn tunnels(registry: &mut Registry, status: &Status) {
    let packets = Family::<Labels, Counter<u64>>::default();
    let bytes = Family::<Labels, Counter<u64>>::default();
    let dropped = Family::<Labels, Counter<u64>>::default();
    for tunnel in &status.tunnels {
        for peer in &tunnel.peers {
            let both = [
                ("sent", peer.sent_packets, peer.sent_bytes),
                ("received", peer.received_packets, peer.received_bytes),
            ];
            for (direction, number, size) in both {
                let labels = vec![
                    ("tunnel", tunnel.kind.clone()),
                    ("peer", peer.node.clone()),
                    ("direction", direction.to_owned()),
                ];
                packets.get_or_create(&labels).inc_by(number);
                bytes.get_or_create(&labels).inc_by(size);
            }
        }
        for (reason, number) in &tunnel.dropped {
            let labels = vec![("tunnel", tunnel.kind.clone()), ("reason", reason.clone())];
            dropped.get_or_create(&labels).inc_by(*number);
        }
    }
    registry.register("tunnel_packets", "Packets through tunnels that the agent carries", packets);
    let help = "Bytes of those packets, without what the tunnel adds";
    registry.register_with_unit("tunnel_payload", help, Unit::Bytes, bytes);
    registry.register("tunnel_dropped_packets", "Packets that those tunnels dropped", dropped);
}

/// What WireGuard refused, and what the kernel's says of its peers.
fn wireguard(registry: &mut Registry, status: &Status) {
    let handshakes = Family::<Labels, Gauge<i64>>::default();
    let bytes = Family::<Labels, Counter<u64>>::default();
    for peer in &status.kernel_peers {
        let of_peer = ("peer", peer.node.clone());
        if let Some(moment) = peer.last_handshake {
            let gauge = handshakes.get_or_create(&vec![of_peer.clone()]);
            gauge.set(i64::try_from(moment).unwrap_or(i64::MAX));
        }
        for (direction, size) in [("sent", peer.sent_bytes), ("received", peer.received_bytes)] {
            let labels = vec![of_peer.clone(), ("direction", direction.to_owned())];
            bytes.get_or_create(&labels).inc_by(size);
        }
    }
    if let Some(refused) = status.backend.refused {
        let help =
            "Packets to pods of the cluster that WireGuard refused, for there is no way to whom they are for";
        counter(registry, "wireguard_refused_packets", help, refused);
    }
    let help = "When the kernel's WireGuard and a peer last agreed on a session, since 1970";
    registry.register_with_unit("wireguard_last_handshake_timestamp", help, Unit::Seconds, handshakes);
    let help = "Bytes to and from peers of the kernel's WireGuard, with what it adds";
    registry.register_with_unit("wireguard", help, Unit::Bytes, bytes);
}

fn policies(registry: &mut Registry, status: &Status) {
    let known = &status.policies;
    let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    gauge(
        registry,
        "policies_enforced",
        "Whether the kernel enforces all known policies",
        known.enforced.into(),
    );
    let kinds = Family::<Labels, Gauge<i64>>::default();
    let both =
        [("NetworkPolicy", known.network_policies), ("ClusterNetworkPolicy", known.cluster_network_policies)];
    for (kind, count) in both {
        kinds.get_or_create(&vec![("kind", kind.to_owned())]).set(number(count));
    }
    registry.register("policies", "Network policies in the cluster", kinds);
    let invalid = "Policies with what cannot be read, and allows nothing";
    gauge(registry, "policies_invalid", invalid, count(&known.invalid));
    let refused = "Policies that the kernel refuses; their pods are isolated and they allow nothing";
    gauge(registry, "policies_refused", refused, count(&known.refused));
    gauge(registry, "local_pods", "Pods of this node that policies can be about", number(known.local_pods));
    gauge(registry, "isolated_pods", "Those that some are about", number(known.isolated_pods));
    gauge(registry, "attachments_waiting", "Pods that wait for their policies", number(known.waiting));
    counter(
        registry,
        "policy_generation",
        "Changes of policies, pods and namespaces that were heard of",
        known.generation,
    );
    counter(registry, "policy_programmed_generation", "Those of them that the kernel has", known.programmed);
    counter(registry, "policy_changes", "Changes of the kernel's table of policies", known.changes);
    counter(registry, "policy_heals", "How often that table was put right", known.heals);
    counter(registry, "policy_failures", "How often the kernel refused it", known.failures);
    counter(registry, "policy_cut_connections", "Connections cut that nothing allowed any more", known.cut);
    let help = "Time from the store's word of a change to the kernel's table, of all changes";
    time(registry, "policy_programming", help, known.spent);
}

/// A time that has come together, in seconds.
fn time(registry: &mut Registry, name: &str, help: &str, microseconds: u64) {
    let spent = Counter::<f64, AtomicU64>::default();
    spent.inc_by(microseconds as f64 / 1e6);
    registry.register_with_unit(name, help, Unit::Seconds, spent);
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: i64) {
    let gauge = Gauge::<i64>::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

fn counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let counter = Counter::<u64>::default();
    counter.inc_by(value);
    registry.register(name, help, counter);
}

fn count(lines: &[String]) -> i64 {
    i64::try_from(lines.len()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::text;
    use crate::policy::PolicyStatus;
    use crate::status::{BackendStatus, KernelPeer, PeerState, PeerStatus, Status, SupplyStatus};

    /// Of a node that has something to say of everything.
    fn status() -> Status {
        let peer = PeerStatus {
            node: "node2".into(),
            pod_cidrs: Vec::new(),
            underlay: Vec::new(),
            state: PeerState::Ignored,
            path: String::new(),
            mtu: 0,
            probed_mtu: Some(1400),
            changed: None,
            problem: None,
        };
        Status {
            node: "node1".into(),
            ready: true,
            mtu: 1450,
            pod_cidr_supply: vec![SupplyStatus {
                network: "10.244.0.0/16".parse().unwrap(),
                total: 256,
                taken: 3,
                free: 253,
            }],
            backend: BackendStatus { refused: Some(11), ..BackendStatus::default() },
            peers: vec![peer],
            changes: 7,
            kernel_peers: vec![KernelPeer {
                node: "node2".into(),
                last_handshake: Some(1_700_000_000),
                sent_bytes: 148,
                received_bytes: 92,
            }],
            spent: 1_500_000,
            policies: PolicyStatus {
                enforced: true,
                network_policies: 3,
                heals: 2,
                ..PolicyStatus::default()
            },
            ..Status::default()
        }
    }

    #[test]
    fn the_numbers_are_those_of_the_status() {
        let text = text(&status(), &[]);
        for line in [
            "fairlead_node_ready 1",
            "fairlead_pod_mtu_bytes 1450",
            "fairlead_pod_cidrs{network=\"10.244.0.0/16\",state=\"taken\"} 3",
            "fairlead_pod_cidrs{network=\"10.244.0.0/16\",state=\"free\"} 253",
            "fairlead_peers{state=\"ignored\"} 1",
            "fairlead_peers{state=\"programmed\"} 0",
            "fairlead_peers_probed 1",
            "fairlead_smallest_path_mtu_bytes 1400",
            "fairlead_kernel_changes_total 7",
            "fairlead_wireguard_last_handshake_timestamp_seconds{peer=\"node2\"} 1700000000",
            "fairlead_wireguard_bytes_total{peer=\"node2\",direction=\"sent\"} 148",
            "fairlead_wireguard_refused_packets_total 11",
            "fairlead_reconcile_seconds_total 1.5",
            "fairlead_policies_enforced 1",
            "fairlead_policies{kind=\"NetworkPolicy\"} 3",
            "fairlead_policy_heals_total 2",
            "fairlead_agent_info{node=\"node1\",version=\"\",backend=\"\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
