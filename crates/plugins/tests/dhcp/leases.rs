//! What is leased, and given back: one call at a time.

use harness::{Namespace, eventually};
use serde_json::{Value, json};

use crate::scene::{SERVER, Scene, with_previous};

fn routes(result: &Value) -> Vec<String> {
    let text = |route: &Value| {
        let gateway = route["gw"].as_str().map_or_else(|| format!("scope {}", route["scope"]), str::to_owned);
        format!("{} {gateway}", route["dst"].as_str().unwrap())
    };
    result["routes"].as_array().into_iter().flatten().map(text).collect()
}

// 55
#[test]
fn a_lease_is_an_address_a_gateway_a_default_route_and_name_service() {
    let Some(scene) = Scene::with(&["dnsmasq"]) else { return };
    let options = ["--dhcp-option=6,10.5.0.53", "--dhcp-option=15,example.org", "--dhcp-option=26,1400"];
    let _server = scene.dnsmasq(&[&options[..], &["--dhcp-option=119,a.example.org,b.example.org"]].concat());
    let _daemon = scene.daemon(&[]);
    let pod = scene.pod("p0");
    let result = scene.call("dhcp", "c", &pod).add(&scene.config("dhcp", json!({ "priority": 42 })));
    let address = result["ips"][0]["address"].as_str().unwrap();
    assert_eq!(scene.leased(), [address.strip_suffix("/24").unwrap()]);
    assert_eq!(result["ips"][0]["gateway"], SERVER);
    assert_eq!(result["routes"], json!([{ "dst": "0.0.0.0/0", "gw": SERVER, "mtu": 1400, "priority": 42 }]));
    assert_eq!(
        result["dns"],
        json!({ "nameservers": ["10.5.0.53"], "domain": "example.org", "search": ["a.example.org", "b.example.org"] })
    );
    // Setting the address is the interface plugin's work; the daemon only needed the link to be up.
    assert_eq!(crate::scene::addresses(&pod), Vec::<String>::new());
}

// 55
#[test]
fn classless_routes_stand_above_all_others_and_a_gateway_of_zeros_is_the_link_itself() {
    let Some(scene) = Scene::with(&["dhcpd"]) else { return };
    let more = "option static-routes 10.7.0.0 10.5.0.8;
        option classless-routes 16,172,16,0,0,0,0, 24,192,0,2,10,5,0,9, 0,10,5,0,7;";
    let _server = scene.dhcpd("10.5.0.60 10.5.0.70", 600, more);
    let _daemon = scene.daemon(&[]);
    let pod = scene.pod("p0");
    let config = scene.config("dhcp", json!({ "request": [{ "option": "121" }, { "option": "33" }] }));
    let result = scene.call("dhcp", "c", &pod).add(&config);
    assert_eq!(routes(&result), ["172.16.0.0/16 scope 253", "192.0.2.0/24 10.5.0.9", "0.0.0.0/0 10.5.0.7"]);
    assert_eq!(result["ips"][0]["gateway"], SERVER);
}

// 55
#[test]
fn classful_routes_come_beside_the_default_route() {
    let Some(scene) = Scene::with(&["dnsmasq"]) else { return };
    let _server = scene.dnsmasq(&["--dhcp-option=33,192.168.7.0,10.5.0.9,10.9.0.0,10.5.0.8"]);
    let _daemon = scene.daemon(&[]);
    let pod = scene.pod("p0");
    let result = scene.call("dhcp", "c", &pod).add(&scene.config("dhcp", json!({})));
    assert_eq!(routes(&result), ["192.168.7.0/24 10.5.0.9", "10.0.0.0/8 10.5.0.8", "0.0.0.0/0 10.5.0.1"]);
}

// 55
#[test]
fn a_server_that_gives_no_mask_gives_nothing() {
    let Some(scene) = Scene::with(&["dnsmasq"]) else { return };
    // An option without a value keeps dnsmasq from sending what it sends by itself.
    let mut server = scene.dnsmasq(&["--dhcp-option=1"]);
    let _daemon = scene.daemon(&[]);
    let pod = scene.pod("p0");
    let reply = scene.call("dhcp", "c", &pod).run("ADD", &scene.config("dhcp", json!({})));
    assert!(reply.error_text().contains("Subnet Mask"), "{reply:?}");
    server.await_said("DHCPRELEASE", 1);
    assert_eq!(scene.leased(), Vec::<String>::new());
    assert_eq!(scene.kept(), Vec::<String>::new());
}

// 55
#[test]
fn a_second_add_of_the_attachment_keeps_the_lease() {
    let Some(scene) = Scene::with(&["dnsmasq"]) else { return };
    let server = scene.dnsmasq(&[]);
    let _daemon = scene.daemon(&[]);
    let pod = scene.pod("p0");
    let config = scene.config("dhcp", json!({}));
    let call = scene.call("dhcp", "c", &pod);
    let first = call.add(&config);
    assert_eq!(call.add(&config), first);
    assert_eq!(server.said("DHCPDISCOVER("), 1, "{}", server.log());
    // Another interface of the same container is another attachment.
    scene.plug("p1", &pod, "net1");
    let mut other = scene.call("dhcp", "c", &pod);
    other.ifname = "net1";
    assert_ne!(other.add(&config)["ips"], first["ips"]);
    assert_eq!(scene.leased().len(), 2);
}

