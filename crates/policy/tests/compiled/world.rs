//! Small random clusters, as the changes that make them.

use std::net::IpAddr;
use std::ops::Range;
use std::sync::Arc;

use cluster::{
    Action, Change, ClusterNetworkPolicy, ClusterPeer, ClusterPeers, ClusterRule, ContainerPort, IpBlock,
    Key, Labels, Namespace, NamespacedName, NetworkPolicy, Node, Object, Operator, Peer, Phase, Pod,
    PodSelector, PodStatus, PortMatch, Protocol, Requirement, ResolvedName, Rule, Selector, Tier,
};
use ipnet::IpNet;
use policy::Attached;
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;

/// The nodes that pods run on.
pub(crate) const NODES: [&str; 2] = ["n1", "n2"];

/// Something that happens to the cluster.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    Change(Change),
    Resolved(ResolvedName),
    /// What of a pod is attached. Every node hears of it, so that all judge alike.
    Attached(NamespacedName, Vec<Attached>),
}

/// Every address that somebody may have: pods, nodes, others.
pub(crate) fn addresses() -> Vec<IpAddr> {
    let pods = (1..=6).flat_map(|number| [format!("10.0.0.{number}"), format!("fd00::{number}")]);
    let others =
        ["192.0.2.1", "192.0.2.2", "fd02::1", "fd02::2", "198.51.100.7", "fd99::7"].map(String::from);
    pods.chain(others).map(|text| text.parse().unwrap()).collect()
}

/// A pod of node n1 with addresses of both families, and the policy that isolates it from everything.
pub(crate) fn deny_all() -> Vec<Change> {
    let mut pod = Pod::named(NamespacedName::new("a", "p"));
    pod.node = Some("n1".into());
    pod.addresses = ["10.0.0.1", "fd00::1"].map(|text| text.parse().unwrap()).into();
    let name = NamespacedName::new("a", "deny");
    let none = || Some(Box::default());
    let (subjects, faults) = (Selector::default(), Box::default());
    let policy = NetworkPolicy { name, subjects, ingress: none(), egress: none(), audit: false, faults };
    vec![Change::Set(pod.into()), Change::Set(policy.into())]
}

/// A policy of the cluster about every pod, with these actions on what reaches it from anybody: the first to port 81 over TCP alone.
pub(crate) fn on_all(name: &str, priority: u16, audit: bool, actions: [Action; 2]) -> Change {
    let everybody = || PodSelector { namespaces: Selector::default(), pods: Selector::default() };
    let ports = [Some(Box::from([PortMatch::Range(Protocol::Tcp, 81, 81)])), None];
    let rule = |(action, ports)| ClusterRule {
        name: "rule".into(),
        action,
        peers: ClusterPeers::Any(Box::from([ClusterPeer::Pods(everybody())])),
        ports,
    };
    let ingress = actions.into_iter().zip(ports).map(rule).collect();
    let (tier, subject, egress) = (Tier::Admin, Some(everybody()), Box::default());
    let faults = Box::default();
    let name = name.into();
    Change::Set(ClusterNetworkPolicy { name, tier, priority, subject, ingress, egress, audit, faults }.into())
}

/// A policy that lets its own namespace in, and an address that goes from a pod without a node to one of node n1.
pub(crate) fn moving_address() -> Vec<Change> {
    let pod = |name: &str, node: Option<&str>, terminating| Pod {
        node: node.map(Arc::from),
        addresses: Box::from(["fd00::5".parse().unwrap()]),
        terminating,
        ..Pod::named(NamespacedName::new("a", name))
    };
    let peers = Peer::Pods { namespaces: None, pods: Selector::default() };
    let rule = Rule { peers: Some(Box::from([peers])), ports: None };
    let name = NamespacedName::new("a", "own");
    let (subjects, faults) = (Selector::default(), Box::default());
    let ingress = Some(Box::from([rule]));
    let policy = NetworkPolicy { name, subjects, ingress, egress: None, audit: false, faults };
    let pods = [pod("s", None, true), pod("p", Some("n1"), false)].map(|pod| Change::Set(pod.into()));
    let [first, second] = pods;
    vec![first, Change::Set(policy.into()), second]
}

/// Some things that happen, one after the other.
pub(crate) fn events(count: Range<usize>) -> impl Strategy<Value = Vec<Event>> {
    let set = |object: Object| Event::Change(Change::Set(object));
    vec(
        prop_oneof![
            6 => any_pod().prop_map(move |pod| set(pod.into())),
            1 => any_status().prop_map(move |status| set(status.into())),
            2 => any_namespace().prop_map(move |namespace| set(namespace.into())),
            1 => any_node().prop_map(move |node| set(node.into())),
            5 => any_policy().prop_map(move |policy| set(policy.into())),
            2 => any_cluster_policy().prop_map(move |policy| set(policy.into())),
            1 => any_resolved().prop_map(Event::Resolved),
            2 => any_attached().prop_map(|(pod, attached)| Event::Attached(pod, attached)),
            3 => any_key().prop_map(|key| Event::Change(Change::Removed(key))),
        ],
        count,
    )
}

