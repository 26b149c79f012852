//! Host ports in the kernel: put there, looked for, taken away.
//!
//! Read [`add`] first: nearly always everything shared is there, so an attachment's elements are tried alone, in
//! one transaction. If something is missing, the units of the [`Layout`] are made one by one; if an element is
//! there already, it is replaced where its owner is this very attachment or has lost the pod's address to it, and
//! otherwise the ADD fails and says whose it is. Only among the attachments of one container the first one keeps
//! it: engines ask for a container's ports in every network that it joins.
//!
//! A port on one address and the same port on all are different elements, so the kernel would take both. That the other
//! is not there is looked up first, and the transaction is for the generation of that look: of two who ask at the same
//! instant the second one looks again.
//!
//! What stays true: nobody removes an element of another; [`leave`] and [`collect`] find elements by the owner in
//! their comment, in every map and set there is, so they need no configuration.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cni::Error;
use kernel::nft::{Nft, Transaction};
use netstate::nft::{Element, Key, Set, Value};

use super::layout::{Layout, PREFIX, Unit, port_text, table};
use crate::attachment::Leaving;
use crate::fault::fault;
use crate::owner::Owner;
use crate::reference::{self, Part};

/// How often it is tried again when others make or remove the same objects at the same time.
const ATTEMPTS: usize = 10;

/// How often it is looked again for overlaps because somebody else changed something in the meantime: every time
/// somebody else was done, so this is a number of processes.
const CHANGES: usize = 1000;

/// More elements of one set than this are looked up by listing it.
const FEW: usize = 16;

/// Where a host port leads, or led.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HostPort {
    /// Transport protocol number.
    pub(crate) protocol: u8,
    /// The host's address, if it is on one only.
    pub(crate) address: Option<IpAddr>,
    /// The port.
    pub(crate) port: u16,
    /// The pod's address.
    pub(crate) pod: IpAddr,
    /// The pod's port.
    pub(crate) pod_port: u16,
}

/// Puts an attachment's host ports there, all or none.
pub(super) fn add(nft: &mut Nft, layout: &Layout, owner: &Owner) -> Result<(), Error> {
    let mut attempts = 0..ATTEMPTS;
    let mut changes = 0..CHANGES;
    let mut something_stands = false;
    loop {
        // All that is looked at is looked at after this, and what is done is done for this generation.
        let generation = nft.generation().map_err(fault)?;
        refuse_overlaps(nft, layout, owner)?;
        let standing = if something_stands { ours(nft, layout, owner)? } else { Vec::new() };
        let mut transaction = Transaction::new();
        for found in &standing {
            transaction.delete_elements(&table(), &found.set, &found.replaced);
        }
        for set in &layout.entries {
            let found = standing.iter().find(|found| found.set == set.name);
            let is_wanted = |key: &Key| found.is_none_or(|found| !found.kept.contains(key));
            let elements = set.elements.iter().filter(|(key, _)| is_wanted(key));
            transaction.create_mappings(&table(), &set.name, elements);
        }
        let Err(error) = nft.commit_at(transaction, generation) else { return Ok(()) };
        if error.is_outdated() && changes.next().is_some() {
            continue;
        }
        if attempts.next().is_none() {
            return Err(fault(error));
        }
        if error.exists() {
            something_stands = true;
        } else if error.is_missing() {
            something_stands = false;
            make(nft, &layout.units).map_err(fault)?;
        } else {
            return Err(fault(error));
        }
    }
}

/// Makes the units that are not there.
fn make(nft: &mut Nft, units: &[Unit]) -> Result<(), kernel::Error> {
    for unit in units {
        let mut transaction = Transaction::new();
        unit.make(&table(), &mut transaction);
        match nft.commit(transaction) {
            Err(error) if error.exists() => {}
            other => other?,
        }
    }
    Ok(())
}

/// What is in the way of an attachment's elements in one set.
struct Standing {
    set: String,
    replaced: Vec<Key>,
    /// The same port in another network of the container.
    kept: Vec<Key>,
}

