//! Neighbours (which hardware address an IP address has on a link) and forwarding entries (where a bridge or a
//! tunnel sends frames for a hardware address).
//!
//! The kernel keeps both behind the same messages. Read [`Neighbour`] and [`FdbEntry`]; what we set is permanent,
//! so no ARP or neighbour discovery ever asks about it.

use std::net::IpAddr;

use netstate::Mac;

use crate::netlink::{Attribute, Malformed, Message, Purpose, Reply, Request, Socket};
use crate::{Error, Family, abi};

/// The hardware address behind an IP address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    /// The link, by index.
    pub link: u32,
    /// The IP address.
    pub address: IpAddr,
    /// Its hardware address; unknown while resolution is under way.
    pub mac: Option<Mac>,
    /// `NUD_*` state.
    pub state: u16,
    /// `NTF_*` flags.
    pub flags: u8,
}

impl Neighbour {
    /// Set by somebody and kept until deleted.
    pub fn is_permanent(&self) -> bool {
        self.state & abi::NUD_PERMANENT != 0
    }
}

/// Where frames for a hardware address go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdbEntry {
    /// The tunnel or bridge port, by index.
    pub link: u32,
    /// The hardware address.
    pub mac: Mac,
    /// A tunnel's far end for it.
    pub destination: Option<IpAddr>,
    /// The bridge, for an entry of a bridge port.
    pub master: Option<u32>,
    /// VLAN it holds for.
    pub vlan: Option<u16>,
    /// `NUD_*` state.
    pub state: u16,
    /// `NTF_*` flags.
    pub flags: u8,
}

impl FdbEntry {
    /// Set by somebody and kept until deleted.
    pub fn is_permanent(&self) -> bool {
        self.state & abi::NUD_PERMANENT != 0
    }

    /// Belongs to the device itself, not to the bridge above it.
    pub fn is_own(&self) -> bool {
        self.flags & abi::NTF_SELF != 0
    }
}

/// A message of the kernel about either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// An IP neighbour.
    Neighbour(Neighbour),
    /// A forwarding entry.
    Fdb(FdbEntry),
}

impl Entry {
    /// Decodes a message; `None` for families other than IPv4, IPv6 and bridge.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn from_reply(reply: Reply<'_>) -> Result<Option<Self>, Malformed> {
        let (header, attributes) = reply.split::<{ Header::SIZE }>()?;
        let [family, _, _, _, i0, i1, i2, i3, s0, s1, flags, _] = *header;
        let mut found = Found::default();
        for attribute in attributes {
            found.apply(attribute?)?;
        }
        let link = u32::from_ne_bytes([i0, i1, i2, i3]);
        let state = u16::from_ne_bytes([s0, s1]);
        if i32::from(family) == libc::AF_BRIDGE {
            let mac = found.mac.ok_or(Malformed::Missing { what: "hardware address" })?;
            let Found { destination, master, vlan, .. } = found;
            return Ok(Some(Self::Fdb(FdbEntry { link, mac, destination, master, vlan, state, flags })));
        }
        if Family::from_number(family).is_none() {
            return Ok(None);
        }
        let address = found.destination.ok_or(Malformed::Missing { what: "neighbour address" })?;
        Ok(Some(Self::Neighbour(Neighbour { link, address, mac: found.mac, state, flags })))
    }
}

#[derive(Default)]
struct Found {
    destination: Option<IpAddr>,
    mac: Option<Mac>,
    master: Option<u32>,
    vlan: Option<u16>,
}

impl Found {
    fn apply(&mut self, attribute: Attribute<'_>) -> Result<(), Malformed> {
        match attribute.kind {
            abi::NDA_DST => self.destination = attribute.ip().ok(),
            abi::NDA_LLADDR => self.mac = attribute.array("a hardware address").ok().map(Mac),
            abi::NDA_MASTER => self.master = Some(attribute.u32()?),
            abi::NDA_VLAN => self.vlan = Some(attribute.u16()?),
            _ => {}
        }
        Ok(())
    }
}

