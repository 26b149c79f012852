//! Which policies are about a pod, and the chains that follow from it.
//!
//! Read [`Profile`]. Pods of one workload have the same profile, so a node has as many chains of this kind as it has
//! different ones. [`Chain`] names every chain that is not part of the frame by what it stands for.

use std::borrow::Borrow;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use cluster::{ClusterNetworkPolicy, Direction, NamespacedName, NetworkPolicy, Tier};
use netstate::nft::{self, Rule, Statement, Verdict};

use super::origin::{Decided, Logging, Origin, Teller};
use super::rules::{self, Compiled};
use super::set::{Sets, VERSIONS};
use super::{frame, named};
use crate::view::{Cluster, Member};

/// The policies that are about a pod in one direction, by name and in the order in which they are asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Profile {
    /// The direction.
    pub(crate) direction: Direction,
    /// Those of the Admin tier.
    pub(crate) admin: Arc<[Arc<str>]>,
    /// The NetworkPolicies that isolate it.
    pub(crate) isolating: Arc<[NamespacedName]>,
    /// Those of the Baseline tier; none if it is isolated, for they are not asked then.
    pub(crate) baseline: Arc<[Arc<str>]>,
    /// The NetworkPolicies in audit that would isolate it; none if it is isolated, for then they could only allow more.
    pub(crate) audited: Arc<[NamespacedName]>,
    /// Whether any of them all is not in audit.
    pub(crate) enforced: bool,
}

/// A chain, by what it stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Chain {
    /// What a pod of this profile may receive or send.
    Profile(Profile),
    /// What these policies of a tier decide.
    Tier(Tier, Direction, Arc<[Arc<str>]>),
    /// What a ClusterNetworkPolicy in audit would decide.
    Audit(Direction, Arc<str>),
    /// What a NetworkPolicy allows.
    Policy(Direction, NamespacedName),
    /// Nothing, for the cluster does not have the pod.
    Closed(Direction),
}

/// A chain with its name, which is made once: a profile can be about a thousand policies.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// What it stands for.
    pub(crate) chain: Chain,
    /// Its name in the table.
    pub(crate) name: Arc<str>,
}

impl Named {
    /// A chain with the name that follows from it.
    pub(crate) fn new(chain: Chain) -> Arc<Self> {
        let name = chain.name().into();
        Arc::new(Self { chain, name })
    }
}

/// A chain that is found by what it stands for, so that its name is made once.
#[derive(Debug, Clone)]
pub(crate) struct ByChain(pub(crate) Arc<Named>);

impl PartialEq for ByChain {
    fn eq(&self, other: &Self) -> bool {
        self.0.chain == other.0.chain
    }
}

impl Eq for ByChain {}

impl Hash for ByChain {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.chain.hash(state);
    }
}

impl Borrow<Chain> for ByChain {
    fn borrow(&self) -> &Chain {
        &self.0.chain
    }
}

/// A chain's rules, and what they lean on.
#[derive(Debug)]
pub(crate) struct Written<'s> {
    /// In order.
    pub(crate) rules: Compiled<'s>,
    /// The chains that they jump to.
    pub(crate) chains: Vec<Arc<Named>>,
}

impl Profile {
    /// The profile of a pod; `None` if no policy is about it in this direction.
    pub(crate) fn of(cluster: &Cluster, member: &Member, direction: Direction) -> Option<Self> {
        let pod = &member.pod;
        let network_policies = |audit| -> Arc<[NamespacedName]> {
            let about = |policy: &&Arc<NetworkPolicy>| {
                policy.rules_in_force(direction, audit).is_some() && policy.subjects.matches(&pod.labels)
            };
            let policies = cluster.network_policies(&pod.name.namespace).filter(about);
            policies.map(|policy| policy.name.clone()).collect()
        };
        let isolating = network_policies(false);
        let of_tier = |tier| -> Arc<[Arc<str>]> {
            let policies = cluster.cluster_policies(tier).into_iter().filter(|policy| {
                let about = policy.subject.as_ref();
                !policy.rules(direction).is_empty()
                    && about.is_some_and(|subject| crate::judge::selects(cluster, subject, member))
            });
            policies.map(|policy| policy.name.clone()).collect()
        };
        let (baseline, audited) = match isolating.is_empty() {
            true => (of_tier(Tier::Baseline), network_policies(true)),
            false => (Arc::default(), Arc::default()),
        };
        let admin = of_tier(Tier::Admin);
        let in_force = |name: &Arc<str>| {
            cluster.snapshot().cluster_network_policies.get(name).is_some_and(|policy| !policy.audit)
        };
        let enforced = !isolating.is_empty() || admin.iter().chain(&*baseline).any(in_force);
        let profile = Self { direction, admin, isolating, baseline, audited, enforced };
        let tiers = profile.admin.is_empty() && profile.baseline.is_empty();
        let empty = tiers && profile.isolating.is_empty() && profile.audited.is_empty();
        (!empty).then_some(profile)
    }
}

