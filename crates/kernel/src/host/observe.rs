//! Reading the node's own state, and what stands in its way.
//!
//! An object is ours by its mark: a link by its alias (or, half made, by its group), a route by its protocol, a
//! table by its name, a policy rule by its priority; addresses, neighbours and forwarding entries by being
//! permanent on a link of ours. Addresses that the kernel gives a link itself are nobody's: IPv6's link-local ones, and the
//! IPv4-compatible ones of a `sit` device.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use netstate::{
    Address, FdbEntry, ForeignLink, ForeignRoute, IpTunnel, LINK_ALIAS, LINK_GROUP, Link, LinkKind, LinkName,
    Neighbour, Observed, PolicyRule, ROUTE_PROTOCOL, RULE_PRIORITIES, Route, RouteKey, RouteKind,
    RouteTarget, State, Vxlan, WireGuard, WireGuardPeerKey, owns_table,
};

use super::Host;
use crate::{Error, Family, address, link, neighbour, route, rule, sysctl, wireguard};

/// The links of the namespace by number.
type Names = HashMap<u32, LinkName>;

impl Host {
    /// Reads what is ours, and what foreign objects take the places of those in `want`. Of a link's attributes
    /// those that `want` leaves to the kernel are left out; of the sysctls only those in `want` are read.
    ///
    /// # Errors
    /// When the kernel refuses to list something.
    pub fn observe(&mut self, want: &State) -> Result<Observed, Error> {
        let links = link::list(&mut self.route, link::Filter::default())?;
        let names: Names =
            links.iter().filter_map(|link| Some((link.index, link.name.parse().ok()?))).collect();
        let mut observed = Observed::default();
        for found in &links {
            let Some(name) = names.get(&found.index).copied() else { continue };
            if is_ours(found) {
                let wanted = want.links.get(&name);
                observed.state.insert_link(read_link(found, name, wanted, &names));
                let read = self.read_link_objects(found.index, name, want, &mut observed.state);
                let read =
                    read.and_then(|()| match &observed.state.links.get(&name).map(|link| &link.kind) {
                        Some(LinkKind::WireGuard) => self.read_wireguard(name, want, &mut observed.state),
                        _ => Ok(()),
                    });
                match read {
                    // Gone since it was listed, and all on it with it; the monitor tells.
                    Err(error) if error.is_missing() => {}
                    other => other?,
                }
            } else if want.links.contains_key(&name) {
                let kind = found.kind.name().unwrap_or_default().to_owned();
                observed.foreign.links.push(ForeignLink { name, kind });
            }
        }
        self.read_routes(want, &names, &mut observed)?;
        self.read_rules(&mut observed.state)?;
        self.read_tables(want, &mut observed.state)?;
        observed.state.sysctls = read_sysctls(want);
        Ok(observed)
    }

    /// Addresses, neighbours and forwarding entries of one of our links.
    fn read_link_objects(
        &mut self,
        index: u32,
        link: LinkName,
        want: &State,
        state: &mut State,
    ) -> Result<(), Error> {
        for found in address::list(&mut self.route, Some(index), None)? {
            let address = Address { link, net: found.net };
            let automatic = is_automatic(found.net.addr()) && !want.addresses.contains(&address);
            if found.is_permanent() && !automatic {
                state.insert_address(address);
            }
        }
        for found in neighbour::list(&mut self.route, Some(index))? {
            if let (true, Some(mac)) = (found.is_permanent(), found.mac) {
                state.insert_neighbour(Neighbour { link, address: found.address, mac });
            }
        }
        for found in neighbour::list_fdb(&mut self.route, Some(index))? {
            if let (true, true, Some(destination)) = (found.is_permanent(), found.is_own(), found.destination)
            {
                state.insert_fdb(FdbEntry { link, mac: found.mac, destination });
            }
        }
        Ok(())
    }

    /// What a WireGuard device was told. A peer that has moved since it was told counts as told.
    fn read_wireguard(&mut self, link: LinkName, want: &State, state: &mut State) -> Result<(), Error> {
        let wireguard::Device { private_key, port, peers } = self.wireguard(link)?;
        if let Some(private_key) = private_key {
            state.insert_wireguard(link, WireGuard { private_key, port });
        }
        for (public_key, peer) in peers {
            let key = WireGuardPeerKey { link, public_key };
            let mut settings = peer.settings;
            let wanted = want.wireguard_peers.get(&key).and_then(|wanted| wanted.endpoint);
            match (settings.endpoint, wanted) {
                // As if it had been told by us: it may have been, by the agent before.
                (Some(endpoint), Some(wanted)) if endpoint == wanted => {
                    self.endpoints.insert(key, endpoint);
                }
                (Some(_), Some(_)) if wanted == self.endpoints.get(&key).copied() => {
                    settings.endpoint = wanted
                }
                _ => {}
            }
            state.insert_wireguard_peer(key, settings);
        }
        Ok(())
    }

    /// Whether a WireGuard device and its peers are as wanted, without a look at anything else: the kernel tells nobody when
    /// they change.
    ///
    /// # Errors
    /// When there is no such device, or the kernel refuses.
    pub fn has_wireguard(&mut self, link: LinkName, want: &State) -> Result<bool, Error> {
        let mut found = State::default();
        self.read_wireguard(link, want, &mut found)?;
        let wanted = want.wireguard_peers.iter().filter(|(key, _)| key.link == link);
        Ok(found.wireguards.get(&link) == want.wireguards.get(&link)
            && found.wireguard_peers.iter().eq(wanted))
    }

