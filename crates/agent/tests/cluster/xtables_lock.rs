//! The lock of iptables, which another program may hold for as long as it likes: nothing of ours waits for it. Scenario 26.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use harness::talk::{ask, serve};
use harness::{eventually, run};

use crate::rig::{Node, Rig};
use crate::wired::WiredPod;

/// A program that holds the lock until its end, in a mount namespace with a `/run` of its own.
struct Holder(Child);

impl Holder {
    fn start() -> Self {
        let script = "mount -t tmpfs none /run && exec flock /run/xtables.lock sh -c 'echo held; exec cat'";
        let mut holder = Command::new("unshare")
            .args(["--mount", "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "held\n");
        Self(holder)
    }

    /// The namespace in which it holds it.
    fn mounts(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/mnt", self.0.id()))
    }

    /// Asserts that iptables itself gets nothing done on that node.
    fn assert_held(&self, node: &Node) {
        let said = run(node.program("iptables-legacy").args(["-w", "1", "-A", "FORWARD", "-j", "ACCEPT"]));
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(text.contains("xtables lock") && !said.status.success(), "{text}");
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // What holds the lock reads this, and ends with it.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn scenario_26_an_agent_starts_a_peer_joins_and_a_pod_gets_its_host_port_while_the_lock_of_iptables_is_held()
{
    let holder = Holder::start();
    let mut rig = Rig::new(2);
    rig.nodes.iter_mut().for_each(|node| node.use_mounts(holder.mounts()));
    holder.assert_held(&rig.nodes[0]);
    rig.nodes[0].start();
    rig.nodes[0].await_status("ready", |status| status.ready);
    rig.nodes[1].start();
    rig.await_joined();
    let [first, second] = &rig.nodes[..] else { panic!("two nodes") };
    let pods = [WiredPod::attach(first), WiredPod::with_host_port(second, 8080, 80)];
    serve(&pods[1].netns, 80, "pod");
    for (own, other) in pods[0].addresses.iter().zip(&pods[1].addresses) {
        eventually("a pod reaches the other", || pods[0].netns.pings(other).then_some(()));
        assert_eq!(ask(&pods[0].netns, other, 80), Some(format!("pod {own}")));
    }
    assert_eq!(ask(&first.netns, "198.18.0.2", 8080).as_deref(), Some("pod 198.18.0.1"));
    // A change of the cluster while it is held, and the way back.
    pods[1].detach(second);
    assert_eq!(ask(&first.netns, "198.18.0.2", 8080), None);
    rig.remove_node("node2");
    first.await_status("the peer is gone", |status| status.peers.is_empty());
    eventually("its routes are gone", || first.tunnel_routes().is_empty().then_some(()));
    holder.assert_held(first);
}
