//! What changes in a namespace, as it changes.
//!
//! Read [`Monitor`]: it joins the kernel's multicast groups and gives each change as an [`Event`]. Order matters
//! for a reconcile loop: open the monitor *before* the first listing, so that nothing falls between. On
//! [`Event::Overrun`] the kernel had to drop notifications: list everything again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;

use crate::address::Address;
use crate::forwarding::{self, Setting};
use crate::link::Link;
use crate::neighbour::{Entry, FdbEntry, Neighbour};
use crate::netlink::{Malformed, Protocol, Reply, Socket, option};
use crate::netns::Netns;
use crate::route::Route;
use crate::rule::Rule;
use crate::{Error, abi, socket_filter};

/// What to be told about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Links and bridge ports.
    Links,
    /// Addresses of both families.
    Addresses,
    /// Routes of both families.
    Routes,
    /// Neighbours and forwarding entries.
    Neighbours,
    /// Policy rules of both families.
    Rules,
    /// Whether the namespace forwards packets, in both families, and how it filters reverse paths.
    Forwarding,
}

impl Topic {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Links, Self::Addresses, Self::Routes, Self::Neighbours, Self::Rules, Self::Forwarding];

    fn groups(self) -> &'static [u32] {
        match self {
            Self::Links => &[abi::RTNLGRP_LINK],
            Self::Addresses => &[abi::RTNLGRP_IPV4_IFADDR, abi::RTNLGRP_IPV6_IFADDR],
            Self::Routes => &[abi::RTNLGRP_IPV4_ROUTE, abi::RTNLGRP_IPV6_ROUTE],
            Self::Neighbours => &[abi::RTNLGRP_NEIGH],
            Self::Rules => &[abi::RTNLGRP_IPV4_RULE, abi::RTNLGRP_IPV6_RULE],
            Self::Forwarding => &[abi::RTNLGRP_IPV4_NETCONF, abi::RTNLGRP_IPV6_NETCONF],
        }
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// Port of the socket that asked for the change ([`Socket::port`]); 0 when the kernel did it by itself, and for
    /// most changes of links, whoever made them.
    pub origin: u32,
    /// What changed.
    pub event: Event,
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A link is new, or something about it is.
    Link(Link),
    /// A link is gone.
    LinkGone(Link),
    /// A bridge port's settings or membership changed; the value is its index.
    BridgePort(u32),
    /// An address is new or has other flags.
    Address(Address),
    /// An address is gone.
    AddressGone(Address),
    /// A route is new or took another's place.
    Route(Route),
    /// A route is gone. When a link goes down its IPv4 routes go without a word.
    RouteGone(Route),
    /// A neighbour is new or changed.
    Neighbour(Neighbour),
    /// A neighbour is gone.
    NeighbourGone(Neighbour),
    /// A forwarding entry is new or changed.
    Fdb(FdbEntry),
    /// A forwarding entry is gone.
    FdbGone(FdbEntry),
    /// A policy rule is new.
    Rule(Rule),
    /// A policy rule is gone.
    RuleGone(Rule),
    /// Forwarding, or the filter of reverse paths, was set.
    Setting(Setting),
    /// Something in nf_tables changed; the table's name, if the message is about one.
    Nft(Option<String>),
    /// Notifications were lost, or one made no sense: list everything again.
    Overrun,
}

/// A listener in one network namespace.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
    protocol: Protocol,
    groups: Vec<u32>,
}

/// By what one thread has a monitor of another's told nothing for a while: see [`Monitor::ear`].
#[derive(Debug)]
pub struct Ear {
    descriptor: OwnedFd,
    groups: Vec<u32>,
}

impl Monitor {
    /// Listens to these topics in the calling thread's namespace, from now on.
    ///
    /// # Errors
    /// When the socket cannot be made or a group not joined.
    pub fn open(topics: &[Topic]) -> Result<Self, Error> {
        Self::listen(Socket::open(Protocol::Route)?, Protocol::Route, &groups(topics))
    }

