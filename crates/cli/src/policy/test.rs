//! `fairlead policy test`: which flows of the cluster new, changed or removed policies would open or close.
//!
//! Read [`run`]. The comparison is `policy::compare`'s; here is what of the manifests counts, and how it is told.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ::policy::{Cluster, FlowChange, compare};
use anyhow::{Result, bail};
use clap::Args;
use cluster::{Change, Key, NamespacedName, Object};
use serde::Serialize;

use crate::cluster_option::{ClusterOption, read_manifests, warn};
use crate::output::{Format, OutputOption, print_tables};
use crate::table::Table;

/// Show which flows of the cluster new, changed or removed policies would open or close, without applying them
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fairlead policy test new-policy.yaml\n  \
fairlead policy test --lab default --remove shop/db\n  \
fairlead policy test --from deploy/ policies/ --fail-on-change -o json\n\n\
Only policies of the manifests count. A policy in audit is compared as it is: it changes nothing, unless --enforce takes it \
for an enforced one.")]
pub(super) struct Arguments {
    /// Manifests of new or changed policies, or directories of them
    #[arg(value_name = "FILE|DIR", required_unless_present = "remove")]
    files: Vec<PathBuf>,
    /// A NetworkPolicy (NAMESPACE/NAME) or ClusterNetworkPolicy (NAME) that is to go (may be given again)
    #[arg(long, value_name = "POLICY")]
    remove: Vec<String>,
    /// Take policies in audit for enforced ones: what would happen if they were
    #[arg(long)]
    enforce: bool,
    /// Fail if any flow would be opened or closed
    #[arg(long)]
    fail_on_change: bool,
    #[command(flatten)]
    cluster: ClusterOption,
    #[command(flatten)]
    output: OutputOption,
}

/// Runs the verb.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let cluster = Cluster::new(arguments.cluster.read()?);
    let mut changes = Vec::new();
    for path in &arguments.files {
        changes.extend(of_manifests(path)?);
    }
    for name in &arguments.remove {
        changes.push(removal(&cluster, name)?);
    }
    if arguments.enforce {
        enforced(&cluster, &mut changes);
    }
    let found = compare(&cluster, &changes);
    match arguments.output.output {
        form @ (Format::Table | Format::Wide) => {
            print_tables(&[table(&cluster, &found, form == Format::Wide)])?;
        }
        form => {
            let rows: Vec<Row> = found.iter().map(|change| Row::of(&cluster, change)).collect();
            form.print(&rows, |_, _| Vec::new())?;
        }
    }
    let as_wanted = found.is_empty() || !arguments.fail_on_change;
    Ok(if as_wanted { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The policies of a manifest. Whoever tests one that holds none has named the wrong file.
fn of_manifests(path: &Path) -> Result<Vec<Change>> {
    let policies: Vec<Object> = read_manifests(path)?
        .into_iter()
        .filter(|object| matches!(object, Object::NetworkPolicy(_) | Object::ClusterNetworkPolicy(_)))
        .collect();
    if policies.is_empty() {
        bail!("there is no policy in {}; hint: give the manifests of the policies to test", path.display());
    }
    for policy in &policies {
        let (key, faults) = (policy.key(), faults(policy));
        faults.iter().for_each(|fault| warn(&format!("{key}: {fault}")));
    }
    Ok(policies.into_iter().map(Change::Set).collect())
}

fn faults(object: &Object) -> Vec<String> {
    match object {
        Object::NetworkPolicy(policy) => policy.all_faults().map(str::to_owned).collect(),
        Object::ClusterNetworkPolicy(policy) => policy.all_faults().map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

fn removal(cluster: &Cluster, name: &str) -> Result<Change> {
    let key = match name.split_once('/') {
        Some((namespace, name)) => Key::NetworkPolicy(NamespacedName::new(namespace, name)),
        None => Key::ClusterNetworkPolicy(name.into()),
    };
    if cluster.snapshot().object(&key).is_none() {
        bail!("there is no {key} that could be removed; hint: a NetworkPolicy is named NAMESPACE/NAME");
    }
    Ok(Change::Removed(key))
}

/// Takes every policy in audit, of the cluster and among the changes, for an enforced one.
fn enforced(cluster: &Cluster, changes: &mut Vec<Change>) {
    let changed: Vec<Key> = changes.iter().map(Change::key).collect();
    let snapshot = cluster.snapshot();
    let of_namespaces = snapshot.network_policies.values().cloned().map(Object::NetworkPolicy);
    let of_cluster = snapshot.cluster_network_policies.values().cloned().map(Object::ClusterNetworkPolicy);
    let others =
        of_namespaces.chain(of_cluster).filter(|object| !changed.contains(&object.key())).map(Change::Set);
    let all: Vec<Change> = std::mem::take(changes).into_iter().chain(others).collect();
    for change in all {
        match change {
            Change::Set(Object::NetworkPolicy(policy)) if policy.audit => {
                let mut policy = (*policy).clone();
                policy.audit = false;
                changes.push(Change::Set(policy.into()));
            }
            Change::Set(Object::ClusterNetworkPolicy(policy)) if policy.audit => {
                let mut policy = (*policy).clone();
                policy.audit = false;
                changes.push(Change::Set(policy.into()));
            }
            other if changed.contains(&other.key()) => changes.push(other),
            _ => {}
        }
    }
}

fn table(cluster: &Cluster, found: &[FlowChange], wide: bool) -> Table {
    let mut table = Table::new(["CHANGE", "FROM", "TO", "BY", "PAIRS"]);
    for change in found {
        table.row([
            if change.opens { "opens" } else { "closes" }.to_owned(),
            change.sources.told(cluster, wide).join(", "),
            change.destinations.told(cluster, wide).join(", "),
            change.traffic_told(),
            change.pairs.to_string(),
        ]);
    }
    let count = |opens| -> u64 {
        found.iter().filter(|change| change.opens == opens).map(|change| change.pairs).sum()
    };
    table.remarked(if found.is_empty() {
        "no flow would be opened or closed".to_owned()
    } else {
        format!("opens flows of {} pairs, closes flows of {} pairs", count(true), count(false))
    })
}

/// A change for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    change: &'static str,
    from: Vec<String>,
    to: Vec<String>,
    by: Vec<String>,
    ip_version: Option<u8>,
    pairs: u64,
}

impl Row {
    fn of(cluster: &Cluster, change: &FlowChange) -> Self {
        Self {
            change: if change.opens { "opens" } else { "closes" },
            from: change.sources.told(cluster, true),
            to: change.destinations.told(cluster, true),
            by: change.traffic.iter().map(ToString::to_string).collect(),
            ip_version: change.only_v6.map(|v6| if v6 { 6 } else { 4 }),
            pairs: change.pairs,
        }
    }
}

#[cfg(test)]
mod tests {
    use cluster::Snapshot;

    use super::*;

    const PODS: &str = r#"
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, status: {podIP: 10.1.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}, status: {podIP: 10.1.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: job, namespace: other}, status: {podIP: 10.1.0.3}}
---
{apiVersion: v1, kind: Pod, metadata: {name: tea, namespace: other}, status: {podIP: 10.1.0.4}}
"#;

    const POLICY: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 5432}]}]}
