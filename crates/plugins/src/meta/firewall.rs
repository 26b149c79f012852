//! `firewall`: what pods send and get passes the host's filter, and bridges are kept from each other if asked.
//!
//! Read [`Firewall`] first, then `config` (what is asked for), `table` (our own nf_tables table, which knows every
//! pod's addresses and holds the drops), `forward` (iptables' chain `FORWARD`, where such a table exists),
//! `unclaimed` (rules there that nobody's DEL will take away) and `firewalld` with its `bus`.
//!
//! A packet passes only if no table drops it, so our table can drop for good but cannot let pass what another
//! drops. Therefore the accepting rules stand in iptables' own chain too, in its own form, where `iptables-nft` has
//! made one; a chain of `iptables-legacy` is not written to. Where firewalld runs, it is told of the addresses
//! instead, as the reference does.
//!
//! What stays true: the result of the plugins before passes unchanged; every address is in our table with its
//! owner, so DEL and GC need no previous result; while the attachment's own cable stands, the interface
//! plugin's DEL takes the rules along ([`crate::attachment`]).
//! Sources: the reference plugin's documented keys and observed behaviour.

mod bus;
mod config;
mod firewalld;
mod forward;
mod table;
mod unclaimed;

use std::net::IpAddr;

use cni::{AddResult, Code, Error, Plugin, Request, Version};
use kernel::link::{self, Kind, Link, PortChange};
use kernel::netlink::{Batch, Protocol, Socket};
use kernel::nft::{Nft, Transaction};

use crate::attachment::{self, Leaving};
use crate::fault::{Failures, fault};
use crate::owner::Owner;
use config::{Backend, FirewallConfig, Ingress};
use firewalld::Firewalld;
use table::{Admission, Fence};

pub(crate) use table::{every_address, leave};

/// The plugin.
#[derive(Debug)]
pub struct Firewall;

impl Plugin for Firewall {
    fn name(&self) -> &'static str {
        "firewall"
    }

    fn versions(&self) -> &'static [Version] {
        &Version::ALL[4..]
    }

    fn add(&self, request: &Request) -> Result<AddResult, Error> {
        let config = FirewallConfig::of(&request.config)?;
        let result = super::previous(request)?;
        let ports = Ports::of(&config, &result)?;
        let firewalld = config.firewalld()?;
        let owner = Owner::of(request);
        let addresses = addresses(&result);
        let admission = Admission {
            owner: &owner,
            addresses: &addresses,
            fence: ports.fence(config.ingress),
            admin_chain: config.admin_chain,
            in_iptables: firewalld.is_none(),
            cable_is_ours: false,
        };
        let all = || {
            Nft::open().and_then(|mut nft| admission.admit(&mut nft)).map_err(fault)?;
            if let Some(mut firewalld) = firewalld {
                firewalld.add(config.zone, &addresses)?;
            }
            ports.isolate(config.ingress)
        };
        match all() {
            Ok(()) => Ok(result),
            Err(error) => Err(undone(&owner, &addresses, error)),
        }
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        let owner = Owner::of(request);
        let mut failures = Failures::default();
        let mut nft = failures.note_kernel(Nft::open());
        let mut told = request.config.prev_result().ok().flatten().map(|result| addresses(&result));
        if let (Some(nft), Some(told)) = (&mut nft, &mut told) {
            let others = failures.note_kernel(table::others(nft, &owner, told));
            let others = others.unwrap_or_else(|| told.clone());
            told.retain(|address| !others.contains(address));
        }
        let firewalld = failures.note(config::running(&request.config)).flatten();
        if let (Some(mut firewalld), Some(nft)) = (firewalld, &mut nft) {
            let own = failures.note_kernel(table::addresses_of(nft, &owner)).unwrap_or_default();
            let all: Vec<IpAddr> = own.into_iter().chain(told.clone().unwrap_or_default()).collect();
            failures.note(firewalld.remove(config::zone(&request.config), &all));
        }
        let held = Socket::open(Protocol::Route)
            .map_err(fault)
            .and_then(|mut host| attachment::is_held(&mut host, &owner));
        if failures.note(held) == Some(true) {
            return failures.into_result();
        }
        if let Some(nft) = &mut nft {
            failures.note_kernel(remove(nft, &owner, &told.unwrap_or_default()));
        }
        failures.into_result()
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let config = FirewallConfig::of(&request.config)?;
        let result = super::previous(request)?;
        let ports = Ports::of(&config, &result)?;
        let addresses = addresses(&result);
        let firewalld = config.firewalld()?;
        let owner = Owner::of(request);
        let admission = Admission {
            owner: &owner,
            addresses: &addresses,
            fence: ports.fence(config.ingress),
            admin_chain: config.admin_chain,
            in_iptables: firewalld.is_none(),
            cable_is_ours: attachment::is_held(&mut Socket::open(Protocol::Route).map_err(fault)?, &owner)?,
        };
        let lacking = Nft::open().and_then(|mut nft| admission.lacking(&mut nft)).map_err(fault)?;
        if let Some(text) = lacking {
            return Err(Error::kernel(text));
        }
        match firewalld {
            Some(mut firewalld) => firewalld.check(config.zone, &addresses),
            None => Ok(()),
        }
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let valid = attachment::valid(request)?;
        let mut failures = Failures::default();
        failures.note(collect(request, &valid));
        failures.note(unclaimed::collect(request));
        failures.into_result()
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        let ready = || {
            FirewallConfig::of(&request.config)?.firewalld()?;
            let tables = Nft::open().and_then(|mut nft| nft.tables());
            tables.map(drop).map_err(|error| fault(error).context("firewall needs nf_tables"))
        };
        ready().map_err(|error: Error| Error { code: Code::NOT_READY, ..error })
    }
}