fn any_attached() -> impl Strategy<Value = (NamespacedName, Vec<Attached>)> {
    let interface = (word(&NODES), any_uid(), pod_addresses());
    let attached = |(node, uid, addresses)| Attached { node, uid, addresses };
    (any_name(&["p", "q", "r", "s"]), vec(interface.prop_map(attached), 0..3))
}

fn any_uid() -> impl Strategy<Value = Option<Box<str>>> + use<> {
    of(select(vec!["1", "2"]).prop_map(Box::from))
}

fn any_key() -> impl Strategy<Value = Key> {
    prop_oneof![
        any_name(&["p", "q", "r", "s"]).prop_map(Key::Pod),
        any_name(&["p", "q", "r", "s"]).prop_map(Key::PodStatus),
        any_name(&["k", "l", "m"]).prop_map(Key::NetworkPolicy),
        word(&["t", "u", "v"]).prop_map(Key::ClusterNetworkPolicy),
        word(&["a", "b", "c"]).prop_map(Key::Namespace),
        word(&NODES).prop_map(Key::Node),
    ]
}

fn word(words: &[&'static str]) -> impl Strategy<Value = Arc<str>> + use<> {
    select(words.to_vec()).prop_map(Arc::from)
}

fn any_name(names: &[&'static str]) -> impl Strategy<Value = NamespacedName> + use<> {
    (word(&["a", "b", "c"]), word(names)).prop_map(|(namespace, name)| NamespacedName::new(namespace, name))
}

fn any_labels() -> impl Strategy<Value = Labels> {
    vec((select(vec!["x", "y"]), select(vec!["0", "1"])), 0..3).prop_map(Labels::from_iter)
}

fn any_selector() -> impl Strategy<Value = Selector> {
    let requirement =
        (select(vec!["x", "y"]), select(Operator::ALL.to_vec()), vec(select(vec!["0", "1"]), 1..3));
    let requirement = requirement.prop_map(|(key, operator, values)| {
        let with = matches!(operator, Operator::In | Operator::NotIn);
        let values = values.into_iter().filter(|_| with).map(Box::from).collect();
        Requirement { key: key.into(), operator, values }
    });
    prop_oneof![
        1 => Just(Selector::default()),
        1 => word(&["a", "b", "c"])
            .prop_map(|name| [Requirement::equal(cluster::NAMESPACE_NAME_LABEL, &*name)].into_iter().collect()),
        4 => vec(requirement, 1..3).prop_map(Selector::from_iter),
    ]
}

fn pod_addresses() -> impl Strategy<Value = Box<[IpAddr]>> {
    vec(0..12_usize, 0..3).prop_map(|places| {
        let mut own: Vec<IpAddr> = places.into_iter().map(|place| addresses()[place]).collect();
        own.sort_unstable();
        own.dedup();
        own.into()
    })
}

fn any_protocol() -> impl Strategy<Value = Protocol> {
    select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp])
}

fn any_pod() -> impl Strategy<Value = Pod> {
    let port = (of(select(vec!["web", "dns"])), select(vec![80_u16, 81]), any_protocol());
    let port = port.prop_map(|(name, port, protocol)| {
        let name = name.map(Box::from);
        ContainerPort { name, port, protocol, host_port: None, host_address: None }
    });
    let place = (of(word(&NODES)), 0..12_u8, 0..12_u8, 0..5_u8);
    let words = (any_name(&["p", "q", "r", "s"]), any_uid(), any_labels());
    let parts = (words, place, vec(port, 0..3), pod_addresses());
    parts.prop_map(|((name, uid, labels), (node, host, phase, goes), ports, addresses)| {
        let phase = if phase == 0 { Phase::Succeeded } else { Phase::Running };
        let (host_network, terminating) = (host == 0, goes == 0);
        let ports = ports.into();
        Pod { uid, labels, node, host_network, ports, phase, addresses, terminating, ..Pod::named(name) }
    })
}

fn any_status() -> impl Strategy<Value = PodStatus> {
    let parts = (any_name(&["p", "q", "r", "s"]), of(word(&NODES)), any::<bool>(), pod_addresses());
    parts.prop_map(|(pod, node, runs, addresses)| {
        let phase = if runs { Phase::Running } else { Phase::Failed };
        PodStatus { pod, node, phase, addresses }
    })
}

fn any_namespace() -> impl Strategy<Value = Namespace> {
    (word(&["a", "b", "c"]), any_labels()).prop_map(|(name, labels)| Namespace { name, labels })
}

fn any_node() -> impl Strategy<Value = Node> {
    (0..2_usize, any_labels(), any::<bool>()).prop_map(|(place, labels, both)| {
        let all = [format!("192.0.2.{}", place + 1), format!("fd02::{}", place + 1)];
        let own = all.iter().take(if both { 2 } else { 1 }).map(|text| text.parse().unwrap());
        Node { labels, addresses: own.collect(), ..Node::named(NODES[place]) }
    })
}

