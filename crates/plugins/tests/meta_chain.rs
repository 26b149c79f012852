//! Chained plugins on top of each other: what the later ones change does not make the earlier ones' CHECK complain,
//! and a DEL of the whole chain leaves nothing.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a failure here is a failure of the test, and tools are what it asserts with"
)]

use harness::{Call, Namespace};
use serde_json::{Value, json};

/// A configuration of every plugin of the chain, in order.
fn chain(data: &std::path::Path) -> Vec<Value> {
    let routes = json!([
        { "dst": "192.0.2.0/24", "gw": "10.1.2.8" }, { "dst": "192.0.2.0/24", "gw": "10.1.2.9" },
        { "dst": "198.51.100.0/24" },
    ]);
    let addresses = json!([
        { "address": "10.1.2.7/24", "gateway": "10.1.2.1" },
        { "address": "fd00::7/64", "gateway": "fd00::1" },
    ]);
    vec![
        json!({ "type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true, "ipMasq": true,
                "ipam": { "type": "static", "addresses": addresses, "routes": routes } }),
        json!({ "type": "tuning", "mac": "02:00:00:00:00:AA", "mtu": 1400, "dataDir": data,
                "sysctl": { "net.ipv4.conf.IFNAME.arp_filter": "1" } }),
        json!({ "type": "route-override", "delroutes": [{ "dst": "198.51.100.0/24" }],
                "addroutes": [{ "dst": "203.0.113.0/24" }] }),
        json!({ "type": "sbr" }),
    ]
}

#[test]
fn checks_of_earlier_plugins_bear_with_later_ones() {
    let host = Namespace::with_loopback();
    let pod = Namespace::with_loopback();
    let bin = harness::plugin_directory(&["bridge", "static", "tuning", "route-override", "sbr"]);
    let data = tempfile::tempdir().unwrap();
    let call = |config: &Value, command: &str, previous: &Value| {
        let mut config = config.clone();
        config["cniVersion"] = json!("1.1.0");
        config["name"] = json!("test");
        if !previous.is_null() {
            config["prevResult"] = previous.clone();
        }
        let plugin = config["type"].as_str().unwrap().to_owned();
        let reply = Call::new(&host, bin.path(), &plugin, "c", &pod).run(command, &config);
        reply.expect_success(&format!("{command} of {plugin}"))
    };
    let chain = chain(data.path());
    let result = chain.iter().fold(Value::Null, |previous, config| call(config, "ADD", &previous));
    assert_eq!(result["interfaces"][2]["mac"], "02:00:00:00:00:aa");
    for config in &chain {
        call(config, "CHECK", &result);
    }
    assert!(pod.ip_json("-4 route show table main").as_array().unwrap().is_empty());
    let own = pod.ip_json("-4 route show table 100");
    let destinations: Vec<&str> =
        own.as_array().unwrap().iter().map(|route| route["dst"].as_str().unwrap()).collect();
    for destination in ["default", "10.1.2.0/24", "192.0.2.0/24", "203.0.113.0/24"] {
        assert!(destinations.contains(&destination), "{destinations:?}");
    }
    let ping = |source: &str, target: &str| {
        let mut ping = pod.command("ping");
        harness::run(ping.args(["-n", "-q", "-c", "1", "-W", "2", "-I", source, target])).status.success()
    };
    assert!(ping("10.1.2.7", "10.1.2.1") && ping("fd00::7", "fd00::1"));
    for config in chain.iter().rev() {
        call(config, "DEL", &result);
    }
    assert!(pod.link_names().is_empty());
    assert_eq!(host.link_names(), ["cni0"]);
    for family in ["-4", "-6"] {
        let rules = pod.ip_json(&format!("{family} rule show"));
        assert!(rules.as_array().unwrap().iter().all(|rule| rule["src"] == "all"), "{rules}");
    }
    assert_eq!(std::fs::read_dir(data.path()).unwrap().count(), 0);
}