// 55
#[test]
fn del_tells_the_server_and_a_second_del_is_as_good() {
    let Some(scene) = Scene::with(&["dnsmasq"]) else { return };
    let mut server = scene.dnsmasq(&[]);
    let _daemon = scene.daemon(&[]);
    let pod = scene.pod("p0");
    let config = scene.config("dhcp", json!({}));
    let call = scene.call("dhcp", "c", &pod);
    call.del(&config);
    call.add(&config);
    assert_eq!(scene.kept().len(), 1);
    call.del(&config);
    server.await_said("DHCPRELEASE", 1);
    eventually("dnsmasq holds no lease", || scene.leased().is_empty().then_some(()));
    assert_eq!(scene.kept(), Vec::<String>::new());
    call.del(&config);
    assert_eq!(server.said("DHCPRELEASE"), 1);
}

#[test]
fn what_is_provided_reaches_the_server_from_the_configuration_and_from_the_arguments() {
    let Some(scene) = Scene::with(&["dnsmasq"]) else { return };
    let server = scene.dnsmasq(&[]);
    let _daemon = scene.daemon(&[]);
    let pod = scene.pod("p0");
    let mut call = scene.call("dhcp", "c", &pod);
    call.args = "IgnoreUnknown=1;K8S_POD_NAME=web-0";
    let provide = json!([
        { "option": "host-name", "fromArg": "K8S_POD_NAME" },
        { "option": "vendor-class-identifier", "value": "fairlead-test" },
    ]);
    call.add(&scene.config("dhcp", json!({ "provide": provide })));
    let leases = std::fs::read_to_string(scene.file("dnsmasq.leases")).unwrap();
    // Time, hardware address, address, name, client identifier: a zero byte and the attachment.
    let id = "00:63:2f:74:65:73:74:2f:65:74:68:30";
    assert!(leases.contains(" web-0 ") && leases.trim_end().ends_with(id), "{leases}");
    assert!(server.log().contains("vendor class: fairlead-test"), "{}", server.log());
}

#[test]
fn a_wrong_configuration_is_told_without_a_daemon() {
    let Some(scene) = Scene::with(&[]) else { return };
    let pod = Namespace::new();
    for (ipam, code, named) in [
        (json!({ "provide": [{ "option": "colour", "value": "red" }] }), 7, "colour"),
        (json!({ "request": [{ "option": "0" }] }), 7, "request[0]"),
        (json!({ "provide": [{ "option": "12", "value": "x".repeat(256) }] }), 7, "255"),
        (json!({ "priority": "high" }), 6, "priority"),
        (json!({ "families": ["ipx"] }), 7, "ipx"),
    ] {
        let reply = scene.call("dhcp", "c", &pod).run("ADD", &scene.config("dhcp", ipam.clone()));
        assert_eq!(reply.error_code(), code, "{ipam}: {reply:?}");
        assert!(reply.error_text().contains(named), "{ipam}: {reply:?}");
    }
}

#[test]
fn check_compares_the_lease_with_what_the_runtime_remembers() {
    let Some(scene) = Scene::with(&["dnsmasq"]) else { return };
    let _server = scene.dnsmasq(&[]);
    let _daemon = scene.daemon(&[]);
    let pod = scene.pod("p0");
    let config = scene.config("dhcp", json!({}));
    let call = scene.call("dhcp", "c", &pod);
    let result = call.add(&config);
    call.run("CHECK", &with_previous(&config, &result)).expect_success("CHECK after ADD");
    let mut other = result.clone();
    other["ips"][0]["address"] = json!("10.5.0.99/24");
    let reply = call.run("CHECK", &with_previous(&config, &other));
    assert!(reply.error_text().contains("prevResult"), "{reply:?}");
    pod.ip("link del eth0");
    let reply = call.run("CHECK", &with_previous(&config, &result));
    assert!(reply.error_text().contains("gone"), "{reply:?}");
}

// A node is switched over: the lease was made by another daemon, which had it only in memory.
#[test]
fn check_takes_over_a_lease_that_only_the_server_knows() {
    let Some(scene) = Scene::with(&["dnsmasq"]) else { return };
    let server = scene.dnsmasq(&[]);
    let daemon = scene.daemon(&[]);
    let pod = scene.pod("p0");
    let config = scene.config("dhcp", json!({}));
    let call = scene.call("dhcp", "c", &pod);
    let result = call.add(&config);
    daemon.kill();
    std::fs::remove_dir_all(scene.file("state")).unwrap();
    let _daemon = scene.daemon(&[]);
    let before = server.said("DHCPDISCOVER(");
    call.run("CHECK", &with_previous(&config, &result)).expect_success("CHECK");
    assert_eq!(server.said("DHCPDISCOVER("), before, "it asked for the very address");
    assert_eq!(scene.kept().len(), 1, "it is kept from here on");
    call.del(&config);
    eventually("dnsmasq holds no lease", || scene.leased().is_empty().then_some(()));
}
