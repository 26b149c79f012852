//! Network policies in the lab, with packets: the cases of a corpus by others, on real agents and real plugins.
//!
//! Read [`cases::play`]: a case becomes manifests in a lab's store, and every verdict that it states is asked by a packet that
//! one pod sends to another ([`probes`]), once the agents have said that what is in the store is in force ([`in_force`]). A pod
//! answers also where it serves nothing, with a reset or an ICMP error, so a flow that is allowed is never silent, and one that is
//! denied always is. That nothing else is silent is asked at the beginning of each case, without policies.
//!
//! Over VXLAN, with the pods spread over three nodes, every case is played; elsewhere some of them, or every one with
//! `FAIRLEAD_POLICY_PACKETS=all`; `FAIRLEAD_POLICY_PACKETS=WORD` plays those with that word in their names. Hosts outside the
//! cluster, Services and labels of nodes are added to the lab ([`surroundings`]), and a pod gets the address of one that is gone
//! where the case wants it ([`inheritance`]). SCTP is asked of kernels that have none
//! ([`sctp`]). What a lab has not is left out, and said: names that somebody looked up.
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
#[path = "policy_corpus/sctp.rs"]
mod sctp;
#[path = "policy_corpus/state.rs"]
mod state;
#[path = "policy_corpus/surroundings.rs"]
mod surroundings;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cases::Played;
use journeys::TestLab;
use serde_json::Value;

/// How many labs play at once.
const LABS: usize = 3;

/// Every `step`th case from the `first` on, or those that were asked for, in labs of their own: most of the time goes by with
/// waiting for silence, so several labs take turns.
fn play(arguments: &[&str], first: usize, step: usize) {
    let Some(folder) = harness::policy_corpus() else {
        return harness::not_run("there is no ../shared/policy-corpus and no other one is named");
    };
    probes::allow_many_sockets();
    let files: Vec<PathBuf> =
        files(&folder).into_iter().filter(|file| is_asked_for(file)).skip(first).step_by(step).collect();
    let outcome = Mutex::new(Outcome::default());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..LABS.min(files.len()) {
            scope.spawn(|| {
                let lab = TestLab::up(arguments);
                let mut game = cases::Game::new(&lab, &folder);
                while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let case: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
                    let begun = Instant::now();
                    let played = cases::play(&mut game, &case);
                    outcome.lock().unwrap().take(&case, begun.elapsed(), played);
                }
            });
        }
    });
    outcome.into_inner().unwrap().judge();
}

/// What came of the cases.
#[derive(Default)]
struct Outcome {
    asked: usize,
    left_out: Vec<String>,
    failed: Vec<String>,
}

impl Outcome {
    fn take(&mut self, case: &Value, took: Duration, played: Result<Played, String>) {
        let name = case["name"].as_str().unwrap_or_default();
        let asked = played.as_ref().map_or(0, Played::asked);
        self.asked += asked;
        // Who ends this in the middle still knows how far it came.
        match played {
            Ok(Played::Asked(_)) => eprintln!("{name}: {asked} flows in {took:.1?}"),
            Ok(Played::LeftOut(why) | Played::InPart(_, why)) => {
                eprintln!("{name}: {asked} flows in {took:.1?}; {why}");
                self.left_out.push(format!("{name} ({why})"));
            }
            Err(wrong) => {
                eprintln!("{name}: wrong after {took:.1?}: {wrong}");
                self.failed.push(format!("{name}: {wrong}"));
            }
        }
    }

    fn judge(self) {
        let Self { asked, left_out, failed } = self;
        eprintln!("{asked} flows were as they should be");
        if !left_out.is_empty() {
            harness::not_run(&format!("a lab has not all that these need: {}", left_out.join(", ")));
        }
        assert!(failed.is_empty(), "{} cases:\n{}", failed.len(), failed.join("\n"));
        assert!(asked > 0 || asked_for().is_some(), "nothing was asked");
    }
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

/// Where every case is played but once in a while: each `one_of`th, from a number on of its own.
fn play_some(arguments: &[&str], first: usize, one_of: usize) {
    let step = if asked_for().is_some() { 1 } else { one_of };
    play(arguments, first % step, step);
}

#[test]
fn the_corpus_holds_for_packets_over_vxlan() {
    play(&["--nodes", "3"], 0, 1);
}

#[test]
fn the_corpus_holds_for_packets_over_plain_routes() {
    play_some(&["--nodes", "3", "--backend", "host-gw"], 3, 8);
}

#[test]
fn the_corpus_holds_for_packets_between_pods_of_one_node() {
    play_some(&["--nodes", "1"], 5, 8);
}

#[test]
fn the_corpus_holds_for_packets_in_udp_datagrams() {
    play_some(&["--nodes", "3", "--backend", "udp"], 2, 24);
}

#[test]
fn the_corpus_holds_for_packets_in_ip_packets() {
    play_some(&["--nodes", "3", "--backend", "ipip"], 10, 24);
}

#[test]
fn the_corpus_holds_for_packets_that_are_encrypted() {
    play_some(&["--nodes", "3", "--backend", "wireguard"], 18, 24);
}
