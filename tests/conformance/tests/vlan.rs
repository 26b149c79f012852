//! vlan: what it makes in the pod and what it says of it. Behaviours 37, 38 and 40, and 9, 10 and 29 for it. Where
//! this machine's kernel has no VLAN links, `cargo xtask vm-test` runs these.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use conformance::{Stage, Subject, kernel_has, recent_subjects, subjects};
use harness::Namespace;
use serde_json::{Value, json};

/// `None`, after saying so, on a kernel that cannot.
fn stage() -> Option<Stage> {
    if !kernel_has("vlan id 5") {
        return None;
    }
    let stage = Stage::new();
    stage.uplink();
    Some(stage)
}

fn config(stage: &Stage, more: &Value) -> Value {
    let mut config = stage.config("vlan", "1.0.0", &json!({ "master": "uplink", "vlanId": 33 }));
    config["ipam"] = stage.ipam(&["10.1.2.0/24"]);
    for (key, value) in more.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    config
}

fn shown(stage: &Stage) -> Value {
    stage.pod.ip_json("link show eth0")[0].clone()
}

fn refused(subject: &Subject, stage: &Stage, config: &Value, words: &str) {
    let call = stage.call(subject, "vlan", "c1");
    let reply = call.run("ADD", config);
    assert!(reply.error_text().contains(words), "{}: {reply:?}", subject.name);
    assert_eq!(stage.pod.link_names(), [""; 0], "{}", subject.name);
    assert_eq!(stage.reserved(), [""; 0], "{}", subject.name);
}

// 40
#[test]
fn the_link_has_the_identifier_on_the_master_and_carries_tagged_frames() {
    for subject in subjects() {
        let Some(stage) = stage() else { return };
        // The switch: a VLAN link of its own on the far end of the uplink.
        let switch = Namespace::with_loopback();
        stage.host.ip(&format!("link set far netns {}", switch.path().display()));
        switch.ip("link set far up");
        switch.ip("link add far.33 link far type vlan id 33");
        switch.ip("link set far.33 up");
        switch.ip("address add 10.1.2.1/24 dev far.33");
        let mut config = config(&stage, &json!({}));
        config["ipam"]["routes"] = json!([{ "dst": "0.0.0.0/0" }]);
        let result = stage.call(&subject, "vlan", "c1").add(&config);
        let name = subject.name;
        let link = shown(&stage);
        assert_eq!(link["linkinfo"]["info_kind"], "vlan", "{name}");
        assert_eq!(link["linkinfo"]["info_data"]["id"], 33, "{name}");
        assert_eq!(link["link_index"], stage.host.ip_json("link show uplink")[0]["ifindex"], "{name}");
        assert_eq!(result["interfaces"][0]["mac"], link["address"], "{name}");
        assert_eq!(
            (&result["interfaces"][0]["name"], &result["ips"][0]["interface"]),
            (&json!("eth0"), &json!(0))
        );
        assert!(stage.pod.pings("10.1.2.1"), "{name}");
        assert_eq!(stage.pod.ip_json("route show default")[0]["gateway"], "10.1.2.1", "{name}");
    }
}

// 40: the reference says "file exists" alone.
#[test]
fn a_second_pod_with_the_same_identifier_is_told_so() {
    for subject in subjects() {
        let Some(stage) = stage() else { return };
        let other = Namespace::new();
        let config = config(&stage, &json!({}));
        stage.call(&subject, "vlan", "c1").add(&config);
        let mut call = stage.call(&subject, "vlan", "c2");
        call.netns = other.path();
        let reply = call.run("ADD", &config);
        let words = if subject.is_reference() { "file exists" } else { "VLAN 33 on uplink is taken" };
        assert!(reply.error_text().contains(words), "{}: {reply:?}", subject.name);
        assert_eq!(other.link_names(), [""; 0], "{}", subject.name);
        assert_eq!(stage.reserved(), ["10.1.2.2"], "{}", subject.name);
        let mut elsewhere = config.clone();
        elsewhere["vlanId"] = json!(34);
        call.add(&elsewhere);
    }
}

// 40, 37
#[test]
fn wrong_identifiers_and_mtus_and_no_master_are_refused() {
    for subject in subjects() {
        let Some(stage) = stage() else { return };
        let recent = subject.is_recent();
        for (more, words) in [
            (json!({ "vlanId": 4095 }), "invalid VLAN ID 4095"),
            (json!({ "vlanId": -1 }), "invalid VLAN ID -1"),
            (json!({ "master": "" }), "\"master\" field is required"),
            (
                json!({ "mtu": 1501 }),
                if recent { "invalid MTU 1501, must be [0, master MTU(1500)]" } else { "" },
            ),
            (json!({ "mtu": -1 }), if recent { "invalid MTU -1, must be [0, master MTU(1500)]" } else { "" }),
        ] {
            if !words.is_empty() {
                refused(&subject, &stage, &config(&stage, &more), words);
            }
        }
    }
}

// 37
#[test]
fn an_mtu_up_to_the_masters_is_set() {
    for subject in subjects() {
        for (asked, expected) in [(1500, 1500), (1400, 1400), (0, 1500)] {
            let Some(stage) = stage() else { return };
            stage.call(&subject, "vlan", "c1").add(&config(&stage, &json!({ "mtu": asked })));
            assert_eq!(shown(&stage)["mtu"], expected, "{}", subject.name);
        }
    }
}

