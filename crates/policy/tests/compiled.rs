//! The compiled table against the evaluator, and the incremental one against the whole: random clusters that change.
//!
//! The worlds are small on purpose, so that policies, pods and addresses meet, contradict and replace each other a lot.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod interpreter;
#[path = "compiled/world.rs"]
mod world;

use std::net::IpAddr;
use std::sync::Arc;

use cluster::{
    Action, Change, ClusterNetworkPolicy, Direction, Key, NamespacedName, NetworkPolicy, Object, Phase, Pod,
    Protocol, Snapshot,
};
use interpreter::{Node, Packet, carry_out, crosses_and_tells, passes};
use netstate::nft::{Hook, Table, Verdict, ct_state, tcp_flags};
use policy::{
    Attached, Counted, Decided, Flow, Judgement, Logging, Outcome, Policies, Told, Traffic, Verdicts,
};
use proptest::prelude::{prop_assert, prop_assert_eq, proptest};
use world::{Event, NODES, addresses, events};

fn take(policies: &mut Policies, table: &mut Table, event: &Event) {
    let emitted = match event {
        Event::Change(change) => policies.apply(change),
        Event::Resolved(name) => policies.resolve(name.clone()),
        Event::Attached(pod, attached) => policies.attach(pod, attached),
    };
    carry_out(table, &emitted.steps);
}