fn any_network() -> impl Strategy<Value = IpNet> {
    let v4 = (0..8_u8, select(vec![0_u8, 8, 29, 30, 31, 32]))
        .prop_map(|(last, length)| IpNet::new([10, 0, 0, last].into(), length).unwrap().trunc());
    let v6 = (0..8_u16, select(vec![0_u8, 16, 125, 126, 127, 128])).prop_map(|(last, length)| {
        IpNet::new([0xfd00, 0, 0, 0, 0, 0, 0, last].into(), length).unwrap().trunc()
    });
    prop_oneof![v4, v6]
}

fn any_block() -> impl Strategy<Value = IpBlock> {
    (any_network(), vec(any_network(), 0..3)).prop_map(|(cidr, mut except)| {
        except.sort_unstable();
        except.dedup();
        IpBlock { cidr, except: except.into() }
    })
}

fn any_port() -> impl Strategy<Value = PortMatch> {
    let name = select(vec!["web", "dns", "none"]);
    prop_oneof![
        1 => any_protocol().prop_map(PortMatch::All),
        4 => (any_protocol(), select(vec![(80, 80), (81, 81), (79, 80), (81, 90), (1, 65535)]))
            .prop_map(|(protocol, (first, last))| PortMatch::Range(protocol, first, last)),
        2 => (of(any_protocol()), name).prop_map(|(protocol, name)| PortMatch::Named(protocol, name.into())),
        1 => Just(PortMatch::Unreadable("odd".into())),
    ]
}

fn any_ports() -> impl Strategy<Value = Option<Box<[PortMatch]>>> {
    of(vec(any_port(), 1..4).prop_map(Box::from))
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let peer = prop_oneof![
        4 => (of(any_selector()), any_selector()).prop_map(|(namespaces, pods)| Peer::Pods { namespaces, pods }),
        2 => any_block().prop_map(Peer::Block),
        1 => Just(Peer::Unreadable("odd".into())),
    ];
    let peers = of(vec(peer, 1..3).prop_map(Box::from));
    (peers, any_ports()).prop_map(|(peers, ports)| Rule { peers, ports })
}

fn any_policy() -> impl Strategy<Value = NetworkPolicy> {
    let rules = || of(vec(any_rule(), 0..3).prop_map(Box::from));
    (any_name(&["k", "l", "m"]), any_selector(), rules(), rules(), 0..4_u8).prop_map(
        |(name, subjects, ingress, egress, audit)| NetworkPolicy {
            name,
            subjects,
            ingress,
            egress,
            audit: audit == 0,
            faults: Box::default(),
        },
    )
}

fn any_pods() -> impl Strategy<Value = PodSelector> {
    (any_selector(), any_selector()).prop_map(|(namespaces, pods)| PodSelector { namespaces, pods })
}

fn any_cluster_rule(egress: bool) -> impl Strategy<Value = ClusterRule> {
    let peer = prop_oneof![
        3 => any_pods().prop_map(ClusterPeer::Pods),
        u32::from(egress) => any_selector().prop_map(ClusterPeer::Nodes),
        u32::from(egress) => vec(any_network(), 1..3).prop_map(|nets| ClusterPeer::Networks(nets.into())),
        u32::from(egress) => select(vec!["*.example.org", "a.example.org", "example.net"])
            .prop_map(|name| ClusterPeer::DomainNames(Box::from([name.into()]))),
    ];
    let peers = prop_oneof![
        6 => vec(peer, 1..3).prop_map(|peers| ClusterPeers::Any(peers.into())),
        1 => Just(ClusterPeers::Unreadable("odd".into())),
    ];
    (select(Action::ALL.to_vec()), peers, any_ports()).prop_map(|(action, peers, ports)| {
        // As every reader makes it: what cannot be read either accepts nothing or denies all.
        match peers {
            ClusterPeers::Unreadable(reason) => ClusterRule::unreadable("", Some(action), reason),
            peers @ ClusterPeers::Any(_) => ClusterRule { name: "rule".into(), action, peers, ports },
        }
    })
}

fn any_cluster_policy() -> impl Strategy<Value = ClusterNetworkPolicy> {
    let rules = |egress| vec(any_cluster_rule(egress), 0..3).prop_map(Box::from);
    let place = (select(vec![Tier::Admin, Tier::Baseline]), 0..3_u16);
    let head = (word(&["t", "u", "v"]), place, of(any_pods()), 0..4_u8);
    (head, rules(false), rules(true)).prop_map(|((name, place, subject, audit), ingress, egress)| {
        let ((tier, priority), audit) = (place, audit == 0);
        ClusterNetworkPolicy { name, tier, priority, subject, ingress, egress, audit, faults: Box::default() }
    })
}

fn any_resolved() -> impl Strategy<Value = ResolvedName> {
    let places = vec(0..addresses().len(), 0..3);
    (word(&["a.example.org", "example.org", "example.net"]), places).prop_map(|(name, places)| {
        let mut own: Vec<IpAddr> = places.into_iter().map(|place| addresses()[place]).collect();
        own.sort_unstable();
        own.dedup();
        ResolvedName { name, addresses: own.into() }
    })
}
