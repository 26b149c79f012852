//! Masquerading (`ipMasq`): what pods send beyond their subnet leaves with the host's address.
//!
//! Read [`add`] first. One table of ours, `inet fairlead_cni`; for each network and subnet a set of pod
//! addresses and one rule that never changes:
//!
//! ```text
//! ip saddr @pods/<network>/<subnet> ip daddr != <subnet> ip daddr != 224.0.0.0/4 masquerade
//! ```
//!
//! So a pod is an element, added in one small transaction; table, set and rule are made by the first pod that
//! finds them missing. Each element carries its owner as a comment, and nobody removes an element of another:
//! an address that has been given anew stays masqueraded when its former owner is deleted late.
//! Both of the reference's backends (`iptables`, `nftables`) end here.

use ipnet::IpNet;
use kernel::Error;
use kernel::nft::{Nft, Transaction};
use netstate::nft::{
    BaseChain, Chain, ChainKind, Family, Field, Hook, IpVersion, Key, Policy, Rule, Set, Statement, TableKey,
    Value, priority,
};

use crate::attachment::Leaving;
use crate::owner::{Owner, shortened};
use crate::reference;

const TABLE: &str = "fairlead_cni";
const CHAIN: &str = "postrouting";

/// How often a pod tries again when others make or remove the same objects at the same time.
const ATTEMPTS: usize = 10;

/// Masquerades what `owner` sends from `address` beyond its subnet.
pub(crate) fn add(nft: &mut Nft, owner: &Owner, address: IpNet) -> Result<(), Error> {
    let pool = Pool::of(owner.network(), address);
    let key = vec![Value::Address(address.addr())];
    let comment = owner.comment();
    let element = [(&key, Some(comment.as_str()))];
    let mut attempts = 0..ATTEMPTS;
    loop {
        let mut only_the_element = Transaction::new();
        only_the_element.create_elements(&pool.table, &pool.set.name, element);
        let Err(error) = nft.commit(only_the_element) else { return Ok(()) };
        let mut transaction = Transaction::new();
        if error.exists() {
            // The address's former owner was never deleted.
            transaction.delete_elements(&pool.table, &pool.set.name, [&key]);
        } else if error.is_missing() {
            pool.make(&mut transaction);
        } else {
            return Err(error);
        }
        transaction.create_elements(&pool.table, &pool.set.name, element);
        match nft.commit(transaction) {
            // Somebody else made the set, or took the element away, in between.
            Err(error) if (error.exists() || error.is_missing()) && attempts.next().is_some() => {}
            other => return other,
        }
    }
}

/// Ends masquerading of one address, if it is `owner`'s.
pub(crate) fn remove(nft: &mut Nft, owner: &Owner, address: IpNet) -> Result<(), Error> {
    let leaving = Leaving::new(owner, Some(vec![address]));
    let mut transaction = Transaction::new();
    leave(nft, &leaving, &mut transaction)?;
    match nft.commit(transaction) {
        Err(error) if error.is_missing() => Ok(()),
        other => other,
    }
}

/// Adds the deletion of all that an attachment has here. With its addresses known this looks at those alone,
/// otherwise at all of the network.
pub(crate) fn leave(
    nft: &mut Nft,
    leaving: &Leaving<'_>,
    transaction: &mut Transaction,
) -> Result<(), Error> {
    let comment = leaving.owner.comment();
    let network = leaving.owner.network();
    let Some(addresses) = &leaving.addresses else {
        for (table, set, keys) in of_network(nft, network, |found| found == comment)? {
            transaction.delete_elements(&table, &set, &keys);
        }
        return Ok(());
    };
    for address in addresses {
        let pool = Pool::of(network, *address);
        let key = vec![Value::Address(address.addr())];
        if nft.comment_of(&pool.table, &pool.set.name, &key)?.is_some_and(|found| found == comment) {
            transaction.delete_elements(&pool.table, &pool.set.name, [&key]);
        }
    }
    Ok(())
}

/// Ends masquerading for everybody in `network` who is not among `valid`.
pub(crate) fn collect(nft: &mut Nft, network: &str, valid: &[Owner]) -> Result<(), Error> {
    let valid: Vec<String> = valid.iter().map(Owner::comment).collect();
    let stale = of_network(nft, network, |comment| !valid.iter().any(|owner| owner == comment))?;
    let deleted = stale.iter().map(|(table, set, keys)| delete(nft, table, set, keys));
    deleted.fold(Ok(()), Result::and)
}

