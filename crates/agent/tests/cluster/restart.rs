//! Agents that die and start: scenarios 30 to 32.

use std::process::Stdio;
use std::time::Duration;

use harness::run_ok;

use crate::rig::{Rig, lines};

#[test]
fn scenarios_30_and_31_a_restart_loses_no_packet_and_adopts_what_is_there() {
    let mut rig = Rig::joined(2);
    rig.add_pods();
    rig.assert_reachable();
    let (source, target) = (rig.nodes[0].pod_addresses()[0].clone(), rig.nodes[1].pod_addresses()[0].clone());
    let arguments = ["-n", "-q", "-i", "0.01", "-c", "300", "-W", "2", "-I", &source, &target];
    let probe = rig.nodes[0].netns.command("ping").args(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let was = rig.nodes[0].tunnel_text();
    for round in 0..4 {
        rig.nodes[0].kill();
        assert_eq!(rig.nodes[0].tunnel_text(), was, "round {round}");
        assert!(rig.nodes[0].conflist().exists(), "pods can be made without an agent");
        rig.nodes[0].start();
        let status = rig.nodes[0].await_status("ready again", |status| status.ready);
        assert_eq!(status.last_reconcile.map(|last| last.steps), Some(0), "what is there is adopted");
        assert_eq!(rig.nodes[0].tunnel_text(), was, "round {round}");
    }
    let output = probe.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(" 0% packet loss"), "{text}");
}

#[test]
fn scenario_32_an_agent_that_is_stopped_leaves_the_network_working() {
    let mut rig = Rig::joined(2);
    rig.add_pods();
    let was = rig.nodes[0].tunnel_text();
    let addresses = [rig.nodes[0].pod_addresses(), rig.nodes[1].pod_addresses()];
    assert_eq!(rig.nodes[0].stop(), Some(0));
    assert_eq!(rig.nodes[0].tunnel_text(), was);
    assert!(rig.nodes[0].conflist().exists());
    assert!(!rig.nodes[0].state_dir().join("agent.sock").exists());
    assert!(rig.nodes[1].pings(&addresses[1][0], &addresses[0][0]));
    assert!(rig.nodes[1].pings(&addresses[1][1], &addresses[0][1]));
}

#[test]
fn an_agent_killed_at_any_moment_is_whole_after_the_next_start() {
    let mut rig = Rig::joined(2);
    rig.add_pods();
    let was = rig.nodes[0].tunnel_text();
    let cidrs = rig.nodes[0].pod_cidrs();
    // Everything is taken down each time, so that the kill falls into the making of it.
    for round in 0u64..24 {
        rig.nodes[0].kill();
        run_ok(&mut rig.nodes[0].command(&["clean"]));
        rig.nodes[0].start();
        // The moment is the variable of this test: from the first instruction to past the end of the start.
        std::thread::sleep(Duration::from_micros(round * 1500));
        rig.nodes[0].kill();
        rig.nodes[0].start();
        rig.nodes[0].await_status("ready", |status| status.ready);
        rig.nodes[0].await_settled();
        assert_eq!(rig.nodes[0].pod_cidrs(), cidrs, "round {round}");
        assert_eq!(lines(&rig.nodes[0].tunnel_text()), lines(&was), "round {round}");
    }
    rig.assert_reachable();
}

#[test]
fn an_agent_killed_before_any_step_of_its_first_start_is_whole_after_the_next() {
    if !harness::strace_works() {
        harness::not_run("strace cannot be used here");
        return;
    }
    // Whatever changes anything: the kernel's state, a file's content, name or being. Each on a machine of its own.
    let calls = ["sendto", "write", "rename", "link", "linkat", "mkdir", "unlink", "bind", "fdatasync"];
    let steps: usize = std::thread::scope(|scope| {
        let machines = calls.map(|call| scope.spawn(move || killed_before_each(call)));
        machines.map(|machine| machine.join().unwrap()).iter().sum()
    });
    assert!(steps > 20, "{steps} steps were found");
}

/// Kills a starting agent before each of its system calls of that name, and looks at what the next one makes of it. Returns
/// how many there were.
fn killed_before_each(call: &str) -> usize {
    let mut rig = Rig::new(1);
    rig.put_peers(2);
    let node = &mut rig.nodes[0];
    node.configure("cluster: {podCIDRs: [10.0.0.0/9, 'fd00:10:244::/48']}\n");
    node.start();
    node.await_status("ready", |status| status.ready);
    node.await_settled();
    let was = lines(&node.tunnel_text());
    node.kill();
    for number in 1..299 {
        run_ok(&mut rig.nodes[0].command(&["clean"]));
        rig.forget("node1");
        let killed = rig.nodes[0].start_and_kill_at(call, number);
        let node = &mut rig.nodes[0];
        let at = format!("killed at {call} number {number}");
        node.network_file();
        node.start();
        node.await_status(&at, |status| status.ready);
        node.await_settled();
        assert_eq!(lines(&node.tunnel_text()), was, "{at}");
        node.kill();
        let listing = store::Directory::open(rig.store.path()).unwrap().list().unwrap();
        assert_eq!(listing.snapshot.claims_of("node1").count(), 2, "{at}");
        assert_eq!(listing.problems, [], "{at}");
        if !killed {
            return usize::try_from(number - 1).unwrap();
        }
    }
    panic!("{call} never ends");
}
