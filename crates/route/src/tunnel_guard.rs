//! What keeps pods from speaking as a node: packets of theirs to the nodes' tunnels are dropped.
//!
//! Read [`rules`]. A tunnel without keys takes what is in its packets for another node's, so a pod that sent such packets to a
//! node would be whoever it likes there, past all policies. They are dropped where they begin, for on their way out of the
//! cluster they get the node's own address; and, for what comes from pods of other nodes through the tunnel, at this host.
//! What pods send to each other at such a port passes: they may have tunnels of their own.
//!
//! A node is whoever is outside of the cluster's networks, and within them this host's own addresses, and all broadcast addresses, which
//! it hears too. It is asked when a packet arrives, and so of the address it was sent to; what a Service, or whoever else translates,
//! makes of that is asked again when its connection begins. That costs the packets of the tunnel itself one look at their sender.
//!
//! The networks stand in rules, not in sets: of the few that a cluster has, comparing costs a packet less than looking up.
//!
//! Each tunnel that this node has has its rules. WireGuard is none of them: it takes nothing from whom it does not know.

use std::slice;

use ipnet::IpNet;
use netstate::nft::{
    Chain, ChainKind, Field, Hook, Operator, Rule, Statement, Table, Value, Verdict, ct_status, priority,
};

use crate::antispoof::{base, drop, lead};
use crate::design::Inputs;
use crate::underlay::Underlay;

/// The chain for packets that a tunnel takes.
const TUNNEL: &str = "tunnel";
/// The chain for those of them that are pods'.
const FROM_POD: &str = "from-pod";

/// Before everybody who translates sources at the usual place: after the first who does, no other is asked.
const TRANSLATED: i32 = priority::SRCNAT - 1;

const UDP: u8 = 17;
const IPV4_IN_IP: u8 = 4;
const IPV6_IN_IP: u8 = 41;

/// How a tunnel's packets are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entrance {
    /// They are UDP to this port.
    Udp(u16),
    /// They are IP in IP.
    IpInIp,
}

impl Entrance {
    /// What a packet to it has, one list for each kind of packet.
    fn conditions(self) -> Vec<Vec<Statement>> {
        let protocol = |number| Statement::equal(Field::Protocol, Value::Protocol(number));
        match self {
            Self::Udp(port) => {
                vec![vec![protocol(UDP), Statement::equal(Field::DestinationPort, Value::Port(port))]]
            }
            Self::IpInIp => [IPV4_IN_IP, IPV6_IN_IP].map(|number| vec![protocol(number)]).into(),
        }
    }
}

/// What is asked of packets that arrive; adds to the table what this takes. Nothing where there is nothing to keep, nor where nodes have
/// addresses among those of pods (`cluster.allowOverlap`), for then nobody can tell them apart.
pub(crate) fn rules(inputs: &Inputs<'_>, entrances: &[Entrance], table: &mut Table) -> Vec<Rule> {
    let cluster = inputs.cluster;
    let underlays = inputs.underlays.values().chain([inputs.underlay]);
    let among_pods = |underlay: &Underlay| cluster.iter().any(|network| network.contains(&underlay.address));
    if entrances.is_empty() || cluster.is_empty() || underlays.into_iter().any(among_pods) {
        return Vec::new();
    }
    let (mut tunnel, mut from_pod) = (Chain::regular(TUNNEL), Chain::regular(FROM_POD));
    for network in IpNet::aggregate(&cluster.iter().map(IpNet::trunc).collect()) {
        let from = Statement::source_in(network);
        tunnel.rules.push(lead([from].into(), Verdict::Goto(FROM_POD.to_owned())));
        let to = [Statement::destination_in(network), Statement::DestinationIsUnicast];
        from_pod.rules.push(lead(to.into(), Verdict::Return).with_comment("to a pod"));
    }
    from_pod.rules.push(drop(Vec::new(), "a pod's, to a node's tunnel"));
    let conditions: Vec<Vec<Statement>> =
        entrances.iter().flat_map(|entrance| entrance.conditions()).collect();
    let enter = |conditions: &Vec<Statement>| lead(conditions.clone(), Verdict::Goto(TUNNEL.to_owned()));
    let chains = [tunnel, from_pod].into_iter().chain(translated(inputs, &conditions));
    table.chains.extend(chains.map(|chain| (chain.name.clone(), chain)));
    conditions.iter().map(enter).collect()
}

/// What asks the same of packets whose destination was translated after they arrived: the beginnings of connections come to such
/// chains, and no others. Where this node has no connections tracked they are none: they alone would have it track all.
fn translated(inputs: &Inputs<'_>, conditions: &[Vec<Statement>]) -> Vec<Chain> {
    if inputs.masquerade.families.is_empty() && !inputs.senders.policed {
        return Vec::new();
    }
    let translated = Statement::MaskedMatch {
        field: Field::CtStatus,
        mask: ct_status::DESTINATION_TRANSLATED,
        operator: Operator::NotEqual,
        value: 0,
    };
    let rules = conditions.iter().map(|conditions| {
        let statements = [slice::from_ref(&translated), conditions].concat();
        lead(statements, Verdict::Goto(TUNNEL.to_owned()))
    });
    let rules: Vec<Rule> = rules.collect();
    let chain =
        |(name, hook)| Chain { rules: rules.clone(), ..base(name, (ChainKind::Nat, hook, TRANSLATED)) };
    [("input", Hook::Input), ("postrouting", Hook::Postrouting)].map(chain).into()
}
