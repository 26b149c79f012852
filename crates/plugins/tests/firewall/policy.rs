//! Who comes first, who reaches whom, and what CHECK and STATUS say of it.

use std::process::Stdio;

use harness::{eventually, run_ok};
use serde_json::{Value, json};

use crate::scene::Scene;

#[test]
fn the_administrators_chain_is_asked_first_and_survives() {
    for (more, chain) in [(json!({}), "CNI-ADMIN"), (json!({ "iptablesAdminChainName": "MINE" }), "MINE")] {
        let scene = Scene::new();
        let (one, two) = (scene.pod("net", 1, "c1"), scene.pod("other", 2, "c2"));
        one.admit(&scene, more.clone());
        eventually("pods talk", || one.namespace.pings(two.address()).then_some(()));
        let rule = format!("add rule inet fairlead_cni {chain} ip daddr {} drop", two.address());
        run_ok(scene.host.command("nft").args(rule.split(' ')));
        assert!(!one.namespace.pings(two.address()));
        two.admit(&scene, more.clone());
        assert!(!one.namespace.pings(two.address()));
        let reply = one.call(&scene, "firewall").run("CHECK", &one.config(more));
        assert_eq!(reply.exit, Some(0), "{reply:?}");
    }
}

#[test]
fn an_administrator_may_let_pass_what_a_policy_keeps_apart() {
    let scene = Scene::new();
    let policy = json!({ "ingressPolicy": "isolated" });
    let (one, two) = (scene.pod("net", 1, "c1"), scene.pod("other", 2, "c2"));
    one.admit(&scene, policy.clone());
    two.admit(&scene, policy);
    assert!(!one.namespace.pings(two.address()));
    for field in ["saddr", "daddr"] {
        let rule = format!("add rule inet fairlead_cni CNI-ADMIN ip {field} {} accept", two.address());
        run_ok(scene.host.command("nft").args(rule.split(' ')));
    }
    eventually("the administrator's word holds", || one.namespace.pings(two.address()).then_some(()));
}

#[test]
fn a_policy_that_is_taken_back_frees_the_bridge() {
    let scene = Scene::new();
    let (one, two) = (scene.pod("net", 1, "c1"), scene.pod("other", 2, "c2"));
    for pod in [&one, &two] {
        pod.admit(&scene, json!({ "ingressPolicy": "same-bridge" }));
    }
    assert!(!one.namespace.pings(two.address()));
    // Another pod, whose list says otherwise by now.
    let later = scene.pod("net", 1, "c3");
    later.admit(&scene, json!({ "ingressPolicy": "open" }));
    eventually("the bridge is free", || later.namespace.pings(two.address()).then_some(()));
}

#[test]
fn isolated_pods_are_apart_in_both_families_and_on_their_own_bridge() {
    let scene = Scene::new();
    let (one, two) = (scene.pod("net", 1, "c1"), scene.pod("net", 1, "c2"));
    let six = two.result["ips"][1]["address"].as_str().unwrap().split('/').next().unwrap().to_owned();
    eventually("pods talk", || {
        (one.namespace.pings(two.address()) && one.namespace.pings(&six)).then_some(())
    });
    for pod in [&one, &two] {
        pod.admit(&scene, json!({ "ingressPolicy": "isolated" }));
    }
    assert!(!one.namespace.pings(two.address()) && !one.namespace.pings(&six));
    assert!(one.namespace.pings("10.1.0.1") && one.namespace.pings("2001:db8:1::1"));
}