impl Profile {
    /// The profile with one NetworkPolicy more or less; `None` unless it is isolated before and after, for otherwise
    /// the Baseline tier has a word in it.
    pub(crate) fn with(&self, policy: &NamespacedName, isolates: bool) -> Option<Self> {
        let others = self.isolating.iter().filter(|name| *name != policy);
        let mut isolating: Vec<NamespacedName> = others.chain(isolates.then_some(policy)).cloned().collect();
        isolating.sort_unstable();
        let stays = !self.isolating.is_empty() && !isolating.is_empty();
        stays.then(|| Self { isolating: isolating.into(), ..self.clone() })
    }
}

impl Chain {
    /// Whether it is the profile of a pod of which a policy decides, and not only policies in audit.
    pub(crate) fn enforces(&self) -> bool {
        matches!(self, Self::Profile(profile) if profile.enforced)
    }

    /// The direction in which local pods are led to it; `None` for one that other chains jump to.
    pub(crate) fn leads(&self) -> Option<Direction> {
        match self {
            Self::Profile(profile) => Some(profile.direction),
            Self::Closed(direction) => Some(*direction),
            Self::Tier(..) | Self::Audit(..) | Self::Policy(..) => None,
        }
    }

    /// Its name in the table.
    pub(crate) fn name(&self) -> String {
        let (kind, direction) = match self {
            Self::Closed(direction) => return format!("{}-closed", direction.as_str()),
            Self::Profile(profile) => ("pod", profile.direction),
            Self::Tier(Tier::Admin, direction, _) => ("admin", *direction),
            Self::Tier(Tier::Baseline, direction, _) => ("baseline", *direction),
            Self::Audit(direction, _) => ("audit", *direction),
            Self::Policy(direction, _) => ("policy", *direction),
        };
        named(&format!("{}-{kind}", direction.as_str()), &format!("{self:?}"))
    }

    /// Whether its rules come from the policy of the cluster of this name.
    pub(crate) fn is_made_of(&self, policy: &str) -> bool {
        match self {
            Self::Tier(_, _, policies) => policies.iter().any(|name| **name == *policy),
            Self::Audit(_, name) => **name == *policy,
            _ => false,
        }
    }
}

impl Named {
    /// Its rules, as the cluster is. Sets that are known have a name already.
    pub(crate) fn write<'s>(&self, cluster: &Cluster, logging: Logging, known: &'s Sets) -> Written<'s> {
        let teller = Teller { logging, chain: &self.name };
        let empty = Written { rules: Compiled::new(known), chains: Vec::new() };
        let rules = match &self.chain {
            Chain::Profile(profile) => return write_profile(profile, &teller, empty),
            Chain::Closed(_) => return write_closed(&teller, empty),
            Chain::Policy(direction, name) => {
                let Some(policy) = cluster.snapshot().network_policies.get(name) else { return empty };
                rules::network_policy(policy, *direction, &teller, known)
            }
            Chain::Audit(direction, name) => {
                let Some(policy) = cluster.snapshot().cluster_network_policies.get(name) else {
                    return empty;
                };
                let mut audited = empty;
                rules::cluster_policy((0, policy), *direction, &teller, &mut audited.rules);
                return audited;
            }
            Chain::Tier(_, direction, names) => {
                let all = &cluster.snapshot().cluster_network_policies;
                let policies = names.iter().filter_map(|name| all.get(name));
                return write_tier(policies, *direction, &teller, empty);
            }
        };
        Written { rules, ..empty }
    }
}

