//! What paths carry, on disk, for the next agent.
//!
//! Read [`LimitsFile`]. A restarted agent knows nothing of the paths, and with many peers it takes minutes until it does; routes
//! that fit must not grow meanwhile. A file that cannot be read is none: then the paths are searched as those of a new node are.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::files::{self, FileError};
use crate::report::told;

/// More is not read, in bytes: twenty times what five thousand peers need.
const MOST: u64 = 4 << 20;

/// `<state dir>/path-mtu.json`: the largest packet that reaches each address which not all packets reach, in bytes.
#[derive(Debug)]
pub(crate) struct LimitsFile {
    path: PathBuf,
}

impl LimitsFile {
    /// The file's name within the state directory.
    pub(crate) const NAME: &'static str = "path-mtu.json";

    pub(crate) fn new(state_dir: &Path) -> Self {
        Self { path: state_dir.join(Self::NAME) }
    }

    /// What an earlier agent found.
    pub(super) fn read(&self) -> BTreeMap<IpAddr, u32> {
        let read = || {
            let mut text = Vec::new();
            File::open(&self.path)?.take(MOST).read_to_end(&mut text)?;
            serde_json::from_slice(&text).map_err(io::Error::from)
        };
        match read() {
            Ok(limits) => limits,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "what paths carry is not remembered, and found out anew");
                BTreeMap::new()
            }
        }
    }

    /// Keeps this for the next agent. Without it that one begins as on a new node, so no more than the log hears of it.
    pub(super) fn keep(&self, limits: &BTreeMap<IpAddr, u32>) {
        let kept = if limits.is_empty() {
            files::remove(&self.path)
        } else {
            let text: BTreeMap<String, u32> =
                limits.iter().map(|(address, limit)| (address.to_string(), *limit)).collect();
            files::replace(&self.path, serde_json::json!(text).to_string().as_bytes())
        };
        if let Err(error) = kept {
            tracing::warn!(error = %told(&error), "what paths carry is not kept for the next start");
        }
    }

    /// Removes the file; true if it was there.
    pub(crate) fn forget(state_dir: &Path) -> Result<bool, FileError> {
        files::remove(&state_dir.join(Self::NAME))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_and_what_makes_no_sense_is_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = LimitsFile::new(directory.path());
        assert_eq!(file.read(), BTreeMap::new());
        let limits =
            BTreeMap::from([("198.18.0.2".parse().unwrap(), 1400), ("fd00::2".parse().unwrap(), 1300)]);
        file.keep(&limits);
        assert_eq!(file.read(), limits);
        file.keep(&BTreeMap::new());
        assert!(!directory.path().join(LimitsFile::NAME).exists());
        std::fs::write(directory.path().join(LimitsFile::NAME), "{\"198.18.0.2\": -1}").unwrap();
        assert_eq!(file.read(), BTreeMap::new());
        assert!(LimitsFile::forget(directory.path()).unwrap());
        assert!(!LimitsFile::forget(directory.path()).unwrap());
    }
}
