//! The common life of an interface that is one link of the pod's: macvlan, ipvlan, vlan, dummy and their like.
//!
//! Read [`Child`] first (what a plugin adds of its own), then [`add`]: the link comes first, because an address
//! plugin may need it (dhcp does), then the addresses, then all of it is set up in one send. [`check`], [`del`],
//! [`gc`] and [`status`] are the rest of that life.
//!
//! What stays true: an ADD that fails has taken its link and its addresses away again; DEL needs neither a valid
//! configuration nor the namespace, and always reaches the address plugin; on the host such an interface leaves
//! nothing, for a link goes with its namespace.
//! Sources: the reference plugins' documented keys and observed behaviour; CNI specification 1.1.0, section 2.

use std::os::fd::AsFd;

use cni::{AddResult, Code, Config, Error, Request, delegate};
use kernel::link::{self, Change, Link, NewKind, NewLink};
use kernel::netlink::{Batch, Protocol, Socket};
use netstate::Mac;

use super::pod::{Pod, Setup, routes};
use super::report::{self, Previous};
use crate::attachment::{NEEDS_THE_LINK, valid};
use crate::fault::{Failures, fault};
use crate::owner::Owner;

/// What one plugin adds to the common life.
pub(crate) trait Child {
    /// Makes the link in the pod, under the name that was asked for and down. If it fails it leaves nothing.
    ///
    /// # Errors
    /// When there is no such link to be had.
    fn make(&self, site: &mut Site<'_>) -> Result<Link, Error>;

    /// Takes away what [`Child::make`] made, for an ADD that fails later.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn unmake(&self, site: &mut Site<'_>, link: &Link) -> Result<(), Error> {
        site.pod.delete(link.index)
    }

    /// In what the pod's link differs from what [`Child::make`] would make, in words.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    fn difference(&self, site: &mut Site<'_>, link: &Link) -> Result<Option<String>, Error>;
}

/// Where an interface is made or looked at.
#[derive(Debug)]
pub(crate) struct Site<'a> {
    /// The call.
    pub(crate) request: &'a Request,
    /// The host's links.
    pub(crate) host: Socket,
    /// The pod.
    pub(crate) pod: Pod,
}

/// How the common part is to go.
#[derive(Debug)]
pub(crate) struct Terms {
    /// Where the addresses come from.
    pub(crate) addresses: Addresses,
    /// Check IPv6 addresses for duplicates: on a network that others share.
    pub(crate) detect_duplicates: bool,
}

/// Where an interface's addresses come from.
#[derive(Debug)]
pub(crate) enum Addresses {
    /// The network's address plugin.
    Plugin,
    /// An earlier plugin of the chain: they move to this interface.
    Earlier(AddResult),
    /// Nowhere: whoever uses the interface sees to that.
    None,
}

impl Addresses {
    /// The network's address plugin; none if the network has none.
    ///
    /// # Errors
    /// As [`check_address_plugin`].
    pub(crate) fn optional(request: &Request) -> Result<Self, Error> {
        check_address_plugin(request)?;
        Ok(if request.config.ipam_kind.is_empty() { Self::None } else { Self::Plugin })
    }

    /// The network's address plugin, which it must have.
    ///
    /// # Errors
    /// Code 7 when it has none, and as [`check_address_plugin`].
    pub(crate) fn required(request: &Request) -> Result<Self, Error> {
        match Self::optional(request)? {
            Self::None => {
                let name = &request.config.kind;
                Err(Error::invalid_config(format!("{name} interface requires an IPAM configuration"))
                    .with_details("hint: \"ipam\": {\"type\": \"host-local\", ...}"))
            }
            found => Ok(found),
        }
    }
}

/// That the `ipam` object, if there is one, is an object and does not name the plugin itself.
fn check_address_plugin(request: &Request) -> Result<(), Error> {
    // An `ipam` that is no object names no plugin, and a pod must not go without addresses over a slip.
    request.config.ipam()?;
    if names_itself(&request.config) {
        let name = &request.config.kind;
        return Err(Error::invalid_config(format!("ipam.type: {name} has no addresses to give"))
            .with_details("hint: host-local has"));
    }
    Ok(())
}

