//! Carrying out steps: few sends, and no step is lost because another one failed.
//!
//! Steps of one kind that follow each other travel as one batch; those of one nf_tables table are one
//! transaction. A link that could not be made takes what would stand on it with it, and a neighbour that could
//! not be made takes the routes through it: better no route than one into the dark. An address or policy rule that
//! is there already when it should be made counts as done, and so does what is gone when it should go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netstate::{
    LINK_ALIAS, LINK_GROUP, Link, LinkKind, LinkName, PolicyRule, ROUTE_PROTOCOL, Route, RouteKind, Step,
    WireGuardPeerKey, nft,
};

use super::Host;
use crate::netlink::{Batch, Request};
use crate::nft::Transaction;
use crate::wireguard::{self, PeerChange};
use crate::{Error, Family, address, link, neighbour, route, rule, sysctl, tun};

/// What came of a list of steps.
#[derive(Debug, Default)]
pub struct Report {
    /// The steps that failed, in order.
    pub failed: Vec<Failed>,
    /// How many were not tried, because they stand on one that failed.
    pub skipped: usize,
}

impl Report {
    /// True when everything was carried out.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.failed.is_empty() && self.skipped == 0
    }
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub struct Failed {
    /// What was tried.
    pub step: Step,
    /// Why it failed.
    #[source]
    pub error: Error,
}

impl Host {
    /// Carries out the steps in order. Those that fail are reported and the others go on.
    ///
    /// # Errors
    /// Only when the conversation with the kernel broke: then it is unknown what was carried out. Observe again.
    pub fn apply(&mut self, steps: &[Step]) -> Result<Report, Error> {
        if steps.is_empty() {
            return Ok(Report::default());
        }
        let links = link::list(&mut self.route, link::Filter::default())?;
        let indexes = links.iter().filter_map(|link| Some((link.name.parse().ok()?, link.index))).collect();
        let mut work = Work { host: self, indexes, dark: BTreeSet::new(), report: Report::default() };
        for group in steps.chunk_by(|one, next| group(one) == group(next)) {
            work.carry_out(group)?;
        }
        Ok(work.report)
    }
}

/// Steps of the same group that follow each other are carried out together.
#[derive(PartialEq)]
enum Group<'a> {
    /// One at a time: what follows needs to know what came of it.
    Link(LinkName),
    Sysctl,
    /// Peers of one device.
    WireGuard(LinkName),
    Nft(&'a nft::TableKey),
    Batch(std::mem::Discriminant<Step>),
}

fn group(step: &Step) -> Group<'_> {
    match step {
        Step::CreateLink(link) | Step::ChangeLink { to: link, .. } => Group::Link(link.name),
        Step::SetSysctl { .. } => Group::Sysctl,
        Step::SetWireGuardPeer { key, .. } | Step::DeleteWireGuardPeer(key) => Group::WireGuard(key.link),
        Step::Nft(step) => Group::Nft(step.table()),
        other => Group::Batch(std::mem::discriminant(other)),
    }
}

/// A list of steps on its way.
struct Work<'a> {
    host: &'a mut Host,
    indexes: BTreeMap<LinkName, u32>,
    /// Gateways behind which there is nothing, because the neighbour could not be made.
    dark: BTreeSet<(LinkName, IpAddr)>,
    report: Report,
}

