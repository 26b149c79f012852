//! iptables' table `filter`: the chain that the reference lets pods pass in, written and read in iptables' form.
//!
//! Read [`put`] and [`leave`]. `FORWARD` begins with a jump to `CNI-FORWARD`, that with one to the administrator's
//! chain, and then come two rules for each address. A rule of `FORWARD` that drops is final, so these must be in
//! that very table; where iptables never made one nothing drops there, and nothing is made. The rules tell no
//! owner: whoever removes them knows the addresses from elsewhere.

use std::net::IpAddr;

use kernel::Error;
use kernel::foreign::ForeignRule;
use kernel::nft::{IptablesRule, Nft, Transaction};
use kernel::xtables::Table;
use netstate::nft::{Chain, Family, IpVersion, TableKey, Verdict};

use super::config::Ingress;
use super::table::Fence;

pub(super) const TABLE: &str = "filter";
const FORWARD: &str = "FORWARD";
pub(super) const PODS: &str = "CNI-FORWARD";
const FENCE: &str = "CNI-ISOLATION-STAGE-1";
/// The words of the reference: its own DEL and people's scripts look for them.
const PODS_COMMENT: &str = "CNI firewall plugin rules";
const ADMIN_COMMENT: &str = "CNI firewall plugin admin overrides";

/// Whether a chain of this name has its own meaning in the table.
pub(super) fn is_own(chain: &str) -> bool {
    matches!(chain, "INPUT" | "OUTPUT" | FORWARD | PODS | FENCE | "CNI-ISOLATION-STAGE-2")
}

/// Adds the rules that let these addresses pass, where there is a chain to pass; what stands already is left.
pub(super) fn put(
    nft: &mut Nft,
    addresses: &[IpAddr],
    admin_chain: &str,
    transaction: &mut Transaction,
) -> Result<(), Error> {
    for version in [IpVersion::V4, IpVersion::V6] {
        let own: Vec<IpAddr> =
            addresses.iter().filter(|address| IpVersion::of(**address) == version).copied().collect();
        let table = table(version);
        if own.is_empty() || !nft.holds_chains(&[(&table, Some(FORWARD))])?[0] {
            continue;
        }
        // Made only once, so that of several first pods one puts in the jumps.
        let pods = Chain::regular(PODS);
        match nft.holds_chains(&[(&table, Some(PODS))])?[0] {
            true => transaction.add_chain(&table, &pods),
            false => transaction.create_chain(&table, &pods),
        };
        transaction.add_chain(&table, &Chain::regular(admin_chain));
        let entered = nft.foreign_rules(&table, Some(FORWARD))?;
        if !leads_to(&entered, PODS) {
            let jump = jump(PODS, PODS_COMMENT);
            transaction.add_iptables_rule(&table, FORWARD, &jump, true);
        }
        let rules = nft.foreign_rules(&table, Some(PODS))?;
        if !leads_to(&rules, admin_chain) {
            let jump = jump(admin_chain, ADMIN_COMMENT);
            transaction.add_iptables_rule(&table, PODS, &jump, true);
        }
        for address in own {
            let accept = IptablesRule::new(Verdict::Accept);
            if !rules.iter().any(|rule| lets_back(rule, address)) {
                let back = IptablesRule { destination: Some(address), tracked: true, ..accept.clone() };
                transaction.add_iptables_rule(&table, PODS, &back, false);
            }
            if !rules.iter().any(|rule| lets_out(rule, address)) {
                let out = IptablesRule { source: Some(address), ..accept };
                transaction.add_iptables_rule(&table, PODS, &out, false);
            }
        }
    }
    Ok(())
}

/// Adds the deletion of the rules for these addresses.
pub(super) fn leave(nft: &mut Nft, addresses: &[IpAddr], transaction: &mut Transaction) -> Result<(), Error> {
    let mut versions: Vec<IpVersion> = addresses.iter().map(|address| IpVersion::of(*address)).collect();
    versions.sort_unstable();
    versions.dedup();
    for version in versions {
        let table = table(version);
        for rule in nft.foreign_rules(&table, Some(PODS))? {
            if addresses.iter().any(|address| is_about(&rule, *address)) {
                transaction.delete_rule(&table, PODS, rule.place);
            }
        }
    }
    Ok(())
}

