//! The host's own firewall: does it let pods and tunnels through.
//!
//! Read [`judge`]. A verdict of acceptance in Fairlead's tables does not help against a drop in another one, so what the
//! host's firewall drops is lost. Rules of others are read only so far that an accepting one can be recognised; where
//! that leaves doubt (sets, addresses that contain the pods') it is a warning, and where nothing accepts, an error.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ::agent::Config;
use ipnet::IpNet;
use kernel::foreign::ForeignRule;
use netstate::nft::Hook;
use route::Family;

use super::ruleset::{Base, Program, Ruleset};
use crate::finding::{Finding, Severity};

/// Parts of a rule that ask for nothing.
const UNCONDITIONAL: [&str; 9] =
    ["immediate", "counter", "accept", "drop", "reject", "REJECT", "log", "LOG", "comment"];
/// Parts that look at the state of the connection.
const TRACKING: [&str; 3] = ["ct", "conntrack", "state"];

/// Whether a chain lets something pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opinion {
    /// A rule for it is there, or the chain accepts anyway.
    Accepts,
    /// No rule for it can be seen, but some that might be.
    Unclear,
    /// Nothing accepts a first packet.
    Drops,
}

/// What the host's firewall drops that Fairlead needs; `tunnel` is the family that tunnels run over.
pub(super) fn judge(rulesets: &[Ruleset], config: &Config, tunnel: Family) -> Vec<Finding> {
    let mut findings = Vec::new();
    for ruleset in rulesets {
        for base in &ruleset.bases {
            let chain = Chain { ruleset, base };
            match base.hook {
                Hook::Forward => {
                    let seen = |cidr: &&IpNet| ruleset.families.contains(&Family::of_net(cidr));
                    let cidrs = config.cluster.pod_cidrs.iter().filter(seen);
                    findings.extend(cidrs.filter_map(|cidr| chain.judge_pods(*cidr)));
                }
                Hook::Input if ruleset.families.contains(&tunnel) => {
                    findings.extend(chain.judge_tunnel(config.vxlan.port))
                }
                _ => {}
            }
        }
    }
    findings
}

/// A program whose rules are not to be changed behind its back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeper {
    Firewalld,
    Ufw,
}

struct Chain<'a> {
    ruleset: &'a Ruleset,
    base: &'a Base,
}

impl Chain<'_> {
    fn judge_pods(&self, cidr: IpNet) -> Option<Finding> {
        let network = prefix(cidr);
        let severity = severity(self.opinion(|rule| rule.mentions(&network)))?;
        let problem =
            format!("{}from or to the pods' network {cidr}: pods reach no other node", self.drops(severity));
        Some(Finding::new(severity, self.subject(), problem, self.let_pods_through(cidr)))
    }

    fn judge_tunnel(&self, port: u16) -> Option<Finding> {
        let opinion = self.opinion(|rule| {
            // Native rules have it in network order, matches of iptables in the host's.
            let is_match = rule.has("udp") || rule.has("multiport");
            rule.mentions(&port.to_be_bytes()) || is_match && rule.mentions(&port.to_ne_bytes())
        });
        let severity = severity(opinion)?;
        let problem =
            format!("{}for UDP port {port}: no tunnel from other nodes comes in", self.drops(severity));
        Some(Finding::new(severity, self.subject(), problem, self.let_tunnels_in(port)))
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
            let narrow = TRACKING.iter().any(|name| rule.has(name)) || is_about_loopback(rule);
            doubt |= rule.has("lookup") || rule.has("accept") && !narrow;
        }
        if doubt { Opinion::Unclear } else { Opinion::Drops }
    }

    /// Whether what no rule accepts is dropped: by the policy, or by the last rule.
    fn is_closed(&self) -> bool {
        let last = self.ruleset.rules.iter().rfind(|rule| rule.chain == self.base.name);
        let drops = |rule: &ForeignRule| ["drop", "reject", "REJECT"].iter().any(|name| rule.has(name));
        self.base.drops || last.is_some_and(|rule| drops(rule) && is_unconditional(rule))
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

    fn subject(&self) -> String {
        format!("{} {}", self.ruleset.name, self.base.name)
    }

    /// Table and chain, as `nft` takes them.
    fn place(&self) -> String {
        let table = self.ruleset.name.strip_prefix("nf_tables ").unwrap_or(&self.ruleset.name);
        format!("{table} {}", self.base.name)
    }

    fn drops(&self, severity: Severity) -> &'static str {
        match severity {
            Severity::Error => "this chain drops what it does not accept, and accepts nothing ",
            _ => "this chain drops what it does not accept, and no rule is seen ",
        }
    }

    /// Who writes these rules, where it can be told.
    fn keeper(&self) -> Option<Keeper> {
        if self.ruleset.name.ends_with(" firewalld") {
            return Some(Keeper::Firewalld);
        }
        self.ruleset.chains.iter().any(|chain| chain.starts_with("ufw-")).then_some(Keeper::Ufw)
    }

    fn let_tunnels_in(&self, port: u16) -> String {
        match (self.keeper(), &self.ruleset.program) {
            (Some(Keeper::Firewalld), _) => {
                format!("firewall-cmd --permanent --add-port={port}/udp; firewall-cmd --reload")
            }
            (Some(Keeper::Ufw), _) => format!("ufw allow {port}/udp"),
            (None, Program::Iptables(program, _)) => {
                self.permanently(&format!("{program} -I {} -p udp --dport {port} -j ACCEPT", self.base.name))
            }
            (None, Program::Nft) => {
                self.permanently(&format!("nft insert rule {} udp dport {port} accept", self.place()))
            }
        }
    }

    /// From and to the pods.
    fn let_pods_through(&self, cidr: IpNet) -> String {
        let word = if cidr.addr().is_ipv4() { "ip" } else { "ip6" };
        let (chain, place) = (&self.base.name, self.place());
        match (self.keeper(), &self.ruleset.program) {
            (Some(Keeper::Firewalld), _) => {
                format!("firewall-cmd --permanent --zone=trusted --add-source={cidr}; firewall-cmd --reload")
            }
            (Some(Keeper::Ufw), _) => format!("ufw route allow from {cidr}; ufw route allow to {cidr}"),
            (None, Program::Iptables(program, _)) => self.permanently(&format!(
                "{program} -I {chain} -s {cidr} -j ACCEPT; {program} -I {chain} -d {cidr} -j ACCEPT"
            )),
            (None, Program::Nft) => self.permanently(&format!(
                "nft insert rule {place} {word} saddr {cidr} accept; nft insert rule {place} {word} daddr {cidr} accept"
            )),
        }
    }

    fn permanently(&self, commands: &str) -> String {
        format!("{commands}; and the same where the firewall keeps its rules")
    }
}

