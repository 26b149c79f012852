//! Traffic that goes on while something happens, and is counted.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use harness::{eventually, run_ok};

use crate::rig::Node;

/// A witness: echoes from one pod to another, two hundred a second or as many as it is told, counted at the end.
pub(crate) struct Witness {
    ping: Child,
    /// How many echoes were answered so far.
    answers: Arc<AtomicU64>,
    reader: Option<JoinHandle<Said>>,
}

/// What a ping has said when it has ended.
#[derive(Default)]
struct Said {
    /// The number, modulo 2^16, of the echo that was answered last.
    last: i64,
    /// How many it sent, and had answered.
    sum: String,
}

impl Drop for Witness {
    /// A test that fails leaves no ping behind.
    fn drop(&mut self) {
        let _ = self.ping.kill();
        let _ = self.ping.wait();
    }
}

impl Witness {
    pub(crate) fn start(from: &Node, to: &Node, family: usize) -> Self {
        Self::every(5, from, to, family)
    }

    /// One echo in so many milliseconds.
    pub(crate) fn every(pause: i64, from: &Node, to: &Node, family: usize) -> Self {
        let (source, target) = (&from.pod_addresses()[family], &to.pod_addresses()[family]);
        let mut ping = from.netns.command("ping");
        ping.args(["-n", "-i", &format!("0.{pause:03}"), "-I", source, target]);
        let ping = ping.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut ping = ping.spawn().unwrap();
        let (output, answers) = (ping.stdout.take().unwrap(), Arc::new(AtomicU64::new(0)));
        let counter = Arc::clone(&answers);
        let reader = Some(std::thread::spawn(move || read(output, &counter)));
        Self { ping, answers, reader }
    }

    /// How many of the packets sent were not answered.
    pub(crate) fn lost(self) -> i64 {
        let (sent, answered) = self.sent_and_answered();
        sent - answered
    }

    /// How many packets were sent, up to the last that was answered, and how many of these were answered. What is on its way
    /// when ping is told to end is no loss, but the last word has to be an answer.
    pub(crate) fn sent_and_answered(mut self) -> (i64, i64) {
        let before = self.answers.load(Ordering::Relaxed);
        eventually("echoes are answered at the end", || {
            (self.answers.load(Ordering::Relaxed) > before).then_some(())
        });
        run_ok(std::process::Command::new("kill").args(["-INT", &self.ping.id().to_string()]));
        let said = self.reader.take().unwrap().join().unwrap();
        let numbers: Vec<i64> =
            said.sum.split(',').filter_map(|part| part.trim().split(' ').next()?.parse().ok()).collect();
        let [sent, answered, ..] = numbers[..] else { panic!("ping said {:?}", said.sum) };
        (sent - (sent - said.last).rem_euclid(1 << 16), answered)
    }
}

fn read(output: impl Read, answers: &AtomicU64) -> Said {
    let mut said = Said::default();
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        if let Some(number) = answered(&line) {
            said.last = number;
            answers.fetch_add(1, Ordering::Relaxed);
        } else if line.contains("packets transmitted") {
            said.sum = line;
        }
    }
    said
}

/// Of which echo a line says that it was answered: `64 bytes from 10.244.1.5: icmp_seq=7 ttl=62 time=0.05 ms`.
fn answered(line: &str) -> Option<i64> {
    let words = line.split_once(" bytes from ").filter(|_| !line.ends_with("(DUP!)"))?.1;
    words.split_once("icmp_seq=")?.1.split(' ').next()?.parse().ok()
}
