//! What keeps pods from speaking as a node: packets of theirs to the nodes' tunnels are dropped.
//!
//! Read [`table`]. A tunnel without keys takes what is in its packets for another node's, so a pod that sent such packets to a
//! node would be whoever it likes there, past all policies. They are dropped where they begin, for on their way out of the
//! cluster they get the node's own address; and, for what comes from pods of other nodes through the tunnel, at this host.
//! What pods send to each other at such a port passes: they may have tunnels of their own.
//!
//! The table `inet fairlead_tunnels` has rules for each such tunnel that this node has, and the cluster's networks as the elements
//! of a set. WireGuard is none of them: it takes nothing from whom it does not know.

use netstate::nft::{
    BaseChain, Chain, ChainKind, Family as TableFamily, Field, Hook, Policy, Rule, Statement, Table, Value,
    Verdict, priority,
};

use crate::design::Inputs;
use crate::family::Family;
use crate::masquerade::{Words, set};
use crate::underlay::Underlay;

/// The name of the table.
const TABLE: &str = "fairlead_tunnels";

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

/// The table for a node with these tunnels; none where there is nothing to keep, nor where nodes have addresses among those of pods
/// (`cluster.allowOverlap`), for then nobody can tell them apart.
pub(crate) fn table(inputs: &Inputs<'_>, entrances: &[Entrance]) -> Option<Table> {
    let cluster = inputs.cluster;
    let underlays = inputs.underlays.values().chain([inputs.underlay]);
    let among_pods = |underlay: &Underlay| cluster.iter().any(|network| network.contains(&underlay.address));
    if underlays.into_iter().any(among_pods) {
        return None;
    }
    let mut table = Table::new(TableFamily::Inet, TABLE);
    let mut chains = [Hook::Forward, Hook::Input].map(|hook| (hook, base(hook)));
    for family in Family::ALL {
        let Words { cluster: name, version, .. } = Words::of(family);
        let Some(networks) = set(name, family, cluster) else { continue };
        table = table.with_set(networks);
        for conditions in entrances.iter().flat_map(|entrance| entrance.conditions()) {
            for (hook, chain) in &mut chains {
                let mut statements = conditions.clone();
                statements.push(Statement::in_set([Field::Source(version)], name));
                if *hook == Hook::Forward {
                    statements.push(Statement::not_in_set([Field::Destination(version)], name));
                }
                statements.extend([Statement::Counter, Statement::Verdict(Verdict::Drop)]);
                chain.rules.push(Rule::new(statements));
            }
        }
    }
    let needed = !entrances.is_empty() && !table.sets.is_empty();
    needed.then(|| chains.into_iter().fold(table, |table, (_, chain)| table.with_chain(chain)))
}

fn base(hook: Hook) -> Chain {
    let name = if hook == Hook::Forward { "forward" } else { "input" };
    let policy = Policy::Accept;
    Chain::base(name, BaseChain { kind: ChainKind::Filter, hook, priority: priority::FILTER, policy })
}
