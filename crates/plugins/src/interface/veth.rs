//! The cable between host and pod: made in one message, found again by its owner's name and mark.
//!
//! Read [`Cable`] first. Both ends are made where they belong: the pod's end comes into being inside the pod's
//! namespace, under its final name, and the host's end is up and plugged in before anybody else sees it.
//! Nothing is ever moved or renamed, which would cost twenty times as much.
//!
//! What stays true: a host link is ours if its alias is the owner's, or if it has no alias yet but the owner's
//! name and the network's group: that is what an ADD leaves that is killed before it can set the alias. Links
//! of others are never touched, whatever their names.

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::Path;

use cni::Error;
use ipnet::IpNet;
use kernel::link::{self, AddressGeneration, Change, Kind, Link, NewKind, NewLink, NewPeer, PortChange};
use kernel::netlink::{Batch, Protocol, Socket};
use kernel::route::{self, LOCAL_TABLE, Route};
use kernel::sysctl::Directory;
use netstate::Mac;

use super::pod::{self, Pod};
use crate::attachment;
use crate::fault::fault;
use crate::owner::{CABLE_NAMES, Owner};

/// A cable to be laid.
#[derive(Debug)]
pub(crate) struct Cable<'a> {
    /// For whom.
    pub(crate) owner: &'a Owner,
    /// The interface's name in the pod.
    pub(crate) interface: &'a str,
    /// The pod's hardware address; `None` leaves the kernel's choice.
    pub(crate) pod_mac: Option<Mac>,
    /// The host's; `None` leaves the kernel's choice.
    pub(crate) host_mac: Option<Mac>,
    /// Largest packet in bytes, for both ends.
    pub(crate) mtu: Option<u32>,
    /// The bridge that the host's end is plugged into, by index.
    pub(crate) bridge: Option<u32>,
    /// Whether the host's end is up at once. Otherwise it stays down until the pod's end is up, so that its first and
    /// only news to the host is that it carries frames: each makes the host look through its IPv6 routes.
    pub(crate) up: bool,
}

impl Cable<'_> {
    /// Lays the cable and returns the host's end. The pod's end is down.
    ///
    /// # Errors
    /// When the pod has an interface of that name already, or the kernel refuses. Nothing is left then.
    pub(crate) fn lay(&self, host: &mut Socket, pod: &mut Pod) -> Result<Link, Error> {
        let mut refused = None;
        for attempt in 0..CABLE_NAMES {
            let name = self.owner.host_link_name(attempt);
            match self.make(host, pod, &name)? {
                Made::Link(link) => return Ok(link),
                Made::Taken(refusal) => refused = Some(refusal),
            }
            if pod.find(self.interface)?.is_some() {
                return Err(Error::kernel(format!(
                    "container veth name ({}) peer provided ({name}) already exists",
                    self.interface
                )));
            }
        }
        Err(refused.unwrap_or_else(|| Error::kernel(format!("no name is free for {}", self.interface))))
    }

    fn make(&self, host: &mut Socket, pod: &Pod, name: &str) -> Result<Made, Error> {
        let peer = NewPeer {
            mac: self.pod_mac,
            mtu: self.mtu,
            namespace: Some(pod.namespace.as_fd()),
            ..NewPeer::new(self.interface)
        };
        let new = NewLink {
            mtu: self.mtu,
            mac: self.host_mac,
            up: self.up,
            master: self.bridge,
            group: Some(Owner::group(self.owner.network())),
            ..NewLink::new(name, NewKind::Veth(peer))
        };
        let mut made = None;
        let failures = host
            .run(&Batch::from(link::create_and_report(&new)), |_, reply| {
                made = Some(Link::from_reply(reply)?);
                Ok(())
            })
            .map_err(|error| self.unsure(host, fault(error)))?;
        match (failures.into_iter().next(), made) {
            (Some(failure), _) if failure.error.exists() => Ok(Made::Taken(fault(failure.error))),
            (Some(failure), _) => Err(fault(failure.error).context(self.interface)),
            (None, Some(link)) => Ok(Made::Link(link)),
            // A kernel that does not report what it made.
            (None, None) => match link::find(host, name) {
                Ok(Some(link)) => Ok(Made::Link(link)),
                Ok(None) => Err(Error::kernel(format!("{name} vanished while it was made"))),
                Err(error) => Err(self.unsure(host, fault(error))),
            },
        }
    }

    /// The conversation broke: whether the cable was laid is unknown, so it is taken away if it is there.
    fn unsure(&self, host: &mut Socket, cause: Error) -> Error {
        let found =
            Socket::open(Protocol::Route).map_err(fault).and_then(|mut fresh| find(&mut fresh, self.owner));
        match found.and_then(|links| links.into_iter().try_for_each(|link| delete(host, link.index))) {
            Ok(()) => cause,
            Err(failure) => Error { message: format!("{}; undoing it: {failure}", cause.message), ..cause },
        }
    }
}

