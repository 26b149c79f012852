//! The loop: something happens, the wanted state is computed, the kernel is compared with it, the difference made.
//!
//! Read [`Loop::run`], then [`Loop::pass`]. Whatever happened, a pass computes the whole wanted state, and what happened
//! between two passes costs one. It looks at everything in the kernel afresh, so it also repairs everything. The one exception
//! ([`Extent::Peers`]): where nothing but other nodes' leases changed since the last look, which found all as it should be,
//! what is to be done is the difference of two wanted states, and a large node does not read thousands of routes to change
//! one. After such passes the kernel is looked at all the same, once in [`EVENTUALLY`], and at once when it refuses something.
//!
//! The agent hears of everything that others change in the kernel, not of its own changes: those are known by their socket, and
//! entries of the tunnel's device, of which the kernel does not say whose they are, by being as designed. Others' routes beside the cluster's
//! networks can only bear on the choice of the underlay, and there may be many: they have a look made that waits for
//! [`SHARE`] times what the last one took, at most [`PATIENCE`].
//!
//! Of WireGuard the kernel tells no changes at all, nor of whether a link takes router advertisements. Where there is such, that alone
//! is compared once in [`SILENCE`], and everything is looked at when it differs.
//!
//! The order within a pass is what makes each moment safe to die at: claims, kernel, lease, `network.json`, conflist;
//! and backwards when the node is no longer part of the cluster, but for the conflist, by which pods are deleted. Nothing happens at all before the store has been
//! read whole.
//!
//! A
//! foreign program that undoes what we do, again and again, is answered at most [`MOST_PASSES`] times in
//! [`PACE`]; then once in each.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use cluster::{Change, Key};

use crate::config::Config;
use crate::event::{Entry, Event, Touched};
use crate::node::{NodeKeeper, Outcome};
use crate::pause;
use crate::status::{Answer, Request, Status};
use crate::view::{Standing, View};

/// The time within which passes that changed something are counted.
const PACE: Duration = Duration::from_secs(2);

/// How many passes that changed something may happen within [`PACE`].
const MOST_PASSES: usize = 40;

/// After changes made without a look, one is made this long after the first of them.
const EVENTUALLY: Duration = Duration::from_secs(30);

/// Of the time, looks for the sake of routes beside ours may take one part in so many.
const SHARE: u32 = 10;

/// How long such a look waits at most.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often that is looked at whose changes the kernel does not tell.
const SILENCE: Duration = Duration::from_secs(10);

/// Why the loop ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// Somebody asked for it.
    Stopped,
    /// A thread it cannot do without has ended; the text says which.
    Lost(String),
}

/// The state of the loop: what is known, what has been decided, and what is due.
#[derive(Debug)]
pub(crate) struct Loop {
    view: View,
    node: NodeKeeper,
    due: Due,
    /// When the node's next step is due that no event tells of, and how far it goes.
    step: Option<(Instant, Extent)>,
    /// When that is to be looked at whose changes the kernel does not tell, where there is such.
    silent: Option<Instant>,
    /// How often somebody asked whether the node is ready.
    asked: usize,
    /// What the last pass took that looked at everything.
    look: Duration,
}

/// What a pass may take to be as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Extent {
    /// All but other nodes and the paths to them.
    Peers,
    /// Nothing.
    Everything,
}

