//! What an operator does to agents that run: another configuration, health checks; and a firewall of the host's own.

use harness::eventually;

use crate::rig::{Node, Rig};

fn has_problem(node: &Node, part: &str) -> bool {
    node.status().is_some_and(|status| status.problems.iter().any(|problem| problem.contains(part)))
}

#[test]
fn another_configuration_is_followed_and_a_broken_one_refused() {
    let mut rig = Rig::new(2);
    for node in &mut rig.nodes {
        node.configure("vxlan: {vni: 7}\n");
        node.start();
    }
    rig.await_joined();
    for node in &mut rig.nodes {
        node.configure("vxlan: {vni: 8}\nplugins: {portmap: false, bandwidth: false}\n");
    }
    for node in &rig.nodes {
        node.await_status("the new identifier", |status| vni(status) == Some(8));
        let link = node.netns.ip("-d -j link show fairlead0");
        assert!(link.contains("\"id\":8"), "{link}");
        eventually("the conflist of the new configuration", || {
            let text = std::fs::read_to_string(node.conflist()).ok()?;
            (!text.contains("portmap")).then_some(())
        });
    }
    rig.await_joined();
    rig.add_pods();
    rig.assert_reachable();
    let node = &mut rig.nodes[0];
    node.configure("vxlan: {vin: 9}\n");
    eventually("the broken one is told", || has_problem(node, "did you mean vni?").then_some(()));
    let status = node.status().unwrap();
    assert!(status.ready && vni(&status) == Some(8), "{status:?}");
    // An agent that is started now goes on with the last good one too.
    node.kill();
    node.start();
    node.await_status("ready", |status| status.ready && vni(status) == Some(8));
    assert!(has_problem(node, "did you mean vni?"));
    node.configure("vxlan: {vni: 8}\n");
    node.await_status("nothing wrong", |status| status.problems.is_empty());
}

#[test]
fn networks_of_the_cluster_do_not_change_under_pods() {
    let mut rig = Rig::new(1);
    let node = &mut rig.nodes[0];
    node.configure("cluster: {podCIDRs: [10.244.0.0/16]}\n");
    node.start();
    node.await_status("ready", |status| status.ready);
    let before = node.pod_cidrs();
    node.configure("cluster: {podCIDRs: [10.99.0.0/16]}\n");
    eventually("told", || has_problem(node, "cluster.podCIDRs").then_some(()));
    assert_eq!(node.pod_cidrs(), before);
    node.configure("cluster: {podCIDRs: [10.244.0.0/16]}\n");
    node.await_status("nothing wrong", |status| status.problems.is_empty());
}

#[test]
fn health_tells_whether_the_node_can_carry_pods_and_reaches_a_peer() {
    let mut rig = Rig::new(2);
    for node in &mut rig.nodes {
        node.configure("");
        node.start();
    }
    rig.await_joined();
    for node in &rig.nodes {
        assert_eq!(node.health("/livez"), "ok\n200");
        assert_eq!(node.health("/readyz"), "ok\n200");
    }
    // The peer's kernel answers, also for an agent that is dead; without its tunnel nobody does.
    rig.nodes[1].kill();
    assert_eq!(rig.nodes[0].health("/readyz"), "ok\n200");
    rig.nodes[1].netns.ip("link del fairlead0");
    assert_eq!(rig.nodes[0].health("/readyz"), "no answer through the tunnel from node2\n503");
    assert_eq!(rig.nodes[0].health("/livez"), "ok\n200");
    rig.nodes[1].start();
    rig.await_joined();
    eventually("an answer", || (rig.nodes[0].health("/readyz") == "ok\n200").then_some(()));
    rig.nodes[0].configure("underlay: {interface: eth9}\n");
    rig.nodes[0].await_status("not ready", |status| !status.ready);
    let answer = rig.nodes[0].health("/readyz");
    assert!(answer.ends_with("\n503") && answer.contains("there is no link eth9"), "{answer}");
}

#[test]
fn scenario_59_a_node_is_not_ready_before_every_peer_that_is_known_is_programmed() {
    const PEERS: u16 = 300;
    let mut rig = Rig::new(1);
    rig.put_peers(PEERS);
    let node = &mut rig.nodes[0];
    node.configure("cluster: {podCIDRs: [10.0.0.0/8, 'fd00:10:244::/48']}\n");
    node.start();
    // What stands for peers answers no echo. That is all there is to say as soon as the node can carry pods; between that
    // answer and the look at the kernel there is no pause.
    let answer = eventually("nothing is missing but answers", || {
        Some(node.health("/readyz")).filter(|answer| answer.starts_with("no answer through the tunnel from"))
    });
    assert_eq!(node.tunnel_routes().len(), 2 * usize::from(PEERS), "{answer}");
}

#[test]
fn scenario_28_a_firewall_of_the_hosts_own_that_drops_pods_is_told_and_left_as_it_is() {
    let rig = Rig::joined(2);
    let node = &rig.nodes[0];
    let nft = |commands: &str| harness::run_ok(node.netns.command("nft").arg(commands));
    nft("add table inet filter; \
         add chain inet filter forward { type filter hook forward priority filter; policy drop; }; \
         add rule inet filter forward ct state established,related accept");
    let before = nft("list table inet filter");
    let both = |told: &String| told.contains("10.244.0.0/16 and fd00:10:244::/56");
    node.await_status("its status tells, once for both families", |status| {
        status.firewall_closed.len() == 1 && status.firewall_closed.iter().all(both)
    });
    eventually("the metrics tell", || {
        node.health("/metrics").contains("fairlead_host_firewall_closed 1\n").then_some(())
    });
    // An Event comes with the next look at the node.
    eventually("it is a problem, and no reason to be unready", || {
        node.netns.ip("link add other0 type bridge");
        node.netns.ip("link delete other0");
        let status = node.status()?;
        let tells = |problem: &String| problem.contains("inet filter forward drops what it does not accept");
        (status.ready && status.problems.iter().any(tells)).then_some(())
    });
    assert_eq!(nft("list table inet filter"), before);
    nft("insert rule inet filter forward ip saddr 10.244.0.0/16 accept; \
         insert rule inet filter forward ip6 saddr fd00:10:244::/48 accept");
    node.await_status("there is nothing to tell", |status| status.firewall_closed.is_empty());
}

#[test]
fn prometheus_reads_what_the_agent_counts() {
    let rig = Rig::joined(2);
    let node = &rig.nodes[0];
    node.netns.ip(&format!("route delete {}", rig.nodes[1].pod_cidrs()[0]));
    let text = eventually("the repair is counted", || {
        let text = node.health("/metrics");
        text.contains("fairlead_heals_total 1\n").then_some(text)
    });
    assert!(text.ends_with("# EOF\n200"), "{text}");
    for line in
        ["fairlead_node_ready 1", "fairlead_peers{state=\"programmed\"} 1", "fairlead_pod_mtu_bytes 1450"]
    {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    let status = node.status().unwrap();
    assert_eq!((status.heals, status.peers[0].mtu), (1, 1450));
    assert!(status.last_heal > status.peers[0].changed, "the path is as it was: {status:?}");
}

fn vni(status: &agent::Status) -> Option<u32> {
    status.backend.tunnel.as_ref().map(|tunnel| tunnel.vni)
}
