//! What a watcher of a store is told ([`Event`]), and how a directory is watched.
//!
//! A [`Watch`] sleeps on inotify and wakes only when something below the directory changes; then it reads
//! what changed and tells the difference. A file is read when its writer closes it or a name begins to lead
//! to it, never in between. When the kernel lost count of events, or the directory comes back, the whole
//! directory is read again and compared with what is known.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cluster::{Change, Key, Snapshot};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;

use crate::catalog::Catalog;
use crate::files::{self, Found};
use crate::manifest;
use crate::own;
use crate::scan::{place, scan};
use crate::{Error, Problem};
use folders::{Folders, News};

mod folders;

/// What a watcher is told, in this order: `Snapshot`, `Problems` if there are any, `InSync`; from then on
/// `Changes` and `Problems` as they come. While a folder cannot be read, `InSync` waits, and `Changes` come first. `Unavailable` and `Available` may come at any time, also first; after
/// `Available` follows what changed meanwhile. `Lost` comes after `InSync` only.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "a snapshot comes once")]
pub enum Event {
    /// The whole cluster as it is, as far as it could be read. Comes once.
    Snapshot(Snapshot),
    /// Everything known has been told: from now on what is not in the snapshot is not in the cluster, and
    /// may be removed from the node. Comes once.
    InSync,
    /// What changed, as one step: between the changes of one event the cluster was never seen. What is gone
    /// comes before what is new.
    Changes(Vec<Change>),
    /// All that is wrong in the store now; empty once everything is mended.
    Problems(Vec<Problem>),
    /// The store is away; what is known stays.
    Unavailable {
        /// Why, for people.
        reason: String,
    },
    /// The store is back.
    Available,
    /// What was there when this question was asked has been told, and those before it ([`Store::confirm`](crate::Store::confirm)).
    /// Comes after `InSync` only.
    Confirmed(u64),
    /// The store does not have these leases and claims any more, though nobody removed them: it lost them, with what
    /// else it had. They stay in force; whoever wrote one may write it again.
    Lost(Vec<Key>),
}

/// How long the directory must be quiet before a file is believed to be gone. Removing a whole directory
/// takes its files one by one, and some programs replace a file by removing it first.
const QUIET: Duration = Duration::from_millis(40);

/// How much longer for each further file that seems to be gone, up to [`PATIENCE`]: the more go, the more
/// likely all of them do.
const QUIET_EACH: Duration = Duration::from_millis(10);

/// How long a removal is waited with at most, however busy the directory is.
const PATIENCE: Duration = Duration::from_secs(1);

/// The events of one directory, as an endless blocking iterator; it ends when it is stopped.
///
/// Give it a thread of its own: `for event in store.watch()? { sender.send(event) }`.
#[derive(Debug)]
pub struct Watch {
    root: PathBuf,
    folders: Folders,
    stop: Arc<OwnedFd>,
    stopped: bool,
    catalog: Catalog,
    /// What the directory is known by; none while it is away.
    present: Option<Presence>,
    /// What it was known by before it went away.
    remembered: Option<Presence>,
    /// Whether the snapshot has been told.
    told: bool,
    told_in_sync: bool,
    told_problems: Vec<Problem>,
    told_away: bool,
    /// What was told as lost and is so still.
    told_lost: BTreeSet<Key>,
    /// The broken files whose last good version is kept on disk.
    kept: BTreeSet<Arc<Path>>,
    queue: VecDeque<Event>,
}

/// By what a directory is known to be the same as before.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Presence {
    inode: (u64, u64),
    identity: Option<Vec<u8>>,
}

/// Ends a [`Watch`] from another thread.
#[derive(Debug, Clone)]
pub struct StopHandle(Arc<OwnedFd>);

impl StopHandle {
    /// Ends the watch; its iterator returns `None` from now on.
    pub fn stop(&self) {
        // Cannot fail: the counter is far from its end, and the descriptor lives as long as this handle.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

impl Watch {
    pub(crate) fn start(root: &Path) -> Result<Self, Error> {
        let io = |source: rustix::io::Errno| Error::Io {
            action: "watch",
            path: root.to_owned(),
            source: source.into(),
        };
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io)?;
        let mut watch = Self {
            root: root.to_owned(),
            folders: Folders::new(root)?,
            stop: Arc::new(stop),
            stopped: false,
            catalog: Catalog::new(root),
            present: None,
            remembered: None,
            told: false,
            told_in_sync: false,
            told_problems: Vec::new(),
            told_away: false,
            told_lost: BTreeSet::new(),
            kept: BTreeSet::new(),
            queue: VecDeque::new(),
        };
        watch.arrive();
        Ok(watch)
    }

    /// A handle that ends this watch.
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle(self.stop.clone())
    }