    /// Listens in another namespace; the calling thread is back home when it returns.
    ///
    /// # Errors
    /// As [`Self::open`], or when the namespace may not be entered.
    pub fn open_in(namespace: &Netns, topics: &[Topic]) -> Result<Self, Error> {
        Self::listen(namespace.socket(Protocol::Route)?, Protocol::Route, &groups(topics))
    }

    /// Listens to nf_tables in the calling thread's namespace.
    ///
    /// # Errors
    /// When the socket cannot be made or the group not joined (no nf_tables in this kernel).
    pub fn open_nft() -> Result<Self, Error> {
        Self::listen(Socket::open(Protocol::Netfilter)?, Protocol::Netfilter, &[abi::NFNLGRP_NFTABLES])
    }

    /// Listens to nf_tables in another namespace.
    ///
    /// # Errors
    /// As [`Self::open_nft`], or when the namespace may not be entered.
    pub fn open_nft_in(namespace: &Netns) -> Result<Self, Error> {
        let socket = namespace.socket(Protocol::Netfilter)?;
        Self::listen(socket, Protocol::Netfilter, &[abi::NFNLGRP_NFTABLES])
    }

    /// Is not told of what the socket with this port does from now on ([`Socket::port`]): who makes large changes himself
    /// need not hear of each element.
    ///
    /// # Errors
    /// When the kernel refuses the filter.
    pub fn ignore(&mut self, port: u32) -> Result<(), Error> {
        /// Where the port stands in a notification: `nlmsg_pid`. Those of one datagram have one origin.
        const PORT_OFFSET: u32 = 12;
        let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
        let program = [
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, PORT_OFFSET),
            // Filters load in the network's order, and headers of netlink are in the machine's.
            step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, port.to_be()),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        ];
        socket_filter::attach(self.socket.as_fd(), &program, "leave notifications out")
    }

    fn listen(mut socket: Socket, protocol: Protocol, groups: &[u32]) -> Result<Self, Error> {
        socket.subscribe(groups)?;
        Ok(Self { socket, protocol, groups: groups.to_vec() })
    }

    /// What can be closed and opened from elsewhere. The kernel writes a notification for each rule and element of a change
    /// if anybody at all listens, also to be left out ([`Self::ignore`]): of a large change that is a quarter of the work.
    ///
    /// # Errors
    /// When descriptors have run out.
    pub fn ear(&self) -> Result<Ear, Error> {
        let tried = "duplicate a netlink socket";
        let descriptor = self.as_fd().try_clone_to_owned();
        let descriptor = descriptor.map_err(|source| Error::System { tried, source })?;
        Ok(Ear { descriptor, groups: self.groups.clone() })
    }

    /// Waits for the next changes, at most this long; `None` when none came in time. For a plugin that waits for
    /// one thing (carrier, duplicate detection): open, look, wait, look again.
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub fn receive_within(&mut self, patience: Duration) -> Result<Option<Vec<Notification>>, Error> {
        if self.socket.readable_within(patience)? { self.receive().map(Some) } else { Ok(None) }
    }

    /// Waits for the next changes. An overrun is an event among others, not an error; so is a notification that
    /// cannot be decoded, for what it was about can still be listed.
    ///
    /// # Errors
    /// When the socket broke.
    pub fn receive(&mut self) -> Result<Vec<Notification>, Error> {
        let mut found = Vec::new();
        let protocol = self.protocol;
        let received = self.socket.receive(|reply| {
            let event = match protocol {
                Protocol::Route => decode(reply)?,
                Protocol::Netfilter => Some(Event::Nft(nft_table(reply)?)),
                // Nothing of it is listened to.
                Protocol::Generic => None,
            };
            found.extend(event.map(|event| Notification { origin: reply.port, event }));
            Ok(())
        });
        match received {
            Ok(()) => Ok(found),
            Err(Error::Overrun | Error::Answer { .. }) => {
                Ok(vec![Notification { origin: 0, event: Event::Overrun }])
            }
            Err(error) => Err(error),
        }
    }
}

