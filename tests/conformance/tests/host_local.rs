//! host-local: which address, which files, which errors. Behaviours 45 to 53.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, thread};

use conformance::{Stage, Subject, ours, subjects};
use harness::Reply;
use serde_json::{Value, json};

/// ADD of host-local alone for container `container` with these `ipam` keys laid over the stage's own.
fn add(stage: &Stage, subject: &Subject, container: &str, config: &Value) -> Reply {
    stage.call(subject, "host-local", container).run("ADD", config)
}

fn addresses(reply: &Reply) -> Vec<String> {
    let result = reply.expect_success("ADD");
    result["ips"].as_array().unwrap().iter().map(|ip| ip["address"].as_str().unwrap().to_owned()).collect()
}

fn config(stage: &Stage, subnets: &[&str]) -> Value {
    stage.config("bridge", "1.0.0", &json!({ "ipam": stage.ipam(subnets) }))
}

fn file(stage: &Stage, name: &str) -> String {
    fs::read_to_string(stage.data.path().join("test").join(name)).unwrap()
}

#[test]
fn the_first_address_of_each_range_set_goes_into_the_references_files() {
    for subject in subjects() {
        let stage = Stage::new();
        let config = config(&stage, &["10.1.2.0/24", "2001:db8:1::/64"]);
        let reply = add(&stage, &subject, "c1", &config);
        assert_eq!(addresses(&reply), ["10.1.2.2/24", "2001:db8:1::2/64"], "{}", subject.name);
        assert_eq!(reply.json()["ips"][0]["gateway"], "10.1.2.1", "{}", subject.name);
        assert_eq!(reply.json()["ips"][1]["gateway"], "2001:db8:1::1", "{}", subject.name);
        assert_eq!(file(&stage, "10.1.2.2").trim(), "c1\r\neth0", "{}", subject.name);
        assert_eq!(file(&stage, "2001:db8:1::2").trim(), "c1\r\neth0", "{}", subject.name);
        assert_eq!(file(&stage, "last_reserved_ip.0"), "10.1.2.2", "{}", subject.name);
        assert_eq!(file(&stage, "last_reserved_ip.1"), "2001:db8:1::2", "{}", subject.name);
    }
}

#[test]
fn addresses_go_round_and_gateway_and_broadcast_are_never_given() {
    for subject in subjects() {
        let stage = Stage::new();
        let config = config(&stage, &["10.1.2.0/29"]);
        let get = |container: &str| add(&stage, &subject, container, &config);
        assert_eq!(addresses(&get("a")), ["10.1.2.2/29"], "{}", subject.name);
        assert_eq!(addresses(&get("b")), ["10.1.2.3/29"], "{}", subject.name);
        stage.call(&subject, "host-local", "a").del(&config);
        for (container, expected) in [("c", "4"), ("d", "5"), ("e", "6"), ("f", "2")] {
            assert_eq!(addresses(&get(container)), [format!("10.1.2.{expected}/29")], "{}", subject.name);
        }
        let reply = get("g");
        assert_ne!(reply.exit, Some(0), "{}", subject.name);
        assert!(reply.error_text().contains("no IP addresses available in range set"), "{reply:?}");
        assert!(reply.error_text().contains("10.1.2.1-10.1.2.6"), "{}: {reply:?}", subject.name);
    }
}

#[test]
fn the_smallest_subnet_has_one_address_and_smaller_ones_are_refused() {
    for subject in subjects() {
        for (subnet, only) in [("10.1.2.0/30", "10.1.2.2/30"), ("2001:db8::/126", "2001:db8::2/126")] {
            let stage = Stage::new();
            let config = config(&stage, &[subnet]);
            assert_eq!(addresses(&add(&stage, &subject, "a", &config)), [only], "{}", subject.name);
        }
        for subnet in ["10.1.2.0/31", "10.1.2.0/32", "2001:db8::/127", "2001:db8::/128"] {
            let stage = Stage::new();
            let reply = add(&stage, &subject, "a", &config(&stage, &[subnet]));
            assert!(reply.error_text().contains("too small to allocate from"), "{}: {reply:?}", subject.name);
        }
    }
}

