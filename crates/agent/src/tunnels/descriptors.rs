//! What tunnels have open, kept by the service manager while there is no agent.
//!
//! Read [`Descriptors`]. The queues of a tunnel's device and its sockets stay open with who started the agent, if it keeps
//! such things (systemd: `FileDescriptorStoreMax=`), so that packets wait in them whatever ends the agent, and the next agent
//! goes on with them. Under each name is what one tunnel has of one kind.
//!
//! What stays true: the manager keeps nothing that no tunnel of ours reads, for a socket or a queue that nobody reads draws
//! its share of the packets; where there is no such manager nothing of this happens.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use kernel::activation;
use kernel::notify::Notifier;
use route::TunnelKind;
use tunnel::Handles;

use crate::report::told;

/// How long to wait until the manager has closed what it was to give up, before the same is opened anew.
const PATIENCE: Duration = Duration::from_secs(2);

/// The kinds of descriptors that a tunnel has.
const QUEUES: &str = "queues";
/// See [`QUEUES`].
const SOCKETS: &str = "sockets";

/// What the manager has passed and keeps.
#[derive(Debug, Default)]
pub(crate) struct Descriptors {
    manager: Option<Notifier>,
    passed: BTreeMap<String, Vec<OwnedFd>>,
}

impl Descriptors {
    /// What was passed to this process. To be called once, before any other descriptor is opened.
    pub(crate) fn inherited() -> Self {
        let mut passed = BTreeMap::<String, Vec<OwnedFd>>::new();
        for (name, descriptor) in activation::inherited_with_names() {
            passed.entry(name).or_default().push(descriptor);
        }
        Self { manager: Notifier::from_environment(), passed }
    }

    /// What an earlier agent left of a tunnel, if it left something.
    pub(crate) fn take(&mut self, kind: TunnelKind) -> Option<Handles> {
        let [queues, sockets] = [QUEUES, SOCKETS].map(|what| self.passed.remove(&name(kind, what)));
        let there = queues.is_some() || sockets.is_some();
        there.then(|| Handles { queues: queues.unwrap_or_default(), sockets: sockets.unwrap_or_default() })
    }

    /// Has these kept. Without, a tunnel pauses while there is no agent, and that is all.
    pub(crate) fn keep(&self, kind: TunnelKind, handles: &Handles) {
        for (what, descriptors) in [(QUEUES, &handles.queues), (SOCKETS, &handles.sockets)] {
            let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
            self.tell(|manager| manager.keep(&name(kind, what), &descriptors));
        }
    }

    /// Has what is kept of a tunnel closed, and waits until it is.
    pub(crate) fn give_up(&self, kind: TunnelKind) {
        for what in [QUEUES, SOCKETS] {
            self.tell(|manager| manager.give_up(&name(kind, what)));
        }
        self.tell(|manager| {
            if !manager.barrier(PATIENCE)? {
                tracing::warn!("the service manager takes long to close what a tunnel had open");
            }
            Ok(())
        });
    }

    /// Closes what was passed and nobody has taken, and has it closed by the manager.
    pub(crate) fn drop_the_rest(&mut self) {
        for (name, descriptors) in std::mem::take(&mut self.passed) {
            tracing::info!(
                name,
                count = descriptors.len(),
                "descriptors that nothing goes on with are closed"
            );
            drop(descriptors);
            self.tell(|manager| manager.give_up(&name));
        }
    }

    /// Says that the agent has started.
    pub(crate) fn tell_ready(&self) {
        self.tell(Notifier::ready);
    }

    fn tell(&self, what: impl FnOnce(&Notifier) -> Result<(), kernel::Error>) {
        if let Some(Err(error)) = self.manager.as_ref().map(what) {
            tracing::warn!(error = %told(&error), "the service manager was not told");
        }
    }
}

fn name(kind: TunnelKind, what: &str) -> String {
    format!("tunnel-{}-{what}", kind.label())
}
