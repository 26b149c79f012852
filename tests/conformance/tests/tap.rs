//! tap: an interface whose far end is a program. Behaviour 42, and 9, 10, 28 and 29 for it. Debian's reference has no
//! tap; newer ones (`FAIRLEAD_REFERENCE`) are asked the same, with the tool `ip` that they need.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use conformance::{Stage, Subject, subjects};
use harness::{Call, Namespace, not_run};
use serde_json::{Value, json};

/// Those of the subjects that have the plugin; none where the kernel has no TAP devices.
fn with_tap() -> Vec<Subject> {
    if !Path::new("/dev/net/tun").exists() {
        not_run("this kernel has no TAP devices");
        return Vec::new();
    }
    subjects().into_iter().filter(|subject| subject.bin.join("tap").exists()).collect()
}

fn config(stage: &Stage, more: Value) -> Value {
    let mut config = stage.config("tap", "1.0.0", &more);
    if more.get("ipam").is_none() {
        config["ipam"] = stage.ipam(&["10.1.2.0/24"]);
    }
    config
}

fn link(namespace: &Namespace, name: &str) -> Value {
    namespace.ip_json(&format!("link show {name}"))[0].clone()
}

// 42
#[test]
fn queues_owner_group_mtu_and_mac_are_honoured() {
    for subject in with_tap() {
        for (more, multi_queue) in [
            (json!({}), false),
            (json!({ "multiQueue": true }), true),
            (json!({ "multiQueue": true, "owner": 40001, "group": 40002 }), true),
            (json!({ "owner": 40001 }), false),
            (json!({ "group": 40002, "mac": "c2:11:22:33:44:55", "mtu": 1400 }), false),
        ] {
            let stage = Stage::new();
            let config = config(&stage, more.clone());
            let call = stage.call(&subject, "tap", "c1");
            let result = call.add(&config);
            let (shown, name) = (link(&stage.pod, "eth0"), subject.name);
            let data = &shown["linkinfo"]["info_data"];
            assert_eq!(shown["linkinfo"]["info_kind"], "tun", "{name}: {more}");
            assert_eq!((&data["type"], &data["persist"]), (&json!("tap"), &json!(true)), "{name}: {more}");
            assert_eq!(data["multi_queue"], multi_queue, "{name}: {more}");
            for (ours, theirs) in [("owner", "user"), ("group", "group")] {
                assert_eq!(data.get(theirs), more.get(ours), "{name}: {more}: {data}");
            }
            assert_eq!(shown["mtu"], *more.get("mtu").unwrap_or(&json!(1500)), "{name}: {more}");
            if let Some(mac) = more.get("mac") {
                assert_eq!(shown["address"], *mac, "{name}: {more}");
            }
            assert!(shown["flags"].as_array().unwrap().contains(&json!("UP")), "{name}: {more}");
            assert_eq!(result["interfaces"][0]["name"], "eth0", "{name}");
            assert_eq!(result["interfaces"][0]["mac"], shown["address"], "{name}");
            assert_eq!(result["interfaces"][0]["sandbox"], json!(stage.pod.path()), "{name}");
            assert_eq!(result["ips"][0]["interface"], 0, "{name}");
            assert!(stage.pod.ip("-o address show dev eth0").contains("10.1.2.2/24"), "{name}");
            call.del(&config);
            assert_eq!((stage.pod.link_names(), stage.reserved()), (vec![], vec![]), "{name}");
        }
    }
}

// 42
#[test]
fn the_runtimes_mac_beats_the_arguments_and_these_the_configuration() {
    for subject in with_tap() {
        let stage = Stage::new();
        let mut config = config(&stage, json!({ "mac": "c2:11:22:33:44:01" }));
        let mut call = stage.call(&subject, "tap", "c1");
        let mac = |call: &Call<'_>, config: &Value| {
            call.add(config);
            let mac = link(&stage.pod, "eth0")["address"].clone();
            call.del(config);
            mac
        };
        assert_eq!(mac(&call, &config), "c2:11:22:33:44:01", "{}", subject.name);
        call.args = "IgnoreUnknown=1;MAC=c2:11:22:33:44:02";
        assert_eq!(mac(&call, &config), "c2:11:22:33:44:02", "{}", subject.name);
        config["runtimeConfig"] = json!({ "mac": "c2:11:22:33:44:03" });
        assert_eq!(mac(&call, &config), "c2:11:22:33:44:03", "{}", subject.name);
    }
}

