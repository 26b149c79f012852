//! The agent's door to the kernel: look at the host, plan, apply, and be told of changes.
//!
//! Read [`Door`]. It belongs to the loop. [`Watcher`] belongs to a thread of its own that blocks on the kernel's
//! notifications and passes on those that could concern the node's network: a pod that comes or goes next door, or
//! a neighbour the kernel has just resolved, wakes nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kernel::link;
use kernel::monitor::{self, Monitor, Notification, Topic};
use kernel::netlink::{Protocol, Socket};
use kernel::route::LOCAL_TABLE;
use kernel::{features, wireguard};
use netstate::{LinkName, MAIN_TABLE, POD_ROUTE_PROTOCOL, Plan, RULE_PRIORITIES, State, Step, owns_table};
use route::vxlan::{DEVICE, DEVICE_V6};
use route::{Family, Host, Reached, TunnelKind};
use rustix::event::{PollFd, PollFlags, poll};

use crate::event::{Event, Touched};
use crate::freed::{Addresses, Freed};
use crate::host::{is_agents, is_pod_alias, read_host, read_reached};

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
    /// Which tunnels the kernel carries, as far as it was asked.
    carries: BTreeMap<TunnelKind, bool>,
}

/// What matters although it looks like a pod's.
#[derive(Debug, Clone, Default)]
struct Interest(Arc<Mutex<Exceptions>>);

#[derive(Debug, Default)]
struct Exceptions {
    /// The underlay of a node that is itself a namespace is a veth.
    links: BTreeSet<String>,
    /// The way to an address decides on the underlay, by whatever table and rule it leads.
    follows_ways: bool,
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

    /// Whether tables and rules matter that the agent does not write to.
    fn follows_ways(&self) -> bool {
        self.exceptions().follows_ways
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
        let pods = Addresses::read(&mut facts)?;
        let watcher = Watcher { network, ruleset, interest: interest.clone(), devices, pods };
        Ok((Self { host, facts, interest, carries: BTreeMap::new() }, watcher))
    }

    /// The host's links, addresses and routes.
    pub(crate) fn host(&mut self) -> Result<Host, DoorError> {
        Ok(read_host(&mut self.facts)?)
    }

    /// How the kernel reaches these addresses; from now on, it is told of what could change that.
    pub(crate) fn reached(&mut self, targets: &[IpAddr]) -> Result<Vec<Reached>, DoorError> {
        self.interest.exceptions().follows_ways = !targets.is_empty();
        Ok(read_reached(&mut self.facts, targets)?)
    }

    /// Whether the kernel carries tunnels of this kind itself, with packets of these families in them. It is asked until it
    /// has answered: what carries packets is not changed because it did not.
    pub(crate) fn has_tunnel(&mut self, kind: TunnelKind, families: &[Family]) -> Result<bool, DoorError> {
        if let Some(known) = self.carries.get(&kind) {
            return Ok(*known);
        }
        let facts = &mut self.facts;
        let mut inner = families.iter().map(|family| match family {
            Family::V4 => kernel::Family::V4,
            Family::V6 => kernel::Family::V6,
        });
        let has = match kind {
            TunnelKind::Udp => false,
            TunnelKind::Ipip => inner
                .try_fold(true, |all, family| features::has_ip_tunnel(facts, family).map(|has| all && has))?,
            TunnelKind::WireGuard | TunnelKind::WireGuardOdd => features::has_wireguard(facts)?,
        };
        let carrier = if has { "the kernel" } else { "the agent, for the kernel cannot" };
        tracing::info!(tunnel = kind.name(), "carried by {carrier}");
        self.carries.insert(kind, has);
        Ok(has)
    }

    /// Whether there is a link of this name that carries the agent's mark.
    pub(crate) fn is_marked(&mut self, link: LinkName) -> bool {
        match link::find(&mut self.facts, link.as_str()) {
            Ok(found) => found.is_some_and(|link| is_agents(&link)),
            // One that cannot be looked for is no reason to let go of what runs.
            Err(_) => true,
        }
    }

    /// What a WireGuard device and its peers say of themselves.
    pub(crate) fn wireguard(&mut self, link: LinkName) -> Result<wireguard::Device, DoorError> {
        Ok(self.host.wireguard(link)?)
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
    /// The addresses of the pods that there are.
    pods: Addresses,
}

impl Watcher {
    /// Passes on what matters until the loop is gone or the kernel's answers make no sense; says what happened. Addresses
    /// of pods that go are told to `freed`.
    pub(crate) fn run(mut self, events: &Sender<Event>, freed: &Freed) -> String {
        loop {
            match self.wait(freed) {
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
    fn wait(&mut self, freed: &Freed) -> Result<Option<Touched>, kernel::Error> {
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
                let gone = match &notification.event {
                    monitor::Event::Overrun => self.read_pods_anew(),
                    event => self.pods.learn(event),
                };
                if !gone.is_empty() {
                    // Without that thread the connections end by their own timers.
                    let _ = freed.send(gone);
                }
                touched = match (touched, self.judge(&notification)) {
                    (Some(Touched::Everything), _) => Some(Touched::Everything),
                    (before, after) => after.or(before),
                };
            }
        }
        Ok(touched)
    }

    /// Makes up for what was not heard of; gives the addresses of pods that went meanwhile.
    fn read_pods_anew(&mut self) -> Vec<IpAddr> {
        let read = Socket::open(Protocol::Route).and_then(|mut socket| Addresses::read(&mut socket));
        match read {
            Ok(read) => self.pods.renew(read),
            Err(error) => {
                tracing::warn!(%error, "connections of pods that went unseen stay tracked for a while");
                Vec::new()
            }
        }
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
                let leads = route.table != LOCAL_TABLE && self.interest.follows_ways();
                (route.table == MAIN_TABLE || leads) && route.protocol != POD_ROUTE_PROTOCOL
            }
            Kernel::Neighbour(neighbour) | Kernel::NeighbourGone(neighbour) => on_device(neighbour.link),
            Kernel::Fdb(entry) | Kernel::FdbGone(entry) => on_device(entry.link),
            Kernel::Forwarding(on) => !on,
            Kernel::Rule(rule) | Kernel::RuleGone(rule) => {
                RULE_PRIORITIES.contains(&rule.priority) || self.interest.follows_ways()
            }
        };
        matters.then_some(Touched::Network)
    }

    fn link_matters(&self, link: &link::Link) -> bool {
        let of_a_pod = link.alias.as_deref().is_some_and(is_pod_alias);
        let looks_like_a_pods = link.kind == link::Kind::Veth && !self.interest.includes(&link.name);
        !of_a_pod && !looks_like_a_pods
    }
}
