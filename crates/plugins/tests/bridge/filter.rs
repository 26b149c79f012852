//! Masquerading and the hardware address filter: what passes, what does not, and that nothing stays behind.

use harness::{Namespace, run, run_ok};
use serde_json::json;

use crate::scene::{Scene, with_previous};

/// A machine outside, reached through the host, that knows no way back to the pods.
fn outside(scene: &Scene) -> Namespace {
    let outside = Namespace::with_loopback();
    outside.ip(&format!("link add up0 type veth peer name out0 netns {}", scene.host.path().display()));
    for (namespace, link, v4, v6) in [
        (&outside, "up0", "203.0.113.2/24", "2001:db8:ffff::2/64"),
        (&scene.host, "out0", "203.0.113.1/24", "2001:db8:ffff::1/64"),
    ] {
        namespace.ip(&format!("addr add {v4} dev {link}"));
        namespace.ip(&format!("addr add {v6} dev {link} nodad"));
        namespace.ip(&format!("link set {link} up"));
    }
    outside
}

// 27
#[test]
fn a_masqueraded_pod_reaches_the_outside_in_both_families() {
    let scene = Scene::new();
    let outside = outside(&scene);
    let (pod, plain) = (Namespace::with_loopback(), Namespace::with_loopback());
    let subnets = ["10.1.2.0/24", "2001:db8:42::/64"];
    let masqueraded = scene.config(&subnets, json!({ "isDefaultGateway": true, "ipMasq": true }));
    let not_masqueraded = scene.config(&subnets, json!({ "isDefaultGateway": true }));
    scene.call("pod", &pod).add(&masqueraded);
    scene.call("plain", &plain).add(&not_masqueraded);
    assert!(pod.pings("203.0.113.2") && pod.pings("2001:db8:ffff::2"));
    assert!(!plain.pings("203.0.113.2"), "without masquerading there is no way back");
    assert!(pod.pings("10.1.2.3") && pod.pings("2001:db8:42::3"), "inside the subnet");
    outside.ip("link show up0");
}

// 27
#[test]
fn both_names_of_the_masquerading_backend_are_understood_and_end_in_nf_tables() {
    for backend in [json!("iptables"), json!("nftables"), json!("")] {
        let scene = Scene::new();
        let pod = Namespace::new();
        let config = scene
            .config(&["10.1.2.0/24"], json!({ "isGateway": true, "ipMasq": true, "ipMasqBackend": backend }));
        scene.call("c", &pod).add(&config);
        assert_eq!(scene.elements().len(), 1);
        assert!(scene.elements()[0].contains("10.1.2.2") && scene.elements()[0].contains("c/eth0"));
        scene.call("c", &pod).del(&config);
        scene.expect_clean("masquerading");
    }
    let scene = Scene::new();
    let pod = Namespace::new();
    let config = scene.config(&["10.1.2.0/24"], json!({ "ipMasq": true, "ipMasqBackend": "pf" }));
    let reply = scene.call("c", &pod).run("ADD", &config);
    assert_eq!(reply.error_code(), 7);
    assert!(reply.error_text().contains("unknown ipmasq backend"), "{reply:?}");
}

#[test]
fn the_rules_are_the_same_for_one_pod_and_for_many() {
    let scene = Scene::new();
    let config = scene.config(&["10.1.2.0/24"], json!({ "isGateway": true, "ipMasq": true }));
    let rules = || scene.host.nft_ruleset().iter().filter(|object| object.get("rule").is_some()).count();
    let pods = [Namespace::new(), Namespace::new(), Namespace::new()];
    scene.call("0", &pods[0]).add(&config);
    let first = rules();
    scene.call("1", &pods[1]).add(&config);
    scene.call("2", &pods[2]).add(&config);
    assert_eq!(rules(), first);
    assert_eq!(scene.elements().len(), 3);
}

// 27, P#810
#[test]
fn masquerading_ends_also_when_the_pods_namespace_is_gone() {
    let scene = Scene::new();
    let config = scene.config(
        &["10.1.2.0/24", "2001:db8:42::/64"],
        json!({ "isGateway": true, "ipMasq": true, "macspoofchk": true }),
    );
    for previous in [true, false] {
        let pod = Namespace::new();
        let mut call = scene.call("c", &pod);
        let result = call.add(&config);
        call.netns = "".into();
        drop_and_forget(pod);
        call.del(&if previous { with_previous(&config, &result) } else { config.clone() });
        scene.expect_clean(&format!("prevResult given: {previous}"));
    }
}

