//! What the cluster is told of this node: how its network fares, and what happened that somebody should know.
//!
//! Read [`Announcer`]; the loop gives it words and never waits for them. A thread of its own carries them to the store
//! (in Kubernetes the Node's condition `NetworkUnavailable` and Events). Of reports only the newest counts, and it is
//! tried until it is written; notices are kept in order, the oldest being dropped when more than [`MOST_NOTICES`] wait.
//!
//! What stays true: an unreachable store delays words and nothing else; the first try after it is back is at once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use store::{Notice, Report, Store};

use crate::pause;
use crate::report::{Reason, told};
use crate::run::{Error, spawn};

/// How many notices wait for a store that is away.
const MOST_NOTICES: usize = 32;

/// The same notice is told at most once in this time: what goes on and on is no news.
const SAME_AGAIN: Duration = Duration::from_secs(60);

/// How many notices are remembered for that.
const REMEMBERED: usize = 64;

/// The condition's reason where the node can carry pods, and where it cannot.
const READY: &str = "FairleadIsUp";
const NOT_READY: &str = "FairleadIsNotReady";

/// Something to be told.
#[derive(Debug)]
enum Word {
    Report(Report),
    Notice(Notice),
    /// What was to be reported is no longer so.
    Forget,
    /// The store is back.
    Now,
}

/// The loop's end: it says, and does not wait.
#[derive(Debug)]
pub(crate) struct Announcer {
    voice: Voice,
    last: Option<Report>,
    /// Whether the Node waited for a network when it was last looked at.
    waited: bool,
}

/// Says that something happened; any thread may have one.
#[derive(Debug, Clone)]
pub(crate) struct Voice {
    node: String,
    words: Sender<Word>,
}

impl Announcer {
    /// Starts the thread that tells.
    pub(crate) fn start(node: &str, store: Arc<dyn Store>) -> Result<Self, Error> {
        let (words, heard) = mpsc::channel();
        spawn("announce", move || Crier::new(store).run(&heard))?;
        Ok(Self { voice: Voice { node: node.to_owned(), words }, last: None, waited: false })
    }

    /// How the node fares. Told if it is news, or if the cluster does not know it: its Node says that it `waits` for
    /// a network though it has one.
    pub(crate) fn report(&mut self, reason: Option<&str>, message: String, waits: bool) {
        let report = Report {
            node: self.voice.node.clone(),
            ready: reason.is_none(),
            reason: if reason.is_none() { READY } else { NOT_READY }.to_owned(),
            message,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        // Told once: there are stores in which nobody takes that back.
        let undone = report.ready && waits && !self.waited;
        self.waited = waits;
        if self.last.as_ref() == Some(&report) && !undone {
            return;
        }
        let was_ready = self.last.as_ref().map(|last| last.ready);
        if was_ready != Some(report.ready) && (report.ready || was_ready.is_some()) {
            let reason = if report.ready { Reason::NetworkReady } else { Reason::NetworkNotReady };
            self.voice.notify(reason, report.message.clone());
        }
        self.last = Some(report.clone());
        self.voice.say(Word::Report(report));
    }

    /// The Node object is another one now, or knows nothing any more: what was told has to be told again.
    pub(crate) fn forget(&mut self) {
        self.last = None;
        self.waited = false;
        self.voice.say(Word::Forget);
    }

    /// For whoever sees something happen.
    pub(crate) fn voice(&self) -> &Voice {
        &self.voice
    }

    /// The store is back: what could not be told meanwhile can be told now.
    pub(crate) fn try_now(&self) {
        self.voice.say(Word::Now);
    }
}

impl Voice {
    /// Something happened.
    pub(crate) fn notify(&self, reason: Reason, message: String) {
        self.say(Word::Notice(reason.notice(&self.node, message)));
    }

