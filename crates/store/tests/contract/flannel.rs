//! Nodes of flannel beside Fairlead's in one cluster: what a Node says to whom, as a real API server has it.

use cluster::{Backend, Flannel, Key, Lease, Object, PublicKey};
use harness::ApiServer;
use serde_json::{Value, json};
use store::{Expect, Store};

use crate::api::{Turn, locked};
use crate::kubernetes::{AGENT, Opened};
use crate::suite::{Witness, lease, sent};

const NODE: &str = "/api/v1/nodes/node1";

/// The lease of the suite, of which flannel's nodes are told as well.
pub(crate) fn told_flannel(node: &str) -> Object {
    with(node, |lease| lease.flannel = Flannel::Told)
}

fn with(node: &str, change: impl FnOnce(&mut Lease)) -> Object {
    let Object::Lease(lease) = lease(node, 1450) else { panic!("a lease") };
    let mut lease = (*lease).clone();
    change(&mut lease);
    lease.into()
}

/// A Node as flannel leaves it, and a person who runs flannel.
fn put_node_of_flannel(server: &ApiServer) {
    let annotations = json!({
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
        "flannel.alpha.coreos.com/backend-type": "vxlan",
        "flannel.alpha.coreos.com/backend-data": "{\"VNI\":1,\"VtepMAC\":\"ba:1d:00:00:00:01\"}",
        "flannel.alpha.coreos.com/public-ip": "198.18.0.1",
        "flannel.alpha.coreos.com/node-public-ip": "198.18.0.1",
    });
    let node = json!({
        "metadata": {"name": "node1", "annotations": annotations},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]},
    });
    server.create("/api/v1/nodes", &node);
}

/// What the four annotations of flannel say, the words of the last two in short; and that nothing else of it is touched.
fn said(server: &ApiServer) -> [Value; 4] {
    let annotations = server.get(NODE)["metadata"]["annotations"].clone();
    let of = |key: &str| annotations[format!("flannel.alpha.coreos.com/{key}")].clone();
    assert_eq!(of("node-public-ip"), "198.18.0.1", "a person's own word");
    [of("kube-subnet-manager"), of("backend-type"), of("backend-data"), of("public-ip")]
}

fn texts(kind: &str, data: &str) -> [Value; 4] {
    ["true", kind, data, "198.18.0.1"].map(Value::from)
}

const FLANNELS: &str = r#"{"VNI":1,"VtepMAC":"ba:1d:00:00:00:01"}"#;
const OURS: &str = r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}"#;

#[test]
fn a_node_of_flannel_has_a_lease_until_fairleads_takes_its_place() {
    let Some(turn) = Turn::take() else { return };
    put_node_of_flannel(&locked(&turn.server));
    let opened = Opened::new(turn.server.clone());
    let store = &opened.store;
    let mut witness = Witness::in_sync(sent(store.watch(&AGENT).unwrap()));
    let theirs = witness.snapshot.leases["node1"].clone();
    assert_eq!((theirs.flannel.is_member(), theirs.backend.name()), (true, "vxlan"));
    let key = Key::Lease("node1".into());
    assert!(!store.delete(&key, Expect::Any).unwrap(), "there is nothing of ours to remove");

    // Of a node that routes nothing, what flannel left stays: it may be flannel that joins the nodes.
    let routes_nothing = with("node1", |lease| lease.backend = Backend::None);
    store.write(&routes_nothing, Expect::Any).unwrap();
    witness.until(|witness| witness.snapshot.leases["node1"].flannel == Flannel::Apart);
    assert_eq!(said(&locked(&turn.server)), texts("vxlan", FLANNELS));
    assert!(store.delete(&key, Expect::Any).unwrap());
    witness.until(|witness| witness.snapshot.leases["node1"].flannel.is_member());

    // Of one that does it is not true any more, whether its agent tells flannel's nodes something else or nothing.
    store.write(&lease("node1", 1450), Expect::Any).unwrap();
    witness.until(|witness| witness.snapshot.leases["node1"].flannel == Flannel::Apart);
    assert_eq!(said(&locked(&turn.server)), [const { Value::Null }; 4]);

    // What is told in its place goes with the lease.
    store.write(&told_flannel("node1"), Expect::Any).unwrap();
    witness.until(|witness| witness.snapshot.leases["node1"].flannel == Flannel::Told);
    assert_eq!(said(&locked(&turn.server)), texts("vxlan", OURS));
    assert!(store.delete(&key, Expect::Any).unwrap());
    witness.until(|witness| witness.snapshot.leases.is_empty());
    assert_eq!(said(&locked(&turn.server)), [const { Value::Null }; 4]);
    assert!(!store.delete(&key, Expect::Any).unwrap());
}

