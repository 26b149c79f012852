//! `ptp` deeper than the comparison with the reference goes (`tests/conformance/tests/ptp.rs`): wrong and unusual
//! configurations, garbage, status, and a kill or a failure at every step.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a failure here is a failure of the test, and tools are what it asserts with"
)]

use std::{net::IpAddr, process::Stdio};

use harness::{Call, Disturbance, Namespace, every_step, not_run, strace_works};
use serde_json::{Value, json};
use tempfile::TempDir;

const BOTH: [&str; 2] = ["10.1.2.0/24", "2001:db8:42::/64"];

/// A host with the plugin installed and an empty address store.
struct Scene {
    host: Namespace,
    bin: TempDir,
    data: TempDir,
}

impl Scene {
    fn new() -> Self {
        Self {
            host: Namespace::with_loopback(),
            bin: harness::plugin_directory(&["ptp", "host-local"]),
            data: tempfile::tempdir().unwrap(),
        }
    }

    fn config(&self, subnets: &[&str]) -> Value {
        let ranges: Vec<Value> = subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
        json!({
            "cniVersion": "1.1.0", "name": "test", "type": "ptp", "ipMasq": true,
            "ipam": {
                "type": "host-local", "ranges": ranges, "dataDir": self.data.path(),
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        })
    }

    fn call<'a>(&'a self, container: &'a str, pod: &Namespace) -> Call<'a> {
        Call::new(&self.host, self.bin.path(), "ptp", container, pod)
    }

    fn reserved(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.data.path().join("test")) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| name.parse::<IpAddr>().is_ok()).collect()
    }

    /// Nothing that ADD makes for a pod is left.
    fn expect_clean(&self, what: &str) {
        assert_eq!(self.host.link_names(), [""; 0], "{what}: links are left");
        assert_eq!(self.reserved(), [""; 0], "{what}: addresses are left");
        assert_eq!(self.elements(), [""; 0], "{what}: nf_tables elements are left");
        let routes = self.host.ip("route show table main");
        assert!(!routes.contains("10.1.2"), "{what}: routes are left: {routes}");
    }

    fn elements(&self) -> Vec<String> {
        let ruleset = self.host.nft_ruleset();
        let sets = ruleset.iter().filter_map(|object| object.get("set"));
        sets.filter_map(|set| set["elem"].as_array()).flatten().map(Value::to_string).collect()
    }
}

#[test]
fn a_link_too_small_for_ipv6_carries_ipv4() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let mut config = scene.config(&BOTH[..1]);
    config["mtu"] = json!(1200);
    scene.call("c", &pod).add(&config);
    assert!(pod.pings("10.1.2.1"));
    scene.call("c", &pod).del(&config);
    scene.expect_clean("after DEL");
}

#[test]
fn the_hosts_end_for_a_pod_without_ipv6_has_no_part_in_it() {
    let scene = Scene::new();
    let (old, new) = (Namespace::new(), Namespace::new());
    let result = scene.call("old", &old).add(&scene.config(&BOTH[..1]));
    let name = result["interfaces"][0]["name"].as_str().unwrap();
    assert_eq!(scene.host.ip(&format!("-6 address show dev {name}")), "");
    assert_eq!(scene.host.ip(&format!("-6 route show table all dev {name}")), "");
    let result = scene.call("new", &new).add(&scene.config(&BOTH));
    let name = result["interfaces"][0]["name"].as_str().unwrap();
    assert!(scene.host.ip(&format!("-6 address show dev {name}")).contains("fe80::"));
    assert!(scene.host.ip(&format!("-6 route show table all dev {name}")).contains("ff00::/8"));
}

#[test]
fn ipv6_is_usable_at_once_on_both_ends() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let result = scene.call("c", &pod).add(&scene.config(&BOTH));
    let link = result["interfaces"][0]["name"].as_str().unwrap();
    for (namespace, link) in [(&scene.host, link), (&pod, "eth0")] {
        let shown = namespace.ip(&format!("-6 -o address show dev {link} scope global"));
        assert!(shown.contains("2001:db8:42::") && !shown.contains("tentative"), "{shown}");
    }
    assert!(pod.pings("2001:db8:42::1"));
    assert_eq!(scene.host.sysctl(&format!("net/ipv6/conf/{link}/accept_ra")), "0");
}

