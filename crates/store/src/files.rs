//! Finding and reading the files of a store directory.
//!
//! Which files count: those named `*.yaml`, `*.yml` or `*.json`, in any sub-folder, links followed. Names that
//! begin with a dot do not count; editors, version control, mounted ConfigMaps and Fairlead itself keep what
//! is not for others under such names. Below `fairlead/` every file must be one that Fairlead would write.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use cluster::{Key, Kind};
use rustix::fs::{Mode, OFlags};

use crate::catalog::Reading;
use crate::manifest::{self, Fault, Placed};
use crate::own;

/// Folders in folders: more is a mistake or a loop of links.
pub(crate) const DEEPEST_FOLDER: usize = 32;

/// What stands at a path.
pub(crate) enum Found {
    /// Nothing, or nothing that counts.
    Nothing,
    /// A folder.
    Folder,
    /// A file that counts.
    Manifest,
}

/// True if files and folders of this name do not count.
pub(crate) fn is_hidden(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".")
}

/// What stands at `path`, links followed.
pub(crate) fn look(path: &Path) -> io::Result<Found> {
    let metadata = match fs::metadata(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Found::Nothing);
        }
        other => other?,
    };
    Ok(match () {
        () if metadata.is_dir() => Found::Folder,
        () if metadata.is_file() && has_manifest_suffix(path) => Found::Manifest,
        () => Found::Nothing,
    })
}

/// True for a plain file name that counts.
pub(crate) fn is_manifest_name(path: &Path) -> bool {
    path.file_name() == Some(path.as_os_str()) && !is_hidden(path.as_os_str()) && has_manifest_suffix(path)
}

fn has_manifest_suffix(path: &Path) -> bool {
    matches!(path.extension().and_then(OsStr::to_str), Some("yaml" | "yml" | "json"))
}

/// The names in a folder that may count, in order.
pub(crate) fn names(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        if !is_hidden(&name) {
            names.push(PathBuf::from(name));
        }
    }
    names.sort();
    Ok(names)
}

/// Reads and checks the file `relative` of the store at `root`; none if it went away meanwhile.
pub(crate) fn read(root: &Path, relative: &Path) -> Option<Reading> {
    let bytes = match contents(&root.join(relative)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return Some(Err(vec![unreadable(&error)])),
        Ok(bytes) => bytes,
    };
    Some(check(relative, &bytes))
}

/// Reads and checks `bytes` as the contents of the file `relative`.
pub(crate) fn check(relative: &Path, bytes: &[u8]) -> Reading {
    if bytes.is_empty() {
        // What a crash leaves of a file that was not written to the end; as the wish of a person it is rare.
        let fault = Fault::new("is empty".into()).hint("remove the file if its objects are to go");
        return Err(vec![fault]);
    }
    in_its_place(relative, once_each(manifest::parse(bytes)?)?)
}

/// Two forms of one object in one file: neither can be what was meant.
fn once_each(objects: Vec<Placed>) -> Reading {
    let mut first: BTreeMap<Key, u32> = BTreeMap::new();
    for placed in &objects {
        let key = placed.object.key();
        if let Some(line) = first.get(&key) {
            let reason = format!("stands twice in this file, first in line {line}");
            return Err(vec![complaint(placed, reason, "remove one of the two")]);
        }
        first.insert(key, placed.line);
    }
    Ok(objects)
}

fn complaint(placed: &Placed, reason: String, hint: &str) -> Fault {
    let mut fault = Fault::new(reason).about(Some(placed.object.key().to_string())).hint(hint);
    fault.place.line = placed.line;
    fault
}

/// The last good version of a broken file, as a watcher kept it for those that come later.
pub(crate) fn last_good(root: &Path, relative: &Path) -> Option<Vec<Placed>> {
    let bytes = contents(&root.join(own::last_good_path(relative))).ok()?;
    check(relative, &bytes).ok()
}

/// The fault of a file or folder that the operating system does not let us read.
pub(crate) fn unreadable(error: &io::Error) -> Fault {
    Fault::new(format!("cannot be read: {error}"))
}

fn contents(path: &Path) -> io::Result<Vec<u8>> {
    // A pipe must not block us: it may have become one since it was looked at.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let limit = manifest::LARGEST_FILE;
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len().min(limit)).unwrap_or(0));
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("it has more than {} MiB", limit >> 20)));
    }
    Ok(bytes)
}

/// Our own kinds stand below `fairlead/`, each object in the file of its name, and nothing else stands there.
fn in_its_place(relative: &Path, objects: Vec<Placed>) -> Reading {
    if !relative.starts_with(own::FOLDER) {
        let ours = |placed: &&Placed| {
            matches!(placed.object.key().kind(), Kind::Lease | Kind::Claim | Kind::PodStatus)
        };
        return match objects.iter().find(ours) {
            Some(placed) => {
                let reason = format!("is kept by Fairlead itself, below {}/", own::FOLDER);
                Err(vec![complaint(placed, reason, "remove it here")])
            }
            None => Ok(objects),
        };
    }
    for placed in &objects {
        let place = own::path(&placed.object.key());
        if place != relative {
            let reason = format!("belongs in {}, written by Fairlead itself", place.display());
            return Err(vec![complaint(placed, reason, "keep manifests outside this folder")]);
        }
    }
    Ok(objects)
}
