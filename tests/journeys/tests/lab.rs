//! The lab as a person and a script use it: it comes up, follows its store, survives its agents, and goes.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests drive programs, and panic when they fail"
)]

use std::process::{Command, Stdio};

use harness::{Namespace, binary, eventually, run, run_ok};
use journeys::{TestLab, decode, pod_manifest, service_manifest, wait_for_line};

/// Two pods on two nodes.
fn pair() -> TestLab {
    let lab = TestLab::up(&["--nodes", "2"]);
    lab.put("a.yaml", &pod_manifest("a", "node1", 8080));
    lab.put("b.yaml", &pod_manifest("b", "node2", 8080));
    for pod in ["a", "b"] {
        eventually("the pod runs", || lab.address(pod, false));
    }
    lab
}

#[test]
fn pods_on_different_nodes_talk_in_both_families() {
    let lab = pair();
    for is_ipv6 in [false, true] {
        let b = lab.address("b", is_ipv6).unwrap();
        assert!(lab.pings("a", &b), "a does not reach {b}");
        let a = lab.address("a", is_ipv6).unwrap();
        assert!(lab.pings("b", &a), "b does not reach {a}");
    }
    let nodes = [lab.pod("a").unwrap()["node"].clone(), lab.pod("b").unwrap()["node"].clone()];
    assert_eq!(nodes, ["node1", "node2"], "a pod whose manifest names a node goes there");
}

#[test]
fn a_lab_of_plain_routes_has_no_tunnel_and_its_agents_follow_their_configuration() {
    let lab = TestLab::up(&["--nodes", "2", "--backend", "host-gw"]);
    lab.put("a.yaml", &pod_manifest("a", "node1", 8080));
    lab.put("b.yaml", &pod_manifest("b", "node2", 8080));
    eventually("the pod runs", || lab.address("a", false));
    let b = eventually("the pod runs", || lab.address("b", false));
    assert!(lab.pings("a", &b));
    let route = || lab.in_node("node1", "ip", &["route", "get", &b]);
    assert!(route().contains("dev eth0"), "{}", route());
    let config = lab.store().with_file_name("agent.yaml");
    let fresh = config.with_file_name("agent.yaml.fresh");
    std::fs::write(&fresh, "backend: vxlan\n").unwrap();
    std::fs::rename(fresh, config).unwrap();
    eventually("the tunnel is taken", || route().contains("dev fairlead0").then_some(()));
    assert!(lab.pings("a", &b));
}

#[test]
fn what_leaves_the_cluster_has_the_nodes_address() {
    let lab = pair();
    // The underlay's bridge stands for the outside: it knows no way to pods, so only a node's address is answered.
    for outside in ["198.18.0.254", "fd00:198:18::fe"] {
        assert!(lab.pings("a", outside), "a does not reach {outside}");
    }
}

#[test]
fn with_the_store_away_pods_talk_on_and_once_it_is_back_new_ones_come() {
    let lab = pair();
    let (store, address) = (lab.store(), lab.address("b", false).unwrap());
    let away = store.with_file_name("away");
    std::fs::rename(&store, &away).unwrap();
    assert!(lab.pings("a", &address));
    assert_eq!(lab.list()["pods"].as_array().unwrap().len(), 2, "nothing is taken away with it");
    std::fs::rename(&away, &store).unwrap();
    lab.put("c.yaml", &pod_manifest("c", "node1", 80));
    let c = eventually("a pod given afterwards runs", || lab.address("c", false));
    assert!(lab.pings("b", &c) && lab.pings("a", &address));
}

#[test]
fn a_packet_as_large_as_the_pods_mtu_crosses_and_a_larger_one_is_refused_at_once() {
    let lab = pair();
    let b = lab.address("b", false).unwrap();
    // 1450 bytes of MTU less 20 of IPv4 and 8 of ICMP.
    let ping =
        |size: &str| lab.in_pod("a", "ping", &["-n", "-c", "1", "-W", "2", "-M", "do", "-s", size, &b]);
    assert!(ping("1422").status.success(), "{:?}", ping("1422"));
    assert!(!ping("1423").status.success());
}

#[test]
fn a_pod_answers_with_its_name_on_the_ports_it_declares() {
    let lab = pair();
    let address = lab.address("b", false).unwrap();
    let exec = |command: &[&str]| {
        let mut words = vec!["a", "--"];
        words.extend(command);
        run_ok(&mut lab.lab("exec", &words))
    };
    let tcp = exec(&["bash", "-c", &format!("exec 3<>/dev/tcp/{address}/8080; cat <&3")]);
    assert_eq!(tcp.trim(), "b");
    let udp = exec(&["bash", "-c", &format!("exec 3<>/dev/udp/{address}/8080; echo ? >&3; head -n 1 <&3")]);
    assert_eq!(udp.trim(), "b");
}

