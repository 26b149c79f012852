//! The difference between two tables as steps of one transaction.
//!
//! A transaction is atomic, so the order here is only what the kernel needs to accept it: rules go before
//! what they refer to, sets and chains come before the rules that name them, and an interval leaves before
//! one that overlaps it comes. A set or base chain whose definition changed cannot be changed in place: the
//! whole table is then made anew within the same transaction, which no packet can observe.

use std::collections::BTreeMap;

use super::{Chain, Element, Key, Rule, Set, Table, TableKey};

/// One step within a table. The set and chain of an add step carry no elements or rules; those follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make the table.
    AddTable(TableKey),
    /// Remove the table and all in it.
    DeleteTable(TableKey),
    /// Make a set.
    AddSet(TableKey, Set),
    /// Remove a set.
    DeleteSet(TableKey, String),
    /// Put elements into a set.
    AddElements(TableKey, String, BTreeMap<Key, Element>),
    /// Take elements out of a set.
    DeleteElements(TableKey, String, Vec<Key>),
    /// Make a chain.
    AddChain(TableKey, Chain),
    /// Remove a chain, which must be empty by then.
    DeleteChain(TableKey, String),
    /// Remove all rules of a chain.
    FlushChain(TableKey, String),
    /// Put a rule at the end of a chain.
    AddRule(TableKey, String, Rule),
}

impl Step {
    /// The table that the step works on.
    #[must_use]
    pub fn table(&self) -> &TableKey {
        match self {
            Self::AddTable(table)
            | Self::DeleteTable(table)
            | Self::AddSet(table, _)
            | Self::DeleteSet(table, _)
            | Self::AddElements(table, ..)
            | Self::DeleteElements(table, ..)
            | Self::AddChain(table, _)
            | Self::DeleteChain(table, _)
            | Self::FlushChain(table, _)
            | Self::AddRule(table, ..) => table,
        }
    }
}

/// The steps from one state of a table to another; `None` is a table that is not there.
#[must_use]
pub fn diff(have: Option<&Table>, want: Option<&Table>) -> Vec<Step> {
    match (have, want) {
        (None, None) => Vec::new(),
        (Some(have), None) => vec![Step::DeleteTable(have.key.clone())],
        (None, Some(want)) => create(want),
        (Some(have), Some(want)) if same_frame(have, want) => change(have, want),
        (Some(have), Some(want)) => {
            let mut steps = vec![Step::DeleteTable(have.key.clone())];
            steps.extend(create(want));
            steps
        }
    }
}

fn create(want: &Table) -> Vec<Step> {
    let mut steps = vec![Step::AddTable(want.key.clone())];
    steps.extend(change(&Table::new(want.key.family, want.key.name.clone()), want));
    steps
}

/// True when what both have in common is defined the same, so that the rest can be changed in place.
fn same_frame(have: &Table, want: &Table) -> bool {
    let same_set = |set: &Set| {
        want.sets.get(&set.name).is_none_or(|other| {
            other.key == set.key && other.data == set.data && other.interval == set.interval
        })
    };
    let same_chain =
        |chain: &Chain| want.chains.get(&chain.name).is_none_or(|other| other.base == chain.base);
    have.sets.values().all(same_set) && have.chains.values().all(same_chain)
}

fn change(have: &Table, want: &Table) -> Vec<Step> {
    let key = &want.key;
    let mut steps = Vec::new();
    let rules =
        |table: &Table, name: &str| table.chains.get(name).map_or(Vec::new(), |chain| chain.rules.clone());
    // What names a chain or a set goes before it, and comes after it.
    for (name, chain) in &have.chains {
        if !chain.rules.is_empty() && chain.rules != rules(want, name) {
            steps.push(Step::FlushChain(key.clone(), name.clone()));
        }
    }
    let lead = |wanted: bool| move |set: &&Set| set.leads_to_chains() == wanted;
    steps.extend(have.sets.values().filter(lead(true)).flat_map(|set| leave(key, set, want)));
    let gone = have.chains.keys().filter(|name| !want.chains.contains_key(*name));
    steps.extend(gone.map(|name| Step::DeleteChain(key.clone(), name.clone())));
    steps.extend(have.sets.values().filter(lead(false)).flat_map(|set| leave(key, set, want)));
    steps.extend(want.sets.values().flat_map(|set| {
        let mut steps = make(key, set, have);
        if !set.leads_to_chains() {
            steps.extend(fill(key, set, have));
        }
        steps
    }));
    for (name, chain) in &want.chains {
        if !have.chains.contains_key(name) {
            steps.push(Step::AddChain(key.clone(), Chain { rules: Vec::new(), ..chain.clone() }));
        }
    }
    for (name, chain) in &want.chains {
        if chain.rules != rules(have, name) {
            let add = |rule: &Rule| Step::AddRule(key.clone(), name.clone(), rule.clone());
            steps.extend(chain.rules.iter().map(add));
        }
    }
    steps.extend(want.sets.values().filter(lead(true)).flat_map(|set| fill(key, set, have)));
    steps
}

/// Takes away what of `held` is not wanted: the set, or some of its elements.
fn leave(table: &TableKey, held: &Set, want: &Table) -> Option<Step> {
    let Some(want) = want.sets.get(&held.name) else {
        return Some(Step::DeleteSet(table.clone(), held.name.clone()));
    };
    // An element's comment and data cannot be changed in place: it leaves and comes back.
    let changed = held.elements.iter().filter(|(key, element)| want.elements.get(*key) != Some(element));
    let gone: Vec<Key> = changed.map(|(key, _)| key.clone()).collect();
    (!gone.is_empty()).then(|| Step::DeleteElements(table.clone(), held.name.clone(), gone))
}

/// Makes a set that is not there yet.
fn make(table: &TableKey, want: &Set, have: &Table) -> Vec<Step> {
    let missing = !have.sets.contains_key(&want.name);
    let empty = || Set { elements: BTreeMap::new(), ..want.clone() };
    missing.then(|| Step::AddSet(table.clone(), empty())).into_iter().collect()
}

/// Puts into a set what it does not hold yet.
fn fill(table: &TableKey, want: &Set, have: &Table) -> Option<Step> {
    let held = have.sets.get(&want.name);
    let lacks =
        |(key, element): &(&Key, &Element)| held.and_then(|set| set.elements.get(*key)) != Some(*element);
    let new: BTreeMap<Key, Element> =
        want.elements.iter().filter(lacks).map(|(key, element)| (key.clone(), element.clone())).collect();
    (!new.is_empty()).then(|| Step::AddElements(table.clone(), want.name.clone(), new))
}
