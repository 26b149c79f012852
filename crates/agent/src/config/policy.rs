//! What the configuration says of network policies: key `policy`.

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
    /// How long, in seconds, the attachment of a pod waits until the pod's policies are in force, before it fails and the
    /// container runtime tries again. Default: 5.
    #[cfg_attr(test, schemars(range(min = 1, max = 60)))]
    pub attachment_patience_seconds: u32,
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

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            enforcement: true,
            existing_connections: ExistingConnections::default(),
            attachment_patience_seconds: 5,
        }
    }
}

impl PolicyConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let patience = self.attachment_patience_seconds;
        if (1..=60).contains(&patience) {
            return Ok(());
        }
        Err(value("policy.attachmentPatienceSeconds", format!("is {patience}, not 1 to 60")))
    }
}
