//! Router advertisements: where the length of the prefix and the default gateway come from, which DHCPv6 leaves
//! to them.
//!
//! Read [`Discovery`]: it asks the link's routers (ROUTER SOLICITATION), keeps their latest words, and says what
//! follows for an address. [`Advertisement`] is one such word, decoded with the same distrust as a DHCPv6
//! message. That it was sent on this very link (hop limit 255) is checked where it is received; that it comes
//! from a link-local address, here.
//! Sources: RFC 4861 sections 4.1, 4.2, 4.6, 6.1.2 and 6.3; RFC 4191 (preferences, routes); RFC 8106 (DNS);
//! RFC 5942 (a prefix is on the link only where a router says so).

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use ipnet::Ipv6Net;

use super::message::decode_names;
use crate::ipam::dhcp::machine::{Action, Chance, Destination, Moment};

/// ICMPv6 type of a solicitation; its code, checksum and reserved bytes are zero.
const SOLICITATION: [u8; 8] = [133, 0, 0, 0, 0, 0, 0, 0];
const ADVERTISEMENT: u8 = 134;
const PREFIX_INFORMATION: u8 = 3;
const MTU: u8 = 5;
const ROUTE_INFORMATION: u8 = 24;
const NAME_SERVERS: u8 = 25;
const SEARCH_LIST: u8 = 31;

/// How often routers are asked. RFC 4861 has pauses of 4 s; a pod waits, so they are shorter here, but in all
/// longer than the 3 s in which a router may be silent after its last advertisement.
const SOLICITATIONS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(1500);
/// More routers than a link has by rights.
const MOST_ROUTERS: usize = 8;
/// The smallest MTU of IPv6; less is not heeded.
const SMALLEST_MTU: u32 = 1280;

/// What one router says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Advertisement {
    /// Seconds for which it is a default router; 0 for not at all.
    pub lifetime: u16,
    /// How much it wants to be used: 1, 0 or -1.
    pub preference: i8,
    /// The link's MTU.
    pub mtu: Option<u32>,
    /// Prefixes whose addresses are on this link.
    pub on_link: Vec<Ipv6Net>,
    /// Destinations that are reached through this router.
    pub routes: Vec<Ipv6Net>,
    /// Name servers.
    pub name_servers: Vec<Ipv6Addr>,
    /// Domains to search in.
    pub search: Vec<String>,
}

impl Advertisement {
    /// Reads an ICMPv6 message from its type on; `None` when it is no sound advertisement.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (header, mut options) = bytes.split_first_chunk::<16>()?;
        let [ADVERTISEMENT, 0, _, _, _hops, flags, l1, l2, ..] = *header else { return None };
        let mut found = Self {
            lifetime: u16::from_be_bytes([l1, l2]),
            preference: preference(flags),
            mtu: None,
            on_link: Vec::new(),
            routes: Vec::new(),
            name_servers: Vec::new(),
            search: Vec::new(),
        };
        while let [kind, length, ..] = *options {
            // Units of eight bytes, the header's two included. A length of zero condemns the whole message.
            let size = usize::from(length) * 8;
            let (option, rest) = options.split_at_checked(size).filter(|_| size != 0)?;
            found.take(kind, option);
            options = rest;
        }
        // A lone byte at the end is an option that is cut short.
        options.is_empty().then_some(found)
    }

    /// Takes in one option; one that makes no sense is passed over, as RFC 4861 has it.
    fn take(&mut self, kind: u8, option: &[u8]) {
        match kind {
            PREFIX_INFORMATION => self.on_link.extend(on_link_prefix(option)),
            ROUTE_INFORMATION => self.routes.extend(route(option)),
            MTU => {
                let mtu = option.get(4..8).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes);
                self.mtu = mtu.filter(|mtu| *mtu >= SMALLEST_MTU).or(self.mtu);
            }
            NAME_SERVERS if lasts(option) => {
                let (servers, _) = option.get(8..).unwrap_or_default().as_chunks::<16>();
                self.name_servers.extend(servers.iter().copied().map(Ipv6Addr::from));
            }
            SEARCH_LIST if lasts(option) => {
                self.search.extend(decode_names(option.get(8..).unwrap_or_default()))
            }
            _ => {}
        }
    }
}

/// Two bits of a byte of flags; the value that is reserved counts as medium.
fn preference(flags: u8) -> i8 {
    match (flags >> 3) & 3 {
        1 => 1,
        3 => -1,
        _ => 0,
    }
}

/// Whether the lifetime in bytes 4 to 7 is not zero.
fn lasts(option: &[u8]) -> bool {
    option.get(4..8).is_some_and(|bytes| bytes != [0; 4])
}

/// Length, flags (0x80: on the link), valid lifetime, preferred lifetime, reserved, prefix.
fn on_link_prefix(option: &[u8]) -> Option<Ipv6Net> {
    let (fixed, _) = option.split_first_chunk::<32>()?;
    let address = Ipv6Addr::from(*fixed.last_chunk::<16>()?);
    let prefix = Ipv6Net::new(address, fixed[2]).ok()?.trunc();
    (fixed[3] & 0x80 != 0 && lasts(fixed) && !address.is_unicast_link_local() && prefix.prefix_len() != 0)
        .then_some(prefix)
}

