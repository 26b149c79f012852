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
use kernel::foreign::{ForeignRule, Part};
use kernel::machine;
use kernel::nft::{Nft, Transaction};
use kernel::xtables::Table;
use netstate::nft::IpVersion;

use super::config::FirewallConfig;
use super::forward::{self, PODS, TABLE, table};
use super::table::{ATTEMPTS, VERSIONS};
use crate::fault::{Failures, fault};
use crate::living::Living;

/// What the reference's rules are made of, by either interface of the kernel: the target `ACCEPT` of the older one
/// has no name.
const PARTS: [&str; 7] = ["payload", "cmp", "conntrack", "counter", "immediate", "accept", ""];

/// `RELATED,ESTABLISHED` and nothing else in `struct xt_conntrack_mtinfo2` and its successor, behind addresses and
/// ports that are not asked for: what is matched (`XT_CONNTRACK_STATE`), what of it must not be, and which states.
const TRACKED: [u16; 3] = [1, 0, 2 | 4];
const TRACKED_AT: usize = 146;

/// Removes the rules for addresses that nobody has.
///
/// # Errors
/// When it cannot be told whose they are, or the kernel refuses.
pub(super) fn collect(request: &Request) -> Result<(), Error> {
    let mut nft = Nft::open().map_err(fault)?;
    let mut addresses = Vec::new();
    for version in VERSIONS {
        let rules = nft.foreign_rules(&table(version), Some(PODS)).map_err(fault)?;
        addresses.extend(rules.iter().filter_map(|rule| let_pass(version, rule)));
        let older = older(version)?.map(|table| table.rules()).unwrap_or_default();
        addresses.extend(older.iter().filter_map(|rule| of_pod(version, rule)));
    }
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() {
        return Ok(());
    }
    let Some(living) = Living::of(request)? else { return Ok(()) };
    let nobodys = living.nobodys(&mut nft, addresses)?;
    if nobodys.is_empty() {
        return Ok(());
    }
    // Whatever is needed to put rules back is known before the first one goes.
    let config = FirewallConfig::of(&request.config)?;
    let still_nobodys = remove_unless_taken(&mut nft, nobodys, config.admin_chain)?;
    remove_older(&still_nobodys)
}

/// Removes the rules in nf_tables, and returns those of the addresses that are nobody's afterwards. An ADD that came in
/// between has found its rules standing, and made none; its pod had the address by then, so they are put back.
/// When that cannot be told all are.
fn remove_unless_taken(
    nft: &mut Nft,
    mut nobodys: Vec<IpAddr>,
    admin_chain: &str,
) -> Result<Vec<IpAddr>, Error> {
    let mut removed = remove(nft, &nobodys).map_err(fault)?;
    match machine::addresses_in_use(&nobodys) {
        Ok(in_use) => {
            removed.retain(|address| in_use.contains(address));
            put_back(nft, &removed, admin_chain).map_err(fault)?;
            nobodys.retain(|address| !in_use.contains(address));
            Ok(nobodys)
        }
        Err(error) => {
            let mut failures = Failures::default();
            failures.note_kernel::<()>(Err(error));
            failures.note_kernel(put_back(nft, &removed, admin_chain));
            failures.into_result().map(|()| Vec::new())
        }
    }
}

fn put_back(nft: &mut Nft, addresses: &[IpAddr], admin_chain: &str) -> Result<(), kernel::Error> {
    if addresses.is_empty() {
        return Ok(());
    }
    let mut attempts = 0..ATTEMPTS;
    loop {
        let mut transaction = Transaction::new();
        forward::put(nft, addresses, admin_chain, &mut transaction)?;
        match nft.commit(transaction) {
            Err(error) if (error.exists() || error.is_missing()) && attempts.next().is_some() => {}
            other => return other,
        }
    }
}

/// The same rules of the older interface, through which nothing is put back.
fn remove_older(nobodys: &[IpAddr]) -> Result<(), Error> {
    let mut failures = Failures::default();
    for version in VERSIONS {
        let is_stale =
            |rule: &ForeignRule| of_pod(version, rule).is_some_and(|address| nobodys.contains(&address));
        let Some(mut table) = failures.note(older(version)).flatten() else { continue };
        if table.rules().iter().any(is_stale) {
            failures.note_kernel(table.remove(is_stale, |_| false));
        }
    }
    failures.into_result()
}

fn older(version: IpVersion) -> Result<Option<Table>, Error> {
    Table::read(version, TABLE).map_err(fault)
}

/// Returns for which addresses there were rules.
fn remove(nft: &mut Nft, nobodys: &[IpAddr]) -> Result<Vec<IpAddr>, kernel::Error> {
    let mut removed = Vec::new();
    let mut attempts = 0..ATTEMPTS;
    loop {
        let mut transaction = Transaction::new();
        for version in VERSIONS {
            let table = table(version);
            for rule in nft.foreign_rules(&table, Some(PODS))? {
                let address = let_pass(version, &rule).filter(|address| nobodys.contains(address));
                if let Some(address) = address {
                    transaction.delete_rule(&table, PODS, rule.place);
                    removed.push(address);
                }
            }
        }
        match nft.commit(transaction) {
            // Somebody else removed one of them in between; the others are still there.
            Err(error) if error.is_missing() && attempts.next().is_some() => {}
            other => {
                removed.sort_unstable();
                removed.dedup();
                return other.map(|()| removed);
            }
        }
    }
}

