//! Address translation for pod traffic that leaves the cluster.
//!
//! Read [`table`]. One table, `inet fairlead`, one chain, three static rules for each family; the cluster's
//! networks are the elements of two interval sets, so nothing here changes when nodes or pods do:
//!
//! 1. what the cluster sends to the cluster, or to a multicast group, keeps its source;
//! 2. what the cluster sends elsewhere leaves with the node's address;
//! 3. what others send through the tunnel (a process on the node that is bound to the node's own address, or a
//!    machine beyond it) gets the tunnel's address, so that the answer returns through the tunnel as well and
//!    no node's reverse-path filter sees half a conversation.

use ipnet::IpNet;
use netstate::LinkName;
use netstate::nft::{
    BaseChain, Chain, ChainKind, Family as TableFamily, Field, Hook, IpVersion, Policy, Rule, Set, Statement,
    Table, Value, Verdict, priority,
};

use crate::family::Family;

/// The name of the agent's table.
pub const TABLE: &str = "fairlead";

/// The masquerade table for a cluster of these networks, whose nodes these tunnels join.
#[must_use]
pub fn table(cluster: &[IpNet], tunnels: &[LinkName]) -> Table {
    let mut table = Table::new(TableFamily::Inet, TABLE);
    let base = BaseChain {
        kind: ChainKind::Nat,
        hook: Hook::Postrouting,
        priority: priority::SRCNAT,
        policy: Policy::Accept,
    };
    let mut chain = Chain::base("postrouting", base);
    for family in Family::ALL {
        let networks: Vec<IpNet> =
            cluster.iter().copied().filter(|net| Family::of_net(net) == family).collect();
        if networks.is_empty() {
            continue;
        }
        let words = Words::of(family);
        let mut set = Set::interval(words.set, [words.version.key_type()]);
        for net in IpNet::aggregate(&networks) {
            set = set.with_element([Value::Network(net)], None);
        }
        table = table.with_set(set);
        for rule in rules(&words, tunnels) {
            chain = chain.with_rule(rule);
        }
    }
    table.with_chain(chain)
}

/// What differs between the families.
struct Words {
    set: &'static str,
    version: IpVersion,
}

impl Words {
    fn of(family: Family) -> Self {
        match family {
            Family::V4 => Self { set: "cluster4", version: IpVersion::V4 },
            Family::V6 => Self { set: "cluster6", version: IpVersion::V6 },
        }
    }
}

fn rules(words: &Words, tunnels: &[LinkName]) -> Vec<Rule> {
    let from_cluster = Statement::in_set([Field::Source(words.version)], words.set);
    let masquerade = Statement::Masquerade { fully_random: true };
    let inside = Rule::new([
        from_cluster.clone(),
        Statement::in_set([Field::Destination(words.version)], words.set),
        Statement::Verdict(Verdict::Return),
    ]);
    let outside = Rule::new([
        from_cluster,
        Statement::destination_not_in(words.version.multicast()),
        masquerade.clone(),
    ]);
    let foreign = tunnels.iter().map(|tunnel| {
        Rule::new([
            Statement::equal(Field::OutputLink, Value::Ifname(*tunnel)),
            Statement::not_in_set([Field::Source(words.version)], words.set),
            masquerade.clone(),
        ])
    });
    [inside, outside].into_iter().chain(foreign).collect()
}
