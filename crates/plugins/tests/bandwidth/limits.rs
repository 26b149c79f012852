//! Whether the limits limit: `iperf3` in both directions, over every kind of cable, and by subnet.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use harness::{not_run, run};
use serde_json::{Value, json};

use crate::scene::{INTERFACES, Pod, Scene, both_ways};

/// 20 Mbit/s: far below what the machine can do, and many packets all the same.
const RATE: u64 = 20_000_000;

/// Whether `iperf3` is there.
fn measurable() -> bool {
    let found = std::process::Command::new("iperf3").arg("--version").output().is_ok();
    if !found {
        not_run("iperf3 is not installed");
    }
    found
}

/// Bits a second that arrive at the pod's address or come from it. The host speaks as `source`, if there is one.
fn throughput(pod: &Pod<'_>, address: &str, source: Option<&str>, from_pod: bool) -> f64 {
    let (host, pod) = (&pod.scene.host, &pod.namespace);
    let mut server = pod.command("iperf3");
    server.args(["-s", "-1", "--forceflush", "-B", address]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut server = server.spawn().unwrap();
    let lines = BufReader::new(server.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("listening")), "iperf3 listens");
    let mut client = host.command("iperf3");
    client.args(["-c", address, "-t", "2", "-O", "1", "-J"]);
    if let Some(source) = source {
        client.args(["-B", source]);
    }
    if from_pod {
        client.arg("-R");
    }
    let output = run(&mut client);
    let _ = server.kill();
    let _ = server.wait();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or_else(|| panic!("{report}"))
}

fn within(found: f64, wanted: u64, what: &str) {
    let ratio = found / wanted as f64;
    // A fifth, and more below: on a machine that has other things to do the limit may not be reached.
    assert!((0.7..1.2).contains(&ratio), "{what}: {found} bits a second, not {wanted}");
}

/// Both directions, one after the other.
fn expect_limited(pod: &Pod<'_>, address: &str, what: &str) {
    for from_pod in [false, true] {
        let found = throughput(pod, address, None, from_pod);
        within(found, RATE, &format!("{what}, from the pod: {from_pod}"));
    }
}

// 60
#[test]
fn limits_hold_over_every_kind_of_cable() {
    if !measurable() {
        return;
    }
    for kind in INTERFACES {
        let scene = Scene::new();
        // A routed pod's host has no address of its own on the cable.
        scene.host.ip("address add 198.51.100.1 dev lo");
        let pod = scene.pod(scene.interface(kind), both_ways(RATE));
        let result = pod.add();
        pod.expect_good(&result);
        let address = pod.address(&result, kind == "ptp");
        assert!(scene.host.pings(&address), "{kind}");
        expect_limited(&pod, &address, kind);
    }
}

// 60
#[test]
fn limits_hold_although_the_runtime_sends_an_endless_burst() {
    if !measurable() {
        return;
    }
    let scene = Scene::new();
    let limits = json!({ "runtimeConfig": { "bandwidth": {
        "ingressRate": RATE, "ingressBurst": u32::MAX, "egressRate": RATE, "egressBurst": i32::MAX } } });
    let pod = scene.pod(scene.interface("bridge"), limits);
    let result = pod.add();
    expect_limited(&pod, &pod.address(&result, false), "an endless burst");
}

/// Measures with a counterpart in one of the subnets and with one outside them.
fn compare(subnets: &str, within_subnets_is_limited: bool) {
    if !measurable() {
        return;
    }
    for v6 in [false, true] {
        let scene = Scene::new();
        let mut limits = both_ways(RATE);
        limits[subnets] = json!(["192.0.2.0/24", "10.1.2.1/32", "2001:db8:42::1/128", "2001:db8:8000::/33"]);
        let pod = scene.pod(scene.interface("bridge"), limits);
        let result = pod.add();
        pod.expect_good(&result);
        let address = pod.address(&result, v6);
        // The host speaks as the bridge's own address, which is listed, or as another one, which is not.
        let (listed, other) =
            if v6 { ("2001:db8:42::1", "2001:db8:99::1") } else { ("10.1.2.1", "198.51.100.1") };
        scene.host.ip(&format!("address add {other} dev lo"));
        for (source, listed) in [(listed, true), (other, false)] {
            for from_pod in [false, true] {
                let found = throughput(&pod, &address, Some(source), from_pod);
                let what = format!("{subnets}, listed: {listed}, v6: {v6}, from the pod: {from_pod}");
                if listed == within_subnets_is_limited {
                    within(found, RATE, &what);
                } else {
                    assert!(found > 3.0 * RATE as f64, "{what}: only {found} bits a second");
                }
            }
        }
    }
}

#[test]
fn unshaped_subnets_are_exempt_and_nobody_else() {
    compare("unshapedSubnets", false);
}

#[test]
fn shaped_subnets_are_limited_and_nobody_else() {
    compare("shapedSubnets", true);
}

#[test]
fn check_notices_what_is_missing_of_limits_by_subnet() {
    let breaking: [(&str, &str); 3] = [
        ("filter del dev LINK parent 1: prio 6", "the filter for 2001:db8::/32 is gone"),
        ("class change dev LINK parent 1: classid 1:1 htb rate 1mbit", "Rate doesn't match"),
        ("qdisc del dev LINK root", "Failed to find qdisc"),
    ];
    for (command, words) in breaking {
        for ifb in [false, true] {
            let scene = Scene::new();
            let mut limits = both_ways(RATE);
            limits["unshapedSubnets"] = json!(["10.0.0.0/8", "2001:db8::/32"]);
            let pod = scene.pod(scene.interface("ptp"), limits);
            let result = pod.add();
            pod.expect_good(&result);
            let names = scene.links();
            let link = names.iter().find(|name| name.starts_with("bwp") == ifb).unwrap();
            let command = command.replace("LINK", link);
            harness::run_ok(scene.host.command("tc").args(command.split_whitespace()));
            let reply = &pod.check(&result)[1];
            let text = reply.error_text();
            assert!(text.contains(words) && text.contains(link.as_str()), "{command}: {reply:?}");
        }
    }
}
