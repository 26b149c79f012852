//! containerd's CRI over our plugins: a pod as a kubelet starts it, with a host port and limits.
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
use runtimes::{Containerd, Machine, conflist};
use serde_json::json;

const PROGRAMS: [&str; 6] = ["containerd", "ctr", "runc", "iperf3", "busybox", "pkill"];

/// Our plugins, where a runtime finds them.
fn ours() -> tempfile::TempDir {
    plugin_directory(&["bridge", "host-local", "portmap", "bandwidth", "loopback"])
}

#[test]
fn a_kubelet_gets_a_pod_with_a_host_port_and_limits_that_limit() {
    if let Some(obstacle) = Machine::obstacle(&PROGRAMS) {
        return not_run(&obstacle);
    }
    serve_and_limit(ours().path());
}

#[test]
fn the_same_story_holds_for_the_reference_plugins() {
    let Some(plugins) = reference_plugins().filter(|_| Machine::obstacle(&PROGRAMS).is_none()) else {
        return not_run("it takes containerd, iperf3 and the reference plugins");
    };
    serve_and_limit(&plugins);
}

fn serve_and_limit(plugins: &Path) {
    let containerd =
        Containerd::start(plugins, |machine| conflist("10.9.0.0/24", machine.directory(), &json!({})));
    let node = containerd.machine().network();
    let client = outside(node);
    eventually("the network is ready", || containerd.complaints().is_empty().then_some(()));

    let annotations = [("kubernetes.io/ingress-bandwidth", "20M"), ("kubernetes.io/egress-bandwidth", "40M")];
    let pod = containerd.run_pod("web", &[(8080, 80)], &annotations, &server("web")).unwrap();
    assert_eq!(pod.addresses, ["10.9.0.2"]);
    assert_eq!(eventually("from outside", || answer(&client, "198.51.100.1", "8080")), "web");
    assert_eq!(eventually("from the node", || answer(node, "127.0.0.1", "8080")), "web");

    for (direction, wanted) in [(Direction::Ingress, 20e6), (Direction::Egress, 40e6)] {
        let seen = rate(&node.path(), &pod.netns, "10.9.0.2", direction);
        assert!((seen / wanted - 1.0).abs() < 0.1, "{direction:?}: {seen:.0} bits a second, not {wanted:.0}");
    }

    let next = containerd.replace_pod(&pod).unwrap();
    assert_ne!(next.id, pod.id);
    containerd.remove_pod(&next).unwrap();
    nothing_is_left(containerd.machine());
}

#[test]
fn ten_pods_at_once_each_keep_their_host_port_and_a_crash_of_containerd_keeps_none_from_going() {
    if let Some(obstacle) = Machine::obstacle(&PROGRAMS) {
        return not_run(&obstacle);
    }
    let plugins = ours();
    let mut containerd =
        Containerd::start(plugins.path(), |machine| conflist("10.9.0.0/24", machine.directory(), &json!({})));
    let client = outside(containerd.machine().network());
    let pods: Vec<_> = std::thread::scope(|scope| {
        let start = |number: u16| {
            let containerd = &containerd;
            scope.spawn(move || {
                let name = format!("pod{number}");
                containerd.run_pod(&name, &[(8000 + number, 80)], &[], &server(&name)).unwrap()
            })
        };
        let started: Vec<_> = (0..10).map(start).collect();
        started.into_iter().map(|pod| pod.join().unwrap()).collect()
    });
    for number in 0..10 {
        let port = (8000 + number).to_string();
        let said = eventually("a pod answers", || answer(&client, "198.51.100.1", &port));
        assert_eq!(said, format!("pod{number}"));
    }
    containerd.crash();
    for pod in &pods {
        containerd.remove_pod(pod).unwrap();
    }
    nothing_is_left(containerd.machine());
}

#[test]
fn a_second_pod_with_the_same_host_port_is_refused_by_name_of_the_first() {
    if let Some(obstacle) = Machine::obstacle(&PROGRAMS) {
        return not_run(&obstacle);
    }
    let plugins = ours();
    let containerd =
        Containerd::start(plugins.path(), |machine| conflist("10.9.0.0/24", machine.directory(), &json!({})));
    let first = containerd.run_pod("first", &[(8080, 80)], &[], &server("first")).unwrap();
    let refused = containerd.run_pod("second", &[(8080, 80)], &[], &server("second")).unwrap_err();
    assert!(refused.contains("8080") && refused.contains(&first.id), "{refused}");
    containerd.remove_pod(&first).unwrap();
    let third = containerd.run_pod("third", &[(8080, 80)], &[], &server("third")).unwrap();
    containerd.remove_pod(&third).unwrap();
    nothing_is_left(containerd.machine());
}
