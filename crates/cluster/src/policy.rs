//! Network policies: who may talk to whom.
//!
//! Read [`NetworkPolicy`] first, then [`ClusterNetworkPolicy`]. Both are as Kubernetes means them after its defaults: what
//! the API server would fill in is filled in. What could not be read is kept as [`Peer::Unreadable`] and the like, in
//! the place where it stood, and fails closed: it opens nothing, and its policy isolates all the same.
//!
//! Kubernetes: `networking.k8s.io/v1` NetworkPolicy; `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::{Labels, NamespacedName, Protocol, Selector};

/// Which way a connection goes, seen from the pod that a policy is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the pod.
    Ingress,
    /// From the pod.
    Egress,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// In lower case, as a policy's field is called.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// A policy of one namespace: it isolates pods, and lets in or out what its rules allow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Its name.
    pub name: NamespacedName,
    /// The pods of its namespace that it is about.
    pub subjects: Selector,
    /// What may come in; `None` if it does not isolate its pods from what comes in.
    pub ingress: Option<Box<[Rule]>>,
    /// What may go out; `None` if it does not isolate its pods from what they reach.
    pub egress: Option<Box<[Rule]>>,
    /// It is in audit: it isolates nobody, and what it would deny is told instead of denied.
    pub audit: bool,
    /// What could not be read outside of the rules, and what it is taken for.
    pub faults: Box<[Box<str>]>,
}

/// What a NetworkPolicy allows: one of these peers on one of these ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// The other end; `None` for anybody.
    pub peers: Option<Box<[Peer]>>,
    /// The destination's port; `None` for all traffic of any protocol.
    pub ports: Option<Box<[PortMatch]>>,
}

/// The other end of a connection, as a NetworkPolicy names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Pods by their labels.
    Pods {
        /// The namespaces they are in; `None` for the policy's own.
        namespaces: Option<Selector>,
        /// The pods.
        pods: Selector,
    },
    /// Addresses, of pods as well.
    Block(IpBlock),
    /// What could not be read, and why: it is nobody.
    Unreadable(Box<str>),
}

/// The addresses of a network without those of some others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpBlock {
    /// The network, without host bits.
    pub cidr: IpNet,
    /// What is taken out of it, without host bits.
    pub except: Box<[IpNet]>,
}

impl IpBlock {
    /// Whether the address is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.cidr.contains(&address) && !self.except.iter().any(|taken| taken.contains(&address))
    }
}

/// Ports of a destination.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortMatch {
    /// Every port of a protocol.
    All(Protocol),
    /// The ports from the first to the last, both included.
    Range(Protocol, u16, u16),
    /// The port that the destination's containers give this name, for this protocol; for any if `None`.
    Named(Option<Protocol>, Box<str>),
    /// What could not be read, and why: no port at all.
    Unreadable(Box<str>),
}

/// A policy of the whole cluster: its rules decide before those of namespaces, or after them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterNetworkPolicy {
    /// Its name.
    pub name: Arc<str>,
    /// Before or after the policies of namespaces.
    pub tier: Tier,
    /// Its place in the tier, 0 to 1000; the lower one is asked first.
    pub priority: u16,
    /// The pods it is about; `None` if that could not be read, and then it is about none.
    pub subject: Option<PodSelector>,
    /// What decides on connections to them, in order.
    pub ingress: Box<[ClusterRule]>,
    /// What decides on connections from them, in order.
    pub egress: Box<[ClusterRule]>,
    /// It decides nothing: what it would deny is told.
    pub audit: bool,
    /// What could not be read outside of the rules, and what it is taken for.
    pub faults: Box<[Box<str>]>,
}

/// When a ClusterNetworkPolicy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Before NetworkPolicies.
    Admin,
    /// After them, for pods that none of them isolates.
    Baseline,
}

impl Tier {
    /// As Kubernetes spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "Admin",
            Self::Baseline => "Baseline",
        }
    }
}

