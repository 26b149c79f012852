//! bridge: what it makes in the kernel and what it says of it. Behaviours 13 to 19 and 23 to 31; VLANs (20 to
//! 22) need a kernel with bridge VLAN filtering and stand with the plugin, run by `cargo xtask vm-test`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, os::unix::fs::PermissionsExt, thread};

use conformance::{Stage, Subject, ours, subjects};
use harness::{Namespace, eventually, run_ok};
use serde_json::{Value, json};

fn config(stage: &Stage, subnets: &[&str], more: Value) -> Value {
    let mut config = stage.config("bridge", "1.0.0", &more);
    config["bridge"] = json!("br0");
    if !subnets.is_empty() {
        config["ipam"] = stage.ipam(subnets);
    }
    config
}

fn addresses(namespace: &Namespace, link: &str) -> Vec<String> {
    let shown = namespace.ip_json(&format!("address show dev {link}"));
    let mut all: Vec<String> = shown[0]["addr_info"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|address| address["scope"] != "link")
        .map(|address| format!("{}/{}", address["local"].as_str().unwrap(), address["prefixlen"]))
        .collect();
    all.sort();
    all
}

fn host_end(result: &Value) -> String {
    result["interfaces"][1]["name"].as_str().unwrap().to_owned()
}

#[test]
fn the_bridge_is_made_and_found_again_and_a_foreign_link_of_its_name_is_refused() {
    for subject in subjects() {
        let stage = Stage::new();
        let config = config(&stage, &["10.1.2.0/24"], json!({}));
        stage.call(&subject, "bridge", "c1").add(&config);
        assert_eq!(stage.host.sysctl("net/ipv6/conf/br0/accept_ra"), "0", "{}", subject.name);
        let index = stage.host.ip_json("link show br0")[0]["ifindex"].clone();
        let mut second = stage.call(&subject, "bridge", "c2");
        second.ifname = "eth1";
        second.add(&config);
        assert_eq!(stage.host.ip_json("link show br0")[0]["ifindex"], index, "{}", subject.name);
        let foreign = Stage::new();
        foreign.host.ip("link add br0 type veth peer name other");
        let reply = foreign.call(&subject, "bridge", "c1").run("ADD", &config);
        assert!(
            reply.error_text().contains("already exists but is not a bridge"),
            "{}: {reply:?}",
            subject.name
        );
        assert_eq!(foreign.pod.link_names(), [""; 0], "{}", subject.name);
    }
}

#[test]
fn a_default_gateway_reaches_the_bridge_the_pod_and_the_sysctls() {
    for subject in subjects() {
        let stage = Stage::new();
        let subnets = ["10.1.2.0/24", "2001:db8:42::/64"];
        let config = config(&stage, &subnets, json!({ "isDefaultGateway": true }));
        let result = stage.call(&subject, "bridge", "c1").add(&config);
        assert_eq!(addresses(&stage.host, "br0"), ["10.1.2.1/24", "2001:db8:42::1/64"], "{}", subject.name);
        assert_eq!(addresses(&stage.pod, "eth0"), ["10.1.2.2/24", "2001:db8:42::2/64"], "{}", subject.name);
        for (family, gateway) in [("-4", "10.1.2.1"), ("-6", "2001:db8:42::1")] {
            let routes = stage.pod.ip_json(&format!("{family} route show default"));
            assert_eq!(routes[0]["gateway"], gateway, "{}", subject.name);
            // The gateway's own IPv6 address may still be under duplicate address detection.
            eventually(gateway, || stage.pod.pings(gateway).then_some(()));
        }
        assert_eq!(stage.host.sysctl("net/ipv4/ip_forward"), "1", "{}", subject.name);
        assert_eq!(stage.host.sysctl("net/ipv6/conf/all/forwarding"), "1", "{}", subject.name);
        let names: Vec<&Value> =
            result["interfaces"].as_array().unwrap().iter().map(|interface| &interface["name"]).collect();
        assert_eq!((names[0], names[2], names.len()), (&json!("br0"), &json!("eth0"), 3), "{}", subject.name);
        assert_eq!(result["ips"][1]["interface"], 2, "{}", subject.name);
        let shown = stage.pod.ip_json("link show eth0");
        assert_eq!(result["interfaces"][2]["mac"], shown[0]["address"], "{}", subject.name);
        let host = stage.host.ip_json(&format!("link show {}", host_end(&result)));
        assert_eq!(result["interfaces"][1]["mac"], host[0]["address"], "{}", subject.name);
        assert_eq!(host[0]["master"], "br0", "{}", subject.name);
    }
}

