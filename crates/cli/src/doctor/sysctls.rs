//! Sysctls that Fairlead needs, suffers from, or outgrows.
//!
//! Read [`judge`]. Of those that the agent sets itself only the case counts in which it cannot.

use std::collections::BTreeMap;

use ::agent::Config;
use anyhow::Error;
use kernel::sysctl;
use route::Family;

use super::underlay::{self, Underlays};
use crate::finding::{Finding, Severity};

const FORWARDING: [(Family, &str); 2] =
    [(Family::V4, "net/ipv4/ip_forward"), (Family::V6, "net/ipv6/conf/all/forwarding")];
const ALL_REVERSE_PATH: &str = "net/ipv4/conf/all/rp_filter";
const TRACKED: &str = "net/netfilter/nf_conntrack_count";
const TRACKED_MOST: &str = "net/netfilter/nf_conntrack_max";
const BRIDGES: [&str; 2] = ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"];
/// Limits below which something of Fairlead's or Kubernetes' own fails on a busy node.
const LIMITS: [(&str, u64, &str); 4] = [
    ("net/core/wmem_max", 131_072, "a large change of nf_tables is one message and does not fit"),
    ("net/core/rmem_max", 131_072, "notifications of the kernel are lost, and everything is read again"),
    ("fs/inotify/max_user_instances", 128, "the agent or the kubelet cannot watch files"),
    ("fs/inotify/max_user_watches", 8192, "the agent or the kubelet cannot watch files"),
];

/// What was read.
#[derive(Debug, Clone, Default)]
struct Facts {
    values: BTreeMap<String, String>,
    read_only: bool,
    /// Whether pods have addresses of the family.
    families: Vec<Family>,
    /// The links of the underlay.
    links: Vec<String>,
}

/// Reads the sysctls and judges them.
pub(super) fn examine(config: &Config, underlays: &Underlays) -> Vec<Finding> {
    let mut findings = Vec::new();
    let read_only = sysctl::is_read_only().unwrap_or_else(|error| {
        findings.push(Finding::unseen("/proc/sys", &Error::from(error)));
        false
    });
    let mut facts = Facts {
        values: BTreeMap::new(),
        read_only,
        families: config.cluster.pod_cidrs.iter().map(Family::of_net).collect(),
        links: underlay::links(underlays).into_iter().map(str::to_owned).collect(),
    };
    for path in facts.paths() {
        // One that is not there belongs to something that this kernel or namespace does not have.
        if let Ok(value) = sysctl::read(&path) {
            facts.values.insert(path, value);
        }
    }
    findings.extend(judge(&facts));
    findings
}

impl Facts {
    fn paths(&self) -> Vec<String> {
        let mut paths: Vec<String> = FORWARDING.iter().map(|(_, path)| (*path).to_owned()).collect();
        paths.extend([ALL_REVERSE_PATH, TRACKED, TRACKED_MOST].map(str::to_owned));
        paths.extend(BRIDGES.map(str::to_owned));
        paths.extend(LIMITS.map(|(path, ..)| path.to_owned()));
        paths.extend(self.links.iter().flat_map(|link| [reverse_path(link), no_ipv6(link)]));
        paths
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.values.get(path)?.parse().ok()
    }
}

fn reverse_path(link: &str) -> String {
    format!("net/ipv4/conf/{link}/rp_filter")
}

fn no_ipv6(link: &str) -> String {
    format!("net/ipv6/conf/{link}/disable_ipv6")
}

/// What is wrong with them.
fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = forwarding(facts);
    findings.extend(strict_reverse_path(facts));
    findings.extend(connections(facts));
    findings.extend(bridges(facts));
    findings.extend(links_without_ipv6(facts));
    findings.extend(LIMITS.iter().filter_map(|(path, least, consequence)| {
        let value = facts.number(path).filter(|value| value < least)?;
        let fix = format!("sysctl -w {}={least}, or more", dotted(path));
        Some(Finding::warning(dotted(path), format!("it is {value}: {consequence}"), fix))
    }));
    findings
}

fn forwarding(facts: &Facts) -> Vec<Finding> {
    let off = FORWARDING
        .iter()
        .filter(|(family, path)| facts.families.contains(family) && facts.number(path) == Some(0));
    let told = |(family, path): &(Family, &str)| {
        if facts.read_only {
            let problem = format!(
                "forwarding of {family} is off, and /proc/sys cannot be written: pods reach no other"
            );
            let fix = format!(
                "sysctl -w {}=1 on the host, or let the agent's container write /proc/sys",
                dotted(path)
            );
            return Finding::error(dotted(path), problem, fix);
        }
        Finding::note(dotted(path), format!("forwarding of {family} is off; the agent turns it on"))
    };
    off.map(told).collect()
}

/// Of a link's own value and that for all the larger counts; 1 is strict, 2 loose (RFC 3704).
fn strict_reverse_path(facts: &Facts) -> Vec<Finding> {
    let all = facts.number(ALL_REVERSE_PATH).unwrap_or(0);
    if all == 1 {
        return vec![Finding::warning(
            dotted(ALL_REVERSE_PATH),
            "the strict reverse-path filter is on for every link: where a packet comes in by another link than its \
             answer would leave by (several uplinks, host ports, policy routing) it is dropped without a word",
            "sysctl -w net.ipv4.conf.all.rp_filter=2 (loose), and in /etc/sysctl.d as well",
        )];
    }
    let strict = facts.links.iter().filter(|link| all == 0 && facts.number(&reverse_path(link)) == Some(1));
    let told = |link: &String| {
        Finding::warning(
            dotted(&reverse_path(link)),
            format!(
                "the strict reverse-path filter is on for the underlay {link}: with several uplinks it drops tunnels"
            ),
            format!(
                "sysctl -w net/ipv4/conf/{link}/rp_filter=2 (loose), if the node has more than one uplink"
            ),
        )
    };
    strict.map(told).collect()
}

