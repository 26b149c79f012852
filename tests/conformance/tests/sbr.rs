//! sbr: a rule and a table for each address, routes moved, configured gateways and tables, DEL. Behaviour 63.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use conformance::{Stage, Subject, recent_subjects, subjects};
use harness::{Namespace, Reply};
use serde_json::{Value, json};

/// A pod with `eth0` and `net1`, addresses on the latter and a default route of it.
fn stage(addresses: &[&str], routes: &[&str]) -> Stage {
    let stage = Stage::new();
    for name in ["eth0", "net1"] {
        stage.pod.ip(&format!("link add {name} type veth peer name far-{name}"));
        stage.pod.ip(&format!("link set {name} up"));
        stage.pod.ip(&format!("link set far-{name} up"));
    }
    stage.pod.ip("addr add 10.0.0.2/24 dev eth0");
    stage.pod.ip("route add 10.8.0.0/16 via 10.0.0.1");
    for address in addresses {
        stage.pod.ip(&format!("addr add {address} dev net1 nodad"));
    }
    for route in routes {
        stage.pod.ip(&format!("route add {route} dev net1"));
    }
    stage
}

/// `addresses` are pairs of address and gateway (empty for none) on `net1`.
fn config(stage: &Stage, addresses: &[(&str, &str)], more: &Value) -> Value {
    let mut config = stage.config("sbr", "1.0.0", more);
    let ip = |(address, gateway): &(&str, &str)| {
        let mut ip = json!({ "address": address, "interface": 1 });
        if !gateway.is_empty() {
            ip["gateway"] = json!(gateway);
        }
        ip
    };
    let mut ips: Vec<Value> = addresses.iter().map(ip).collect();
    ips.push(json!({ "address": "10.0.0.2/24", "interface": 0 }));
    let sandbox = stage.pod.path();
    config["prevResult"] = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{ "name": "eth0", "sandbox": sandbox }, { "name": "net1", "sandbox": sandbox }],
        "ips": ips,
        "routes": [{ "dst": "0.0.0.0/0", "gw": "192.168.1.1" }],
    });
    config
}

fn run(stage: &Stage, subject: &Subject, command: &str, config: &Value) -> Reply {
    let mut call = stage.call(subject, "sbr", "c1");
    call.ifname = "net1";
    call.run(command, config)
}

/// The rules that look at a source, as `SOURCE TABLE`, sorted.
fn rules(pod: &Namespace) -> Vec<String> {
    let mut all = Vec::new();
    for family in ["-4", "-6"] {
        for rule in pod.ip_json(&format!("{family} rule show")).as_array().unwrap() {
            if rule["src"] != "all" {
                all.push(format!("{} {}", rule["src"].as_str().unwrap(), rule["table"].as_str().unwrap()));
            }
        }
    }
    all.sort();
    all
}

/// The routes of a table over `net1` as `DESTINATION via GATEWAY`, sorted, without link-local ones.
fn routes(pod: &Namespace, table: &str) -> Vec<String> {
    let mut all = Vec::new();
    for family in ["-4", "-6"] {
        let shown = harness::run(
            pod.command("ip").args(["-j", family, "route", "show", "table", table, "dev", "net1"]),
        );
        let shown: Value = serde_json::from_slice(&shown.stdout).unwrap_or_default();
        for route in shown.as_array().into_iter().flatten() {
            let text = match route["gateway"].as_str() {
                Some(gateway) => format!("{} via {gateway}", route["dst"].as_str().unwrap()),
                None => route["dst"].as_str().unwrap().to_owned(),
            };
            all.extend(Some(text).filter(|text| !text.starts_with("fe80") && !text.starts_with("ff00")));
        }
    }
    all.sort();
    all
}

