//! WireGuard devices of the kernel: what they are told, and what they say.
//!
//! Read [`Conversation`] first, then [`Device`]. The link itself is made like any other ([`KIND`]); its key, port and peers
//! travel by generic netlink, whose number for this family is asked once.
//!
//! What stays true: a message never grows over 64 KB, however many peers there are; setting a peer leaves the sessions of
//! all peers alone, its own too; a device of any number of peers is read whole, also where one peer's networks go on in the
//! next message. Private keys are in no error's text.
//!
//! Sources: `include/uapi/linux/wireguard.h` and `drivers/net/wireguard/netlink.c` of Linux 6.12,
//! docs.kernel.org/userspace-api/netlink/intro.html for generic netlink.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ops::Range;
use std::time::Duration;

use ipnet::IpNet;
use netstate::{PublicKey, SecretKey, WireGuard, WireGuardPeer};

use crate::netlink::{Attribute, Attributes, Malformed, Message, Protocol, Purpose, Reply, Request, Socket};
use crate::{Error, Family};

/// The kernel's name for the kind of link, and for the family of generic netlink.
pub const KIND: &str = "wireguard";

const NEEDS: &str = "the kernel needs CONFIG_WIREGUARD";

/// A message is sent when it has grown to this: an attribute ends at 64 KB.
const MESSAGE_ROOM: usize = 24 * 1024;
/// How many of a peer's networks go into one message, at 48 bytes the most.
const NETWORKS_PER_PART: usize = 600;

// table
const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const VERSION: u8 = 1;
const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;
const DEVICE_NAME: u16 = 2;
const DEVICE_PRIVATE_KEY: u16 = 3;
const DEVICE_PORT: u16 = 6;
const DEVICE_PEERS: u16 = 8;
const PEER_PUBLIC_KEY: u16 = 1;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_KEEPALIVE: u16 = 5;
const PEER_LAST_HANDSHAKE: u16 = 6;
const PEER_RECEIVED: u16 = 7;
const PEER_SENT: u16 = 8;
const PEER_ALLOWED_IPS: u16 = 9;
const REMOVE: u32 = 1;
const REPLACE_ALLOWED_IPS: u32 = 2;
const ALLOWED_FAMILY: u16 = 1;
const ALLOWED_ADDRESS: u16 = 2;
const ALLOWED_PREFIX: u16 = 3;

/// A device as the kernel describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// Its private key; none before it was given one.
    pub private_key: Option<SecretKey>,
    /// The UDP port that it listens on.
    pub port: u16,
    /// Its peers.
    pub peers: BTreeMap<PublicKey, Peer>,
}

/// A peer as the kernel describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// What it was told of the peer; the endpoint is where the peer was last heard from.
    pub settings: WireGuardPeer,
    /// When a session was last agreed on, since 1970; none before the first.
    pub last_handshake: Option<Duration>,
    /// Bytes received from it, with what WireGuard adds.
    pub received: u64,
    /// Bytes sent to it, with what WireGuard adds.
    pub sent: u64,
}

/// What is to become of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerChange<'a> {
    /// It is made, or changed to be exactly so.
    Set {
        /// Which.
        key: PublicKey,
        /// What it is to be.
        peer: &'a WireGuardPeer,
        /// What it is now; none if there is none.
        was: Option<&'a WireGuardPeer>,
    },
    /// It is removed.
    Remove(PublicKey),
}

/// A conversation with WireGuard in the namespace in which it was opened.
#[derive(Debug)]
pub struct Conversation {
    socket: Socket,
    family: u16,
}

impl Conversation {
    /// Opens it in the calling thread's network namespace. A module that has WireGuard is loaded.
    ///
    /// # Errors
    /// When the kernel has no WireGuard ([`Error::is_missing`]), or descriptors have run out.
    pub fn open() -> Result<Self, Error> {
        let mut socket = Socket::open(Protocol::Generic)?;
        let mut message = Message::new(CONTROLLER, 0, &header(GET_FAMILY));
        message.text(FAMILY_NAME, KIND);
        let request = Request::new(message, Purpose::new("find netlink family", KIND).needing(NEEDS));
        let family = socket.ask(&request, |reply| {
            let (_, attributes) = reply.split::<HEADER>()?;
            let id = attributes.find(FAMILY_ID)?;
            id.ok_or(Malformed::Missing { what: "the family's number" })?.u16()
        })?;
        Ok(Self { socket, family })
    }

