//! The agent's door to the kernel: look at the host, plan, apply, and be told of changes.
//!
//! Read [`Door`]. It belongs to the loop. [`Watcher`] belongs to a thread of its own that blocks on the kernel's
//! notifications and passes on those that could concern the node's network: a pod that comes or goes next door, or
//! a neighbour the kernel has just resolved, wakes nobody.

use std::collections::BTreeSet;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kernel::link;
use kernel::monitor::{self, Monitor, Notification, Topic};
use kernel::netlink::{Protocol, Socket};
use netstate::{MAIN_TABLE, POD_ROUTE_PROTOCOL, Plan, RULE_PRIORITIES, State, Step, owns_table};
use route::Host;
use route::vxlan::{DEVICE, DEVICE_V6};
use rustix::event::{PollFd, PollFlags, poll};

use crate::event::{Event, Touched};
use crate::host::{is_pod_alias, read_host};

/// The kernel could not be read or changed. Looked at again soon.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The kernel refused something as a whole.
    #[error(transparent)]
    Kernel(Box<kernel::Error>),
    /// Some steps failed; the others were taken.
    #[error("{step}{}", more(*.others))]
    Steps {
        /// The first that failed, as text.
        step: String,
        /// How many others failed or were not tried because of it.
        others: usize,
        /// Why the first failed.
        #[source]
        source: Box<kernel::Error>,
    },
}

impl From<kernel::Error> for DoorError {
    fn from(error: kernel::Error) -> Self {
        Self::Kernel(Box::new(error))
    }
}

fn more(others: usize) -> String {
    if others == 0 { String::new() } else { format!(" (and {others} more)") }
}

/// The kernel of the namespace that the agent was started in.
#[derive(Debug)]
pub(crate) struct Door {
    host: kernel::Host,
    facts: Socket,
    interest: Interest,
}

/// What matters although it looks like a pod's.
#[derive(Debug, Clone, Default)]
struct Interest(Arc<Mutex<Exceptions>>);

#[derive(Debug, Default)]
struct Exceptions {
    /// The underlay of a node that is itself a namespace is a veth.
    links: BTreeSet<String>,
    /// Pod CIDRs are carried that will be given up when the last pod in them goes.
    retains: bool,
}

impl Interest {
    fn exceptions(&self) -> MutexGuard<'_, Exceptions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the link matters; before anything is known, every link does.
    fn includes(&self, link: &str) -> bool {
        let links = &self.exceptions().links;
        links.is_empty() || links.contains(link)
    }

    /// Whether a pod that goes may be the last that something is kept for.
    fn awaits_pods(&self) -> bool {
        self.exceptions().retains
    }
}

impl Door {
    /// Opens the door, and begins to listen before anything is looked at.
    pub(crate) fn open() -> Result<(Self, Watcher), DoorError> {
        let interest = Interest::default();
        let network = Monitor::open(&Topic::ALL)?;
        let ruleset = Monitor::open_nft()?;
        let host = kernel::Host::open()?;
        let mut facts = Socket::open(Protocol::Route)?;
        let mut devices = BTreeSet::new();
        for name in [DEVICE, DEVICE_V6] {
            devices.extend(link::find(&mut facts, name)?.map(|link| link.index));
        }
        let watcher = Watcher { network, ruleset, interest: interest.clone(), devices };
        Ok((Self { host, facts, interest }, watcher))
    }

    /// The host's links, addresses and routes.
    pub(crate) fn host(&mut self) -> Result<Host, DoorError> {
        Ok(read_host(&mut self.facts)?)
    }

    /// The steps to the wanted state, and what stands in the way.
    pub(crate) fn plan(&mut self, want: &State) -> Result<Plan, DoorError> {
        let observed = self.host.observe(want)?;
        Ok(netstate::plan(&observed, want))
    }

    /// Carries out the steps.
    pub(crate) fn apply(&mut self, steps: &[Step]) -> Result<(), DoorError> {
        let report = self.host.apply(steps)?;
        let others = (report.failed.len() + report.skipped).saturating_sub(1);
        match report.failed.into_iter().next() {
            None => Ok(()),
            Some(failed) => Err(DoorError::Steps {
                step: failed.step.to_string(),
                others,
                source: Box::new(failed.error),
            }),
        }
    }