#[test]
fn an_agent_that_is_killed_is_missed_by_nobody_and_comes_back() {
    let lab = pair();
    let address = lab.address("b", false).unwrap();
    let before = lab.node("node2")["agentPid"].as_u64().expect("an agent runs");
    run_ok(Command::new("kill").args(["-9", &before.to_string()]));
    assert!(lab.pings("a", &address), "traffic flows with the agent dead");
    let after = eventually("the agent is back", || {
        lab.node("node2")["agentPid"].as_u64().filter(|pid| *pid != before)
    });
    assert_ne!(before, after);
    assert!(lab.pings("a", &address));
    lab.put("c.yaml", &pod_manifest("c", "node2", 80));
    let c = eventually("a pod is wired by the new agent's node", || lab.address("c", true));
    assert!(lab.pings("a", &c));
}

#[test]
fn an_agent_that_is_killed_goes_on_with_the_descriptors_of_its_tunnel_that_the_lab_has_kept() {
    let lab = TestLab::up(&["--nodes", "2", "--backend", "udp"]);
    lab.put("a.yaml", &pod_manifest("a", "node1", 80));
    lab.put("b.yaml", &pod_manifest("b", "node2", 80));
    eventually("a runs", || lab.address("a", false));
    let address = eventually("b runs", || lab.address("b", false));
    assert!(lab.pings("a", &address));
    let design = lab.store().with_file_name("node2").join("state/tunnels.json");
    eventually("the design is on disk", || {
        std::fs::read_to_string(&design).ok().filter(|text| text.contains("node1"))
    });
    let before = lab.node("node2")["agentPid"].as_u64().expect("an agent runs");
    // The sockets of the tunnel, by which the kernel knows them.
    let sockets = || lab.in_node("node2", "ss", &["-uanHe", "sport", "=", ":8285"]);
    let inodes = |text: String| -> Vec<String> {
        let mut found: Vec<String> =
            text.split_whitespace().filter(|word| word.starts_with("ino:")).map(str::to_owned).collect();
        found.sort();
        found
    };
    let was = inodes(sockets());
    assert!(!was.is_empty());
    run_ok(Command::new("kill").args(["-9", &before.to_string()]));
    eventually("the agent is back", || lab.node("node2")["agentPid"].as_u64().filter(|pid| *pid != before));
    assert!(lab.pings("a", &address));
    assert_eq!(inodes(sockets()), was);
}

#[test]
fn with_no_restart_a_dead_agent_stays_dead_and_pods_talk_on() {
    let lab = TestLab::up(&["--nodes", "2", "--no-restart"]);
    lab.put("a.yaml", &pod_manifest("a", "node1", 80));
    lab.put("b.yaml", &pod_manifest("b", "node2", 80));
    let address = eventually("b runs", || lab.address("b", false));
    eventually("a runs", || lab.address("a", false));
    let pid = lab.node("node2")["agentPid"].as_u64().expect("an agent runs");
    run_ok(Command::new("kill").args(["-9", &pid.to_string()]));
    eventually("the list says so", || lab.node("node2")["agentPid"].is_null().then_some(()));
    assert!(lab.pings("a", &address));
    // The plugin needs no agent: what it left on disk is enough.
    lab.put("c.yaml", &pod_manifest("c", "node2", 80));
    let c = eventually("a pod is wired without an agent", || lab.address("c", false));
    assert!(lab.pings("a", &c));
    assert!(lab.node("node2")["agentPid"].is_null());
}

#[test]
fn clean_takes_away_everything_an_agent_made_and_the_pods_keep_their_links() {
    let lab = TestLab::up(&["--nodes", "2", "--no-restart"]);
    lab.put("a.yaml", &pod_manifest("a", "node1", 80));
    eventually("a runs", || lab.address("a", false));
    let node = lab.node("node1");
    run_ok(Command::new("kill").args(["-9", &node["agentPid"].as_u64().unwrap().to_string()]));
    eventually("the agent is dead", || lab.node("node1")["agentPid"].is_null().then_some(()));
    let home = lab.store().with_file_name("node1");
    let inside = |program: &str, arguments: &[&str]| {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", node["netns"].as_str().unwrap())).arg("--").arg(program);
        run_ok(command.args(arguments))
    };
    let program = binary("fairlead");
    let (state, conf) = (home.join("state"), home.join("conf"));
    let clean = ["clean", "--state-dir", state.to_str().unwrap(), "--conf-dir", conf.to_str().unwrap()];
    assert!(inside(program.to_str().unwrap(), &clean).contains("fairlead0"), "it says what it does");
    assert!(!inside("ip", &["-j", "link"]).contains("fairlead0"));
    assert!(!inside("ip", &["-j", "route", "show", "proto", "70"]).contains("dst"));
    assert!(!inside("nft", &["list", "tables"]).contains("inet fairlead\n"));
    assert_eq!(std::fs::read_dir(&conf).unwrap().count(), 0, "the conflist is gone");
    assert!(inside("ip", &["-j", "link"]).contains("veth"), "the pod keeps its link");
    assert_eq!(inside(program.to_str().unwrap(), &clean), "", "and then there is nothing left to do");
}

