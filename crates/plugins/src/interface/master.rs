//! The master: the link that a macvlan, ipvlan or vlan sits on.
//!
//! Read [`Master::of`], which reads what the configuration says, then [`Master::find`], which looks where it says:
//! on the host, or in the pod with `linkInContainer`. Without a name it is the link of the default route: the one of
//! the lowest metric in the main table, IPv4's before IPv6's.

use cni::{Error, Fields};
use kernel::Family;
use kernel::link::{self, Link};
use kernel::netlink::Socket;
use kernel::route::{self, Kind, Route};

use super::child::Site;
use crate::fault::fault;

/// Which link it is, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Master {
    /// Its name; `None` for the link of the default route.
    name: Option<String>,
    /// `linkInContainer`: it is in the pod.
    pub(crate) in_container: bool,
}

impl Master {
    /// Reads `master` and `linkInContainer`.
    ///
    /// # Errors
    /// Code 6 for a key of the wrong type.
    pub(crate) fn of(fields: &Fields<'_>) -> Result<Self, Error> {
        Ok(Self {
            name: Some(fields.string("master")?.to_owned()).filter(|name| !name.is_empty()),
            in_container: fields.bool("linkInContainer")?,
        })
    }

    /// Whether the configuration names it.
    pub(crate) fn is_named(&self) -> bool {
        self.name.is_some()
    }

    /// The same with this name.
    pub(crate) fn named(self, name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..self }
    }

    /// The link, by the socket of the namespace it is in.
    ///
    /// # Errors
    /// Code 7 when there is none of that name, or no default route to go by.
    pub(crate) fn find(&self, socket: &mut Socket) -> Result<Link, Error> {
        let place = if self.in_container { "the pod" } else { "the host" };
        let Some(name) = &self.name else {
            let link = match default_link(socket)? {
                Some(index) => link::find(socket, index).map_err(fault)?,
                None => None,
            };
            return link.ok_or_else(|| {
                Error::invalid_config("no default route interface found")
                    .with_details(format!("hint: {place} has no default route; name the \"master\""))
            });
        };
        match link::find(socket, name) {
            Ok(Some(link)) => Ok(link),
            Ok(None) => {
                let text = format!("failed to lookup master {name:?}: there is no such link in {place}");
                let other = if self.in_container { "false" } else { "true" };
                let hint = format!("hint: \"linkInContainer\": {other} looks on the other side");
                Err(Error::invalid_config(text).with_details(hint))
            }
            Err(error) => Err(fault(error).context(format!("master {name:?}"))),
        }
    }

    /// In what the pod's link differs from one that sits on this master with the MTU that is configured. A
    /// master that is not named is not looked for: the default route may lead elsewhere by now.
    ///
    /// # Errors
    /// As [`Master::find`].
    pub(crate) fn difference(&self, site: &mut Site<'_>, link: &Link) -> Result<Option<String>, Error> {
        let fields = site.request.config.fields();
        let mtu: i64 = fields.integer("mtu")?;
        if mtu != 0 && i64::from(link.mtu) != mtu {
            return Ok(Some(format!("{} has MTU {}, not {mtu}", link.name, link.mtu)));
        }
        if !self.is_named() {
            return Ok(None);
        }
        let master = self.find(site.links(self.in_container))?;
        let is_its = link.parent == Some(master.index) && link.peer_namespace.is_none() == self.in_container;
        Ok((!is_its).then(|| format!("{} does not sit on {}", link.name, master.name)))
    }
}

/// The link of the default route.
fn default_link(socket: &mut Socket) -> Result<Option<u32>, Error> {
    for family in Family::BOTH {
        let filter = route::Filter {
            family: Some(family),
            table: Some(route::MAIN_TABLE),
            ..route::Filter::default()
        };
        let routes = route::list(socket, filter).map_err(fault)?;
        if let Some(index) = best(&routes) {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

/// The first link of the default route with the lowest metric.
fn best(routes: &[Route]) -> Option<u32> {
    let defaults = routes.iter().filter(|route| {
        route.destination.prefix_len() == 0 && route.kind == Kind::Unicast && link_of(route).is_some()
    });
    defaults.min_by_key(|route| route.metric).and_then(link_of)
}

fn link_of(route: &Route) -> Option<u32> {
    route.hops.iter().find_map(|hop| hop.link)
}

/// `mtu`, which may not be larger than the master's; 0 is as good as absent.
///
/// # Errors
/// Code 6 when it is no number, 7 when it is none of these.
pub(crate) fn mtu(fields: &Fields<'_>, master: &Link) -> Result<Option<u32>, Error> {
    let asked: i64 = fields.integer("mtu")?;
    match u32::try_from(asked) {
        Ok(0) => Ok(None),
        Ok(mtu) if mtu <= master.mtu => Ok(Some(mtu)),
        _ => {
            let text = format!("invalid MTU {asked}, must be [0, master MTU({})]", master.mtu);
            Err(Error::invalid_config(text).with_details(format!("the master is {}", master.name)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(net: &str, metric: u32, link: u32) -> Route {
        Route { metric, ..Route::via(net.parse().unwrap(), "192.0.2.1".parse().unwrap(), link) }
    }

    #[test]
    fn the_default_route_of_the_lowest_metric_leads_to_the_master() {
        let dropping = Route::dropping("0.0.0.0/0".parse().unwrap(), Kind::Blackhole);
        let routes =
            [dropping, route("10.0.0.0/8", 0, 3), route("0.0.0.0/0", 100, 4), route("0.0.0.0/0", 50, 5)];
        assert_eq!(best(&routes), Some(5));
        assert_eq!(best(&routes[..2]), None);
    }
}
