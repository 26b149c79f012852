//! The servers inside the pods: on every port a pod declares, something answers with the pod's name.
//!
//! Read [`Answers`] first. Sockets are opened inside a pod's namespace, and from then on belong to one
//! thread that waits for all of them with epoll. Over UDP every datagram is answered with `name\n`. Over
//! TCP a client that asks in HTTP gets an HTTP answer; any other client, also one that only connects and
//! waits, gets `name\n`.
//!
//! What stays true: closing a pod closes all of its sockets, so nothing here keeps a dead pod's namespace.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{Timespec, epoll};

/// How long a client may be silent before it is taken for one that only listens.
const SILENCE: Duration = Duration::from_millis(300);
/// How long a client that has its answer may leave its end open.
const FAREWELL: Duration = Duration::from_secs(2);

/// A port that a pod declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Port {
    Tcp(u16),
    Udp(u16),
}

/// The sockets of one pod, not yet served. Made inside the pod's namespace, used outside of it.
pub(crate) struct PodSockets {
    sockets: Vec<Socket>,
}

impl PodSockets {
    /// Opens the ports in the calling thread's namespace. A port that cannot be had comes back with the
    /// reason; the others are served all the same.
    pub(crate) fn open(ports: &[Port]) -> (Self, Vec<(Port, io::Error)>) {
        let mut sockets = Vec::new();
        let mut failed = Vec::new();
        for port in ports {
            match Socket::open(*port) {
                Ok(socket) => sockets.push(socket),
                Err(error) => failed.push((*port, error)),
            }
        }
        (Self { sockets }, failed)
    }
}

/// All servers of a lab.
#[derive(Clone)]
pub(crate) struct Answers {
    shared: Arc<Shared>,
}

struct Shared {
    epoll: OwnedFd,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next: u64,
    sockets: HashMap<u64, Served>,
}

struct Served {
    pod: Arc<str>,
    socket: Socket,
}

enum Socket {
    Listener(TcpListener),
    Datagrams(UdpSocket),
    Conversation { stream: TcpStream, answered: bool, deadline: Instant },
}

impl Answers {
    /// Starts the thread.
    pub(crate) fn start() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let shared = Arc::new(Shared { epoll, table: Mutex::default() });
        let served = Arc::clone(&shared);
        std::thread::Builder::new().name("answers".into()).spawn(move || served.serve())?;
        Ok(Self { shared })
    }

    /// Serves a pod's sockets under its name.
    pub(crate) fn serve(&self, pod: &str, sockets: PodSockets) -> io::Result<()> {
        let pod: Arc<str> = Arc::from(pod);
        let mut table = self.shared.table();
        for socket in sockets.sockets {
            self.shared.add(&mut table, Served { pod: Arc::clone(&pod), socket })?;
        }
        Ok(())
    }

    /// Closes everything of a pod.
    pub(crate) fn close(&self, pod: &str) {
        self.shared.table().sockets.retain(|_, served| served.pod.as_ref() != pod);
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, table: &mut Table, served: Served) -> io::Result<()> {
        table.next += 1;
        let data = epoll::EventData::new_u64(table.next);
        epoll::add(&self.epoll, served.socket.as_fd(), data, epoll::EventFlags::IN)?;
        table.sockets.insert(table.next, served);
        Ok(())
    }

    fn serve(&self) {
        let mut events = Vec::with_capacity(64);
        loop {
            let deadline = self.table().nearest_deadline();
            let wait = deadline.map(|at| timespec(at.saturating_duration_since(Instant::now())));
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), wait.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
            let mut table = self.table();
            for event in &events {
                self.handle_readable(&mut table, event.data.u64());
            }
            table.handle_deadlines(Instant::now());
        }
    }

    fn handle_readable(&self, table: &mut Table, key: u64) {
        // A socket closed between the event and here is simply gone.
        let Some(served) = table.sockets.get_mut(&key) else { return };
        let pod = Arc::clone(&served.pod);
        match &mut served.socket {
            Socket::Datagrams(socket) => answer_datagrams(socket, &pod),
            Socket::Listener(listener) => {
                for stream in accept_all(listener) {
                    let deadline = Instant::now() + SILENCE;
                    let socket = Socket::Conversation { stream, answered: false, deadline };
                    let _ = self.add(table, Served { pod: Arc::clone(&pod), socket });
                }
            }
            Socket::Conversation { .. } => {
                if !served.handle_bytes() {
                    table.sockets.remove(&key);
                }
            }
        }
    }
}

impl Table {
    fn nearest_deadline(&self) -> Option<Instant> {
        self.sockets.values().filter_map(Served::deadline).min()
    }

    fn handle_deadlines(&mut self, now: Instant) {
        self.sockets.retain(|_, served| {
            let due = served.deadline().is_some_and(|deadline| deadline <= now);
            !due || served.handle_deadline()
        });
    }
}

impl Served {
    fn deadline(&self) -> Option<Instant> {
        match &self.socket {
            Socket::Conversation { deadline, .. } => Some(*deadline),
            Socket::Listener(_) | Socket::Datagrams(_) => None,
        }
    }

