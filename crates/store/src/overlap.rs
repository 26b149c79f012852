//! Which of the claims of pod CIDRs that overlap stays, where a store can compare one name at a time.
//!
//! Read [`verdict`]. A claim is named after its CIDR, so of two nodes that claim one CIDR the store lets one create it.
//! CIDRs of different lengths overlap under different names; so a claimant looks, creates, looks again, and of those
//! that overlap the one created first stays. All of them come to the same answer, since each has created its claim
//! before it looks.

use ipnet::IpNet;

use crate::Claimed;

/// A claim that somebody holds, as far as it can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) cidr: IpNet,
    /// The holder; none if that cannot be read, so it is not us.
    pub(crate) node: Option<String>,
    /// When it was created, in the store's own count.
    pub(crate) version: u64,
}

/// The claim that stands in the way of `wanted` for `node`. With `mine`, the version of our own claim of it, only
/// those created earlier do: the others will look as well, and go.
pub(crate) fn verdict<'h>(
    held: &'h [Held],
    wanted: IpNet,
    node: &str,
    mine: Option<u64>,
) -> Option<&'h Held> {
    let overlaps = |held: &&Held| held.cidr.contains(&wanted) || wanted.contains(&held.cidr);
    let others = held.iter().filter(|held| held.node.as_deref() != Some(node));
    others
        .filter(overlaps)
        .filter(|held| mine.is_none_or(|mine| held.version < mine))
        .min_by_key(|held| held.version)
}

/// What to tell the one who lost.
pub(crate) fn held_by(held: &Held) -> Claimed {
    Claimed::Held { cidr: held.cidr, node: held.node.clone().unwrap_or_else(|| "unknown".to_owned()) }
}

#[cfg(test)]
mod tests {
    use ipnet::IpNet;

    use super::{Held, verdict};

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn of_claims_that_overlap_the_first_stays_whoever_looks() {
        let held =
            |cidr: &str, node: &str, version| Held { cidr: net(cidr), node: Some(node.into()), version };
        let all = [
            held("10.0.0.0/16", "a", 7),
            held("10.0.1.0/24", "b", 8),
            held("10.0.1.0/25", "c", 9),
            held("fd00::/64", "d", 1),
        ];
        assert_eq!(verdict(&all, net("10.0.0.0/16"), "a", Some(7)), None);
        for (wanted, node, version) in [("10.0.1.0/24", "b", 8), ("10.0.1.0/25", "c", 9)] {
            assert_eq!(verdict(&all, net(wanted), node, Some(version)), Some(&all[0]));
        }
        assert_eq!(verdict(&all, net("10.0.1.0/24"), "e", None), Some(&all[0]));
        assert_eq!(verdict(&all, net("10.1.0.0/16"), "e", None), None);
        let unreadable = [Held { cidr: net("10.0.0.0/16"), node: None, version: 3 }];
        assert_eq!(verdict(&unreadable, net("10.0.1.0/24"), "e", None), Some(&unreadable[0]));
    }
}