/// Makes a permanent neighbour, whatever was there before.
pub fn set(link: u32, address: IpAddr, mac: Mac) -> Request {
    let header =
        Header { family: Family::of(address).number(), link, state: abi::NUD_PERMANENT, ..Header::default() };
    let flags = abi::NLM_F_CREATE | abi::NLM_F_REPLACE;
    let mut message = Message::new(abi::RTM_NEWNEIGH, flags, &header.bytes());
    message.ip(abi::NDA_DST, address).put(abi::NDA_LLADDR, &mac.0);
    Request::new(message, Purpose::new("set neighbour", format!("{address} at {mac} on link number {link}")))
}

/// Deletes a neighbour.
pub fn delete(link: u32, address: IpAddr) -> Request {
    let header = Header { family: Family::of(address).number(), link, ..Header::default() };
    let mut message = Message::new(abi::RTM_DELNEIGH, 0, &header.bytes());
    message.ip(abi::NDA_DST, address);
    Request::new(message, Purpose::new("delete neighbour", format!("{address} on link number {link}")))
}

/// The neighbours of one link, or of all, in both families.
///
/// # Errors
/// When the kernel refuses.
pub fn list(socket: &mut Socket, link: Option<u32>) -> Result<Vec<Neighbour>, Error> {
    let mut message = Message::new(abi::RTM_GETNEIGH, 0, &Header::default().bytes());
    if let Some(link) = link {
        message.u32(abi::NDA_IFINDEX, link);
    }
    socket.dump(&Request::new(message, Purpose::new("list", "neighbours")), |reply| {
        Ok(match Entry::from_reply(reply)? {
            Some(Entry::Neighbour(found)) if link.is_none_or(|link| found.link == link) => Some(found),
            _ => None,
        })
    })
}

/// Makes a tunnel send frames for `mac` to `destination`, permanently, instead of wherever they went before.
pub fn set_fdb(link: u32, mac: Mac, destination: IpAddr) -> Request {
    let mut message = fdb(abi::RTM_NEWNEIGH, abi::NLM_F_CREATE | abi::NLM_F_REPLACE, link, mac);
    message.ip(abi::NDA_DST, destination);
    Request::new(
        message,
        Purpose::new("set forwarding entry", format!("{mac} to {destination} on link number {link}")),
    )
}

/// Deletes a tunnel's forwarding entry; with several destinations for the address, the one given.
pub fn delete_fdb(link: u32, mac: Mac, destination: Option<IpAddr>) -> Request {
    let mut message = fdb(abi::RTM_DELNEIGH, 0, link, mac);
    if let Some(destination) = destination {
        message.ip(abi::NDA_DST, destination);
    }
    Request::new(message, Purpose::new("delete forwarding entry", format!("{mac} on link number {link}")))
}

/// The forwarding entries of one device, or of all.
///
/// # Errors
/// When the kernel refuses.
pub fn list_fdb(socket: &mut Socket, link: Option<u32>) -> Result<Vec<FdbEntry>, Error> {
    let header = Header { family: libc::AF_BRIDGE as u8, link: link.unwrap_or(0), ..Header::default() };
    let message = Message::new(abi::RTM_GETNEIGH, 0, &header.bytes());
    socket.dump(&Request::new(message, Purpose::new("list", "forwarding entries")), |reply| {
        Ok(match Entry::from_reply(reply)? {
            Some(Entry::Fdb(found)) if link.is_none_or(|link| found.link == link) => Some(found),
            _ => None,
        })
    })
}

fn fdb(kind: u16, flags: u16, link: u32, mac: Mac) -> Message {
    let state = abi::NUD_PERMANENT;
    let header = Header { family: libc::AF_BRIDGE as u8, link, state, flags: abi::NTF_SELF };
    let mut message = Message::new(kind, flags, &header.bytes());
    message.put(abi::NDA_LLADDR, &mac.0);
    message
}

/// `struct ndmsg`: family (u8), padding, link (i32), state (u16), flags (u8), type (u8).
#[derive(Default)]
struct Header {
    family: u8,
    link: u32,
    state: u16,
    flags: u8,
}

impl Header {
    const SIZE: usize = 12;

    fn bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0] = self.family;
        bytes[4..8].copy_from_slice(&self.link.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.state.to_ne_bytes());
        bytes[10] = self.flags;
        bytes
    }
}
