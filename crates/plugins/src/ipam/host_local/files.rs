//! The reference plugin's files, so that both plugins can share one directory at the same time:
//!
//! ```text
//! <dataDir>/<network>/lock                 flock, held for every change
//!                     10.244.1.7           "<containerID>\r\n<ifname>": who holds this address
//!                     last_reserved_ip.0   the address of set 0 given out last
//! <dataDir>/.fairlead/<network>/           our hints (see `hints.rs`); nobody else looks there
//! ```
//!
//! Read [`Files`] first: it is the directory with the lock held, and the only way to change it. The file
//! of an address is the truth; everything else may be lost or wrong and is put right.
//!
//! What stays true: the file of an address appears complete or not at all, and only where there was none,
//! so an address is never given twice, lock or no lock. A file without content is what a killed process or
//! a power failure left behind: nobody holds that address. A file that cannot be read is somebody's. Nothing
//! is synced to the disk on purpose: what a power failure can undo here belonged to pods that it ended too.

use std::collections::HashSet;
use std::fs::DirBuilder;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::{io, iter};

use cni::Attachment;
use rustix::fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::error::FileError;
use super::hints::Hints;

/// Addresses are claimed one by one this often before the whole directory is read at once.
const TRIES_BEFORE_LISTING: usize = 16;

/// The directory of one network, with its lock held until this is dropped.
#[derive(Debug)]
pub(super) struct Files {
    path: PathBuf,
    directory: OwnedFd,
    hints: Hints,
    _lock: OwnedFd,
}

impl Files {
    /// Makes the directory where it is missing, opens it and waits for the lock.
    pub(super) fn create(data_dir: &Path, network: &str) -> Result<Self, FileError> {
        let path = data_dir.join(network);
        loop {
            if let Some(files) = Self::open(data_dir, network)? {
                return Ok(files);
            }
            let made = DirBuilder::new().recursive(true).mode(0o755).create(&path);
            made.map_err(|cause| FileError::new("create the directory", &path, cause))?;
        }
    }

    /// Opens the directory and waits for the lock; nothing when there is no directory.
    pub(super) fn open(data_dir: &Path, network: &str) -> Result<Option<Self>, FileError> {
        let path = data_dir.join(network);
        loop {
            let Some(directory) = open_directory(&path)? else { return Ok(None) };
            let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::CLOEXEC;
            let lock = fs::openat(&directory, "lock", flags, Mode::from_raw_mode(0o750));
            if let Ok(lock) = &lock {
                lock_exclusively(lock).map_err(|cause| FileError::new("lock", &path, cause))?;
            }
            let state = fs::fstat(&directory).map_err(|error| FileError::new("inspect", &path, error))?;
            // Removed while we waited for its lock: whoever comes next would not see what we do here.
            if state.st_nlink == 0 {
                continue;
            }
            let lock = lock.map_err(|error| FileError::new("open the lock in", &path, error))?;
            let hints = Hints::open(data_dir, network, &state);
            return Ok(Some(Self { path, directory, hints, _lock: lock }));
        }
    }

    /// The addresses of `holder`, also those a very old plugin noted for its container alone. Fails when a
    /// file that might be the holder's cannot be read.
    pub(super) fn held_by(&mut self, holder: &Attachment) -> Result<Vec<IpAddr>, FileError> {
        let Survey { held, failures } = self.notes_of(holder)?;
        match failures.into_iter().next() {
            None => Ok(held.into_iter().map(|(ip, _)| ip).collect()),
            Some(failure) => Err(failure),
        }
    }