#[test]
fn one_address_gets_a_rule_and_the_routes_of_its_interface() {
    for subject in subjects() {
        let stage = stage(&["192.168.1.209/24"], &["default via 192.168.1.1"]);
        let config = config(&stage, &[("192.168.1.209/24", "192.168.1.1")], &json!({}));
        let result = run(&stage, &subject, "ADD", &config).expect_success("ADD");
        assert_eq!(result["ips"], config["prevResult"]["ips"], "{}", subject.name);
        assert_eq!(result["routes"], config["prevResult"]["routes"], "{}", subject.name);
        assert_eq!(rules(&stage.pod), ["192.168.1.209 100"], "{}", subject.name);
        assert_eq!(
            routes(&stage.pod, "100"),
            ["192.168.1.0/24", "default via 192.168.1.1"],
            "{}",
            subject.name
        );
        assert_eq!(routes(&stage.pod, "main"), Vec::<String>::new(), "{}", subject.name);
        let others = stage.pod.ip_json("route show dev eth0");
        assert_eq!(
            others.as_array().unwrap().len(),
            2,
            "{}: of other interfaces nothing moves",
            subject.name
        );
        run(&stage, &subject, "CHECK", &config).expect_success("CHECK");
        run(&stage, &subject, "DEL", &config).expect_success("DEL");
        assert_eq!(rules(&stage.pod), Vec::<String>::new(), "{}", subject.name);
        run(&stage, &subject, "DEL", &config).expect_success("a second DEL");
    }
}

#[test]
fn two_addresses_get_two_tables() {
    for subject in subjects() {
        let stage = stage(&["192.168.1.209/24", "192.168.101.209/24"], &["default via 192.168.1.1"]);
        let addresses = [("192.168.1.209/24", "192.168.1.1"), ("192.168.101.209/24", "192.168.101.1")];
        let config = config(&stage, &addresses, &json!({}));
        run(&stage, &subject, "ADD", &config).expect_success("ADD");
        assert_eq!(rules(&stage.pod), ["192.168.1.209 100", "192.168.101.209 101"], "{}", subject.name);
        assert_eq!(
            routes(&stage.pod, "100"),
            ["192.168.1.0/24", "default via 192.168.1.1"],
            "{}",
            subject.name
        );
        let second = ["192.168.101.0/24", "default via 192.168.101.1"];
        assert_eq!(routes(&stage.pod, "101"), second, "{}", subject.name);
        assert_eq!(routes(&stage.pod, "main"), Vec::<String>::new(), "{}", subject.name);
        run(&stage, &subject, "DEL", &config).expect_success("DEL");
        assert_eq!(rules(&stage.pod), Vec::<String>::new(), "{}", subject.name);
    }
}

#[test]
fn two_addresses_of_one_subnet_both_reach_it() {
    for subject in subjects() {
        let stage = stage(&["192.168.1.209/24", "192.168.1.210/24"], &["default via 192.168.1.1"]);
        let addresses = [("192.168.1.209/24", "192.168.1.1"), ("192.168.1.210/24", "192.168.1.1")];
        let config = config(&stage, &addresses, &json!({}));
        run(&stage, &subject, "ADD", &config).expect_success("ADD");
        assert_eq!(rules(&stage.pod), ["192.168.1.209 100", "192.168.1.210 101"], "{}", subject.name);
        for table in ["100", "101"] {
            let expected = ["192.168.1.0/24", "default via 192.168.1.1"];
            assert_eq!(routes(&stage.pod, table), expected, "{} {table}", subject.name);
        }
    }
}

// The reference copies IPv6 routes that name no source into the tables of IPv4 addresses as well.
#[test]
fn both_families_are_routed_by_source() {
    for subject in subjects() {
        let stage = stage(
            &["192.168.1.209/24", "2001:db8::209/64"],
            &["default via 192.168.1.1", "default via 2001:db8::1"],
        );
        let addresses = [("192.168.1.209/24", "192.168.1.1"), ("2001:db8::209/64", "2001:db8::1")];
        let config = config(&stage, &addresses, &json!({}));
        run(&stage, &subject, "ADD", &config).expect_success("ADD");
        assert_eq!(rules(&stage.pod), ["192.168.1.209 100", "2001:db8::209 101"], "{}", subject.name);
        let mut first = vec!["192.168.1.0/24", "default via 192.168.1.1"];
        if subject.is_reference() {
            first.insert(1, "2001:db8::/64");
        }
        assert_eq!(routes(&stage.pod, "100"), first, "{}", subject.name);
        assert_eq!(
            routes(&stage.pod, "101"),
            ["2001:db8::/64", "default via 2001:db8::1"],
            "{}",
            subject.name
        );
        assert_eq!(routes(&stage.pod, "main"), Vec::<String>::new(), "{}", subject.name);
        run(&stage, &subject, "DEL", &config).expect_success("DEL");
        assert_eq!(rules(&stage.pod), Vec::<String>::new(), "{}", subject.name);
    }
}

