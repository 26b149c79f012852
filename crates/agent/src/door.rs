//! The agent's door to the kernel: look at the host, plan, apply, and be told of changes.
//!
//! Read [`Door`]. It belongs to the loop. [`Watcher`] belongs to a thread of its own that blocks on the kernel's
//! notifications and passes on those that could concern the node's network: a pod that comes or goes next door, or
//! a neighbour the kernel has just resolved, wakes nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use kernel::forwarding::{Scope, Setting};
use kernel::link;
use kernel::monitor::{self, Ear, Monitor, Notification, Topic};
use kernel::netlink::{Protocol, Socket};
use kernel::route::LOCAL_TABLE;
use kernel::{features, sysctl, wireguard};
use netstate::pool::overlaps;
use netstate::{
    FdbKey, LinkName, MAIN_TABLE, NeighbourKey, POD_ROUTE_PROTOCOL, POLICY_TABLE, Plan, ROUTE_PROTOCOL,
    RULE_PRIORITIES, State, Step, owns_table,
};
use regex::bytes::Regex;
use route::{Family, Host, Reached, TunnelKind};
use rustix::event::{PollFd, PollFlags, poll};

use crate::event::{Entry, Event, Touched};
use crate::freed::{Addresses, Freed};
use crate::host::{is_agents, is_pod_alias, read_host, read_reached};
use crate::policy::Policing;

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
    /// What the operator wants as the underlay, which may not be there yet.
    interface: Option<String>,
    pattern: Option<Regex>,
    /// The way to an address decides on the underlay, by whatever table and rule it leads.
    follows_ways: bool,
    /// Pod CIDRs are carried that will be given up when the last pod in them goes.
    retains: bool,
    /// The cluster's networks, in which all our routes are.
    networks: Vec<IpNet>,
    /// By which ports the agent's own changes are known. It has been told already what came of them.
    own: Vec<u32>,
}

impl Interest {
    fn exceptions(&self) -> MutexGuard<'_, Exceptions> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the link matters; before anything is known, every link does.
    fn includes(&self, link: &str) -> bool {
        let Exceptions { links, interface, pattern, .. } = &*self.exceptions();
        links.is_empty()
            || links.contains(link)
            || interface.as_deref() == Some(link)
            || pattern.as_ref().is_some_and(|pattern| pattern.is_match(link.as_bytes()))
    }

    /// Whether tables and rules matter that the agent does not write to.
    fn follows_ways(&self) -> bool {
        self.exceptions().follows_ways
    }

    /// Whether the agent made a change itself.
    fn is_own(&self, origin: u32) -> bool {
        origin != 0 && self.exceptions().own.contains(&origin)
    }

