//! What a rule of the table stands for, and how it tells of what it decides.
//!
//! Read [`Origin`], which says for each rule whose it is, so that what the kernel counts and tells can be laid at the door
//! of a policy's rule; then [`Teller`], which writes the rules that tell. What is told has a name of its own, the log's
//! prefix: what was decided, the chain that decided, and where in it. Chains are named by what they stand for, so the
//! prefix finds the policies again ([`crate::Policies`] knows its chains).

use netstate::nft::{Limit, Log, Statement};

/// So many bytes of a packet say who talks to whom: two headers of IPv6 with room for options.
const HEADERS: u32 = 128;

/// What of its decisions a node's table tells; all of them are counted anyway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Logging {
    /// The group of nfnetlink_log that is told; nobody if there is none, and the kernel need not know how.
    pub group: Option<u16>,
    /// Which verdicts on new connections are told, besides what policies in audit would deny.
    pub verdicts: Verdicts,
    /// Of each rule, so many a second at most; 0 for 10.
    pub per_second: u32,
}

/// Verdicts on new connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdicts {
    /// None.
    #[default]
    None,
    /// Those that deny.
    Denied,
    /// All.
    All,
}

/// What became of a packet that is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Decided {
    /// It passed this direction.
    Allowed,
    /// It was dropped.
    Denied,
    /// Policies in audit would deny it: NetworkPolicies what passed this direction, a ClusterNetworkPolicy what came as far as it.
    WouldDeny,
}

impl Decided {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Allowed, Self::Denied, Self::WouldDeny];

    /// In a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::WouldDeny => "would-deny",
        }
    }
}

/// What a rule of the table stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Origin {
    /// It leads on to other chains, or lets a pod reach itself.
    Frame,
    /// It tells of what the next one decides.
    Telling,
    /// A rule of the chain's NetworkPolicy, by its place.
    Rule(u16),
    /// A rule of one of the chain's ClusterNetworkPolicies: which one, and the rule's place.
    ClusterRule(u16, u16),
    /// The end of a profile that is isolated, or of what is closed: nothing allowed it.
    Isolated,
    /// The end of a profile that would be isolated by policies in audit.
    Audited,
}

impl Origin {
    /// The rule at a place of a NetworkPolicy.
    pub(crate) fn rule(place: usize) -> Self {
        Self::Rule(short(place))
    }

    /// The rule at a place of one of a tier's policies.
    pub(crate) fn cluster_rule(which: usize, place: usize) -> Self {
        Self::ClusterRule(short(which), short(place))
    }
}

/// No object that a store takes has so many rules.
fn short(place: usize) -> u16 {
    u16::try_from(place).unwrap_or(u16::MAX)
}

/// Writes what tells of the decisions of a chain.
#[derive(Debug)]
pub(crate) struct Teller<'t> {
    /// What is told at all.
    pub(crate) logging: Logging,
    /// The chain's name.
    pub(crate) chain: &'t str,
}

impl Teller<'_> {
    /// The rule that tells of a decision under these conditions, if it is to be told.
    pub(crate) fn tell(
        &self,
        decided: Decided,
        origin: Origin,
        conditions: &[Statement],
    ) -> Option<Vec<Statement>> {
        let told = match decided {
            Decided::Allowed => self.logging.verdicts == Verdicts::All,
            Decided::Denied => self.logging.verdicts >= Verdicts::Denied,
            Decided::WouldDeny => true,
        };
        let group = self.logging.group.filter(|_| told)?;
        let per_second = match self.logging.per_second {
            0 => 10,
            number => number,
        };
        let limit = Limit { per_second, burst: per_second };
        let prefix = Prefix { decided, chain: self.chain.into(), origin }.to_string();
        let log = Log { group, prefix, bytes: HEADERS };
        Some(conditions.iter().cloned().chain([Statement::Limit(limit), Statement::Log(log)]).collect())
    }
}

/// What the prefix of a log says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prefix {
    /// What became of the packet.
    pub(crate) decided: Decided,
    /// The chain in which.
    pub(crate) chain: Box<str>,
    /// By what in it.
    pub(crate) origin: Origin,
}

impl std::fmt::Display for Prefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.decided.as_str(), self.chain)?;
        match self.origin {
            Origin::Rule(place) => write!(f, " {place}"),
            Origin::ClusterRule(which, place) => write!(f, " {which}.{place}"),
            Origin::Frame | Origin::Telling | Origin::Isolated | Origin::Audited => Ok(()),
        }
    }
}

impl Prefix {
    /// Reads a prefix; `None` for one that is not ours.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let (decided, chain, place) = (words.next()?, words.next()?, words.next());
        let decided = Decided::ALL.into_iter().find(|known| known.as_str() == decided)?;
        let origin = match (place, decided) {
            (None, Decided::WouldDeny) => Origin::Audited,
            (None, _) => Origin::Isolated,
            (Some(place), _) => match place.split_once('.') {
                None => Origin::Rule(place.parse().ok()?),
                Some((which, place)) => Origin::ClusterRule(which.parse().ok()?, place.parse().ok()?),
            },
        };
        words.next().is_none().then(|| Self { decided, chain: chain.into(), origin })
    }
}

#[cfg(test)]
mod tests {
    use super::{Decided, Origin, Prefix};

    #[test]
    fn a_prefix_is_read_as_it_was_written_and_a_foreign_one_is_none() {
        let origins = [Origin::Rule(3), Origin::ClusterRule(0, 24), Origin::Isolated];
        for origin in origins {
            let prefix = Prefix { decided: Decided::Denied, chain: "ingress-pod-0123".into(), origin };
            assert_eq!(Prefix::read(&prefix.to_string()), Some(prefix));
        }
        let audited = Prefix { decided: Decided::WouldDeny, chain: "c".into(), origin: Origin::Audited };
        assert_eq!(Prefix::read("would-deny c"), Some(audited));
        for foreign in ["", "denied", "IN=eth0 x", "denied c x", "denied c 1.x", "denied c 1 2"] {
            assert_eq!(Prefix::read(foreign), None, "{foreign}");
        }
    }
}
