//! The threads that wait for something outside: each sends what it hears to the loop and does nothing else.

use std::io::{self, Read};
use std::sync::mpsc::Sender;

use kernel::signals::Termination;
use rustix::fs::inotify;
use store::Directory;

use super::nodes::Node;
use super::{Event, log, thread};
use crate::error::{Error, Result};

/// Tells of every change of the store.
pub(super) fn store(directory: Directory, events: Sender<Event>) -> Result<()> {
    let watch = directory.watch().map_err(|source| Error::Store { source })?;
    thread("store", move || {
        for event in watch {
            if events.send(Event::Store(event)).is_err() {
                return;
            }
        }
    })
}

/// Tells when a conflist may have come or gone on some node.
pub(super) fn conflists(nodes: &[Node], events: Sender<Event>) -> Result<()> {
    let failed = |errno: rustix::io::Errno| Error::Thread { source: errno.into() };
    let descriptor = inotify::init(inotify::CreateFlags::CLOEXEC).map_err(failed)?;
    let changes = inotify::WatchFlags::MOVED_TO
        | inotify::WatchFlags::MOVED_FROM
        | inotify::WatchFlags::CLOSE_WRITE
        | inotify::WatchFlags::DELETE;
    for node in nodes {
        inotify::add_watch(&descriptor, node.home.conf(), changes).map_err(failed)?;
    }
    thread("conflists", move || {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(descriptor, &mut buffer);
        loop {
            match reader.next() {
                // Which one does not matter: the loop looks at all, there are few.
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return log(&format!("cannot watch for conflists: {error}")),
            }
            if events.send(Event::Conflists).is_err() {
                return;
            }
        }
    })
}

/// Tells when a signal asks for the end.
pub(super) fn termination(termination: Termination, events: Sender<Event>) -> Result<()> {
    thread("signals", move || {
        let _ = termination.wait();
        let _ = events.send(Event::End);
    })
}

/// Tells when standard input ends, which is when the process that started us has.
pub(super) fn standard_input(events: Sender<Event>) -> Result<()> {
    thread("input", move || {
        let _ = io::copy(&mut io::stdin().lock().by_ref(), &mut io::sink());
        let _ = events.send(Event::End);
    })
}
