//! NetworkPolicies (`networking.k8s.io/v1`) and ClusterNetworkPolicies (`policy.networking.k8s.io/v1alpha2`).
//!
//! Only a policy without a name is refused. Whatever else is wrong or unknown in one fails closed where it stands: a
//! peer, port or rule that cannot be read opens nothing, a direction that cannot be read is isolated. So a policy of a
//! later version of the API, or one with a slip in it, never opens more than it says. Addresses are read as leniently as
//! the API server has always taken them: with host bits, with leading zeros (decimal), as IPv4-mapped IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cluster::{
    AUDIT_ANNOTATION, Action, ClusterNetworkPolicy, ClusterPeer, ClusterPeers, ClusterRule, IpBlock,
    NetworkPolicy, Operator, Peer, PodSelector, PortMatch, Protocol, Requirement, Rule, Selector, Tier,
    check_subdomain,
};
use ipnet::IpNet;

use super::field::{Fault, Field};

/// By this field a policy that was written out again tells what could not be read.
pub(super) const UNREADABLE: &str = "unreadable";

pub(crate) fn network_policy(document: &Field<'_, '_>) -> Result<NetworkPolicy, Fault> {
    let name = document.namespaced_name(check_subdomain)?;
    let mut faults = Vec::new();
    let audit = in_audit(document).unwrap_or_else(|fault| {
        faults.push(told(&fault, "it is enforced"));
        false
    });
    let spec = document.get("spec")?;
    let known = ["podSelector", "policyTypes", "ingress", "egress", UNREADABLE];
    // A field of a later version may say which pods are meant, or which way: those here are taken at their widest.
    let strange = only(&spec, &known).err();
    faults.extend(strange.as_ref().map(|fault| told(fault, "both directions are isolated")));
    faults.extend(kept_faults(&spec));
    let subjects = spec.get("podSelector").and_then(|field| selector(&field)).unwrap_or_else(|fault| {
        faults.push(told(&fault, "all pods of the namespace are isolated"));
        Selector::default()
    });
    let egress_rules = spec.get("egress").and_then(|field| Ok(!field.items()?.is_empty())).unwrap_or(true);
    let (ingress, egress) = match spec.get("policyTypes").and_then(|field| directions(&field, egress_rules)) {
        Ok(_) if strange.is_some() => (true, true),
        Ok(types) => types,
        Err(fault) => {
            faults.push(told(&fault, "both directions are isolated"));
            (true, true)
        }
    };
    Ok(NetworkPolicy {
        name,
        subjects,
        ingress: ingress.then(|| rules(&spec, "ingress", "from")),
        egress: egress.then(|| rules(&spec, "egress", "to")),
        audit,
        faults: faults.into(),
    })
}

/// Whether an annotation puts the policy into audit. Only `true` does: a slip must not open anything.
fn in_audit(document: &Field<'_, '_>) -> Result<bool, Fault> {
    let metadata = document.get("metadata")?;
    let annotations = metadata.get("annotations")?;
    let annotation = annotations.get(AUDIT_ANNOTATION)?;
    match annotation.text()? {
        Some("true") => Ok(true),
        None | Some("false") => Ok(false),
        Some(other) => Err(annotation.fault(format!("is {other:?}, neither \"true\" nor \"false\""))),
    }
}

/// What a fault of a part is taken for.
fn told(fault: &Fault, instead: &str) -> Box<str> {
    let field = fault.field.as_deref().unwrap_or("it");
    format!("{field} {}: {instead}", fault.reason).into()
}

fn why(fault: &Fault) -> Box<str> {
    format!("{} {}", fault.field.as_deref().unwrap_or("it"), fault.reason).into()
}

fn kept_faults(spec: &Field<'_, '_>) -> Vec<Box<str>> {
    let kept = spec.get(UNREADABLE).and_then(|field| {
        let texts = field.each(|item| Ok(item.text()?.unwrap_or_default().into()))?;
        Ok(texts.into_vec())
    });
    kept.unwrap_or_default()
}

/// Refuses fields that are not among `known`: they may narrow what the others say.
fn only(field: &Field<'_, '_>, known: &[&str]) -> Result<(), Fault> {
    match field.entries()?.iter().find(|(key, _)| !known.contains(&&**key)) {
        Some((key, _)) => Err(field.fault(format!("has the unknown field {key:?}"))),
        None => Ok(()),
    }
}