fn severity(opinion: Opinion) -> Option<Severity> {
    match opinion {
        Opinion::Accepts => None,
        Opinion::Unclear => Some(Severity::Warning),
        Opinion::Drops => Some(Severity::Error),
    }
}

/// Whether every packet matches it.
fn is_unconditional(rule: &ForeignRule) -> bool {
    rule.parts.iter().all(|part| part.name.is_empty() || UNCONDITIONAL.contains(&part.name.as_str()))
}

fn is_about_loopback(rule: &ForeignRule) -> bool {
    let name =
        |bytes: &[u8]| bytes.strip_prefix(b"lo").is_some_and(|rest| rest.iter().all(|byte| *byte == 0));
    rule.parts.iter().any(|part| part.name == "cmp" && name(&part.bytes))
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

#[cfg(test)]
mod tests {
    use super::*;
    use kernel::foreign::{NARROWED, Part};

    fn part(name: &str, bytes: &[u8]) -> Part {
        Part { name: name.into(), bytes: bytes.to_vec() }
    }

    fn rule(chain: &str, parts: &[Part]) -> ForeignRule {
        ForeignRule { chain: chain.into(), parts: parts.to_vec(), ..ForeignRule::default() }
    }

    fn jump(chain: &str, to: &str, parts: &[Part]) -> ForeignRule {
        ForeignRule { jump: Some(to.into()), ..rule(chain, parts) }
    }

    fn ruleset(hook: Hook, drops: bool, rules: &[ForeignRule]) -> Ruleset {
        Ruleset {
            name: "nf_tables inet filter".into(),
            families: vec![Family::V4],
            bases: vec![Base { name: "base".into(), hook, drops }],
            rules: rules.to_vec(),
            ..Ruleset::default()
        }
    }

    fn found(ruleset: &Ruleset) -> Vec<Severity> {
        judge(std::slice::from_ref(ruleset), &Config::default(), Family::V4)
            .iter()
            .map(|finding| finding.severity)
            .collect()
    }

    fn accept() -> Part {
        part("accept", &[])
    }

    fn pods() -> Part {
        part("cmp", &[10, 244])
    }

    #[test]
    fn a_chain_that_accepts_by_its_policy_is_open() {
        assert_eq!(found(&ruleset(Hook::Forward, false, &[])), []);
        assert_eq!(found(&ruleset(Hook::Output, true, &[])), [], "another hook");
    }

    #[test]
    fn a_chain_that_drops_and_accepts_only_what_is_known_already_is_an_error() {
        let tracked = rule("base", &[part("ct", &[]), accept()]);
        let own = rule("base", &[part("cmp", b"lo\0\0"), accept()]);
        let closed = ruleset(Hook::Forward, true, &[tracked, own]);
        assert_eq!(found(&closed), [Severity::Error]);
        let finding = &judge(&[closed], &Config::default(), Family::V4)[0];
        assert_eq!(finding.subject, "nf_tables inet filter base");
        assert!(
            finding.fix.contains("nft insert rule inet filter base ip saddr 10.244.0.0/16 accept"),
            "{finding:#?}"
        );
    }

    #[test]
    fn a_last_rule_that_drops_everything_is_as_good_as_a_policy() {
        let drop = rule("base", &[part("counter", &[]), part("drop", &[])]);
        assert_eq!(found(&ruleset(Hook::Forward, false, std::slice::from_ref(&drop))), [Severity::Error]);
        let some = rule("base", &[part("cmp", &[1]), part("drop", &[])]);
        assert_eq!(found(&ruleset(Hook::Forward, false, &[drop, some])), []);
    }

    #[test]
    fn a_rule_for_the_pods_is_recognised_also_where_it_jumps_on() {
        let direct = rule("base", &[pods(), accept()]);
        assert_eq!(found(&ruleset(Hook::Forward, true, &[direct])), []);
        let legacy = rule("base", &[part("cmp", &[10, 244, 0, 0]), part(NARROWED, &[]), accept()]);
        assert_eq!(found(&ruleset(Hook::Forward, true, &[legacy])), []);
        let away = [jump("base", "pods", &[pods()]), rule("pods", &[accept()])];
        assert_eq!(found(&ruleset(Hook::Forward, true, &away)), []);
    }

    #[test]
    fn rules_that_may_be_for_the_pods_leave_a_doubt() {
        for parts in [vec![part("cmp", &[192, 168]), accept()], vec![part("lookup", &[])]] {
            assert_eq!(found(&ruleset(Hook::Forward, true, &[rule("base", &parts)])), [Severity::Warning]);
        }
        let narrow = [jump("base", "bridge", &[part("cmp", b"docker0")]), rule("bridge", &[accept()])];
        assert_eq!(found(&ruleset(Hook::Forward, true, &narrow)), [Severity::Warning]);
        let wide = [jump("base", "all", &[]), rule("all", &[accept()])];
        assert_eq!(found(&ruleset(Hook::Forward, true, &wide)), []);
    }

    #[test]
    fn the_tunnels_port_is_looked_for_in_the_order_of_its_bytes() {
        let native = rule("base", &[part("cmp", &8472_u16.to_be_bytes()), accept()]);
        let matched = rule("base", &[part("udp", &[8472_u16.to_ne_bytes(), [0, 0]].concat()), accept()]);
        for rule in [native, matched] {
            assert_eq!(found(&ruleset(Hook::Input, true, &[rule])), []);
        }
        let closed = ruleset(Hook::Input, true, &[]);
        assert_eq!(found(&closed), [Severity::Error]);
        assert_eq!(judge(&[closed], &Config::default(), Family::V6), [], "it does not see the tunnels");
        let other = Ruleset {
            program: Program::Iptables("iptables-legacy", "filter".into()),
            ..ruleset(Hook::Input, true, &[])
        };
        let finding = &judge(&[other], &Config::default(), Family::V4)[0];
        assert!(
            finding.fix.starts_with("iptables-legacy -I base -p udp --dport 8472 -j ACCEPT"),
            "{finding:#?}"
        );
    }

    #[test]
    fn rules_that_a_program_keeps_are_changed_by_that_program() {
        let firewalld =
            Ruleset { name: "nf_tables inet firewalld".into(), ..ruleset(Hook::Forward, true, &[]) };
        let ufw = Ruleset { chains: vec!["ufw-user-input".into()], ..ruleset(Hook::Input, true, &[]) };
        let found = judge(&[firewalld, ufw], &Config::default(), Family::V4);
        assert!(
            found[0].fix.starts_with("firewall-cmd --permanent --zone=trusted --add-source=10.244.0.0/16"),
            "{found:#?}"
        );
        assert_eq!(found[1].fix, "ufw allow 8472/udp");
    }

    #[test]
    fn a_prefix_that_ends_within_a_byte_is_compared_whole() {
        assert_eq!(prefix("10.244.0.0/16".parse().unwrap()), [10, 244]);
        assert_eq!(prefix("10.244.0.0/15".parse().unwrap()), [10, 244, 0, 0]);
    }
}
