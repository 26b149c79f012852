//! flannel's network configuration in etcd, the key `PREFIX/config`, kept as a file beside the agent's own.
//!
//! Read [`NetworkKey::refresh`]. With `flannel.netConf: etcd` the configuration is read from that copy as from any other
//! net-conf.json (`config/net_conf.rs`), so it is followed, refused and kept for the next start as that is (`reload.rs`): an etcd that
//! is away takes nothing away. etcd is asked every few seconds; a key that changes a few times in the life of a cluster is not worth a
//! stream of its own on every node.
//!
//! What stays true: a key that is deleted changes nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use store::Etcd;

use crate::config::{Config, ConfigError, net_conf};
use crate::files::{self, FileError};
use crate::options::Options;
use crate::report::told;

/// How often etcd is asked.
const AGAIN: Duration = Duration::from_secs(10);

/// The key, and where its copy is.
#[derive(Debug)]
pub(crate) struct NetworkKey {
    etcd: Etcd,
    key: String,
    copy: PathBuf,
}

/// The copy is not what the key says.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkKeyError {
    /// There is no such key.
    #[error(
        "etcd has no key {key}\nhint: flannel.etcdPrefix is flannel's own --etcd-prefix; flannel does not start without this key"
    )]
    Missing {
        /// The key.
        key: String,
    },
    /// etcd does not answer, or refuses.
    #[error("read key {key}")]
    Store {
        /// The key.
        key: String,
        /// Why.
        #[source]
        source: store::Error,
    },
    /// The copy cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
}

fn refused(reason: String) -> ConfigError {
    ConfigError::Value { key: "flannel.netConf", reason }
}

impl NetworkKey {
    /// The key that the configuration file names, if it names one.
    ///
    /// # Errors
    /// When the store is no etcd, or it cannot be opened.
    pub(crate) fn named(options: &Options, path: &Path) -> Result<Option<Self>, ConfigError> {
        // What is wrong with the file says who reads it for good.
        let text = fs::read_to_string(path).unwrap_or_default();
        let Ok(config) = Config::as_it_stands(&text) else { return Ok(None) };
        let prefix = config.flannel.etcd_prefix.as_ref().filter(|_| config.flannel.has_net_conf_in_etcd());
        let Some(prefix) = prefix else { return Ok(None) };
        let opened =
            options.store.open_etcd().map_err(|error| refused(format!("is etcd: {}", told(&error))))?;
        let etcd = opened
            .ok_or_else(|| refused(format!("is etcd, and the store, {}, is another one", options.store)))?;
        let copy = net_conf::place(Path::new(net_conf::IN_ETCD), &options.state_dir);
        Ok(Some(Self { etcd, key: format!("{prefix}/config"), copy }))
    }

    /// Has the copy say what the key says; true if it said something else.
    fn refresh(&self) -> Result<bool, NetworkKeyError> {
        let key = || self.key.clone();
        let found = self.etcd.text_of(&self.key);
        let text = found.map_err(|source| NetworkKeyError::Store { key: key(), source })?;
        let text = text.ok_or_else(|| NetworkKeyError::Missing { key: key() })?;
        Ok(files::replace(&self.copy, text.as_bytes())?)
    }

    /// Brings the copy up to date for an agent that starts; why there is none, if there is none.
    pub(crate) fn missing(&self) -> Option<ConfigError> {
        let error = told(&self.refresh().err()?);
        if self.copy.exists() {
            tracing::warn!(%error, "flannel's network configuration is taken as it was");
            return None;
        }
        Some(refused(format!("is etcd: {error}")))
    }

    /// Removes the copy; true if there was one.
    pub(crate) fn forget(state_dir: &Path) -> Result<bool, FileError> {
        files::remove(&net_conf::place(Path::new(net_conf::IN_ETCD), state_dir))
    }

    /// Keeps the copy true for ever. What is wrong is told once while it lasts.
    pub(crate) fn follow(self) {
        let mut last = None;
        loop {
            thread::sleep(AGAIN);
            match self.refresh().map_err(|error| told(&error)) {
                Ok(true) => tracing::info!(key = self.key, "flannel's network configuration has changed"),
                Ok(false) => {}
                Err(error) => {
                    if last.as_ref() != Some(&error) {
                        tracing::warn!(%error, "flannel's network configuration stays as it was");
                    }
                    last = Some(error);
                    continue;
                }
            }
            last = None;
        }
    }
}