#[test]
fn tables_in_use_are_passed_over() {
    for subject in subjects() {
        let stage = stage(&["192.168.1.209/24"], &["default via 192.168.1.1"]);
        stage.pod.ip("rule add from 10.0.0.2/32 lookup 100");
        let config = config(&stage, &[("192.168.1.209/24", "192.168.1.1")], &json!({}));
        run(&stage, &subject, "ADD", &config).expect_success("ADD");
        assert_eq!(rules(&stage.pod), ["10.0.0.2 100", "192.168.1.209 101"], "{}", subject.name);
        run(&stage, &subject, "DEL", &config).expect_success("DEL");
        assert_eq!(rules(&stage.pod), ["10.0.0.2 100"], "{}: another's rule stays", subject.name);
    }
}

#[test]
fn each_takes_away_the_rules_of_the_other() {
    let both = subjects();
    let [ours, reference] = both.as_slice() else { return };
    for (first, second) in [(ours, reference), (reference, ours)] {
        let stage = stage(&["192.168.1.209/24"], &["default via 192.168.1.1"]);
        let config = config(&stage, &[("192.168.1.209/24", "192.168.1.1")], &json!({}));
        run(&stage, first, "ADD", &config).expect_success("ADD");
        run(&stage, second, "CHECK", &config).expect_success("CHECK");
        run(&stage, second, "DEL", &config).expect_success("DEL");
        assert_eq!(rules(&stage.pod), Vec::<String>::new(), "{}", second.name);
    }
}

// The reference locks the path of the namespace and so makes a file there, and then finds that it is none.
#[test]
fn del_with_a_namespace_that_is_gone_succeeds_and_makes_no_file() {
    for subject in subjects() {
        let stage = stage(&["192.168.1.209/24"], &[]);
        let config = config(&stage, &[("192.168.1.209/24", "192.168.1.1")], &json!({}));
        let gone = stage.data.path().join("gone");
        let mut call = stage.call(&subject, "sbr", "c1");
        call.netns.clone_from(&gone);
        let reply = call.run("DEL", &config);
        assert_eq!(reply.exit == Some(0), !subject.is_reference(), "{}: {reply:?}", subject.name);
        assert_eq!(gone.exists(), subject.is_reference(), "{}", subject.name);
    }
}

#[test]
fn del_with_a_link_that_is_gone_succeeds() {
    for subject in subjects() {
        let stage = stage(&["192.168.1.209/24"], &[]);
        let config = config(&stage, &[("192.168.1.209/24", "192.168.1.1")], &json!({}));
        run(&stage, &subject, "ADD", &config).expect_success("ADD");
        stage.pod.ip("link del net1");
        // The reference learns addresses from the link alone, and Debian's does not even end well.
        let reply = run(&stage, &subject, "DEL", &config);
        assert_eq!(reply.exit == Some(0), subject.is_recent(), "{}: {reply:?}", subject.name);
        assert_eq!(rules(&stage.pod).is_empty(), !subject.is_reference(), "{}", subject.name);
    }
}

#[test]
fn it_has_to_stand_after_a_plugin_that_gave_addresses() {
    for subject in subjects() {
        let stage = stage(&["192.168.1.209/24"], &[]);
        let mut config = config(&stage, &[("192.168.1.209/24", "192.168.1.1")], &json!({}));
        config["prevResult"]["ips"] = json!([]);
        let reply = run(&stage, &subject, "ADD", &config);
        assert!(reply.error_text().contains("No IP addresses supplied on interface: net1"), "{reply:?}");
        config.as_object_mut().unwrap().remove("prevResult");
        let reply = run(&stage, &subject, "ADD", &config);
        assert!(
            reply.error_text().contains("must be called as chained plugin"),
            "{}: {reply:?}",
            subject.name
        );
        assert_eq!(rules(&stage.pod), Vec::<String>::new(), "{}", subject.name);
    }
}

#[test]
fn an_address_that_names_no_interface_counts() {
    for subject in subjects() {
        let stage = stage(&["192.168.1.209/24"], &[]);
        let mut config = config(&stage, &[("192.168.1.209/24", "192.168.1.1")], &json!({}));
        config["prevResult"]["ips"] = json!([{ "address": "192.168.1.209/24", "gateway": "192.168.1.1" }]);
        run(&stage, &subject, "ADD", &config).expect_success("ADD");
        assert_eq!(rules(&stage.pod), ["192.168.1.209 100"], "{}", subject.name);
    }
}