/// Removes the rules for these addresses that came through the older interface of iptables.
pub(super) fn remove_older(addresses: &[IpAddr]) -> Result<(), Error> {
    for version in [IpVersion::V4, IpVersion::V6] {
        if !addresses.iter().any(|address| IpVersion::of(*address) == version) {
            continue;
        }
        let Some(mut table) = Table::read(version, TABLE)? else { continue };
        let stale = |rule: &ForeignRule| {
            rule.chain == PODS && addresses.iter().any(|address| is_about(rule, *address))
        };
        if table.rules().iter().any(stale) {
            table.remove(stale, |_| false)?;
        }
    }
    Ok(())
}

/// Whether an address is let pass, in the table of either interface; `None` where the chain for that is not there:
/// it is made for the first pod after iptables has made its own.
pub(super) fn stands(nft: &mut Nft, address: IpAddr) -> Result<Option<bool>, Error> {
    let version = IpVersion::of(address);
    let key = table(version);
    let passes = |rules: &[ForeignRule]| {
        rules.iter().any(|rule| lets_back(rule, address)) && rules.iter().any(|rule| lets_out(rule, address))
    };
    let in_nft = nft.holds_chains(&[(&key, Some(PODS))])?[0];
    if in_nft {
        let entered = nft.foreign_rules(&key, Some(FORWARD))?;
        if leads_to(&entered, PODS) && passes(&nft.foreign_rules(&key, Some(PODS))?) {
            return Ok(Some(true));
        }
    }
    let older = Table::read(version, TABLE)?.map(|table| table.rules()).unwrap_or_default();
    if leads_to(&older, PODS) && passes(&older) {
        return Ok(Some(true));
    }
    Ok(in_nft.then_some(false))
}

/// Whether the reference keeps this bridge from the others as asked, in every table that there is.
pub(super) fn fences(nft: &mut Nft, fence: Fence) -> Result<bool, Error> {
    let bridge = fence.bridge.as_str().as_bytes();
    let isolated = |rules: &[ForeignRule]| {
        let about = rules.iter().filter(|rule| rule.chain == FENCE && rule.mentions(bridge));
        let wanted = if fence.ingress == Ingress::Isolated { 2 } else { 1 };
        about.count() >= wanted && leads_to(rules, FENCE)
    };
    let mut stands = false;
    for version in [IpVersion::V4, IpVersion::V6] {
        let mut rules = nft.foreign_rules(&table(version), Some(FORWARD))?;
        rules.extend(nft.foreign_rules(&table(version), Some(FENCE))?);
        let older = Table::read(version, TABLE)?.map(|table| table.rules()).unwrap_or_default();
        stands |= isolated(&rules) || isolated(&older);
    }
    Ok(stands)
}

pub(super) fn table(version: IpVersion) -> TableKey {
    let family = match version {
        IpVersion::V4 => Family::Ip,
        IpVersion::V6 => Family::Ip6,
    };
    TableKey::new(family, TABLE)
}

fn jump<'a>(chain: &str, comment: &'a str) -> IptablesRule<'a> {
    IptablesRule { comment: Some(comment), ..IptablesRule::new(Verdict::Jump(chain.to_owned())) }
}

fn leads_to(rules: &[ForeignRule], chain: &str) -> bool {
    rules.iter().any(|rule| rule.jump.as_deref() == Some(chain))
}

fn is_about(rule: &ForeignRule, address: IpAddr) -> bool {
    let compares = |bytes: &[u8]| rule.parts.iter().any(|part| part.name == "cmp" && part.bytes == bytes);
    rule.has("accept")
        && match address {
            IpAddr::V4(address) => compares(&address.octets()),
            IpAddr::V6(address) => compares(&address.octets()),
        }
}

fn lets_back(rule: &ForeignRule, address: IpAddr) -> bool {
    is_about(rule, address) && is_tracked(rule)
}

fn lets_out(rule: &ForeignRule, address: IpAddr) -> bool {
    is_about(rule, address) && !is_tracked(rule)
}

fn is_tracked(rule: &ForeignRule) -> bool {
    ["conntrack", "ct", "state"].iter().any(|name| rule.has(name))
}
