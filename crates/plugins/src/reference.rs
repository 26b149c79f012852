//! What the reference plugins leave in a host's packet filters: recognised by CHECK, removed by DEL and GC.
//!
//! Read [`Traces`] first: the names and comments under which they keep the rules of one attachment. A node whose
//! plugins are exchanged for ours has pods that the reference wired; they must stay sound until they go, and then
//! leave nothing. Two places each have a file: `iptables` (masquerading and mapped ports as chains of table `nat`,
//! whichever of the two kernel interfaces iptables used) and `nftables` (their own nf_tables tables, and the
//! hardware address filter). What of the latter names no network is collected by `unclaimed`. Links and address files need no telling apart: see [`crate::attachment`] and
//! host-local.
//!
//! What stays true: what can be another attachment's is not touched; chains that all attachments share stay; on a
//! host where the reference never was, a DEL pays one send for asking.
//! Sources: the reference plugins' behaviour, seen with Debian's 1.1.1 and the newest of April 2026.

mod iptables;
mod nftables;
mod unclaimed;

use std::net::IpAddr;

use cni::Request;
use kernel::Error;
use kernel::foreign::ForeignRule;
use kernel::nft::{Nft, Transaction};
use netstate::nft::{Family, IpVersion, TableKey};
use sha2::{Digest, Sha512};

use crate::attachment::Leaving;
use crate::meta::portmap::HostPort;
use crate::owner::{Owner, hexadecimal};

pub(crate) use iptables::{collect_older, remove_older};
pub(crate) use nftables::spoof_check_stands;

/// How often it is looked again when others remove the same rules at the same time.
const ATTEMPTS: usize = 10;

/// Which of an attachment's rules are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Masquerading (`ipMasq`).
    Masquerade,
    /// The hardware address filter (`macspoofchk`).
    SpoofCheck,
    /// Mapped ports (`portmap`).
    HostPorts,
}

/// All of them.
pub(crate) const EVERYTHING: &[Part] = &[Part::Masquerade, Part::SpoofCheck, Part::HostPorts];

/// Those of the plugins that make a cable.
pub(crate) const OF_CABLES: &[Part] = &[Part::Masquerade, Part::SpoofCheck];

/// The names under which the reference keeps the rules of one attachment.
#[derive(Debug)]
struct Traces {
    /// The chain that masquerades, of network and container.
    masquerade: String,
    /// The chain of mapped ports, and one that old versions had beside it.
    host_ports: [String; 2],
    /// The chains of the hardware address filter, of container and interface.
    spoof_check: [String; 2],
    /// How the comments begin in the table for masquerading.
    masquerade_comment: String,
    /// The comment of mapped ports in the tables for those: the container and nothing else.
    container_id: String,
}

impl Traces {
    fn of(owner: &Owner) -> Self {
        let (container_id, ifname) = (owner.container_id(), owner.ifname());
        let digest = digest(&[owner.network(), container_id]);
        let chain = |prefix: &str| format!("{prefix}{}", &digest[..28 - prefix.len()]);
        let spoof = format!("cni-br-iface-{container_id}-{ifname}");
        Self {
            masquerade: chain("CNI-"),
            host_ports: [chain("CNI-DN-"), chain("CNI-SN-")],
            spoof_check: [spoof.clone(), format!("{spoof}-mac")],
            masquerade_comment: format!(
                "{}{}",
                network_comment(owner.network()),
                &self::digest(&[ifname, ":", container_id])[..16]
            ),
            container_id: container_id.to_owned(),
        }
    }
}

/// How every comment of a network begins in the table for masquerading.
fn network_comment(network: &str) -> String {
    format!("{}-", &digest(&[network])[..16])
}

fn digest(parts: &[&str]) -> String {
    let mut digest = Sha512::new();
    parts.iter().for_each(|part| digest.update(part.as_bytes()));
    hexadecimal(&digest.finalize())
}

/// The network and the container in a comment such as `dnat name: "net" id: "container"`; `None` for any other.
fn named_in(comment: &str) -> Option<(&str, &str)> {
    let comment = comment.strip_prefix("dnat ").unwrap_or(comment);
    comment.strip_prefix("name: \"")?.strip_suffix('"')?.split_once("\" id: \"")
}

