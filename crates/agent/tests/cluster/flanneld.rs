//! The same with the real flanneld, where there is one: `$FAIRLEAD_FLANNELD`, else `flanneld` on `PATH`.
//!
//! Nodes 1 and 3 run it, node 2 an agent that reads flannel's own configuration; then node 1 changes over.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use harness::{Etcd, Service, eventually, not_run};
use tempfile::TempDir;

use crate::flannel::{has_both_peers, nodes, pod, pod_v6, reaches, reaches_v6};
use crate::rig::{Node, Rig};

/// Where flanneld is; says so where it is not.
fn program() -> Option<PathBuf> {
    let named = std::env::var_os("FAIRLEAD_FLANNELD").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = named.or_else(|| {
        std::env::split_paths(&path).map(|folder| folder.join("flanneld")).find(|file| file.exists())
    });
    if found.is_none() {
        not_run("there is no flanneld in $FAIRLEAD_FLANNELD or on PATH");
    }
    found
}

/// A flanneld that runs.
struct Flanneld {
    _service: Service,
    _directory: TempDir,
}

impl Flanneld {
    fn start(program: &Path, node: &Node, words: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = node.netns.command(program);
        command
            .args(["--iface", "eth0", "--ip-masq", "--subnet-file"])
            .arg(directory.path().join("subnet.env"));
        command.args(words).env("NODE_NAME", &node.name);
        let mut service = Service::start(&mut command, directory.path().join("flanneld.log"));
        service.await_said("Running backend", 1);
        Self { _service: service, _directory: directory }
    }
}

fn net_conf(backend: &str, dual: bool) -> String {
    let v6 = if dual { r#""EnableIPv6": true, "IPv6Network": "fd00:10:244::/48", "# } else { "" };
    format!(
        r#"{{"Network": "10.244.0.0/16", {v6}"EnableNFTables": true, "Backend": {{"Type": "{backend}"}}}}"#
    )
}

fn add_pod(node: &Node, address: &str) {
    node.netns.ip("link add pod0 type bridge");
    node.netns.ip("link set pod0 alias fairlead:test/pod/eth0 up");
    node.netns.ip(&format!("address add {address} dev pod0"));
    node.netns.ip("link set lo up");
}

fn await_reachable(rig: &Rig, backend: &str, dual: bool) {
    for from in &rig.nodes {
        for to in &rig.nodes {
            let what = format!("a pod of {} reaches one of {}", from.name, to.name);
            eventually(&what, || reaches(from, to, backend).0.then_some(()));
            if dual {
                eventually(&format!("{what} by IPv6"), || reaches_v6(from, to, backend).0.then_some(()));
            }
        }
    }
}

/// What flanneld leaves when it ends.
fn remove_flannels(node: &Node, backend: &str, dual: bool) {
    match backend {
        "vxlan" => {
            let devices: &[&str] = if dual { &["flannel.1", "flannel-v6.1"] } else { &["flannel.1"] };
            devices.iter().for_each(|device| drop(node.netns.ip(&format!("link delete {device}"))));
        }
        // Its device goes with it.
        "udp" => {}
        _ => [2, 3].iter().for_each(|peer| {
            node.netns.ip(&format!("route delete 10.244.{peer}.0/24"));
            if dual {
                node.netns.ip(&format!("-6 route delete fd00:10:244:{peer}::/64"));
            }
        }),
    }
}

fn change_over(backend: &'static str, dual: bool) {
    let Some(program) = program() else { return };
    let Some((mut rig, server)) = nodes(backend, dual) else { return };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("net-conf.json");
    std::fs::write(&file, net_conf(backend, dual)).unwrap();
    let kubeconfig = server.kubeconfig();
    let words = ["--kube-subnet-mgr", "--kubeconfig-file", kubeconfig.to_str().unwrap(), "--net-config-path"];
    let words = [&words[..], &[file.to_str().unwrap()]].concat();
    for node in &rig.nodes {
        add_pod(node, &pod(node));
        if dual {
            node.netns.ip(&format!("address add {} dev pod0 nodad", pod_v6(node)));
        }
    }
    let mut flannels = [0, 2].map(|index| Some(Flanneld::start(&program, &rig.nodes[index], &words)));
    for node in &mut rig.nodes[..2] {
        // What its net-conf.json says need not be said again.
        node.configure(&format!("flannel: {{annotations: true, netConf: {}}}\n", file.display()));
    }
    rig.nodes[1].start();
    rig.nodes[1].await_status("reaches the nodes of flannel", has_both_peers);
    await_reachable(&rig, backend, dual);
    flannels[0].take();
    remove_flannels(&rig.nodes[0], backend, dual);
    rig.nodes[0].start();
    for node in &rig.nodes[..2] {
        node.await_status("reaches the others", has_both_peers);
    }
    await_reachable(&rig, backend, dual);
}

#[test]
fn a_cluster_changes_over_from_the_real_flannels_vxlan() {
    change_over("vxlan", false);
}

#[test]
fn a_cluster_changes_over_from_the_real_flannels_host_gw() {
    change_over("host-gw", false);
}

#[test]
fn a_cluster_changes_over_from_the_real_flannels_udp() {
    change_over("udp", false);
}

#[test]
fn a_cluster_of_both_families_changes_over_from_the_real_flannels_vxlan() {
    change_over("vxlan", true);
}

#[test]
fn a_cluster_of_both_families_changes_over_from_the_real_flannels_host_gw() {
    change_over("host-gw", true);
}

#[test]
fn the_real_flannel_shares_an_etcd() {
    share_an_etcd(false);
}

#[test]
fn the_real_flannel_of_both_families_shares_an_etcd() {
    share_an_etcd(true);
}

fn share_an_etcd(dual: bool) {
    let Some(program) = program() else { return };
    let mut rig = Rig::new(3);
    rig.underlay.ip("address add 198.18.0.254/24 dev br0");
    let Some(etcd) = Etcd::start_in(&rig.underlay, Ipv4Addr::new(198, 18, 0, 254)) else { return };
    etcd.put("/coreos.com/network/config", &net_conf("vxlan", dual));
    let url = etcd.url();
    let words = ["--etcd-endpoints", &url];
    let _flannels = [0, 2].map(|index| Flanneld::start(&program, &rig.nodes[index], &words));
    let node = &mut rig.nodes[1];
    etcd.put("/fairlead/nodes/node2", "apiVersion: v1\nkind: Node\nmetadata: {name: node2}\n");
    node.use_store(format!("etcd:{url}"));
    let networks = if dual { "10.244.0.0/16, fd00:10:244::/48" } else { "10.244.0.0/16" };
    node.configure(&format!(
        "cluster: {{podCIDRs: [{networks}]}}\nflannel: {{etcdPrefix: /coreos.com/network}}\n"
    ));
    node.start();
    node.await_status("reaches the nodes of flannel", has_both_peers);
    node.add_pod();
    // The ends of their tunnels answer as pods would.
    let families = [("flannel.1", "-4"), ("flannel-v6.1", "-6")];
    for ((device, family), source) in families.iter().zip(rig.nodes[1].pod_addresses()) {
        for index in [0, 2] {
            let link =
                rig.nodes[index].netns.ip_json(&format!("{family} address show dev {device} scope global"));
            let target = link[0]["addr_info"][0]["local"].as_str().unwrap();
            eventually(&format!("{target} answers"), || rig.nodes[1].pings(&source, target).then_some(()));
        }
    }
}
