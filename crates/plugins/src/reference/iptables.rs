//! Masquerading and mapped ports as chains of iptables' table `nat`.
//!
//! Read [`find`]: what of a table's rules is an attachment's, whichever interface of the kernel they came through
//! (`iptables-nft` keeps them in nf_tables, `iptables-legacy` in tables of its own). Masquerading is a chain
//! that `POSTROUTING` leads to from each of the pod's addresses; mapped ports are a chain that
//! `CNI-HOSTPORT-DNAT` leads to. Both are named after network and container, not after the interface, so two
//! attachments of one container to one network share them: then only the rules with the own addresses go.

use std::net::IpAddr;

use cni::Attachment;
use kernel::Error;
use kernel::foreign::ForeignRule;
use kernel::nft::Nft;
use kernel::xtables::Table;
use netstate::nft::{IpVersion, TableKey};

use super::{Doomed, Part, Traces, is_about, named_in, nat_table, octets};
use crate::attachment::Leaving;
use crate::meta::portmap::HostPort;
use crate::owner::Owner;

pub(super) const TABLE: &str = "nat";
const POSTROUTING: &str = "POSTROUTING";
const HOST_PORTS: &str = "CNI-HOSTPORT-DNAT";

/// What of the table in nf_tables is the attachment's.
pub(super) fn doomed(
    nft: &mut Nft,
    table: &TableKey,
    traces: &Traces,
    leaving: &Leaving<'_>,
    parts: &[Part],
) -> Result<Doomed, Error> {
    let mut rules = Vec::new();
    let own = [&traces.masquerade, &traces.host_ports[0], &traces.host_ports[1]];
    for chain in [POSTROUTING, HOST_PORTS].into_iter().chain(own.into_iter().map(String::as_str)) {
        rules.extend(nft.foreign_rules(table, Some(chain))?);
    }
    Ok(find(&rules, traces, leaving, parts))
}

/// What of the table in nf_tables is of nobody who is valid.
pub(super) fn stale(
    nft: &mut Nft,
    table: &TableKey,
    whose: (&str, &[Owner]),
    parts: &[Part],
) -> Result<Doomed, Error> {
    if !nft.chain_names(table)?.iter().any(|chain| chain.starts_with("CNI-")) {
        return Ok(Doomed::default());
    }
    Ok(find_stale(&nft.foreign_rules(table, None)?, whose, parts))
}

/// Removes what the reference made for an attachment through the older interface of iptables.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn remove_older(leaving: &Leaving<'_>, parts: &[Part]) -> Result<(), Error> {
    let traces = Traces::of(leaving.owner);
    remove_where(|rules| find(rules, &traces, leaving, parts))
}

/// Removes what the reference made in `network` through the older interface of iptables for containers of which
/// no attachment is among `valid`.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn collect_older(network: &str, valid: &[Owner], parts: &[Part]) -> Result<(), Error> {
    remove_where(|rules| find_stale(rules, (network, valid), parts))
}

fn remove_where(find: impl Fn(&[ForeignRule]) -> Doomed) -> Result<(), Error> {
    for version in [IpVersion::V4, IpVersion::V6] {
        let Some(mut table) = Table::read(version, TABLE)? else { continue };
        let doomed = find(&table.rules());
        if doomed.rules.is_empty() && doomed.chains.is_empty() {
            continue;
        }
        // By content: under the lock the rules may have other numbers than just now.
        let same = |a: &ForeignRule, b: &ForeignRule| {
            a.chain == b.chain && a.jump == b.jump && a.comment == b.comment && a.parts == b.parts
        };
        table.remove(
            |rule| doomed.rules.iter().any(|doomed| same(doomed, rule)),
            |chain| doomed.chains.iter().any(|doomed| doomed == chain),
        )?;
    }
    Ok(())
}

/// What of these rules is the attachment's.
fn find(rules: &[ForeignRule], traces: &Traces, leaving: &Leaving<'_>, parts: &[Part]) -> Doomed {
    let mut doomed = Doomed::default();
    if parts.contains(&Part::Masquerade) {
        doomed.take(masquerading(rules, &traces.masquerade, leaving));
    }
    if parts.contains(&Part::HostPorts) {
        for chain in &traces.host_ports {
            doomed.take(mapping(rules, chain, leaving));
        }
    }
    doomed
}

/// The jumps from the attachment's addresses, and the chain when no other address leads there.
fn masquerading(rules: &[ForeignRule], chain: &str, leaving: &Leaving<'_>) -> Doomed {
    let jumps = rules.iter().filter(|rule| rule.jump.as_deref() == Some(chain));
    let (own, others): (Vec<_>, Vec<_>) = jumps.cloned().partition(|rule| is_about(rule, leaving));
    let is_there = !own.is_empty() || rules.iter().any(|rule| rule.chain == chain);
    let chains = if others.is_empty() && is_there { vec![chain.to_owned()] } else { Vec::new() };
    Doomed { rules: own, chains }
}

/// The chain with all that leads there; or, if it also translates to addresses that are not the attachment's,
/// those rules of it that translate to these.
fn mapping(rules: &[ForeignRule], chain: &str, leaving: &Leaving<'_>) -> Doomed {
    let inside = rules.iter().filter(|rule| rule.chain == chain && translates(rule));
    let (own, others): (Vec<_>, Vec<_>) = inside.cloned().partition(|rule| is_about(rule, leaving));
    if !others.is_empty() {
        return Doomed { rules: own, chains: Vec::new() };
    }
    let jumps: Vec<_> = rules.iter().filter(|rule| rule.jump.as_deref() == Some(chain)).cloned().collect();
    let is_there = !jumps.is_empty() || rules.iter().any(|rule| rule.chain == chain);
    Doomed { rules: jumps, chains: if is_there { vec![chain.to_owned()] } else { Vec::new() } }
}

