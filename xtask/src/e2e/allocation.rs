//! A cluster that gives its nodes no pod CIDRs: Fairlead gives them out itself, of two families.
//!
//! Read [`run`]. Without `--allocate-node-cidrs` no Node has a `spec.podCIDRs`, so each agent claims one of each of the
//! networks in its configuration. The cluster's own network is of IPv4 alone, which carries pods of both families.

use std::{collections::BTreeSet, time::Instant};

use anyhow::ensure;
use serde_json::Value;

use super::{
    NODES,
    cluster::{Cluster, eventually, items},
    pods::{born, each_reaches},
};
use crate::workspace;

/// The networks of the pods, as they stand in the configuration.
const NETWORKS: &str = "podCIDRs: [10.244.0.0/16, fd00:10:244::/56]";

/// Pods of a node.
const PER_NODE: usize = 3;

pub(super) fn run() -> anyhow::Result<()> {
    let cluster = Cluster::up_without_cidrs(NODES)?;
    super::import_image(&cluster)?;
    let manifest = std::fs::read_to_string(workspace::root().join("deploy/fairlead.yaml"))?;
    let manifest = manifest.replace("podCIDRs: [10.244.0.0/16]", NETWORKS);
    ensure!(manifest.contains(NETWORKS), "the manifest says its networks in another way");
    let start = Instant::now();
    cluster.apply_text(&manifest)?;
    cluster.await_nodes(NODES)?;
    println!(
        "allocation: {NODES} nodes Ready {:.1} s after kubectl apply began",
        start.elapsed().as_secs_f64()
    );
    let before = leased(&cluster)?;
    let distinct: BTreeSet<&String> = before.iter().flatten().collect();
    ensure!(distinct.len() == 2 * NODES, "not {NODES} times two pod CIDRs: {before:?}");
    for number in 0..NODES * PER_NODE {
        born(&cluster, &format!("pod{number}"), number % NODES + 1)?;
    }
    reach(&cluster)?;
    cluster.kubectl(&[
        "delete",
        "pod",
        "-n",
        "kube-system",
        "-l",
        "app.kubernetes.io/name=fairlead",
        "--wait=true",
    ])?;
    cluster.kubectl(&["-n", "kube-system", "rollout", "status", "daemonset/fairlead", "--timeout=60s"])?;
    ensure!(leased(&cluster)? == before, "other pod CIDRs after all agents were deleted");
    println!("allocation: each of {} pods reaches each other over IPv4 and IPv6", NODES * PER_NODE);
    Ok(())
}

/// The pod CIDRs of each node's lease.
fn leased(cluster: &Cluster) -> anyhow::Result<Vec<Vec<String>>> {
    eventually("every node has a lease", || {
        let list = cluster.get(&["nodes"])?;
        let leases: Vec<&str> = items(&list)
            .filter_map(|node| node["metadata"]["annotations"]["fairlead.io/lease"].as_str())
            .collect();
        if leases.len() < NODES {
            return Ok(None);
        }
        let cidrs = |lease: &str| -> anyhow::Result<Vec<String>> {
            let lease: Value = serde_json::from_str(lease)?;
            Ok(serde_json::from_value(lease["podCIDRs"].clone())?)
        };
        leases.into_iter().map(cidrs).collect::<anyhow::Result<_>>().map(Some)
    })
}

/// Every pod asks every pod at each of the addresses that the API server knows of it.
fn reach(cluster: &Cluster) -> anyhow::Result<()> {
    let list = cluster.get(&["pods", "-l", "newborn=yes"])?;
    let addresses: Vec<&str> = items(&list)
        .flat_map(|pod| pod["status"]["podIPs"].as_array().into_iter().flatten())
        .filter_map(|address| address["ip"].as_str())
        .collect();
    ensure!(addresses.len() == 2 * NODES * PER_NODE, "the API server knows {addresses:?}");
    let (six, four): (Vec<&str>, Vec<&str>) =
        addresses.into_iter().partition(|address| address.contains(':'));
    each_reaches(cluster, &four)?;
    each_reaches(cluster, &six)
}