fn addresses(result: &AddResult) -> Vec<IpAddr> {
    result.ips.iter().map(|ip| ip.address.addr()).collect()
}

/// Removes what stands for attachments of this network that are not valid.
fn collect(request: &Request, valid: &[Owner]) -> Result<(), Error> {
    let mut nft = Nft::open().map_err(fault)?;
    let stale = table::stale(&mut nft, &request.config.name, valid).map_err(fault)?;
    let mut failures = Failures::default();
    if let Some(mut firewalld) = failures.note(config::running(&request.config)).flatten() {
        failures.note(firewalld.remove(config::zone(&request.config), &stale));
    }
    failures.note_kernel(forward::remove_older(&stale));
    // Our elements go last, and stay after a failure: nothing else tells the next GC of these addresses.
    failures.into_result()?;
    table::collect(&mut nft, &request.config.name, valid).map_err(fault)
}

/// Removes the attachment's addresses, and the rules for them in iptables' chains: those that we put there, and
/// those of the reference, for which only the addresses of the result tell whose they are.
fn remove(nft: &mut Nft, owner: &Owner, told: &[IpAddr]) -> Result<(), kernel::Error> {
    let leaving = Leaving::new(owner, None);
    let mut attempts = 0..table::ATTEMPTS;
    loop {
        let mut transaction = Transaction::new();
        let own = table::leave_elements(nft, &leaving, &mut transaction)?;
        let all: Vec<IpAddr> = own.into_iter().chain(told.iter().copied()).collect();
        forward::leave(nft, &all, &mut transaction)?;
        match nft.commit(transaction) {
            Err(error) if error.is_missing() && attempts.next().is_some() => {}
            Err(error) => return Err(error),
            Ok(()) => return forward::remove_older(&all),
        }
    }
}

/// In a new conversation: the old one may have broken off before it was known what had been carried out.
fn undone(owner: &Owner, addresses: &[IpAddr], cause: Error) -> Error {
    match Nft::open().and_then(|mut nft| remove(&mut nft, owner, addresses)) {
        Ok(()) => cause,
        Err(failure) => {
            Error { message: format!("{}; undoing it: {}", cause.message, fault(failure).message), ..cause }
        }
    }
}

/// The bridge that an ingress policy is about, and its ports that are the pod's.
struct Ports {
    bridge: Option<Link>,
    names: Vec<String>,
}

impl Ports {
    /// Read from the result of the plugins before. Without a policy that keeps bridges apart none is needed.
    fn of(config: &FirewallConfig<'_>, result: &AddResult) -> Result<Self, Error> {
        let Some(first) = result.interfaces.first().filter(|first| first.sandbox.is_empty()) else {
            return match config.ingress {
                Ingress::Open => Ok(Self { bridge: None, names: Vec::new() }),
                policy => Err(needs_bridge(policy, "prevResult does not begin with a link of the host")),
            };
        };
        let mut host = Socket::open(Protocol::Route).map_err(fault)?;
        let bridge = link::find(&mut host, first.name.as_str()).map_err(fault)?;
        let bridge = bridge.filter(|link| matches!(link.kind, Kind::Bridge { .. }));
        if bridge.is_none() && config.ingress != Ingress::Open {
            return Err(needs_bridge(config.ingress, &format!("{} is not a bridge", first.name)));
        }
        let others = result.interfaces.iter().skip(1).filter(|interface| interface.sandbox.is_empty());
        Ok(Self { bridge, names: others.map(|interface| interface.name.clone()).collect() })
    }

    fn fence(&self, ingress: Ingress) -> Option<Fence> {
        let bridge = self.bridge.as_ref()?.name.parse().ok()?;
        Some(Fence { bridge, ingress })
    }

    /// Keeps frames from one isolated pod to another from crossing the bridge: they never come to a filter of IP.
    fn isolate(&self, ingress: Ingress) -> Result<(), Error> {
        let (Ingress::Isolated, Some(bridge)) = (ingress, &self.bridge) else { return Ok(()) };
        let mut host = Socket::open(Protocol::Route).map_err(fault)?;
        let mut batch = Batch::new();
        for name in &self.names {
            let port = link::find(&mut host, name.as_str()).map_err(fault)?;
            let port = port.filter(|port| port.master == Some(bridge.index));
            let change = PortChange { isolated: Some(true), ..PortChange::default() };
            batch.extend(port.map(|port| link::change_port(port.index, &change)));
        }
        host.execute(batch).map_err(fault)
    }
}

fn needs_bridge(policy: Ingress, reason: &str) -> Error {
    let name = policy.as_str();
    Error::invalid_config(format!("interface needs to be set for ingress policy {name:?}: {reason}"))
        .with_details("hint: chain firewall with bridge, whose result begins with the bridge")
}

impl FirewallConfig<'_> {
    /// The firewalld to tell: none when it does not run, unless the configuration insists.
    fn firewalld(&self) -> Result<Option<Firewalld>, Error> {
        let found = match self.backend {
            Backend::Iptables => return Ok(None),
            Backend::Any | Backend::Firewalld => Firewalld::find()?,
        };
        if found.is_none() && self.backend == Backend::Firewalld {
            return Err(Error::try_again("backend \"firewalld\": firewalld is not on the system bus")
                .with_details("hint: start firewalld, or leave the backend out"));
        }
        Ok(found)
    }
}