impl Written<'_> {
    fn push(&mut self, rule: Rule, origin: Origin) {
        self.rules.rules.push(rule);
        self.rules.origins.push(origin);
    }

    fn jump(&mut self, chain: Chain, comment: Option<String>, origin: Origin) {
        let chain = Named::new(chain);
        let rule = Rule::new([Statement::Verdict(Verdict::Jump(chain.name.to_string()))]);
        self.push(Rule { comment, ..rule }, origin);
        self.chains.push(chain);
    }

    /// The end of a chain whose packets nothing has allowed: it is told and counted, and dropped where it is denied.
    fn end(&mut self, decided: Decided, comment: &str, teller: &Teller<'_>) {
        let denied = decided == Decided::Denied;
        let origin = if denied { Origin::Isolated } else { Origin::Audited };
        if let Some(told) = teller.tell(decided, origin, &[]) {
            self.push(Rule::new(told).with_comment(comment), Origin::Telling);
        }
        let verdict = denied.then_some(Statement::Verdict(Verdict::Drop));
        let last: Vec<Statement> = [Statement::Counter].into_iter().chain(verdict).collect();
        self.push(Rule::new(last).with_comment(comment), origin);
    }
}

fn write_profile<'s>(profile: &Profile, teller: &Teller<'_>, mut written: Written<'s>) -> Written<'s> {
    let direction = profile.direction;
    if !profile.admin.is_empty() {
        written.jump(Chain::Tier(Tier::Admin, direction, profile.admin.clone()), None, Origin::Frame);
    }
    if !profile.baseline.is_empty() {
        written.jump(Chain::Tier(Tier::Baseline, direction, profile.baseline.clone()), None, Origin::Frame);
    }
    // From here on, what policies in audit do not allow passes all the same: nothing else has a word in it.
    let in_audit = profile.isolating.is_empty();
    let policies = if in_audit { &profile.audited } else { &profile.isolating };
    if policies.is_empty() {
        return written;
    }
    for name in &**policies {
        written.jump(Chain::Policy(direction, name.clone()), Some(name.to_string()), Origin::Frame);
    }
    // A pod that reaches itself through a Service: its own policies do not keep it from that.
    for version in VERSIONS {
        let itself = Rule::new([frame::is_itself(version), Statement::Verdict(Verdict::Accept)]);
        written.push(itself, Origin::Frame);
    }
    let (decided, comment) = match in_audit {
        true => (Decided::WouldDeny, "in audit, and nothing would allow it"),
        false => (Decided::Denied, "isolated, and nothing allows it"),
    };
    written.end(decided, comment, teller);
    written
}

/// What a tier's policies decide in one direction, in this order: what they leave to others returns. One in audit is asked in its
/// place, and leaves everything to others.
fn write_tier<'p, 's>(
    policies: impl Iterator<Item = &'p Arc<ClusterNetworkPolicy>>,
    direction: Direction,
    teller: &Teller<'_>,
    mut written: Written<'s>,
) -> Written<'s> {
    for (which, policy) in policies.enumerate() {
        if !policy.audit {
            rules::cluster_policy((which, policy), direction, teller, &mut written.rules);
            continue;
        }
        let comment = Some(format!("{} in audit", policy.name));
        // It counts nothing; where the kernel refuses it, it is this policy's.
        written.jump(Chain::Audit(direction, policy.name.clone()), comment, Origin::cluster_rule(which, 0));
    }
    written
}

fn write_closed<'s>(teller: &Teller<'_>, mut written: Written<'s>) -> Written<'s> {
    written.end(Decided::Denied, "attached, and the cluster does not have the pod", teller);
    written
}

/// A chain with these rules.
pub(crate) fn chain(name: String, rules: Vec<Rule>) -> nft::Chain {
    nft::Chain { rules, ..nft::Chain::regular(name) }
}