fn drop_and_forget(pod: Namespace) {
    drop(pod);
}

#[test]
fn a_late_second_delete_leaves_the_addresss_new_owner_alone() {
    let scene = Scene::new();
    // Two usable addresses, one of them the gateway's: the second pod gets what the first one had.
    let config = scene.config(&["10.1.2.0/30"], json!({ "isGateway": true, "ipMasq": true }));
    let (first, second) = (Namespace::new(), Namespace::new());
    let result = scene.call("first", &first).add(&config);
    scene.call("first", &first).del(&with_previous(&config, &result));
    let next = scene.call("second", &second).add(&config);
    assert_eq!(next["ips"], result["ips"]);
    scene.call("first", &first).del(&with_previous(&config, &result));
    assert_eq!(scene.elements().len(), 1);
    assert!(scene.elements()[0].contains("second/eth0"));
    assert_eq!(second.link_names(), ["eth0"]);
}

// 26
#[test]
fn frames_with_a_false_source_address_are_dropped() {
    let scene = Scene::new();
    let (pod, other) = (Namespace::with_loopback(), Namespace::with_loopback());
    let config = scene.config(&["10.1.2.0/24"], json!({ "isGateway": true, "macspoofchk": true }));
    let result = scene.call("pod", &pod).add(&config);
    scene.call("other", &other).add(&config);
    assert!(pod.pings("10.1.2.3") && pod.pings("10.1.2.1"));
    pod.ip("link set eth0 address 02:00:00:00:00:66");
    assert!(!pod.pings("10.1.2.3"), "a false address reaches nobody");
    let true_address = result["interfaces"][2]["mac"].as_str().unwrap();
    let port = result["interfaces"][1]["name"].as_str().unwrap();
    let naming_the_port = scene.elements().iter().filter(|element| element.contains(port)).count();
    assert_eq!(naming_the_port, 2, "nft shows who is filtered");
    pod.ip(&format!("link set eth0 address {true_address}"));
    pod.ip("neigh flush all");
    assert!(pod.pings("10.1.2.3"), "the true one does again");
    scene.call("pod", &pod).del(&config);
    scene.call("other", &other).del(&config);
    scene.expect_clean("the hardware address filter");
}

// 26
#[test]
fn the_filter_says_nothing_about_other_ports() {
    let scene = Scene::new();
    let (checked, free) = (Namespace::with_loopback(), Namespace::with_loopback());
    scene
        .call("checked", &checked)
        .add(&scene.config(&["10.1.2.0/24"], json!({ "isGateway": true, "macspoofchk": true })));
    scene.call("free", &free).add(&scene.config(&["10.1.2.0/24"], json!({ "isGateway": true })));
    free.ip("link set eth0 address 02:00:00:00:00:66");
    assert!(free.pings("10.1.2.2"));
}

// P#512: somebody flushes the ruleset; the next pod repairs what it needs
#[test]
fn a_flushed_ruleset_comes_back_with_the_next_pod() {
    let scene = Scene::new();
    let outside = outside(&scene);
    let config = scene
        .config(&["10.1.2.0/24"], json!({ "isDefaultGateway": true, "ipMasq": true, "macspoofchk": true }));
    let (first, second, third) = (Namespace::new(), Namespace::with_loopback(), Namespace::with_loopback());
    scene.call("first", &first).add(&config);
    run_ok(scene.host.command("nft").args(["flush", "ruleset"]));
    let result = scene.call("second", &second).add(&config);
    assert!(second.pings("203.0.113.2"));
    // Rules gone but sets still there.
    for object in scene.host.nft_ruleset() {
        if let Some(chain) = object.get("chain") {
            let name = |key: &str| chain[key].as_str().unwrap().to_owned();
            run(scene.host.command("nft").args([
                "flush",
                "chain",
                &name("family"),
                &name("table"),
                &name("name"),
            ]));
        }
    }
    let reply = scene.call("second", &second).run("CHECK", &with_previous(&config, &result));
    assert!(reply.error_text().contains("rule"), "{reply:?}");
    scene.call("third", &third).add(&config);
    drop(outside);
}
