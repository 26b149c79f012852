//! ADD: what it makes and what it answers.

use harness::Namespace;
use serde_json::{Value, json};

use crate::scene::{Scene, addresses, only_host_link, overlay};

// 13
#[test]
fn the_bridge_is_made_once_up_and_deaf_to_router_advertisements() {
    let scene = Scene::new();
    let config = scene.config(&["10.1.2.0/24"], json!({}));
    let (first, second) = (Namespace::new(), Namespace::new());
    scene.call("first", &first).add(&config);
    let bridge = scene.host.ip_json("link show cni0");
    assert_eq!(bridge[0]["linkinfo"]["info_kind"], "bridge");
    assert!(bridge[0]["flags"].as_array().unwrap().contains(&json!("UP")), "{bridge}");
    assert_eq!(scene.host.sysctl("net/ipv6/conf/cni0/accept_ra"), "0");
    scene.call("second", &second).add(&config);
    let again = scene.host.ip_json("link show cni0");
    assert_eq!(again[0]["ifindex"], bridge[0]["ifindex"]);
    // 17
    assert_eq!(again[0]["address"], bridge[0]["address"]);
    scene.call("first", &first).del(&config);
    assert_eq!(scene.host.ip_json("link show cni0")[0]["address"], bridge[0]["address"]);
}

// 13
#[test]
fn a_foreign_link_with_the_bridges_name_is_left_alone() {
    let scene = Scene::new();
    scene.host.ip("link add cni0 type ifb");
    let pod = Namespace::new();
    let reply = scene.call("c", &pod).run("ADD", &scene.config(&["10.1.2.0/24"], json!({})));
    assert_eq!(reply.error_code(), 7);
    assert!(reply.error_text().contains("already exists but is not a bridge"), "{reply:?}");
    scene.expect_clean("a refused bridge");
    assert!(pod.link_names().is_empty());
}

// 14
#[test]
fn a_default_gateway_is_the_subnets_first_address_on_the_bridge() {
    let scene = Scene::new();
    let pod = Namespace::with_loopback();
    let config = scene.config(&["10.1.2.0/24"], json!({ "isDefaultGateway": true }));
    let result = scene.call("c", &pod).add(&config);
    assert_eq!(addresses(&scene.host, "cni0"), ["10.1.2.1/24"]);
    assert_eq!(addresses(&pod, "eth0"), ["10.1.2.2/24"]);
    assert_eq!(pod.ip_json("route show default")[0]["gateway"], "10.1.2.1");
    assert_eq!(scene.host.sysctl("net/ipv4/ip_forward"), "1");
    let host_link = only_host_link(&scene.host);
    let interfaces = result["interfaces"].as_array().unwrap();
    assert_eq!(interfaces.len(), 3);
    assert_eq!(interfaces[0]["name"], "cni0");
    assert_eq!(interfaces[0]["mac"], scene.host.ip_json("link show cni0")[0]["address"]);
    assert_eq!(interfaces[1]["name"], json!(host_link));
    assert_eq!(interfaces[1]["mac"], scene.host.ip_json(&format!("link show {host_link}"))[0]["address"]);
    assert_eq!(interfaces[2]["name"], "eth0");
    assert_eq!(interfaces[2]["mac"], pod.ip_json("link show eth0")[0]["address"]);
    assert_eq!(interfaces[2]["sandbox"], json!(pod.path()));
    assert_eq!(interfaces[0].get("sandbox"), None);
    assert_eq!(result["ips"][0]["interface"], 2);
    assert_eq!(result["ips"][0]["gateway"], "10.1.2.1");
    assert!(pod.pings("10.1.2.1"));
}

// 15, 31
#[test]
fn both_families_are_wired_at_once_and_without_waiting_for_address_detection() {
    let scene = Scene::new();
    let (pod, other) = (Namespace::with_loopback(), Namespace::with_loopback());
    let config = scene.config(&["10.1.2.0/24", "2001:db8:42::/64"], json!({ "isDefaultGateway": true }));
    let result = scene.call("c", &pod).add(&config);
    assert_eq!(addresses(&scene.host, "cni0"), ["10.1.2.1/24", "2001:db8:42::1/64"]);
    assert_eq!(addresses(&pod, "eth0"), ["10.1.2.2/24", "2001:db8:42::2/64"]);
    assert_eq!(pod.ip_json("-6 route show default")[0]["gateway"], "2001:db8:42::1");
    assert_eq!(scene.host.sysctl("net/ipv6/conf/all/forwarding"), "1");
    assert_eq!(pod.sysctl("net/ipv6/conf/eth0/accept_dad"), "0");
    assert_eq!(pod.sysctl("net/ipv4/conf/eth0/arp_notify"), "1");
    assert!(!pod.ip("-6 addr show dev eth0 scope global").contains("tentative"));
    assert_eq!(result["ips"][1]["interface"], 2);
    scene.call("other", &other).add(&config);
    assert!(pod.pings("10.1.2.3") && pod.pings("2001:db8:42::3"), "pod to pod");
    assert!(pod.pings("2001:db8:42::1"), "pod to gateway");
}

