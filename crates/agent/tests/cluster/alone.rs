//! Two agents in one network namespace, each with directories of its own: scenario 60. Two networks of one machine have two
//! namespaces, as every two nodes of the rig have.

use std::path::Path;

use harness::{eventually, run};

use crate::rig::{Node, Rig};
use crate::witness::Witness;

/// Has a second agent, or its `clean`, refused beside the first one, and returns what it says.
fn refused(node: &Node, before: &[&str], first: &[&str], directory: &Path) -> String {
    let program = harness::binary("examples/agent");
    let words = [before, &[program.to_str().unwrap()], first].concat();
    let output = run(&mut node.command_of(&words, directory));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn scenario_60_a_second_agent_on_a_host_with_another_vni_and_state_directory_touches_nothing() {
    let mut rig = Rig::joined(2);
    rig.add_pods();
    rig.nodes.iter().for_each(Node::await_settled);
    let witness = Witness::start(&rig.nodes[0], &rig.nodes[1], 0);
    let other = tempfile::tempdir().unwrap();
    let node = &mut rig.nodes[0];
    let (before, status) = (node.tunnel_text(), node.status().unwrap());
    // From here on what is started on this node is of another network.
    node.configure("vxlan: {vni: 77, port: 4799}\ncluster: {podCIDRs: [10.99.0.0/16]}\n");
    let node = &rig.nodes[0];
    for first in [&[][..], &["clean"]] {
        let said = refused(node, &[], first, other.path());
        assert!(said.contains(&format!("process {} (", node.pid())), "{said}");
        assert!(said.contains(node.state_dir().to_str().unwrap()), "{said}");
        assert!(said.contains("hint: another agent does already"), "{said}");
        // As between a pod and a unit of systemd: other directories, other processes, the host's network.
        let container = ["unshare", "--mount", "--pid", "--fork", "--mount-proc"];
        let said = refused(node, &container, first, other.path());
        assert!(said.contains("a PID namespace that cannot be seen from here holds it"), "{said}");
    }
    assert!(!other.path().join("net.d").exists() && !other.path().join("run/agent.sock").exists());
    assert_eq!(node.tunnel_text(), before);
    let now = node.status().unwrap();
    assert_eq!((now.pid, now.changes, now.heals), (status.pid, status.changes, status.heals));
    assert_eq!(witness.lost(), 0);
}

#[test]
fn an_agent_that_comes_after_a_killed_one_takes_the_network_over_whatever_its_directory() {
    let mut rig = Rig::joined(1);
    let node = &mut rig.nodes[0];
    let other = tempfile::tempdir().unwrap();
    node.kill();
    let before = node.tunnel_text();
    let program = harness::binary("examples/agent");
    let mut next = node.command_of(&[program.to_str().unwrap()], other.path()).spawn().unwrap();
    eventually("the next agent is ready", || {
        agent::ask_status(&other.path().join("run")).ok().filter(|status| status.ready)
    });
    assert_eq!(node.tunnel_text(), before);
    // The one before is refused now, and comes back when the other has ended.
    let said = refused(node, &[], &[], other.path());
    assert!(said.contains(&format!("process {} (", next.id())), "{said}");
    next.kill().unwrap();
    next.wait().unwrap();
    node.start();
    node.await_status("ready", |status| status.ready);
}
