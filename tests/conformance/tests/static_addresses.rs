//! static: the five places that addresses come from, routes with several ways, name service, CHECK. Behaviour 54.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use conformance::{Stage, Subject, ours, subjects};
use harness::Reply;
use serde_json::{Value, json};

fn config(stage: &Stage, ipam: &Value, more: &Value) -> Value {
    let mut config = stage.config("bridge", "1.0.0", more);
    config["ipam"] = ipam.clone();
    config["ipam"]["type"] = json!("static");
    config
}

fn call(stage: &Stage, subject: &Subject, command: &str, args: &str, config: &Value) -> Reply {
    let mut call = stage.call(subject, "static", "c1");
    call.args = args;
    call.run(command, config)
}

/// Addresses, each with its gateway.
fn given(reply: &Reply) -> Vec<String> {
    let result = reply.expect_success("ADD");
    let text = |ip: &Value| match ip["gateway"].as_str() {
        Some(gateway) => format!("{} by {gateway}", ip["address"].as_str().unwrap()),
        None => ip["address"].as_str().unwrap().to_owned(),
    };
    result["ips"].as_array().into_iter().flatten().map(text).collect()
}

fn two() -> Value {
    json!({ "addresses": [
        { "address": "10.10.0.1/24", "gateway": "10.10.0.254" },
        { "address": "3ffe:ffff:0:1ff::1/64", "gateway": "3ffe:ffff:0::1" },
    ] })
}

#[test]
fn addresses_routes_and_name_service_of_the_configuration_are_the_result() {
    for subject in subjects() {
        let stage = Stage::new();
        let mut ipam = two();
        ipam["routes"] = json!([{ "dst": "0.0.0.0/0" }, { "dst": "192.168.0.0/16", "gw": "10.10.5.1" }]);
        ipam["dns"] =
            json!({ "nameservers": ["8.8.8.8"], "domain": "example.com", "search": ["example.com"] });
        let reply = call(&stage, &subject, "ADD", "", &config(&stage, &ipam, &json!({})));
        let expected = ["10.10.0.1/24 by 10.10.0.254", "3ffe:ffff:0:1ff::1/64 by 3ffe:ffff::1"];
        assert_eq!(given(&reply), expected, "{}", subject.name);
        assert_eq!(reply.json()["routes"], ipam["routes"], "{}", subject.name);
        assert_eq!(reply.json()["dns"], ipam["dns"], "{}", subject.name);
        call(&stage, &subject, "DEL", "", &config(&stage, &ipam, &json!({}))).expect_success("DEL");
    }
}

#[test]
fn later_sources_add_to_or_take_the_place_of_earlier_ones() {
    let args = json!({ "args": { "cni": { "ips": ["10.3.0.1/24"] } } });
    let runtime = json!({ "runtimeConfig": { "ips": ["10.4.0.1/24", "fd04::1/64"] },
                          "args": { "cni": { "ips": ["10.3.0.1/24"] } } });
    let arguments = "IP=10.2.0.1/24,fd02::1/64;GATEWAY=10.2.0.254,fd02::254";
    for subject in subjects() {
        let stage = Stage::new();
        let plain = json!({ "addresses": [{ "address": "10.1.0.1/24" }] });
        for (more, arguments, expected) in [
            (json!({}), "", vec!["10.1.0.1/24"]),
            (
                json!({}),
                arguments,
                vec!["10.1.0.1/24", "10.2.0.1/24 by 10.2.0.254", "fd02::1/64 by fd02::254"],
            ),
            (args.clone(), arguments, vec!["10.3.0.1/24"]),
            (runtime.clone(), arguments, vec!["10.4.0.1/24", "fd04::1/64"]),
        ] {
            let reply = call(&stage, &subject, "ADD", arguments, &config(&stage, &plain, &more));
            assert_eq!(given(&reply), expected, "{} {more} {arguments}", subject.name);
        }
    }
}

// The reference takes GATEWAY for the addresses of CNI_ARGS alone.
#[test]
fn a_gateway_of_the_arguments_serves_configured_addresses_too() {
    for subject in subjects() {
        let stage = Stage::new();
        let plain = json!({ "addresses": [{ "address": "10.1.0.1/24" }] });
        let reply = call(&stage, &subject, "ADD", "GATEWAY=10.1.0.254", &config(&stage, &plain, &json!({})));
        let expected = if subject.is_reference() { "10.1.0.1/24" } else { "10.1.0.1/24 by 10.1.0.254" };
        assert_eq!(given(&reply), [expected], "{}", subject.name);
    }
}