// 32, and what the reference leaves out: the sizes that a route tells
#[test]
fn routes_keep_their_sizes_and_gateways_beside_the_pods_own_are_on_the_link() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let mut config = scene.config(&["10.1.2.0/24"]);
    config["ipam"]["routes"] = json!([
        { "dst": "192.0.2.0/24", "mtu": 1300, "advmss": 1200, "priority": 7 },
        { "dst": "198.51.100.0/24", "gw": "10.1.2.9" },
        { "dst": "203.0.113.0/24", "table": 100 },
    ]);
    scene.call("c", &pod).add(&config);
    let routes = pod.ip("route show table all");
    assert!(
        routes.contains("192.0.2.0/24 via 10.1.2.1 dev eth0 proto static metric 7 mtu 1300 advmss 1200"),
        "{routes}"
    );
    assert!(routes.contains("198.51.100.0/24 via 10.1.2.9 dev eth0 proto static onlink"), "{routes}");
    assert!(routes.contains("203.0.113.0/24 via 10.1.2.1 dev eth0 table 100"), "{routes}");
}

#[test]
fn a_configuration_that_cannot_work_touches_nothing() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let call = scene.call("c", &pod);
    for (key, value, code, words) in [
        ("ipam", json!(null), 7, "ptp needs some"),
        ("ipam", json!({ "type": "ptp" }), 7, "gives no addresses"),
        ("mtu", json!(-1), 7, "mtu: -1 is not between"),
        ("mtu", json!("big"), 6, "mtu"),
        ("ipMasqBackend", json!("pf"), 7, "unknown ipmasq backend"),
        ("dns", json!("none"), 6, "dns"),
    ] {
        let mut config = scene.config(&["10.1.2.0/24"]);
        config[key] = value;
        let reply = call.run("ADD", &config);
        assert_eq!(reply.error_code(), code, "{key}: {reply:?}");
        assert!(reply.error_text().contains(words), "{key}: {reply:?}");
        scene.expect_clean(key);
        // DEL has to work all the same, unless the protocol's own keys cannot be read.
        if key != "dns" {
            call.del(&config);
        }
    }
}

#[test]
fn a_failure_after_the_address_was_given_gives_everything_back() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let mut config = scene.config(&BOTH);
    // A route through a gateway that is nowhere: the kernel refuses it, late.
    config["ipam"]["routes"] = json!([{ "dst": "192.0.2.0/24", "gw": "172.16.0.1" }]);
    let reply = scene.call("c", &pod).run("ADD", &config);
    assert!(reply.error_text().contains("192.0.2.0/24"), "{reply:?}");
    scene.expect_clean("a refused route");
    assert!(pod.link_names().is_empty());
}

// 12
#[test]
fn gc_takes_this_networks_forgotten_pods_and_no_others() {
    let scene = Scene::new();
    let pods = [Namespace::new(), Namespace::new(), Namespace::new()];
    let mut config = scene.config(&BOTH);
    scene.call("kept", &pods[0]).add(&config);
    scene.call("forgotten", &pods[1]).add(&config);
    let mut other = scene.config(&["10.9.0.0/24"]);
    other["name"] = json!("other");
    scene.call("other", &pods[2]).add(&other);
    assert_eq!(scene.call("", &pods[0]).run("GC", &config).error_code(), 7);
    assert_eq!(scene.host.link_names().len(), 3);
    config["cni.dev/valid-attachments"] = json!([{ "containerID": "kept", "ifname": "eth0" }]);
    scene.call("", &pods[0]).run("GC", &config).expect_success("GC");
    assert_eq!(scene.host.link_names().len(), 2);
    assert_eq!(scene.reserved().len(), 2);
    assert_eq!(scene.elements().len(), 3);
    assert!(pods[0].pings("10.1.2.1") && pods[2].pings("10.9.0.1") && pods[1].link_names().is_empty());
}

