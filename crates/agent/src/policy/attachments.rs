//! What the CNI plugin leaves word of: a file for each pod's interface on this node.
//!
//! Read [`Attachments::follow`]. A file comes before the pod's first packet and goes with its DEL, which needs no agent;
//! so the directory is listened to, and read whole at the start.

use std::fs;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::SystemTime;

use cluster::{ATTACHMENTS, Attachment};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use super::keeper::News;
use crate::files::{FileError, make_directory};

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

    /// The attachment in the file of that name; `None` if there is none that can be read.
    pub(super) fn read(&self, name: &str) -> Option<Attachment> {
        // What is written is under another name until it is whole; and nobody is led elsewhere.
        if name.starts_with('.') || name.contains('/') {
            return None;
        }
        let text = fs::read(self.path.join(name)).ok()?;
        let read = Attachment::from_json(&text);
        if read.is_none() {
            tracing::warn!(name, "the word that a plugin left of an attachment cannot be read");
        }
        read
    }

    /// All of them by the names of their files, the oldest first.
    pub(super) fn all(&self) -> Vec<(String, Attachment)> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let mut found: Vec<(SystemTime, String)> = entries
            .filter_map(|entry| {
                let written = entry.metadata().and_then(|metadata| metadata.modified());
                Some((written.unwrap_or(SystemTime::UNIX_EPOCH), entry.file_name().into_string().ok()?))
            })
            .collect();
        found.sort();
        found.into_iter().filter_map(|(_, name)| Some((name.clone(), self.read(&name)?))).collect()
    }

    /// Tells of every file that comes or goes, until nobody listens or the directory can no longer be listened to.
    pub(super) fn follow(&self, news: &Sender<News>) {
        loop {
            let ended = self.listen(news);
            let Err(error) = ended else { return };
            let path = self.path.display();
            if error != Errno::NOENT || make_directory(&self.path).is_err() {
                tracing::warn!(%error, "attachments of pods in {path} are no longer followed; hint: restart the agent");
                return;
            }
            tracing::warn!(
                "{path} was removed; it is made anew, and pods that run are known by the API alone"
            );
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
