//! Directories as operators leave them, and what is found in them.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::finding::Severity;

/// Two directories, for configurations and for plugins. The plugins are scripts that answer VERSION.
struct Node {
    directory: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let node = Self { directory: tempfile::tempdir().unwrap() };
        std::fs::create_dir(node.conf()).unwrap();
        std::fs::create_dir(node.bin()).unwrap();
        node.plugin("loopback", "1.0.0");
        node
    }

    fn conf(&self) -> PathBuf {
        self.directory.path().join("net.d")
    }

    fn bin(&self) -> PathBuf {
        self.directory.path().join("bin")
    }

    fn plugin(&self, name: &str, version: &str) {
        let file = self.bin().join(name);
        let answer = format!("{{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"{version}\"]}}");
        std::fs::write(&file, format!("#!/bin/sh\necho '{answer}'\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.conf().join(name), text).unwrap();
    }

    /// What is found, without the notes: severity and words.
    fn found(&self) -> Vec<String> {
        let findings = examine(&self.conf(), &[self.bin()], Moment::Running).into_iter();
        findings
            .filter(|finding| finding.severity != Severity::Note)
            .map(|finding| format!("{:?}: {}", finding.severity, finding.problem))
            .collect()
    }
}

/// The findings are these, each begun or contained in the words given.
fn assert_found(node: &Node, wanted: &[&str]) {
    let found = node.found();
    assert_eq!(found.len(), wanted.len(), "{found:#?}");
    for words in wanted {
        assert!(found.iter().any(|found| found.contains(words)), "{words:?} is not in {found:#?}");
    }
}

const GOOD: &str = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"wire"},
    {"type":"portmap","capabilities":{"portMappings":true}}]}"#;

#[test]
fn a_good_node_has_nothing_to_complain_about_and_says_which_file_counts() {
    let node = Node::new();
    node.plugin("wire", "1.0.0");
    node.plugin("portmap", "1.0.0");
    node.write("10-pods.conflist", GOOD);
    assert_found(&node, &[]);
    let notes = examine(&node.conf(), &[node.bin()], Moment::Running);
    assert!(notes.iter().any(|note| note.problem.contains("takes this one")), "{notes:#?}");
}

#[test]
fn directories_that_are_empty_or_missing_are_errors() {
    let node = Node::new();
    assert_found(&node, &["Error: no network configuration"]);
    std::fs::remove_dir(node.conf()).unwrap();
    std::fs::remove_dir_all(node.bin()).unwrap();
    assert_found(
        &node,
        &[
            "directory of configurations cannot be read",
            "directory of plugins cannot be read",
            "no plugin loopback",
        ],
    );
}

#[test]
fn before_the_agent_has_come_an_empty_or_missing_directory_of_configurations_is_a_note() {
    let node = Node::new();
    let severities = || -> Vec<Severity> {
        let findings = examine(&node.conf(), &[node.bin()], Moment::Before);
        findings.into_iter().map(|finding| finding.severity).collect()
    };
    assert_eq!(severities(), [Severity::Note]);
    std::fs::remove_dir(node.conf()).unwrap();
    assert_eq!(severities(), [Severity::Note]);
}

#[test]
fn a_broken_file_does_not_hide_what_is_wrong_with_the_next() {
    let node = Node::new();
    node.write("00-broken.conflist", "{");
    node.write("10-pods.conflist", GOOD);
    assert_found(
        &node,
        &[
            "Error: it cannot be used",
            "not used for pods",
            "plugin wire is in none",
            "plugin portmap is in none",
        ],
    );
}

#[test]
fn plugins_that_may_not_run_do_not_answer_or_are_too_old_are_named() {
    let node = Node::new();
    node.plugin("wire", "0.4.0");
    node.plugin("portmap", "1.0.0");
    let portmap = node.bin().join("portmap");
    std::fs::set_permissions(&portmap, std::fs::Permissions::from_mode(0o644)).unwrap();
    node.write("10-pods.conflist", GOOD);
    assert_found(&node, &["its plugin wire only 0.4.0", "may not be executed"]);
    std::fs::set_permissions(&portmap, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(&portmap, "#!/bin/sh\nexit 3\n").unwrap();
    assert_found(&node, &["its plugin wire only 0.4.0", "does not answer VERSION"]);
}

#[test]
fn a_link_that_leads_nowhere_is_an_error() {
    let node = Node::new();
    node.plugin("wire", "1.0.0");
    symlink("fairlead-cni", node.bin().join("portmap")).unwrap();
    node.write("10-pods.conflist", GOOD);
    assert_found(&node, &["this link leads to fairlead-cni", "plugin portmap is in none"]);
}

#[test]
fn a_chained_plugin_comes_never_first_and_says_which_capability_it_wants() {
    let node = Node::new();
    node.plugin("bandwidth", "1.0.0");
    node.write(
        "10-pods.conflist",
        r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bandwidth"}]}"#,
    );
    assert_found(&node, &["the first plugin is bandwidth", "does not declare the capability bandwidth"]);
}

#[test]
fn the_address_plugin_is_looked_for_too_and_a_missing_version_is_told() {
    let node = Node::new();
    node.plugin("wire", "0.1.0");
    node.write("10-pods.conf", r#"{"name":"pods","type":"wire","ipam":{"type":"addresses"}}"#);
    assert_found(&node, &["no cniVersion", "plugin addresses is in none"]);
}

#[test]
fn one_network_in_two_files_and_a_file_that_nobody_reads_are_told() {
    let node = Node::new();
    node.plugin("wire", "1.0.0");
    node.plugin("portmap", "1.0.0");
    node.write("10-pods.conflist", GOOD);
    node.write("20-pods.conflist", GOOD);
    node.write("10-pods.conflist.bak", GOOD);
    assert_found(&node, &["network pods is in", "not used for pods"]);
    let findings = examine(&node.conf(), &[node.bin()], Moment::Running);
    assert!(findings.iter().any(|note| note.problem.contains(".bak is not read")), "{findings:#?}");
}
