//! Which node a verb is about: this machine's, or a lab's.

use std::path::PathBuf;

use ::lab::Lab;
use anyhow::Result;
use clap::Args;

use crate::lab::parse_name;

/// The options that name a node.
#[derive(Debug, Args)]
pub(crate) struct NodeOption {
    /// The state directory of the node's agent
    #[arg(long, value_name = "DIR", default_value = ::agent::Options::STATE_DIR)]
    state_dir: PathBuf,
    /// Ask a lab's node instead
    #[arg(long, value_name = "NAME", conflicts_with = "state_dir", requires = "node", value_parser = parse_name)]
    lab: Option<String>,
    /// Which of the lab's nodes
    #[arg(long, value_name = "NODE", requires = "lab")]
    node: Option<String>,
}

impl NodeOption {
    /// The state directory meant.
    pub(crate) fn state_directory(&self) -> Result<PathBuf> {
        match (&self.lab, &self.node) {
            (Some(lab), Some(node)) => Ok(Lab::open(lab)?.node(node)?.state()),
            _ => Ok(self.state_dir.clone()),
        }
    }
}
