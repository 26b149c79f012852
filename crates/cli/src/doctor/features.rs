//! What the kernel lacks, and what will not work for lack of it.
//!
//! Features are tried in a network namespace of their own: see `kernel::features`.

use ::agent::{BackendKind, Config, ForeignSenders};
use anyhow::Error;
use kernel::features::{self, Absent, Feature};
use kernel::netns::Netns;
use kernel::user_namespace;
use route::Family;

use crate::finding::{Finding, Severity};

/// How often a user namespace is asked for while threads that have ended are still being counted.
const ATTEMPTS: usize = 1000;

/// Tries every feature and judges what is missing. Without root this moves the whole process into a network namespace
/// of its own, for good: it is the last thing to do.
pub(super) fn examine(config: &Config) -> Vec<Finding> {
    match absent() {
        Ok(absent) => absent.into_iter().filter_map(|one| judge(one, config)).collect(),
        Err(error) => vec![Finding::unseen("kernel features", &Error::from(error))],
    }
}

fn absent() -> Result<Vec<Absent>, kernel::Error> {
    if rustix::process::geteuid().is_root()
        && let Ok(scratch) = Netns::create()
    {
        return scratch.run(features::absent)?;
    }
    let mut attempts = 0..ATTEMPTS;
    loop {
        match user_namespace::become_root_of_a_new_one() {
            Ok(()) => return features::absent(),
            Err(error) if error.errno() == Some(rustix::io::Errno::INVAL) && attempts.next().is_some() => {
                std::thread::yield_now();
            }
            Err(error) => return Err(error),
        }
    }
}

/// What a feature is to people: name, what is lost without it, how to get it.
struct Words {
    feature: Feature,
    name: &'static str,
    lost: &'static str,
    option: &'static str,
    module: &'static str,
}

impl Words {
    const fn new(
        feature: Feature,
        name: &'static str,
        lost: &'static str,
        (option, module): (&'static str, &'static str),
    ) -> Self {
        Self { feature, name, lost, option, module }
    }
}

/// Every feature's.
const WORDS: [Words; Feature::ALL.len()] = [
    Words::new(Feature::Veth, "veth", "no pod gets a network", ("CONFIG_VETH", "veth")),
    Words::new(Feature::Vxlan, "vxlan", "no pod reaches another node", ("CONFIG_VXLAN", "vxlan")),
    Words::new(
        Feature::Tables,
        "nf_tables",
        "the agent does not become ready",
        ("CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET", "nf_tables"),
    ),
    Words::new(
        Feature::Sets,
        "sets of nf_tables",
        "the agent does not become ready",
        ("CONFIG_NF_TABLES", "nf_tables"),
    ),
    Words::new(
        Feature::Masquerade,
        "masquerade of nf_tables",
        "pods cannot leave the cluster, and the agent does not become ready if they are to",
        ("CONFIG_NFT_MASQ and CONFIG_NF_NAT", "nft_masq"),
    ),
    Words::new(
        Feature::Ipv6,
        "ipv6",
        "a cluster with an IPv6 pod network is not for this node",
        ("CONFIG_IPV6, without ipv6.disable=1 on its command line", "ipv6"),
    ),
    Words::new(
        Feature::Bridge,
        "bridge",
        "the agent's --bridge and the plugin bridge fail",
        ("CONFIG_BRIDGE", "bridge"),
    ),
    Words::new(
        Feature::Ifb,
        "ifb",
        "the plugin bandwidth cannot limit what pods send",
        ("CONFIG_IFB", "ifb"),
    ),
    Words::new(Feature::TokenBucket, "tbf", "the plugin bandwidth fails", ("CONFIG_NET_SCH_TBF", "sch_tbf")),
    Words::new(
        Feature::IngressHook,
        "ingress",
        "the plugin bandwidth cannot limit what pods send",
        ("CONFIG_NET_SCH_INGRESS", "sch_ingress"),
    ),
    Words::new(
        Feature::Tun,
        "tun",
        "the plugin tap and the backend udp fail, and ipip and wireguard where the kernel has none",
        ("CONFIG_TUN", "tun"),
    ),
    Words::new(
        Feature::Conntrack,
        "conntrack",
        "the plugins firewall and portmap fail",
        ("CONFIG_NF_CONNTRACK and CONFIG_NFT_CT", "nft_ct"),
    ),
    Words::new(
        Feature::HostPorts,
        "dnat of nf_tables",
        "host ports (the plugin portmap) fail, and an agent with the backend vxlan, udp or ipip; without nft_fib also one with policy.enforcement or policy.foreignSenders: drop",
        ("CONFIG_NFT_NAT and CONFIG_NFT_FIB_INET", "-a nft_nat nft_fib_inet"),
    ),
    Words::new(
        Feature::FlowListing,
        "listing of connections",
        "after a host port has moved, old UDP flows go on to the pod that is gone",
        ("CONFIG_NF_CT_NETLINK", "nf_conntrack_netlink"),
    ),
];

