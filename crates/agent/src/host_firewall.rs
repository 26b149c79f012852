//! What the host's own firewall does to pods' packets, which is told and never changed.
//!
//! Read [`Chain`], then [`HostFirewall`]. A verdict of acceptance in Fairlead's tables does not help against a drop in another
//! one, so what the host's firewall drops is lost; Docker, for one, drops what it does not forward itself. Rules of others are
//! read only so far that an accepting one can be recognised. Where that leaves doubt (sets, addresses that contain the pods')
//! `fairlead doctor`, which asks the same, says so. The agent does not: on a node that works nobody could make such a warning go
//! away, and who sees one every day overlooks the next.
//!
//! The kernel does not tell of the older iptables, and of others' tables it tells too often. So it is looked at with the whole
//! node, and when somebody asks for the status or the metrics; at most every few seconds.

mod ruleset;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use kernel::foreign::ForeignRule;
use netstate::nft::Hook;
use route::Family;

pub use ruleset::{Base, Program, Ruleset, Unread, read};

/// How long what was seen counts.
const FRESH: Duration = Duration::from_secs(5);

/// Parts of a rule that ask for nothing.
const UNCONDITIONAL: [&str; 9] =
    ["immediate", "counter", "accept", "drop", "reject", "REJECT", "log", "LOG", "comment"];
/// Parts that look at the state of the connection, or at a mark, which pods' packets do not have by themselves.
const TRACKING: [&str; 4] = ["ct", "conntrack", "state", "mark"];
/// How links begin that are of others and carry nothing of pods.
const OTHERS: [&str; 5] = ["docker", "br-", "virbr", "podman", "lxdbr"];

/// Whether a chain lets something pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opinion {
    /// A rule for it is there, or the chain accepts anyway.
    Accepts,
    /// No rule for it can be seen, but some that might be.
    Unclear,
    /// Nothing accepts a first packet.
    Drops,
}

/// A chain where packets enter.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a> {
    /// The table that it is in.
    pub ruleset: &'a Ruleset,
    /// The chain.
    pub base: &'a Base,
}

impl<'a> Chain<'a> {
    /// All of these tables.
    pub fn all(rulesets: &'a [Ruleset]) -> impl Iterator<Item = Self> {
        rulesets.iter().flat_map(|ruleset| ruleset.bases.iter().map(move |base| Self { ruleset, base }))
    }

    /// What it does to packets from and to a network of pods.
    #[must_use]
    pub fn for_pods(&self, cidr: IpNet) -> Opinion {
        let network = prefix(cidr);
        self.opinion(|rule| rule.mentions(&network))
    }

    /// What it does to packets for this UDP port.
    #[must_use]
    pub fn for_port(&self, port: u16) -> Opinion {
        self.opinion(|rule| {
            // Native rules have it in network order, matches of iptables in the host's.
            let is_match = rule.has("udp") || rule.has("multiport");
            rule.mentions(&port.to_be_bytes()) || is_match && rule.mentions(&port.to_ne_bytes())
        })
    }

    /// How it is spoken of.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{} {}", self.ruleset.name, self.base.name)
    }

    /// What the chain does to first packets that the rules which are `meant` are for.
    fn opinion(&self, meant: impl Fn(&ForeignRule) -> bool) -> Opinion {
        if !self.is_closed() {
            return Opinion::Accepts;
        }
        let (mut doubt, rules) = (false, self.reachable());
        for (rule, always) in rules {
            let leads_on = rule.has("accept") || rule.jump.is_some();
            if leads_on && meant(rule) || always && rule.has("accept") && is_unconditional(rule) {
                return Opinion::Accepts;
            }
            let narrow = TRACKING.iter().any(|name| rule.has(name)) || is_about_another_link(rule);
            doubt |= rule.has("lookup") || rule.has("accept") && !narrow;
        }
        if doubt { Opinion::Unclear } else { Opinion::Drops }
    }

    /// Whether what no rule accepts is dropped: by the policy, or by the last rule.
    fn is_closed(&self) -> bool {
        let last = self.ruleset.rules.iter().rfind(|rule| rule.chain == self.base.name);
        self.base.drops || last.is_some_and(drops_all)
    }

    /// The rules that a packet can come to, each with whether every packet that comes so far does.
    fn reachable(&self) -> Vec<(&ForeignRule, bool)> {
        let mut todo = vec![(self.base.name.as_str(), true)];
        let mut seen = BTreeSet::new();
        let mut found = Vec::new();
        while let Some((chain, always)) = todo.pop() {
            if !seen.insert((chain, always)) {
                continue;
            }
            for rule in self.ruleset.rules.iter().filter(|rule| rule.chain == chain) {
                found.push((rule, always));
                if let Some(next) = &rule.jump {
                    todo.push((next, always && is_unconditional(rule)));
                }
            }
        }
        found
    }
}

/// Whether nothing passes it.
fn drops_all(rule: &ForeignRule) -> bool {
    ["drop", "reject", "REJECT"].iter().any(|name| rule.has(name)) && is_unconditional(rule)
}

