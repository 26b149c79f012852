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
use std::time::Duration;

use store::{Notice, Report, Store};

use crate::report::{Reason, told};
use crate::run::{Error, spawn};

/// How many notices wait for a store that is away.
const MOST_NOTICES: usize = 32;

/// The first pause after a failure; doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// The longest pause after a failure.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Something to be told.
#[derive(Debug)]
enum Word {
    Report(Report),
    Notice(Notice),
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
        spawn("announce", move || Crier { store, report: None, notices: VecDeque::new() }.run(&heard))?;
        Ok(Self { voice: Voice { node: node.to_owned(), words }, last: None, waited: false })
    }

    /// How the node fares. Told if it is news, or if the cluster does not know it: its Node says that it `waits` for
    /// a network though it has one.
    pub(crate) fn report(&mut self, reason: Option<&str>, message: String, waits: bool) {
        let report = Report {
            node: self.voice.node.clone(),
            ready: reason.is_none(),
            reason: if reason.is_none() { "FairleadIsUp" } else { "FairleadIsNotReady" }.to_owned(),
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
        let warning = reason.is_warning();
        let notice =
            Notice { node: self.node.clone(), warning, reason: reason.as_str().to_owned(), message };
        self.say(Word::Notice(notice));
    }

    fn say(&self, word: Word) {
        // Without the thread nobody is told; the log has it all the same.
        let _ = self.words.send(word);
    }
}

/// Tells a store one notice and waits for it: for those who are about to end.
pub(crate) fn tell_at_once(store: &dyn Store, node: &str, reason: Reason, message: String) {
    let notice = Notice {
        node: node.to_owned(),
        warning: reason.is_warning(),
        reason: reason.as_str().to_owned(),
        message,
    };
    if let Err(error) = store.notify(&notice) {
        tracing::warn!(error = %told(&error), "an event could not be written");
    }
}

/// The thread's end.
struct Crier {
    store: Arc<dyn Store>,
    report: Option<Report>,
    notices: VecDeque<Notice>,
}

impl Crier {
    fn run(mut self, heard: &Receiver<Word>) {
        let mut failures = 0_u32;
        loop {
            let word = if self.report.is_none() && self.notices.is_empty() {
                heard.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                let pause = FIRST_PAUSE.saturating_mul(1 << failures.min(8)).min(LONGEST_PAUSE);
                heard.recv_timeout(pause)
            };
            match word {
                Ok(word) => self.take(word),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            heard.try_iter().for_each(|word| self.take(word));
            failures = if self.tell() { 0 } else { failures.saturating_add(1) };
        }
    }

    fn take(&mut self, word: Word) {
        match word {
            Word::Report(report) => self.report = Some(report),
            Word::Notice(notice) => {
                if self.notices.len() >= MOST_NOTICES {
                    self.notices.pop_front();
                }
                self.notices.push_back(notice);
            }
            Word::Now => {}
        }
    }

    /// Tells what is to be told; false if something has to be tried again.
    fn tell(&mut self) -> bool {
        if let Some(report) = self.report.take()
            && let Err(error) = self.store.report(&report)
        {
            tracing::warn!(error = %told(&error), "the Node's condition could not be written; tried again");
            self.report = Some(report);
            return false;
        }
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