    /// The next event, if one comes within `limit`; `None` after that, or once stopped.
    pub fn next_within(&mut self, limit: Duration) -> Option<Event> {
        self.next_until(Instant::now().checked_add(limit))
    }

    fn next_until(&mut self, deadline: Option<Instant>) -> Option<Event> {
        loop {
            if self.stopped {
                return None;
            }
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            if !self.wait(deadline) {
                return None;
            }
            let news = self.gather();
            self.take_in(news);
        }
    }

    /// Waits for something to happen. False once stopped or at the deadline.
    fn wait(&mut self, deadline: Option<Instant>) -> bool {
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds =
                [PollFd::new(&*self.stop, PollFlags::IN), PollFd::new(&self.folders, PollFlags::IN)];
            let count = poll(&mut fds, timeout.as_ref());
            let [stop, news] = fds.map(|fd| !fd.revents().is_empty());
            if count == Err(rustix::io::Errno::INTR) {
                continue;
            }
            self.stopped |= stop;
            return news && !stop;
        }
    }

    /// What happened; if something seems to be gone, then all that happens until the directory is quiet.
    fn gather(&mut self) -> News {
        let mut news = self.folders.news();
        let patience = Instant::now().checked_add(PATIENCE);
        loop {
            let gone = self.seem_gone(&news);
            let quiet = QUIET_EACH.saturating_mul(gone).saturating_add(QUIET).min(PATIENCE);
            if gone == 0 || !self.wait(Instant::now().checked_add(quiet).min(patience)) {
                return news;
            }
            news.merge(self.folders.news());
        }
    }

    fn seem_gone(&self, news: &News) -> u32 {
        let gone = news.gone.iter().filter(|path| !place(&self.root, path).exists());
        u32::try_from(gone.count()).unwrap_or(u32::MAX)
    }

    fn take_in(&mut self, news: News) {
        if self.present.is_none() {
            return self.arrive();
        }
        if let Err(reason) = self.check_still_there() {
            return self.leave(reason);
        }
        let paths = if news.all { BTreeSet::from([PathBuf::new()]) } else { news.paths };
        let mut missing = Vec::new();
        for path in paths {
            if !news.attributes_only.contains(&path) || self.catalog.is_broken(&path) {
                missing.extend(self.look_at(&path));
            }
        }
        // Had it gone while we looked, nothing would be where it was.
        if let Err(reason) = self.check_still_there() {
            return self.leave(reason);
        }
        self.let_go(&missing);
        self.tell();
    }

    /// Reads what stands at and below `path`; returns the known files that are not there any more.
    fn look_at(&mut self, path: &Path) -> Vec<Arc<Path>> {
        if !matches!(files::look(&place(&self.root, path)), Ok(Found::Folder)) {
            self.folders.forget(path);
        }
        scan(&self.root, path, &mut self.catalog, &mut self.folders)
    }

    /// Files are missing. From a directory that lost its identity nobody removed them: it is being lost as a
    /// whole, or was.
    fn let_go(&mut self, missing: &[Arc<Path>]) {
        let Some(present) = self.present.as_mut().filter(|_| !missing.is_empty()) else { return };
        let identity = own::identity(&self.root);
        let lost = present.identity.is_some() && identity != present.identity;
        if identity.is_some() {
            present.identity = identity;
        }
        self.forget_files(missing, lost);
    }

    fn forget_files(&mut self, missing: &[Arc<Path>], lost: bool) {
        for path in missing {
            if lost {
                self.catalog.orphan(path);
            } else {
                self.catalog.remove(path);
            }
        }
    }

    fn check_still_there(&self) -> Result<(), String> {
        let now = inode(&self.root)?;
        match &self.present {
            Some(known) if known.inode == now => Ok(()),
            _ => Err(format!("{} is another directory now", self.root.display())),
        }
    }

    fn leave(&mut self, reason: String) {
        self.remembered = self.present.take();
        self.say_away(reason);
        self.arrive();
    }

    /// Reads the directory if it is there, else waits for it.
    fn arrive(&mut self) {
        loop {
            self.folders.clear();
            match arrival(&self.root) {
                Ok(inode) => {
                    if self.settle_in(inode) {
                        return;
                    }
                }
                Err(reason) => {
                    self.say_away(reason);
                    self.folders.await_root();
                    // It may have come after we looked and before we began to wait.
                    if arrival(&self.root).is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Reads the whole directory. False if it went away meanwhile.
    fn settle_in(&mut self, inode: (u64, u64)) -> bool {
        // Gives the directory an identity. One that we may not write to stays without.
        let _ = own::Lock::take(&self.root);
        let now = Presence { inode, identity: own::identity(&self.root) };
        let same = match &self.remembered {
            None => true,
            Some(known) if known.identity.is_some() => known.identity == now.identity,
            Some(known) => known.inode == now.inode,
        };
        self.present = Some(now);
        let missing = scan(&self.root, Path::new(""), &mut self.catalog, &mut self.folders);
        if self.check_still_there().is_err() {
            self.present = None;
            return false;
        }
        self.remembered = None;
        self.forget_files(&missing, !same);
        if std::mem::take(&mut self.told_away) {
            self.queue.push_back(Event::Available);
        }
        self.tell();
        self.drop_stale_last_good();
        true
    }

    fn say_away(&mut self, reason: String) {
        if !std::mem::replace(&mut self.told_away, true) {
            self.queue.push_back(Event::Unavailable { reason });
        }
    }

    fn tell(&mut self) {
        let changes = self.catalog.settle();
        let first = !std::mem::replace(&mut self.told, true);
        if first {
            self.queue.push_back(Event::Snapshot(self.catalog.snapshot().clone()));
        } else if !changes.is_empty() {
            self.queue.push_back(Event::Changes(changes));
        }
        let problems = self.catalog.problems();
        if problems != self.told_problems {
            self.told_problems.clone_from(&problems);
            self.queue.push_back(Event::Problems(problems));
            self.keep_last_good();
        }
        // What stands in a folder that cannot be read is not gone.
        if !self.told_in_sync && self.catalog.is_whole() {
            self.told_in_sync = true;
            self.queue.push_back(Event::InSync);
        }
        let lost = self.catalog.writable_again();
        let new: Vec<Key> = lost.difference(&self.told_lost).cloned().collect();
        self.told_lost = lost;
        if !new.is_empty() {
            self.queue.push_back(Event::Lost(new));
        }
    }
}

/// Keeping what broken files said before, for those that start while they are broken.
impl Watch {
    fn keep_last_good(&mut self) {
        let broken = self.catalog.broken();
        if broken == self.kept {
            return;
        }
        // Best effort: a directory that we may only read still serves those that have seen the good version.
        if let Ok(lock) = own::Lock::take(&self.root) {
            for path in broken.difference(&self.kept) {
                let objects = manifest::encode_list(self.catalog.objects_of(path));
                let _ = lock.replace(&own::last_good_path(path), &objects, false);
            }
            for path in self.kept.difference(&broken) {
                let _ = lock.remove(&own::last_good_path(path));
            }
        }
        self.kept = broken;
    }

    /// What is kept of files that were mended while nobody watched would be wrong when they break again.
    fn drop_stale_last_good(&self) {
        let Ok(names) = files::names(&self.root.join(own::LAST_GOOD)) else { return };
        let needed: BTreeSet<PathBuf> = self.kept.iter().map(|path| own::last_good_path(path)).collect();
        let stale = names.into_iter().map(|name| Path::new(own::LAST_GOOD).join(name));
        let stale: Vec<PathBuf> = stale.filter(|path| !needed.contains(path)).collect();
        if stale.is_empty() {
            return;
        }
        if let Ok(lock) = own::Lock::take(&self.root) {
            stale.iter().for_each(|path| drop(lock.remove(path)));
        }
    }
}

impl Iterator for Watch {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.next_until(None)
    }
}

/// Device and inode of a directory that can be read, or why it is away.
fn arrival(root: &Path) -> Result<(u64, u64), String> {
    let inode = inode(root)?;
    match fs::read_dir(root) {
        Ok(_) => Ok(inode),
        Err(error) => Err(format!("{}: {error}", root.display())),
    }
}

/// Device and inode of the directory, or why it is away.
fn inode(root: &Path) -> Result<(u64, u64), String> {
    match fs::metadata(root) {
        Ok(metadata) if metadata.is_dir() => Ok((metadata.dev(), metadata.ino())),
        Ok(_) => Err(format!("{} is not a directory", root.display())),
        Err(error) => Err(format!("{}: {error}", root.display())),
    }
}
