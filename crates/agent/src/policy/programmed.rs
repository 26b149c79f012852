//! The table of policies in the kernel.
//!
//! Read [`Programmed::make`]: reading what the table holds, and making the difference to what it should hold, is how
//! an agent starts, how a foreign hand is undone, and how a failure is got over. In between, [`Programmed::take`]
//! carries out the steps of a change, and reads no more than the rules of chains that are written again.

use std::collections::{BTreeMap, HashSet};

use kernel::nft::{Nft, Transaction};
use netstate::nft::{
    self, Chain, Element, Family, Key, Limit, Log, Rule, Set, Statement, Step, Table, TableKey, Verdict,
};
use policy::TABLE;

use crate::door::Hearing;

/// So many bytes at most are sent at once of what may be made bit by bit: more would be in memory twice, here and in the
/// kernel.
const PART: usize = 1 << 20;

/// From so many steps on a change is a large one.
const MANY: usize = 1000;

/// A conversation with the kernel about the table.
#[derive(Debug)]
pub(super) struct Programmed {
    nft: Nft,
    table: TableKey,
    /// By what the agent hears of nf_tables, if it listens.
    hearing: Option<Hearing>,
    /// Somebody else may have changed something unheard.
    missed: bool,
}

impl Programmed {
    /// Opens it in the calling thread's network namespace.
    pub(super) fn open() -> Result<Self, kernel::Error> {
        let mut nft = Nft::open()?;
        // The socket has a port from its first question on.
        nft.generation()?;
        Ok(Self { nft, table: TableKey::new(Family::Inet, TABLE), hearing: None, missed: false })
    }

    /// Closes the agent's ear while it makes large changes itself.
    pub(super) fn heard_by(self, hearing: Hearing) -> Self {
        Self { hearing: Some(hearing), ..self }
    }

    /// By what notifications name changes made here.
    pub(super) fn port(&self) -> Result<u32, kernel::Error> {
        self.nft.port()
    }

    /// Carries out steps from the table as it is known: what nothing leads to yet first, in as many transactions as it
    /// takes, then all the rest or nothing. Says how many they are.
    pub(super) fn take(&mut self, steps: Vec<Step>) -> Result<usize, kernel::Error> {
        let count = steps.len();
        let (apart, rest) = apart(steps);
        let mut transaction = Transaction::new();
        for step in apart {
            transaction.add_step(&step);
            if transaction.bytes() >= PART {
                self.nft.commit(std::mem::take(&mut transaction))?;
            }
        }
        self.nft.commit(transaction)?;
        self.nft.carry_out(rest)?;
        Ok(count)
    }

    /// Makes the table hold what it should, whatever it holds; says in how many steps.
    pub(super) fn make(&mut self, want: Table) -> Result<usize, kernel::Error> {
        self.hear()?;
        let have = self.nft.table(&self.table, Some(&want))?;
        let steps = nft::steps(have.as_ref(), Some(want));
        drop(have);
        if steps.len() < MANY { self.take(steps) } else { self.unheard(|programmed| programmed.take(steps)) }
    }

