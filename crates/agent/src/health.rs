//! Whether the agent lives, and whether its node is of use: two questions that a kubelet asks by HTTP; and what it counts,
//! for Prometheus.
//!
//! Read [`Health::serve`]. `/livez` is answered with 200 as soon as the loop says anything. `/readyz` is answered with
//! 200 when the node can carry a new pod and at least one of a few of its peers answers through the tunnel (of a peer the
//! kernel answers, so one whose agent is down counts, but where the agent carries the tunnel itself); else with 503 and the reasons, a line each. A node without peers
//! needs none.
//!
//! The requests are three fixed lines, so the reader is twenty lines and no HTTP library; whatever else is asked is
//! refused. One client is served after the other, and one that is slow is given up after [`PATIENCE`]. (RFC 9112.)

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

use crate::event::Event;
use crate::listener;
use crate::metrics;
use crate::policy::Counts;
use crate::reach;
use crate::status::{Answer, Request};

/// How long a client may take to ask, and to read the answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long the loop may take to answer: a pass over 5,000 peers takes well under a second.
const LOOP_PATIENCE: Duration = Duration::from_secs(10);

/// The longest head of a request, in bytes.
const LONGEST_REQUEST: usize = 4096;

/// The health address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error(
    "listen on {address} for health checks or metrics\nhint: is another agent or program there? --health and --metrics take \
     another address"
)]
pub struct HealthError {
    address: SocketAddr,
    source: io::Error,
}

/// What a listening socket answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Serves {
    /// Health checks, and what the agent counts.
    Everything,
    /// What the agent counts, to whomever reaches it.
    Metrics,
}

/// The listening socket.
#[derive(Debug)]
pub(crate) struct Health {
    listener: TcpListener,
    serves: Serves,
}

/// An answer.
struct Verdict {
    status: &'static str,
    content: &'static str,
    text: String,
}

impl Verdict {
    fn plain(status: &'static str, text: impl Into<String>) -> Self {
        Self { status, content: "text/plain", text: text.into() }
    }
}

impl Health {
    pub(crate) fn open(address: SocketAddr, serves: Serves) -> Result<Self, HealthError> {
        let listener = TcpListener::bind(address).map_err(|source| HealthError { address, source })?;
        Ok(Self { listener, serves })
    }

    /// Serves until the process ends.
    pub(crate) fn serve(&self, events: &Sender<Event>, counts: &Counts) {
        loop {
            let stream = listener::next("the health address", || self.listener.accept());
            // A client that went away or said nothing is its own problem.
            if let Err(error) = serve_one(stream, self.serves, (events, counts)) {
                tracing::debug!(%error, "a health check was not answered");
            }
        }
    }
}

fn serve_one(
    mut stream: TcpStream,
    serves: Serves,
    (events, counts): (&Sender<Event>, &Counts),
) -> io::Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let head = read_head(&mut stream, Instant::now() + PATIENCE)?;
    let verdict = match asked_path(&head) {
        Some("/metrics") => measured(events, counts),
        Some(_) if serves == Serves::Metrics => Verdict::plain("404 Not Found", "ask for /metrics\n"),
        Some("/livez") => alive(events),
        Some("/readyz") => ready(events),
        Some(_) => Verdict::plain("404 Not Found", "ask for /livez, /readyz or /metrics\n"),
        None => Verdict::plain("400 Bad Request", "this is no GET request\n"),
    };
    let Verdict { status, content, text } = verdict;
    let length = text.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}"
    );
    stream.write_all(answer.as_bytes())
}

/// Everything up to the empty line that ends a request's head.
fn read_head(stream: &mut TcpStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut piece = [0; 512];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < LONGEST_REQUEST {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece)? {
            0 => break,
            length => head.extend_from_slice(&piece[..length]),
        }
    }
    Ok(head)
}

/// The path that is asked for, without its query.
fn asked_path(head: &[u8]) -> Option<&str> {
    let line = std::str::from_utf8(head.split(|byte| *byte == b'\r').next()?).ok()?;
    let target = line.strip_prefix("GET ")?.strip_suffix(" HTTP/1.1").or_else(|| {
        let rest = line.strip_prefix("GET ")?;
        rest.strip_suffix(" HTTP/1.0")
    })?;
    target.split('?').next()
}

fn alive(events: &Sender<Event>) -> Verdict {
    match ask(events, Request::Readiness) {
        Some(_) => Verdict::plain("200 OK", "ok\n"),
        None => Verdict::plain("503 Service Unavailable", "the agent's loop is stuck\n"),
    }
}