/// Whether every packet matches it.
fn is_unconditional(rule: &ForeignRule) -> bool {
    rule.parts.iter().all(|part| part.name.is_empty() || UNCONDITIONAL.contains(&part.name.as_str()))
}

/// Whether it is about the loopback, or a link of others who have containers here.
fn is_about_another_link(rule: &ForeignRule) -> bool {
    let loopback =
        |bytes: &[u8]| bytes.strip_prefix(b"lo").is_some_and(|rest| rest.iter().all(|byte| *byte == 0));
    let others = |bytes: &[u8]| OTHERS.iter().any(|name| bytes.starts_with(name.as_bytes()));
    rule.parts.iter().any(|part| part.name == "cmp" && (loopback(&part.bytes) || others(&part.bytes)))
}

/// The bytes of a network that a rule compares: whole ones of its prefix, or all where it ends within a byte.
fn prefix(cidr: IpNet) -> Vec<u8> {
    let octets = match cidr.network() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let length = usize::from(cidr.prefix_len());
    if length % 8 == 0 { octets[..length / 8].to_vec() } else { octets }
}

/// What was seen last of the host's firewall.
#[derive(Debug, Default)]
pub(crate) struct HostFirewall {
    looked: Option<Instant>,
    closed: Vec<String>,
}

impl HostFirewall {
    /// The chains that drop whatever pods of one of these networks send to other nodes or get from them, each in words. What cannot be
    /// read is no reason to say anything: `fairlead doctor` does.
    pub(crate) fn closed(&mut self, networks: &[IpNet], now: Instant) -> &[String] {
        if self.looked.is_none_or(|then| now >= then + FRESH) {
            self.looked = Some(now);
            self.closed = closed(&read(Some(Hook::Forward)).0, networks);
        }
        &self.closed
    }

    /// The same as it was seen last, for who has no time to look.
    pub(crate) fn known(&self) -> &[String] {
        &self.closed
    }
}

fn closed(rulesets: &[Ruleset], networks: &[IpNet]) -> Vec<String> {
    let forwards = Chain::all(rulesets).filter(|chain| chain.base.hook == Hook::Forward);
    let told = forwards.filter_map(|chain| {
        let sees = |net: &&IpNet| chain.ruleset.families.contains(&Family::of_net(net));
        let dropped = networks.iter().filter(sees).filter(|net| chain.for_pods(**net) == Opinion::Drops);
        let dropped: Vec<String> = dropped.map(ToString::to_string).collect();
        (!dropped.is_empty()).then(|| {
            format!(
                "carry pods' packets through the host's firewall: {} drops what it does not accept, and accepts nothing from \
                 or to pods in {}\nhint: `fairlead doctor` says what to add to it",
                chain.name(),
                dropped.join(" and ")
            )
        })
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use kernel::foreign::Part;

    use super::*;

    #[test]
    fn a_forwarding_chain_that_accepts_nothing_for_pods_is_told_once_with_the_networks_that_it_sees() {
        let accept = Part { name: "accept".into(), bytes: Vec::new() };
        let pods = Part { name: "cmp".into(), bytes: vec![10, 244] };
        let rule = |parts| ForeignRule { chain: "FORWARD".into(), parts, ..ForeignRule::default() };
        let base = |hook, drops| Base { name: "FORWARD".into(), hook, drops };
        let ruleset = |hook, drops, rules| Ruleset {
            name: "nf_tables ip filter".into(),
            families: vec![Family::V4],
            bases: vec![base(hook, drops)],
            rules,
            ..Ruleset::default()
        };
        let networks = ["10.244.0.0/16", "fd00:10:244::/48"].map(|net| net.parse().unwrap());
        let found = |ruleset| closed(&[ruleset], &networks);
        let told = found(ruleset(Hook::Forward, true, Vec::new()));
        assert!(told.len() == 1 && told[0].contains("nf_tables ip filter FORWARD"), "{told:?}");
        assert!(told[0].contains("pods in 10.244.0.0/16\n"), "{told:?}");
        let families = vec![Family::V4, Family::V6];
        let told = found(Ruleset { families, ..ruleset(Hook::Forward, true, Vec::new()) });
        assert!(told.len() == 1 && told[0].contains("in 10.244.0.0/16 and fd00:10:244::/48\n"), "{told:?}");
        for open in [
            ruleset(Hook::Forward, false, Vec::new()),
            ruleset(Hook::Input, true, Vec::new()),
            ruleset(Hook::Forward, true, vec![rule(vec![pods, accept])]),
            // What it is for cannot be told.
            ruleset(Hook::Forward, true, vec![rule(vec![Part { name: "lookup".into(), bytes: Vec::new() }])]),
        ] {
            assert!(found(open).is_empty());
        }
    }

    #[test]
    fn a_prefix_that_ends_within_a_byte_is_compared_whole() {
        assert_eq!(prefix("10.244.0.0/16".parse().unwrap()), [10, 244]);
        assert_eq!(prefix("10.244.0.0/15".parse().unwrap()), [10, 244, 0, 0]);
    }
}