#[test]
fn a_different_address_on_the_bridge_is_an_error_unless_forced() {
    for subject in subjects() {
        for (before, subnet, gateway) in [
            ("10.0.0.1/8", "10.1.2.0/24", "10.1.2.1/24"),
            ("2001:db8::1/32", "2001:db8:42::/64", "2001:db8:42::1/64"),
        ] {
            let stage = Stage::new();
            stage.host.ip("link add br0 address 02:00:00:00:00:99 up type bridge");
            stage.host.ip(&format!("address add {before} dev br0"));
            let mut config = config(&stage, &[subnet], json!({ "isGateway": true }));
            let call = stage.call(&subject, "bridge", "c1");
            let reply = call.run("ADD", &config);
            let words = "already has an IP address different from";
            assert!(reply.error_text().contains(words), "{}: {reply:?}", subject.name);
            assert_eq!(addresses(&stage.host, "br0"), [before], "{}", subject.name);
            call.run("DEL", &config);
            config["forceAddress"] = json!(true);
            call.add(&config);
            assert_eq!(addresses(&stage.host, "br0"), [gateway], "{}", subject.name);
        }
    }
}

#[test]
fn disjoint_ipv6_gateways_live_side_by_side() {
    for subject in subjects() {
        let stage = Stage::new();
        let more = json!({ "isGateway": true });
        for (container, subnet) in [("c1", "2001:db8:1::/64"), ("c2", "2001:db8:2::/64")] {
            let mut config = config(&stage, &[subnet], more.clone());
            config["name"] = json!(container);
            let mut call = stage.call(&subject, "bridge", container);
            call.ifname = container;
            call.add(&config);
        }
        let expected = ["2001:db8:1::1/64", "2001:db8:2::1/64"];
        assert_eq!(addresses(&stage.host, "br0"), expected, "{}", subject.name);
    }
}

#[test]
fn the_bridges_mac_stays_while_pods_come_and_go() {
    for subject in subjects() {
        let stage = Stage::new();
        let config = config(&stage, &["10.1.2.0/24"], json!({ "isGateway": true }));
        stage.call(&subject, "bridge", "c0").add(&config);
        let mac = stage.host.ip_json("link show br0")[0]["address"].clone();
        for container in ["c1", "c2", "c3"] {
            let pod = Namespace::new();
            let mut call = stage.call(&subject, "bridge", container);
            call.netns = pod.path();
            call.add(&config);
            assert_eq!(stage.host.ip_json("link show br0")[0]["address"], mac, "{}", subject.name);
        }
        stage.call(&subject, "bridge", "c0").del(&config);
        assert_eq!(stage.host.ip_json("link show br0")[0]["address"], mac, "{}", subject.name);
    }
}

#[test]
fn promiscuous_and_hairpin_modes_exclude_each_other() {
    for subject in subjects() {
        let stage = Stage::new();
        let promiscuous = config(&stage, &["10.1.2.0/24"], json!({ "promiscMode": true }));
        let result = stage.call(&subject, "bridge", "c1").add(&promiscuous);
        assert_eq!(stage.host.ip_json("link show br0")[0]["promiscuity"], 1, "{}", subject.name);
        assert_eq!(port(&stage, &host_end(&result), "hairpin"), false, "{}", subject.name);
        let stage = Stage::new();
        let hairpin = config(&stage, &["10.1.2.0/24"], json!({ "hairpinMode": true }));
        let result = stage.call(&subject, "bridge", "c1").add(&hairpin);
        assert_eq!(port(&stage, &host_end(&result), "hairpin"), true, "{}", subject.name);
        let both = config(&stage, &["10.1.2.0/24"], json!({ "hairpinMode": true, "promiscMode": true }));
        let reply = stage.call(&subject, "bridge", "c2").run("ADD", &both);
        assert_ne!(reply.exit, Some(0), "{}", subject.name);
    }
}

fn port(stage: &Stage, link: &str, key: &str) -> Value {
    stage.host.bridge_json(&format!("link show dev {link}"))[0][key].clone()
}

#[test]
fn the_mac_comes_from_three_places_in_rising_order() {
    for subject in subjects() {
        let stage = Stage::new();
        let mut config = config(&stage, &["10.1.2.0/24"], json!({}));
        let mut call = stage.call(&subject, "bridge", "c1");
        call.args = "IgnoreUnknown=1;MAC=c2:11:22:33:44:55";
        let mut expected = vec!["c2:11:22:33:44:55"];
        call_and_undo(&call, &config, &expected);
        config["args"] = json!({ "cni": { "mac": "c2:11:22:33:44:66" } });
        expected[0] = "c2:11:22:33:44:66";
        call_and_undo(&call, &config, &expected);
        config["runtimeConfig"] = json!({ "mac": "c2:11:22:33:44:77" });
        expected[0] = "c2:11:22:33:44:77";
        call_and_undo(&call, &config, &expected);
    }
}

fn call_and_undo(call: &harness::Call<'_>, config: &Value, macs: &[&str]) {
    let result = call.add(config);
    assert_eq!(result["interfaces"][2]["mac"], macs[0]);
    call.del(config);
}

