//! What a node tells of its policies' decisions: a compiled table in a kernel, packets through it, and what the counters and
//! the log say in the end, in the words of the policies.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::time::Duration;

use cluster::{Change, Direction, NamespacedName, Protocol, Snapshot};
use harness::Namespace;
use harness::talk::{ask, is_deaf, serve};
use kernel::nflog::{Headers, LogSocket, Logged};
use kernel::nft::{Nft, Transaction};
use netstate::nft::{TableKey, diff};
use policy::{Amount, Counted, Decided, Logging, Policies, Reading, Record, Tally, Told, Traffic, Verdicts};
use serde_json::Value;

const GROUP: u16 = 701;
const WEB: &str = "web 10.0.0.1 fd00::1";
const DB: &str = "db 10.0.0.2 fd00::2";

/// Two pods of one node. The database lets in its web servers by TCP 8080. In audit, a web server may send to TCP 8080, and a
/// second policy in audit adds the port 8081: together they would deny the rest.
const POLICIES: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 8080}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: lock, namespace: shop, annotations: {fairlead.io/audit: "true"}}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{ports: [{port: 8080}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: lock-more, namespace: shop, annotations: {fairlead.io/audit: "true"}}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{ports: [{port: 8081}]}]}
"#;

fn snapshot() -> Snapshot {
    let pod = |words: &str| {
        let [name, v4, v6] = words.split(' ').collect::<Vec<_>>()[..] else { panic!("{words}") };
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}}}\n\
             spec: {{nodeName: n1}}\nstatus: {{podIPs: [{{ip: {v4}}}, {{ip: \"{v6}\"}}]}}\n---\n"
        )
    };
    let text = [pod(WEB), pod(DB), POLICIES.to_owned()].concat();
    let mut snapshot = Snapshot::default();
    for object in store::read_manifest("told.yaml", text.as_bytes()).unwrap() {
        snapshot.apply(Change::Set(object));
    }
    snapshot
}

/// A node with the two pods behind it.
fn node() -> (Namespace, [Namespace; 2]) {
    let node = Namespace::with_loopback();
    let pods = [Namespace::with_loopback(), Namespace::with_loopback()];
    for (words, pod) in [WEB, DB].iter().zip(&pods) {
        let [name, v4, v6] = words.split(' ').collect::<Vec<_>>()[..] else { panic!("{words}") };
        let path = pod.path();
        let holder = path.components().nth(2).unwrap().as_os_str().to_string_lossy().into_owned();
        node.ip(&format!("link add {name} type veth peer name eth0 netns {holder}"));
        node.ip(&format!("addr add 169.254.1.1/32 dev {name}"));
        node.ip(&format!("addr add fe80::1/64 dev {name} nodad"));
        node.ip(&format!("link set {name} up"));
        pod.ip(&format!("addr add {v4}/32 dev eth0"));
        pod.ip(&format!("addr add {v6}/128 dev eth0 nodad"));
        pod.ip("link set eth0 up");
        pod.ip("route add 169.254.1.1 dev eth0");
        pod.ip("route add default via 169.254.1.1 dev eth0");
        pod.ip("route add default via fe80::1 dev eth0");
        node.ip(&format!("route add {v4} dev {name}"));
        node.ip(&format!("route add {v6} dev {name}"));
    }
    node.inside(|| {
        for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            kernel::sysctl::write(path, "1").unwrap();
        }
    });
    (node, pods)
}

fn program(nft: &mut Nft, policies: &Policies) {
    let mut transaction = Transaction::new();
    diff(None, Some(&policies.full())).iter().for_each(|step| {
        transaction.add_step(step);
    });
    nft.commit(transaction).unwrap_or_else(|error| panic!("{error}"));
}

fn record(policies: &Policies, logged: &Logged) -> Record {
    let Headers { source, destination, protocol, ports: [source_port, port] } = logged.headers.unwrap();
    let traffic = Traffic::of_packet(protocol, port);
    let prefix = &logged.prefix;
    let told = Told { time: logged.time, prefix, source, destination, traffic, source_port };
    policies.record(&told).unwrap()
}

#[test]
fn counters_and_log_tell_which_rule_let_pass_who_isolated_and_what_an_audit_would_deny() {
    let logging = Logging { group: Some(GROUP), verdicts: Verdicts::All, per_second: 100 };
    let policies = Policies::with_logging("n1", snapshot(), logging);
    let (node, [web, db]) = node();
    let (mut nft, mut log) = node.inside(|| (Nft::open().unwrap(), LogSocket::open(GROUP, 128).unwrap()));
    program(&mut nft, &policies);
    serve(&db, 8080, "db");
    serve(&db, 9999, "db");
    let name = |name: &str| NamespacedName::new("shop", name);
    for to in ["10.0.0.2", "fd00::2"] {
        assert!(ask(&web, to, 8080).is_some(), "{to}");
        assert!(is_deaf(&web, to, 9999), "{to}");
        let mut told: Vec<Record> = Vec::new();
        while !(told.iter().any(|told| told.verdict == Decided::Allowed)
            && told.iter().any(|told| told.verdict == Decided::Denied)
            && told.iter().any(|told| told.verdict == Decided::WouldDeny))
        {
            let more = log.receive(Duration::from_secs(20)).unwrap();
            assert!(!more.is_empty(), "only {told:?} was told");
            told.extend(more.iter().map(|logged| record(&policies, logged)));
        }
        let of = |verdict| told.iter().find(|told| told.verdict == verdict).unwrap();
        let allowed = of(Decided::Allowed);
        assert_eq!(allowed.by, Counted::Rule(Direction::Ingress, name("db"), 0));
        assert_eq!(allowed.destination.pod, Some(name("db")));
        let isolated = Counted::Isolated(Direction::Ingress, [name("db")].into());
        assert_eq!(of(Decided::Denied).by, isolated);
        let audit = of(Decided::WouldDeny);
        let lock: [NamespacedName; 2] = [name("lock"), name("lock-more")];
        assert_eq!(audit.by, Counted::WouldDeny(Direction::Egress, lock.into()));
        assert_eq!(audit.traffic, Traffic::Port(Protocol::Tcp, 9999));
        let line: Value = serde_json::from_str(&audit.to_string()).unwrap();
        assert_eq!((&line["verdict"], &line["source"]["pod"]), (&"would-deny".into(), &"web".into()));
        assert_eq!(line["destination"]["port"], 9999, "{line}");
        assert_eq!(line["isolatedBy"][1], "shop/lock-more", "{line}");
        assert!(line["time"].as_f64().is_some(), "{line}");
    }
    let key = TableKey::new(netstate::nft::Family::Inet, policy::TABLE);
    let counted = nft.counters(&key).unwrap();
    let readings = || {
        counted.iter().filter_map(|one| {
            let amount = Amount { packets: one.packets, bytes: one.bytes };
            Some(Reading { chain: &one.chain, digest: one.digest?, amount })
        })
    };
    let mut tally = Tally::default();
    tally.add(&policies, readings());
    let packets =
        |of: &Counted| tally.totals().find(|count| count.of == *of).map_or(0, |count| count.amount.packets);
    assert_eq!(packets(&Counted::Rule(Direction::Ingress, name("db"), 0)), 2, "one for each connection");
    assert_eq!(packets(&Counted::Rule(Direction::Egress, name("lock"), 0)), 2);
    let isolated = Counted::Isolated(Direction::Ingress, [name("db")].into());
    assert!(packets(&isolated) >= 2);
    let count = tally.totals().find(|count| count.of == isolated).unwrap().clone();
    assert_eq!(count.pods, [name("db")]);
    // The same counters again add nothing; those of a table that was written anew are added.
    tally.add(&policies, readings());
    let again = tally.totals().find(|other| other.of == count.of).unwrap();
    assert_eq!(again.amount, count.amount);
}
