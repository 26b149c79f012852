//! loopback: `lo` up with its addresses, prevResult passed on, CHECK and DEL. Behaviour 44.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use conformance::{Stage, subjects};
use serde_json::json;

#[test]
fn add_brings_lo_up_and_reports_its_addresses() {
    for subject in subjects() {
        let stage = Stage::new();
        let mut call = stage.call(&subject, "loopback", "c1");
        call.ifname = "lo";
        let result = call.add(&stage.config("loopback", "1.0.0", &json!({})));
        assert_eq!(result["interfaces"][0]["name"], "lo", "{}", subject.name);
        assert_eq!(result["interfaces"][0]["mac"], "00:00:00:00:00:00", "{}", subject.name);
        assert_eq!(result["interfaces"][0]["sandbox"], json!(stage.pod.path()), "{}", subject.name);
        let addresses: Vec<&str> =
            result["ips"].as_array().unwrap().iter().map(|ip| ip["address"].as_str().unwrap()).collect();
        assert_eq!(addresses, ["127.0.0.1/8", "::1/128"], "{}", subject.name);
        assert!(stage.pod.pings("127.0.0.1"), "{}", subject.name);
        assert!(stage.pod.pings("::1"), "{}", subject.name);
    }
}

#[test]
fn a_previous_result_is_passed_on() {
    for subject in subjects() {
        let stage = Stage::new();
        let mut call = stage.call(&subject, "loopback", "c1");
        call.ifname = "lo";
        let previous = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "eth7" }],
            "ips": [{ "address": "10.9.8.7/24", "interface": 0 }],
        });
        let result = call.add(&stage.config("loopback", "1.0.0", &json!({ "prevResult": previous })));
        assert_eq!(result["interfaces"], previous["interfaces"], "{}", subject.name);
        assert_eq!(result["ips"], previous["ips"], "{}", subject.name);
    }
}

#[test]
fn an_address_on_lo_that_is_not_loopback_is_an_error() {
    for subject in subjects() {
        let stage = Stage::new();
        stage.pod.ip("address add 10.0.0.1/32 dev lo");
        let mut call = stage.call(&subject, "loopback", "c1");
        call.ifname = "lo";
        let reply = call.run("ADD", &stage.config("loopback", "1.0.0", &json!({})));
        assert_ne!(reply.exit, Some(0), "{}", subject.name);
        assert!(reply.error_text().contains("non-loopback address"), "{}: {reply:?}", subject.name);
    }
}

#[test]
fn check_follows_lo_and_del_sets_it_down() {
    for subject in subjects() {
        let stage = Stage::new();
        let mut call = stage.call(&subject, "loopback", "c1");
        call.ifname = "lo";
        let mut config = stage.config("loopback", "1.0.0", &json!({}));
        config["prevResult"] = call.add(&config);
        call.run("CHECK", &config).expect_success("CHECK after ADD");
        stage.pod.ip("link set lo down");
        let reply = call.run("CHECK", &config);
        assert_ne!(reply.exit, Some(0), "{}", subject.name);
        assert!(reply.error_text().contains("down"), "{}: {reply:?}", subject.name);
        stage.pod.ip("link set lo up");
        call.del(&config);
        let flags = stage.pod.ip_json("link show lo")[0]["flags"].clone();
        assert!(!flags.as_array().unwrap().contains(&json!("UP")), "{}: {flags}", subject.name);
    }
}