#[test]
fn layer_two_only_has_no_addresses_and_no_old_result() {
    for subject in subjects() {
        let stage = Stage::new();
        let config = config(&stage, &[], json!({}));
        let result = stage.call(&subject, "bridge", "c1").add(&config);
        assert!(result.get("ips").is_none(), "{}: {result}", subject.name);
        // The kernel works out the operational state in its own time.
        eventually("eth0 is up", || {
            (stage.pod.ip_json("link show eth0")[0]["operstate"] == "UP").then_some(())
        });
        stage.call(&subject, "bridge", "c1").del(&config);
        let mut old = config;
        old["cniVersion"] = json!("0.2.0");
        let reply = stage.call(&subject, "bridge", "c2").run("ADD", &old);
        let words = "cannot convert: no valid IP addresses";
        assert!(reply.error_text().contains(words), "{}: {reply:?}", subject.name);
        // The reference leaves the veth to the DEL that follows.
        assert_eq!(stage.pod.link_names().is_empty(), !subject.is_reference(), "{}", subject.name);
    }
}

#[test]
fn newer_keys_do_what_they_say() {
    let subject = ours();
    let stage = Stage::new();
    let isolated = config(&stage, &["10.1.2.0/24"], json!({ "portIsolation": true }));
    let result = stage.call(&subject, "bridge", "c1").add(&isolated);
    assert_eq!(port(&stage, &host_end(&result), "isolated"), true);
    let stage = Stage::new();
    let down = config(&stage, &[], json!({ "disableContainerInterface": true }));
    stage.call(&subject, "bridge", "c1").add(&down);
    assert_eq!(stage.pod.ip_json("link show eth0")[0]["operstate"], "DOWN");
    let stage = Stage::new();
    let both = config(&stage, &["10.1.2.0/24"], json!({ "disableContainerInterface": true }));
    let reply = stage.call(&subject, "bridge", "c1").run("ADD", &both);
    assert!(
        reply.error_text().contains("cannot use IPAM when DisableContainerInterface flag is set"),
        "{reply:?}"
    );
    assert_eq!((stage.host.link_names().len(), stage.reserved().len()), (0, 0));
}

#[test]
fn an_ipam_that_fails_or_gives_nothing_leaves_nothing() {
    for subject in subjects() {
        for (script, words) in [
            ("echo '{\"code\": 42, \"msg\": \"the pool is on fire\"}'; exit 1", "the pool is on fire"),
            ("echo '{\"cniVersion\": \"1.0.0\", \"ips\": []}'", "IPAM plugin returned missing IP config"),
        ] {
            let stage = Stage::new();
            let bin = tempfile::tempdir().unwrap();
            for entry in fs::read_dir(&subject.bin).unwrap() {
                let entry = entry.unwrap();
                let target = fs::canonicalize(entry.path()).unwrap();
                std::os::unix::fs::symlink(target, bin.path().join(entry.file_name())).unwrap();
            }
            let stub = bin.path().join("stub-ipam");
            fs::write(&stub, format!("#!/bin/sh\n[ $CNI_COMMAND = ADD ] || exit 0\n{script}\n")).unwrap();
            fs::set_permissions(&stub, fs::Permissions::from_mode(0o755)).unwrap();
            let mut config = config(&stage, &[], json!({ "ipMasq": true }));
            config["ipam"] = json!({ "type": "stub-ipam" });
            let mut call = stage.call(&subject, "bridge", "c1");
            call.bin = bin.path();
            let reply = call.run("ADD", &config);
            assert_ne!(reply.exit, Some(0), "{}", subject.name);
            assert!(reply.error_text().contains(words), "{}: {reply:?}", subject.name);
            // The reference leaves the veth to the DEL that follows.
            assert_eq!(stage.pod.link_names().is_empty(), !subject.is_reference(), "{}", subject.name);
            if !subject.is_reference() {
                assert_eq!(stage.host.link_names(), ["br0"], "only the bridge stays");
            }
        }
    }
}

/// Something done to a pod's network behind the plugin's back, given the result of ADD.
type Break = fn(&Stage, &Value);

#[test]
fn check_is_content_after_add_and_finds_what_is_broken() {
    for subject in subjects() {
        let breaks: [(&str, Break); 5] = [
            ("a route is gone", |stage, _| drop(stage.pod.ip("route del default"))),
            ("the address is gone", |stage, _| drop(stage.pod.ip("address flush dev eth0 scope global"))),
            ("the port left the bridge", |stage, result| {
                stage.host.ip(&format!("link set {} nomaster", host_end(result)));
            }),
            ("the mac is another", |stage, _| {
                stage.pod.ip("link set eth0 address 02:00:00:00:00:01");
            }),
            ("the veth is gone", |stage, _| drop(stage.pod.ip("link del eth0"))),
        ];
        for (what, broken) in breaks {
            let stage = Stage::new();
            let mut config = config(&stage, &["10.1.2.0/24"], json!({ "isDefaultGateway": true }));
            let call = stage.call(&subject, "bridge", "c1");
            let result = call.add(&config);
            config["prevResult"] = result.clone();
            call.run("CHECK", &config).expect_success("CHECK after ADD");
            broken(&stage, &result);
            assert_ne!(call.run("CHECK", &config).exit, Some(0), "{}: {what}", subject.name);
        }
    }
}