/// Rules to delete by handle, and chains to delete with all that is in them.
#[derive(Debug, Default)]
struct Doomed {
    rules: Vec<ForeignRule>,
    chains: Vec<String>,
}

impl Doomed {
    fn take(&mut self, other: Self) {
        self.rules.extend(other.rules);
        self.chains.extend(other.chains);
    }

    /// The jumps first, then what they lead to.
    fn delete(&self, table: &TableKey, transaction: &mut Transaction) {
        for rule in self.rules.iter().filter(|rule| !self.chains.contains(&rule.chain)) {
            transaction.delete_rule(table, &rule.chain, rule.place);
        }
        for chain in &self.chains {
            transaction.flush_chain(table, chain);
        }
        for chain in &self.chains {
            transaction.delete_chain(table, chain);
        }
    }
}

/// Adds the deletion of every rule in nf_tables that the reference made for an attachment.
///
/// # Errors
/// When the kernel refuses to tell.
pub(crate) fn leave(
    nft: &mut Nft,
    leaving: &Leaving<'_>,
    transaction: &mut Transaction,
) -> Result<(), Error> {
    leave_parts(nft, leaving, EVERYTHING, transaction)
}

/// The same of some parts only.
///
/// # Errors
/// When the kernel refuses to tell.
pub(crate) fn leave_parts(
    nft: &mut Nft,
    leaving: &Leaving<'_>,
    parts: &[Part],
    transaction: &mut Transaction,
) -> Result<(), Error> {
    let traces = Traces::of(leaving.owner);
    let places = places(&traces, parts);
    let asked: Vec<(&TableKey, Option<&str>)> =
        places.iter().map(|place| (&place.table, place.chain)).collect();
    let found = nft.holds_chains(&asked)?;
    let mut read: Vec<&TableKey> = Vec::new();
    for (place, _) in places.iter().zip(found).filter(|(_, found)| *found) {
        // Two chains of one table are looked at together.
        if read.contains(&&place.table) {
            continue;
        }
        read.push(&place.table);
        let doomed = match place.kind {
            Place::Iptables => iptables::doomed(nft, &place.table, &traces, leaving, parts)?,
            Place::Masquerade => nftables::masqueraded(nft, &place.table, &traces)?,
            Place::HostPorts => nftables::mapped(nft, &place.table, &traces, leaving)?,
            Place::SpoofCheck => nftables::filtered(nft, &place.table, &traces)?,
        };
        doomed.delete(&place.table, transaction);
    }
    Ok(())
}

/// Removes from nf_tables what the reference made in `network` for containers of which no attachment is among
/// `valid`, as far as its rules say whose they are.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn collect(nft: &mut Nft, network: &str, valid: &[Owner], parts: &[Part]) -> Result<(), Error> {
    let mut attempts = 0..ATTEMPTS;
    loop {
        let mut transaction = Transaction::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let table = nat_table(version);
            let doomed = iptables::stale(nft, &table, (network, valid), parts)?;
            doomed.delete(&table, &mut transaction);
        }
        if parts.contains(&Part::Masquerade) {
            let table = nftables::masquerade_table();
            nftables::stale(nft, &table, network, valid)?.delete(&table, &mut transaction);
        }
        if parts.contains(&Part::SpoofCheck) {
            let table = nftables::spoof_table();
            nftables::unplugged(nft, &table, valid)?.delete(&table, &mut transaction);
        }
        match nft.commit(transaction) {
            // Somebody else removed one of them in between; the others are still there.
            Err(error) if error.is_missing() && attempts.next().is_some() => {}
            other => return other,
        }
    }
}

/// Removes from the reference's own tables the mapped ports of containers that are not valid and that nobody alive
/// has: they name no network.
///
/// # Errors
/// When it cannot be told whose they are, or the kernel refuses.
pub(crate) fn collect_unclaimed(nft: &mut Nft, request: &Request) -> Result<(), cni::Error> {
    unclaimed::collect(nft, request)
}

