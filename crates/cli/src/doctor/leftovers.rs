//! What other pod networks left on the node, or still have there.
//!
//! Read [`Other`] first: a network by the marks of what it makes; [`OTHERS`] are those that are known. Nothing is said
//! to be removed before the last pod of that network is gone: until then it is not left over but in use.
//!
//! Sources: the networks' own sources and documents, for the names that they give.

mod configuration;
mod other;

use std::fs;
use std::path::PathBuf;

use ::agent::host_firewall::{Program, Ruleset};
use anyhow::Error;
use kernel::link::{Kind, Link};
use kernel::route::Route;

use super::Root;
use super::directories::Directories;
use super::network::Network;
use crate::finding::{Finding, Severity};
use other::{OTHERS, Other};

pub(super) use configuration::OWN as OWN_CONFIGURATION;

/// Where host-local keeps addresses, a directory for each network.
pub(super) const ADDRESSES: &str = ::agent::Options::IPAM_DIR;
/// The network of Fairlead's own conflist.
const OWN_NETWORK: &str = "fairlead";

/// Whose link this is by its name, if it is that of another network.
pub(super) fn owner_of_link(name: &str) -> Option<&'static str> {
    OTHERS.iter().find(|other| other.has_link(name)).map(|other| other.name)
}

/// Reads what is not known yet, and judges all.
pub(super) fn examine(
    root: Root<'_>,
    directories: &Directories,
    network: &Network,
    rulesets: &[Ruleset],
) -> Vec<Finding> {
    let foreign: Vec<&Link> = network.foreign_links().collect();
    let mut findings = Vec::new();
    for other in &OTHERS {
        findings.extend(judge_links(other, &foreign));
        findings.extend(judge_routes(other, &network.routes));
        findings.extend(rulesets.iter().filter_map(|ruleset| judge_chains(other, ruleset)));
        let paths = other.files.iter().map(|path| root.at(path)).filter(|path| path.exists());
        findings.extend(paths.map(|path| left_file(other, path)));
    }
    findings.extend(configuration::examine(&directories.conf));
    match address_directories(directories) {
        Ok(found) => {
            findings.extend(found.into_iter().map(|(path, addresses)| judge_addresses(path, addresses)))
        }
        Err(error) => findings.push(Finding::unseen(&directories.addresses, &error)),
    }
    findings
}

/// Said of everything that goes with a network.
fn once_gone(other: &Other, what: &str) -> String {
    format!("once the last pod of {} on this node is gone: {what}", other.name)
}

/// A link, and how many like it.
fn counted(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}

fn judge_links(other: &Other, foreign: &[&Link]) -> Vec<Finding> {
    let of = |veths: bool| -> Vec<&str> {
        let wanted = |link: &&&Link| match (veths, link.kind == Kind::Veth) {
            (true, true) => other.has_pod_link(&link.name),
            (false, _) => other.has_own_link(&link.name) && !is_idle(link),
            (true, false) => false,
        };
        foreign.iter().filter(wanted).map(|link| link.name.as_str()).collect()
    };
    let (own, pods) = (of(false), of(true));
    let mut findings = Vec::new();
    if !own.is_empty() {
        let commands: Vec<String> = own.iter().map(|name| format!("ip link delete {name}")).collect();
        findings.push(Finding::warning(
            counted(&own),
            format!("a link of {}: its routes and addresses compete with Fairlead's", other.name),
            once_gone(other, &commands.join("; ")),
        ));
    }
    if !pods.is_empty() {
        findings.push(Finding::warning(
            counted(&pods),
            format!("{} still wired by {}: Fairlead does not carry them", pods_text(pods.len()), other.name),
            "delete these pods, so that they are made anew with Fairlead",
        ));
    }
    findings
}

fn pods_text(count: usize) -> String {
    if count == 1 { "a pod is".to_owned() } else { format!("{count} pods are") }
}

/// A device that the kernel makes by itself in every namespace as soon as the module is loaded.
fn is_idle(link: &Link) -> bool {
    link.name == "tunl0" && !link.is_up()
}

fn judge_routes(other: &Other, routes: &[Route]) -> Vec<Finding> {
    let judge = |(number, name): &(u8, &str)| {
        let found: Vec<&Route> = routes.iter().filter(|route| route.protocol == *number).collect();
        let first = found.first()?;
        Some(Finding::warning(
            format!("route {}", first.destination),
            format!(
                "{} of protocol {name}, as {} makes: they lead packets away from Fairlead",
                if found.len() == 1 { "a route".to_owned() } else { format!("{} routes", found.len()) },
                other.name
            ),
            once_gone(other, &format!("ip route flush proto {number}; ip -6 route flush proto {number}")),
        ))
    };
    other.protocols.iter().filter_map(judge).collect()
}

fn judge_chains(other: &Other, ruleset: &Ruleset) -> Option<Finding> {
    let table = ruleset.name.rsplit(' ').next().unwrap_or_default();
    if let Some(prefix) = other.tables.iter().find(|prefix| table.starts_with(**prefix)) {
        let key = ruleset.name.strip_prefix("nf_tables ").unwrap_or(&ruleset.name);
        return Some(Finding::warning(
            &ruleset.name,
            format!("a table of {} ({prefix}*): its rules still see every packet", other.name),
            once_gone(other, &format!("nft delete table {key}")),
        ));
    }
    let own = |chain: &&String| other.chains.iter().any(|prefix| chain.starts_with(prefix));
    let chains: Vec<&str> = ruleset.chains.iter().filter(own).map(String::as_str).collect();
    let first = chains.first()?;
    let prefix = other.chains.iter().find(|prefix| first.starts_with(**prefix))?;
    let fix = match &ruleset.program {
        Program::Iptables(program, table) => {
            format!("{program}-save -t {table} | grep -v {prefix} | {program}-restore")
        }
        Program::Nft => format!("remove them, and the rules that jump to them: nft -a list table {table}"),
    };
    Some(Finding::warning(
        format!("{} {}", ruleset.name, counted(&chains)),
        format!("chains of {}: their rules still see the packets of pods", other.name),
        once_gone(other, &fix),
    ))
}

fn left_file(other: &Other, path: PathBuf) -> Finding {
    let fix = once_gone(other, &format!("rm -r {}", path.display()));
    Finding::new(Severity::Note, path, format!("{} left this", other.name), fix)
}

/// The directories of other networks with the addresses that are still written down there.
fn address_directories(directories: &Directories) -> Result<Vec<(PathBuf, usize)>, Error> {
    let entries = match fs::read_dir(&directories.addresses) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::new(error).context("list the networks that have addresses")),
    };
    let mut found = Vec::new();
    for entry in entries.flatten().filter(|entry| entry.path().is_dir() && entry.file_name() != OWN_NETWORK) {
        let files = fs::read_dir(entry.path()).into_iter().flatten().flatten();
        // Files of addresses are named by them; an IPv6 address has colons, or underscores from newer writers.
        let is_address = |name: &str| name.replace('_', ":").parse::<std::net::IpAddr>().is_ok();
        let addresses = files.filter(|file| file.file_name().to_str().is_some_and(is_address)).count();
        found.push((entry.path(), addresses));
    }
    found.sort();
    Ok(found)
}

fn judge_addresses(path: PathBuf, addresses: usize) -> Finding {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let problem = match addresses {
        0 => format!("the network {name} had its addresses here; none is in use"),
        _ => format!("the network {name} has {addresses} addresses in use by what is written here"),
    };
    let fix = format!("once the last pod of {name} on this node is gone: rm -r {}", path.display());
    Finding::new(Severity::Note, path, problem, fix)
}

#[cfg(test)]
mod tests;
