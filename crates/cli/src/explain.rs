//! `fairlead explain`: whether a flow passes, which policies and rules decide, and what would let it pass.
//!
//! Read [`run`]. Everything is worked out from the objects of the cluster by the evaluator that agents compile rules from
//! (`policy::explain`); no agent is asked, so it answers also where none runs yet.

mod ends;
mod source;

use std::process::ExitCode;

use ::policy::{Cluster, Explanation, Reason};
use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::cluster_option::{ClusterOption, warn};
use crate::output::{Format, OutputOption, print};
use crate::table::Table;
use ends::{Asked, Port};

/// So many notes are shown where nobody asks for more.
const USUAL_NOTES: usize = 6;

/// Say whether a connection passes, which policies and rules decide, and what would let it pass
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  fairlead explain shop/web shop/db 5432\n  \
fairlead explain --lab default frontend redis-leader 6379/TCP -o wide\n  \
fairlead explain --from deploy/ shop/web 192.0.2.7 53/UDP --expect deny\n\n\
A denied connection is an answer as good as any other: it is no failure unless --expect says allow.")]
pub(crate) struct Arguments {
    /// Who connects: NAMESPACE/POD, POD, an address, or a node
    #[arg(value_name = "FROM")]
    source: String,
    /// Whom it reaches: the same, or a Service, which stands for every pod behind it
    #[arg(value_name = "TO")]
    destination: String,
    /// The port: 80, 53/UDP, a port's name, or icmp
    #[arg(value_name = "PORT[/PROTOCOL]", value_parser = str::parse::<Port>)]
    port: Port,
    /// The namespace of names without one
    #[arg(short, long, value_name = "NAME", default_value = "default")]
    namespace: String,
    /// Fail unless the answer is this one
    #[arg(long, value_enum, value_name = "ANSWER")]
    expect: Option<Expected>,
    #[command(flatten)]
    cluster: ClusterOption,
    #[command(flatten)]
    output: OutputOption,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Expected {
    Allow,
    Deny,
}

/// Runs the verb.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    let cluster = Cluster::new(arguments.cluster.read()?);
    let told = explanations(
        &cluster,
        &Asked {
            source: &arguments.source,
            destination: &arguments.destination,
            port: &arguments.port,
            namespace: &arguments.namespace,
        },
    )?;
    match arguments.output.output {
        Format::Table => print(&text(told.iter().cloned().map(shortened)))?,
        Format::Wide => print(&text(told.iter().cloned()))?,
        form => form.print(&told.iter().map(Answer::of).collect::<Vec<_>>(), |_, _| Vec::<Table>::new())?,
    }
    Ok(met(arguments.expect, &told))
}

/// Whether all of them are what was expected.
fn met(expected: Option<Expected>, told: &[Explanation]) -> ExitCode {
    let Some(expected) = expected else { return ExitCode::SUCCESS };
    let others = told.iter().filter(|told| told.allowed != (expected == Expected::Allow)).count();
    if others == 0 {
        return ExitCode::SUCCESS;
    }
    let word = if expected == Expected::Allow { "denied" } else { "allowed" };
    warn(&format!("{others} of {} flows are {word}, which is not as expected", told.len()));
    ExitCode::FAILURE
}

/// What there is to say; of flows that differ in nothing but the version of IP, the first.
fn explanations(cluster: &Cluster, asked: &Asked<'_>) -> Result<Vec<Explanation>> {
    let mut told: Vec<(Explanation, [Option<String>; 2])> = Vec::new();
    for flow in ends::flows(cluster, asked)? {
        let name = |address| cluster.party(address).member.map(|member| member.name().to_string());
        let ends = [flow.source, flow.destination].map(name);
        let new = ::policy::explain(cluster, &flow);
        let is_the_same = |(old, old_ends): &(Explanation, [Option<String>; 2])| {
            *old_ends == ends && old_ends.iter().any(Option::is_some) && old.says_the_same(&new)
        };
        if !told.iter().any(is_the_same) {
            told.push((new, ends));
        }
    }
    Ok(told.into_iter().map(|(told, _)| told).collect())
}

fn text(told: impl Iterator<Item = Explanation>) -> String {
    told.map(|told| told.to_string()).collect::<Vec<_>>().join("\n")
}

/// Without most of many notes.
fn shortened(mut told: Explanation) -> Explanation {
    for reason in [&mut told.egress, &mut told.ingress] {
        let more = reason.notes.len().saturating_sub(USUAL_NOTES);
        if more > 0 {
            reason.notes.truncate(USUAL_NOTES);
            reason.notes.push(format!("and {more} more (-o wide)"));
        }
    }
    told
}

/// An explanation for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    source: &'a str,
    destination: &'a str,
    traffic: String,
    allowed: bool,
    egress: Side<'a>,
    ingress: Side<'a>,
}

/// What one end's policies say.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Side<'a> {
    allowed: bool,
    because: &'a str,
    notes: &'a [String],
    would_allow_it: Option<&'a str>,
}

impl<'a> Answer<'a> {
    fn of(told: &'a Explanation) -> Self {
        let side = |reason: &'a Reason| Side {
            allowed: reason.allowed,
            because: &reason.because,
            notes: &reason.notes,
            would_allow_it: reason.remedy.as_deref(),
        };
        Self {
            source: &told.source,
            destination: &told.destination,
            traffic: told.traffic.to_string(),
            allowed: told.allowed,
            egress: side(&told.egress),
            ingress: side(&told.ingress),
        }
    }
}

#[cfg(test)]
mod tests;