    fn say(&self, word: Word) {
        // Without the thread nobody is told; the log has it all the same.
        let _ = self.words.send(word);
    }
}

/// Tells a store why an agent does not start, and waits for it; an overlap keeps the node from carrying new pods, while with
/// a broken configuration it goes on with what an earlier agent left.
pub(crate) fn tell_at_once(store: &dyn Store, node: &str, reason: Reason, message: &str) {
    let report = Report {
        node: node.to_owned(),
        ready: false,
        reason: NOT_READY.to_owned(),
        message: message.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let reported = if reason == Reason::NetworkOverlap { store.report(&report) } else { Ok(()) };
    // The one may be refused and the other be what explains it.
    for told_it in [reported, store.notify(&reason.notice(node, message.to_owned()))] {
        if let Err(error) = told_it {
            tracing::warn!(error = %told(&error), "the cluster could not be told");
        }
    }
}

/// The thread's end.
struct Crier {
    store: Arc<dyn Store>,
    report: Option<Report>,
    notices: VecDeque<Notice>,
    /// What was told lately.
    lately: VecDeque<(Notice, Instant)>,
    /// Failures in a row, and when to try again after them.
    failures: u32,
    not_before: Option<Instant>,
}

impl Crier {
    fn new(store: Arc<dyn Store>) -> Self {
        let (notices, lately) = (VecDeque::new(), VecDeque::new());
        Self { store, report: None, notices, lately, failures: 0, not_before: None }
    }

    fn run(mut self, heard: &Receiver<Word>) {
        loop {
            let word = match self.not_before {
                None => heard.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => heard.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            match word {
                Ok(word) => self.take(word),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            heard.try_iter().for_each(|word| self.take(word));
            if self.not_before.is_none_or(|at| at <= Instant::now()) {
                self.try_all();
            }
        }
    }

    fn take(&mut self, word: Word) {
        match word {
            Word::Report(report) => self.report = Some(report),
            Word::Notice(notice) => self.remember(notice, Instant::now()),
            Word::Forget => self.report = None,
            Word::Now => self.not_before = None,
        }
    }

    /// Keeps a notice to be told, unless the same was told a moment ago.
    fn remember(&mut self, notice: Notice, now: Instant) {
        let opposite =
            |told: &Notice| Reason::opposite(&notice.reason).is_some_and(|reason| reason == told.reason);
        self.lately.retain(|(told, at)| now.duration_since(*at) < SAME_AGAIN && !opposite(told));
        if self.lately.iter().any(|(told, _)| *told == notice) {
            return;
        }
        if self.lately.len() >= REMEMBERED {
            self.lately.pop_front();
        }
        self.lately.push_back((notice.clone(), now));
        if self.notices.len() >= MOST_NOTICES {
            self.notices.pop_front();
        }
        self.notices.push_back(notice);
    }

    /// Tells what is to be told, and sets the time for what could not be.
    fn try_all(&mut self) {
        // The one may be refused and the other be what explains it.
        let done = [self.tell_report(), self.tell_notices()];
        if done.contains(&false) {
            let pause = pause::after(self.failures);
            self.failures = self.failures.saturating_add(1);
            self.not_before = Some(Instant::now() + pause);
        } else {
            self.failures = 0;
            self.not_before = None;
        }
    }

    /// True if there is nothing left to report.
    fn tell_report(&mut self) -> bool {
        let Some(report) = self.report.take() else { return true };
        match self.store.report(&report) {
            Ok(()) => true,
            // Whoever finds it there again reports again.
            Err(error @ store::Error::NoNode { .. }) => {
                tracing::debug!(error = %told(&error), "there is no Node to report of");
                true
            }
            Err(error) => {
                tracing::warn!(error = %told(&error), "the Node's condition could not be written; tried again");
                self.report = Some(report);
                false
            }
        }
    }

    /// True if no notice is left.
    fn tell_notices(&mut self) -> bool {
        while let Some(notice) = self.notices.pop_front() {
            match self.store.notify(&notice) {
                Ok(()) => {}
                Err(error @ store::Error::Unavailable { .. }) => {
                    tracing::debug!(error = %told(&error), "an event could not be written; tried again");
                    self.notices.push_front(notice);
                    return false;
                }
                // It will not be allowed the next time either.
                Err(error) => tracing::warn!(error = %told(&error), "an event could not be written"),
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, mpsc};
    use std::time::Duration;

    use cluster::{Key, Kind, Object};
    use ipnet::IpNet;
    use store::{Claimed, Error, Events, Expect, Listing, Notice, Report, Store, Version};

    use super::Announcer;
    use crate::report::Reason;

    /// A store of which only the words count; those that `refuse` names are refused.
    #[derive(Debug)]
    struct Ear {
        heard: Mutex<mpsc::Sender<String>>,
        refuse: fn(&str) -> bool,
    }

    impl Ear {
        fn hear(&self, word: String) -> Result<(), Error> {
            let refused = (self.refuse)(&word);
            // Who listens may have heard enough.
            let _ = self.heard.lock().unwrap().send(word);
            let key = Key::Node("node1".into());
            if refused { Err(Error::Invalid { key, reason: "refused".to_owned() }) } else { Ok(()) }
        }
    }

    impl Store for Ear {
        fn list(&self, _: &[Kind]) -> Result<Listing, Error> {
            unreachable!("nobody lists")
        }
        fn watch(&self, _: &[Kind]) -> Result<Events, Error> {
            unreachable!("nobody watches")
        }
        fn confirm(&self, _: &Arc<str>, _: u64) -> bool {
            false
        }

        fn read(&self, _: &Key) -> Result<Option<(Object, Version)>, Error> {
            unreachable!("nobody reads")
        }
        fn write(&self, _: &Object, _: Expect) -> Result<Version, Error> {
            unreachable!("nobody writes")
        }
        fn delete(&self, _: &Key, _: Expect) -> Result<bool, Error> {
            unreachable!("nobody deletes")
        }
        fn claim(&self, _: IpNet, _: &str) -> Result<Claimed, Error> {
            unreachable!("nobody claims")
        }
        fn release(&self, _: IpNet, _: &str) -> Result<bool, Error> {
            unreachable!("nobody releases")
        }
        fn report(&self, report: &Report) -> Result<(), Error> {
            self.hear(format!("report {}", report.ready))
        }
        fn reports(&self) -> Result<Vec<Report>, Error> {
            unreachable!("nobody asks")
        }
        fn notify(&self, notice: &Notice) -> Result<(), Error> {
            self.hear(format!("{} {}", notice.reason, notice.message))
        }
    }

    fn announcer(refuse: fn(&str) -> bool) -> (Announcer, mpsc::Receiver<String>) {
        let (sender, heard) = mpsc::channel();
        let store = Arc::new(Ear { heard: Mutex::new(sender), refuse });
        (Announcer::start("node1", store).unwrap(), heard)
    }

    /// The next so many words, sorted.
    fn next(heard: &mpsc::Receiver<String>, count: usize) -> Vec<String> {
        let words = (0..count).map(|_| heard.recv_timeout(Duration::from_secs(30)).unwrap());
        let mut words: Vec<String> = words.collect();
        words.sort();
        words
    }

    #[test]
    fn a_node_is_reported_once_and_again_when_it_is_another_or_somebody_undid_it() {
        let (mut announcer, heard) = announcer(|_| false);
        let ready = |announcer: &mut Announcer, waits| announcer.report(None, "well".to_owned(), waits);
        ready(&mut announcer, true);
        assert_eq!(next(&heard, 2), ["NetworkReady well", "report true"]);
        // As it is until the store has told that the report was written.
        ready(&mut announcer, true);
        ready(&mut announcer, false);
        announcer.report(Some("why"), "badly".to_owned(), false);
        assert_eq!(next(&heard, 2), ["NetworkNotReady badly", "report false"]);
        ready(&mut announcer, false);
        assert_eq!(next(&heard, 2), ["NetworkReady well", "report true"]);
        ready(&mut announcer, true);
        assert_eq!(next(&heard, 1), ["report true"], "somebody set the condition");
        announcer.forget();
        ready(&mut announcer, false);
        assert_eq!(next(&heard, 1), ["report true"], "it is another Node object");
        assert!(heard.try_recv().is_err());
    }

    #[test]
    fn a_report_that_is_refused_is_tried_again_and_holds_nothing_back() {
        let (mut announcer, heard) = announcer(|word| word.starts_with("report"));
        announcer.report(None, "well".to_owned(), false);
        announcer.voice().notify(Reason::NetworkOverlap, "two networks".to_owned());
        let mut words = next(&heard, 4);
        words.dedup();
        assert_eq!(words, ["NetworkOverlap two networks", "NetworkReady well", "report true"]);
    }
}
