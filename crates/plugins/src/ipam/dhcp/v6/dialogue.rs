//! The talk with the servers: how an address is found, kept and given back.
//!
//! Read [`Dialogue`] first: what is held ([`Lease`]) and what is being asked ([`Question`]) are all of its state.
//! Nothing held and SOLICIT asked is the beginning; held and nothing asked is the long time between; the rest
//! are the questions of RFC 8415 section 18.2, each repeated as its section 15 has it ([`Exchange`]).
//!
//! What stays true: an answer counts only if it has our transaction number, our DUID, a server's DUID (where one
//! server was asked: that one's), and comes while the question stands. What a server says wrongly changes nothing;
//! the question goes on. What is left out: temporary addresses, prefix delegation, RECONFIGURE (which needs keys
//! that nobody has), unicast to servers (gone from RFC 9915).
//! Departures: the first SOLICIT is not held back by chance (section 18.2.1), for a pod waits for it; and until a
//! server sets SOL_MAX_RT, its longest pause is the daemon's instead of an hour.

mod exchange;

use std::net::Ipv6Addr;
use std::time::Duration;

use exchange::{Exchange, Patience};

use super::lease::{Lease, usable};
use super::message::{Association, DNS_SERVERS, DOMAIN_LIST, Kind, Leased, Message, SOL_MAX_RT, Status};
use crate::ipam::dhcp::machine::{Action, Chance, Destination, Moment};

/// After a restart of the daemon all its clients ask at once, so each waits up to this long (CNF_MAX_DELAY).
const CONFIRM_DELAY: Duration = Duration::from_secs(1);
/// What SOL_MAX_RT may be, in seconds (section 21.24).
const SOL_MAX_RT_RANGE: std::ops::RangeInclusive<u32> = 60..=86_400;
/// The preference that ends the choice.
const CERTAIN: u8 = 255;

/// One client's side of it.
#[derive(Debug, Clone)]
pub(super) struct Dialogue {
    duid: Vec<u8>,
    association: u32,
    chance: Chance,
    longest_solicit: Duration,
    /// Addresses that we had or may have, named in SOLICIT.
    wishes: Vec<Ipv6Addr>,
    /// How often in a row a server offered something and then refused it.
    refusals: u32,
    /// What is held.
    pub(super) lease: Option<Lease>,
    question: Option<Question>,
}

/// What is being asked.
#[derive(Debug, Clone)]
struct Question {
    kind: Kind,
    exchange: Exchange,
    /// SOLICIT: the best so far. REQUEST, RELEASE, DECLINE: whom it is to, and about which addresses.
    offer: Option<Offer>,
    /// SOLICIT: what the latest server that has nothing for us says.
    trouble: Option<String>,
}

/// A server and addresses.
#[derive(Debug, Clone)]
struct Offer {
    preference: u8,
    server: Vec<u8>,
    addresses: Vec<Ipv6Addr>,
}

impl Dialogue {
    /// Nothing held, nothing asked.
    pub(super) fn new(duid: Vec<u8>, association: u32, longest_solicit: Duration, chance: Chance) -> Self {
        Self {
            duid,
            association,
            chance,
            longest_solicit,
            wishes: Vec::new(),
            refusals: 0,
            lease: None,
            question: None,
        }
    }

    /// Begins to look for a server; `wish` is an address that would be welcome.
    pub(super) fn start(&mut self, now: Moment, wish: Option<Ipv6Addr>) -> Vec<Action> {
        (self.wishes, self.refusals) = (wish.into_iter().collect(), 0);
        self.begin(now, Kind::Solicit, None)
    }

    /// Takes up a lease of before a restart: servers are asked whether it still belongs on this link, soon.
    pub(super) fn resume(&mut self, lease: Lease) {
        self.lease = Some(lease);
        self.plan(Moment::ZERO, Kind::Confirm);
    }

    /// Whether an answer is expected.
    pub(super) fn listens(&self) -> bool {
        self.question.is_some()
    }

    /// When [`Self::due`] is to be called.
    pub(super) fn wake(&self) -> Option<Moment> {
        let lease = self.lease.as_ref();
        let asking = match &self.question {
            None => lease.and_then(|lease| lease.renew_at),
            Some(question) if question.kind == Kind::Renew => {
                earlier(Some(question.exchange.due), lease.and_then(|lease| lease.rebind_at))
            }
            Some(question) => Some(question.exchange.due),
        };
        earlier(asking, lease.and_then(Lease::next_end))
    }

