//! What flannel's backend `udp` runs on a node: a program between a TUN device and a UDP socket that sends each packet, as
//! it is, to the node that its destination is on. Written from the description of its wire format.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use harness::Namespace;
use kernel::tun::{LARGEST_READ, Queue, VnetHeader};
use rustix::event::{PollFd, PollFlags, poll};

/// Flannel's port, of every node alike.
const PORT: u16 = 8285;

/// Where packets to `10.244.N.0/24` go, by N.
type Table = Arc<Mutex<BTreeMap<u8, Ipv4Addr>>>;

/// The program, which ends with the value, and its device with it.
pub(crate) struct Proxy {
    table: Table,
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts in this namespace with a device of that name and with its socket at that address.
    pub(crate) fn start(netns: &Namespace, device: &str, address: Ipv4Addr) -> Self {
        let (queue, socket) =
            netns.inside(|| (Queue::open(device).unwrap(), UdpSocket::bind((address, PORT)).unwrap()));
        let table = Table::default();
        let (stop, stopped) = UnixStream::pair().unwrap();
        let routes = table.clone();
        let thread = thread::spawn(move || carry(&queue, &socket, &stopped, &routes));
        Self { table, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn route(&self, third: u8, peer: Ipv4Addr) {
        self.table.lock().unwrap().insert(third, peer);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn carry(queue: &Queue, socket: &UdpSocket, stopped: &UnixStream, table: &Table) {
    socket.set_nonblocking(true).unwrap();
    let mut buffer = vec![0; LARGEST_READ];
    loop {
        let mut waits = [
            PollFd::new(queue, PollFlags::IN),
            PollFd::new(socket, PollFlags::IN),
            PollFd::new(stopped, PollFlags::IN),
        ];
        poll(&mut waits, None).unwrap();
        if !waits[2].revents().is_empty() {
            return;
        }
        while let Ok(Some(length)) = queue.read(&mut buffer) {
            let (_, packet) = VnetHeader::split(&buffer[..length]).unwrap();
            // IPv6's own chatter on the device is nobody's.
            let peer = packet.get(18).filter(|_| packet[0] >> 4 == 4).and_then(|third| {
                let table = table.lock().unwrap();
                table.get(third).copied()
            });
            if let Some(peer) = peer {
                socket.send_to(packet, (peer, PORT)).unwrap();
            }
        }
        while let Ok(length) = socket.recv(&mut buffer) {
            let header = VnetHeader::default().to_bytes();
            queue.write(&[IoSlice::new(&header), IoSlice::new(&buffer[..length])]).unwrap();
        }
    }
}
