//! What the keeper of policies knows: the cluster as far as policies decide by it, and what is attached here.
//!
//! Read [`Known::apply`]. Before the store has been read whole things are only gathered; then there are [`Policies`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use cluster::{Attachment, Change, Direction, Key, NamespacedName, Object, Snapshot};
use kernel::nflog::Logged;
use kernel::nft::Counted;
use netstate::nft::{Step, Table};
use policy::{Amount, Attached, Count, Flow, Logging, Policies, Reading, Tally, Told, Traffic};
use rustix::io::Errno;

use super::super::programmed::Programmed;
use super::super::status::PolicyStatus;
use super::super::sweep::Swept;
use super::refused::{Refused, culprits};

/// What is known.
pub(super) struct Known {
    node: Arc<str>,
    /// Before the store has been read whole.
    gathered: Snapshot,
    policies: Option<Policies>,
    logging: Logging,
    ipvs: bool,
    tally: Tally,
    /// By the names of their files.
    attachments: BTreeMap<String, Attachment>,
    /// What could not be read in policies.
    faults: BTreeMap<Key, String>,
    /// Those of them that nobody has been told of.
    untold: Vec<String>,
    refused: Refused,
}

/// What it makes that something is attached, or is not any more.
#[derive(Debug, Default)]
pub(super) struct Reattached {
    /// What it changes of the table.
    pub(super) steps: Vec<Step>,
    /// The addresses that nobody has any more, with the attachment that had them.
    pub(super) left: Vec<(String, IpAddr)>,
    /// The same of those that another attachment has now.
    pub(super) lost: Vec<(String, IpAddr)>,
}

impl Known {
    pub(super) fn new(node: Arc<str>, logging: Logging) -> Self {
        Self {
            node,
            gathered: Snapshot::default(),
            policies: None,
            logging,
            ipvs: true,
            tally: Tally::default(),
            attachments: BTreeMap::new(),
            faults: BTreeMap::new(),
            untold: Vec::new(),
            refused: Refused::default(),
        }
    }

    /// What the store says first.
    pub(super) fn begin(&mut self, snapshot: Snapshot) {
        let changes = snapshot.network_policies.values().cloned().map(Object::NetworkPolicy);
        let of_cluster =
            snapshot.cluster_network_policies.values().cloned().map(Object::ClusterNetworkPolicy);
        let changes: Vec<Change> = changes.chain(of_cluster).map(Change::Set).collect();
        changes.iter().for_each(|change| self.note_faults(change));
        self.gathered = snapshot;
        self.refused = Refused::default();
    }

    /// The store has been read whole.
    pub(super) fn complete(&mut self) {
        let snapshot = std::mem::take(&mut self.gathered);
        let mut policies = Policies::with_logging(self.node.clone(), snapshot, self.logging);
        policies.set_ipvs(self.ipvs);
        self.policies = Some(policies);
        // What was heard of attachments before has been told to nobody.
        let attached: BTreeSet<NamespacedName> = self.attachments.values().map(pod_name).collect();
        attached.iter().for_each(|pod| drop(self.settle(pod)));
    }

    /// Whether it has.
    pub(super) fn is_complete(&self) -> bool {
        self.policies.is_some()
    }

    /// Takes a change of the cluster; returns what it changes of the table.
    pub(super) fn apply(&mut self, change: &Change) -> Vec<Step> {
        self.note_faults(change);
        self.refused.forget(&change.key());
        match &mut self.policies {
            Some(policies) => policies.apply(change).steps,
            None => {
                self.gathered.apply(change.clone());
                Vec::new()
            }
        }
    }

    /// The policies that are the reason for a refusal of the kernel; `None` if none are.
    pub(super) fn suspects(
        &self,
        error: &kernel::Error,
        programmed: &mut Programmed,
    ) -> Option<BTreeSet<Key>> {
        let policies = self.policies.as_ref()?;
        let named = refused_object(error).map(|object| policies.blame(object)).unwrap_or_default();
        if !named.is_empty() {
            return Some(named);
        }
        // Where the kernel does not say: what it does not take by itself, either. Not where it takes nothing at all.
        let mut takes = |part: &BTreeSet<Key>| programmed.takes(policies.part(part)).is_ok();
        takes(&BTreeSet::new())
            .then(|| culprits(policies.written(), &mut takes))
            .filter(|found| !found.is_empty())
    }

