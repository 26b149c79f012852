//! `cargo run --release -p policy --example scale`: what policies cost a node, in time and memory.
//!
//! Two clusters: a wide one (10,000 policies in 1,000 namespaces, 20,000 pods, 100 of them here), and a deep one (1,000
//! policies that all select all 300 pods here). Each is compiled from nothing, then changed in every way a few hundred
//! times, forth and back. A time of the processor does not count what others on the machine do; what the kernel takes for
//! the steps is in none of them.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for people")]

use std::time::{Duration, Instant};

use cluster::{
    Change, ContainerPort, IpBlock, Key, Labels, Namespace, NamespacedName, NetworkPolicy, Node, Object,
    Peer, Phase, Pod, PortMatch, Protocol, Requirement, Rule, Selector, Snapshot,
};
use netstate::nft::Step;
use policy::{Flow, Policies, Traffic};

fn main() {
    measure("wide: 10,000 policies, 1,000 namespaces, 20,000 pods, 100 here", &wide);
    measure("deep: 1,000 policies of one namespace, each about all 300 pods here", &deep);
}

fn measure(title: &str, make: &dyn Fn() -> Snapshot) {
    println!("{title}");
    let before = resident();
    let snapshot = make();
    let objects = resident();
    let begin = processor();
    let mut policies = Policies::new("node1", snapshot.clone());
    let compiled = processor() - begin;
    let held = resident();
    let begin = processor();
    let table = policies.full();
    let whole = processor() - begin;
    let count = |sets: &mut dyn Iterator<Item = usize>| sets.sum::<usize>();
    let elements = count(&mut table.sets.values().map(|set| set.elements.len()));
    let rules = count(&mut table.chains.values().map(|chain| chain.rules.len()));
    println!(
        "  objects {} MB, policies {} MB more",
        (objects - before) >> 10,
        held.saturating_sub(objects) >> 10
    );
    println!("  compiled in {compiled:.1?}, the whole table in {whole:.1?} more");
    println!(
        "  {} sets, {elements} elements, {} chains, {rules} rules",
        table.sets.len(),
        table.chains.len()
    );
    drop(table);
    for (what, changes) in changes(&snapshot) {
        let mut took: Vec<(Duration, usize)> = Vec::new();
        let all = processor();
        for change in &changes {
            let begin = Instant::now();
            let steps = policies.apply(change).steps;
            took.push((begin.elapsed(), steps.iter().map(size).sum()));
        }
        let mean = (processor() - all) / u32::try_from(changes.len()).unwrap();
        took.sort_unstable();
        let (middle, worst) = (took[took.len() / 2].0, took[took.len() - 1].0);
        let most = took.iter().map(|(_, size)| size).max().unwrap();
        println!(
            "  {what}: mean {mean:.1?} of the processor; median {middle:.1?}, worst {worst:.1?} on the clock;"
        );
        println!("    at most {most} elements and rules");
    }
    judge(&policies);
    compared(&policies);
    println!("  resident in the end {} MB", resident() >> 10);
}

fn judge(policies: &Policies) {
    let begin = processor();
    let mut allowed = 0;
    for number in 0..10_000_u32 {
        let [_, _, high, low] = (number * 2).to_be_bytes();
        let traffic = Traffic::Port(Protocol::Tcp, 80);
        let (source, destination) = ([10, 244, high, low].into(), [10, 244, low, high].into());
        allowed += usize::from(
            policies.verdict(&Flow { source, destination, traffic, through_service: false }).allows(),
        );
    }
    println!("  a verdict takes {:.1?} ({allowed} of 10000 allowed)", (processor() - begin) / 10_000);
}

/// What the comparison before a change costs: a policy that goes, and one that closes its namespace.
fn compared(policies: &Policies) {
    let cluster = policies.cluster();
    let Some(policy) = cluster.snapshot().network_policies.values().next() else { return };
    let closed = NetworkPolicy {
        name: NamespacedName::new(policy.name.namespace.clone(), "closed"),
        ingress: Some(Box::default()),
        egress: None,
        ..(**policy).clone()
    };
    let changes = [
        ("removes a policy", Change::Removed(Key::NetworkPolicy(policy.name.clone()))),
        ("adds a policy that allows nothing", Change::Set(closed.into())),
    ];
    for (what, change) in changes {
        let begin = processor();
        let found = policy::compare(cluster, &[change]);
        let pairs: u64 = found.iter().map(|change| change.pairs).sum();
        println!("  a comparison that {what}: {:.1?} ({pairs} pairs of ends)", processor() - begin);
    }
}

