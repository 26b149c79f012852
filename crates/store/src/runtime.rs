//! A thread for everything that waits for a network, with a runtime that nobody outside sees.
//!
//! Read [`Runtime`]: who asks for one thing blocks until the answer is there. A watcher reads a channel: [`Watching`]
//! takes what the tasks on the thread tell into a [`Mirror`], and gives what of it is an event.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use tokio::runtime::{Builder, EnterGuard, Handle};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::mirror::{Layout, Mirror, News};
use crate::{Error, Event};

/// Room for the thread that reads answers; memory counts only once touched.
const STACK: usize = 2 << 20;

/// A thread with a runtime on it; it ends when the last who uses it is gone.
#[derive(Debug, Clone)]
pub(crate) struct Runtime {
    handle: Handle,
    _end: Arc<oneshot::Sender<()>>,
}

impl Runtime {
    /// Starts the thread, of this name.
    pub(crate) fn start(name: &'static str) -> Result<Self, Error> {
        let failed = |source| Error::Thread { name, source };
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let (sender, end) = oneshot::channel::<()>();
        let thread = thread::Builder::new().name(name.to_owned()).stack_size(STACK);
        // Nobody waits for the thread: it ends once nobody can ask it for anything any more.
        let started = thread.spawn(move || {
            // An error is how it is told to end.
            let _ = runtime.block_on(end);
            runtime.shutdown_background();
        });
        started.map_err(failed)?;
        Ok(Self { handle, _end: Arc::new(sender) })
    }

    /// What makes connections wants the runtime around it.
    pub(crate) fn enter(&self) -> EnterGuard<'_> {
        self.handle.enter()
    }

    /// Does `work` on the thread for as long as it takes, or until the thread ends.
    pub(crate) fn start_work(&self, work: impl Future<Output = ()> + Send + 'static) {
        drop(self.handle.spawn(work));
    }

    /// Does `work` on the thread and waits for what comes of it. `store` is what is asked, for people.
    pub(crate) fn wait<T: Send + 'static>(
        &self,
        store: impl FnOnce() -> String,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, result) = sync_channel(1);
        self.handle.spawn(async move {
            // Nobody stops waiting.
            let _ = sender.send(work.await);
        });
        result.recv().unwrap_or_else(|_| {
            Err(Error::Unavailable {
                store: store(),
                hint: "restart Fairlead",
                source: "the thread that asks it has ended".into(),
            })
        })
    }
}

/// A watch: blocks on the news of its feeds, and tells what of them is an event.
pub(crate) struct Watching<L: Layout> {
    mirror: Mirror<L>,
    news: Receiver<News<L::Part>>,
    feeds: Vec<AbortHandle>,
    _runtime: Runtime,
}

impl<L: Layout> Watching<L> {
    /// Starts the feeds that send `news`; they end with the watch.
    pub(crate) fn start<F: Future<Output = ()> + Send + 'static>(
        runtime: &Runtime,
        mirror: Mirror<L>,
        news: Receiver<News<L::Part>>,
        feeds: impl Iterator<Item = F>,
    ) -> Self {
        let feeds = feeds.map(|feed| runtime.handle.spawn(feed).abort_handle()).collect();
        Self { mirror, news, feeds, _runtime: runtime.clone() }
    }
}

impl<L: Layout> fmt::Debug for Watching<L> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Watching").finish_non_exhaustive()
    }
}

impl<L: Layout> Iterator for Watching<L> {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.mirror.next() {
                return Some(event);
            }
            self.mirror.take(self.news.recv().ok()?);
        }
    }
}

impl<L: Layout> Drop for Watching<L> {
    fn drop(&mut self) {
        self.feeds.iter().for_each(AbortHandle::abort);
    }
}
