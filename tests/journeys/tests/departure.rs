//! What is left behind, and by whom it is taken away: attachments that nobody deleted, and a node that leaves Fairlead.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests drive programs, and panic when they fail"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{binary, eventually, run, run_ok};
use journeys::{TestLab, decode, pod_manifest};

/// A lab of two nodes with a pod on the first, and the directory of that node.
fn lab(arguments: &[&str]) -> (TestLab, PathBuf) {
    let lab = TestLab::up(&[&["--nodes", "2"], arguments].concat());
    lab.put("a.yaml", &pod_manifest("a", "node1", 80));
    eventually("a runs", || lab.address("a", false));
    let home = lab.store().with_file_name("node1");
    (lab, home)
}

fn kill_agent(lab: &TestLab) {
    let pid = lab.node("node1")["agentPid"].as_u64().unwrap();
    run_ok(Command::new("kill").args(["-9", &pid.to_string()]));
}

/// An address of the node that nobody holds, as if it were held by `container`.
fn hold(home: &Path, container: &str, last: &str) -> PathBuf {
    let directory = home.join("networks/fairlead");
    let given = std::fs::read_dir(&directory).unwrap().flatten().map(|entry| entry.file_name());
    let given = given.filter_map(|name| name.into_string().ok());
    let given = given.into_iter().find(|name| name.parse::<std::net::Ipv4Addr>().is_ok()).unwrap();
    let path = directory.join(format!("{}.{last}", given.rsplit_once('.').unwrap().0));
    std::fs::write(&path, format!("{container}\r\neth0")).unwrap();
    path
}

#[test]
fn what_attachments_left_that_are_gone_is_freed_when_an_agent_starts_and_nothing_else() {
    let (lab, home) = lab(&[]);
    let (gone, young) = (hold(&home, "gone", "200"), hold(&home, "young", "201"));
    run_ok(Command::new("touch").args(["-d", "2 days ago"]).arg(&gone));
    // One that is there, however long ago it came.
    let held = lab.address("a", false).unwrap();
    let held = home.join("networks/fairlead").join(held);
    run_ok(Command::new("touch").args(["-d", "2 days ago"]).arg(&held));
    kill_agent(&lab);
    eventually("the address is free", || (!gone.exists()).then_some(()));
    assert!(young.exists(), "its link may be a moment away");
    assert!(held.exists() && lab.pings("a", "198.18.0.254"));
    std::fs::remove_file(young).unwrap();
}

#[test]
fn a_node_that_leaves_fairlead_keeps_nothing_of_it() {
    let (lab, home) = lab(&["--no-restart"]);
    let node = lab.node("node1");
    kill_agent(&lab);
    eventually("the agent is dead", || lab.node("node1")["agentPid"].is_null().then_some(()));
    let inside = |program: &Path, arguments: &[&str]| {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", node["netns"].as_str().unwrap())).arg("--").arg(program);
        run_ok(command.args(arguments))
    };
    let directory = tempfile::tempdir().unwrap();
    let bin = directory.path().join("bin");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    inside(&binary("fairlead"), &["cni", "install", "--bin-dir", &text(&bin)]);
    // Somebody else's, one of them under the name of a plugin.
    std::fs::write(bin.join("calico"), "theirs").unwrap();
    std::fs::remove_file(bin.join("bridge")).unwrap();
    std::fs::write(bin.join("bridge"), "theirs").unwrap();
    let (state, conf) = (text(&home.join("state")), text(&home.join("conf")));
    let cache = text(directory.path());
    let clean = [
        "clean",
        "--all",
        "--state-dir",
        &state,
        "--conf-dir",
        &conf,
        "--bin-dir",
        &text(&bin),
        "--cache-dir",
        &cache,
    ];
    let said = inside(&binary("fairlead"), &clean);
    assert!(said.contains("- attachment ") && said.contains("fairlead0"), "{said}");
    let links = inside(Path::new("ip"), &["-j", "link"]);
    assert!(!links.contains("veth") && !links.contains("fairlead"), "{links}");
    let ruleset = inside(Path::new("nft"), &["list", "tables"]);
    assert!(!ruleset.contains("fairlead"), "{ruleset}");
    assert!(!inside(Path::new("ip"), &["-j", "route", "show"]).contains("10.244."));
    assert_eq!(
        std::fs::read_dir(home.join("networks")).unwrap().count(),
        0,
        "neither addresses nor their index"
    );
    let mut left: Vec<_> = std::fs::read_dir(&bin).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["bridge", "calico"], "what is not ours stays");
    assert_eq!(std::fs::read_dir(home.join("conf")).unwrap().count(), 0);
    assert_eq!(inside(&binary("fairlead"), &clean), "", "and then there is nothing left to do");
}

#[test]
fn every_node_is_shown_by_what_stands_in_the_store() {
    let (lab, _) = lab(&[]);
    let store = format!("dir:{}", lab.store().display());
    let status =
        || run(Command::new(binary("fairlead")).args(["status", "--all", "--store", &store, "-o", "json"]));
    let output =
        eventually("both nodes have reported", || Some(status()).filter(|output| output.status.success()));
    let rows = decode(&String::from_utf8(output.stdout).unwrap());
    let nodes: Vec<_> = rows.as_array().unwrap().iter().map(|row| (&row["node"], &row["ready"])).collect();
    assert_eq!(nodes, [(&"node1".into(), &true.into()), (&"node2".into(), &true.into())]);
    assert_eq!(rows[0]["podCIDRs"].as_array().unwrap().len(), 2);
    lab.put("stranger.yaml", "apiVersion: v1\nkind: Node\nmetadata: {name: stranger}\n");
    let output = status();
    assert_eq!(output.status.code(), Some(1), "nobody has said anything of it");
    let rows = decode(&String::from_utf8(output.stdout).unwrap());
    assert!(rows[2]["node"] == "stranger" && rows[2]["ready"].is_null(), "{rows}");
}
