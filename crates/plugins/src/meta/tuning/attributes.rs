//! What of a link can be tuned: one value for what is asked for, what is there and what was there before.

use cni::{AddResult, Error};
use kernel::link::{self, Change, Link};
use kernel::netlink::{Batch, Socket};
use netstate::Mac;
use rustix::io::Errno;

use super::refused;

/// Some of a link's attributes; `None` for what does not matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    /// Hardware address.
    pub(super) mac: Option<Mac>,
    /// Largest packet in bytes.
    pub(super) mtu: Option<u32>,
    /// Takes frames for others too.
    pub(super) promiscuous: Option<bool>,
    /// Takes all multicast frames.
    pub(super) all_multicast: Option<bool>,
    /// Packets that may wait for transmission.
    pub(super) transmit_queue_length: Option<u32>,
}

impl Attributes {
    /// Everything that a link has now.
    pub(super) fn of(link: &Link) -> Self {
        Self {
            mac: link.mac,
            mtu: Some(link.mtu),
            promiscuous: Some(link.is_promiscuous()),
            all_multicast: Some(link.is_all_multicast()),
            transmit_queue_length: Some(link.transmit_queue_length),
        }
    }

    /// Whether nothing matters.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Those of `self` that matter to `other`.
    pub(super) fn only(&self, other: &Self) -> Self {
        Self {
            mac: self.mac.filter(|_| other.mac.is_some()),
            mtu: self.mtu.filter(|_| other.mtu.is_some()),
            promiscuous: self.promiscuous.filter(|_| other.promiscuous.is_some()),
            all_multicast: self.all_multicast.filter(|_| other.all_multicast.is_some()),
            transmit_queue_length: self
                .transmit_queue_length
                .filter(|_| other.transmit_queue_length.is_some()),
        }
    }

    /// `self`, filled up from `other`.
    pub(super) fn or(self, other: &Self) -> Self {
        Self {
            mac: self.mac.or(other.mac),
            mtu: self.mtu.or(other.mtu),
            promiscuous: self.promiscuous.or(other.promiscuous),
            all_multicast: self.all_multicast.or(other.all_multicast),
            transmit_queue_length: self.transmit_queue_length.or(other.transmit_queue_length),
        }
    }

    /// Those of `self` that `present` does not have already.
    pub(super) fn beyond(&self, present: &Self) -> Self {
        Self {
            mac: self.mac.filter(|_| self.mac != present.mac),
            mtu: self.mtu.filter(|_| self.mtu != present.mtu),
            promiscuous: self.promiscuous.filter(|_| self.promiscuous != present.promiscuous),
            all_multicast: self.all_multicast.filter(|_| self.all_multicast != present.all_multicast),
            transmit_queue_length: self
                .transmit_queue_length
                .filter(|_| self.transmit_queue_length != present.transmit_queue_length),
        }
    }

    /// Gives a link all of these, each for itself, so that one that is refused does not keep the others from it.
    ///
    /// # Errors
    /// All refusals together, and whether another attempt may do better.
    pub(super) fn apply(&self, socket: &mut Socket, link: u32) -> Result<(), (Error, bool)> {
        let changes = self.changes();
        if changes.is_empty() {
            return Ok(());
        }
        let requests = changes.iter().map(|(_, change)| link::change(link, change));
        let refusals = socket
            .run(&Batch::from_iter(requests), |_, _| Ok(()))
            .map_err(|error| (refused("change the interface", error), true))?;
        let may_pass = refusals.iter().any(|refusal| passes(refusal.error.errno()));
        let said = |refusal: kernel::netlink::Failure| {
            let what = changes.get(refusal.position).map_or("change the interface", |(what, _)| what);
            refused(what, refusal.error)
        };
        Error::join(refusals.into_iter().map(said).collect()).map_or(Ok(()), |error| Err((error, may_pass)))
    }

