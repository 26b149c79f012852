//! podman over our plugins: a container with a published port and limits, and nothing left when it goes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests drive programs, and panic when they fail"
)]

use std::path::Path;

use harness::{eventually, not_run, plugin_directory, reference_plugins};
use runtimes::shaping::{Direction, rate};
use runtimes::story::{answer, nothing_is_left, outside, server};
use runtimes::{Machine, Podman, conflist};
use serde_json::json;

const PROGRAMS: [&str; 5] = ["podman", "runc", "conmon", "iperf3", "busybox"];

#[test]
fn a_container_is_reached_by_its_published_port_and_its_limits_limit() {
    if let Some(obstacle) = Machine::obstacle(&PROGRAMS) {
        return not_run(&obstacle);
    }
    publish_and_limit(plugin_directory(&["bridge", "host-local", "portmap", "bandwidth", "loopback"]).path());
}

#[test]
fn the_same_story_holds_for_the_reference_plugins() {
    let Some(plugins) = reference_plugins().filter(|_| Machine::obstacle(&PROGRAMS).is_none()) else {
        return not_run("it takes podman, iperf3 and the reference plugins");
    };
    publish_and_limit(&plugins);
}

fn publish_and_limit(plugins: &Path) {
    // Bits a second and bits; podman has no limits of its own, so the network has them.
    let limits = json!({ "ingressRate": 30_000_000, "ingressBurst": 3_000_000,
        "egressRate": 15_000_000, "egressBurst": 3_000_000 });
    let podman = Podman::prepare(plugins, |machine| conflist("10.10.0.0/24", machine.directory(), &limits));
    let node = podman.machine().network();
    let client = outside(node);

    let started = podman.start("web", &["8080:80"], &server("web"));
    assert!(started.status.success(), "{started:?}");
    assert_eq!(podman.network_of("web")["Networks"]["testnet"]["IPAddress"], "10.10.0.2");
    assert_eq!(eventually("from outside", || answer(&client, "198.51.100.1", "8080")), "web");
    assert_eq!(eventually("from the node", || answer(node, "127.0.0.1", "8080")), "web");

    for (direction, wanted) in [(Direction::Ingress, 30e6), (Direction::Egress, 15e6)] {
        let seen = rate(&node.path(), &podman.netns("web"), "10.10.0.2", direction);
        assert!((seen / wanted - 1.0).abs() < 0.1, "{direction:?}: {seen:.0} bits a second, not {wanted:.0}");
    }
    podman.remove("web");
    nothing_is_left(podman.machine());
}
