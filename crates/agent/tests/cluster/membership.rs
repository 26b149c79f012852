//! Nodes that come, go and quarrel: scenarios 1 to 7, 37, 49 and 50, and the order of what an agent leaves on disk.

use std::process::{Child, Stdio};

use ::store::Expect;
use agent::PeerState;
use cluster::{Backend, Claim, Flannel, Lease, MacAddress};
use harness::{eventually, run, run_ok};

use crate::rig::{Node, Rig};

#[test]
fn pods_of_three_nodes_reach_each_other_in_both_families() {
    let rig = Rig::joined(3);
    rig.add_pods();
    rig.assert_reachable();
    let network = rig.nodes[0].network_file().expect("network.json");
    assert_eq!(network["node"], "node1");
    assert_eq!(network["mtu"], 1450);
    assert_eq!(network["clusterCIDRs"], serde_json::json!(["10.244.0.0/16", "fd00:10:244::/56"]));
    let link = rig.nodes[0].netns.ip_json("link show fairlead0");
    assert_eq!(link[0]["mtu"], 1450);
    assert_eq!(link[0]["linkinfo"]["info_data"]["learning"], false);
    assert_eq!(rig.nodes[0].netns.sysctl("net/ipv4/ip_forward"), "1");
    assert_eq!(rig.nodes[0].netns.sysctl("net/ipv6/conf/all/forwarding"), "1");
    assert_eq!(rig.nodes[0].netns.sysctl("net/ipv6/conf/fairlead0/accept_ra"), "0");
    for node in &rig.nodes {
        node.await_settled();
    }
}

#[test]
fn scenario_1_a_node_that_leaves_takes_only_its_own_entries_with_it() {
    let mut rig = Rig::joined(3);
    rig.add_pods();
    let third = rig.nodes[2].pod_cidrs();
    let routes = rig.nodes[0].tunnel_routes();
    rig.nodes[2].kill();
    rig.remove_node("node3");
    for node in &rig.nodes[..2] {
        node.await_status("node3 is gone", |status| status.peers.len() == 1);
        assert!(!node.fdb().contains(&"198.18.0.3".to_owned()));
        assert!(!node.tunnel_routes().iter().any(|route| third.contains(route)));
        assert_eq!(node.neighbours().len(), 2);
        assert!(node.conflist().exists());
    }
    let kept: Vec<String> = routes.into_iter().filter(|route| !third.contains(route)).collect();
    assert_eq!(rig.nodes[0].tunnel_routes(), kept);
    rig.nodes.truncate(2);
    rig.assert_reachable();
    // What it held is given back although its own agent is dead.
    let store = store::Directory::open(rig.store.path()).unwrap();
    eventually("lease and claims of node3 are gone", || {
        let listing = store.list().unwrap().snapshot;
        (!listing.leases.contains_key("node3") && listing.claims_of("node3").next().is_none()).then_some(())
    });
}

#[test]
fn scenario_2_a_node_that_left_while_the_agent_was_dead_is_removed_at_the_start() {
    let mut rig = Rig::joined(3);
    rig.nodes[0].kill();
    rig.nodes[2].kill();
    rig.remove_node("node3");
    rig.nodes[1].await_status("node3 is gone", |status| status.peers.len() == 1);
    assert!(rig.nodes[0].fdb().contains(&"198.18.0.3".to_owned()), "nobody has removed it");
    rig.nodes[0].start();
    rig.nodes[0].await_status("ready", |status| status.ready && status.peers.len() == 1);
    assert_eq!(rig.nodes[0].fdb(), ["198.18.0.2"]);
    assert_eq!(rig.nodes[0].neighbours().len(), 2);
}

#[test]
fn scenario_3_a_replaced_machine_is_reached_at_its_new_address() {
    let mut rig = Rig::joined(2);
    rig.add_pods();
    let before = rig.nodes[1].pod_cidrs();
    // The same name on another machine, with another address and an empty disk.
    rig.nodes.truncate(1);
    rig.add_node(9);
    rig.remove_node("node9");
    rig.nodes[1].name = "node2".to_owned();
    rig.nodes[1].start();
    rig.nodes[1].await_status("ready", |status| status.ready);
    assert_eq!(rig.nodes[1].pod_cidrs(), before, "the lease is the node's, not the machine's");
    eventually("node1 sends to the new address", || (rig.nodes[0].fdb() == ["198.18.0.9"]).then_some(()));
    rig.nodes[1].netns.ip("link add pod0 type bridge");
    rig.nodes[1].netns.ip("link set pod0 up");
    for address in rig.nodes[1].pod_addresses() {
        rig.nodes[1].netns.ip(&format!("address add {address} dev pod0 nodad"));
    }
    rig.assert_reachable();
}