    /// What the client said decides the form of the answer. False ends the conversation.
    fn handle_bytes(&mut self) -> bool {
        let Socket::Conversation { stream, answered, .. } = &mut self.socket else { return true };
        let mut buffer = [0; 4096];
        loop {
            let count = match stream.read(&mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return false,
            };
            let finished = count == 0;
            if !*answered {
                let form = if speaks_http(&buffer[..count]) { http(&self.pod) } else { plain(&self.pod) };
                return self.answer(&form) && !finished;
            }
            if finished {
                return false;
            }
        }
    }

    fn handle_deadline(&mut self) -> bool {
        let Socket::Conversation { answered, .. } = &self.socket else { return true };
        let silent = !*answered;
        silent && self.answer(&plain(&self.pod))
    }

    /// Sends the answer and waits for the client's end, so that no reset overtakes the bytes.
    fn answer(&mut self, bytes: &[u8]) -> bool {
        let Socket::Conversation { stream, answered, deadline } = &mut self.socket else { return true };
        *answered = true;
        *deadline = Instant::now() + FAREWELL;
        stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write)).is_ok()
    }
}

impl Socket {
    fn open(port: Port) -> io::Result<Self> {
        match port {
            Port::Tcp(port) => {
                let listener = both_families(port, TcpListener::bind)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Listener(listener))
            }
            Port::Udp(port) => {
                let socket = both_families(port, UdpSocket::bind)?;
                socket.set_nonblocking(true)?;
                Ok(Self::Datagrams(socket))
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Self::Listener(listener) => listener.as_fd(),
            Self::Datagrams(socket) => socket.as_fd(),
            Self::Conversation { stream, .. } => stream.as_fd(),
        }
    }
}

/// The unspecified IPv6 address takes IPv4 too; a namespace without IPv6 takes IPv4 alone.
fn both_families<T>(port: u16, bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
        .or_else(|_| bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))))
}

fn accept_all(listener: &TcpListener) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    while let Ok((stream, _)) = listener.accept() {
        if stream.set_nonblocking(true).is_ok() {
            streams.push(stream);
        }
    }
    streams
}

fn answer_datagrams(socket: &UdpSocket, pod: &str) {
    let mut buffer = [0; 2048];
    while let Ok((_, from)) = socket.recv_from(&mut buffer) {
        let _ = socket.send_to(&plain(pod), from);
    }
}

fn speaks_http(bytes: &[u8]) -> bool {
    let methods: [&[u8]; 7] = [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH "];
    methods.iter().any(|method| bytes.starts_with(method))
}

fn plain(pod: &str) -> Vec<u8> {
    format!("{}\n", short(pod)).into_bytes()
}

fn http(pod: &str) -> Vec<u8> {
    let body = format!("{}\n", short(pod));
    let head = format!("Content-Type: text/plain\r\nContent-Length: {}\r\nConnection: close", body.len());
    format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}").into_bytes()
}

/// A pod answers with its name; its namespace only tells the servers of two equal names apart.
fn short(pod: &str) -> &str {
    pod.rsplit_once('/').map_or(pod, |(_, name)| name)
}

fn timespec(duration: Duration) -> Timespec {
    // One millisecond more, so that the deadline has surely passed on waking.
    let duration = duration + Duration::from_millis(1);
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One pod's servers on ports of the machine's choice.
    fn served() -> (Answers, u16, u16) {
        let answers = Answers::start().unwrap();
        let (sockets, failed) = PodSockets::open(&[Port::Tcp(0), Port::Udp(0)]);
        assert!(failed.is_empty());
        let ports: Vec<u16> = sockets
            .sockets
            .iter()
            .map(|socket| match socket {
                Socket::Listener(listener) => listener.local_addr().unwrap().port(),
                Socket::Datagrams(socket) => socket.local_addr().unwrap().port(),
                Socket::Conversation { .. } => 0,
            })
            .collect();
        answers.serve("default/leader", sockets).unwrap();
        (answers, ports[0], ports[1])
    }

    fn ask(address: SocketAddr, question: &[u8]) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(question).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn a_client_that_only_connects_gets_the_name() {
        let (_answers, tcp, _) = served();
        assert_eq!(ask((Ipv4Addr::LOCALHOST, tcp).into(), b""), "leader\n");
        if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
            return harness::not_run("the loopback has no IPv6 here: asked over IPv4 alone");
        }
        assert_eq!(ask((Ipv6Addr::LOCALHOST, tcp).into(), b""), "leader\n");
    }

    #[test]
    fn a_client_that_speaks_http_gets_http() {
        let (_answers, tcp, _) = served();
        let answer = ask((Ipv4Addr::LOCALHOST, tcp).into(), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nleader\n"),
            "{answer}"
        );
    }

    #[test]
    fn a_datagram_is_answered_with_the_name() {
        let (_answers, _, udp) = served();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.send_to(b"?", (Ipv4Addr::LOCALHOST, udp)).unwrap();
        let mut buffer = [0; 64];
        let count = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"leader\n");
    }

    #[test]
    fn a_closed_pod_answers_no_more() {
        let (answers, tcp, _) = served();
        answers.close("default/leader");
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, tcp)).is_err());
    }
}