    /// Reads a device with all its peers.
    ///
    /// # Errors
    /// When there is no such device ([`Error::is_missing`]), or the kernel refuses.
    pub fn device(&mut self, name: &str) -> Result<Device, Error> {
        let mut message = Message::new(self.family, 0, &header(GET_DEVICE));
        message.text(DEVICE_NAME, name);
        let request = Request::new(message, Purpose::new("read wireguard device", name).needing(NEEDS));
        let parts = self.socket.dump(&request, |reply| Device::from_reply(reply).map(Some))?;
        Ok(parts.into_iter().fold(Device::default(), Device::joined))
    }

    /// Tells a device who it is and where it listens.
    ///
    /// # Errors
    /// When the kernel refuses: another program has the port, for one.
    pub fn set_device(&mut self, name: &str, device: &WireGuard) -> Result<(), Error> {
        self.socket.execute(set_device(self.family, name, device))
    }

    /// Changes peers of a device. Returns the positions of those that were refused, and why; the others are as wanted.
    ///
    /// # Errors
    /// Only when the conversation itself broke.
    pub fn change_peers(
        &mut self,
        name: &str,
        changes: &[PeerChange<'_>],
    ) -> Result<Vec<(usize, Error)>, Error> {
        let mut refused = Vec::new();
        let parts = parts(changes);
        for request in requests(self.family, name, &parts) {
            let failed = self.socket.run(&request.request.into(), |_, _| Ok(()))?;
            if failed.is_empty() {
                continue;
            }
            // The kernel stops at the first that it does not like, and does not say which.
            for position in request.changes {
                let of_it: Vec<Part<'_>> =
                    parts.iter().filter(|part| part.position == position).cloned().collect();
                for alone in requests(self.family, name, &of_it) {
                    let failed = self.socket.run(&alone.request.into(), |_, _| Ok(()))?;
                    refused.extend(failed.into_iter().map(|failure| (position, failure.error)));
                }
            }
        }
        Ok(refused)
    }
}

/// A request, and what of the changes it carries.
#[derive(Debug, Clone)]
pub struct PeerRequest {
    /// What is sent.
    pub request: Request,
    /// The positions of the changes that it carries, or of whose parts.
    pub changes: Range<usize>,
}

/// Bytes of `struct genlmsghdr`: command (u8), version (u8), two reserved.
const HEADER: usize = 4;

fn header(command: u8) -> [u8; HEADER] {
    [command, VERSION, 0, 0]
}

/// The request that tells a device who it is and where it listens; `family` is the kernel's number for WireGuard.
pub fn set_device(family: u16, name: &str, device: &WireGuard) -> Request {
    let mut message = Message::new(family, 0, &header(SET_DEVICE));
    message.text(DEVICE_NAME, name);
    message.put(DEVICE_PRIVATE_KEY, device.private_key.bytes());
    message.u16(DEVICE_PORT, device.port);
    Request::new(message, Purpose::new("configure wireguard device", name).needing(NEEDS))
}

/// The requests that change peers of a device, each with the positions of the changes in it. A peer of very many
/// networks is begun in one message and goes on in the next.
///
/// A peer that is there is never told to replace its networks, for then the kernel forgets them all before it takes the new
/// ones, and packets in between are lost. It is told those that it is to have: one that another peer has moves. One that
/// nobody is to have any more moves to a peer that is nobody's, which is removed at once.
pub fn change_peers(family: u16, name: &str, changes: &[PeerChange<'_>]) -> Vec<PeerRequest> {
    requests(family, name, &parts(changes))
}

fn parts<'a>(changes: &[PeerChange<'a>]) -> Vec<Part<'a>> {
    let wanted: BTreeSet<IpNet> = changes.iter().flat_map(PeerChange::networks).copied().collect();
    changes.iter().enumerate().flat_map(|(position, change)| Part::of(position, change, &wanted)).collect()
}

fn requests(family: u16, name: &str, parts: &[Part<'_>]) -> Vec<PeerRequest> {
    let mut requests = Vec::new();
    let mut rest = parts;
    while let [first, ..] = rest {
        let mut message = Message::new(family, 0, &header(SET_DEVICE));
        message.text(DEVICE_NAME, name);
        let mut count = 0;
        message.nest(DEVICE_PEERS, |peers| {
            while let Some(part) = rest.get(count).filter(|_| count == 0 || peers.length() < MESSAGE_ROOM) {
                peers.nest(0, |peer| part.write(peer));
                count += 1;
            }
        });
        let (sent, left) = rest.split_at(count);
        let last = sent.last().map_or(first.position, |part| part.position);
        let purpose = Purpose::new("change peers of wireguard device", name).needing(NEEDS);
        requests
            .push(PeerRequest { request: Request::new(message, purpose), changes: first.position..last + 1 });
        rest = left;
    }
    requests
}

/// The key of a peer that nobody can be: no session is agreed on with it.
const NOBODY: PublicKey = PublicKey([0; 32]);

impl<'a> PeerChange<'a> {
    /// What the peer is to have.
    fn networks(&self) -> impl Iterator<Item = &'a IpNet> + use<'a> {
        let peer = match *self {
            Self::Set { peer, .. } => Some(peer),
            Self::Remove(_) => None,
        };
        peer.into_iter().flat_map(|peer| &peer.allowed_ips)
    }
}

/// A change of a peer, or the part of it that fits one message.
#[derive(Debug, Clone)]
struct Part<'a> {
    /// Which change it is of.
    position: usize,
    key: PublicKey,
    does: Does<'a>,
    networks: Vec<IpNet>,
}