    /// Gives back what `holder` holds, all that can be, and says what that was and what could not be done.
    /// What was noted for the container alone goes only when nothing is noted for the interface, as with the
    /// reference.
    pub(super) fn release(
        &mut self,
        holder: &Attachment,
    ) -> Result<(Vec<IpAddr>, Vec<FileError>), FileError> {
        let Survey { held, mut failures } = self.notes_of(holder)?;
        let exact = held.iter().any(|(_, noted)| noted == holder);
        let mut released = Vec::with_capacity(held.len());
        for (ip, noted) in held.into_iter().filter(|(_, noted)| !exact || noted == holder) {
            match self.remove(ip) {
                Ok(()) => released.push(ip),
                Err(failure) => failures.push(failure),
            }
            self.hints.forget(&noted);
        }
        Ok((released, failures))
    }

    /// The address files that name `holder`, or its container without an interface.
    fn notes_of(&mut self, holder: &Attachment) -> Result<Survey, FileError> {
        let alone = Attachment { ifname: String::new(), ..holder.clone() };
        if self.hints.complete() {
            let hinted = [holder, &alone].into_iter().filter_map(|noted| self.hints.recall(noted)).flatten();
            let notes: Option<Vec<_>> = hinted
                .map(|ip| {
                    let noted = self.holder_of(ip).ok().flatten()?;
                    (noted == *holder || noted == alone).then_some((ip, noted))
                })
                .collect();
            if let Some(held) = notes {
                return Ok(Survey { held, failures: Vec::new() });
            }
        }
        let mut survey = self.survey()?;
        survey.held.retain(|(_, noted)| noted == holder || *noted == alone);
        Ok(survey)
    }

    /// Every address that somebody is known to hold. Files without content are removed, and hints put right:
    /// this is the one look at everything, and what it finds out is not lost.
    pub(super) fn survey(&mut self) -> Result<Survey, FileError> {
        let mut survey = Survey { held: Vec::new(), failures: Vec::new() };
        for ip in self.listed()? {
            match self.holder_of(ip) {
                Ok(Some(holder)) => survey.held.push((ip, holder)),
                Ok(None) => survey.failures.extend(self.remove(ip).err()),
                Err(failure) => survey.failures.push(failure),
            }
        }
        self.hints.rebuild(&survey.held);
        if !survey.failures.is_empty() {
            self.hints.doubt();
        }
        Ok(survey)
    }