/// Ingress and egress, as `policyTypes` has them or the API server fills them in.
fn directions(field: &Field<'_, '_>, egress_rules: bool) -> Result<(bool, bool), Fault> {
    let mut found = (false, false);
    let items = field.items()?;
    if items.is_empty() {
        return Ok((true, egress_rules));
    }
    for item in items {
        match item.text()? {
            Some("Ingress") => found.0 = true,
            Some("Egress") => found.1 = true,
            other => return Err(item.fault(format!("is {other:?}, neither Ingress nor Egress"))),
        }
    }
    Ok(found)
}

pub(super) fn selector(field: &Field<'_, '_>) -> Result<Selector, Fault> {
    only(field, &["matchLabels", "matchExpressions"])?;
    let labels = field.get("matchLabels")?;
    let mut requirements = Vec::new();
    for (key, _) in labels.entries()? {
        let value = labels.get(key)?;
        requirements.push(Requirement::equal(&**key, value.text()?.unwrap_or_default()));
    }
    let expressions = field.get("matchExpressions")?;
    requirements.extend(expressions.each(requirement)?);
    Ok(requirements.into_iter().collect())
}

fn requirement(field: &Field<'_, '_>) -> Result<Requirement, Fault> {
    only(field, &["key", "operator", "values"])?;
    let name = field.get("operator")?;
    let text = name.required_text()?;
    let operator = Operator::ALL.into_iter().find(|operator| operator.as_str() == text);
    let operator = operator
        .ok_or_else(|| name.fault(format!("is {text:?}, none of In, NotIn, Exists and DoesNotExist")))?;
    let values = field.get("values")?;
    let of_values = matches!(operator, Operator::In | Operator::NotIn);
    let values_field = values.each(|value| Ok(value.text()?.unwrap_or_default().into()))?;
    if of_values == values_field.is_empty() {
        let must = if of_values { "must have some" } else { "must have none" };
        return Err(values.fault(format!("does not suit the operator {text}, which {must}")));
    }
    Ok(Requirement { key: field.get("key")?.required_text()?.into(), operator, values: values_field })
}

/// The most pairs of a peer and a port that a rule may have: the kernel gets a rule for each, on every node that has one of
/// the policy's pods. A rule that has more opens nothing, so that one policy cannot stop an agent from enforcing the others.
const MOST_PAIRS: usize = 20_000;

/// The most exceptions of a block: of IPv6 each may make 128 networks of it.
const MOST_EXCEPTIONS: usize = 1000;

/// The rules of one direction; one that cannot be read allows nothing.
fn rules(spec: &Field<'_, '_>, direction: &str, peers: &str) -> Box<[Rule]> {
    let closed = |fault: &Fault| Rule { peers: Some(Box::from([Peer::Unreadable(why(fault))])), ports: None };
    let read = spec
        .get(direction)
        .and_then(|field| field.each(|field| Ok(rule(field, peers).unwrap_or_else(|fault| closed(&fault)))));
    read.unwrap_or_else(|fault| Box::from([closed(&fault)]))
}

fn rule(field: &Field<'_, '_>, key: &str) -> Result<Rule, Fault> {
    only(field, &[key, "ports"])?;
    let peers = field
        .get(key)?
        .each(|field| Ok(peer(field).unwrap_or_else(|fault| Peer::Unreadable(why(&fault)))))?;
    let ports = field
        .get("ports")?
        .each(|field| Ok(port(field).unwrap_or_else(|fault| PortMatch::Unreadable(why(&fault)))))?;
    let pairs = peers.len().saturating_mul(ports.len().max(1));
    if pairs > MOST_PAIRS {
        let reason = format!("has {pairs} pairs of a peer and a port, more than {MOST_PAIRS}");
        return Err(field.fault(reason));
    }
    // Here, an empty list is no list: everybody, and everything.
    Ok(Rule {
        peers: Some(peers).filter(|list| !list.is_empty()),
        ports: Some(ports).filter(|list| !list.is_empty()),
    })
}

