//! The plugins laid into place and a network tried by hand, as an operator would on a bare node.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "tests drive programs, and panic when they fail"
)]

use std::fs;
use std::path::Path;
use std::process::Command;

use harness::{Namespace, binary, run, run_ok};
use journeys::decode;

/// `fairlead cni VERB mynet NETNS` on a node that is a namespace.
fn cni(node: &Namespace, directory: &Path, verb: &str, pod: &Namespace) -> Command {
    let mut command = node.command(binary("fairlead"));
    command.env("NETCONFPATH", directory.join("net.d")).env_remove("CNI_PATH");
    command.args(["cni", verb, "mynet"]).arg(pod.path()).arg("--cache-dir").arg(directory.join("cache"));
    command
}

fn network(directory: &Path) {
    let text = format!(
        r#"{{"cniVersion":"1.0.0","name":"mynet","plugins":[{{"type":"bridge","bridge":"br0","isGateway":true,
           "ipam":{{"type":"host-local","dataDir":"{}/ipam","ranges":[[{{"subnet":"10.9.0.0/24"}}]]}}}}]}}"#,
        directory.display()
    );
    fs::create_dir(directory.join("net.d")).unwrap();
    fs::write(directory.join("net.d/10-mynet.conflist"), text).unwrap();
}

#[test]
fn a_network_is_tried_by_hand_without_any_plugin_file() {
    let (node, pod) = (Namespace::with_loopback(), Namespace::new());
    let directory = tempfile::tempdir().unwrap();
    network(directory.path());
    let call = |verb: &str| cni(&node, directory.path(), verb, &pod);

    run_ok(&mut call("status"));
    let result = decode(&run_ok(&mut call("add")));
    assert_eq!(result["ips"][0]["address"], "10.9.0.2/24");
    assert!(pod.pings("10.9.0.1"), "the pod reaches its gateway");
    run_ok(&mut call("check"));
    run_ok(&mut call("gc"));
    run_ok(&mut call("check"));
    run_ok(&mut call("del"));
    assert_eq!(pod.link_names(), Vec::<String>::new());
    let output = run(&mut call("check"));
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("hint: "), "{output:?}");
}

#[test]
fn installing_lays_every_plugin_and_again_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let bin = directory.path().join("bin");
    let install = || {
        let mut command = Command::new(binary("fairlead"));
        run_ok(command.args(["cni", "install", "-o", "json", "--bin-dir"]).arg(&bin))
    };
    let changes = |report: &str| -> Vec<String> {
        let report = decode(report);
        report.as_array().unwrap().iter().map(|one| one["change"].as_str().unwrap().to_owned()).collect()
    };
    assert!(changes(&install()).iter().all(|change| change == "created"));
    assert!(changes(&install()).iter().all(|change| change == "unchanged"));
    let mut version = Command::new(bin.join("bridge"));
    let answer = decode(&run_ok(version.env("CNI_COMMAND", "VERSION")));
    assert!(answer["supportedVersions"].as_array().unwrap().iter().any(|version| version == "1.1.0"));
}

#[test]
fn the_one_binary_is_every_plugin_when_called_by_its_name() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["host-local", "fairlead"] {
        let link = directory.path().join(name);
        std::os::unix::fs::symlink(binary("fairlead"), &link).unwrap();
        let answer = decode(&run_ok(Command::new(&link).env("CNI_COMMAND", "VERSION")));
        assert!(answer["supportedVersions"].is_array(), "{name}");
    }
    let help =
        run_ok(Command::new(directory.path().join("fairlead")).arg("--help").env_remove("CNI_COMMAND"));
    assert!(help.contains("fairlead lab demo"), "without a runtime's call it is the command line");
}

#[test]
fn a_network_that_is_not_there_is_named_with_the_place_it_was_looked_for_in() {
    let (node, pod) = (Namespace::new(), Namespace::new());
    let directory = tempfile::tempdir().unwrap();
    let output = run(&mut cni(&node, directory.path(), "add", &pod));
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.starts_with("error: cannot use network mynet: ") && said.contains("/net.d\n"), "{said}");
    assert!(said.contains("hint: NETCONFPATH"), "{said}");
}

#[test]
fn the_doctor_finds_what_a_kubelet_would_trip_over_and_is_content_when_it_is_mended() {
    let node = Namespace::with_loopback();
    let directory = tempfile::tempdir().unwrap();
    network(directory.path());
    let bin = directory.path().join("bin");
    let doctor = || {
        let mut command = node.command(binary("fairlead"));
        command.args(["cni", "doctor", "-o", "json", "--bin-dir"]).arg(&bin);
        run(command.arg("--conf-dir").arg(directory.path().join("net.d")))
    };
    let output = doctor();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let findings = decode(&String::from_utf8_lossy(&output.stdout));
    let problems: Vec<&str> =
        findings.as_array().unwrap().iter().filter_map(|finding| finding["problem"].as_str()).collect();
    assert!(problems.iter().any(|problem| problem.contains("plugin bridge is in none")), "{problems:#?}");

    run_ok(Command::new(binary("fairlead")).args(["cni", "install", "--bin-dir"]).arg(&bin));
    let output = doctor();
    assert_eq!(output.status.code(), Some(0), "{output:?}");

    // What only the plugin itself can know: the bridge's name is another link's.
    node.ip("link add br0 type veth peer name other");
    let output = doctor();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("could not be started now"), "{output:?}");
}