    /// One change for each attribute, with its name in words.
    fn changes(&self) -> Vec<(String, Change<'static>)> {
        let none = Change::default();
        let mut changes = Vec::new();
        if let Some(mtu) = self.mtu {
            changes.push((format!("set MTU {mtu}"), Change { mtu: Some(mtu), ..none }));
        }
        if let Some(mac) = self.mac {
            changes.push((format!("set hardware address {mac}"), Change { mac: Some(mac), ..none }));
        }
        if let Some(on) = self.promiscuous {
            changes.push((format!("set promiscuous mode {on}"), Change { promiscuous: Some(on), ..none }));
        }
        if let Some(on) = self.all_multicast {
            changes
                .push((format!("set all-multicast mode {on}"), Change { all_multicast: Some(on), ..none }));
        }
        if let Some(length) = self.transmit_queue_length {
            let change = Change { transmit_queue_length: Some(length), ..none };
            changes.push((format!("set transmit queue length {length}"), change));
        }
        changes
    }

    /// Compares with what a link has.
    ///
    /// # Errors
    /// Names the first attribute that differs.
    pub(super) fn check(&self, link: &Link) -> Result<(), Error> {
        let present = Self::of(link);
        let Some((what, _)) = self.beyond(&present).changes().into_iter().next() else { return Ok(()) };
        let differs = self.beyond(&present);
        let present = present.only(&differs).changes().into_iter().next();
        let present = present.map_or_else(String::new, |(present, _)| present);
        Err(Error::kernel(format!(
            "{} is not as configured: wanted is \"{}\", it has \"{}\"",
            link.name,
            what.trim_start_matches("set "),
            present.trim_start_matches("set ")
        )))
    }

    /// The result so far with the new hardware address and MTU at the pod's interface.
    pub(super) fn shown_in(&self, mut result: AddResult, ifname: &str) -> AddResult {
        let inside = result.interfaces.iter().any(|known| known.name == ifname && !known.sandbox.is_empty());
        let ours = result
            .interfaces
            .iter_mut()
            .filter(|known| known.name == ifname && (!inside || !known.sandbox.is_empty()));
        for interface in ours {
            if let Some(mac) = self.mac {
                interface.mac = mac.to_string();
            }
            // A result that did not tell the MTU does not start to.
            if let Some(mtu) = self.mtu.filter(|_| interface.mtu != 0) {
                interface.mtu = mtu;
            }
        }
        result
    }
}

/// Refusals that are about the moment and not about the value.
fn passes(errno: Option<Errno>) -> bool {
    matches!(errno, None | Some(Errno::NOMEM | Errno::NOBUFS | Errno::AGAIN | Errno::INTR))
}

#[cfg(test)]
mod tests {
    use cni::Interface;

    use super::*;

    #[test]
    fn only_the_pods_interface_shows_the_change() {
        let interface = |sandbox: &str| Interface {
            name: "eth0".into(),
            mac: "02:00:00:00:00:01".into(),
            mtu: 1500,
            sandbox: sandbox.into(),
            ..Interface::default()
        };
        let wanted =
            Attributes { mac: Some(Mac([2, 0, 0, 0, 0, 0xaa])), mtu: Some(1400), ..Attributes::default() };
        let both =
            AddResult { interfaces: vec![interface(""), interface("/run/ns")], ..AddResult::default() };
        let shown = wanted.shown_in(both.clone(), "eth0");
        assert_eq!(shown.interfaces[0], both.interfaces[0]);
        assert_eq!((shown.interfaces[1].mac.as_str(), shown.interfaces[1].mtu), ("02:00:00:00:00:aa", 1400));
        let alone = AddResult { interfaces: vec![Interface { mtu: 0, ..interface("") }], ..both };
        let shown = wanted.shown_in(alone, "eth0");
        assert_eq!((shown.interfaces[0].mac.as_str(), shown.interfaces[0].mtu), ("02:00:00:00:00:aa", 0));
    }

    #[test]
    fn what_a_link_has_already_is_not_changed() {
        let wanted = Attributes { mtu: Some(1400), promiscuous: Some(false), ..Attributes::default() };
        let present = Attributes { mtu: Some(1500), promiscuous: Some(false), ..Attributes::default() };
        assert_eq!(wanted.beyond(&present), Attributes { mtu: Some(1400), ..Attributes::default() });
        assert!(wanted.beyond(&wanted).is_empty());
        assert_eq!(present.only(&Attributes { mtu: Some(1), ..Attributes::default() }).changes().len(), 1);
    }
}
