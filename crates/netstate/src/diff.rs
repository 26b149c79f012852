//! The ordered way from one state to another.
//!
//! Additions come bottom up, so that each finds what it stands on: links, sysctls, addresses, WireGuard's peers, neighbours,
//! forwarding entries, routes, policy rules, nf_tables. Removals follow in the reverse order, after all
//! additions: what replaces something is in place before that goes. A neighbour whose hardware address
//! changes is switched over only when the new address has its forwarding entry, and the old entry goes last,
//! so that a peer that moves loses no packet. Only a link that has to be made anew is removed first.

use std::collections::{BTreeMap, BTreeSet};

use crate::{FdbEntry, Link, LinkName, Neighbour, Route, State, Step, nft};

/// The steps that make `want` out of `have`. Empty when they are equal.
#[must_use]
pub fn diff(have: &State, want: &State) -> Vec<Step> {
    let anew: BTreeSet<LinkName> = have
        .links
        .values()
        .filter(|link| want.links.get(&link.name).is_some_and(|other| other.kind != link.kind))
        .map(|link| link.name)
        .collect();
    let mut steps: Vec<Step> = anew.iter().map(|name| Step::DeleteLink(*name)).collect();
    if anew.is_empty() {
        add(have, want, &mut steps);
        remove(have, want, &mut steps);
    } else {
        let left = without_links(have, &anew);
        add(&left, want, &mut steps);
        remove(&left, want, &mut steps);
    }
    steps
}

/// What is left of a state when links go, and with them all that is on them.
pub(crate) fn without_links(state: &State, gone: &BTreeSet<LinkName>) -> State {
    let mut left = state.clone();
    left.links.retain(|name, _| !gone.contains(name));
    left.addresses.retain(|address| !gone.contains(&address.link));
    left.wireguards.retain(|link, _| !gone.contains(link));
    left.wireguard_peers.retain(|key, _| !gone.contains(&key.link));
    left.neighbours.retain(|key, _| !gone.contains(&key.link));
    left.fdb.retain(|key, _| !gone.contains(&key.link));
    left.routes.retain(|_, target| !target.link.is_some_and(|link| gone.contains(&link)));
    let of_gone = |path: &str| path.split('/').any(|part| gone.iter().any(|name| name.as_str() == part));
    left.sysctls.retain(|path, _| !of_gone(path));
    left
}

fn add(have: &State, want: &State, steps: &mut Vec<Step>) {
    add_links(have, want, steps);
    // A machine that begins to forward forgets what router advertisements told it, unless it has been told before
    // to go on listening (`accept_ra` 2): so forwarding comes last.
    let (forwarding, others): (Vec<_>, Vec<_>) = want
        .sysctls
        .iter()
        .partition(|(path, _)| path.ends_with("/forwarding") || path.ends_with("/ip_forward"));
    for (path, value) in others.into_iter().chain(forwarding) {
        let was = have.sysctls.get(path);
        if was != Some(value) {
            steps.push(Step::SetSysctl { path: path.clone(), value: value.clone(), was: was.cloned() });
        }
    }
    steps.extend(want.addresses.difference(&have.addresses).map(|address| Step::AddAddress(*address)));
    add_wireguard(have, want, steps);
    let neighbours = want.neighbours().filter_map(|neighbour| {
        let was = have.neighbours.get(&neighbour.key()).copied();
        (was != Some(neighbour.mac)).then_some(Step::SetNeighbour { neighbour, was })
    });
    let (moved, new): (Vec<Step>, Vec<Step>) =
        neighbours.partition(|step| matches!(step, Step::SetNeighbour { was: Some(_), .. }));
    steps.extend(new);
    steps.extend(want.fdb().filter_map(|entry| {
        let was = have.fdb.get(&entry.key()).copied();
        (was != Some(entry.destination)).then_some(Step::SetFdb { entry, was })
    }));
    steps.extend(moved);
    steps.extend(want.routes().filter_map(|route| {
        let was = have.routes.get(&route.key).copied();
        (was != Some(route.target)).then_some(Step::SetRoute { route, was })
    }));
    steps.extend(want.rules.difference(&have.rules).map(|rule| Step::AddRule(*rule)));
    for (key, table) in &want.tables {
        steps.extend(nft::diff(have.tables.get(key), Some(table)).into_iter().map(Step::Nft));
    }
}

