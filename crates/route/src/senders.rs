//! What keeps pods from sending with addresses that are not their own, by which policies would take them for others.
//!
//! Read [`table`]. A packet that comes out of a pod's cable is dropped unless the way back to its sender is that cable: the
//! host has a route to each address of a pod, and no other route leads there. Pods' cables are known by their group, so no
//! pod is an element of anything. It is before connections are tracked: such a packet leaves no trace.
//!
//! Pods of a bridge are told apart by their addresses alone, so there a pod may still take the address of another one on
//! the same bridge. What the bridge carries from or to a link-local address is dropped where policies are enforced: who has such an
//! address, no policy can know. Neighbour discovery passes, without which a pod has no network.
//!
//! What stays true: the table follows from the configuration alone.

use netstate::nft::{
    BaseChain, Chain, ChainKind, Family as TableFamily, Field, Hook, IpVersion, Operator, Policy, Rule,
    Statement, Table, Value, Verdict, priority,
};
use netstate::{LinkName, POD_BRIDGE, POD_LINK_GROUP};

/// The name of the table.
const TABLE: &str = "fairlead_senders";

/// The protocol number of ICMPv6.
const ICMPV6: u8 = 58;
/// Multicast listeners (RFC 2710), and router and neighbour solicitations and advertisements, and redirects (RFC 4861).
const LINK_MAINTENANCE: (u8, u8) = (130, 137);

/// How far a node looks at who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Senders {
    /// Whether what a pod sends with an address that is not its own is dropped.
    pub checked: bool,
    /// Whether pods are on a bridge.
    pub bridge: bool,
    /// Whether network policies are enforced.
    pub policed: bool,
}

/// The table; none where nothing is looked at.
pub(crate) fn table(senders: Senders) -> Option<Table> {
    let bridge = POD_BRIDGE.parse::<LinkName>().ok().filter(|_| senders.bridge).map(Value::Ifname);
    let cable = Statement::equal(Field::InputGroup, Value::Number(POD_LINK_GROUP));
    let mut table = Table::new(TableFamily::Inet, TABLE);
    if senders.checked {
        let mut chain = base("prerouting", Hook::Prerouting, priority::RAW)
            .with_rule(maintenance([cable.clone()].into()))
            .with_rule(drop([cable, Statement::SourceIsElsewhere].into(), "not the pod's address"));
        if let Some(bridge) = bridge {
            // Who has a link-local address is nobody's route to say.
            for version in [IpVersion::V4, IpVersion::V6] {
                let (field, operator) = (Field::Source(version), Operator::NotEqual);
                let statements = [
                    Statement::equal(Field::InputLink, bridge),
                    Statement::Match { field, operator, value: Value::Network(version.link_local()) },
                    Statement::SourceIsElsewhere,
                ];
                chain = chain.with_rule(drop(statements.into(), "no pod's address"));
            }
        }
        table = table.with_chain(chain);
    }
    if let Some(bridge) = bridge.filter(|_| senders.policed) {
        let ports = [Field::InputLink, Field::OutputLink].map(|field| Statement::equal(field, bridge));
        let mut chain =
            base("forward", Hook::Forward, priority::FILTER).with_rule(maintenance(ports.to_vec()));
        for end in [Field::Source(IpVersion::V6), Field::Destination(IpVersion::V6)] {
            let link_local = Statement::equal(end, Value::Network(IpVersion::V6.link_local()));
            let statements = [&ports[..], &[link_local]].concat();
            chain = chain.with_rule(drop(statements, "link-local, so of nobody whom policies know"));
        }
        table = table.with_chain(chain);
    }
    (!table.chains.is_empty()).then_some(table)
}

/// Lets what keeps up the link pass, of packets of which these hold.
fn maintenance(mut statements: Vec<Statement>) -> Rule {
    let (first, last) = LINK_MAINTENANCE;
    statements.extend([
        Statement::equal(Field::Protocol, Value::Protocol(ICMPV6)),
        Statement::Between {
            field: Field::IcmpType,
            operator: Operator::Equal,
            first: Value::Protocol(first),
            last: Value::Protocol(last),
        },
        Statement::Verdict(Verdict::Accept),
    ]);
    Rule::new(statements).with_comment("neighbour discovery")
}

fn drop(mut statements: Vec<Statement>, why: &str) -> Rule {
    statements.extend([Statement::Counter, Statement::Verdict(Verdict::Drop)]);
    Rule::new(statements).with_comment(why)
}

fn base(name: &str, hook: Hook, priority: i32) -> Chain {
    Chain::base(name, BaseChain { kind: ChainKind::Filter, hook, priority, policy: Policy::Accept })
}
