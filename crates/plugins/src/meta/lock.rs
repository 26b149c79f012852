//! One plugin at a time in a pod's namespace: for those that look for an unused routing table and then take it.
//!
//! Read [`NamespaceLock`]. The lock is a file named after the namespace's inode, so it is the same whatever path
//! leads there, and nothing is ever made where the path leads when the namespace is gone. It is not on the
//! namespace itself, for every process of the pod could hold that one and keep the pod from going. Whoever is
//! done removes the file; one that a killed plugin left is nobody's and the next may have it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use cni::Error;
use kernel::netns::Netns;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::fault::fault;

const FOLDER: &str = "/run/cni/fairlead";

/// Held until it is dropped.
#[derive(Debug)]
pub(crate) struct NamespaceLock {
    file: Option<(File, PathBuf)>,
    /// Where no file can be made: a copy of the namespace's descriptor.
    _namespace: Option<Netns>,
}

impl NamespaceLock {
    /// Waits for the lock of this namespace.
    ///
    /// # Errors
    /// Code 5 when it cannot be had.
    pub(crate) fn hold(namespace: &Netns) -> Result<Self, Error> {
        let inode = namespace.identity().map_err(fault)?.inode;
        Self::hold_in(Path::new(FOLDER), inode, namespace)
    }

    fn hold_in(folder: &Path, inode: u64, namespace: &Netns) -> Result<Self, Error> {
        let path = folder.join(inode.to_string());
        let failed = |cause: io::Error| Error::io(format!("lock {}: {cause}", path.display()));
        loop {
            let file = match open(folder, &path) {
                Ok(file) => file,
                Err(cause) if is_denied(&cause) => return Self::on(namespace).map_err(failed),
                Err(cause) => return Err(failed(cause)),
            };
            exclusively(&file).map_err(failed)?;
            // Removed while we waited for it: somebody else may hold its successor.
            if file.metadata().map_err(failed)?.nlink() > 0 {
                return Ok(Self { file: Some((file, path)), _namespace: None });
            }
        }
    }

    /// An ordinary user's namespaces are locked themselves: nothing else is writable.
    fn on(namespace: &Netns) -> io::Result<Self> {
        let own = namespace.as_fd().try_clone_to_owned()?;
        // A new description of the file, for locks belong to those.
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&own));
        let own = Netns::open(path).map_err(io::Error::other)?;
        exclusively(&own)?;
        Ok(Self { file: None, _namespace: Some(own) })
    }
}

impl Drop for NamespaceLock {
    fn drop(&mut self) {
        if let Some((_, path)) = &self.file {
            // Failing leaves an empty file that the next one takes.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes the locks that nobody holds: killed plugins left them. Nothing depends on that, so failures are not
/// reported.
pub(crate) fn collect() {
    collect_in(Path::new(FOLDER));
}

fn collect_in(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let Ok(file) = File::open(&path) else { continue };
        let is_ours = flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok();
        // Removed since it was opened: what has the name now may be held.
        if is_ours && file.metadata().is_ok_and(|metadata| metadata.nlink() > 0) {
            let _ = std::fs::remove_file(&path);
        }
    }
}

fn open(folder: &Path, path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    match options.open(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            options.open(path)
        }
        done => done,
    }
}

fn exclusively(file: impl AsFd) -> io::Result<()> {
    loop {
        match flock(&file, FlockOperation::LockExclusive) {
            Err(Errno::INTR) => {}
            done => return Ok(done?),
        }
    }
}

fn is_denied(cause: &io::Error) -> bool {
    matches!(cause.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn one_holder_at_a_time_and_no_file_afterwards() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("below");
        let inside = AtomicU32::new(0);
        std::thread::scope(|scope| {
            // A GC is no holder, and takes no lock away from one.
            scope.spawn(|| {
                for _ in 0..5000 {
                    collect_in(&below);
                }
            });
            for _ in 0..8 {
                scope.spawn(|| {
                    let namespace = Netns::current().unwrap();
                    for _ in 0..50 {
                        let _lock = NamespaceLock::hold_in(&below, 7, &namespace).unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                    }
                });
            }
        });
        assert_eq!(std::fs::read_dir(below).unwrap().count(), 0);
    }

    #[test]
    fn where_no_file_can_be_made_the_namespace_itself_is_locked() {
        let namespace = Netns::current().unwrap();
        let held = NamespaceLock::on(&namespace).unwrap();
        let other = File::open("/proc/thread-self/ns/net").unwrap();
        assert_eq!(flock(&other, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK));
        drop(held);
        flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
    }
}