#[test]
fn a_pod_comes_and_goes_with_its_manifest() {
    let lab = pair();
    lab.put("c.yaml", &(pod_manifest("c", "node1", 80) + "---\n" + &service_manifest("c", 80)));
    let address = eventually("c runs", || lab.address("c", false));
    assert!(lab.pings("b", &address));
    let naming = || run(Command::new("grep").args(["-rl", &address]).arg(lab.store().join("fairlead")));
    eventually("c is an endpoint of its Service", || {
        String::from_utf8_lossy(&naming().stdout).contains("/endpoint-slices/").then_some(())
    });
    std::fs::remove_file(lab.store().join("c.yaml")).unwrap();
    eventually("c is gone from the list", || lab.pod("c").is_none().then_some(()));
    eventually("nothing in the store has its address", || naming().stdout.is_empty().then_some(()));
    assert!(!lab.pings("b", &address), "its address answers no more");
}

#[test]
fn a_pod_whose_node_is_not_there_waits_and_says_why() {
    let lab = TestLab::up(&["--nodes", "1"]);
    lab.put("a.yaml", &pod_manifest("a", "node9", 80));
    let pod = eventually("it is listed", || lab.pod("a"));
    assert_eq!(pod["phase"], "Pending");
    assert_eq!(pod["reason"], "its node node9 is not part of the lab");
}

#[test]
fn a_broken_manifest_is_reported_and_harms_nobody() {
    let lab = pair();
    let address = lab.address("b", false).unwrap();
    lab.put("b.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: b\n");
    let status = eventually("the agent reports the file", || {
        let command = &mut lab.fairlead(&["status", "--lab", lab.name(), "--node", "node1", "-o", "json"]);
        let status = decode(&run_ok(command));
        (!status["store"]["broken"].as_array().unwrap().is_empty()).then_some(status)
    });
    let report = status["store"]["broken"][0].as_str().unwrap().to_owned();
    assert!(report.contains("b.yaml:"), "file and line are named: {report}");
    let problem =
        eventually("the list tells it too", || lab.list()["problems"][0].as_str().map(str::to_owned));
    assert!(problem.contains("b.yaml:"), "{problem}");
    assert!(lab.pings("a", &address), "the last good version stays in force");
    lab.put("c.yaml", &pod_manifest("c", "node1", 80));
    let c = eventually("others are taken", || lab.address("c", false));
    assert!(lab.pings("b", &c));
}

#[test]
fn a_manifest_that_does_not_parse_is_not_applied() {
    let lab = TestLab::up(&["--nodes", "1"]);
    let file = lab.runtime().join("bad.yaml");
    std::fs::write(&file, "apiVersion: v1\nkind: Pod\nmetadata:\n  name: Bad_Name\n").unwrap();
    let output = run(&mut lab.lab("apply", &["-f", file.to_str().unwrap()]));
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("bad.yaml:") && said.contains("Bad_Name"), "{said}");
    assert!(!lab.store().join("bad.yaml").exists());
}

#[test]
fn status_and_plan_tell_a_lab_node_as_json_and_as_text() {
    let lab = pair();
    let ask = |verb: &str, form: &str| {
        run_ok(&mut lab.fairlead(&[verb, "--lab", lab.name(), "--node", "node1", "-o", form]))
    };
    let status = decode(&ask("status", "json"));
    assert_eq!(status["node"], "node1");
    assert_eq!(status["ready"], true);
    assert_eq!(status["podCIDRs"], lab.node("node1")["podCIDRs"]);
    assert_eq!(status["peers"][0]["node"], "node2");
    assert!(ask("status", "table").contains("ready"));
    assert!(ask("status", "yaml").contains("node: node1"));
    assert!(decode(&ask("plan", "json"))["steps"].is_array());
    assert!(!ask("plan", "table").is_empty());
}

