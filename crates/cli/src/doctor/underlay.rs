//! The underlay: is there a link for the tunnels, and do packets of pods fit through it.
//!
//! Which link it is the agent decides with the same functions ([`choose`]).

use ::agent::{Config, Pattern};
use anyhow::Error;
use route::{Family, Host, MtuError, Reached, Underlay, UnderlayError, Wish, choose_underlay, pod_mtu};

use super::explained;
use crate::finding::Finding;

/// The underlay of each family, or why there is none.
pub(super) type Underlays = Vec<(Family, Result<Underlay, UnderlayError>)>;

/// What the agent would choose, without a Node object; `reached` is by which ways the kernel reaches what is named for it.
pub(super) fn choose(host: &Host, config: &Config, reached: &[Reached]) -> Underlays {
    let wish = Wish {
        interface: config.underlay.interface.as_deref(),
        pattern: config.underlay.interface_pattern.as_ref().map(Pattern::regex),
        addresses: &config.underlay.addresses,
        reached,
        node: &[],
        previous: None,
    };
    Family::ALL.into_iter().map(|family| (family, choose_underlay(host, &wish, family))).collect()
}

/// The one that tunnels run over: that of IPv4 where there is one.
pub(super) fn tunnel(underlays: &Underlays) -> Option<(Family, &Underlay)> {
    underlays.iter().find_map(|(family, chosen)| Some((*family, chosen.as_ref().ok()?)))
}

/// The links chosen, each once.
pub(super) fn links(underlays: &Underlays) -> Vec<&str> {
    let mut links: Vec<&str> = underlays
        .iter()
        .filter_map(|(_, chosen)| chosen.as_ref().ok())
        .map(|chosen| chosen.link.as_str())
        .collect();
    links.dedup();
    links
}

/// What is wrong with them.
pub(super) fn judge(host: &Host, config: &Config, underlays: &Underlays) -> Vec<Finding> {
    let Some((family, tunnel)) = tunnel(underlays) else {
        return underlays.iter().filter_map(|(_, chosen)| chosen.as_ref().err()).map(nowhere).collect();
    };
    let carried = config.underlay.mtu.unwrap_or(tunnel.mtu).min(tunnel.mtu);
    let pods: Vec<Family> = config.cluster.pod_cidrs.iter().map(Family::of_net).collect();
    let mut findings = Vec::new();
    if let Some(more) = config.underlay.mtu.filter(|mtu| *mtu > tunnel.mtu) {
        findings.push(Finding::warning(
            &tunnel.link,
            format!("underlay.mtu is {more}, and the link carries {}: the smaller counts", tunnel.mtu),
            format!("ip link set {} mtu {more}, or take underlay.mtu out of the configuration", tunnel.link),
        ));
    }
    // By how much a tunnel takes no node's name matters.
    let backend = config.backend_of("");
    findings.extend(tunnel.carries(&backend).err().as_ref().map(nowhere));
    match pod_mtu(&backend, &tunnel.link, carried, family, &pods) {
        Ok(mtu) => findings.extend(uneven(host, &tunnel.link, mtu)),
        Err(error) => findings.push(too_small(&error)),
    }
    findings
}

fn nowhere(error: &UnderlayError) -> Finding {
    let (problem, hint) = explained(&Error::from(error.clone()));
    let fix =
        if hint.is_empty() { "give the link an address, or set underlay.interface".into() } else { hint };
    Finding::error("underlay", problem, fix)
}

fn too_small(error: &MtuError) -> Finding {
    Finding::error(
        &error.link,
        format!(
            "it carries packets of {} bytes, which leaves {} for pods by {}; {} of pods needs {}",
            error.underlay, error.left, error.backend, error.pods, error.needed
        ),
        format!(
            "ip link set {} mtu {} or more, if the network behind it carries that; else leave {} out of cluster.podCIDRs",
            error.link, error.enough, error.pods
        ),
    )
}

