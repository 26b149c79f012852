//! Thirty pods a node: how long until each is Ready, what of that is the network's, and who reaches whom.
//!
//! [`run`] measures a cluster that has a network; [`over_the_reference`] does the same with the reference plugins' chain
//! (bridge, host-local, portmap, bandwidth) and static routes between the nodes. Pods hold nothing but a program that sleeps,
//! so what is measured is kubelet, containerd and the plugins. The plugins' share is the time from the start to the end of
//! their processes, as the kernel's scheduler sees it (`perf record`, sched_process_exec and _exit).

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::cluster::{Cluster, cidr_and_address, eventually, items};
use crate::process;

const PER_NODE: usize = 30;

/// The plugins that containerd itself starts; those that a plugin starts are within its time.
const CHAINED: [&str; 5] = ["fairlead", "bridge", "portmap", "bandwidth", "loopback"];

/// The reference's chain on a cluster of its own. Without `FAIRLEAD_REFERENCE` there is nothing to compare with.
pub(super) fn over_the_reference() -> anyhow::Result<()> {
    let Some(plugins) = std::env::var_os("FAIRLEAD_REFERENCE").map(PathBuf::from) else {
        println!(
            "pods over the reference plugins: not run, because FAIRLEAD_REFERENCE names no build of them"
        );
        return Ok(());
    };
    let cluster = Cluster::up(super::NODES, Some(&plugins))?;
    let list = cluster.get(&["nodes"])?;
    let nodes: Vec<(String, String)> = items(&list).filter_map(cidr_and_address).collect();
    for node in 1..=super::NODES {
        let (own, _) = &nodes[node - 1];
        let mut script = String::new();
        for (cidr, address) in nodes.iter().filter(|(cidr, _)| cidr != own) {
            script.push_str(&format!("ip route replace {cidr} via {address}\n"));
        }
        let conflist = reference_conflist(own).to_string();
        script.push_str(&format!("cat > /etc/cni/net.d/10-reference.conflist <<'END'\n{conflist}\nEND\n"));
        cluster.sh(node, &script)?;
    }
    cluster.await_nodes(super::NODES)?;
    run(&cluster, "reference")
}

fn reference_conflist(cidr: &str) -> Value {
    let ipam = json!({
        "type": "host-local", "ranges": [[{ "subnet": cidr }]], "routes": [{ "dst": "0.0.0.0/0" }],
    });
    json!({
        "cniVersion": "1.0.0", "name": "reference",
        "plugins": [
            { "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": ipam },
            { "type": "portmap", "capabilities": { "portMappings": true } },
            { "type": "bandwidth", "capabilities": { "bandwidth": true } },
        ],
    })
}

/// Makes the pods, prints how long that took, and has every pod ask every other for an answer.
pub(super) fn run(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let count = PER_NODE * super::NODES;
    let recording = Recording::start(&cluster.path("plugins.perf"))?;
    let start = Instant::now();
    cluster.apply_text(&manifest().to_string())?;
    let pods = eventually("every pod is Ready", || {
        let list = cluster.get(&["pods", "-n", "many"])?;
        let ready: Vec<Value> = items(&list).filter(|pod| since(pod, "Ready").is_some()).cloned().collect();
        Ok((ready.len() == count).then_some(ready))
    })?;
    let took = start.elapsed().as_secs_f64();
    let share = recording.stop()?;
    let each: Vec<f64> = pods.iter().filter_map(time_to_ready).collect();
    let mean = each.iter().sum::<f64>() / each.len().max(1) as f64;
    println!(
        "pods over {name}: {count} Ready after {took:.1} s; from scheduled to Ready {mean:.1} s each (mean, by whole \
         seconds); plugins {:.1} ms a pod (the sum of their processes' times, {} processes)",
        share.total * 1000.0 / count as f64,
        share.processes,
    );
    let start = Instant::now();
    let reached = reach(cluster, &pods);
    if reached.is_ok() {
        let took = start.elapsed().as_secs_f64();
        println!("pods over {name}: each of {count} reaches each other ({took:.1} s)");
    }
    cluster.kubectl(&["delete", "namespace", "many", "--wait=true"])?;
    reached
}

/// A pod whose annotations limit it, as a kubelet hands them on.
pub(super) fn bandwidth(cluster: &Cluster) -> anyhow::Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "limited", "annotations": { "kubernetes.io/ingress-bandwidth": "23M" } },
        "spec": {
            "nodeName": "node1", "terminationGracePeriodSeconds": 0,
            "containers": [{ "name": "sleep", "image": "registry.k8s.io/pause:3.10" }],
        },
    });
    cluster.apply_text(&pod.to_string())?;
    cluster.await_pod("limited")?;
    let limits = || cluster.sh(1, "tc qdisc show | grep -c 'rate 23Mbit' || true");
    ensure!(limits()?.trim() == "1", "the annotation has no effect");
    cluster.kubectl(&["delete", "pod", "limited", "--wait=true"])?;
    // The object goes before its sandbox does.
    eventually("the limit has gone with its pod", || Ok((limits()?.trim() == "0").then_some(())))?;
    println!("bandwidth: the annotation kubernetes.io/ingress-bandwidth limits a pod, and goes with it");
    Ok(())
}

/// Makes a pod on a node and waits until it runs.
pub(super) fn born(cluster: &Cluster, name: &str, node: usize) -> anyhow::Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "labels": { "newborn": "yes" } },
        "spec": {
            "nodeName": format!("node{node}"), "terminationGracePeriodSeconds": 0,
            "containers": [{ "name": "sleep", "image": "registry.k8s.io/pause:3.10" }],
        },
    });
    cluster.apply_text(&pod.to_string())?;
    cluster.await_pod(name)
}

