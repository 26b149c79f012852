//! The DHCPv4 client: the states of RFC 2131 figure 5, as a machine.
//!
//! Read [`Client::step`]. It takes the first usable offer. Every answer is checked against the transaction,
//! the hardware address and the client identifier, so clients that share a hardware address (ipvlan) do not
//! take each other's.
//!
//! What stays true: at most one address is held; a lease that ran out or was taken back is reported before
//! anything else is tried; the pauses grow up to a limit and are never quite the same, so that many clients
//! do not ask in step after a power failure.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use cni::{Fields, Json};
use netstate::Mac;

use super::message::{Kind, Message, option};
use super::terms::Terms;
use crate::ipam::dhcp::config::Settings;
use crate::ipam::dhcp::machine::{
    Action, Chance, Destination, Event, Given, Identity, Moment, Packet, Timing,
};
use crate::owner::hexadecimal;

/// The first pause between two attempts; each further one is twice as long. Short, because a bridge may still
/// be readying the port when the first message comes.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// How often an extension of the lease is asked for at most, unless the lease is very short.
const RENEWAL_PAUSE: Duration = Duration::from_secs(60);
/// The same for the shortest of leases.
const SHORTEST_RENEWAL_PAUSE: Duration = Duration::from_secs(1);
/// The largest message that fits through every link.
const LARGEST_MESSAGE: [u8; 2] = 1472_u16.to_be_bytes();

/// A client.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    identity: Identity,
    provide: Vec<(u8, Vec<u8>)>,
    request: Vec<u8>,
    priority: u32,
    timing: Timing,
    chance: Chance,
    transaction: u32,
    /// Since when it has been trying.
    since: Moment,
    /// When the latest message was sent: a lease counts from there.
    asked: Moment,
    attempt: u32,
    wake: Option<Moment>,
    /// The address that it had, and asks for again.
    wish: Option<Ipv4Addr>,
    state: State,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Nothing is wanted.
    Idle,
    /// DISCOVER is out, or waits for a pause to end.
    Selecting,
    /// A server offered this; it is asked until the moment.
    Requesting(Offer, Moment),
    /// A server may know us with this address; asked until the moment.
    Rebooting(Ipv4Addr, Moment),
    /// Held, nothing to do.
    Bound(Lease),
    /// T1 is over: the server is asked.
    Renewing(Lease),
    /// T2 is over: every server is asked.
    Rebinding(Lease),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Offer {
    address: Ipv4Addr,
    server: Ipv4Addr,
    hardware: Mac,
}

/// What a server has granted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Lease {
    offer: Offer,
    renew: Moment,
    rebind: Moment,
    expire: Moment,
    /// As the server sent them: what they mean is worked out again after a restart.
    options: Vec<(u8, Vec<u8>)>,
    given: Given,
}

impl Client {
    /// A client that holds nothing.
    pub(crate) fn new(identity: Identity, settings: &Settings, timing: Timing, seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        Self {
            identity,
            provide: settings.provide.clone(),
            request: settings.request.clone(),
            priority: settings.priority,
            timing,
            transaction: chance.next(),
            chance,
            since: Moment::ZERO,
            asked: Moment::ZERO,
            attempt: 0,
            wake: None,
            wish: None,
            state: State::Idle,
        }
    }

    /// When it wants to be called if nothing happens before.
    pub(crate) fn wake(&self) -> Option<Moment> {
        self.wake
    }

    /// Whether it waits for a packet.
    pub(crate) fn listens(&self) -> bool {
        !matches!(self.state, State::Idle | State::Bound(_))
    }

    /// What it holds.
    pub(crate) fn given(&self) -> Option<&Given> {
        self.lease().map(|lease| &lease.given)
    }

    /// Something happened: what is to be done.
    pub(crate) fn step(&mut self, now: Moment, event: Event<'_>) -> Vec<Action> {
        match event {
            Event::Start => self.start(now),
            Event::Adopt(IpAddr::V4(address)) => self.adopt(now, address),
            Event::Adopt(IpAddr::V6(_)) => self.start(now),
            Event::Received(packet) => self.received(now, packet),
            Event::Due if self.wake.is_some_and(|wake| wake <= now) => self.due(now),
            Event::Due | Event::Duplicate(_) => Vec::new(),
            Event::Release => self.release(),
        }
    }

