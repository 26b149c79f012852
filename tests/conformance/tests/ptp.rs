//! ptp: what it makes in the kernel and what it says of it. Behaviours 32 to 34, and 9 to 12 and 29 for it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use conformance::{Stage, subjects};
use harness::{Call, Namespace, eventually, run_ok};
use serde_json::{Value, json};

fn config(stage: &Stage, subnets: &[&str], more: &Value) -> Value {
    let mut config = stage.config("ptp", "1.0.0", more);
    config["ipam"] = stage.ipam(subnets);
    config
}

const BOTH: [&str; 2] = ["10.1.2.0/24", "2001:db8:42::/64"];

fn host_end(result: &Value) -> String {
    result["interfaces"][0]["name"].as_str().unwrap().to_owned()
}

/// The routes of the main table over one link, without those that the kernel makes for link-local and multicast
/// addresses, in words that do not depend on who made them.
fn routes(namespace: &Namespace, family: &str, link: &str) -> Vec<String> {
    let shown = namespace.ip_json(&format!("{family} route show dev {link}"));
    let text = |route: &Value, key: &str| route[key].as_str().unwrap_or("-").to_owned();
    let mut all: Vec<String> = shown
        .as_array()
        .unwrap()
        .iter()
        .filter(|route| !text(route, "dst").starts_with("fe80") && !text(route, "dst").starts_with("ff00"))
        .map(|route| {
            ["dst", "gateway", "scope", "prefsrc"].map(|key| text(route, key)).join(" ").replace("/32", "")
        })
        .collect();
    all.sort();
    all
}

// 32
#[test]
fn the_pod_reaches_everything_by_way_of_the_gateway_and_the_host_has_a_route_back() {
    for subject in subjects() {
        let stage = Stage::new();
        let mut config = config(&stage, &BOTH, &json!({ "mtu": 1400 }));
        config["ipam"]["routes"] = json!([{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }]);
        let result = stage.call(&subject, "ptp", "c1").add(&config);
        let name = subject.name;
        assert_eq!(
            routes(&stage.pod, "-4", "eth0"),
            ["10.1.2.0/24 10.1.2.1 global 10.1.2.2", "10.1.2.1 - link 10.1.2.2", "default 10.1.2.1 global -",],
            "{name}"
        );
        assert_eq!(
            routes(&stage.pod, "-6", "eth0"),
            [
                "2001:db8:42::/64 2001:db8:42::1 global 2001:db8:42::2",
                "2001:db8:42::1 - global 2001:db8:42::2",
                "default 2001:db8:42::1 global -",
            ],
            "{name}"
        );
        let link = host_end(&result);
        assert_eq!(routes(&stage.host, "-4", &link), ["10.1.2.2 - host -"], "{name}");
        let six = routes(&stage.host, "-6", &link);
        assert!(six.iter().any(|route| route.starts_with("2001:db8:42::2 ")), "{name}: {six:?}");
        let held = stage.host.ip(&format!("-o address show dev {link} scope global"));
        assert!(held.contains("10.1.2.1/32") && held.contains("2001:db8:42::1/128"), "{name}: {held}");
        assert_eq!(stage.host.ip_json(&format!("link show {link}"))[0]["mtu"], 1400, "{name}");
        assert_eq!(stage.pod.ip_json("link show eth0")[0]["mtu"], 1400, "{name}");
        assert_eq!(stage.host.sysctl("net/ipv4/ip_forward"), "1", "{name}");
        assert_eq!(stage.host.sysctl("net/ipv6/conf/all/forwarding"), "1", "{name}");
        for gateway in ["10.1.2.1", "2001:db8:42::1"] {
            eventually(gateway, || stage.pod.pings(gateway).then_some(()));
        }
        eventually("the host reaches the pod", || stage.host.pings("10.1.2.2").then_some(()));
    }
}

