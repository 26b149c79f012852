//! A kind that an API server knows only where somebody has defined it: ClusterNetworkPolicies.
//!
//! The definition is the smallest that the API server takes, for what is in such a policy is not asked here. That one
//! which comes later is found is a matter of half a minute, and so of `cargo xtask e2e cluster-policies`.

use std::sync::mpsc::Receiver;

use cluster::Kind;
use harness::{ApiServer, eventually};
use serde_json::json;
use store::{Event, Store};

use crate::api::{Turn, locked};
use crate::kubernetes::Opened;
use crate::suite::{Subject, Witness};

const DEFINITION: &str =
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/clusternetworkpolicies.policy.networking.k8s.io";
const POLICIES: &str = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies";

/// What reads policies is allowed to read both kinds.
const KINDS: [Kind; 2] = [Kind::NetworkPolicy, Kind::ClusterNetworkPolicy];

/// Defines the kind, as `kubectl apply` of its definition would, and makes a policy of it.
fn define(server: &ApiServer) {
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let names = json!({
        "plural": "clusternetworkpolicies", "singular": "clusternetworkpolicy", "kind": "ClusterNetworkPolicy",
        "listKind": "ClusterNetworkPolicyList",
    });
    let version = json!({
        "name": "v1alpha2", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
    });
    server.create(
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
        &json!({
            "metadata": {
                "name": "clusternetworkpolicies.policy.networking.k8s.io",
                "annotations": {"api-approved.kubernetes.io": "unapproved, a definition of a test"},
            },
            "spec": {
                "group": "policy.networking.k8s.io", "scope": "Cluster", "names": names, "versions": [version],
            },
        }),
    );
    let policy = json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "quarantine"},
        "spec": {
            "tier": "Admin", "priority": 1, "subject": {"namespaces": {}},
            "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}],
        },
    });
    // It is served a little after it was defined.
    eventually("the policy is taken", || {
        (server.request("POST", POLICIES, Some(&policy)).0 == 201).then_some(())
    });
}

fn undefine(server: &ApiServer) {
    server.delete(DEFINITION);
    eventually("the definition is gone", || (server.request("GET", POLICIES, None).0 == 404).then_some(()));
}

fn watch(opened: &Opened) -> Receiver<Event> {
    opened.watch_of(&KINDS)
}

#[test]
fn a_definition_takes_what_was_defined_with_it_and_the_store_is_not_away_for_that() {
    let Some(turn) = Turn::take() else { return };
    define(&locked(&turn.server));
    let opened = Opened::new(turn.server.clone());
    let mut witness = Witness::in_sync(watch(&opened));
    assert_eq!(witness.snapshot.cluster_network_policies.len(), 1);
    // While nobody looks, so that no watch tells of it.
    opened.set_available(false);
    witness.until(|witness| !witness.available);
    let mut server = locked(&turn.server);
    server.resume_apart(undefine);
    server.resume();
    drop(server);
    witness.until(|witness| witness.available);
    witness.until(|witness| witness.snapshot.cluster_network_policies.is_empty());
    assert!(opened.store.list(&KINDS).unwrap().snapshot.cluster_network_policies.is_empty());
}

#[test]
fn what_was_lost_with_its_definition_stays_in_force() {
    let Some(turn) = Turn::take() else { return };
    // So that the versions of the empty one are behind, whatever else it does at its start.
    for beat in 0..300 {
        let beat = json!({"metadata": {"annotations": {"beat": beat.to_string()}}});
        locked(&turn.server).patch("/api/v1/namespaces/default", &beat);
    }
    define(&locked(&turn.server));
    let opened = Opened::new(turn.server.clone());
    let mut witness = Witness::in_sync(watch(&opened));
    locked(&turn.server).wipe();
    witness.until(|witness| !witness.problems.is_empty());
    witness.until(|witness| witness.available);
    assert_eq!(witness.snapshot.cluster_network_policies.len(), 1, "{:?}", witness.problems);
    assert_eq!(witness.removals, 0);
}
