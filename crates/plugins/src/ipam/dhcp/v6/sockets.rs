//! The sockets of a DHCPv6 client, inside its pod's namespace.
//!
//! Read [`Sockets`]. Nothing can be sent before the link's own address (link-local) works: a link that has just
//! come up has none, and where duplicates are looked for it takes a second. So what is to be sent waits here, and
//! the kernel's notifications are listened to, until there is one. RFC 8415 sections 7.1, 7.2 and 14.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use cni::Error;
use kernel::Family;
use kernel::address;
use kernel::monitor::{Monitor, Topic};
use kernel::netlink::Protocol;
use kernel::netns::Netns;
use kernel::routers::RouterSocket;

use crate::fault::fault;
use crate::ipam::dhcp::machine::{Destination, Packet, PacketKind};

/// Where clients listen.
const CLIENT_PORT: u16 = 546;
/// Where servers and relays listen.
const SERVER_PORT: u16 = 547;
/// All servers and relays on the link.
const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// As many payloads wait as there are kinds of them.
const MOST_WAITING: usize = 4;

/// One for servers, one for routers, on one link.
#[derive(Debug)]
pub(crate) struct Sockets {
    namespace: Netns,
    link: u32,
    servers: Servers,
    routers: RouterSocket,
}

/// The way to the servers.
#[derive(Debug)]
enum Servers {
    /// The link has no address of its own that works: the notifications, and what is to be sent then.
    Awaited(Monitor, Vec<(Destination, Vec<u8>)>),
    /// It has.
    Open(UdpSocket),
}

impl Sockets {
    /// Opens them on the link of this index.
    ///
    /// # Errors
    /// When the kernel refuses, or the link is gone.
    pub(crate) fn open(namespace: &Netns, link: u32) -> Result<Self, Error> {
        let own = namespace.as_fd().try_clone_to_owned();
        let own = own.map_err(|cause| Error::io(format!("keep a network namespace open: {cause}")))?;
        // Before the first look, so that nothing falls between.
        let monitor = Monitor::open_in(namespace, &[Topic::Addresses]).map_err(fault)?;
        let mut sockets = Self {
            namespace: Netns::from_descriptor(own).map_err(fault)?,
            link,
            servers: Servers::Awaited(monitor, Vec::new()),
            routers: RouterSocket::open(namespace, link).map_err(fault)?,
        };
        sockets.look()?;
        Ok(sockets)
    }

    /// What is readable when a packet, or an address, is there.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let servers = match &self.servers {
            Servers::Awaited(monitor, _) => monitor.as_fd(),
            Servers::Open(socket) => socket.as_fd(),
        };
        vec![servers, self.routers.as_fd()]
    }

    /// Sends a payload, as soon as that is possible.
    ///
    /// # Errors
    /// When the link is down or gone.
    pub(crate) fn send(&mut self, destination: Destination, payload: &[u8]) -> Result<(), Error> {
        match &mut self.servers {
            Servers::Awaited(_, waiting) => {
                if waiting.len() == MOST_WAITING {
                    waiting.remove(0);
                }
                waiting.push((destination, payload.to_vec()));
                Ok(())
            }
            Servers::Open(socket) => match destination {
                Destination::Servers => {
                    let to = SocketAddrV6::new(SERVERS, SERVER_PORT, 0, self.link);
                    let sent = socket.send_to(payload, to);
                    sent.map(drop).map_err(|cause| Error::io(format!("send to DHCPv6 servers: {cause}")))
                }
                Destination::Routers => self.routers.send(payload).map_err(fault),
                Destination::Broadcast(_) | Destination::Unicast { .. } => Ok(()),
            },
        }
    }

    /// The next packet; `None` when there is none now.
    ///
    /// # Errors
    /// When the link went down or is gone.
    pub(crate) fn receive<'b>(&mut self, buffer: &'b mut [u8]) -> Result<Option<Packet<'b>>, Error> {
        if let Servers::Awaited(monitor, _) = &mut self.servers {
            // Only that something changed is told; what it is shows by looking.
            if monitor.receive_within(Duration::ZERO).map_err(fault)?.is_some() {
                self.look()?;
            }
        }
        if let Servers::Open(socket) = &self.servers {
            match socket.recv_from(buffer) {
                Ok((size, from)) => {
                    return Ok(Some(packet(PacketKind::Dhcp, from.ip(), &buffer[..size])));
                }
                Err(cause) if cause.kind() == io::ErrorKind::WouldBlock => {}
                Err(cause) => return Err(Error::io(format!("receive from DHCPv6 servers: {cause}"))),
            }
        }
        let heard = self.routers.receive(buffer).map_err(fault)?;
        Ok(heard.map(|(size, from)| packet(PacketKind::RouterAdvertisement, from.into(), &buffer[..size])))
    }

    /// Opens the way to the servers if the link has an address of its own by now, and sends what waits.
    fn look(&mut self) -> Result<(), Error> {
        let Servers::Awaited(_, waiting) = &mut self.servers else { return Ok(()) };
        let mut socket = self.namespace.socket(Protocol::Route).map_err(fault)?;
        let addresses = address::list(&mut socket, Some(self.link), Some(Family::V6)).map_err(fault)?;
        let own = addresses.iter().filter(|found| !found.is_tentative() && !found.is_duplicate());
        let own = own.filter_map(|found| match found.net.addr() {
            IpAddr::V6(address) if address.is_unicast_link_local() => Some(address),
            _ => None,
        });
        let Some(own) = { own }.next() else { return Ok(()) };
        let waiting = std::mem::take(waiting);
        self.servers = Servers::Open(self.bind(own).map_err(|cause| {
            let text = format!("listen on [{own}]:{CLIENT_PORT} in the pod's namespace: {cause}");
            match cause.kind() {
                io::ErrorKind::AddrInUse => {
                    Error::io(text).with_details("hint: another DHCPv6 client runs in this pod")
                }
                _ => Error::io(text),
            }
        })?);
        waiting.into_iter().try_for_each(|(destination, payload)| self.send(destination, &payload))
    }

    fn bind(&self, own: Ipv6Addr) -> io::Result<UdpSocket> {
        let inside = self.namespace.enter().map_err(io::Error::other)?;
        // The scope ties it to the link, for sending too.
        let socket = UdpSocket::bind(SocketAddrV6::new(own, CLIENT_PORT, 0, self.link))?;
        drop(inside);
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

fn packet(kind: PacketKind, from: IpAddr, payload: &[u8]) -> Packet<'_> {
    Packet { kind, from, hardware: None, payload }
}
