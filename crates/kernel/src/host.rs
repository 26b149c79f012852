//! A node's network as one thing: read what it is, make it what it should be.
//!
//! Read [`Host`]. [`Host::observe`] gives what is ours in this namespace as a `netstate` value, beside the foreign
//! objects that stand in the way of what is wanted; `netstate::plan` finds the steps; [`Host::apply`] carries
//! them out and reports each that failed. Nothing is remembered between calls, for the kernel is the only copy, but where
//! peers of WireGuard were said to be: the kernel follows a peer that moves, and that is no difference to be healed.
//!
//! ```no_run
//! # fn main() -> Result<(), kernel::Error> {
//! let want = netstate::State::default();
//! let mut host = kernel::Host::open()?;
//! let observed = host.observe(&want)?;
//! let plan = netstate::plan(&observed, &want);
//! for failed in host.apply(&plan.steps)?.failed {
//!     println!("{}: {}", failed.step, failed.error);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! What stays true: only objects with our marks (see the constants of `netstate`) are ever changed or removed;
//! what depends on a step that failed is not tried, everything else is.

mod apply;
mod observe;

pub use apply::{Failed, Report};

use std::collections::BTreeMap;
use std::net::SocketAddr;

use netstate::{LinkName, WireGuardPeerKey};

use crate::Error;
use crate::netlink::{Protocol, Socket};
use crate::nft::Nft;
use crate::wireguard::{Conversation, Device};

/// The network of the namespace in which this was opened.
#[derive(Debug)]
pub struct Host {
    route: Socket,
    nft: Nft,
    /// Opened when the first device is read or told something.
    wireguard: Option<Conversation>,
    /// The endpoints that peers were given here.
    endpoints: BTreeMap<WireGuardPeerKey, SocketAddr>,
}

impl Host {
    /// Opens it in the calling thread's network namespace. Observing and applying must be done on a thread of the
    /// same namespace: sysctls are those of the calling thread.
    ///
    /// # Errors
    /// When the kernel lacks netlink or netfilter, or descriptors have run out.
    pub fn open() -> Result<Self, Error> {
        let (route, nft) = (Socket::open(Protocol::Route)?, Nft::open()?);
        Ok(Self { route, nft, wireguard: None, endpoints: BTreeMap::new() })
    }

    /// What a WireGuard device and its peers say of themselves.
    ///
    /// # Errors
    /// When there is no such device, or the kernel refuses.
    pub fn wireguard(&mut self, link: LinkName) -> Result<Device, Error> {
        self.conversation()?.device(link.as_str())
    }

    fn conversation(&mut self) -> Result<&mut Conversation, Error> {
        match &mut self.wireguard {
            Some(conversation) => Ok(conversation),
            place => Ok(place.insert(Conversation::open()?)),
        }
    }

    /// The ports of this value's own sockets, by which a [`Notification`](crate::monitor::Notification) about
    /// its own changes is told from one about somebody else's; 0 for a socket that has sent nothing yet.
    ///
    /// # Errors
    /// Only when a descriptor was closed behind our back.
    pub fn ports(&self) -> Result<[u32; 2], Error> {
        Ok([self.route.port()?, self.nft.port()?])
    }
}