fn size(step: &Step) -> usize {
    match step {
        Step::AddElements(_, _, elements) => elements.len(),
        Step::DeleteElements(_, _, keys) => keys.len(),
        _ => 1,
    }
}

/// Time that this process has had of a processor.
fn processor() -> Duration {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap();
    Duration::from_nanos(text.split_whitespace().next().unwrap().parse().unwrap())
}

/// Resident memory in KiB.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn labels<const N: usize>(pairs: [(&str, String); N]) -> Labels {
    pairs.into_iter().collect()
}

fn equal(key: &str, value: impl Into<Box<str>>) -> Selector {
    [Requirement::equal(key, value)].into_iter().collect()
}

fn pod(namespace: &str, number: usize, node: &str) -> Pod {
    let port = ContainerPort {
        name: Some("http".into()),
        port: 8080,
        protocol: Protocol::Tcp,
        host_port: None,
        host_address: None,
    };
    let name = NamespacedName::new(namespace, format!("pod-{number}"));
    let [_, _, high, low] = u32::try_from(number).unwrap().to_be_bytes();
    Pod {
        labels: labels([
            ("app", format!("app-{}", number % 10)),
            ("tier", format!("tier-{}", number % 3)),
            ("pod-template-hash", format!("{:x}", number / 4 * 2_654_435_761)),
        ]),
        node: Some(node.into()),
        ports: [port].into(),
        phase: Phase::Running,
        addresses: Box::from([
            [10, 244, high, low].into(),
            [0xfd00, 0x10, 0x244, 0, 0, 0, u16::from(high), u16::from(low)].into(),
        ]),
        ..Pod::named(name)
    }
}

/// As kube-burner's workload has it: ports and ranges, namespaces, pods and networks in both directions.
fn policy(namespace: &str, number: usize, subjects: Selector) -> NetworkPolicy {
    let other =
        |step: usize| equal(cluster::NAMESPACE_NAME_LABEL, format!("ns-{}", (number * 7 + step) % 1000));
    let peer = |namespaces, pods| Peer::Pods { namespaces, pods };
    let block = IpBlock {
        cidr: format!("192.{}.0.0/16", number % 200).parse().unwrap(),
        except: Box::from([format!("192.{}.8.0/24", number % 200).parse().unwrap()]),
    };
    let tcp = |port| PortMatch::Range(Protocol::Tcp, port, port);
    let ports: Box<[PortMatch]> =
        Box::from([tcp(80), tcp(443), PortMatch::Named(Some(Protocol::Tcp), "http".into())]);
    let range: Box<[PortMatch]> =
        Box::from([PortMatch::Range(Protocol::Tcp, 8000, 8090), PortMatch::Range(Protocol::Udp, 53, 53)]);
    let app = || equal("app", format!("app-{}", number % 10));
    let rules = |extra: Peer| -> Box<[Rule]> {
        Box::from([
            Rule { peers: Some(Box::from([peer(None, app()), extra])), ports: Some(ports.clone()) },
            Rule {
                peers: Some(Box::from([peer(Some(other(1)), Selector::default())])),
                ports: Some(range.clone()),
            },
            Rule { peers: Some(Box::from([Peer::Block(block.clone())])), ports: None },
        ])
    };
    NetworkPolicy {
        name: NamespacedName::new(namespace, format!("policy-{number}")),
        subjects,
        ingress: Some(rules(peer(Some(Selector::default()), app()))),
        egress: number.is_multiple_of(2).then(|| rules(peer(Some(other(2)), app()))),
        audit: false,
        faults: Box::default(),
    }
}