    /// Closes policies; says which were not closed before. The table has to be made anew.
    pub(super) fn close(&mut self, suspects: &BTreeSet<Key>, reason: &str) -> Vec<Key> {
        let Some(policies) = &mut self.policies else { return Vec::new() };
        let mut closed = Vec::new();
        for key in suspects {
            let Some(policy) = policies.cluster().snapshot().object(key) else { continue };
            if let Some(change) = self.refused.close(policy, reason) {
                policies.apply(&change);
                closed.push(key.clone());
            }
        }
        closed
    }

    /// Opens the refused policies whose time has come; returns what that changes of the table.
    pub(super) fn try_refused_again(&mut self, now: Instant) -> Vec<Step> {
        let Some(policies) = &mut self.policies else { return Vec::new() };
        self.refused.reopen(now).iter().flat_map(|change| policies.apply(change).steps).collect()
    }

    /// When the next of them is to be tried.
    pub(super) fn due(&self) -> Option<Instant> {
        self.refused.due()
    }

    /// The kernel holds all that it should.
    pub(super) fn taken(&mut self) {
        self.refused.settle();
    }

    /// The policies that are closed because the kernel refuses them, and why.
    pub(super) fn refused(&self) -> impl Iterator<Item = String> {
        self.refused.told()
    }

    /// The file of that name says this now, or is gone.
    pub(super) fn attach(&mut self, name: String, attachment: Option<Attachment>) -> Reattached {
        let mut reattached = Reattached::default();
        self.note(name, attachment, &mut reattached);
        reattached
    }

    /// These are all files there are, the oldest first.
    pub(super) fn attach_all(&mut self, all: Vec<(String, Attachment)>) -> Reattached {
        let mut reattached = Reattached::default();
        let there: BTreeSet<&String> = all.iter().map(|(name, _)| name).collect();
        let gone: Vec<String> =
            self.attachments.keys().filter(|name| !there.contains(name)).cloned().collect();
        gone.into_iter().for_each(|name| self.note(name, None, &mut reattached));
        for (name, attachment) in all {
            // One that is known may have lost addresses to a later one, and does not get them back.
            if !self.attachments.contains_key(&name) {
                self.note(name, Some(attachment), &mut reattached);
            }
        }
        reattached
    }

    fn note(&mut self, name: String, attachment: Option<Attachment>, reattached: &mut Reattached) {
        let before = self.attachments.remove(&name);
        let mut touched: BTreeSet<NamespacedName> =
            before.iter().chain(&attachment).filter(|_| before != attachment).map(pod_name).collect();
        let has: &[IpAddr] = attachment.as_ref().map_or(&[], |attachment| &attachment.addresses);
        let had = before.iter().flat_map(|before| before.addresses.iter().copied());
        let left = had.filter(|address| !has.contains(address));
        reattached.left.extend(left.map(|address| (name.clone(), address)));
        // An address is given once at a time: who had it before has lost it, though his file is still there.
        for (other, known) in &mut self.attachments {
            let lost = known.addresses.extract_if(.., |address| has.contains(address));
            let lost: Vec<(String, IpAddr)> = lost.map(|address| (other.clone(), address)).collect();
            if !lost.is_empty() {
                touched.insert(pod_name(known));
                reattached.lost.extend(lost);
            }
        }
        self.attachments.extend(attachment.map(|attachment| (name, attachment)));
        reattached.steps.extend(touched.iter().flat_map(|pod| self.settle(pod)));
    }

    /// Tells the policies what is attached of a pod.
    fn settle(&mut self, pod: &NamespacedName) -> Vec<Step> {
        let Some(policies) = &mut self.policies else { return Vec::new() };
        let own = self.attachments.values().filter(|attachment| pod_name(attachment) == *pod);
        let attached: Vec<Attached> = own
            .map(|attachment| Attached {
                node: self.node.clone(),
                uid: attachment.uid.as_deref().map(Into::into),
                addresses: attachment.addresses.clone().into(),
            })
            .collect();
        policies.attach(pod, &attached).steps
    }

    /// Whose attachment that is, with the UID if it is known.
    pub(super) fn pod_of(&self, attachment: &str) -> Option<(NamespacedName, Option<&str>)> {
        let attachment = self.attachments.get(attachment)?;
        Some((pod_name(attachment), attachment.uid.as_deref()))
    }

    /// The addresses of an attachment.
    pub(super) fn addresses_of(&self, attachment: &str) -> &[IpAddr] {
        self.attachments.get(attachment).map_or(&[], |attachment| &attachment.addresses)
    }

