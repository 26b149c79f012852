//! ipvlan: what it makes in the pod and what it says of it. Behaviours 35, 38 and 39, and 9 and 29 for it. Where this
//! machine's kernel has no ipvlan, `cargo xtask vm-test` runs these.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use conformance::{Stage, kernel_has, recent_subjects, subjects};
use harness::{Namespace, eventually};
use serde_json::{Value, json};

/// `None`, after saying so, on a kernel that cannot.
fn stage() -> Option<Stage> {
    if !kernel_has("ipvlan") {
        return None;
    }
    let stage = Stage::new();
    stage.uplink();
    Some(stage)
}

fn config(stage: &Stage, more: &Value) -> Value {
    let mut config = stage.config("ipvlan", "1.0.0", &json!({ "master": "uplink" }));
    config["ipam"] = stage.ipam(&["10.1.2.0/24", "2001:db8:42::/64"]);
    for (key, value) in more.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    config
}

fn shown(stage: &Stage) -> Value {
    stage.pod.ip_json("link show eth0")[0].clone()
}

fn addresses(namespace: &Namespace) -> Vec<String> {
    let shown = namespace.ip_json("address show dev eth0 scope global");
    let addresses = shown[0]["addr_info"].as_array().cloned().unwrap_or_default();
    // What does not pass the filter is an empty object.
    addresses.iter().filter_map(|address| address["local"].as_str()).map(str::to_owned).collect()
}

// 39
#[test]
fn every_mode_is_set_and_pods_of_one_master_reach_each_other() {
    for subject in subjects() {
        for (mode, expected) in [("l2", "l2"), ("l3", "l3"), ("l3s", "l3s"), ("", "l2")] {
            let Some(stage) = stage() else { return };
            let other = Namespace::new();
            let config = config(&stage, &json!({ "mode": mode, "mtu": 1400 }));
            let result = stage.call(&subject, "ipvlan", "c1").add(&config);
            let mut call = stage.call(&subject, "ipvlan", "c2");
            call.netns = other.path();
            call.add(&config);
            let (name, link) = (subject.name, shown(&stage));
            assert_eq!(link["linkinfo"]["info_kind"], "ipvlan", "{name}");
            assert_eq!(link["linkinfo"]["info_data"]["mode"], expected, "{name}");
            assert_eq!(
                (&link["mtu"], link["flags"].as_array().unwrap().contains(&json!("UP"))),
                (&json!(1400), true)
            );
            let uplink = stage.host.ip_json("link show uplink")[0].clone();
            assert_eq!(
                (&link["address"], &link["link_index"]),
                (&uplink["address"], &uplink["ifindex"]),
                "{name}"
            );
            assert_eq!(result["interfaces"][0]["mac"], link["address"], "{name}");
            assert_eq!(addresses(&stage.pod), ["10.1.2.2", "2001:db8:42::2"], "{name}");
            assert_eq!(result["ips"][1]["interface"], 0, "{name}");
            for address in ["10.1.2.3", "2001:db8:42::3"] {
                eventually(address, || stage.pod.pings(address).then_some(()));
            }
        }
        let Some(stage) = stage() else { return };
        let reply =
            stage.call(&subject, "ipvlan", "c1").run("ADD", &config(&stage, &json!({ "mode": "l4" })));
        assert!(reply.error_text().contains("unknown ipvlan mode: \"l4\""), "{}: {reply:?}", subject.name);
        assert_eq!(stage.pod.link_names(), [""; 0], "{}", subject.name);
    }
}

/// A previous result with these interfaces and two addresses.
fn previous(interfaces: &[&str]) -> Value {
    let interfaces: Vec<Value> = interfaces.iter().map(|name| json!({ "name": name })).collect();
    json!({
        "cniVersion": "1.0.0",
        "interfaces": interfaces,
        "ips": [
            { "address": "10.7.7.7/24", "gateway": "10.7.7.1", "interface": 0 },
            { "address": "2001:db8:7::7/64", "interface": 0 },
        ],
        "routes": [{ "dst": "0.0.0.0/0" }],
    })
}

// 39
#[test]
fn in_a_chain_it_takes_master_and_addresses_from_the_interface_before_it() {
    for subject in subjects() {
        let Some(stage) = stage() else { return };
        let mut config = stage.config("ipvlan", "1.0.0", &json!({ "prevResult": previous(&["uplink"]) }));
        let call = stage.call(&subject, "ipvlan", "c1");
        let result = call.add(&config);
        let name = subject.name;
        assert_eq!(addresses(&stage.pod), ["10.7.7.7", "2001:db8:7::7"], "{name}");
        assert_eq!(stage.pod.ip_json("route show default")[0]["gateway"], "10.7.7.1", "{name}");
        let uplink = stage.host.ip_json("link show uplink")[0]["ifindex"].clone();
        assert_eq!(shown(&stage)["link_index"], uplink, "{name}");
        let interfaces = result["interfaces"].as_array().unwrap();
        assert_eq!((interfaces.len(), &interfaces[0]["name"]), (1, &json!("eth0")), "{name}");
        assert_eq!((&result["ips"][0]["interface"], &result["ips"][1]["interface"]), (&json!(0), &json!(0)));
        config["prevResult"] = result;
        // The reference looks for a master of no name.
        if !subject.is_reference() {
            call.run("CHECK", &config).expect_success("CHECK");
        }
        call.run("DEL", &config);
        if !subject.is_reference() {
            assert_eq!(stage.pod.link_names(), [""; 0]);
        }
    }
}