fn names_itself(config: &Config) -> bool {
    config.ipam_kind == config.kind
}

/// `enabledad`, which unlike a bridge's is on unless it is switched off: others share the master's network.
///
/// # Errors
/// Code 6 when it is no boolean.
pub(crate) fn detects_duplicates(request: &Request) -> Result<bool, Error> {
    Ok(request.config.fields().optional_bool("enabledad")?.unwrap_or(true))
}

/// The plugin to give addresses back to; empty for none. Never the plugin itself: it would call itself for ever.
pub(crate) fn address_plugin(config: &Config) -> &str {
    if names_itself(config) { "" } else { &config.ipam_kind }
}

impl<'a> Site<'a> {
    /// Opens host and pod.
    ///
    /// # Errors
    /// Code 8 when the pod's namespace is not there.
    pub(crate) fn open(request: &'a Request) -> Result<Self, Error> {
        let pod = Pod::open(request.netns()?)?;
        Ok(Self { request, host: Socket::open(Protocol::Route).map_err(fault)?, pod })
    }

    /// The links of the pod, or of the host.
    pub(crate) fn links(&mut self, in_container: bool) -> &mut Socket {
        if in_container { &mut self.pod.socket } else { &mut self.host }
    }

    /// Makes the pod's interface and returns it. A parent that `new` names is one of the pod's links if
    /// `in_container`, else one of the host's. The link comes into being in the pod, under its final name where
    /// the kernel lets it: before 6.15 it refuses a name that a link of the *host* has, and the interface gets
    /// its name by renaming then.
    ///
    /// # Errors
    /// When the pod has an interface of that name already, or the kernel refuses; nothing is left then.
    /// [`MakeError::Taken`] says that something other than the name is taken.
    pub(crate) fn make(&mut self, new: &New, in_container: bool) -> Result<Link, MakeError> {
        let name = &self.request.ifname;
        if self.pod.find(name)?.is_some() {
            return Err(Error::kernel(format!("{name} already exists in the pod")).into());
        }
        match self.make_and_mark(new, in_container) {
            // Even where the kernel's answer was lost, what has one of our names now is ours.
            Err(MakeError::Other(cause)) => match remove(self.request, new.kind.name()) {
                Ok(()) => Err(cause.into()),
                Err(failure) => Err(undone_badly(cause, &failure).into()),
            },
            made => made,
        }
    }

    fn make_and_mark(&mut self, new: &New, in_container: bool) -> Result<Link, MakeError> {
        let (name, owner) = (&self.request.ifname, Owner::of(self.request));
        let temporary = owner.host_link_name(0);
        let final_name = match self.create(new, name, in_container) {
            Err(MakeError::Taken(_)) => {
                self.create(new, &temporary, in_container)?;
                false
            }
            made => made.map(|()| true)?,
        };
        let made_as = if final_name { name } else { &temporary };
        let Some(mut link) = self.pod.find(made_as)? else {
            return Err(Error::kernel(format!("{name} vanished from the pod while it was made")).into());
        };
        let alias = owner.alias();
        let mark = Change { alias: Some(&alias), ..Change::default() };
        let mut batch = Batch::from(link::change(link.index, &mark));
        if !final_name {
            batch.push(link::rename(link.index, name));
        }
        self.pod.socket.execute(batch).map_err(fault)?;
        link.name.clone_from(name);
        Ok(link)
    }

    fn create(&mut self, new: &New, name: &str, in_container: bool) -> Result<(), MakeError> {
        let place = (!in_container).then_some(self.pod.namespace.as_fd());
        let link =
            NewLink { mtu: new.mtu, mac: new.mac, namespace: place, ..NewLink::new(name, new.kind.clone()) };
        let socket = if in_container { &mut self.pod.socket } else { &mut self.host };
        match socket.execute(link::create(&link)) {
            Ok(()) => Ok(()),
            Err(error) if error.exists() => Err(MakeError::Taken(fault(error))),
            Err(error) => Err(MakeError::Other(fault(error))),
        }
    }
}