/// What is due, and when.
#[derive(Debug, Default)]
struct Due {
    /// Why a pass is due, if one is, and how far it has to go.
    cause: Option<(&'static str, Extent)>,
    /// When and why everything is to be looked at that has time.
    later: Option<(Instant, &'static str)>,
    /// Passes that changed something lately.
    recent: VecDeque<Instant>,
    /// No pass before this moment.
    not_before: Option<Instant>,
    /// Failures in a row.
    failures: u32,
    /// When to try again what failed.
    retry: Option<Instant>,
}

impl Loop {
    pub(crate) fn new(node: NodeKeeper, view: View) -> Self {
        Self { view, node, due: Due::default(), step: None, silent: None, asked: 0, look: Duration::ZERO }
    }

    /// Runs until somebody asks it to end.
    pub(crate) fn run(mut self, events: &Receiver<Event>) -> End {
        loop {
            let mut questions = Vec::new();
            match self.next(events) {
                Ok(event) => {
                    for event in std::iter::once(event).chain(events.try_iter()) {
                        match event {
                            Event::Stop => return self.stop(),
                            Event::Lost(thread) => return End::Lost(thread),
                            Event::Asked(request, answer) => questions.push((request, answer)),
                            Event::Store(event) => self.heard_from_store(*event),
                            Event::Entries(entries) => self.heard_of_entries(&entries),
                            Event::Configuration(news) => self.reconfigure(*news),
                            Event::Kernel(touched) => self.heard_from_kernel(touched),
                            Event::TunnelEnded { tunnel, reason } => self.lost_a_tunnel(tunnel, &reason),
                            Event::Path => {
                                self.due.mark_for("a path carries more or less than before", Extent::Peers)
                            }
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return End::Stopped,
            }
            self.due.come(Instant::now());
            if let Some((_, extent)) = self.step.filter(|(at, _)| *at <= Instant::now()) {
                self.due.mark_for("the backend changes", extent);
            }
            if self.silent.is_some_and(|at| at <= Instant::now()) {
                self.look_into_the_silence();
            }
            if self.view.expire(Instant::now()) {
                self.due.mark("a deleted node's time is over");
            }
            if !questions.is_empty() && self.node.has_other_shortage() {
                self.due.mark("pods took addresses, or gave them back");
            }
            if let Some((cause, extent)) = self.due.take(Instant::now()) {
                self.pass(cause, extent);
            }
            questions.into_iter().for_each(|(request, answer)| self.answer(request, &answer));
        }
    }

    /// Leaves what is known to the next agent, unless the kernel does not carry it.
    fn stop(&mut self) -> End {
        if self.view.in_sync && self.due.retry.is_none() && self.due.cause.is_none() {
            self.keep_leases(Extent::Everything);
        }
        End::Stopped
    }

    /// Waits for the next event, or until something is due.
    fn next(&self, events: &Receiver<Event>) -> Result<Event, RecvTimeoutError> {
        // A pass that is held back brings the step with it.
        let step = self.step.filter(|_| self.due.not_before.is_none()).map(|(at, _)| at);
        let others = self.view.deadline().into_iter().chain(step).chain(self.silent);
        let deadline = self.due.deadline().into_iter().chain(others).min();
        match deadline {
            None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => events.recv_timeout(at.saturating_duration_since(Instant::now())),
        }
    }

    fn look_into_the_silence(&mut self) {
        self.silent = self.node.has_silent_parts().then(|| Instant::now() + SILENCE);
        if self.silent.is_some() && self.node.has_changed_silently() {
            self.due.mark(SILENTLY);
        }
    }

    fn heard_from_store(&mut self, event: store::Event) {
        let first = matches!(event, store::Event::InSync);
        if matches!(event, store::Event::Available) {
            self.node.store_is_back();
        }
        if self.is_about_our_own(&event) {
            self.node.forget_what_was_told();
        }
        if let store::Event::Lost(keys) = &event
            && self.view.lose(self.node.name(), keys)
        {
            self.due.mark("the store lost what is ours");
        }
        let extent = self.extent_of(&event);
        if self.view.take(event) {
            self.due.mark_for(if first { "start" } else { "the cluster changed" }, extent);
        }
    }

    fn heard_from_kernel(&mut self, touched: Touched) {
        let cause = cause_of(touched);
        match touched {
            Touched::Beside => self.due.mark_later(cause, Instant::now() + PATIENCE.min(self.look * SHARE)),
            _ => self.due.mark(cause),
        }
    }

    /// An entry that is as it should be is no news, whoever made it so.
    fn heard_of_entries(&mut self, entries: &[Entry]) {
        if entries.iter().any(|entry| !self.node.wants(*entry)) {
            self.heard_from_kernel(Touched::Network);
        }
    }

    /// How far a pass has to go for the sake of this event.
    fn extent_of(&self, event: &store::Event) -> Extent {
        match event {
            store::Event::Changes(changes) if !changes.iter().any(|change| self.is_own(&change.key())) => {
                Extent::Peers
            }
            _ => Extent::Everything,
        }
    }

    fn is_own(&self, key: &Key) -> bool {
        matches!(key, Key::Node(node) | Key::Lease(node) if **node == *self.node.name())
    }

    /// Whether the store has lost our Node or its lease, and with it what was told of the node.
    fn is_about_our_own(&self, event: &store::Event) -> bool {
        match event {
            store::Event::Lost(keys) => keys.iter().any(|key| self.is_own(key)),
            store::Event::Changes(changes) => {
                changes.iter().any(|change| matches!(change, Change::Removed(key) if self.is_own(key)))
            }
            _ => false,
        }
    }

    fn reconfigure(&mut self, news: Result<Config, String>) {
        match news {
            Ok(config) => {
                self.view.set_grace(config.cluster.deleted_node_grace());
                self.node.reconfigure(config);
            }
            Err(problem) => self.node.refuse_configuration(problem),
        }
        self.due.mark("the configuration changed");
    }

    /// Has a tunnel started anew, with a pause before it, for what ended it may end the next one as well. Where its device
    /// was deleted, the kernel's own event is there first. One that is not wanted any more may have noticed that its device is gone
    /// before it was told to end.
    fn lost_a_tunnel(&mut self, tunnel: &str, reason: &str) {
        if !self.node.has_tunnel(tunnel) {
            return;
        }
        tracing::warn!(tunnel, reason, "the tunnel has ended by itself");
        self.due.failed(Instant::now());
    }

    /// Has the node be as it should be.
    fn pass(&mut self, cause: &'static str, extent: Extent) {
        if !self.view.in_sync {
            // All that can fail so far is a tunnel of the agent before that was gone on with. It needs no store.
            if self.due.retry.take().is_some() {
                self.node.resume_tunnels();
            }
            return;
        }
        let began = Instant::now();
        let Outcome { changed, healed, contested, failed } = self.node.pass(&mut self.view, cause, extent);
        let now = Instant::now();
        match extent {
            Extent::Everything => self.look = now.duration_since(began),
            Extent::Peers => self.due.mark_later("a while after the cluster changed", now + EVENTUALLY),
        }
        if !failed {
            self.keep_leases(extent);
        }
        if extent == Extent::Everything {
            kernel::memory::give_back();
        }
        // What came due while the pass went on is not in it.
        self.step = self.node.deadline(began);
        self.silent = self.node.has_silent_parts().then(|| self.silent.unwrap_or(now + SILENCE));
        if failed {
            self.due.failed(now)
        } else {
            self.due.succeeded()
        }
        if contested {
            self.due.pause(now);
        }
        // Any number of nodes may come at once; only who changes the kernel may be a program to quarrel with.
        if healed {
            self.node.tell_healed();
        }
        if changed && KERNEL_CAUSES.contains(&cause) {
            self.due.changed(now);
        }
    }

    /// What is known of peers is kept for the next agent while the kernel carries it.
    fn keep_leases(&mut self, extent: Extent) {
        match self.node.standing(&self.view) {
            Standing::Member(_) => {
                if let Some(at) = self.view.keep_leases(extent == Extent::Everything) {
                    self.due.mark_later("others are kept for a while", at);
                }
            }
            Standing::Absent => self.view.forget_leases(),
            Standing::Deleted | Standing::Doubtful => {}
        }
    }

    fn answer(&mut self, request: Request, to: &Sender<Answer>) {
        let answer = match request {
            Request::Readiness => self.readiness(),
            Request::Status => Answer::Status(Box::new(self.status())),
            Request::Plan => match self.node.plan(&self.view) {
                Ok(plan) => Answer::Plan(plan),
                Err(reason) => Answer::Error(reason),
            },
        };
        // The client may have gone; nobody else waits for the answer.
        let _ = to.send(answer);
    }

    fn readiness(&mut self) -> Answer {
        self.asked = self.asked.wrapping_add(1);
        self.node.readiness(&self.view, self.asked)
    }

    fn status(&mut self) -> Status {
        let mut status = self.node.status(&self.view);
        if !self.view.in_sync {
            status.ready = false;
            let why = self.view.away.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
            status.reasons.insert(0, format!("the store has not been read yet{why}"));
        }
        status
    }
}

/// Causes that a program next to the agent can bring about.
const KERNEL_CAUSES: [&str; 5] = [
    "the kernel's network changed",
    "the nf_tables ruleset changed",
    "changes of the kernel were missed",
    "other routes of the host changed",
    SILENTLY,
];

/// The cause that the kernel does not tell of.
const SILENTLY: &str = "what the kernel does not tell of changed";

fn cause_of(touched: Touched) -> &'static str {
    let [network, ruleset, everything, beside, _] = KERNEL_CAUSES;
    match touched {
        Touched::Beside => beside,
        Touched::Network => network,
        Touched::Ruleset => ruleset,
        Touched::Everything => everything,
    }
}

impl Due {
    fn mark(&mut self, cause: &'static str) {
        self.mark_for(cause, Extent::Everything);
    }

    fn mark_for(&mut self, cause: &'static str, extent: Extent) {
        let (_, of_all) = self.cause.get_or_insert((cause, extent));
        *of_all = extent.max(*of_all);
    }

    /// Has everything be looked at by then, whatever happens.
    fn mark_later(&mut self, cause: &'static str, at: Instant) {
        if self.later.is_none_or(|(before, _)| at < before) {
            self.later = Some((at, cause));
        }
    }

    /// Marks what has waited until now.
    fn come(&mut self, now: Instant) {
        if self.retry.is_some_and(|at| at <= now) {
            self.mark("another try");
        }
        if let Some((_, cause)) = self.later.filter(|(at, _)| *at <= now) {
            self.mark(cause);
        }
    }

    /// The cause of the pass that is to be made now.
    fn take(&mut self, now: Instant) -> Option<(&'static str, Extent)> {
        if self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        self.not_before = None;
        let (cause, extent) = self.cause.take()?;
        if extent == Extent::Everything {
            self.later = None;
        }
        Some((cause, extent))
    }

    /// When the loop has to go on without an event.
    fn deadline(&self) -> Option<Instant> {
        let held_back = self.cause.and(self.not_before);
        let later = self.later.map(|(at, _)| at);
        held_back.or_else(|| self.retry.into_iter().chain(later).min())
    }

    fn succeeded(&mut self) {
        self.failures = 0;
        self.retry = None;
    }

    fn failed(&mut self, now: Instant) {
        let pause = pause::after(self.failures);
        self.failures = self.failures.saturating_add(1);
        self.retry = Some(now + pause);
    }

    /// Counts a pass that changed something, and holds back the next one if there were too many.
    fn changed(&mut self, now: Instant) {
        self.recent.push_back(now);
        while self.recent.front().is_some_and(|then| now.duration_since(*then) > PACE) {
            self.recent.pop_front();
        }
        if self.recent.len() >= MOST_PASSES {
            tracing::warn!(
                "changed the kernel {MOST_PASSES} times within {PACE:?}; hint: another program undoes the agent's \
                 work, `fairlead plan` shows what"
            );
            self.pause(now);
        }
    }

    /// No further pass for a while.
    fn pause(&mut self, now: Instant) {
        self.not_before = Some(now + PACE);
    }
}

#[cfg(test)]
mod tests {
    use super::{Due, Extent, Instant, MOST_PASSES, PACE, pause};

    #[test]
    fn failures_are_tried_again_with_growing_pauses_until_one_succeeds() {
        let mut due = Due::default();
        let now = Instant::now();
        assert_eq!(due.deadline(), None, "an idle agent sleeps");
        due.failed(now);
        assert_eq!(due.deadline(), Some(now + pause::FIRST));
        due.failed(now);
        assert_eq!(due.deadline(), Some(now + pause::FIRST * 2));
        (0..40).for_each(|_| due.failed(now));
        assert_eq!(due.deadline(), Some(now + pause::LONGEST));
        due.succeeded();
        assert_eq!(due.deadline(), None);
    }

    #[test]
    fn a_fight_with_another_program_is_slowed_down_and_no_event_is_lost() {
        let mut due = Due::default();
        let now = Instant::now();
        for _ in 0..MOST_PASSES {
            due.mark("kernel");
            assert_eq!(due.take(now), Some(("kernel", Extent::Everything)));
            due.changed(now);
        }
        assert_eq!(due.deadline(), None, "nothing is waiting");
        due.mark("kernel");
        assert_eq!(due.take(now), None);
        assert_eq!(due.deadline(), Some(now + PACE));
        assert_eq!(due.take(now + PACE), Some(("kernel", Extent::Everything)));
    }

    #[test]
    fn changes_of_peers_do_not_wait_for_a_look_that_has_time_and_any_look_makes_up_for_it() {
        let mut due = Due::default();
        let (now, at) = (Instant::now(), Instant::now() + PACE);
        due.mark_later("beside", at);
        due.mark_later("eventually", at + PACE);
        due.mark_for("peer", Extent::Peers);
        due.come(now);
        assert_eq!(due.take(now), Some(("peer", Extent::Peers)));
        assert_eq!(due.deadline(), Some(at), "the earlier one counts");
        due.mark_for("peer", Extent::Peers);
        due.come(at);
        assert_eq!(due.take(at), Some(("peer", Extent::Everything)), "both in one");
        assert_eq!(due.deadline(), None, "an idle agent sleeps");
    }
}
