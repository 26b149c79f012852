//! vrf: the interface joins, its addresses and routes come along, the VRF goes with the last port; tables and
//! errors. Behaviour 64. Needs a kernel with VRFs: where this machine's has none, `cargo xtask vm-test` runs
//! these in a virtual machine.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and tools are what it asserts with"
)]

use conformance::{Stage, Subject, ours, subjects};
use harness::{Namespace, Reply, eventually, not_run, run, run_ok};
use serde_json::{Value, json};

fn has_vrfs(namespace: &Namespace) -> bool {
    let probe = ["link", "add", "probe", "type", "vrf", "table", "7777"];
    let works = run(namespace.command("ip").args(probe)).status.success();
    if works {
        namespace.ip("link del probe");
    }
    works
}

/// A host and a pod; `None`, after saying so, on a kernel that cannot.
fn stage() -> Option<Stage> {
    let stage = Stage::new();
    if has_vrfs(&stage.host) {
        return Some(stage);
    }
    not_run("the kernel has no VRFs");
    None
}

/// A cable from the pod's `name` to the host, with addresses of both families on either end.
fn cable(stage: &Stage, name: &str, number: u8) {
    let host = stage.host.path().display().to_string();
    let holder = host.trim_start_matches("/proc/").trim_end_matches("/ns/net");
    stage.pod.ip(&format!("link add {name} type veth peer name far-{name} netns {holder}"));
    for (namespace, link, last) in [(&stage.pod, name.to_owned(), 2), (&stage.host, format!("far-{name}"), 1)]
    {
        namespace.ip(&format!("addr add 10.0.{number}.{last}/24 dev {link}"));
        namespace.ip(&format!("addr add fd00:{number}::{last}/64 dev {link} nodad"));
        namespace.ip(&format!("link set {link} up"));
    }
}

fn config(stage: &Stage, vrf: &str, more: &Value) -> Value {
    let mut config = stage.config("vrf", "1.0.0", more);
    config["vrfname"] = json!(vrf);
    config["prevResult"] = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{ "name": "eth0", "sandbox": stage.pod.path() }],
        "ips": [{ "address": "10.0.1.2/24", "gateway": "10.0.1.1", "interface": 0 }],
        "routes": [{ "dst": "0.0.0.0/0", "gw": "10.0.1.1" }],
    });
    config
}

fn call(stage: &Stage, subject: &Subject, ifname: &str, command: &str, config: &Value) -> Reply {
    let mut call = stage.call(subject, "vrf", "c1");
    call.ifname = ifname;
    call.run(command, config)
}

fn master(pod: &Namespace, link: &str) -> Value {
    pod.ip_json(&format!("link show {link}"))[0]["master"].clone()
}

fn table(pod: &Namespace, vrf: &str) -> u64 {
    pod.ip_json(&format!("link show {vrf}"))[0]["linkinfo"]["info_data"]["table"].as_u64().unwrap()
}

/// The global addresses of a link, sorted.
fn addresses(pod: &Namespace, link: &str) -> Vec<String> {
    let shown = pod.ip_json(&format!("addr show {link}"));
    let all = shown[0]["addr_info"].as_array().unwrap().iter();
    let global = all.filter(|address| address["scope"] == "global");
    let mut texts: Vec<String> =
        global.map(|address| address["local"].as_str().unwrap().to_owned()).collect();
    texts.sort();
    texts
}

/// The routes of a table that the kernel has not made itself, as `DESTINATION via GATEWAY`, sorted.
fn routes(pod: &Namespace, table: &str) -> Vec<String> {
    let mut all = Vec::new();
    for family in ["-4", "-6"] {
        let shown = run(pod.command("ip").args(["-j", family, "route", "show", "table", table]));
        let shown: Value = serde_json::from_slice(&shown.stdout).unwrap_or_default();
        for route in shown.as_array().into_iter().flatten().filter(|route| route["protocol"] != "kernel") {
            let destination = route["dst"].as_str().unwrap();
            if route["type"] == "unreachable" || destination.starts_with("ff00") {
                continue;
            }
            all.push(match route["gateway"].as_str() {
                Some(gateway) => format!("{destination} via {gateway}"),
                None => destination.to_owned(),
            });
        }
    }
    all.sort();
    all
}

fn pings(from: &Namespace, address: &str) -> bool {
    eventually("an answer", || from.pings(address).then_some(true))
}

