//! The keeper of policies: hears what happens, decides, and has the kernel hold it.
//!
//! Read [`Keeper::run`]. What has come together is worked in together and costs one transaction. Then whoever asks is
//! answered: what was asked behind a change is answered with it in force.
//!
//! What stays true: while something failed, or somebody else has changed the table, nothing is built on what the kernel
//! was thought to hold: the table is read, and the difference made.

mod absence;
mod attached;
mod inherited;
mod ipvs;
mod known;
mod order;
mod refused;

use std::net::IpAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cluster::{EnforcedAnswer, NamespacedName};
use kernel::nflog::Logged;
use kernel::nft::Counted;
use kernel::sysctl;
use netstate::nft::Step;
use policy::{Count, Flow};
use store::{Event, Store};

use self::absence::Absence;
use self::inherited::Inherited;
use self::ipvs::Ipvs;
use self::known::Known;
use self::order::Order;
use super::attachments::Attachments;
use super::flow_log::{self, Lines};
use super::gate::Question;
use super::programmed::Programmed;
use super::status::{PolicyChange, PolicyStatus};
use super::sweep::{Tracked, Wanted};
use crate::announce::Voice;
use crate::config::{ExistingConnections, PolicyConfig};
use crate::pause;
use crate::report::{Reason, microseconds, now, told};

/// The table is not put right more often than this, should somebody undo it again and again.
const BETWEEN_HEALS: Duration = Duration::from_millis(200);

/// How much news is worked in before the kernel is programmed and who asks is answered.
const AT_ONCE: usize = 256;

/// What lets a bridge's frames pass the rules for packets.
const BRIDGED: [&str; 2] = ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"];

/// Something that the keeper is told.
#[derive(Debug)]
pub(super) enum News {
    /// The store has news, and since when.
    Store(Instant, Box<Event>),
    /// Somebody else has changed the table, or may have.
    Touched,
    /// The file of an attachment came or went.
    Attachment(String),
    /// Any of them may have.
    Attachments,
    /// Somebody asks whether a pod's policies are in force.
    Asked(Question),
    /// The kernel tells of these packets.
    Logged(Vec<Logged>, Sender<Lines>),
    /// It does not any more, and why.
    LogLost(String),
    /// The kernel's counters say this.
    Counted(Vec<Counted>, Sender<Vec<Count>>),
    /// Whether these flows are allowed, as far as this node has a word in it.
    Judge(Vec<Flow>, Sender<Vec<bool>>),
    /// So many connections were cut.
    Cut(u64),
    /// This was tracked of addresses when the agent started.
    Tracked(Tracked),
    /// Everything tracked of these was forgotten.
    Forgotten(Vec<IpAddr>),
    /// Another configuration is in force.
    Configured(PolicyConfig),
    /// Whether the node is part of the cluster.
    Standing(bool),
}

/// What a keeper starts with.
pub(super) struct Parts {
    pub(super) node: Arc<str>,
    pub(super) bridge: bool,
    pub(super) config: PolicyConfig,
    pub(super) store: Arc<dyn Store>,
    pub(super) voice: Voice,
    pub(super) attachments: Attachments,
    pub(super) programmed: Programmed,
    pub(super) sweeper: Sender<Wanted>,
    /// Why the kernel can tell of no verdicts, if it cannot.
    pub(super) unlogged: Option<String>,
    pub(super) status: Arc<Mutex<PolicyStatus>>,
}

/// The keeper.
pub(super) struct Keeper {
    known: Known,
    config: PolicyConfig,
    bridge: bool,
    /// The node has left the cluster for good.
    left: bool,
    /// Whether the store is away: what is known may be of before.
    away: Absence,
    order: Order,
    voice: Voice,
    attachments: Attachments,
    /// When to look at them again, if they could not be read.
    unread: Option<Instant>,
    programmed: Programmed,
    sweeper: Sender<Wanted>,
    inherited: Inherited,
    ipvs: Ipvs,
    questions: Vec<Question>,
    table: Table,
    status: PolicyStatus,
    published: Arc<Mutex<PolicyStatus>>,
}