#[test]
fn the_probe_reaches_everything_and_says_so() {
    let lab = pair();
    let probe = decode(&run_ok(&mut lab.lab("probe", &["--throughput", "100", "-o", "json"])));
    let reach = probe["reach"].as_array().unwrap();
    assert_eq!(reach.len(), 4, "two pods, each to the other, in two families");
    assert!(reach.iter().all(|pair| pair["roundTripMicros"].as_u64().is_some()));
    let throughput = probe["throughput"].as_array().unwrap();
    assert!(!throughput.is_empty() && throughput.iter().all(|one| one["bitsPerSecond"].as_u64() > Some(0)));
}

#[test]
fn exec_gives_the_commands_own_exit_status() {
    let lab = pair();
    assert_eq!(run(&mut lab.lab("exec", &["a", "--", "sh", "-c", "exit 7"])).status.code(), Some(7));
    let links = run_ok(&mut lab.lab("exec", &["default/a", "--", "ip", "-j", "address", "show", "eth0"]));
    assert!(links.contains(&lab.address("a", false).unwrap()), "{links}");
    assert_eq!(run(&mut lab.lab("exec", &["nobody", "--", "true"])).status.code(), Some(1));
}

#[test]
fn a_second_lab_of_the_same_name_is_refused_and_one_of_another_name_is_not() {
    let lab = TestLab::up(&["--nodes", "1"]);
    let again = run(&mut lab.lab("up", &["--nodes", "1"]));
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("already up"));
    let other = format!("{}-b", lab.name());
    run_ok(&mut lab.fairlead(&["lab", "up", "--nodes", "1", "--name", &other]));
    run_ok(&mut lab.fairlead(&["lab", "down", "--name", &other]));
    assert_eq!(lab.list()["nodes"].as_array().unwrap().len(), 1);
}

