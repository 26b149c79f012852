//! Policies where something is missing: the API server, the agents, or the definition of a kind.
//!
//! A pod is let in by the agent, which must know that what it knows is of now; so [`waits`] is what becomes of one that comes
//! while there is none, and [`sandbox_died`] of one that is to be let in anew while the API server is away. [`cluster_policies`] is the life of a kind
//! that an API server knows only where somebody has defined it.

use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::{
    cluster::{Cluster, eventually, items},
    witness,
};

/// What a pod of this name is, on a node.
fn pod(name: &str, node: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "newborn": "yes", "run": name } },
        "spec": {
            "nodeName": format!("node{node}"), "terminationGracePeriodSeconds": 0,
            "tolerations": [{ "operator": "Exists" }],
            "containers": [{ "name": "sleep", "image": "registry.k8s.io/pause:3.10" }],
        },
    })
}

/// Makes a pod that cannot be let in; returns what its Event says.
pub(super) fn waits(cluster: &Cluster, name: &str, node: usize) -> anyhow::Result<String> {
    cluster.apply_text(&pod(name, node).to_string())?;
    let field = format!("--field-selector=reason=FailedCreatePodSandBox,involvedObject.name={name}");
    let told = eventually("an Event says why a pod waits", || {
        let list = cluster.get(&["events", &field])?;
        Ok(items(&list).find_map(|event| event["message"].as_str().map(str::to_owned)))
    })?;
    ensure!(told.contains("fairlead"), "the Event names somebody else: {told}");
    let phase = cluster.kubectl(&["get", "pod", name, "-o", "jsonpath={.status.phase}"])?;
    ensure!(phase == "Pending", "the pod is {phase}");
    let told = told.rsplit_once("failed (add): ").map_or(told.as_str(), |(_, why)| why);
    Ok(told.to_owned())
}

/// Whether a node holds no more than its pods need: addresses, cables, and words of attachments.
pub(super) fn nothing_leaked(cluster: &Cluster, node: usize) -> anyhow::Result<()> {
    let count = "ls /var/lib/cni/networks/fairlead | grep -cE '^10\\.'; ls /run/fairlead/attachments | wc -l; \
                 ip -o link show type veth | grep -c 'alias fairlead'";
    let field = format!("--field-selector=spec.nodeName=node{node}");
    eventually("a node holds what its pods need and no more", || {
        let list = cluster.get(&["pods", "-A", &field])?;
        let pods = items(&list).filter(|pod| pod["spec"]["hostNetwork"] != true).count().to_string();
        let held = cluster.sh(node, &format!("{count}; true"))?;
        let held: Vec<&str> = held.split_whitespace().collect();
        if held.iter().all(|held| *held == pods) {
            return Ok(Some(()));
        }
        anyhow::bail!("node{node} has {pods} pods, and of addresses, attachments and cables {held:?}")
    })
}

/// What the plugin left word of, of the pod of this name.
fn attachment(cluster: &Cluster, node: usize, name: &str) -> anyhow::Result<Option<Value>> {
    let all = cluster.sh(node, "for file in /run/fairlead/attachments/*; do cat $file; echo; done")?;
    let all = all.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(all.into_iter().find(|attachment| attachment["name"] == name))
}

/// A pod's sandbox dies while the API server is away: nobody knows whether policies are as they were, so it has no other
/// one until the API server is back.
pub(super) fn sandbox_died(cluster: &mut Cluster) -> anyhow::Result<String> {
    let isolated = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": { "name": "sealed" },
        "spec": { "podSelector": { "matchLabels": { "run": "sealed" } }, "policyTypes": ["Ingress"] },
    });
    cluster.apply_text(&isolated.to_string())?;
    cluster.apply_text(&pod("sealed", 2).to_string())?;
    cluster.await_pod("sealed")?;
    let before = attachment(cluster, 2, "sealed")?.context("the pod has no attachment")?;
    let server = cluster.kill("kube-apiserver")?;
    let refused = refused_anew(cluster, &before);
    cluster.start(&server, &[])?;
    refused?;
    let start = Instant::now();
    // Word of an attachment comes before the pod is reached, and goes again if it is not let in.
    let address = eventually("the pod has another sandbox, which its own node reaches", || {
        let after = attachment(cluster, 2, "sealed")?;
        let Some(after) = after.filter(|after| after["container"] != before["container"]) else {
            return Ok(None);
        };
        let address = after["addresses"][0].as_str().context("an attachment without an address")?;
        cluster.sh(2, &format!("ping -n -q -c 1 -W 1 {address}"))?;
        Ok(Some(address.to_owned()))
    })?;
    let took = start.elapsed().as_secs_f64();
    let others =
        cluster.sh(1, &format!("ping -n -q -c 2 -W 1 {address} >/dev/null && echo reached; true"))?;
    ensure!(others.is_empty(), "another node reaches it");
    cluster.kubectl(&["delete", "pod/sealed", "networkpolicy/sealed", "--wait=true"])?;
    nothing_leaked(cluster, 2)?;
    Ok(format!("it has no other one until then, and {took:.1} s later it has, isolated"))
}

