//! What dies, and what pods notice of it: nothing.
//!
//! Read [`run`]: it is the list of scenarios. Each runs under a witness ([`Witness`]) that counts packets between two pods on
//! two nodes; a single lost one is a failure, and so is one of a pod that may reach nobody. After those that cut the API server off, the time is taken from its first
//! answer until a change made then is in the kernel of a node.
//!
//! `FAIRLEAD_E2E_SCENARIO` is part of the names of those that are to run alone. `FAIRLEAD_E2E_OUTAGE` says how many seconds the API server stays away (60; the goal is held with 600).

use std::{
    net::IpAddr,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::{
    cluster::{Cluster, eventually, items},
    isolation,
    pods::born,
    witness::{self, Witness},
};
use crate::process;

/// A scenario; what it returns is printed beside the count of packets.
type Scenario = fn(&mut Cluster) -> anyhow::Result<String>;

/// Runs them all, in an order in which each leaves the cluster fit for the next.
pub(super) fn run(cluster: &mut Cluster) -> anyhow::Result<()> {
    let scenarios: [(&str, Scenario); 11] = [
        ("agent deleted while pods come and go", agent_deleted),
        ("agent killed with -9", agent_killed),
        ("containerd killed with -9", containerd_killed),
        ("kubelet killed with -9", kubelet_killed),
        ("API server away", api_server_away),
        ("a sandbox that dies while the API server is away", isolation::sandbox_died),
        ("etcd lost and restored from a snapshot", etcd_restored),
        ("Node object deleted and created anew", node_object_deleted),
        ("Node object deleted and created anew with another pod CIDR", node_moved),
        ("broken ConfigMap, then a mended one", config_map_broken),
        ("DaemonSet removed and installed again", reinstalled),
    ];
    witness::prepare(cluster)?;
    let mut failed = Vec::new();
    let part = std::env::var("FAIRLEAD_E2E_SCENARIO").unwrap_or_default();
    for (name, scenario) in scenarios.into_iter().filter(|(name, _)| name.contains(&part)) {
        let witness = Witness::start(cluster)?;
        let told = scenario(cluster);
        let lost = witness.lost()?;
        let verdict = match &told {
            Ok(told) => format!("{}{told}", if told.is_empty() { "" } else { "; " }),
            Err(error) => format!("; FAILED: {error:#}"),
        };
        let through = match lost.let_through {
            0 => String::new(),
            count => format!(", {count} let through that no policy allows"),
        };
        println!("outages: {name}: {} of {} packets lost{through}{verdict}", lost.lost, lost.sent);
        if told.is_err() || lost.lost + lost.let_through > 0 {
            failed.push(name);
        }
    }
    if "a node rebooted".contains(&part) {
        let told = rebooted(cluster);
        println!("outages: a node rebooted: {}", told.as_deref().unwrap_or("FAILED"));
        told?;
    }
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

/// The agent's pod on a node.
fn agent(cluster: &Cluster, node: usize) -> anyhow::Result<String> {
    let field = format!("--field-selector=spec.nodeName=node{node}");
    let list =
        cluster.get(&["pods", "-n", "kube-system", "-l", "app.kubernetes.io/name=fairlead", &field])?;
    let found = items(&list).find(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    let name = found.and_then(|pod| pod["metadata"]["name"].as_str());
    name.map(str::to_owned).with_context(|| format!("no agent on node{node}"))
}

fn await_agents(cluster: &Cluster) -> anyhow::Result<()> {
    let words = ["-n", "kube-system", "rollout", "status", "daemonset/fairlead", "--timeout=120s"];
    cluster.kubectl(&words).map(drop)
}

fn agent_deleted(cluster: &mut Cluster) -> anyhow::Result<String> {
    let pod = agent(cluster, 1)?;
    cluster.kubectl(&["delete", "pod", "-n", "kube-system", &pod, "--wait=false"])?;
    // Pods come and go while there is none.
    let start = Instant::now();
    for number in 0..3 {
        born(cluster, &format!("newborn{number}"), 1)?;
    }
    cluster.kubectl(&["delete", "pod", "-l", "newborn=yes", "--wait=true"])?;
    let took = start.elapsed();
    await_agents(cluster)?;
    Ok(format!("3 pods born and gone meanwhile in {:.1} s", took.as_secs_f64()))
}

fn agent_killed(cluster: &mut Cluster) -> anyhow::Result<String> {
    let restarts = |cluster: &Cluster| -> anyhow::Result<u64> {
        let pod = cluster.get(&["pod", "-n", "kube-system", &agent(cluster, 1)?])?;
        Ok(pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or_default())
    };
    let before = restarts(cluster)?;
    let pid = cluster.sh(1, "curl -s --unix-socket /run/fairlead/agent.sock x >/dev/null; pgrep -x -f '/fairlead agent.*' --ns $$ --nslist net | head -1")?;
    process::output(Command::new("kill").args(["-9", pid.trim()]))?;
    eventually("the agent was started again", || Ok((restarts(cluster)? > before).then_some(())))?;
    await_agents(cluster)?;
    Ok(String::new())
}

fn containerd_killed(cluster: &mut Cluster) -> anyhow::Result<String> {
    let killed = cluster.kill("node2-containerd")?;
    // Named as the script names it.
    cluster.start(&killed, &[])?;
    eventually("a pod can be made on node2", || {
        born(cluster, "after-containerd", 2)?;
        cluster.kubectl(&["delete", "pod", "after-containerd", "--wait=true"])?;
        Ok(Some(()))
    })?;
    Ok("and a pod came and went afterwards".to_owned())
}

fn kubelet_killed(cluster: &mut Cluster) -> anyhow::Result<String> {
    let killed = cluster.kill("node2-kubelet")?;
    cluster.start(&killed, &[])?;
    born(cluster, "after-kubelet", 2)?;
    cluster.kubectl(&["delete", "pod", "after-kubelet", "--wait=true"])?;
    Ok("and a pod came and went afterwards".to_owned())
}

fn api_server_away(cluster: &mut Cluster) -> anyhow::Result<String> {
    let seconds = std::env::var("FAIRLEAD_E2E_OUTAGE").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let killed = cluster.kill("kube-apiserver")?;
    thread::sleep(Duration::from_secs(seconds));
    cluster.start(&killed, &[])?;
    let took = time_of_a_change(cluster)?;
    Ok(format!("away for {seconds} s; a change made at its first answer was in the kernel after {took:.2} s"))
}

fn etcd_restored(cluster: &mut Cluster) -> anyhow::Result<String> {
    let snapshot = cluster.path("snapshot.db").display().to_string();
    let etcdctl = |cluster: &Cluster, words: &[&str]| {
        let mut command = cluster.beside_the_api_server("etcdctl");
        process::output(command.env("ETCDCTL_API", "3").args(words))
    };
    etcdctl(cluster, &["snapshot", "save", &snapshot])?;
    // Something that the snapshot does not have.
    cluster.kubectl(&["create", "namespace", "forgotten"])?;
    let server = cluster.kill("kube-apiserver")?;
    let etcd = cluster.kill("etcd")?;
    let data = cluster.path("etcd");
    std::fs::remove_dir_all(&data)?;
    etcdctl(cluster, &["snapshot", "restore", &snapshot, "--data-dir", &data.display().to_string()])?;
    cluster.start(&etcd, &[])?;
    cluster.start(&server, &[])?;
    let took = time_of_a_change(cluster)?;
    Ok(format!("a change made at its first answer was in the kernel after {took:.2} s"))
}

/// Waits for the API server's first answer, adds a node by hand, and says how long it took until node1 had a route to it.
fn time_of_a_change(cluster: &Cluster) -> anyhow::Result<f64> {
    eventually("the API server answers", || {
        Ok((cluster.kubectl(&["get", "--raw", "/readyz"])? == "ok").then_some(()))
    })?;
    // In the form of another node's.
    let theirs = cluster.get(&["node", "node3"])?;
    let theirs =
        theirs["metadata"]["annotations"]["fairlead.io/lease"].as_str().context("node3 has no lease")?;
    let mut lease: Value = serde_json::from_str(theirs)?;
    lease["podCIDRs"] = json!(["10.244.200.0/24"]);
    lease["underlay"] = json!(["172.30.0.200"]);
    lease["backend"]["mac"] = json!("02:00:00:00:00:c8");
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": "stranger", "annotations": { "fairlead.io/lease": lease.to_string() } },
        "spec": { "podCIDR": "10.244.200.0/24", "podCIDRs": ["10.244.200.0/24"] },
    });
    let start = Instant::now();
    cluster.apply_text(&node.to_string())?;
    let made = start.elapsed();
    eventually("node1 has a route to the stranger", || {
        let route = cluster.sh(1, "ip route show 10.244.200.0/24")?;
        Ok(route.contains("fairlead0").then_some(()))
    })?;
    let took = start.elapsed() - made;
    cluster.kubectl(&["delete", "node", "stranger"])?;
    Ok(took.as_secs_f64())
}

/// A Node as a kubelet or an operator creates it: without what the API server and agents wrote.
fn as_created(mut node: Value) -> anyhow::Result<Value> {
    for field in ["uid", "resourceVersion", "creationTimestamp", "managedFields", "annotations"] {
        node["metadata"].as_object_mut().context("a node without metadata")?.remove(field);
    }
    node["status"] = json!({});
    Ok(node)
}

fn node_object_deleted(cluster: &mut Cluster) -> anyhow::Result<String> {
    let node = cluster.get(&["node", "node2"])?;
    let lease = |cluster: &Cluster| -> anyhow::Result<Value> {
        Ok(cluster.get(&["node", "node2"])?["metadata"]["annotations"]["fairlead.io/lease"].take())
    };
    let before = lease(cluster)?;
    cluster.kubectl(&["delete", "node", "node2"])?;
    thread::sleep(Duration::from_secs(5));
    let node = as_created(node)?;
    let start = Instant::now();
    cluster.apply_text(&node.to_string())?;
    let after = eventually("node2 has its lease again", || {
        let lease = lease(cluster)?;
        Ok((!lease.is_null()).then_some(lease))
    })?;
    ensure!(after == before, "the lease is another one: {after} instead of {before}");
    let took = start.elapsed().as_secs_f64();
    cluster.await_nodes(super::NODES)?;
    Ok(format!("away for 5 s, its lease back {took:.2} s after it was created"))
}

/// A Node that is registered anew may be given another pod CIDR; pods that run keep their addresses. Which one the
/// controller manager takes cannot be known, so it is told.
fn node_moved(cluster: &mut Cluster) -> anyhow::Result<String> {
    let node = cluster.get(&["node", "node2"])?;
    let before = node["spec"]["podCIDR"].as_str().context("node2 has no pod CIDR")?.to_owned();
    let after = "10.244.77.0/24";
    cluster.kubectl(&["delete", "node", "node2"])?;
    let kubelet = cluster.kill("node2-kubelet")?;
    let mut node = as_created(node)?;
    node["spec"] = json!({ "podCIDR": after, "podCIDRs": [after] });
    cluster.apply_text(&node.to_string())?;
    cluster.start(&kubelet, &[])?;
    cluster.await_nodes(super::NODES)?;
    cluster.route_to_pods(super::NODES)?;
    // Both are carried: the new one for those that are born, the old one for those that run.
    born(cluster, "in-the-new", 2)?;
    let address = cluster.kubectl(&["get", "pod", "in-the-new", "-o", "jsonpath={.status.podIP}"])?;
    let address: IpAddr = address.trim().parse()?;
    ensure!(after.parse::<IpNet>()?.contains(&address), "{address} is not of {after}");
    cluster.sh(1, &format!("ping -n -q -c 3 -W 2 {address}"))?;
    eventually("an Event says so", || {
        let list = cluster.get(&["events", "-n", "default", "--field-selector=reason=PodCIDRChanged"])?;
        Ok(items(&list).next().map(drop))
    })?;
    // The witness is one of those that run; this node reaches it, too, over the old one.
    let old = cluster.kubectl(&["get", "pod", "to", "-o", "jsonpath={.status.podIP}"])?;
    ensure!(before.parse::<IpNet>()?.contains(&old.trim().parse::<IpAddr>()?), "{old} is not of {before}");
    cluster.sh(3, &format!("ping -n -q -c 3 -W 2 {}", old.trim()))?;
    cluster.kubectl(&["delete", "pod", "in-the-new", "--wait=true"])?;
    Ok(format!("given {after} instead of {before}, which its pods still have addresses of"))
}

fn config_map_broken(cluster: &mut Cluster) -> anyhow::Result<String> {
    let whole = cluster.get(&["configmap", "fairlead", "-n", "kube-system"])?;
    let good = whole["data"]["config.yaml"].as_str().unwrap_or_default().to_owned();
    let set = |cluster: &Cluster, text: &str| -> anyhow::Result<()> {
        let patch = json!({ "data": { "config.yaml": text } }).to_string();
        cluster.kubectl(&["patch", "configmap", "fairlead", "-n", "kube-system", "-p", &patch])?;
        // A kubelet looks at a volume's content now and then; a pod that changes makes it look.
        let stamp = format!("looked-at={}", text.len());
        let all =
            ["-n", "kube-system", "annotate", "pods", "-l", "app.kubernetes.io/name=fairlead", "--overwrite"];
        cluster.kubectl(&[&all[..], &[stamp.as_str()]].concat()).map(drop)
    };
    set(cluster, &format!("{good}vxlan: {{prot: 8472}}\n"))?;
    let told = eventually("an Event says what is wrong", || {
        let list =
            cluster.get(&["events", "-n", "default", "--field-selector=reason=ConfigurationRefused"])?;
        let message = items(&list).find_map(|event| event["message"].as_str().map(str::to_owned));
        Ok(message)
    })?;
    ensure!(told.contains("did you mean port?"), "{told}");
    await_agents(cluster)?;
    set(cluster, &good)?;
    eventually("the mended one is in force", || {
        let problems = cluster.sh(1, "grep -c prot /run/fairlead/config.yaml || true")?;
        Ok((problems.trim() == "0").then_some(()))
    })?;
    Ok(format!("the Event: {}", told.lines().next().unwrap_or_default()))
}

/// Without any agent pods go, and those that are to come wait: nobody knows whether a policy is about them.
fn reinstalled(cluster: &mut Cluster) -> anyhow::Result<String> {
    born(cluster, "gone-without-agents", 2)?;
    // Its pods go first, and only then it: an agent that is still there would let the next pod in.
    let words =
        ["delete", "daemonset", "fairlead", "-n", "kube-system", "--cascade=foreground", "--wait=true"];
    cluster.kubectl(&words)?;
    cluster.kubectl(&["delete", "pod", "gone-without-agents", "--wait=true"])?;
    let waiting = isolation::waits(cluster, "without-agents", 2)?;
    cluster.apply(&crate::workspace::root().join("deploy/kubernetes/daemonset.yaml"))?;
    await_agents(cluster)?;
    let start = Instant::now();
    cluster.await_pod("without-agents")?;
    let took = start.elapsed().as_secs_f64();
    cluster.kubectl(&["delete", "pod", "without-agents", "--wait=true"])?;
    isolation::nothing_leaked(cluster, 2)?;
    Ok(format!(
        "a pod went without any agent; one that came was told {waiting:?}, and ran {took:.1} s after the agents were back"
    ))
}

/// A node loses all that a reboot takes: its processes, its links, /run. What is on disk stays, older than the boot.
fn rebooted(cluster: &mut Cluster) -> anyhow::Result<String> {
    for number in 0..5 {
        born(cluster, &format!("before-the-reboot{number}"), 3)?;
    }
    let kubelet = cluster.kill("node3-kubelet")?;
    let socket = cluster.path("node3/containerd.sock").display().to_string();
    let tasks = format!(
        "for task in $(ctr -a {socket} -n k8s.io task ls -q); do ctr -a {socket} -n k8s.io task rm -f $task; done; true"
    );
    cluster.sh(3, &tasks)?;
    let containerd = cluster.kill("node3-containerd")?;
    cluster.sh(
        3,
        "for netns in /run/netns/cni-*; do umount $netns; rm -f $netns; done; ip link delete fairlead0; \
         nft delete table inet fairlead; rm -rf /run/fairlead/*; \
         find /var/lib/cni -type f -exec touch -d '2 days ago' {} +; true",
    )?;
    // One whose runtime has forgotten it altogether.
    cluster.sh(
        3,
        "d=/var/lib/cni/networks/fairlead; a=$(ls $d | grep -E '^10\\.' | head -1); \
         printf 'f0f0f0\\r\\neth0' > $d/${a%.*}.250; touch -d '2 days ago' $d/${a%.*}.250",
    )?;
    cluster.start(&containerd, &[])?;
    let start = Instant::now();
    cluster.start_until_it_stays(&kubelet)?;
    eventually("every pod of the node runs again, each with an address of its own", || {
        let list = cluster.get(&["pods", "-A", "--field-selector=spec.nodeName=node3"])?;
        let ready = items(&list).all(|pod| {
            let statuses = pod["status"]["containerStatuses"].as_array();
            statuses.is_some_and(|statuses| statuses.iter().all(|status| status["ready"] == true))
        });
        let held = cluster.sh(3, "ls /var/lib/cni/networks/fairlead | grep -cE '^10\\.' || true")?;
        let pods = items(&list).filter(|pod| pod["spec"]["hostNetwork"] != true).count();
        Ok((ready && held.trim() == pods.to_string()).then_some(()))
    })?;
    let took = start.elapsed().as_secs_f64();
    cluster.kubectl(&["delete", "pod", "-l", "newborn=yes", "--wait=true"])?;
    Ok(format!("its pods run again and no address is left behind, {took:.1} s after its kubelet was started"))
}
