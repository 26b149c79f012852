//! What is in nf_tables, what CHECK and STATUS say of it, and what an ADD costs.

use harness::{Call, not_run, strace_works};
use serde_json::{Value, json};

use crate::scene::{HOST, Pod, Scene, tcp};
use harness::talk::{ask, serve};

/// The mappings by which the reference's tests know its rules.
fn known() -> Value {
    json!([
        { "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
        { "hostPort": 8081, "containerPort": 80, "protocol": "tcp" },
        { "hostPort": 8080, "containerPort": 81, "protocol": "udp" },
        { "hostPort": 8082, "containerPort": 82, "protocol": "udp" },
        { "hostPort": 8083, "containerPort": 83, "protocol": "tcp", "hostIP": "192.168.0.2" },
        { "hostPort": 8084, "containerPort": 84, "protocol": "tcp", "hostIP": "0.0.0.0" },
        { "hostPort": 8085, "containerPort": 85, "protocol": "tcp", "hostIP": "2001:db8:a::1" },
        { "hostPort": 8086, "containerPort": 86, "protocol": "tcp", "hostIP": "::" },
    ])
}

// 56
#[test]
fn nft_lists_maps_with_owners_and_a_few_rules() {
    let scene = Scene::new();
    let pod = scene.pod_with("icee6giejonei6so", known());
    let listing = scene.listing();
    let owner = "comment \"fairlead:test/icee6giejonei6so/eth0\"";
    let [four, six] = [0, 1].map(|family| {
        pod.result["ips"][family]["address"].as_str().unwrap().split_once('/').unwrap().0.to_owned()
    });
    for line in [
        format!("tcp . 8080 {owner} : {four} . 80"),
        format!("tcp . 8081 {owner} : {four} . 80"),
        format!("udp . 8080 {owner} : {four} . 81"),
        format!("udp . 8082 {owner} : {six} . 82"),
        format!("192.168.0.2 . tcp . 8083 {owner} : {four} . 83"),
        format!("tcp . 8084 {owner} : {four} . 84"),
        format!("2001:db8:a::1 . tcp . 8085 {owner} : {six} . 85"),
        format!("tcp . 8086 {owner} : {six} . 86"),
        "map hostports4 {".into(),
        "type inet_proto . inet_service : ipv4_addr . inet_service".into(),
        "type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service".into(),
        "dnat ip to meta l4proto . th dport map @hostports4 ".into(),
        "dnat ip6 to meta l4proto . th dport map @hostports6 ".into(),
        "dnat ip to ip daddr . meta l4proto . th dport map @hostports4_address ".into(),
        "type nat hook prerouting priority dstnat; policy accept;".into(),
        "type nat hook output priority -100; policy accept;".into(),
        "fib daddr type local jump hostports ".into(),
        "ip saddr 10.1.2.0/24 meta l4proto . th dport @hostport_sources4/0x2000/10.1.2.0/24 meta mark set meta mark | 0x00002000".into(),
        "ip saddr 127.0.0.0/8 meta l4proto . th dport @hostport_sources4/0x2000/10.1.2.0/24 meta mark set meta mark | 0x00002000".into(),
        "meta mark & 0x00002000 == 0x00002000 ct status dnat masquerade".into(),
    ] {
        assert!(listing.contains(&line), "{line}\nis not in\n{listing}");
    }
    assert!(!listing.contains(&format!("8084 {owner} : {six}")), "{listing}");
    // Another pod adds elements, and not one rule.
    let rules = rules(&scene);
    scene.pod_with("c2", tcp(9000, 80));
    assert_eq!(self::rules(&scene), rules);
    scene.map(&pod, "CHECK", known(), json!({})).expect_success("CHECK");
}

fn rules(scene: &Scene) -> usize {
    scene.host.nft_ruleset().iter().filter(|object| object.get("rule").is_some()).count()
}

#[test]
fn a_ruleset_that_was_saved_comes_back_whole() {
    let scene = Scene::new();
    let pod = scene.pod("c1");
    let more = json!({ "conditionsV4": ["-s", "192.0.2.0/24"], "masqAll": true });
    scene.map(&pod, "ADD", known(), more.clone()).expect_success("ADD");
    let nft = |arguments: &[&str]| harness::run_ok(scene.host.command("nft").args(arguments));
    let saved = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(saved.path(), nft(&["list", "ruleset"])).unwrap();
    nft(&["flush", "ruleset"]);
    assert_eq!(scene.map(&pod, "CHECK", known(), more.clone()).error_code(), 101);
    nft(&["-f", saved.path().to_str().unwrap()]);
    scene.map(&pod, "CHECK", known(), more).expect_success("CHECK");
}

// 29
#[test]
fn check_names_every_element_and_rule_that_is_missing() {
    let scene = Scene::new();
    let mappings = json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" },
        { "hostPort": 8053, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1" }]);
    let damages = [
        ("delete element inet fairlead_cni hostports4 { tcp . 8080 }", "8080/tcp is gone from hostports4 "),
        ("delete element inet fairlead_cni hostports6 { tcp . 8080 }", "8080/tcp is gone from hostports6 "),
        (
            "delete element inet fairlead_cni hostports4_address { 192.0.2.1 . udp . 8053 }",
            "8053/udp on 192.0.2.1 is gone",
        ),
        (
            "delete element inet fairlead_cni hostport_sources4/0x2000/10.1.2.0/24 { tcp . 8080 }",
            "8080/tcp is gone from hostport_sources4",
        ),
        ("flush chain inet fairlead_cni hostports", "jump hostports_sources"),
        ("flush chain inet fairlead_cni hostports_any", "dnat ip to"),
        ("flush chain inet fairlead_cni hostports_output", "hostports_output"),
        ("flush chain inet fairlead_cni hostports_prerouting", "hostports_prerouting"),
        ("flush chain inet fairlead_cni hostports_masquerade/0x2000", "masquerade"),
        ("delete table inet fairlead_cni", "is gone from"),
    ];
    for (damage, named) in damages {
        let pod = scene.pod_with("c1", mappings.clone());
        scene.map(&pod, "CHECK", mappings.clone(), json!({})).expect_success("CHECK");
        harness::run_ok(scene.host.command("nft").arg(damage));
        let reply = scene.map(&pod, "CHECK", mappings.clone(), json!({}));
        assert_eq!(reply.error_code(), 101, "{damage}");
        assert!(reply.error_text().contains(named), "{damage}: {reply:?}");
        scene.delete(&pod, mappings.clone());
        let mut rest = scene.host.command("nft");
        let _ = rest.args(["delete", "table", "inet", "fairlead_cni"]).output();
    }
}

#[test]
fn an_add_after_a_flushed_ruleset_makes_everything_anew() {
    let scene = Scene::new();
    let first = scene.pod_with("c1", tcp(8080, 80));
    harness::run_ok(scene.host.command("nft").args(["flush", "ruleset"]));
    let second = scene.pod_with("c2", tcp(8081, 80));
    serve(&second.namespace, 80, "c2");
    assert_eq!(ask(&scene.outside, HOST[0], 8081).as_deref(), Some("c2 192.0.2.9"));
    assert_eq!(scene.map(&first, "CHECK", tcp(8080, 80), json!({})).error_code(), 101);
    scene.map(&first, "ADD", tcp(8080, 80), json!({})).expect_success("ADD");
    scene.map(&first, "CHECK", tcp(8080, 80), json!({})).expect_success("CHECK");
}

// 58
#[test]
fn without_mappings_nothing_is_touched() {
    let scene = Scene::new();
    let pod = scene.pod("c1");
    for command in ["ADD", "CHECK", "DEL"] {
        let reply = scene.map(&pod, command, json!([]), json!({}));
        reply.expect_success(command);
        if command == "ADD" {
            assert_eq!(reply.json()["ips"], pod.result["ips"]);
        }
    }
    assert!(!scene.host.nft_ruleset().iter().any(|object| object.get("table").is_some()));
    let mut alone = scene.config(&pod, tcp(8080, 80), json!({}));
    alone.as_object_mut().unwrap().remove("prevResult");
    let reply = scene.call(&pod).run("ADD", &alone);
    assert!(reply.error_text().contains("must be called as chained plugin"), "{reply:?}");
}

// 58
#[test]
fn addresses_count_that_do_not_say_where_they_sit_and_those_of_host_links_do_not() {
    let scene = Scene::new();
    let mut pod = scene.pod("c1");
    let ips = pod.result["ips"].as_array_mut().unwrap();
    for ip in ips.iter_mut() {
        ip.as_object_mut().unwrap().remove("interface");
    }
    ips.insert(0, json!({ "address": "10.1.2.77/24", "interface": 0 }));
    scene.map(&pod, "ADD", tcp(8080, 80), json!({})).expect_success("ADD");
    serve(&pod.namespace, 80, "c1");
    assert_eq!(ask(&scene.outside, HOST[0], 8080).as_deref(), Some("c1 192.0.2.9"));
}

// 58
#[test]
fn a_thousand_ports_come_in_one_transaction_and_go_again() {
    let scene = Scene::new();
    let range = json!([{ "hostPort": 20000, "containerPort": 30000, "protocol": "tcp", "range": 1000 }]);
    let first = scene.pod_with("c1", range.clone());
    scene.map(&first, "CHECK", range.clone(), json!({})).expect_success("CHECK");
    serve(&first.namespace, 30_999, "last");
    assert_eq!(ask(&scene.outside, HOST[0], 20_999).as_deref(), Some("last 192.0.2.9"));
    assert_eq!(scene.elements().len(), 4000);
    let second = scene.pod("c2");
    assert_eq!(scene.map(&second, "ADD", range.clone(), json!({})).error_code(), 101);
    if strace_works() {
        // One pod more beside a thousand ports: as many messages as beside none.
        let third = scene.pod("c3");
        let beside = sends(&scene, &third, tcp(9000, 80));
        scene.delete(&third, tcp(9000, 80));
        scene.delete(&first, range.clone());
        let third = scene.pod("c3");
        assert_eq!(sends(&scene, &third, tcp(9000, 80)), beside);
        scene.delete(&third, tcp(9000, 80));
    } else {
        not_run("strace cannot trace here");
        scene.delete(&first, range);
    }
    assert_eq!(scene.elements(), [""; 0]);
}

/// How often an ADD sends something to the kernel.
fn sends(scene: &Scene, pod: &Pod, mappings: Value) -> usize {
    let trace = tempfile::NamedTempFile::new().unwrap();
    let call = scene.call(pod);
    let mut command = scene.host.command("strace");
    command.args(["-f", "-qq", "-e", "trace=sendto", "-o"]).arg(trace.path());
    command.arg(call.bin.join(call.plugin));
    call.environment("ADD", &mut command);
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    let config = scene.config(pod, mappings, json!({})).to_string();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), config.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    std::fs::read_to_string(trace.path()).unwrap().lines().count()
}

#[test]
fn status_says_whether_an_add_would_do() {
    let scene = Scene::new();
    let mut call = Call::new(&scene.host, scene.bin.path(), "portmap", "", &scene.host);
    (call.netns, call.ifname) = (std::path::PathBuf::new(), "");
    let config = |more: Value| {
        let mut config = json!({ "cniVersion": "1.1.0", "name": "test", "type": "portmap" });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    call.run("STATUS", &config(json!({}))).expect_success("STATUS");
    for wrong in [json!({ "markMasqBit": 32 }), json!({ "externalSetMarkChain": "NOWHERE" })] {
        assert_eq!(call.run("STATUS", &config(wrong)).error_code(), 50);
    }
    assert!(!scene.host.nft_ruleset().iter().any(|object| object.get("table").is_some()));
}
