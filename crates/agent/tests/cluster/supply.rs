//! What is left of pod CIDRs and of pods' addresses: counted for everybody who asks, and told before the last one is taken.

use cluster::Claim;
use harness::{eventually, run_ok};
use store::{Directory, Expect};

use crate::rig::{Node, Rig};

/// What node `node` says of its supplies, as people and Prometheus read it.
fn metrics(node: &Node, name: &str) -> Vec<String> {
    let text = node.health("/metrics");
    let found = text.lines().filter_map(|line| line.strip_prefix(&format!("fairlead_{name}{{network=")));
    found.map(str::to_owned).collect()
}

/// Gives a pod CIDR to a node of that name, which has no agent here.
fn give(rig: &Rig, name: &str, cidr: &str) {
    rig.put_node(name, "");
    let claim = Claim { cidr: cidr.parse().unwrap(), node: name.into() };
    Directory::open(rig.store.path()).unwrap().write(&claim.into(), Expect::Any).unwrap();
}

fn problems(node: &Node, with: &str) -> Vec<String> {
    let problems = node.status().map(|status| status.problems).unwrap_or_default();
    problems.into_iter().filter(|problem| problem.contains(with)).collect()
}

#[test]
fn pod_cidrs_are_counted_and_told_before_the_last_one_is_taken_where_nodes_take_their_own() {
    let mut rig = Rig::new(2);
    for node in &mut rig.nodes {
        node.configure("cluster: {podCIDRs: [10.244.0.0/22], nodePrefixIPv4: 24}\n");
        node.start();
    }
    rig.await_joined();
    let [first, second] = &rig.nodes[..] else { panic!("two nodes") };
    let counted = |free: u64| {
        let free = format!("\"10.244.0.0/22\",state=\"free\"}} {free}");
        eventually("so many are free", || metrics(first, "pod_cidrs").contains(&free).then_some(()));
    };
    counted(2);
    let told = "keep pod CIDRs (/24 of 10.244.0.0/22) for nodes to come";
    assert!(problems(first, told).is_empty());

    give(&rig, "node3", "10.244.2.0/24");
    counted(1);
    let few = |node: &Node| {
        // What changes in the kernel has the whole node be looked at, which would come to it by itself a little later.
        node.netns.ip("address replace 198.18.0.77/24 dev eth0");
        node.netns.ip("address delete 198.18.0.77/24 dev eth0");
        eventually("few are left", || problems(node, told).pop())
    };
    assert!(few(first).contains("1 of 4 are left"));
    assert!(first.log().contains(told), "the log has it too");
    assert!(first.status().unwrap().ready, "it keeps nobody from anything");

    let given_up = second.pod_cidrs().remove(0);
    // Where the Node object says which it is, somebody else gives them out.
    rig.put_node("node2", "{podCIDRs: [10.244.3.0/24]}");
    second.await_status("has what its Node object says", |status| {
        status.pod_cidrs.iter().any(|cidr| cidr.to_string() == "10.244.3.0/24")
    });
    eventually("nothing is said of it", || {
        (problems(second, told).is_empty() && metrics(second, "pod_cidrs").is_empty()).then_some(())
    });

    give(&rig, "node4", &given_up);
    counted(0);
    few(first);
    eventually("none is left", || {
        problems(first, told).pop().filter(|told| told.contains("none of 4 is left"))
    });
}

#[test]
fn addresses_of_pods_are_counted_and_told_before_the_last_one_is_taken() {
    let mut rig = Rig::new(1);
    rig.nodes[0].configure("cluster: {podCIDRs: [10.244.0.0/16], nodePrefixIPv4: 28}\n");
    rig.nodes[0].start();
    rig.await_joined();
    let node = &rig.nodes[0];
    let counted = |taken: u64| {
        let [taken, free] = [("taken", taken), ("free", 13 - taken)]
            .map(|(state, number)| format!("\"10.244.0.0/28\",state=\"{state}\"}} {number}"));
        eventually("so many are taken", || {
            let found = metrics(node, "pod_addresses");
            (found.contains(&taken) && found.contains(&free)).then_some(())
        });
    };
    counted(0);
    std::fs::create_dir_all(node.addresses()).unwrap();
    let hold =
        |last: u8| std::fs::write(node.addresses().join(format!("10.244.0.{last}")), "pod\r\neth0").unwrap();
    (2..=4).for_each(hold);
    counted(3);
    let told = "keep addresses of 10.244.0.0/28 for pods to come";
    assert!(problems(node, told).is_empty());
    (5..=13).for_each(hold);
    // Whoever asks, as a kubelet does, has it noticed.
    eventually("one is left", || {
        node.health("/readyz");
        problems(node, told).pop().filter(|told| told.contains("1 of 13 are left"))
    });
    hold(14);
    counted(13);
    eventually("none is left", || {
        problems(node, told).pop().filter(|told| told.contains("none of 13 is left"))
    });
    run_ok(std::process::Command::new("rm").arg("-r").arg(node.addresses()));
    eventually("all are free again", || problems(node, told).is_empty().then_some(()));
}
