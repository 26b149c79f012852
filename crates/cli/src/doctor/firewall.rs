//! The host's own firewall: does it let pods and tunnels through.
//!
//! Read [`judge`]. What a chain does the agent finds out in the same way (`agent::host_firewall`); where that is in doubt it
//! is a warning, and where nothing accepts, an error, each with what to do about it by the program that keeps the rules.

use ::agent::Config;
use ::agent::host_firewall::{Chain, Opinion, Program, Ruleset};
use ipnet::IpNet;
use netstate::nft::Hook;
use route::Family;

use crate::finding::{Finding, Severity};

/// What the host's firewall drops that Fairlead needs; `tunnel` is the family that tunnels run over.
pub(super) fn judge(rulesets: &[Ruleset], config: &Config, tunnel: Family) -> Vec<Finding> {
    let mut findings = Vec::new();
    for chain in Chain::all(rulesets) {
        let families = &chain.ruleset.families;
        match chain.base.hook {
            Hook::Forward => {
                let seen = |cidr: &&IpNet| families.contains(&Family::of_net(cidr));
                let cidrs = config.cluster.pod_cidrs.iter().filter(seen);
                findings.extend(cidrs.filter_map(|cidr| Told(chain).judge_pods(*cidr)));
            }
            Hook::Input if families.contains(&tunnel) => {
                findings.extend(Told(chain).judge_tunnel(config.vxlan.port))
            }
            _ => {}
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

/// A chain, as findings speak of it.
struct Told<'a>(Chain<'a>);

impl Told<'_> {
    fn judge_pods(&self, cidr: IpNet) -> Option<Finding> {
        let severity = severity(self.0.for_pods(cidr))?;
        let problem =
            format!("{}from or to the pods' network {cidr}: pods reach no other node", self.drops(severity));
        Some(Finding::new(severity, self.0.name(), problem, self.let_pods_through(cidr)))
    }

    fn judge_tunnel(&self, port: u16) -> Option<Finding> {
        let severity = severity(self.0.for_port(port))?;
        let problem =
            format!("{}for UDP port {port}: no tunnel from other nodes comes in", self.drops(severity));
        Some(Finding::new(severity, self.0.name(), problem, self.let_tunnels_in(port)))
    }

    /// Table and chain, as `nft` takes them.
    fn place(&self) -> String {
        let table = self.0.ruleset.name.strip_prefix("nf_tables ").unwrap_or(&self.0.ruleset.name);
        format!("{table} {}", self.0.base.name)
    }

    fn drops(&self, severity: Severity) -> &'static str {
        match severity {
            Severity::Error => "this chain drops what it does not accept, and accepts nothing ",
            _ => "this chain drops what it does not accept, and no rule is seen ",
        }
    }

    /// Who writes these rules, where it can be told.
    fn keeper(&self) -> Option<Keeper> {
        if self.0.ruleset.name.ends_with(" firewalld") {
            return Some(Keeper::Firewalld);
        }
        self.0.ruleset.chains.iter().any(|chain| chain.starts_with("ufw-")).then_some(Keeper::Ufw)
    }

    fn let_tunnels_in(&self, port: u16) -> String {
        match (self.keeper(), &self.0.ruleset.program) {
            (Some(Keeper::Firewalld), _) => {
                format!("firewall-cmd --permanent --add-port={port}/udp; firewall-cmd --reload")
            }
            (Some(Keeper::Ufw), _) => format!("ufw allow {port}/udp"),
            (None, Program::Iptables(program, _)) => self
                .permanently(&format!("{program} -I {} -p udp --dport {port} -j ACCEPT", self.0.base.name)),
            (None, Program::Nft) => {
                self.permanently(&format!("nft insert rule {} udp dport {port} accept", self.place()))
            }
        }
    }

    /// From and to the pods.
    fn let_pods_through(&self, cidr: IpNet) -> String {
        let word = if cidr.addr().is_ipv4() { "ip" } else { "ip6" };
        let (chain, place) = (&self.0.base.name, self.place());
        match (self.keeper(), &self.0.ruleset.program) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use ::agent::host_firewall::Base;
    use kernel::foreign::{ForeignRule, NARROWED, Part};

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
}