// 39
#[test]
fn in_a_chain_with_several_interfaces_the_master_must_be_named() {
    for subject in subjects() {
        let Some(stage) = stage() else { return };
        for interfaces in [&["uplink", "far"] as &[&str], &[]] {
            let config = stage.config("ipvlan", "1.0.0", &json!({ "prevResult": previous(interfaces) }));
            let reply = stage.call(&subject, "ipvlan", "c1").run("ADD", &config);
            let words = "PrevResult lacks a single named interface";
            assert!(reply.error_text().contains(words), "{}: {reply:?}", subject.name);
            assert_eq!(stage.pod.link_names(), [""; 0], "{}", subject.name);
        }
        let more = json!({ "prevResult": previous(&["far", "other"]), "master": "uplink" });
        stage.call(&subject, "ipvlan", "c1").add(&stage.config("ipvlan", "1.0.0", &more));
        assert_eq!(addresses(&stage.pod), ["10.7.7.7", "2001:db8:7::7"], "{}", subject.name);
    }
}

// 35, 9: the reference's DEL looks for a master like ADD, and fails without a default route.
#[test]
fn a_master_that_is_not_named_is_the_default_routes_and_del_needs_none() {
    for subject in subjects() {
        let Some(stage) = stage() else { return };
        stage.host.ip("route add default via 192.0.2.254");
        let config = config(&stage, &json!({ "master": "" }));
        let mut call = stage.call(&subject, "ipvlan", "c1");
        call.add(&config);
        let uplink = stage.host.ip_json("link show uplink")[0]["ifindex"].clone();
        assert_eq!(shown(&stage)["link_index"], uplink, "{}", subject.name);
        stage.host.ip("route del default");
        let reply = call.run("DEL", &config);
        if subject.is_reference() {
            assert!(reply.error_text().contains("no default route interface found"), "{reply:?}");
            continue;
        }
        reply.expect_success("DEL");
        assert_eq!((stage.pod.link_names(), stage.reserved()), (Vec::new(), Vec::new()));
        call.netns = "".into();
        call.del(&config);
        assert!(call.run("ADD", &config).error_text().contains("CNI_NETNS"));
        call.netns = stage.pod.path();
        assert!(call.run("ADD", &config).error_text().contains("no default route interface found"));
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
        let call = stage.call(&subject, "ipvlan", "c1");
        let mut checked = config.clone();
        checked["prevResult"] = call.add(&config);
        assert_eq!(shown(&stage)["link"], "inner", "{}", subject.name);
        call.run("CHECK", &checked).expect_success("CHECK");
        call.del(&config);
        assert_eq!(stage.pod.link_names(), ["far", "inner"], "{}", subject.name);
    }
}

/// What the complaint says, and what is done to deserve it.
type Damage<'a> = (&'a str, &'a dyn Fn(&Stage, &mut Value));

// 29
#[test]
fn check_is_content_after_add_and_not_when_something_is_lost() {
    for subject in subjects() {
        let breaking: [Damage<'_>; 4] = [
            ("10.1.2.2", &|stage, _| drop(stage.pod.ip("-4 address flush dev eth0"))),
            ("eth0", &|stage, _| drop(stage.pod.ip("link del eth0"))),
            ("mode l2, not l3", &|_, config| config["mode"] = json!("l3")),
            ("uplink", &|stage, _| drop(stage.host.ip("link del uplink"))),
        ];
        for (words, damage) in breaking {
            let Some(stage) = stage() else { return };
            let mut config = config(&stage, &json!({}));
            let call = stage.call(&subject, "ipvlan", "c1");
            config["prevResult"] = call.add(&config);
            call.run("CHECK", &config).expect_success("CHECK after ADD");
            damage(&stage, &mut config);
            let reply = call.run("CHECK", &config);
            assert_ne!(reply.exit, Some(0), "{}: {words}", subject.name);
            if !subject.is_reference() && words != "uplink" {
                assert!(reply.error_text().contains(words), "{words}: {reply:?}");
            }
        }
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
            config["prevResult"] = stage.call(maker, "ipvlan", "c1").add(&config);
            let call = stage.call(other, "ipvlan", "c1");
            call.run("CHECK", &config).expect_success("CHECK by the other");
            call.del(&config);
            assert_eq!(stage.pod.link_names(), [""; 0], "made by {}", maker.name);
            assert_eq!(stage.reserved(), [""; 0], "made by {}", maker.name);
        }
    }
}
