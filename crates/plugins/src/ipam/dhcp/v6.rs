//! DHCPv6: addresses from a server, and all that DHCPv6 leaves to the routers.
//!
//! Read [`Client`] first. Its two halves know nothing of each other: `dialogue` talks to DHCPv6 servers
//! (addresses, their lifetimes, name service), `router` to the link's routers (default gateway, prefix lengths,
//! MTU). A pod needs both, so the first answer waits for both: until a server has granted a lease, and a default
//! router has spoken or has been asked in vain. At each renewal the routers are asked again.
//!
//! Without routers, or where they call no prefix on-link, an address stands alone (/128), and the pod has no
//! gateway; `ipv6PrefixLength` and `ipv6Gateway` say otherwise. With both of them set, no router is asked.
//!
//! The DUID is made from the attachment's name (or `dhcp-client-identifier`), so it is the same after any restart,
//! and no two attachments share one.

mod dialogue;
mod lease;
pub mod message;
pub mod router;
mod sockets;

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use cni::{Dns, Fields, IpConfig, Json, Route};
use ipnet::{IpNet, Ipv6Net};
use sha2::{Digest, Sha256};

use super::config::Settings;
use super::machine::{Action, Chance, Event, Given, Identity, Moment, PacketKind, Timing};
use crate::owner::hexadecimal;
use dialogue::Dialogue;
use lease::Lease;
use message::Message;
use router::{Discovery, Surroundings};

pub(crate) use sockets::Sockets;

/// The scope of what is on the link itself (`RT_SCOPE_LINK`).
const LINK_SCOPE: u8 = 253;
/// When the pod has its addresses after the plugin got them: the interface plugin adds them, without an end.
const SETTLED: Duration = Duration::from_secs(5);
/// The option whose value stands for the attachment's name, as in DHCPv4.
const CLIENT_IDENTIFIER: u8 = 61;

/// A DHCPv6 client for one attachment; its methods are those that [`super::machine`] lists.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    association: u32,
    ifname: String,
    /// The link's MTU; routes tell a smaller one that routers advertise.
    mtu: u32,
    wants: Wants,
    dialogue: Dialogue,
    discovery: Discovery,
    /// The lease is there, but the routers have not spoken yet.
    held_back: bool,
    given: Option<Given>,
    /// When the addresses in the pod get their ends for the first time.
    settles: Option<Moment>,
}

/// What the configuration says.
#[derive(Debug, Clone)]
struct Wants {
    prefix_length: Option<u8>,
    gateway: Option<Ipv6Addr>,
    priority: u32,
}

impl Client {
    /// Holds nothing.
    pub(crate) fn new(identity: Identity, settings: &Settings, timing: Timing, seed: u64) -> Self {
        let provided = settings.provide.iter().find(|(code, _)| *code == CLIENT_IDENTIFIER);
        let name = provided.map_or(identity.name.as_bytes(), |(_, value)| value);
        let (duid, association) = names(name);
        let ifname = identity.name.rsplit_once('/').map_or(String::new(), |(_, ifname)| ifname.to_owned());
        Self {
            association,
            ifname,
            mtu: identity.mtu,
            wants: Wants {
                prefix_length: settings.ipv6_prefix_length,
                gateway: settings.ipv6_gateway,
                priority: settings.priority,
            },
            dialogue: Dialogue::new(duid, association, timing.longest_pause, Chance::new(seed)),
            discovery: Discovery::new(Chance::new(seed.rotate_left(32))),
            held_back: false,
            given: None,
            settles: None,
        }
    }

    /// Something happened; what shall be done about it.
    pub(crate) fn step(&mut self, now: Moment, event: Event<'_>) -> Vec<Action> {
        let before = self.given.clone();
        let mut actions = self.happened(now, event);
        let bound = actions.contains(&Action::Bound);
        actions.retain(|action| *action != Action::Bound);
        self.held_back |= bound && before.is_none();
        self.given = self.dialogue.lease.as_ref().map(|lease| self.words_for(lease));
        // The first word waits for the routers; later ones are about what is in use, and go out at once.
        if self.held_back && self.discovery.wake().is_some() {
            self.given = None;
        } else if self.given.is_some() && (bound || self.held_back || self.given != before) {
            self.held_back = false;
            actions.push(Action::Bound);
            match before {
                None => self.settles = Some(now + SETTLED),
                Some(_) => actions.push(Action::Lifetimes),
            }
        }
        if self.settles.is_some_and(|settles| settles <= now) {
            self.settles = None;
            actions.push(Action::Lifetimes);
        }
        let lost = actions.iter().any(|action| matches!(action, Action::Lost(_)));
        if (lost || bound && before.is_some()) && self.asks_routers() {
            actions.extend(self.discovery.start(now));
        }
        actions
    }

