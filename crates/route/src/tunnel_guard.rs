//! What keeps pods from speaking as a node: packets of theirs to the nodes' tunnels are dropped.
//!
//! Read [`chains`]. A tunnel without keys takes what is in its packets for another node's, so a pod that sent such packets to a
//! node would be whoever it likes there, past all policies. They are dropped where they begin, for on their way out of the
//! cluster they get the node's own address; and, for what comes from pods of other nodes through the tunnel, at this host.
//! What pods send to each other at such a port passes: they may have tunnels of their own.
//!
//! A node is whoever is outside of the cluster's networks, and within them this host's own addresses, and all broadcast addresses, which
//! it hears too. That is asked just behind the translation of destinations ([`base_chains`]): there a Service's address has become the one
//! that it leads to, and an answer to somebody whose source was translated here has his own again: before it an answer has the port
//! that translation chose, which may be a tunnel's. What another node's translation gave that number at the node's own address gets no
//! answer: a connection that is known is no better witness than its ends, which a pod can be behind both.
//!
//! IPVS translates later, when a packet is about to be delivered, so the beginnings of connections are asked once more before they are
//! delivered or leave. Not asked is what IPVS hides from the kernel's tracking (`net.ipv4.vs.conntrack` is 0), nor anything of IPVS
//! where this node tracks nothing.
//!
//! The networks stand in rules, not in sets: of the few that a cluster has, comparing costs a packet less than looking up.
//!
//! Each tunnel that this node has has its rules. WireGuard is none of them: it takes nothing from whom it does not know.

use ipnet::IpNet;
use netstate::nft::{Chain, ChainKind, Field, Hook, Rule, Statement, Value, Verdict, priority};

use crate::antispoof::{base, drop, lead};
use crate::design::Inputs;
use crate::underlay::Underlay;

/// The chain for packets that a tunnel takes.
const TUNNEL: &str = "tunnel";
/// The chain for those of them that are pods'.
const FROM_POD: &str = "from-pod";

/// Behind everybody who translates destinations: the kernel does it at one place, whatever the priority of who says how.
const TRANSLATED: i32 = priority::DSTNAT + 1;
/// Before everybody who translates sources at the usual place: after the first who does, no other is asked.
const BEGINNING: i32 = priority::SRCNAT - 1;

const TCP: u8 = 6;
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
        match self {
            Self::Udp(port) => {
                vec![vec![protocol(UDP), Statement::equal(Field::DestinationPort, Value::Port(port))]]
            }
            Self::IpInIp => [IPV4_IN_IP, IPV6_IN_IP].map(|number| vec![protocol(number)]).into(),
        }
    }
}

fn protocol(number: u8) -> Statement {
    Statement::equal(Field::Protocol, Value::Protocol(number))
}

/// The chains that keep pods from the tunnels. None where there is nothing to keep, nor where nodes have addresses among those of pods
/// (`cluster.allowOverlap`), for then nobody can tell them apart.
pub(crate) fn chains(inputs: &Inputs<'_>, entrances: &[Entrance]) -> Vec<Chain> {
    let cluster = inputs.cluster;
    let underlays = inputs.underlays.values().chain([inputs.underlay]);
    let among_pods = |underlay: &Underlay| cluster.iter().any(|network| network.contains(&underlay.address));
    if entrances.is_empty() || cluster.is_empty() || underlays.into_iter().any(among_pods) {
        return Vec::new();
    }
    // Nobody else asks for tracking where neither is: these chains alone would have the node track all connections.
    let tracked = !inputs.masquerade.families.is_empty() || inputs.senders.policed;
    let (mut tunnel, mut from_pod) = (Chain::regular(TUNNEL), Chain::regular(FROM_POD));
    for network in IpNet::aggregate(&cluster.iter().map(IpNet::trunc).collect()) {
        let from = Statement::source_in(network);
        tunnel.rules.push(lead([from].into(), Verdict::Goto(FROM_POD.to_owned())));
        let to = [Statement::destination_in(network), Statement::DestinationIsUnicast];
        from_pod.rules.push(lead(to.into(), Verdict::Return).with_comment("to a pod"));
    }
    from_pod.rules.push(drop(Vec::new(), "a pod's, to a node's tunnel"));
    [base_chains(entrances, tracked), vec![tunnel, from_pod]].concat()
}

/// Where packets are asked: once each, and, where connections are tracked, the beginnings of them (for chains of translation see no
/// others) once more after IPVS.
fn base_chains(entrances: &[Entrance], tracked: bool) -> Vec<Chain> {
    let conditions = entrances.iter().flat_map(|entrance| entrance.conditions());
    let mut rules: Vec<Rule> =
        conditions.map(|conditions| lead(conditions, Verdict::Goto(TUNNEL.to_owned()))).collect();
    if rules.len() > 1 {
        rules.insert(0, lead(vec![protocol(TCP)], Verdict::Accept).with_comment("no tunnel's"));
    }
    let chain = |name, at| Chain { rules: rules.clone(), ..base(name, at) };
    let mut chains = vec![chain("translated", (ChainKind::Filter, Hook::Prerouting, TRANSLATED))];
    if tracked {
        chains.push(chain("input", (ChainKind::Nat, Hook::Input, BEGINNING)));
        chains.push(chain("postrouting", (ChainKind::Nat, Hook::Postrouting, BEGINNING)));
    }
    chains
}
