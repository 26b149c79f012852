//! What a DHCP client is here: a state machine without sockets, clocks or chance.
//!
//! Read `Client` first; [`super::v4`] and [`super::v6`] are its two kinds and have the same methods:
//!
//! - `new(identity, settings, timing, seed)`: holding nothing;
//! - `step(&mut self, now, event) -> Vec<Action>`: something happened; what shall be done about it;
//! - `wake(&self) -> Option<Moment>`: when to call `step` with [`Event::Due`], if nothing happens before;
//! - `listens(&self) -> bool`: whether it waits for packets; sockets are open only as long as it does;
//! - `given(&self) -> Option<&Given>`: what it holds, as CNI says it;
//! - `save(&self) -> Json` and `restore(...) -> Option<Self>`: what it holds, for the lease's file.
//!
//! The daemon calls them in one thread. After every step it carries out the actions in order, then looks at
//! `wake` and `listens` again. A machine never waits and never fails: what cannot go on is an action too.
//! `now` is the boot clock ([`Moment`]), so it never goes back, includes suspension, and stays meaningful over
//! a restart of the daemon.
//!
//! A machine that has lost its lease ([`Action::Lost`]) begins anew by itself and goes on until it has another:
//! giving up is the daemon's decision, which drops it.

#![allow(dead_code, reason = "the words of DHCPv6 wait for its client")]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use cni::{Dns, IpConfig, Route};
use netstate::Mac;

/// A point of time: how long after the machine's boot (`CLOCK_BOOTTIME`).
pub(crate) type Moment = Duration;

/// What happens to a client.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event<'a> {
    /// Begin: the link is up, nothing is held.
    Start,
    /// Begin with what a server is believed to hold for us; another address will do as well.
    Adopt(IpAddr),
    /// A packet came in.
    Received(Packet<'a>),
    /// The moment that `wake` named is there.
    Due,
    /// Duplicate detection found that somebody else on the link has this address.
    Duplicate(IpAddr),
    /// Give back what is held. Nothing is expected after the actions of this step.
    Release,
}

/// A packet that came in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet<'a> {
    /// Which kind: how the payload is to be read.
    pub(crate) kind: PacketKind,
    /// Who sent it.
    pub(crate) from: IpAddr,
    /// The hardware address of the sender or of the router in between, where known.
    pub(crate) hardware: Option<Mac>,
    /// What is in it: the UDP payload, or the ICMPv6 message from its type on.
    pub(crate) payload: &'a [u8],
}

/// How the payload of a packet is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PacketKind {
    /// A DHCP message of the client's family.
    Dhcp,
    /// A router advertisement, hop limit checked.
    RouterAdvertisement,
}

/// What a client wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Send this payload.
    Send(Destination, Vec<u8>),
    /// There is a lease, or a new word on the one there was: `given` says what, `save` what to keep. The
    /// daemon writes the file, answers who waits, and mends the pod's interface where it differs.
    Bound,
    /// The lease is over: expired, or taken back by the server. The addresses must go from the interface.
    Lost(String),
    /// IPv6: the addresses in the pod are to have the ends that the lease has, by the kernel's own clock.
    Lifetimes,
    /// A server answered, but with what cannot be used; the client goes on trying. Who waits gets the reason.
    Unusable(String),
}

/// Where a payload goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Destination {
    /// DHCPv4: everybody on the link, from this address (0.0.0.0 while there is none).
    Broadcast(Ipv4Addr),
    /// DHCPv4: the one server, from the leased address.
    Unicast {
        /// Our address.
        from: Ipv4Addr,
        /// The server's.
        to: Ipv4Addr,
        /// The hardware address that the server's last word came from.
        hardware: Mac,
    },
    /// DHCPv6: all servers and relays on the link (ff02::1:2, port 547), from the link-local address.
    Servers,
    /// ICMPv6: all routers on the link (ff02::2); the payload begins with the type, the checksum is left zero.
    Routers,
}

/// Whose lease it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// `<containerID>/<network>/<ifname>`, as the reference's client identifier has it.
    pub(crate) name: String,
    /// The interface's hardware address.
    pub(crate) mac: Mac,
    /// The interface cannot receive what is sent to its hardware address before it has an IP address (ipvlan),
    /// or the operator wants broadcasts.
    pub(crate) broadcast: bool,
    /// The interface's MTU.
    pub(crate) mtu: u32,
}

/// How patient a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timing {
    /// How long a server that offered is asked before another one is looked for.
    pub(crate) exchange: Duration,
    /// The longest pause between two attempts.
    pub(crate) longest_pause: Duration,
}

/// What a lease gives, in CNI's words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Given {
    /// Addresses.
    pub(crate) ips: Vec<IpConfig>,
    /// Routes.
    pub(crate) routes: Vec<Route>,
    /// Name service.
    pub(crate) dns: Dns,
}

/// Chance, from a seed: transaction ids and the jitter of pauses. xorshift64*, which is enough for both.
#[derive(Debug, Clone)]
pub(crate) struct Chance(u64);

impl Chance {
    /// A sequence for each seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// A duration of `middle`, give or take a tenth (RFC 8415 section 15).
    pub(crate) fn about(&mut self, middle: Duration) -> Duration {
        let share = 0.9 + 0.2 * f64::from(self.next()) / f64::from(u32::MAX);
        middle.mul_f64(share)
    }
}