fn add_links(have: &State, want: &State, steps: &mut Vec<Step>) {
    for link in want.links.values() {
        match have.links.get(&link.name) {
            None => steps.push(Step::CreateLink(link.clone())),
            Some(now) if differs(now, link) => {
                steps.push(Step::ChangeLink { from: now.clone(), to: link.clone() });
            }
            Some(_) => {}
        }
    }
}

/// A network that goes from one peer to another is the other's as soon as that one is set: nothing has to be taken first.
fn add_wireguard(have: &State, want: &State, steps: &mut Vec<Step>) {
    for (link, device) in &want.wireguards {
        let was = have.wireguards.get(link).copied();
        if was != Some(*device) {
            steps.push(Step::SetWireGuard { link: *link, device: *device, was });
        }
    }
    for (key, peer) in &want.wireguard_peers {
        let was = have.wireguard_peers.get(key);
        if was != Some(peer) {
            steps.push(Step::SetWireGuardPeer { key: *key, peer: peer.clone(), was: was.cloned() });
        }
    }
}

/// True when a link has to be changed; what the wanted link leaves to the kernel does not count.
fn differs(now: &Link, want: &Link) -> bool {
    now.up != want.up
        || want.mtu.is_some_and(|mtu| now.mtu != Some(mtu))
        || want.mac.is_some_and(|mac| now.mac != Some(mac))
}

fn remove(have: &State, want: &State, steps: &mut Vec<Step>) {
    let tables = have.tables.iter().filter(|(key, _)| !want.tables.contains_key(*key));
    steps.extend(tables.flat_map(|(_, table)| nft::diff(Some(table), None)).map(Step::Nft));
    steps.extend(have.rules.difference(&want.rules).map(|rule| Step::DeleteRule(*rule)));

    // What stands on a link that goes, goes with it in the kernel: no step of its own.
    let kept = |link: &LinkName| !have.links.contains_key(link) || want.links.contains_key(link);
    let routes = gone(&have.routes, &want.routes).map(|(key, target)| Route { key: *key, target: *target });
    steps.extend(
        routes.filter(|route| route.target.link.is_none_or(|link| kept(&link))).map(Step::DeleteRoute),
    );
    let entries = gone(&have.fdb, &want.fdb).map(|(key, to)| FdbEntry {
        link: key.link,
        mac: key.mac,
        destination: *to,
    });
    steps.extend(entries.filter(|entry| kept(&entry.link)).map(Step::DeleteFdb));
    let neighbours = gone(&have.neighbours, &want.neighbours).map(|(key, mac)| Neighbour {
        link: key.link,
        address: key.address,
        mac: *mac,
    });
    steps.extend(neighbours.filter(|neighbour| kept(&neighbour.link)).map(Step::DeleteNeighbour));
    let peers = gone(&have.wireguard_peers, &want.wireguard_peers).map(|(key, _)| *key);
    steps.extend(peers.filter(|key| kept(&key.link)).map(Step::DeleteWireGuardPeer));
    let addresses = have.addresses.difference(&want.addresses).filter(|address| kept(&address.link));
    steps.extend(addresses.map(|address| Step::DeleteAddress(*address)));
    steps.extend(gone(&have.links, &want.links).map(|(name, _)| Step::DeleteLink(*name)));
}

/// The entries of `have` whose keys `want` lacks.
fn gone<'a, K: Ord, V>(
    have: &'a BTreeMap<K, V>,
    want: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    have.iter().filter(|(key, _)| !want.contains_key(*key))
}
