//! The facts about packet filters: what others keep in nf_tables and in the older iptables interface.
//!
//! Read [`Ruleset`]: a table of either, so that those who judge look once.

use std::fs::File;

use anyhow::Error;
use kernel::foreign::ForeignRule;
use kernel::nft::Nft;
use kernel::xtables::{self, Table};
use netstate::nft::{ChainKind, Family as TableFamily, Hook, IpVersion, Policy, TableKey};
use route::Family;

use crate::finding::Finding;

/// A table of somebody else.
#[derive(Debug, Clone, Default)]
pub(super) struct Ruleset {
    /// How it is spoken of: `nf_tables ip filter`, `iptables-legacy filter`.
    pub(super) name: String,
    /// The program that changes it.
    pub(super) program: Program,
    /// The families whose packets it sees.
    pub(super) families: Vec<Family>,
    /// Its chains by name.
    pub(super) chains: Vec<String>,
    /// Those where packets enter to be filtered.
    pub(super) bases: Vec<Base>,
    /// All rules, in order.
    pub(super) rules: Vec<ForeignRule>,
}

/// Who can change a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Program {
    /// `nft`, by the table's family and name.
    #[default]
    Nft,
    /// A program of iptables: `iptables`, `ip6tables-legacy`.
    Iptables(&'static str, String),
}

/// A chain where packets enter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) name: String,
    pub(super) hook: Hook,
    /// Whether what no rule decided on is dropped.
    pub(super) drops: bool,
}

/// Reads the tables of others; what cannot be read is a note.
pub(super) fn read(findings: &mut Vec<Finding>) -> Vec<Ruleset> {
    let mut rulesets = Vec::new();
    match read_nft() {
        Ok(found) => rulesets.extend(found),
        // That there are none is told with the features.
        Err(error) if error.is_unsupported() => {}
        Err(error) => findings.push(Finding::unseen("nf_tables", &Error::from(error))),
    }
    for (version, list) in [(IpVersion::V4, "ip_tables_names"), (IpVersion::V6, "ip6_tables_names")] {
        match read_legacy(version, list) {
            Ok(found) => rulesets.extend(found),
            Err(error) => findings.push(Finding::unseen("iptables-legacy", &error)),
        }
    }
    rulesets
}

fn read_nft() -> Result<Vec<Ruleset>, kernel::Error> {
    let mut nft = Nft::open()?;
    let mut rulesets = Vec::new();
    for key in nft.tables()? {
        let ours = key.name.starts_with(netstate::TABLE_PREFIX);
        if ours || key.family == TableFamily::Bridge {
            continue;
        }
        let chains = nft.chain_names(&key)?;
        let bases = nft.base_chains(&key)?.into_iter().filter(|(_, base)| base.kind == ChainKind::Filter);
        rulesets.push(Ruleset {
            name: format!("nf_tables {key}"),
            program: program_of(&key, &chains),
            families: families(key.family),
            bases: bases
                .map(|(name, base)| Base { name, hook: base.hook, drops: base.policy == Policy::Drop })
                .collect(),
            rules: nft.foreign_rules(&key, None)?,
            chains,
        });
    }
    Ok(rulesets)
}

/// Tables of iptables have the names of its tables, and its chains.
fn program_of(key: &TableKey, chains: &[String]) -> Program {
    const TABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];
    const CHAINS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
    let by_iptables =
        TABLES.contains(&key.name.as_str()) && chains.iter().any(|chain| CHAINS.contains(&chain.as_str()));
    match key.family {
        TableFamily::Ip if by_iptables => Program::Iptables("iptables", key.name.clone()),
        TableFamily::Ip6 if by_iptables => Program::Iptables("ip6tables", key.name.clone()),
        _ => Program::Nft,
    }
}

fn families(family: TableFamily) -> Vec<Family> {
    match family {
        TableFamily::Ip => vec![Family::V4],
        TableFamily::Ip6 => vec![Family::V6],
        TableFamily::Inet | TableFamily::Bridge => Family::ALL.to_vec(),
    }
}

fn read_legacy(version: IpVersion, list: &str) -> Result<Vec<Ruleset>, Error> {
    // The list is there as soon as the interface is; only root may read it.
    if let Err(error) = File::open(format!("/proc/thread-self/net/{list}"))
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(Error::new(error).context("list the tables of the older iptables interface"));
    }
    let (program, family) = match version {
        IpVersion::V4 => ("iptables-legacy", Family::V4),
        IpVersion::V6 => ("ip6tables-legacy", Family::V6),
    };
    let mut rulesets = Vec::new();
    for name in xtables::names(version) {
        let Some(table) = Table::read(version, &name)? else { continue };
        let dropping = table.dropping_chains();
        let base = |(chain, hook): (&str, Hook)| Base {
            name: chain.to_owned(),
            hook,
            drops: dropping.iter().any(|dropping| dropping == chain),
        };
        let hooks = [("INPUT", Hook::Input), ("FORWARD", Hook::Forward)];
        rulesets.push(Ruleset {
            bases: if name == "filter" { hooks.map(base).to_vec() } else { Vec::new() },
            name: format!("{program} {name}"),
            program: Program::Iptables(program, name),
            families: vec![family],
            chains: table.chains(),
            rules: table.rules(),
        });
    }
    Ok(rulesets)
}
