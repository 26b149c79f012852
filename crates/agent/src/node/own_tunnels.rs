//! Tunnels of the agent's own: kept as they are to be, and opened before anything leads into them.
//!
//! Read [`NodeKeeper::open_tunnels`]. What the kernel is told to send into a device that nobody reads is lost, and a peer that
//! changes its backend may be the first for whom this node needs such a device. So the device is made and the tunnel opened
//! first, while packets travel as they did; then the routes are changed.

use std::collections::BTreeMap;

use netstate::{LinkName, RouteTarget, State};
use route::{Design, TunnelDesign, TunnelKind};

use super::{NodeKeeper, Outcome};
use crate::report::{Reason, told};

impl NodeKeeper {
    /// Opens the tunnels that this design needs and the one before did not. Where one of them cannot be opened, the design becomes one by which
    /// packets travel as they did; it is told, and tried again. But what is to be encrypted does not go otherwise.
    pub(super) fn open_tunnels(&mut self, design: &mut Design, outcome: &mut Outcome) {
        // An agent that has just started does not know how packets travel.
        let Some(last) = &self.design else { return };
        let new = design.tunnels.iter().filter(|(kind, _)| !last.tunnels.contains_key(kind));
        let mut new: BTreeMap<TunnelKind, LinkName> =
            new.map(|(kind, tunnel)| (*kind, tunnel.device)).collect();
        if new.is_empty() {
            return;
        }
        let last = last.state.clone();
        // What fails of it has nothing to do with these tunnels, or shows when they are opened.
        self.make(&without_routes_into(&new, &design.state, &last), outcome);
        self.keep_tunnels(&design.tunnels, outcome);
        new.retain(|kind, _| !kind.is_wireguard() && !self.tunnels.runs(*kind));
        if !new.is_empty() {
            design.state = without_routes_into(&new, &design.state, &last);
            design.tunnels.retain(|kind, _| !new.contains_key(kind));
        }
    }

    /// Has the tunnels carried that are to be; true if they are.
    pub(super) fn keep_tunnels(
        &mut self,
        wanted: &BTreeMap<TunnelKind, TunnelDesign>,
        outcome: &mut Outcome,
    ) -> bool {
        // A tunnel makes a device that is not there, and one without our mark would be in the way of ours for as long as the
        // tunnel has it. So a tunnel whose device was deleted a moment ago ends, and begins anew with the next look.
        let mut standing = wanted.clone();
        standing.retain(|_, design| self.door.is_marked(design.device));
        let kept = self.tunnels.keep(&standing, &self.keys);
        if let Err(error) = &kept {
            self.report.not_ready(Reason::NodeRefused, told(error));
            outcome.failed = true;
        }
        kept.is_ok() && standing.len() == wanted.len()
    }

    /// Has tunnels that have ended start anew as they were, without the cluster.
    pub(crate) fn resume_tunnels(&mut self) {
        self.tunnels.resume(&self.options.key_directories());
    }

    /// Whether a tunnel that is called so is to run.
    pub(crate) fn has_tunnel(&self, name: &str) -> bool {
        self.tunnels.has(name)
    }
}

/// A state but for its routes into these devices, in whose place are those of before that can still be.
fn without_routes_into(tunnels: &BTreeMap<TunnelKind, LinkName>, state: &State, last: &State) -> State {
    let leads = |target: &RouteTarget| tunnels.values().any(|device| target.link == Some(*device));
    let can_be = |target: &RouteTarget| {
        let is_gone = |link| last.links.contains_key(&link) && !state.links.contains_key(&link);
        !leads(target) && !target.link.is_some_and(is_gone)
    };
    let mut first = state.clone();
    first.routes.retain(|_, target| !leads(target));
    for key in state.routes.iter().filter(|(_, target)| leads(target)).map(|(key, _)| key) {
        let was = last.routes.get(key).filter(|target| can_be(target));
        first.routes.extend(was.map(|target| (*key, *target)));
    }
    first
}

#[cfg(test)]
mod tests {
    use netstate::{Link, LinkKind, Route};

    use super::*;

    #[test]
    fn until_a_tunnel_is_open_packets_travel_as_they_did_unless_that_is_gone() {
        let name = |text: &str| text.parse::<LinkName>().unwrap();
        let net = |text: &str| text.parse().unwrap();
        let with = |links: &[&str], routes: &[(&str, &str)]| {
            let mut state = State::default();
            for link in links {
                state.insert_link(Link {
                    name: name(link),
                    kind: LinkKind::Tun,
                    mtu: None,
                    mac: None,
                    up: true,
                });
            }
            for (to, link) in routes {
                state.insert_route(Route::on_link(net(to), name(link)));
            }
            state
        };
        let last = with(
            &["fairlead-ipip"],
            &[("10.1.0.0/24", "eth0"), ("10.2.0.0/24", "fairlead-ipip"), ("10.9.0.0/24", "eth0")],
        );
        let to = ["10.1.0.0/24", "10.2.0.0/24", "10.3.0.0/24"].map(|net| (net, "fairlead-udp"));
        let state = with(&["fairlead-udp"], &[&to[..], &[("10.4.0.0/24", "eth0")]].concat());
        let first = without_routes_into(&[(TunnelKind::Udp, name("fairlead-udp"))].into(), &state, &last);
        assert_eq!(
            first,
            with(&["fairlead-udp"], &[("10.1.0.0/24", "eth0"), ("10.4.0.0/24", "eth0")]),
            "{first}"
        );
    }
}