fn connections(facts: &Facts) -> Option<Finding> {
    let (count, most) = (facts.number(TRACKED)?, facts.number(TRACKED_MOST)?);
    let percent = (count.saturating_mul(100)).checked_div(most)?;
    let severity = match percent {
        0..80 => return None,
        80..95 => Severity::Warning,
        _ => Severity::Error,
    };
    Some(Finding::new(
        severity,
        dotted(TRACKED_MOST),
        format!("{count} of {most} connections are tracked: when the table is full, new ones are dropped"),
        format!("sysctl -w {}={}", dotted(TRACKED_MOST), most.saturating_mul(2)),
    ))
}

fn bridges(facts: &Facts) -> Option<Finding> {
    let on: Vec<&str> = BRIDGES.into_iter().filter(|path| facts.number(path) == Some(1)).collect();
    let first = on.first()?;
    Some(Finding::note(
        dotted(first),
        "frames that a bridge only passes on go through iptables as well: of use to kube-proxy with pods on a bridge \
         (--bridge), and a cost else",
    ))
}

fn links_without_ipv6(facts: &Facts) -> Vec<Finding> {
    let off = facts
        .links
        .iter()
        .filter(|link| facts.families.contains(&Family::V6) && facts.number(&no_ipv6(link)) == Some(1));
    let told = |link: &String| {
        Finding::new(
            Severity::Note,
            dotted(&no_ipv6(link)),
            format!(
                "IPv6 is off on the underlay {link}: pods reach each other by it, but nothing outside the cluster"
            ),
            format!("sysctl -w net/ipv6/conf/{link}/disable_ipv6=0, if they should"),
        )
    };
    off.map(told).collect()
}

/// As sysctl(8) writes it, but for links, whose names have dots of their own.
fn dotted(path: &str) -> String {
    if path.contains("/conf/") && !path.contains("/conf/all/") {
        path.to_owned()
    } else {
        path.replace('/', ".")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(values: &[(&str, &str)]) -> Facts {
        Facts {
            values: values.iter().map(|(path, value)| ((*path).to_owned(), (*value).to_owned())).collect(),
            read_only: false,
            families: Family::ALL.to_vec(),
            links: vec!["eth0.100".to_owned()],
        }
    }

    fn found(values: &[(&str, &str)]) -> Vec<(Severity, String)> {
        judge(&facts(values)).into_iter().map(|finding| (finding.severity, finding.subject)).collect()
    }

    #[test]
    fn nothing_known_is_nothing_to_say() {
        assert_eq!(found(&[]), []);
    }

    #[test]
    fn forwarding_that_is_off_is_a_note_unless_nobody_can_turn_it_on() {
        let values = [("net/ipv4/ip_forward", "0"), ("net/ipv6/conf/all/forwarding", "1")];
        assert_eq!(found(&values), [(Severity::Note, "net.ipv4.ip_forward".to_owned())]);
        let read_only = Facts { read_only: true, ..facts(&values) };
        assert_eq!(judge(&read_only)[0].severity, Severity::Error);
        let no_ipv4 = Facts { families: vec![Family::V6], ..facts(&values) };
        assert_eq!(judge(&no_ipv4), []);
    }

    #[test]
    fn a_strict_reverse_path_filter_is_a_warning_and_a_loose_one_is_not() {
        let of_link = "net/ipv4/conf/eth0.100/rp_filter";
        let all = (Severity::Warning, "net.ipv4.conf.all.rp_filter".to_owned());
        assert_eq!(found(&[(ALL_REVERSE_PATH, "1")]), [all]);
        assert_eq!(
            found(&[(ALL_REVERSE_PATH, "0"), (of_link, "1")]),
            [(Severity::Warning, of_link.to_owned())]
        );
        assert_eq!(found(&[(ALL_REVERSE_PATH, "2"), (of_link, "1")]), [], "the larger counts");
    }

    #[test]
    fn a_table_of_connections_that_fills_up_is_told_before_it_is_full() {
        let with = |count: &str| found(&[(TRACKED, count), (TRACKED_MOST, "1000")]);
        let subject = "net.netfilter.nf_conntrack_max".to_owned();
        assert_eq!(with("799"), []);
        assert_eq!(with("800"), [(Severity::Warning, subject.clone())]);
        assert_eq!(with("950"), [(Severity::Error, subject)]);
        assert_eq!(found(&[(TRACKED, "5"), (TRACKED_MOST, "0")]), [], "0 is no limit");
    }

    #[test]
    fn bridges_that_call_iptables_and_links_without_ipv6_are_notes() {
        let off = "net/ipv6/conf/eth0.100/disable_ipv6";
        let notes = [(Severity::Note, "net.bridge.bridge-nf-call-iptables".to_owned())];
        assert_eq!(found(&[(BRIDGES[0], "1"), (BRIDGES[1], "1")]), notes);
        assert_eq!(found(&[(off, "1")]), [(Severity::Note, off.to_owned())]);
    }

    #[test]
    fn limits_that_are_too_low_name_what_would_do() {
        let low = judge(&facts(&[("net/core/wmem_max", "65536"), ("net/core/rmem_max", "212992")]));
        assert_eq!(low.len(), 1, "{low:#?}");
        assert_eq!(low[0].fix, "sysctl -w net.core.wmem_max=131072, or more");
    }
}
