//! macvlan: what it makes in the pod and what it says of it. Behaviours 35 to 38, and 9 to 11 and 29 for it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use conformance::{Stage, Subject, recent_subjects, subjects};
use harness::{Namespace, eventually};
use serde_json::{Value, json};

const BOTH: [&str; 2] = ["10.1.2.0/24", "2001:db8:42::/64"];

fn config(stage: &Stage, subnets: &[&str], more: &Value) -> Value {
    let mut config = stage.config("macvlan", "1.0.0", &json!({ "master": "uplink" }));
    if !subnets.is_empty() {
        config["ipam"] = stage.ipam(subnets);
    }
    for (key, value) in more.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    config
}

fn stage() -> Stage {
    let stage = Stage::new();
    stage.uplink();
    stage
}

/// What `ip` says of the pod's interface.
fn shown(stage: &Stage) -> Value {
    stage.pod.ip_json("link show eth0")[0].clone()
}

fn index(namespace: &Namespace, link: &str) -> Value {
    namespace.ip_json(&format!("link show {link}"))[0]["ifindex"].clone()
}

fn refused(subject: &Subject, stage: &Stage, config: &Value, words: &str) {
    let call = stage.call(subject, "macvlan", "c1");
    let reply = call.run("ADD", config);
    assert!(reply.error_text().contains(words), "{}: {reply:?}", subject.name);
    assert_eq!(stage.pod.link_names(), [""; 0], "{}", subject.name);
    call.run("DEL", config);
    assert_eq!(stage.reserved(), [""; 0], "{}", subject.name);
}

// 35
#[test]
fn a_master_that_is_not_named_is_the_default_routes_and_del_needs_none() {
    for subject in subjects() {
        let stage = stage();
        stage.host.ip("route add default via 192.0.2.254");
        let config = config(&stage, &["10.1.2.0/24"], &json!({ "master": "" }));
        let call = stage.call(&subject, "macvlan", "c1");
        call.add(&config);
        assert_eq!(shown(&stage)["link_index"], index(&stage.host, "uplink"), "{}", subject.name);
        stage.host.ip("route del default");
        let reply = call.run("DEL", &config);
        if !subject.is_recent() {
            // Debian's looks for the master first.
            assert!(reply.error_text().contains("no default route interface found"), "{reply:?}");
            continue;
        }
        reply.expect_success("DEL");
        assert_eq!(stage.pod.link_names(), [""; 0], "{}", subject.name);
        assert_eq!(stage.reserved(), [""; 0], "{}", subject.name);
        refused(&subject, &stage, &config, "no default route interface found");
    }
}

#[test]
fn a_master_may_be_named_by_an_alternative_name() {
    for subject in recent_subjects() {
        for name in ["short", "a-name-of-more-than-fifteen-bytes"] {
            let stage = stage();
            stage.host.ip(&format!("link property add dev uplink altname {name}"));
            let mut config = config(&stage, &["10.1.2.0/24"], &json!({ "master": name }));
            let call = stage.call(&subject, "macvlan", "c1");
            config["prevResult"] = call.add(&config);
            assert_eq!(shown(&stage)["link_index"], index(&stage.host, "uplink"), "{}", subject.name);
            call.run("CHECK", &config).expect_success("CHECK");
        }
    }
}

// 35, 9: Debian's reference looks for the master first.
#[test]
fn del_succeeds_whatever_is_missing() {
    for subject in recent_subjects() {
        let stage = stage();
        let config = config(&stage, &["10.1.2.0/24"], &json!({}));
        stage.call(&subject, "macvlan", "c1").add(&config);
        stage.host.ip("link del uplink");
        let mut call = stage.call(&subject, "macvlan", "c1");
        call.del(&config);
        call.del(&config);
        assert_eq!(stage.reserved(), [""; 0], "{}", subject.name);
        call.netns = "/var/run/netns/there-is-none".into();
        call.del(&config);
        call.netns = "".into();
        call.del(&config);
    }
}

