//! The plugin process and its contract (CNI specification 1.1.0, sections 2 and 4): environment, versions,
//! validation, error codes, results of every version. Behaviours 1 to 12.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use conformance::{Stage, Subject, VERSIONS, ours, subjects};
use harness::{Call, Reply, run};
use serde_json::{Value, json};

const PLUGINS: [&str; 4] = ["bridge", "host-local", "loopback", "ptp"];

/// A call whose environment is cut down by `cut`.
fn without(call: &Call<'_>, verb: &str, cut: &[&str]) -> Reply {
    let mut process = call.command(verb);
    for name in cut {
        process.env_remove(name);
    }
    Reply::from(run(&mut process))
}

#[test]
fn without_any_environment_a_plugin_says_what_it_is_on_standard_error() {
    for subject in subjects() {
        let stage = Stage::new();
        for plugin in PLUGINS {
            let call = stage.call(&subject, plugin, "c1");
            let reply = without(&call, "ADD", &["CNI_COMMAND"]);
            assert_eq!(reply.exit, Some(0), "{} {plugin}: {reply:?}", subject.name);
            assert_eq!(reply.stdout, "", "{} {plugin}", subject.name);
            assert!(reply.stderr.contains(plugin), "{} {plugin}: {reply:?}", subject.name);
            assert!(reply.stderr.contains("0.4.0"), "{} {plugin}: {reply:?}", subject.name);
        }
    }
}

#[test]
fn version_lists_the_supported_versions_without_any_input() {
    for subject in subjects() {
        let stage = Stage::new();
        for plugin in PLUGINS {
            let reply = stage.call(&subject, plugin, "c1").run_raw("VERSION", b"");
            let versions = reply.expect_success("VERSION")["supportedVersions"].clone();
            assert_eq!(versions, json!(subject.versions()), "{} {plugin}", subject.name);
        }
    }
}

#[test]
fn all_missing_variables_are_named_in_one_error_with_code_4() {
    for subject in subjects() {
        let stage = Stage::new();
        let call = stage.call(&subject, "loopback", "c1");
        let missing = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"];
        let reply = without(&call, "ADD", &missing);
        assert_eq!(reply.error_code(), 4, "{}", subject.name);
        for name in missing {
            assert!(reply.error_text().contains(name), "{}: {reply:?}", subject.name);
        }
    }
}

