//! The agent's socket: one line of JSON in, one out.
//!
//! [`Server`] owns the socket; its thread hands each request to the loop as an [`Event`] and waits for the answer,
//! one client after the other. The loop alone knows the state, so an answer is never half old and half new. A
//! client that says nothing is given up after [`PATIENCE`].

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use crate::event::Event;
use crate::status::{Answer, Request, SOCKET};

/// How long a client may take to say what it wants, and to read the answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The longest request line, in bytes.
const LONGEST_REQUEST: u64 = 4096;

/// The socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// An agent listens there already.
    #[error(
        "listen on {socket}: another agent does already\nhint: one agent runs per node; give a second one its own \
         --state-dir and network namespace"
    )]
    Taken {
        /// The socket.
        socket: PathBuf,
    },
    /// The operating system refused.
    #[error("listen on {socket}")]
    Io {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The listening socket.
#[derive(Debug)]
pub(crate) struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Listens in the state directory, in place of an agent that died there.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, ServerError> {
        let path = state_dir.join(SOCKET);
        if UnixStream::connect(&path).is_ok() {
            return Err(ServerError::Taken { socket: path });
        }
        let failed = |source| ServerError::Io { socket: path.clone(), source };
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        Ok(Self { listener, path })
    }

    /// Where it listens.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Serves clients until the loop is gone.
    pub(crate) fn serve(&self, events: &Sender<Event>) {
        for stream in self.listener.incoming().flatten() {
            match serve_one(&stream, events) {
                Ok(()) => {}
                Err(Unserved::Ending) => return,
                // A client that went away or said nothing is its own problem.
                Err(Unserved::Client(error)) => {
                    tracing::debug!(%error, "a client of the status socket was not served")
                }
            }
        }
    }
}

/// Why a client got no answer.
enum Unserved {
    /// The loop is gone.
    Ending,
    /// The client is gone, or slow.
    Client(io::Error),
}

impl From<io::Error> for Unserved {
    fn from(error: io::Error) -> Self {
        Self::Client(error)
    }
}

fn serve_one(mut stream: &UnixStream, events: &Sender<Event>) -> Result<(), Unserved> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST_REQUEST)).read_line(&mut line)?;
    let answer = match serde_json::from_str::<Request>(&line) {
        Ok(request) => ask(request, events)?,
        Err(error) => {
            Answer::Error(format!("the request is not one: {error}; hint: send {{\"verb\":\"status\"}}"))
        }
    };
    let mut text = serde_json::to_string(&answer).map_err(io::Error::from)?;
    text.push('\n');
    stream.write_all(text.as_bytes())?;
    Ok(())
}

fn ask(request: Request, events: &Sender<Event>) -> Result<Answer, Unserved> {
    let (answer, answered) = mpsc::channel();
    events.send(Event::Asked(request, answer)).map_err(|_| Unserved::Ending)?;
    answered.recv().map_err(|_| Unserved::Ending)
}
