//! What a watcher of the directory is told.

use std::sync::Arc;
use std::time::Duration;

use cluster::{Change, Snapshot};
use rustix::fd::OwnedFd;

use crate::Problem;

/// What a watcher is told, in this order: `Snapshot`, `Problems` if there are any, `InSync`; from then on
/// `Changes` and `Problems` as they come. `Unavailable` and `Available` may come at any time, also first; after
/// `Available` follows what changed meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The whole cluster as it is. Comes once.
    Snapshot(Snapshot),
    /// Everything known has been told: from now on what is not in the snapshot is not in the cluster, and
    /// may be removed from the node. Comes once.
    InSync,
    /// What changed, as one step: between the changes of one event the cluster was never seen.
    Changes(Vec<Change>),
    /// All that is wrong in the directory now; empty once everything is mended.
    Problems(Vec<Problem>),
    /// The directory is away; what is known stays.
    Unavailable {
        /// Why, for people.
        reason: String,
    },
    /// The directory is back.
    Available,
}

/// The events of one directory, as an endless blocking iterator; it ends when it is stopped.
///
/// Give it a thread of its own: `for event in store.watch()? { sender.send(event) }`.
#[derive(Debug)]
pub struct Watch {}

/// Ends a [`Watch`] from another thread.
#[derive(Debug, Clone)]
pub struct StopHandle(Arc<OwnedFd>);

impl StopHandle {
    /// Ends the watch; its iterator returns `None` from now on.
    pub fn stop(&self) {
        let _ = &self.0;
    }
}

impl Watch {
    /// A handle that ends this watch.
    pub fn stop_handle(&self) -> StopHandle {
        todo!()
    }

    /// The next event, if one comes within `limit`; `None` after that, or once stopped.
    pub fn next_within(&mut self, limit: Duration) -> Option<Event> {
        let _ = limit;
        None
    }
}

impl Iterator for Watch {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        None
    }
}