/// How the kernel's table stands to the one that is wanted.
#[derive(Debug, Default)]
struct Table {
    /// The steps from the one to the other.
    steps: Vec<Step>,
    /// When the first of what they come from was told.
    since: Option<Instant>,
    /// What the kernel holds is not known.
    doubted: bool,
    /// Somebody else's hand is why.
    touched: bool,
    /// There is none, and none is wanted.
    gone: bool,
    /// Not before this.
    not_before: Option<Instant>,
    failures: u32,
    /// Whether something is taken away from somebody.
    narrows: bool,
    /// It was the wanted one once.
    made: bool,
}

impl Keeper {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { node, bridge, config, store, voice, attachments, programmed, sweeper, unlogged, status } =
            parts;
        Self {
            order: Order::new(store, node.clone()),
            known: Known::new(node, flow_log::logging(&config, unlogged.is_none())),
            config,
            bridge,
            left: false,
            away: Absence::default(),
            voice,
            attachments,
            unread: None,
            programmed,
            inherited: Inherited::new(sweeper.clone()),
            ipvs: Ipvs::default(),
            sweeper,
            questions: Vec::new(),
            table: Table { doubted: true, ..Table::default() },
            status: PolicyStatus { unlogged, ..PolicyStatus::default() },
            published: status,
        }
    }

    /// Runs until nobody can tell it anything any more.
    pub(super) fn run(mut self, news: &Receiver<News>) {
        if self.bridge {
            pass_bridged_frames();
        }
        loop {
            let first = match self.deadline() {
                None => news.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => news.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            match first {
                Ok(first) => {
                    std::iter::once(first)
                        .chain(news.try_iter())
                        .take(AT_ONCE)
                        .for_each(|news| self.hear(news));
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let was_doubted = self.table.doubted;
            let steps = self.known.try_refused_again(Instant::now());
            self.add(steps, Instant::now());
            self.tell_of_absence();
            if self.unread.is_some_and(|at| at <= Instant::now()) {
                self.look_at_all();
            }
            self.look_for_ipvs();
            self.program();
            self.answer();
            if was_doubted && !self.table.doubted {
                // The whole table, what the kernel held, and every message between the two were there for a moment.
                kernel::memory::give_back();
            }
            self.publish();
        }
    }

    /// When something is due without being told.
    fn deadline(&self) -> Option<Instant> {
        let due = self.table.not_before.filter(|_| self.is_due());
        let asked = self.questions.iter().map(|question| question.until);
        asked
            .chain(due)
            .chain(self.known.due())
            .chain(self.ipvs.due())
            .chain(self.unread)
            .chain(self.untold())
            .min()
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Store(at, event) => self.hear_of_store(at, *event),
            News::Touched => {
                self.table.touched |= !self.table.doubted;
                self.doubt();
            }
            News::Attachment(name) => self.look_at(name),
            News::Attachments => self.look_at_all(),
            News::Asked(question) => {
                // It is there before the question is asked, and its notice may be on the way.
                self.hear(News::Attachment(question.attachment.clone()));
                self.questions.push(question);
            }
            News::Judge(flows, answer) => {
                let allowed = flows.iter().map(|flow| self.known.allows(flow)).collect();
                // Who asked may have given up.
                let _ = answer.send(allowed);
            }
            News::Cut(count) => self.status.cut += count,
            News::Tracked(tracked) => self.inherited.begin(tracked),
            News::Forgotten(addresses) => self.inherited.forgotten(&addresses),
            News::Logged(logged, answer) => {
                let lines = self.known.lines(&logged);
                let _ = answer.send(Lines { lines, file: self.config.flow_log.file.clone() });
            }
            News::LogLost(reason) => {
                tracing::warn!(%reason, "the kernel tells of no verdicts any more");
                self.status.unlogged = Some(reason);
                self.tell_as_configured();
            }
            News::Counted(counted, answer) => {
                let _ = answer.send(self.known.tally(&counted));
            }
            News::Configured(config) => {
                self.config = config;
                self.tell_as_configured();
            }
            News::Standing(stands) => self.left = !stands,
        }
    }

    fn hear_of_store(&mut self, at: Instant, event: Event) {
        match event {
            Event::Snapshot(snapshot) => self.known.begin(snapshot),
            Event::InSync => {
                self.known.complete();
                self.look_at_all();
                self.table.since.get_or_insert(at);
                self.doubt();
            }
            Event::Changes(changes) => {
                self.status.generation += 1;
                for change in changes {
                    self.order.hear(&change);
                    let steps = self.known.apply(&change);
                    self.add(steps, at);
                }
            }
            Event::Unavailable { reason } => self.away.begin(reason),
            Event::Available => self.away.end(),
            Event::Confirmed(number) => self.order.confirm(number),
            Event::Problems(_) | Event::Lost(_) => {}
        }
        for text in self.known.take_faults() {
            tracing::warn!("{text}");
            self.voice.notify(Reason::PolicyInvalid, text);
        }
    }

    /// Has the kernel tell of verdicts what the configuration says, if it can.
    fn tell_as_configured(&mut self) {
        let logging = flow_log::logging(&self.config, self.status.unlogged.is_none());
        let steps = self.known.set_logging(logging);
        self.add(steps, Instant::now());
    }

    fn add(&mut self, steps: Vec<Step>, at: Instant) {
        if steps.is_empty() {
            return;
        }
        self.table.since.get_or_insert(at);
        self.table.narrows |= self.known.denies() || steps.iter().any(narrows);
        // What the kernel holds will be read anyway.
        if !self.table.doubted {
            self.table.steps.extend(steps);
        }
    }

    fn doubt(&mut self) {
        self.table.doubted = true;
        self.table.steps.clear();
    }

    /// Pods that are still attached to a node that has left the cluster are held to what policies said last.
    fn enforces(&self) -> bool {
        self.config.enforcement && !(self.left && self.known.has_no_attachments())
    }

    /// Whether the kernel has to be changed, or looked at.
    fn is_due(&self) -> bool {
        match self.enforces() {
            true => self.known.is_complete() && (self.table.doubted || !self.table.steps.is_empty()),
            false => !self.table.gone,
        }
    }

    /// Has the kernel hold what it should.
    fn program(&mut self) {
        let started = Instant::now();
        if self.table.not_before.is_some_and(|at| started < at) || !self.is_due() {
            return self.catch_up();
        }
        self.table.not_before = None;
        let done = if !self.enforces() {
            self.doubt();
            self.programmed.remove().map(|_| 0)
        } else if self.table.doubted {
            self.known.full().map_or(Ok(0), |want| self.programmed.make(want))
        } else {
            self.programmed.take(std::mem::take(&mut self.table.steps))
        };
        match done {
            Ok(steps) => self.succeeded(steps),
            Err(error) => self.failed(&error),
        }
        if self.programmed.has_missed() {
            self.doubt();
        }
    }

    /// What came without anything to change in the kernel is in force already.
    fn catch_up(&mut self) {
        if !self.table.doubted && self.table.steps.is_empty() {
            self.status.programmed = self.status.generation;
            self.table.since = None;
            self.table.narrows = false;
        }
    }

    fn succeeded(&mut self, steps: usize) {
        let was = std::mem::take(&mut self.table);
        if !self.enforces() {
            self.table = Table { gone: true, doubted: true, ..Table::default() };
            return;
        }
        self.table.made = true;
        self.known.taken();
        self.status.programmed = self.status.generation;
        self.status.last_error = None;
        if was.touched {
            self.table.not_before = Some(Instant::now() + BETWEEN_HEALS).filter(|_| steps > 0);
        }
        // An agent that died, or an answer that was lost, may have left the connections of before.
        if was.narrows || was.doubted {
            self.sweep();
        }
        if steps == 0 {
            return;
        }
        let took = was.since.map(|since| since.elapsed()).unwrap_or_default();
        tracing::debug!(steps, ?took, "policies were programmed");
        self.status.changes += 1;
        self.status.spent += microseconds(took);
        if was.made {
            self.status.longest = self.status.longest.max(microseconds(took));
        }
        self.status.last_change = Some(PolicyChange { at: now(), took: microseconds(took), steps });
        if was.touched {
            self.status.heals += 1;
            let text =
                "somebody changed the table of network policies in the node's kernel; it has been put right";
            tracing::warn!("{text}");
            self.voice.notify(Reason::NetworkHealed, text.to_owned());
        }
    }

    fn failed(&mut self, error: &kernel::Error) {
        self.doubt();
        let pause = pause::after(self.table.failures);
        self.table.failures = self.table.failures.saturating_add(1);
        // The first failure may be that somebody changed the table a moment ago: reading it tells.
        let at_once = self.table.failures == 1 && self.table.made;
        if !at_once && self.enforces() && self.close_refused(error) {
            self.table.not_before = Some(Instant::now());
            return;
        }
        self.table.not_before = Some(Instant::now() + if at_once { Duration::ZERO } else { pause });
        self.status.failures += 1;
        let text = format!(
            "program network policies: {}\nhint: what was in force before stays so; it is tried again, and new pods wait",
            told(error)
        );
        tracing::warn!("{text}");
        if !at_once && self.status.last_error.as_ref() != Some(&text) {
            self.voice.notify(Reason::PolicyNotEnforced, text.clone());
        }
        self.status.last_error = Some(text);
    }

    /// Closes the policies whose part of the table the kernel refuses; false if it is not theirs to be refused.
    fn close_refused(&mut self, error: &kernel::Error) -> bool {
        let Some(suspects) = self.known.suspects(error, &mut self.programmed) else { return false };
        let closed = self.known.close(&suspects, &format!("the kernel refuses it: {}", told(error)));
        for key in &closed {
            let text = format!(
                "{key} is closed, for the kernel refuses it: {}\nhint: its pods are isolated, and it allows nothing (one in \
                 audit tells nothing); all other policies are enforced; it is tried again now and then",
                told(error)
            );
            tracing::warn!("{text}");
            self.voice.notify(Reason::PolicyNotEnforced, text);
        }
        !closed.is_empty()
    }

    fn sweep(&self) {
        if self.config.existing_connections == ExistingConnections::Cut {
            // Without that thread connections end by themselves.
            let _ = self.sweeper.send(Wanted::Cut(self.known.isolated_addresses()));
        }
    }

    /// Answers those of whom it is known, and those whose patience is over.
    fn answer(&mut self) {
        let now = Instant::now();
        let mut waiting = Vec::new();
        for question in std::mem::take(&mut self.questions) {
            match self.is_in_force(&question.attachment) {
                Ok(()) => question.answer(&EnforcedAnswer::Enforced),
                Err(Wait::ForNothing(reason)) => question.answer(&EnforcedAnswer::Refused(reason)),
                Err(Wait::Longer(reason)) if question.until <= now => {
                    question.answer(&EnforcedAnswer::Refused(reason));
                }
                Err(Wait::Longer(_)) => waiting.push(question),
            }
        }
        self.questions = waiting;
    }

    /// Whether the policies of this attachment's pod are in force.
    fn is_in_force(&mut self, attachment: &str) -> Result<(), Wait> {
        if !self.config.enforcement {
            return Ok(());
        }
        let Some((pod, uid)) = self.known.pod_of(attachment) else {
            return Err(Wait::ForNothing(format!("there is no word of the attachment {attachment}")));
        };
        if self.left {
            return Err(Wait::Longer("this node is not in the cluster".to_owned()));
        }
        if !self.known.is_complete() {
            return Err(Wait::Longer(self.unread()));
        }
        if self.table.doubted || !self.table.steps.is_empty() {
            let reason =
                self.status.last_error.as_deref().unwrap_or("the kernel has not been programmed yet");
            return Err(Wait::Longer(reason.to_owned()));
        }
        // A store of nodes alone, where nobody has asked for any isolation, is enough.
        if self.known.keeps_none() {
            return Ok(());
        }
        if let Some(reason) = self.away.reason() {
            return Err(Wait::Longer(format!("the store is away: {reason}")));
        }
        if !self.known.is_there(&pod, uid) {
            let uid = uid.map(|uid| format!(" with UID {uid}")).unwrap_or_default();
            return Err(Wait::Longer(format!("the store has no pod {pod}{uid} yet")));
        }
        if !self.order.knows_what_came_before(&pod, uid) {
            return Err(Wait::Longer(format!(
                "the store has not said yet that these are all policies for {pod}"
            )));
        }
        let addresses = self.known.addresses_of(attachment);
        if !self.inherited.is_clean(attachment, addresses) {
            return Err(Wait::Longer(format!(
                "connections of who had the addresses of {pod} before are still tracked"
            )));
        }
        self.can_be_isolated(&pod)
    }

    /// Between pods of one bridge packets pass no rules, unless the kernel is told to let them.
    fn can_be_isolated(&self, pod: &NamespacedName) -> Result<(), Wait> {
        if self.bridge && self.known.is_policed(pod) && !bridged_frames_pass() {
            return Err(Wait::ForNothing(format!(
                "network policies are about {pod}, and cannot be enforced between pods on one bridge: this kernel has no \
                 br_netfilter, or net.bridge.bridge-nf-call-iptables is off; load it, or use the routed mode"
            )));
        }
        Ok(())
    }

    /// That the store has not been read whole yet, and why not if that is known.
    fn unread(&self) -> String {
        let why = self.away.reason().map(|reason| format!(": {reason}")).unwrap_or_default();
        format!("the store has not been read yet{why}")
    }

    /// Lets others see how it stands.
    fn publish(&mut self) {
        let reason = match () {
            () if !self.config.enforcement => Some("policy.enforcement is off".to_owned()),
            () if self.left => Some("this node is not in the cluster".to_owned()),
            () if !self.known.is_complete() => {
                Some(format!("{}; the rules of before stay in force", self.unread()))
            }
            () if self.bridge && self.known.police_anybody() && !bridged_frames_pass() => Some(
                "pods on one bridge reach each other past all rules\nhint: load br_netfilter, and see that \
                 net.bridge.bridge-nf-call-iptables is 1; or use the routed mode"
                    .to_owned(),
            ),
            () if self.table.doubted || !self.table.steps.is_empty() => Some(
                self.status
                    .last_error
                    .clone()
                    .unwrap_or_else(|| "the kernel is about to be programmed".to_owned()),
            ),
            () => self
                .known
                .refused()
                .next()
                .map(|text| format!("{text}\nhint: all other policies are enforced")),
        };
        self.status.enforced = reason.is_none();
        self.status.reason = reason;
        self.status.waiting = self.questions.len();
        self.known.count(&mut self.status);
        self.published.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&self.status);
    }
}

/// Why an answer has to wait.
enum Wait {
    /// What is missing may come.
    Longer(String),
    /// It will not come by waiting.
    ForNothing(String),
}

/// Whether a step can take something away from somebody. A new element can where it leads a pod's packets to a chain, by its class.
fn narrows(step: &Step) -> bool {
    match step {
        Step::DeleteElements(..) | Step::FlushChain(..) => true,
        Step::AddElements(_, _, elements) => elements.values().any(|element| !element.data.is_empty()),
        _ => false,
    }
}

/// Whether what a bridge carries passes the rules for packets.
fn bridged_frames_pass() -> bool {
    BRIDGED.iter().all(|path| sysctl::read(path).is_ok_and(|value| value == "1"))
}

/// Has what a bridge carries pass the rules for packets, where this kernel can.
fn pass_bridged_frames() {
    for path in BRIDGED {
        if let Err(error) = sysctl::set(path, "1") {
            tracing::warn!(
                error = %told(&error),
                "policies between pods on one bridge cannot be enforced; hint: load br_netfilter"
            );
        }
    }
}