/// What the kernel says of forwarding entries while something happens, by `bridge monitor`.
struct Monitor<'a> {
    node: &'a Node,
    process: Child,
    said: tempfile::NamedTempFile,
}

impl<'a> Monitor<'a> {
    /// From when this returns on nothing is missed.
    fn start(node: &'a Node) -> Self {
        let said = tempfile::NamedTempFile::new().unwrap();
        node.netns.ip("link add mark0 type bridge");
        let mut command = node.netns.command("bridge");
        command.args(["monitor", "fdb"]).stdin(Stdio::null()).stdout(said.reopen().unwrap());
        let monitor = Self { node, process: command.spawn().unwrap(), said };
        monitor.await_mark("02:00:00:00:01:01");
        monitor
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.said.path()).unwrap()
    }

    /// Waits until it has told of an entry with this address that is made for the purpose.
    fn await_mark(&self, mac: &str) {
        eventually("the monitor tells", || {
            for verb in ["add", "del"] {
                run_ok(self.node.netns.command("bridge").args(["fdb", verb, mac, "dev", "mark0", "self"]));
            }
            self.text().contains(mac).then_some(())
        });
    }

    /// What it has told of the tunnel's device.
    fn lines(self) -> Vec<String> {
        self.await_mark("02:00:00:00:01:02");
        self.text().lines().filter(|line| line.contains("dev fairlead0")).map(str::to_owned).collect()
    }
}

impl Drop for Monitor<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn scenarios_3_and_4_what_a_peer_has_now_is_there_before_what_it_had_goes() {
    const OLD: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
    const NEW: [u8; 6] = [2, 0, 0, 0, 0, 0xb];
    let mut rig = Rig::new(1);
    rig.nodes[0].start();
    rig.nodes[0].await_status("ready", |status| status.ready);
    rig.put_node("peer", "");
    let store = ::store::Directory::open(rig.store.path()).unwrap();
    let put = |mac: [u8; 6], underlay: &str| {
        let pod_cidrs = ["10.244.200.0/24", "fd00:10:244:c8::/64"].map(|cidr| cidr.parse().unwrap());
        for cidr in pod_cidrs {
            store.write(&Claim { cidr, node: "peer".into() }.into(), Expect::Any).unwrap();
        }
        let lease = Lease {
            node: "peer".into(),
            pod_cidrs: Box::new(pod_cidrs),
            underlay: Box::new([underlay.parse().unwrap()]),
            backend: Backend::Vxlan { vni: 1, port: 8472, mac: MacAddress(mac) },
            mtu: 1450,
            flannel: Flannel::Apart,
        };
        store.write(&lease.into(), Expect::Any).unwrap();
    };
    put(OLD, "198.18.0.50");
    let node = &rig.nodes[0];
    eventually("the peer is programmed", || (node.fdb() == ["198.18.0.50"]).then_some(()));
    node.await_settled();
    let monitor = Monitor::start(node);
    // Another machine with the same link address, as those of Fairlead have it: the entry is never away.
    put(OLD, "198.18.0.51");
    eventually("the new address", || (node.fdb() == ["198.18.0.51"]).then_some(()));
    // And one with another link address.
    put(NEW, "198.18.0.52");
    eventually("the other link address", || (node.fdb() == ["198.18.0.52"]).then_some(()));
    node.await_settled();
    let said = monitor.lines();
    let at = |part: &str, gone: bool| {
        let is_it = |line: &String| line.contains(part) && line.starts_with("Deleted") == gone;
        said.iter().position(is_it)
    };
    let (there, gone) = (at("02:00:00:00:00:0b", false), at("02:00:00:00:00:0a", true));
    assert!(there.is_some() && there < gone, "{said:#?}");
    assert_eq!(said.iter().filter(|line| line.starts_with("Deleted")).count(), 1, "{said:#?}");
    assert_eq!(at("dst 198.18.0.51", false), Some(0), "{said:#?}");
    let neighbours = node.netns.ip("neigh show dev fairlead0 nud permanent");
    assert!(!neighbours.contains("02:00:00:00:00:0a"), "{neighbours}");
    assert_eq!(neighbours.matches("02:00:00:00:00:0b").count(), 2, "{neighbours}");
}

