//! `fairlead status --all`: every node, as the store has it.
//!
//! Read [`Row::of`]: what a node published (its lease) and what its agent reported last stand side by side, so this needs no
//! way to any agent, and an agent that is dead is seen by what it said last. A node without a lease is one that no agent
//! carries yet.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use cluster::{Backend, Kind, Lease, Snapshot};
use ipnet::IpNet;
use serde::Serialize;
use store::{Location, Report};

use crate::output::OutputOption;
use crate::table::{Table, joined};

/// The options that make it every node.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// Show every node of the cluster instead; fails when one cannot carry pods
    #[arg(long, conflicts_with_all = ["lab", "state_dir"])]
    all: bool,
    /// Where the cluster's state is: dir:PATH, kubernetes:KUBECONFIG, kubernetes for what kubectl would take, or
    /// etcd:URL,...
    #[arg(long, value_name = "STORE", requires = "all", value_parser = str::parse::<Location>)]
    store: Option<Location>,
}

impl Options {
    /// The store to look at, if every node is meant.
    pub(super) fn store(&self) -> Option<Location> {
        let kubernetes =
            || Location::Kubernetes { kubeconfig: None, namespace: Location::NAMESPACE.to_owned() };
        self.all.then(|| self.store.clone().unwrap_or_else(kubernetes))
    }
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    node: String,
    /// Whether it can carry new pods, by its agent's last word; nothing if it has said none.
    ready: Option<bool>,
    reason: String,
    message: String,
    /// The agent's version.
    version: String,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<IpNet>,
    backend: String,
    underlay: Vec<IpAddr>,
    mtu: Option<u32>,
}

/// Prints every node.
pub(super) fn run(location: &Location, output: &OutputOption) -> Result<ExitCode> {
    let store = location.open()?;
    let listing = store.list(&[Kind::Node, Kind::Lease])?;
    let rows = rows(&listing.snapshot, store.reports()?);
    output.output.print(&rows, tables)?;
    let all_ready = rows.iter().all(|row| row.ready == Some(true));
    Ok(if all_ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn rows(snapshot: &Snapshot, reports: Vec<Report>) -> Vec<Row> {
    let mut reports: BTreeMap<String, Report> =
        reports.into_iter().map(|report| (report.node.clone(), report)).collect();
    let nodes = snapshot.nodes.keys();
    nodes
        .map(|node| Row::of(node, snapshot.leases.get(node).map(|lease| &**lease), reports.remove(&**node)))
        .collect()
}

impl Row {
    fn of(node: &str, lease: Option<&Lease>, report: Option<Report>) -> Self {
        let ready = report.as_ref().map(|report| report.ready);
        let report = report.unwrap_or_else(|| Report {
            node: node.to_owned(),
            ready: false,
            reason: "NoAgent".to_owned(),
            message: "no agent has said anything of this node".to_owned(),
            version: String::new(),
        });
        Self {
            node: node.to_owned(),
            ready,
            reason: report.reason,
            message: report.message,
            version: report.version,
            pod_cidrs: lease.map(|lease| lease.pod_cidrs.to_vec()).unwrap_or_default(),
            backend: lease.map(|lease| backend(&lease.backend)).unwrap_or_default(),
            underlay: lease.map(|lease| lease.underlay.to_vec()).unwrap_or_default(),
            mtu: lease.map(|lease| lease.mtu),
        }
    }
}

fn backend(backend: &Backend) -> String {
    backend.name().to_owned()
}

fn tables(rows: &Vec<Row>, wide: bool) -> Vec<Table> {
    let mut heading = vec!["NODE", "READY", "POD CIDRS", "UNDERLAY"];
    if wide {
        heading.extend(["BACKEND", "MTU", "AGENT"]);
    }
    heading.push("MESSAGE");
    let mut table = Table::new(heading);
    for row in rows {
        let ready = match row.ready {
            Some(true) => "yes",
            Some(false) => "no",
            None => "unknown",
        };
        let mut cells =
            vec![row.node.clone(), ready.to_owned(), joined(&row.pod_cidrs), joined(&row.underlay)];
        if wide {
            let mtu = row.mtu.map(|mtu| mtu.to_string()).unwrap_or_default();
            cells.extend([row.backend.clone(), mtu, row.version.clone()]);
        }
        // A hint, on a line of its own, would break the table.
        cells.push(row.message.lines().next().unwrap_or_default().to_owned());
        table.row(cells);
    }
    vec![table]
}

#[cfg(test)]
mod tests {
    use cluster::{Change, Flannel, Node};

    use super::*;

    #[test]
    fn a_node_is_shown_by_its_lease_and_by_its_agents_last_word() {
        let mut snapshot = Snapshot::default();
        for name in ["node1", "node2", "node3"] {
            snapshot.apply(Change::Set(Node::named(name).into()));
        }
        let lease = Lease {
            node: "node1".into(),
            pod_cidrs: ["10.244.1.0/24".parse().unwrap()].into(),
            underlay: [IpAddr::from([192, 0, 2, 1])].into(),
            backend: Backend::Other("any".into()),
            mtu: 1450,
            flannel: Flannel::Apart,
        };
        snapshot.apply(Change::Set(lease.into()));
        let report = |node: &str, ready| Report {
            node: node.to_owned(),
            ready,
            reason: "Word".to_owned(),
            message: "the reason\nhint: do this".to_owned(),
            version: "1.2.3".to_owned(),
        };
        let rows = rows(&snapshot, vec![report("node1", true), report("node2", false), report("gone", true)]);
        let seen: Vec<_> = rows.iter().map(|row| (row.node.as_str(), row.ready)).collect();
        assert_eq!(seen, [("node1", Some(true)), ("node2", Some(false)), ("node3", None)]);
        let text: String = tables(&rows, true).iter().map(|table| table.render(false)).collect();
        assert!(
            text.contains("10.244.1.0/24") && text.contains("1.2.3") && text.contains("no agent has said"),
            "{text}"
        );
        assert!(!text.contains("hint"), "{text}");
    }
}