fn fresh(node: &str, policies: &Policies, events: &[Event]) -> Policies {
    let mut fresh = Policies::new(node, policies.cluster().snapshot().clone());
    for event in events {
        match event {
            Event::Resolved(name) => drop(fresh.resolve(name.clone())),
            Event::Attached(pod, attached) => drop(fresh.attach(pod, attached)),
            Event::Change(_) => {}
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
            let member = cluster.party(*address).member;
            let at = member.and_then(|member| member.node).or_else(|| cluster.orphan(*address).cloned());
            at.as_deref() == Some(*name)
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

const EVERYTHING: Logging = Logging { group: Some(7), verdicts: Verdicts::All, per_second: 0 };

/// What a table that tells everything is to tell of a flow.
fn expected(judged: &Judgement) -> Vec<(Decided, Counted)> {
    let mut told = Vec::new();
    for direction in Direction::ALL {
        let decision = judged.of(direction);
        let names = |policies: &[Arc<NetworkPolicy>]| -> Arc<[NamespacedName]> {
            policies.iter().map(|policy| policy.name.clone()).collect()
        };
        let verdict = if decision.allows() { Decided::Allowed } else { Decided::Denied };
        told.extend(match &decision.outcome {
            Outcome::Cluster(at) => {
                Some((verdict, Counted::ClusterRule(direction, at.policy.name.clone(), at.place)))
            }
            Outcome::Allowed(policy, place) => {
                Some((verdict, Counted::Rule(direction, policy.name.clone(), *place)))
            }
            Outcome::Isolated(policies) => Some((verdict, Counted::Isolated(direction, names(policies)))),
            Outcome::Closed => Some((verdict, Counted::Closed(direction))),
            Outcome::Free(_) | Outcome::Hairpin(_) | Outcome::Unjudged => None,
        });
        told.extend(decision.cluster_would_deny.iter().map(|at| {
            (Decided::WouldDeny, Counted::ClusterRule(direction, at.policy.name.clone(), at.place))
        }));
        if !decision.would_deny.is_empty() {
            told.push((Decided::WouldDeny, Counted::WouldDeny(direction, names(&decision.would_deny))));
        }
    }
    told
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
    fn the_table_judges_every_flow_as_the_evaluator_does_and_tells_of_it(events in events(12..40)) {
        let mut all = NODES.map(|node| Policies::with_logging(node, Snapshot::default(), EVERYTHING));
        for event in &events {
            all.iter_mut().for_each(|policies| drop(match event {
                Event::Change(change) => policies.apply(change),
                Event::Resolved(name) => policies.resolve(name.clone()),
                Event::Attached(pod, attached) => policies.attach(pod, attached),
            }));
        }
        let without_ipvs = nodes(&all.clone().map(|mut policies| {
            policies.set_ipvs(false);
            policies
        }));
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
                    let mut told = Vec::new();
                    let packet = |hook| Packet::new(hook, source, destination, protocol, number);
                    let crossed = crosses_and_tells(&nodes, packet, &mut told);
                    prop_assert_eq!(judged.allows(), crossed, "{}", all[0].explain(&flow));
                    // What IPVS sends on passes another hook than what is forwarded.
                    let by_ipvs = |hook| packet(if hook == Hook::Forward { Hook::Output } else { hook });
                    let crossed_by_ipvs = crosses_and_tells(&nodes, by_ipvs, &mut Vec::new());
                    prop_assert_eq!(crossed, crossed_by_ipvs, "{}", all[0].explain(&flow));
                    // Where the kernel has no IPVS all is judged before routing.
                    let early = |hook| packet(if hook == Hook::Output { hook } else { Hook::Prerouting });
                    let crossed_early = crosses_and_tells(&without_ipvs, early, &mut Vec::new());
                    prop_assert_eq!(crossed, crossed_early, "{}", all[0].explain(&flow));
                    prop_assert_eq!(all[0].explain(&flow).allowed, judged.allows());
                    if itself {
                        // What it is told by is as good as the rule that would have let it pass.
                        continue;
                    }
                    let record = |prefix: &String| {
                        let told = Told { time: 0, prefix, source, destination, traffic, source_port: 0 };
                        let record = all.iter().find_map(|policies| policies.record(&told)).unwrap();
                        (record.verdict, record.by)
                    };
                    let told: Vec<_> = told.iter().map(record).collect();
                    let expected = expected(&judged);
                    let foreign = told.iter().find(|told| !expected.contains(told));
                    prop_assert_eq!(foreign, None, "{}", all[0].explain(&flow));
                    if crossed {
                        prop_assert_eq!(told.len(), expected.len(), "{}", all[0].explain(&flow));
                    } else {
                        let denied = |(verdict, _): &(Decided, Counted)| *verdict == Decided::Denied;
                        prop_assert!(told.iter().any(denied), "{}", all[0].explain(&flow));
                    }
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

/// An attachment to node n1 of a pod of the name of the one in [`world::deny_all`], with its first address.
fn attachment(uid: &str) -> (NamespacedName, Vec<Attached>) {
    let addresses = Box::from(["10.0.0.1".parse().unwrap()]);
    let attached = Attached { node: "n1".into(), uid: Some(uid.into()), addresses };
    (NamespacedName::new("a", "p"), vec![attached])
}

/// Whether an IPv4 address leads to the chain of who is attached without a pod.
fn leads_to_closed(table: &Table) -> bool {
    let closed = Some(Verdict::Goto("ingress-closed".into()));
    let class = table.sets["ingress-chains"].elements.iter().find(|(_, element)| element.verdict == closed);
    let (class, _) = class.expect("the chain is always there");
    table.sets["ingress4"].elements.values().any(|element| element.data == *class)
}

/// A node's policies, with the table that their steps lead to.
struct Stepped {
    policies: Policies,
    table: Table,
}

impl Stepped {
    fn new() -> Self {
        let policies = Policies::new("n1", Snapshot::default());
        let table = policies.full();
        Self { policies, table }
    }

    fn take(&mut self, event: &Event) {
        take(&mut self.policies, &mut self.table, event);
        assert_eq!(self.policies.full().to_string(), self.table.to_string());
    }

    /// Whether a pod with the address 10.0.0.1 is reached from outside, and whether it reaches out; the evaluator agrees.
    fn open(&self) -> [bool; 2] {
        let [pod, far]: [IpAddr; 2] = ["10.0.0.1", "10.9.9.9"].map(|text| text.parse().unwrap());
        [(far, pod), (pod, far)].map(|(source, destination)| {
            let packet = Packet::new(Hook::Forward, source, destination, 6, 80);
            let traffic = Traffic::Port(Protocol::Tcp, 80);
            let flow = Flow { source, destination, traffic, through_service: false };
            let passed = passes(&self.table, &packet);
            assert_eq!(passed, self.policies.verdict(&flow).allows(), "{}", self.policies.explain(&flow));
            passed
        })
    }
}

#[test]
fn an_attachment_without_a_pod_is_closed_from_the_first_enforced_policy_to_the_last() {
    let mut node = Stepped::new();
    let (pod, attached) = attachment("1");
    node.take(&Event::Attached(pod, attached));
    assert_eq!(node.open(), [true, true], "nobody asks for isolation");
    let policy = |name: &str, audit| {
        let name = NamespacedName::new("elsewhere", name);
        let (subjects, faults) = (cluster::Selector::default(), Box::default());
        let policy =
            NetworkPolicy { name, subjects, ingress: Some(Box::default()), egress: None, audit, faults };
        Event::Change(Change::Set(policy.into()))
    };
    node.take(&policy("one", true));
    assert_eq!(node.open(), [true, true], "a policy in audit isolates nobody");
    node.take(&policy("one", false));
    assert_eq!(node.open(), [false, false], "a policy is enforced, be it about others");
    node.take(&policy("two", false));
    node.take(&policy("one", true));
    assert_eq!(node.open(), [false, false], "another one is");
    node.take(&Event::Change(Change::Removed(Key::NetworkPolicy(NamespacedName::new("elsewhere", "two")))));
    assert_eq!(node.open(), [true, true], "none is any more");
    let rule = |audit| ClusterNetworkPolicy {
        name: "base".into(),
        tier: cluster::Tier::Baseline,
        priority: 1,
        subject: None,
        ingress: Box::default(),
        egress: Box::default(),
        audit,
        faults: Box::default(),
    };
    node.take(&Event::Change(Change::Set(rule(true).into())));
    assert_eq!(node.open(), [true, true], "one of the cluster in audit isolates nobody either");
    node.take(&Event::Change(Change::Set(rule(false).into())));
    assert_eq!(node.open(), [false, false], "a policy of the cluster is as good");
    node.take(&Event::Change(Change::Removed(Key::ClusterNetworkPolicy("base".into()))));
    assert_eq!(node.open(), [true, true]);
}

/// What a policy of the cluster says in these tests: TCP to port 81 may come in, nothing else.
const ACCEPT_81_DENY_ALL: [Action; 2] = [Action::Accept, Action::Deny];

/// Two pods of node n1, and all that is decided is told.
fn two_pods() -> Stepped {
    let mut node =
        Stepped { policies: Policies::with_logging("n1", Snapshot::default(), EVERYTHING), ..Stepped::new() };
    node.table = node.policies.full();
    for (name, address) in [("p", "10.0.0.1"), ("q", "10.0.0.2")] {
        let mut pod = Pod::named(NamespacedName::new("a", name));
        (pod.node, pod.addresses) = (Some("n1".into()), Box::from([address.parse().unwrap()]));
        node.take(&Event::Change(Change::Set(pod.into())));
    }
    node
}

#[test]
fn a_policy_of_the_cluster_in_audit_decides_nothing_and_tells_in_its_place_what_it_would_deny() {
    let mut node = two_pods();
    let courses = [
        // Alone; behind one that passes all on to the next tier; before one that is enforced; and enforced itself.
        (vec![("t", 1, true, ACCEPT_81_DENY_ALL)], [true, true], 1),
        (vec![("s", 0, false, [Action::Pass; 2]), ("t", 1, true, ACCEPT_81_DENY_ALL)], [true, true], 0),
        (vec![("t", 1, true, ACCEPT_81_DENY_ALL), ("u", 2, false, ACCEPT_81_DENY_ALL)], [false, true], 1),
        (vec![("t", 1, false, ACCEPT_81_DENY_ALL)], [false, true], 0),
    ];
    for (policies, open, would_deny) in courses {
        for (name, priority, audit, actions) in &policies {
            node.take(&Event::Change(world::on_all(name, *priority, *audit, *actions)));
        }
        let [source, destination] = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse().unwrap());
        let pods = vec![source, destination];
        for ((port, open), would_deny) in [80, 81].into_iter().zip(open).zip([would_deny, 0]) {
            let flow = Flow {
                source,
                destination,
                traffic: Traffic::Port(Protocol::Tcp, port),
                through_service: false,
            };
            let nodes = [Node { own: Vec::new(), pods: pods.clone(), table: node.table.clone() }];
            let mut told = Vec::new();
            let packet = |hook| Packet::new(hook, source, destination, 6, port);
            let judged = node.policies.verdict(&flow);
            assert_eq!(
                (crosses_and_tells(&nodes, packet, &mut told), judged.allows()),
                (open, open),
                "{policies:?}"
            );
            assert_eq!(judged.ingress.cluster_would_deny.len(), would_deny, "{policies:?} {port}");
            assert_eq!(
                told.iter().filter(|told| told.starts_with("would-deny")).count(),
                would_deny,
                "{told:?}"
            );
            let noted = node.policies.explain(&flow).to_string().contains("in audit, would deny it");
            assert_eq!(noted, would_deny > 0, "{}", node.policies.explain(&flow));
        }
        for (name, ..) in policies {
            node.take(&Event::Change(Change::Removed(Key::ClusterNetworkPolicy(name.into()))));
        }
    }
}

#[test]
fn a_policy_of_the_cluster_goes_in_and_out_of_audit_in_its_place() {
    let mut node = two_pods();
    node.take(&Event::Change(world::on_all("s", 0, false, ACCEPT_81_DENY_ALL)));
    for audit in [true, false, true] {
        node.take(&Event::Change(world::on_all("t", 1, audit, ACCEPT_81_DENY_ALL)));
        let snapshot = node.policies.cluster().snapshot().clone();
        let anew = Policies::with_logging("n1", snapshot, EVERYTHING);
        assert_eq!(anew.full().to_string(), node.table.to_string());
    }
    // A jump that the kernel refuses is of the policy in audit alone.
    let jumps =
        node.table.chains.values().flat_map(|chain| chain.rules.iter().map(move |rule| (chain, rule)));
    let (chain, jump) = jumps.into_iter().find(|(_, rule)| rule.to_string().contains("-audit-")).unwrap();
    let blamed = node.policies.blame(&format!("{} {jump}", chain.name));
    assert_eq!(blamed.into_iter().collect::<Vec<_>>(), [Key::ClusterNetworkPolicy("t".into())]);
}

#[test]
fn a_pod_that_goes_before_its_attachment_stays_closed_until_del_or_until_it_is_there_again() {
    let mut node = Stepped::new();
    let [pod, policy] = <[Change; 2]>::try_from(world::deny_all()).unwrap();
    let Change::Set(Object::Pod(pod)) = pod else { panic!("a pod first") };
    let with = |uid: &str, change: fn(&mut Pod)| {
        let mut pod = Pod { uid: Some(uid.into()), ..(*pod).clone() };
        change(&mut pod);
        Event::Change(Change::Set(pod.into()))
    };
    let (name, attached) = attachment("1");
    node.take(&Event::Change(policy));
    node.take(&Event::Attached(name.clone(), attached));
    assert_eq!(node.open(), [false, false], "ADD is before the object");
    node.take(&with("1", |_| {}));
    let isolated = |node: &Stepped| node.policies.is_policed(&name);
    assert!(isolated(&node) && node.open() == [false, false], "it is isolated by its policy");
    for gone in [
        Event::Change(Change::Removed(Key::Pod(name.clone()))),
        with("2", |_| {}),
        with("1", |pod| pod.phase = Phase::Failed),
    ] {
        node.take(&gone);
        assert_eq!(node.open(), [false, false], "after {gone:?}");
        assert!(leads_to_closed(&node.table), "{}", node.table);
        node.take(&with("1", |_| {}));
        assert!(isolated(&node) && node.open() == [false, false], "it is there again");
        assert!(!leads_to_closed(&node.table), "{}", node.table);
    }
    node.take(&Event::Change(Change::Removed(Key::Pod(name.clone()))));
    node.take(&Event::Attached(name, Vec::new()));
    assert_eq!(node.open(), [true, true], "DEL was done");
    assert!(!leads_to_closed(&node.table), "{}", node.table);
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
fn the_middle_of_a_connection_that_is_not_tracked_is_the_beginning_of_none() {
    // Only what the pod gets is closed.
    let mut snapshot = Snapshot::default();
    for change in world::deny_all() {
        snapshot.apply(change);
    }
    for policy in snapshot.network_policies.values_mut() {
        Arc::make_mut(policy).egress = None;
    }
    let table = Policies::new("n1", snapshot.clone()).full();
    for policy in snapshot.network_policies.values_mut() {
        Arc::make_mut(policy).audit = true;
    }
    let in_audit = Policies::new("n1", snapshot).full();
    let [pod, free, far]: [IpAddr; 3] =
        ["10.0.0.1", "10.0.0.77", "10.9.9.9"].map(|text| text.parse().unwrap());
    let packet = |(source, destination), protocol, flags, state| {
        let packet = Packet::new(Hook::Forward, source, destination, protocol, 80);
        Packet { flags, state, ..packet }
    };
    let in_audit = |packet: &Packet| passes(&in_audit, packet);
    let passes = |ends, protocol, flags, state| passes(&table, &packet(ends, protocol, flags, state));
    let (tcp, ack) = (6, 16);
    let out = (pod, far);
    assert!(passes(out, tcp, tcp_flags::SYN, ct_state::NEW), "it may begin one");
    assert!(passes(out, tcp, tcp_flags::RST | ack, ct_state::NEW), "and give one up");
    assert!(!passes(out, tcp, ack, ct_state::NEW));
    assert!(passes(out, tcp, ack, ct_state::ESTABLISHED));
    assert!(passes(out, 17, 0, ct_state::NEW));
    assert!(in_audit(&packet(out, tcp, ack, ct_state::NEW)), "an audit keeps nobody from anything");
    assert!(passes((free, far), tcp, ack, ct_state::NEW), "who is not isolated");
}

#[test]
fn packets_pay_for_policies_only_where_one_is_about_a_pod_of_the_node() {
    let mut node = Stepped::new();
    node.policies.set_ipvs(false);
    node.table = node.policies.full();
    let bases = |node: &Stepped| node.table.chains.values().filter(|chain| chain.base.is_some()).count();
    let changes = world::deny_all();
    let policies: Vec<Key> = changes.iter().map(Change::key).collect();
    assert_eq!(bases(&node), 0, "nobody is there");
    changes.into_iter().for_each(|change| node.take(&Event::Change(change)));
    assert_eq!(bases(&node), 2);
    for key in policies.into_iter().filter(|key| matches!(key, Key::NetworkPolicy(_))) {
        node.take(&Event::Change(Change::Removed(key)));
    }
    assert_eq!(bases(&node), 0, "the pods are there, and no policy");
}

#[test]
fn a_packet_whose_class_lost_its_chain_while_it_was_under_way_is_dropped() {
    let snapshot = world::deny_all().into_iter().fold(Snapshot::default(), |mut snapshot, change| {
        snapshot.apply(change);
        snapshot
    });
    let mut policies = Policies::new("n1", snapshot);
    policies.set_ipvs(false);
    let mut table = policies.full();
    for name in ["egress-chains", "ingress-chains"] {
        table.sets.get_mut(name).unwrap().elements.clear();
    }
    let [pod, free, far]: [IpAddr; 3] =
        ["10.0.0.1", "10.0.0.77", "10.9.9.9"].map(|text| text.parse().unwrap());
    let passes =
        |source, destination| passes(&table, &Packet::new(Hook::Prerouting, source, destination, 6, 80));
    assert!(!passes(pod, far) && !passes(far, pod));
    assert!(passes(free, far) && passes(far, free), "nobody's address has a class");
}

#[test]
fn neighbour_discovery_always_passes_and_echoes_do_not() {
    let table = closed();
    let [pod, far]: [IpAddr; 2] = ["fd00::1", "fd99::9"].map(|text| text.parse().unwrap());
    for kind in 127..140 {
        let packet = Packet::new(Hook::Input, pod, far, 58, kind);
        assert_eq!(passes(&table, &packet), (133..=137).contains(&kind), "type {kind}");
    }
    let by_ipvs = Packet::new(Hook::Output, far, pod, 58, 128);
    assert!(!passes(&table, &by_ipvs), "what IPVS sends on is not the node's");
    assert!(passes(&table, &Packet { from_node: true, ..by_ipvs }), "the node itself may");
}
