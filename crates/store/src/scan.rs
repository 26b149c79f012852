//! Walking through a store directory, whole or in part, into the catalog.
//!
//! What a walk cannot read stays as it was known.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::catalog::Catalog;
use crate::files::{self, DEEPEST_FOLDER, Found};
use crate::manifest::Fault;

/// Told where a walk comes along: a watcher arms itself there, a listing has nothing to do.
pub(crate) trait Companion {
    /// Before the names in the folder are read.
    fn folder(&mut self, relative: &Path) -> Result<(), Fault>;
    /// Before the file is read, or when what stands there does not count.
    fn file(&mut self, relative: &Path);
}

/// Walks alone.
pub(crate) struct Alone;

impl Companion for Alone {
    fn folder(&mut self, _relative: &Path) -> Result<(), Fault> {
        Ok(())
    }

    fn file(&mut self, _relative: &Path) {}
}

/// Brings the catalog up to date about all that stands at and below `relative`. Returns the files it knew
/// there and did not find; what becomes of them is the caller's to say.
pub(crate) fn scan(
    root: &Path,
    relative: &Path,
    catalog: &mut Catalog,
    companion: &mut impl Companion,
) -> Vec<Arc<Path>> {
    let mut walk =
        Walk { root, catalog, companion, seen: BTreeSet::new(), unread: Vec::new(), above: Vec::new() };
    walk.entry(relative);
    let Walk { seen, unread, .. } = walk;
    let mut missing = catalog.files_below(relative);
    missing.retain(|path| !seen.contains(&**path) && !unread.iter().any(|folder| path.starts_with(folder)));
    missing
}

struct Walk<'a, C> {
    root: &'a Path,
    catalog: &'a mut Catalog,
    companion: &'a mut C,
    /// Files that were found.
    seen: BTreeSet<PathBuf>,
    /// Folders that could not be read.
    unread: Vec<PathBuf>,
    /// The folders above, by device and inode, to notice links that lead back.
    above: Vec<(u64, u64)>,
}

impl<C: Companion> Walk<'_, C> {
    fn entry(&mut self, relative: &Path) {
        match files::look(&self.place(relative)) {
            Ok(Found::Folder) => self.folder(relative),
            Ok(Found::Manifest) => self.file(relative),
            // Perhaps a link that leads nowhere yet.
            Ok(Found::Nothing) => self.companion.file(relative),
            Err(error) => self.unreadable(relative, &error),
        }
    }

    fn file(&mut self, relative: &Path) {
        self.companion.file(relative);
        if let Some(reading) = files::read(self.root, relative) {
            if reading.is_err() && !self.catalog.knows(relative) {
                self.recall(relative);
            }
            self.catalog.put(relative, reading);
            self.seen.insert(relative.to_owned());
        }
    }

    /// The file was good once, though nobody here has seen it.
    fn recall(&mut self, relative: &Path) {
        if let Some(objects) = files::last_good(self.root, relative) {
            self.catalog.put(relative, Ok(objects));
        }
    }

    fn folder(&mut self, relative: &Path) {
        let place = self.place(relative);
        let identity = match fs::metadata(&place) {
            Ok(metadata) => (metadata.dev(), metadata.ino()),
            Err(error) => return self.unreadable(relative, &error),
        };
        if self.above.contains(&identity) || self.above.len() >= DEEPEST_FOLDER {
            let fault = Fault::new("leads back to a folder above it, or too deep".into());
            return self.complain(relative, fault.hint("remove the link"));
        }
        let armed = self.companion.folder(relative);
        let names = match files::names(&place) {
            Ok(names) => names,
            Err(error) => return self.unreadable(relative, &error),
        };
        self.above.push(identity);
        for name in names {
            self.entry(&relative.join(name));
        }
        self.above.pop();
        if let Err(fault) = armed {
            self.complain(relative, fault);
        }
    }

    fn unreadable(&mut self, relative: &Path, error: &io::Error) {
        if error.kind() != io::ErrorKind::NotFound {
            self.catalog.put_unread(relative, files::unreadable(error));
            self.seen.insert(relative.to_owned());
            self.unread.push(relative.to_owned());
        }
    }

    fn complain(&mut self, relative: &Path, fault: Fault) {
        self.catalog.put(relative, Err(vec![fault]));
        self.seen.insert(relative.to_owned());
    }

    /// Without the slash that joining an empty path leaves at the end: the root may be a link.
    fn place(&self, relative: &Path) -> PathBuf {
        place(self.root, relative)
    }
}

/// Where `relative` is; the root itself if empty.
pub(crate) fn place(root: &Path, relative: &Path) -> PathBuf {
    if relative.as_os_str().is_empty() { root.to_owned() } else { root.join(relative) }
}
