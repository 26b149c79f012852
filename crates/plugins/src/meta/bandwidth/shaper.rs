//! How the kernel limits: a token bucket at the root of a link, or, if only some subnets are meant, a class that
//! filters lead to or past.
//!
//! Read [`Shaper::install`]: two sends. The first makes the IFB, the second marks it and sets everything.

use cni::Error;
use ipnet::IpNet;
use kernel::filter::{self, Filter, Side};
use kernel::link::{self, Change, Link, NewKind, NewLink};
use kernel::netlink::{Batch, Protocol, Request, Socket};
use kernel::qdisc::{self, Qdisc, Tbf};

use super::config::{Limits, Rate, Scope};
use crate::attachment;
use crate::fault::{Failures, fault};
use crate::interface::veth;
use crate::owner::Owner;

/// One attachment's shaping.
pub(super) struct Shaper<'a> {
    pub(super) host: &'a mut Socket,
    pub(super) owner: &'a Owner,
    /// The host's end of the pod's cable.
    pub(super) cable: &'a Link,
    pub(super) limits: &'a Limits,
}

impl<'a> Shaper<'a> {
    /// Puts the limits in place; returns the IFB if one was needed.
    ///
    /// # Errors
    /// When the attachment has an IFB already, or the kernel refuses. Nothing new is left then.
    pub(super) fn install(mut self) -> Result<Option<Link>, Error> {
        let ifb = match &self.limits.egress {
            Some(_) => Some(self.make_ifb()?),
            None => None,
        };
        let cable = self.cable.index;
        let mut batch = Batch::new();
        let ingress = self.limits.ingress.as_ref();
        batch.extend(ingress.into_iter().flat_map(|rate| self.limiting(cable, rate, Side::Source)));
        let own_limits = batch.len();
        batch.extend(ifb.iter().flat_map(|ifb| self.redirection(ifb)));
        // The hook is the last but one.
        let hook = batch.len().saturating_sub(2);
        let failures = match self.host.run(&batch, |_, _| Ok(())) {
            Ok(failures) if failures.is_empty() => return Ok(ifb),
            Ok(failures) => failures,
            Err(error) => return Err(self.undo(fault(error), &[qdisc::ROOT, qdisc::INGRESS])),
        };
        // What was refused is not ours to take away: somebody else's is in the way.
        let done = |position: usize| !failures.iter().any(|failure| failure.position == position);
        let made: Vec<u32> =
            [(own_limits > 0 && done(0), qdisc::ROOT), (ifb.is_some() && done(hook), qdisc::INGRESS)]
                .into_iter()
                .filter_map(|(made, place)| made.then_some(place))
                .collect();
        let cause = failures.into_iter().next().map(|failure| fault(failure.error));
        Err(self.undo(cause.unwrap_or_else(|| Error::internal("nothing was refused")), &made))
    }

    /// The requests that mark the IFB, limit what leaves by it, and lead there what comes from the pod.
    fn redirection(&self, ifb: &Link) -> Vec<Request> {
        let alias = self.owner.alias();
        let mark = Change { alias: Some(&alias), ..Change::default() };
        let mut requests = vec![link::change(ifb.index, &mark)];
        // While it is down: changing the queue of a link that is up costs a grace period.
        let egress = self.limits.egress.as_ref();
        requests
            .extend(egress.into_iter().flat_map(|rate| self.limiting(ifb.index, rate, Side::Destination)));
        requests.push(link::change(ifb.index, &Change { up: Some(true), ..Change::default() }));
        requests.push(qdisc::add_ingress(self.cable.index));
        requests.push(filter::redirect(self.cable.index, ifb.index));
        requests
    }

