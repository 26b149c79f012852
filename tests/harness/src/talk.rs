//! Servers that tell a client who it seems to be, and clients that ask them, over TCP, UDP and SCTP.
//!
//! Read [`serve`], then [`ask`] and [`Client`]. What is said is a word of the server's and the client's address
//! as the server sees it, so a test knows who answered, and whom he thought he was talking to.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, sockopt};

use crate::{Namespace, eventually};

/// How long a client waits that expects an answer, and one that expects none.
const PATIENCE: Duration = Duration::from_secs(10);
const IMPATIENCE: Duration = Duration::from_millis(300);

/// A server in the namespace, for TCP and UDP at once, that answers with a word of its own and the client's
/// address. It ends with the test.
pub fn serve(namespace: &Namespace, port: u16, word: &'static str) {
    let (listener, socket) = namespace.inside(|| {
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
pub fn ask(from: &Namespace, address: &str, port: u16) -> Option<String> {
    ask_within(from, address, port, PATIENCE)
}

/// The same for a client that expects no answer.
pub fn is_deaf(from: &Namespace, address: &str, port: u16) -> bool {
    ask_within(from, address, port, IMPATIENCE).is_none()
}

fn ask_within(from: &Namespace, address: &str, port: u16, patience: Duration) -> Option<String> {
    let to = SocketAddr::new(address.parse::<IpAddr>().unwrap(), port);
    from.inside(|| {
        let mut stream = TcpStream::connect_timeout(&to, patience).ok()?;
        stream.set_read_timeout(Some(patience)).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        Some(text)
    })
}

/// A UDP client that goes on from one port.
pub struct Client {
    socket: UdpSocket,
    to: SocketAddr,
}

impl Client {
    /// One that will ask this address and port from inside `from`.
    pub fn new(from: &Namespace, address: &str, port: u16) -> Self {
        let to = SocketAddr::new(address.parse::<IpAddr>().unwrap(), port);
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = from.inside(|| UdpSocket::bind(any).unwrap());
        Self { socket, to }
    }

    /// What the server says to this packet; `None` when nothing comes soon.
    pub fn try_ask(&self) -> Option<String> {
        self.socket.set_read_timeout(Some(IMPATIENCE)).unwrap();
        self.socket.send_to(b"who am I", self.to).ok()?;
        let mut bytes = [0; 100];
        let (length, from) = self.socket.recv_from(&mut bytes).ok()?;
        assert_eq!(from.ip().to_canonical(), self.to.ip(), "the answer comes from whom was asked");
        Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    /// The same, again until there is an answer.
    pub fn ask(&self) -> String {
        eventually("an answer over UDP", || self.try_ask())
    }
}

/// The same as [`serve`] for SCTP; false when this kernel has no SCTP.
pub fn serve_sctp(namespace: &Namespace, port: u16, word: &'static str) -> bool {
    let Some(listener) = namespace.inside(|| sctp(true)) else { return false };
    rustix::net::bind(&listener, &SocketAddr::from(([0; 8], port))).unwrap();
    rustix::net::listen(&listener, 10).unwrap();
    thread::spawn(move || {
        while let Ok((stream, peer)) = rustix::net::acceptfrom(&listener) {
            let Some(peer) = peer.and_then(|peer| SocketAddr::try_from(peer).ok()) else { continue };
            let text = format!("{word} {}", peer.ip().to_canonical());
            let _ = rustix::net::send(&stream, text.as_bytes(), SendFlags::NOSIGNAL);
        }
    });
    true
}

/// What an SCTP server there says; `None` when nobody answers within this time.
pub fn ask_sctp(from: &Namespace, address: &str, port: u16, patience: Duration) -> Option<String> {
    let to = SocketAddr::new(address.parse::<IpAddr>().unwrap(), port);
    let socket = from.inside(|| sctp(to.is_ipv6()))?;
    for direction in [sockopt::Timeout::Send, sockopt::Timeout::Recv] {
        sockopt::set_socket_timeout(&socket, direction, Some(patience)).unwrap();
    }
    rustix::net::connect(&socket, &to).ok()?;
    let mut bytes = [0; 100];
    let (length, _) = rustix::net::recv(&socket, &mut bytes[..], RecvFlags::empty()).ok()?;
    Some(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

fn sctp(six: bool) -> Option<OwnedFd> {
    let family = if six { AddressFamily::INET6 } else { AddressFamily::INET };
    rustix::net::socket(family, SocketType::STREAM, Some(ipproto::SCTP)).ok()
}
