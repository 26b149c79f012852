//! The agent's socket: one line of JSON in, one out.
//!
//! [`Server`] owns the socket; its thread hands each request to the loop as an [`Event`] and waits for the answer,
//! one client after the other. The loop alone knows the state, so an answer is never half old and half new. A
//! client that says nothing is given up after [`PATIENCE`].

use std::io::{self, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use crate::event::Event;
use crate::listener;
use crate::status::{Answer, Request, SOCKET};

/// How long a client may take to say what it wants, and to read the answer.
const PATIENCE: Duration = Duration::from_secs(2);

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
        match listener::listen(&path) {
            Ok(listener) => Ok(Self { listener, path }),
            Err(source) => Err(ServerError::Io { socket: path, source }),
        }
    }

    /// Where it listens.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Serves clients until the loop is gone.
    pub(crate) fn serve(&self, events: &Sender<Event>) {
        loop {
            let stream = listener::next("the status socket", || self.listener.accept());
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
    let line = listener::read_line(stream, PATIENCE)?;
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

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::mpsc;

    use super::{Server, ServerError};
    use crate::event::Event;
    use crate::status::{Answer, PlanReport, Request, Status, ask_plan, ask_status};

    /// A server whose loop answers each question the same way.
    fn serving() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let server = Server::open(directory.path()).unwrap();
        let (sender, events) = mpsc::channel();
        std::thread::spawn(move || server.serve(&sender));
        std::thread::spawn(move || {
            for event in events {
                let Event::Asked(request, answer) = event else { continue };
                let told = match request {
                    Request::Status => {
                        Answer::Status(Box::new(Status { node: "node1".into(), ..Status::default() }))
                    }
                    _ => Answer::Error("there is no plan yet".into()),
                };
                answer.send(told).unwrap();
            }
        });
        directory
    }

    fn say(directory: &tempfile::TempDir, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(directory.path().join("agent.sock")).unwrap();
        // A client that says too much may find the door closed: what counts is that others are served.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = String::new();
        let _ = BufReader::new(stream).read_line(&mut answer);
        answer
    }

    #[test]
    fn questions_are_answered_one_line_each() {
        let directory = serving();
        assert_eq!(ask_status(directory.path()).unwrap().node, "node1");
        let refused = ask_plan(directory.path()).unwrap_err().to_string();
        assert_eq!(refused, "ask the agent: there is no plan yet");
    }

    #[test]
    fn nonsense_is_answered_with_an_error_and_the_next_client_is_served() {
        let directory = serving();
        let oversized = vec![b'x'; 100_000];
        let nonsense: [&[u8]; 7] =
            [b"", b"\n", b"status\n", b"{\"verb\":\"stop\"}\n", b"{", b"\xff\xfe\n", &oversized];
        for bytes in nonsense {
            let answer = say(&directory, bytes);
            assert!(answer.is_empty() || answer.contains("\"error\""), "{answer}");
        }
        // One that connects and goes away without a word.
        drop(UnixStream::connect(directory.path().join("agent.sock")).unwrap());
        assert_eq!(ask_status(directory.path()).unwrap().node, "node1");
    }

    #[test]
    fn a_socket_left_by_a_killed_agent_is_replaced_and_one_in_use_is_not() {
        let directory = tempfile::tempdir().unwrap();
        drop(Server::open(directory.path()).unwrap());
        assert!(directory.path().join("agent.sock").exists(), "as after kill -9");
        let _server = Server::open(directory.path()).unwrap();
        assert!(matches!(Server::open(directory.path()), Err(ServerError::Taken { .. })));
        let missing = Server::open(&directory.path().join("none"));
        assert!(matches!(missing, Err(ServerError::Io { .. })));
    }

    #[test]
    fn answers_survive_the_way_over_the_socket() {
        let plan =
            Answer::Plan(PlanReport { steps: vec!["+ a".into()], conflicts: vec![], text: "+ a\n".into() });
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Answer>(&text).unwrap(), plan);
        assert_eq!(serde_json::to_string(&Request::Status).unwrap(), r#"{"verb":"status"}"#);
    }
}
