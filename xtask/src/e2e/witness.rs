//! A witness: packets from one pod to another on another node, all the time, counted at the end.
//!
//! [`Witness::start`] pings two hundred times a second from the network namespace of a pod; [`Witness::lost`] ends it and says
//! how many of how many were not answered.

use std::process::{Child, Command, Stdio};

use anyhow::Context;
use serde_json::json;

use super::cluster::{Cluster, eventually};
use crate::process;

/// Two pods on two nodes, and a ping from the first to the second.
pub(super) struct Witness {
    ping: Child,
}

/// What was lost of what was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) sent: u64,
    pub(super) lost: u64,
}

/// Makes the two pods, named `from` (on node1) and `to` (on node2), once for all witnesses.
pub(super) fn prepare(cluster: &Cluster) -> anyhow::Result<()> {
    let pods = [("from", "node1"), ("to", "node2")].map(|(name, node)| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "default" },
            "spec": {
                "nodeName": node, "terminationGracePeriodSeconds": 0,
                // A node that is away for a while does not lose them.
                "tolerations": [{ "operator": "Exists" }],
                "containers": [{ "name": "sleep", "image": "registry.k8s.io/pause:3.10" }],
            },
        })
    });
    cluster.apply_text(&json!({ "apiVersion": "v1", "kind": "List", "items": pods }).to_string())?;
    address(cluster, "from")?;
    address(cluster, "to").map(drop)
}

fn address(cluster: &Cluster, pod: &str) -> anyhow::Result<String> {
    eventually("the witness has an address", || {
        let address = cluster.kubectl(&["get", "pod", pod, "-o", "jsonpath={.status.podIP}"])?;
        Ok((!address.is_empty()).then_some(address))
    })
}

impl Witness {
    pub(super) fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let (from, to) = (address(cluster, "from")?, address(cluster, "to")?);
        // The namespace that holds the address of the first pod.
        let find = format!(
            "for netns in /run/netns/cni-*; do nsenter --net=$netns ip -o address | grep -q ' {from}/' && echo $netns; done; true"
        );
        let netns = cluster.sh(1, &find)?;
        let netns = format!("--net={}", netns.trim());
        let mut ping = cluster.on_node(1, "nsenter")?;
        ping.args([&netns, "ping", "-n", "-q", "-i", "0.005", &to]);
        ping.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let ping = ping.spawn().context("starting the witness")?;
        Ok(Self { ping })
    }

    /// Ends it and counts.
    pub(super) fn lost(self) -> anyhow::Result<Lost> {
        process::output(Command::new("kill").args(["-INT", &self.ping.id().to_string()]))?;
        let output = self.ping.wait_with_output()?;
        counted(&String::from_utf8_lossy(&output.stdout)).context("the witness said nothing at its end")
    }
}

/// What `ping` says at its end.
fn counted(text: &str) -> Option<Lost> {
    let line = text.lines().find(|line| line.contains(" packets transmitted"))?;
    let number = |part: &str| {
        let words = line.split(',').find(|words| words.contains(part))?;
        words.split_whitespace().next()?.parse::<u64>().ok()
    };
    let (sent, received) = (number("transmitted")?, number("received")?);
    Some(Lost { sent, lost: sent.saturating_sub(received) })
}

#[cfg(test)]
mod tests {
    use super::{Lost, counted};

    #[test]
    fn losses_are_counted() {
        let text = "--- 10.244.1.2 ping statistics ---\n2000 packets transmitted, 1990 received, 0.5% packet loss, time 9ms\n";
        assert_eq!(counted(text), Some(Lost { sent: 2000, lost: 10 }));
        assert_eq!(counted("nothing"), None);
    }
}
