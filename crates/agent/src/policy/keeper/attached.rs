//! What the keeper makes of the files of attachments.
//!
//! What stays true: what cannot be read now, as when too many files are open, changes nothing, and is looked at again soon: an
//! attachment that is forgotten by mistake would be a pod without its policies.

use std::io;
use std::time::{Duration, Instant};

use super::Keeper;
use super::known::Reattached;

/// How soon is looked again at what could not be read.
const AGAIN: Duration = Duration::from_secs(1);

impl Keeper {
    /// Takes what the file of that name says now, or that it is gone.
    pub(super) fn look_at(&mut self, name: String) {
        match self.attachments.read(&name) {
            Ok(found) => {
                let reattached = self.known.attach(name, found);
                self.take(reattached);
            }
            Err(error) => self.look_again(&error),
        }
    }

    /// Takes all files that there are.
    pub(super) fn look_at_all(&mut self) {
        self.unread = None;
        match self.attachments.all() {
            Ok(all) => {
                let reattached = self.known.attach_all(all);
                self.take(reattached);
                self.inherited.see_all();
            }
            Err(error) => self.look_again(&error),
        }
    }

    fn take(&mut self, Reattached { steps, left, lost }: Reattached) {
        left.into_iter().for_each(|(name, address)| self.inherited.leave(&name, address));
        lost.into_iter().for_each(|(name, address)| self.inherited.lose(name, address));
        self.add(steps, Instant::now());
    }

    fn look_again(&mut self, error: &io::Error) {
        tracing::warn!(%error, "attachments of pods cannot be read; those that are known stay, and it is tried again");
        self.unread = Some(Instant::now() + AGAIN);
    }
}
