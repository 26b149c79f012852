//! Who holds what, found without reading every address file: one symbolic link for each holder.
//!
//! ```text
//! <dataDir>/.fairlead/<network>/<containerID>:<ifname> -> "10.244.1.7,fd00:10:244:1::7"
//! ```
//!
//! A link's target is a text that is made whole in one step and read in one. The folder stands beside the
//! networks' directories, not inside, because the reference plugin reads every file below its network's.
//!
//! What stays true: a hint is never believed, only followed. What it says about a holder is checked
//! against the address files; what it does *not* say is relied on only while the hints are
//! [complete](Hints::complete), and that is known by a stamp. The last step of every change sets the
//! modification time of the network's directory to the present, and that of the hints to one nanosecond
//! more, which no clock does by itself. Whatever creates or removes a file in between (the reference
//! plugin, an administrator, a change of ours that was killed half-way) moves the first time, and the next
//! look goes through all files again and puts the hints right.

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use cni::Attachment;
use rustix::fs::{self, AtFlags, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};
use sha2::{Digest, Sha256};

/// Below `dataDir`; no network can have this name, for theirs begin with a letter or digit.
pub(crate) const FOLDER: &str = ".fairlead";

/// A longer name than this would not fit into a directory entry together with what a person may add to it.
const LONGEST_NAME: usize = 200;

/// The hints of one network. Failures to write them cost time, not correctness, so none is reported.
#[derive(Debug)]
pub(super) struct Hints {
    path: PathBuf,
    directory: Option<OwnedFd>,
    complete: bool,
    changed: bool,
}

impl Hints {
    /// Opens the hints for a network whose directory is in `state`.
    pub(super) fn open(data_dir: &Path, network: &str, state: &Stat) -> Self {
        let path = data_dir.join(FOLDER).join(network);
        let directory = open(&path);
        let stamp = directory.as_ref().and_then(|directory| fs::fstat(directory).ok());
        let complete = stamp.is_some_and(|stamp| {
            // Where times are kept to the second or coarser, a change would go unnoticed. And a power
            // failure may have emptied files whose names it kept.
            state.st_mtime_nsec != 0
                && state.st_mtime >= start_of_this_boot()
                && stamp.st_mtime == state.st_mtime
                && stamp.st_mtime_nsec == state.st_mtime_nsec + 1
        });
        Self { path, directory, complete, changed: false }
    }

    /// Whether a holder without a hint holds nothing.
    pub(super) fn complete(&self) -> bool {
        self.complete
    }

    /// What `holder` is said to hold; nothing when there is no hint.
    pub(super) fn recall(&self, holder: &Attachment) -> Option<Vec<IpAddr>> {
        let target = fs::readlinkat(self.directory.as_ref()?, name_of(holder), Vec::new()).ok()?;
        Some(target.to_str().ok()?.split(',').filter_map(|ip| ip.parse().ok()).collect())
    }

    /// Notes that `holder` holds exactly `held`.
    pub(super) fn note(&mut self, holder: &Attachment, held: &[IpAddr]) {
        self.changed = true;
        let written =
            self.directory().and_then(|directory| replace(directory, &name_of(holder), &target_of(held)));
        self.complete &= written.is_ok();
    }

    /// Notes that `holder` holds nothing any more.
    pub(super) fn forget(&mut self, holder: &Attachment) {
        self.changed = true;
        let Some(directory) = &self.directory else { return };
        let removed = fs::unlinkat(directory, name_of(holder), AtFlags::empty());
        self.complete &= matches!(removed, Ok(()) | Err(Errno::NOENT));
    }

    /// Says that the hints may lack something: they are not complete until everything has been looked at again.
    pub(super) fn doubt(&mut self) {
        self.complete = false;
    }

    /// Makes the hints say what `held` says, and nothing else.
    pub(super) fn rebuild(&mut self, held: &[(IpAddr, Attachment)]) {
        self.changed = true;
        let mut wanted: HashMap<String, Vec<IpAddr>> = HashMap::new();
        for (ip, holder) in held {
            wanted.entry(name_of(holder)).or_default().push(*ip);
        }
        let made = self.directory().and_then(|directory| make_equal(directory, wanted));
        self.complete = made.is_ok();
    }

    /// The last step of a change: stamps both directories, if the hints are complete now.
    pub(super) fn seal(&self, network: BorrowedFd<'_>) {
        let (true, true, Some(directory)) = (self.complete, self.changed, &self.directory) else { return };
        let mut now = clock_gettime(ClockId::Realtime);
        now.tv_nsec = now.tv_nsec.clamp(1, 999_999_998);
        if stamp(network, now).is_ok() {
            let _ = stamp(directory.as_fd(), Timespec { tv_nsec: now.tv_nsec + 1, ..now });
        }
    }

    /// The folder, made where it is missing.
    fn directory(&mut self) -> Result<BorrowedFd<'_>, Errno> {
        if self.directory.is_none() {
            let _ = DirBuilder::new().recursive(true).mode(0o700).create(&self.path);
            self.directory = open(&self.path);
        }
        self.directory.as_ref().map(AsFd::as_fd).ok_or(Errno::NOENT)
    }
}

fn open(path: &Path) -> Option<OwnedFd> {
    fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()
}

/// A name a person can read, wherever that can neither clash nor be too long.
fn name_of(holder: &Attachment) -> String {
    // Neither part can have a colon; what has one, or a slash, did not come from a runtime.
    let name = format!("{}:{}", holder.container_id, holder.ifname);
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
    let parts = [&holder.container_id, &holder.ifname];
    if name.len() <= LONGEST_NAME && parts.iter().all(|part| part.bytes().all(plain)) {
        return name;
    }
    let digest = Sha256::digest(name.as_bytes());
    digest.iter().fold("~".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

fn target_of(held: &[IpAddr]) -> String {
    let mut held = held.to_vec();
    held.sort_unstable();
    held.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",")
}

fn replace(directory: BorrowedFd<'_>, name: &str, target: &str) -> Result<(), Errno> {
    match fs::symlinkat(target, directory, name) {
        Err(Errno::EXIST) => {
            fs::unlinkat(directory, name, AtFlags::empty())?;
            fs::symlinkat(target, directory, name)
        }
        done => done,
    }
}

fn make_equal(directory: BorrowedFd<'_>, mut wanted: HashMap<String, Vec<IpAddr>>) -> Result<(), Errno> {
    for entry in fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let has = fs::readlinkat(directory, name, Vec::new()).ok();
        let wants = name.to_str().ok().and_then(|name| wanted.get(name)).map(|held| target_of(held));
        let right =
            has.as_ref().is_some_and(|has| Some(has.as_bytes()) == wants.as_ref().map(String::as_bytes));
        if right {
            wanted.remove(name.to_str().unwrap_or_default());
        } else {
            fs::unlinkat(directory, name, AtFlags::empty())?;
        }
    }
    wanted.iter().try_for_each(|(name, held)| replace(directory, name, &target_of(held)))
}

/// In seconds since 1970, by the clock that files are stamped with.
fn start_of_this_boot() -> i64 {
    clock_gettime(ClockId::Realtime).tv_sec - clock_gettime(ClockId::Boottime).tv_sec
}

fn stamp(directory: BorrowedFd<'_>, time: Timespec) -> Result<(), Errno> {
    let unchanged = Timespec { tv_sec: 0, tv_nsec: fs::UTIME_OMIT };
    fs::futimens(directory, &Timestamps { last_access: unchanged, last_modification: time })
}
