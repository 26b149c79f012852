//! What a change makes of the table: the part that was, the part that is, and the steps between them.
//!
//! Read [`Delta`]. Only what a change touches is in it: of a set the elements that go and come, of a chain its rules.
//! The order of the steps is [`nft::diff`]'s affair, as everywhere.

use std::collections::BTreeMap;

use netstate::nft::{self, Chain, Element, Key, Rule, Set, Statement, Step, Table};

use crate::compile::frame;

/// The touched part of the table, before and after.
#[derive(Debug)]
pub(crate) struct Delta {
    before: Table,
    after: Table,
}

impl Default for Delta {
    fn default() -> Self {
        Self { before: frame::empty(), after: frame::empty() }
    }
}

impl Delta {
    /// Elements of a set that stays: those that go, and those that come.
    pub(crate) fn elements(
        &mut self,
        empty: &Set,
        gone: BTreeMap<Key, Element>,
        new: BTreeMap<Key, Element>,
    ) {
        if gone.is_empty() && new.is_empty() {
            return;
        }
        let part = |table: &mut Table, elements| {
            let set = table.sets.entry(empty.name.clone()).or_insert_with(|| empty.clone());
            set.elements.extend(elements);
        };
        part(&mut self.before, gone);
        part(&mut self.after, new);
    }

    /// A set that was not there before.
    pub(crate) fn set_made(&mut self, set: Set) {
        self.after.sets.insert(set.name.clone(), set);
    }

    /// A set that is not needed any more.
    pub(crate) fn set_left(&mut self, empty: Set) {
        let made_just_now =
            self.after.sets.remove(&empty.name).is_some() && !self.before.sets.contains_key(&empty.name);
        if !made_just_now {
            self.before.sets.entry(empty.name.clone()).or_insert(empty);
        }
    }

    /// A chain that was not there before.
    pub(crate) fn chain_made(&mut self, chain: Chain) {
        self.after.chains.insert(chain.name.clone(), chain);
    }

    /// A chain whose rules are others now than the so many that it had.
    pub(crate) fn chain_changed(&mut self, old: usize, chain: Chain) {
        let name = chain.name.clone();
        let made_just_now = self.after.chains.contains_key(&name) && !self.before.chains.contains_key(&name);
        if !made_just_now {
            self.before.chains.entry(name.clone()).or_insert_with(|| before(&name, old));
        }
        self.after.chains.insert(name, chain);
    }

    /// A chain that is not needed any more, with so many rules that it had.
    pub(crate) fn chain_left(&mut self, name: &str, old: usize) {
        let made_just_now =
            self.after.chains.remove(name).is_some() && !self.before.chains.contains_key(name);
        if !made_just_now {
            self.before.chains.entry(name.to_owned()).or_insert_with(|| before(name, old));
        }
    }

    /// The steps from what was to what is.
    pub(crate) fn steps(self) -> Vec<Step> {
        nft::steps(Some(&self.before), Some(self.after))
    }
}

/// A chain whose rules nobody has any more, but that there were so many, and that they are not the ones wanted.
fn before(name: &str, rules: usize) -> Chain {
    let unknown = || Rule::new([Statement::Unknown("as it was before".to_owned())]);
    Chain { rules: (0..rules.min(1)).map(|_| unknown()).collect(), ..Chain::regular(name) }
}