"#;

    fn set(text: &str) -> Vec<Change> {
        store::read_manifest("m.yaml", text.as_bytes()).unwrap().into_iter().map(Change::Set).collect()
    }

    fn with(texts: &[&str]) -> Cluster {
        let mut snapshot = Snapshot::default();
        for change in texts.iter().flat_map(|text| set(text)) {
            snapshot.apply(change);
        }
        Cluster::new(snapshot)
    }

    fn told(cluster: &Cluster, changes: &[Change]) -> String {
        table(cluster, &compare(cluster, changes), false).render(false)
    }

    #[test]
    fn a_new_policy_closes_what_it_does_not_allow_and_that_is_told_by_namespaces() {
        let cluster = with(&[PODS]);
        let text = told(&cluster, &set(POLICY));
        assert!(text.contains("closes  shop/web"), "{text}");
        assert!(text.contains("other/*, any other IPv4 address"), "{text}");
        assert!(
            text.contains("TCP 1-5431, TCP 5433-65535, all of UDP, all of SCTP, other protocols"),
            "{text}"
        );
        assert!(text.contains("everything"), "{text}");
        assert!(text.ends_with("opens flows of 0 pairs, closes flows of 4 pairs\n"), "{text}");
    }

    #[test]
    fn a_policy_that_goes_opens_again_and_one_that_is_not_there_is_asked_back() {
        let cluster = with(&[PODS, POLICY]);
        let text = told(&cluster, &[removal(&cluster, "shop/db").unwrap()]);
        assert!(text.contains("opens flows of 4 pairs, closes flows of 0 pairs"), "{text}");
        assert!(removal(&cluster, "db").unwrap_err().to_string().contains("NAMESPACE/NAME"));
    }

    #[test]
    fn a_policy_in_audit_changes_nothing_unless_it_is_taken_for_enforced() {
        let audited = POLICY
            .replace("namespace: shop}", "namespace: shop, annotations: {fairlead.io/audit: \"true\"}}");
        let cluster = with(&[PODS, &audited]);
        let mut changes = set(&audited);
        assert!(told(&cluster, &changes).contains("no flow would be opened or closed"));
        enforced(&cluster, &mut changes);
        assert!(told(&cluster, &changes).contains("closes flows of 4 pairs"));
        let mut of_cluster = Vec::new();
        enforced(&cluster, &mut of_cluster);
        assert_eq!(of_cluster, changes);
    }

    #[test]
    fn a_policy_of_the_cluster_in_audit_changes_nothing_either() {
        let audited = "apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: lock, annotations: {fairlead.io/audit: \"true\"}}
spec: {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}
";
        let cluster = with(&[PODS, audited]);
        let mut changes = set(audited);
        assert!(told(&cluster, &changes).contains("no flow would be opened or closed"));
        enforced(&cluster, &mut changes);
        let text = told(&cluster, &changes);
        assert!(
            text.contains("opens flows of 0 pairs, closes flows of ") && !text.contains("closes flows of 0"),
            "{text}"
        );
        let mut of_cluster = Vec::new();
        enforced(&cluster, &mut of_cluster);
        assert_eq!(of_cluster, changes);
    }
}