/// What a part does beside giving the peer networks.
#[derive(Debug, Clone, Copy)]
enum Does<'a> {
    /// Makes the peer, with these networks alone.
    Make(&'a WireGuardPeer),
    /// Changes it.
    Change(&'a WireGuardPeer),
    /// Nothing.
    GoOn,
    /// Removes it.
    Remove,
}

impl<'a> Part<'a> {
    /// The parts of a change; `wanted` is what any peer is to have.
    fn of(position: usize, change: &PeerChange<'a>, wanted: &BTreeSet<IpNet>) -> Vec<Self> {
        let part = |key, does, networks: &[IpNet]| Self { position, key, does, networks: networks.to_vec() };
        let (key, peer, was) = match *change {
            PeerChange::Set { key, peer, was } => (key, peer, was),
            PeerChange::Remove(key) => return vec![part(key, Does::Remove, &[])],
        };
        let all: Vec<IpNet> = change.networks().copied().collect();
        let (first, more) = all.split_at(all.len().min(NETWORKS_PER_PART));
        let does = if was.is_some() { Does::Change(peer) } else { Does::Make(peer) };
        let mut parts = vec![part(key, does, first)];
        parts.extend(more.chunks(NETWORKS_PER_PART).map(|networks| part(key, Does::GoOn, networks)));
        let had = was.into_iter().flat_map(|was| &was.allowed_ips);
        let gone: Vec<IpNet> = had.filter(|net| !wanted.contains(net)).copied().collect();
        if !gone.is_empty() {
            parts.extend(gone.chunks(NETWORKS_PER_PART).map(|networks| part(NOBODY, Does::GoOn, networks)));
            parts.push(part(NOBODY, Does::Remove, &[]));
        }
        parts
    }

    fn write(&self, out: &mut Message) {
        out.put(PEER_PUBLIC_KEY, &self.key.0);
        if let Does::Remove = self.does {
            out.u32(PEER_FLAGS, REMOVE);
            return;
        }
        if let Does::Make(_) = self.does {
            out.u32(PEER_FLAGS, REPLACE_ALLOWED_IPS);
        }
        if let Does::Make(peer) | Does::Change(peer) = self.does {
            if let Some(endpoint) = peer.endpoint {
                out.put(PEER_ENDPOINT, &socket_address(endpoint));
            }
            out.u16(PEER_KEEPALIVE, peer.keepalive.unwrap_or(0));
        }
        out.nest(PEER_ALLOWED_IPS, |list| {
            for net in &self.networks {
                list.nest(0, |entry| {
                    entry.u16(ALLOWED_FAMILY, Family::of(net.addr()).number().into());
                    entry.ip(ALLOWED_ADDRESS, net.network()).u8(ALLOWED_PREFIX, net.prefix_len());
                });
            }
        });
    }
}

/// `struct sockaddr_in` or `struct sockaddr_in6`.
fn socket_address(address: SocketAddr) -> Vec<u8> {
    let family = u16::from(Family::of(address.ip()).number());
    let mut bytes = [family.to_ne_bytes(), address.port().to_be_bytes()].concat();
    match address {
        SocketAddr::V4(address) => {
            bytes.extend_from_slice(&address.ip().octets());
            bytes.extend_from_slice(&[0; 8]);
        }
        SocketAddr::V6(address) => {
            bytes.extend_from_slice(&address.flowinfo().to_be_bytes());
            bytes.extend_from_slice(&address.ip().octets());
            bytes.extend_from_slice(&address.scope_id().to_ne_bytes());
        }
    }
    bytes
}

fn read_socket_address(attribute: &Attribute<'_>) -> Result<SocketAddr, Malformed> {
    match *attribute.value {
        [_, _, high, low, a, b, c, d, _, _, _, _, _, _, _, _] => {
            let port = u16::from_be_bytes([high, low]);
            Ok(SocketAddrV4::new([a, b, c, d].into(), port).into())
        }
        [_, _, high, low, _, _, _, _, ref rest @ ..] => {
            let malformed = || attribute.malformed("a socket address");
            let (address, scope) = rest.split_first_chunk::<16>().ok_or_else(malformed)?;
            let scope = <[u8; 4]>::try_from(scope).map_err(|_| malformed())?;
            let port = u16::from_be_bytes([high, low]);
            Ok(SocketAddrV6::new((*address).into(), port, 0, u32::from_ne_bytes(scope)).into())
        }
        _ => Err(attribute.malformed("a socket address")),
    }
}

impl Device {
    /// Decodes one message about a device: all of it, or a part.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn from_reply(reply: Reply<'_>) -> Result<Self, Malformed> {
        let (_, attributes) = reply.split::<HEADER>()?;
        let mut device = Self::default();
        for attribute in attributes {
            let attribute = attribute?;
            match attribute.kind {
                DEVICE_PRIVATE_KEY => {
                    let key = attribute.array::<32>("a key")?;
                    device.private_key = Some(key).filter(|key| *key != [0; 32]).map(SecretKey::new);
                }
                DEVICE_PORT => device.port = attribute.u16()?,
                DEVICE_PEERS => {
                    for peer in attribute.nested() {
                        let (key, peer) = read_peer(peer?.nested())?;
                        device.add(key, peer);
                    }
                }
                _ => {}
            }
        }
        Ok(device)
    }

    /// Joins the parts of a device that came in messages of their own: only the first says who the device is.
    #[must_use]
    pub fn joined(mut self, next: Self) -> Self {
        self.private_key = self.private_key.or(next.private_key);
        self.port = if self.port == 0 { next.port } else { self.port };
        next.peers.into_iter().for_each(|(key, peer)| self.add(key, peer));
        self
    }

    /// Adds a peer, or further networks of one whose networks did not fit one message.
    fn add(&mut self, key: PublicKey, peer: Peer) {
        match self.peers.entry(key) {
            std::collections::btree_map::Entry::Vacant(place) => drop(place.insert(peer)),
            std::collections::btree_map::Entry::Occupied(mut place) => {
                place.get_mut().settings.allowed_ips.extend(peer.settings.allowed_ips);
            }
        }
    }
}