    /// The holder noted in the file of `ip`; nothing when the file is missing or was never filled.
    pub(super) fn holder_of(&self, ip: IpAddr) -> Result<Option<Attachment>, FileError> {
        match read(self.directory.as_fd(), &ip.to_string()) {
            Ok(content) => Ok(holder_in(&content)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(FileError::new("read", &self.path.join(ip.to_string()), error)),
        }
    }

    /// Removes the file of `ip`; that it is gone already is as good. What stays may have no hint by now, so it
    /// must be looked for next time.
    pub(super) fn remove(&mut self, ip: IpAddr) -> Result<(), FileError> {
        match fs::unlinkat(&self.directory, ip.to_string(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => {
                self.hints.doubt();
                Err(FileError::new("remove", &self.path.join(ip.to_string()), error))
            }
        }
    }

    /// Opens the note of what was given out last from the set at `index`.
    pub(super) fn last(&self, index: usize) -> Result<Last, FileError> {
        let name = format!("last_reserved_ip.{index}");
        Last::open(self.directory.as_fd(), self.path.join(&name), &name)
    }

    /// Readies the file that says an address is `holder`'s.
    pub(super) fn claim(&self, holder: &Attachment) -> Result<Claim, FileError> {
        let content = format!("{}\r\n{}", holder.container_id, holder.ifname);
        let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
        let nameless = match fs::openat(&self.directory, ".", flags, Mode::from_raw_mode(0o600)) {
            Ok(file) => Some(file),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOSYS) => None,
            Err(error) => return Err(FileError::new("create a file in", &self.path, error)),
        };
        if let Some(file) = &nameless {
            let written = write(file.as_fd(), content.as_bytes());
            written.map_err(|error| FileError::new("write a file in", &self.path, error))?;
        }
        Ok(Claim { content, nameless })
    }

    /// Takes `ip`; false when somebody has it.
    pub(super) fn take(&self, claim: &Claim, ip: IpAddr) -> Result<bool, FileError> {
        let name = ip.to_string();
        let taken = match &claim.nameless {
            Some(file) => link(file.as_fd(), self.directory.as_fd(), &name),
            None => create(self.directory.as_fd(), &name, &claim.content),
        };
        match taken {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(FileError::new("create", &self.path.join(name), error)),
        }
    }

    /// Takes the first free one of `candidates`.
    pub(super) fn take_first(
        &self,
        claim: &Claim,
        mut candidates: impl Iterator<Item = IpAddr>,
    ) -> Result<Option<IpAddr>, FileError> {
        for ip in candidates.by_ref().take(TRIES_BEFORE_LISTING) {
            if self.take(claim, ip)? {
                return Ok(Some(ip));
            }
        }
        let Some(next) = candidates.next() else { return Ok(None) };
        let listed = self.listed()?;
        for ip in iter::once(next).chain(candidates).filter(|ip| !listed.contains(ip)) {
            if self.take(claim, ip)? {
                return Ok(Some(ip));
            }
        }
        Ok(None)
    }

    /// Notes what `holder` holds now, for the next look.
    pub(super) fn remember(&mut self, holder: &Attachment, held: &[IpAddr]) {
        if held.is_empty() { self.hints.forget(holder) } else { self.hints.note(holder, held) }
    }

    /// Notes that `holder` holds nothing any more.
    pub(super) fn forget(&mut self, holder: &Attachment) {
        self.hints.forget(holder);
    }

    /// Says that nothing is left to do: the hints are as true as they will get.
    pub(super) fn finish(self) {
        self.hints.seal(self.directory.as_fd());
    }

    /// Every address that has a file, filled or not.
    fn listed(&self) -> Result<HashSet<IpAddr>, FileError> {
        list(self.directory.as_fd()).map_err(|cause| FileError::new("list", &self.path, cause))
    }
}

/// What a look at the address files found.
pub(super) struct Survey {
    /// Addresses and who holds them.
    pub(super) held: Vec<(IpAddr, Attachment)>,
    /// Files that could not be read, or were empty and could not be removed.
    pub(super) failures: Vec<FileError>,
}

/// One content, written once and then linked to the name of each address it gets.
pub(super) struct Claim {
    content: String,
    /// The content as a file without a name; nothing where the file system cannot do that.
    nameless: Option<OwnedFd>,
}

/// The note of what a set gave out last. Only a place to start looking from, so it is overwritten in
/// place: a kill or a power failure in between costs the order, never an address.
pub(super) struct Last {
    path: PathBuf,
    file: OwnedFd,
    text: String,
}

impl Last {
    fn open(directory: BorrowedFd<'_>, path: PathBuf, name: &str) -> Result<Self, FileError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let mut buffer = [0; 64];
        let mut read = || -> Result<_, Errno> {
            let file = fs::openat(directory, name, flags, Mode::from_raw_mode(0o600))?;
            let length = rustix::io::read(&file, &mut buffer)?;
            Ok((file, String::from_utf8_lossy(&buffer[..length]).into_owned()))
        };
        match read() {
            Ok((file, text)) => Ok(Self { path, file, text }),
            Err(error) => Err(FileError::new("read", &path, error)),
        }
    }

    /// The address, if the note names one.
    pub(super) fn address(&self) -> Option<IpAddr> {
        self.text.trim().parse().ok()
    }

