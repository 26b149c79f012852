//! bandwidth: limits on a veth that is there already. Behaviour 60; whether the limits limit, subnets, and the
//! plugin in a chain with our own interface plugins stand with the plugin (`crates/plugins/tests/bandwidth`).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use conformance::{Stage, Subject, ours, subjects};
use harness::{Call, Namespace, Reply, run_ok};
use serde_json::{Value, json};

const CABLE: &str = "cable0";
/// The IFB of network `test` and container `c1`.
const IFB: &str = "bwp917f9005c929";

fn tc(namespace: &Namespace, arguments: &str) -> Vec<Value> {
    let printed = run_ok(namespace.command("tc").arg("-j").args(arguments.split_whitespace()));
    if printed.trim().is_empty() { Vec::new() } else { serde_json::from_str(&printed).unwrap() }
}

/// A cable from the host (`cable0`, MTU 1400) to the pod's `eth0`.
fn stage() -> Stage {
    let stage = Stage::new();
    lay(&stage, CABLE, "eth0");
    stage
}

fn lay(stage: &Stage, host: &str, pod: &str) {
    stage.host.ip(&format!("link add {host} mtu 1400 up type veth peer name beside{host}"));
    let pid = stage.pod.path();
    let pid = pid.to_str().unwrap().split('/').nth(2).unwrap();
    stage.host.ip(&format!("link set beside{host} netns {pid} name {pod}"));
    stage.pod.ip(&format!("link set {pod} up"));
}

fn previous(stage: &Stage, host: &[&str]) -> Value {
    let sandbox = stage.pod.path();
    let mut interfaces: Vec<Value> = host.iter().map(|name| json!({ "name": name })).collect();
    interfaces.push(json!({ "name": "eth0", "sandbox": sandbox }));
    let at = interfaces.len() - 1;
    let ips = json!([{ "address": "10.1.2.3/24", "interface": at }]);
    json!({ "cniVersion": "1.0.0", "interfaces": interfaces, "ips": ips, "dns": {} })
}

