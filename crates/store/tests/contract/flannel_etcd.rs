//! Nodes of flannel beside Fairlead's in one etcd: their keys as flannel writes them, put by hand, and ours among them.

use cluster::{Backend, Flannel, Key, Kind, Lease, Object};
use harness::etcd::base64;
use harness::{Etcd, eventually};
use serde_json::{Value, json};
use store::etcd::Access;
use store::{Error, Expect, Store};

use crate::suite::{Witness, lease, sent};

const PREFIX: &str = "/coreos.com/network";
const KINDS: [Kind; 3] = [Kind::Node, Kind::Lease, Kind::Claim];

fn open(etcd: &Etcd) -> store::Etcd {
    let access = Access { flannel_prefix: Some(PREFIX.to_owned()), ..Access::default() };
    store::Etcd::open(&etcd.url().parse().unwrap(), access).unwrap()
}

fn key(subnet: &str) -> String {
    format!("{PREFIX}/subnets/{subnet}")
}

/// What flannel writes of a node with the address 198.18.0.`number`.
fn of_flannel(number: u8) -> String {
    let data = json!({"VNI": 1, "VtepMAC": format!("ba:1d:00:00:00:0{number}")});
    json!({
        "PublicIP": format!("198.18.0.{number}"), "PublicIPv6": null, "BackendType": "vxlan", "BackendData": data,
    })
    .to_string()
}

/// As flannel does it: with a lease of a day.
fn put_for_a_day(etcd: &Etcd, subnet: &str, value: &str) {
    let granted = etcd.ask("/v3/lease/grant", &json!({"TTL": "86400"}));
    let put = json!({"key": base64(&key(subnet)), "value": base64(value), "lease": granted["ID"]});
    etcd.ask("/v3/kv/put", &put);
}

/// What stands under a key, in base64, and the lease that it goes with.
fn found(etcd: &Etcd, subnet: &str) -> Option<(Value, Value)> {
    let kv = etcd.get(&key(subnet))?;
    Some((kv["value"].clone(), kv["lease"].clone()))
}

/// The lease of the suite's node1, IPv4 alone, at 198.18.0.1.
fn told(cidr: &str) -> Object {
    let Object::Lease(lease) = lease("node1", 1450) else { panic!("a lease") };
    let pod_cidrs = Box::new([cidr.parse().unwrap()]);
    Lease { pod_cidrs, flannel: Flannel::Told, ..(*lease).clone() }.into()
}

fn ours() -> Value {
    let value = json!({
        "BackendData": {"VNI": 1, "VtepMAC": "02:00:00:00:00:01"}, "BackendType": "vxlan", "Fairlead": "node1",
        "PublicIP": "198.18.0.1", "PublicIPv6": null,
    });
    base64(&value.to_string()).into()
}