    /// The moment of [`Self::wake`] is there.
    pub(super) fn due(&mut self, now: Moment) -> Vec<Action> {
        let mut actions = self.expire(now);
        let reached = |moment: Option<Moment>| moment.is_some_and(|moment| moment <= now);
        let (renew_at, rebind_at) =
            self.lease.as_ref().map_or((None, None), |lease| (lease.renew_at, lease.rebind_at));
        let rebind = reached(rebind_at);
        actions.extend(match self.question.take() {
            None if reached(renew_at) => {
                self.begin(now, if rebind { Kind::Rebind } else { Kind::Renew }, None)
            }
            None => Vec::new(),
            Some(question) if question.exchange.due.is_zero() => {
                let delay = CONFIRM_DELAY * (self.chance.next() % 1000) / 1000;
                self.plan(now + delay, question.kind);
                Vec::new()
            }
            Some(question) if question.kind == Kind::Renew && rebind => self.begin(now, Kind::Rebind, None),
            Some(question) if question.exchange.due > now => {
                self.question = Some(question);
                Vec::new()
            }
            Some(Question { kind: Kind::Solicit, offer: Some(offer), .. }) => {
                self.begin(now, Kind::Request, Some(offer))
            }
            Some(question) if question.exchange.is_over(now) => self.give_up(now, &question),
            Some(question) => self.ask(now, question),
        });
        actions
    }

    /// A datagram came to the client's port.
    pub(super) fn received(&mut self, now: Moment, datagram: &[u8]) -> Vec<Action> {
        let Ok(message) = Message::decode(datagram) else { return Vec::new() };
        let Some(question) = self.question.take() else { return Vec::new() };
        if !self.is_answer(&question, &message) {
            self.question = Some(question);
            return Vec::new();
        }
        if let Some(seconds) = message.longest_solicit.filter(|seconds| SOL_MAX_RT_RANGE.contains(seconds)) {
            self.longest_solicit = Duration::from_secs(u64::from(seconds));
        }
        match (question.kind, message.kind) {
            (Kind::Solicit, Kind::Advertise) => self.advertised(now, question, &message),
            (Kind::Confirm, _) => self.confirmed(now, question, &message),
            (Kind::Decline, _) => self.declined(now),
            (Kind::Release, _) => Vec::new(),
            _ => self.replied(now, question, &message),
        }
    }

    /// Gives back what is held, or what was about to be.
    pub(super) fn release(&mut self, now: Moment) -> Vec<Action> {
        let asked = self.question.take().filter(|question| question.kind == Kind::Request);
        let held = self.lease.take().map(|lease| Offer::of(lease.server.clone(), lease.plain_addresses()));
        match held.or(asked.and_then(|question| question.offer)) {
            Some(offer) => self.begin(now, Kind::Release, Some(offer)),
            None => Vec::new(),
        }
    }

    /// Somebody else on the link has this address: the server is told, and another one looked for.
    pub(super) fn duplicate(&mut self, now: Moment, address: Ipv6Addr) -> Vec<Action> {
        let Some(lease) = &mut self.lease else { return Vec::new() };
        if !lease.addresses.iter().any(|leased| leased.address == address) {
            return Vec::new();
        }
        lease.addresses.retain(|leased| leased.address != address);
        let offer = Offer::of(lease.server.clone(), vec![address]);
        let lost = lease.addresses.is_empty();
        let mut actions = vec![Action::Bound];
        if lost {
            (self.lease, self.wishes) = (None, Vec::new());
            actions =
                vec![Action::Lost(format!("{address} is a duplicate: somebody else on the link has it"))];
        }
        actions.extend(self.begin(now, Kind::Decline, Some(offer)));
        actions
    }

    /// Forgets addresses whose time is over.
    fn expire(&mut self, now: Moment) -> Vec<Action> {
        let Some(lease) = &mut self.lease else { return Vec::new() };
        let held = lease.addresses.len();
        let wishes = lease.plain_addresses();
        lease.expire(now);
        match lease.addresses.len() {
            0 => self.lose(now, wishes, "the lease expired".to_owned()),
            left if left < held => vec![Action::Bound],
            _ => Vec::new(),
        }
    }

    fn lose(&mut self, now: Moment, wishes: Vec<Ipv6Addr>, reason: String) -> Vec<Action> {
        (self.lease, self.question) = (None, None);
        let mut actions = vec![Action::Lost(reason)];
        self.refusals = 0;
        self.wishes = wishes;
        actions.extend(self.begin(now, Kind::Solicit, None));
        actions
    }

    /// Asks something new, at once.
    fn begin(&mut self, now: Moment, kind: Kind, offer: Option<Offer>) -> Vec<Action> {
        let exchange = Exchange::new(now, self.patience(kind), &mut self.chance);
        self.ask(now, Question { kind, exchange, offer, trouble: None })
    }

