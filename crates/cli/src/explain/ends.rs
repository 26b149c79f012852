//! Who is meant: the two ends of a flow and its port, as a person names them.
//!
//! Read [`flows`]. A name means a pod, else a Service, else a node; what is ambiguous is asked back, not guessed. What goes
//! to a Service is judged where it arrives, so a Service stands for each pod behind it, at the port there.

use std::net::IpAddr;
use std::str::FromStr;

use ::policy::{Cluster, Flow, Traffic};
use anyhow::{Context, Result, anyhow, bail};
use cluster::{NamespacedName, Node, Pod, Protocol, Service, ServicePort, Snapshot, TargetPort};

use super::source::Source;

/// ICMP and ICMPv6.
const ECHO: [u8; 2] = [1, 58];

/// The port, as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Port {
    number: Number,
    protocol: Option<Protocol>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Number {
    Is(u16),
    Named(String),
    /// A ping.
    Echo,
}

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("icmp") {
            return Ok(Self { number: Number::Echo, protocol: None });
        }
        let (port, protocol) =
            text.split_once('/').map_or((text, None), |(port, protocol)| (port, Some(protocol)));
        let known = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        let protocol = match protocol {
            None => None,
            Some(name) => Some(
                known
                    .into_iter()
                    .find(|known| known.as_str().eq_ignore_ascii_case(name))
                    .ok_or_else(|| format!("{name:?} is none of TCP, UDP and SCTP"))?,
            ),
        };
        let number = match port.parse::<u32>() {
            Ok(number) => u16::try_from(number)
                .ok()
                .filter(|number| *number > 0)
                .map(Number::Is)
                .ok_or_else(|| format!("{number} is no port: 1 to 65535"))?,
            Err(_) if port.is_empty() => return Err("the port is missing".to_owned()),
            Err(_) => Number::Named(port.to_owned()),
        };
        Ok(Self { number, protocol })
    }
}

/// The ends, as they are asked for.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub(super) source: &'a str,
    pub(super) destination: &'a str,
    pub(super) port: &'a Port,
    /// The namespace of names without one.
    pub(super) namespace: &'a str,
}

enum End<'c> {
    Pod(&'c Pod),
    Service(&'c Service),
    Node(&'c Node),
    Addresses(Vec<IpAddr>),
}

/// The flows that are meant: one for each version of IP that both ends have, and for each pod behind a Service.
pub(super) fn flows(cluster: &Cluster, asked: &Asked<'_>) -> Result<Vec<Flow>> {
    let source = match find(cluster, asked.source, asked.namespace)? {
        End::Pod(pod) => Source::Addresses(pod_addresses(cluster, pod)?),
        End::Addresses(addresses) => Source::Addresses(addresses),
        End::Node(node) => Source::Node(node),
        End::Service(service) => bail!(
            "{} is a Service, and a Service begins no connections; hint: name one of the pods behind it",
            service.name
        ),
    };
    let destinations = match find(cluster, asked.destination, asked.namespace)? {
        End::Pod(pod) => {
            let traffic = traffic_to(pod, asked.port)?;
            let addresses = pod_addresses(cluster, pod)?;
            addresses.iter().flat_map(|address| traffic.iter().map(|each| (*address, *each))).collect()
        }
        End::Addresses(addresses) => at_addresses(&addresses, asked.port)?,
        End::Node(node) => at_addresses(&node.addresses, asked.port)?,
        End::Service(service) => {
            let targets = of_service(cluster.snapshot(), service, asked.port)?;
            return pairs(cluster, &source, targets, true);
        }
    };
    pairs(cluster, &source, destinations, false)
}

fn at_addresses(addresses: &[IpAddr], port: &Port) -> Result<Vec<Target>> {
    let traffic = plain_traffic(port).ok_or_else(|| {
        anyhow!("only pods and Services have ports with names; hint: give the port's number")
    })?;
    Ok(addresses.iter().map(|address| (*address, traffic)).collect())
}

/// Where something goes.
type Target = (IpAddr, Traffic);

/// Every target with the source's addresses of its version.
fn pairs(
    cluster: &Cluster,
    source: &Source<'_>,
    targets: Vec<Target>,
    through_service: bool,
) -> Result<Vec<Flow>> {
    let mut flows: Vec<Flow> = Vec::new();
    for (destination, traffic) in targets {
        let traffic = match traffic {
            Traffic::Other(_) if destination.is_ipv6() => Traffic::Other(ECHO[1]),
            other => other,
        };
        let sources = source.towards(cluster, destination).into_iter();
        flows.extend(sources.map(|source| Flow { source, destination, traffic, through_service }));
    }
    if flows.is_empty() {
        bail!("the two ends have no version of IP in common, so nothing passes between them");
    }
    Ok(flows)
}

fn find<'c>(cluster: &'c Cluster, text: &str, namespace: &str) -> Result<End<'c>> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(End::Addresses(vec![address]));
    }
    let snapshot = cluster.snapshot();
    let (name, anywhere) = match text.split_once('/') {
        Some((namespace, name)) => (NamespacedName::new(namespace, name), false),
        None => (NamespacedName::new(namespace, text), true),
    };
    if let Some(pod) = snapshot.pods.get(&name) {
        return Ok(End::Pod(pod));
    }
    if let Some(service) = snapshot.services.get(&name) {
        return Ok(End::Service(service));
    }
    if let Some(node) = snapshot.nodes.get(text) {
        return Ok(End::Node(node));
    }
    let elsewhere: Vec<&NamespacedName> =
        snapshot.pods.keys().filter(|other| other.name == name.name).collect();
    match elsewhere[..] {
        [only] if anywhere => Ok(End::Pod(snapshot.pods.get(only).context("a pod that was there is gone")?)),
        [] => bail!(
            "there is no pod, Service or node {text}{}; hint: an end is NAMESPACE/NAME, a name in the namespace given by -n, \
             or an address",
            if anywhere { format!(" (namespace {namespace})") } else { String::new() }
        ),
        _ => {
            let names: Vec<String> = elsewhere.iter().take(5).map(ToString::to_string).collect();
            bail!("there is no pod or Service {name}; hint: did you mean {}?", names.join(" or "))
        }
    }
}

