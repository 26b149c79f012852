//! What the configuration says of flannel: key `flannel`.
//!
//! Read [`FlannelConfig`]. What flannel's own document says is in `net_conf.rs`.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::net_conf::{Document, IN_ETCD};
use super::{ConfigError, value};

/// Key `flannel`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Default)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FlannelConfig {
    /// Whether nodes of flannel are told of this one, by flannel's own annotations of its Node: for a cluster that changes
    /// over from flannel node by node. With the Kubernetes API alone. Default: false.
    pub annotations: bool,
    /// What the keys of flannel's in etcd begin with, where nodes of flannel and of Fairlead share one cluster by an etcd:
    /// flannel's `--etcd-prefix`. With an etcd as the store alone. Default: none, flannel's keys are left alone.
    pub etcd_prefix: Option<String>,
    /// A file of flannel's, net-conf.json, that says what is not said here; or `etcd`, for the key `config` behind
    /// `etcdPrefix`. Default: none.
    pub net_conf: Option<PathBuf>,
    /// Where to keep a file as flannel's subnet.env, for programs that read it. Default: none.
    pub subnet_file: Option<PathBuf>,
    /// What net-conf.json says that has no effect.
    #[serde(skip)]
    #[cfg_attr(test, schemars(skip))]
    pub(crate) without_effect: Vec<String>,
}

impl FlannelConfig {
    /// Where the net-conf.json is that is named.
    pub(super) fn document(&self) -> Option<Document> {
        let path = self.net_conf.clone()?;
        let prefix = self.etcd_prefix.clone().filter(|_| path == Path::new(IN_ETCD));
        Some(prefix.map_or(Document::File(path), Document::Etcd))
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let in_etcd = self.net_conf.as_deref() == Some(Path::new(IN_ETCD));
        if in_etcd && self.etcd_prefix.is_none() {
            let reason = "is etcd, and flannel.etcdPrefix, which its key begins with, is missing";
            return Err(value("flannel.netConf", reason.to_owned()));
        }
        let net_conf = self.net_conf.as_ref().filter(|_| !in_etcd);
        for (key, path) in [("flannel.netConf", net_conf), ("flannel.subnetFile", self.subnet_file.as_ref())]
        {
            if let Some(path) = path.filter(|path| !path.is_absolute()) {
                return Err(value(key, format!("is {}, not a path that begins with /", path.display())));
            }
        }
        let is_prefix = |prefix: &&String| {
            prefix.len() > 1
                && prefix.starts_with('/')
                && !prefix.ends_with('/')
                && !prefix.contains(char::is_control)
        };
        match self.etcd_prefix.as_ref().filter(|prefix| !is_prefix(prefix)) {
            Some(prefix) => Err(value(
                "flannel.etcdPrefix",
                format!("is {prefix:?}, not a prefix such as /coreos.com/network"),
            )),
            None => Ok(()),
        }
    }
}
