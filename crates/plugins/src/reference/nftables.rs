//! What the reference keeps in nf_tables tables of its own.
//!
//! Read [`masqueraded`], [`mapped`] and [`filtered`]: what of a table is an attachment's. Masquerading is one rule
//! for each address, whose comment begins with digests of network, interface and container. Mapped ports are
//! rules whose comment is the container alone, so an attachment's are told from those of the container's other
//! networks by its addresses. The hardware address filter has two chains named after container and interface.

use std::net::IpAddr;

use kernel::Error;
use kernel::foreign::ForeignRule;
use kernel::link;
use kernel::netlink::{Protocol, Socket};
use kernel::nft::Nft;
use netstate::nft::{Family, IpVersion, TableKey};
use netstate::{LinkName, Mac};

use super::{Doomed, Traces, is_about, network_comment, octets};
use crate::attachment::Leaving;
use crate::meta::portmap::HostPort;
use crate::owner::Owner;

const SPOOF_CHAIN: &str = "PREROUTING";
const SPOOF_PREFIX: &str = "cni-br-iface-";

pub(super) fn masquerade_table() -> TableKey {
    TableKey::new(Family::Inet, "cni_plugins_masquerade")
}

pub(super) fn host_ports_table(version: IpVersion) -> TableKey {
    let family = match version {
        IpVersion::V4 => Family::Ip,
        IpVersion::V6 => Family::Ip6,
    };
    TableKey::new(family, "cni_hostport")
}

pub(super) fn spoof_table() -> TableKey {
    TableKey::new(Family::Bridge, "nat")
}

/// The attachment's masquerading.
pub(super) fn masqueraded(nft: &mut Nft, table: &TableKey, traces: &Traces) -> Result<Doomed, Error> {
    commented(nft, table, |comment| is_masquerade_of(traces, comment))
}

/// The masquerading of a network that is of none of these.
pub(super) fn stale(
    nft: &mut Nft,
    table: &TableKey,
    network: &str,
    valid: &[Owner],
) -> Result<Doomed, Error> {
    let prefix = network_comment(network);
    let valid: Vec<Traces> = valid.iter().map(Traces::of).collect();
    commented(nft, table, |comment| {
        comment.starts_with(&prefix) && !valid.iter().any(|traces| is_masquerade_of(traces, comment))
    })
}

fn is_masquerade_of(traces: &Traces, comment: &str) -> bool {
    comment.strip_prefix(&traces.masquerade_comment).is_some_and(|rest| rest.starts_with(','))
}

fn commented(nft: &mut Nft, table: &TableKey, doomed: impl Fn(&str) -> bool) -> Result<Doomed, Error> {
    let mut rules = nft.foreign_rules(table, None)?;
    rules.retain(|rule| rule.comment.as_deref().is_some_and(&doomed));
    Ok(Doomed { rules, chains: Vec::new() })
}

/// The attachment's mapped ports: all of the container's when its addresses are not known.
pub(super) fn mapped(
    nft: &mut Nft,
    table: &TableKey,
    traces: &Traces,
    leaving: &Leaving<'_>,
) -> Result<Doomed, Error> {
    let mut rules = nft.foreign_rules(table, None)?;
    rules.retain(|rule| rule.comment.as_ref() == Some(&traces.container_id) && is_about(rule, leaving));
    Ok(Doomed { rules, chains: Vec::new() })
}

/// The attachment's hardware address filter.
pub(super) fn filtered(nft: &mut Nft, table: &TableKey, traces: &Traces) -> Result<Doomed, Error> {
    let mut rules = nft.foreign_rules(table, Some(SPOOF_CHAIN))?;
    rules.retain(|rule| rule.jump.as_ref() == Some(&traces.spoof_check[0]));
    let names = nft.chain_names(table)?;
    let chains = traces.spoof_check.iter().filter(|chain| names.contains(chain)).cloned().collect();
    Ok(Doomed { rules, chains })
}