fn read_peer(attributes: Attributes<'_>) -> Result<(PublicKey, Peer), Malformed> {
    let (mut key, mut peer) = (None, Peer::default());
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            PEER_PUBLIC_KEY => key = Some(PublicKey(attribute.array("a key")?)),
            PEER_ENDPOINT => peer.settings.endpoint = Some(read_socket_address(&attribute)?),
            PEER_KEEPALIVE => {
                peer.settings.keepalive = Some(attribute.u16()?).filter(|seconds| *seconds != 0);
            }
            PEER_LAST_HANDSHAKE => peer.last_handshake = moment(&attribute)?,
            PEER_RECEIVED => peer.received = attribute.u64()?,
            PEER_SENT => peer.sent = attribute.u64()?,
            PEER_ALLOWED_IPS => {
                for net in attribute.nested() {
                    peer.settings.allowed_ips.insert(read_network(net?.nested())?);
                }
            }
            _ => {}
        }
    }
    Ok((key.ok_or(Malformed::Missing { what: "a peer's key" })?, peer))
}

fn read_network(attributes: Attributes<'_>) -> Result<IpNet, Malformed> {
    let (mut address, mut prefix): (Option<IpAddr>, _) = (None, 0);
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            ALLOWED_ADDRESS => address = Some(attribute.ip()?),
            ALLOWED_PREFIX => prefix = attribute.u8()?,
            _ => {}
        }
    }
    let net = address.and_then(|address| IpNet::new(address, prefix).ok());
    net.ok_or(Malformed::Missing { what: "a peer's network" })
}

/// `struct __kernel_timespec`; zero means never.
fn moment(attribute: &Attribute<'_>) -> Result<Option<Duration>, Malformed> {
    let bytes = attribute.array::<16>("a moment")?;
    let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, n4, n5, n6, n7] = bytes;
    let seconds = u64::try_from(i64::from_ne_bytes([s0, s1, s2, s3, s4, s5, s6, s7])).unwrap_or(0);
    let nanoseconds = u32::try_from(i64::from_ne_bytes([n0, n1, n2, n3, n4, n5, n6, n7])).unwrap_or(0);
    Ok(Some(Duration::new(seconds, nanoseconds)).filter(|moment| !moment.is_zero()))
}