    /// Whether a foreign route is none that ours could meet, and not the default one.
    fn is_beside(&self, destination: IpNet) -> bool {
        let networks = &self.exceptions().networks;
        !networks.is_empty() && !networks.iter().any(|net| overlaps(*net, destination))
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
        let devices = devices(&mut facts)?;
        let pods = Addresses::read(&mut facts)?;
        let watcher = Watcher { network, ruleset, interest: interest.clone(), devices, pods, policing: None };
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

    /// How many packets a link was to send and could not; none where there is no such link.
    pub(crate) fn unsent(&mut self, link: LinkName) -> Result<Option<u64>, DoorError> {
        Ok(link::unsent(&mut self.facts, link.as_str())?)
    }

    /// Whether a WireGuard device and its peers are as wanted.
    pub(crate) fn has_wireguard(&mut self, link: LinkName, want: &State) -> Result<bool, DoorError> {
        Ok(self.host.has_wireguard(link, want)?)
    }

    /// Whether the sysctls are as wanted that the kernel tells nobody of when they are changed; one that is not there, it does tell of.
    pub(crate) fn has_silent_sysctls(&self, want: &State) -> bool {
        silent_sysctls(want).all(|(path, wanted)| sysctl::read(path).map_or(true, |value| value == *wanted))
    }

    /// The steps to the wanted state, and what stands in the way.
    pub(crate) fn plan(&mut self, want: &State) -> Result<Plan, DoorError> {
        let observed = self.host.observe(want)?;
        Ok(netstate::plan(&observed, want))
    }

    /// Carries out the steps, and says how many were not tried because what they stand on is not there.
    pub(crate) fn apply(&mut self, steps: &[Step]) -> Result<usize, DoorError> {
        // A socket has no port until it was used, and by now the host was looked at.
        self.interest.exceptions().own = self.host.ports()?.into();
        let report = self.host.apply(steps)?;
        let others = (report.failed.len() + report.skipped).saturating_sub(1);
        match report.failed.into_iter().next() {
            None => Ok(report.skipped),
            Some(failed) => Err(DoorError::Steps {
                step: failed.step.to_string(),
                others,
                source: Box::new(failed.error),
            }),
        }
    }

    /// What the operator said of the underlay's name: links of such names matter, whenever they appear.
    pub(crate) fn look_for(&self, interface: Option<&str>, pattern: Option<&Regex>) {
        let exceptions = &mut *self.interest.exceptions();
        exceptions.interface = interface.map(str::to_owned);
        exceptions.pattern = pattern.cloned();
    }

    /// The links that carry the tunnels or could: from now on, of all that look like pods' only their changes are told.
    pub(crate) fn interest(&self, links: impl Iterator<Item = String>) {
        self.interest.exceptions().links = links.collect();
    }

    /// The networks that all our routes are in: from now on, others' routes elsewhere are told as such.
    pub(crate) fn keep_to(&self, networks: &[IpNet]) {
        self.interest.exceptions().networks = networks.to_vec();
    }

    /// Whether it is told of pods that go.
    pub(crate) fn await_pods(&self, retains: bool) {
        self.interest.exceptions().retains = retains;
    }
}

/// Those of the wanted sysctls of which the kernel tells nobody.
pub(crate) fn silent_sysctls(want: &State) -> impl Iterator<Item = (&String, &String)> {
    want.sysctls.iter().filter(|(path, _)| path.ends_with("/accept_ra"))
}

/// The tunnels' devices that there are.
fn devices(facts: &mut Socket) -> Result<BTreeMap<u32, LinkName>, kernel::Error> {
    let links = link::list(facts, link::Filter::default())?;
    Ok(links.iter().filter(|link| is_agents(link)).filter_map(named).collect())
}

/// A device's index and name.
fn named(link: &link::Link) -> Option<(u32, LinkName)> {
    Some((link.index, link.name.parse().ok()?))
}

/// The kernel's notifications, for a thread of their own.
#[derive(Debug)]
pub(crate) struct Watcher {
    network: Monitor,
    ruleset: Monitor,
    interest: Interest,
    /// The tunnels' devices by their indices, once there are any.
    devices: BTreeMap<u32, LinkName>,
    /// The addresses of the pods that there are.
    pods: Addresses,
    /// Who keeps the table of policies.
    policing: Option<Policing>,
}

/// By what the agent hears of nf_tables, for who makes large changes there himself.
#[derive(Debug)]
pub(crate) struct Hearing {
    ear: Ear,
    events: Sender<Event>,
}

impl Hearing {
    /// That of a monitor of nf_tables; `events` are told what may have been missed.
    pub(crate) fn of(ruleset: &Monitor, events: Sender<Event>) -> Result<Self, kernel::Error> {
        Ok(Self { ear: ruleset.ear()?, events })
    }

    /// Has the agent told nothing.
    pub(crate) fn close(&self) -> Result<(), kernel::Error> {
        self.ear.close()
    }

    /// Has it told again.
    pub(crate) fn open(&self) -> Result<(), kernel::Error> {
        self.ear.open()
    }

    /// Says that something may have changed unheard.
    pub(crate) fn tell(&self) {
        // Without a loop there is nobody who must know.
        let _ = self.events.send(Event::Kernel(Touched::Ruleset));
    }
}

impl Watcher {
    /// What can be closed while nobody should be told of nf_tables.
    pub(crate) fn hearing(&self, events: Sender<Event>) -> Result<Hearing, kernel::Error> {
        Hearing::of(&self.ruleset, events)
    }

    /// Has changes of the table of policies told to its keeper, but for the keeper's own.
    pub(crate) fn policed(mut self, policing: Policing) -> Result<Self, kernel::Error> {
        self.ruleset.ignore(policing.port())?;
        self.policing = Some(policing);
        Ok(self)
    }

    /// Passes on what matters until the loop is gone or the kernel's answers make no sense; says what happened. Addresses
    /// of pods that go are told to `freed`.
    pub(crate) fn run(mut self, events: &Sender<Event>, freed: &Freed) -> String {
        loop {
            let mut entries = Vec::new();
            let touched = match self.wait(freed, &mut entries) {
                Ok(touched) => touched.map(Event::Kernel),
                Err(error) => return format!("the kernel can no longer be listened to: {error}"),
            };
            let entries = (!entries.is_empty()).then_some(Event::Entries(entries));
            if touched.into_iter().chain(entries).any(|event| events.send(event).is_err()) {
                return "the loop is gone".to_owned();
            }
        }
    }