    /// Does this while the agent hears nothing of nf_tables: the kernel has a quarter less to do for a large table if
    /// nobody is told of each rule.
    fn unheard<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, kernel::Error>,
    ) -> Result<T, kernel::Error> {
        let Some(hearing) = &self.hearing else { return work(self) };
        let (generation, commits) = (self.nft.generation()?, self.nft.commits());
        // Until it is known that nothing is.
        self.missed = true;
        hearing.close()?;
        let done = work(self);
        self.hear()?;
        let own = self.nft.commits().wrapping_sub(commits);
        self.missed = self.nft.generation()? != generation.wrapping_add(own);
        done
    }

    /// Has the agent hear of nf_tables, also where that has failed before.
    fn hear(&self) -> Result<(), kernel::Error> {
        self.hearing.iter().try_for_each(Hearing::open)
    }

    /// Whether somebody else, be it another part of the agent, may have changed something while nobody listened; the
    /// rest of the agent is told then.
    pub(super) fn has_missed(&mut self) -> bool {
        let missed = std::mem::take(&mut self.missed);
        if missed {
            self.hearing.iter().for_each(Hearing::tell);
        }
        missed
    }

    /// Tries whether the kernel takes rules that log: in a table that is gone with the transaction that makes it.
    pub(super) fn can_log(&mut self) -> Result<(), kernel::Error> {
        let table = TableKey::new(Family::Inet, "fairlead_log_probe");
        let chain = Chain::regular("told");
        let limit = Limit { per_second: 1, burst: 1 };
        let log = Log { group: 0, prefix: "probe".into(), bytes: 1 };
        let mut transaction = Transaction::new();
        transaction.add_table(&table).add_chain(&table, &chain);
        transaction.add_rule(&table, &chain.name, &Rule::new([Statement::Limit(limit), Statement::Log(log)]));
        transaction.delete_table(&table);
        self.nft.commit(transaction)
    }

    /// Tries whether the kernel takes a part of the table, in a table that is gone with the transaction that makes it.
    pub(super) fn takes(&mut self, mut part: Table) -> Result<(), kernel::Error> {
        let key = TableKey::new(Family::Inet, "fairlead_policy_probe");
        part.key = key.clone();
        let mut transaction = Transaction::new();
        for step in nft::steps(None, Some(part)) {
            transaction.add_step(&step);
        }
        transaction.delete_table(&key);
        self.nft.commit(transaction)
    }

    /// Removes the table; true if it was there.
    pub(super) fn remove(&mut self) -> Result<bool, kernel::Error> {
        self.hear()?;
        let mut transaction = Transaction::new();
        transaction.delete_table(&self.table);
        match self.nft.commit(transaction) {
            Ok(()) => Ok(true),
            Err(error) if error.is_missing() => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The steps that make new chains, with what these need and what leads to them from classes that no address has yet, and all
/// others.
///
/// A packet on its way while a transaction takes effect may find a new element by the new state and the rules of the chain
/// that it leads to by the old one, in which a chain of the same transaction has none, and pass. So chains are there before
/// anything leads to them; and new base chains before old ones go, which may be asked at another hook. No packet comes to a new
/// table before its base chains are there, which come last.
fn apart(steps: Vec<Step>) -> (Vec<Step>, Vec<Step>) {
    let is_anew = |step: &Step| matches!(step, Step::DeleteTable(_));
    if steps.iter().any(is_anew) || !steps.iter().any(|step| matches!(step, Step::AddChain(..))) {
        return (Vec::new(), steps);
    }
    let made: HashSet<String> = steps.iter().filter_map(makes).map(str::to_owned).collect();
    let early: HashSet<String> = early(&steps).into_iter().map(str::to_owned).collect();
    let gone: HashSet<(String, Key)> = steps.iter().flat_map(gone).collect();
    let leads_early = |set: &str, (key, element): (&Key, &Element)| {
        let chain = element.verdict.as_ref().and_then(Verdict::chain);
        let is_there = chain.is_some_and(|chain| early.contains(chain) || !made.contains(chain));
        is_there && !gone.contains(&(set.to_owned(), key.clone()))
    };
    steps.into_iter().flat_map(singly).partition(|step| match step {
        Step::AddTable(_) => true,
        Step::AddElements(_, set, elements) if lead(elements) => {
            elements.iter().all(|element| leads_early(set, element))
        }
        Step::AddRule(_, name, _) | Step::AddElements(_, name, _) => early.contains(name),
        step => makes(step).is_some_and(|name| early.contains(name)),
    })
}

/// What the steps make that can be there before all else: neither does it go in them too, nor does it name what goes and comes.
fn early(steps: &[Step]) -> HashSet<&str> {
    let is_new = steps.iter().any(|step| matches!(step, Step::AddTable(_)));
    let is_base = |step: &Step| matches!(step, Step::AddChain(_, chain) if chain.base.is_some());
    let made: HashSet<&str> = steps.iter().filter_map(makes).collect();
    let may = |step: &&Step| !(is_new && is_base(step));
    let mut early: HashSet<&str> = steps.iter().filter(may).filter_map(makes).collect();
    for step in steps {
        if let Step::DeleteChain(_, name)
        | Step::FlushChain(_, name)
        | Step::DeleteSet(_, name)
        | Step::DeleteElements(_, name, _) = step
        {
            early.remove(&**name);
        }
    }
    // A chain waits for what it names, and so does who names the chain.
    loop {
        let waiting: HashSet<&str> = steps.iter().filter_map(|step| waits(step, &made, &early)).collect();
        if waiting.is_empty() {
            return early;
        }
        early.retain(|name| !waiting.contains(name));
    }
}

/// The chain of a new rule that names what is made here and cannot be there yet.
fn waits<'s>(step: &'s Step, made: &HashSet<&str>, early: &HashSet<&str>) -> Option<&'s str> {
    let Step::AddRule(_, chain, rule) = step else { return None };
    let mut names = rule.statements.iter().filter_map(Statement::names);
    let is_late = early.contains(&**chain) && names.any(|name| made.contains(name) && !early.contains(name));
    is_late.then_some(&**chain)
}