/// Pods by their namespace's labels and their own.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodSelector {
    /// Their namespaces.
    pub namespaces: Selector,
    /// The pods in them.
    pub pods: Selector,
}

/// What a ClusterNetworkPolicy does with connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterRule {
    /// Its name; may be empty.
    pub name: Box<str>,
    /// What is done.
    pub action: Action,
    /// With whom.
    pub peers: ClusterPeers,
    /// On which ports; `None` for all traffic of any protocol.
    pub ports: Option<Box<[PortMatch]>>,
}

impl ClusterRule {
    /// What stands for a rule that could not be read: one that would have accepted does nothing, any other denies
    /// everything.
    pub fn unreadable(
        name: impl Into<Box<str>>,
        action: Option<Action>,
        reason: impl Into<Box<str>>,
    ) -> Self {
        let action = action.filter(|action| *action == Action::Accept).unwrap_or(Action::Deny);
        Self { name: name.into(), action, peers: ClusterPeers::Unreadable(reason.into()), ports: None }
    }
}

/// What a rule of a ClusterNetworkPolicy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Lets it through, whatever later ones say.
    Accept,
    /// Drops it, whatever later ones say.
    Deny,
    /// Leaves it to the tiers that follow.
    Pass,
}

impl Action {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Accept, Self::Deny, Self::Pass];

    /// As Kubernetes spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "Accept",
            Self::Deny => "Deny",
            Self::Pass => "Pass",
        }
    }
}

/// The other ends that a rule of a ClusterNetworkPolicy is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClusterPeers {
    /// Any of these.
    Any(Box<[ClusterPeer]>),
    /// They could not be read, and why: nobody for a rule that accepts, everybody for one that denies.
    Unreadable(Box<str>),
}

/// The other end of a connection, as a ClusterNetworkPolicy names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClusterPeer {
    /// Pods.
    Pods(PodSelector),
    /// Nodes, at their own addresses.
    Nodes(Selector),
    /// Addresses, of pods as well; without host bits.
    Networks(Box<[IpNet]>),
    /// What these domain names resolve to; `*.` at the beginning stands for one label or more.
    DomainNames(Box<[Box<str>]>),
}

/// The addresses that a domain name is known to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedName {
    /// The name, in lower case and without a dot at its end.
    pub name: Arc<str>,
    /// Its addresses.
    pub addresses: Box<[IpAddr]>,
}

/// Whether a domain name is one that `pattern`, an entry of [`ClusterPeer::DomainNames`], means.
pub fn domain_matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.trim_end_matches('.'), name.trim_end_matches('.'));
    match pattern.strip_prefix('*').filter(|rest| rest.starts_with('.')) {
        Some(rest) => name
            .len()
            .checked_sub(rest.len())
            .filter(|head| *head > 0)
            .and_then(|head| name.get(head..))
            .is_some_and(|tail| tail.eq_ignore_ascii_case(rest)),
        None => pattern.eq_ignore_ascii_case(name),
    }
}

/// The annotation that puts a policy of either kind into audit, by the value `true`.
pub const AUDIT_ANNOTATION: &str = "fairlead.io/audit";

/// The label that every namespace has, with its own name.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The labels of a namespace as selectors see them: with its name among them, whatever it says itself.
pub fn namespace_labels(name: &str, labels: &Labels) -> Labels {
    if labels.get(NAMESPACE_NAME_LABEL) == Some(name) {
        return labels.clone();
    }
    labels.iter().chain([(NAMESPACE_NAME_LABEL, name)]).collect()
}

impl NetworkPolicy {
    /// Its rules for a direction, in force or in audit; `None` if it is not about that direction.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }

    /// Its rules for a direction, if it is enforced there or, with `audit`, in audit there.
    pub fn rules_in_force(&self, direction: Direction, audit: bool) -> Option<&[Rule]> {
        self.rules(direction).filter(|_| self.audit == audit)
    }

