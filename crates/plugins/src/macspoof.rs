//! The hardware address filter (`macspoofchk`): a pod's port lets in only frames from the pod's own address.
//!
//! Read [`add`] first. One table of ours, `bridge fairlead_macspoof`, with one rule that never changes:
//!
//! ```text
//! iifname @ports iifname . ether saddr != @allowed drop
//! ```
//!
//! So a pod is one element in each of two sets, both carrying the owner's alias as a comment; DEL and GC find
//! them by it, also when link and namespace are gone. The cost is the same for one pod and for thousands.

use kernel::Error;
use kernel::nft::{Nft, Transaction};
use netstate::nft::{
    BaseChain, Chain, ChainKind, Family, Field, Hook, Key, KeyType, Policy, Rule, Set, Statement, Table,
    TableKey, Value,
};
use netstate::{LinkName, Mac};

use crate::attachment::Leaving;
use crate::owner::Owner;
use crate::reference;

const TABLE: &str = "fairlead_macspoof";
const CHAIN: &str = "prerouting";
/// Before everything that looks deeper into a frame.
const PRIORITY: i32 = -300;

/// How often a pod tries again when others make the same objects at the same time.
const ATTEMPTS: usize = 10;

/// Lets in frames at `port` only if they come from `mac`.
pub(crate) fn add(nft: &mut Nft, owner: &Owner, port: LinkName, mac: Mac) -> Result<(), Error> {
    let table = wanted();
    let mut attempts = 0..ATTEMPTS;
    loop {
        let mut only_the_elements = Transaction::new();
        admit(&mut only_the_elements, &table, owner, (port, mac));
        let Err(error) = nft.commit(only_the_elements) else { return Ok(()) };
        let result = if error.exists() {
            // What an earlier attempt of the same attachment left behind.
            remove_where(nft, |key, _| key.first() == Some(&Value::Ifname(port)))
        } else if error.is_missing() {
            let mut all = Transaction::new();
            make(&mut all, &table);
            admit(&mut all, &table, owner, (port, mac));
            match nft.commit(all) {
                Ok(()) => return Ok(()),
                Err(error) if error.exists() => Ok(()),
                other => other,
            }
        } else {
            Err(error)
        };
        result?;
        if attempts.next().is_none() {
            let mut last = Transaction::new();
            admit(&mut last, &table, owner, (port, mac));
            return nft.commit(last);
        }
    }
}

/// Ends the filter for `owner`.
pub(crate) fn remove(nft: &mut Nft, owner: &Owner) -> Result<(), Error> {
    let alias = owner.alias();
    remove_where(nft, |_, comment| comment == alias)
}

/// Adds the deletion of all that an attachment has here.
pub(crate) fn leave(
    nft: &mut Nft,
    leaving: &Leaving<'_>,
    transaction: &mut Transaction,
) -> Result<(), Error> {
    let alias = leaving.owner.alias();
    removal(nft, |_, comment| comment == alias, transaction)
}

/// Ends the filter for everybody in `network` who is not among `valid`.
pub(crate) fn collect(nft: &mut Nft, network: &str, valid: &[Owner]) -> Result<(), Error> {
    let prefix = Owner::alias_prefix(network);
    let valid: Vec<String> = valid.iter().map(Owner::alias).collect();
    remove_where(nft, |_, comment| {
        comment.starts_with(&prefix) && !valid.iter().any(|owner| owner == comment)
    })
}