impl Ear {
    /// Has the monitor told nothing from now on. Whoever does it finds out by other means what is missed.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn close(&self) -> Result<(), Error> {
        self.each("leave netlink notifications", option::leave)
    }

    /// Has the monitor told of what changes from now on; so it may be already.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open(&self) -> Result<(), Error> {
        self.each("subscribe to netlink notifications", option::join)
    }

    fn each(
        &self,
        tried: &'static str,
        change: fn(BorrowedFd<'_>, u32) -> Result<(), Errno>,
    ) -> Result<(), Error> {
        let change = |group: &u32| change(self.descriptor.as_fd(), *group);
        let done = self.groups.iter().try_for_each(change);
        done.map_err(|errno| Error::System { tried, source: io::Error::from(errno) })
    }
}

impl AsFd for Monitor {
    /// Readable when [`Monitor::receive`] would not wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn groups(topics: &[Topic]) -> Vec<u32> {
    topics.iter().flat_map(|topic| topic.groups()).copied().collect()
}

fn decode(reply: Reply<'_>) -> Result<Option<Event>, Malformed> {
    Ok(match reply.kind {
        abi::RTM_NEWLINK | abi::RTM_DELLINK => Some(link_event(reply)?),
        abi::RTM_NEWADDR => Some(Event::Address(Address::from_reply(reply)?)),
        abi::RTM_DELADDR => Some(Event::AddressGone(Address::from_reply(reply)?)),
        abi::RTM_NEWROUTE => Route::from_reply(reply)?.map(Event::Route),
        abi::RTM_DELROUTE => Route::from_reply(reply)?.map(Event::RouteGone),
        abi::RTM_NEWNEIGH | abi::RTM_DELNEIGH => neighbour_event(reply)?,
        abi::RTM_NEWRULE => Rule::from_reply(reply)?.map(Event::Rule),
        abi::RTM_DELRULE => Rule::from_reply(reply)?.map(Event::RuleGone),
        abi::RTM_NEWNETCONF => forwarding::setting(reply)?.map(Event::Setting),
        _ => None,
    })
}

/// A bridge reports its ports in link messages of its own family; a "deleted" one has only left the bridge.
fn link_event(reply: Reply<'_>) -> Result<Event, Malformed> {
    let link = Link::from_reply(reply)?;
    if reply.payload.first().copied().map(i32::from) == Some(libc::AF_BRIDGE) {
        return Ok(Event::BridgePort(link.index));
    }
    Ok(if reply.kind == abi::RTM_DELLINK { Event::LinkGone(link) } else { Event::Link(link) })
}

fn neighbour_event(reply: Reply<'_>) -> Result<Option<Event>, Malformed> {
    let gone = reply.kind == abi::RTM_DELNEIGH;
    Ok(Entry::from_reply(reply)?.map(|entry| match entry {
        Entry::Neighbour(neighbour) if gone => Event::NeighbourGone(neighbour),
        Entry::Neighbour(neighbour) => Event::Neighbour(neighbour),
        Entry::Fdb(entry) if gone => Event::FdbGone(entry),
        Entry::Fdb(entry) => Event::Fdb(entry),
    }))
}

/// Every nf_tables message but the closing one, which gives the new generation, has the table's name first.
fn nft_table(reply: Reply<'_>) -> Result<Option<String>, Malformed> {
    const TABLE_NAME: u16 = 1;
    const NEW_GENERATION: u16 = libc::NFT_MSG_NEWGEN as u16;
    let (_, attributes) = reply.split::<4>()?;
    if reply.kind & 0xff == NEW_GENERATION {
        return Ok(None);
    }
    Ok(attributes.find(TABLE_NAME)?.map(|name| name.foreign_text()))
}