#[test]
fn an_interface_joins_with_its_addresses_and_routes() {
    let Some(_) = stage() else { return };
    for subject in subjects() {
        let stage = Stage::new();
        cable(&stage, "eth0", 1);
        stage.pod.ip("route add default via 10.0.1.1");
        stage.pod.ip("route add 10.8.0.0/16 via 10.0.1.8 mtu 1300");
        stage.pod.ip("route add 10.9.0.0/16 dev eth0");
        stage.pod.ip("-6 route add default via fd00:1::1");
        let config = config(&stage, "blue", &json!({ "table": 1001 }));
        let result = call(&stage, &subject, "eth0", "ADD", &config).expect_success("ADD");
        for key in ["interfaces", "ips", "routes"] {
            assert_eq!(result[key], config["prevResult"][key], "{}", subject.name);
        }
        assert_eq!(master(&stage.pod, "eth0"), "blue", "{}", subject.name);
        assert_eq!(table(&stage.pod, "blue"), 1001, "{}", subject.name);
        assert_eq!(addresses(&stage.pod, "eth0"), ["10.0.1.2", "fd00:1::2"], "{}", subject.name);
        let mut expected =
            vec!["10.8.0.0/16 via 10.0.1.8", "10.9.0.0/16", "default via 10.0.1.1", "default via fd00:1::1"];
        if !subject.is_recent() {
            // Debian's loses them all.
            expected.clear();
        } else if subject.is_reference() {
            // It keeps routes of global scope only, and this one is to the link.
            expected.remove(1);
        }
        assert_eq!(routes(&stage.pod, "1001"), expected, "{}", subject.name);
        assert_eq!(routes(&stage.pod, "main"), Vec::<String>::new(), "{}", subject.name);
        assert!(pings(&stage.host, "10.0.1.2") && pings(&stage.host, "fd00:1::2"), "{}", subject.name);
        call(&stage, &subject, "eth0", "CHECK", &config).expect_success("CHECK");
        call(&stage, &subject, "eth0", "DEL", &config).expect_success("DEL");
        assert_eq!(master(&stage.pod, "eth0"), Value::Null, "{}", subject.name);
        assert_eq!(stage.pod.link_names(), ["eth0"], "{}", subject.name);
        call(&stage, &subject, "eth0", "DEL", &config).expect_success("a second DEL");
    }
}

#[test]
fn a_vrf_goes_with_its_last_port() {
    let Some(_) = stage() else { return };
    for subject in subjects() {
        let stage = Stage::new();
        let config = config(&stage, "blue", &json!({}));
        for (number, name) in [(1, "eth0"), (2, "net1")] {
            cable(&stage, name, number);
            call(&stage, &subject, name, "ADD", &config).expect_success("ADD");
        }
        assert_eq!(master(&stage.pod, "eth0"), master(&stage.pod, "net1"), "{}", subject.name);
        call(&stage, &subject, "eth0", "DEL", &config).expect_success("DEL");
        assert_eq!(stage.pod.link_names(), ["blue", "eth0", "net1"], "{}", subject.name);
        call(&stage, &subject, "net1", "CHECK", &config).expect_success("CHECK");
        // Debian's is content with any port.
        let reply = call(&stage, &subject, "eth0", "CHECK", &config);
        assert_eq!(reply.exit == Some(0), !subject.is_recent(), "{}: {reply:?}", subject.name);
        call(&stage, &subject, "net1", "DEL", &config).expect_success("DEL");
        assert_eq!(stage.pod.link_names(), ["eth0", "net1"], "{}", subject.name);
    }
}