fn peer(field: &Field<'_, '_>) -> Result<Peer, Fault> {
    only(field, &["podSelector", "namespaceSelector", "ipBlock", UNREADABLE])?;
    if let Some(reason) = field.get(UNREADABLE)?.text()? {
        return Ok(Peer::Unreadable(reason.into()));
    }
    let [pods, namespaces, block] =
        [field.get("podSelector")?, field.get("namespaceSelector")?, field.get("ipBlock")?];
    match (block.is_absent(), pods.is_absent() && namespaces.is_absent()) {
        (true, true) => Err(field.fault("names nobody".into())),
        (false, false) => Err(field.fault("has an ipBlock and a selector".into())),
        (false, true) => Ok(Peer::Block(ip_block(&block)?)),
        (true, false) => {
            let of_namespaces = if namespaces.is_absent() { None } else { Some(selector(&namespaces)?) };
            Ok(Peer::Pods { namespaces: of_namespaces, pods: selector(&pods)? })
        }
    }
}

fn ip_block(field: &Field<'_, '_>) -> Result<IpBlock, Fault> {
    only(field, &["cidr", "except"])?;
    let cidr = lenient_cidr(&field.get("cidr")?)?;
    let mut except = field.get("except")?.each(lenient_cidr)?.into_vec();
    if except.len() > MOST_EXCEPTIONS {
        let reason = format!("has {} exceptions, more than {MOST_EXCEPTIONS}", except.len());
        return Err(field.get("except")?.fault(reason));
    }
    except.sort_unstable();
    except.dedup();
    Ok(IpBlock { cidr, except: except.into() })
}

/// A CIDR in any form that an API server has ever let pass, without its host bits.
fn lenient_cidr(field: &Field<'_, '_>) -> Result<IpNet, Fault> {
    let text = field.required_text()?;
    let wrong = || field.fault(format!("is {text:?}, not a CIDR such as 10.244.1.0/24"));
    let (address, length) = text.split_once('/').ok_or_else(wrong)?;
    let length: u8 = Some(length)
        .filter(|length| length.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|length| length.parse().ok())
        .ok_or_else(wrong)?;
    let (address, length) = match lenient_address(address).ok_or_else(wrong)? {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) if length >= 96 => (IpAddr::V4(v4), length - 96),
            _ => (IpAddr::V6(v6), length),
        },
        v4 @ IpAddr::V4(_) => (v4, length),
    };
    Ok(IpNet::new(address, length).map_err(|_| wrong())?.trunc())
}

fn lenient_address(text: &str) -> Option<IpAddr> {
    if let Some((head, tail)) = text.rsplit_once(':').filter(|(_, tail)| tail.contains('.')) {
        let tail: Ipv4Addr = lenient_v4(tail)?;
        return format!("{head}:{tail}").parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    }
    if text.contains(':') { text.parse().ok().map(IpAddr::V6) } else { lenient_v4(text).map(IpAddr::V4) }
}

/// Four decimal numbers, with or without leading zeros.
fn lenient_v4(text: &str) -> Option<Ipv4Addr> {
    let mut parts = text.split('.');
    let mut bytes = [0; 4];
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.bytes().all(|digit| digit.is_ascii_digit()))?;
        *byte = part.parse().ok()?;
    }
    parts.next().is_none().then(|| bytes.into())
}

fn port(field: &Field<'_, '_>) -> Result<PortMatch, Fault> {
    only(field, &["protocol", "port", "endPort", UNREADABLE])?;
    if let Some(reason) = field.get(UNREADABLE)?.text()? {
        return Ok(PortMatch::Unreadable(reason.into()));
    }
    let protocol = field.get("protocol")?.protocol()?;
    let (first, last) = (field.get("port")?, field.get("endPort")?);
    if first.is_absent() && last.is_absent() {
        return Ok(PortMatch::All(protocol));
    }
    if let Ok(Some(name)) = first.text() {
        return if last.is_absent() {
            Ok(PortMatch::Named(Some(protocol), name.into()))
        } else {
            Err(last.fault("stands beside a port's name".into()))
        };
    }
    let number = first.port()?.ok_or_else(|| last.fault("stands without a port".into()))?;
    range(field, protocol, number, last.port()?.unwrap_or(number))
}