fn config(stage: &Stage, more: Value) -> Value {
    let mut config = stage.config("bandwidth", "1.0.0", &json!({ "prevResult": previous(stage, &[CABLE]) }));
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn both_ways() -> Value {
    json!({ "ingressRate": 8, "ingressBurst": 8, "egressRate": 16, "egressBurst": 8 })
}

fn call<'a>(stage: &'a Stage, subject: &'a Subject) -> Call<'a> {
    stage.call(subject, "bandwidth", "c1")
}

/// The token bucket's rate (bytes a second) on a link; 0 for none.
fn rate(namespace: &Namespace, link: &str) -> u64 {
    let shown = tc(namespace, &format!("qdisc show dev {link} root"));
    let Some(root) = shown.first().filter(|root| root["kind"] == "tbf") else { return 0 };
    assert_eq!(root["handle"], "1:");
    root["options"]["rate"].as_u64().unwrap()
}

fn ifbs(namespace: &Namespace) -> Vec<String> {
    namespace.link_names().into_iter().filter(|name| name.starts_with("bwp")).collect()
}

fn refused(reply: &Reply, words: &str, subject: &Subject) {
    assert!(reply.error_text().contains(words), "{}: {words}: {reply:?}", subject.name);
}

#[test]
fn bits_become_bytes_and_what_comes_from_the_pod_goes_through_an_ifb() {
    for subject in subjects() {
        let stage = stage();
        let mut config = config(&stage, both_ways());
        config["name"] = json!("cni-plugin-bandwidth-test");
        let result = stage.call(&subject, "bandwidth", "dummy").add(&config);
        let ifb = "bwpa8eda89404b7";
        assert_eq!(rate(&stage.host, CABLE), 1, "{}", subject.name);
        assert_eq!(rate(&stage.host, ifb), 2, "{}", subject.name);
        let shown = stage.host.ip_json(&format!("link show {ifb}"));
        assert_eq!((&shown[0]["mtu"], &shown[0]["linkinfo"]["info_kind"]), (&1400.into(), &"ifb".into()));
        assert!(shown[0]["flags"].as_array().unwrap().contains(&json!("UP")), "{}", subject.name);
        let filters = tc(&stage.host, &format!("filter show dev {CABLE} ingress"));
        let action = &filters.last().unwrap()["options"]["actions"][0];
        assert_eq!(
            (&action["kind"], &action["mirred_action"], &action["to_dev"]),
            (&"mirred".into(), &"redirect".into(), &ifb.into()),
            "{}",
            subject.name
        );
        // The IFB joins the interfaces; all else is passed on.
        let interfaces = result["interfaces"].as_array().unwrap();
        assert_eq!(interfaces.len(), 3, "{}", subject.name);
        assert_eq!(
            (&interfaces[2]["name"], &interfaces[2]["mac"]),
            (&ifb.into(), &shown[0]["address"]),
            "{}",
            subject.name
        );
        assert_eq!(interfaces[2].get("sandbox"), None, "{}", subject.name);
        assert_eq!(result["ips"], config["prevResult"]["ips"], "{}", subject.name);
    }
}

#[test]
fn one_direction_alone_leaves_the_other_be() {
    for subject in subjects() {
        let stage = stage();
        let result =
            call(&stage, &subject).add(&config(&stage, json!({ "ingressRate": 800, "ingressBurst": 80 })));
        assert_eq!((rate(&stage.host, CABLE), ifbs(&stage.host).len()), (100, 0), "{}", subject.name);
        assert_eq!(result["interfaces"].as_array().unwrap().len(), 2, "{}", subject.name);

        let stage = self::stage();
        call(&stage, &subject).add(&config(&stage, json!({ "egressRate": 800, "egressBurst": 80 })));
        assert_eq!((rate(&stage.host, CABLE), rate(&stage.host, IFB)), (0, 100), "{}", subject.name);
    }
}

#[test]
fn no_limits_pass_the_result_on_and_touch_nothing() {
    for subject in subjects() {
        let zero = json!({ "ingressRate": 0, "ingressBurst": 0, "egressRate": 0, "egressBurst": 0 });
        for more in [json!({}), zero.clone(), json!({ "runtimeConfig": { "bandwidth": zero } })] {
            let stage = stage();
            let config = config(&stage, more);
            let result = call(&stage, &subject).add(&config);
            for key in ["interfaces", "ips"] {
                assert_eq!(result[key], config["prevResult"][key], "{}", subject.name);
            }
            assert_eq!((rate(&stage.host, CABLE), ifbs(&stage.host).len()), (0, 0), "{}", subject.name);
        }
    }
}

#[test]
fn the_runtimes_limits_count_unless_there_are_static_ones() {
    for subject in subjects() {
        let runtime = json!({ "bandwidth": { "ingressRate": 800, "ingressBurst": 800, "egressRate": 800, "egressBurst": 800 } });
        let stage = stage();
        call(&stage, &subject).add(&config(&stage, json!({ "runtimeConfig": runtime })));
        assert_eq!((rate(&stage.host, CABLE), rate(&stage.host, IFB)), (100, 100), "{}", subject.name);

        let stage = self::stage();
        let fixed = json!({ "runtimeConfig": runtime, "ingressRate": 8, "ingressBurst": 8 });
        call(&stage, &subject).add(&config(&stage, fixed));
        assert_eq!((rate(&stage.host, CABLE), ifbs(&stage.host).len()), (1, 0), "{}", subject.name);
    }
}

#[test]
fn limits_that_make_no_sense_are_refused_before_anything_is_touched() {
    for subject in subjects() {
        let stage = stage();
        for (more, words) in [
            (json!({ "ingressRate": 8 }), "if rate is set, burst must also be set"),
            (
                json!({ "egressRate": 8, "ingressRate": 8, "ingressBurst": 8 }),
                "if rate is set, burst must also be set",
            ),
            (json!({ "egressBurst": 8 }), "if burst is set, rate must also be set"),
            (
                json!({ "ingressRate": 8, "ingressBurst": 34_359_738_360_u64 }),
                "burst cannot be more than 4GB",
            ),
        ] {
            let reply = call(&stage, &subject).run("ADD", &config(&stage, more));
            refused(&reply, words, &subject);
        }
        assert_eq!((rate(&stage.host, CABLE), ifbs(&stage.host).len()), (0, 0), "{}", subject.name);
    }
}

#[test]
fn the_pods_own_cable_is_found_among_several() {
    for subject in subjects() {
        let stage = Stage::new();
        for (host, pod) in [("other0", "net1"), (CABLE, "eth0"), ("other1", "net2")] {
            lay(&stage, host, pod);
        }
        let more = json!({ "prevResult": previous(&stage, &["other0", CABLE, "other1"]) });
        let mut config = config(&stage, both_ways());
        config["prevResult"] = more["prevResult"].clone();
        call(&stage, &subject).add(&config);
        let rates = ["other0", CABLE, "other1"].map(|link| rate(&stage.host, link));
        assert_eq!(rates, [0, 1, 0], "{}", subject.name);
    }
}

#[test]
fn a_pod_without_a_cable_of_the_chains_is_refused() {
    for subject in subjects() {
        let stage = stage();
        let mut empty = config(&stage, both_ways());
        empty["prevResult"]["interfaces"] = json!([]);
        empty["prevResult"]["ips"] = json!([]);
        refused(&call(&stage, &subject).run("ADD", &empty), "no interfaces provided", &subject);

        let mut unlisted = config(&stage, both_ways());
        unlisted["prevResult"] = previous(&stage, &["other0"]);
        let reply = call(&stage, &subject).run("ADD", &unlisted);
        refused(&reply, "no veth peer of container interface found in host ns", &subject);

        stage.pod.ip("link delete eth0");
        stage.pod.ip("link add eth0 type ifb");
        let reply = call(&stage, &subject).run("ADD", &config(&stage, both_ways()));
        refused(&reply, "container interface eth0 has no veth peer", &subject);

        let mut first = config(&stage, both_ways());
        first.as_object_mut().unwrap().remove("prevResult");
        refused(&call(&stage, &subject).run("ADD", &first), "must be called as", &subject);
        assert_eq!(ifbs(&stage.host), [""; 0], "{}", subject.name);
    }
}

#[test]
fn del_takes_the_ifb_and_finds_nothing_the_second_time() {
    for subject in subjects() {
        for forgetful in [false, true] {
            let stage = stage();
            let mut config = config(&stage, both_ways());
            call(&stage, &subject).add(&config);
            assert_eq!(ifbs(&stage.host), [IFB], "{}", subject.name);
            let mut call = call(&stage, &subject);
            if forgetful {
                config.as_object_mut().unwrap().remove("prevResult");
                call.netns = "/var/run/netns/there-is-no-such-name".into();
            }
            call.del(&config);
            assert_eq!(ifbs(&stage.host), [""; 0], "{}", subject.name);
            call.del(&config);
        }
    }
}

#[test]
fn one_container_in_two_networks_has_two_ifbs() {
    for subject in subjects() {
        let stage = stage();
        let first = config(&stage, both_ways());
        call(&stage, &subject).add(&first);
        lay(&stage, "cable1", "net1");
        let mut second = config(&stage, both_ways());
        second["name"] = json!("other");
        second["prevResult"] = previous(&stage, &["cable1"]);
        second["prevResult"]["interfaces"][1]["name"] = json!("net1");
        let mut beside = call(&stage, &subject);
        beside.ifname = "net1";
        beside.add(&second);
        assert_eq!(ifbs(&stage.host).len(), 2, "{}", subject.name);
        beside.del(&second);
        assert_eq!(ifbs(&stage.host), [IFB], "{}", subject.name);
    }
}

#[test]
fn one_container_twice_in_one_network_has_two_ifbs() {
    for subject in subjects() {
        let stage = stage();
        let first = config(&stage, both_ways());
        call(&stage, &subject).add(&first);
        lay(&stage, "cable1", "net1");
        let mut second = config(&stage, both_ways());
        second["prevResult"] = previous(&stage, &["cable1"]);
        second["prevResult"]["interfaces"][1]["name"] = json!("net1");
        let mut beside = call(&stage, &subject);
        beside.ifname = "net1";
        let reply = beside.run("ADD", &second);
        if subject.is_reference() {
            // Its name does not tell the two apart.
            refused(&reply, "file exists", &subject);
            continue;
        }
        let result = reply.expect_success("the second ADD");
        assert_eq!(ifbs(&stage.host).len(), 2);
        let mut checked = second.clone();
        checked["prevResult"] = result;
        beside.run("CHECK", &checked).expect_success("CHECK of the second");
        call(&stage, &subject).del(&first);
        beside.run("CHECK", &checked).expect_success("CHECK after the other one's DEL");
        assert_eq!(ifbs(&stage.host).len(), 1);
        beside.del(&second);
        assert_eq!(ifbs(&stage.host), [""; 0]);
    }
}

#[test]
fn check_compares_rates_and_ours_knows_each_thing_taken_away() {
    for subject in subjects() {
        let stage = stage();
        let mut config = config(&stage, both_ways());
        let result = call(&stage, &subject).add(&config);
        config["prevResult"] = result;
        let check = |config: &Value| call(&stage, &subject).run("CHECK", config);
        check(&config).expect_success("CHECK");
        let mut faster = config.clone();
        faster["ingressRate"] = json!(80);
        refused(&check(&faster), "Rate doesn't match", &subject);
        if subject.is_reference() {
            stage.host.ip(&format!("link delete {IFB}"));
            refused(&check(&config), "get ifb device", &subject);
            continue;
        }
        let breaking: [(&[&str], &str); 4] = [
            (&["tc", "filter", "del", "dev", CABLE, "ingress"], "not redirected"),
            (&["tc", "qdisc", "del", "dev", CABLE, "root"], "Failed to find qdisc"),
            (&["ip", "link", "set", IFB, "down"], "is down"),
            (&["ip", "link", "delete", IFB], "is gone"),
        ];
        for (command, words) in breaking {
            call(&stage, &subject).del(&config);
            run_ok(stage.host.command("sh").args([
                "-c",
                &format!("tc qdisc del dev {CABLE} root; tc qdisc del dev {CABLE} ingress; true"),
            ]));
            let mut again = config.clone();
            again["prevResult"] = previous(&stage, &[CABLE]);
            call(&stage, &subject).add(&again);
            check(&config).expect_success("CHECK");
            run_ok(stage.host.command(command[0]).args(&command[1..]));
            refused(&check(&config), words, &subject);
        }
    }
}

#[test]
fn a_burst_that_runtimes_make_up_is_bounded_by_ours() {
    for subject in subjects() {
        let stage = stage();
        let made_up = json!({ "ingressRate": 80_000_000, "ingressBurst": i32::MAX });
        let config = config(&stage, made_up);
        call(&stage, &subject).add(&config);
        let burst =
            tc(&stage.host, &format!("qdisc show dev {CABLE} root"))[0]["options"]["burst"].as_u64().unwrap();
        let wanted = if subject.is_reference() { 200_000_000..300_000_000 } else { 400_000..600_000 };
        assert!(wanted.contains(&burst), "{}: {burst}", subject.name);
        call(&stage, &subject).run("CHECK", &config).expect_success("CHECK");
    }
}

#[test]
fn what_one_implementation_made_the_other_checks_and_takes_away() {
    let all = subjects();
    let [ours, reference] = all.as_slice() else { return };
    for (maker, heir) in [(ours, reference), (reference, ours)] {
        for burst in [80_000, i32::MAX] {
            let stage = stage();
            let more = json!({ "ingressRate": 8_000_000, "ingressBurst": burst, "egressRate": 800_000, "egressBurst": burst });
            let mut config = config(&stage, more);
            config["prevResult"] = call(&stage, maker).add(&config);
            if burst != i32::MAX || !heir.is_reference() {
                call(&stage, heir).run("CHECK", &config).expect_success("CHECK by the other");
            }
            call(&stage, heir).del(&config);
            assert_eq!(ifbs(&stage.host), [""; 0], "{} after {}", heir.name, maker.name);
        }
    }
}

#[test]
fn gc_takes_the_ifbs_of_the_unlisted_and_status_knows_the_kernel() {
    let subject = ours();
    let stage = stage();
    let mut config = config(&stage, both_ways());
    config["cniVersion"] = json!("1.1.0");
    call(&stage, &subject).add(&config);
    config.as_object_mut().unwrap().remove("prevResult");
    let gc = |network: &str, valid: Value| {
        let mut config = config.clone();
        config["name"] = json!(network);
        config["cni.dev/valid-attachments"] = valid;
        call(&stage, &subject).run("GC", &config).expect_success("GC");
    };
    gc("test", json!([{ "containerID": "c1", "ifname": "eth0" }]));
    gc("other", json!([]));
    assert_eq!(ifbs(&stage.host), [IFB]);
    gc("test", json!([{ "containerID": "c1", "ifname": "eth1" }]));
    assert_eq!(ifbs(&stage.host), [""; 0]);
    assert_eq!(call(&stage, &subject).run("GC", &config).error_code(), 7);
    call(&stage, &subject).run("STATUS", &config).expect_success("STATUS");
    config["ingressBurst"] = json!(0);
    assert_eq!(call(&stage, &subject).run("STATUS", &config).error_code(), 50);
    assert_eq!(stage.host.link_names(), [CABLE]);
}