#[test]
fn bad_ranges_are_refused_with_the_references_words() {
    for subject in subjects() {
        for (ranges, words) in [
            (json!([[{ "subnet": "10.1.2.3/24" }]]), "has host bits set"),
            (json!([[{ "subnet": "10.1.2.0/24", "rangeStart": "10.1.3.5" }]]), "not in network"),
            (json!([[{ "subnet": "10.1.2.0/24" }, { "subnet": "2001:db8::/64" }]]), "mixed address families"),
            (json!([[{ "subnet": "10.1.2.0/24" }, { "subnet": "10.1.0.0/16" }]]), "overlap"),
            (json!([[{ "subnet": "10.1.2.0/24" }], [{ "subnet": "10.1.2.0/25" }]]), "overlap"),
            (json!([[]]), "empty"),
        ] {
            let stage = Stage::new();
            let mut config = config(&stage, &[]);
            config["ipam"]["ranges"] = ranges.clone();
            let reply = add(&stage, &subject, "a", &config);
            assert_ne!(reply.exit, Some(0), "{}: {ranges}", subject.name);
            assert!(reply.error_text().contains(words), "{}: {ranges}: {reply:?}", subject.name);
            assert_eq!(stage.reserved(), [""; 0], "{}: {ranges}", subject.name);
        }
    }
}

#[test]
fn two_interfaces_of_a_container_have_two_addresses_and_lose_them_apart() {
    for subject in subjects() {
        let stage = Stage::new();
        let config = config(&stage, &["10.1.2.0/24"]);
        let first = stage.call(&subject, "host-local", "c1");
        let mut second = first.clone();
        second.ifname = "eth1";
        first.add(&config);
        second.add(&config);
        assert_eq!(stage.reserved(), ["10.1.2.2", "10.1.2.3"], "{}", subject.name);
        second.del(&config);
        assert_eq!(stage.reserved(), ["10.1.2.2"], "{}", subject.name);
    }
}

#[test]
fn the_same_attachment_twice_is_refused_and_keeps_its_address() {
    for subject in subjects() {
        let stage = Stage::new();
        let config = config(&stage, &["10.1.2.0/24"]);
        add(&stage, &subject, "c1", &config).expect_success("ADD");
        let reply = add(&stage, &subject, "c1", &config);
        assert!(
            reply.error_text().contains("duplicate allocation is not allowed"),
            "{}: {reply:?}",
            subject.name
        );
        assert_eq!(stage.reserved(), ["10.1.2.2"], "{}", subject.name);
    }
}

#[test]
fn files_of_the_old_form_and_padded_ones_are_released() {
    for subject in subjects() {
        let stage = Stage::new();
        let config = config(&stage, &["10.1.2.0/24"]);
        let network = stage.data.path().join("test");
        fs::create_dir_all(&network).unwrap();
        fs::write(network.join("10.1.2.7"), "old").unwrap();
        fs::write(network.join("10.1.2.8"), "  padded\r\neth0 \r\n").unwrap();
        stage.call(&subject, "host-local", "old").del(&config);
        stage.call(&subject, "host-local", "padded").del(&config);
        assert_eq!(stage.reserved(), [""; 0], "{}", subject.name);
    }
}

#[test]
fn requested_addresses_come_from_all_three_places() {
    for subject in subjects() {
        let ask: [(&str, &str, Value); 3] = [
            ("IP=10.1.2.88", "1.0.0", json!({})),
            ("", "1.0.0", json!({ "args": { "cni": { "ips": ["10.1.2.88"] } } })),
            ("", "1.0.0", json!({ "runtimeConfig": { "ips": ["10.1.2.88/24"] } })),
        ];
        for (args, version, more) in ask {
            let stage = Stage::new();
            let mut config = stage.config("bridge", version, &more);
            config["ipam"] = stage.ipam(&["10.1.2.0/24"]);
            let mut call = stage.call(&subject, "host-local", "c1");
            call.args = args;
            assert_eq!(addresses(&call.run("ADD", &config)), ["10.1.2.88/24"], "{}: {more}", subject.name);
            let mut again = stage.call(&subject, "host-local", "c2");
            again.args = args;
            let reply = again.run("ADD", &config);
            assert!(
                reply.error_text().contains("is not available in range set"),
                "{}: {reply:?}",
                subject.name
            );
        }
    }
}

#[test]
fn a_request_for_the_gateway_or_outside_is_refused() {
    for subject in subjects() {
        for (address, words) in
            [("10.1.2.1", "gateway"), ("10.9.9.9", "failed to allocate all requested IPs: 10.9.9.9")]
        {
            let stage = Stage::new();
            let mut config = config(&stage, &["10.1.2.0/24"]);
            config["runtimeConfig"] = json!({ "ips": [address] });
            let reply = add(&stage, &subject, "c1", &config);
            assert!(reply.error_text().contains(words), "{}: {reply:?}", subject.name);
            assert_eq!(stage.reserved(), [""; 0], "{}: nothing stays behind", subject.name);
        }
    }
}

