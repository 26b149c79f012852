//! What the CNI plugin leaves word of: a file for each pod's interface on this node.
//!
//! Read [`Attachments::follow`]. A file comes before the pod's first packet and goes with its DEL, which needs no agent;
//! so the directory is listened to, and read whole at the start.

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::SystemTime;

use cluster::{ATTACHMENTS, Attachment};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::keeper::News;
use crate::files::{FileError, make_directory};
use crate::pause;

/// The directory of attachments.
#[derive(Debug, Clone)]
pub(super) struct Attachments {
    path: PathBuf,
}

impl Attachments {
    /// Makes the directory, unless it is there.
    pub(super) fn open(state_dir: &Path) -> Result<Self, FileError> {
        let path = state_dir.join(ATTACHMENTS);
        make_directory(&path)?;
        Ok(Self { path })
    }

    /// The attachment in the file of that name; `None` if there is none, or what is there says none.
    pub(super) fn read(&self, name: &str) -> io::Result<Option<Attachment>> {
        // What is written is under another name until it is whole; and nobody is led elsewhere.
        if name.starts_with('.') || name.contains('/') {
            return Ok(None);
        }
        let text = match fs::read(self.path.join(name)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let read = Attachment::from_json(&text);
        if read.is_none() {
            tracing::warn!(name, "the word that a plugin left of an attachment cannot be read");
        }
        Ok(read)
    }

    /// All of them by the names of their files, the oldest first.
    pub(super) fn all(&self) -> io::Result<Vec<(String, Attachment)>> {
        let mut found: Vec<(SystemTime, String)> = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let written = entry.metadata().and_then(|metadata| metadata.modified());
            found.push((written.unwrap_or(SystemTime::UNIX_EPOCH), name));
        }
        found.sort();
        let mut all = Vec::new();
        for (_, name) in found {
            all.extend(self.read(&name)?.map(|attachment| (name, attachment)));
        }
        Ok(all)
    }

    /// Tells of every file that comes or goes, until nobody listens. What hinders that may pass: then all are looked at.
    pub(super) fn follow(&self, news: &Sender<News>) {
        for failures in 0.. {
            let Err(error) = self.listen(news) else { return };
            let path = self.path.display();
            if error == Errno::NOENT && make_directory(&self.path).is_ok() {
                tracing::warn!(
                    "{path} was removed; it is made anew, and pods that run are known by the API alone"
                );
                continue;
            }
            tracing::warn!(
                %error, "attachments of pods in {path} are not followed now; it is tried again\nhint: see fs.inotify and \
                 the limit of open files"
            );
            std::thread::sleep(pause::after(failures));
        }
    }

    fn listen(&self, news: &Sender<News>) -> Result<(), Errno> {
        let notifier = inotify::init(CreateFlags::CLOEXEC)?;
        let wanted = WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM | WatchFlags::DELETE | WatchFlags::ONLYDIR;
        inotify::add_watch(&notifier, &self.path, wanted)?;
        // What came or went before is found by looking at all.
        if news.send(News::Attachments).is_err() {
            return Ok(());
        }
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(&notifier, &mut buffer);
        loop {
            let told = match reader.next() {
                Ok(event) if event.events().contains(ReadFlags::IGNORED) => return Err(Errno::NOENT),
                Ok(event) if event.events().contains(ReadFlags::QUEUE_OVERFLOW) => Some(News::Attachments),
                Ok(event) => {
                    let name = event.file_name().and_then(|name| name.to_str().ok());
                    name.filter(|name| !name.starts_with('.')).map(|name| News::Attachment(name.to_owned()))
                }
                Err(Errno::INTR) => None,
                Err(error) => return Err(error),
            };
            if let Some(told) = told
                && news.send(told).is_err()
            {
                return Ok(());
            }
        }
    }
}

/// Removes the directory if nothing is in it. What is in it belongs to pods that are there, and goes with their DEL.
pub(super) fn forget(state_dir: &Path) {
    let _ = fs::remove_dir(state_dir.join(ATTACHMENTS));
}
