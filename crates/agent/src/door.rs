//! The agent's door to the kernel: look at the host, plan, apply, and be told of changes.
//!
//! Read [`Door`]. It belongs to the loop. [`Watcher`] belongs to a thread of its own that blocks on the kernel's
//! notifications and passes on those that could concern the node's network: a pod that comes or goes next door, or
//! a neighbour the kernel has just resolved, wakes nobody.

use std::collections::BTreeSet;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use kernel::monitor::{self, Monitor, Notification, Topic};
use kernel::netlink::{Protocol, Socket};
use kernel::{address, link, route as routes, sysctl};
use netstate::{
    LINK_ALIAS, MAIN_TABLE, POD_ROUTE_PROTOCOL, Plan, ROUTE_PROTOCOL, RULE_PRIORITIES, State, Step,
    owns_table,
};
use route::vxlan::DEVICE;
use route::{Family, Host, HostAddress, HostLink, HostRoute};
use rustix::event::{PollFd, PollFlags, poll};

use crate::event::{Event, Touched};

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

/// The links whose changes matter although they look like a pod's: the underlay of a node that is itself a
/// namespace is a veth.
#[derive(Debug, Clone, Default)]
struct Interest(Arc<Mutex<BTreeSet<String>>>);

impl Interest {
    fn set(&self, links: impl Iterator<Item = String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = links.collect();
    }

    /// Whether the link matters; before anything is known, every link does.
    fn includes(&self, link: &str) -> bool {
        let links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        links.is_empty() || links.contains(link)
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
        let device = link::find(&mut facts, DEVICE)?.map(|link| link.index);
        let watcher = Watcher { network, ruleset, interest: interest.clone(), device };
        Ok((Self { host, facts, interest }, watcher))
    }

    /// The host's links, addresses and routes.
    pub(crate) fn host(&mut self) -> Result<Host, DoorError> {
        let links = link::list(&mut self.facts, link::Filter::default())?;
        let name = |index: u32| links.iter().find(|link| link.index == index).map(|link| link.name.clone());
        let addresses = address::list(&mut self.facts, None, None)?
            .iter()
            .filter_map(|entry| Some(host_address(entry, name(entry.link)?)))
            .collect();
        let main = routes::Filter { table: Some(MAIN_TABLE), ..routes::Filter::default() };
        let routes = routes::list(&mut self.facts, main)?
            .iter()
            .filter(|route| route.kind == routes::Kind::Unicast)
            .map(|route| host_route(route, name))
            .collect();
        Ok(Host { links: links.iter().map(host_link).collect(), addresses, routes })
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
        self.interest.set(links);
    }
}

fn host_link(link: &link::Link) -> HostLink {
    let outside = !link.is_loopback() && !is_ours(link);
    // A link that goes away meanwhile, or a kernel without IPv6, has no such sysctl.
    let accept_ra = outside
        .then(|| sysctl::read(&format!("net/ipv6/conf/{}/accept_ra", link.name)).ok())
        .flatten()
        .and_then(|value| value.parse().ok());
    HostLink {
        name: link.name.clone(),
        mtu: link.mtu,
        up: link.is_up(),
        loopback: link.is_loopback(),
        ours: is_ours(link),
        accept_ra,
    }
}

/// Whether a link carries the agent's mark or that of the plugins.
fn is_ours(link: &link::Link) -> bool {
    link.alias.as_deref().is_some_and(|alias| alias == LINK_ALIAS || is_pod_alias(alias))
}

fn is_pod_alias(alias: &str) -> bool {
    alias.strip_prefix(LINK_ALIAS).is_some_and(|rest| rest.starts_with(':'))
}

fn host_address(entry: &address::Address, link: String) -> HostAddress {
    /// Address flags of linux/if_addr.h. The first means "temporary" for IPv6 only.
    const TEMPORARY: u32 = 0x01;
    const DEPRECATED: u32 = 0x20;
    /// `RT_SCOPE_UNIVERSE`.
    const GLOBAL: u8 = 0;
    let temporary = Family::of_net(&entry.net) == Family::V6 && entry.flags & TEMPORARY != 0;
    HostAddress {
        link,
        address: entry.net,
        global: entry.scope == GLOBAL,
        avoid: temporary || entry.flags & DEPRECATED != 0 || entry.is_tentative() || entry.is_duplicate(),
        permanent: entry.is_permanent(),
    }
}

fn host_route(route: &routes::Route, name: impl Fn(u32) -> Option<String>) -> HostRoute {
    let hop = route.hops.first();
    HostRoute {
        destination: route.destination,
        link: hop.and_then(|hop| hop.link).and_then(name),
        gateway: hop.and_then(|hop| hop.gateway),
        source: route.source,
        metric: route.metric,
        ours: matches!(route.protocol, ROUTE_PROTOCOL | POD_ROUTE_PROTOCOL),
    }
}

/// The kernel's notifications, for a thread of their own.
#[derive(Debug)]
pub(crate) struct Watcher {
    network: Monitor,
    ruleset: Monitor,
    interest: Interest,
    /// The index of the tunnel's device, once there is one.
    device: Option<u32>,
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
            monitor::Event::Link(link) if link.name == DEVICE => self.device = Some(link.index),
            monitor::Event::LinkGone(link) if Some(link.index) == self.device => self.device = None,
            _ => {}
        }
    }

    /// Whether a notification could concern the node's network.
    fn judge(&self, notification: &Notification) -> Option<Touched> {
        use monitor::Event as Kernel;
        let on_device = |index: u32| Some(index) == self.device;
        let matters = match &notification.event {
            Kernel::Overrun => return Some(Touched::Everything),
            Kernel::Nft(table) => {
                return table.as_deref().is_some_and(owns_table).then_some(Touched::Ruleset);
            }
            Kernel::Link(link) | Kernel::LinkGone(link) => self.link_matters(link),
            Kernel::BridgePort(_) => false,
            Kernel::Address(_) | Kernel::AddressGone(_) => true,
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
