//! Writing a chain again where most of its rules stay.
//!
//! Read [`Nft::carry_out`]. A plan says of a chain that is written again only what it is to hold. What it holds already, at its
//! beginning and at its end, is left alone: a new rule costs the kernel a look through the list of the table's sets for each
//! set that it names, and its counter begins at nothing. What stands between is replaced as a whole.
//!
//! What stays true: a rule stays only where its whole comment is the one that it would be written with, which ends in the
//! digest of its text. The rules stand in the order of the plan afterwards.

use std::collections::BTreeMap;

use netstate::nft::{Rule, Step, TableKey};

use super::{Nft, Transaction, constant as c, expression, message, userdata};
use crate::Error;
use crate::foreign::ForeignRule;
use crate::netlink::Purpose;

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
    /// The first change that was refused, by name; nothing has been changed then. Somebody may have taken a rule away that
    /// was found: who cannot know what there is reads it and plans again.
    pub fn carry_out(&mut self, steps: &[Step]) -> Result<(), Error> {
        let mut rewrites = self.rewrites(steps)?;
        let mut transaction = Transaction::new();
        for step in steps {
            match step {
                Step::FlushChain(table, chain) => match rewrites.get(&(table, chain)) {
                    Some(rewrite) => rewrite.go.iter().for_each(|handle| {
                        transaction.delete_rule(table, chain, *handle);
                    }),
                    None => drop(transaction.flush_chain(table, chain)),
                },
                Step::AddRule(table, chain, rule) => match rewrites.get_mut(&(table, chain)) {
                    Some(rewrite) => rewrite.add(&mut transaction, (table, chain), rule),
                    None => drop(transaction.add_rule(table, chain, rule)),
                },
                step => drop(transaction.add_step(step)),
            }
        }
        self.commit(transaction)
    }

    /// Of each chain that is emptied and written again and of which something stays: what.
    fn rewrites<'s>(
        &mut self,
        steps: &'s [Step],
    ) -> Result<BTreeMap<(&'s TableKey, &'s String), Rewrite>, Error> {
        let mut wanted: BTreeMap<(&TableKey, &String), Vec<&Rule>> = BTreeMap::new();
        for step in steps {
            if let Step::FlushChain(table, chain) = step {
                wanted.insert((table, chain), Vec::new());
            }
        }
        for step in steps {
            match step {
                Step::AddRule(table, chain, rule) => {
                    if let Some(rules) = wanted.get_mut(&(table, chain)) {
                        rules.push(rule);
                    }
                }
                Step::DeleteChain(table, chain) => drop(wanted.remove(&(table, chain))),
                _ => {}
            }
        }
        let mut rewrites = BTreeMap::new();
        for ((table, chain), rules) in wanted {
            if rules.is_empty() {
                continue;
            }
            let standing = self.foreign_rules(table, Some(chain))?;
            let comments: Vec<String> =
                rules.iter().map(|rule| userdata::rule_comment(rule, &rule.to_string())).collect();
            rewrites.extend(Rewrite::of(&standing, &comments).map(|rewrite| ((table, chain), rewrite)));
        }
        Ok(rewrites)
    }
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