    /// Waits for notifications and says what the batch of them comes to, beside these entries of the device.
    fn wait(&mut self, freed: &Freed, entries: &mut Vec<Entry>) -> Result<Option<Touched>, kernel::Error> {
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
            self.tell_policing(&news);
            touched = news.iter().filter_map(|notification| self.judge(notification)).max();
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
                match self.entry(&notification.event) {
                    Some(entry) => entries.push(entry),
                    None => touched = touched.max(self.judge(&notification)),
                }
            }
        }
        Ok(touched)
    }

    fn tell_policing(&self, news: &[Notification]) {
        let theirs = |notification: &Notification| match &notification.event {
            monitor::Event::Nft(table) => table.as_deref() == Some(POLICY_TABLE),
            event => *event == monitor::Event::Overrun,
        };
        if let Some(policing) = self.policing.as_ref().filter(|_| news.iter().any(theirs)) {
            policing.touched();
        }
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
            monitor::Event::Link(link) if is_agents(link) => {
                self.devices.extend(named(link));
            }
            // Gone, or another's name now.
            monitor::Event::Link(link) | monitor::Event::LinkGone(link) => {
                self.devices.remove(&link.index);
            }
            monitor::Event::Overrun => {
                match Socket::open(Protocol::Route).and_then(|mut facts| devices(&mut facts)) {
                    Ok(devices) => self.devices = devices,
                    Err(error) => tracing::warn!(%error, "the tunnels' devices were not found anew"),
                }
            }
            _ => {}
        }
    }

    /// What a notification says of an entry of a tunnel's device, if it is about one.
    fn entry(&self, event: &monitor::Event) -> Option<Entry> {
        use monitor::Event as Kernel;
        let device = |index: u32| self.devices.get(&index).copied();
        Some(match event {
            Kernel::Neighbour(found) => {
                let mac = found.mac.filter(|_| found.is_permanent());
                Entry::Neighbour(NeighbourKey { link: device(found.link)?, address: found.address }, mac)
            }
            Kernel::NeighbourGone(gone) => {
                Entry::Neighbour(NeighbourKey { link: device(gone.link)?, address: gone.address }, None)
            }
            Kernel::Fdb(found) => {
                let lasts = found.is_permanent() && found.is_own();
                let to = found.destination.filter(|_| lasts);
                Entry::Forwarding(FdbKey { link: device(found.link)?, mac: found.mac }, to)
            }
            Kernel::FdbGone(gone) => {
                Entry::Forwarding(FdbKey { link: device(gone.link)?, mac: gone.mac }, None)
            }
            _ => return None,
        })
    }

    /// Whether a notification could concern the node's network.
    fn judge(&self, notification: &Notification) -> Option<Touched> {
        use monitor::Event as Kernel;
        if self.interest.is_own(notification.origin) {
            return None;
        }
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
                let ours = route.protocol == ROUTE_PROTOCOL;
                if route.table == MAIN_TABLE && !ours && self.interest.is_beside(route.destination) {
                    return Some(Touched::Beside);
                }
                (route.table == MAIN_TABLE || leads) && route.protocol != POD_ROUTE_PROTOCOL
            }
            Kernel::Neighbour(_) | Kernel::NeighbourGone(_) | Kernel::Fdb(_) | Kernel::FdbGone(_) => false,
            Kernel::Setting(setting) => self.setting_matters(*setting),
            Kernel::Rule(rule) | Kernel::RuleGone(rule) => {
                RULE_PRIORITIES.contains(&rule.priority) || self.interest.follows_ways()
            }
        };
        matters.then_some(Touched::Network)
    }

    /// Forwarding is wanted. A strict filter drops what comes by one tunnel and is answered by another, so the agent's own links are
    /// set loose; those of others are the host's.
    fn setting_matters(&self, setting: Setting) -> bool {
        match setting {
            Setting::Forwarding(on) => !on,
            Setting::StrictReversePath(Scope::Link(link), strict) => {
                strict && self.devices.contains_key(&link)
            }
            Setting::StrictReversePath(Scope::All | Scope::New, strict) => strict,
        }
    }

    fn link_matters(&self, link: &link::Link) -> bool {
        let of_a_pod = link.alias.as_deref().is_some_and(is_pod_alias);
        let looks_like_a_pods = link.kind == link::Kind::Veth && !self.interest.includes(&link.name);
        !of_a_pod && !looks_like_a_pods
    }
}
