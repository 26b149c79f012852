//! Who asks before a pod is let in: the socket on which the CNI plugin waits for the pod's policies.
//!
//! Read [`Gate::serve`]: a line comes in ([`cluster::Enforced`]) and goes to the keeper with the connection, who answers
//! when it knows, at the latest when the asker's patience is over. It is a socket of its own, for the one of `server.rs`
//! answers one after the other, and what the loop is asked there may take its time.

use std::fs;
use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use cluster::{Enforced, EnforcedAnswer};

use super::keeper::News;
use crate::listener;

/// The socket's file name within the state directory.
pub(super) const SOCKET: &str = "gate.sock";

/// How long a client may take to say what it wants: it has it ready.
const PATIENCE: Duration = Duration::from_millis(500);

/// The longest that anybody waits.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The socket cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("listen on {socket}")]
pub struct GateError {
    socket: PathBuf,
    #[source]
    source: io::Error,
}

/// The listening socket.
#[derive(Debug)]
pub(super) struct Gate {
    listener: UnixListener,
}

/// Somebody who waits for an answer.
#[derive(Debug)]
pub(super) struct Question {
    /// The name of the attachment's file.
    pub(super) attachment: String,
    /// When he goes away.
    pub(super) until: Instant,
    stream: UnixStream,
}

impl Question {
    /// Answers. Who has gone away meanwhile will ask again.
    pub(super) fn answer(mut self, answer: &EnforcedAnswer) {
        // A line fits into the socket's buffer, so nobody can keep the keeper waiting.
        let _ = self.stream.write_all(answer.to_line().as_bytes());
    }
}

impl Gate {
    /// Listens in the state directory, which is this agent's alone by now.
    pub(super) fn open(state_dir: &Path) -> Result<Self, GateError> {
        let path = state_dir.join(SOCKET);
        match listener::listen(&path) {
            Ok(listener) => Ok(Self { listener }),
            Err(source) => Err(GateError { socket: path, source }),
        }
    }

    /// Takes questions until the keeper is gone.
    pub(super) fn serve(&self, news: &Sender<News>) {
        loop {
            match hear(listener::next("the gate", || self.listener.accept())) {
                Ok(question) => {
                    if news.send(News::Asked(question)).is_err() {
                        return;
                    }
                }
                Err(error) => tracing::debug!(%error, "who asked at the gate was not understood"),
            }
        }
    }
}

fn hear(stream: UnixStream) -> io::Result<Question> {
    let line = listener::read_line(&stream, PATIENCE)?;
    let Some(Enforced { attachment, within_milliseconds }) = Enforced::from_line(&line) else {
        let refused = EnforcedAnswer::Refused("the question is none".to_owned());
        (&stream).write_all(refused.to_line().as_bytes())?;
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    };
    let wait = Duration::from_millis(within_milliseconds.into()).min(LONGEST_WAIT);
    Ok(Question { attachment, until: Instant::now() + wait, stream })
}

/// Removes the socket of an agent that is gone.
pub(super) fn forget(state_dir: &Path) {
    let _ = fs::remove_file(state_dir.join(SOCKET));
}
