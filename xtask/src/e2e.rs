//! Fairlead on a real Kubernetes: control plane, kubelets and containerd on this machine, Fairlead installed from deploy/.
//!
//! Read [`run`]. It brings a fresh cluster up ([`cluster::Cluster`]), validates the manifests by the API server, imports an
//! image made of the release binaries, and applies deploy/fairlead.yaml. Then come the parts, each of which prints what it
//! saw and fails if it is not as it should be:
//!
//! - `install`: how long until every node is Ready;
//! - `pods`: thirty pods a node, how long until each is Ready, and who reaches whom; with `FAIRLEAD_REFERENCE=DIR` the same
//!   once more over the reference plugins' chain and static routes;
//! - `outages`: what dies while a witness counts packets between pods (outages.rs has the list);
//! - `conformance`: Kubernetes' own suite, every `[sig-network]` `[Conformance]` test, with kube-proxy beside us;
//! - `policies`: the same suite's tests of NetworkPolicy;
//! - `cluster-policies`: a ClusterNetworkPolicy from its definition to its end;
//! - `allocation`: a cluster that gives out no pod CIDRs, with pods of two families;
//! - `uninstall`: deploy/uninstall.yaml, and whether anything of Fairlead is left on a node.
//!
//! The cluster is started by a script that is not in this repository (`FAIRLEAD_CLUSTER`, else the one in ../shared); where it, or Kubernetes' binaries (`KUBEBUILDER_ASSETS`,
//! else /usr/local/kubebuilder/bin), are not there, nothing is run. `FAIRLEAD_E2E_KEEP=1` leaves the cluster up.

mod allocation;
mod cluster;
mod conformance;
mod isolation;
mod outages;
mod pods;
mod witness;

use std::time::Instant;

use anyhow::bail;

use crate::{bench::release, packages, process, workspace};
use cluster::Cluster;

/// Nodes of the cluster.
const NODES: usize = 3;

/// What of the file system the end-to-end tests stand on, beside what the tests do.
const PACKAGES: &[(&str, &str)] = &[
    ("etcd", "etcd-server"),
    ("etcdctl", "etcd-client"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("fping", "fping"),
    ("ping", "iputils-ping"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("gcc", "gcc"),
    ("busybox", "busybox-static"),
    ("dig", "bind9-dnsutils"),
    ("nc.openbsd", "netcat-openbsd"),
    ("perf", "linux-perf"),
];

/// Runs the parts whose names contain `part`.
pub(crate) fn run(part: &str) -> anyhow::Result<()> {
    if let Some(reason) = cluster::missing() {
        workspace::not_run("e2e", &reason);
        return Ok(());
    }
    for program in packages::install(PACKAGES, false) {
        eprintln!("warning: {program} is missing");
    }
    process::run(workspace::cargo().args(["build", "--release", "--locked", "-p", "cli", "-p", "plugins"]))?;
    let wanted = |name: &str| name.contains(part);
    let mut failures = Vec::new();
    let mut judge = |name: &str, done: anyhow::Result<()>| {
        if let Err(error) = done {
            println!("{name}: FAILED: {error:#}");
            failures.push(name.to_owned());
        }
    };
    // What others do is no failure of ours.
    if wanted("pods")
        && let Err(error) = pods::over_the_reference()
    {
        println!("pods over the reference plugins: {error:#}");
    }
    if wanted("allocation") {
        judge("allocation", allocation::run());
    }
    if part == "allocation" {
        return judged(&failures);
    }
    let mut cluster = Cluster::up(NODES, None)?;
    judge("install", install(&cluster));
    if wanted("pods") {
        judge("pods", pods::run(&cluster, "fairlead"));
        judge("bandwidth", pods::bandwidth(&cluster));
    }
    if wanted("outages") {
        judge("outages", outages::run(&mut cluster));
    }
    if wanted("conformance") {
        judge("conformance", conformance::run(&cluster));
    }
    if wanted("policies") {
        judge("policies", conformance::policies(&cluster));
    }
    if wanted("cluster-policies") {
        judge("cluster-policies", isolation::cluster_policies(&cluster));
    }
    if wanted("uninstall") {
        judge("uninstall", uninstall(&cluster));
    }
    drop(cluster);
    judged(&failures)
}

fn judged(failures: &[String]) -> anyhow::Result<()> {
    if !failures.is_empty() {
        bail!("these parts failed: {}", failures.join(", "));
    }
    Ok(())
}

/// Installs Fairlead from deploy/ and says how long it took until every node was Ready.
fn install(cluster: &Cluster) -> anyhow::Result<()> {
    import_image(cluster)?;
    let manifest = workspace::root().join("deploy/fairlead.yaml");
    cluster.validate(&manifest)?;
    let start = Instant::now();
    cluster.apply(&manifest)?;
    cluster.await_nodes(NODES)?;
    println!("install: {NODES} nodes Ready {:.1} s after kubectl apply began", start.elapsed().as_secs_f64());
    cluster.kubectl(&["-n", "kube-system", "rollout", "status", "daemonset/fairlead", "--timeout=60s"])?;
    println!("install: every agent ready after {:.1} s", start.elapsed().as_secs_f64());
    // Fails where a node is not ready.
    let status = ["exec", "-n", "kube-system", "daemonset/fairlead", "--", "/fairlead", "status", "--all"];
    print!("{}", cluster.kubectl(&status)?);
    Ok(())
}

/// Makes the image that the manifest names, of the release binaries, and has every node have it.
fn import_image(cluster: &Cluster) -> anyhow::Result<()> {
    let mut files = Vec::new();
    for name in ["fairlead", "fairlead-cni"] {
        files.push(format!("/{name}={}", release(name)?.display()));
    }
    cluster.image(&image()?, "[\"/fairlead\"]", &files)
}

/// Takes Fairlead off, as docs/uninstall.md says, while a pod still has its network.
fn uninstall(cluster: &Cluster) -> anyhow::Result<()> {
    pods::born(cluster, "last", 1)?;
    cluster.kubectl(&["delete", "daemonset", "fairlead", "-n", "kube-system", "--wait=true"])?;
    let manifest = workspace::root().join("deploy/uninstall.yaml");
    cluster.validate(&manifest)?;
    cluster.apply(&manifest)?;
    let words = ["-n", "kube-system", "rollout", "status", "daemonset/fairlead-uninstall", "--timeout=60s"];
    cluster.kubectl(&words)?;
    for node in 1..=NODES {
        let left = cluster.sh(
            node,
            "ip -d -o link | grep fairlead; nft list tables | grep fairlead; ip route show proto 70; ip route show proto 71; \
             ls -A /etc/cni/net.d /run/fairlead /var/lib/cni/networks 2>/dev/null | grep -v ':$' | grep .; \
             ls /opt/cni/bin | grep -E 'fairlead|bridge|portmap'; true",
        )?;
        anyhow::ensure!(left.trim().is_empty(), "left on node{node}: {left}");
    }
    println!("uninstall: nothing of Fairlead is left on {NODES} nodes");
    Ok(())
}

/// The image that the manifest names.
fn image() -> anyhow::Result<String> {
    let text = std::fs::read_to_string(workspace::root().join("deploy/kubernetes/daemonset.yaml"))?;
    let image = text.lines().find_map(|line| line.trim().strip_prefix("image: "));
    image.map(str::to_owned).ok_or_else(|| anyhow::anyhow!("deploy/kubernetes/daemonset.yaml names no image"))
}
