//! Mapped ports in the reference's own nf_tables tables that nobody has any more, and nobody's DEL will take away.
//!
//! Read [`collect`]. The comment of such a rule is a container and nothing else, so it may be of any network. It goes
//! when its container is not valid and nobody alive has an address that it leads to or translates ([`crate::living`]).

use std::net::IpAddr;

use cni::{Error, Request};
use kernel::foreign::ForeignRule;
use kernel::nft::{Nft, Transaction};
use netstate::nft::{IpVersion, TableKey};

use super::{ATTEMPTS, nftables};
use crate::fault::fault;
use crate::living::Living;

/// A rule for a container, with the addresses of pods in it.
struct Mapped {
    table: TableKey,
    rule: ForeignRule,
    addresses: Vec<IpAddr>,
}

/// Removes them.
///
/// # Errors
/// When it cannot be told whose they are, or the kernel refuses.
pub(super) fn collect(nft: &mut Nft, request: &Request) -> Result<(), Error> {
    let mut attempts = 0..ATTEMPTS;
    loop {
        let found = suspects(nft, request).map_err(fault)?;
        if found.is_empty() {
            return Ok(());
        }
        let Some(living) = Living::of(request)? else { return Ok(()) };
        let mut asked: Vec<IpAddr> = found.iter().flat_map(|mapped| mapped.addresses.clone()).collect();
        asked.sort_unstable();
        asked.dedup();
        let nobodys = living.nobodys(nft, asked)?;
        let mut transaction = Transaction::new();
        for Mapped { table, rule, addresses } in &found {
            let may_be_used = rule.comment.as_deref().is_none_or(|of| living.may_have_any_address(of));
            if !may_be_used && addresses.iter().all(|address| nobodys.contains(address)) {
                transaction.delete_rule(table, &rule.chain, rule.place);
            }
        }
        match nft.commit(transaction) {
            // Somebody else removed one of them in between; the others are still there.
            Err(error) if error.is_missing() && attempts.next().is_some() => {}
            other => return other.map_err(fault),
        }
    }
}

/// The rules of containers that are not valid.
fn suspects(nft: &mut Nft, request: &Request) -> Result<Vec<Mapped>, kernel::Error> {
    let valid = request.valid_attachments();
    let mut found = Vec::new();
    for version in [IpVersion::V4, IpVersion::V6] {
        let table = nftables::host_ports_table(version);
        for rule in nft.foreign_rules(&table, None)? {
            let addresses = pods_in(&rule);
            let is_suspect = |of: &str| !of.is_empty() && !valid.iter().any(|valid| valid.container_id == of);
            if !addresses.is_empty() && rule.comment.as_deref().is_some_and(is_suspect) {
                found.push(Mapped { table: table.clone(), rule, addresses });
            }
        }
    }
    Ok(found)
}

/// The addresses of pods in such a rule: what it translates to, or else what it compares with, which is the pod on
/// its way to itself, or this host's loopback on its way to the pod.
fn pods_in(rule: &ForeignRule) -> Vec<IpAddr> {
    let kind = match (rule.has("nat"), rule.has("masq")) {
        (true, _) => "immediate",
        (false, true) => "cmp",
        (false, false) => return Vec::new(),
    };
    let address = |bytes: &[u8]| {
        let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
        four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
    };
    let parts = rule.parts.iter().filter(|part| part.name == kind);
    parts.filter_map(|part| address(&part.bytes)).filter(|address| !address.is_loopback()).collect()
}

#[cfg(test)]
mod tests {
    use kernel::foreign::Part;

    use super::*;

    #[test]
    fn the_pod_is_where_a_port_leads_and_not_where_it_is() {
        let (host, pod, loopback) = ([192, 0, 2, 1], [10, 1, 2, 3], [127, 0, 0, 1]);
        let rule = |parts: &[(&str, &[u8])]| {
            let part = |(name, bytes): &(&str, &[u8])| Part { name: (*name).into(), bytes: bytes.to_vec() };
            ForeignRule { parts: parts.iter().map(part).collect(), ..ForeignRule::default() }
        };
        let leads = rule(&[
            ("cmp", &host),
            ("cmp", &[6]),
            ("cmp", &[31, 144]),
            ("immediate", &pod),
            ("immediate", &[0, 80]),
            ("nat", &[]),
        ]);
        let masks = rule(&[("cmp", &loopback), ("cmp", &pod), ("masq", &[])]);
        let pod: IpAddr = pod.into();
        assert_eq!([pods_in(&leads), pods_in(&masks)], [[pod], [pod]]);
        assert!(pods_in(&rule(&[("cmp", &host), ("immediate", &[])])).is_empty());
    }
}