enum Made {
    Link(Link),
    Taken(Error),
}

/// Puts the owner's mark on the host's end and sets it as a port of a bridge, in one send.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn mark(
    host: &mut Socket,
    link: &Link,
    owner: &Owner,
    change: Change<'_>,
    port: Option<PortChange>,
) -> Result<(), Error> {
    let alias = owner.alias();
    let mut batch = Batch::from(link::change(link.index, &Change { alias: Some(&alias), ..change }));
    batch.extend(port.map(|port| link::change_port(link.index, &port)));
    host.execute(batch).map_err(fault)
}

/// Keeps a router advertisement from a pod from giving the host an address or a route. Without IPv6 there is
/// nothing to keep away.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn refuse_advertisements(host_link: &str) -> Result<(), Error> {
    pod::put(&Directory::root(), &format!("net/ipv6/conf/{host_link}/accept_ra"), "0")
}

/// What keeps a host's end from making itself an IPv6 link-local address. A link without IPv6 has nothing to be told.
pub(crate) fn no_link_local(host_link: &Link) -> Option<AddressGeneration> {
    host_link.ipv6.map(|_| AddressGeneration::None)
}

/// Takes the route for IPv6 multicast off the host's end of a pod: the host knows the pod as a permanent neighbour, or not
/// at all. So the host neither sends IPv6 multicast to the pod nor takes any from it.
///
/// The kernel keeps these routes of all links in one list and goes through it whenever a link changes or tells of its
/// groups, so a thousand of them slow down the next pod. One that cannot be taken off costs that and no more.
pub(crate) fn forget_multicast(host: &mut Socket, host_link: u32) {
    const ANY_PROTOCOL: u8 = 0;
    let multicast = IpNet::new_assert(IpAddr::V6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0)), 8);
    let route = Route { table: LOCAL_TABLE, protocol: ANY_PROTOCOL, ..Route::on_link(multicast, host_link) };
    let _ = host.execute(route::delete(&route));
}

/// The owner's host links: one, unless something went wrong in the past.
///
/// # Errors
/// When the kernel refuses to tell.
pub(crate) fn find(host: &mut Socket, owner: &Owner) -> Result<Vec<Link>, Error> {
    let names: Vec<String> = (0..CABLE_NAMES).map(|attempt| owner.host_link_name(attempt)).collect();
    attachment::links(host, &names, |link| owner.owns(link))
}

/// Deletes a link, and with it the other end. That it is gone is a success.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn delete(host: &mut Socket, index: u32) -> Result<(), Error> {
    match host.execute(link::delete(index)) {
        Err(error) if !error.is_missing() => Err(fault(error)),
        _ => Ok(()),
    }
}

/// Takes away the cable whose end on the host could not be found, by its end in the pod. Only one that belongs to
/// nobody else is taken: the path may lead to the namespace of another pod by now.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn remove_from_pod(
    host: &mut Socket,
    owner: &Owner,
    netns: Option<&Path>,
    interface: &str,
) -> Result<(), Error> {
    let Some(mut pod) = Pod::open_if_there(netns)? else { return Ok(()) };
    let Some(end) = pod.find(interface)? else { return Ok(()) };
    if end.kind != Kind::Veth || belongs_to_another(host, owner, &end)? {
        return Ok(());
    }
    pod.delete(end.index)
}

/// Whether the far end of a pod's cable is on this host and marked as somebody else's.
fn belongs_to_another(host: &mut Socket, owner: &Owner, end: &Link) -> Result<bool, Error> {
    let Some(parent) = end.parent else { return Ok(false) };
    let far = link::find(host, parent).map_err(fault)?;
    let alias = far.filter(|link| link.kind == Kind::Veth).and_then(|link| link.alias);
    Ok(alias.is_some_and(|alias| Owner::marks(&alias) && alias != owner.alias()))
}