// 36
#[test]
fn every_mode_is_set_and_an_unknown_one_refused() {
    for subject in subjects() {
        for mode in ["bridge", "private", "vepa", "passthru", ""] {
            let stage = stage();
            let config = config(&stage, &["10.1.2.0/24"], &json!({ "mode": mode }));
            stage.call(&subject, "macvlan", "c1").add(&config);
            let expected = if mode.is_empty() { "bridge" } else { mode };
            let info = shown(&stage)["linkinfo"].clone();
            assert_eq!(
                (&info["info_kind"], &info["info_data"]["mode"]),
                (&json!("macvlan"), &json!(expected))
            );
        }
        let stage = stage();
        let unknown = config(&stage, &["10.1.2.0/24"], &json!({ "mode": "foo" }));
        refused(&subject, &stage, &unknown, "unknown macvlan mode: \"foo\"");
    }
}

// 36
#[test]
fn the_broadcast_queue_is_as_long_as_asked() {
    for subject in recent_subjects() {
        let stage = stage();
        stage.call(&subject, "macvlan", "c1").add(&config(&stage, &[], &json!({ "bcqueuelen": 2345 })));
        assert_eq!(shown(&stage)["linkinfo"]["info_data"]["bcqueuelen"], 2345, "{}", subject.name);
    }
}

// 37
#[test]
fn an_mtu_beyond_the_masters_is_refused_and_one_up_to_it_set() {
    for subject in subjects() {
        for wrong in [1501, -1] {
            let stage = stage();
            let words = format!("invalid MTU {wrong}, must be [0, master MTU(1500)]");
            refused(&subject, &stage, &config(&stage, &["10.1.2.0/24"], &json!({ "mtu": wrong })), &words);
        }
        for (asked, expected) in [(1500, 1500), (1400, 1400), (0, 1500)] {
            let stage = stage();
            let config = config(&stage, &["10.1.2.0/24"], &json!({ "mtu": asked }));
            stage.call(&subject, "macvlan", "c1").add(&config);
            assert_eq!(shown(&stage)["mtu"], expected, "{}", subject.name);
        }
    }
}

// 38
#[test]
fn a_master_in_the_container_is_looked_for_there_alone() {
    for subject in recent_subjects() {
        let stage = Stage::new();
        stage.pod.ip("link add inner type veth peer name far");
        stage.pod.ip("link set far up");
        stage.pod.ip("link set inner up");
        let inside = json!({ "master": "inner", "linkInContainer": true });
        let config = config(&stage, &["10.1.2.0/24"], &inside);
        let call = stage.call(&subject, "macvlan", "c1");
        let result = call.add(&config);
        assert_eq!(shown(&stage)["link"], "inner", "{}", subject.name);
        assert_eq!(result["ips"][0]["interface"], 0, "{}", subject.name);
        let mut checked = config.clone();
        checked["prevResult"] = result;
        call.run("CHECK", &checked).expect_success("CHECK");
        call.del(&config);
        assert_eq!(stage.pod.link_names(), ["far", "inner"], "{}", subject.name);
        let outside = self::config(&stage, &["10.1.2.0/24"], &json!({ "master": "inner" }));
        assert_ne!(call.run("ADD", &outside).exit, Some(0), "{}", subject.name);
        call.run("DEL", &outside);
    }
}

// 38
#[test]
fn a_master_in_the_container_that_is_not_named_is_the_containers_default_routes() {
    for subject in recent_subjects() {
        let stage = stage();
        stage.host.ip("route add default via 192.0.2.254");
        stage.pod.ip("link add inner type veth peer name far");
        stage.pod.ip("link set inner up");
        stage.pod.ip("address add 198.51.100.1/24 dev inner");
        stage.pod.ip("route add default via 198.51.100.254");
        let inside = json!({ "master": "", "linkInContainer": true });
        stage.call(&subject, "macvlan", "c1").add(&config(&stage, &["10.1.2.0/24"], &inside));
        assert_eq!(shown(&stage)["link"], "inner", "{}", subject.name);
    }
}

