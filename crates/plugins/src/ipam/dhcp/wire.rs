//! The sockets of a client, inside its pod's namespace.
//!
//! Read [`Wire`]. Open only as long as a client waits for packets: an open socket would keep alive the
//! namespace of a pod that has gone.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use cni::Error;
use kernel::netns::Netns;
use kernel::packet::PacketSocket;

use super::client::Protocol;
use super::machine::{Destination, Packet, PacketKind};
use super::v4::datagram;
use super::v6::Sockets;
use crate::fault::fault;

/// The sockets of a client.
#[derive(Debug)]
pub(crate) enum Wire {
    /// DHCPv4: whole packets, for there is no address yet.
    V4(PacketSocket),
    /// DHCPv6 and the routers.
    V6(Sockets),
}

impl Wire {
    /// Opens them on the link of this index.
    ///
    /// # Errors
    /// When the kernel refuses, or the link is gone.
    pub(crate) fn open(protocol: Protocol, namespace: &Netns, link: u32) -> Result<Self, Error> {
        match protocol {
            Protocol::V4 => {
                PacketSocket::open(namespace, link, datagram::CLIENT_PORT).map(Self::V4).map_err(fault)
            }
            Protocol::V6 => Sockets::open(namespace, link).map(Self::V6),
        }
    }

    /// What is readable when a packet is there.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::V4(socket) => vec![socket.as_fd()],
            Self::V6(sockets) => sockets.descriptors(),
        }
    }

    /// Sends a payload.
    ///
    /// # Errors
    /// When the link is down or gone.
    pub(crate) fn send(&mut self, destination: Destination, payload: &[u8]) -> Result<(), Error> {
        match (self, destination) {
            (Self::V4(socket), Destination::Broadcast(from)) => {
                let packet = datagram::encode(from, std::net::Ipv4Addr::BROADCAST, payload);
                socket.send(None, &packet).map_err(fault)
            }
            (Self::V4(socket), Destination::Unicast { from, to, hardware }) => {
                socket.send(Some(hardware), &datagram::encode(from, to, payload)).map_err(fault)
            }
            (Self::V4(_), Destination::Servers | Destination::Routers) => Ok(()),
            (Self::V6(sockets), destination) => sockets.send(destination, payload),
        }
    }

    /// The next packet that is one of the protocol's; `None` when there is none now.
    ///
    /// # Errors
    /// When the link went down or is gone.
    pub(crate) fn receive<'b>(&mut self, buffer: &'b mut [u8]) -> Result<Option<Packet<'b>>, Error> {
        match self {
            Self::V4(socket) => {
                let Some((size, hardware)) = socket.receive(buffer).map_err(fault)? else { return Ok(None) };
                // One that is damaged is reported as an empty one, which no client takes for anything.
                let (from, payload) = datagram::decode(&buffer[..size]).unwrap_or(([0; 4].into(), &[]));
                let hardware = Some(hardware);
                Ok(Some(Packet { kind: PacketKind::Dhcp, from: IpAddr::V4(from), hardware, payload }))
            }
            Self::V6(sockets) => sockets.receive(buffer),
        }
    }
}
