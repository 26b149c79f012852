//! Network policies in the lab, with packets: the cases of a corpus by others, on real agents and real plugins.
//!
//! Read [`cases::play`]: a case becomes manifests in a lab's store, and every verdict that it states is asked by a packet that
//! one pod sends to another ([`probes`]). A pod answers also where it serves nothing, with a reset or an ICMP error, so a
//! flow that is allowed is never silent, and one that is denied always is.
//!
//! Over VXLAN, with the pods spread over three nodes, every case is played; over plain routes and with all pods on one node
//! each eighth, or every one with `FAIRLEAD_POLICY_PACKETS=all`; `FAIRLEAD_POLICY_PACKETS=WORD` plays those with that word in
//! their names. Hosts outside the cluster, Services and labels of nodes are added to the lab ([`surroundings`]). What it has not is left out, and
//! said: DNS, SCTP, an address given to a second pod on purpose.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "tests drive programs, panic when they fail, and these say how far they are"
)]

#[path = "policy_corpus/cases.rs"]
mod cases;
#[path = "policy_corpus/in_force.rs"]
mod in_force;
#[path = "policy_corpus/inheritance.rs"]
mod inheritance;
#[path = "policy_corpus/oracle.rs"]
mod oracle;
#[path = "policy_corpus/probes.rs"]
mod probes;
#[path = "policy_corpus/surroundings.rs"]
mod surroundings;

use std::path::{Path, PathBuf};
use std::time::Instant;

use journeys::TestLab;
use serde_json::Value;

/// Every `step`th case from the `first` on, in a lab of its own, or those that were asked for.
fn play(arguments: &[&str], first: usize, step: usize) {
    let Some(folder) = harness::policy_corpus() else {
        return harness::not_run("there is no ../shared/policy-corpus and no other one is named");
    };
    probes::allow_many_sockets();
    let lab = TestLab::up(arguments);
    let mut game = cases::Game::new(&lab, &folder);
    let (mut failed, mut left_out, mut asked) = (Vec::new(), Vec::new(), 0);
    for file in files(&folder).iter().filter(|file| is_asked_for(file)).skip(first).step_by(step) {
        let case: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let name = case["name"].as_str().unwrap_or_default().to_owned();
        let begun = Instant::now();
        let played = cases::play(&mut game, &case);
        eprintln!("{name}: {:.1?}{}", begun.elapsed(), played.as_ref().err().map_or("", |_| ", wrong"));
        match played {
            Ok(cases::Played::Asked(count)) => asked += count,
            Ok(cases::Played::LeftOut(why)) => left_out.push(format!("{name} ({why})")),
            Err(wrong) => failed.push(format!("{name}: {wrong}")),
        }
    }
    if !left_out.is_empty() {
        harness::not_run(&format!("a lab has not what these need: {}", left_out.join(", ")));
    }
    assert!(failed.is_empty(), "{} cases:\n{}", failed.len(), failed.join("\n"));
    assert!(asked > 0 || asked_for().is_some(), "nothing was asked");
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|have| have == "json")).collect();
    files.sort();
    files
}

/// What was asked for beside the usual.
fn asked_for() -> Option<String> {
    std::env::var("FAIRLEAD_POLICY_PACKETS").ok()
}

fn is_asked_for(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    asked_for().is_none_or(|word| word == "all" || name.contains(&word))
}

/// How many cases are skipped between two that are played where not every one need be.
fn stride() -> usize {
    if asked_for().is_some() { 1 } else { 8 }
}

#[test]
fn the_first_half_of_the_corpus_holds_for_packets_over_vxlan() {
    play(&["--nodes", "3"], 0, 2);
}

#[test]
fn the_second_half_of_the_corpus_holds_for_packets_over_vxlan() {
    play(&["--nodes", "3"], 1, 2);
}

#[test]
fn the_corpus_holds_for_packets_over_plain_routes() {
    play(&["--nodes", "3", "--backend", "host-gw"], 3 % stride(), stride());
}

#[test]
fn the_corpus_holds_for_packets_between_pods_of_one_node() {
    play(&["--nodes", "1"], 5 % stride(), stride());
}