    fn happened(&mut self, now: Moment, event: Event<'_>) -> Vec<Action> {
        match event {
            Event::Start => self.start(now, None),
            Event::Adopt(IpAddr::V6(address)) => self.start(now, Some(address)),
            Event::Adopt(IpAddr::V4(_)) => self.start(now, None),
            Event::Received(packet) => match packet.kind {
                PacketKind::Dhcp => self.dialogue.received(now, packet.payload),
                PacketKind::RouterAdvertisement => {
                    self.discovery.received(packet.from, packet.payload);
                    Vec::new()
                }
            },
            Event::Due => {
                let mut actions = self.discovery.due(now);
                actions.extend(self.dialogue.due(now));
                actions
            }
            Event::Duplicate(IpAddr::V6(address)) => self.dialogue.duplicate(now, address),
            Event::Duplicate(IpAddr::V4(_)) => Vec::new(),
            Event::Release => {
                self.discovery.stop();
                self.settles = None;
                self.dialogue.release(now)
            }
        }
    }

    fn start(&mut self, now: Moment, wish: Option<Ipv6Addr>) -> Vec<Action> {
        let mut actions = if self.asks_routers() { self.discovery.start(now) } else { Vec::new() };
        actions.extend(self.dialogue.start(now, wish));
        actions
    }

    fn asks_routers(&self) -> bool {
        self.wants.gateway.is_none() || self.wants.prefix_length.is_none()
    }

    /// When to call [`Self::step`] with [`Event::Due`].
    pub(crate) fn wake(&self) -> Option<Moment> {
        [self.dialogue.wake(), self.discovery.wake(), self.settles].into_iter().flatten().min()
    }

    /// Whether it waits for packets of either kind.
    pub(crate) fn listens(&self) -> bool {
        self.dialogue.listens() || self.discovery.wake().is_some()
    }

    /// What it holds.
    pub(crate) fn given(&self) -> Option<&Given> {
        self.given.as_ref()
    }

    /// The seconds for which each address is still preferred, and valid, as the kernel takes them.
    pub(crate) fn lifetimes(&self, now: Moment) -> Vec<(Ipv6Addr, u32, u32)> {
        let leased = self.dialogue.lease.iter().flat_map(|lease| &lease.addresses);
        leased
            .map(|leased| {
                let (preferred, valid) = leased.lifetimes(now);
                (leased.address, preferred, valid)
            })
            .collect()
    }

    /// What it holds, for the lease's file: the REPLY and the advertisements that say so.
    pub(crate) fn save(&self) -> Json {
        let (Some(lease), Some(given)) = (&self.dialogue.lease, &self.given) else { return Json::Null };
        let router = |router: &router::Router| {
            Json::object([
                ("address", Json::from(router.address.to_string())),
                ("advertisement", Json::from(hexadecimal(&router.payload))),
            ])
        };
        Json::object([
            ("since", Json::from(u64::try_from(lease.since.as_millis()).unwrap_or(u64::MAX))),
            ("addresses", Json::strings(given.ips.iter().map(|ip| ip.address.to_string()))),
            ("reply", Json::from(hexadecimal(&lease.as_reply(self.association).encode()))),
            ("routers", Json::Array(self.discovery.routers().iter().map(router).collect())),
        ])
    }

    /// Takes up what was saved, to ask the servers soon whether it still holds; false when it makes no sense.
    pub(crate) fn restore(&mut self, saved: &Fields<'_>) -> bool {
        let Some(lease) = self.read(saved) else { return false };
        for router in saved.array("routers").unwrap_or_default() {
            let Ok(router) = router.fields() else { continue };
            let address = router.parse("address").ok().flatten();
            let payload = router.string("advertisement").ok().and_then(bytes);
            if let (Some(address), Some(payload)) = (address, payload) {
                self.discovery.remember(address, &payload);
            }
        }
        let told = saved.array("addresses").unwrap_or_default();
        let ips = told.iter().filter_map(|item| item.parse().ok()).map(IpConfig::new);
        self.given = Some(Given { ips: ips.collect(), ..Given::default() });
        self.given = Some(self.words_for(&lease));
        self.dialogue.resume(lease);
        // The daemon before may have ended between the plugin's answer and this.
        self.settles = Some(Moment::ZERO);
        true
    }