fn ready(events: &Sender<Event>) -> Verdict {
    let mut reasons = match ask(events, Request::Readiness) {
        Some(Answer::Readiness { reasons, peers }) => {
            let silent = reach::silent(&peers);
            // One that is down is no fault of this node's; that none answers, most likely is.
            let nobody = silent.len() == peers.len() && !peers.is_empty();
            let named = silent.iter().map(|peer| peer.node.as_str()).collect::<Vec<_>>().join(", ");
            let unreached = nobody.then(|| format!("no answer through the tunnel from {named}"));
            reasons.into_iter().chain(unreached).collect()
        }
        Some(_) | None => vec!["the agent's loop is stuck".to_owned()],
    };
    if reasons.is_empty() {
        return Verdict::plain("200 OK", "ok\n");
    }
    reasons.push(String::new());
    Verdict::plain("503 Service Unavailable", reasons.join("\n"))
}

fn measured(events: &Sender<Event>, counts: &Counts) -> Verdict {
    match ask(events, Request::Status) {
        Some(Answer::Status(status)) => {
            let text = metrics::text(&status, &counts.read());
            Verdict { status: "200 OK", content: metrics::CONTENT_TYPE, text }
        }
        Some(_) | None => Verdict::plain("503 Service Unavailable", "the agent's loop is stuck\n"),
    }
}

fn ask(events: &Sender<Event>, request: Request) -> Option<Answer> {
    let (answer, answered) = mpsc::channel();
    events.send(Event::Asked(request, answer)).ok()?;
    answered.recv_timeout(LOOP_PATIENCE).ok()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};
    use std::sync::mpsc;

    use super::{Health, Serves, asked_path};
    use crate::event::Event;
    use crate::policy::Counts;
    use crate::status::Answer;

    /// A server whose loop answers with these reasons, or not at all.
    fn serving(reasons: Option<&[&str]>) -> SocketAddr {
        let health = Health::open(SocketAddr::from(([127, 0, 0, 1], 0)), Serves::Everything).unwrap();
        let address = health.listener.local_addr().unwrap();
        let (sender, events) = mpsc::channel();
        let counts = Counts::of_nobody();
        std::thread::spawn(move || health.serve(&sender, &counts));
        let reasons = reasons.map(|reasons| reasons.iter().map(ToString::to_string).collect::<Vec<_>>());
        std::thread::spawn(move || {
            for event in events {
                let Event::Asked(_, answer) = event else { continue };
                // Without reasons the sender is dropped: a loop that will never answer.
                if let Some(reasons) = reasons.clone() {
                    answer.send(Answer::Readiness { reasons, peers: Vec::new() }).unwrap();
                }
            }
        });
        address
    }

    fn get(address: SocketAddr, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        // A client that says too much may find the door closed: what counts is that others are served.
        let _ = stream.write_all(request);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = String::new();
        // A client that said too much may find the connection reset.
        let _ = stream.read_to_string(&mut answer);
        answer
    }

    #[test]
    fn a_node_that_can_carry_pods_and_has_no_peers_is_ready() {
        let address = serving(Some(&[]));
        assert!(get(address, b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 200 OK"));
        assert!(get(address, b"GET /livez?verbose HTTP/1.1\r\n\r\n").ends_with("\r\n\r\nok\n"));
    }

    #[test]
    fn a_node_that_cannot_says_why_and_its_agent_lives() {
        let address = serving(Some(&["no underlay", "no lease"]));
        let answer = get(address, b"GET /readyz HTTP/1.1\r\n\r\n");
        assert!(
            answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("no underlay\nno lease\n"),
            "{answer}"
        );
        assert!(get(address, b"GET /livez HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200 OK"));
    }

    #[test]
    fn an_agent_whose_loop_is_stuck_is_not_alive() {
        let address = serving(None);
        assert!(get(address, b"GET /livez HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 503 "));
    }

    #[test]
    fn nonsense_is_refused_and_the_next_client_is_served() {
        let address = serving(Some(&[]));
        let oversized = vec![b'x'; 100_000];
        let nonsense: [&[u8]; 6] = [
            b"",
            b"\r\n\r\n",
            b"POST /livez HTTP/1.1\r\n\r\n",
            b"GET /livez\r\n\r\n",
            b"\xff\xfe\r\n\r\n",
            &oversized,
        ];
        for bytes in nonsense {
            let answer = get(address, bytes);
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
        }
        assert!(get(address, b"GET /health HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
        assert!(get(address, b"GET /livez HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200 "));
    }

    #[test]
    fn the_path_ends_where_the_query_begins() {
        assert_eq!(asked_path(b"GET /a?b=c HTTP/1.0\r\n"), Some("/a"));
        assert_eq!(asked_path(b"GET /a HTTP/2\r\n"), None);
    }
}
