//! Servers that tell a client who it seems to be, and clients that ask them, over TCP and UDP.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use harness::Namespace;

/// How long a client waits that expects an answer, and one that expects none.
const PATIENCE: Duration = Duration::from_secs(10);
const IMPATIENCE: Duration = Duration::from_millis(300);

/// Runs `work` on a thread inside the namespace.
pub(crate) fn inside<T: Send>(namespace: &Namespace, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let path = std::fs::File::open(namespace.path()).unwrap();
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&path),
                Some(rustix::thread::LinkNameSpaceType::Network),
            )
            .unwrap();
            work()
        });
        inside.join().unwrap()
    })
}

/// A server in the namespace, for TCP and UDP at once, that answers with a word of its own and the client's
/// address. It ends with the test.
pub(crate) fn serve(namespace: &Namespace, port: u16, word: &'static str) {
    let (listener, socket) = inside(namespace, || {
        let any = SocketAddr::from(([0; 8], port));
        (TcpListener::bind(any).unwrap(), UdpSocket::bind(any).unwrap())
    });
    let answer = move |peer: SocketAddr| format!("{word} {}", peer.ip().to_canonical());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let Ok(peer) = stream.peer_addr() else { continue };
            let _ = stream.write_all(answer(peer).as_bytes());
        }
    });
    thread::spawn(move || {
        let mut bytes = [0; 100];
        while let Ok((_, peer)) = socket.recv_from(&mut bytes) {
            let _ = socket.send_to(answer(peer).as_bytes(), peer);
        }
    });
}

/// What a TCP server there says; `None` when nobody answers.
pub(crate) fn ask(from: &Namespace, address: &str, port: u16) -> Option<String> {
    ask_within(from, address, port, PATIENCE)
}

/// The same for a client that expects no answer.
pub(crate) fn is_deaf(from: &Namespace, address: &str, port: u16) -> bool {
    ask_within(from, address, port, IMPATIENCE).is_none()
}

fn ask_within(from: &Namespace, address: &str, port: u16, patience: Duration) -> Option<String> {
    let to = SocketAddr::new(address.parse::<IpAddr>().unwrap(), port);
    inside(from, || {
        let mut stream = TcpStream::connect_timeout(&to, patience).ok()?;
        stream.set_read_timeout(Some(patience)).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    })
}

/// A UDP client that goes on from one port.
pub(crate) struct Client {
    socket: UdpSocket,
    to: SocketAddr,
}

impl Client {
    pub(crate) fn new(from: &Namespace, address: &str, port: u16) -> Self {
        let to = SocketAddr::new(address.parse::<IpAddr>().unwrap(), port);
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = inside(from, || UdpSocket::bind(any).unwrap());
        Self { socket, to }
    }

    /// What the server says to this packet; `None` when nothing comes soon.
    pub(crate) fn try_ask(&self) -> Option<String> {
        self.socket.set_read_timeout(Some(IMPATIENCE)).unwrap();
        self.socket.send_to(b"who am I", self.to).ok()?;
        let mut bytes = [0; 100];
        let (length, from) = self.socket.recv_from(&mut bytes).ok()?;
        assert_eq!(from.ip().to_canonical(), self.to.ip(), "the answer comes from whom was asked");
        Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    /// The same, again until there is an answer.
    pub(crate) fn ask(&self) -> String {
        harness::eventually("an answer over UDP", || self.try_ask())
    }
}