#[test]
fn what_is_no_address_is_refused_with_the_references_words() {
    for subject in subjects() {
        let stage = Stage::new();
        let none = json!({});
        for (ipam, more, arguments, words) in [
            (
                json!({ "addresses": [{ "address": "10.1.0.1" }] }),
                &none,
                "",
                "the 'address' field is expected to be in CIDR notation, got: '10.1.0.1'",
            ),
            (
                two(),
                &none,
                "IP=10.2.0.1",
                "the 'ip' field is expected to be in CIDR notation, got: '10.2.0.1'",
            ),
            (two(), &none, "GATEWAY=nowhere", "invalid gateway address: nowhere"),
            (
                two(),
                &json!({ "args": { "cni": { "ips": ["10.3.0.1"] } } }),
                "",
                "an entry in the 'ips' field is NOT in CIDR notation, got: '10.3.0.1'",
            ),
            (
                two(),
                &json!({ "runtimeConfig": { "ips": ["x"] } }),
                "",
                "an entry in the 'ips' field is NOT in CIDR notation, got: 'x'",
            ),
        ] {
            let reply = call(&stage, &subject, "ADD", arguments, &config(&stage, &ipam, more));
            assert_ne!(reply.exit, Some(0), "{}: {reply:?}", subject.name);
            assert!(reply.error_text().contains(words), "{}: {reply:?}", subject.name);
        }
        let reply = call(&stage, &subject, "ADD", "", &stage.config("bridge", "1.0.0", &none));
        assert!(reply.error_text().contains("IPAM config missing 'ipam' key"), "{}: {reply:?}", subject.name);
        let several = json!({ "addresses": [{ "address": "10.1.0.1/24" }, { "address": "10.2.0.1/24" }] });
        let mut old = config(&stage, &several, &none);
        old["cniVersion"] = json!("0.2.0");
        let reply = call(&stage, &subject, "ADD", "", &old);
        assert!(
            reply.error_text().contains("CNI version 0.2.0 does not support more than 1 address per family"),
            "{}: {reply:?}",
            subject.name
        );
    }
}

#[test]
fn one_destination_with_two_gateways_stays_two_routes_in_the_result() {
    for subject in subjects() {
        let stage = Stage::new();
        let mut ipam = two();
        ipam["routes"] = json!([{ "dst": "192.0.2.0/24", "gw": "10.10.0.2" }, { "dst": "192.0.2.0/24", "gw": "10.10.0.3" }]);
        let reply = call(&stage, &subject, "ADD", "", &config(&stage, &ipam, &json!({})));
        assert_eq!(reply.expect_success("ADD")["routes"], ipam["routes"], "{}", subject.name);
    }
}

// The reference's bridge leaves two IPv4 routes of which the kernel uses the first.
#[test]
fn and_the_interface_plugin_gives_the_pod_both_ways() {
    for subject in subjects() {
        let stage = Stage::new();
        let mut ipam = two();
        ipam["addresses"][1]["gateway"] = json!("3ffe:ffff:0:1ff::ff");
        ipam["routes"] = json!([
            { "dst": "192.0.2.0/24", "gw": "10.10.0.2" }, { "dst": "192.0.2.0/24", "gw": "10.10.0.3" },
            { "dst": "2001:db8::/32", "gw": "3ffe:ffff:0:1ff::2" },
            { "dst": "2001:db8::/32", "gw": "3ffe:ffff:0:1ff::3" },
        ]);
        let mut config = config(&stage, &ipam, &json!({ "bridge": "br0" }));
        let call = stage.call(&subject, "bridge", "c1");
        config["prevResult"] = call.add(&config);
        for (family, net) in [("-4", "192.0.2.0/24"), ("-6", "2001:db8::/32")] {
            let routes = stage.pod.ip_json(&format!("{family} route show {net}"));
            let routes = routes.as_array().unwrap();
            let hops = |route: &Value| route["nexthops"].as_array().map_or(1, Vec::len);
            let ways: Vec<usize> = routes.iter().map(hops).collect();
            let expected = if subject.is_reference() && family == "-4" { vec![1, 1] } else { vec![2] };
            assert_eq!(ways, expected, "{} {net}: {routes:?}", subject.name);
        }
        if !subject.is_reference() {
            // Debian's asks for a route to the network's own address and finds two.
            call.run("CHECK", &config).expect_success("CHECK");
        }
        call.del(&config);
    }
}

#[test]
fn check_compares_address_length_and_gateway() {
    for subject in subjects() {
        let stage = Stage::new();
        let good = config(&stage, &two(), &json!({}));
        let result = call(&stage, &subject, "ADD", "", &good).expect_success("ADD");
        let check = |previous: &Value| {
            let mut config = good.clone();
            config["prevResult"] = previous.clone();
            call(&stage, &subject, "CHECK", "", &config)
        };
        check(&result).expect_success("CHECK of what ADD said");
        assert_ne!(
            call(&stage, &subject, "CHECK", "", &good).exit,
            Some(0),
            "{}: nothing to compare",
            subject.name
        );
        let mut other = result.clone();
        other["ips"][0]["gateway"] = json!("10.10.0.7");
        let reply = check(&other);
        assert!(reply.error_text().contains("static: Failed to match addr 10.10.0.1"), "{}", subject.name);
        // The reference passes over what is not there at all.
        for (at, value) in
            [("/ips/0/address", json!("10.10.0.9/24")), ("/ips/1/address", json!("3ffe::1/48"))]
        {
            let mut other = result.clone();
            *other.pointer_mut(at).unwrap() = value;
            assert_eq!(check(&other).exit == Some(0), subject.is_reference(), "{} {at}", subject.name);
        }
    }
}

#[test]
fn status_reads_the_configuration_and_gc_wants_its_list() {
    let subject = ours();
    let stage = Stage::new();
    let mut good = config(&stage, &two(), &json!({ "cni.dev/valid-attachments": [] }));
    good["cniVersion"] = json!("1.1.0");
    call(&stage, &subject, "STATUS", "", &good).expect_success("STATUS");
    call(&stage, &subject, "GC", "", &good).expect_success("GC");
    good["cni.dev/valid-attachments"] = Value::Null;
    assert_eq!(call(&stage, &subject, "GC", "", &good).error_code(), 7);
    good["ipam"]["addresses"][0]["address"] = json!("10.1.0.1");
    assert_eq!(call(&stage, &subject, "STATUS", "", &good).error_code(), 50);
}
