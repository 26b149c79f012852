//! The folders that a watcher has its ears in.
//!
//! [`Folders`] knows which inotify descriptor stands for which folders of the store, keeps it so while folders
//! come, go and move, and turns the kernel's events into [`News`]: paths to look at again. A file that is a
//! link also depends on the folder of what it leads to, as with mounted ConfigMaps, where a whole set of files
//! is replaced by turning one hidden link.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use crate::Error;
use crate::files::{is_hidden, unreadable};
use crate::manifest::Fault;
use crate::scan::{Companion, place};

/// What happened since the last time, as paths to look at again.
#[derive(Debug, Default)]
pub(super) struct News {
    /// The kernel lost count: look at everything.
    pub(super) all: bool,
    pub(super) paths: BTreeSet<PathBuf>,
    /// Those of `paths` whose contents did not change, only perhaps whether they may be read.
    pub(super) attributes_only: BTreeSet<PathBuf>,
    /// Paths that something was removed from, though something may stand there again.
    pub(super) gone: BTreeSet<PathBuf>,
}

impl News {
    /// Adds later news.
    pub(super) fn merge(&mut self, later: Self) {
        let both = later.attributes_only.iter().filter(|path| !self.paths.contains(*path)).cloned();
        let mut attributes_only: BTreeSet<_> = both.collect();
        attributes_only.extend(self.attributes_only.iter().filter(|path| !later.is_more(path)).cloned());
        self.attributes_only = attributes_only;
        self.all |= later.all;
        self.gone.extend(later.gone);
        self.paths.extend(later.paths);
    }

    fn is_more(&self, path: &Path) -> bool {
        self.paths.contains(path) && !self.attributes_only.contains(path)
    }

    fn changed(&mut self, path: PathBuf) {
        self.attributes_only.remove(&path);
        self.paths.insert(path);
    }

    fn attributes(&mut self, path: PathBuf) {
        if self.paths.insert(path.clone()) {
            self.attributes_only.insert(path);
        }
    }
}

/// The watched folders.
#[derive(Debug)]
pub(super) struct Folders {
    root: PathBuf,
    inotify: OwnedFd,
    watched: BTreeMap<i32, Watched>,
    /// The descriptor of each folder of the store.
    folders: BTreeMap<PathBuf, i32>,
    /// The descriptors of the folders that each linked file leads through.
    links: BTreeMap<PathBuf, BTreeSet<i32>>,
}

/// What depends on one descriptor; links may give one folder several paths.
#[derive(Debug)]
struct Watched {
    /// One way to it.
    place: PathBuf,
    folders: BTreeSet<PathBuf>,
    links: BTreeSet<PathBuf>,
}

impl Folders {
    pub(super) fn new(root: &Path) -> Result<Self, Error> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(|error| {
            let path = root.to_owned();
            let source = io::Error::from(error);
            match error {
                Errno::MFILE => Error::WatchLimit { path, limit: "fs.inotify.max_user_instances", source },
                _ => Error::Io { action: "watch", path, source },
            }
        })?;
        let (watched, folders, links) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Ok(Self { root: root.to_owned(), inotify, watched, folders, links })
    }

    /// Forgets everything; also what happened until now.
    pub(super) fn clear(&mut self) {
        for wd in std::mem::take(&mut self.watched).into_keys() {
            // Fails if the folder is gone, which is as good.
            let _ = inotify::remove_watch(&self.inotify, wd);
        }
        self.folders.clear();
        self.links.clear();
        let _ = self.news();
    }

    /// Waits for the directory itself to come: every event of the nearest folder above it that is there.
    ///
    /// A nearer one may come after it was asked for and before the farther one is listened to, which then says
    /// nothing of what happens below. So it is asked again until nothing nearer has come.
    pub(super) fn await_root(&mut self) {
        let mut nearest = None;
        loop {
            let heard = self.listen_above();
            if heard == nearest {
                return;
            }
            nearest = heard;
        }
    }

    /// Listens to the nearest folder above the directory that is there, and says how far above it is.
    fn listen_above(&mut self) -> Option<usize> {
        let root = self.root.clone();
        root.ancestors().skip(1).position(|above| {
            let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
            self.listen(above).is_ok()
        })
    }

    /// Stops listening to `path` and everything below.
    pub(super) fn forget(&mut self, path: &Path) {
        for folder in keys_below(&self.folders, path) {
            self.forget_folder(&folder);
        }
        for link in keys_below(&self.links, path) {
            self.forget_link(&link);
        }
    }

    /// All that happened since the last time, without waiting.
    pub(super) fn news(&mut self) -> News {
        let mut news = News::default();
        let mut buffer = [MaybeUninit::uninit(); 16 << 10];
        let mut ignored = Vec::new();
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        while let Ok(event) = reader.next() {
            let flags = event.events();
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                news.all = true;
            } else if flags.contains(ReadFlags::IGNORED) {
                ignored.push(event.wd());
            } else if let Some(watched) = self.watched.get(&event.wd()) {
                let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
                self.hear(watched, flags, name, &mut news);
            }
        }
        for wd in ignored {
            self.drop_watched(wd);
        }
        news
    }

    fn hear(&self, watched: &Watched, flags: ReadFlags, name: Option<&OsStr>, news: &mut News) {
        let gone = ReadFlags::DELETE | ReadFlags::MOVED_FROM | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF;
        let hidden = name.is_some_and(is_hidden);
        let gone = flags.intersects(gone) && !hidden;
        // A new file is read when its writer closes it.
        let begun = flags.contains(ReadFlags::CREATE)
            && !flags.contains(ReadFlags::ISDIR)
            && !name.is_some_and(|name| is_complete_at_once(&watched.place.join(name)));
        for folder in &watched.folders {
            if gone {
                news.gone.insert(name.map_or_else(|| folder.clone(), |name| folder.join(name)));
            }
            match name {
                None if flags.contains(ReadFlags::ATTRIB) => news.attributes(folder.clone()),
                None => news.changed(folder.clone()),
                // The hidden link of a mounted ConfigMap: what leads through it leads elsewhere now.
                Some(name) if hidden && name.as_bytes().starts_with(b"..") => news.changed(folder.clone()),
                Some(_) if hidden || begun => {}
                Some(name) if flags.contains(ReadFlags::ATTRIB) => news.attributes(folder.join(name)),
                Some(name) => news.changed(folder.join(name)),
            }
        }
        for link in watched.links.iter().filter(|_| !begun) {
            match flags.contains(ReadFlags::ATTRIB) {
                true => news.attributes(link.clone()),
                false => news.changed(link.clone()),
            }
        }
    }

    /// Listens to the folder at `place`, and knows that it does.
    fn listen(&mut self, place: &Path) -> Result<i32, Errno> {
        let flags = WatchFlags::CREATE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVE
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR;
        let wd = inotify::add_watch(&self.inotify, place, flags)?;
        let new = || Watched { place: place.to_owned(), folders: BTreeSet::new(), links: BTreeSet::new() };
        self.watched.entry(wd).or_insert_with(new).place = place.to_owned();
        Ok(wd)
    }

    fn forget_folder(&mut self, folder: &Path) {
        let Some(wd) = self.folders.remove(folder) else { return };
        if let Some(watched) = self.watched.get_mut(&wd) {
            watched.folders.remove(folder);
            self.stop_if_idle(wd);
        }
    }

    fn forget_link(&mut self, link: &Path) {
        for wd in self.links.remove(link).into_iter().flatten() {
            if let Some(watched) = self.watched.get_mut(&wd) {
                watched.links.remove(link);
                self.stop_if_idle(wd);
            }
        }
    }

    fn stop_if_idle(&mut self, wd: i32) {
        let idle = |watched: &Watched| watched.folders.is_empty() && watched.links.is_empty();
        if self.watched.get(&wd).is_some_and(idle) {
            self.watched.remove(&wd);
            let _ = inotify::remove_watch(&self.inotify, wd);
        }
    }

    /// The kernel dropped the descriptor: its folder is gone.
    fn drop_watched(&mut self, wd: i32) {
        let Some(watched) = self.watched.remove(&wd) else { return };
        self.folders.retain(|folder, of| *of != wd || !watched.folders.contains(folder));
        for link in watched.links {
            self.links.get_mut(&link).map(|through| through.remove(&wd));
        }
    }
}

