//! `loopback` in namespaces.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test may fail by panicking, and starts the tools it asserts with"
)]

use std::path::PathBuf;

use harness::{Call, Namespace, plugin_directory};
use serde_json::{Value, json};

fn config(version: &str) -> Value {
    json!({ "cniVersion": version, "name": "lo", "type": "loopback" })
}

/// `lo` as `ip` sees it: whether it is up, and its addresses.
fn lo(namespace: &Namespace) -> (bool, Vec<String>) {
    let output = namespace.command("ip").args(["-j", "address", "show", "lo"]).output().unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    let up = shown[0]["flags"].as_array().unwrap().contains(&json!("UP"));
    let addresses = shown[0]["addr_info"].as_array().unwrap().iter();
    (up, addresses.map(|one| format!("{}/{}", one["local"].as_str().unwrap(), one["prefixlen"])).collect())
}

#[test]
fn add_sets_lo_up_and_reports_both_families_check_agrees_and_del_sets_it_down() {
    let bin = plugin_directory(&["loopback"]);
    let (host, pod) = (Namespace::new(), Namespace::new());
    let call = Call::new(&host, bin.path(), "loopback", "pod", &pod);
    assert!(!lo(&pod).0);
    let result = call.add(&config("1.0.0"));
    assert_eq!(lo(&pod), (true, vec!["127.0.0.1/8".into(), "::1/128".into()]));
    let sandbox = pod.path();
    assert_eq!(
        result,
        json!({
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "lo", "mac": "00:00:00:00:00:00", "sandbox": sandbox }],
            "ips": [{ "interface": 0, "address": "127.0.0.1/8" }, { "interface": 0, "address": "::1/128" }]
        })
    );
    let mut checked = config("1.0.0");
    checked["prevResult"] = result;
    call.run("CHECK", &checked).expect_success("CHECK");
    call.del(&config("1.0.0"));
    assert!(!lo(&pod).0);
    let reply = call.run("CHECK", &checked);
    assert!(reply.error_text().contains("loopback interface is down"), "{reply:?}");
    call.del(&config("1.0.0"));
}

#[test]
fn a_result_so_far_is_passed_on() {
    let bin = plugin_directory(&["loopback"]);
    let (host, pod) = (Namespace::new(), Namespace::new());
    let mut chained = config("1.0.0");
    chained["prevResult"] = json!({
        "cniVersion": "1.0.0", "interfaces": [{ "name": "eth0" }], "ips": [{ "interface": 0, "address": "10.1.2.3/24" }]
    });
    let result = Call::new(&host, bin.path(), "loopback", "pod", &pod).add(&chained);
    assert_eq!(result["ips"], json!([{ "interface": 0, "address": "10.1.2.3/24" }]));
    assert!(lo(&pod).0);
}

#[test]
fn an_address_that_others_can_reach_is_refused_and_lo_left_alone() {
    let bin = plugin_directory(&["loopback"]);
    let (host, pod) = (Namespace::new(), Namespace::new());
    let added = pod.command("ip").args(["address", "add", "10.0.0.1/24", "dev", "lo"]).status().unwrap();
    assert!(added.success());
    let reply = Call::new(&host, bin.path(), "loopback", "pod", &pod).run("ADD", &config("1.0.0"));
    let text = reply.error_text();
    assert!(text.contains(r#"loopback interface found with non-loopback address "10.0.0.1/24""#), "{text}");
    assert!(!lo(&pod).0);
}

#[test]
fn del_succeeds_without_a_namespace_and_status_and_gc_always() {
    let bin = plugin_directory(&["loopback"]);
    let (host, pod) = (Namespace::new(), Namespace::new());
    let mut call = Call::new(&host, bin.path(), "loopback", "pod", &pod);
    let plain = tempfile::NamedTempFile::new().unwrap();
    for path in [PathBuf::new(), "/no/such/namespace".into(), plain.path().to_owned()] {
        call.netns = path;
        call.del(&config("1.0.0"));
    }
    call.run("STATUS", &config("1.1.0")).expect_success("STATUS");
    let mut listed = config("1.1.0");
    listed["cni.dev/valid-attachments"] = json!([]);
    call.run("GC", &listed).expect_success("GC");
    call.netns = "/no/such/namespace".into();
    assert_eq!(call.run("ADD", &config("1.0.0")).error_code(), 8);
    call.netns = plain.path().to_owned();
    assert_eq!(call.run("ADD", &config("1.0.0")).error_code(), 8);
}

#[test]
fn the_plugins_own_namespace_is_never_touched() {
    let bin = plugin_directory(&["loopback"]);
    let host = Namespace::new();
    assert!(host.command("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    let call = Call::new(&host, bin.path(), "loopback", "pod", &host);
    for command in ["ADD", "DEL"] {
        assert_eq!(call.run(command, &config("1.0.0")).error_code(), 8, "{command}");
        assert!(lo(&host).0, "{command}");
    }
}

#[test]
fn old_versions_get_the_result_in_their_own_form() {
    let bin = plugin_directory(&["loopback"]);
    let result = |version| {
        let (host, pod) = (Namespace::new(), Namespace::new());
        Call::new(&host, bin.path(), "loopback", "pod", &pod).add(&config(version))
    };
    assert_eq!(result("0.2.0")["ip4"], json!({ "ip": "127.0.0.1/8" }));
    assert_eq!(result("0.2.0")["ip6"], json!({ "ip": "::1/128" }));
    assert_eq!(result("0.4.0")["ips"][1], json!({ "version": "6", "interface": 0, "address": "::1/128" }));
}