    /// What stands for it where it cannot be enforced as it is: it isolates the same pods, and allows nothing; in audit it is about
    /// nobody, for it would tell of what it would not deny.
    pub fn closed(&self, reason: &str) -> Self {
        let nothing =
            |rules: &Option<Box<[Rule]>>| rules.as_ref().filter(|_| !self.audit).map(|_| Box::default());
        let (ingress, egress) = (nothing(&self.ingress), nothing(&self.egress));
        Self { ingress, egress, faults: one_more(&self.faults, reason), ..self.clone() }
    }

    /// Everything in it that could not be read.
    pub fn all_faults(&self) -> impl Iterator<Item = &str> {
        let rules = self.ingress.iter().chain(&self.egress).flatten();
        let in_rules = rules.flat_map(|rule| {
            let peers = rule.peers.iter().flatten().filter_map(|peer| match peer {
                Peer::Unreadable(reason) => Some(&**reason),
                _ => None,
            });
            peers.chain(unreadable_ports(&rule.ports))
        });
        self.faults.iter().map(|fault| &**fault).chain(in_rules)
    }
}

impl ClusterNetworkPolicy {
    /// Its rules for a direction.
    pub fn rules(&self, direction: Direction) -> &[ClusterRule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// What stands for it where it cannot be enforced as it is: each rule as if it could not be read; in audit none.
    pub fn closed(&self, reason: &str) -> Self {
        let unreadable = |rule: &ClusterRule| ClusterRule::unreadable(&*rule.name, Some(rule.action), reason);
        let closed = |rules: &[ClusterRule]| rules.iter().filter(|_| !self.audit).map(unreadable).collect();
        let (ingress, egress) = (closed(&self.ingress), closed(&self.egress));
        Self { ingress, egress, faults: one_more(&self.faults, reason), ..self.clone() }
    }

    /// Everything in it that could not be read.
    pub fn all_faults(&self) -> impl Iterator<Item = &str> {
        let rules = self.ingress.iter().chain(&self.egress);
        let in_rules = rules.flat_map(|rule| {
            let peers = match &rule.peers {
                ClusterPeers::Unreadable(reason) => Some(&**reason),
                ClusterPeers::Any(_) => None,
            };
            peers.into_iter().chain(unreadable_ports(&rule.ports))
        });
        self.faults.iter().map(|fault| &**fault).chain(in_rules)
    }
}

fn one_more(faults: &[Box<str>], reason: &str) -> Box<[Box<str>]> {
    faults.iter().cloned().chain([reason.into()]).collect()
}

fn unreadable_ports(ports: &Option<Box<[PortMatch]>>) -> impl Iterator<Item = &str> {
    ports.iter().flatten().filter_map(|port| match port {
        PortMatch::Unreadable(reason) => Some(&**reason),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::{IpBlock, domain_matches, namespace_labels};
    use crate::Labels;

    #[test]
    fn an_exception_takes_addresses_out_of_its_own_block() {
        let block = IpBlock {
            cidr: "10.0.0.0/8".parse().unwrap(),
            except: Box::from(["10.1.0.0/16".parse().unwrap()]),
        };
        assert!(block.contains("10.2.0.1".parse().unwrap()));
        assert!(!block.contains("10.1.2.3".parse().unwrap()));
        assert!(!block.contains("fd00::1".parse().unwrap()));
    }

    #[test]
    fn a_star_stands_for_labels_and_not_for_the_apex() {
        assert!(domain_matches("*.example.org", "a.b.EXAMPLE.org."));
        assert!(!domain_matches("*.example.org", "example.org"));
        assert!(!domain_matches("*.example.org", "xexample.org"));
        assert!(domain_matches("Example.org", "example.org."));
    }

    #[test]
    fn a_namespace_has_its_name_as_a_label_whatever_it_says() {
        let labels = Labels::from_iter([("team", "red"), ("kubernetes.io/metadata.name", "other")]);
        let seen = namespace_labels("shop", &labels);
        assert_eq!(seen.get("kubernetes.io/metadata.name"), Some("shop"));
        assert_eq!(seen.get("team"), Some("red"));
        assert_eq!(namespace_labels("shop", &seen), seen);
    }
}