impl Companion for Folders {
    fn folder(&mut self, relative: &Path) -> Result<(), Fault> {
        let wd = self.listen(&place(&self.root, relative)).map_err(|error| match error {
            Errno::NOSPC => Fault::new("cannot be watched: changes below it will be missed".into())
                .hint("raise sysctl fs.inotify.max_user_watches"),
            other => unreadable(&other.into()),
        })?;
        if self.folders.get(relative) != Some(&wd) {
            self.forget_folder(relative);
            self.folders.insert(relative.to_owned(), wd);
            self.watched.get_mut(&wd).map(|watched| watched.folders.insert(relative.to_owned()));
        }
        Ok(())
    }

    fn file(&mut self, relative: &Path) {
        let through = folders_through(&place(&self.root, relative));
        // Where a folder is not there yet, the nearest one above it tells when it comes.
        let nearest = |folder: &PathBuf| folder.ancestors().find_map(|above| self.listen(above).ok());
        let through: BTreeSet<i32> = through.iter().filter_map(nearest).collect();
        if self.links.get(relative).unwrap_or(&BTreeSet::new()) == &through {
            return;
        }
        for wd in &through {
            self.watched.get_mut(wd).map(|watched| watched.links.insert(relative.to_owned()));
        }
        let before = self.links.insert(relative.to_owned(), through.clone()).unwrap_or_default();
        for wd in before.difference(&through) {
            self.watched.get_mut(wd).map(|watched| watched.links.remove(relative));
            self.stop_if_idle(*wd);
        }
    }
}

/// A new name that nobody will write to and close: a link, or another name of an existing file.
fn is_complete_at_once(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_symlink() || metadata.nlink() > 1)
}

/// The folders that a link leads through, also one that leads nowhere yet; none if `path` is no link.
fn folders_through(path: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let mut at = path.to_owned();
    while let Ok(target) = fs::read_link(&at) {
        let Some(folder) = at.parent() else { break };
        at = folder.join(target);
        // As many links as the kernel follows.
        if folders.len() > 40 {
            break;
        }
        folders.extend(at.parent().map(Path::to_owned));
    }
    if !folders.is_empty() {
        let end = fs::canonicalize(path).ok();
        folders.extend(end.as_deref().and_then(Path::parent).map(Path::to_owned));
    }
    folders
}

impl AsFd for Folders {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

fn keys_below<V>(map: &BTreeMap<PathBuf, V>, path: &Path) -> Vec<PathBuf> {
    let from = map.range::<Path, _>((std::ops::Bound::Included(path), std::ops::Bound::Unbounded));
    from.map(|(key, _)| key).take_while(|key| key.starts_with(path)).cloned().collect()
}