// 38
#[test]
fn a_master_in_the_container_is_looked_for_there_alone() {
    for subject in recent_subjects() {
        let Some(stage) = stage() else { return };
        stage.pod.ip("link add inner type veth peer name far");
        stage.pod.ip("link set inner up");
        let config = config(&stage, &json!({ "master": "inner", "linkInContainer": true }));
        let call = stage.call(&subject, "vlan", "c1");
        let mut checked = config.clone();
        checked["prevResult"] = call.add(&config);
        assert_eq!(shown(&stage)["link"], "inner", "{}", subject.name);
        call.run("CHECK", &checked).expect_success("CHECK");
        call.del(&config);
        assert_eq!(stage.pod.link_names(), ["far", "inner"], "{}", subject.name);
    }
}

// 9: the reference looks for the master first, and gives no address back without it.
#[test]
fn del_needs_neither_master_nor_namespace() {
    for subject in subjects() {
        let Some(stage) = stage() else { return };
        let config = config(&stage, &json!({}));
        let mut call = stage.call(&subject, "vlan", "c1");
        call.add(&config);
        stage.host.ip("link del uplink");
        let reply = call.run("DEL", &config);
        if subject.is_reference() {
            assert_ne!(reply.exit, Some(0), "{reply:?}");
            assert_eq!(stage.reserved(), ["10.1.2.2"]);
            continue;
        }
        reply.expect_success("DEL");
        assert_eq!(stage.reserved(), [""; 0]);
        call.netns = "".into();
        call.del(&config);
    }
}

/// What the complaint says, and what is done to deserve it.
type Damage<'a> = (&'a str, &'a dyn Fn(&Stage, &mut Value));

// 29
#[test]
fn check_is_content_after_add_and_not_when_something_is_lost() {
    for subject in subjects() {
        let breaking: [Damage<'_>; 4] = [
            ("10.1.2.2", &|stage, _| drop(stage.pod.ip("address flush dev eth0"))),
            ("eth0", &|stage, _| drop(stage.pod.ip("link del eth0"))),
            ("VLAN 33", &|_, config| config["vlanId"] = json!(34)),
            ("MTU 1500", &|_, config| config["mtu"] = json!(1400)),
        ];
        for (words, damage) in breaking {
            let Some(stage) = stage() else { return };
            let mut config = config(&stage, &json!({}));
            let call = stage.call(&subject, "vlan", "c1");
            config["prevResult"] = call.add(&config);
            call.run("CHECK", &config).expect_success("CHECK after ADD");
            damage(&stage, &mut config);
            let reply = call.run("CHECK", &config);
            assert_ne!(reply.exit, Some(0), "{}: {words}", subject.name);
            if !subject.is_reference() {
                assert!(reply.error_text().contains(words), "{words}: {reply:?}");
            }
        }
    }
}

// 10
#[test]
fn names_of_the_hosts_links_are_free_and_the_pods_are_taken() {
    for subject in subjects() {
        let Some(stage) = stage() else { return };
        stage.host.ip("link add eth0 type veth peer name eth1");
        let call = stage.call(&subject, "vlan", "c1");
        let config = config(&stage, &json!({}));
        call.add(&config);
        assert_eq!(stage.pod.link_names(), ["eth0"], "{}", subject.name);
        call.del(&config);
        stage.pod.ip("link add eth0 type veth peer name eth1");
        let reply = call.run("ADD", &config);
        assert_ne!(reply.exit, Some(0), "{}", subject.name);
        if !subject.is_reference() {
            assert!(reply.error_text().contains("eth0 already exists in the pod"), "{reply:?}");
            // The reference leaves its half-made link.
            assert_eq!(stage.pod.link_names(), ["eth0", "eth1"]);
        }
        assert_eq!(stage.reserved(), [""; 0], "{}", subject.name);
    }
}

#[test]
fn addresses_are_required() {
    for subject in subjects() {
        let Some(stage) = stage() else { return };
        let mut config = config(&stage, &json!({}));
        config.as_object_mut().unwrap().remove("ipam");
        let reply = stage.call(&subject, "vlan", "c1").run("ADD", &config);
        assert_ne!(reply.exit, Some(0), "{}", subject.name);
    }
}

/// The live switch: the binaries are replaced while pods run, and back again.
#[test]
fn what_one_has_made_the_other_checks_and_removes() {
    let all = subjects();
    for maker in &all {
        for other in all.iter().filter(|other| other.name != maker.name) {
            let Some(stage) = stage() else { return };
            let mut config = config(&stage, &json!({}));
            config["ipam"]["routes"] = json!([{ "dst": "0.0.0.0/0" }]);
            config["prevResult"] = stage.call(maker, "vlan", "c1").add(&config);
            let call = stage.call(other, "vlan", "c1");
            call.run("CHECK", &config).expect_success("CHECK by the other");
            call.del(&config);
            assert_eq!(stage.pod.link_names(), [""; 0], "made by {}", maker.name);
            assert_eq!(stage.reserved(), [""; 0], "made by {}", maker.name);
        }
    }
}