/// Hardware address filters of ports that are gone, and of nobody who is valid. Their network is not told, but a
/// filter without its port is nobody's any more: such a port's name is made at random for each pod.
pub(super) fn unplugged(nft: &mut Nft, table: &TableKey, valid: &[Owner]) -> Result<Doomed, Error> {
    let jumps = nft.foreign_rules(table, Some(SPOOF_CHAIN))?;
    if !jumps.iter().any(|rule| leads_to_filter(rule).is_some()) {
        return Ok(Doomed::default());
    }
    let names = nft.chain_names(table)?;
    let valid: Vec<Traces> = valid.iter().map(Traces::of).collect();
    let mut host = Socket::open(Protocol::Route)?;
    let mut doomed = Doomed::default();
    for rule in jumps {
        let Some(chain) = leads_to_filter(&rule).map(str::to_owned) else { continue };
        let is_valid = valid.iter().any(|traces| traces.spoof_check[0] == chain);
        if is_valid || !port_is_gone(&mut host, &rule)? {
            continue;
        }
        let chains = [format!("{chain}-mac"), chain].into_iter().filter(|chain| names.contains(chain));
        doomed.chains.extend(chains);
        doomed.rules.push(rule);
    }
    Ok(doomed)
}

fn leads_to_filter(rule: &ForeignRule) -> Option<&str> {
    let is_theirs = rule.comment.as_deref().is_some_and(|comment| comment.starts_with("macspoofchk-"));
    rule.jump.as_deref().filter(|chain| is_theirs && chain.starts_with(SPOOF_PREFIX))
}

/// Whether the rule compares with the name of one link, which is not there.
fn port_is_gone(host: &mut Socket, rule: &ForeignRule) -> Result<bool, Error> {
    let mut compared = rule.parts.iter().filter(|part| part.name == "cmp");
    let name = compared.next().and_then(|part| std::str::from_utf8(&part.bytes).ok());
    let Some(name) = name.map(|name| name.trim_end_matches('\0')).filter(|name| !name.is_empty()) else {
        return Ok(false);
    };
    Ok(link::find(host, name)?.is_none())
}

/// Whether the table for masquerading has a rule for this address of the attachment.
pub(super) fn masquerades(nft: &mut Nft, traces: &Traces, address: IpAddr) -> Result<bool, Error> {
    let rules = nft.foreign_rules(&masquerade_table(), None)?;
    Ok(rules.iter().any(|rule| {
        rule.comment.as_deref().is_some_and(|comment| is_masquerade_of(traces, comment))
            && rule.has("masq")
            && rule.mentions(&octets(address))
    }))
}

/// Whether the table for mapped ports has this one of the container.
pub(super) fn maps(nft: &mut Nft, traces: &Traces, port: &HostPort) -> Result<bool, Error> {
    let rules = nft.foreign_rules(&host_ports_table(IpVersion::of(port.pod)), None)?;
    let wanted = [port.port.to_be_bytes().to_vec(), port.pod_port.to_be_bytes().to_vec(), octets(port.pod)];
    Ok(rules.iter().any(|rule| {
        rule.comment.as_ref() == Some(&traces.container_id)
            && rule.has("nat")
            && rule.mentions(&[port.protocol])
            && wanted.iter().all(|bytes| rule.mentions(bytes))
    }))
}

/// Whether the reference's hardware address filter of the attachment is whole.
///
/// # Errors
/// When the kernel refuses to tell.
pub(crate) fn spoof_check_stands(
    nft: &mut Nft,
    owner: &Owner,
    port: LinkName,
    mac: Mac,
) -> Result<bool, Error> {
    let [entry, filter] = Traces::of(owner).spoof_check;
    let rules = nft.foreign_rules(&spoof_table(), None)?;
    let jumps = |from: &str, to: &str| {
        rules.iter().filter(|rule| rule.chain == from).any(|rule| rule.jump.as_deref() == Some(to))
    };
    let leads = rules.iter().any(|rule| {
        rule.chain == SPOOF_CHAIN
            && rule.jump.as_ref() == Some(&entry)
            && rule.mentions(port.as_str().as_bytes())
    });
    let inside: Vec<_> = rules.iter().filter(|rule| rule.chain == filter).collect();
    let admits = inside.iter().any(|rule| rule.has("return") && rule.mentions(&mac.0));
    let drops = inside.last().is_some_and(|rule| rule.has("drop"));
    Ok(leads && jumps(&entry, &filter) && admits && drops)
}