#[test]
fn scenario_6_two_manifests_with_one_cidr_the_second_node_refuses_and_names_the_first() {
    let mut rig = Rig::new(3);
    let spec = "{podCIDRs: [10.244.77.0/24, 'fd00:10:244:77::/64']}";
    rig.put_node("node1", spec);
    rig.nodes[0].start();
    rig.nodes[0].await_status("ready", |status| status.ready);
    assert_eq!(rig.nodes[0].pod_cidrs(), ["10.244.77.0/24", "fd00:10:244:77::/64"]);
    rig.put_node("node2", spec);
    rig.nodes[1].start();
    rig.nodes[2].start();
    let status = rig.nodes[1].await_status("refuses", |status| status.last_reconcile.is_some());
    assert!(!status.ready);
    assert_eq!(
        status.reasons,
        ["take pod CIDR 10.244.77.0/24 from the Node manifest: node node1 holds 10.244.77.0/24"]
    );
    assert!(!rig.nodes[1].conflist().exists());
    assert!(rig.nodes[0].status().unwrap().ready);
    rig.nodes[2].await_status("joined to node1", |status| {
        status.ready && status.peers.iter().any(|peer| peer.state == PeerState::Programmed)
    });
    // Mended: the node takes what it is given now.
    rig.put_node("node2", "");
    rig.await_joined();
}

#[test]
fn scenario_5_a_changed_cidr_in_the_manifest_moves_the_node_and_its_peers_follow() {
    let rig = Rig::joined(2);
    rig.put_node("node2", "{podCIDRs: [10.244.99.0/24, 'fd00:10:244:99::/64']}");
    rig.nodes[1].await_status("the new CIDRs", |status| {
        status.ready && status.pod_cidrs[0].to_string() == "10.244.99.0/24"
    });
    assert_eq!(rig.nodes[1].network_file().unwrap()["podCIDRs"][0], "10.244.99.0/24");
    eventually("node1 follows", || {
        (rig.nodes[0].tunnel_routes() == ["10.244.99.0/24", "fd00:10:244:99::/64"]).then_some(())
    });
    rig.add_pods();
    rig.assert_reachable();
}

#[test]
fn a_pod_keeps_its_address_and_its_peers_when_its_node_gets_another_cidr() {
    let rig = Rig::joined(2);
    let (first, second) = (&rig.nodes[0], &rig.nodes[1]);
    let (old, pods) = (second.pod_cidrs(), second.pod_addresses());
    first.add_pod();
    second.add_pod();
    second.add_pod_routes(&pods);
    rig.put_node("node2", "{podCIDRs: [10.244.99.0/24, 'fd00:10:244:99::/64']}");
    let wanted = ["10.244.99.0/24", "fd00:10:244:99::/64", &old[0], &old[1]];
    let status = second.await_status("the new CIDRs before the old", |status| {
        status.ready && status.pod_cidrs.iter().map(ToString::to_string).eq(wanted)
    });
    assert!(status.problems[0].contains("pods here still have addresses of it"), "{:?}", status.problems);
    let given = &second.network_file().unwrap()["podCIDRs"];
    assert_eq!(*given, serde_json::json!(wanted[..2]), "new pods get addresses of the new ones alone");
    let mut all = wanted.map(str::to_owned).to_vec();
    all.sort();
    eventually("node1 reaches both", || (first.tunnel_routes() == all).then_some(()));
    for (source, target) in first.pod_addresses().iter().zip(&pods) {
        assert!(first.pings(source, target), "{source} -> {target}");
        assert!(second.pings(target, source), "{target} -> {source}");
    }
    // The old ones are given to a third node: whose pods they are now is not in doubt.
    rig.put_node("node3", &format!("{{podCIDRs: ['{}', '{}']}}", old[0], old[1]));
    let status = second.await_status("the new CIDRs alone", |status| status.pod_cidrs.len() == 2);
    assert!(status.problems[0].contains("node node3 has it now"), "{:?}", status.problems);
    rig.remove_node("node3");
    second.await_status("the old ones are carried again", |status| status.pod_cidrs.len() == 4);
    // The last pod goes, and with it what was kept for it.
    second.netns.ip("link delete pod0");
    let status = second.await_status("the new CIDRs alone", |status| status.pod_cidrs.len() == 2);
    assert!(status.ready && status.problems.is_empty(), "{:?}", status.problems);
    eventually("node1 follows", || {
        (first.tunnel_routes() == ["10.244.99.0/24", "fd00:10:244:99::/64"]).then_some(())
    });
    let claims: Vec<_> = store::Directory::open(rig.store.path())
        .unwrap()
        .list()
        .unwrap()
        .snapshot
        .claims_of("node2")
        .collect();
    assert_eq!(claims.len(), 2, "{claims:?}");
}