#[test]
fn one_address_in_two_vrfs_is_reached_in_both() {
    let Some(_) = stage() else { return };
    for subject in subjects() {
        let stage = Stage::new();
        let others = [Namespace::with_loopback(), Namespace::with_loopback()];
        for (name, vrf, other) in [("eth0", "blue", &others[0]), ("net1", "red", &others[1])] {
            let path = other.path().display().to_string();
            let holder = path.trim_start_matches("/proc/").trim_end_matches("/ns/net").to_owned();
            stage.pod.ip(&format!("link add {name} type veth peer name far netns {holder}"));
            stage.pod.ip(&format!("link set {name} up"));
            other.ip("addr add 10.0.0.1/24 dev far");
            other.ip("link set far up");
            call(&stage, &subject, name, "ADD", &config(&stage, vrf, &json!({}))).expect_success("ADD");
            stage.pod.ip(&format!("addr add 10.0.0.2/24 dev {name}"));
        }
        assert_ne!(table(&stage.pod, "blue"), table(&stage.pod, "red"), "{}", subject.name);
        assert!(others.iter().all(|other| pings(other, "10.0.0.2")), "{}", subject.name);
    }
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let Some(_) = stage() else { return };
    for subject in subjects() {
        let stage = Stage::new();
        cable(&stage, "eth0", 1);
        cable(&stage, "net1", 2);
        let blue = config(&stage, "blue", &json!({ "table": 1001 }));
        call(&stage, &subject, "eth0", "ADD", &blue).expect_success("ADD");
        let refused = |ifname: &str, config: &Value, words: &str| {
            let reply = call(&stage, &subject, ifname, "ADD", config);
            assert_ne!(reply.exit, Some(0), "{}: {words}", subject.name);
            assert!(reply.error_text().contains(words), "{}: {reply:?}", subject.name);
            assert_eq!(master(&stage.pod, "net1"), Value::Null, "{}", subject.name);
        };
        let other = config(&stage, "blue", &json!({ "table": 1002 }));
        refused("net1", &other, "VRF blue already exist with different routing table 1001");
        refused("eth0", &config(&stage, "red", &json!({})), "interface eth0 has already a master set: blue");
        refused(
            "net1",
            &config(&stage, "", &json!({})),
            "configuration is expected to have a valid vrf name",
        );
        let mut alone = blue.clone();
        alone.as_object_mut().unwrap().remove("prevResult");
        refused("net1", &alone, "prevResult");
        refused("net1", &config(&stage, "eth0", &json!({})), "is not a VRF");
        if !subject.is_reference() {
            // The reference leaves the VRF that it has made for nothing, and gives two VRFs one table.
            let red = config(&stage, "red", &json!({ "table": 1001 }));
            refused("net1", &red, "table: 1001 is the routing table of the VRF blue");
            assert_eq!(stage.pod.link_names(), ["blue", "eth0", "net1"]);
            let mut call = stage.call(&subject, "vrf", "c1");
            call.ifname = "lo";
            let reply = call.run("ADD", &config(&stage, "red", &json!({})));
            assert_eq!(reply.error_code(), 101, "{reply:?}");
            assert_eq!(stage.pod.link_names(), ["blue", "eth0", "net1"]);
        }
    }
}

// The reference looks at the tables of VRFs alone.
#[test]
fn a_table_that_somebody_uses_is_not_chosen() {
    let Some(_) = stage() else { return };
    for subject in subjects() {
        let stage = Stage::new();
        cable(&stage, "eth0", 1);
        cable(&stage, "net1", 2);
        stage.pod.ip("rule add from 192.0.2.1 lookup 1");
        stage.pod.ip("route add 192.0.2.0/24 via 10.0.2.1 table 2");
        stage.pod.ip("link add green type vrf table 3");
        call(&stage, &subject, "eth0", "ADD", &config(&stage, "blue", &json!({}))).expect_success("ADD");
        let expected = if subject.is_reference() { 1 } else { 4 };
        assert_eq!(table(&stage.pod, "blue"), expected, "{}", subject.name);
    }
}

#[test]
fn del_succeeds_whatever_is_gone() {
    let Some(_) = stage() else { return };
    for subject in subjects() {
        let stage = Stage::new();
        let config = config(&stage, "blue", &json!({}));
        cable(&stage, "eth0", 1);
        call(&stage, &subject, "eth0", "ADD", &config).expect_success("ADD");
        stage.pod.ip("link del blue");
        call(&stage, &subject, "eth0", "DEL", &config).expect_success("DEL without the VRF");
        call(&stage, &subject, "eth0", "ADD", &config).expect_success("ADD");
        stage.pod.ip("link del eth0");
        // The reference gives up without the interface, and the VRF stays.
        let reply = call(&stage, &subject, "eth0", "DEL", &config);
        assert_eq!(reply.exit == Some(0), !subject.is_reference(), "{}: {reply:?}", subject.name);
        assert_eq!(stage.pod.link_names().is_empty(), !subject.is_reference(), "{}", subject.name);
        let mut gone = stage.call(&subject, "vrf", "c1");
        gone.netns = "/proc/nowhere".into();
        gone.del(&config);
    }
}