    fn start(&mut self, now: Moment) -> Vec<Action> {
        self.begin(now);
        self.discover(now)
    }

    fn adopt(&mut self, now: Moment, address: Ipv4Addr) -> Vec<Action> {
        self.begin(now);
        self.wish = Some(address);
        self.state = State::Rebooting(address, now + self.timing.exchange);
        self.ask(now)
    }

    /// A new attempt to get a lease, and with it a new transaction.
    fn begin(&mut self, now: Moment) {
        (self.since, self.attempt) = (now, 0);
        self.transaction = self.chance.next();
    }

    fn due(&mut self, now: Moment) -> Vec<Action> {
        match &self.state {
            State::Idle => Vec::new(),
            State::Selecting => self.discover(now),
            State::Requesting(_, until) | State::Rebooting(_, until) if *until <= now => self.discover(now),
            State::Requesting(..) | State::Rebooting(..) => self.ask(now),
            State::Bound(lease) | State::Renewing(lease) | State::Rebinding(lease) => {
                let lease = lease.clone();
                if lease.expire <= now {
                    self.wish = Some(lease.offer.address);
                    return self.lose(now, "the lease ran out and no server extended it".to_owned());
                }
                if matches!(self.state, State::Bound(_)) {
                    self.begin(now);
                }
                self.state =
                    if lease.rebind <= now { State::Rebinding(lease) } else { State::Renewing(lease) };
                self.ask(now)
            }
        }
    }

    fn received(&mut self, now: Moment, packet: Packet<'_>) -> Vec<Action> {
        let Some(message) = Message::decode(packet.payload).filter(|message| self.is_for_us(message)) else {
            return Vec::new();
        };
        let server = message.option(option::SERVER).and_then(|value| <[u8; 4]>::try_from(value).ok());
        let server = match (server, packet.from) {
            (Some(said), _) => Ipv4Addr::from(said),
            (None, IpAddr::V4(from)) => from,
            (None, IpAddr::V6(_)) => return Vec::new(),
        };
        let hardware = packet.hardware.unwrap_or(Mac([0xff; 6]));
        let offer = Offer { address: message.your_address, server, hardware };
        match (message.kind(), &self.state) {
            (Some(Kind::Offer), State::Selecting) if !offer.address.is_unspecified() => {
                self.state = State::Requesting(offer, now + self.timing.exchange);
                self.attempt = 0;
                self.ask(now)
            }
            (Some(Kind::Ack), State::Idle | State::Selecting | State::Bound(_)) => Vec::new(),
            (Some(Kind::Ack), _) if !offer.address.is_unspecified() => self.bind(now, offer, message.options),
            (Some(Kind::Nak), State::Requesting(expected, _)) if expected.server != server => Vec::new(),
            (Some(Kind::Nak), State::Requesting(..) | State::Rebooting(..)) => {
                (self.state, self.wish) = (State::Selecting, None);
                self.pause(now);
                Vec::new()
            }
            (Some(Kind::Nak), State::Renewing(_) | State::Rebinding(_)) => {
                let words =
                    message.option(option::TEXT).map(|text| String::from_utf8_lossy(text).into_owned());
                self.lose(now, format!("the server took it back: {}", words.unwrap_or_default()))
            }
            _ => Vec::new(),
        }
    }

    fn is_for_us(&self, message: &Message) -> bool {
        message.reply
            && message.transaction == self.transaction
            && message.hardware == self.identity.mac
            && message.option(option::CLIENT).is_none_or(|said| said == self.client_id())
    }

