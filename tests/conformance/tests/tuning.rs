//! tuning: sysctls, hardware address, MTU and modes; where each may be asked for; backup and restoration; CHECK.
//! Behaviour 62.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use conformance::{Stage, Subject, recent_subjects, subjects};
use harness::Reply;
use serde_json::{Value, json};

const BEFORE: &str = "02:00:00:00:00:10";

/// A pod with one end of a cable in it, as earlier plugins leave it.
fn stage() -> Stage {
    let stage = Stage::new();
    stage.pod.ip(&format!("link add eth0 address {BEFORE} mtu 1500 txqueuelen 1000 type veth peer name far"));
    stage.pod.ip("addr add 10.0.0.2/24 dev eth0");
    stage.pod.ip("link set eth0 up");
    stage.pod.ip("link set far up");
    stage
}

/// A configuration in the middle of a chain.
fn config(stage: &Stage, more: &Value) -> Value {
    let mut config = stage.config("tuning", "1.0.0", more);
    config["dataDir"] = json!(stage.data.path());
    config["prevResult"] = json!({
        "cniVersion": "1.0.0",
        "interfaces": [
            { "name": "veth1234", "mac": "02:00:00:00:00:99" },
            { "name": "eth0", "mac": BEFORE, "sandbox": stage.pod.path() },
        ],
        "ips": [{ "address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 1 }],
        "routes": [{ "dst": "0.0.0.0/0", "gw": "10.0.0.1" }],
    });
    config
}

fn link(stage: &Stage) -> Value {
    stage.pod.ip_json("link show eth0")[0].clone()
}

fn has_flag(link: &Value, flag: &str) -> bool {
    link["flags"].as_array().unwrap().contains(&json!(flag))
}

fn run(stage: &Stage, subject: &Subject, command: &str, config: &Value) -> Reply {
    stage.call(subject, "tuning", "c1").run(command, config)
}

fn backup(stage: &Stage) -> Option<Value> {
    let text = fs::read_to_string(stage.data.path().join("c1_eth0.json")).ok()?;
    Some(serde_json::from_str(&text).unwrap())
}

#[test]
fn everything_is_set_written_down_and_put_back() {
    for subject in subjects() {
        let stage = stage();
        let wanted = json!({ "mac": "c2:11:22:33:44:55", "mtu": 1454, "promisc": true, "allmulti": true });
        let config = config(&stage, &wanted);
        let result = run(&stage, &subject, "ADD", &config).expect_success("ADD");
        let tuned = link(&stage);
        assert_eq!(tuned["address"], "c2:11:22:33:44:55", "{}", subject.name);
        assert_eq!(tuned["mtu"], 1454, "{}", subject.name);
        assert!(has_flag(&tuned, "PROMISC") && has_flag(&tuned, "ALLMULTI"), "{}: {tuned}", subject.name);
        let mut expected = config["prevResult"].clone();
        expected["interfaces"][1]["mac"] = json!("c2:11:22:33:44:55");
        expected["dns"] = result["dns"].clone();
        let mut shown = result.clone();
        shown["dns"] = result["dns"].clone();
        assert_eq!(shown, expected, "{}: everything else is passed on", subject.name);
        let noted = backup(&stage).unwrap();
        let noted = ["mac", "mtu", "promisc", "allmulti"].map(|key| noted[key].clone());
        assert_eq!(noted, [json!(BEFORE), json!(1500), json!(false), json!(false)], "{}", subject.name);
        let mut check = config.clone();
        check["prevResult"] = result;
        run(&stage, &subject, "CHECK", &check).expect_success("CHECK");
        run(&stage, &subject, "DEL", &check).expect_success("DEL");
        let restored = link(&stage);
        assert_eq!(restored["address"], BEFORE, "{}", subject.name);
        assert_eq!(restored["mtu"], 1500, "{}", subject.name);
        assert!(!has_flag(&restored, "PROMISC") && !has_flag(&restored, "ALLMULTI"), "{}", subject.name);
        assert_eq!(backup(&stage), None, "{}", subject.name);
        run(&stage, &subject, "DEL", &check).expect_success("a second DEL");
    }
}

#[test]
fn only_what_is_changed_is_written_down() {
    for subject in subjects() {
        let stage = stage();
        run(&stage, &subject, "ADD", &config(&stage, &json!({ "mtu": 1454 }))).expect_success("ADD");
        let mut noted = backup(&stage).unwrap();
        noted.as_object_mut().unwrap().remove("fairlead");
        assert_eq!(noted, json!({ "mtu": 1500 }), "{}", subject.name);
        let stage = self::stage();
        run(&stage, &subject, "ADD", &config(&stage, &json!({}))).expect_success("ADD");
        assert_eq!(backup(&stage), None, "{}", subject.name);
    }
}

#[test]
fn a_hardware_address_comes_from_the_last_place_that_has_one() {
    for subject in subjects() {
        let mut more = json!({ "mac": "02:00:00:00:00:01" });
        let stage = stage();
        let given = |more: &Value, args: &str| {
            let mut call = stage.call(&subject, "tuning", "c1");
            call.args = args;
            let config = config(&stage, more);
            let result = call.add(&config);
            let address = link(&stage)["address"].clone();
            assert_eq!(result["interfaces"][1]["mac"], address, "{}", subject.name);
            call.del(&config);
            address
        };
        assert_eq!(given(&more, ""), "02:00:00:00:00:01", "{}", subject.name);
        let args = "IgnoreUnknown=true;MAC=02:00:00:00:00:02";
        assert_eq!(given(&more, args), "02:00:00:00:00:02", "{}", subject.name);
        more["runtimeConfig"] = json!({ "mac": "02:00:00:00:00:03" });
        assert_eq!(given(&more, args), "02:00:00:00:00:03", "{}", subject.name);
        more["args"] = json!({ "cni": { "mac": "02:00:00:00:00:04" } });
        assert_eq!(given(&more, args), "02:00:00:00:00:04", "{}", subject.name);
    }
}

#[test]
fn arguments_take_the_place_of_the_configuration() {
    for subject in subjects() {
        let stage = stage();
        let args = json!({ "mtu": 1300, "promisc": true, "allmulti": true, "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1" } });
        let more = json!({ "mtu": 1400, "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "0" }, "args": { "cni": args } });
        run(&stage, &subject, "ADD", &config(&stage, &more)).expect_success("ADD");
        let tuned = link(&stage);
        assert_eq!(tuned["mtu"], 1300, "{}", subject.name);
        assert!(has_flag(&tuned, "PROMISC") && has_flag(&tuned, "ALLMULTI"), "{}", subject.name);
        assert_eq!(stage.pod.sysctl("net/ipv4/conf/eth0/arp_filter"), "1", "{}", subject.name);
    }
}

#[test]
fn sysctls_of_the_pod_are_set_and_checked() {
    for subject in subjects() {
        let stage = stage();
        let sysctl = json!({
            "net.ipv4.conf.IFNAME.arp_filter": "1",
            "net/ipv4/ip_default_ttl": "70",
            "net.ipv4.conf.all.log_martians": "1",
        });
        let config = config(&stage, &json!({ "sysctl": sysctl }));
        run(&stage, &subject, "ADD", &config).expect_success("ADD");
        for (path, value) in [
            ("net/ipv4/conf/eth0/arp_filter", "1"),
            ("net/ipv4/ip_default_ttl", "70"),
            ("net/ipv4/conf/all/log_martians", "1"),
        ] {
            assert_eq!(stage.pod.sysctl(path), value, "{} {path}", subject.name);
        }
        let checked = run(&stage, &subject, "CHECK", &config);
        if !subject.is_recent() {
            // Debian's does not know IFNAME in CHECK.
            assert!(checked.error_text().contains("IFNAME/arp_filter"), "{checked:?}");
            continue;
        }
        checked.expect_success("CHECK");
        harness::run_ok(
            stage.pod.command("sh").args(["-c", "echo 0 > /proc/sys/net/ipv4/conf/eth0/arp_filter"]),
        );
        let reply = run(&stage, &subject, "CHECK", &config);
        assert_ne!(reply.exit, Some(0), "{}", subject.name);
        assert!(reply.error_text().contains("arp_filter"), "{}: {reply:?}", subject.name);
    }
}

#[test]
fn sysctls_that_are_no_pods_or_listed_twice_are_refused() {
    for subject in subjects() {
        let stage = stage();
        let reply =
            run(&stage, &subject, "ADD", &config(&stage, &json!({ "sysctl": { "kernel.hostname": "x" } })));
        assert_ne!(reply.exit, Some(0), "{}", subject.name);
        assert!(reply.error_text().contains("invalid net sysctl key"), "{}: {reply:?}", subject.name);
        let text = config(&stage, &json!({ "sysctl": { "net.ipv4.ip_default_ttl": "70" } })).to_string();
        let twice = text.replace(r#""70""#, r#""70","net.ipv4.ip_default_ttl":"71""#);
        let reply = stage.call(&subject, "tuning", "c1").run_raw("ADD", twice.as_bytes());
        if !subject.is_recent() {
            // Debian's is older than that rule.
            reply.expect_success("ADD");
            continue;
        }
        assert!(reply.error_text().contains("duplicated sysctl keys are not allowed"), "{reply:?}");
        assert_eq!(stage.pod.sysctl("net/ipv4/ip_default_ttl"), "64", "{}", subject.name);
    }
}

// The reference panics: its map of sysctls was never made.
#[test]
fn sysctls_in_the_arguments_alone_are_set() {
    for subject in subjects() {
        let stage = stage();
        let args = json!({ "args": { "cni": { "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1" } } } });
        let reply = run(&stage, &subject, "ADD", &config(&stage, &args));
        assert_eq!(reply.exit == Some(0), !subject.is_reference(), "{}: {reply:?}", subject.name);
        let value = if subject.is_reference() { "0" } else { "1" };
        assert_eq!(stage.pod.sysctl("net/ipv4/conf/eth0/arp_filter"), value, "{}", subject.name);
    }
}

#[test]
fn check_finds_every_attribute_that_was_changed_behind_its_back() {
    for subject in subjects() {
        let stage = stage();
        let wanted = json!({ "mac": "c2:11:22:33:44:55", "mtu": 1454, "promisc": true, "allmulti": true });
        let config = config(&stage, &wanted);
        run(&stage, &subject, "ADD", &config).expect_success("ADD");
        for (change, undo) in [
            ("mtu 1400", "mtu 1454"),
            ("address c2:11:22:33:44:66", "address c2:11:22:33:44:55"),
            ("promisc off", "promisc on"),
            ("allmulticast off", "allmulticast on"),
        ] {
            run(&stage, &subject, "CHECK", &config).expect_success("CHECK");
            stage.pod.ip(&format!("link set eth0 {change}"));
            assert_ne!(run(&stage, &subject, "CHECK", &config).exit, Some(0), "{}: {change}", subject.name);
            stage.pod.ip(&format!("link set eth0 {undo}"));
        }
    }
}

// The reference compares hardware addresses as texts.
#[test]
fn the_case_of_a_hardware_address_does_not_matter() {
    for subject in subjects() {
        let stage = stage();
        let config = config(&stage, &json!({ "mac": "C2:11:22:33:44:AA" }));
        run(&stage, &subject, "ADD", &config).expect_success("ADD");
        assert_eq!(link(&stage)["address"], "c2:11:22:33:44:aa", "{}", subject.name);
        let reply = run(&stage, &subject, "CHECK", &config);
        assert_eq!(reply.exit == Some(0), !subject.is_reference(), "{}: {reply:?}", subject.name);
    }
}

// With the reference, `false` only says that nothing is asked for.
#[test]
fn promiscuous_mode_can_be_switched_off() {
    for subject in subjects() {
        let stage = stage();
        stage.pod.ip("link set eth0 promisc on");
        let config = config(&stage, &json!({ "promisc": false }));
        run(&stage, &subject, "ADD", &config).expect_success("ADD");
        assert_eq!(has_flag(&link(&stage), "PROMISC"), subject.is_reference(), "{}", subject.name);
        run(&stage, &subject, "DEL", &config).expect_success("DEL");
        assert!(has_flag(&link(&stage), "PROMISC"), "{}: what was on is on again", subject.name);
    }
}

// The reference keeps the file for ever.
#[test]
fn the_note_goes_also_when_the_link_has_gone_before() {
    for subject in subjects() {
        for namespace_too in [false, true] {
            let stage = stage();
            let config = config(&stage, &json!({ "mtu": 1454 }));
            run(&stage, &subject, "ADD", &config).expect_success("ADD");
            stage.pod.ip("link del eth0");
            let mut call = stage.call(&subject, "tuning", "c1");
            if namespace_too {
                call.netns = std::path::PathBuf::new();
            }
            call.del(&config);
            assert_eq!(backup(&stage).is_some(), subject.is_reference(), "{}", subject.name);
        }
    }
}

#[test]
fn each_puts_back_what_the_other_has_written_down() {
    let both = subjects();
    let [ours, reference] = both.as_slice() else { return };
    for (first, second) in [(ours, reference), (reference, ours)] {
        let stage = stage();
        let wanted = json!({ "mac": "c2:11:22:33:44:55", "mtu": 1454, "promisc": true, "allmulti": true });
        let config = config(&stage, &wanted);
        run(&stage, first, "ADD", &config).expect_success("ADD");
        run(&stage, second, "CHECK", &config).expect_success("CHECK");
        run(&stage, second, "DEL", &config).expect_success("DEL");
        let restored = link(&stage);
        assert_eq!(
            (&restored["address"], &restored["mtu"]),
            (&json!(BEFORE), &json!(1500)),
            "{}",
            second.name
        );
        assert!(!has_flag(&restored, "PROMISC") && !has_flag(&restored, "ALLMULTI"), "{}", second.name);
        assert_eq!(backup(&stage), None, "{}", second.name);
    }
}

#[test]
fn it_has_to_stand_after_another_plugin() {
    for subject in subjects() {
        let stage = stage();
        let mut config = config(&stage, &json!({ "mtu": 1454 }));
        config.as_object_mut().unwrap().remove("prevResult");
        for command in ["ADD", "CHECK"] {
            let reply = run(&stage, &subject, command, &config);
            assert_ne!(reply.exit, Some(0), "{}", subject.name);
            assert!(reply.error_text().contains("prevResult"), "{}: {reply:?}", subject.name);
        }
        assert_eq!(link(&stage)["mtu"], 1500, "{}", subject.name);
    }
}

// Newer than Debian's reference.
#[test]
fn the_length_of_the_queue_is_set_and_put_back() {
    for subject in recent_subjects() {
        let stage = stage();
        let config = config(&stage, &json!({ "txQLen": 77 }));
        run(&stage, &subject, "ADD", &config).expect_success("ADD");
        assert_eq!(link(&stage)["txqlen"], 77);
        assert_eq!(backup(&stage).unwrap()["txQLen"], 1000);
        stage.pod.ip("link set eth0 txqueuelen 78");
        assert_ne!(run(&stage, &subject, "CHECK", &config).exit, Some(0));
        run(&stage, &subject, "DEL", &config).expect_success("DEL");
        assert_eq!(link(&stage)["txqlen"], 1000);
    }
}