    /// The links that carry the tunnels: from now on, of all that look like pods' only their changes are told.
    pub(crate) fn interest(&self, links: impl Iterator<Item = String>) {
        self.interest.exceptions().links = links.collect();
    }

    /// Whether it is told of pods that go.
    pub(crate) fn await_pods(&self, retains: bool) {
        self.interest.exceptions().retains = retains;
    }
}

/// The kernel's notifications, for a thread of their own.
#[derive(Debug)]
pub(crate) struct Watcher {
    network: Monitor,
    ruleset: Monitor,
    interest: Interest,
    /// The indices of the tunnels' devices, once there are any.
    devices: BTreeSet<u32>,
}

impl Watcher {
    /// Passes on what matters until the loop is gone or the kernel's answers make no sense; says what happened.
    pub(crate) fn run(mut self, events: &Sender<Event>) -> String {
        loop {
            match self.wait() {
                Ok(None) => {}
                Ok(Some(touched)) => {
                    if events.send(Event::Kernel(touched)).is_err() {
                        return "the loop is gone".to_owned();
                    }
                }
                Err(error) => return format!("the kernel can no longer be listened to: {error}"),
            }
        }
    }

    /// Waits for notifications and says what the batch of them comes to.
    fn wait(&mut self) -> Result<Option<Touched>, kernel::Error> {
        let mut ready =
            [PollFd::new(&self.network, PollFlags::IN), PollFd::new(&self.ruleset, PollFlags::IN)];
        if let Err(errno) = poll(&mut ready, None) {
            // Interrupted: wait again.
            tracing::debug!(%errno, "waiting for the kernel was interrupted");
            return Ok(None);
        }
        let [network, ruleset] = ready.map(|one| !one.revents().is_empty());
        let mut touched = None;
        if ruleset {
            let news = self.ruleset.receive()?;
            touched = news.iter().filter_map(|notification| self.judge(notification)).next_back();
        }
        if network {
            for notification in self.network.receive()? {
                self.learn_device(&notification.event);
                touched = match (touched, self.judge(&notification)) {
                    (Some(Touched::Everything), _) => Some(Touched::Everything),
                    (before, after) => after.or(before),
                };
            }
        }
        Ok(touched)
    }

    fn learn_device(&mut self, event: &monitor::Event) {
        match event {
            monitor::Event::Link(link) if [DEVICE, DEVICE_V6].contains(&&*link.name) => {
                self.devices.insert(link.index);
            }
            monitor::Event::LinkGone(link) => drop(self.devices.remove(&link.index)),
            _ => {}
        }
    }

    /// Whether a notification could concern the node's network.
    fn judge(&self, notification: &Notification) -> Option<Touched> {
        use monitor::Event as Kernel;
        let on_device = |index: u32| self.devices.contains(&index);
        let matters = match &notification.event {
            Kernel::Overrun => return Some(Touched::Everything),
            Kernel::Nft(table) => {
                return table.as_deref().is_some_and(owns_table).then_some(Touched::Ruleset);
            }
            // With a link go its routes, of which the kernel does not tell where they are IPv4's.
            Kernel::LinkGone(link) => self.link_matters(link) || self.interest.awaits_pods(),
            Kernel::Link(link) => self.link_matters(link),
            Kernel::BridgePort(_) => false,
            Kernel::Address(_) | Kernel::AddressGone(_) => true,
            Kernel::RouteGone(route) if route.protocol == POD_ROUTE_PROTOCOL => self.interest.awaits_pods(),
            Kernel::Route(route) | Kernel::RouteGone(route) => {
                route.table == MAIN_TABLE && route.protocol != POD_ROUTE_PROTOCOL
            }
            Kernel::Neighbour(neighbour) | Kernel::NeighbourGone(neighbour) => on_device(neighbour.link),
            Kernel::Fdb(entry) | Kernel::FdbGone(entry) => on_device(entry.link),
            Kernel::Forwarding(on) => !on,
            Kernel::Rule(rule) | Kernel::RuleGone(rule) => RULE_PRIORITIES.contains(&rule.priority),
        };
        matters.then_some(Touched::Network)
    }

    fn link_matters(&self, link: &link::Link) -> bool {
        let of_a_pod = link.alias.as_deref().is_some_and(is_pod_alias);
        let looks_like_a_pods = link.kind == link::Kind::Veth && !self.interest.includes(&link.name);
        !of_a_pod && !looks_like_a_pods
    }
}
