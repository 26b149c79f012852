//! flannel's network configuration in etcd, the key `PREFIX/config`: what `flannel.netConf: etcd` names.
//!
//! Read [`NetworkKeys::text`]. What a key says is kept in memory alone, with its name, so that it cannot be taken for what another
//! one says; an agent that starts while it cannot be read goes on with the last good configuration as a whole (`reload.rs`). etcd is
//! asked every half a minute or so: a key that changes a few times in the life of a cluster is not worth a stream of its own on every
//! node.
//!
//! What stays true: a key that is deleted, or an etcd that is away, changes nothing.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use store::{Etcd, Location};

use crate::config::ConfigError;
use crate::report::told;

/// How long until etcd is asked again: by chance between 20 and 40 seconds, so that a thousand agents do not ask as one.
pub(crate) fn again() -> Duration {
    Duration::from_millis(20_000 + RandomState::new().hash_one(0) % 20_000)
}

/// What such keys say, in the store if that is an etcd.
#[derive(Debug)]
pub(crate) struct NetworkKeys {
    store: Location,
    etcd: Option<Etcd>,
    /// The key that was read last, and what it said.
    last: Option<(String, String)>,
    /// Why what it said last holds instead, if that was told.
    trouble: Option<String>,
}

impl NetworkKeys {
    pub(crate) fn of(store: &Location) -> Self {
        Self { store: store.clone(), etcd: None, last: None, trouble: None }
    }

    /// What the key behind this prefix says; what it said before where it cannot be read now, which is told once while it lasts.
    ///
    /// # Errors
    /// When it cannot be read and was not before, also since the store is no etcd.
    pub(crate) fn text(&mut self, prefix: &str) -> Result<String, ConfigError> {
        let key = format!("{prefix}/config");
        match self.ask(&key) {
            Ok(text) => {
                self.trouble = None;
                self.last = Some((key, text.clone()));
                Ok(text)
            }
            Err(reason) => {
                let Some((_, text)) = self.last.as_ref().filter(|last| last.0 == key) else {
                    return Err(ConfigError::Value {
                        key: "flannel.netConf",
                        reason: format!("is etcd{reason}"),
                    });
                };
                if self.trouble.as_ref() != Some(&reason) {
                    tracing::warn!("flannel's network configuration stays as it was{reason}");
                }
                self.trouble = Some(reason);
                Ok(text.clone())
            }
        }
    }

    /// What the key says, or why that is not known, to be read after what that leads to.
    fn ask(&mut self, key: &str) -> Result<String, String> {
        if self.etcd.is_none() {
            self.etcd = self.store.open_etcd().map_err(|error| format!(": {}", told(&error)))?;
        }
        let Some(etcd) = &self.etcd else {
            return Err(format!(", and the store, {}, is another one", self.store));
        };
        let found = etcd.text_of(key).map_err(|error| format!(": read key {key}: {}", told(&error)))?;
        found.ok_or_else(|| {
            format!(
                ": etcd has no key {key}\nhint: flannel.etcdPrefix is flannel's own --etcd-prefix; flannel does not start \
                 without this key"
            )
        })
    }
}