#[test]
fn a_hundred_pods_at_once_share_one_new_bridge() {
    for subject in subjects() {
        let stage = Stage::new();
        let config = config(&stage, &["10.1.0.0/16"], json!({ "isDefaultGateway": true, "ipMasq": true }));
        let pods: Vec<Namespace> = (0..100).map(|_| Namespace::new()).collect();
        thread::scope(|scope| {
            for (worker, chunk) in pods.chunks(10).enumerate() {
                let (stage, subject, config) = (&stage, &subject, &config);
                scope.spawn(move || {
                    for (number, pod) in chunk.iter().enumerate() {
                        let container = format!("c{worker}-{number}");
                        let mut call = stage.call(subject, "bridge", &container);
                        call.netns = pod.path();
                        call.add(config);
                    }
                });
            }
        });
        assert_eq!(stage.reserved().len(), 100, "{}", subject.name);
        assert_eq!(stage.host.bridge_json("link show").as_array().unwrap().len(), 100, "{}", subject.name);
    }
}

#[test]
fn masquerade_hides_a_pod_from_the_outside_and_leaves_with_it() {
    for subject in subjects() {
        let stage = Stage::new();
        let outside = outside(&stage);
        let config = config(&stage, &["10.1.2.0/24"], json!({ "isDefaultGateway": true, "ipMasq": true }));
        let call = stage.call(&subject, "bridge", "c1");
        call.add(&config);
        assert!(masquerade_rules(&stage, &subject).contains("10.1.2.2"), "{}: no rule", subject.name);
        // The outside has no route to 10.1.2.0/24: only a masqueraded echo can be answered.
        eventually("a masqueraded echo", || stage.pod.pings("192.0.2.2").then_some(()));
        drop(outside);
        call.del(&config);
        assert!(!masquerade_rules(&stage, &subject).contains("10.1.2.2"), "{}: a rule stays", subject.name);
    }
}

#[test]
fn masquerade_leaves_also_when_the_namespace_is_gone() {
    for subject in subjects() {
        let stage = Stage::new();
        let config = config(&stage, &["10.1.2.0/24"], json!({ "isDefaultGateway": true, "ipMasq": true }));
        let mut call = stage.call(&subject, "bridge", "c1");
        call.add(&config);
        assert!(masquerade_rules(&stage, &subject).contains("10.1.2.2"), "{}: no rule", subject.name);
        call.netns = "".into();
        call.del(&config);
        let stays = masquerade_rules(&stage, &subject).contains("10.1.2.2");
        // The reference leaks here.
        assert_eq!(stays, subject.is_reference(), "{}", subject.name);
    }
}

/// A second host behind the first one's link `up0`, at 192.0.2.2.
fn outside(stage: &Stage) -> Namespace {
    let outside = Namespace::new();
    let holder = outside.path();
    let process = holder.to_str().unwrap().split('/').nth(2).unwrap().to_owned();
    stage.host.ip(&format!("link add up0 type veth peer name up0 netns {process}"));
    stage.host.ip("address add 192.0.2.1/24 dev up0");
    stage.host.ip("link set up0 up");
    outside.ip("address add 192.0.2.2/24 dev up0");
    outside.ip("link set up0 up");
    outside
}

/// Whatever masquerades on the host, as text.
fn masquerade_rules(stage: &Stage, subject: &Subject) -> String {
    if subject.is_reference() {
        run_ok(&mut stage.host.command("iptables-save"))
    } else {
        run_ok(stage.host.command("nft").args(["list", "ruleset"]))
    }
}

#[test]
fn without_duplicate_address_detection_an_ipv6_address_is_usable_at_once() {
    for subject in subjects() {
        let stage = Stage::new();
        let config = config(&stage, &["2001:db8:42::/64"], json!({ "isDefaultGateway": true }));
        stage.call(&subject, "bridge", "c1").add(&config);
        assert_eq!(stage.pod.sysctl("net/ipv6/conf/eth0/accept_dad"), "0", "{}", subject.name);
        let tentative = stage.pod.ip_json("-6 address show dev eth0 tentative scope global");
        assert!(tentative.as_array().unwrap().iter().all(|link| link == &json!({})), "{}", subject.name);
    }
}