#[test]
fn the_conflist_comes_last_and_stays_for_the_pods_that_are_there() {
    let mut rig = Rig::new(1);
    rig.remove_node("node1");
    rig.nodes[0].start();
    let status =
        rig.nodes[0].await_status("waits for its Node object", |status| status.last_reconcile.is_some());
    assert!(!status.ready && status.reasons[0].contains("node node1 is not in the cluster"), "{status:?}");
    assert!(!rig.nodes[0].conflist().exists());
    assert_eq!(rig.nodes[0].netns.link_names(), ["eth0"], "nothing has been made");
    rig.put_node("node1", "");
    eventually("the conflist", || rig.nodes[0].conflist().exists().then_some(()));
    assert!(rig.nodes[0].network_file().is_some(), "the plugin can read what it needs");
    assert!(rig.nodes[0].netns.link_names().contains(&"fairlead0".to_owned()));
    let conflist: serde_json::Value =
        serde_json::from_slice(&std::fs::read(rig.nodes[0].conflist()).unwrap()).unwrap();
    assert_eq!(conflist["plugins"][0]["type"], "fairlead");

    rig.remove_node("node1");
    rig.nodes[0].await_status("nothing held", |status| status.pod_cidrs.is_empty());
    assert!(rig.nodes[0].network_file().is_none(), "no pod can be attached");
    assert!(rig.nodes[0].conflist().exists(), "and those that are there can go");
    assert_eq!(rig.nodes[0].netns.link_names(), ["eth0"]);
    assert_eq!(rig.nodes[0].tunnel_routes(), Vec::<String>::new());
    assert!(rig.nodes[0].netns.nft_ruleset().iter().all(|item| item.get("table").is_none()));
    let listing = store::Directory::open(rig.store.path()).unwrap().list().unwrap().snapshot;
    assert!(listing.leases.is_empty() && listing.claims.is_empty());

    rig.put_node("node1", "");
    eventually("pods can be attached again", || rig.nodes[0].network_file());
}

#[test]
fn a_node_whose_object_is_deleted_and_created_anew_loses_nothing_meanwhile() {
    let mut rig = Rig::new(2);
    for node in &mut rig.nodes {
        node.configure("cluster: {deletedNodeGraceSeconds: 600}\n");
        node.start();
    }
    rig.await_joined();
    rig.add_pods();
    let before: Vec<_> = rig.nodes.iter().map(|node| (node.tunnel_routes(), node.fdb())).collect();
    rig.remove_node("node2");
    rig.nodes[1].await_status("says that it was deleted", |status| {
        status.reasons.iter().any(|reason| reason.contains("the Node object of this node was deleted"))
    });
    assert!(rig.nodes[1].network_file().unwrap()["notReady"].to_string().contains("was deleted"));
    rig.assert_reachable();
    rig.put_node("node2", "");
    rig.await_joined();
    assert!(rig.nodes[1].network_file().unwrap().get("notReady").is_none());
    let after: Vec<_> = rig.nodes.iter().map(|node| (node.tunnel_routes(), node.fdb())).collect();
    assert_eq!(after, before);
    rig.assert_reachable();
}

#[test]
fn a_deleted_node_is_gone_once_its_time_is_over() {
    let mut rig = Rig::new(2);
    for node in &mut rig.nodes {
        node.configure("cluster: {deletedNodeGraceSeconds: 1}\n");
        node.start();
    }
    rig.await_joined();
    rig.remove_node("node2");
    rig.nodes[0].await_status("node2 is gone", |status| status.peers.is_empty());
    assert_eq!(rig.nodes[0].tunnel_routes(), Vec::<String>::new());
    rig.nodes[1].await_status("nothing held", |status| status.pod_cidrs.is_empty());
    assert_eq!(rig.nodes[1].netns.link_names(), ["eth0"]);
}