#[test]
fn the_hardware_address_comes_from_the_configuration_then_the_arguments_then_the_runtime() {
    for subject in subjects() {
        let all = json!({
            "mac": "02:00:00:00:00:01",
            "capabilities": { "mac": true },
            "runtimeConfig": { "mac": "02:00:00:00:00:03" },
        });
        let own = json!({ "mac": "02:00:00:00:00:01" });
        for (more, args, expected) in [
            (&own, "", "02:00:00:00:00:01"),
            (&own, "MAC=02:00:00:00:00:02", "02:00:00:00:00:02"),
            (&all, "MAC=02:00:00:00:00:02", "02:00:00:00:00:03"),
        ] {
            let stage = stage();
            let mut call = stage.call(&subject, "macvlan", "c1");
            call.args = args;
            let result = call.add(&config(&stage, &[], more));
            assert_eq!(shown(&stage)["address"], expected, "{}", subject.name);
            assert_eq!(result["interfaces"][0]["mac"], expected, "{}", subject.name);
        }
    }
}

#[test]
fn pods_on_one_master_have_their_addresses_and_routes_and_reach_each_other() {
    for subject in subjects() {
        let (stage, other) = (stage(), Namespace::new());
        let mut config = config(&stage, &BOTH, &json!({}));
        config["ipam"]["routes"] = json!([{ "dst": "0.0.0.0/0" }, { "dst": "2001:db8:99::/64" }]);
        let result = stage.call(&subject, "macvlan", "c1").add(&config);
        let mut call = stage.call(&subject, "macvlan", "c2");
        call.netns = other.path();
        call.add(&config);
        let name = subject.name;
        let interfaces = result["interfaces"].as_array().unwrap();
        assert_eq!(interfaces.len(), 1, "{name}");
        assert_eq!(interfaces[0]["name"], "eth0", "{name}");
        assert_eq!(interfaces[0]["sandbox"], json!(stage.pod.path()), "{name}");
        assert_eq!(interfaces[0]["mac"], shown(&stage)["address"], "{name}");
        assert_eq!(result["ips"][1]["interface"], 0, "{name}");
        assert_eq!(stage.pod.ip_json("-4 route show default")[0]["gateway"], "10.1.2.1", "{name}");
        let routes = stage.pod.ip_json("-6 route show 2001:db8:99::/64");
        assert_eq!(routes[0]["gateway"], "2001:db8:42::1", "{name}");
        assert_eq!(stage.pod.sysctl("net/ipv4/conf/eth0/arp_notify"), "1", "{name}");
        let notify = if subject.is_recent() { "1" } else { "0" };
        assert_eq!(stage.pod.sysctl("net/ipv6/conf/eth0/ndisc_notify"), notify, "{name}");
        for address in ["10.1.2.3", "2001:db8:42::3"] {
            eventually(address, || stage.pod.pings(address).then_some(()));
        }
    }
}

#[test]
fn a_name_that_a_link_of_the_host_has_is_no_trouble() {
    for subject in subjects() {
        let stage = stage();
        stage.host.ip("link add eth0 type veth peer name eth1");
        stage.call(&subject, "macvlan", "c1").add(&config(&stage, &["10.1.2.0/24"], &json!({})));
        assert_eq!(stage.pod.link_names(), ["eth0"], "{}", subject.name);
        assert_eq!(stage.host.link_names(), ["eth0", "eth1", "far", "uplink"], "{}", subject.name);
    }
}

// 10
#[test]
fn an_interface_that_the_pod_has_is_left_alone() {
    for subject in subjects() {
        let stage = stage();
        stage.pod.ip("link add eth0 type veth peer name eth1");
        let before = index(&stage.pod, "eth0");
        let reply =
            stage.call(&subject, "macvlan", "c1").run("ADD", &config(&stage, &["10.1.2.0/24"], &json!({})));
        assert_ne!(reply.exit, Some(0), "{}", subject.name);
        assert_eq!(index(&stage.pod, "eth0"), before, "{}", subject.name);
        assert_eq!(stage.pod.link_names(), ["eth0", "eth1"], "{}", subject.name);
        assert_eq!(stage.reserved(), [""; 0], "{}", subject.name);
    }
}

#[test]
fn without_an_address_plugin_the_link_is_up_and_that_is_all() {
    for subject in subjects() {
        let stage = stage();
        let call = stage.call(&subject, "macvlan", "c1");
        let mut config = config(&stage, &[], &json!({}));
        let result = call.add(&config);
        assert_eq!(result["ips"].as_array().map_or(0, Vec::len), 0, "{}", subject.name);
        assert!(shown(&stage)["flags"].as_array().unwrap().contains(&json!("UP")), "{}", subject.name);
        config["prevResult"] = result;
        call.run("CHECK", &config).expect_success("CHECK");
        call.del(&config);
        assert_eq!(stage.pod.link_names(), [""; 0], "{}", subject.name);
    }
}