// 14
#[test]
fn a_default_route_that_the_address_plugin_gave_is_not_doubled() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let routes = json!([{ "dst": "0.0.0.0/0", "gw": "10.1.2.9" }, { "dst": "192.0.2.0/24" }]);
    let config =
        scene.config(&["10.1.2.0/24"], json!({ "isDefaultGateway": true, "ipam": { "routes": routes } }));
    let result = scene.call("c", &pod).add(&config);
    let default = pod.ip_json("route show default");
    assert_eq!(default.as_array().unwrap().len(), 1, "{default}");
    assert_eq!(default[0]["gateway"], "10.1.2.9");
    assert_eq!(pod.ip_json("route show 192.0.2.0/24")[0]["gateway"], "10.1.2.1");
    assert_eq!(result["routes"].as_array().unwrap().len(), 2);
}

// 14: isGateway alone
#[test]
fn a_gateway_is_not_a_default_route() {
    let scene = Scene::new();
    let pod = Namespace::new();
    scene.call("c", &pod).add(&scene.config(&["10.1.2.0/24"], json!({ "isGateway": true })));
    assert_eq!(addresses(&scene.host, "cni0"), ["10.1.2.1/24"]);
    assert_eq!(pod.ip_json("route show default"), json!([]));
}

// P#971
#[test]
fn routes_keep_their_metric_table_scope_and_packet_size() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let routes = json!([
        { "dst": "192.0.2.0/24", "mtu": 1300, "advmss": 1200, "priority": 7 },
        { "dst": "198.51.100.0/24", "table": 100 },
        { "dst": "203.0.113.0/24", "scope": 253 },
    ]);
    let config = scene.config(&["10.1.2.0/24"], json!({ "isGateway": true, "ipam": { "routes": routes } }));
    scene.call("c", &pod).add(&config);
    let route = pod.ip_json("route show 192.0.2.0/24");
    assert_eq!(route[0]["metric"], 7);
    let metrics = route[0]["metrics"].to_string();
    assert!(metrics.contains("1300") && metrics.contains("1200"), "{route}");
    assert_eq!(pod.ip_json("route show table 100").as_array().unwrap().len(), 1);
    let on_link = pod.ip_json("route show 203.0.113.0/24");
    assert_eq!((on_link[0]["scope"].as_str(), on_link[0].get("gateway")), (Some("link"), None));
}

// 16
#[test]
fn another_gateway_address_is_refused_unless_forced() {
    let scene = Scene::new();
    let (first, second) = (Namespace::new(), Namespace::new());
    let gateway = json!({ "isGateway": true });
    scene.call("first", &first).add(&scene.config(&["10.0.0.0/8"], gateway.clone()));
    let other = |more: Value| {
        let mut config = scene.config(&["10.1.0.0/16"], gateway.clone());
        overlay(&mut config, json!({ "name": "other" }));
        overlay(&mut config, more);
        config
    };
    let reply = scene.call("second", &second).run("ADD", &other(json!({})));
    assert!(reply.error_text().contains("already has an IP address different from"), "{reply:?}");
    assert_eq!(addresses(&scene.host, "cni0"), ["10.0.0.1/8"]);
    assert!(second.link_names().is_empty());
    assert!(crate::scene::reserved(scene.data.path(), "other").is_empty());
    scene.call("second", &second).add(&other(json!({ "forceAddress": true })));
    assert_eq!(addresses(&scene.host, "cni0"), ["10.1.0.1/16"]);
}

