//! What one attachment leases: its clients, their sockets, and what its pod has of it.
//!
//! Read [`Lease`]. It carries out what the clients want and tells its keeper (the daemon, or a DEL without one)
//! what came of it, as [`Outcome`]s. It waits for nothing: what it waits for is among [`Lease::descriptors`]
//! and [`Lease::wake`].
//!
//! What stays true: the first result is applied by the plugin that asked; every change after that by us, in the
//! pod's namespace, for nobody else would.

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use cni::{AddResult, Attachment, Config, Error, Fields, Json, Version};
use kernel::link::Link;
use kernel::monitor::{Monitor, Topic};
use kernel::netns::Netns;
use netstate::Mac;
use rustix::time::{ClockId, clock_gettime};

use super::client::{Client, Protocol};
use super::config::Settings;
use super::machine::{Action, Event, Given, Identity, Moment, Timing};
use super::place::Place;
use super::protocol::{self, Call};
use super::wire::Wire;
use crate::fault::fault;

/// A link that has no carrier after this long is used all the same.
const CARRIER: Duration = Duration::from_secs(5);
/// So many packets are read for one client before it is another one's turn.
const PACKETS: usize = 32;

/// What the daemon was told about all leases.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    /// Stands before every path of a namespace.
    pub(crate) host_prefix: String,
    /// Servers shall answer to everybody.
    pub(crate) broadcast: bool,
    /// The clients' patience.
    pub(crate) timing: Timing,
}

/// What came of something that happened to a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A client holds something now, or again.
    Bound,
    /// A client lost what it held, and asks for more.
    Lost(String),
    /// A server's answer is of no use.
    Unusable(String),
    /// The namespace or the link is no more: there is nothing left to keep.
    Gone,
    /// Something failed that may work next time.
    Failed(Error),
}

/// The lease of one attachment.
#[derive(Debug)]
pub(crate) struct Lease {
    /// `<containerID>/<network>/<ifname>`.
    pub(crate) name: String,
    /// The network.
    pub(crate) network: String,
    attachment: Attachment,
    args: String,
    config: Config,
    place: Place,
    identity: Identity,
    parts: Vec<Part>,
    /// The link is not ready yet; tried all the same from the moment on.
    carrier: Option<(Monitor, Moment)>,
    adopt: Option<IpAddr>,
}

/// One client with what belongs to it.
#[derive(Debug)]
struct Part {
    client: Client,
    wire: Option<Wire>,
    /// What the pod has of it; nothing before the first answer.
    applied: Option<Given>,
}

