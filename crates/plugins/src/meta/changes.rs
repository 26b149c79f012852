//! Routes and rules of a pod, changed so that it can be undone.
//!
//! Read [`Changes`] first. What is there already when it should be added, or gone when it should go, is as it
//! should be, and is not undone either.

use cni::Error;
use kernel::netlink::{Batch, Request, Socket};
use kernel::route::{self, Kind, Route};
use kernel::rule::{self, Rule};

use crate::fault::{Failures, fault};

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Adds a route beside those to the same destination.
    AddRoute(Route),
    /// Deletes a route.
    DeleteRoute(Route),
    /// Adds a rule.
    AddRule(Rule),
    /// Deletes a rule.
    DeleteRule(Rule),
}

impl Change {
    fn request(&self) -> Request {
        match self {
            Self::AddRoute(route) => route::append(route),
            Self::DeleteRoute(route) => route::delete(route),
            Self::AddRule(rule) => rule::add(rule),
            Self::DeleteRule(rule) => rule::delete(rule),
        }
    }

    fn opposite(self) -> Self {
        match self {
            Self::AddRoute(route) => Self::DeleteRoute(route),
            Self::DeleteRoute(route) => Self::AddRoute(route),
            Self::AddRule(rule) => Self::DeleteRule(rule),
            Self::DeleteRule(rule) => Self::AddRule(rule),
        }
    }

    /// Whether the kernel's refusal says that the world is as this wants it.
    fn is_needless(&self, error: &kernel::Error) -> bool {
        match self {
            Self::AddRoute(_) | Self::AddRule(_) => error.exists(),
            Self::DeleteRoute(_) | Self::DeleteRule(_) => error.is_missing(),
        }
    }
}

/// What has been changed in one namespace so far.
#[derive(Debug)]
pub(crate) struct Changes<'a> {
    socket: &'a mut Socket,
    done: Vec<Change>,
}

impl<'a> Changes<'a> {
    /// Nothing changed yet.
    pub(crate) fn new(socket: &'a mut Socket) -> Self {
        Self { socket, done: Vec::new() }
    }

    /// Makes these changes, in order and in one send.
    ///
    /// # Errors
    /// Everything that the kernel refuses. The other changes are made nevertheless: go [`back`](Self::back).
    pub(crate) fn make(&mut self, changes: Vec<Change>) -> Result<(), Error> {
        if changes.is_empty() {
            return Ok(());
        }
        let batch = Batch::from_iter(changes.iter().map(Change::request));
        let refusals = match self.socket.run(&batch, |_, _| Ok(())) {
            Ok(refusals) => refusals,
            Err(error) => {
                // Nobody knows which of them were made, and undoing one that was not does no harm.
                self.done.extend(changes);
                return Err(fault(error));
            }
        };
        let mut failures = Failures::default();
        let mut refused = refusals.into_iter().peekable();
        for (position, change) in changes.into_iter().enumerate() {
            match refused.next_if(|refusal| refusal.position == position) {
                None => self.done.push(change),
                Some(refusal) if change.is_needless(&refusal.error) => {}
                Some(refusal) => drop(failures.note_kernel::<()>(Err(refusal.error))),
            }
        }
        failures.into_result()
    }

    /// Undoes everything, last first, and returns the error that it is undone for.
    pub(crate) fn back(mut self, cause: Error) -> Error {
        let opposites = std::mem::take(&mut self.done).into_iter().rev().map(Change::opposite).collect();
        match self.make(opposites) {
            Ok(()) => cause,
            Err(error) => {
                let message = format!("{}; undoing it: {}", cause.message, error.message);
                Error { message, ..cause }
            }
        }
    }
}

/// The routes of any table that lead over this link and no other. What the kernel keeps for itself (its own
/// addresses, broadcast, multicast) is not among them.
///
/// # Errors
/// When the kernel refuses to tell.
pub(crate) fn routes_over(socket: &mut Socket, link: u32) -> Result<Vec<Route>, Error> {
    let mut routes =
        route::list(socket, route::Filter { link: Some(link), ..route::Filter::default() }).map_err(fault)?;
    routes.retain(|route| route.kind == Kind::Unicast && route.hops.iter().all(|hop| hop.link == Some(link)));
    Ok(routes)
}

/// Puts routes to the link itself before those by a gateway, which needs them.
pub(crate) fn nearest_first(routes: &mut [Route]) {
    routes.sort_by_key(|route| route.hops.iter().any(|hop| hop.gateway.is_some()));
}

/// The first table from `lowest` on that nobody uses, and none that has a meaning for the kernel.
pub(crate) fn unused_table(lowest: u32, in_use: &[u32]) -> u32 {
    (lowest..).find(|table| !(253..=255).contains(table) && !in_use.contains(table)).unwrap_or(lowest)
}

/// Every table of a namespace that a rule looks up, a route is in or a VRF has.
///
/// # Errors
/// When the kernel refuses to tell.
pub(crate) fn tables_in_use(socket: &mut Socket) -> Result<Vec<u32>, Error> {
    let routes = route::list(socket, route::Filter::default()).map_err(fault)?;
    let rules = rule::list(socket).map_err(fault)?;
    let links = kernel::link::list(socket, kernel::link::Filter { kind: Some("vrf"), ..Default::default() })
        .map_err(fault)?;
    let looked_up = rules.iter().filter_map(|rule| match rule.action {
        rule::Action::Table(table) => Some(table),
        _ => None,
    });
    let vrfs = links.iter().filter_map(|link| match link.kind {
        kernel::link::Kind::Vrf { table } => Some(table),
        _ => None,
    });
    let mut tables: Vec<u32> = routes.iter().map(|route| route.table).chain(looked_up).chain(vrfs).collect();
    tables.sort_unstable();
    tables.dedup();
    Ok(tables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_means_something_is_never_unused() {
        assert_eq!(unused_table(100, &[]), 100);
        assert_eq!(unused_table(100, &[100, 101, 103]), 102);
        assert_eq!(unused_table(253, &[256]), 257);
    }

    #[test]
    fn routes_to_the_link_come_before_those_by_a_gateway() {
        let net = |text: &str| text.parse().unwrap();
        let mut routes = vec![
            Route::via(net("0.0.0.0/0"), "10.0.0.1".parse().unwrap(), 7),
            Route::on_link(net("10.0.0.0/24"), 7),
            Route::via(net("192.0.2.0/24"), "10.0.0.1".parse().unwrap(), 7),
            Route::on_link(net("10.1.0.0/24"), 7),
        ];
        nearest_first(&mut routes);
        let order: Vec<String> = routes.iter().map(|route| route.destination.to_string()).collect();
        assert_eq!(order, ["10.0.0.0/24", "10.1.0.0/24", "0.0.0.0/0", "192.0.2.0/24"]);
    }
}
