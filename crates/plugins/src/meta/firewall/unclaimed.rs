//! Rules of the reference in iptables' chain for pods that are gone, which no DEL will take away any more.
//!
//! Read [`collect`]. The reference's `firewall` makes two rules for each address of a pod, and no word in them says
//! whose they are. A pod that was never deleted leaves them, and whoever has the address next is let pass whether he
//! may or not. They go when nobody alive has the address ([`crate::living`]).
//!
//! What stays true: only rules of exactly the reference's form go; what a person wrote into the chain stays, and so
//! do the chain and the ways into it.

use std::net::IpAddr;

use cni::{Error, Request};
use kernel::foreign::{ForeignRule, NARROWED};
use kernel::machine;
use kernel::nft::{Nft, Transaction};
use kernel::xtables::Table;
use netstate::nft::IpVersion;

use super::config::FirewallConfig;
use super::forward::{self, PODS, TABLE, table};
use super::table::{ATTEMPTS, VERSIONS};
use crate::fault::fault;
use crate::living::Living;

/// What the reference's rules are made of, by either interface of the kernel: the target `ACCEPT` of the older one
/// has no name.
const PARTS: [&str; 8] = ["payload", "cmp", "conntrack", "state", "counter", "immediate", "accept", ""];

/// Removes the rules for addresses that nobody has.
///
/// # Errors
/// When it cannot be told whose they are, or the kernel refuses.
pub(super) fn collect(nft: &mut Nft, request: &Request) -> Result<(), Error> {
    let mut addresses = Vec::new();
    for version in VERSIONS {
        let rules = nft.foreign_rules(&table(version), Some(PODS)).map_err(fault)?;
        addresses.extend(rules.iter().filter_map(|rule| let_pass(rule, version)));
        addresses
            .extend(older(version)?.iter().flat_map(Table::rules).filter_map(|rule| of_pod(&rule, version)));
    }
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() {
        return Ok(());
    }
    let Some(living) = Living::of(request)? else { return Ok(()) };
    let nobodys = living.nobodys(nft, addresses)?;
    if nobodys.is_empty() {
        return Ok(());
    }
    let config = FirewallConfig::of(&request.config)?;
    remove(nft, &nobodys).map_err(fault)?;
    // An ADD that came in between has found the rules standing, and made none. Its pod had the address by then. While that
    // cannot be told, any of them may be a pod's.
    let looked = machine::addresses_in_use(&nobodys);
    let again = looked.as_ref().map_or_else(|_| nobodys.clone(), |in_use| in_use.iter().copied().collect());
    put_back(nft, &config, &again)?;
    looked.map_err(fault)?;
    for version in VERSIONS {
        let is_stale =
            |rule: &ForeignRule| of_pod(rule, version).is_some_and(|address| nobodys.contains(&address));
        if let Some(mut table) = older(version)?.filter(|table| table.rules().iter().any(is_stale)) {
            table.remove(is_stale, |_| false).map_err(fault)?;
        }
    }
    Ok(())
}

/// In nf_tables: nothing is written through the older interface.
fn put_back(nft: &mut Nft, config: &FirewallConfig<'_>, addresses: &[IpAddr]) -> Result<(), Error> {
    if addresses.is_empty() {
        return Ok(());
    }
    let mut attempts = 0..ATTEMPTS;
    loop {
        let mut transaction = Transaction::new();
        forward::put(nft, addresses, config.admin_chain, &mut transaction).map_err(fault)?;
        match nft.commit(transaction) {
            Err(error) if (error.exists() || error.is_missing()) && attempts.next().is_some() => {}
            other => return other.map_err(fault),
        }
    }
}

fn older(version: IpVersion) -> Result<Option<Table>, Error> {
    Table::read(version, TABLE).map_err(fault)
}