#[test]
fn routes_of_other_tables_and_both_ways_of_a_route_come_back() {
    let Some(stage) = stage() else { return };
    let subject = ours();
    cable(&stage, "eth0", 1);
    stage.pod.ip("route add 192.0.2.0/24 nexthop via 10.0.1.1 nexthop via 10.0.1.9");
    stage.pod.ip("route add 198.51.100.0/24 via 172.16.0.1 dev eth0 onlink");
    stage.pod.ip("route add default via 10.0.1.1 table 100");
    stage.pod.ip("addr add fd00:7::2/64 dev eth0 nodad noprefixroute");
    let config = config(&stage, "blue", &json!({ "table": 50 }));
    call(&stage, &subject, "eth0", "ADD", &config).expect_success("ADD");
    let shown = stage.pod.ip_json("-4 route show table 50 192.0.2.0/24");
    assert_eq!(shown[0]["nexthops"].as_array().unwrap().len(), 2, "{shown}");
    assert!(routes(&stage.pod, "50").contains(&"198.51.100.0/24 via 172.16.0.1".to_owned()));
    assert_eq!(routes(&stage.pod, "100"), ["default via 10.0.1.1"]);
    assert_eq!(addresses(&stage.pod, "eth0"), ["10.0.1.2", "fd00:1::2", "fd00:7::2"]);
    assert!(
        !run_ok(stage.pod.command("ip").args(["-6", "route", "show", "table", "50"])).contains("fd00:7::/64")
    );
}

#[test]
fn check_finds_what_was_changed_behind_its_back() {
    let Some(stage) = stage() else { return };
    let subject = ours();
    cable(&stage, "eth0", 1);
    let config = config(&stage, "blue", &json!({ "table": 50 }));
    call(&stage, &subject, "eth0", "ADD", &config).expect_success("ADD");
    let mut other = config.clone();
    other["table"] = json!(51);
    let reply = call(&stage, &subject, "eth0", "CHECK", &other);
    assert!(reply.error_text().contains("different routing table 50"), "{reply:?}");
    stage.pod.ip("link set blue down");
    assert!(call(&stage, &subject, "eth0", "CHECK", &config).error_text().contains("is down"));
    stage.pod.ip("link set blue up");
    stage.pod.ip("link set eth0 nomaster");
    let reply = call(&stage, &subject, "eth0", "CHECK", &config);
    assert!(reply.error_text().contains("failed to find eth0 associated to vrf blue"), "{reply:?}");
    stage.pod.ip("link del blue");
    assert!(call(&stage, &subject, "eth0", "CHECK", &config).error_text().contains("blue is gone"));
}

#[test]
fn del_with_a_configuration_that_has_become_wrong_frees_the_interface() {
    let Some(stage) = stage() else { return };
    let subject = ours();
    cable(&stage, "eth0", 1);
    let config = config(&stage, "blue", &json!({}));
    call(&stage, &subject, "eth0", "ADD", &config).expect_success("ADD");
    let mut wrong = config.clone();
    wrong["vrfname"] = json!(7);
    call(&stage, &subject, "eth0", "DEL", &wrong).expect_success("DEL");
    assert_eq!(stage.pod.link_names(), ["eth0"]);
}

#[test]
fn status_says_whether_the_kernel_has_vrfs() {
    let subject = ours();
    let stage = Stage::new();
    let mut config = config(&stage, "blue", &json!({ "cni.dev/valid-attachments": [] }));
    config["cniVersion"] = json!("1.1.0");
    let reply = call(&stage, &subject, "eth0", "STATUS", &config);
    if has_vrfs(&stage.host) {
        reply.expect_success("STATUS");
    } else {
        assert_eq!(reply.error_code(), 50);
        assert!(reply.error_text().contains("CONFIG_NET_VRF"), "{reply:?}");
    }
    call(&stage, &subject, "eth0", "GC", &config).expect_success("GC");
    config["vrfname"] = json!("");
    assert_eq!(call(&stage, &subject, "eth0", "STATUS", &config).error_code(), 50);
}

#[test]
fn versions_before_chains_are_not_spoken() {
    for subject in subjects() {
        let stage = Stage::new();
        let mut config = config(&stage, "blue", &json!({}));
        config["cniVersion"] = json!("0.3.0");
        assert_eq!(call(&stage, &subject, "eth0", "ADD", &config).error_code(), 1, "{}", subject.name);
        let versions = call(&stage, &subject, "eth0", "VERSION", &config).json();
        assert_eq!(versions["supportedVersions"][0], "0.3.1", "{}", subject.name);
    }
}