fn judge(Absent { feature, error }: Absent, config: &Config) -> Option<Finding> {
    let words = WORDS.iter().find(|words| words.feature == feature)?;
    let denied = matches!(error.errno(), Some(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS));
    let subject = format!("kernel: {}", words.name);
    if denied {
        return Some(Finding::unseen(subject, &Error::from(error)));
    }
    let (said, _) = super::explained(&Error::from(error));
    Some(Finding::new(
        severity(feature, config),
        subject,
        format!("not there ({said}): {}", words.lost),
        format!("modprobe {}, or a kernel with {}", words.module, words.option),
    ))
}

/// Whether the agent itself cannot do without it, or a plugin.
fn severity(feature: Feature, config: &Config) -> Severity {
    let has_ipv6 = || config.cluster.pod_cidrs.iter().any(|cidr| Family::of_net(cidr) == Family::V6);
    match feature {
        Feature::Veth | Feature::Vxlan | Feature::Tables | Feature::Sets => Severity::Error,
        // Also for nft_fib, which it is tried with.
        Feature::HostPorts if asks_routes(config) => Severity::Error,
        Feature::Masquerade if config.masquerade.enabled => Severity::Error,
        Feature::Ipv6 if has_ipv6() => Severity::Error,
        Feature::Ipv6 => Severity::Note,
        _ => Severity::Warning,
    }
}

/// Whether the agent's rules ask the routes of an address: for policies, for senders, and to keep pods from tunnels without keys.
fn asks_routes(config: &Config) -> bool {
    let has_open_tunnel = matches!(config.backend, BackendKind::Vxlan | BackendKind::Udp | BackendKind::Ipip);
    has_open_tunnel || config.policy.enforcement || config.policy.foreign_senders == ForeignSenders::Drop
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn absent(feature: Feature, errno: i32) -> Absent {
        let source = io::Error::from_raw_os_error(errno);
        Absent { feature, error: kernel::Error::System { tried: "make a thing", source } }
    }

    #[test]
    fn every_feature_names_a_module_an_option_and_what_is_lost() {
        for feature in Feature::ALL {
            // EOPNOTSUPP
            let finding = judge(absent(feature, 95), &Config::default()).unwrap();
            assert!(finding.fix.contains("modprobe ") && finding.fix.contains("CONFIG_"), "{finding:#?}");
            assert!(finding.problem.contains("make a thing: Operation not supported"), "{finding:#?}");
        }
        let vxlan = judge(absent(Feature::Vxlan, 95), &Config::default()).unwrap();
        assert_eq!(vxlan.severity, Severity::Error);
        assert!(vxlan.fix.starts_with("modprobe vxlan, or a kernel with CONFIG_VXLAN"), "{vxlan:#?}");
    }

    #[test]
    fn what_is_forbidden_is_not_said_to_be_missing() {
        let finding = judge(absent(Feature::Vxlan, 1), &Config::default()).unwrap();
        assert_eq!(finding.severity, Severity::Note);
        assert!(finding.problem.contains("could not be looked at"), "{finding:#?}");
    }

    #[test]
    fn ipv6_is_needed_only_by_a_cluster_that_has_it() {
        let mut config = Config::default();
        assert_eq!(judge(absent(Feature::Ipv6, 2), &config).unwrap().severity, Severity::Error);
        config.cluster.pod_cidrs.retain(|cidr| cidr.addr().is_ipv4());
        assert_eq!(judge(absent(Feature::Ipv6, 2), &config).unwrap().severity, Severity::Note);
    }
}