fn remove(nft: &mut Nft, nobodys: &[IpAddr]) -> Result<(), kernel::Error> {
    let mut attempts = 0..ATTEMPTS;
    loop {
        let mut transaction = Transaction::new();
        for version in VERSIONS {
            let table = table(version);
            for rule in nft.foreign_rules(&table, Some(PODS))? {
                if let_pass(&rule, version).is_some_and(|address| nobodys.contains(&address)) {
                    transaction.delete_rule(&table, PODS, rule.place);
                }
            }
        }
        match nft.commit(transaction) {
            // Somebody else removed one of them in between; the others are still there.
            Err(error) if error.is_missing() && attempts.next().is_some() => {}
            other => return other,
        }
    }
}

/// The same in a table of which all chains were read.
fn of_pod(rule: &ForeignRule, version: IpVersion) -> Option<IpAddr> {
    let_pass(rule, version).filter(|_| rule.chain == PODS)
}

/// The address for which the reference made this rule, if it did. A comparison with fewer bytes than an address of the
/// table's family has is with a subnet, and a person's.
fn let_pass(rule: &ForeignRule, version: IpVersion) -> Option<IpAddr> {
    let is_known = |name: &str| PARTS.contains(&name) && name != NARROWED;
    let mut compared = rule.parts.iter().filter(|part| part.name == "cmp");
    let (Some(part), None) = (compared.next(), compared.next()) else { return None };
    if !rule.has("accept") || rule.comment.is_some() || !rule.parts.iter().all(|part| is_known(&part.name)) {
        return None;
    }
    match version {
        IpVersion::V4 => <[u8; 4]>::try_from(part.bytes.as_slice()).map(IpAddr::from).ok(),
        IpVersion::V6 => <[u8; 16]>::try_from(part.bytes.as_slice()).map(IpAddr::from).ok(),
    }
}

#[cfg(test)]
mod tests {
    use kernel::foreign::Part;

    use super::*;

    fn rule(parts: &[(&str, &[u8])]) -> ForeignRule {
        let part = |(name, bytes): &(&str, &[u8])| Part { name: (*name).into(), bytes: bytes.to_vec() };
        ForeignRule { chain: PODS.into(), parts: parts.iter().map(part).collect(), ..ForeignRule::default() }
    }

    #[test]
    fn only_the_references_own_form_tells_an_address() {
        let address = [10, 1, 2, 3];
        let six = [0x20; 16];
        let out =
            [("payload", &[][..]), ("cmp", &address), ("counter", &[]), ("immediate", &[]), ("accept", &[])];
        assert_eq!(let_pass(&rule(&out), IpVersion::V4), Some("10.1.2.3".parse().unwrap()));
        let older = [("cmp", &six[..]), ("conntrack", &[1, 2]), ("", &[]), ("accept", &[])];
        assert_eq!(let_pass(&rule(&older), IpVersion::V6), Some(IpAddr::from(six)));
        let mut commented = rule(&out);
        commented.comment = Some("mine".into());
        assert_eq!(let_pass(&commented, IpVersion::V4), None);
        for more in [("cmp", &address[..]), (NARROWED, &[]), ("bitwise", &[]), ("meta", &[]), ("tcp", &[6])] {
            let mut parts = out.to_vec();
            parts.insert(0, more);
            assert_eq!(let_pass(&rule(&parts), IpVersion::V4), None, "{more:?}");
        }
        let dropping = [("cmp", &address[..]), ("drop", &[])];
        assert_eq!(let_pass(&rule(&dropping), IpVersion::V4), None);
        // A subnet is a shorter comparison.
        let subnet = [("payload", &[][..]), ("cmp", &address[..3]), ("immediate", &[]), ("accept", &[])];
        assert_eq!(let_pass(&rule(&subnet), IpVersion::V4), None);
        // Four bytes of IPv6 are 2001:db8::/32, say, and no address of IPv4.
        assert_eq!(let_pass(&rule(&out), IpVersion::V6), None);
        assert_eq!(let_pass(&rule(&older), IpVersion::V4), None);
    }
}
