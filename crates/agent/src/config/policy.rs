//! What the configuration says of network policies: key `policy`.

use std::path::PathBuf;

use serde::Deserialize;

use super::{ConfigError, value};

/// Key `policy`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PolicyConfig {
    /// Whether network policies are enforced for this node's pods. Default: true.
    pub enforcement: bool,
    /// What becomes of open connections that no policy allows any more. Default: `cut`.
    pub existing_connections: ExistingConnections,
    /// What becomes of what a pod sends with an address that is not its own. Default: `drop`.
    pub foreign_senders: ForeignSenders,
    /// How long, in seconds, the attachment of a pod waits until the pod's policies are in force, before it fails and the
    /// container runtime tries again. Default: 5.
    #[cfg_attr(test, schemars(range(min = 1, max = 60)))]
    pub attachment_patience_seconds: u32,
    /// The log of verdicts on new connections.
    pub flow_log: FlowLogConfig,
}

/// Key `policy.flowLog`: what is told of verdicts on new connections, besides what policies in audit would deny.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FlowLogConfig {
    /// Which verdicts are told. Default: `none`.
    pub verdicts: FlowVerdicts,
    /// How many a second are told of each rule, at most. Default: 10.
    #[cfg_attr(test, schemars(range(min = 1, max = 1000)))]
    pub per_second: u32,
    /// The file that the lines go to. Default: the agent's own log.
    pub file: Option<PathBuf>,
}

/// Verdicts on new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Serialize))]
#[serde(rename_all = "kebab-case")]
pub enum FlowVerdicts {
    /// None.
    #[default]
    None,
    /// Those that deny.
    Denied,
    /// All.
    All,
}

impl Default for FlowLogConfig {
    fn default() -> Self {
        Self { verdicts: FlowVerdicts::default(), per_second: 10, file: None }
    }
}

/// What becomes of open connections that no policy allows any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Serialize))]
#[serde(rename_all = "kebab-case")]
pub enum ExistingConnections {
    /// They are cut: their next packet is judged as a first one.
    #[default]
    Cut,
    /// They go on until they end by themselves.
    Keep,
}

/// What becomes of what a pod sends with an address that is not its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[cfg_attr(test, derive(schemars::JsonSchema, serde::Serialize))]
#[serde(rename_all = "kebab-case")]
pub enum ForeignSenders {
    /// It is dropped.
    #[default]
    Drop,
    /// It passes, and policies take it for whoever has the address.
    Pass,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            enforcement: true,
            existing_connections: ExistingConnections::default(),
            foreign_senders: ForeignSenders::default(),
            attachment_patience_seconds: 5,
            flow_log: FlowLogConfig::default(),
        }
    }
}

impl PolicyConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let patience = self.attachment_patience_seconds;
        if !(1..=60).contains(&patience) {
            return Err(value("policy.attachmentPatienceSeconds", format!("is {patience}, not 1 to 60")));
        }
        let per_second = self.flow_log.per_second;
        if !(1..=1000).contains(&per_second) {
            return Err(value("policy.flowLog.perSecond", format!("is {per_second}, not 1 to 1000")));
        }
        Ok(())
    }
}