#[test]
fn one_request_for_each_set_is_honoured() {
    for subject in subjects() {
        let stage = Stage::new();
        let mut config = config(&stage, &["10.1.2.0/24", "2001:db8:1::/64"]);
        config["runtimeConfig"] = json!({ "ips": ["2001:db8:1::99", "10.1.2.99"] });
        let reply = add(&stage, &subject, "c1", &config);
        assert_eq!(addresses(&reply), ["10.1.2.99/24", "2001:db8:1::99/64"], "{}", subject.name);
    }
}

#[test]
fn resolv_conf_becomes_dns() {
    for subject in subjects() {
        let stage = Stage::new();
        let path = stage.data.path().join("resolv.conf");
        let text = "# a comment\n; another\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n\
                    domain example.test\nsearch one.test two.test\noptions ndots:5 timeout:1\n";
        fs::write(&path, text).unwrap();
        let mut config = config(&stage, &["10.1.2.0/24"]);
        config["ipam"]["resolvConf"] = json!(path);
        config["ipam"]["routes"] =
            json!([{ "dst": "0.0.0.0/0" }, { "dst": "10.7.0.0/16", "gw": "10.1.2.9" }]);
        let result = add(&stage, &subject, "c1", &config).expect_success("ADD");
        let dns = json!({
            "nameservers": ["192.0.2.53", "2001:db8::53"], "domain": "example.test",
            "search": ["one.test", "two.test"], "options": ["ndots:5", "timeout:1"],
        });
        assert_eq!(result["dns"], dns, "{}", subject.name);
        assert_eq!(result["routes"], config["ipam"]["routes"], "{}", subject.name);
    }
}

#[test]
fn an_empty_file_is_an_address_lost_by_the_reference_and_recovered_by_ours() {
    for subject in subjects() {
        let stage = Stage::new();
        let config = config(&stage, &["10.1.2.0/30"]);
        fs::create_dir_all(stage.data.path().join("test")).unwrap();
        fs::write(stage.data.path().join("test/10.1.2.2"), "").unwrap();
        let reply = add(&stage, &subject, "c1", &config);
        assert_eq!(reply.exit == Some(0), !subject.is_reference(), "{}: {reply:?}", subject.name);
    }
}

#[test]
fn status_says_when_no_address_is_left() {
    let subject = ours();
    let stage = Stage::new();
    let mut config = config(&stage, &["10.1.2.0/30"]);
    config["cniVersion"] = json!("1.1.0");
    let call = stage.call(&subject, "host-local", "c1");
    call.run("STATUS", &config).expect_success("STATUS");
    call.add(&config);
    let reply = call.run("STATUS", &config);
    assert_eq!(reply.error_code(), 50);
    assert!(reply.error_text().contains("10.1.2"), "the range is named: {reply:?}");
    call.del(&config);
    call.run("STATUS", &config).expect_success("STATUS");
}

#[test]
fn a_hundred_at_once_have_a_hundred_addresses() {
    for subject in subjects() {
        let stage = Stage::new();
        let config = config(&stage, &["10.1.2.0/24", "2001:db8:1::/64"]);
        let mut all: Vec<String> = thread::scope(|scope| {
            let workers: Vec<_> = (0..10)
                .map(|worker| {
                    let (stage, subject, config) = (&stage, &subject, &config);
                    scope.spawn(move || {
                        let one =
                            |number| addresses(&add(stage, subject, &format!("c{worker}-{number}"), config));
                        (0..10).flat_map(one).collect::<Vec<_>>()
                    })
                })
                .collect();
            workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
        });
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 200, "{}", subject.name);
    }
}

#[test]
fn both_implementations_share_one_directory() {
    let all = subjects();
    let [ours, theirs] = all.as_slice() else { return };
    let stage = Stage::new();
    let config = config(&stage, &["10.1.2.0/24"]);
    for (number, subject) in [ours, theirs, ours, theirs].into_iter().enumerate() {
        let expected = format!("10.1.2.{}/24", number + 2);
        assert_eq!(addresses(&add(&stage, subject, &format!("c{number}"), &config)), [expected]);
    }
    // Each releases what the other gave.
    stage.call(theirs, "host-local", "c0").del(&config);
    stage.call(ours, "host-local", "c1").del(&config);
    assert_eq!(stage.reserved(), ["10.1.2.4", "10.1.2.5"]);
    stage.call(theirs, "host-local", "c2").del(&config);
    stage.call(ours, "host-local", "c3").del(&config);
    assert_eq!(stage.reserved(), [""; 0]);
}
