//! What the kernel told of a packet, with the names of those concerned.
//!
//! Read [`Record`]. The log's prefix says what was decided, and by which rule of which chain; the packet says who talks to
//! whom. Names are those of now: a pod that went meanwhile is told by its address alone.

use std::fmt::{self, Display, Formatter, Write};
use std::net::IpAddr;

use cluster::{Direction, NamespacedName};

use crate::compile::origin::{Decided, Prefix};
use crate::compile::profile::Chain;
use crate::counts::{Counted, whose};
use crate::judge::Traffic;
use crate::policies::Policies;

/// What the kernel tells of a packet.
#[derive(Debug, Clone, Copy)]
pub struct Told<'t> {
    /// When, in microseconds since 1970; 0 if unknown.
    pub time: u64,
    /// The prefix of the log.
    pub prefix: &'t str,
    /// The sender.
    pub source: IpAddr,
    /// The receiver.
    pub destination: IpAddr,
    /// What it carries.
    pub traffic: Traffic,
    /// The sender's port; 0 where there is none.
    pub source_port: u16,
}

/// One new connection and what policies decided on it, in one direction. Printed, it is one line of JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// When, in microseconds since 1970; 0 if unknown.
    pub time: u64,
    /// What was decided.
    pub verdict: Decided,
    /// Seen from which end.
    pub direction: Direction,
    /// Who begins.
    pub source: RecordEnd,
    /// Whom it reaches.
    pub destination: RecordEnd,
    /// By what.
    pub traffic: Traffic,
    /// The rule that decided, or the policies that isolate.
    pub by: Counted,
}

/// An end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordEnd {
    /// Its address.
    pub address: IpAddr,
    /// Its port; 0 where there is none.
    pub port: u16,
    /// The pod that has the address.
    pub pod: Option<NamespacedName>,
}

pub(crate) fn record(policies: &Policies, told: &Told<'_>) -> Option<Record> {
    let prefix = Prefix::read(told.prefix)?;
    let chain = policies.chain(&prefix.chain)?;
    let end = |address, port| {
        let member = policies.cluster().party(address).member;
        RecordEnd { address, port, pod: member.map(|member| member.name().clone()) }
    };
    let port = match told.traffic {
        Traffic::Port(_, port) => port,
        Traffic::Other(_) => 0,
    };
    Some(Record {
        time: told.time,
        verdict: prefix.decided,
        direction: match chain {
            Chain::Profile(profile) => profile.direction,
            Chain::Tier(_, direction, _)
            | Chain::Audit(direction, _)
            | Chain::Policy(direction, _)
            | Chain::Closed(direction) => *direction,
        },
        source: end(told.source, told.source_port),
        destination: end(told.destination, port),
        traffic: told.traffic,
        by: whose(policies, chain, prefix.origin)?,
    })
}

impl Display for Record {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (seconds, micros) = (self.time / 1_000_000, self.time % 1_000_000);
        let (verdict, direction) = (self.verdict.as_str(), self.direction.as_str());
        write!(
            f,
            "{{\"time\":{seconds}.{micros:06},\"verdict\":\"{verdict}\",\"direction\":\"{direction}\""
        )?;
        for (name, end) in [("source", &self.source), ("destination", &self.destination)] {
            write!(f, ",\"{name}\":{{\"address\":\"{}\"", end.address)?;
            if let Some(pod) = &end.pod {
                let (namespace, name) = (Text(&pod.namespace), Text(&pod.name));
                write!(f, ",\"namespace\":{namespace},\"pod\":{name}")?;
            }
            if matches!(self.traffic, Traffic::Port(..)) {
                write!(f, ",\"port\":{}", end.port)?;
            }
            f.write_char('}')?;
        }
        match self.traffic {
            Traffic::Port(protocol, _) => write!(f, ",\"protocol\":\"{protocol}\"")?,
            Traffic::Other(number) => write!(f, ",\"protocol\":{number}")?,
        }
        match &self.by {
            Counted::Rule(_, policy, place) => {
                write!(f, ",\"networkPolicy\":{},\"rule\":{}", Text(&policy.to_string()), place + 1)?;
            }
            Counted::ClusterRule(_, policy, place) => {
                write!(f, ",\"clusterNetworkPolicy\":{},\"rule\":{}", Text(policy), place + 1)?;
            }
            Counted::Isolated(_, policies) | Counted::WouldDeny(_, policies) => {
                f.write_str(",\"isolatedBy\":[")?;
                for (count, policy) in policies.iter().enumerate() {
                    let comma = if count > 0 { "," } else { "" };
                    write!(f, "{comma}{}", Text(&policy.to_string()))?;
                }
                f.write_char(']')?;
            }
            Counted::Closed(_) => f.write_str(",\"podUnknown\":true")?,
        }
        f.write_char('}')
    }
}

/// A text as a string of JSON.
struct Text<'t>(&'t str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for character in self.0.chars() {
            match character {
                '"' | '\\' => write!(f, "\\{character}")?,
                control if control.is_control() => write!(f, "\\u{:04x}", u32::from(control))?,
                other => f.write_char(other)?,
            }
        }
        f.write_char('"')
    }
}