    /// Will ask something new at `due`.
    fn plan(&mut self, due: Moment, kind: Kind) {
        let exchange = Exchange::new(due, self.patience(kind), &mut self.chance);
        self.question = Some(Question { kind, exchange, offer: None, trouble: None });
    }

    fn patience(&self, kind: Kind) -> Patience {
        match kind {
            Kind::Request => Patience::REQUEST,
            Kind::Confirm => Patience::CONFIRM,
            Kind::Renew | Kind::Rebind => Patience::EXTEND,
            Kind::Release | Kind::Decline => Patience::PART,
            _ => Patience::solicit(self.longest_solicit),
        }
    }

    /// Sends the question, for the first time or again.
    fn ask(&mut self, now: Moment, mut question: Question) -> Vec<Action> {
        question.exchange.ask(now, &mut self.chance);
        let trouble = question.trouble.take().map(Action::Unusable);
        let datagram = self.message(now, &question).encode();
        self.question = Some(question);
        let send = Action::Send(Destination::Servers, datagram);
        std::iter::once(send).chain(trouble).collect()
    }

    fn message(&self, now: Moment, question: &Question) -> Message {
        let mut message = Message::new(question.kind, question.exchange.transaction);
        message.client = Some(self.duid.clone());
        message.elapsed = Some(question.exchange.elapsed(now));
        let held = self.lease.as_ref();
        let offered = question.offer.as_ref();
        let addresses = match question.kind {
            Kind::Solicit => {
                message.rapid_commit = true;
                self.wishes.clone()
            }
            Kind::Confirm | Kind::Renew | Kind::Rebind => {
                held.map(Lease::plain_addresses).unwrap_or_default()
            }
            _ => offered.map(|offer| offer.addresses.clone()).unwrap_or_default(),
        };
        message.server = match question.kind {
            Kind::Renew => held.map(|lease| lease.server.clone()),
            Kind::Request | Kind::Release | Kind::Decline => offered.map(|offer| offer.server.clone()),
            _ => None,
        };
        if matches!(question.kind, Kind::Solicit | Kind::Request | Kind::Renew | Kind::Rebind) {
            message.requested = vec![DNS_SERVERS, DOMAIN_LIST, SOL_MAX_RT];
        }
        let addresses = addresses.into_iter().map(Leased::wish).collect();
        message.associations =
            vec![Association { id: self.association, addresses, ..Association::default() }];
        message
    }

    /// Section 16: what makes an answer ours.
    fn is_answer(&self, question: &Question, message: &Message) -> bool {
        let rapid = message.kind == Kind::Reply && message.rapid_commit;
        let right_kind = match question.kind {
            Kind::Solicit => message.kind == Kind::Advertise || rapid,
            _ => message.kind == Kind::Reply,
        };
        let asked = match question.kind {
            Kind::Renew => self.lease.as_ref().map(|lease| &lease.server),
            Kind::Request | Kind::Release | Kind::Decline => {
                question.offer.as_ref().map(|offer| &offer.server)
            }
            _ => None,
        };
        right_kind
            && question.exchange.asked > 0
            && message.transaction == question.exchange.transaction
            && message.client.as_ref() == Some(&self.duid)
            && message.server.as_ref().is_some_and(|server| asked.is_none_or(|asked| asked == server))
    }