    /// Whether the store has this very pod.
    pub(super) fn is_there(&self, pod: &NamespacedName, uid: Option<&str>) -> bool {
        let found = self.policies.as_ref().and_then(|policies| policies.cluster().snapshot().pods.get(pod));
        found.is_some_and(|found| match (uid, &found.uid) {
            (Some(one), Some(other)) => *one == **other,
            _ => true,
        })
    }

    /// Whether no pod is attached here.
    pub(super) fn has_no_attachments(&self) -> bool {
        self.attachments.is_empty()
    }

    /// Whether the store keeps neither policies nor pods.
    pub(super) fn keeps_none(&self) -> bool {
        self.policies.as_ref().is_some_and(|policies| {
            let snapshot = policies.cluster().snapshot();
            let policies = snapshot.network_policies.len() + snapshot.cluster_network_policies.len();
            policies + snapshot.pods.len() == 0
        })
    }

    /// Whether there are policies that can deny: whoever comes into the reach of one loses something.
    pub(super) fn denies(&self) -> bool {
        let policies = self.policies.as_ref();
        let of_cluster = policies.map(|policies| &policies.cluster().snapshot().cluster_network_policies);
        of_cluster.is_some_and(|of_cluster| of_cluster.values().any(|policy| !policy.audit))
    }

    /// Whether a policy that is enforced is about the pod.
    pub(super) fn is_policed(&self, pod: &NamespacedName) -> bool {
        self.policies.as_ref().is_some_and(|policies| policies.is_policed(pod))
    }

    /// Whether one is about any pod here.
    pub(super) fn police_anybody(&self) -> bool {
        self.policies.as_ref().is_some_and(Policies::police_anybody)
    }

    /// The addresses here that policies are about, or that are closed.
    pub(super) fn isolated_addresses(&self) -> Swept {
        let subjects = self.policies.iter().flat_map(Policies::subjects);
        let closed = self.policies.iter().flat_map(Policies::closed_addresses);
        subjects.flat_map(|member| member.addresses.iter().copied()).chain(closed).collect()
    }

    /// Whether a flow is allowed, as far as pods of this node are concerned: at its other end it is judged there.
    pub(super) fn allows(&self, flow: &Flow) -> bool {
        let Some(policies) = &self.policies else { return true };
        let is_here = |address| {
            let member = policies.cluster().party(address).member;
            let of_pod = member.is_some_and(|member| member.node.as_ref() == Some(&self.node));
            of_pod || policies.cluster().closed(address) == Some(&self.node)
        };
        let judgement = policies.verdict(flow);
        let passes = |direction, here: bool| !here || judgement.of(direction).allows();
        passes(Direction::Egress, is_here(flow.source))
            && passes(Direction::Ingress, is_here(flow.destination))
    }

    /// The whole table, once it is known.
    pub(super) fn full(&self) -> Option<Table> {
        self.policies.as_ref().map(Policies::full)
    }

    /// Whether IPVS is at work here. True if that is new: the table has to be made anew.
    pub(super) fn set_ipvs(&mut self, there: bool) -> bool {
        self.ipvs = there;
        self.policies.as_mut().is_some_and(|policies| policies.set_ipvs(there))
    }

    /// Has the table tell so much; returns what that changes of it.
    pub(super) fn set_logging(&mut self, logging: Logging) -> Vec<Step> {
        self.logging = logging;
        self.policies.as_mut().map_or(Vec::new(), |policies| policies.set_logging(logging).steps)
    }

    /// What the kernel told of packets, in the policies' words, a line each.
    pub(super) fn lines(&self, logged: &[Logged]) -> Vec<String> {
        let Some(policies) = &self.policies else { return Vec::new() };
        let line = |logged: &Logged| {
            let headers = logged.headers?;
            let [source_port, port] = headers.ports;
            let told = Told {
                time: logged.time,
                prefix: &logged.prefix,
                source: headers.source,
                destination: headers.destination,
                traffic: Traffic::of_packet(headers.protocol, port),
                source_port,
            };
            policies.record(&told).map(|record| record.to_string())
        };
        logged.iter().filter_map(line).collect()
    }

    /// Adds what the kernel's counters say, and returns the totals.
    pub(super) fn tally(&mut self, counted: &[Counted]) -> Vec<Count> {
        let Some(policies) = &self.policies else { return Vec::new() };
        let readings = counted.iter().filter_map(|one| {
            let amount = Amount { packets: one.packets, bytes: one.bytes };
            Some(Reading { chain: &one.chain, digest: one.digest?, amount })
        });
        self.tally.add(policies, readings);
        self.tally.totals().cloned().collect()
    }