#[test]
fn the_result_names_both_ends() {
    for subject in subjects() {
        let stage = Stage::new();
        let result = stage.call(&subject, "ptp", "c1").add(&config(&stage, &BOTH, &json!({})));
        let interfaces = result["interfaces"].as_array().unwrap();
        assert_eq!(interfaces.len(), 2, "{}", subject.name);
        assert_eq!(interfaces[1]["name"], "eth0", "{}", subject.name);
        assert_eq!(interfaces[1]["sandbox"], json!(stage.pod.path()), "{}", subject.name);
        assert_eq!(interfaces[0].get("sandbox"), None, "{}", subject.name);
        for (namespace, interface) in [(&stage.host, &interfaces[0]), (&stage.pod, &interfaces[1])] {
            let link = namespace.ip_json(&format!("link show {}", interface["name"].as_str().unwrap()));
            assert_eq!(interface["mac"], link[0]["address"], "{}", subject.name);
        }
        for ip in result["ips"].as_array().unwrap() {
            assert_eq!(ip["interface"], 1, "{}", subject.name);
        }
        assert_eq!(result["ips"][0]["address"], "10.1.2.2/24", "{}", subject.name);
        assert_eq!(result["ips"][0]["gateway"], "10.1.2.1", "{}", subject.name);
    }
}

// 33
#[test]
fn the_address_plugins_name_servers_are_kept_unless_the_configuration_says_some() {
    for subject in subjects() {
        let resolv = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(resolv.path(), "nameserver 192.0.2.53\n").unwrap();
        for (dns, expected) in [
            (json!(null), json!(["192.0.2.53"])),
            (json!({}), json!(["192.0.2.53"])),
            (json!({ "nameservers": ["192.0.2.54"] }), json!(["192.0.2.54"])),
            (json!({ "nameservers": [] }), json!(null)),
            (json!({ "domain": "example" }), json!(null)),
        ] {
            let stage = Stage::new();
            let mut config = config(&stage, &["10.1.2.0/24"], &json!({ "dns": dns }));
            config["ipam"]["resolvConf"] = json!(resolv.path());
            let result = stage.call(&subject, "ptp", "c1").add(&config);
            assert_eq!(result["dns"]["nameservers"], expected, "{}: {dns}", subject.name);
        }
    }
}

// 34
#[test]
fn two_pods_with_the_same_gateway_reach_the_host_and_each_other() {
    for subject in subjects() {
        let stage = Stage::new();
        let config = config(&stage, &BOTH, &json!({}));
        let second = Namespace::new();
        stage.call(&subject, "ptp", "c1").add(&config);
        Call { netns: second.path(), ..stage.call(&subject, "ptp", "c2") }.add(&config);
        for pod in [&stage.pod, &second] {
            for gateway in ["10.1.2.1", "2001:db8:42::1"] {
                eventually(gateway, || pod.pings(gateway).then_some(()));
            }
        }
        for (from, to) in [(&stage.pod, "10.1.2.3"), (&second, "10.1.2.2"), (&second, "2001:db8:42::2")] {
            eventually(to, || from.pings(to).then_some(()));
        }
    }
}

/// Somebody beyond the host, at 192.0.2.2, who has no way back to the pods' own addresses.
fn beyond(stage: &Stage) -> Namespace {
    let beyond = Namespace::with_loopback();
    stage.host.ip(&format!("link add wire type veth peer name wire netns {}", beyond.path().display()));
    for (namespace, address) in [(&stage.host, "192.0.2.1/24"), (&beyond, "192.0.2.2/24")] {
        namespace.ip(&format!("address add {address} dev wire"));
        namespace.ip("link set wire up");
    }
    beyond
}