/// What is missing of `owner`'s masquerading of `address`, in words; `None` when all is there, or when the
/// reference's plugin made it and it stands.
pub(crate) fn missing(nft: &mut Nft, owner: &Owner, address: IpNet) -> Result<Option<String>, Error> {
    let pool = Pool::of(owner.network(), address);
    let key = vec![Value::Address(address.addr())];
    let found = nft.comment_of(&pool.table, &pool.set.name, &key)?;
    if found.is_none_or(|comment| comment != owner.comment()) {
        if reference::masquerade_stands(nft, owner, address.addr())? {
            return Ok(None);
        }
        return Ok(Some(format!("masquerading of {} is gone from {}", address.addr(), pool.table)));
    }
    if !nft.holds_rule(&pool.table, CHAIN, &pool.rule())? {
        return Ok(Some(format!("the masquerading rule for {} is gone from {}", pool.subnet, pool.table)));
    }
    Ok(None)
}

/// The pods of one network that have addresses in one subnet.
struct Pool {
    table: TableKey,
    set: Set,
    subnet: IpNet,
    network: String,
}

impl Pool {
    fn of(network: &str, address: IpNet) -> Self {
        let subnet = address.trunc();
        let name = format!("{}{}", set_prefix(network), subnet.to_string().replace(':', "-"));
        let kind = IpVersion::of_net(subnet).key_type();
        Self {
            table: TableKey::new(Family::Inet, TABLE),
            set: Set::new(name, [kind]),
            subnet,
            network: network.to_owned(),
        }
    }

    fn rule(&self) -> Rule {
        let version = IpVersion::of_net(self.subnet);
        Rule::new([
            Statement::in_set([Field::Source(version)], self.set.name.as_str()),
            Statement::destination_not_in(self.subnet),
            Statement::destination_not_in(version.multicast()),
            Statement::Masquerade { fully_random: true },
        ])
        .with_comment(format!("pods of network {}", shortened(&self.network, 64)))
    }

    fn chain() -> Chain {
        let base = BaseChain {
            kind: ChainKind::Nat,
            hook: Hook::Postrouting,
            priority: priority::SRCNAT,
            policy: Policy::Accept,
        };
        Chain::base(CHAIN, base)
    }

    /// The rule comes with the set, which can be made only once, so there is one rule however many try.
    fn make(&self, transaction: &mut Transaction) {
        transaction.add_table(&self.table).add_chain(&self.table, &Self::chain());
        transaction.create_set(&self.table, &self.set).add_rule(&self.table, CHAIN, &self.rule());
    }
}

/// How the names of a network's sets begin. A network's name has no `/` in it.
fn set_prefix(network: &str) -> String {
    format!("pods/{}/", shortened(network, 64))
}

/// The elements in every set of the network whose comment is wanted, set by set.
fn of_network(
    nft: &mut Nft,
    network: &str,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<(TableKey, String, Vec<Key>)>, Error> {
    let key = TableKey::new(Family::Inet, TABLE);
    let prefix = set_prefix(network);
    let mut found = Vec::new();
    for set in nft.sets(&key)?.into_iter().filter(|set| set.name.starts_with(&prefix)) {
        let mut elements = match nft.elements(&key, &set) {
            Err(error) if error.is_missing() => continue,
            other => other?,
        };
        elements.retain(|_, element| wanted(element.comment()));
        if !elements.is_empty() {
            found.push((key.clone(), set.name, elements.into_keys().collect()));
        }
    }
    Ok(found)
}

/// Deletes elements; that one has gone meanwhile is a success, and does not save the others.
fn delete(nft: &mut Nft, table: &TableKey, set: &str, keys: &[Key]) -> Result<(), Error> {
    let mut together = Transaction::new();
    together.delete_elements(table, set, keys);
    let result = nft.commit(together);
    if !result.as_ref().is_err_and(Error::is_missing) {
        return result;
    }
    for key in keys {
        let mut alone = Transaction::new();
        alone.delete_elements(table, set, [key]);
        match nft.commit(alone) {
            Err(error) if !error.is_missing() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_reads_as_promised() {
        let pool = Pool::of("test", "10.1.2.7/24".parse().unwrap());
        assert_eq!(pool.set.name, "pods/test/10.1.2.0/24");
        let text = pool.rule().to_string();
        assert!(text.contains("ip saddr @pods/test/10.1.2.0/24 ip daddr != 10.1.2.0/24"), "{text}");
        assert!(text.contains("masquerade"), "{text}");
        let six = Pool::of("test", "2001:db8:42::7/64".parse().unwrap());
        assert_eq!(six.set.name, "pods/test/2001-db8-42--/64");
    }

    #[test]
    fn one_networks_sets_are_not_anothers() {
        let pool = Pool::of("a.b", "10.1.2.7/24".parse().unwrap());
        assert!(pool.set.name.starts_with(&set_prefix("a.b")));
        assert!(!pool.set.name.starts_with(&set_prefix("a")));
        let long = "x".repeat(300);
        assert!(
            Pool::of(&long, "2001:db8:ffff:ffff:ffff:ffff:ffff:ff00/120".parse().unwrap()).set.name.len()
                < 128
        );
    }
}