    /// A server granted the lease, for the first time or again.
    fn bind(&mut self, now: Moment, offer: Offer, options: Vec<(u8, Vec<u8>)>) -> Vec<Action> {
        let terms = match Terms::of(offer.address, &options, self.identity.mtu, self.priority) {
            Ok(terms) => terms,
            Err(reason) => {
                // The server believes that we have it.
                let returned = self.message_of_release(offer);
                let mut actions = vec![returned];
                if self.lease().is_some() {
                    actions.push(Action::Lost(reason.clone()));
                }
                actions.push(Action::Unusable(reason));
                self.state = State::Selecting;
                self.pause(now);
                return actions;
            }
        };
        let at = |time: Duration| self.asked.saturating_add(time);
        let (renew, rebind, expire) = (at(terms.times.renew), at(terms.times.rebind), at(terms.times.expire));
        self.wake = Some(renew).filter(|renew| *renew != Moment::MAX);
        self.state = State::Bound(Lease { offer, renew, rebind, expire, options, given: terms.given });
        vec![Action::Bound]
    }

    /// The lease is over; begins anew.
    fn lose(&mut self, now: Moment, reason: String) -> Vec<Action> {
        let mut actions = vec![Action::Lost(reason)];
        actions.extend(self.start(now));
        actions
    }

    fn release(&mut self) -> Vec<Action> {
        self.wake = None;
        match std::mem::replace(&mut self.state, State::Idle) {
            // An answer to the request may be under way, and then the server believes that we have it.
            State::Requesting(offer, _) => vec![self.message_of_release(offer)],
            State::Bound(lease) | State::Renewing(lease) | State::Rebinding(lease) => {
                vec![self.message_of_release(lease.offer)]
            }
            State::Idle | State::Selecting | State::Rebooting(..) => Vec::new(),
        }
    }

    /// Asks who has an address.
    fn discover(&mut self, now: Moment) -> Vec<Action> {
        self.state = State::Selecting;
        let mut message = self.message(Kind::Discover, now);
        if let Some(address) = self.wish {
            message.set(option::REQUESTED_ADDRESS, &address.octets());
        }
        self.pause(now);
        vec![Action::Send(Destination::Broadcast(Ipv4Addr::UNSPECIFIED), message.encode())]
    }

    /// Asks for the address that the state is about (RFC 2131 section 4.3.2, table 4).
    fn ask(&mut self, now: Moment) -> Vec<Action> {
        let mut message = self.message(Kind::Request, now);
        self.asked = now;
        let nobody = Destination::Broadcast(Ipv4Addr::UNSPECIFIED);
        let destination = match &self.state {
            State::Requesting(offer, until) => {
                message.set(option::REQUESTED_ADDRESS, &offer.address.octets());
                message.set(option::SERVER, &offer.server.octets());
                let until = *until;
                self.pause(now);
                self.wake = self.wake.map(|wake| wake.min(until));
                nobody
            }
            State::Rebooting(address, until) => {
                message.set(option::REQUESTED_ADDRESS, &address.octets());
                let until = *until;
                self.pause(now);
                self.wake = self.wake.map(|wake| wake.min(until));
                nobody
            }
            State::Renewing(lease) => {
                message.client_address = lease.offer.address;
                let Offer { address, server, hardware } = lease.offer;
                self.wake = Some(next_renewal(now, lease.rebind, lease));
                Destination::Unicast { from: address, to: server, hardware }
            }
            State::Rebinding(lease) => {
                message.client_address = lease.offer.address;
                self.wake = Some(next_renewal(now, lease.expire, lease));
                Destination::Broadcast(lease.offer.address)
            }
            State::Idle | State::Selecting | State::Bound(_) => return Vec::new(),
        };
        vec![Action::Send(destination, message.encode())]
    }

