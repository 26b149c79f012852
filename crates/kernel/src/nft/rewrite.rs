//! Writing a chain again where most of its rules stay.
//!
//! Read [`Nft::carry_out`]. A plan says of a chain that is written again only what it is to hold. What it holds already, at its
//! beginning and at its end, is left alone: a new rule costs the kernel a look through the list of the table's sets for each
//! set that it names, and its counter begins at nothing. What stands between is replaced as a whole.
//!
//! What stays true: the chain holds what the steps say, in their order. A rule stays only where its whole comment is
//! the one that it would be written with, which ends in the digest of its text, as a table is read back too; where
//! nobody has changed anything since it was looked for; and where the steps empty its chain once, write it once, and
//! take nothing away that it names. Changes that came one after the other are together in one plan, and what one of
//! them takes away another may bring back: such chains are emptied.

use std::collections::{BTreeMap, BTreeSet};

use netstate::nft::{Rule, Statement, Step, TableKey};

use super::{Nft, Transaction, constant as c, expression, message, userdata};
use crate::Error;
use crate::foreign::ForeignRule;
use crate::netlink::Purpose;

/// A table and the name of something in it.
type Place<'s> = (&'s TableKey, &'s str);

/// How a chain becomes what it is to hold.
#[derive(Debug, PartialEq, Eq)]
struct Rewrite {
    /// So many rules stay at its beginning.
    stay: usize,
    /// The handles of those that go.
    go: Vec<u64>,
    /// So many new rules come then.
    come: usize,
    /// The one that stays after them; `None` at the chain's end.
    before: Option<u64>,
    /// How many of the plan's rules were looked at.
    seen: usize,
}

impl Nft {
    /// Carries out the steps of a plan in one transaction: all of them or nothing.
    ///
    /// # Errors
    /// The first change that was refused, by name; nothing has been changed then.
    pub fn carry_out(&mut self, steps: Vec<Step>) -> Result<(), Error> {
        if self.carry_out_sparingly(&steps)? {
            return Ok(());
        }
        let mut transaction = Transaction::new();
        for step in steps {
            transaction.add_step(&step);
        }
        self.commit(transaction)
    }

    /// The same where a chain is written again of which something stays; false, and nothing done, if there is none,
    /// or somebody else has changed something meanwhile.
    fn carry_out_sparingly(&mut self, steps: &[Step]) -> Result<bool, Error> {
        let wanted = written_again(steps);
        if wanted.is_empty() {
            return Ok(false);
        }
        let generation = self.generation()?;
        let mut rewrites = BTreeMap::new();
        for ((table, chain), rules) in wanted {
            let standing = self.foreign_rules(table, Some(chain))?;
            let comments: Vec<String> =
                rules.iter().map(|rule| userdata::rule_comment(rule, &rule.to_string())).collect();
            rewrites.extend(Rewrite::of(&standing, &comments).map(|rewrite| ((table, chain), rewrite)));
        }
        if rewrites.is_empty() {
            return Ok(false);
        }
        let mut transaction = Transaction::new();
        for step in steps {
            transaction.add_sparingly(step, &mut rewrites);
        }
        match self.commit_at(transaction, generation) {
            Err(error) if error.is_outdated() => Ok(false),
            done => done.map(|()| true),
        }
    }
}

/// The chains that the steps empty once and write once, with their new rules, unless one of these names what the steps take away.
fn written_again(steps: &[Step]) -> BTreeMap<Place<'_>, Vec<&Rule>> {
    let mut chains: BTreeMap<Place<'_>, Option<Vec<&Rule>>> = BTreeMap::new();
    let mut gone: BTreeSet<Place<'_>> = BTreeSet::new();
    for step in steps {
        match step {
            Step::FlushChain(table, name) => {
                let chain = chains.entry((table, name));
                chain.and_modify(|rules| *rules = None).or_insert_with(|| Some(Vec::new()));
            }
            Step::AddRule(table, name, rule) => {
                if let Some(rules) = chains.entry((table, name)).or_default() {
                    rules.push(rule);
                }
            }
            Step::AddChain(table, chain) => drop(chains.insert((table, &chain.name), None)),
            Step::DeleteChain(table, name) => {
                chains.insert((table, name), None);
                gone.insert((table, name));
            }
            Step::DeleteSet(table, name) => drop(gone.insert((table, name))),
            Step::DeleteTable(_) => return BTreeMap::new(),
            Step::AddTable(_) | Step::AddSet(..) | Step::AddElements(..) | Step::DeleteElements(..) => {}
        }
    }
    let lasts = |table, rule: &&Rule| {
        let mut names = rule.statements.iter().filter_map(Statement::names);
        !names.any(|name| gone.contains(&(table, name)))
    };
    let rules = chains.into_iter().filter_map(|(place, rules)| Some((place, rules?)));
    rules
        .filter(|((table, _), rules)| !rules.is_empty() && rules.iter().all(|rule| lasts(*table, rule)))
        .collect()
}