    /// Makes the IFB under the first name that is free. It is down.
    fn make_ifb(&mut self) -> Result<Link, Error> {
        let mut refused = None;
        for name in self.owner.shaping_link_names() {
            let new = NewLink {
                mtu: Some(self.cable.mtu),
                group: Some(Owner::group(self.owner.network())),
                ..NewLink::new(&name, NewKind::Plain("ifb"))
            };
            let mut made = None;
            let request = Batch::from(link::create_and_report(&new));
            let failures = self.host.run(&request, |_, reply| {
                made = Some(Link::from_reply(reply)?);
                Ok(())
            });
            let failures = failures.map_err(|error| self.undo(fault(error), &[]))?;
            match (failures.into_iter().next(), made) {
                (Some(failure), _) if failure.error.exists() => {
                    let taken = link::find(self.host, &name).map_err(fault)?;
                    refused = Some(fault(failure.error));
                    if taken.is_some_and(|link| link.alias == Some(self.owner.alias())) {
                        break;
                    }
                }
                (Some(failure), _) => return Err(fault(failure.error)),
                (None, Some(link)) => return Ok(link),
                // A kernel that does not report what it made.
                (None, None) => {
                    let found = link::find(self.host, &name).map_err(fault)?;
                    return found.ok_or_else(|| Error::kernel(format!("{name} vanished while it was made")));
                }
            }
        }
        Err(refused.unwrap_or_else(|| Error::internal("an IFB has no name")))
    }

    /// Takes away the attachment's IFB and what hangs on these places of the cable. The conversation may have
    /// broken, so a new one is begun.
    fn undo(&self, cause: Error, places: &[u32]) -> Error {
        let undone = Socket::open(Protocol::Route).map_err(fault).and_then(|mut host| {
            let limits: Batch = places.iter().map(|place| qdisc::delete(self.cable.index, *place)).collect();
            // That it is not there is all that is refused here.
            host.run(&limits, |_, _| Ok(())).map_err(fault)?;
            remove(&mut host, self.owner)
        });
        match undone {
            Ok(()) => cause,
            Err(failure) => {
                Error { message: format!("{}; undoing it: {}", cause.message, failure.message), ..cause }
            }
        }
    }

    /// The requests that limit what leaves by a link. `side` is where the pod's counterpart stands in a packet.
    fn limiting(&self, link: u32, rate: &Rate, side: Side) -> Vec<Request> {
        let limit = rate.limit(self.cable.mtu);
        let Some((subnets, inside, outside)) = self.classes() else {
            return vec![qdisc::set_tbf(link, &limit)];
        };
        let mut requests = Vec::from(qdisc::set_htb(link, &limit, outside));
        requests.extend(
            subnets.iter().map(|net| filter::classify(link, qdisc::ROOT_HANDLE, inside, (side, *net))),
        );
        requests
    }

    /// The subnets told apart, their class, and everybody else's; `None` if all traffic is treated alike.
    fn classes(&self) -> Option<(&'a [IpNet], u32, u32)> {
        let limits = self.limits;
        match &limits.scope {
            Scope::Everything => None,
            Scope::Only(subnets) => Some((subnets, qdisc::SHAPED, qdisc::DIRECT)),
            Scope::AllBut(subnets) => Some((subnets, qdisc::DIRECT, qdisc::SHAPED)),
        }
    }