/// The reference loses what the address plugin says of name servers.
#[test]
fn the_configurations_name_servers_beat_the_address_plugins() {
    for subject in subjects() {
        let stage = stage();
        let file = stage.data.path().join("resolv.conf");
        std::fs::write(&file, "nameserver 192.0.2.53\n").unwrap();
        let mut config = config(&stage, &["10.1.2.0/24"], &json!({}));
        config["ipam"]["resolvConf"] = json!(file);
        let call = stage.call(&subject, "macvlan", "c1");
        let kept = call.add(&config)["dns"]["nameservers"].clone();
        let expected = if subject.is_reference() { Value::Null } else { json!(["192.0.2.53"]) };
        assert_eq!(kept, expected, "{}", subject.name);
        call.del(&config);
        config["dns"] = json!({ "nameservers": ["192.0.2.54"] });
        assert_eq!(call.add(&config)["dns"]["nameservers"], json!(["192.0.2.54"]), "{}", subject.name);
    }
}

/// What the complaint says, and what is done to deserve it.
type Damage<'a> = (&'a str, &'a dyn Fn(&Stage, &mut Value));

// 29
#[test]
fn check_is_content_after_add_and_not_when_something_is_lost() {
    for subject in subjects() {
        let breaking: [Damage<'_>; 6] = [
            ("10.1.2.2", &|stage, _| drop(stage.pod.ip("address flush dev eth0"))),
            ("eth0", &|stage, _| drop(stage.pod.ip("link del eth0"))),
            ("02:00:00:00:00:99", &|stage, _| drop(stage.pod.ip("link set eth0 address 02:00:00:00:00:99"))),
            ("private", &|stage, _| drop(stage.pod.ip("link set eth0 type macvlan mode private"))),
            ("0.0.0.0", &|stage, _| drop(stage.pod.ip("route del default"))),
            ("prevResult", &|_, config| config["prevResult"] = Value::Null),
        ];
        for (words, damage) in breaking {
            let stage = stage();
            let mut config = config(&stage, &["10.1.2.0/24"], &json!({}));
            config["ipam"]["routes"] = json!([{ "dst": "0.0.0.0/0" }]);
            let call = stage.call(&subject, "macvlan", "c1");
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

// 11: the reference's own undoing is left to DEL.
#[test]
fn an_address_plugin_that_cannot_give_leaves_no_link() {
    for subject in subjects() {
        let stage = stage();
        let mut config = config(&stage, &["10.1.2.0/24"], &json!({}));
        config["ipam"]["ranges"] = json!([[{ "subnet": "10.1.2.0/30", "rangeStart": "10.1.2.2" }]]);
        let other = Namespace::new();
        stage.call(&subject, "macvlan", "c1").add(&config);
        let mut call = stage.call(&subject, "macvlan", "c2");
        call.netns = other.path();
        assert_ne!(call.run("ADD", &config).exit, Some(0), "{}", subject.name);
        let expected: &[&str] = if subject.is_reference() { &["eth0"] } else { &[] };
        assert_eq!(other.link_names(), expected, "{}", subject.name);
        call.del(&config);
        assert_eq!(other.link_names(), [""; 0], "{}", subject.name);
    }
}

/// The live switch: the binaries are replaced while pods run, and back again.
#[test]
fn what_one_has_made_the_other_checks_and_removes() {
    let all = subjects();
    for maker in &all {
        for other in all.iter().filter(|other| other.name != maker.name) {
            let stage = stage();
            let mut config = config(&stage, &["10.1.2.0/24"], &json!({}));
            config["ipam"]["routes"] = json!([{ "dst": "0.0.0.0/0" }]);
            config["prevResult"] = stage.call(maker, "macvlan", "c1").add(&config);
            let call = stage.call(other, "macvlan", "c1");
            call.run("CHECK", &config).expect_success("CHECK by the other");
            call.del(&config);
            assert_eq!(stage.pod.link_names(), [""; 0], "made by {}", maker.name);
            assert_eq!(stage.reserved(), [""; 0], "made by {}", maker.name);
        }
    }
}