/// The attachment's elements that are in the way of themselves: left by an ADD that was killed, or of an owner who
/// was never deleted and whose address this pod has now; and those of the container's other attachments.
///
/// # Errors
/// When one is somebody else's.
fn ours(nft: &mut Nft, layout: &Layout, owner: &Owner) -> Result<Vec<Standing>, Error> {
    let alias = owner.alias();
    let mut ours: Vec<Standing> = Vec::new();
    // Each map before its set.
    for set in layout.entries.iter().rev() {
        let is_map = !set.data.is_empty();
        let of_map = ours.last().map_or_else(Vec::new, |map| map.kept.clone());
        let (mut replaced, mut kept) = (Vec::new(), Vec::new());
        for (key, element) in present(nft, set).map_err(fault)? {
            let wanted = set.elements.get(&key).and_then(|wanted| wanted.data.first());
            let same_pod = wanted.is_some() && wanted == element.data.first();
            let is_anothers = element.comment() != alias && !same_pod;
            let same_container = owner.is_of_the_container(element.comment());
            // Sets follow their map, where the question was decided.
            if is_map && is_anothers && !same_container {
                return Err(taken(&key, &element));
            }
            let keeps = is_anothers && same_container && (is_map || of_map.contains(&key));
            if keeps { &mut kept } else { &mut replaced }.push(key);
        }
        ours.push(Standing { set: set.name.clone(), replaced, kept });
    }
    Ok(ours)
}

/// A port on one address and the same port on every address cannot lead to different pods: which of them is meant
/// would be a matter of taste.
fn refuse_overlaps(nft: &mut Nft, layout: &Layout, owner: &Owner) -> Result<(), Error> {
    for map in layout.entries.iter().filter(|set| !set.data.is_empty()) {
        let Some(other) = overlapping(map) else { continue };
        let found = match map.key.len() {
            // On one address: looked up without it.
            3 => {
                let keys = map.elements.keys().filter_map(|key| key.get(1..));
                let elements = keys.map(|key| (key.to_vec(), Element::default())).collect();
                present(nft, &Set { elements, ..other }).map_err(fault)?
            }
            _ => match nft.elements(&table(), &other) {
                Err(error) if error.is_missing() => continue,
                found => {
                    let mut found = found.map_err(fault)?;
                    found.retain(|key, _| key.get(1..).is_some_and(|key| map.elements.contains_key(key)));
                    found
                }
            },
        };
        if let Some((key, element)) =
            found.iter().find(|(_, element)| !owner.is_of_the_container(element.comment()))
        {
            return Err(taken(key, element));
        }
    }
    Ok(())
}

/// The map of the other shape for the same packets.
fn overlapping(map: &Set) -> Option<Set> {
    let (name, conditions) =
        map.name.split_once('/').map_or((map.name.as_str(), ""), |(name, rest)| (name, rest));
    let slash = if conditions.is_empty() { "" } else { "/" };
    let (name, key) = match name.strip_suffix("_address") {
        Some(name) => (name.to_owned(), map.key.get(1..)?.to_vec()),
        None => (
            format!("{name}_address"),
            [map.data.first().copied()?].into_iter().chain(map.key.iter().copied()).collect(),
        ),
    };
    Some(Set::map(format!("{name}{slash}{conditions}"), key, map.data.as_slice()))
}

fn taken(key: &[Value], element: &Element) -> Error {
    let owner = element.comment().trim_start_matches("fairlead:");
    let text = format!("host port {} is taken by {owner} (network/container/interface)", port_text(key));
    Error::kernel(text)
        .with_details("hint: if that container is gone, its DEL or a GC of its network frees the port")
}

/// Those elements of `set` that the kernel has, as it has them.
fn present(nft: &mut Nft, set: &Set) -> Result<BTreeMap<Key, Element>, kernel::Error> {
    if set.elements.len() > FEW {
        let mut found = match nft.elements(&table(), set) {
            Err(error) if error.is_missing() => BTreeMap::new(),
            other => other?,
        };
        found.retain(|key, _| set.elements.contains_key(key));
        return Ok(found);
    }
    let mut found = BTreeMap::new();
    for key in set.elements.keys() {
        if let Some(element) = nft.element(&table(), set, key)? {
            found.insert(key.clone(), element);
        }
    }
    Ok(found)
}

