//! The daemon: one loop that keeps the leases of all pods.
//!
//! Read [`run`], then [`Daemon::turn`]: it waits for the socket, the plugins that have called, the packets of
//! the clients that expect some, the next timer and a signal, and hands what has come to whom it concerns. A
//! lease that is held and not yet due costs a few hundred bytes and no descriptor.
//!
//! What stays true: an address is on the disk before a plugin gets it, so a daemon that is killed finds every
//! lease again; a plugin that went away while its lease was being asked for leaves none behind; a signal ends
//! the daemon without giving anything back, for the pods go on.

mod agenda;
mod callers;
mod flags;
mod socket;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use cni::{AddResult, Error, Json};
use kernel::signals::Termination;
use kernel::sysctl;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::agenda::Agenda;
use self::callers::{CallerId, Callers};
use self::flags::{Flags, USAGE};
use self::socket::Listener;
use super::lease::{Lease, Outcome, Terms, now};
use super::machine::{Moment, Timing};
use super::place::behind;
use super::protocol::{Answer, Call, Verb, name_of};
use super::store::Store;
use crate::fault::{Failures, fault};

/// How often it is looked whether the pods' namespaces are still there.
const PATROL: Duration = Duration::from_secs(30);
/// How long another process may have the leases before the daemon gives up on them: a DEL has them for a moment.
const LOCK: Duration = Duration::from_secs(3);

/// Runs the daemon with the arguments after `daemon` until a signal ends it; gives the exit code.
pub(crate) fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let flags = match Flags::parse(arguments) {
        Ok(Some(flags)) => flags,
        Ok(None) => {
            USAGE.lines().for_each(say);
            return 0;
        }
        Err(wrong) => {
            std::iter::once(&*wrong).chain(USAGE.lines()).for_each(say);
            return 2;
        }
    };
    match Daemon::start(&flags).and_then(Daemon::serve) {
        Ok(()) => 0,
        Err(error) => {
            say(&error.to_string());
            1
        }
    }
}

/// Who has asked for a lease and waits for it.
#[derive(Debug)]
struct Waiting {
    caller: CallerId,
    /// A CHECK: the addresses that it must be.
    expected: Option<AddResult>,
}

/// A lease, and who waits for it.
#[derive(Debug)]
struct Kept {
    lease: Lease,
    waiting: Vec<Waiting>,
    /// When those who wait are told that it took too long.
    deadline: Moment,
}

/// All leases, all callers.
#[derive(Debug)]
struct Daemon {
    terms: Terms,
    resend_timeout: Duration,
    pid_file: String,
    boot: String,
    signals: Termination,
    listener: Listener,
    callers: Callers,
    store: Store,
    kept: BTreeMap<String, Kept>,
    agenda: Agenda,
    patrol: Moment,
}

impl Daemon {
    /// Opens everything and takes up the leases of the daemon before.
    fn start(flags: &Flags) -> Result<Self, Error> {
        let listener = Listener::inherited()?;
        raise_descriptor_limit();
        let signals = Termination::take_over().map_err(fault)?;
        let store = open_store(&behind(&flags.host_prefix, flags.state.as_ref()))?;
        // After the store: whoever has that is the daemon, and a socket that is still there nobody's.
        let listener = match listener {
            Some(listener) => listener,
            None => Listener::bind(&behind(&flags.host_prefix, flags.socket.as_ref()))?,
        };
        if !flags.pid_file.is_empty() {
            let written = fs::write(&flags.pid_file, std::process::id().to_string());
            written
                .map_err(|cause| Error::io(format!("write the process id to {}: {cause}", flags.pid_file)))?;
        }
        let mut daemon = Self {
            terms: terms(flags),
            resend_timeout: flags.resend_timeout,
            pid_file: flags.pid_file.clone(),
            boot: boot_id()?,
            signals,
            listener,
            callers: Callers::new(flags.timeout),
            store,
            kept: BTreeMap::new(),
            agenda: Agenda::default(),
            patrol: now() + PATROL,
        };
        daemon.take_up()?;
        say("ready");
        Ok(daemon)
    }

