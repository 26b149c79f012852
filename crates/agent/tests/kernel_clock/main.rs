//! Agents under a clock that jumps, which only the virtual machine's may: scenario 38.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test that cannot go on has failed, and tools are what it asserts with"
)]

#[path = "../cluster/rig.rs"]
#[allow(dead_code, reason = "another suite's, of which this one needs a part")]
mod rig;

use harness::{eventually, not_run};
use rig::{Rig, lines};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

/// Sets the clock so many seconds on, or back.
fn jump(seconds: i64) {
    let now = clock_gettime(ClockId::Realtime);
    clock_settime(ClockId::Realtime, Timespec { tv_sec: now.tv_sec + seconds, ..now }).unwrap();
}

#[test]
fn scenario_38_a_clock_that_jumps_by_an_hour_either_way_changes_nothing_and_holds_nobody_up() {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if !line.split_whitespace().any(|word| word == "fairlead-vm-test") {
        return not_run("the clock is only set in the virtual machine");
    }
    let mut rig = Rig::joined(2);
    jump(3600);
    // Who joins after it is known as before.
    rig.add_node(3);
    rig.nodes[2].start();
    rig.await_joined();
    rig.add_pods();
    let was = rig.nodes[0].tunnel_text();
    for seconds in [-7200, 3600, -3600, 3600] {
        jump(seconds);
        for node in &rig.nodes {
            node.await_status("ready", |status| status.ready);
        }
        assert_eq!(lines(&rig.nodes[0].tunnel_text()), lines(&was), "after {seconds} s");
        rig.assert_reachable();
        // And healing waits for no time of day.
        rig.nodes[0].netns.ip("link del fairlead0");
        eventually("the device is back", || (rig.nodes[0].fdb().len() == 2).then_some(()));
        rig.assert_reachable();
    }
}