/// The step, with what leads to chains one by one.
fn singly(step: Step) -> Vec<Step> {
    match step {
        Step::AddElements(table, set, elements) if lead(&elements) => {
            let single = |element| Step::AddElements(table.clone(), set.clone(), BTreeMap::from([element]));
            elements.into_iter().map(single).collect()
        }
        step => vec![step],
    }
}

/// Whether elements lead to chains: those of a map of verdicts all do.
fn lead(elements: &BTreeMap<Key, Element>) -> bool {
    elements.values().any(|element| element.verdict.is_some())
}

/// The elements that a step takes away, each with its set's name.
fn gone(step: &Step) -> Vec<(String, Key)> {
    match step {
        Step::DeleteElements(_, name, keys) => keys.iter().map(|key| (name.clone(), key.clone())).collect(),
        _ => Vec::new(),
    }
}

/// The name of the chain or set that a step makes.
fn makes(step: &Step) -> Option<&str> {
    match step {
        Step::AddChain(_, Chain { name, .. }) | Step::AddSet(_, Set { name, .. }) => Some(name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use netstate::nft::{
        BaseChain, Chain, ChainKind, Element, Family, Hook, Key, KeyType, Policy, Rule, Set, Statement, Step,
        Table, TableKey, Value, Verdict,
    };

    use std::sync::mpsc;
    use std::time::Duration;

    use harness::Namespace;
    use kernel::monitor::Monitor;
    use kernel::nft::{Nft, Transaction};

    use super::{MANY, Programmed, apart};
    use crate::door::Hearing;
    use crate::event::{Event, Touched};

    /// What leads from a class to a chain, and from an address to the class.
    fn leads(chain: &str) -> [BTreeMap<Key, Element>; 2] {
        let class = Value::Class(0x10);
        let lead = Element::leading_to(Verdict::Goto(chain.into()));
        let member = Element { data: vec![class], ..Element::default() };
        let address = Value::Address(std::net::Ipv4Addr::new(10, 244, 1, 5).into());
        [BTreeMap::from([(vec![class], lead)]), BTreeMap::from([(vec![address], member)])]
    }

    #[test]
    fn a_chain_is_there_before_anything_leads_to_it_unless_its_name_was_anothers() {
        let table = TableKey::new(Family::Inet, "fairlead_policy");
        let rule = || Rule::new([Statement::Verdict(Verdict::Drop)]);
        let [lead, member] = leads("new");
        let steps = [
            Step::DeleteElements(table.clone(), "ingress4".into(), Vec::new()),
            Step::DeleteChain(table.clone(), "old".into()),
            Step::AddChain(table.clone(), Chain::regular("new")),
            Step::AddRule(table.clone(), "new".into(), rule()),
            Step::AddElements(table.clone(), "ingress-chains".into(), lead),
            Step::AddRule(table.clone(), "there".into(), rule()),
            Step::AddElements(table.clone(), "ingress4".into(), member),
        ];
        let (first, rest) = apart(steps.to_vec());
        assert_eq!(first, steps[2..5]);
        assert_eq!(rest, [&steps[..2], &steps[5..]].concat());
        assert!(apart(steps[5..].to_vec()).0.is_empty());
        let goes = |class| Step::DeleteElements(table.clone(), "ingress-chains".into(), vec![vec![class]]);
        let (first, _) = apart([&[goes(Value::Class(0x20))], steps.as_slice()].concat());
        assert_eq!(first, steps[2..5], "another class may go");
        let (first, _) = apart([&[goes(Value::Class(0x10))], steps.as_slice()].concat());
        assert_eq!(first, steps[2..4], "a class that leads elsewhere from now on has addresses");
    }

    #[test]
    fn what_goes_and_comes_keeps_only_what_names_it_waiting() {
        let table = TableKey::new(Family::Inet, "fairlead_policy");
        let drop = Rule::new([Statement::Verdict(Verdict::Drop)]);
        let jump = Rule::new([Statement::Verdict(Verdict::Jump("again".into()))]);
        let [leads, _] = leads("new");
        let another = Element::leading_to(Verdict::Goto("names-it".into()));
        let both = leads.clone().into_iter().chain([(vec![Value::Class(0x30)], another)]).collect();
        let chain = |name: &str| Step::AddChain(table.clone(), Chain::regular(name));
        let rule = |name: &str, rule: &Rule| Step::AddRule(table.clone(), name.into(), rule.clone());
        let steps = vec![
            Step::FlushChain(table.clone(), "again".into()),
            Step::DeleteChain(table.clone(), "again".into()),
            chain("again"),
            chain("names-it"),
            chain("new"),
            rule("again", &drop),
            rule("names-it", &jump),
            rule("new", &drop),
            Step::AddElements(table.clone(), "ingress-chains".into(), both),
        ];
        let (first, rest) = apart(steps);
        let lead = Step::AddElements(table.clone(), "ingress-chains".into(), leads);
        assert_eq!(first, [chain("new"), rule("new", &drop), lead]);
        assert_eq!(rest.len(), 7, "{rest:?}");
    }

    #[test]
    fn what_somebody_else_changes_while_nobody_listens_is_not_heard_but_known() {
        Namespace::new().inside(|| {
            let (events, told) = mpsc::channel();
            let mut monitor = Monitor::open_nft().unwrap();
            let hearing = Hearing::of(&monitor, events).unwrap();
            let mut programmed = Programmed::open().unwrap().heard_by(hearing);
            let chains = (0..MANY).map(|number| Chain::regular(format!("chain-{number}")));
            let table = chains.fold(Table::new(Family::Inet, super::TABLE), Table::with_chain);
            programmed.make(table).unwrap();
            assert!(!programmed.has_missed());
            assert!(told.try_recv().is_err());
            let other = |name: &str| {
                let mut transaction = Transaction::new();
                transaction.add_table(&TableKey::new(Family::Inet, name));
                Nft::open().unwrap().commit(transaction)
            };
            programmed.unheard(|_| other("unheard")).unwrap();
            assert!(programmed.has_missed() && !programmed.has_missed());
            assert!(matches!(told.try_recv(), Ok(Event::Kernel(Touched::Ruleset))));
            let refused = programmed.unheard(|programmed| {
                programmed.take(vec![Step::DeleteTable(TableKey::new(Family::Inet, "none"))])
            });
            assert!(refused.is_err() && !programmed.has_missed());
            other("heard").unwrap();
            let first = monitor.receive_within(Duration::from_secs(10)).unwrap().expect("it is heard");
            assert_eq!(first[0].event, kernel::monitor::Event::Nft(Some("heard".into())));
        });
    }

    #[test]
    fn base_chains_at_another_hook_are_there_before_the_old_ones_go() {
        let table = TableKey::new(Family::Inet, "fairlead_policy");
        let base =
            BaseChain { kind: ChainKind::Filter, hook: Hook::Forward, priority: 0, policy: Policy::Accept };
        let steps = vec![
            Step::DeleteChain(table.clone(), "prerouting-egress".into()),
            Step::AddChain(table, Chain::base("forward-egress", base)),
        ];
        let (first, rest) = apart(steps.clone());
        assert_eq!((first.as_slice(), rest.as_slice()), (&steps[1..], &steps[..1]));
    }

    #[test]
    fn packets_come_to_a_new_table_when_all_else_of_it_is_there() {
        let table = TableKey::new(Family::Inet, "fairlead_policy");
        let base = BaseChain {
            kind: ChainKind::Filter,
            hook: Hook::Prerouting,
            priority: 0,
            policy: Policy::Accept,
        };
        let rule = || Rule::new([Statement::Verdict(Verdict::Drop)]);
        let [lead, member] = leads("new");
        let steps = [
            Step::AddTable(table.clone()),
            Step::AddSet(table.clone(), Set::verdict_map("ingress-chains", [KeyType::Class])),
            Step::AddSet(table.clone(), Set::map("ingress4", [KeyType::Ipv4], [KeyType::Class])),
            Step::AddElements(table.clone(), "ingress4".into(), member),
            Step::AddChain(table.clone(), Chain::base("ingress", base)),
            Step::AddChain(table.clone(), Chain::regular("new")),
            Step::AddRule(table.clone(), "ingress".into(), rule()),
            Step::AddRule(table.clone(), "new".into(), rule()),
            Step::AddElements(table.clone(), "ingress-chains".into(), lead),
        ];
        let (first, rest) = apart(steps.to_vec());
        assert_eq!(first, [0, 1, 2, 3, 5, 7, 8].map(|place| steps[place].clone()));
        assert_eq!(rest, [4, 6].map(|place| steps[place].clone()));
        let anew = [&[Step::DeleteTable(table)], steps.as_slice()].concat();
        assert!(apart(anew).0.is_empty(), "another table of that name is replaced in one transaction");
    }
}