// 34
#[test]
fn masquerading_hides_the_pod_whatever_backend_is_named_and_ends_with_it() {
    for subject in subjects() {
        for (backend, hidden) in [(json!("iptables"), true), (json!(null), true), (json!(null), false)] {
            let stage = Stage::new();
            let more = json!({ "ipMasq": hidden, "ipMasqBackend": backend });
            let mut config = config(&stage, &["10.1.2.0/24"], &more);
            config["ipam"]["routes"] = json!([{ "dst": "0.0.0.0/0" }]);
            let call = stage.call(&subject, "ptp", "c1");
            call.add(&config);
            let _beyond = beyond(&stage);
            eventually("the host reaches beyond", || stage.host.pings("192.0.2.2").then_some(()));
            // Only a masqueraded echo can be answered.
            assert_eq!(stage.pod.pings("192.0.2.2"), hidden, "{}: {backend}", subject.name);
            call.del(&config);
            let rules = run_ok(stage.host.command("nft").args(["list", "ruleset"]));
            assert!(!rules.contains("10.1.2.2"), "{}: {rules}", subject.name);
        }
    }
}

// 9
#[test]
fn del_succeeds_before_any_add_twice_and_without_a_namespace() {
    for subject in subjects() {
        let stage = Stage::new();
        let config = config(&stage, &BOTH, &json!({}));
        let call = stage.call(&subject, "ptp", "c1");
        call.del(&config);
        call.add(&config);
        call.del(&config);
        assert_eq!(stage.host.link_names(), [""; 0], "{}", subject.name);
        assert_eq!(stage.pod.link_names(), [""; 0], "{}", subject.name);
        assert_eq!(stage.reserved(), [""; 0], "{}", subject.name);
        call.del(&config);
        for netns in ["", "/var/run/netns/there-is-no-such-name"] {
            Call { netns: netns.into(), ..call.clone() }.del(&config);
        }
    }
}

// 10, 28
#[test]
fn an_interface_that_exists_is_left_alone_and_no_address_stays_taken() {
    for subject in subjects() {
        let stage = Stage::new();
        stage.pod.ip("link add eth0 type veth peer name other");
        let before = stage.pod.ip_json("link show eth0")[0]["address"].clone();
        let reply = stage.call(&subject, "ptp", "c1").run("ADD", &config(&stage, &BOTH, &json!({})));
        assert!(reply.error_text().contains("already exists"), "{}: {reply:?}", subject.name);
        assert_eq!(stage.pod.ip_json("link show eth0")[0]["address"], before, "{}", subject.name);
        assert_eq!(stage.reserved(), [""; 0], "{}", subject.name);
        assert_eq!(stage.host.link_names(), [""; 0], "{}", subject.name);
    }
}

/// Something done to a pod's network behind the plugin's back, given the result of ADD.
type Break = fn(&Stage, &Value);

// 29
#[test]
fn check_is_content_after_add_and_finds_what_is_broken() {
    let breaks: [(&str, bool, Break); 7] = [
        ("a route is gone", true, |stage, _| drop(stage.pod.ip("route del default"))),
        ("the address is gone", true, |stage, _| drop(stage.pod.ip("address flush dev eth0 scope global"))),
        ("the mac is another", true, |stage, _| {
            drop(stage.pod.ip("link set eth0 address 02:00:00:00:00:01"));
        }),
        ("the veth is gone", true, |stage, _| drop(stage.pod.ip("link del eth0"))),
        ("the host's route is gone", false, |stage, _| drop(stage.host.ip("route del 10.1.2.2"))),
        ("the gateway's address is gone", false, |stage, result| {
            drop(stage.host.ip(&format!("address del 10.1.2.1/32 dev {}", host_end(result))));
        }),
        ("the host's end is down", false, |stage, result| {
            drop(stage.host.ip(&format!("link set {} down", host_end(result))));
        }),
    ];
    for subject in subjects() {
        for (what, seen_by_reference, broken) in breaks {
            let stage = Stage::new();
            let mut config = config(&stage, &["10.1.2.0/24"], &json!({}));
            config["ipam"]["routes"] = json!([{ "dst": "0.0.0.0/0" }]);
            let call = stage.call(&subject, "ptp", "c1");
            let result = call.add(&config);
            config["prevResult"] = result.clone();
            call.run("CHECK", &config).expect_success("CHECK after ADD");
            broken(&stage, &result);
            let content = call.run("CHECK", &config).exit == Some(0);
            assert_eq!(content, subject.is_reference() && !seen_by_reference, "{}: {what}", subject.name);
        }
    }
}