impl Rewrite {
    /// `None` where nothing stays.
    fn of(standing: &[ForeignRule], wanted: &[String]) -> Option<Self> {
        let same = |(have, want): &(&ForeignRule, &String)| have.comment.as_ref() == Some(want);
        let stay = standing.iter().zip(wanted).take_while(same).count();
        let (rest, new) = (&standing[stay..], &wanted[stay..]);
        let after = rest.iter().rev().zip(new.iter().rev()).take_while(same).count();
        let (go, last) = rest.split_at(rest.len() - after);
        (stay + after > 0).then(|| Self {
            stay,
            go: go.iter().map(|rule| rule.place).collect(),
            come: new.len() - after,
            before: last.first().map(|rule| rule.place),
            seen: 0,
        })
    }

    /// Adds the next rule of the plan, unless it stands already.
    fn add(&mut self, transaction: &mut Transaction, (table, chain): (&TableKey, &str), rule: &Rule) {
        let place = self.seen;
        self.seen += 1;
        if (self.stay..self.stay + self.come).contains(&place) {
            transaction.put_rule((table, chain), rule, self.before);
        }
    }
}

impl Transaction {
    /// Adds one step of a plan, and of chains of which something stays only what does not.
    fn add_sparingly<'s>(&mut self, step: &'s Step, rewrites: &mut BTreeMap<Place<'s>, Rewrite>) {
        match step {
            Step::FlushChain(table, chain) if let Some(rewrite) = rewrites.get(&(table, chain.as_str())) => {
                for handle in &rewrite.go {
                    self.delete_rule(table, chain, *handle);
                }
            }
            Step::AddRule(table, chain, rule)
                if let Some(rewrite) = rewrites.get_mut(&(table, chain.as_str())) =>
            {
                rewrite.add(self, (table, chain), rule);
            }
            step => drop(self.add_step(step)),
        }
    }

    /// Puts a rule before the one of this handle, or at the end of its chain.
    pub(super) fn put_rule(
        &mut self,
        (table, chain): (&TableKey, &str),
        rule: &Rule,
        before: Option<u64>,
    ) -> &mut Self {
        let append = if before.is_none() { c::APPEND } else { 0 };
        let mut message = message(c::NEW_RULE, c::CREATE | append, table.family);
        message.text(c::RULE_TABLE, &table.name).text(c::RULE_CHAIN, chain);
        if let Some(handle) = before {
            message.be64(c::RULE_POSITION, handle);
        }
        expression::put_rule(&mut message, table.family, rule);
        let text = rule.to_string();
        message.put(c::RULE_USERDATA, &userdata::comment(&userdata::rule_comment(rule, &text)));
        let purpose = Purpose::new("add rule", format!("{table} {chain} {text}"));
        self.push(message, super::rule_option(rule).into_iter().fold(purpose, Purpose::needing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewrite(standing: &str, wanted: &str) -> Option<(usize, Vec<u64>, usize, Option<u64>)> {
        let rule = |(place, name): (usize, char)| ForeignRule {
            place: place as u64,
            comment: Some(name.to_string()),
            ..ForeignRule::default()
        };
        let standing: Vec<ForeignRule> = standing.chars().enumerate().map(rule).collect();
        let wanted: Vec<String> = wanted.chars().map(String::from).collect();
        let Rewrite { stay, go, come, before, .. } = Rewrite::of(&standing, &wanted)?;
        Some((stay, go, come, before))
    }

    #[test]
    fn what_stands_at_the_beginning_and_at_the_end_stays() {
        assert_eq!(rewrite("abc", "abcd"), Some((3, vec![], 1, None)));
        assert_eq!(rewrite("abc", "xabc"), Some((0, vec![], 1, Some(0))));
        assert_eq!(rewrite("abcd", "axyd"), Some((1, vec![1, 2], 2, Some(3))));
        assert_eq!(rewrite("abcd", "ad"), Some((1, vec![1, 2], 0, Some(3))));
        assert_eq!(rewrite("abc", "ab"), Some((2, vec![2], 0, None)));
        assert_eq!(rewrite("ab", "xy"), None);
        assert_eq!(rewrite("", "xy"), None);
        assert_eq!(rewrite("aa", "a"), Some((1, vec![1], 0, None)));
        assert_eq!(rewrite("a", "aa"), Some((1, vec![], 1, None)));
    }

    #[test]
    fn a_rule_without_a_comment_of_ours_does_not_stay() {
        let foreign = [ForeignRule { place: 1, ..ForeignRule::default() }];
        assert_eq!(Rewrite::of(&foreign, &["a".to_owned()]), None);
    }
}