fn manifest() -> Value {
    let pods = (0..PER_NODE * super::NODES).map(|number| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": format!("pod{number}"), "namespace": "many" },
            "spec": {
                "nodeName": format!("node{}", number % super::NODES + 1),
                "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": false,
                "containers": [{ "name": "sleep", "image": "registry.k8s.io/pause:3.10" }],
            },
        })
    });
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "many" } });
    let items: Vec<Value> = std::iter::once(namespace).chain(pods).collect();
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

/// When a condition of a pod became true, in seconds of the day.
fn since(pod: &Value, condition: &str) -> Option<f64> {
    let conditions = pod["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|each| each["type"] == condition && each["status"] == "True")?;
    seconds(found["lastTransitionTime"].as_str()?)
}

/// The seconds of the day of a time such as 2026-11-28T18:53:44Z.
fn seconds(time: &str) -> Option<f64> {
    let (_, clock) = time.trim_end_matches('Z').split_once('T')?;
    clock.split(':').try_fold(0.0, |sum, part| Some(sum * 60.0 + part.parse::<f64>().ok()?))
}

fn time_to_ready(pod: &Value) -> Option<f64> {
    let from = seconds(pod["metadata"]["creationTimestamp"].as_str()?)?;
    let took = since(pod, "Ready")? - from;
    // Past midnight.
    Some(if took < 0.0 { took + 86_400.0 } else { took })
}

/// Every pod's network namespace asks every pod's address.
fn reach(cluster: &Cluster, pods: &[Value]) -> anyhow::Result<()> {
    let addresses: Vec<&str> = pods.iter().filter_map(|pod| pod["status"]["podIP"].as_str()).collect();
    ensure!(addresses.len() == pods.len(), "only {} of {} pods have an address", addresses.len(), pods.len());
    each_reaches(cluster, &addresses)
}

/// Every pod's network namespace asks these addresses, all of one family.
pub(super) fn each_reaches(cluster: &Cluster, addresses: &[&str]) -> anyhow::Result<()> {
    let all = addresses.join(" ");
    for node in 1..=super::NODES {
        // fping ends with 1 when somebody does not answer; -u names those.
        let script = format!(
            "for netns in /run/netns/cni-*; do nsenter --net=$netns fping -q -u -r 2 -t 500 -i 1 {all} 2>&1 || \
             echo \"not reached from $netns\"; done"
        );
        let silent = cluster.sh(node, &script)?;
        ensure!(silent.trim().is_empty(), "on node{node}: {silent}");
    }
    Ok(())
}

/// What the plugins' processes took.
struct Share {
    total: f64,
    processes: usize,
}

/// A recording of when processes begin and end.
struct Recording {
    perf: Child,
    file: PathBuf,
}

impl Recording {
    fn start(file: &Path) -> anyhow::Result<Self> {
        let mut perf = Command::new("perf");
        perf.args([
            "record",
            "-q",
            "-a",
            "-e",
            "sched:sched_process_exec",
            "-e",
            "sched:sched_process_exit",
            "-o",
        ]);
        perf.arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let perf = perf.spawn().context("starting perf")?;
        eventually("perf records", || Ok(file.exists().then_some(())))?;
        Ok(Self { perf, file: file.to_owned() })
    }

    fn stop(mut self) -> anyhow::Result<Share> {
        process::output(Command::new("kill").args(["-INT", &self.perf.id().to_string()]))?;
        self.perf.wait()?;
        let mut script = Command::new("perf");
        script.args(["script", "-F", "time,event,trace", "-i"]).arg(&self.file);
        Ok(share(&process::output(&mut script)?))
    }
}

/// Adds up the times of the plugins that containerd started.
fn share(events: &str) -> Share {
    let mut begun: HashMap<u32, f64> = HashMap::new();
    let mut share = Share { total: 0.0, processes: 0 };
    let chained: HashSet<String> = CHAINED.iter().map(|name| format!("/opt/cni/bin/{name}")).collect();
    for line in events.lines() {
        let Some((time, rest)) = line.trim().split_once(": ") else { continue };
        let Ok(time) = time.trim().parse::<f64>() else { continue };
        let field = |name: &str| {
            let at = rest.find(&format!("{name}="))? + name.len() + 1;
            rest[at..].split_whitespace().next()
        };
        let Some(pid) = field(" pid").and_then(|pid| pid.parse().ok()) else { continue };
        match field("filename") {
            Some(program) if chained.contains(program) => drop(begun.insert(pid, time)),
            Some(_) => {}
            None => {
                if let Some(from) = begun.remove(&pid) {
                    share.total += time - from;
                    share.processes += 1;
                }
            }
        }
    }
    share
}

#[cfg(test)]
mod tests {
    use super::{seconds, share};

    #[test]
    fn the_share_is_that_of_what_containerd_starts() {
        let events = "
  10.000000: sched:sched_process_exec: filename=/opt/cni/bin/bridge pid=7 old_pid=7
  10.001000: sched:sched_process_exec: filename=/opt/cni/bin/host-local pid=8 old_pid=8
  10.002000: sched:sched_process_exit: comm=host-local pid=8 prio=120 group_dead=true
  10.030000: sched:sched_process_exit: comm=bridge pid=7 prio=120 group_dead=true
  10.031000: sched:sched_process_exit: comm=sleep pid=9 prio=120 group_dead=true
";
        let share = share(events);
        assert_eq!(share.processes, 1);
        assert!((share.total - 0.03).abs() < 1e-9, "{}", share.total);
    }

    #[test]
    fn a_time_is_read() {
        assert_eq!(seconds("2026-11-28T01:00:02Z"), Some(3602.0));
    }
}
