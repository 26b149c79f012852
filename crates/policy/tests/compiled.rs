//! The compiled table against the evaluator, and the incremental one against the whole: random clusters that change.
//!
//! The worlds are small on purpose, so that policies, pods and addresses meet, contradict and replace each other a lot.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod interpreter;
#[path = "compiled/world.rs"]
mod world;

use std::net::IpAddr;

use cluster::{Protocol, Snapshot};
use interpreter::{Node, Packet, carry_out, crosses, passes};
use netstate::nft::{Hook, Table, ct_state};
use policy::{Flow, Policies, Traffic};
use proptest::prelude::{prop_assert_eq, proptest};
use world::{Event, NODES, addresses, events};

fn take(policies: &mut Policies, table: &mut Table, event: &Event) {
    let emitted = match event {
        Event::Change(change) => policies.apply(change),
        Event::Resolved(name) => policies.resolve(name.clone()),
    };
    carry_out(table, &emitted.steps);
}

fn fresh(node: &str, policies: &Policies, events: &[Event]) -> Policies {
    let mut fresh = Policies::new(node, policies.cluster().snapshot().clone());
    for event in events {
        if let Event::Resolved(name) = event {
            fresh.resolve(name.clone());
        }
    }
    fresh
}

/// Each node as it is: its table, its addresses, and those of the pods that run there.
fn nodes(all: &[Policies]) -> Vec<Node> {
    let node = |(name, policies): (&&str, &Policies)| {
        let cluster = policies.cluster();
        let own = cluster.snapshot().nodes.get(*name).map_or(Vec::new(), |node| node.addresses.to_vec());
        let runs_here = |address: &IpAddr| {
            cluster.party(*address).member.is_some_and(|member| member.node.as_deref() == Some(*name))
        };
        Node { own, pods: addresses().into_iter().filter(runs_here).collect(), table: policies.full() }
    };
    NODES.iter().zip(all).map(node).collect()
}

const TRAFFIC: [Traffic; 6] = [
    Traffic::Port(Protocol::Tcp, 80),
    Traffic::Port(Protocol::Tcp, 81),
    Traffic::Port(Protocol::Udp, 80),
    Traffic::Port(Protocol::Sctp, 81),
    Traffic::Other(1),
    Traffic::Other(47),
];

fn numbers(traffic: Traffic) -> (u8, u16) {
    match traffic {
        Traffic::Port(Protocol::Tcp, port) => (6, port),
        Traffic::Port(Protocol::Udp, port) => (17, port),
        Traffic::Port(Protocol::Sctp, port) => (132, port),
        Traffic::Other(protocol) => (protocol, 8),
    }
}

proptest! {
    #[test]
    fn steps_lead_to_the_table_that_is_computed_anew(events in events(1..24)) {
        let mut all = NODES.map(|node| Policies::new(node, Snapshot::default()));
        let mut tables = [all[0].full(), all[1].full()];
        for (count, event) in events.iter().enumerate() {
            for ((policies, table), node) in all.iter_mut().zip(&mut tables).zip(NODES) {
                take(policies, table, event);
                prop_assert_eq!(&policies.full().to_string(), &table.to_string(), "after {:?}", event);
                let fresh = fresh(node, policies, &events[..=count]);
                prop_assert_eq!(&fresh.full().to_string(), &table.to_string(), "after {:?}", event);
            }
        }
    }

    #[test]
    fn the_table_judges_every_flow_as_the_evaluator_does(events in events(12..40)) {
        let mut all = NODES.map(|node| Policies::new(node, Snapshot::default()));
        for event in &events {
            all.iter_mut().for_each(|policies| drop(match event {
                Event::Change(change) => policies.apply(change),
                Event::Resolved(name) => policies.resolve(name.clone()),
            }));
        }
        let nodes = nodes(&all);
        let cluster = all[0].cluster();
        for source in addresses() {
            for destination in addresses().into_iter().filter(|other| other.is_ipv4() == source.is_ipv4()) {
                let member = |address| cluster.party(address).member;
                let name = |address| member(address).map(|member| member.name().clone());
                // Nobody enforces anything for a pod that is on no node yet.
                let placed = |address| member(address).is_none_or(|member| member.node.is_some());
                if !placed(source) || !placed(destination) {
                    continue;
                }
                // What a pod sends to its own address never leaves it, unless a Service sent it there.
                let itself = name(source).is_some() && name(source) == name(destination);
                for traffic in TRAFFIC {
                    let flow = Flow { source, destination, traffic, through_service: itself };
                    let (protocol, number) = numbers(traffic);
                    let judged = all[0].verdict(&flow);
                    let crossed = crosses(&nodes, source, destination, protocol, number);
                    prop_assert_eq!(judged.allows(), crossed, "{}", all[0].explain(&flow));
                    prop_assert_eq!(all[0].explain(&flow).allowed, judged.allows());
                }
            }
        }
    }
}

/// A node whose pod no packet may reach or leave.
fn closed() -> Table {
    let events = world::deny_all();
    let mut snapshot = Snapshot::default();
    for change in events {
        snapshot.apply(change);
    }
    Policies::new("n1", snapshot).full()
}

#[test]
fn an_address_that_moves_to_the_first_pod_of_a_policy_is_in_the_policys_new_set() {
    let changes = world::moving_address();
    let mut policies = Policies::new("n1", Snapshot::default());
    let mut table = policies.full();
    for change in changes {
        take(&mut policies, &mut table, &Event::Change(change));
        assert_eq!(policies.full().to_string(), table.to_string());
    }
    assert!(table.sets.iter().any(|(name, set)| name.starts_with("pods6-") && set.elements.len() == 1));
}

#[test]
fn what_belongs_to_a_connection_passes_whatever_the_policies_say() {
    let table = closed();
    let [pod, far]: [IpAddr; 2] = ["10.0.0.1", "10.9.9.9"].map(|text| text.parse().unwrap());
    for hook in [Hook::Forward, Hook::Input] {
        for (source, destination) in [(pod, far), (far, pod)] {
            let packet = |state| Packet { state, ..Packet::new(hook, source, destination, 6, 80) };
            let refused = !passes(&table, &packet(ct_state::NEW));
            assert_eq!(refused, source == pod || hook == Hook::Forward);
            assert!(passes(&table, &packet(ct_state::ESTABLISHED)));
            assert!(passes(&table, &packet(ct_state::RELATED)));
            assert_eq!(passes(&table, &packet(ct_state::INVALID)), !refused);
        }
    }
}

#[test]
fn neighbour_discovery_always_passes_and_echoes_do_not() {
    let table = closed();
    let [pod, far]: [IpAddr; 2] = ["fd00::1", "fd99::9"].map(|text| text.parse().unwrap());
    for kind in 127..140 {
        let packet = Packet::new(Hook::Input, pod, far, 58, kind);
        assert_eq!(passes(&table, &packet), (133..=137).contains(&kind), "type {kind}");
    }
    assert!(passes(&table, &Packet::new(Hook::Output, far, pod, 58, 128)), "the node itself may");
}