#[test]
fn check_names_what_is_gone() {
    for (gone, words) in [
        ("flush set inet fairlead_cni firewall/net/ipv4", "10.1.0.2 is not let through"),
        ("flush chain inet fairlead_cni firewall_pods", "is gone from inet fairlead_cni"),
        ("flush chain inet fairlead_cni firewall_admin", "the jump to CNI-ADMIN is gone"),
        ("flush set inet fairlead_cni firewall/bridges", "bridge net is gone"),
        ("flush chain inet fairlead_cni firewall_isolation", "is gone from inet fairlead_cni"),
        ("flush chain ip filter CNI-FORWARD", "iptables' chain FORWARD"),
        ("delete table inet fairlead_cni", "is not let through"),
    ] {
        let scene = Scene::new();
        // Though iptables lets the pod pass: with our own cable it was not the reference that said so.
        scene.drop_forwarded();
        let pod = scene.pod("net", 1, "c1");
        let more = json!({ "ingressPolicy": "same-bridge" });
        pod.admit(&scene, more.clone());
        let check = || pod.call(&scene, "firewall").run("CHECK", &pod.config(more.clone()));
        assert_eq!(check().exit, Some(0), "{:?}", check());
        run_ok(scene.host.command("nft").args(gone.split(' ')));
        let text = check().error_text();
        assert!(text.contains(words), "{gone}: {text}");
    }
}

#[test]
fn an_add_after_a_flushed_table_makes_the_rules_anew() {
    let scene = Scene::new();
    let (one, two) = (scene.pod("net", 1, "c1"), scene.pod("net", 1, "c2"));
    one.admit(&scene, json!({ "ingressPolicy": "same-bridge" }));
    for flushed in ["table inet fairlead_cni", "chain inet fairlead_cni firewall_isolation"] {
        run_ok(scene.host.command("nft").arg("flush").args(flushed.split(' ')));
        two.admit(&scene, json!({ "ingressPolicy": "same-bridge" }));
        for pod in [&one, &two] {
            let config = pod.config(json!({ "ingressPolicy": "same-bridge" }));
            pod.call(&scene, "firewall").run("CHECK", &config).expect_success(flushed);
        }
    }
    let ruleset = scene.host.nft_ruleset();
    let rules = ruleset.iter().filter_map(|object| object.get("rule"));
    let of_chain = rules.filter(|rule| rule["table"] == "fairlead_cni" && rule["chain"] == "forward");
    assert_eq!(of_chain.count(), 3);
}

#[test]
fn fifty_adds_at_once_make_one_set_of_rules() {
    let scene = Scene::new();
    scene.drop_forwarded();
    let names: Vec<String> = (0..50).map(|number| format!("c{number}")).collect();
    let pods: Vec<_> = names.iter().map(|name| scene.pod("net", 1, name)).collect();
    let start = |pod: &crate::scene::Pod| {
        let mut process = pod.call(&scene, "firewall").command("ADD");
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = process.spawn().unwrap();
        let config = pod.config(json!({ "ingressPolicy": "same-bridge" })).to_string();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), config.as_bytes()).unwrap();
        child
    };
    let adding: Vec<_> = pods.iter().map(start).collect();
    for child in adding {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    assert_eq!(scene.elements().len(), 100 + 2);
    assert_eq!(scene.accepting().len(), 200);
    let ruleset = scene.host.nft_ruleset();
    let rules = |chain: &str| {
        let of_chain = |rule: &&Value| rule["table"] == "fairlead_cni" && rule["chain"] == chain;
        ruleset.iter().filter_map(|object| object.get("rule")).filter(of_chain).count()
    };
    assert_eq!((rules("forward"), rules("firewall_isolation"), rules("firewall_pods")), (3, 2, 4));
}

#[test]
fn status_says_what_an_add_would_lack() {
    let scene = Scene::new();
    let pod = scene.pod("net", 1, "c1");
    let status = |more: Value| pod.call(&scene, "firewall").run("STATUS", &pod.config(more));
    let before = scene.host.nft_ruleset();
    assert_eq!(status(json!({ "prevResult": null })).exit, Some(0));
    assert_eq!(status(json!({ "ingressPolicy": "no-such" })).error_code(), 50);
    assert_eq!(status(json!({ "iptablesAdminChainName": "forward" })).error_code(), 50);
    assert_eq!(scene.host.nft_ruleset(), before);
}