// 16
#[test]
fn disjoint_v6_gateways_live_together_and_overlapping_ones_do_not() {
    let scene = Scene::new();
    let network = |name: &str, subnet: &str, more: Value| {
        let mut config = scene.config(&[subnet], json!({ "isGateway": true, "name": name }));
        overlay(&mut config, more);
        config
    };
    let pods = [Namespace::new(), Namespace::new(), Namespace::new()];
    scene.call("1", &pods[0]).add(&network("one", "2001:db8:1::/48", json!({})));
    scene.call("2", &pods[1]).add(&network("two", "2001:db8:2::/64", json!({})));
    assert_eq!(addresses(&scene.host, "cni0"), ["2001:db8:2::1/64", "2001:db8:1::1/48"]);
    let overlapping = network("three", "2001:db8:1:2::/64", json!({}));
    let reply = scene.call("3", &pods[2]).run("ADD", &overlapping);
    assert!(reply.error_text().contains("already has an IP address different from"), "{reply:?}");
    let forced = network("three", "2001:db8:1:2::/64", json!({ "forceAddress": true }));
    scene.call("3", &pods[2]).add(&forced);
    let mut left = addresses(&scene.host, "cni0");
    left.sort();
    assert_eq!(left, ["2001:db8:1:2::1/64", "2001:db8:2::1/64"]);
}

// 18
#[test]
fn promiscuous_and_hairpin_are_set_but_never_together() {
    let scene = Scene::new();
    let (first, second) = (Namespace::new(), Namespace::new());
    scene.call("first", &first).add(&scene.config(&["10.1.2.0/24"], json!({ "promiscMode": true })));
    assert_eq!(scene.host.ip_json("link show cni0")[0]["promiscuity"], 1);
    let both = scene.config(&["10.1.2.0/24"], json!({ "promiscMode": true, "hairpinMode": true }));
    let reply = scene.call("second", &second).run("ADD", &both);
    assert_eq!(reply.error_code(), 7);
    assert!(second.link_names().is_empty());
    scene.call("first", &first).del(&scene.config(&["10.1.2.0/24"], json!({})));
    scene.call("second", &second).add(&scene.config(&["10.1.2.0/24"], json!({ "hairpinMode": true })));
    assert_eq!(port(&scene.host)["hairpin"], true);
}

// 25
#[test]
fn an_isolated_port_cannot_reach_another() {
    let scene = Scene::new();
    let (first, second) = (Namespace::with_loopback(), Namespace::with_loopback());
    let config = scene.config(&["10.1.2.0/24"], json!({ "isGateway": true, "portIsolation": true }));
    scene.call("first", &first).add(&config);
    assert_eq!(port(&scene.host)["isolated"], true);
    scene.call("second", &second).add(&config);
    assert!(first.pings("10.1.2.1"));
    assert!(!first.pings("10.1.2.3"));
}

// 25
#[test]
fn a_port_is_neither_isolated_nor_hairpin_by_default() {
    let scene = Scene::new();
    let pod = Namespace::new();
    scene.call("c", &pod).add(&scene.config(&["10.1.2.0/24"], json!({})));
    let port = port(&scene.host);
    assert_eq!((&port["isolated"], &port["hairpin"]), (&json!(false), &json!(false)));
}

// 19
#[test]
fn the_hardware_address_may_come_from_three_places_in_rising_precedence() {
    let scene = Scene::new();
    let from_arguments = "02:00:00:00:00:01";
    let from_config = "02:00:00:00:00:02";
    let from_runtime = "02:00:00:00:00:03";
    for (arguments, more, expected) in [
        ("IgnoreUnknown=1;MAC=02:00:00:00:00:01", json!({}), from_arguments),
        (
            "IgnoreUnknown=1;MAC=02:00:00:00:00:01",
            json!({ "args": { "cni": { "mac": from_config } } }),
            from_config,
        ),
        (
            "IgnoreUnknown=1;MAC=02:00:00:00:00:01",
            json!({ "args": { "cni": { "mac": from_config } }, "runtimeConfig": { "mac": from_runtime } }),
            from_runtime,
        ),
    ] {
        let pod = Namespace::new();
        let id = expected.replace(':', "-");
        let mut call = scene.call(&id, &pod);
        call.args = arguments;
        let result = call.add(&scene.config(&["10.1.2.0/24"], more));
        assert_eq!(result["interfaces"][2]["mac"], expected);
        assert_eq!(pod.ip_json("link show eth0")[0]["address"], expected);
    }
}

#[test]
fn the_packet_size_holds_for_bridge_and_pod() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let result = scene.call("c", &pod).add(&scene.config(&["10.1.2.0/24"], json!({ "mtu": 1400 })));
    assert_eq!(pod.ip_json("link show eth0")[0]["mtu"], 1400);
    assert_eq!(scene.host.ip_json("link show cni0")[0]["mtu"], 1400);
    assert_eq!(result["interfaces"][2]["mtu"], 1400);
}