    /// The next attempt is made after a pause.
    fn pause(&mut self, now: Moment) {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.attempt.min(16)).min(self.timing.longest_pause);
        self.attempt += 1;
        self.wake = Some(now + self.chance.about(pause));
    }

    /// A message with all that is said every time.
    fn message(&self, kind: Kind, now: Moment) -> Message {
        let mut message = Message::new(kind, self.transaction, self.identity.mac);
        message.seconds = u16::try_from((now.saturating_sub(self.since)).as_secs()).unwrap_or(u16::MAX);
        message.broadcast = self.identity.broadcast;
        message.set(option::CLIENT, &self.client_id());
        message.set(option::LARGEST_MESSAGE, &LARGEST_MESSAGE);
        if !self.request.is_empty() {
            message.set(option::REQUEST_LIST, &self.request);
        }
        for (code, value) in &self.provide {
            message.set(*code, value);
        }
        message
    }

    fn message_of_release(&self, offer: Offer) -> Action {
        let mut message = Message::new(Kind::Release, self.transaction, self.identity.mac);
        message.client_address = offer.address;
        message.set(option::SERVER, &offer.server.octets());
        message.set(option::CLIENT, &self.client_id());
        let destination =
            Destination::Unicast { from: offer.address, to: offer.server, hardware: offer.hardware };
        Action::Send(destination, message.encode())
    }

    /// Who we are to the server: what the configuration says, or the reference's: a zero byte, then at most 254
    /// bytes of name.
    fn client_id(&self) -> Vec<u8> {
        let said = self.provide.iter().find(|(code, _)| *code == option::CLIENT);
        said.map_or_else(
            || {
                let name = self.identity.name.as_bytes();
                [&[0], &name[..name.len().min(254)]].concat()
            },
            |(_, value)| value.clone(),
        )
    }

    fn lease(&self) -> Option<&Lease> {
        match &self.state {
            State::Bound(lease) | State::Renewing(lease) | State::Rebinding(lease) => Some(lease),
            _ => None,
        }
    }

    /// What it holds, for the lease's file; null when it holds nothing.
    pub(crate) fn save(&self) -> Json {
        let Some(lease) = self.lease() else { return Json::Null };
        let time = |moment: Moment| Json::from(u64::try_from(moment.as_millis()).unwrap_or(u64::MAX));
        let options =
            lease.options.iter().map(|(code, value)| (code.to_string(), Json::from(&*hexadecimal(value))));
        Json::object([
            ("address", Json::from(&*lease.offer.address.to_string())),
            ("server", Json::from(&*lease.offer.server.to_string())),
            ("serverMac", Json::from(&*lease.offer.hardware.to_string())),
            ("renew", time(lease.renew)),
            ("rebind", time(lease.rebind)),
            ("expire", time(lease.expire)),
            ("options", Json::object(options)),
        ])
    }

    /// Takes up what [`Self::save`] wrote; false when there is nothing in it.
    pub(crate) fn restore(&mut self, saved: &Fields<'_>) -> bool {
        let Some(lease) = self.read(saved) else { return false };
        self.wake = Some(lease.renew).filter(|renew| *renew != Moment::MAX);
        self.state = State::Bound(lease);
        true
    }

    fn read(&self, saved: &Fields<'_>) -> Option<Lease> {
        let time = |key| {
            let milliseconds = saved.integer::<u64>(key).ok()?;
            Some(if milliseconds == u64::MAX { Moment::MAX } else { Duration::from_millis(milliseconds) })
        };
        let offer = Offer {
            address: saved.parse("address").ok()??,
            server: saved.parse("server").ok()??,
            hardware: saved.parse("serverMac").ok()??,
        };
        let options = saved.object("options").ok()?;
        let option =
            |(code, value): (&str, cni::Item<'_>)| Some((code.parse().ok()?, bytes(value.string().ok()?)?));
        let options: Vec<(u8, Vec<u8>)> = options.members().map(option).collect::<Option<_>>()?;
        let terms = Terms::of(offer.address, &options, self.identity.mtu, self.priority).ok()?;
        let (renew, rebind, expire) = (time("renew")?, time("rebind")?, time("expire")?);
        Some(Lease { offer, renew, rebind, expire, options, given: terms.given })
    }
}

/// Half of what is left until the next stage, but not more often than is decent (RFC 2131 section 4.4.5).
fn next_renewal(now: Moment, stage: Moment, lease: &Lease) -> Moment {
    let whole = lease.expire.saturating_sub(lease.renew).saturating_mul(2);
    let decent = (whole / 8).clamp(SHORTEST_RENEWAL_PAUSE, RENEWAL_PAUSE);
    let pause = (stage.saturating_sub(now) / 2).max(decent);
    now.saturating_add(pause).min(stage)
}

/// The bytes that hexadecimal digits stand for.
fn bytes(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests;
