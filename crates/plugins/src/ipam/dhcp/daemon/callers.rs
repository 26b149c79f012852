//! The plugins that have called: their lines in, their answers out.
//!
//! Read [`Callers`]. A caller says one line and waits for one. It may take its time for neither: one that is not
//! done with its line in time, or does not read its answer, is dropped.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use cni::Error;

use crate::ipam::dhcp::machine::Moment;
use crate::ipam::dhcp::protocol::{Answer, Call, LONGEST_LINE, answer_to_line};

/// A caller, as long as it is connected. Never used again.
pub(super) type CallerId = u64;

/// All callers.
#[derive(Debug)]
pub(super) struct Callers {
    patience: Duration,
    next: CallerId,
    connected: BTreeMap<CallerId, Caller>,
}

#[derive(Debug)]
struct Caller {
    stream: UnixStream,
    line: Vec<u8>,
    /// When its line must be complete; nothing once it is.
    until: Option<Moment>,
}

/// What reading from a caller brought.
#[derive(Debug)]
pub(super) enum Read {
    /// Not all yet.
    More,
    /// Its call.
    Call(Box<Call>),
    /// A line that is no call.
    Wrong(Error),
    /// It is gone.
    Gone,
}

impl Callers {
    /// Nobody yet; each may take this long for its line.
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, next: 0, connected: BTreeMap::new() }
    }

    /// Somebody has called.
    pub(super) fn take_in(&mut self, stream: UnixStream, now: Moment) {
        if stream.set_nonblocking(true).is_ok() {
            let caller = Caller { stream, line: Vec::new(), until: Some(now + self.patience) };
            self.connected.insert(self.next, caller);
            self.next += 1;
        }
    }

    /// Everybody's descriptor.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = (CallerId, BorrowedFd<'_>)> {
        self.connected.iter().map(|(id, caller)| (*id, caller.stream.as_fd()))
    }

    /// When the next one has taken too long.
    pub(super) fn deadline(&self) -> Option<Moment> {
        self.connected.values().filter_map(|caller| caller.until).min()
    }

    /// Those who have taken too long.
    pub(super) fn expire(&mut self, now: Moment) -> Vec<CallerId> {
        let late = |caller: &Caller| caller.until.is_some_and(|until| until <= now);
        self.connected.iter().filter(|(_, caller)| late(caller)).map(|(id, _)| *id).collect()
    }

    /// Something is there to be read, or the end.
    pub(super) fn read(&mut self, id: CallerId) -> Read {
        let Some(caller) = self.connected.get_mut(&id) else { return Read::More };
        let mut buffer = [0; 4096];
        loop {
            match caller.stream.read(&mut buffer) {
                Ok(0) => return Read::Gone,
                Ok(size) => caller.line.extend(&buffer[..size]),
                Err(cause) if cause.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => return Read::More,
                Err(_) => return Read::Gone,
            }
            if caller.line.len() > LONGEST_LINE {
                return Read::Gone;
            }
            if caller.until.is_some()
                && let Some(end) = caller.line.iter().position(|byte| *byte == b'\n')
            {
                caller.until = None;
                return match Call::parse(&caller.line[..end]) {
                    Ok(call) => Read::Call(Box::new(call)),
                    Err(error) => Read::Wrong(error),
                };
            }
        }
    }

    /// Answers a caller and hangs up.
    pub(super) fn answer(&mut self, id: CallerId, answer: &Answer) {
        self.answer_heard(id, answer);
    }

    /// The same; false when the caller was not there to hear it.
    pub(super) fn answer_heard(&mut self, id: CallerId, answer: &Answer) -> bool {
        let Some(mut caller) = self.connected.remove(&id) else { return false };
        // An answer is far smaller than the buffer of a socket, so this does not wait.
        caller.stream.write_all(&answer_to_line(answer)).is_ok()
    }

    /// Forgets a caller.
    pub(super) fn drop(&mut self, id: CallerId) {
        self.connected.remove(&id);
    }
}