    /// Notes `ip`.
    pub(super) fn note(&self, ip: IpAddr) -> Result<(), FileError> {
        let text = ip.to_string();
        let write = || {
            rustix::io::pwrite(&self.file, text.as_bytes(), 0)?;
            if text.len() < self.text.len() { fs::ftruncate(&self.file, text.len() as u64) } else { Ok(()) }
        };
        write().map_err(|error: Errno| FileError::new("write", &self.path, error))
    }
}

/// A look at a network's directory without its lock and without changing anything.
#[derive(Debug)]
pub(super) struct View {
    path: PathBuf,
    directory: OwnedFd,
    /// Files without content can be ruled out.
    complete: bool,
}

impl View {
    /// Opens the directory; nothing when there is none yet.
    pub(super) fn open(data_dir: &Path, network: &str) -> Result<Option<Self>, FileError> {
        let path = data_dir.join(network);
        let Some(directory) = open_directory(&path)? else { return Ok(None) };
        let state = fs::fstat(&directory).map_err(|error| FileError::new("inspect", &path, error))?;
        let complete = Hints::open(data_dir, network, &state).complete();
        Ok(Some(Self { path, directory, complete }))
    }

    /// What the set at `index` gave out last.
    pub(super) fn last(&self, index: usize) -> Option<IpAddr> {
        let text = read(self.directory.as_fd(), &format!("last_reserved_ip.{index}")).ok()?;
        String::from_utf8_lossy(&text).trim().parse().ok()
    }

    /// Whether any of `candidates` could be given out.
    pub(super) fn any_free(&self, mut candidates: impl Iterator<Item = IpAddr>) -> Result<bool, FileError> {
        if candidates.by_ref().take(TRIES_BEFORE_LISTING).any(|ip| self.is_free(ip)) {
            return Ok(true);
        }
        let directory = self.directory.as_fd();
        let listed = list(directory).map_err(|cause| FileError::new("list", &self.path, cause))?;
        let mut taken = Vec::new();
        for ip in candidates {
            if !listed.contains(&ip) {
                return Ok(true);
            }
            taken.push(ip);
        }
        Ok(!self.complete && taken.into_iter().any(|ip| self.is_free(ip)))
    }

    /// Whether [`Files`] can be made here: the nearest directory that exists can be written to.
    pub(super) fn may_write(data_dir: &Path, network: &str) -> Result<(), FileError> {
        let path = data_dir.join(network);
        for place in path.ancestors() {
            let place = if place.as_os_str().is_empty() { Path::new(".") } else { place };
            match fs::access(place, fs::Access::WRITE_OK | fs::Access::EXEC_OK) {
                Ok(()) => return Ok(()),
                Err(Errno::NOENT) => {}
                Err(error) => return Err(FileError::new("write to", place, error)),
            }
        }
        Ok(())
    }

    fn is_free(&self, ip: IpAddr) -> bool {
        match fs::statat(&self.directory, ip.to_string(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(state) => state.st_size == 0,
            Err(error) => error == Errno::NOENT,
        }
    }
}

/// An address of some network, and who holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reserved {
    /// The network.
    pub(crate) network: String,
    /// The address.
    pub(crate) address: IpAddr,
    /// Its holder; nobody's name stands in a file that was never filled.
    pub(crate) holder: Option<Attachment>,
}

/// The addresses of every network, without any lock.
pub(crate) fn every_reserved(data_dir: &Path) -> Result<Vec<Reserved>, FileError> {
    let unlisted = |cause: Errno| FileError::new("list", data_dir, cause);
    let Some(directory) = open_directory(data_dir)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in fs::Dir::read_from(&directory).map_err(unlisted)? {
        let entry = entry.map_err(unlisted)?;
        let Some(network) = entry.file_name().to_str().ok().filter(|name| !name.starts_with('.')) else {
            continue;
        };
        let path = data_dir.join(network);
        // A link to a directory is as good.
        if !path.is_dir() {
            continue;
        }
        let Some(addresses) = open_directory(&path)? else { continue };
        found.extend(reserved_in(&addresses, network).map_err(|(name, cause)| {
            let path = name.map_or_else(|| path.clone(), |name| path.join(name));
            FileError::new("read", &path, cause)
        })?);
    }
    Ok(found)
}

/// The same of one network; a failure names the file, unless it is the directory itself.
fn reserved_in(directory: &OwnedFd, network: &str) -> Result<Vec<Reserved>, (Option<String>, Errno)> {
    let mut found = Vec::new();
    for entry in fs::Dir::read_from(directory).map_err(|cause| (None, cause))? {
        let entry = entry.map_err(|cause| (None, cause))?;
        let name = entry.file_name().to_str().unwrap_or_default();
        let Some(address) = name.parse().ok().filter(|_| entry.file_type() != FileType::Directory) else {
            continue;
        };
        match read(directory.as_fd(), name) {
            Ok(content) => {
                found.push(Reserved { network: network.to_owned(), address, holder: holder_in(&content) });
            }
            // Given back in between.
            Err(Errno::NOENT) => {}
            Err(cause) => return Err((Some(name.to_owned()), cause)),
        }
    }
    Ok(found)
}

fn open_directory(path: &Path) -> Result<Option<OwnedFd>, FileError> {
    match fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(FileError::new("open the directory", path, error)),
    }
}

