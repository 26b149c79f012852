//! `sbr` beyond what the reference can be asked: whether packets really take the way of their source, several at
//! once in one pod, what a failed ADD leaves, and a kill or a failure at every step.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a failure here is a failure of the test, and tools are what it asserts with"
)]

use std::process::Stdio;

use harness::{Call, Disturbance, Namespace, Reply, eventually, every_step, not_run, strace_works};
use serde_json::{Value, json};
use tempfile::TempDir;

struct Scene {
    host: Namespace,
    bin: TempDir,
}

impl Scene {
    fn new() -> Self {
        Self { host: Namespace::with_loopback(), bin: harness::plugin_directory(&["sbr"]) }
    }

    fn call<'a>(&'a self, pod: &Namespace, ifname: &'a str) -> Call<'a> {
        Call { ifname, ..Call::new(&self.host, self.bin.path(), "sbr", "c", pod) }
    }
}

fn config(ifname: &str, addresses: &[(&str, &str)], more: &Value) -> Value {
    let ips: Vec<Value> = addresses
        .iter()
        .map(|(address, gateway)| json!({ "address": address, "gateway": gateway, "interface": 0 }))
        .collect();
    let mut config = json!({
        "cniVersion": "1.1.0", "name": "test", "type": "sbr",
        "prevResult": { "interfaces": [{ "name": ifname, "sandbox": "/run/ns" }], "ips": ips },
    });
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

const ADDRESSES: [(&str, &str); 2] =
    [("192.168.1.209/24", "192.168.1.1"), ("2001:db8::209/64", "2001:db8::1")];

/// A pod whose `net1` has an address of each family, default routes and one route with two ways.
fn pod() -> Namespace {
    let pod = Namespace::with_loopback();
    pod.ip("link add net1 type veth peer name far1");
    pod.ip("link set net1 up");
    pod.ip("link set far1 up");
    for (address, gateway) in ADDRESSES {
        pod.ip(&format!("addr add {address} dev net1 nodad"));
        pod.ip(&format!("route add default via {gateway} dev net1"));
    }
    pod.ip(
        "route add 10.9.0.0/16 mtu 1300 nexthop via 192.168.1.7 dev net1 nexthop via 192.168.1.8 dev net1",
    );
    eventually("the IPv6 address is ready", || {
        pod.ip("-6 route show table local").contains("local 2001:db8::209").then_some(())
    });
    pod
}

/// Every rule and route of a pod but the volatile parts: equal before and after what shall have changed nothing.
fn state(pod: &Namespace) -> String {
    let mut all = Vec::new();
    for family in ["-4", "-6"] {
        for what in ["rule show", "route show table all"] {
            let text = pod.ip(&format!("{family} {what}"));
            // A route that was away has no carrier mark for a moment.
            let mut lines: Vec<String> = text.lines().map(|line| line.replace(" linkdown", "")).collect();
            // The kernel makes link-local addresses and what belongs to them in its own time.
            lines.retain(|line| !line.starts_with("local fe80:") && !line.starts_with("anycast"));
            lines.sort();
            all.extend(lines);
        }
    }
    all.join("\n")
}

fn rules(pod: &Namespace) -> usize {
    let count = |family: &str| {
        let rules = pod.ip_json(&format!("{family} rule show"));
        rules.as_array().unwrap().iter().filter(|rule| rule["src"] != "all").count()
    };
    count("-4") + count("-6")
}

#[test]
fn what_comes_in_by_an_interface_is_answered_through_it() {
    let scene = Scene::new();
    let pod = Namespace::with_loopback();
    let (left, right) = (Namespace::with_loopback(), Namespace::with_loopback());
    for (name, router, own, gateway) in
        [("eth0", &left, "10.1.0.2/24", "10.1.0.1"), ("net1", &right, "10.2.0.2/24", "10.2.0.1")]
    {
        let holder = router.path().display().to_string();
        let holder = holder.trim_start_matches("/proc/").trim_end_matches("/ns/net").to_owned();
        pod.ip(&format!("link add {name} type veth peer name lan netns {holder}"));
        pod.ip(&format!("addr add {own} dev {name}"));
        pod.ip(&format!("link set {name} up"));
        router.ip(&format!("addr add {gateway}/24 dev lan"));
        router.ip("link set lan up");
        // Far away, behind this router; the other one has never heard of it.
        router.ip("addr add 198.51.100.1/32 dev lo");
    }
    pod.ip("route add default via 10.1.0.1");
    right.ip("addr add 203.0.113.7/32 dev lo");
    let ping = |router: &Namespace, from: &str| {
        let mut ping = router.command("ping");
        harness::run(ping.args(["-n", "-q", "-c", "1", "-W", "1", "-I", from, "10.2.0.2"])).status.success()
    };
    assert!(!ping(&right, "203.0.113.7"), "the answer goes to the left router");
    let config = config("net1", &[("10.2.0.2/24", "10.2.0.1")], &json!({}));
    scene.call(&pod, "net1").add(&config);
    assert!(ping(&right, "203.0.113.7"), "the answer goes back where it came from");
    assert!(left.pings("10.1.0.2") && right.pings("10.2.0.2"));
    scene.call(&pod, "net1").run("CHECK", &config).expect_success("CHECK");
    scene.call(&pod, "net1").del(&config);
    assert_eq!(rules(&pod), 0);
}

#[test]
fn routes_move_whole() {
    let scene = Scene::new();
    let pod = pod();
    let config = config("net1", &ADDRESSES, &json!({}));
    scene.call(&pod, "net1").add(&config);
    let moved = pod.ip_json("-4 route show table 100 10.9.0.0/16");
    assert_eq!(moved[0]["nexthops"].as_array().unwrap().len(), 2, "{moved}");
    assert!(pod.ip("-4 route show table 100").contains("mtu 1300"));
    assert!(pod.ip("-6 route show dev net1").contains("fe80::/64"), "link-local routes stay");
    assert!(pod.ip("-6 route show table 101").contains("fe80::/64"), "and are in the table too");
    scene.call(&pod, "net1").del(&config);
    for table in ["100", "101"] {
        let shown = harness::run(pod.command("ip").args(["route", "show", "table", table]));
        assert!(shown.stdout.is_empty(), "table {table}: {shown:?}");
    }
}

#[test]
fn many_at_once_in_one_pod_get_a_table_each() {
    let scene = Scene::new();
    let pod = Namespace::with_loopback();
    let numbers: Vec<u32> = (1..=16).collect();
    let (names, configs): (Vec<String>, Vec<Value>) = numbers
        .iter()
        .map(|number| {
            let name = format!("net{number}");
            pod.ip(&format!("link add {name} type veth peer name far{number}"));
            pod.ip(&format!("addr add 10.0.{number}.2/24 dev {name}"));
            pod.ip(&format!("link set {name} up"));
            let (address, gateway) = (format!("10.0.{number}.2/24"), format!("10.0.{number}.1"));
            let config = config(&name, &[(&address, &gateway)], &json!({}));
            (name, config)
        })
        .unzip();
    let at_once = |command: &str| {
        let start = |(name, config): (&String, &Value)| {
            let mut process = scene.call(&pod, name).command(command);
            let mut child = process.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
            std::io::Write::write_all(&mut child.stdin.take().unwrap(), config.to_string().as_bytes())
                .unwrap();
            child
        };
        let children: Vec<_> = names.iter().zip(&configs).map(start).collect();
        for child in children {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
    };
    at_once("ADD");
    let shown = pod.ip_json("-4 rule show");
    let of_pod = shown.as_array().unwrap().iter().filter(|rule| rule["src"] != "all");
    let mut tables: Vec<u64> = of_pod.map(|rule| rule["table"].as_str().unwrap().parse().unwrap()).collect();
    tables.sort_unstable();
    assert_eq!(tables, (100..116).collect::<Vec<u64>>());
    at_once("DEL");
    assert_eq!(rules(&pod), 0);
}

#[test]
fn an_add_that_the_kernel_refuses_changes_nothing() {
    let scene = Scene::new();
    let pod = pod();
    let before = state(&pod);
    // No subnet has this gateway.
    let bad = config("net1", &ADDRESSES, &json!({ "gateways": ["172.16.0.1"] }));
    let reply = scene.call(&pod, "net1").run("ADD", &bad);
    assert!(reply.error_text().contains("172.16.0.1"), "{reply:?}");
    assert_eq!(state(&pod), before);
    let reply = scene.call(&pod, "nosuch").run("ADD", &config("nosuch", &ADDRESSES, &json!({})));
    assert!(reply.error_text().contains("cannot find network interface nosuch"), "{reply:?}");
    assert_eq!(state(&pod), before);
}

#[test]
fn status_reads_the_configuration_and_gc_wants_its_list() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let call = scene.call(&pod, "net1");
    call.run("STATUS", &config("net1", &ADDRESSES, &json!({}))).expect_success("STATUS");
    let bad = config("net1", &ADDRESSES, &json!({ "gateways": ["x"] }));
    assert_eq!(call.run("STATUS", &bad).error_code(), 50);
    assert_eq!(call.run("GC", &bad).error_code(), 7);
    let listed = config("net1", &ADDRESSES, &json!({ "cni.dev/valid-attachments": [] }));
    call.run("GC", &listed).expect_success("GC");
    // DEL needs nothing of the configuration.
    call.del(&config("net1", &ADDRESSES, &json!({ "gateways": 7, "table": "x", "prevResult": [] })));
}

/// Goes through the steps of `command`; `look` says what has to hold after a disturbed call.
fn at_every_step(command: &str, how: Disturbance, look: impl Fn(&Scene, &Namespace, &Value, &Reply, &str)) {
    if !strace_works() {
        return not_run("strace cannot trace here");
    }
    let scene = Scene::new();
    let config = config("net1", &ADDRESSES, &json!({}));
    let steps = every_step(|step| {
        let pod = pod();
        let before = state(&pod);
        let call = scene.call(&pod, "net1");
        if command == "DEL" {
            call.add(&config);
        }
        let outcome = call.disturbed(command, &config, how, step);
        look(&scene, &pod, &config, &outcome.reply, &before);
        outcome.reached
    });
    assert!(steps > 20, "only {steps} steps: strace disturbed nothing");
    // A lock whose removal was disturbed is for GC.
    let gc = self::config("net1", &ADDRESSES, &json!({ "cni.dev/valid-attachments": [] }));
    scene.call(&Namespace::new(), "net1").run("GC", &gc).expect_success("GC");
}

/// The pod as it is after a DEL: no rules, no tables, and an ADD that works.
fn expect_mended(scene: &Scene, pod: &Namespace, config: &Value) {
    scene.call(pod, "net1").del(config);
    assert_eq!(rules(pod), 0);
    let tables = pod.ip("route show table all");
    assert!(!tables.contains("table 10"), "{tables}");
}

#[test]
fn an_add_killed_at_any_step_is_cleaned_by_del() {
    at_every_step("ADD", Disturbance::Kill, |scene, pod, config, _, _| expect_mended(scene, pod, config));
}

#[test]
fn a_del_killed_at_any_step_is_finished_by_the_next() {
    at_every_step("DEL", Disturbance::Kill, |scene, pod, config, _, _| expect_mended(scene, pod, config));
}

#[test]
fn an_add_that_fails_at_any_step_changes_nothing() {
    at_every_step("ADD", Disturbance::Fail, |scene, pod, config, reply, before| {
        // Done; or the result could not be delivered, and DEL undid what there was, which does not move routes
        // back; or the way home from the pod's namespace was barred.
        let told = &reply.stdout;
        if reply.exit == Some(0) || told.is_empty() || told.contains("error writing to stdout") {
            return expect_mended(scene, pod, config);
        }
        assert_eq!(state(pod), before, "{reply:?}");
    });
}
