//! The difference between two tables as steps of one transaction.
//!
//! A transaction is atomic, so the order here is only what the kernel needs to accept it: rules go before
//! what they refer to, sets and chains come before the rules that name them, and an interval leaves before
//! one that overlaps it comes. A set or base chain whose definition changed cannot be changed in place: the
//! whole table is then made anew within the same transaction. A packet finds the table of before or that of after at each hook;
//! one that is on its way meanwhile may find that of before at the first, and that of after at the next.
//!
//! Among sets those come first that most rules name: the kernel finds a set by its name in a list, in the order in which
//! they came, for every rule and every message that names it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use super::{Chain, Element, Key, Rule, Set, Statement, Table, TableKey};

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
    if have == want { Vec::new() } else { steps(have, want.cloned()) }
}

/// The same where the wanted state is not needed any more: what is in it goes into the steps, for it may be large.
#[must_use]
pub fn steps(have: Option<&Table>, want: Option<Table>) -> Vec<Step> {
    match (have, want) {
        (None, None) => Vec::new(),
        (Some(have), None) => vec![Step::DeleteTable(have.key.clone())],
        (None, Some(want)) => create(want),
        (Some(have), Some(want)) if same_frame(have, &want) => change(have, want),
        (Some(have), Some(want)) => {
            let mut steps = vec![Step::DeleteTable(have.key.clone())];
            steps.extend(create(want));
            steps
        }
    }
}

fn create(want: Table) -> Vec<Step> {
    let mut steps = vec![Step::AddTable(want.key.clone())];
    let nothing = Table::new(want.key.family, want.key.name.clone());
    steps.extend(change(&nothing, want));
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

fn change(have: &Table, want: Table) -> Vec<Step> {
    let key = want.key.clone();
    let mut steps = leave_all(have, &want);
    // What names a chain or a set comes after it.
    let Table { sets, chains, .. } = want;
    let (mut plain, leading): (Vec<Set>, Vec<Set>) =
        sets.into_values().partition(|set| !set.leads_to_chains());
    let mut uses = uses(&chains);
    plain.sort_by_cached_key(|set| Reverse(uses.remove(&*set.name).unwrap_or_default()));
    steps.extend(leading.iter().filter_map(|set| make(&key, set, have)));
    for set in plain {
        steps.extend(make(&key, &set, have));
        steps.extend(fill(&key, set, have));
    }
    let mut rules = Vec::new();
    for (name, mut chain) in chains {
        let own = std::mem::take(&mut chain.rules);
        let held = have.chains.get(&name);
        if held.map_or(&[][..], |held| &held.rules) != own {
            rules.extend(own.into_iter().map(|rule| Step::AddRule(key.clone(), name.clone(), rule)));
        }
        if held.is_none() {
            steps.push(Step::AddChain(key.clone(), chain));
        }
    }
    steps.append(&mut rules);
    steps.extend(leading.into_iter().filter_map(|set| fill(&key, set, have)));
    steps
}

/// How many statements name a set, or a chain.
fn uses(chains: &BTreeMap<String, Chain>) -> HashMap<String, usize> {
    let mut uses: HashMap<String, usize> = HashMap::new();
    let statements = chains.values().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.statements);
    for name in statements.filter_map(Statement::names) {
        match uses.get_mut(name) {
            Some(count) => *count += 1,
            None => drop(uses.insert(name.to_owned(), 1)),
        }
    }
    uses
}

/// Takes away what is not wanted: what names a chain or a set goes before it.
fn leave_all(have: &Table, want: &Table) -> Vec<Step> {
    let key = &want.key;
    let mut steps = Vec::new();
    for (name, chain) in &have.chains {
        if !chain.rules.is_empty() && want.chains.get(name).is_none_or(|wanted| wanted.rules != chain.rules) {
            steps.push(Step::FlushChain(key.clone(), name.clone()));
        }
    }
    let lead = |wanted: bool| move |set: &&Set| set.leads_to_chains() == wanted;
    steps.extend(have.sets.values().filter(lead(true)).filter_map(|set| leave(key, set, want)));
    let gone = have.chains.keys().filter(|name| !want.chains.contains_key(*name));
    steps.extend(gone.map(|name| Step::DeleteChain(key.clone(), name.clone())));
    steps.extend(have.sets.values().filter(lead(false)).filter_map(|set| leave(key, set, want)));
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
fn make(table: &TableKey, want: &Set, have: &Table) -> Option<Step> {
    let missing = !have.sets.contains_key(&want.name);
    let (name, key, data) = (want.name.clone(), want.key.clone(), want.data.clone());
    let empty = || Set { name, key, data, interval: want.interval, elements: BTreeMap::new() };
    missing.then(|| Step::AddSet(table.clone(), empty()))
}

/// Puts into a set what it does not hold yet.
fn fill(table: &TableKey, want: Set, have: &Table) -> Option<Step> {
    let Set { name, elements: mut new, .. } = want;
    if let Some(held) = have.sets.get(&name) {
        new.retain(|key, element| held.elements.get(key) != Some(element));
    }
    (!new.is_empty()).then(|| Step::AddElements(table.clone(), name, new))
}
