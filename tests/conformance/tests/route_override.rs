//! route-override: routes flushed, deleted and added, in the kernel and in the result alike; errors; CHECK.
//! Behaviour 66. Debian has no such plugin, so ours alone is asked.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use conformance::{Stage, ours};
use harness::{Disturbance, Namespace, Reply, every_step, not_run, strace_works};
use serde_json::{Value, json};

/// A pod with an interface as bridge and host-local leave it.
fn stage() -> Stage {
    let stage = Stage::new();
    prepare(&stage.pod);
    stage
}

fn prepare(pod: &Namespace) {
    pod.ip("link add eth0 type veth peer name far");
    pod.ip("link set eth0 up");
    pod.ip("link set far up");
    pod.ip("addr add 10.0.0.2/24 dev eth0");
    pod.ip("addr add fd00::2/64 dev eth0 nodad");
    pod.ip("route add default via 10.0.0.1");
    pod.ip("route add default via fd00::1");
    pod.ip("route add 10.8.0.0/16 via 10.0.0.8");
    pod.ip("route add 10.9.0.0/16 dev eth0");
}

fn config(stage: &Stage, more: &Value) -> Value {
    let mut config = stage.config("route-override", "1.1.0", more);
    config["prevResult"] = json!({
        "cniVersion": "1.1.0",
        "interfaces": [{ "name": "veth1" }, { "name": "eth0", "sandbox": stage.pod.path() }],
        "ips": [
            { "address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 1 },
            { "address": "fd00::2/64", "gateway": "fd00::1", "interface": 1 },
        ],
        "routes": [
            { "dst": "0.0.0.0/0" }, { "dst": "::/0", "gw": "fd00::1" }, { "dst": "10.8.0.0/16", "gw": "10.0.0.8" },
            { "dst": "10.9.0.0/16", "scope": 253 },
        ],
        "dns": { "nameservers": ["10.0.0.53"] },
    });
    config
}

fn run(stage: &Stage, command: &str, config: &Value) -> Reply {
    stage.call(&ours(), "route-override", "c1").run(command, config)
}

/// The routes of the main table, as `DESTINATION via GATEWAY`, sorted, without what the kernel makes itself.
fn kernel_routes(pod: &Namespace) -> Vec<String> {
    let mut all = Vec::new();
    for family in ["-4", "-6"] {
        for route in pod.ip_json(&format!("{family} route show")).as_array().unwrap() {
            if route["protocol"] == "kernel" {
                continue;
            }
            let destination = match (route["dst"].as_str().unwrap(), family) {
                ("default", "-4") => "0.0.0.0/0",
                ("default", _) => "::/0",
                (destination, _) => destination,
            };
            let via = |gateway: &Value| {
                gateway.as_str().map_or_else(String::new, |gateway| format!(" via {gateway}"))
            };
            match route["nexthops"].as_array() {
                Some(hops) => {
                    all.extend(hops.iter().map(|hop| format!("{destination}{}", via(&hop["gateway"]))))
                }
                None => all.push(format!("{destination}{}", via(&route["gateway"]))),
            }
        }
    }
    all.sort();
    all
}

/// The routes of a result in the same form: without a gateway, the one of the address of the family.
fn result_routes(result: &Value) -> Vec<String> {
    let gateway_of = |v6: bool| {
        let ips = result["ips"].as_array().unwrap();
        let of_family = |ip: &&Value| ip["address"].as_str().unwrap().contains(':') == v6;
        ips.iter().find(of_family).and_then(|ip| ip["gateway"].as_str()).map(str::to_owned)
    };
    let line = |route: &Value| {
        let destination = route["dst"].as_str().unwrap();
        let own = route["gw"].as_str().map(str::to_owned);
        let gateway =
            own.or_else(|| gateway_of(destination.contains(':')).filter(|_| route["scope"].is_null()));
        gateway.map_or_else(|| destination.to_owned(), |gateway| format!("{destination} via {gateway}"))
    };
    let mut all: Vec<String> = result["routes"].as_array().into_iter().flatten().map(line).collect();
    all.sort();
    all
}

/// An ADD after which the kernel and the result have these routes, and nothing else of the result has changed.
fn expect(more: &Value, routes: &[&str]) -> Value {
    let stage = stage();
    let mut config = config(&stage, more);
    let result = run(&stage, "ADD", &config).expect_success("ADD");
    assert_eq!(kernel_routes(&stage.pod), routes, "the kernel, {more}");
    assert_eq!(result_routes(&result), routes, "the result, {more}");
    for key in ["cniVersion", "interfaces", "dns"] {
        assert_eq!(result[key], config["prevResult"][key], "{more}");
    }
    config["prevResult"] = result.clone();
    run(&stage, "CHECK", &config).expect_success("CHECK");
    run(&stage, "DEL", &config).expect_success("DEL");
    result
}

#[test]
fn the_result_and_the_kernel_say_the_same_whatever_is_asked_for() {
    let before = ["0.0.0.0/0 via 10.0.0.1", "10.8.0.0/16 via 10.0.0.8", "10.9.0.0/16", "::/0 via fd00::1"];
    expect(&json!({}), &before);
    expect(&json!({ "flushroutes": true }), &[]);
    expect(
        &json!({ "flushroutes": true, "addroutes": [
            { "dst": "192.0.2.0/24" }, { "dst": "198.51.100.0/24", "gw": "10.0.0.7" }, { "dst": "2001:db8::/32" },
        ] }),
        &["192.0.2.0/24 via 10.0.0.1", "198.51.100.0/24 via 10.0.0.7", "2001:db8::/32 via fd00::1"],
    );
    expect(
        &json!({ "delroutes": [{ "dst": "10.8.0.0/16" }, { "dst": "::/0" }], "addroutes": [{ "dst": "::/0", "gw": "fd00::9" }] }),
        &["0.0.0.0/0 via 10.0.0.1", "10.9.0.0/16", "::/0 via fd00::9"],
    );
    expect(
        &json!({ "addecmproutes": [{ "dst": "192.0.2.0/24", "gws": ["10.0.0.7", "10.0.0.8"] }],
                 "delecmproutes": [{ "dst": "10.8.0.0/16", "gws": ["10.0.0.8"] }] }),
        &[
            "0.0.0.0/0 via 10.0.0.1",
            "10.9.0.0/16",
            "192.0.2.0/24 via 10.0.0.7",
            "192.0.2.0/24 via 10.0.0.8",
            "::/0 via fd00::1",
        ],
    );
    expect(
        &json!({ "flushroutes": true, "args": { "cni": { "flushroutes": false, "addroutes": [{ "dst": "192.0.2.0/24" }] } } }),
        &[
            "0.0.0.0/0 via 10.0.0.1",
            "10.8.0.0/16 via 10.0.0.8",
            "10.9.0.0/16",
            "192.0.2.0/24 via 10.0.0.1",
            "::/0 via fd00::1",
        ],
    );
}

#[test]
fn flushing_the_gateway_takes_it_from_the_addresses_too() {
    let result = expect(&json!({ "flushgateway": true }), &["10.8.0.0/16 via 10.0.0.8", "10.9.0.0/16"]);
    for ip in result["ips"].as_array().unwrap() {
        assert_eq!(ip["gateway"], Value::Null);
    }
    let more = json!({ "flushgateway": true, "addroutes": [{ "dst": "0.0.0.0/0", "gw": "10.0.0.254" }] });
    expect(&more, &["0.0.0.0/0 via 10.0.0.254", "10.8.0.0/16 via 10.0.0.8", "10.9.0.0/16"]);
}

#[test]
fn adding_what_is_there_and_deleting_what_is_not_is_no_error() {
    let before = ["0.0.0.0/0 via 10.0.0.1", "10.8.0.0/16 via 10.0.0.8", "10.9.0.0/16", "::/0 via fd00::1"];
    let more = json!({ "delroutes": [{ "dst": "172.16.0.0/12" }],
                       "addroutes": [{ "dst": "10.8.0.0/16", "gw": "10.0.0.8" }] });
    expect(&more, &before);
}

#[test]
fn interfaces_other_than_the_pods_lose_their_routes_too() {
    let stage = stage();
    stage.pod.ip("link add net1 type veth peer name far1");
    stage.pod.ip("link set net1 up");
    stage.pod.ip("link set far1 up");
    stage.pod.ip("addr add 10.1.0.2/24 dev net1");
    stage.pod.ip("route add 10.10.0.0/16 via 10.1.0.1");
    let mut config = config(&stage, &json!({ "flushroutes": true }));
    let told = config["prevResult"]["interfaces"].as_array_mut().unwrap();
    told.extend([
        json!({ "name": "net1", "sandbox": stage.pod.path() }),
        json!({ "name": "no1", "sandbox": "/x" }),
    ]);
    run(&stage, "ADD", &config).expect_success("ADD");
    assert_eq!(kernel_routes(&stage.pod), Vec::<String>::new());
    assert_eq!(stage.pod.ip_json("-4 route show").as_array().unwrap().len(), 2, "the subnets stay");
}

#[test]
fn what_the_kernel_refuses_is_reported_and_undone() {
    let stage = stage();
    let before = kernel_routes(&stage.pod);
    let more = json!({ "flushroutes": true, "addroutes": [
        { "dst": "192.0.2.0/24" }, { "dst": "198.51.100.0/24", "gw": "172.16.0.1" },
    ] });
    let reply = run(&stage, "ADD", &config(&stage, &more));
    assert_eq!(reply.error_code(), 101);
    assert!(reply.error_text().contains("198.51.100.0/24 via 172.16.0.1"), "{reply:?}");
    assert_eq!(kernel_routes(&stage.pod), before);
    for (more, code) in [
        (json!({ "addroutes": [{ "dst": "10.0.0.0" }] }), 7),
        (json!({ "addecmproutes": [{ "dst": "192.0.2.0/24", "gws": [] }] }), 7),
        (json!({ "flushroutes": "yes" }), 6),
    ] {
        let config = config(&stage, &more);
        assert_eq!(run(&stage, "ADD", &config).error_code(), code, "{more}");
        assert_eq!(run(&stage, "STATUS", &config).error_code(), 50, "{more}");
        run(&stage, "DEL", &config).expect_success("DEL");
    }
    let mut alone = config(&stage, &json!({ "flushroutes": true }));
    alone.as_object_mut().unwrap().remove("prevResult");
    let reply = run(&stage, "ADD", &alone);
    assert!(reply.error_text().contains("must be called as chained plugin"), "{reply:?}");
    assert_eq!(kernel_routes(&stage.pod), before);
}

#[test]
fn check_misses_an_added_route_and_finds_a_deleted_one() {
    let stage = stage();
    let more = json!({ "delroutes": [{ "dst": "10.8.0.0/16" }], "addroutes": [{ "dst": "192.0.2.0/24" }] });
    let mut config = config(&stage, &more);
    config["prevResult"] = run(&stage, "ADD", &config).expect_success("ADD");
    run(&stage, "CHECK", &config).expect_success("CHECK");
    stage.pod.ip("route del 192.0.2.0/24");
    assert!(run(&stage, "CHECK", &config).error_text().contains("192.0.2.0/24"));
    stage.pod.ip("route add 192.0.2.0/24 via 10.0.0.1");
    stage.pod.ip("route add 10.8.0.0/16 via 10.0.0.8");
    let reply = run(&stage, "CHECK", &config);
    assert!(reply.error_text().contains("route is not removed: 10.8.0.0/16"), "{reply:?}");
    config["skipcheck"] = json!(true);
    run(&stage, "CHECK", &config).expect_success("CHECK that looks at nothing");
}

#[test]
fn an_add_that_fails_at_any_step_changes_nothing() {
    if !strace_works() {
        return not_run("strace cannot trace here");
    }
    let steps = every_step(|step| {
        let stage = stage();
        let before = kernel_routes(&stage.pod);
        let config =
            config(&stage, &json!({ "flushroutes": true, "addroutes": [{ "dst": "192.0.2.0/24" }] }));
        let subject = ours();
        let call = stage.call(&subject, "route-override", "c1");
        let outcome = call.disturbed("ADD", &config, Disturbance::Fail, step);
        let told = &outcome.reply.stdout;
        // When the result cannot be delivered it is DEL that undoes, which leaves routes to the interface's end.
        let done =
            outcome.reply.exit == Some(0) || told.contains("error writing to stdout") || told.is_empty();
        let expected = if done { kernel_routes(&stage.pod) } else { before };
        assert_eq!(kernel_routes(&stage.pod), expected, "{step:?}: {outcome:?}");
        outcome.reached
    });
    assert!(steps > 12, "only {steps} steps: strace disturbed nothing");
}