// The reference's CHECK looks at nothing.
#[test]
fn check_misses_the_rule_and_the_default_route() {
    for subject in subjects() {
        for change in [
            "rule del from 192.168.1.209",
            "route del default table 100",
            "route add default via 192.168.1.1 dev net1 onlink",
        ] {
            let stage = stage(&["192.168.1.209/24"], &["default via 192.168.1.1"]);
            let config = config(&stage, &[("192.168.1.209/24", "192.168.1.1")], &json!({}));
            run(&stage, &subject, "ADD", &config).expect_success("ADD");
            run(&stage, &subject, "CHECK", &config).expect_success("CHECK");
            stage.pod.ip(change);
            let reply = run(&stage, &subject, "CHECK", &config);
            assert_eq!(reply.exit == Some(0), subject.is_reference(), "{} {change}: {reply:?}", subject.name);
        }
    }
}

// Newer than Debian's reference: `table`, `gateways`, `addSourceHints`.
#[test]
fn a_configured_table_gets_rules_and_nothing_moves() {
    for subject in recent_subjects() {
        let stage = stage(&["192.168.1.209/24"], &["default via 192.168.1.1"]);
        let config = config(&stage, &[("192.168.1.209/24", "192.168.1.1")], &json!({ "table": 5000 }));
        run(&stage, &subject, "ADD", &config).expect_success("ADD");
        assert_eq!(rules(&stage.pod), ["192.168.1.209 5000"]);
        assert_eq!(routes(&stage.pod, "5000"), Vec::<String>::new());
        assert_eq!(routes(&stage.pod, "main"), ["192.168.1.0/24", "default via 192.168.1.1"]);
        run(&stage, &subject, "CHECK", &config).expect_success("CHECK");
        stage.pod.ip("rule add from 192.168.1.209 lookup 7");
        run(&stage, &subject, "DEL", &config).expect_success("DEL");
        assert_eq!(rules(&stage.pod), ["192.168.1.209 7"], "a rule to another table is not ours");
    }
}

#[test]
fn configured_gateways_take_the_place_of_the_addresses_own() {
    for subject in recent_subjects() {
        // With default routes there already, the reference takes those over the configured gateways.
        let defaults = ["default via 192.168.1.1", "default via 2001:db8::1"];
        let defaults = if subject.is_reference() { &[][..] } else { &defaults[..] };
        let stage = stage(&["192.168.1.209/24", "2001:db8::209/64"], defaults);
        let addresses = [("192.168.1.209/24", "192.168.1.1"), ("2001:db8::209/64", "2001:db8::1")];
        let more = json!({ "gateways": ["192.168.1.254", "2001:db8::fe"] });
        let good = config(&stage, &addresses, &more);
        run(&stage, &subject, "ADD", &good).expect_success("ADD");
        let mut first = vec!["192.168.1.0/24", "default via 192.168.1.254"];
        if subject.is_reference() {
            first.insert(1, "2001:db8::/64");
        }
        assert_eq!(routes(&stage.pod, "100"), first, "{}", subject.name);
        assert_eq!(routes(&stage.pod, "101"), ["2001:db8::/64", "default via 2001:db8::fe"]);
        run(&stage, &subject, "CHECK", &good).expect_success("CHECK");
        let two = config(&stage, &addresses, &json!({ "gateways": ["192.168.1.254", "192.168.1.253"] }));
        let reply = run(&stage, &subject, "ADD", &two);
        assert!(reply.error_text().contains("gateways list contains multiple IPv4 addresses"), "{reply:?}");
    }
}

#[test]
fn hints_keep_the_subnets_in_the_main_table() {
    for subject in recent_subjects() {
        let stage = stage(
            &["192.168.1.209/24", "2001:db8::209/64"],
            &["default via 192.168.1.1", "default via 2001:db8::1"],
        );
        let addresses = [("192.168.1.209/24", "192.168.1.1"), ("2001:db8::209/64", "2001:db8::1")];
        let config = config(&stage, &addresses, &json!({ "addSourceHints": true }));
        run(&stage, &subject, "ADD", &config).expect_success("ADD");
        assert_eq!(routes(&stage.pod, "main"), ["192.168.1.0/24", "2001:db8::/64"]);
        for (destination, source) in [("192.168.1.7", "192.168.1.209"), ("2001:db8::7", "2001:db8::209")] {
            assert_eq!(stage.pod.ip_json(&format!("route get {destination}"))[0]["prefsrc"], source);
        }
        run(&stage, &subject, "CHECK", &config).expect_success("CHECK");
    }
}