fn namespaces(count: usize) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for number in 0..count {
        let labels = labels([("team", format!("team-{}", number % 20))]);
        snapshot.apply(Change::Set(Object::from(Namespace { name: format!("ns-{number}").into(), labels })));
    }
    for number in 1..=200 {
        snapshot.apply(Change::Set(Object::from(Node::named(format!("node{number}")))));
    }
    snapshot
}

fn wide() -> Snapshot {
    let mut snapshot = namespaces(1000);
    for number in 0..20_000 {
        let here = format!("node{}", number % 200 + 1);
        snapshot.apply(Change::Set(Object::from(pod(&format!("ns-{}", number / 20), number, &here))));
    }
    for number in 0..10_000 {
        let subjects = match number % 3 {
            0 => Selector::default(),
            1 => equal("tier", format!("tier-{}", number % 3)),
            _ => equal("app", format!("app-{}", number % 10)),
        };
        snapshot.apply(Change::Set(Object::from(policy(&format!("ns-{}", number / 10), number, subjects))));
    }
    snapshot
}

fn deep() -> Snapshot {
    let mut snapshot = namespaces(1000);
    for number in 0..20_000 {
        let (namespace, node) = if number < 300 {
            ("ns-0".to_owned(), "node1")
        } else {
            (format!("ns-{}", number / 20), "node2")
        };
        snapshot.apply(Change::Set(Object::from(pod(&namespace, number, node))));
    }
    for number in 0..1000 {
        snapshot.apply(Change::Set(Object::from(policy("ns-0", number, Selector::default()))));
    }
    snapshot
}

/// Changes of each kind, each followed by its opposite.
fn changes(snapshot: &Snapshot) -> Vec<(&'static str, Vec<Change>)> {
    let pods: Vec<_> = snapshot.pods.values().step_by(snapshot.pods.len() / 200).cloned().collect();
    let here: Vec<_> =
        snapshot.pods.values().filter(|pod| pod.node.as_deref() == Some("node1")).cloned().collect();
    let policies: Vec<_> = snapshot
        .network_policies
        .values()
        .filter(|policy| here.iter().any(|pod| pod.name.namespace == policy.name.namespace))
        .take(200)
        .cloned()
        .collect();
    let gone_and_back = |pods: &[std::sync::Arc<Pod>]| {
        let both = |pod: &std::sync::Arc<Pod>| {
            [Change::Removed(Key::Pod(pod.name.clone())), Change::Set(Object::Pod(pod.clone()))]
        };
        pods.iter().flat_map(both).collect::<Vec<_>>()
    };
    let relabelled = |pods: &[std::sync::Arc<Pod>]| {
        let both = |pod: &std::sync::Arc<Pod>| {
            let changed = Pod { labels: labels([("app", "other".to_owned())]), ..(**pod).clone() };
            [Change::Set(changed.into()), Change::Set(Object::Pod(pod.clone()))]
        };
        pods.iter().flat_map(both).collect::<Vec<_>>()
    };
    let of_policies = policies.iter().flat_map(|policy| {
        [
            Change::Removed(Key::NetworkPolicy(policy.name.clone())),
            Change::Set(Object::NetworkPolicy(policy.clone())),
        ]
    });
    let edited = policies.iter().flat_map(|policy| {
        let changed = NetworkPolicy { ingress: Some(Box::default()), ..(**policy).clone() };
        [Change::Set(changed.into()), Change::Set(Object::NetworkPolicy(policy.clone()))]
    });
    let of_namespaces = snapshot.namespaces.values().take(200).flat_map(|namespace| {
        let changed = Namespace { labels: labels([("team", "other".to_owned())]), ..(**namespace).clone() };
        [Change::Set(Object::from(changed)), Change::Set(Object::Namespace(namespace.clone()))]
    });
    vec![
        ("a pod anywhere goes or comes", gone_and_back(&pods)),
        ("a pod here goes or comes", gone_and_back(&here)),
        ("a pod anywhere has other labels", relabelled(&pods)),
        ("a pod here has other labels", relabelled(&here)),
        ("a policy about pods here goes or comes", of_policies.collect()),
        ("a policy about pods here is edited", edited.collect()),
        ("a namespace has other labels", of_namespaces.collect()),
    ]
}