/// Whether the reference masquerades what this attachment sends from `address`, by any of its ways.
///
/// # Errors
/// When the kernel refuses to tell.
pub(crate) fn masquerade_stands(nft: &mut Nft, owner: &Owner, address: IpAddr) -> Result<bool, Error> {
    let traces = Traces::of(owner);
    Ok(nftables::masquerades(nft, &traces, address)? || iptables::masquerades(nft, &traces, address)?)
}

/// Whether the reference maps this port to the attachment, by any of its ways.
///
/// # Errors
/// When the kernel refuses to tell.
pub(crate) fn host_port_stands(nft: &mut Nft, owner: &Owner, port: &HostPort) -> Result<bool, Error> {
    let traces = Traces::of(owner);
    Ok(nftables::maps(nft, &traces, port)? || iptables::maps(nft, &traces, port)?)
}

/// Where something may be.
struct Asked<'a> {
    table: TableKey,
    chain: Option<&'a str>,
    kind: Place,
}

#[derive(Clone, Copy)]
enum Place {
    Iptables,
    Masquerade,
    HostPorts,
    SpoofCheck,
}

fn places<'a>(traces: &'a Traces, parts: &[Part]) -> Vec<Asked<'a>> {
    let mut places = Vec::new();
    let mut ask = |table, chain, kind| places.push(Asked { table, chain, kind });
    for version in [IpVersion::V4, IpVersion::V6] {
        if parts.contains(&Part::Masquerade) {
            ask(nat_table(version), Some(traces.masquerade.as_str()), Place::Iptables);
        }
        if parts.contains(&Part::HostPorts) {
            for chain in &traces.host_ports {
                ask(nat_table(version), Some(chain), Place::Iptables);
            }
            ask(nftables::host_ports_table(version), None, Place::HostPorts);
        }
    }
    if parts.contains(&Part::Masquerade) {
        ask(nftables::masquerade_table(), None, Place::Masquerade);
    }
    if parts.contains(&Part::SpoofCheck) {
        ask(nftables::spoof_table(), Some(&traces.spoof_check[0]), Place::SpoofCheck);
    }
    places
}

/// The table `nat` of iptables, as nf_tables has it.
fn nat_table(version: IpVersion) -> TableKey {
    let family = match version {
        IpVersion::V4 => Family::Ip,
        IpVersion::V6 => Family::Ip6,
    };
    TableKey::new(family, iptables::TABLE)
}

/// An address as the kernel has it in a rule.
fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Whether a rule is about one of the attachment's addresses; every rule is while these are not known.
fn is_about(rule: &ForeignRule, leaving: &Leaving<'_>) -> bool {
    let Some(addresses) = &leaving.addresses else { return true };
    addresses.iter().any(|net| rule.mentions(&octets(net.addr())))
}

#[cfg(test)]
mod tests {
    use cni::Attachment;

    use super::*;

    #[test]
    fn the_names_are_those_that_the_reference_gives() {
        let attachment = Attachment { container_id: "c1".into(), ifname: "eth0".into() };
        let traces = Traces::of(&Owner::new("test", attachment));
        assert_eq!(traces.masquerade, "CNI-917f9005c929d67b6ac60e32");
        assert_eq!(traces.host_ports, ["CNI-DN-917f9005c929d67b6ac60", "CNI-SN-917f9005c929d67b6ac60"]);
        assert_eq!(traces.spoof_check, ["cni-br-iface-c1-eth0", "cni-br-iface-c1-eth0-mac"]);
        assert_eq!(traces.masquerade_comment, "ee26b0dd4af7e749-f4d01f2ef4b92245");
    }

    #[test]
    fn a_comment_names_its_network_and_container_or_is_nobodys() {
        assert_eq!(named_in(r#"name: "test" id: "c1""#), Some(("test", "c1")));
        assert_eq!(named_in(r#"dnat name: "test" id: "c1""#), Some(("test", "c1")));
        for other in ["", "CNI portfwd requiring masquerade", r#"name: "test" id: "c1"#, r#"name: "test""#] {
            assert_eq!(named_in(other), None, "{other}");
        }
    }
}