/// What is missing of `owner`'s filter, in words; `None` when all is there, or when the reference's plugin made
/// it and it stands.
pub(crate) fn missing(
    nft: &mut Nft,
    owner: &Owner,
    port: LinkName,
    mac: Mac,
) -> Result<Option<String>, Error> {
    let table = TableKey::new(Family::Bridge, TABLE);
    let alias = owner.alias();
    let allowed = vec![Value::Ifname(port), Value::Ether(mac)];
    for (set, key) in [(PORTS, vec![Value::Ifname(port)]), (ALLOWED, allowed)] {
        if nft.comment_of(&table, set, &key)?.is_none_or(|comment| comment != alias) {
            if reference::spoof_check_stands(nft, owner, port, mac)? {
                return Ok(None);
            }
            return Ok(Some(format!("the hardware address filter of {port} is gone from {table}")));
        }
    }
    if !nft.holds_rule(&table, CHAIN, &rule())? {
        return Ok(Some(format!("the rule of the hardware address filter is gone from {table}")));
    }
    Ok(None)
}

const PORTS: &str = "ports";
const ALLOWED: &str = "allowed";

fn sets() -> [Set; 2] {
    [Set::new(PORTS, [KeyType::Ifname]), Set::new(ALLOWED, [KeyType::Ifname, KeyType::Ether])]
}

fn rule() -> Rule {
    Rule::new([
        Statement::in_set([Field::InputLink], PORTS),
        Statement::not_in_set([Field::InputLink, Field::EtherSource], ALLOWED),
        Statement::Verdict(netstate::nft::Verdict::Drop),
    ])
    .with_comment("pods send from their own hardware address only")
}

fn chain() -> Chain {
    let base = BaseChain {
        kind: ChainKind::Filter,
        hook: Hook::Prerouting,
        priority: PRIORITY,
        policy: Policy::Accept,
    };
    Chain::base(CHAIN, base)
}

fn wanted() -> Table {
    let table = Table::new(Family::Bridge, TABLE).with_chain(chain().with_rule(rule()));
    sets().into_iter().fold(table, Table::with_set)
}

/// The rule comes with the sets, which can be made only once.
fn make(transaction: &mut Transaction, table: &Table) {
    transaction.add_table(&table.key).add_chain(&table.key, &chain());
    for set in table.sets.values() {
        transaction.create_set(&table.key, set);
    }
    transaction.add_rule(&table.key, CHAIN, &rule());
}

fn admit(transaction: &mut Transaction, table: &Table, owner: &Owner, (port, mac): (LinkName, Mac)) {
    let alias = owner.alias();
    let allowed = vec![Value::Ifname(port), Value::Ether(mac)];
    transaction.create_elements(&table.key, ALLOWED, [(&allowed, Some(alias.as_str()))]);
    transaction.create_elements(&table.key, PORTS, [(&vec![Value::Ifname(port)], Some(alias.as_str()))]);
}

/// Removes elements from both sets, those of `ports` first: a port without its allowed address is mute.
fn remove_where(nft: &mut Nft, stale: impl Fn(&Key, &str) -> bool) -> Result<(), Error> {
    let mut attempts = 0..ATTEMPTS;
    loop {
        let mut transaction = Transaction::new();
        removal(nft, &stale, &mut transaction)?;
        match nft.commit(transaction) {
            // Somebody else removed one of them in between; the others are still there.
            Err(error) if error.is_missing() && attempts.next().is_some() => {}
            other => return other,
        }
    }
}

fn removal(
    nft: &mut Nft,
    stale: impl Fn(&Key, &str) -> bool,
    transaction: &mut Transaction,
) -> Result<(), Error> {
    let key = TableKey::new(Family::Bridge, TABLE);
    for set in sets() {
        let elements = match nft.elements(&key, &set) {
            Err(error) if error.is_missing() => break,
            other => other?,
        };
        let stale = elements.iter().filter(|(key, element)| stale(key, element.comment()));
        let keys: Vec<&Key> = stale.map(|(key, _)| key).collect();
        if !keys.is_empty() {
            transaction.delete_elements(&key, &set.name, keys);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_reads_as_promised() {
        let text = wanted().to_string();
        assert!(text.contains("iifname @ports"), "{text}");
        assert!(text.contains("iifname . ether saddr != @allowed drop"), "{text}");
        assert!(text.contains("hook prerouting priority -300"), "{text}");
    }
}