impl Work<'_> {
    fn carry_out(&mut self, steps: &[Step]) -> Result<(), Error> {
        match steps.first() {
            Some(Step::CreateLink(_) | Step::ChangeLink { .. }) => {
                for step in steps {
                    let done = match step {
                        Step::CreateLink(link) => self.create(link),
                        Step::ChangeLink { from, to } => self.change(from, to),
                        _ => Ok(()),
                    };
                    self.note(step, done);
                }
            }
            Some(Step::SetSysctl { .. }) => {
                for step in steps {
                    if let Step::SetSysctl { path, value, .. } = step {
                        self.note(step, sysctl::write(path, value));
                    }
                }
            }
            Some(Step::SetWireGuard { .. }) => {
                for step in steps {
                    if let Step::SetWireGuard { link, device, .. } = step {
                        let conversation = self.host.conversation();
                        let done = conversation.and_then(|open| open.set_device(link.as_str(), device));
                        self.note(step, done);
                    }
                }
            }
            Some(Step::SetWireGuardPeer { key, .. } | Step::DeleteWireGuardPeer(key)) => {
                return self.change_peers(key.link, steps);
            }
            Some(Step::Nft(_)) => self.transact(steps),
            _ => return self.send(steps),
        }
        Ok(())
    }

    /// Makes a link and then gives it its alias. In between its group tells whose it is.
    fn create(&mut self, link: &Link) -> Result<(), Error> {
        let kind = match &link.kind {
            LinkKind::Tun => return self.create_tun(link),
            LinkKind::Bridge => link::NewKind::Bridge(link::NewBridge::default()),
            LinkKind::Vxlan(vxlan) => link::NewKind::Vxlan(link::NewVxlan {
                id: vxlan.vni,
                port: vxlan.port,
                local: Some(vxlan.local),
                parent: vxlan.parent.map(|parent| self.index(parent)).transpose()?,
                learning: false,
            }),
            LinkKind::IpTunnel(tunnel) => link::NewKind::IpTunnel(link::NewIpTunnel {
                inner: if tunnel.v6 { Family::V6 } else { Family::V4 },
                local: tunnel.local,
            }),
            LinkKind::WireGuard => link::NewKind::Plain(wireguard::KIND),
            LinkKind::Other(kind) => link::NewKind::Plain(kind),
        };
        let new = link::NewLink {
            mtu: link.mtu,
            mac: link.mac,
            group: Some(LINK_GROUP),
            ..link::NewLink::new(link.name.as_str(), kind)
        };
        self.host.route.execute(link::create(&new))?;
        // Up only when it carries its mark: whoever waits for the link finds it whole.
        let finish =
            link::Change { alias: Some(LINK_ALIAS), up: link.up.then_some(true), ..link::Change::default() };
        self.host.route.execute(link::change(link.name.as_str(), &finish))?;
        let found = link::find(&mut self.host.route, link.name.as_str())?;
        self.indexes.extend(found.map(|found| (link.name, found.index)));
        Ok(())
    }

    /// Makes a TUN device, which ends with this process until it carries its mark.
    fn create_tun(&mut self, link: &Link) -> Result<(), Error> {
        let queue = tun::Queue::open(link.name.as_str())?;
        let finish = link::Change {
            alias: Some(LINK_ALIAS),
            mtu: link.mtu,
            up: link.up.then_some(true),
            ..link::Change::default()
        };
        self.host.route.execute(link::change(link.name.as_str(), &finish))?;
        queue.persist(true)?;
        let found = link::find(&mut self.host.route, link.name.as_str())?;
        self.indexes.extend(found.map(|found| (link.name, found.index)));
        Ok(())
    }

    fn change(&mut self, from: &Link, to: &Link) -> Result<(), Error> {
        let change = link::Change {
            mtu: to.mtu.filter(|_| to.mtu != from.mtu),
            mac: to.mac.filter(|_| to.mac != from.mac),
            up: (to.up != from.up).then_some(to.up),
            ..link::Change::default()
        };
        self.host.route.execute(link::change(to.name.as_str(), &change))
    }

    /// Peers of one WireGuard device, many in one message.
    fn change_peers(&mut self, link: LinkName, steps: &[Step]) -> Result<(), Error> {
        if !self.indexes.contains_key(&link) {
            self.report.skipped += steps.len();
            return Ok(());
        }
        let changes: Vec<(&Step, WireGuardPeerKey, PeerChange<'_>)> = steps
            .iter()
            .filter_map(|step| match step {
                Step::SetWireGuardPeer { key, peer, was } => {
                    let set = PeerChange::Set { key: key.public_key, peer, was: was.as_ref() };
                    Some((step, *key, set))
                }
                Step::DeleteWireGuardPeer(key) => Some((step, *key, PeerChange::Remove(key.public_key))),
                _ => None,
            })
            .collect();
        let wanted: Vec<PeerChange<'_>> = changes.iter().map(|(_, _, change)| *change).collect();
        let refused = self.host.conversation()?.change_peers(link.as_str(), &wanted)?;
        for (_, key, change) in &changes {
            match change {
                PeerChange::Set { peer, .. } => match peer.endpoint {
                    Some(endpoint) => drop(self.host.endpoints.insert(*key, endpoint)),
                    None => drop(self.host.endpoints.remove(key)),
                },
                PeerChange::Remove(_) => drop(self.host.endpoints.remove(key)),
            }
        }
        for (position, error) in refused {
            if let Some((step, key, _)) = changes.get(position) {
                self.host.endpoints.remove(key);
                self.note(step, Err(error));
            }
        }
        Ok(())
    }

    /// The steps of one table, all or nothing.
    fn transact(&mut self, steps: &[Step]) {
        let mut transaction = Transaction::new();
        for step in steps {
            if let Step::Nft(step) = step {
                transaction.add_step(step);
            }
        }
        if let Err(error) = self.host.nft.commit(transaction) {
            // The error names the culprit; the first step stands for the whole transaction.
            self.report.skipped += steps.len() - 1;
            self.report.failed.extend(steps.first().map(|step| Failed { step: step.clone(), error }));
        }
    }

    /// Steps of one kind, as one batch.
    fn send(&mut self, steps: &[Step]) -> Result<(), Error> {
        let mut batch = Batch::new();
        let mut sent = Vec::with_capacity(steps.len());
        for step in steps {
            match self.request(step) {
                Some(request) => {
                    let room = self.making_room(step);
                    if let Some(room) = &room {
                        batch.push(route::add(room));
                        sent.push(None);
                    }
                    batch.push(request);
                    sent.push(Some(step));
                    if let Some(room) = &room {
                        batch.push(route::delete(room));
                        sent.push(None);
                    }
                }
                None => self.report.skipped += 1,
            }
        }
        for failure in self.host.route.run(&batch, |_, _| Ok(()))? {
            // Where room could not be made, what it was to be made for says so; what is left of it is not wanted.
            if let Some(Some(step)) = sent.get(failure.position) {
                self.note(step, Err(failure.error));
            }
        }
        for step in steps {
            if let Step::DeleteLink(name) = step {
                self.indexes.remove(name);
            }
        }
        Ok(())
    }

    /// The route that has to stand while the request for a step is carried out. IPv6 refuses an on-link gateway that any route
    /// leads to over another link, also the very route that is to be replaced. A route to the gateway alone, over the new link,
    /// goes before that one; so nothing is without a route in between, as it would be if the old one went first.
    fn making_room(&self, step: &Step) -> Option<route::Route> {
        let Step::SetRoute { route, was: Some(was) } = step else { return None };
        let destination = route.key.destination;
        let through_itself = route.target.via.is_some_and(|via| via.is_ipv6() && destination.contains(&via));
        if !route.target.onlink || !through_itself || route.target.link == was.link {
            return None;
        }
        self.route(&Route::on_link(route.target.via?.into(), route.target.link?))
    }

    /// The request for a step; `None` when what it stands on is not there.
    fn request(&self, step: &Step) -> Option<Request> {
        let index = |link: &LinkName| self.indexes.get(link).copied();
        Some(match step {
            Step::DeleteLink(name) => link::delete(index(name)?),
            Step::AddAddress(wanted) => address::add(&address::NewAddress {
                skip_duplicate_detection: true,
                ..address::NewAddress::new(index(&wanted.link)?, wanted.net)
            }),
            Step::DeleteAddress(old) => address::delete(index(&old.link)?, old.net),
            Step::SetNeighbour { neighbour: wanted, .. } => {
                neighbour::set(index(&wanted.link)?, wanted.address, wanted.mac)
            }
            Step::DeleteNeighbour(old) => neighbour::delete(index(&old.link)?, old.address),
            Step::SetFdb { entry, .. } => {
                neighbour::set_fdb(index(&entry.link)?, entry.mac, entry.destination)
            }
            Step::DeleteFdb(old) => neighbour::delete_fdb(index(&old.link)?, old.mac, Some(old.destination)),
            Step::SetRoute { route: wanted, was } => {
                let gateway = wanted.target.link.zip(wanted.target.via);
                if gateway.is_some_and(|gateway| self.dark.contains(&gateway)) {
                    return None;
                }
                let wanted = self.route(wanted)?;
                // Where we have none, one that somebody put there since we looked must not be replaced.
                if was.is_some() { route::replace(&wanted) } else { route::add(&wanted) }
            }
            // Without a metric IPv6 deletes the first route to the destination, whatever its metric.
            Step::DeleteRoute(old) => {
                route::delete(&route::Route { metric: old.key.effective_metric(), ..self.route(old)? })
            }
            Step::AddRule(wanted) => rule::add(&kernel_rule(wanted)),
            // The priority makes it ours, whoever put it there: no protocol means any.
            Step::DeleteRule(old) => rule::delete(&rule::Rule { protocol: 0, ..kernel_rule(old) }),
            Step::CreateLink(_)
            | Step::ChangeLink { .. }
            | Step::SetSysctl { .. }
            | Step::SetWireGuard { .. }
            | Step::SetWireGuardPeer { .. }
            | Step::DeleteWireGuardPeer(_)
            | Step::Nft(_) => return None,
        })
    }

    /// A route in the kernel's terms; `None` when its link is not there.
    fn route(&self, wanted: &Route) -> Option<route::Route> {
        let Route { key, target } = *wanted;
        let link = match target.link {
            Some(link) => Some(self.indexes.get(&link).copied()?),
            None => None,
        };
        let hop = route::Hop { gateway: target.via, link, onlink: target.onlink, weight: 1 };
        let shape = match target.kind {
            RouteKind::Unicast if target.via.is_some() => {
                route::Route::via(key.destination, key.destination.addr(), 0)
            }
            RouteKind::Unicast => route::Route::on_link(key.destination, 0),
            RouteKind::Blackhole => route::Route::dropping(key.destination, route::Kind::Blackhole),
            RouteKind::Unreachable => route::Route::dropping(key.destination, route::Kind::Unreachable),
        };
        Some(route::Route {
            table: key.table,
            metric: key.metric,
            protocol: ROUTE_PROTOCOL,
            source: target.source,
            mtu: target.mtu,
            hops: if target.kind == RouteKind::Unicast { vec![hop] } else { Vec::new() },
            ..shape
        })
    }

    fn index(&self, link: LinkName) -> Result<u32, Error> {
        let missing = || Error::System {
            tried: "find the link that a tunnel is bound to",
            source: std::io::Error::from_raw_os_error(libc::ENODEV),
        };
        self.indexes.get(&link).copied().ok_or_else(missing)
    }

    /// Records a step's failure, unless the world is as the step wanted it anyway.
    fn note(&mut self, step: &Step, done: Result<(), Error>) {
        let Err(error) = done else { return };
        let harmless = match step {
            Step::AddAddress(_) | Step::AddRule(_) => error.exists(),
            Step::DeleteLink(_)
            | Step::DeleteAddress(_)
            | Step::DeleteNeighbour(_)
            | Step::DeleteFdb(_)
            | Step::DeleteRoute(_)
            | Step::DeleteRule(_) => error.is_missing(),
            _ => false,
        };
        if harmless {
            return;
        }
        match step {
            Step::CreateLink(link) => {
                self.indexes.remove(&link.name);
            }
            Step::SetNeighbour { neighbour, .. } => {
                self.dark.insert((neighbour.link, neighbour.address));
            }
            _ => {}
        }
        self.report.failed.push(Failed { step: step.clone(), error });
    }
}

fn kernel_rule(wanted: &PolicyRule) -> rule::Rule {
    let family = if wanted.v6 { Family::V6 } else { Family::V4 };
    rule::Rule {
        source: wanted.from,
        destination: wanted.to,
        mark: wanted.mark.map(|(value, mask)| rule::Mark { value, mask }),
        protocol: ROUTE_PROTOCOL,
        ..rule::Rule::new(family, wanted.priority, rule::Action::Table(wanted.table))
    }
}