// 23
#[test]
fn without_addresses_the_pod_has_a_bare_link() {
    let scene = Scene::new();
    for (name, more) in [("absent", json!({})), ("empty", json!({ "ipam": {} }))] {
        let pod = Namespace::new();
        let result = scene.call(name, &pod).add(&scene.layer2(more));
        assert_eq!(result.get("ips"), None);
        assert_eq!(result["interfaces"].as_array().unwrap().len(), 3);
        assert!(addresses(&pod, "eth0").is_empty());
        let flags = pod.ip_json("link show eth0")[0]["flags"].clone();
        assert!(flags.as_array().unwrap().contains(&json!("UP")), "{flags}");
    }
}

// 23
#[test]
fn a_result_that_the_version_cannot_say_is_an_error_that_leaves_nothing() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let reply = scene.call("c", &pod).run("ADD", &scene.layer2(json!({ "cniVersion": "0.2.0" })));
    assert!(reply.error_text().contains("cannot convert: no valid IP addresses"), "{reply:?}");
    scene.expect_clean("an unspeakable result");
    assert!(pod.link_names().is_empty());
}

// 24
#[test]
fn a_disabled_container_interface_stays_down() {
    let scene = Scene::new();
    let pod = Namespace::new();
    let disabled = json!({ "disableContainerInterface": true });
    scene.call("c", &pod).add(&scene.layer2(disabled.clone()));
    let flags = pod.ip_json("link show eth0")[0]["flags"].clone();
    assert!(!flags.as_array().unwrap().contains(&json!("UP")), "{flags}");
    only_host_link(&scene.host);
    let other = Namespace::new();
    let reply = scene.call("other", &other).run("ADD", &scene.config(&["10.1.2.0/24"], disabled));
    assert_eq!(reply.error_code(), 7);
    let text = "cannot use IPAM when DisableContainerInterface flag is set";
    assert!(reply.error_text().contains(text), "{reply:?}");
}

// 10
#[test]
fn an_interface_that_is_there_is_not_touched() {
    let scene = Scene::new();
    let pod = Namespace::new();
    pod.ip("link add eth0 type ifb");
    let before = pod.ip_json("link show eth0");
    let reply = scene.call("c", &pod).run("ADD", &scene.config(&["10.1.2.0/24"], json!({})));
    assert!(reply.error_text().contains("already exists"), "{reply:?}");
    assert_eq!(pod.ip_json("link show eth0"), before);
    scene.expect_clean("a refused interface");
}

// 31
#[test]
fn a_duplicate_v6_address_is_found_when_detection_is_on() {
    let scene = Scene::new();
    let (squatter, pod) = (Namespace::with_loopback(), Namespace::with_loopback());
    let config = scene.config(&["2001:db8:42::/64"], json!({ "isGateway": true, "enabledad": true }));
    scene.call("squatter", &squatter).add(&config);
    assert_eq!(squatter.sysctl("net/ipv6/conf/eth0/accept_dad"), "1");
    squatter.ip("-6 addr add 2001:db8:42::3/64 dev eth0 nodad");
    let reply = scene.call("c", &pod).run("ADD", &config);
    assert!(reply.error_text().contains("duplicate"), "{reply:?}");
    assert!(pod.link_names().is_empty());
    assert_eq!(scene.reserved(), ["2001:db8:42::2"]);
}

// 4, 22 and the rest of what a configuration may get wrong: nothing is made
#[test]
fn a_wrong_configuration_changes_nothing() {
    let scene = Scene::new();
    for wrong in [
        json!({ "vlan": -100 }),
        json!({ "vlan": 5000 }),
        json!({ "vlanTrunk": [{ "minID": 9, "maxID": 8 }] }),
        json!({ "mtu": -1 }),
        json!({ "bridge": "a/b" }),
        json!({ "bridge": "sixteen-letters-" }),
        json!({ "ipMasqBackend": "pf", "ipMasq": true }),
        json!({ "runtimeConfig": { "mac": "not-a-mac" } }),
        json!({ "isGateway": "yes" }),
    ] {
        let pod = Namespace::new();
        let reply = scene.call("c", &pod).run("ADD", &scene.config(&["10.1.2.0/24"], wrong.clone()));
        let code = reply.error_code();
        assert!(code == 7 || code == 6, "{wrong}: {reply:?}");
        assert!(pod.link_names().is_empty() && scene.host.link_names().is_empty(), "{wrong}");
        assert!(scene.reserved().is_empty(), "{wrong}");
    }
}

/// What `bridge -j -d link` says of the one port.
fn port(host: &Namespace) -> Value {
    let name = only_host_link(host);
    let ports = host.bridge_json("link show");
    let port = ports.as_array().unwrap().iter().find(|port| port["ifname"] == name.as_str());
    port.unwrap_or_else(|| panic!("{name} is a port: {ports}")).clone()
}