    /// Takes up what the files say.
    fn take_up(&mut self) -> Result<(), Error> {
        let (documents, failures) = self.store.load()?;
        failures.iter().for_each(|failure| say(&failure.to_string()));
        for document in documents {
            match Lease::restore(&document, &self.boot, &self.terms) {
                Ok(lease) if lease.is_there() => {
                    let name = lease.name.clone();
                    let kept = Kept { lease, waiting: Vec::new(), deadline: Moment::MAX };
                    self.kept.insert(name.clone(), kept);
                    say(&format!("{name}: taken up again"));
                    self.plan(&name);
                }
                Ok(lease) => {
                    say(&format!("{}: forgotten, its namespace or link is gone", lease.name));
                    self.store.remove(&lease.name)?;
                }
                Err(error) => {
                    say(&format!("a lease is forgotten: {error}"));
                    if let Some((_, name)) = name_in(&document) {
                        self.store.remove(&name)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn serve(mut self) -> Result<(), Error> {
        while self.turn()? {}
        self.listener.close();
        if !self.pid_file.is_empty() {
            let _ = fs::remove_file(&self.pid_file);
        }
        Ok(())
    }

    /// Waits for the next thing to happen and sees to it; false when it was a signal to end.
    fn turn(&mut self) -> Result<bool, Error> {
        let ready = self.wait()?;
        if ready.ended {
            return Ok(false);
        }
        if ready.listener {
            self.listener.accept_into(&mut self.callers, now());
        }
        for caller in ready.callers {
            match self.callers.read(caller) {
                callers::Read::More => {}
                callers::Read::Call(call) => self.answer(caller, *call),
                callers::Read::Wrong(error) => self.callers.answer(caller, &Err(error)),
                callers::Read::Gone => self.hung_up(caller),
            }
        }
        for name in ready.leases {
            let outcomes = self.kept.get_mut(&name).map(|kept| kept.lease.ready());
            self.follow(&name, outcomes.unwrap_or_default());
        }
        self.tick();
        Ok(true)
    }

    /// Waits until something is readable or due.
    fn wait(&self) -> Result<Ready, Error> {
        let descriptors: Vec<(Source<'_>, BorrowedFd<'_>)> =
            [(Source::Signals, self.signals.as_fd()), (Source::Listener, self.listener.as_fd())]
                .into_iter()
                .chain(
                    self.callers
                        .descriptors()
                        .map(|(caller, descriptor)| (Source::Caller(caller), descriptor)),
                )
                .chain(self.kept.iter().flat_map(|(name, kept)| {
                    let descriptors = kept.lease.descriptors().into_iter();
                    descriptors.map(move |descriptor| (Source::Lease(name), descriptor))
                }))
                .collect();
        let mut polled: Vec<PollFd<'_>> = descriptors
            .iter()
            .map(|(_, descriptor)| PollFd::from_borrowed_fd(*descriptor, PollFlags::IN))
            .collect();
        match poll(&mut polled, Some(&timeout(self.next()))) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::io(format!("wait for plugins and packets: {errno}"))),
        }
        let mut ready = Ready::default();
        for ((source, _), _) in
            descriptors.iter().zip(&polled).filter(|(_, polled)| !polled.revents().is_empty())
        {
            match source {
                Source::Signals => ready.ended = true,
                Source::Listener => ready.listener = true,
                Source::Caller(caller) => ready.callers.push(*caller),
                Source::Lease(name) => ready.leases.push((*name).to_owned()),
            }
        }
        ready.leases.dedup();
        Ok(ready)
    }

    /// The next moment at which something is due.
    fn next(&self) -> Moment {
        [self.agenda.next(), self.callers.deadline()].into_iter().flatten().fold(self.patrol, Moment::min)
    }

    /// Sees to what is due.
    fn tick(&mut self) {
        let now = now();
        while let Some(name) = self.agenda.take_due(now) {
            let Some(kept) = self.kept.get_mut(&name) else { continue };
            if !kept.waiting.is_empty() && kept.deadline <= now {
                let patience = self.resend_timeout;
                let kind = kept.lease.lacks();
                let error = format!("no {kind} server gave an address within {patience:?}");
                let hint = "hint: is there a server on this network, and does it know this client?";
                self.give_up(&name, Error::try_again(error).with_details(hint));
            } else if kept.lease.wake().is_some_and(|wake| wake <= now) {
                let outcomes = kept.lease.due();
                self.follow(&name, outcomes);
            }
            self.plan(&name);
        }
        for caller in self.callers.expire(now) {
            self.hung_up(caller);
        }
        if self.patrol <= now {
            self.patrol = now + PATROL;
            let gone = self
                .kept
                .iter()
                .filter(|(_, kept)| !kept.lease.has_namespace())
                .map(|(name, _)| name.clone());
            for name in gone.collect::<Vec<_>>() {
                self.follow(&name, vec![Outcome::Gone]);
            }
        }
    }

    /// Puts a lease on the agenda.
    fn plan(&mut self, name: &str) {
        let moment = self.kept.get(name).and_then(|kept| {
            let deadline = Some(kept.deadline).filter(|_| !kept.waiting.is_empty());
            kept.lease.wake().into_iter().chain(deadline).min()
        });
        self.agenda.plan(name, moment);
    }

    /// Does what a call asks for.
    fn answer(&mut self, caller: CallerId, call: Call) {
        let done = match call.verb {
            Verb::Status => Ok(Some(AddResult::default())),
            Verb::Allocate => self.allocate(caller, &call),
            Verb::Check => self.check(caller, &call),
            Verb::Release => self.release(&call.name()).map(|()| Some(AddResult::default())),
            Verb::Collect => self.collect(&call).map(|()| Some(AddResult::default())),
        };
        if let Some(answer) = done.transpose() {
            self.callers.answer(caller, &answer);
        }
    }

    /// What is leased already, or else nothing yet.
    fn allocate(&mut self, caller: CallerId, call: &Call) -> Result<Option<AddResult>, Error> {
        let name = call.name();
        if let Some(kept) = self.kept.get_mut(&name) {
            if kept.lease.is_there() {
                if let Some(result) = kept.lease.result() {
                    return Ok(Some(result));
                }
                if kept.waiting.is_empty() {
                    kept.deadline = now() + self.resend_timeout;
                }
                kept.waiting.push(Waiting { caller, expected: None });
                self.plan(&name);
                return Ok(None);
            }
            self.forget(&name, "its namespace or link is gone");
        }
        self.begin(call, Waiting { caller, expected: None }, None)?;
        Ok(None)
    }

    /// Compares what is leased with what the runtime remembers. A lease that nobody knows here (of the reference's
    /// daemon, or of one whose files were lost) is looked for at the server.
    fn check(&mut self, caller: CallerId, call: &Call) -> Result<Option<AddResult>, Error> {
        let name = call.name();
        let expected = call.config.prev_result()?;
        if let Some(kept) = self.kept.get_mut(&name) {
            if !kept.lease.is_there() {
                return Err(Error::kernel(format!("{name}: the namespace or the link of the lease is gone")));
            }
            let result = kept.lease.result();
            let result =
                result.ok_or_else(|| Error::try_again(format!("{name}: the lease is being renewed")))?;
            compare(&name, expected.as_ref(), &result)?;
            return Ok(Some(result));
        }
        let remembered = expected.as_ref().and_then(|result| remembered_on(result, &call.attachment.ifname));
        let Some(address) = remembered else {
            return Err(Error::new(cni::Code::UNKNOWN_CONTAINER, format!("{name}: nothing is leased")));
        };
        self.begin(call, Waiting { caller, expected }, Some(address))?;
        Ok(None)
    }

    fn begin(&mut self, call: &Call, waiting: Waiting, adopt: Option<IpAddr>) -> Result<(), Error> {
        let (lease, outcomes) = Lease::begin(call, &self.terms, adopt)?;
        let name = lease.name.clone();
        let kept = Kept { lease, waiting: vec![waiting], deadline: now() + self.resend_timeout };
        self.kept.insert(name.clone(), kept);
        self.follow(&name, outcomes);
        Ok(())
    }

    /// Gives a lease back. One that nobody has is given back already.
    fn release(&mut self, name: &str) -> Result<(), Error> {
        if let Some(mut kept) = self.kept.remove(name) {
            let waiting = std::mem::take(&mut kept.waiting);
            self.answer_all(
                &waiting,
                &Err(Error::try_again(format!("{name}: deleted while it was asked for"))),
            );
            for outcome in kept.lease.release() {
                say(&format!("{name}: giving the lease back: {outcome:?}"));
            }
            say(&format!("{name}: given back"));
            self.plan(name);
        }
        self.store.remove(name)
    }

    /// Gives back every lease of a network that belongs to none of its attachments.
    fn collect(&mut self, call: &Call) -> Result<(), Error> {
        let Some(valid) = &call.config.valid_attachments else {
            return Err(Error::invalid_config("cni.dev/valid-attachments: missing, so nothing is removed"));
        };
        let network = &call.config.name;
        let valid: Vec<String> = valid.iter().map(|attachment| name_of(network, attachment)).collect();
        let of_network = self.kept.values().filter(|kept| kept.lease.network == *network);
        let stale = of_network.map(|kept| kept.lease.name.clone()).filter(|name| !valid.contains(name));
        let mut failures = Failures::default();
        for name in stale.collect::<Vec<_>>() {
            failures.note(self.release(&name));
        }
        failures.into_result()
    }

    /// Sees to what came of something that happened to a lease.
    fn follow(&mut self, name: &str, outcomes: Vec<Outcome>) {
        for outcome in outcomes {
            match outcome {
                Outcome::Bound => self.bound(name),
                Outcome::Lost(reason) => {
                    say(&format!("{name}: lost: {reason}"));
                    self.keep(name).unwrap_or_else(|error| say(&error.to_string()));
                }
                Outcome::Unusable(reason) => {
                    say(&format!("{name}: {reason}"));
                    self.give_up(name, Error::new(cni::Code::INTERNAL, reason));
                }
                Outcome::Gone => self.forget(name, "its namespace or link is gone"),
                Outcome::Failed(error) => say(&format!("{name}: {error}")),
            }
        }
        self.plan(name);
    }

    /// A client holds something: onto the disk with it, then to those who wait.
    fn bound(&mut self, name: &str) {
        let Some(kept) = self.kept.get(name) else { return };
        let Some(result) = kept.lease.result() else { return };
        let addresses: Vec<String> = result.ips.iter().map(|ip| ip.address.to_string()).collect();
        say(&format!("{name}: holds {}", addresses.join(" ")));
        if let Err(error) = self.keep(name) {
            say(&format!("{name}: {error}"));
            return self.give_up(name, error);
        }
        let Some(kept) = self.kept.get_mut(name) else { return };
        for waiting in std::mem::take(&mut kept.waiting) {
            let compared = compare(name, waiting.expected.as_ref(), &result).map(|()| result.clone());
            let wrong = compared.is_err();
            if !self.callers.answer_heard(waiting.caller, &compared) || wrong {
                continue;
            }
            if let Some(kept) = self.kept.get_mut(name) {
                kept.lease.delivered();
            }
        }
        self.drop_if_unwanted(name);
    }

    /// Writes a lease's file.
    fn keep(&self, name: &str) -> Result<(), Error> {
        let Some(kept) = self.kept.get(name) else { return Ok(()) };
        self.store.save(name, &kept.lease.save(&self.boot))
    }

    /// Tells those who wait that it did not work; a lease that nobody has ever got ends with that.
    fn give_up(&mut self, name: &str, error: Error) {
        let Some(kept) = self.kept.get_mut(name) else { return };
        let waiting = std::mem::take(&mut kept.waiting);
        self.answer_all(&waiting, &Err(error));
        self.drop_if_unwanted(name);
    }

    /// Gives back a lease that no pod has and nobody waits for.
    fn drop_if_unwanted(&mut self, name: &str) {
        let unwanted = |kept: &Kept| kept.waiting.is_empty() && !kept.lease.is_delivered();
        if self.kept.get(name).is_some_and(unwanted) {
            self.release(name).unwrap_or_else(|error| say(&error.to_string()));
        }
    }

    /// Drops a lease that cannot be given back.
    fn forget(&mut self, name: &str, reason: &str) {
        let Some(kept) = self.kept.remove(name) else { return };
        say(&format!("{name}: forgotten, {reason}"));
        self.answer_all(&kept.waiting, &Err(Error::kernel(format!("{name}: {reason}"))));
        self.plan(name);
        self.store.remove(name).unwrap_or_else(|error| say(&error.to_string()));
    }

    fn answer_all(&mut self, waiting: &[Waiting], answer: &Answer) {
        waiting.iter().for_each(|waiting| self.callers.answer(waiting.caller, answer));
    }

    /// A plugin does not wait any more.
    fn hung_up(&mut self, caller: CallerId) {
        self.callers.drop(caller);
        let waits = |kept: &Kept| kept.waiting.iter().any(|waiting| waiting.caller == caller);
        let names: Vec<String> =
            self.kept.iter().filter(|(_, kept)| waits(kept)).map(|(name, _)| name.clone()).collect();
        for name in names {
            if let Some(kept) = self.kept.get_mut(&name) {
                kept.waiting.retain(|waiting| waiting.caller != caller);
            }
            self.drop_if_unwanted(&name);
        }
    }
}

/// What is readable.
#[derive(Debug, Default)]
struct Ready {
    ended: bool,
    listener: bool,
    callers: Vec<CallerId>,
    leases: Vec<String>,
}

/// What a descriptor belongs to.
enum Source<'a> {
    Signals,
    Listener,
    Caller(CallerId),
    Lease(&'a str),
}

/// The terms of all leases, as the command line has them.
fn terms(flags: &Flags) -> Terms {
    Terms {
        host_prefix: flags.host_prefix.clone(),
        broadcast: flags.broadcast,
        timing: Timing { exchange: flags.timeout, longest_pause: flags.resend_max },
    }
}

fn open_store(path: &Path) -> Result<Store, Error> {
    let until = now() + LOCK;
    loop {
        if let Some(store) = Store::open(path)? {
            return Ok(store);
        }
        if now() >= until {
            let path = path.display();
            return Err(Error::io(format!(
                "another process keeps the leases in {path}: is a daemon running?"
            )));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// As many open files as we may have: a node full of pods that all ask at once, as after a restart, needs several
/// for each. Where it is refused, what was allowed before has to do.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Which boot of the machine this is.
pub(super) fn boot_id() -> Result<String, Error> {
    sysctl::read("kernel/random/boot_id").map(|text| text.trim().to_owned()).map_err(fault)
}

/// The network and the name of the lease that a file is about, if that much of it can be read.
pub(super) fn name_in(document: &Json) -> Option<(String, String)> {
    let fields = cni::Fields::of(document).ok()?;
    let attachment = super::protocol::attachment(&fields).ok()?;
    let network = fields.object("config").ok()?.string("name").ok()?.to_owned();
    Some((network.clone(), name_of(&network, &attachment)))
}

/// Whether everything that is leased is what the runtime remembers.
fn compare(name: &str, expected: Option<&AddResult>, leased: &AddResult) -> Result<(), Error> {
    let Some(expected) = expected else { return Ok(()) };
    let known = |ip: &cni::IpConfig| expected.ips.iter().any(|known| known.address == ip.address);
    match leased.ips.iter().find(|ip| !known(ip)) {
        None => Ok(()),
        Some(ip) => Err(Error::kernel(format!(
            "{name}: the lease is {} now, prevResult has another address",
            ip.address
        ))),
    }
}

/// The IPv4 address that a result has on the pod's interface.
fn remembered_on(result: &AddResult, ifname: &str) -> Option<IpAddr> {
    let on_interface = |ip: &&cni::IpConfig| result.interface_of(ip).is_none_or(|found| found.name == ifname);
    result.ips.iter().filter(on_interface).map(|ip| ip.address.addr()).find(IpAddr::is_ipv4)
}

fn timeout(next: Moment) -> Timespec {
    let left = next.saturating_sub(now());
    Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(left.subsec_nanos()),
    }
}

/// A line for the log: one, whatever a server has put into its words.
fn say(text: &str) {
    let line: String = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    let _ = writeln!(io::stderr(), "dhcp: {line}");
}
