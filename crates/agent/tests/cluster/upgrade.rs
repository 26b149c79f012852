//! An agent that is replaced by one of another version: scenario 31. What it finds on disk and in the store is of an older form,
//! or of a later one, and its configuration is written otherwise; what it finds in the kernel it leaves as it is.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use harness::{eventually, run_ok};
use serde_json::{Value, json};

use crate::rig::{Node, Rig};
use crate::store::witnesses;
use crate::witness::Witness;

/// What a tool tells of changes in a namespace, line by line.
struct Monitor {
    tool: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.tool.kill();
        let _ = self.tool.wait();
    }
}

impl Monitor {
    fn start(node: &Node, line: &str) -> Self {
        let (program, words) = line.split_once(' ').unwrap();
        let mut command = node.netns.command(program);
        command.args(words.split_whitespace()).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut tool = command.spawn().unwrap();
        let said = BufReader::new(tool.stdout.take().unwrap());
        let lines = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&lines);
        std::thread::spawn(move || {
            said.lines().map_while(Result::ok).for_each(|line| told.lock().unwrap().push(line));
        });
        Self { tool, lines }
    }

    fn has_told(&self, what: &str) -> bool {
        self.lines.lock().unwrap().iter().any(|line| line.contains(what))
    }
}

/// All that changes in a node's kernel, from [`Changes::watch`] to [`Changes::end`].
struct Changes {
    netns: PathBuf,
    network: Monitor,
    rules: Monitor,
}

impl Changes {
    /// Watches; a route and a table that the test itself makes, and takes away, show that it does.
    fn watch(node: &Node) -> Self {
        let network = "ip -o monitor label link address route neigh rule netconf";
        let (network, rules) = (Monitor::start(node, network), Monitor::start(node, "nft monitor"));
        let changes = Self { netns: node.netns.path(), network, rules };
        eventually("changes are told", || {
            changes.mark("1");
            (changes.network.has_told("198.51.100.") && changes.rules.has_told("mark")).then_some(())
        });
        changes
    }

    fn mark(&self, what: &str) {
        for line in [
            "ip route add blackhole 198.51.100.",
            "ip route del blackhole 198.51.100.",
            "nft add table inet mark",
            "nft delete table inet mark",
        ] {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={}", self.netns.display())).args(format!("{line}{what}").split(' '));
            run_ok(&mut command);
        }
    }

    /// What has changed, but for what the test made, for neighbours on the underlay, which come and go by themselves, and for
    /// the table of a moment, which no packet sees, by which an agent finds out whether this kernel logs.
    fn end(self) -> Vec<String> {
        self.mark("255");
        eventually("the end is told", || {
            (self.network.has_told("198.51.100.255") && self.rules.has_told("mark255")).then_some(())
        });
        let is_news = |line: &&String| {
            let own =
                line.contains("198.51.100.") || line.contains("mark") || line.starts_with("# new generation");
            let passing = line.contains("[NEIGH]") && line.contains("dev eth0");
            !own && !passing && !line.contains("inet fairlead_log_probe")
        };
        [self.network, self.rules]
            .iter()
            .flat_map(|monitor| {
                monitor.lines.lock().unwrap().iter().filter(is_news).cloned().collect::<Vec<_>>()
            })
            .collect()
    }
}

/// Who left what the agent finds.
#[derive(Debug, Clone, Copy)]
enum Left {
    /// By the first agents: what came later is not there.
    Early,
    /// By an agent that is to come: there is more than this one knows.
    Late,
}

/// Has the files of a JSON object say what `change` makes of them, whole or not at all.
fn rewrite(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut value);
    let half = path.with_file_name(".half");
    std::fs::write(&half, value.to_string()).unwrap();
    std::fs::rename(half, path).unwrap();
}

/// Has everything that a node's dead agent left be of that form, in the state directory and in the store.
fn leave(rig: &Rig, node: &Node, pod_cidrs: &[String], left: Left) {
    let own = rig.store.path().join("fairlead");
    let lease = own.join(format!("leases/{}.json", node.name));
    let claims = pod_cidrs.iter().map(|cidr| own.join(format!("claims/{}.json", cidr.replace('/', "-"))));
    let (network, limits) = (node.state_dir().join("network.json"), node.state_dir().join("path-mtu.json"));
    match left {
        Left::Early => {
            rewrite(&network, |network| {
                let network = network.as_object_mut().unwrap();
                network
                    .retain(|field, _| ["node", "podCIDRs", "clusterCIDRs", "mtu"].contains(&field.as_str()));
            });
            let _ = std::fs::remove_file(limits);
        }
        Left::Late => {
            rewrite(&network, |network| network["bandwidth"] = json!({"ingress": 1}));
            std::fs::write(limits, r#"{"version": 2, "paths": [{"to": "198.18.0.2", "carries": 1400}]}"#)
                .unwrap();
            rewrite(&lease, |lease| {
                lease["spec"]["weight"] = json!(5);
                lease["spec"]["backend"]["options"] = json!(["later"]);
                lease["status"] = json!({"seen": true});
            });
            claims.for_each(|claim| rewrite(&claim, |claim| claim["spec"]["reason"] = json!("later")));
        }
    }
}

#[test]
fn scenario_31_an_agent_of_another_version_adopts_what_is_there_and_changes_nothing_under_traffic() {
    for backend in ["vxlan", "host-gw"] {
        let mut rig = Rig::new(2);
        let written = format!("backend: {backend}\n");
        for node in &mut rig.nodes {
            node.configure(&written);
            node.start();
        }
        rig.await_joined();
        rig.add_pods();
        eventually("traffic flows", || rig.is_reachable().then_some(()));
        rig.nodes.iter().for_each(Node::await_settled);
        let cidrs = rig.nodes[0].pod_cidrs();
        let witnesses = witnesses(&rig.nodes[0], &rig.nodes[1]);
        let otherwise = format!(
            "# The same.\nvxlan: {{\"directRouting\": false, vni: 1}}\nmasquerade: {{ipv4: true}}\n\"backend\": \"{backend}\"\n"
        );
        for (left, config) in [(Left::Early, &otherwise), (Left::Late, &written), (Left::Late, &otherwise)] {
            rig.nodes[0].kill();
            leave(&rig, &rig.nodes[0], &cidrs, left);
            rig.nodes[0].configure(config);
            rig.nodes[0].await_addresses();
            let changes = Changes::watch(&rig.nodes[0]);
            rig.nodes[0].start();
            let status =
                rig.nodes[0].await_status("ready again", |status| status.ready && status.peers.len() == 1);
            rig.nodes[0].await_settled();
            let told = changes.end();
            assert!(told.is_empty(), "{backend}, {left:?}: {told:#?}");
            assert_eq!(status.last_reconcile.as_ref().map(|last| last.steps), Some(0), "{backend}, {left:?}");
            assert!(status.problems.is_empty() && status.store.broken.is_empty(), "{left:?}: {status:?}");
            assert_eq!(rig.nodes[0].pod_cidrs(), cidrs);
            let network = rig.nodes[0].network_file().unwrap();
            assert!(network["bandwidth"].is_null() && network["enforcement"].is_object(), "{network}");
        }
        let counts = witnesses.map(Witness::sent_and_answered);
        println!("{backend}: sent and answered {counts:?}");
        assert!(counts.iter().all(|(sent, answered)| sent == answered), "{backend}: {counts:?}");
    }
}
