//! The daemon's leases on disk: a file for each attachment, which a restarted daemon takes up.
//!
//! Read [`Store`]. Whoever has it open has the directory's lock: the daemon as long as it runs, a DEL or GC for
//! a moment when there is no daemon. A file appears complete or not at all, and is on the disk before the
//! address is given to anybody.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cni::{Error, Json};
use rustix::fs::FlockOperation;
use sha2::{Digest, Sha256};

use crate::owner::hexadecimal;

const LOCK: &str = "lock";
const SUFFIX: &str = "json";

/// The directory, locked.
#[derive(Debug)]
pub(crate) struct Store {
    directory: PathBuf,
    handle: File,
    _lock: File,
}

impl Store {
    /// Opens it, making the directory; `None` when another process has it.
    ///
    /// # Errors
    /// Code 5 when a file cannot be made.
    pub(crate) fn open(directory: &Path) -> Result<Option<Self>, Error> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|cause| failed("create the directory", directory, &cause))?;
        let path = directory.join(LOCK);
        let lock = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let lock = lock.map_err(|cause| failed("open", &path, &cause))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(cause) => return Err(failed("lock", &path, &cause.into())),
        }
        let handle = File::open(directory).map_err(|cause| failed("open", directory, &cause))?;
        Ok(Some(Self { directory: directory.to_owned(), handle, _lock: lock }))
    }

    /// Keeps a lease's document in place of the one before.
    ///
    /// # Errors
    /// Code 5 when it cannot be written.
    pub(crate) fn save(&self, name: &str, document: &Json) -> Result<(), Error> {
        let path = self.path(name);
        let fresh = path.with_extension("new");
        let write = || -> io::Result<()> {
            let mut file =
                File::options().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            file.write_all(&document.to_bytes())?;
            file.sync_data()?;
            fs::rename(&fresh, &path)?;
            self.handle.sync_data()
        };
        write().map_err(|cause| failed("write", &path, &cause))
    }

    /// Forgets a lease; that there is none is as good.
    ///
    /// # Errors
    /// Code 5 when the file cannot be removed.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path, &cause)),
            _ => Ok(()),
        }
    }

    /// Every lease's document. A file that cannot be read or is no document is left where it is, and named.
    ///
    /// # Errors
    /// Code 5 when the directory cannot be listed.
    pub(crate) fn load(&self) -> Result<(Vec<Json>, Vec<Error>), Error> {
        let (mut documents, mut failures) = (Vec::new(), Vec::new());
        let entries = fs::read_dir(&self.directory);
        for entry in entries.map_err(|cause| failed("list", &self.directory, &cause))? {
            let path = entry.map_err(|cause| failed("list", &self.directory, &cause))?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some(SUFFIX) => {}
                // Left by a write that was cut off.
                Some("new") => {
                    let _ = fs::remove_file(&path);
                    continue;
                }
                _ => continue,
            }
            let parsed = fs::read(&path).map_err(|cause| failed("read", &path, &cause)).and_then(|bytes| {
                Json::parse(&bytes)
                    .map_err(|error| Error::undecodable(format!("{}: {error}", path.display())))
            });
            match parsed {
                Ok(document) => documents.push(document),
                Err(failure) => failures.push(failure),
            }
        }
        Ok((documents, failures))
    }

    /// Names are longer than file names may be.
    fn path(&self, name: &str) -> PathBuf {
        let digest = Sha256::digest(name.as_bytes());
        self.directory.join(format!("{}.{SUFFIX}", hexadecimal(&digest[..16])))
    }
}

fn failed(tried: &str, path: &Path, cause: &io::Error) -> Error {
    Error::io(format!("{tried} {}: {cause}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded_until_it_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made");
        let store = Store::open(&path).unwrap().unwrap();
        store.save("c/net/eth0", &Json::from("first")).unwrap();
        store.save("c/net/eth0", &Json::from("second")).unwrap();
        store.save(&format!("{}/net/eth0", "c".repeat(400)), &Json::from("long")).unwrap();
        fs::write(path.join("0123.new"), "cut o").unwrap();
        fs::write(path.join("0123.json"), "cut o").unwrap();
        let (mut documents, failures) = store.load().unwrap();
        documents.sort_by_key(Json::to_string);
        assert_eq!(documents, [Json::from("long"), Json::from("second")]);
        assert_eq!(failures.len(), 1, "{failures:?}");
        assert!(!path.join("0123.new").exists());
        store.remove("c/net/eth0").unwrap();
        store.remove("c/net/eth0").unwrap();
        assert_eq!(store.load().unwrap().0.len(), 1);
    }

    #[test]
    fn only_one_has_it_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert!(store.is_some());
        assert!(Store::open(directory.path()).unwrap().is_none());
        drop(store);
        assert!(Store::open(directory.path()).unwrap().is_some());
    }
}