// 42
#[test]
fn the_mac_counts_with_owner_and_group_too_only_here() {
    for subject in with_tap() {
        let stage = Stage::new();
        let mac = "c2:11:22:33:44:55";
        let config = config(&stage, json!({ "mac": mac, "owner": 40001, "group": 40002 }));
        stage.call(&subject, "tap", "c1").add(&config);
        let honoured = link(&stage.pod, "eth0")["address"] == mac;
        assert_eq!(honoured, !subject.is_reference(), "{}", subject.name);
    }
}

// 42
#[test]
fn a_bridge_of_the_pod_gets_it_as_a_port() {
    for subject in with_tap() {
        let stage = Stage::new();
        let config = config(&stage, json!({ "bridge": "br0", "ipam": {} }));
        let call = stage.call(&subject, "tap", "c1");
        let reply = call.run("ADD", &config);
        assert!(reply.error_text().contains("br0"), "{}: {reply:?}", subject.name);
        let left = stage.pod.link_names();
        assert_eq!(left.is_empty(), !subject.is_reference(), "{}: {left:?}", subject.name);
        call.del(&config);
        stage.pod.ip("link add br0 type bridge");
        call.add(&config);
        assert_eq!(link(&stage.pod, "eth0")["master"], "br0", "{}", subject.name);
        call.del(&config);
        assert_eq!(stage.pod.link_names(), ["br0"], "{}", subject.name);
    }
}

// 9
#[test]
fn del_succeeds_whatever_is_missing() {
    for subject in with_tap() {
        let stage = Stage::new();
        let config = config(&stage, json!({}));
        let call = stage.call(&subject, "tap", "c1");
        call.del(&config);
        call.add(&config);
        for netns in ["", "/var/run/netns/there-is-no-such-name"] {
            Call { netns: netns.into(), ..call.clone() }.del(&config);
        }
        assert_eq!(stage.reserved(), [""; 0], "{}", subject.name);
        call.del(&config);
        call.del(&config);
        assert_eq!(stage.pod.link_names(), [""; 0], "{}", subject.name);
    }
}

// 10
#[test]
fn an_interface_that_exists_is_left_alone() {
    for subject in with_tap() {
        let stage = Stage::new();
        stage.pod.ip("tuntap add mode tap name eth0");
        let before = link(&stage.pod, "eth0")["address"].clone();
        let reply = stage.call(&subject, "tap", "c1").run("ADD", &config(&stage, json!({})));
        assert_eq!(link(&stage.pod, "eth0")["address"], before, "{}", subject.name);
        // The reference does not notice that it could not rename its own, and takes the one that was there.
        assert_eq!(reply.exit == Some(0), subject.is_reference(), "{}: {reply:?}", subject.name);
        if !subject.is_reference() {
            assert_eq!((stage.pod.link_names().len(), stage.reserved().len()), (1, 0));
        }
    }
}

/// Something done to a pod's network behind the plugin's back.
type Break = fn(&Stage);

// 29
#[test]
fn check_is_content_after_add_and_finds_what_is_broken() {
    let breaks: [(&str, bool, Break); 4] = [
        ("the address is gone", true, |stage| drop(stage.pod.ip("address flush dev eth0 scope global"))),
        ("the device is gone", true, |stage| drop(stage.pod.ip("link del eth0"))),
        ("the device is another", false, |stage| {
            stage.pod.ip("link del eth0");
            stage.pod.ip("link add eth0 type veth peer name other");
            stage.pod.ip("link set eth0 up");
            stage.pod.ip("link set other up");
            stage.pod.ip("address add 10.1.2.2/24 dev eth0");
        }),
        ("the mac is another", false, |stage| drop(stage.pod.ip("link set eth0 address 02:00:00:00:00:01"))),
    ];
    for subject in with_tap() {
        for (what, seen_by_reference, broken) in breaks {
            let stage = Stage::new();
            let mut config = config(&stage, json!({ "multiQueue": true }));
            let call = stage.call(&subject, "tap", "c1");
            config["prevResult"] = call.add(&config);
            call.run("CHECK", &config).expect_success("CHECK after ADD");
            broken(&stage);
            let content = call.run("CHECK", &config).exit == Some(0);
            assert_eq!(content, subject.is_reference() && !seen_by_reference, "{}: {what}", subject.name);
        }
    }
}
