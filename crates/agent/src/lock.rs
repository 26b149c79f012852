//! One agent in a network namespace: what changes a node's kernel state holds a lock while it lives.
//!
//! Read [`hold`]. The socket in the state directory tells two agents of one directory apart, but not two with different ones, as
//! of a unit of systemd and a pod on one node: each would take what the other made for its own and remove it. The lock is the
//! network namespace's ([`kernel::lock`] says what it is made of) and is gone with the process that has it, so an agent that
//! starts when the one before has ended finds it free. One that comes sooner is refused, and started again by
//! whoever started it.
//!
//! The plugins do not take it: what they make is theirs, and pods start and stop beside an agent.

use kernel::lock::{Holder, NamespaceLock, Taking};
use netstate::LOCK_GROUP;

/// Nothing may be changed in this network namespace.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another agent is at work, or `fairlead clean` is.
    #[error(
        "take this network namespace's lock (NFLOG group {LOCK_GROUP}): {} holds it, and would take what this one makes for \
         its own\nhint: another agent does already what this one should, whatever its --state-dir, or `fairlead clean` is at \
         work. See `ps -C fairlead` on the host, end the one that is not to be (a unit of systemd, a DaemonSet's pod), or \
         give it a network namespace of its own",
        told(.0)
    )]
    Held(Holder),
    /// The kernel refused.
    #[error("take this network namespace's lock")]
    Kernel(#[from] kernel::Error),
}

/// Takes the lock of this network namespace, which lasts as long as what is returned. Where the kernel has no such lock, that is
/// told and nothing is returned.
pub(crate) fn hold() -> Result<Option<NamespaceLock>, LockError> {
    match NamespaceLock::take(LOCK_GROUP)? {
        Taking::Taken(lock) => Ok(Some(lock)),
        Taking::Held(holder) => Err(LockError::Held(holder)),
        Taking::Impossible(error) => {
            tracing::warn!(%error, "nothing keeps a second agent out of this network namespace");
            Ok(None)
        }
    }
}

/// The longest command line that is told.
const ROOM: usize = 300;

fn told(holder: &Holder) -> String {
    match (holder.process, &holder.command) {
        (Some(process), Some(command)) => {
            format!("process {process} ({})", &command[..command.floor_char_boundary(ROOM)])
        }
        (Some(process), None) => format!("process {process}"),
        (None, _) => "a process in a PID namespace that cannot be seen from here".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_the_lock_is_told_as_far_as_it_is_seen() {
        let command = Some("fairlead agent --state-dir /run/other".to_owned());
        let seen = LockError::Held(Holder { process: Some(4711), command }).to_string();
        assert!(seen.contains("process 4711 (fairlead agent --state-dir /run/other) holds it"), "{seen}");
        let long = Holder { process: Some(1), command: Some("é".repeat(200)) };
        assert_eq!(told(&long).matches('é').count(), 150);
        let unseen = LockError::Held(Holder::default()).to_string();
        assert!(
            unseen.contains("cannot be seen from here holds it") && unseen.contains("\nhint: "),
            "{unseen}"
        );
    }
}