#[test]
fn nodes_of_flannel_are_peers_for_as_long_as_they_have_their_keys() {
    let Some(etcd) = Etcd::start() else { return };
    put_for_a_day(&etcd, "10.244.7.0-24&fd00:7::-64", &of_flannel(7));
    etcd.put(&key("10.244.9.0-24"), r#"{"PublicIP": "198.18.0.9"}"#);
    etcd.put(&key("10.244.8.0-24"), "nonsense");
    etcd.put(&format!("{PREFIX}/config"), r#"{"Network": "10.244.0.0/16"}"#);
    let store = open(&etcd);
    let mut witness = Witness::in_sync(sent(store.watch(&KINDS).unwrap()));
    let names =
        |witness: &Witness| witness.snapshot.nodes.keys().map(ToString::to_string).collect::<Vec<_>>();
    let all = ["flannel-10.244.7.0-24", "flannel-10.244.8.0-24", "flannel-10.244.9.0-24"];
    assert_eq!(names(&witness), all);
    let listing = store.list(&KINDS).unwrap();
    assert_eq!((&listing.snapshot, listing.problems.len()), (&witness.snapshot, 1), "{:?}", listing.problems);
    assert!(listing.problems[0].to_string().contains("subnets/10.244.8.0-24"), "{:?}", listing.problems);
    let [(name, theirs)] = &witness.snapshot.leases.iter().collect::<Vec<_>>()[..] else {
        panic!("one lease")
    };
    assert_eq!((&***name, theirs.flannel.is_member(), theirs.pod_cidrs.len()), (all[0], true, 1));
    assert!(matches!(theirs.backend, Backend::Vxlan { vni: 1, .. }));
    assert_eq!(witness.snapshot.nodes[all[0]].pod_cidrs.len(), 2, "its IPv6 is nobody else's");

    // Nodes of Fairlead's come and go without them.
    etcd.put("/fairlead/nodes/node1", "apiVersion: v1\nkind: Node\nmetadata: {name: node1}\n");
    witness.until(|witness| witness.snapshot.nodes.len() == 4);
    etcd.put(
        "/fairlead/nodes/flannel-10.244.6.0-24",
        "apiVersion: v1\nkind: Node\nmetadata: {name: flannel-10.244.6.0-24}\n",
    );
    witness.until(|witness| witness.problems.len() == 2);
    etcd.delete(&key("10.244.7.0-24"));
    witness.until(|witness| witness.snapshot.leases.is_empty() && witness.snapshot.nodes.len() == 3);
    put_for_a_day(&etcd, "10.244.7.0-24", &of_flannel(7));
    witness.until(|witness| witness.snapshot.leases.len() == 1);
    // Without the prefix they are strangers.
    let apart = store::Etcd::open(&etcd.url().parse().unwrap(), Access::default()).unwrap();
    assert!(apart.list(&KINDS).unwrap().snapshot.leases.is_empty());
}

#[test]
fn our_node_is_among_flannels_keys_for_as_long_as_it_has_a_lease() {
    let Some(etcd) = Etcd::start() else { return };
    let store = open(&etcd);
    let mut witness = Witness::in_sync(sent(store.watch(&KINDS).unwrap()));
    store.write(&told("10.244.1.0/24"), Expect::Any).unwrap();
    let (value, lease) = found(&etcd, "10.244.1.0-24").unwrap();
    assert_eq!(value, ours());
    let left = etcd.ask("/v3/lease/timetolive", &json!({"ID": lease}));
    let seconds = |value: &Value| value.as_str().unwrap().parse::<u32>().unwrap();
    assert_eq!(seconds(&left["grantedTTL"]), 86_400);
    witness.until(|witness| witness.snapshot.leases.contains_key("node1"));
    assert_eq!(
        (witness.snapshot.leases.len(), witness.snapshot.nodes.len()),
        (1, 0),
        "it is no node of flannel's"
    );

    // Somebody deletes it, writes over it, or lets it end.
    let is_back =
        || found(&etcd, "10.244.1.0-24").filter(|(value, _)| *value == ours()).map(|(_, lease)| lease);
    etcd.delete(&key("10.244.1.0-24"));
    eventually("the key is written again", is_back);
    etcd.put(&key("10.244.1.0-24"), &of_flannel(1));
    eventually("the key says again what it is to say", is_back);
    etcd.delete(&key("10.244.1.0-24"));
    let lease = eventually("the key is there", is_back);
    etcd.ask("/v3/lease/revoke", &json!({"ID": lease}));
    let lease = eventually("the key that has ended is written again", is_back);

    // Each start gives it another day.
    let next = open(&etcd);
    next.write(&told("10.244.1.0/24"), Expect::Any).unwrap();
    let (value, later) = found(&etcd, "10.244.1.0-24").unwrap();
    assert_eq!(value, ours());
    assert_ne!(later, lease);

    // It goes where its node goes.
    store.write(&told("10.244.2.0/24"), Expect::Any).unwrap();
    assert_eq!(found(&etcd, "10.244.2.0-24").map(|(value, _)| value), Some(ours()));
    assert_eq!(found(&etcd, "10.244.1.0-24"), None, "what it had is free");
    assert!(store.delete(&Key::Lease("node1".into()), Expect::Any).unwrap());
    assert_eq!(found(&etcd, "10.244.2.0-24"), None);
}

#[test]
fn a_subnet_that_flannel_has_is_not_ours_whatever_its_key_is_called() {
    let Some(etcd) = Etcd::start() else { return };
    put_for_a_day(&etcd, "10.244.1.0-24&fd00:1::-64", &of_flannel(7));
    etcd.put(&key("10.244.4.0-23"), r#"{"PublicIP": "198.18.0.9"}"#);
    let store = open(&etcd);
    for (cidr, holder) in [("10.244.1.0/24", "198.18.0.7"), ("10.244.5.0/24", "198.18.0.9")] {
        let error = store.write(&told(cidr), Expect::Any).unwrap_err();
        assert!(matches!(&error, Error::Refused { reason, .. } if reason.ends_with(holder)), "{error}");
    }
    assert!(store.read(&Key::Lease("node1".into())).unwrap().is_none());
    assert_eq!(found(&etcd, "10.244.1.0-24"), None);
    store.write(&told("10.244.2.0/24"), Expect::Any).unwrap();
    // Flannel does not look again after it has created a key, so it is we who go.
    put_for_a_day(&etcd, "10.244.2.0-24&fd00:2::-64", &of_flannel(8));
    let error = store.write(&told("10.244.2.0/24"), Expect::Any).unwrap_err();
    assert!(error.to_string().contains("held by 198.18.0.8"), "{error}");
    assert_eq!(found(&etcd, "10.244.2.0-24"), None);
}

#[test]
fn a_node_of_flannel_that_has_two_keys_is_there_until_the_last_one_goes() {
    let Some(etcd) = Etcd::start() else { return };
    put_for_a_day(&etcd, "10.244.7.0-24", &of_flannel(7));
    put_for_a_day(&etcd, "10.244.7.0-24&fd00:7::-64", &of_flannel(8));
    let store = open(&etcd);
    let mut witness = Witness::in_sync(sent(store.watch(&KINDS).unwrap()));
    let address = |witness: &Witness| {
        let lease = witness.snapshot.leases.get("flannel-10.244.7.0-24");
        lease.map(|lease| lease.underlay[0].to_string())
    };
    assert_eq!(address(&witness).as_deref(), Some("198.18.0.8"), "the one that was written last");
    assert_eq!(store.list(&KINDS).unwrap().snapshot, witness.snapshot);
    etcd.delete(&key("10.244.7.0-24&fd00:7::-64"));
    witness.until(|witness| address(witness).as_deref() == Some("198.18.0.7"));
    // Ours, of the machine that took the subnet over, does not take the other away.
    put_for_a_day(&etcd, "10.244.7.0-24&fd00:7::-64", r#"{"PublicIP":"198.18.0.1","Fairlead":"node1"}"#);
    put_for_a_day(&etcd, "10.244.6.0-24", &of_flannel(6));
    witness.until(|witness| witness.snapshot.leases.len() == 2);
    assert_eq!(address(&witness).as_deref(), Some("198.18.0.7"));
    assert_eq!(store.list(&KINDS).unwrap().snapshot, witness.snapshot);
    etcd.delete(&key("10.244.7.0-24"));
    witness.until(|witness| address(witness).is_none() && witness.snapshot.nodes.len() == 1);
}

#[test]
fn a_key_of_ours_that_cannot_be_kept_is_told_and_costs_no_leases_of_etcds() {
    let Some(etcd) = Etcd::start() else { return };
    let leases = || etcd.ask("/v3/lease/leases", &json!({}))["leases"].as_array().map_or(0, Vec::len);
    let store = open(&etcd);
    let mut witness = Witness::in_sync(sent(store.watch(&KINDS).unwrap()));
    store.write(&told("10.244.1.0/24"), Expect::Any).unwrap();
    assert_eq!(leases(), 1);
    // Somebody else has taken the subnet, and nothing but the key would ever speak of it.
    put_for_a_day(&etcd, "10.244.1.0-24", &of_flannel(7));
    witness.until(|witness| {
        let mut told = witness.problems.iter().map(ToString::to_string);
        told.any(|told| told.contains("10.244.1.0-24: is not kept") && told.contains("held by 198.18.0.7"))
    });
    etcd.delete(&key("10.244.1.0-24"));
    eventually("the key is written again", || found(&etcd, "10.244.1.0-24"));
    witness.until(|witness| witness.problems.is_empty());
}

#[test]
fn a_machine_that_was_flannels_keeps_its_subnet_and_a_place_that_is_kept_stays_one() {
    let Some(etcd) = Etcd::start() else { return };
    put_for_a_day(&etcd, "10.244.1.0-24", &of_flannel(1));
    put_for_a_day(&etcd, "10.244.3.0-24", &of_flannel(1));
    etcd.put(&key("10.244.2.0-24"), r#"{"PublicIP":"198.18.0.1"}"#);
    let store = open(&etcd);
    store.write(&told("10.244.1.0/24"), Expect::Any).unwrap();
    assert_eq!(found(&etcd, "10.244.1.0-24").map(|(value, _)| value), Some(ours()));
    assert_eq!(found(&etcd, "10.244.3.0-24"), None, "one subnet is enough");
    let kept = found(&etcd, "10.244.2.0-24").unwrap();
    assert_eq!(kept.1, Value::Null);

    store.write(&told("10.244.2.0/24"), Expect::Any).unwrap();
    assert_eq!(found(&etcd, "10.244.2.0-24"), Some((ours(), Value::Null)), "it does not end");
    assert_eq!(found(&etcd, "10.244.1.0-24"), None);
    store.write(&told("10.244.2.0/24"), Expect::Any).unwrap();
    assert_eq!(found(&etcd, "10.244.2.0-24"), Some((ours(), Value::Null)));
    store.delete(&Key::Lease("node1".into()), Expect::Any).unwrap();
    let (value, lease) = found(&etcd, "10.244.2.0-24").unwrap();
    assert_eq!(
        (value, lease),
        (base64(r#"{"PublicIP":"198.18.0.1","PublicIPv6":null}"#).into(), Value::Null)
    );
}