#[test]
fn scenario_37_a_lease_that_somebody_deletes_is_taken_again() {
    let rig = Rig::joined(2);
    let before = rig.nodes[0].pod_cidrs();
    let store = store::Directory::open(rig.store.path()).unwrap();
    let key = cluster::Key::Lease("node1".into());
    assert!(store.delete(&key, Expect::Any).unwrap());
    eventually("the lease is back", || store.read(&key).unwrap());
    assert_eq!(rig.nodes[0].pod_cidrs(), before);
    rig.await_joined();
}

#[test]
fn many_agents_that_start_at_once_take_different_cidrs() {
    let rig = Rig::joined(6);
    let mut held: Vec<String> = rig.nodes.iter().flat_map(|node| node.pod_cidrs()).collect();
    held.sort();
    held.dedup();
    assert_eq!(held.len(), 12);
}

#[test]
fn scenario_49_an_address_no_pod_has_is_answered_at_once() {
    let rig = Rig::joined(2);
    rig.add_pods();
    let source = &rig.nodes[0].pod_addresses()[0];
    let unused = rig.nodes[1].pod_addresses()[0].replace(".5", ".77");
    let ping = ["-n", "-c", "1", "-W", "3", "-I", source, &unused];
    let output = run(rig.nodes[0].netns.command("ping").args(ping));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("Unreachable"), "{text}");
}

#[test]
fn scenario_50_a_cluster_network_that_overlaps_the_hosts_is_refused_with_the_pair() {
    let rig = Rig::new(1);
    rig.nodes[0].netns.ip("address add 10.244.3.1/20 dev eth0");
    let output = run(&mut rig.nodes[0].command(&[]));
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("10.244.0.0/16") && text.contains("10.244.0.0/20"), "{text}");
    assert!(text.contains("has on eth0") && text.contains("hint:"), "{text}");
    assert_eq!(rig.nodes[0].netns.link_names(), ["eth0"]);
    assert!(!rig.nodes[0].conflist().exists());
}

/// Networks of Services, as the manifest of a ServiceCIDR says them.
fn service_cidr(name: &str, cidrs: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {{name: {name}}}\nspec: {{cidrs: [{cidrs}]}}\n"
    )
}

#[test]
fn scenario_50_a_cluster_network_that_services_have_addresses_of_is_refused_with_the_pair() {
    let mut rig = Rig::new(1);
    rig.put_manifest("services", &service_cidr("kubernetes", "10.244.128.0/20, 'fd00:96::/112'"));
    rig.nodes[0].start();
    let pair = "use 10.244.0.0/16 for pods: it overlaps 10.244.128.0/20, which ServiceCIDR kubernetes gives to Services";
    let status = rig.nodes[0].await_status("refuses it", |status| {
        !status.ready && status.reasons.iter().any(|reason| reason.contains(pair) && reason.contains("hint:"))
    });
    assert!(status.pod_cidrs.is_empty(), "{status:?}");
    let told = store::Directory::open(rig.store.path()).unwrap().list().unwrap().snapshot;
    assert!(told.leases.is_empty() && told.claims.is_empty(), "{told:?}");
    assert_eq!(rig.nodes[0].netns.link_names(), ["eth0"]);
    assert!(!rig.nodes[0].conflist().exists());

    // Said to be meant, it is not in the way; and a node that takes part is not taken down for what is said later.
    let node = &mut rig.nodes[0];
    node.kill();
    node.configure("cluster: {allowOverlap: [10.244.128.0/20]}\n");
    node.start();
    node.await_status("is ready", |status| status.ready && status.problems.is_empty());
    node.configure("cluster: {allowOverlap: []}\n");
    let tells = |rig: &Rig, pair: &str| {
        rig.nodes[0].await_status("tells the pair", |status| {
            status.ready && status.problems.iter().any(|problem| problem.contains(pair))
        });
    };
    tells(&rig, pair);
    rig.put_manifest("services", &service_cidr("kubernetes", "10.96.0.0/16"));
    rig.nodes[0].await_status("has nothing to tell", |status| status.ready && status.problems.is_empty());
    rig.put_manifest("more-services", &service_cidr("more", "10.244.64.0/24"));
    tells(&rig, "it overlaps 10.244.64.0/24, which ServiceCIDR more gives to Services");
    rig.nodes[0].kill();
    rig.nodes[0].start();
    tells(&rig, "it overlaps 10.244.64.0/24, which ServiceCIDR more gives to Services");

    // Nor is one whose lease is gone, as when somebody restored the store: its pods are there all the same.
    let before = rig.nodes[0].pod_cidrs();
    rig.nodes[0].kill();
    let store = store::Directory::open(rig.store.path()).unwrap();
    assert!(store.delete(&cluster::Key::Lease("node1".into()), Expect::Any).unwrap());
    rig.nodes[0].start();
    tells(&rig, "it overlaps 10.244.64.0/24, which ServiceCIDR more gives to Services");
    assert_eq!(rig.nodes[0].pod_cidrs(), before);
    assert!(rig.nodes[0].conflist().exists());
}