    fn association_of<'a>(&self, message: &'a Message) -> Option<&'a Association> {
        message.associations.iter().find(|association| association.id == self.association)
    }

    /// Section 18.2.9: the best offer of the first pause, or the first one after it.
    fn advertised(&mut self, now: Moment, mut question: Question, message: &Message) -> Vec<Action> {
        let association = self.association_of(message);
        let addresses: Vec<Ipv6Addr> =
            association.map(usable).unwrap_or_default().iter().map(|leased| leased.address).collect();
        let refused = [message.status_code(), association.map_or(0, Association::status_code)];
        if addresses.is_empty() || refused != [Status::SUCCESS; 2] {
            let reason =
                said(message, association).unwrap_or_else(|| "a server offers no address".to_owned());
            // Another server may do better within this pause.
            question.trouble = Some(reason);
            self.question = Some(question);
            return Vec::new();
        }
        let preference = message.preference.unwrap_or(0);
        let server = message.server.clone().unwrap_or_default();
        let offer = Offer { preference, server, addresses };
        if preference == CERTAIN || question.exchange.asked > 1 {
            return self.begin(now, Kind::Request, Some(offer));
        }
        if question.offer.as_ref().is_none_or(|best| best.preference < preference) {
            question.offer = Some(offer);
        }
        self.question = Some(question);
        Vec::new()
    }

    /// Section 18.2.10.1: the answer to REQUEST, RENEW, REBIND, and to SOLICIT with rapid commit.
    fn replied(&mut self, now: Moment, question: Question, message: &Message) -> Vec<Action> {
        let association = self.association_of(message);
        let extends = matches!(question.kind, Kind::Renew | Kind::Rebind);
        let code = match message.status_code() {
            Status::SUCCESS => association.map_or(Status::SUCCESS, Association::status_code),
            code => code,
        };
        let granted = Lease::granted(message, self.association, self.lease.as_ref(), now);
        let reason = said(message, association);
        match (code, granted) {
            (Status::SUCCESS, Some(lease)) if lease.addresses.is_empty() => {
                let wishes = self.lease.as_ref().map(Lease::plain_addresses).unwrap_or_default();
                self.lose(now, wishes, "the server took the address back".to_owned())
            }
            (Status::SUCCESS, Some(lease)) => {
                (self.lease, self.refusals) = (Some(lease), 0);
                vec![Action::Bound]
            }
            // The server forgot us: it is asked to take the addresses on again.
            (Status::NO_BINDING, _) if extends => {
                let held = self.lease.as_ref().map(Lease::plain_addresses).unwrap_or_default();
                let offer = Offer::of(message.server.clone().unwrap_or_default(), held);
                self.begin(now, Kind::Request, Some(offer))
            }
            (Status::NO_ADDRESSES | Status::NO_BINDING | Status::NOT_ON_LINK, _) if !extends => {
                self.refused(now, reason.unwrap_or_default())
            }
            (Status::SUCCESS, None) if !extends => {
                self.refused(now, "a server's answer has no usable address".to_owned())
            }
            // Anything else is the server's trouble: the question stands, at its own pace.
            _ => {
                self.question = Some(question);
                reason.map(Action::Unusable).into_iter().collect()
            }
        }
    }

    /// Section 18.2.10.3: NotOnLink ends the lease, anything else from a server is a yes.
    fn confirmed(&mut self, now: Moment, question: Question, message: &Message) -> Vec<Action> {
        match message.status_code() {
            Status::NOT_ON_LINK => {
                self.lose(now, Vec::new(), "the address does not belong on this link any more".to_owned())
            }
            Status::SUCCESS => Vec::new(),
            _ => {
                self.question = Some(question);
                Vec::new()
            }
        }
    }

    fn declined(&mut self, now: Moment) -> Vec<Action> {
        if self.lease.is_some() { Vec::new() } else { self.begin(now, Kind::Solicit, None) }
    }

    /// A server refused what it had offered. The search begins again, later each time; what is still held from
    /// before (REBIND had led here) is held until it ends.
    fn refused(&mut self, now: Moment, reason: String) -> Vec<Action> {
        let pause = Duration::from_secs(1 << self.refusals.min(10)).min(self.longest_solicit);
        self.refusals = self.refusals.saturating_add(1);
        self.wishes.clear();
        let due = now + self.chance.about(pause);
        self.plan(due, if self.lease.is_some() { Kind::Rebind } else { Kind::Solicit });
        vec![Action::Unusable(reason)]
    }

    /// No answer came in all the time that a question has.
    fn give_up(&mut self, now: Moment, question: &Question) -> Vec<Action> {
        match question.kind {
            Kind::Request => self.refused(now, "the server that made the offer answers no more".to_owned()),
            Kind::Decline => self.declined(now),
            // CONFIRM: section 18.2.3, the lease goes on as it was. RELEASE: the server finds out by itself.
            _ => Vec::new(),
        }
    }
}

impl Offer {
    fn of(server: Vec<u8>, addresses: Vec<Ipv6Addr>) -> Self {
        Self { preference: 0, server, addresses }
    }
}

/// The first refusal in a message, in the server's words.
fn said(message: &Message, association: Option<&Association>) -> Option<String> {
    let statuses = [message.status.as_ref(), association.and_then(|association| association.status.as_ref())];
    let status = statuses.into_iter().flatten().find(|status| status.code != Status::SUCCESS)?;
    let name = match status.code {
        Status::NO_ADDRESSES => "no addresses are left (NoAddrsAvail)".to_owned(),
        Status::NO_BINDING => "it does not know this lease (NoBinding)".to_owned(),
        Status::NOT_ON_LINK => "the address does not belong on this link (NotOnLink)".to_owned(),
        code => format!("status {code}"),
    };
    Some(match status.text.as_str() {
        "" => format!("the server says: {name}"),
        text => format!("the server says: {name}: {text:?}"),
    })
}

fn earlier(one: Option<Moment>, other: Option<Moment>) -> Option<Moment> {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
mod tests;