fn pod_addresses(cluster: &Cluster, pod: &Pod) -> Result<Vec<IpAddr>> {
    let addresses = match cluster.member(&pod.name) {
        Some(member) => member.addresses.to_vec(),
        None if pod.host_network => {
            let node = cluster.snapshot().pod_node(&pod.name);
            let node = node.and_then(|name| cluster.snapshot().nodes.get(name));
            node.map(|node| node.addresses.to_vec()).unwrap_or_default()
        }
        None => Vec::new(),
    };
    // One of each version: what holds of the first holds of the others.
    let of = |v4| addresses.iter().copied().find(move |address| address.is_ipv4() == v4);
    let found: Vec<IpAddr> = [of(true), of(false)].into_iter().flatten().collect();
    if found.is_empty() {
        bail!(
            "pod {} has no address now (it is {}), so no policy is about it",
            pod.name,
            if pod.phase.ended() { "ended" } else { "not running yet" }
        );
    }
    Ok(found)
}

/// What a port means by itself.
fn plain_traffic(port: &Port) -> Option<Traffic> {
    match port.number {
        Number::Is(number) => Some(Traffic::Port(port.protocol.unwrap_or_default(), number)),
        Number::Echo => Some(Traffic::Other(ECHO[0])),
        Number::Named(_) => None,
    }
}

fn traffic_to(pod: &Pod, asked: &Port) -> Result<Vec<Traffic>> {
    if let Some(plain) = plain_traffic(asked) {
        return Ok(vec![plain]);
    }
    let Number::Named(name) = &asked.number else { return Ok(Vec::new()) };
    let is_it = |port: &&cluster::ContainerPort| {
        port.name.as_deref() == Some(name) && asked.protocol.is_none_or(|protocol| protocol == port.protocol)
    };
    let found: Vec<Traffic> =
        pod.ports.iter().filter(is_it).map(|port| Traffic::Port(port.protocol, port.port)).collect();
    if found.is_empty() {
        let names: Vec<&str> = pod.ports.iter().filter_map(|port| port.name.as_deref()).collect();
        bail!("pod {} has no port named {name:?}; hint: its ports are named {names:?}", pod.name);
    }
    Ok(found)
}

/// The pods behind a Service, each at the port that the Service's port leads to there.
fn of_service(snapshot: &Snapshot, service: &Service, asked: &Port) -> Result<Vec<Target>> {
    let is_it = |port: &&ServicePort| {
        let number = match &asked.number {
            Number::Is(number) => port.port == *number,
            Number::Named(name) => port.name.as_deref() == Some(name),
            Number::Echo => false,
        };
        number && asked.protocol.is_none_or(|protocol| protocol == port.protocol)
    };
    let Some(port) = service.ports.iter().find(is_it) else {
        let has: Vec<String> =
            service.ports.iter().map(|port| format!("{}/{}", port.port, port.protocol)).collect();
        bail!("Service {} has no such port; hint: it has {}", service.name, has.join(", "));
    };
    let slices = snapshot.endpoint_slices.values().filter(|slice| {
        slice.name.namespace == service.name.namespace && slice.service.as_ref() == Some(&service.name.name)
    });
    let mut targets: Vec<Target> = Vec::new();
    for slice in slices {
        let served = slice.ports.iter().filter(|own| own.name == port.name && own.protocol == port.protocol);
        for number in served.filter_map(|own| own.port) {
            let addresses = slice.endpoints.iter().filter(|endpoint| endpoint.serving);
            let addresses = addresses.filter_map(|endpoint| endpoint.addresses.first());
            targets.extend(addresses.map(|address| (*address, Traffic::Port(port.protocol, number))));
        }
    }
    if targets.is_empty() && !service.selector.is_empty() {
        targets = selected(snapshot, service, port);
    }
    targets.sort_unstable();
    targets.dedup();
    if targets.is_empty() {
        bail!("no pod is behind port {} of Service {}, so nothing answers", port.port, service.name);
    }
    Ok(targets)
}

/// The same by the Service's selector, where nobody keeps EndpointSlices.
fn selected(snapshot: &Snapshot, service: &Service, port: &ServicePort) -> Vec<Target> {
    let chosen = snapshot.pods.values().filter(|pod| {
        pod.name.namespace == service.name.namespace && pod.labels.contains_all(&service.selector)
    });
    let numbers = |pod: &Pod| -> Vec<u16> {
        match &port.target {
            TargetPort::Number(number) => vec![*number],
            TargetPort::Name(name) => {
                let own = pod
                    .ports
                    .iter()
                    .filter(|own| own.name.as_deref() == Some(&**name) && own.protocol == port.protocol);
                own.map(|own| own.port).collect()
            }
        }
    };
    chosen
        .flat_map(|pod| {
            let numbers = numbers(pod);
            let addresses = snapshot.pod_addresses(&pod.name).to_vec();
            addresses.into_iter().flat_map(move |address| {
                let traffic = numbers.clone().into_iter().map(|number| Traffic::Port(port.protocol, number));
                traffic.map(move |traffic| (address, traffic)).collect::<Vec<_>>()
            })
        })
        .collect()
}
