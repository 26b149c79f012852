//! What keeps pods from sending with addresses that are not their own, by which policies would take them for others.
//!
//! Read [`rules`]. A packet that comes out of a pod's cable is dropped unless the way back to its sender is that cable: the
//! host has a route to each address of a pod, and no other route leads there. Pods' cables are known by their group.
//!
//! Pods of a bridge are told apart by their addresses alone, so there a pod may still take the address of another one on
//! the same bridge. What the bridge carries from or to a link-local address is dropped where policies are enforced: who has such an
//! address, no policy can know. Neighbour discovery passes, without which a pod has no network.

use netstate::nft::{
    Chain, ChainKind, Field, Hook, IpVersion, Rule, Statement, Table, Value, Verdict, icmpv6_types, priority,
};
use netstate::{LinkName, POD_BRIDGE, POD_LINK_GROUP};

use crate::antispoof::{base, drop, lead};

/// The chain for what comes out of a pod's cable from an address whose way back is another one.
const FOREIGN_ON_A_CABLE: &str = "foreign-on-cable";
/// The same for what comes out of the bridge.
const FOREIGN_ON_THE_BRIDGE: &str = "foreign-on-bridge";

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

/// What is asked of packets that arrive; adds to the table the chains that this leads to, and the one for what a bridge carries.
pub(crate) fn rules(senders: Senders, table: &mut Table) -> Vec<Rule> {
    let bridge = POD_BRIDGE.parse::<LinkName>().ok().filter(|_| senders.bridge).map(Value::Ifname);
    if let Some(bridge) = bridge.filter(|_| senders.policed) {
        insert(table, across_the_bridge(bridge));
    }
    if !senders.checked {
        return Vec::new();
    }
    insert(table, foreign_on_a_cable());
    let elsewhere = |link, chain: &str| {
        lead([link, Statement::SourceIsElsewhere].into(), Verdict::Jump(chain.to_owned()))
    };
    let cable = Statement::equal(Field::InputGroup, Value::Number(POD_LINK_GROUP));
    let mut rules = vec![elsewhere(cable, FOREIGN_ON_A_CABLE)];
    if let Some(bridge) = bridge {
        insert(table, foreign_on_the_bridge());
        rules.push(elsewhere(Statement::equal(Field::InputLink, bridge), FOREIGN_ON_THE_BRIDGE));
    }
    rules
}

fn insert(table: &mut Table, chain: Chain) {
    table.chains.insert(chain.name.clone(), chain);
}

fn foreign_on_a_cable() -> Chain {
    Chain::regular(FOREIGN_ON_A_CABLE)
        .with_rule(maintenance(Vec::new()))
        .with_rule(drop(Vec::new(), "not the pod's address"))
}

fn foreign_on_the_bridge() -> Chain {
    // Who has a link-local address is nobody's route to say.
    let link_local =
        |version: IpVersion| lead([Statement::source_in(version.link_local())].into(), Verdict::Return);
    Chain::regular(FOREIGN_ON_THE_BRIDGE)
        .with_rule(link_local(IpVersion::V4))
        .with_rule(link_local(IpVersion::V6))
        .with_rule(drop(Vec::new(), "no pod's address"))
}

fn across_the_bridge(bridge: Value) -> Chain {
    let ports = [Field::InputLink, Field::OutputLink].map(|field| Statement::equal(field, bridge));
    let chain = base("forward", (ChainKind::Filter, Hook::Forward, priority::FILTER))
        .with_rule(maintenance(ports.to_vec()));
    [Field::Source(IpVersion::V6), Field::Destination(IpVersion::V6)].into_iter().fold(chain, |chain, end| {
        let link_local = Statement::equal(end, Value::Network(IpVersion::V6.link_local()));
        let statements = [&ports[..], &[link_local]].concat();
        chain.with_rule(drop(statements, "link-local, so of nobody whom policies know"))
    })
}

/// Lets what keeps up the link pass, of packets of which these hold.
fn maintenance(mut statements: Vec<Statement>) -> Rule {
    statements.extend(icmpv6_types(LINK_MAINTENANCE));
    statements.push(Statement::Verdict(Verdict::Accept));
    Rule::new(statements).with_comment("neighbour discovery")
}
