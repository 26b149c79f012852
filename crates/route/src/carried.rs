//! Who carries which pod CIDR where two nodes say they do.
//!
//! Read [`find`]. Of two CIDRs that overlap one node keeps the addresses, and every node decides alike: what is given to
//! pods now goes before what was, a claim before none, and then the node's name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use netstate::pool::overlaps;

use crate::design::Inputs;
use crate::peers::peers;
use crate::problem::Problem;

/// One node's pod CIDR as it stands in the sweep for overlaps.
struct Carried<'a> {
    cidr: IpNet,
    node: &'a Arc<str>,
    retained: bool,
    claimed: bool,
}

impl Carried<'_> {
    /// The smaller rank keeps the addresses: what is given to pods now goes before what was, a claim before none, and
    /// then the node's name decides.
    fn rank(&self) -> (bool, bool, &str) {
        (self.retained, !self.claimed, self.node)
    }
}

/// What must be left out because another node holds the addresses.
#[derive(Default)]
pub(crate) struct Overlaps<'a> {
    /// Whole nodes.
    pub(crate) nodes: BTreeMap<Arc<str>, Problem>,
    /// CIDRs of before of nodes that are otherwise well.
    pub(crate) cidrs: BTreeSet<(&'a Arc<str>, IpNet)>,
}

/// CIDRs nest or are apart, so one sweep in address order with a stack of what encloses the current one finds every
/// pair.
pub(crate) fn find<'a>(inputs: &Inputs<'a>) -> Overlaps<'a> {
    let claims = &inputs.snapshot.claims;
    let mut carried: Vec<Carried<'_>> = peers(inputs)
        .map(|lease| &**lease)
        .chain([inputs.lease])
        .flat_map(|lease| lease.pod_cidrs.iter().map(move |cidr| (lease, *cidr)))
        .map(|(lease, cidr)| {
            let claimed = claims.get(&cidr).is_some_and(|claim| claim.node == lease.node);
            Carried { cidr, node: &lease.node, retained: lease.is_retained(&cidr), claimed }
        })
        .collect();
    carried.sort_by_key(|one| (one.cidr.network(), one.cidr.prefix_len()));
    let mut losers = Overlaps::default();
    let mut enclosing: Vec<&Carried<'_>> = Vec::new();
    for one in &carried {
        enclosing.retain(|outer| overlaps(outer.cidr, one.cidr));
        for outer in enclosing.iter().filter(|outer| outer.node != one.node) {
            let (keeps, loses) = if outer.rank() <= one.rank() { (*outer, one) } else { (one, *outer) };
            if loses.retained {
                losers.cidrs.insert((loses.node, loses.cidr));
                continue;
            }
            losers.nodes.entry(loses.node.clone()).or_insert_with(|| Problem::Overlap {
                node: loses.node.clone(),
                cidr: loses.cidr,
                holder: keeps.node.clone(),
                theirs: keeps.cidr,
            });
        }
        enclosing.push(one);
    }
    losers
}
