//! The two clients as one: what the daemon drives.
//!
//! Read [`Client`]: it hands every call on to the client of its family. What the calls mean is told in
//! [`super::machine`].

use std::net::Ipv6Addr;

use cni::{Fields, Json};

use super::config::Settings;
use super::machine::{Action, Event, Given, Identity, Moment, Timing};
use super::{v4, v6};

/// Which protocol a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Protocol {
    /// DHCPv4.
    V4,
    /// DHCPv6, and router advertisements.
    V6,
}

impl Protocol {
    /// The protocols that a configuration asks for.
    pub(crate) fn wanted(settings: &Settings) -> Vec<Self> {
        let wanted = [settings.ipv4.then_some(Self::V4), settings.ipv6.then_some(Self::V6)];
        wanted.into_iter().flatten().collect()
    }

    /// The key of the client in a lease's file, and its name in what the daemon says.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::V4 => "dhcpv4",
            Self::V6 => "dhcpv6",
        }
    }
}

/// A client of either protocol.
#[derive(Debug)]
pub(crate) enum Client {
    /// DHCPv4.
    V4(Box<v4::Client>),
    /// DHCPv6.
    V6(Box<v6::Client>),
}

impl Client {
    /// One that holds nothing.
    pub(crate) fn new(
        protocol: Protocol,
        identity: Identity,
        settings: &Settings,
        timing: Timing,
        seed: u64,
    ) -> Self {
        match protocol {
            Protocol::V4 => Self::V4(Box::new(v4::Client::new(identity, settings, timing, seed))),
            Protocol::V6 => Self::V6(Box::new(v6::Client::new(identity, settings, timing, seed))),
        }
    }

    /// Its protocol.
    pub(crate) fn protocol(&self) -> Protocol {
        match self {
            Self::V4(_) => Protocol::V4,
            Self::V6(_) => Protocol::V6,
        }
    }

    /// Something happened: what is to be done.
    pub(crate) fn step(&mut self, now: Moment, event: Event<'_>) -> Vec<Action> {
        match self {
            Self::V4(client) => client.step(now, event),
            Self::V6(client) => client.step(now, event),
        }
    }

    /// When it wants to be called if nothing happens before.
    pub(crate) fn wake(&self) -> Option<Moment> {
        match self {
            Self::V4(client) => client.wake(),
            Self::V6(client) => client.wake(),
        }
    }

    /// Whether it waits for packets.
    pub(crate) fn listens(&self) -> bool {
        match self {
            Self::V4(client) => client.listens(),
            Self::V6(client) => client.listens(),
        }
    }

    /// What it holds.
    pub(crate) fn given(&self) -> Option<&Given> {
        match self {
            Self::V4(client) => client.given(),
            Self::V6(client) => client.given(),
        }
    }

    /// The seconds that are left to each address, preferred and valid, for the kernel to count; empty for DHCPv4,
    /// whose addresses stay until they are taken away.
    pub(crate) fn lifetimes(&self, now: Moment) -> Vec<(Ipv6Addr, u32, u32)> {
        match self {
            Self::V4(_) => Vec::new(),
            Self::V6(client) => client.lifetimes(now),
        }
    }

    /// What it holds, for the lease's file; null when it holds nothing.
    pub(crate) fn save(&self) -> Json {
        match self {
            Self::V4(client) => client.save(),
            Self::V6(client) => client.save(),
        }
    }

    /// Takes up what [`Self::save`] wrote; false when there is nothing in it.
    pub(crate) fn restore(&mut self, saved: &Fields<'_>) -> bool {
        match self {
            Self::V4(client) => client.restore(saved),
            Self::V6(client) => client.restore(saved),
        }
    }
}
