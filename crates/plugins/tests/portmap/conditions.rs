//! Conditions and marks: for whom a host port is, and what marks packets for others' rules.

use harness::not_run;
use serde_json::json;

use crate::scene::{HOST, Scene, tcp};
use harness::talk::{ask, is_deaf, serve};

#[test]
fn conditions_in_both_languages_let_in_whom_they_name() {
    let scene = Scene::new();
    scene.outside.ip("address add 192.0.2.8/24 dev up0");
    let cases = [
        ("c1", 8001, json!({ "conditionsV4": ["!", "-s", "192.0.2.9"] }), false),
        ("c2", 8002, json!({ "conditionsV4": ["ip", "saddr", "!=", "192.0.2.9"] }), false),
        ("c3", 8003, json!({ "conditionsV4": ["-s", "192.0.2.9", "-i", "up0"] }), true),
        ("c4", 8004, json!({ "conditionsV4": ["iifname \"other0\""] }), false),
        ("c5", 8005, json!({ "conditionsV6": ["ip6 saddr 2001:db8::/128"] }), true),
    ];
    for (name, port, more, let_in) in cases {
        let pod = scene.pod(name);
        scene.map(&pod, "ADD", tcp(port, 80), more.clone()).expect_success("ADD");
        scene.map(&pod, "CHECK", tcp(port, 80), more.clone()).expect_success("CHECK");
        serve(&pod.namespace, 80, "yes");
        let heard = if let_in {
            ask(&scene.outside, HOST[0], port).is_some()
        } else {
            !is_deaf(&scene.outside, HOST[0], port)
        };
        assert_eq!(heard, let_in, "{more}: {}", scene.listing());
        // CHECK with other conditions is another question.
        let reply = scene.map(&pod, "CHECK", tcp(port, 80), json!({ "conditionsV4": ["-s", "10.9.9.9"] }));
        assert_eq!(reply.error_code(), 101, "{reply:?}");
        std::mem::forget(pod);
    }
    assert_eq!(scene.elements().len(), 20);
    scene.collect("test", &[]).expect_success("GC");
    assert_eq!(scene.elements(), [""; 0]);
}

#[test]
fn two_pods_share_a_port_under_different_conditions() {
    let scene = Scene::new();
    for (name, source) in [("nine", "192.0.2.9"), ("eight", "192.0.2.8")] {
        let pod = scene.pod(name);
        let more = json!({ "conditionsV4": ["-s", source], "conditionsV6": ["-i", name] });
        scene.map(&pod, "ADD", tcp(8080, 80), more).expect_success("ADD");
        serve(&pod.namespace, 80, name);
        std::mem::forget(pod);
    }
    assert_eq!(ask(&scene.outside, HOST[0], 8080).as_deref(), Some("nine 192.0.2.9"));
    scene.outside.ip("address delete 192.0.2.9/24 dev up0");
    scene.outside.ip("address add 192.0.2.8/24 dev up0");
    assert_eq!(ask(&scene.outside, HOST[0], 8080).as_deref(), Some("eight 192.0.2.8"));
}

#[test]
fn a_condition_that_is_not_understood_is_refused_by_name() {
    let scene = Scene::new();
    let pod = scene.pod("c1");
    let more = json!({ "conditionsV4": ["-m", "time", "--timestart", "12:00"] });
    let reply = scene.map(&pod, "ADD", tcp(8080, 80), more);
    assert_eq!(reply.error_code(), 7);
    assert!(reply.error_text().contains("conditionsV4: \"-m\" is not understood"), "{reply:?}");
    assert_eq!(scene.elements(), [""; 0]);
}

#[test]
fn the_mark_is_the_bit_that_was_asked_for() {
    let scene = Scene::new();
    let pod = scene.pod("c1");
    scene.map(&pod, "ADD", tcp(8080, 80), json!({ "markMasqBit": 5 })).expect_success("ADD");
    serve(&pod.namespace, 80, "c1");
    let listing = scene.listing();
    assert!(listing.contains("meta mark set meta mark | 0x00000020"), "{listing}");
    assert!(listing.contains("meta mark & 0x00000020 == 0x00000020 ct status dnat masquerade"), "{listing}");
    assert_eq!(ask(&scene.host, "127.0.0.1", 8080).as_deref(), Some("c1 10.1.2.1"));
}

/// A chain as kube-proxy makes it, and the rule of its owner that masquerades what is marked.
fn external_chain(scene: &Scene, program: &str) -> bool {
    [
        "-N KUBE-MARK-MASQ",
        "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
        "-A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE",
    ]
    .iter()
    .all(|line| {
        let mut command = scene.host.command(program);
        let done = command.args(["-t", "nat"]).args(line.split(' ')).output();
        done.is_ok_and(|output| output.status.success())
    })
}

#[test]
fn the_mark_of_an_external_chain_is_set_and_its_owners_rule_does_the_rest() {
    for backend in ["nft", "legacy"] {
        let scene = Scene::new();
        let pod = scene.pod("c1");
        let more = json!({ "externalSetMarkChain": "KUBE-MARK-MASQ" });
        let reply = scene.map(&pod, "ADD", tcp(8080, 80), more.clone());
        assert_eq!(reply.error_code(), 101);
        assert!(reply.error_text().contains("\"KUBE-MARK-MASQ\""), "{reply:?}");
        assert_eq!(scene.elements(), [""; 0]);
        if !external_chain(&scene, &format!("iptables-{backend}"))
            || !external_chain(&scene, &format!("ip6tables-{backend}"))
        {
            not_run(&format!("iptables-{backend} does not work here"));
            continue;
        }
        scene.map(&pod, "ADD", tcp(8080, 80), more.clone()).expect_success("ADD");
        scene.map(&pod, "CHECK", tcp(8080, 80), more).expect_success("CHECK");
        let listing = scene.listing();
        assert!(listing.contains("meta mark set meta mark | 0x00004000"), "{listing}");
        assert!(!listing.contains("masquerade"), "{listing}");
        serve(&pod.namespace, 80, "c1");
        assert_eq!(ask(&scene.host, "127.0.0.1", 8080).as_deref(), Some("c1 10.1.2.1"), "{backend}");
        assert_eq!(ask(&scene.outside, HOST[0], 8080).as_deref(), Some("c1 192.0.2.9"), "{backend}");
    }
}
