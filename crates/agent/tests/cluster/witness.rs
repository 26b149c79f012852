//! Traffic that goes on while something happens, and is counted.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use harness::{eventually, run_ok};

use crate::rig::Node;

/// How many echoes later than one it has to be answered not to count as lost: answers may overtake each other.
const OVERTAKEN: i64 = 20;

/// A witness: echoes from one pod to another, two hundred a second or as many as it is told, counted at the end.
pub(crate) struct Witness {
    ping: Child,
    answers: Arc<Mutex<Answers>>,
    /// Up to which echo nothing counts.
    since: i64,
    /// Reads what ping says; in the end, how many echoes it has sent.
    reader: Option<JoinHandle<Option<i64>>>,
}

/// Which echoes were answered so far.
#[derive(Default)]
struct Answers {
    /// The number of the last.
    last: i64,
    /// Those before it that were not.
    missing: BTreeSet<i64>,
}

impl Answers {
    /// The echo with this number was answered. Ping tells it modulo 2^16.
    fn take(&mut self, number: i64) {
        let onward = (number - self.last + (1 << 15)).rem_euclid(1 << 16) - (1 << 15);
        let number = self.last + onward;
        self.missing.extend(self.last + 1..number);
        self.missing.remove(&number);
        self.last = self.last.max(number);
    }
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
        let (output, answers) = (ping.stdout.take().unwrap(), Arc::new(Mutex::new(Answers::default())));
        let heard = Arc::clone(&answers);
        let reader = Some(std::thread::spawn(move || read(output, &heard)));
        Self { ping, answers, since: 0, reader }
    }

    /// Counts from here on: what the first packets of a new way meet is another question.
    pub(crate) fn steady(mut self) -> Self {
        self.since = self.await_later() + OVERTAKEN;
        self
    }

    /// Waits until echoes after the one that is answered last now are answered, and returns the number of that one.
    fn await_later(&self) -> i64 {
        let last = self.answers.lock().unwrap().last;
        eventually("echoes are answered", || {
            (self.answers.lock().unwrap().last >= last + OVERTAKEN).then_some(())
        });
        last
    }

    /// How many of the packets sent were not answered.
    pub(crate) fn lost(self) -> i64 {
        let (sent, answered) = self.sent_and_answered();
        sent - answered
    }

    /// How many packets were sent by now, as far as answers tell, and how many of these were answered. What is on its way now
    /// is no loss, but what comes after it has to be answered.
    pub(crate) fn sent_and_answered(mut self) -> (i64, i64) {
        let sent = self.await_later();
        run_ok(std::process::Command::new("kill").args(["-INT", &self.ping.id().to_string()]));
        let all = self.reader.take().unwrap().join().unwrap().expect("ping says how many it has sent");
        let answers = self.answers.lock().unwrap();
        let counts = |number: &&i64| **number > self.since && **number <= sent;
        let missing: Vec<&i64> = answers.missing.iter().filter(counts).collect();
        if !missing.is_empty() {
            eprintln!("of {sent} echoes not answered: {missing:?}");
        }
        let missing = i64::try_from(missing.len()).unwrap();
        // So many in a row that their numbers came round.
        let unseen = (all - answers.last) >> 16 << 16;
        (sent - self.since + unseen, sent - self.since - missing)
    }
}

/// Takes in what ping says to its end; returns how many echoes it says that it has sent.
fn read(output: impl Read, answers: &Mutex<Answers>) -> Option<i64> {
    let mut sent = None;
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        if let Some(number) = answered(&line) {
            answers.lock().unwrap().take(number);
        } else if let Some((number, _)) = line.split_once(" packets transmitted") {
            sent = number.parse().ok();
        }
    }
    sent
}

/// Of which echo a line says that it was answered: `64 bytes from 10.244.1.5: icmp_seq=7 ttl=62 time=0.05 ms`.
fn answered(line: &str) -> Option<i64> {
    let words = line.split_once(" bytes from ").filter(|_| !line.ends_with("(DUP!)"))?.1;
    words.split_once("icmp_seq=")?.1.split(' ').next()?.parse().ok()
}
