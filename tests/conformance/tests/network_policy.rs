//! Network policies: what the evaluator and every node's table say of flows, against cases and an evaluator by others.
//!
//! The cases of our own are in `tests/conformance/networkpolicy`: manifests as a user writes them, with what is to pass in
//! comments (see [`own`]). A further corpus is beside the checkout, in `../shared/policy-corpus`, or where
//! `FAIRLEAD_POLICY_CORPUS=DIR` says: JSON cases, and `oracle.py`, which makes random ones together with their verdicts (see
//! [`corpus`]); `FAIRLEAD_POLICY_CASES` says how many of each of five kinds, 40 if nothing is said. Every verdict is asked of the evaluator and of the
//! compiled tables of three nodes, which are led there by the steps of single changes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking"
)]

#[path = "network_policy/corpus.rs"]
mod corpus;
#[path = "../../../crates/policy/tests/interpreter/mod.rs"]
mod interpreter;
#[path = "network_policy/own.rs"]
mod own;
#[path = "network_policy/world.rs"]
mod world;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn corpus_folder() -> Option<PathBuf> {
    let named = std::env::var_os("FAIRLEAD_POLICY_CORPUS").map(PathBuf::from);
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/policy-corpus");
    Some(named.unwrap_or(beside)).filter(|folder| folder.join("oracle.py").exists())
}

fn cases() -> usize {
    std::env::var("FAIRLEAD_POLICY_CASES").map_or(40, |count| count.parse().unwrap())
}

fn files(folder: &Path, suffix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|have| *have == *suffix)).collect();
    files.sort();
    files
}

#[test]
fn every_case_of_our_own_passes() {
    let files = files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("networkpolicy"), "yaml");
    assert!(files.len() >= 24, "{} cases", files.len());
    let failed: Vec<String> = files.iter().filter_map(|file| own::play(file).err()).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn every_case_of_the_corpus_passes() {
    let Some(folder) = corpus_folder() else {
        return harness::not_run("there is no ../shared/policy-corpus and no other one is named");
    };
    let files = files(&folder, "json");
    assert!(!files.is_empty());
    let mut failed = Vec::new();
    for file in &files {
        let case: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        match corpus::play(&case) {
            Ok(asked) => assert!(asked > 0, "{} asks nothing", file.display()),
            Err(wrong) => failed.push(format!("{}: {wrong}", case["name"])),
        }
    }
    assert!(failed.is_empty(), "{} of {} cases:\n{}", failed.len(), files.len(), failed.join("\n"));
}

/// Random cases of one kind: made and judged by the corpus' own evaluator.
fn random(seed: u32, options: &[&str]) {
    let count = cases();
    let Some(folder) = corpus_folder() else {
        return harness::not_run("there is no ../shared/policy-corpus and no other one is named");
    };
    let mut oracle = Command::new("python3");
    oracle.arg(folder.join("oracle.py")).args(["random", "--seed", &seed.to_string()]);
    oracle.args(["--count", &count.to_string()]).args(options);
    let Ok(output) = oracle.output() else {
        return harness::not_run("no python3 to run the corpus' evaluator");
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).unwrap();
    assert_eq!(lines.lines().count(), count);
    for line in lines.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        if let Err(wrong) = corpus::play(&case) {
            panic!("{}: {wrong}\n{line}", case["source"]);
        }
    }
}

#[test]
fn random_network_policies_are_judged_alike() {
    random(20_261, &[]);
}

#[test]
fn random_changes_are_judged_alike() {
    random(20_262, &["--steps"]);
}

#[test]
fn random_policies_of_both_kinds_are_judged_alike() {
    random(20_263, &["--cnp"]);
}

#[test]
fn random_policies_are_judged_alike_in_both_families() {
    random(20_264, &["--v6", "--external"]);
}

#[test]
fn random_everything_is_judged_alike() {
    random(20_265, &["--cnp", "--external", "--v6", "--steps"]);
}