fn range(field: &Field<'_, '_>, protocol: Protocol, first: u16, last: u16) -> Result<PortMatch, Fault> {
    if last < first {
        return Err(field.fault(format!("ends with {last}, before {first}")));
    }
    Ok(PortMatch::Range(protocol, first, last))
}

pub(crate) fn cluster_network_policy(document: &Field<'_, '_>) -> Result<ClusterNetworkPolicy, Fault> {
    let name = document.cluster_name(check_subdomain)?;
    let spec = document.get("spec")?;
    let mut faults = kept_faults(&spec);
    let subject = spec.get("subject").and_then(|field| subject(&field));
    let audit = in_audit(document);
    let subject = match (subject, faults.is_empty()) {
        (Ok(subject), _) => Some(subject),
        (Err(fault), told_before) => {
            if told_before {
                faults.push(told(&fault, "it is about no pod"));
            }
            None
        }
    };
    let known = ["tier", "priority", "subject", "ingress", "egress", UNREADABLE];
    let place = only(&spec, &known).and_then(|()| Ok((tier(&spec.get("tier")?)?, priority(&spec)?)));
    let (tier, priority, ingress, egress) = match place {
        Ok((tier, priority)) => {
            (tier, priority, cluster_rules(&spec, "ingress", "from"), cluster_rules(&spec, "egress", "to"))
        }
        Err(fault) => {
            faults.push(told(&fault, "it denies its pods everything, before all others"));
            let denied = || Box::from([ClusterRule::unreadable("", None, why(&fault))]);
            (Tier::Admin, 0, denied(), denied())
        }
    };
    let audit = audit.unwrap_or_else(|fault| {
        faults.push(told(&fault, "it is enforced"));
        false
    });
    Ok(ClusterNetworkPolicy { name, tier, priority, subject, ingress, egress, audit, faults: faults.into() })
}

fn tier(field: &Field<'_, '_>) -> Result<Tier, Fault> {
    match field.required_text()? {
        "Admin" => Ok(Tier::Admin),
        "Baseline" => Ok(Tier::Baseline),
        other => Err(field.fault(format!("is {other:?}, neither Admin nor Baseline"))),
    }
}

fn priority(spec: &Field<'_, '_>) -> Result<u16, Fault> {
    let field = spec.get("priority")?;
    let number = field.number(0, 1000)?.and_then(|number| u16::try_from(number).ok());
    number.ok_or_else(|| field.fault("is missing".into()))
}

fn subject(field: &Field<'_, '_>) -> Result<PodSelector, Fault> {
    only(field, &["namespaces", "pods"])?;
    pods_of(field)?.ok_or_else(|| field.fault("names nobody".into()))
}

/// The fields `namespaces` or `pods`, of which there is to be one.
fn pods_of(field: &Field<'_, '_>) -> Result<Option<PodSelector>, Fault> {
    let (namespaces, pods) = (field.get("namespaces")?, field.get("pods")?);
    match (namespaces.is_absent(), pods.is_absent()) {
        (true, true) => Ok(None),
        (false, false) => Err(field.fault("has namespaces and pods".into())),
        (false, true) => {
            Ok(Some(PodSelector { namespaces: selector(&namespaces)?, pods: Selector::default() }))
        }
        (true, false) => {
            only(&pods, &["namespaceSelector", "podSelector"])?;
            let namespaces = selector(&pods.get("namespaceSelector")?)?;
            Ok(Some(PodSelector { namespaces, pods: selector(&pods.get("podSelector")?)? }))
        }
    }
}

/// The rules of one direction; one that cannot be read denies everything, unless it was to accept.
fn cluster_rules(spec: &Field<'_, '_>, direction: &str, peers: &str) -> Box<[ClusterRule]> {
    let closed = |name: &str, action, fault: &Fault| ClusterRule::unreadable(name, action, why(fault));
    let read = spec.get(direction).and_then(|field| {
        field.each(|field| {
            let named = field.get("name").and_then(|name| name.text()).ok().flatten().unwrap_or_default();
            let action = field.get("action").and_then(|action| self::action(&action));
            Ok(match (action, cluster_rule(field, peers)) {
                (Ok(action), Ok((peers, ports))) => ClusterRule { name: named.into(), action, peers, ports },
                (Ok(action), Err(fault)) => closed(named, Some(action), &fault),
                (Err(fault), _) => closed(named, None, &fault),
            })
        })
    });
    read.unwrap_or_else(|fault| Box::from([closed("", None, &fault)]))
}

