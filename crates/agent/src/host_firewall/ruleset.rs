//! The facts about packet filters: what others keep in nf_tables and in the older iptables interface.
//!
//! Read [`Ruleset`]: a table of either, so that those who judge look once.

use std::fs::File;

use kernel::foreign::ForeignRule;
use kernel::nft::Nft;
use kernel::xtables::{self, Table};
use netstate::nft::{BaseChain, ChainKind, Family as TableFamily, Hook, IpVersion, Policy, TableKey};
use route::Family;

use crate::report::told;

/// A table of somebody else.
#[derive(Debug, Clone, Default)]
pub struct Ruleset {
    /// How it is spoken of: `nf_tables ip filter`, `iptables-legacy filter`.
    pub name: String,
    /// The program that changes it.
    pub program: Program,
    /// The families whose packets it sees.
    pub families: Vec<Family>,
    /// Its chains by name.
    pub chains: Vec<String>,
    /// Those where packets enter to be filtered.
    pub bases: Vec<Base>,
    /// All rules, in order.
    pub rules: Vec<ForeignRule>,
}

/// Who can change a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Program {
    /// `nft`, by the table's family and name.
    #[default]
    Nft,
    /// A program of iptables: `iptables`, `ip6tables-legacy`.
    Iptables(&'static str, String),
}

/// A chain where packets enter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Its name.
    pub name: String,
    /// Where they enter.
    pub hook: Hook,
    /// Whether what no rule decided on is dropped.
    pub drops: bool,
}

/// What could not be read, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unread {
    /// The interface.
    pub what: &'static str,
    /// Why, as text.
    pub why: String,
}

/// Reads the tables of others: all, or those that matter to packets that enter at this hook, of nf_tables only if they drop what
/// nothing accepts.
#[must_use]
pub fn read(only: Option<Hook>) -> (Vec<Ruleset>, Vec<Unread>) {
    let (mut rulesets, mut unread) = (Vec::new(), Vec::new());
    match read_nft(only) {
        Ok(found) => rulesets.extend(found),
        // That there are none is told with the features.
        Err(error) if error.is_unsupported() => {}
        Err(error) => unread.push(Unread { what: "nf_tables", why: told(&error) }),
    }
    for (version, list) in [(IpVersion::V4, "ip_tables_names"), (IpVersion::V6, "ip6_tables_names")] {
        match read_legacy(version, list, only.is_some()) {
            Ok(found) => rulesets.extend(found),
            Err(why) => unread.push(Unread { what: "iptables-legacy", why }),
        }
    }
    (rulesets, unread)
}

fn read_nft(only: Option<Hook>) -> Result<Vec<Ruleset>, kernel::Error> {
    let mut nft = Nft::open()?;
    let mut rulesets = Vec::new();
    for key in nft.tables()? {
        if netstate::is_our_table(&key.name) || key.family == TableFamily::Bridge {
            continue;
        }
        let bases: Vec<_> =
            nft.base_chains(&key)?.into_iter().filter(|(_, base)| base.kind == ChainKind::Filter).collect();
        if let Some(hook) = only
            && !is_closed_at(hook, &mut nft, &key, &bases)?
        {
            continue;
        }
        let chains = nft.chain_names(&key)?;
        rulesets.push(Ruleset {
            name: format!("nf_tables {key}"),
            program: program_of(&key, &chains),
            families: families(key.family),
            bases: bases
                .into_iter()
                .map(|(name, base)| Base { name, hook: base.hook, drops: base.policy == Policy::Drop })
                .collect(),
            rules: nft.foreign_rules(&key, None)?,
            chains,
        });
    }
    Ok(rulesets)
}

/// Whether one of the chains where packets enter at this hook drops what nothing accepts. The other chains are not read for
/// that: kube-proxy keeps all Services in one table.
fn is_closed_at(
    hook: Hook,
    nft: &mut Nft,
    table: &TableKey,
    bases: &[(String, BaseChain)],
) -> Result<bool, kernel::Error> {
    for (name, base) in bases.iter().filter(|(_, base)| base.hook == hook) {
        let closed = base.policy == Policy::Drop
            || nft.foreign_rules(table, Some(name))?.last().is_some_and(super::drops_all);
        if closed {
            return Ok(true);
        }
    }
    Ok(false)
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

fn read_legacy(version: IpVersion, list: &str, filters_only: bool) -> Result<Vec<Ruleset>, String> {
    // The list is there as soon as the interface is; only root may read it.
    if let Err(error) = File::open(format!("/proc/thread-self/net/{list}"))
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(format!("list the tables of the older iptables interface: {error}"));
    }
    let (program, family) = match version {
        IpVersion::V4 => ("iptables-legacy", Family::V4),
        IpVersion::V6 => ("ip6tables-legacy", Family::V6),
    };
    let mut rulesets = Vec::new();
    for name in xtables::names(version) {
        if filters_only && name != "filter" {
            continue;
        }
        let read = Table::read(version, &name).map_err(|error| told(&error))?;
        let Some(table) = read else { continue };
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
