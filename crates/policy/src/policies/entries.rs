//! What local pods put into the sets of the frame.
//!
//! Read [`Policies::entries`]: for each direction in which a policy is about the pod its addresses lead to its chain, by the chain's class.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netstate::nft::{self, Element, Table};

use super::{Local, Policies};
use crate::compile::frame;
use crate::delta::Delta;

/// What is put into the frame's sets: set, key, element.
pub(super) type Entries = Vec<(String, nft::Key, Element)>;

/// Notes what of these goes, and what comes.
pub(super) fn move_entries(delta: &mut Delta, frame: &Table, before: Entries, after: Entries) {
    let mut parts: BTreeMap<String, [BTreeMap<nft::Key, Element>; 2]> = BTreeMap::new();
    for (part, entries) in [before, after].into_iter().enumerate() {
        for (set, key, element) in entries {
            if let Some(part) = parts.entry(set).or_default().get_mut(part) {
                part.insert(key, element);
            }
        }
    }
    for (set, [mut gone, mut new]) in parts {
        let same: Vec<nft::Key> = gone
            .iter()
            .filter(|(key, element)| new.get(*key) == Some(element))
            .map(|(key, _)| key.clone())
            .collect();
        for key in same {
            gone.remove(&key);
            new.remove(&key);
        }
        if let Some(set) = frame.sets.get(&set) {
            delta.elements(set, gone, new);
        }
    }
}

impl Policies {
    /// What a local pod puts there.
    pub(super) fn entries(&self, local: &Local) -> Entries {
        let mut entries = Entries::new();
        for named in local.profiles.iter().flatten() {
            entries.extend(self.led_to(&local.member.addresses, &named.name));
        }
        if !entries.is_empty() {
            entries.extend(frame::own(&local.member.addresses));
        }
        if local.profiles.iter().flatten().any(|named| named.chain.enforces()) {
            entries.extend(local.member.addresses.iter().map(|address| frame::under_policy(*address)));
        }
        entries
    }

    /// What leads the packets of these addresses to a chain.
    pub(super) fn led_to(&self, addresses: &[IpAddr], chain: &str) -> Entries {
        let class = self.chains.get(chain).and_then(|held| held.class);
        let entries = class.into_iter().flat_map(|(class, direction)| {
            addresses.iter().map(move |address| frame::member(*address, direction, class))
        });
        entries.collect()
    }
}
