//! Address translation for pod traffic that leaves the cluster.
//!
//! Read [`Masquerade`], then [`table`]. One table, `inet fairlead`, one chain, a few static rules for each family; the cluster's
//! networks are the elements of two interval sets, so nothing here changes when nodes or pods do:
//!
//! 1. what the cluster sends to the cluster, to a network that is excepted, or to a multicast group, keeps its source;
//! 2. what the cluster sends elsewhere leaves with the node's address;
//! 3. what others send through the tunnel (a process on the node that is bound to the node's own address, or a
//!    machine beyond it) gets the tunnel's address, so that the answer returns through the tunnel as well and
//!    no node's reverse-path filter sees half a conversation.
//!
//! The chain stands one behind those of kube-proxy, of the host-port plugin and of iptables (all at `srcnat`). A connection is
//! translated once, by the first that wants to. So what kube-proxy has marked for itself is translated by kube-proxy, which
//! also takes its mark off: a packet that kept the mark would be translated again once it is in the tunnel.

use ipnet::IpNet;
use netstate::LinkName;
use netstate::nft::{
    BaseChain, Chain, ChainKind, Family as TableFamily, Field, Hook, IpVersion, Policy, Rule, Set, Statement,
    Table, Value, Verdict, priority,
};

use crate::family::Family;

/// The name of the agent's table.
pub const TABLE: &str = "fairlead";

/// Behind everybody who translates sources at the usual place.
const PRIORITY: i32 = priority::SRCNAT + 1;

/// What is translated of what leaves the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Masquerade<'a> {
    /// The families in which something is; none of them for nothing at all.
    pub families: &'a [Family],
    /// Whether ports are chosen at random, so that connections made at one moment do not fight for the same one.
    pub fully_random: bool,
    /// Destinations beyond the cluster that see pods' own addresses.
    pub exceptions: &'a [IpNet],
}

/// The table for a cluster of these networks, whose nodes these tunnels join.
#[must_use]
pub fn table(masquerade: &Masquerade<'_>, cluster: &[IpNet], tunnels: &[LinkName]) -> Table {
    let mut table = Table::new(TableFamily::Inet, TABLE);
    let base = BaseChain {
        kind: ChainKind::Nat,
        hook: Hook::Postrouting,
        priority: PRIORITY,
        policy: Policy::Accept,
    };
    let mut chain = Chain::base("postrouting", base);
    for family in Family::ALL.into_iter().filter(|family| masquerade.families.contains(family)) {
        let words = Words::of(family);
        let Some(networks) = set(words.cluster, family, cluster) else { continue };
        table = table.with_set(networks);
        let exceptions = set(words.exceptions, family, masquerade.exceptions);
        let rules = Rules { words, tunnels, fully_random: masquerade.fully_random };
        for rule in rules.list(exceptions.is_some()) {
            chain = chain.with_rule(rule);
        }
        table = exceptions.into_iter().fold(table, Table::with_set);
    }
    table.with_chain(chain)
}

/// The set of that name with the networks of one family; none where there are none.
fn set(name: &str, family: Family, networks: &[IpNet]) -> Option<Set> {
    let networks: Vec<IpNet> =
        networks.iter().filter(|net| Family::of_net(net) == family).map(IpNet::trunc).collect();
    let empty = Set::interval(name, [Words::of(family).version.key_type()]);
    let aggregate = IpNet::aggregate(&networks);
    (!aggregate.is_empty())
        .then(|| aggregate.into_iter().fold(empty, |set, net| set.with_element([Value::Network(net)], None)))
}

/// What differs between the families.
struct Words {
    cluster: &'static str,
    exceptions: &'static str,
    version: IpVersion,
}

impl Words {
    fn of(family: Family) -> Self {
        match family {
            Family::V4 => Self { cluster: "cluster4", exceptions: "exceptions4", version: IpVersion::V4 },
            Family::V6 => Self { cluster: "cluster6", exceptions: "exceptions6", version: IpVersion::V6 },
        }
    }
}

/// What the rules of a family are made of.
struct Rules<'a> {
    words: Words,
    tunnels: &'a [LinkName],
    fully_random: bool,
}

impl Rules<'_> {
    fn list(&self, has_exceptions: bool) -> Vec<Rule> {
        let Words { cluster, exceptions, version } = self.words;
        let from_cluster = Statement::in_set([Field::Source(version)], cluster);
        let masquerade = Statement::Masquerade { fully_random: self.fully_random };
        let kept = |set: &str| {
            Rule::new([
                from_cluster.clone(),
                Statement::in_set([Field::Destination(version)], set),
                Statement::Verdict(Verdict::Return),
            ])
        };
        let mut rules = vec![kept(cluster)];
        rules.extend(has_exceptions.then(|| kept(exceptions)));
        rules.push(Rule::new([
            from_cluster.clone(),
            Statement::destination_not_in(version.multicast()),
            masquerade.clone(),
        ]));
        rules.extend(self.tunnels.iter().map(|tunnel| {
            Rule::new([
                Statement::equal(Field::OutputLink, Value::Ifname(*tunnel)),
                Statement::not_in_set([Field::Source(version)], cluster),
                masquerade.clone(),
            ])
        }));
        rules
    }
}