fn lock_exclusively(lock: &OwnedFd) -> io::Result<()> {
    loop {
        match fs::flock(lock, FlockOperation::LockExclusive) {
            Err(Errno::INTR) => {}
            done => return Ok(done?),
        }
    }
}

/// The files in a directory whose names are addresses. A folder of such a name is none of ours.
fn list(directory: BorrowedFd<'_>) -> Result<HashSet<IpAddr>, Errno> {
    let mut found = HashSet::new();
    for entry in fs::Dir::read_from(directory)? {
        let entry = entry?;
        if entry.file_type() != FileType::Directory {
            found.extend(entry.file_name().to_str().ok().and_then(|name| name.parse::<IpAddr>().ok()));
        }
    }
    Ok(found)
}

/// The holder that a file's content names; nothing for a file that was never filled. Some file systems fill
/// what a power failure kept from being written with zeros.
fn holder_in(content: &[u8]) -> Option<Attachment> {
    let text = String::from_utf8_lossy(content);
    let is_padding = |letter: char| letter.is_whitespace() || letter == '\0';
    let mut lines = text.trim_matches(is_padding).lines();
    let container_id = lines.next()?.trim_end().to_owned();
    let ifname = lines.next().unwrap_or_default().trim().to_owned();
    Some(Attachment { container_id, ifname })
}

fn read(directory: BorrowedFd<'_>, name: &str) -> Result<Vec<u8>, Errno> {
    let file = fs::openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut content = vec![0; 256];
    let mut length = 0;
    loop {
        let more = rustix::io::read(&file, &mut content[length..])?;
        length += more;
        // A short read of a regular file is its end.
        if length < content.len() {
            content.truncate(length);
            return Ok(content);
        }
        content.resize(2 * length, 0);
    }
}

fn write(file: BorrowedFd<'_>, content: &[u8]) -> Result<(), Errno> {
    match rustix::io::write(file, content)? {
        written if written == content.len() => Ok(()),
        _ => Err(Errno::NOSPC),
    }
}

/// Without nameless files: a kill between the two steps leaves an empty file, which nobody holds.
fn create(directory: BorrowedFd<'_>, name: &str, content: &str) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = fs::openat(directory, name, flags, Mode::from_raw_mode(0o600))?;
    write(file.as_fd(), content.as_bytes()).inspect_err(|_| {
        let _ = fs::unlinkat(directory, name, AtFlags::empty());
    })
}

/// Gives a nameless file a name, unless the name is taken.
fn link(file: BorrowedFd<'_>, directory: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    match fs::linkat(file, "", directory, name, AtFlags::EMPTY_PATH) {
        // Without the privilege to link by descriptor there is the way through /proc.
        Err(Errno::NOENT) => {
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
            fs::linkat(fs::CWD, path, directory, name, AtFlags::SYMLINK_FOLLOW)
        }
        done => done,
    }
}