/// A link to be made for a pod.
#[derive(Debug)]
pub(crate) struct New {
    /// What it is.
    pub(crate) kind: NewKind<'static>,
    /// Largest packet in bytes; `None` takes the parent's or the kernel's default.
    pub(crate) mtu: Option<u32>,
    /// Hardware address; `None` leaves the kernel's choice.
    pub(crate) mac: Option<Mac>,
}

/// Why a link could not be made.
#[derive(Debug)]
pub(crate) enum MakeError {
    /// The kernel says that it exists already, under whatever name.
    Taken(Error),
    /// Anything else.
    Other(Error),
}

impl From<Error> for MakeError {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

impl From<MakeError> for Error {
    fn from(error: MakeError) -> Self {
        match error {
            MakeError::Taken(error) | MakeError::Other(error) => error,
        }
    }
}

/// Makes an interface, gets its addresses and sets it up.
///
/// # Errors
/// When any of it fails; all is undone then.
pub(crate) fn add(request: &Request, child: &dyn Child, terms: &Terms) -> Result<AddResult, Error> {
    let mut site = Site::open(request)?;
    let link = child.make(&mut site)?;
    furnish(&mut site, &link, terms).map_err(|cause| {
        let kind = match terms.addresses {
            Addresses::Plugin => request.config.ipam_kind.as_str(),
            Addresses::Earlier(_) | Addresses::None => "",
        };
        match take_away(request, kind, &mut || child.unmake(&mut site, &link)) {
            Ok(()) => cause,
            Err(failure) => undone_badly(cause, &failure),
        }
    })
}

/// Gives a link that is there its addresses and reports it.
fn furnish(site: &mut Site<'_>, link: &Link, terms: &Terms) -> Result<AddResult, Error> {
    let mut result = addresses(site.request, &terms.addresses)?;
    let setup = setup(&result, link.index, terms.detect_duplicates);
    site.pod.configure(link, &setup)?;
    // Asked again: a link may get its hardware address by being set up, or another from the address plugin.
    let Some(link) = site.pod.find(&link.name)? else {
        return Err(Error::kernel(format!("{} vanished from the pod while it was set up", link.name)));
    };
    result.interfaces = vec![report::in_pod(&link, site.request)?];
    Ok(result)
}

/// What an interface gets by the terms: addresses, routes and resolver, all on the first interface of the result.
/// The configuration's own `dns` beats the address plugin's.
///
/// # Errors
/// The address plugin's, or that it gave no address.
pub(crate) fn addresses(request: &Request, source: &Addresses) -> Result<AddResult, Error> {
    let mut result = match source {
        Addresses::Plugin => delegate::add(&request.config.ipam_kind, request)?,
        Addresses::Earlier(result) => result.clone(),
        Addresses::None => AddResult::default(),
    };
    if result.ips.is_empty() && !matches!(source, Addresses::None) {
        return Err(Error::internal("IPAM plugin returned missing IP config"));
    }
    for ip in &mut result.ips {
        ip.interface = Some(0);
    }
    if report::says_dns(request)? {
        result.dns = request.config.dns.clone();
    }
    Ok(result)
}

fn setup(result: &AddResult, link: u32, detect_duplicates: bool) -> Setup {
    Setup {
        addresses: result.ips.iter().map(|ip| ip.address).collect(),
        routes: routes(result, link),
        detect_duplicates,
        detection_as_set: true,
        ..Setup::default()
    }
}

/// Checks an interface: the address plugin's part, the link, its addresses and routes.
///
/// # Errors
/// What is missing or differs, in words.
pub(crate) fn check(request: &Request, child: &dyn Child, terms: &Terms) -> Result<(), Error> {
    let previous = Previous::of(request)?;
    if let Addresses::Plugin = terms.addresses {
        delegate::check(&request.config.ipam_kind, request)?;
    }
    let mut site = Site::open(request)?;
    let link = previous.link(request, &mut site.pod)?;
    report::complain(child.difference(&mut site, &link)?)?;
    if !link.is_up() {
        return Err(Error::kernel(format!("{} in the pod is down", link.name)));
    }
    let own = previous.about(&request.ifname);
    report::complain(site.pod.missing(&link, &setup(&own, link.index, terms.detect_duplicates))?)
}

/// DEL of an interface that is a link of this kind, by the kernel's name for it.
///
/// # Errors
/// All that failed, in one.
pub(crate) fn del(request: &Request, kind: &str) -> Result<(), Error> {
    take_away(request, address_plugin(&request.config), &mut || remove(request, kind))
}

/// Takes away addresses and link, in the order that suits the address plugin, whatever fails on the way.
///
/// # Errors
/// All that failed, in one.
pub(crate) fn take_away(
    request: &Request,
    address_plugin: &str,
    remove: &mut dyn FnMut() -> Result<(), Error>,
) -> Result<(), Error> {
    let mut failures = Failures::default();
    if address_plugin == NEEDS_THE_LINK {
        failures.note(delegate::del(address_plugin, request));
    }
    failures.note(remove());
    // After the link: an address must not be given anew while its last holder still answers to it.
    if !address_plugin.is_empty() && address_plugin != NEEDS_THE_LINK {
        failures.note(delegate::del(address_plugin, request));
    }
    failures.into_result()
}

/// Deletes the pod's link, under the name that was asked for or the one it was made under. Only one of this kind
/// that nobody else has marked: the path may lead to the namespace of another pod by now.
///
/// # Errors
/// When the kernel refuses.
fn remove(request: &Request, kind: &str) -> Result<(), Error> {
    let Some(mut pod) = Pod::open_if_there(request.netns.as_deref())? else { return Ok(()) };
    let owner = Owner::of(request);
    let alias = owner.alias();
    let is_foreign = |link: &Link| {
        link.alias.as_ref().is_some_and(|found| Owner::marks(found) && *found != alias)
            || link.kind.name() != Some(kind)
    };
    let mut failures = Failures::default();
    for name in [&request.ifname, &owner.host_link_name(0)] {
        if let Some(link) = pod.find(name)?.filter(|link| !is_foreign(link)) {
            failures.note(pod.delete(link.index));
        }
    }
    failures.into_result()
}

/// GC: links are where only their namespaces are, so what can be left behind are addresses.
///
/// # Errors
/// Code 7 without a list, else the address plugin's.
pub(crate) fn gc(request: &Request) -> Result<(), Error> {
    valid(request)?;
    match address_plugin(&request.config) {
        "" => Ok(()),
        kind => delegate::gc(kind, request),
    }
}

/// STATUS: whether an ADD would succeed, given the plugin's own answer.
///
/// # Errors
/// Code 50, or what the address plugin says.
pub(crate) fn status(request: &Request, own: Result<Terms, Error>) -> Result<(), Error> {
    let ready = own.and_then(|terms| match terms.addresses {
        Addresses::Plugin => delegate::status(&request.config.ipam_kind, request),
        Addresses::Earlier(_) | Addresses::None => Ok(()),
    });
    ready.map_err(|error| match error.code {
        Code::LIMITED => error,
        _ => Error { code: Code::NOT_READY, ..error },
    })
}

/// That the kernel has links of this kind.
///
/// # Errors
/// When it has not, naming the option; or refuses to tell.
pub(crate) fn require_kind(host: &mut Socket, kind: &str, option: &str) -> Result<(), Error> {
    if link::is_supported(host, kind).map_err(fault)? {
        return Ok(());
    }
    Err(Error::kernel(format!("this kernel has no {kind} links"))
        .with_details(format!("hint: it needs {option}, built in or as a module that can be loaded")))
}

/// An ADD's failure, and that of undoing what it had made.
pub(crate) fn undone_badly(cause: Error, failure: &Error) -> Error {
    Error { message: format!("{}; undoing it: {}", cause.message, failure.message), ..cause }
}