/// What of these rules says that it is of `network` and of a container that no valid attachment has.
fn find_stale(rules: &[ForeignRule], (network, valid): (&str, &[Owner]), parts: &[Part]) -> Doomed {
    let mut doomed = Doomed::default();
    let mut seen: Vec<&str> = Vec::new();
    for (named, container_id) in rules.iter().filter_map(|rule| named_in(rule.comment.as_deref()?)) {
        let is_valid = || valid.iter().any(|owner| owner.container_id() == container_id);
        if named != network || seen.contains(&container_id) || is_valid() {
            continue;
        }
        seen.push(container_id);
        // Its interface is not told, and not part of the names either.
        let attachment = Attachment { container_id: container_id.to_owned(), ifname: String::new() };
        let owner = Owner::new(network, attachment);
        let leaving = Leaving::new(&owner, None);
        doomed.take(find(rules, &Traces::of(&owner), &leaving, parts));
    }
    doomed
}

/// Whether what `address` sends is masqueraded by the attachment's chain.
pub(super) fn masquerades(nft: &mut Nft, traces: &Traces, address: IpAddr) -> Result<bool, Error> {
    let stands = |rules: &[ForeignRule]| {
        let leads = |rule: &ForeignRule| {
            rule.jump.as_ref() == Some(&traces.masquerade) && rule.mentions(&octets(address))
        };
        let masks = |rule: &ForeignRule| {
            rule.chain == traces.masquerade && (rule.has("MASQUERADE") || rule.has("masq"))
        };
        rules.iter().any(leads) && rules.iter().any(masks)
    };
    anywhere(nft, address, &[POSTROUTING, &traces.masquerade], stands)
}

/// Whether the attachment's chain translates this port, and is reached.
pub(super) fn maps(nft: &mut Nft, traces: &Traces, port: &HostPort) -> Result<bool, Error> {
    let chain = &traces.host_ports[0];
    let stands = |rules: &[ForeignRule]| {
        let leads = |rule: &ForeignRule| rule.jump.as_ref() == Some(chain);
        let translates =
            |rule: &ForeignRule| rule.chain == *chain && translates(rule) && mentions_port(rule, port);
        rules.iter().any(leads) && rules.iter().any(translates)
    };
    anywhere(nft, port.pod, &[HOST_PORTS, chain], stands)
}

fn mentions_port(rule: &ForeignRule, port: &HostPort) -> bool {
    // The tcp and udp matches of iptables keep ports in host order.
    let host = rule.mentions(&port.port.to_be_bytes()) || rule.mentions(&port.port.to_ne_bytes());
    host && rule.mentions(&octets(port.pod)) && rule.mentions(&port.pod_port.to_be_bytes())
}

fn translates(rule: &ForeignRule) -> bool {
    rule.has("DNAT") || rule.has("nat") || rule.has("SNAT")
}

/// Whether it stands among these chains of the address's table, through either interface.
fn anywhere(
    nft: &mut Nft,
    address: IpAddr,
    chains: &[&str],
    stands: impl Fn(&[ForeignRule]) -> bool,
) -> Result<bool, Error> {
    let version = IpVersion::of(address);
    let table = nat_table(version);
    let mut rules = Vec::new();
    for chain in chains {
        rules.extend(nft.foreign_rules(&table, Some(chain))?);
    }
    if stands(&rules) {
        return Ok(true);
    }
    Ok(Table::read(version, TABLE)?.is_some_and(|table| stands(&table.rules())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(chain: &str, jump: &str, address: Option<IpAddr>, name: &str) -> ForeignRule {
        let part =
            kernel::foreign::Part { name: name.to_owned(), bytes: address.map(octets).unwrap_or_default() };
        let jump = Some(jump.to_owned()).filter(|jump| !jump.is_empty());
        ForeignRule { chain: chain.into(), jump, parts: vec![part], ..ForeignRule::default() }
    }

    fn doomed(rules: &[ForeignRule], addresses: Option<&str>) -> Doomed {
        let attachment = Attachment { container_id: "c1".into(), ifname: "eth0".into() };
        let owner = Owner::new("test", attachment);
        let addresses = addresses.map(|address| vec![address.parse().unwrap()]);
        find(rules, &Traces::of(&owner), &Leaving::new(&owner, addresses), super::super::EVERYTHING)
    }

    #[test]
    fn a_chain_that_another_attachment_of_the_container_uses_stays() {
        let (one, two) = ("10.1.2.2".parse().unwrap(), "10.1.2.3".parse().unwrap());
        let (masquerade, ports) = ("CNI-917f9005c929d67b6ac60e32", "CNI-DN-917f9005c929d67b6ac60");
        let shared = [
            rule(POSTROUTING, masquerade, Some(one), "cmp"),
            rule(POSTROUTING, masquerade, Some(two), "cmp"),
            rule(masquerade, "", None, "MASQUERADE"),
            rule(HOST_PORTS, ports, None, "cmp"),
            rule(ports, "", Some(one), "DNAT"),
            rule(ports, "", Some(two), "DNAT"),
        ];
        let of_one = doomed(&shared, Some("10.1.2.2/24"));
        assert_eq!(of_one.chains, [""; 0]);
        assert_eq!(of_one.rules, [shared[0].clone(), shared[4].clone()]);
        let all = doomed(&shared, None);
        assert_eq!(all.chains, [masquerade, ports]);
        assert_eq!(all.rules, [shared[0].clone(), shared[1].clone(), shared[3].clone()]);
        assert_eq!(doomed(&[], None).chains, [""; 0]);
    }
}