#[test]
fn scenario_50_a_service_among_the_pods_is_refused_where_nobody_tells_the_networks_of_services() {
    let mut rig = Rig::new(1);
    let service = |address: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{namespace: default, name: kubernetes}}\n\
             spec: {{clusterIP: {address}, ports: [{{port: 443}}]}}\n"
        )
    };
    rig.put_manifest("service", &service("10.244.0.1"));
    rig.nodes[0].configure("");
    rig.nodes[0].start();
    let pair =
        "use 10.244.0.0/16 for pods: it overlaps 10.244.0.1/32, the address of Service default/kubernetes";
    rig.nodes[0].await_status("refuses it", |status| {
        !status.ready && status.reasons.iter().any(|reason| reason.contains(pair))
    });
    assert!(!rig.nodes[0].conflist().exists());
    // Looked at again with another configuration, not only after a while.
    rig.put_manifest("service", &service("10.96.0.1"));
    rig.nodes[0].configure("cluster: {allowOverlap: [192.0.2.0/24]}\n");
    rig.nodes[0].await_status("is ready", |status| status.ready && status.problems.is_empty());
}

#[test]
fn a_second_agent_on_a_node_is_refused_and_the_first_goes_on() {
    let rig = Rig::joined(1);
    let output = run(&mut rig.nodes[0].command(&[]));
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("another agent does already"));
    assert!(rig.nodes[0].status().unwrap().ready);
}

#[test]
fn two_machines_with_one_name_say_so_and_do_not_fight_without_pause() {
    let mut rig = Rig::joined(2);
    rig.nodes[1].kill();
    rig.nodes[1].name = "node1".to_owned();
    rig.nodes[1].start();
    for node in &rig.nodes {
        node.await_status("says that it has a double", |status| {
            status.problems.iter().any(|problem| problem.contains("--node node1"))
        });
    }
    // Each publishes at most once in two seconds, the first time aside.
    let published = |node: &Node| node.log().matches("lease published").count();
    let (first, second) = (published(&rig.nodes[0]), published(&rig.nodes[1]));
    assert!(first <= 20 && second <= 20, "{first} and {second}");
}

#[test]
fn bad_input_is_refused_before_anything_is_touched() {
    let mut rig = Rig::new(1);
    let refused = |node: &Node, wants: &[&str]| {
        let output = run(&mut node.command(&[]));
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(wants.iter().all(|want| text.contains(want)), "{text}");
        assert_eq!(node.netns.link_names(), ["eth0"]);
        assert!(!node.conflist().exists() && !node.state_dir().join("agent.sock").exists());
    };
    let node = &mut rig.nodes[0];
    node.configure("vxlan:\n  prot: 4789\n");
    refused(node, &["config.yaml: ", "line 2", "no key prot", "did you mean port?"]);
    node.configure("cluster: {podCIDRs: [10.244.0.0/33]}\n");
    refused(node, &["line 1", "10.244.0.0/33"]);
    node.configure("cluster: {podCIDRs: [10.244.0.0/16], nodePrefixIPv4: 12}\n");
    refused(node, &["cluster.nodePrefixIPv4"]);
    node.configure("");
    node.name = "Node_1".to_owned();
    refused(node, &["Node_1", "hint: --node"]);
}
