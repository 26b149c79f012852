//! What is not ours and stands in the way: reported, never removed.
//!
//! `kernel::observe` returns an [`Observed`]: our own state, and those foreign objects that share a place with
//! something we want. [`plan`] keeps the steps away from them and says which wanted objects are blocked.

use std::{collections::BTreeSet, fmt};

use crate::{LinkName, Route, RouteKey, RouteKind, State, Step, diff::diff, diff::without_links};

/// What was found in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// What is ours.
    pub state: State,
    /// What is not, and shares a place with something that is wanted.
    pub foreign: Foreign,
}

/// Foreign objects in the places of wanted ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Foreign {
    /// Links that have the name of a wanted link but not our alias.
    pub links: Vec<ForeignLink>,
    /// Routes to a destination of a wanted route, in the same table.
    pub routes: Vec<ForeignRoute>,
}

/// A link without our alias.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignLink {
    /// Its name.
    pub name: LinkName,
    /// Its kind as the kernel names it; empty for a physical device.
    pub kind: String,
}

/// A route that another program or person made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignRoute {
    /// The route.
    pub route: Route,
    /// The number of the routing protocol that made it.
    pub protocol: u8,
}

/// The steps to take, and what they leave undone for the sake of foreign objects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps in order.
    pub steps: Vec<Step>,
    /// What is in the way.
    pub conflicts: Vec<Conflict>,
}

/// A wanted object whose place is taken, or which a foreign one outdoes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conflict {
    /// A foreign link has the wanted name: the link and all that would be on it is left undone.
    Link(ForeignLink),
    /// A foreign route has the same destination, table and metric: the wanted route is left undone.
    Route(ForeignRoute),
    /// A foreign route to the same destination has a better metric: the wanted one is made but not used.
    Outdone(ForeignRoute),
}

/// The steps from what was observed to what is wanted, with nothing foreign touched.
#[must_use]
pub fn plan(observed: &Observed, want: &State) -> Plan {
    let mut conflicts = Vec::new();
    let taken: BTreeSet<LinkName> = observed.foreign.links.iter().map(|link| link.name).collect();
    let taken_and_wanted = |link: &&ForeignLink| want.links.contains_key(&link.name);
    conflicts.extend(observed.foreign.links.iter().filter(taken_and_wanted).cloned().map(Conflict::Link));
    let mut possible = if conflicts.is_empty() { want.clone() } else { without_links(want, &taken) };
    for foreign in &observed.foreign.routes {
        let RouteKey { destination, table, .. } = foreign.route.key;
        let rivals =
            possible.routes.keys().filter(|key| key.destination == destination && key.table == table);
        let Some(key) = rivals.copied().max_by_key(|key| key.metric == foreign.route.key.metric) else {
            continue;
        };
        let held = observed.state.routes.get(&key).copied();
        // A route that drops is there to be outdone by whoever has a better one.
        let drops = possible.routes.get(&key).is_some_and(|target| target.kind != RouteKind::Unicast);
        if key.metric == foreign.route.key.metric {
            if held != possible.routes.get(&key).copied() {
                conflicts.push(Conflict::Route(foreign.clone()));
            } else {
                conflicts.push(Conflict::Outdone(foreign.clone()));
            }
            match held {
                Some(target) => possible.routes.insert(key, target),
                None => possible.routes.remove(&key),
            };
        } else if !drops && foreign.route.key.effective_metric() < key.effective_metric() {
            conflicts.push(Conflict::Outdone(foreign.clone()));
        }
    }
    Plan { steps: diff(&observed.state, &possible), conflicts }
}

impl RouteKey {
    /// The metric that the kernel compares: IPv6 takes 1024 for none given.
    #[must_use]
    pub fn effective_metric(&self) -> u32 {
        if self.metric == 0 && self.destination.addr().is_ipv6() { 1024 } else { self.metric }
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link(ForeignLink { name, kind }) => {
                let kind = if kind.is_empty() { "device" } else { kind };
                write!(
                    f,
                    "! link {name} is a {kind} that is not ours (no alias \"{}\"); ",
                    crate::LINK_ALIAS
                )?;
                write!(f, "hint: rename or remove it, or give it that alias to hand it over")
            }
            Self::Route(ForeignRoute { route, protocol }) => {
                write!(f, "! route {route} of protocol {protocol} is in the place of ours; hint: remove it")
            }
            Self::Outdone(ForeignRoute { route, protocol }) => {
                write!(
                    f,
                    "! route {route} of protocol {protocol} is preferred to ours; hint: raise its metric"
                )
            }
        }
    }
}