/// What is missing of the layout, in words; `None` when all is there, be it for another network of the container.
pub(super) fn missing(
    nft: &mut Nft,
    layout: &Layout,
    owner: &Owner,
) -> Result<Option<String>, kernel::Error> {
    let alias = owner.alias();
    let of_the_container =
        |found: &Element| found.comment() != alias && owner.is_of_the_container(found.comment());
    for set in &layout.entries {
        let found = present(nft, set)?;
        for (key, element) in &set.elements {
            let port = port_text(key);
            let name = &set.name;
            match found.get(key) {
                Some(other) if other == element || of_the_container(other) => {}
                Some(other) => {
                    let owner = other.comment();
                    return Ok(Some(format!("host port {port} in {name} of {} is {owner:?}'s", table())));
                }
                None => return Ok(Some(format!("host port {port} is gone from {name} of {}", table()))),
            }
        }
    }
    let rules = layout.rules();
    let lost = nft.missing_rule(&table(), &rules)?.and_then(|place| rules.get(place));
    Ok(lost.map(|(chain, rule)| format!("the rule \"{rule}\" is gone from chain {chain} of {}", table())))
}

/// Adds the deletion of all that an attachment has here, and notes where its host ports led.
pub(crate) fn leave(
    nft: &mut Nft,
    leaving: &Leaving<'_>,
    transaction: &mut Transaction,
) -> Result<(), kernel::Error> {
    let alias = leaving.owner.alias();
    let mut led = Vec::new();
    for found in stale(nft, |comment| comment == alias)? {
        led.extend(host_ports(&found));
        transaction.delete_elements(&table(), &found.name, found.elements.keys());
    }
    leaving.host_ports.replace(led);
    Ok(())
}

/// Takes away all that an attachment has here or the reference made for it, and notes where its host ports led.
pub(super) fn remove(nft: &mut Nft, leaving: &Leaving<'_>) -> Result<(), kernel::Error> {
    let mut attempts = 0..ATTEMPTS;
    loop {
        let mut transaction = Transaction::new();
        leave(nft, leaving, &mut transaction)?;
        reference::leave_parts(nft, leaving, &[Part::HostPorts], &mut transaction)?;
        match nft.commit(transaction) {
            // Somebody else removed one of them in between; the others are still there.
            Err(error) if error.is_missing() && attempts.next().is_some() => {}
            other => return other,
        }
    }
}

/// Takes away everything in `network` that belongs to nobody among `valid`; returns where it led.
pub(super) fn collect(nft: &mut Nft, network: &str, valid: &[Owner]) -> Result<Vec<HostPort>, kernel::Error> {
    let prefix = Owner::alias_prefix(network);
    let valid: Vec<String> = valid.iter().map(Owner::alias).collect();
    let is_stale =
        |comment: &str| comment.starts_with(&prefix) && !valid.iter().any(|owner| owner == comment);
    let mut attempts = 0..ATTEMPTS;
    loop {
        let found = stale(nft, is_stale)?;
        let mut transaction = Transaction::new();
        for set in &found {
            transaction.delete_elements(&table(), &set.name, set.elements.keys());
        }
        match nft.commit(transaction) {
            // As in [`remove`].
            Err(error) if error.is_missing() && attempts.next().is_some() => {}
            Err(error) => return Err(error),
            Ok(()) => return Ok(found.iter().flat_map(host_ports).collect()),
        }
    }
}

/// The elements with such a comment, set by set; sets without any are left out.
fn stale(nft: &mut Nft, stale: impl Fn(&str) -> bool) -> Result<Vec<Set>, kernel::Error> {
    let mut found = Vec::new();
    for set in nft.sets(&table())?.into_iter().filter(|set| set.name.starts_with(PREFIX)) {
        let mut elements = match nft.elements(&table(), &set) {
            Err(error) if error.is_missing() => continue,
            other => other?,
        };
        elements.retain(|_, element| stale(element.comment()));
        if !elements.is_empty() {
            found.push(Set { elements, ..set });
        }
    }
    Ok(found)
}

/// Where the elements lead; nowhere, if it is not a map.
fn host_ports(set: &Set) -> impl Iterator<Item = HostPort> {
    set.elements.iter().filter_map(|(key, element)| {
        let (address, rest) = match key.as_slice() {
            [Value::Address(address), rest @ ..] => (Some(*address), rest),
            rest => (None, rest),
        };
        match (rest, element.data.as_slice()) {
            (
                [Value::Protocol(protocol), Value::Port(port)],
                [Value::Address(pod), Value::Port(pod_port)],
            ) => Some(HostPort { protocol: *protocol, address, port: *port, pod: *pod, pod_port: *pod_port }),
            _ => None,
        }
    })
}

impl Layout {
    /// Where the attachment's host ports lead.
    pub(super) fn host_ports(&self) -> Vec<HostPort> {
        self.entries.iter().flat_map(host_ports).collect()
    }
}