#[test]
fn malformed_calls_get_the_code_of_the_table() {
    for subject in subjects() {
        let stage = Stage::new();
        let good = stage.config("loopback", "1.0.0", &json!({})).to_string();
        let call = stage.call(&subject, "loopback", "c1");
        assert_eq!(call.run_raw("FOO", good.as_bytes()).error_code(), 4, "{}", subject.name);
        for (stdin, code) in [
            ("{", 6),
            (r#"{"cniVersion":"1.0.0","type":"loopback"}"#, 7),
            (r#"{"cniVersion":"1.0.0","type":"loopback","name":"a/b"}"#, 7),
            (r#"{"cniVersion":"9.9.9","type":"loopback","name":"test"}"#, 1),
        ] {
            assert_eq!(call.run_raw("ADD", stdin.as_bytes()).error_code(), code, "{}: {stdin}", subject.name);
        }
        for container in ["_x", "a b", "-x", "a/b"] {
            let call = stage.call(&subject, "loopback", container);
            assert_eq!(call.run_raw("ADD", good.as_bytes()).error_code(), 4, "{}: {container}", subject.name);
        }
    }
}

#[test]
fn an_error_object_carries_its_version_and_the_supported_ones() {
    let subject = ours();
    let stage = Stage::new();
    let call = stage.call(&subject, "loopback", "c1");
    let reply = call.run_raw("ADD", br#"{"cniVersion":"9.9.9","type":"loopback","name":"test"}"#);
    assert!(reply.json()["cniVersion"].is_string(), "{reply:?}");
    for version in VERSIONS {
        assert!(reply.error_text().contains(version), "{reply:?}");
    }
}

#[test]
fn a_bad_interface_name_is_code_4_and_changes_nothing() {
    for subject in subjects() {
        let stage = Stage::new();
        let config = stage.config("bridge", "1.0.0", &json!({}));
        for ifname in ["sixteen-chars-xx", ".", "..", "a/b", "a:b", "a b"] {
            let mut call = stage.call(&subject, "bridge", "c1");
            call.ifname = ifname;
            assert_eq!(call.run("ADD", &config).error_code(), 4, "{}: {ifname}", subject.name);
        }
        assert_eq!(stage.pod.link_names(), [""; 0], "{}", subject.name);
        assert_eq!(stage.host.link_names(), [""; 0], "{}", subject.name);
    }
}

#[test]
fn check_gc_and_status_need_a_configuration_new_enough() {
    let subject = ours();
    let stage = Stage::new();
    let call = stage.call(&subject, "bridge", "c1");
    assert_eq!(call.run("CHECK", &stage.config("bridge", "0.3.1", &json!({}))).error_code(), 1);
    for verb in ["GC", "STATUS"] {
        assert_eq!(call.run(verb, &stage.config("bridge", "1.0.0", &json!({}))).error_code(), 1, "{verb}");
    }
}

#[test]
fn the_hosts_own_namespace_is_refused_and_stays_as_it_was() {
    let subject = ours();
    let stage = Stage::new();
    let mut call = stage.call(&subject, "loopback", "c1");
    call.netns = stage.host.path();
    let config = stage.config("loopback", "1.0.0", &json!({}));
    for verb in ["ADD", "DEL"] {
        assert_eq!(call.run(verb, &config).error_code(), 8, "{verb}");
    }
    assert!(is_up(&stage.host.ip_json("link show lo")), "the host's lo is up still");
    let mut process = call.command("ADD");
    process.env("CNI_NETNS_OVERRIDE", "TRUE");
    let reply = Reply::from(run_with_stdin(&mut process, &config.to_string()));
    reply.expect_success("ADD with CNI_NETNS_OVERRIDE");
}

#[test]
fn the_reference_downs_the_hosts_lo_where_ours_refuses() {
    let Some(reference) = subjects().into_iter().find(Subject::is_reference) else { return };
    let stage = Stage::new();
    let mut call = stage.call(&reference, "loopback", "c1");
    call.netns = stage.host.path();
    call.run("DEL", &stage.config("loopback", "1.0.0", &json!({})));
    assert!(!is_up(&stage.host.ip_json("link show lo")), "if this fails, docs/conformance.md is out of date");
}

#[test]
fn a_result_has_the_shape_of_its_version() {
    for subject in subjects() {
        for version in subject.versions() {
            let stage = Stage::new();
            let more = json!({ "ipam": stage.ipam(&["10.1.2.0/24", "2001:db8:42::/64"]), "isGateway": true });
            let config = stage.config("bridge", version, &more);
            let result = stage.call(&subject, "bridge", "c1").add(&config);
            assert_eq!(result["cniVersion"], *version, "{}", subject.name);
            shape(&result, version);
            // Debian's reference is built on an older library, which writes `dns: {}` in 1.0.0 too.
            let dns = *version < "1.0.0" || subject.is_reference();
            assert_eq!(result["dns"].is_object(), dns, "{}: {result}", subject.name);
            stage.call(&subject, "bridge", "c1").del(&config);
        }
    }
}

/// The table of result fields by version (CNI specification, sections on the result of each version).
fn shape(result: &Value, version: &str) {
    let old = version < "0.3.0";
    assert_eq!(result["ip4"].is_object(), old, "{version}: {result}");
    assert_eq!(result["ips"].is_array(), !old, "{version}: {result}");
    assert_eq!(result["interfaces"].is_array(), !old, "{version}: {result}");
    if old {
        assert_eq!(result["ip4"]["ip"], "10.1.2.2/24");
        assert_eq!(result["ip6"]["ip"], "2001:db8:42::2/64");
        return;
    }
    let first = &result["ips"][0];
    assert_eq!(first["address"], "10.1.2.2/24", "{version}: {result}");
    assert_eq!(first["interface"], 2, "{version}: {result}");
    let with_version = version < "1.0.0";
    assert_eq!(first["version"] == "4", with_version, "{version}: {result}");
    assert_eq!(result["ips"][1]["version"] == "6", with_version, "{version}: {result}");
    assert!(result["interfaces"][0].get("sandbox").is_none(), "a host interface has no sandbox: {result}");
}

#[test]
fn del_succeeds_whatever_is_missing_and_says_nothing() {
    for subject in subjects() {
        for plugin in PLUGINS {
            let stage = Stage::new();
            let more = json!({ "ipam": stage.ipam(&["10.1.2.0/24"]) });
            let config = stage.config(plugin, "1.0.0", &more);
            let call = stage.call(&subject, plugin, "c1");
            call.del(&config);
            call.add(&config);
            call.del(&config);
            call.del(&config);
            let mut gone = call.clone();
            for netns in ["", "/var/run/netns/there-is-none"] {
                gone.netns = netns.into();
                gone.del(&config);
            }
            assert_eq!(stage.reserved(), [""; 0], "{} {plugin}", subject.name);
        }
    }
}

#[test]
fn an_interface_that_exists_is_left_alone_and_no_address_stays_reserved() {
    for subject in subjects() {
        let stage = Stage::new();
        stage.pod.ip("link add eth0 type bridge");
        let before = stage.pod.ip_json("link show eth0");
        let config = stage.config("bridge", "1.0.0", &json!({ "ipam": stage.ipam(&["10.1.2.0/24"]) }));
        let reply = stage.call(&subject, "bridge", "c1").run("ADD", &config);
        assert_ne!(reply.exit, Some(0), "{}: {reply:?}", subject.name);
        assert_eq!(stage.pod.ip_json("link show eth0"), before, "{}", subject.name);
        assert_eq!(stage.reserved(), [""; 0], "{}", subject.name);
    }
}

#[test]
fn gc_without_a_list_is_an_error_and_with_an_empty_one_removes_this_network_only() {
    let subject = ours();
    let stage = Stage::new();
    let mut config = stage.config("bridge", "1.1.0", &json!({ "ipam": stage.ipam(&["10.1.2.0/24"]) }));
    let mut other = config.clone();
    other["name"] = json!("other");
    stage.call(&subject, "bridge", "c1").add(&config);
    let mut second = stage.call(&subject, "bridge", "c2");
    second.ifname = "eth1";
    second.add(&other);
    let ports = |stage: &Stage| stage.host.link_names().len();
    assert_eq!(ports(&stage), 3);
    let call = stage.call(&subject, "bridge", "");
    assert_eq!(call.run("GC", &config).error_code(), 7);
    assert_eq!((ports(&stage), stage.reserved().len()), (3, 1), "a missing list removes nothing");
    config["cni.dev/valid-attachments"] = json!([]);
    call.run("GC", &config).expect_success("GC");
    assert_eq!((ports(&stage), stage.reserved().len()), (2, 0), "the other network's port stays");
    assert_eq!(stage.pod.link_names(), ["eth1"]);
}

fn is_up(links: &Value) -> bool {
    links[0]["flags"].as_array().is_some_and(|flags| flags.contains(&json!("UP")))
}

fn run_with_stdin(process: &mut std::process::Command, stdin: &str) -> std::process::Output {
    use std::{io::Write, process::Stdio};
    process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = process.spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}