/// Other links to the outside that carry less or more than the one that was chosen.
fn uneven(host: &Host, chosen: &str, pods: u32) -> Vec<Finding> {
    let Some(mtu) = host.link(chosen).map(|link| link.mtu) else { return Vec::new() };
    let leads_outside = |name: &str| {
        host.routes.iter().any(|route| {
            route.link.as_deref() == Some(name)
                && (route.gateway.is_some() || route.destination.prefix_len() == 0)
        })
    };
    let others = host.links.iter().filter(|link| {
        link.up
            && !link.loopback
            && !link.ours
            && link.name != chosen
            && link.mtu != mtu
            && leads_outside(&link.name)
    });
    let note = |link: &route::HostLink| {
        let problem = format!(
            "its MTU is {}, that of the underlay {chosen} is {mtu}: pods send {pods} bytes, whichever way they leave",
            link.mtu
        );
        let fix =
            format!("if tunnels can come to run over {}: set underlay.mtu to the smaller one", link.name);
        Finding::new(crate::finding::Severity::Note, &link.name, problem, fix)
    };
    others.map(note).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;
    use route::{HostAddress, HostLink, HostRoute};

    fn host(mtu: u32) -> Host {
        let link =
            HostLink { name: "eth0".into(), mtu, up: true, loopback: false, ours: false, accept_ra: None };
        let address = HostAddress {
            link: "eth0".into(),
            address: "198.18.0.5/24".parse().unwrap(),
            global: true,
            avoid: false,
            permanent: true,
        };
        Host {
            links: vec![link],
            addresses: vec![address],
            routes: vec![default_route("eth0")],
            ..Host::default()
        }
    }

    fn default_route(link: &str) -> HostRoute {
        HostRoute {
            destination: "0.0.0.0/0".parse().unwrap(),
            link: Some(link.into()),
            gateway: Some("198.18.0.1".parse().unwrap()),
            source: None,
            metric: 0,
            ours: false,
        }
    }

    fn found(host: &Host, config: &Config) -> Vec<Finding> {
        judge(host, config, &choose(host, config, &[]))
    }

    #[test]
    fn an_ordinary_link_is_nothing_to_talk_about() {
        assert_eq!(found(&host(1500), &Config::default()), []);
        assert_eq!(links(&choose(&host(1500), &Config::default(), &[])), ["eth0"]);
    }

    #[test]
    fn a_host_without_a_link_to_the_outside_is_an_error_with_the_key_that_helps() {
        let found = found(&Host::default(), &Config::default());
        assert!(found.iter().all(|finding| finding.severity == Severity::Error), "{found:#?}");
        assert!(found[0].fix.contains("underlay.interface"), "{found:#?}");
    }

    #[test]
    fn a_link_through_which_ipv6_does_not_fit_is_an_error_with_the_mtu_that_would_do() {
        let found = found(&host(1300), &Config::default());
        assert_eq!((found.len(), found[0].severity), (1, Severity::Error));
        assert!(found[0].fix.contains("ip link set eth0 mtu 1330"), "{found:#?}");
    }

    #[test]
    fn ip_in_ip_on_a_host_without_ipv4_is_an_error() {
        let mut host = host(1500);
        host.addresses[0].address = "fd00:198:18::5/64".parse().unwrap();
        host.routes[0].destination = "::/0".parse().unwrap();
        host.routes[0].gateway = Some("fd00:198:18::fe".parse().unwrap());
        assert_eq!(found(&host, &Config::default()), []);
        let found = found(&host, &Config { backend: ::agent::BackendKind::Ipip, ..Config::default() });
        assert_eq!((found.len(), found[0].severity), (1, Severity::Error));
        assert!(found[0].problem.contains("IPv4 alone"), "{found:#?}");
    }

    #[test]
    fn a_configured_mtu_that_the_link_does_not_carry_is_a_warning() {
        let mut config = Config::default();
        config.underlay.mtu = Some(9000);
        assert_eq!(found(&host(1500), &config)[0].severity, Severity::Warning);
    }

    #[test]
    fn a_second_way_out_with_another_mtu_is_a_note() {
        let mut host = host(9000);
        host.links.push(HostLink { name: "eth1".into(), mtu: 1500, ..host.links[0].clone() });
        assert_eq!(found(&host, &Config::default()), [], "nothing leads through it");
        host.routes.push(HostRoute { metric: 100, ..default_route("eth1") });
        let found = found(&host, &Config::default());
        assert_eq!((found.len(), found[0].severity), (1, Severity::Note));
        assert!(found[0].fix.contains("underlay.mtu"), "{found:#?}");
    }
}
