//! dummy: behaviour 41, and 9, 10 and 29 for it. Debian's reference is older than the plugin, so unless another build
//! is named these are asked of ours alone; where this machine's kernel has no dummy links, `cargo xtask vm-test` runs
//! them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use conformance::{Stage, kernel_has, recent_subjects};
use serde_json::{Value, json};

/// `None`, after saying so, on a kernel that cannot.
fn stage() -> Option<Stage> {
    kernel_has("dummy").then(Stage::new)
}

fn config(stage: &Stage) -> Value {
    let mut config = stage.config("dummy", "1.0.0", &json!({}));
    config["ipam"] = stage.ipam(&["10.1.2.0/24", "2001:db8:42::/64"]);
    config
}

// 41
#[test]
fn the_pod_has_a_dummy_with_the_addresses_whatever_dummies_the_host_has() {
    for subject in recent_subjects() {
        let Some(stage) = stage() else { return };
        stage.host.ip("link add eth0 type dummy");
        let config = config(&stage);
        let call = stage.call(&subject, "dummy", "c1");
        let result = call.add(&config);
        let name = subject.name;
        let shown = stage.pod.ip_json("address show dev eth0")[0].clone();
        assert_eq!(shown["linkinfo"]["info_kind"], "dummy", "{name}");
        assert!(shown["flags"].as_array().unwrap().contains(&json!("UP")), "{name}");
        assert_eq!(result["interfaces"][0]["mac"], shown["address"], "{name}");
        assert_eq!(result["interfaces"][0]["sandbox"], json!(stage.pod.path()), "{name}");
        assert_eq!((&result["ips"][0]["interface"], &result["ips"][1]["interface"]), (&json!(0), &json!(0)));
        stage.pod.ip("link set lo up");
        for address in ["10.1.2.2", "2001:db8:42::2"] {
            assert!(stage.pod.pings(address), "{name}: {address}");
        }
        call.del(&config);
        call.del(&config);
        assert_eq!((stage.pod.link_names(), stage.reserved()), (Vec::new(), Vec::new()), "{name}");
        assert_eq!(stage.host.link_names(), ["eth0"], "{name}");
    }
}

// 41
#[test]
fn without_an_address_plugin_it_is_refused() {
    for subject in recent_subjects() {
        let Some(stage) = stage() else { return };
        let config = stage.config("dummy", "1.0.0", &json!({}));
        let reply = stage.call(&subject, "dummy", "c1").run("ADD", &config);
        let words = "dummy interface requires an IPAM configuration";
        assert!(reply.error_text().contains(words), "{}: {reply:?}", subject.name);
        assert_eq!(stage.pod.link_names(), [""; 0], "{}", subject.name);
    }
}

// 41, 29
#[test]
fn check_is_content_after_add_and_not_when_it_is_down_or_lost() {
    for subject in recent_subjects() {
        for (damage, words) in [
            ("link set eth0 down", "down"),
            ("link del eth0", "eth0"),
            ("-4 address flush dev eth0", "10.1.2.2"),
            ("link set eth0 address 02:00:00:00:00:99", "02:00:00:00:00:99"),
        ] {
            let Some(stage) = stage() else { return };
            let mut config = config(&stage);
            let call = stage.call(&subject, "dummy", "c1");
            config["prevResult"] = call.add(&config);
            call.run("CHECK", &config).expect_success("CHECK after ADD");
            stage.pod.ip(damage);
            let reply = call.run("CHECK", &config);
            assert_ne!(reply.exit, Some(0), "{}: {damage}", subject.name);
            assert!(reply.error_text().contains(words), "{}: {damage}: {reply:?}", subject.name);
        }
    }
}

// 10
#[test]
fn an_interface_that_the_pod_has_is_left_alone() {
    for subject in recent_subjects() {
        let Some(stage) = stage() else { return };
        stage.pod.ip("link add eth0 type veth peer name eth1");
        let reply = stage.call(&subject, "dummy", "c1").run("ADD", &config(&stage));
        assert_ne!(reply.exit, Some(0), "{}", subject.name);
        assert_eq!(stage.pod.link_names(), ["eth0", "eth1"], "{}", subject.name);
        assert_eq!(stage.reserved(), [""; 0], "{}", subject.name);
    }
}