#[test]
fn nodes_of_flannel_are_told_what_they_know_and_no_longer_than_wanted() {
    let Some(turn) = Turn::take() else { return };
    put_node_of_flannel(&locked(&turn.server));
    let opened = Opened::new(turn.server.clone());
    let store = &opened.store;
    let nothing = [const { Value::Null }; 4];
    let write = |object: &Object| store.write(object, Expect::Any).unwrap();
    let of = |backend: Backend| {
        with("node1", |lease| {
            lease.flannel = Flannel::Told;
            lease.backend = backend;
        })
    };
    for (backend, want) in [
        (Backend::HostGw, texts("host-gw", "null")),
        (Backend::wireguard(51820, PublicKey([1; 32])), nothing.clone()),
        (Backend::Udp { port: 8285 }, texts("udp", "null")),
        (Backend::None, nothing.clone()),
    ] {
        write(&of(backend));
        assert_eq!(said(&locked(&turn.server)), want);
    }
    write(&told_flannel("node1"));
    write(&lease("node1", 1450));
    assert_eq!(said(&locked(&turn.server)), nothing);
}

#[test]
fn what_flannel_writes_over_it_is_seen_and_written_again() {
    let Some(turn) = Turn::take() else { return };
    put_node_of_flannel(&locked(&turn.server));
    let opened = Opened::new(turn.server.clone());
    let store = &opened.store;
    let version = store.write(&told_flannel("node1"), Expect::Any).unwrap();
    let mut witness = Witness::in_sync(sent(store.watch(&AGENT).unwrap()));
    assert_eq!(witness.snapshot.leases["node1"].flannel, Flannel::Told);
    let patch = json!({"metadata": {"annotations": {"flannel.alpha.coreos.com/backend-data": FLANNELS}}});
    locked(&turn.server).patch(&format!("{NODE}/status"), &patch);
    witness.until(|witness| witness.snapshot.leases["node1"].flannel == Flannel::Overwritten);
    assert_eq!(store.write(&told_flannel("node1"), Expect::Any).unwrap(), version);
    witness.until(|witness| witness.snapshot.leases["node1"].flannel == Flannel::Told);
    assert_eq!(said(&locked(&turn.server)), texts("vxlan", OURS));
    // The same again is no write.
    let before = locked(&turn.server).get(NODE)["metadata"]["resourceVersion"].clone();
    store.write(&told_flannel("node1"), Expect::Any).unwrap();
    assert_eq!(locked(&turn.server).get(NODE)["metadata"]["resourceVersion"], before);

    // Where its node is no longer to be told of, that is taken away as well.
    locked(&turn.server).patch(&format!("{NODE}/status"), &patch);
    witness.until(|witness| witness.snapshot.leases["node1"].flannel == Flannel::Overwritten);
    store.write(&lease("node1", 1450), Expect::Any).unwrap();
    witness.until(|witness| witness.snapshot.leases["node1"].flannel == Flannel::Apart);
    assert_eq!(said(&locked(&turn.server)), [const { Value::Null }; 4]);
}