fn action(field: &Field<'_, '_>) -> Result<Action, Fault> {
    let text = field.required_text()?;
    let known = Action::ALL.into_iter().find(|action| action.as_str() == text);
    known.ok_or_else(|| field.fault(format!("is {text:?}, none of Accept, Deny and Pass")))
}

type Traffic = (ClusterPeers, Option<Box<[PortMatch]>>);

fn cluster_rule(field: &Field<'_, '_>, key: &str) -> Result<Traffic, Fault> {
    only(field, &["name", "action", key, "protocols", UNREADABLE])?;
    if let Some(reason) = field.get(UNREADABLE)?.text()? {
        return Ok((ClusterPeers::Unreadable(reason.into()), None));
    }
    let peers = field.get(key)?;
    let egress = key == "to";
    let peers = peers.each(|peer| cluster_peer(peer, egress))?;
    let mut ports = Vec::new();
    for item in field.get("protocols")?.items()? {
        ports.push(cluster_port(&item)?);
    }
    // Here, too, no list is everything; a list of peers there must be.
    let ports = (!ports.is_empty()).then(|| ports.into());
    Ok((ClusterPeers::Any(peers), ports))
}

fn cluster_peer(field: &Field<'_, '_>, egress: bool) -> Result<ClusterPeer, Fault> {
    only(
        field,
        if egress {
            &["namespaces", "pods", "nodes", "networks", "domainNames"]
        } else {
            &["namespaces", "pods"]
        },
    )?;
    let present = field.entries()?.len();
    if present != 1 {
        return Err(field.fault(format!("has {present} fields; it is to be one kind of peer")));
    }
    if let Some(pods) = pods_of(field)? {
        return Ok(ClusterPeer::Pods(pods));
    }
    let [nodes, networks, names] = [field.get("nodes")?, field.get("networks")?, field.get("domainNames")?];
    if !nodes.is_absent() {
        return Ok(ClusterPeer::Nodes(selector(&nodes)?));
    }
    if !networks.is_absent() {
        return Ok(ClusterPeer::Networks(networks.each(lenient_cidr)?));
    }
    if !names.is_absent() {
        return Ok(ClusterPeer::DomainNames(
            names.each(|name| Ok(name.required_text()?.to_lowercase().into()))?,
        ));
    }
    Err(field.fault("names nobody".into()))
}

fn cluster_port(field: &Field<'_, '_>) -> Result<PortMatch, Fault> {
    only(field, &["tcp", "udp", "sctp", "destinationNamedPort"])?;
    if field.entries()?.len() != 1 {
        return Err(field.fault("is to be one of tcp, udp, sctp and destinationNamedPort".into()));
    }
    let name = field.get("destinationNamedPort")?;
    if !name.is_absent() {
        return Ok(PortMatch::Named(None, name.required_text()?.into()));
    }
    for (key, protocol) in [("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("sctp", Protocol::Sctp)] {
        let part = field.get(key)?;
        if !part.is_absent() {
            return transport(&part, protocol);
        }
    }
    Err(field.fault("names no protocol".into()))
}

fn transport(field: &Field<'_, '_>, protocol: Protocol) -> Result<PortMatch, Fault> {
    only(field, &["destinationPort"])?;
    let port = field.get("destinationPort")?;
    if port.is_absent() {
        return Ok(PortMatch::All(protocol));
    }
    only(&port, &["number", "range"])?;
    if let Some(number) = port.get("number")?.port()? {
        return Ok(PortMatch::Range(protocol, number, number));
    }
    let both = port.get("range")?;
    only(&both, &["start", "end"])?;
    let (first, last) = (both.get("start")?.port()?, both.get("end")?.port()?);
    let (Some(first), Some(last)) = (first, last) else {
        return Err(port.fault("has neither a number nor a whole range".into()));
    };
    range(&both, protocol, first, last)
}