#[test]
fn of_two_who_start_one_lab_at_once_one_succeeds_and_the_other_is_told() {
    let lab = TestLab::prepared();
    let start =
        || lab.lab("up", &["--nodes", "1"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let outputs = [start(), start(), start()].map(|child| child.wait_with_output().unwrap());
    assert_eq!(outputs.iter().filter(|output| output.status.success()).count(), 1, "{outputs:?}");
    let told = outputs.iter().filter(|output| String::from_utf8_lossy(&output.stderr).contains("already up"));
    assert_eq!(told.count(), 2, "{outputs:?}");
    assert_eq!(lab.list()["nodes"].as_array().unwrap().len(), 1);
}

#[test]
fn a_supervisor_that_is_killed_leaves_nothing_that_down_and_up_do_not_clean() {
    let lab = pair();
    kill_supervisor(&lab);
    run_ok(&mut lab.lab("down", &[]));
    assert_eq!(lab.leftovers(), Vec::<String>::new());
    run_ok(&mut lab.lab("up", &["--nodes", "1"]));
    kill_supervisor(&lab);
    run_ok(&mut lab.lab("up", &["--nodes", "1"]));
    assert_eq!(lab.list()["nodes"].as_array().unwrap().len(), 1);
}

/// Kills the process that holds the namespaces, and waits until its agents have died with it.
fn kill_supervisor(lab: &TestLab) {
    let netns = lab.node("node1")["netns"].as_str().unwrap().to_owned();
    let pid = netns.split('/').nth(2).unwrap();
    run_ok(Command::new("kill").args(["-9", pid]));
    eventually("its agents die with it", || {
        lab.leftovers().iter().all(|left| !left.starts_with("process")).then_some(())
    });
}

#[test]
fn wrong_usage_exits_with_2_and_a_missing_lab_with_1() {
    let lab = TestLab::prepared();
    for arguments in [
        &["no-such-verb"][..],
        &["lab", "up", "--nodes", "0"],
        &["lab", "up", "--nodes", "251"],
        &["lab", "up", "--backend", "smoke"],
        &["lab", "exec", "a"],
        &["agent", "--node", "n", "--store", "ftp:x"],
        &["status", "--lab", "x"],
        &["lab", "list", "-o", "xml"],
        &["lab", "list", "--name", "../x"],
        &[],
    ] {
        let output = run(&mut lab.fairlead(arguments));
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(output.stdout.is_empty(), "talk goes to standard error");
    }
    for arguments in [&["lab", "list"][..], &["lab", "down"], &["lab", "up", "--from", "/nowhere"]] {
        let output = run(lab.fairlead(arguments).args(["--name", lab.name()]));
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("error: "), "{output:?}");
    }
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let lab = TestLab::up(&["--nodes", "1"]);
    let mut child =
        lab.lab("list", &["-o", "json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_pod_in_the_nodes_own_network_has_the_nodes_address() {
    let lab = TestLab::up(&["--nodes", "1"]);
    let manifest = pod_manifest("host", "node1", 8080).replace("spec:\n", "spec:\n  hostNetwork: true\n");
    lab.put("host.yaml", &manifest);
    let address = eventually("it runs", || lab.address("host", false));
    assert_eq!(lab.node("node1")["addresses"][0].as_str(), Some(address.as_str()));
}

#[test]
fn an_interrupted_up_takes_its_lab_down() {
    let lab = TestLab::prepared();
    let mut up =
        lab.lab("up", &["--nodes", "1"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_line(&mut up, "nodes:");
    run_ok(Command::new("kill").args(["-INT", &up.id().to_string()]));
    assert_eq!(up.wait().unwrap().code(), Some(130));
    assert_eq!(lab.leftovers(), Vec::<String>::new());
}

#[test]
fn with_one_wrong_manifest_none_is_applied() {
    let lab = TestLab::up(&["--nodes", "1"]);
    let given = lab.runtime().join("given");
    std::fs::create_dir(&given).unwrap();
    std::fs::write(given.join("a.yaml"), pod_manifest("a", "node1", 80)).unwrap();
    std::fs::write(given.join("b.yaml"), pod_manifest("Bad_Name", "node1", 80)).unwrap();
    let output = run(&mut lab.lab("apply", &["-f", given.to_str().unwrap()]));
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("given/b.yaml:4:"), "{said}");
    assert!(!lab.store().join("a.yaml").exists());
}

#[test]
fn a_runtime_directory_too_long_for_a_socket_is_passed_over() {
    let lab = TestLab::prepared();
    let long = lab.runtime().join("x".repeat(100));
    std::fs::create_dir(&long).unwrap();
    let start = |verb: &str| {
        let mut command = lab.lab(verb, &[]);
        run_ok(command.env("XDG_RUNTIME_DIR", &long))
    };
    start("up");
    start("down");
    assert_eq!(std::fs::read_dir(&long).unwrap().count(), 0);
}

#[test]
fn an_agent_whose_log_nobody_reads_any_more_goes_on() {
    let (node, directory) = (Namespace::with_loopback(), tempfile::tempdir().unwrap());
    let (state, conf) = (directory.path().join("state"), directory.path().join("conf"));
    let store = directory.path().join("store");
    std::fs::create_dir(&store).unwrap();
    let mut agent = node.command(binary("fairlead"));
    agent.args(["agent", "--node", "n1", "--store"]).arg(format!("dir:{}", store.display()));
    agent.arg("--state-dir").arg(&state).arg("--conf-dir").arg(&conf);
    let mut agent = agent.stderr(Stdio::piped()).spawn().unwrap();
    // `fairlead agent | head -0`: whatever it has to say, nobody takes it.
    drop(agent.stderr.take());
    let status = || {
        let mut command = Command::new(binary("fairlead"));
        run(command.args(["status", "-o", "json", "--state-dir"]).arg(&state)).stdout
    };
    eventually("the agent answers", || serde_json::from_slice::<serde_json::Value>(&status()).ok());
    std::fs::write(store.join("bad.yaml"), "kind: [").unwrap();
    eventually("it has told of the file", || {
        status().windows(8).any(|text| text == b"bad.yaml").then_some(())
    });
    run_ok(Command::new("kill").args(["-TERM", &agent.id().to_string()]));
    assert_eq!(agent.wait().unwrap().code(), Some(0));
}

#[test]
fn a_node_whose_agent_was_killed_often_is_waited_for_like_any_other() {
    let lab = TestLab::up(&["--nodes", "1"]);
    for _ in 0..3 {
        let before = lab.node("node1")["agentPid"].as_u64().expect("an agent runs");
        run_ok(Command::new("kill").args(["-9", &before.to_string()]));
        eventually("the agent is back", || {
            lab.node("node1")["agentPid"].as_u64().filter(|pid| *pid != before)
        });
    }
    let manifest = lab.store().join("node1.yaml");
    let network = lab.store().with_file_name("node1").join("state/network.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::remove_file(&manifest).unwrap();
    eventually("the node takes no pods", || {
        std::fs::read_to_string(&network).unwrap().contains("notReady").then_some(())
    });
    lab.put("node1.yaml", &text);
    lab.put("a.yaml", &pod_manifest("a", "node1", 80));
    let file = lab.runtime().join("b.yaml");
    std::fs::write(&file, pod_manifest("b", "node1", 80)).unwrap();
    run_ok(&mut lab.lab("apply", &["-f", file.to_str().unwrap()]));
    assert!(lab.pings("b", &lab.address("a", false).unwrap()));
}