    /// What could not be read in policies and nobody has been told of.
    pub(super) fn take_faults(&mut self) -> Vec<String> {
        std::mem::take(&mut self.untold)
    }

    fn note_faults(&mut self, change: &Change) {
        let faults: Vec<&str> = match change {
            Change::Set(Object::NetworkPolicy(policy)) => policy.all_faults().collect(),
            Change::Set(Object::ClusterNetworkPolicy(policy)) => policy.all_faults().collect(),
            Change::Removed(key @ (Key::NetworkPolicy(_) | Key::ClusterNetworkPolicy(_))) => {
                self.faults.remove(key);
                return;
            }
            _ => return,
        };
        let key = change.key();
        if faults.is_empty() {
            self.faults.remove(&key);
            return;
        }
        let text = format!("{key}: {}", faults.join("; "));
        if self.faults.get(&key) != Some(&text) {
            self.untold.push(text.clone());
            self.faults.insert(key, text);
        }
    }

    /// Counts what there is.
    pub(super) fn count(&self, status: &mut PolicyStatus) {
        if status.invalid.len() != self.faults.len() || !status.invalid.iter().eq(self.faults.values()) {
            status.invalid = self.faults.values().cloned().collect();
        }
        status.refused = self.refused().collect();
        let Some(policies) = &self.policies else { return };
        let snapshot = policies.cluster().snapshot();
        status.network_policies = snapshot.network_policies.len();
        status.cluster_network_policies = snapshot.cluster_network_policies.len();
        status.local_pods = policies.local_pods();
        status.isolated_pods = policies.subjects().count();
    }
}

/// What of the table the kernel refused, as it is called in it; `None` where that may be anybody's.
fn refused_object(error: &kernel::Error) -> Option<&str> {
    let kernel::Error::Refused { purpose, errno, .. } = error else { return None };
    if matches!(*errno, Errno::PERM | Errno::ACCESS | Errno::NOMEM | Errno::NOBUFS) {
        return None;
    }
    let (table, object) = purpose.object().split_once(policy::TABLE)?;
    Some(object.trim_start()).filter(|object| table == "inet " && !object.is_empty())
}

fn pod_name(attachment: &Attachment) -> NamespacedName {
    NamespacedName::new(attachment.namespace.as_str(), attachment.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(name: &str, addresses: &[&str]) -> (String, Attachment) {
        let attachment = Attachment {
            network: "fairlead".to_owned(),
            container: name.to_owned(),
            interface: "eth0".to_owned(),
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            uid: None,
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        };
        (name.to_owned(), attachment)
    }

    #[test]
    fn an_address_that_an_attachment_has_no_more_is_told_with_who_had_it_once() {
        let told =
            |reattached: Reattached| [reattached.left, reattached.lost].map(|told| format!("{told:?}"));
        let nothing = || ["[]", "[]"].map(str::to_owned);
        let mut known = Known::new("node1".into(), Logging::default());
        let all = || vec![attachment("a", &["10.244.1.2", "fd00::2"]), attachment("b", &["10.244.1.3"])];
        assert_eq!(told(known.attach_all(all())), nothing());
        assert_eq!(told(known.attach_all(all())), nothing());
        let (name, taker) = attachment("c", &["10.244.1.2"]);
        let lost = r#"[("a", 10.244.1.2)]"#;
        assert_eq!(told(known.attach(name.clone(), Some(taker.clone()))), ["[]", lost]);
        assert_eq!(told(known.attach(name.clone(), Some(taker.clone()))), nothing());
        assert_eq!(known.addresses_of("a"), ["fd00::2".parse::<IpAddr>().unwrap()]);
        // Files that are there still say it.
        assert_eq!(told(known.attach_all([all(), vec![(name, taker)]].concat())), nothing());
        let rest = vec![attachment("b", &["10.244.1.4"])];
        let gone = r#"[("a", fd00::2), ("c", 10.244.1.2)]"#;
        assert_eq!(told(known.attach_all(rest)), [gone, "[]"]);
        let (name, changed) = attachment("b", &["10.244.1.4"]);
        assert_eq!(told(known.attach(name.clone(), Some(changed))), [r#"[("b", 10.244.1.3)]"#, "[]"]);
        assert_eq!(told(known.attach(name, None)), [r#"[("b", 10.244.1.4)]"#, "[]"]);
        assert!(known.has_no_attachments());
    }
}