/// Kills a sandbox, and waits until the next one was refused for the API server that is away.
fn refused_anew(cluster: &Cluster, attachment: &Value) -> anyhow::Result<()> {
    let sandbox = attachment["container"].as_str().context("an attachment without a sandbox")?;
    let socket = cluster.path("node2/containerd.sock").display().to_string();
    cluster.sh(2, &format!("ctr -a {socket} -n k8s.io task kill -s 9 {sandbox}"))?;
    eventually("the kubelet is told that the pod is not let in", || {
        let log = std::fs::read_to_string(cluster.path("node2-kubelet.log"))?;
        Ok(log.contains("pod default/sealed are in force: the store is away").then_some(()))
    })
}

/// The smallest definition that an API server takes. What is in such a policy is not asked here.
fn definition() -> Value {
    let schema = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    let names = json!({
        "plural": "clusternetworkpolicies", "singular": "clusternetworkpolicy", "kind": "ClusterNetworkPolicy",
    });
    let version = json!({
        "name": "v1alpha2", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema },
    });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": "clusternetworkpolicies.policy.networking.k8s.io",
            "annotations": { "api-approved.kubernetes.io": "unapproved, a definition of a test" },
        },
        "spec": { "group": "policy.networking.k8s.io", "scope": "Cluster", "names": names, "versions": [version] },
    })
}

/// ClusterNetworkPolicies are defined while agents run, are in force, are explained, and go with their definition.
pub(super) fn cluster_policies(cluster: &Cluster) -> anyhow::Result<()> {
    witness::prepare(cluster)?;
    let to = witness::address(cluster, "to")?;
    eventually("the witness's pods reach each other", || {
        Ok(witness::reaches(cluster, "from", &to)?.then_some(()))
    })?;
    let policy = json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": { "name": "quarantine" },
        "spec": {
            "tier": "Admin", "priority": 1,
            "subject": { "pods": { "namespaceSelector": {}, "podSelector": { "matchLabels": { "witness": "to" } } } },
            "ingress": [{ "action": "Deny", "from": [{ "namespaces": {} }] }],
        },
    });
    cluster.apply_text(&definition().to_string())?;
    eventually("a ClusterNetworkPolicy is taken", || {
        Ok(cluster.apply_text(&policy.to_string()).is_ok().then_some(()))
    })?;
    let start = Instant::now();
    eventually("the ClusterNetworkPolicy is in force", || {
        Ok((!witness::reaches(cluster, "from", &to)?).then_some(()))
    })?;
    let took = start.elapsed().as_secs_f64();
    let told = explained(cluster)?;
    let why = "ClusterNetworkPolicy quarantine of tier Admin ingress rule 1: denies it";
    ensure!(told.contains(why), "explain says {told}");
    cluster.kubectl(&["delete", "crd", "clusternetworkpolicies.policy.networking.k8s.io"])?;
    eventually("its end is in force", || Ok(witness::reaches(cluster, "from", &to)?.then_some(())))?;
    let status = ["exec", "-n", "kube-system", "daemonset/fairlead", "--", "/fairlead", "status"];
    let status = cluster.kubectl(&status)?;
    ensure!(status.contains("kubernetes in sync"), "after the definition is gone: {status}");
    println!(
        "policies: a kind that was defined while agents ran is in force after {took:.1} s, explained by an agent's account, \
         and goes with its definition"
    );
    Ok(())
}

/// What an agent's own account is told of a flow, by a program in the agent's pod.
fn explained(cluster: &Cluster) -> anyhow::Result<String> {
    cluster.kubectl(&[
        "exec",
        "-n",
        "kube-system",
        "daemonset/fairlead",
        "--",
        "/fairlead",
        "explain",
        "default/from",
        "default/to",
        "80",
        "--expect",
        "deny",
    ])
}