/// The boot clock.
pub(crate) fn now() -> Moment {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

impl Lease {
    /// Begins to lease for the attachment of a call; with `adopt`, that address if a server still knows us by it.
    ///
    /// # Errors
    /// When the configuration is wrong or the link is not there.
    pub(crate) fn begin(
        call: &Call,
        terms: &Terms,
        adopt: Option<IpAddr>,
    ) -> Result<(Self, Vec<Outcome>), Error> {
        let settings = Settings::of(&call.config, &call.args)?;
        let (place, link) = Place::find(&terms.host_prefix, &call.netns, &call.attachment.ifname)?;
        let identity = identity(call.name(), &link, terms)?;
        let parts = parts(&identity, &settings, terms.timing);
        let mut lease = Self {
            name: call.name(),
            network: call.config.name.clone(),
            attachment: call.attachment.clone(),
            args: call.args.clone(),
            config: call.config.clone(),
            place,
            identity,
            parts,
            carrier: None,
            adopt,
        };
        if settings.ipv6 {
            let detect_duplicates = Fields::of(call.config.document())?.bool("enableDad")?;
            // Where an address is to be found again the pod is using it.
            lease.place.prepare_ipv6(adopt.is_none(), detect_duplicates)?;
        }
        let outcomes = lease.ready_link(&link)?;
        Ok((lease, outcomes))
    }

    /// Sets the link up and starts the clients as soon as it carries frames.
    fn ready_link(&mut self, link: &Link) -> Result<Vec<Outcome>, Error> {
        if !link.is_up() {
            let Some((namespace, _)) = self.place.open()? else { return Ok(vec![Outcome::Gone]) };
            let monitor = Monitor::open_in(&namespace, &[Topic::Links]).map_err(fault)?;
            self.place.set_up(&namespace)?;
            self.carrier = Some((monitor, now() + CARRIER));
        }
        Ok(self.start_with_carrier(false))
    }

    fn start_with_carrier(&mut self, whatever: bool) -> Vec<Outcome> {
        if self.carrier.is_some() && !whatever {
            match self.place.open() {
                Ok(Some((_, link))) if !link.is_running() => return Vec::new(),
                Ok(Some(_)) => {}
                Ok(None) => return vec![Outcome::Gone],
                Err(error) => return vec![Outcome::Failed(error)],
            }
        }
        self.carrier = None;
        let event = self.adopt.map_or(Event::Start, Event::Adopt);
        (0..self.parts.len()).flat_map(|index| self.step(index, event)).collect()
    }

    /// Takes up a lease from its file.
    ///
    /// # Errors
    /// When the file is not of this version, or of another boot of the machine.
    pub(crate) fn restore(document: &Json, boot: &str, terms: &Terms) -> Result<Self, Error> {
        let fields = Fields::of(document)?;
        let config = fields.raw("config").cloned().unwrap_or(Json::Null);
        let config = Config::from_json(config, &Version::ALL)?;
        let attachment = protocol::attachment(&fields)?;
        let name = protocol::name_of(&config.name, &attachment);
        let args = fields.string("args")?.to_owned();
        let settings = Settings::of(&config, &args)?;
        if fields.string("boot")? != boot {
            return Err(Error::netns(format!("{name}: the machine has been started anew since")));
        }
        let place = Place::restore(&fields.object("place")?, &terms.host_prefix);
        let place = place.ok_or_else(|| fields.bad("place", "cannot be read"))?;
        let identity = Identity {
            name: name.clone(),
            mac: fields.parse::<Mac>("mac")?.ok_or_else(|| fields.bad("mac", "missing"))?,
            broadcast: fields.bool("broadcast")?,
            mtu: fields.integer("mtu")?,
        };
        let mut parts = parts(&identity, &settings, terms.timing);
        for part in &mut parts {
            let saved = fields.object(part.client.protocol().key())?;
            if part.client.restore(&saved) {
                part.applied = part.client.given().cloned();
            } else {
                part.applied = Some(Given::default());
                part.client.step(now(), Event::Start);
            }
        }
        let network = config.name.clone();
        Ok(Self {
            name,
            network,
            attachment,
            args,
            config,
            place,
            identity,
            parts,
            carrier: None,
            adopt: None,
        })
    }

    /// For the lease's file.
    pub(crate) fn save(&self, boot: &str) -> Json {
        let mut members = vec![
            ("boot", Json::from(boot)),
            ("containerID", Json::from(self.attachment.container_id.as_str())),
            ("ifname", Json::from(self.attachment.ifname.as_str())),
            ("args", Json::from(self.args.as_str())),
            ("place", self.place.save()),
            ("mac", Json::from(&*self.identity.mac.to_string())),
            ("broadcast", Json::from(self.identity.broadcast)),
            ("mtu", Json::from(self.identity.mtu)),
        ];
        members.extend(self.parts.iter().map(|part| (part.client.protocol().key(), part.client.save())));
        let mut config = self.config.document().clone();
        config.remove("prevResult");
        members.push(("config", config));
        Json::object(members)
    }

    /// What it gives, once every client holds something.
    pub(crate) fn result(&self) -> Option<AddResult> {
        let mut result = AddResult::default();
        for part in &self.parts {
            let given = part.client.given()?;
            result.ips.extend(given.ips.iter().cloned());
            result.routes.extend(given.routes.iter().cloned());
            let (dns, more) = (&mut result.dns, &given.dns);
            dns.nameservers.extend(more.nameservers.iter().cloned());
            dns.search.extend(
                more.search.iter().filter(|name| !dns.search.contains(name)).cloned().collect::<Vec<_>>(),
            );
            if dns.domain.is_empty() {
                dns.domain.clone_from(&more.domain);
            }
        }
        Some(result)
    }

    /// Which kind of server has not given anything yet.
    pub(crate) fn lacks(&self) -> &'static str {
        let lacking = self.parts.iter().filter(|part| part.client.given().is_none());
        match lacking.map(|part| part.client.protocol()).collect::<Vec<_>>()[..] {
            [Protocol::V4] if self.parts.len() > 1 => "DHCPv4",
            [Protocol::V6] => "DHCPv6",
            _ => "DHCP",
        }
    }

    /// Who asked has been told: from here on the pod has what the clients hold.
    pub(crate) fn delivered(&mut self) {
        for part in &mut self.parts {
            part.applied = part.applied.take().or_else(|| part.client.given().cloned());
        }
    }

    /// Whether the pod has, or had, anything of it.
    pub(crate) fn is_delivered(&self) -> bool {
        self.parts.iter().any(|part| part.applied.is_some())
    }

    /// Whether namespace and link are still there. Where the kernel does not tell, they are: a lease must not be
    /// forgotten because there was no descriptor left to look with.
    pub(crate) fn is_there(&self) -> bool {
        self.place.open().map_or(true, |found| found.is_some())
    }

    /// Whether the namespace is; costs little.
    pub(crate) fn has_namespace(&self) -> bool {
        self.place.has_namespace()
    }

    /// What is readable when something is there for [`Self::ready`].
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let wires = self.parts.iter().filter_map(|part| part.wire.as_ref());
        let carrier = self.carrier.iter().map(|(monitor, _)| monitor.as_fd());
        wires.flat_map(Wire::descriptors).chain(carrier).collect()
    }

    /// When to call [`Self::due`] if nothing happens before.
    pub(crate) fn wake(&self) -> Option<Moment> {
        let carrier = self.carrier.iter().map(|(_, until)| *until);
        self.parts.iter().filter_map(|part| part.client.wake()).chain(carrier).min()
    }

    /// The moment has come.
    pub(crate) fn due(&mut self) -> Vec<Outcome> {
        if self.carrier.as_ref().is_some_and(|(_, until)| *until <= now()) {
            return self.start_with_carrier(true);
        }
        (0..self.parts.len()).flat_map(|index| self.step(index, Event::Due)).collect()
    }

    /// One of the descriptors is readable.
    pub(crate) fn ready(&mut self) -> Vec<Outcome> {
        if let Some((monitor, _)) = &mut self.carrier {
            // Only that something changed is told; what it is shows by looking.
            return match monitor.receive_within(Duration::ZERO) {
                Ok(None) => Vec::new(),
                _ => self.start_with_carrier(false),
            };
        }
        (0..self.parts.len()).flat_map(|index| self.receive(index)).collect()
    }

    /// Reads the packets that have come for one client; of a flood only so many that the others have their turn.
    fn receive(&mut self, index: usize) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        let mut buffer = [0; 2048];
        for _ in 0..PACKETS {
            let Some(wire) = self.parts[index].wire.as_mut() else { break };
            match wire.receive(&mut buffer) {
                Ok(Some(packet)) => outcomes.extend(self.step(index, Event::Received(packet))),
                Ok(None) => break,
                Err(error) => {
                    // Opened again when there is something to send.
                    self.parts[index].wire = None;
                    outcomes.push(self.failed(error));
                }
            }
        }
        outcomes
    }

    /// Gives everything back. The packets have left when this returns.
    pub(crate) fn release(&mut self) -> Vec<Outcome> {
        (0..self.parts.len()).flat_map(|index| self.part_with(index)).collect()
    }

    /// Gives back what one client holds. A server shall not give an address away again that the kernel has found
    /// to be somebody else's.
    fn part_with(&mut self, index: usize) -> Vec<Outcome> {
        let duplicates = self.end_addresses(index).unwrap_or_default();
        match duplicates.first() {
            Some(address) => self.step(index, Event::Duplicate(IpAddr::V6(*address))),
            None => self.step(index, Event::Release),
        }
    }

    /// Gives the addresses in the pod the ends that their lease has, and tells which are duplicates.
    fn end_addresses(&self, index: usize) -> Result<Vec<Ipv6Addr>, Error> {
        match &self.parts[index].client.lifetimes(now())[..] {
            [] => Ok(Vec::new()),
            lifetimes => self.place.end_addresses(lifetimes),
        }
    }

    /// One step of one client, carried out.
    fn step(&mut self, index: usize, event: Event<'_>) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for action in self.parts[index].client.step(now(), event) {
            let outcome = match action {
                Action::Send(destination, payload) => {
                    let sent = self.open(index).and_then(|wire| match wire {
                        Some(wire) => wire.send(destination, &payload).map(Some),
                        None => Ok(None),
                    });
                    match sent {
                        Ok(Some(())) => continue,
                        Ok(None) => Outcome::Gone,
                        Err(error) => self.failed(error),
                    }
                }
                Action::Bound => {
                    outcomes.extend(self.apply(index).err().map(Outcome::Failed));
                    Outcome::Bound
                }
                Action::Lost(reason) => {
                    outcomes.extend(self.withdraw(index).err().map(Outcome::Failed));
                    Outcome::Lost(reason)
                }
                Action::Lifetimes => {
                    match self.end_addresses(index) {
                        Ok(duplicates) => outcomes.extend(
                            duplicates
                                .into_iter()
                                .flat_map(|address| self.step(index, Event::Duplicate(IpAddr::V6(address)))),
                        ),
                        Err(error) => outcomes.push(self.failed(error)),
                    }
                    continue;
                }
                Action::Unusable(reason) => Outcome::Unusable(reason),
            };
            outcomes.push(outcome);
        }
        if !self.parts[index].client.listens() {
            self.parts[index].wire = None;
        }
        outcomes
    }

    /// A refusal: because there is nothing left, or because of something that may pass.
    fn failed(&self, error: Error) -> Outcome {
        if self.is_there() { Outcome::Failed(error) } else { Outcome::Gone }
    }

    /// The sockets of a client; nothing when the link is gone.
    fn open(&mut self, index: usize) -> Result<Option<&mut Wire>, Error> {
        if self.parts[index].wire.is_none() {
            let Some((namespace, _)) = self.place.open()? else { return Ok(None) };
            self.parts[index].wire = Some(self.wire(index, &namespace)?);
        }
        Ok(self.parts[index].wire.as_mut())
    }

    fn wire(&self, index: usize, namespace: &Netns) -> Result<Wire, Error> {
        Wire::open(self.parts[index].client.protocol(), namespace, self.place.link)
    }

    /// Gives the pod what its client holds now, where that differs from what it has.
    fn apply(&mut self, index: usize) -> Result<(), Error> {
        let part = &mut self.parts[index];
        let (Some(before), Some(after)) = (&part.applied, part.client.given()) else { return Ok(()) };
        if before == after {
            return Ok(());
        }
        let changed = self.place.change(before, after);
        part.applied = Some(after.clone());
        changed
    }

    /// Takes from the pod what its client has lost.
    fn withdraw(&mut self, index: usize) -> Result<(), Error> {
        let Some(before) = self.parts[index].applied.replace(Given::default()) else { return Ok(()) };
        self.place.change(&before, &Given::default())
    }
}

fn parts(identity: &Identity, settings: &Settings, timing: Timing) -> Vec<Part> {
    let part = |protocol| {
        let client = Client::new(protocol, identity.clone(), settings, timing, seed());
        Part { client, wire: None, applied: None }
    };
    Protocol::wanted(settings).into_iter().map(part).collect()
}

fn identity(name: String, link: &Link, terms: &Terms) -> Result<Identity, Error> {
    let mac = link.mac.ok_or_else(|| Error::kernel(format!("{} has no hardware address", link.name)))?;
    // Links that share a hardware address with others are told apart by their addresses, which they have not yet.
    let shares = link.kind.name() == Some("ipvlan");
    Ok(Identity { name, mac, broadcast: terms.broadcast || shares, mtu: link.mtu })
}

/// A number that the next daemon will not draw again: the standard library seeds its maps from the kernel.
fn seed() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}