/// The same in a table of which all chains were read.
fn of_pod(version: IpVersion, rule: &ForeignRule) -> Option<IpAddr> {
    let_pass(version, rule).filter(|_| rule.chain == PODS)
}

/// The address for which the reference made this rule of a table of `version`, if it did. Only a comparison as long
/// as a whole address counts: `iptables-nft` loads no more than the first 4 bytes for a net such as `2001:db8::/32`.
fn let_pass(version: IpVersion, rule: &ForeignRule) -> Option<IpAddr> {
    let mut compared = rule.parts.iter().filter(|part| part.name == "cmp");
    let (Some(part), None) = (compared.next(), compared.next()) else { return None };
    if !rule.has("accept") || rule.comment.is_some() || !rule.parts.iter().all(is_the_references) {
        return None;
    }
    let bytes = part.bytes.as_slice();
    match version {
        IpVersion::V4 => <[u8; 4]>::try_from(bytes).map(IpAddr::from).ok(),
        IpVersion::V6 => <[u8; 16]>::try_from(bytes).map(IpAddr::from).ok(),
    }
}

/// Whether a rule of the reference may have this part.
fn is_the_references(part: &Part) -> bool {
    let tracked = TRACKED.map(u16::to_ne_bytes);
    let is_tracked =
        || part.bytes.get(TRACKED_AT..).is_some_and(|rest| rest.starts_with(tracked.as_flattened()));
    PARTS.contains(&part.name.as_str()) && (part.name != "conntrack" || is_tracked())
}

#[cfg(test)]
mod tests {
    use kernel::foreign::NARROWED;

    use super::*;

    fn rule(parts: &[(&str, &[u8])]) -> ForeignRule {
        let part = |(name, bytes): &(&str, &[u8])| Part { name: (*name).into(), bytes: bytes.to_vec() };
        ForeignRule { chain: PODS.into(), parts: parts.iter().map(part).collect(), ..ForeignRule::default() }
    }

    /// What `iptables` writes for these states; `flags` are what is matched and what of it must not be.
    fn conntrack(flags: [u16; 2], states: u16) -> Vec<u8> {
        let mut bytes = vec![0; 168];
        let told = [flags[0], flags[1], states].map(u16::to_ne_bytes);
        bytes[TRACKED_AT..TRACKED_AT + 6].copy_from_slice(told.as_flattened());
        bytes
    }

    #[test]
    fn only_the_references_own_form_tells_an_address() {
        use IpVersion::{V4, V6};
        let address = [10, 1, 2, 3];
        let six = [0x20; 16];
        let out =
            [("payload", &[][..]), ("cmp", &address), ("counter", &[]), ("immediate", &[]), ("accept", &[])];
        assert_eq!(let_pass(V4, &rule(&out)), Some("10.1.2.3".parse().unwrap()));
        let mut commented = rule(&out);
        commented.comment = Some("mine".into());
        assert_eq!(let_pass(V4, &commented), None);
        for more in [
            ("cmp", &address[..]),
            (NARROWED, &[]),
            ("bitwise", &[]),
            ("meta", &[]),
            ("tcp", &[6]),
            ("state", &[6]),
        ] {
            let mut parts = out.to_vec();
            parts.insert(0, more);
            assert_eq!(let_pass(V4, &rule(&parts)), None, "{more:?}");
        }
        let dropping = [("cmp", &address[..]), ("drop", &[])];
        assert_eq!(let_pass(V4, &rule(&dropping)), None);
        let back = |bytes: &[u8]| {
            let_pass(V6, &rule(&[("cmp", &six), ("conntrack", bytes), ("", &[]), ("accept", &[])]))
        };
        assert_eq!(back(&conntrack([1, 0], 6)), Some(IpAddr::from(six)));
        // Other states, the opposite, a status too, and a revision that is not known.
        for other in [conntrack([1, 0], 8), conntrack([1, 1], 6), conntrack([3, 0], 6), vec![1, 2]] {
            assert_eq!(back(&other), None);
        }
    }

    #[test]
    fn a_subnet_is_a_shorter_comparison_and_no_address_of_the_other_family() {
        let bytes = [0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        for length in 0..=16 {
            let parts =
                [("payload", &[][..]), ("cmp", &bytes[..length]), ("immediate", &[]), ("accept", &[])];
            assert_eq!(let_pass(IpVersion::V4, &rule(&parts)).is_some(), length == 4, "{length}");
            assert_eq!(let_pass(IpVersion::V6, &rule(&parts)).is_some(), length == 16, "{length}");
        }
    }
}