    fn read_routes(&mut self, want: &State, names: &Names, observed: &mut Observed) -> Result<(), Error> {
        let places: BTreeSet<_> = want.routes.keys().map(|key| (key.table, key.destination)).collect();
        for found in route::list(&mut self.route, route::Filter::default())? {
            let ours = found.protocol == ROUTE_PROTOCOL;
            if !ours && !places.contains(&(found.table, found.destination)) {
                continue;
            }
            let route = read_route(&found, names);
            if ours {
                // Of several with one key the kernel uses the first.
                observed.state.routes.entry(route.key).or_insert(route.target);
            } else {
                observed.foreign.routes.push(ForeignRoute { route, protocol: found.protocol });
            }
        }
        Ok(())
    }

    fn read_rules(&mut self, state: &mut State) -> Result<(), Error> {
        for found in rule::list(&mut self.route)? {
            if RULE_PRIORITIES.contains(&found.priority) {
                state.insert_rule(read_rule(&found));
            }
        }
        Ok(())
    }

    fn read_tables(&mut self, want: &State, state: &mut State) -> Result<(), Error> {
        let keys = match self.nft.tables() {
            // No nf_tables in this kernel: then there are no tables either, and adding one will say so.
            Err(error) if error.is_unsupported() => return Ok(()),
            keys => keys?,
        };
        for key in keys.into_iter().filter(|key| owns_table(&key.name)) {
            if let Some(table) = self.nft.table(&key, want.tables.get(&key))? {
                state.insert_table(table);
            }
        }
        Ok(())
    }
}

fn is_ours(link: &link::Link) -> bool {
    match link.alias.as_deref() {
        None | Some("") => link.group == LINK_GROUP,
        Some(alias) => alias == LINK_ALIAS,
    }
}

fn read_link(found: &link::Link, name: LinkName, wanted: Option<&Link>, names: &Names) -> Link {
    let compared = |leaves: fn(&Link) -> bool| wanted.is_none_or(|wanted| !leaves(wanted));
    Link {
        name,
        kind: read_kind(found, names),
        mtu: compared(|link| link.mtu.is_none()).then_some(found.mtu),
        mac: found.mac.filter(|_| compared(|link| link.mac.is_none())),
        up: found.is_up(),
    }
}

fn read_kind(found: &link::Link, names: &Names) -> LinkKind {
    if found.alias.as_deref() != Some(LINK_ALIAS) {
        return LinkKind::Other("half made".to_owned());
    }
    match &found.kind {
        link::Kind::Bridge { .. } => LinkKind::Bridge,
        link::Kind::Vxlan { id, port, local: Some(local), learning: false } => LinkKind::Vxlan(Vxlan {
            vni: *id,
            port: *port,
            local: *local,
            parent: found.parent.and_then(|parent| names.get(&parent).copied()),
        }),
        link::Kind::Tun { tap: false, multi_queue: true, .. } => LinkKind::Tun,
        link::Kind::IpTunnel { inner, local, as_ours: true } => {
            LinkKind::IpTunnel(IpTunnel { v6: *inner == Family::V6, local: *local })
        }
        link::Kind::Other(kind) if kind == wireguard::KIND => LinkKind::WireGuard,
        link::Kind::Vxlan { learning: true, .. } => LinkKind::Other("vxlan that learns".to_owned()),
        kind => LinkKind::Other(kind.name().unwrap_or("device").to_owned()),
    }
}

fn is_automatic(address: IpAddr) -> bool {
    let IpAddr::V6(address) = address else { return false };
    let is_compatible = address.segments()[..6] == [0; 6];
    address.is_unicast_link_local() || is_compatible && !address.is_loopback()
}

fn read_route(found: &route::Route, names: &Names) -> Route {
    let hop = found.hops.first();
    // IPv6 shows the default metric as a number, IPv4 does not.
    let default = found.destination.addr().is_ipv6() && found.metric == DEFAULT_V6_METRIC;
    let key = RouteKey {
        destination: found.destination,
        table: found.table,
        metric: if default { 0 } else { found.metric },
    };
    let kind = match found.kind {
        route::Kind::Blackhole => RouteKind::Blackhole,
        route::Kind::Unicast if found.hops.len() == 1 => RouteKind::Unicast,
        // Kinds that we never make differ from all that we do.
        _ => RouteKind::Unreachable,
    };
    let target = RouteTarget {
        kind,
        via: hop.and_then(|hop| hop.gateway),
        link: hop.and_then(|hop| hop.link).and_then(|index| names.get(&index).copied()),
        onlink: hop.is_some_and(|hop| hop.onlink),
        source: found.source,
        mtu: found.mtu,
    };
    Route { key, target }
}

/// `IP6_RT_PRIO_USER`: what IPv6 makes of no metric.
const DEFAULT_V6_METRIC: u32 = 1024;

fn read_rule(found: &rule::Rule) -> PolicyRule {
    // Table 0 is none: what we never make differs from all that we do.
    let table = match found.action {
        rule::Action::Table(table) if found.incoming.is_none() && found.outgoing.is_none() => table,
        _ => 0,
    };
    PolicyRule {
        priority: found.priority,
        v6: found.family == Family::V6,
        from: found.source,
        to: found.destination,
        mark: found.mark.map(|mark| (mark.value, mark.mask)),
        table,
    }
}

fn read_sysctls(want: &State) -> BTreeMap<String, String> {
    let mut sysctls = BTreeMap::new();
    for (path, wanted) in &want.sysctls {
        // One that cannot be read is not held; setting it will say why.
        let Ok(value) = sysctl::read(path) else { continue };
        let same = value.split_whitespace().eq(wanted.split_whitespace());
        sysctls.insert(path.clone(), if same { wanted.clone() } else { value });
    }
    sysctls
}
