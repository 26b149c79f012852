//! A witness: packets from one pod to another on another node, all the time, counted at the end.
//!
//! [`Witness::start`] pings two hundred times a second from the network namespace of a pod; [`Witness::lost`] ends it and says
//! how many of how many were not answered. Both pods' policies allow that. Beside it another pod pings whom no policy lets it
//! reach, and every answer that it has is one too many.

use std::process::{Child, Command, Stdio};

use anyhow::Context;
use serde_json::{Value, json};

use super::cluster::{Cluster, eventually};
use crate::process;

/// Pods, each with the node it is on: one that pings another, and one that must not.
const PODS: [(&str, &str); 3] = [("from", "node1"), ("to", "node2"), ("stranger", "node1")];

/// Three pods on two nodes, and a ping from the first and from the last to the second.
pub(super) struct Witness {
    allowed: Child,
    denied: Child,
}

/// What was lost of what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) sent: u64,
    pub(super) lost: u64,
    /// What was answered, and should have reached nobody.
    pub(super) let_through: u64,
}

/// Makes the pods and the policies about them, once for all witnesses.
pub(super) fn prepare(cluster: &Cluster) -> anyhow::Result<()> {
    let pods = PODS.map(|(name, node)| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": "default", "labels": { "witness": name } },
            "spec": {
                "nodeName": node, "terminationGracePeriodSeconds": 0,
                // A node that is away for a while does not lose them.
                "tolerations": [{ "operator": "Exists" }],
                "containers": [{ "name": "sleep", "image": "registry.k8s.io/pause:3.10" }],
            },
        })
    });
    let selector = |name: &str| json!({ "matchLabels": { "witness": name } });
    let policy = |name: &str, egress: Value| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "name": name, "namespace": "default" },
            "spec": { "podSelector": selector(name), "policyTypes": ["Egress"], "egress": egress },
        })
    };
    let allowed = json!([{ "to": [{ "podSelector": selector("to") }] }]);
    let policies = [policy("from", allowed), policy("stranger", json!([]))];
    let all: Vec<Value> = policies.into_iter().chain(pods).collect();
    cluster.apply_text(&json!({ "apiVersion": "v1", "kind": "List", "items": all }).to_string())?;
    PODS.iter().try_for_each(|(pod, _)| address(cluster, pod).map(drop))
}

/// The network namespace of a pod on node1.
fn netns(cluster: &Cluster, pod: &str) -> anyhow::Result<String> {
    let address = address(cluster, pod)?;
    // The namespace that holds the address of the pod.
    let find = format!(
        "for netns in /run/netns/cni-*; do nsenter --net=$netns ip -o address | grep -q ' {address}/' && echo $netns; done; true"
    );
    Ok(cluster.sh(1, &find)?.trim().to_owned())
}

/// Whether a pod of the witness on node1 reaches an address just now.
pub(super) fn reaches(cluster: &Cluster, pod: &str, address: &str) -> anyhow::Result<bool> {
    let netns = netns(cluster, pod)?;
    let script = format!("nsenter --net={netns} ping -n -q -c 1 -W 1 {address} >/dev/null && echo yes; true");
    Ok(cluster.sh(1, &script)?.trim() == "yes")
}

pub(super) fn address(cluster: &Cluster, pod: &str) -> anyhow::Result<String> {
    eventually("the witness has an address", || {
        let address = cluster.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"])?;
        Ok((!address.is_empty()).then_some(address))
    })
}

impl Witness {
    pub(super) fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let to = address(cluster, "to")?;
        let ping = |pod: &str, interval: &str| -> anyhow::Result<Child> {
            let netns = format!("--net={}", netns(cluster, pod)?);
            let mut ping = cluster.on_node(1, "nsenter")?;
            ping.args([&netns, "ping", "-n", "-q", "-i", interval, &to]);
            ping.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
            ping.spawn().context("starting the witness")
        };
        Ok(Self { allowed: ping("from", "0.005")?, denied: ping("stranger", "0.02")? })
    }

    /// Ends it and counts.
    pub(super) fn lost(self) -> anyhow::Result<Lost> {
        let (sent, received) = ended(self.allowed)?;
        let (_, let_through) = ended(self.denied)?;
        Ok(Lost { sent, lost: sent.saturating_sub(received), let_through })
    }
}

/// How many a ping has sent, and how many came back.
fn ended(ping: Child) -> anyhow::Result<(u64, u64)> {
    process::output(Command::new("kill").args(["-INT", &ping.id().to_string()]))?;
    let output = ping.wait_with_output()?;
    counted(&String::from_utf8_lossy(&output.stdout)).context("the witness said nothing at its end")
}

/// What `ping` says at its end.
fn counted(text: &str) -> Option<(u64, u64)> {
    let line = text.lines().find(|line| line.contains(" packets transmitted"))?;
    let number = |part: &str| {
        let words = line.split(',').find(|words| words.contains(part))?;
        words.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some((number("transmitted")?, number("received")?))
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn what_came_back_is_counted() {
        let text = "--- 10.244.1.2 ping statistics ---\n2000 packets transmitted, 1990 received, 0.5% packet loss, time 9ms\n";
        assert_eq!(counted(text), Some((2000, 1990)));
        assert_eq!(counted("nothing"), None);
    }
}