    fn read(&self, saved: &Fields<'_>) -> Option<Lease> {
        let since = Duration::from_millis(saved.optional_integer("since").ok()??);
        let reply = Message::decode(&bytes(saved.string("reply").ok()?)?).ok()?;
        Lease::granted(&reply, self.association, None, since).filter(|lease| !lease.addresses.is_empty())
    }

    /// A lease and what the routers say, in CNI's words.
    fn words_for(&self, lease: &Lease) -> Given {
        let around = self.discovery.surroundings();
        let gateway = self.wants.gateway.or(around.gateway).map(IpAddr::V6);
        let nets: Vec<Ipv6Net> =
            lease.addresses.iter().map(|leased| self.net(leased.address, &around.on_link)).collect();
        let ips = nets.iter().map(|net| IpConfig { gateway, ..IpConfig::new(IpNet::V6(*net)) });
        Given {
            ips: ips.collect(),
            routes: self.routes(gateway, &nets, &around),
            dns: self.dns(lease, &around),
        }
    }

    /// The address with the length of the prefix it is in: the one that the runtime was told already, the
    /// configured one, the one a router calls on-link, or its own (RFC 5942 section 4: an address alone says
    /// nothing about its neighbours).
    fn net(&self, address: Ipv6Addr, on_link: &[Ipv6Net]) -> Ipv6Net {
        let told = self.given.iter().flat_map(|given| &given.ips).map(|ip| ip.address);
        let told = told.filter(|net| net.addr() == IpAddr::V6(address)).map(|net| net.prefix_len()).next();
        let around = on_link.iter().filter(|net| net.contains(&address)).map(Ipv6Net::prefix_len).max();
        let length = told.or(self.wants.prefix_length).or(around).unwrap_or(128);
        Ipv6Net::new(address, length).unwrap_or(Ipv6Net::from(address))
    }

    fn routes(&self, gateway: Option<IpAddr>, nets: &[Ipv6Net], around: &Surroundings) -> Vec<Route> {
        let priority = self.wants.priority;
        let route = |net: Ipv6Net, gw: Option<IpAddr>| Route { priority, ..Route::new(IpNet::V6(net), gw) };
        let own = |net: &Ipv6Net| nets.iter().any(|own| own.trunc() == *net);
        let mut routes: Vec<Route> = around
            .on_link
            .iter()
            .filter(|net| !own(net))
            .map(|net| Route { scope: Some(LINK_SCOPE), ..route(*net, None) })
            .collect();
        let others = around.routes.iter().filter(|(net, _)| net.prefix_len() != 0 && !own(net));
        routes.extend(others.map(|(net, router)| route(*net, Some(IpAddr::V6(*router)))));
        if let Some(gateway) = gateway {
            routes.push(route(Ipv6Net::default(), Some(gateway)));
        }
        for route in routes.iter_mut().filter(|route| route.gw.is_some()) {
            route.mtu = around.mtu.filter(|mtu| *mtu < self.mtu).unwrap_or(0);
        }
        routes
    }

    /// The server's name service, or the routers' where it says nothing.
    fn dns(&self, lease: &Lease, around: &Surroundings) -> Dns {
        let or =
            |own: &[Ipv6Addr], other: &[Ipv6Addr]| if own.is_empty() { other.to_vec() } else { own.to_vec() };
        let servers = or(&lease.name_servers, &around.name_servers);
        let search = if lease.search.is_empty() { &around.search } else { &lease.search };
        // A link-local address means nothing without its link.
        let text = |server: &Ipv6Addr| match server.is_unicast_link_local() {
            true => format!("{server}%{}", self.ifname),
            false => server.to_string(),
        };
        Dns { nameservers: servers.iter().map(text).collect(), search: search.clone(), ..Dns::default() }
    }
}

/// The DUID, a UUID made of the attachment's name (RFC 6355; RFC 9562 version 8), and the association's number.
fn names(name: &[u8]) -> (Vec<u8>, u32) {
    let digest: [u8; 32] = Sha256::digest(name).into();
    let (uuid, rest) = digest.split_at(16);
    let mut duid = vec![0, 4];
    duid.extend_from_slice(uuid);
    duid[8] = duid[8] & 0x0f | 0x80;
    duid[10] = duid[10] & 0x3f | 0x80;
    let association = rest.first_chunk().copied().map_or(1, u32::from_be_bytes);
    (duid, association)
}

fn bytes(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).and_then(|value| u8::try_from(value).ok())).collect();
    let (pairs, rest) = digits.as_ref()?.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests;