/// Length, preference, lifetime, then as much of the prefix as it needs.
fn route(option: &[u8]) -> Option<Ipv6Net> {
    let (length, bits) = (*option.get(2)?, option.get(8..)?);
    let mut octets = [0; 16];
    let known = bits.len().min(16);
    octets[..known].copy_from_slice(&bits[..known]);
    let enough = usize::from(length) <= known * 8;
    Ipv6Net::new(octets.into(), length).ok().filter(|_| enough && lasts(option)).map(|net| net.trunc())
}

/// The routers of one link.
#[derive(Debug, Clone)]
pub(super) struct Discovery {
    chance: Chance,
    /// Those that spoke, and whether in this round of asking.
    routers: Vec<Router>,
    /// When to ask again, or to stop waiting; `None` while nobody is asked.
    due: Option<Moment>,
    asked: u32,
}

/// A router and its latest word, decoded and as it came (for the lease's file).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Router {
    pub(super) address: Ipv6Addr,
    pub(super) payload: Vec<u8>,
    says: Advertisement,
    fresh: bool,
}

/// What the routers' words mean for the pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Surroundings {
    /// The default router.
    pub(super) gateway: Option<Ipv6Addr>,
    /// The link's MTU.
    pub(super) mtu: Option<u32>,
    /// Prefixes on the link.
    pub(super) on_link: Vec<Ipv6Net>,
    /// Other destinations, and the routers to them.
    pub(super) routes: Vec<(Ipv6Net, Ipv6Addr)>,
    /// Name servers.
    pub(super) name_servers: Vec<Ipv6Addr>,
    /// Domains to search in.
    pub(super) search: Vec<String>,
}

impl Discovery {
    pub(super) fn new(chance: Chance) -> Self {
        Self { chance, routers: Vec::new(), due: None, asked: 0 }
    }

    /// Takes up a router of before a restart.
    pub(super) fn remember(&mut self, address: Ipv6Addr, payload: &[u8]) {
        if let Some(says) = Advertisement::decode(payload) {
            self.routers.push(Router { address, payload: payload.to_vec(), says, fresh: false });
        }
    }

    /// Those that spoke.
    pub(super) fn routers(&self) -> &[Router] {
        &self.routers
    }

    /// Asks anew. What is known stays until a router has answered.
    pub(super) fn start(&mut self, now: Moment) -> Vec<Action> {
        self.routers.iter_mut().for_each(|router| router.fresh = false);
        (self.asked, self.due) = (0, Some(now));
        self.due(now)
    }

    /// Asks no more.
    pub(super) fn stop(&mut self) {
        self.due = None;
    }

    /// When [`Self::due`] is to be called; while there is such a moment, advertisements are waited for.
    pub(super) fn wake(&self) -> Option<Moment> {
        self.due
    }

    /// The moment of [`Self::wake`] is there.
    pub(super) fn due(&mut self, now: Moment) -> Vec<Action> {
        if self.due.is_none_or(|due| due > now) {
            return Vec::new();
        }
        if self.asked == SOLICITATIONS {
            self.due = None;
            return Vec::new();
        }
        self.asked += 1;
        self.due = Some(now + self.chance.about(PAUSE));
        vec![Action::Send(Destination::Routers, SOLICITATION.to_vec())]
    }

    /// A router spoke. A default router ends the waiting, for what it says is what was asked for.
    pub(super) fn received(&mut self, from: IpAddr, payload: &[u8]) {
        let IpAddr::V6(address) = from else { return };
        let Some(says) = Advertisement::decode(payload).filter(|_| address.is_unicast_link_local()) else {
            return;
        };
        // Its predecessors' words have been kept long enough.
        self.routers.retain(|router| router.fresh && router.address != address);
        if says.lifetime != 0 {
            self.due = None;
        }
        if self.routers.len() < MOST_ROUTERS {
            self.routers.push(Router { address, payload: payload.to_vec(), says, fresh: true });
        }
    }

    /// What all their words come to.
    pub(super) fn surroundings(&self) -> Surroundings {
        let mut found = Surroundings::default();
        let mut best = None;
        for Router { address, says, .. } in &self.routers {
            if says.lifetime != 0 && best.is_none_or(|best| best < says.preference) {
                (best, found.gateway) = (Some(says.preference), Some(*address));
            }
            found.mtu = found.mtu.into_iter().chain(says.mtu).min();
            add_new(&mut found.on_link, &says.on_link);
            add_new(&mut found.name_servers, &says.name_servers);
            add_new(&mut found.search, &says.search);
            found.routes.extend(says.routes.iter().map(|net| (*net, *address)));
        }
        found
    }
}

fn add_new<T: Clone + PartialEq>(list: &mut Vec<T>, more: &[T]) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

#[cfg(test)]
mod tests;
