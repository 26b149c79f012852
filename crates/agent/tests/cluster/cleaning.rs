//! Cleaning: a host as it was before an agent came to it. Scenario 33.

use std::collections::BTreeMap;

use harness::{eventually, run, run_ok};

use crate::rig::{Node, Rig};
use crate::wired::WiredPod;

const BACKENDS: [&str; 5] = [
    "backend: vxlan\n",
    "backend: host-gw\n",
    "backend: udp\n",
    "backend: ipip\nipip: {datapath: user}\n",
    "backend: wireguard\nwireguard: {datapath: user}\n",
];

/// Every setting of the node's network that can be read.
fn sysctls(node: &Node) -> BTreeMap<String, String> {
    // Some cannot be read by anybody (stable_secret), of which `sysctl` complains.
    let listed = run(node.netns.command("sysctl").args(["-a", "-r", "^net[.]ipv[46][.]"]));
    let text = String::from_utf8(listed.stdout).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once(" = "));
    let settings: BTreeMap<_, _> = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    assert!(settings.contains_key("net.ipv6.conf.eth0.accept_ra"), "{text}");
    settings
}

/// What differs between the two, by name.
fn changed(was: &BTreeMap<String, String>, now: &BTreeMap<String, String>) -> Vec<String> {
    let names = was.keys().chain(now.keys().filter(|name| !was.contains_key(*name)));
    let differs = names.filter(|name| was.get(*name) != now.get(*name));
    differs.map(|name| format!("{name}: {:?} -> {:?}", was.get(name), now.get(name))).collect()
}

/// What the host keeps although nobody carries pods any more: it forwards, and what the kernel itself changes with that.
fn comes_with_forwarding(change: &str) -> bool {
    let name = change.split(':').next().unwrap();
    let settings = ["net.ipv4.ip_forward", "net.ipv4.conf.all.accept_redirects"];
    name.ends_with(".forwarding") || settings.contains(&name)
}

fn everything(node: &Node) -> String {
    [node.host_text(), node.netns.ip("-d link show")].join("\n")
}

/// `fairlead clean --all`, as a DaemonSet or a person runs it.
fn clean(node: &Node) {
    let elsewhere = tempfile::tempdir().unwrap();
    let mut command = node.netns.command(harness::binary("fairlead"));
    command.args(["clean", "--all", "--state-dir"]).arg(node.state_dir());
    command.arg("--conf-dir").arg(node.conflist().parent().unwrap());
    command.arg("--bin-dir").arg(elsewhere.path()).arg("--cache-dir").arg(elsewhere.path());
    run_ok(&mut command);
}

#[test]
fn scenario_33_cleaning_gives_the_host_back_as_it_was() {
    for config in BACKENDS {
        let mut rig = Rig::new(2);
        // One forwards already, for whatever reason; to the other the agent brings it.
        for setting in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
            run_ok(rig.nodes[0].netns.command("sysctl").args(["-qw", setting]));
        }
        let was: Vec<_> = rig.nodes.iter().map(|node| (everything(node), sysctls(node))).collect();
        for node in &mut rig.nodes {
            node.configure(config);
            node.start();
        }
        rig.await_joined();
        let pods: Vec<WiredPod> =
            rig.nodes.iter().map(|node| WiredPod::with_host_port(node, 8080, 80)).collect();
        for address in &pods[1].addresses {
            eventually("a pod reaches the other", || pods[0].netns.pings(address).then_some(()));
        }
        for (node, pod) in rig.nodes.iter().zip(&pods) {
            pod.detach(node);
        }
        for (node, (was, _)) in rig.nodes.iter_mut().zip(&was) {
            assert_ne!(everything(node), *was);
            assert_eq!(node.stop(), Some(0));
            clean(node);
        }
        for (node, (text, settings)) in rig.nodes.iter().zip(&was) {
            eventually("the host is as it was", || (everything(node) == *text).then_some(()));
            let (kept, other): (Vec<_>, Vec<_>) = changed(settings, &sysctls(node))
                .into_iter()
                .partition(|change| comes_with_forwarding(change));
            assert_eq!(other, Vec::<String>::new(), "{config}{}", node.name);
            assert_eq!(kept.is_empty(), node.number == 1, "{config}{}: {kept:?}", node.name);
            assert_eq!(std::fs::read_dir(node.state_dir()).unwrap().count(), 0, "{config}{}", node.name);
        }
    }
}