    /// What is missing of the limits, in words; `None` when all is there.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub(super) fn lacking(&mut self) -> Result<Option<String>, Error> {
        if let Some(rate) = &self.limits.ingress
            && let Some(text) = self.unlimited(self.cable, rate, Side::Source)?
        {
            return Ok(Some(text));
        }
        let Some(rate) = &self.limits.egress else { return Ok(None) };
        let Some(ifb) = find(self.host, self.owner)? else {
            let [name, _] = self.owner.shaping_link_names();
            return Ok(Some(format!("the IFB {name} is gone")));
        };
        if !ifb.is_up() {
            return Ok(Some(format!("the IFB {} is down", ifb.name)));
        }
        let filters = filter::list(self.host, self.cable.index, qdisc::INGRESS_HANDLE).map_err(fault)?;
        let redirects = |filter: &Filter| filter.redirect == Some(ifb.index) && filter.matches_everything();
        if !filters.iter().any(redirects) {
            let text = format!("traffic of {} is not redirected to {} any more", self.cable.name, ifb.name);
            return Ok(Some(text));
        }
        self.unlimited(&ifb, rate, Side::Destination)
    }

    /// Why a link does not limit as it should; `None` if it does.
    fn unlimited(&mut self, link: &Link, rate: &Rate, side: Side) -> Result<Option<String>, Error> {
        let name = &link.name;
        let root = qdisc_at_root(self.host, link.index)?;
        let (limit, reference) = (rate.limit(self.cable.mtu), rate.unbounded_limit());
        let Some((subnets, inside, outside)) = self.classes() else {
            return Ok(match root.and_then(|root| root.tbf) {
                None => Some(format!("Failed to find qdisc: {name} has no token bucket filter any more")),
                Some(found) if limit.is(&found) || reference.is(&found) => None,
                Some(found) => Some(difference(name, &limit, &found)),
            });
        };
        if root.and_then(|root| root.htb).is_none_or(|htb| htb.default != outside) {
            return Ok(Some(format!("Failed to find qdisc: {name} does not tell subnets apart any more")));
        }
        let classes = qdisc::classes(self.host, link.index).map_err(fault)?;
        if !classes.iter().any(|class| class.handle == qdisc::SHAPED && class.shapes_as(&limit)) {
            return Ok(Some(format!("Rate doesn't match: the class of {name} is not as configured")));
        }
        let filters = filter::list(self.host, link.index, qdisc::ROOT_HANDLE).map_err(fault)?;
        let led = |net: &IpNet| {
            filters.iter().any(|filter| filter.class == Some(inside) && filter.matches(side, *net))
        };
        let lost = subnets.iter().find(|net| !led(net));
        Ok(lost.map(|net| format!("the filter for {net} is gone from {name}")))
    }
}

/// Deletes the owner's IFB. That it is gone is a success.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn remove(host: &mut Socket, owner: &Owner) -> Result<(), Error> {
    let mut failures = Failures::default();
    for link in all(host, owner)? {
        failures.note(veth::delete(host, link.index));
    }
    failures.into_result()
}

/// The owner's IFB: the one with its mark, or else one that the reference made.
fn find(host: &mut Socket, owner: &Owner) -> Result<Option<Link>, Error> {
    let mut all = all(host, owner)?;
    let marked = all.iter().position(|link| link.alias.is_some()).unwrap_or(0);
    Ok((marked < all.len()).then(|| all.swap_remove(marked)))
}

fn all(host: &mut Socket, owner: &Owner) -> Result<Vec<Link>, Error> {
    attachment::links(host, &owner.shaping_link_names(), |link| owner.owns(link))
}

/// What the link's packets leave through; `None` for a link without a queue.
fn qdisc_at_root(host: &mut Socket, link: u32) -> Result<Option<Qdisc>, Error> {
    let mut found = None;
    let failures = host
        .run(&Batch::from(qdisc::look_up(link, qdisc::ROOT)), |_, reply| {
            found = Some(Qdisc::from_reply(reply)?);
            Ok(())
        })
        .map_err(fault)?;
    match failures.into_iter().find(|failure| !failure.error.is_missing()) {
        Some(failure) => Err(fault(failure.error)),
        None => Ok(found),
    }
}

fn difference(name: &str, wanted: &Tbf, found: &Tbf) -> String {
    let (what, wanted, found) = if wanted.rate != found.rate {
        ("Rate", wanted.rate, found.rate)
    } else if wanted.limit != found.limit {
        ("Limit", wanted.limit.into(), found.limit.into())
    } else {
        ("Buffer", wanted.burst.into(), found.burst.into())
    };
    format!("{what} doesn't match: {name} has {found} bytes, not {wanted}")
}