#[test]
fn status_tells_when_no_address_is_left_and_changes_nothing() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let config = scene.config(&["10.1.2.0/30"]);
    let call = scene.call("c", &pod);
    call.run("STATUS", &config).expect_success("STATUS");
    scene.expect_clean("STATUS");
    call.add(&config);
    assert_eq!(call.run("STATUS", &config).error_code(), 50);
    let mut without = config;
    without["ipam"] = json!({});
    assert_eq!(call.run("STATUS", &without).error_code(), 50);
}

#[test]
fn thirty_pods_at_once_are_all_wired() {
    let scene = Scene::new();
    let pods: Vec<Namespace> = (0..30).map(|_| Namespace::new()).collect();
    let names: Vec<String> = (0..30).map(|number| format!("c{number}")).collect();
    let config = scene.config(&BOTH);
    let all = |command: &str| {
        let started: Vec<std::process::Child> = std::iter::zip(&pods, &names)
            .map(|(pod, name)| start(&scene, name, pod, command, &config))
            .collect();
        for child in started {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stdout));
        }
    };
    all("ADD");
    assert_eq!(scene.reserved().len(), 60);
    assert!(pods.iter().all(|pod| pod.pings("10.1.2.1")));
    all("DEL");
    scene.expect_clean("thirty DELs");
}

fn start(scene: &Scene, name: &str, pod: &Namespace, command: &str, config: &Value) -> std::process::Child {
    let mut process = scene.call(name, pod).command(command);
    process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = process.spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), config.to_string().as_bytes()).unwrap();
    child
}

/// Kills `command` at each of its steps in turn; after each, `mend` has to leave nothing.
fn kill_at_every_step(command: &str, mend: impl Fn(&Scene, &Namespace, &Value)) {
    if !strace_works() {
        return not_run("strace cannot trace here");
    }
    let scene = Scene::new();
    let config = scene.config(&BOTH);
    let steps = every_step(|step| {
        let pod = Namespace::new();
        let call = scene.call("c", &pod);
        if command == "DEL" {
            call.add(&config);
        }
        let outcome = call.disturbed(command, &config, Disturbance::Kill, step);
        mend(&scene, &pod, &config);
        scene.expect_clean(&format!("{command} killed at {step:?}"));
        assert!(pod.link_names().is_empty(), "{command} killed at {step:?}");
        assert!(outcome.reached || outcome.reply.exit == Some(0), "{outcome:?}");
        outcome.reached
    });
    assert!(steps > 30, "only {steps} steps: strace killed nothing");
    let next = Namespace::new();
    scene.call("next", &next).add(&config);
}

#[test]
fn an_add_killed_at_any_step_is_cleaned_by_del() {
    kill_at_every_step("ADD", |scene, pod, config| scene.call("c", pod).del(config));
}

#[test]
fn an_add_killed_at_any_step_is_cleaned_by_gc() {
    kill_at_every_step("ADD", |scene, pod, config| {
        let mut config = config.clone();
        config["cni.dev/valid-attachments"] = json!([]);
        scene.call("", pod).run("GC", &config).expect_success("GC");
    });
}

#[test]
fn a_del_killed_at_any_step_is_finished_by_the_next() {
    kill_at_every_step("DEL", |scene, pod, config| scene.call("c", pod).del(config));
}

// 28, at every place where something can fail
#[test]
fn an_add_that_fails_at_any_step_leaves_nothing() {
    if !strace_works() {
        return not_run("strace cannot trace here");
    }
    let scene = Scene::new();
    let config = scene.config(&BOTH);
    let mut failed = 0;
    every_step(|step| {
        let pod = Namespace::new();
        let call = scene.call("c", &pod);
        let outcome = call.disturbed("ADD", &config, Disturbance::Fail, step);
        if outcome.reply.exit == Some(0) || (step.name == "setns" && outcome.reply.stdout.is_empty()) {
            // A step that is allowed to fail, or none was disturbed; or the way home from the pod's namespace
            // was barred, where a process must not go on, not even to undo.
            call.del(&config);
        } else {
            failed += 1;
        }
        let what = format!("ADD failed at {step:?}: {outcome:?}");
        scene.expect_clean(&what);
        assert!(pod.link_names().is_empty(), "{what}");
        outcome.reached
    });
    assert!(failed > 20, "only {failed} steps can fail: strace disturbed nothing");
}
