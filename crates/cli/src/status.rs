//! `fairlead status`: a node as its agent sees it, or with `--all` every node as the store has it.

mod all;

use std::process::ExitCode;

use ::agent::{Status, SupplyStatus};
use anyhow::Result;
use clap::Args;

use crate::node::NodeOption;
use crate::output::OutputOption;
use crate::table::{Table, joined};

/// Show a node as its agent sees it; fails when the node cannot carry pods
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  fairlead status\n  fairlead status --lab default --node node1 -o json\n  \
fairlead status --all --store kubernetes:/etc/kubernetes/admin.conf"
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    node: NodeOption,
    #[command(flatten)]
    all: all::Options,
    #[command(flatten)]
    output: OutputOption,
}

/// Runs the verb.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(location) = arguments.all.store() {
        return all::run(&location, &arguments.output);
    }
    let status = ::agent::ask_status(&arguments.node.state_directory()?)?;
    arguments.output.output.print(&status, tables)?;
    Ok(if status.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn tables(status: &Status, wide: bool) -> Vec<Table> {
    let mut tables = vec![node(status, wide)];
    if !status.peers.is_empty() {
        tables.push(peers(status));
    }
    tables.push(policies(status, wide));
    let groups = [
        ("NOT READY BECAUSE", &status.reasons),
        ("PROBLEM", &status.problems),
        ("INVALID POLICY", &status.policies.invalid),
        ("POLICY THAT THE KERNEL REFUSES", &status.policies.refused),
        ("CONFLICT", &status.conflicts),
        ("BROKEN FILE IN THE STORE", &status.store.broken),
    ];
    for (heading, lines) in groups {
        let mut table = Table::new([heading]);
        lines.iter().for_each(|line| table.row([line]));
        if !lines.is_empty() {
            tables.push(table);
        }
    }
    tables
}

fn node(status: &Status, wide: bool) -> Table {
    let mut table = Table::new(["NODE", status.node.as_str()]);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    row("ready", if status.ready { "yes" } else { "no" }.to_owned());
    row("pod CIDRs", joined(&status.pod_cidrs));
    let supplies =
        [("free pod CIDRs", &status.pod_cidr_supply), ("free addresses", &status.pod_address_supply)];
    for (name, supplies) in supplies.into_iter().filter(|(_, supplies)| !supplies.is_empty()) {
        row(name, supplies.iter().map(supply).collect::<Vec<_>>().join(", "));
    }
    let device = status.backend.tunnel.as_ref().map(|tunnel| format!(" {}", tunnel.device));
    let carrier = status.backend.carrier.as_ref().map(|carrier| format!(", carried by the {carrier}"));
    let strict =
        status.backend.strict.map(|strict| if strict { ", strict" } else { ", not strict" }.to_owned());
    let backend = [Some(status.backend.kind.clone()), device, strict, carrier.filter(|_| wide)];
    row("backend", backend.into_iter().flatten().collect());
    if let Some(refused) = status.backend.refused.filter(|refused| wide || *refused > 0) {
        row("refused", format!("{refused} packets to pods that there is no way to"));
    }
    if let Some(underlay) = &status.underlay {
        row("underlay", format!("{} {}", underlay.link, joined(&underlay.advertised)));
    }
    row("mtu", status.mtu.to_string());
    row("store", store(status));
    if wide {
        row("cluster CIDRs", joined(&status.cluster_cidrs));
        if let Some(tunnel) = &status.backend.tunnel {
            row("vni, port, mac", format!("{}, {}, {}", tunnel.vni, tunnel.port, tunnel.mac));
        }
        if let Some(underlay) = &status.underlay {
            row("chosen because", underlay.reason.clone());
        }
        row("agent", format!("{} (pid {})", status.version, status.pid));
        if let Some(last) = &status.last_reconcile {
            let words = format!("{} steps in {} us, because {}", last.steps, last.took, last.cause);
            row("last look", words);
        }
        let words = format!(
            "{} changes, {} of them repairs, in {} looks",
            status.changes, status.heals, status.reconciles
        );
        row("since its start", words);
    }
    table
}

fn supply(supply: &SupplyStatus) -> String {
    format!("{} of {} in {}", supply.free, supply.total, supply.network)
}

fn policies(status: &Status, wide: bool) -> Table {
    let known = &status.policies;
    let enforced = match &known.reason {
        None if known.enforced => "yes".to_owned(),
        reason => format!("no: {}", reason.as_deref().unwrap_or("the agent does not say")),
    };
    let mut table = Table::new(["NETWORK POLICIES".to_owned(), format!("enforced: {enforced}")]);
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    let isolated = format!("{} of this node's {}", known.isolated_pods, known.local_pods);
    row(
        "policies",
        format!("{}, and {} of the cluster", known.network_policies, known.cluster_network_policies),
    );
    row("isolated pods", isolated);
    row("in the kernel", format!("change {} of {}", known.programmed, known.generation));
    if let Some(last) = &known.last_change {
        row("last change", format!("{} steps in {} us", last.steps, last.took));
    }
    if let Some(error) = &known.last_error {
        row("last error", error.clone());
    }
    if let Some(reason) = &known.unlogged {
        row("flow log and audit", format!("none: {reason}"));
    }
    if wide {
        let words = format!(
            "{} changes, the longest in {} us; {} repairs, {} failures, {} connections cut, {} pods wait",
            known.changes, known.longest, known.heals, known.failures, known.cut, known.waiting
        );
        row("since its start", words);
    }
    table
}

fn store(status: &Status) -> String {
    let state = match (&status.store.away, status.store.in_sync) {
        (Some(reason), _) => format!("away: {reason}"),
        (None, true) => "in sync".to_owned(),
        (None, false) => "not read yet".to_owned(),
    };
    format!("{} {state}", status.store.location)
}

fn peers(status: &Status) -> Table {
    let mut table =
        Table::new(["PEER", "STATE", "PATH", "MTU", "PROBED", "POD CIDRS", "UNDERLAY", "PROBLEM"]);
    for peer in &status.peers {
        let problem = peer.problem.clone().unwrap_or_default();
        table.row([
            peer.node.clone(),
            peer.state.name().to_owned(),
            peer.path.clone(),
            if peer.mtu == 0 { String::new() } else { peer.mtu.to_string() },
            peer.probed_mtu.map(|mtu| mtu.to_string()).unwrap_or_default(),
            joined(&peer.pod_cidrs),
            joined(&peer.underlay),
            problem,
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_cannot_carry_pods_says_why() {
        let status =
            Status { node: "node1".into(), reasons: vec!["no underlay".into()], ..Status::default() };
        let text: String = tables(&status, true).iter().map(|table| table.render(false)).collect();
        assert!(text.contains("NOT READY BECAUSE\nno underlay\n"), "{text}");
    }

    #[test]
    fn what_is_left_of_pod_cidrs_and_addresses_is_said_where_it_is_counted() {
        let supply = |network: &str, total, taken| SupplyStatus {
            network: network.parse().unwrap(),
            total,
            taken,
            free: total - taken,
        };
        let counted = Status {
            pod_cidr_supply: vec![supply("10.244.0.0/16", 256, 3), supply("fd00:10:244::/56", 256, 3)],
            pod_address_supply: vec![supply("10.244.1.0/24", 253, 40)],
            ..Status::default()
        };
        let text = node(&counted, false).render(false);
        assert!(text.contains("253 of 256 in 10.244.0.0/16, 253 of 256 in fd00:10:244::/56"), "{text}");
        assert!(text.contains("213 of 253 in 10.244.1.0/24"), "{text}");
        assert!(!node(&Status::default(), false).render(false).contains("free"), "nothing is counted");
    }
}
