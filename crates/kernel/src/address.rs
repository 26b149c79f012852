//! Addresses of links.
//!
//! Read [`NewAddress`] (what to add) and [`Address`] (what is there). IPv4 addresses get the broadcast address of
//! their network, as every other tool gives them.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::netlink::{Attribute, Malformed, Message, Purpose, Reply, Request, Socket};
use crate::{Error, Family, abi};

/// An address to be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewAddress {
    /// The link, by index.
    pub link: u32,
    /// The address and its prefix length.
    pub net: IpNet,
    /// IPv6: usable at once, without asking the neighbours whether somebody has it.
    pub skip_duplicate_detection: bool,
    /// Make no route to the prefix.
    pub skip_prefix_route: bool,
    /// Seconds for which it is preferred, and valid; without them, for ever. The kernel counts them down.
    pub lifetimes: Option<(u32, u32)>,
}

impl NewAddress {
    /// An address with the kernel's usual treatment.
    pub fn new(link: u32, net: IpNet) -> Self {
        Self { link, net, skip_duplicate_detection: false, skip_prefix_route: false, lifetimes: None }
    }
}

/// An address as the kernel describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The link, by index.
    pub link: u32,
    /// The address and its prefix length.
    pub net: IpNet,
    /// `IFA_F_*` flags; the common ones have methods.
    pub flags: u32,
    /// `RT_SCOPE_*`: 0 everywhere, 253 this link, 254 this host.
    pub scope: u8,
}

impl Address {
    /// IPv6: still asking whether somebody else has it; cannot be used yet.
    pub fn is_tentative(&self) -> bool {
        self.flags & abi::IFA_F_TENTATIVE != 0
    }

    /// IPv6: somebody else has it.
    pub fn is_duplicate(&self) -> bool {
        self.flags & abi::IFA_F_DADFAILED != 0
    }

    /// Not learned from a router, does not expire.
    pub fn is_permanent(&self) -> bool {
        self.flags & abi::IFA_F_PERMANENT != 0
    }

    /// What would add it again as it is, but for its lifetimes.
    pub fn as_new(&self) -> NewAddress {
        NewAddress {
            skip_duplicate_detection: self.flags & abi::IFA_F_NODAD != 0,
            skip_prefix_route: self.flags & abi::IFA_F_NOPREFIXROUTE != 0,
            ..NewAddress::new(self.link, self.net)
        }
    }

    /// Was added without a route to its prefix.
    pub fn has_no_prefix_route(&self) -> bool {
        self.flags & abi::IFA_F_NOPREFIXROUTE != 0
    }

    /// Decodes a message about one address.
    ///
    /// # Errors
    /// When it is not one of IPv4 or IPv6.
    pub fn from_reply(reply: Reply<'_>) -> Result<Self, Malformed> {
        let (header, attributes) = reply.split::<{ Header::SIZE }>()?;
        let [_, prefix, flags, scope, i0, i1, i2, i3] = *header;
        let (mut local, mut address, mut flags) = (None, None, u32::from(flags));
        for attribute in attributes {
            let attribute: Attribute<'_> = attribute?;
            match attribute.kind {
                abi::IFA_LOCAL => local = Some(attribute.ip()?),
                abi::IFA_ADDRESS => address = Some(attribute.ip()?),
                abi::IFA_FLAGS => flags = attribute.u32()?,
                _ => {}
            }
        }
        // On a point-to-point link IFA_ADDRESS is the far end and IFA_LOCAL ours.
        let net = local.or(address).and_then(|own| IpNet::new(own, prefix).ok());
        let net = net.ok_or(Malformed::Missing { what: "address" })?;
        Ok(Self { link: u32::from_ne_bytes([i0, i1, i2, i3]), net, flags, scope })
    }
}

/// Adds an address; one that is there already is an error ([`Error::exists`]).
pub fn add(address: &NewAddress) -> Request {
    encode("add address", address, abi::NLM_F_CREATE | abi::NLM_F_EXCL)
}

/// Adds an address or takes over its flags if it is there.
pub fn replace(address: &NewAddress) -> Request {
    encode("set address", address, abi::NLM_F_CREATE | abi::NLM_F_REPLACE)
}

/// Deletes an address from a link.
pub fn delete(link: u32, net: IpNet) -> Request {
    let mut message = Message::new(abi::RTM_DELADDR, 0, &Header::of(link, net).bytes());
    message.ip(abi::IFA_LOCAL, net.addr()).ip(abi::IFA_ADDRESS, net.addr());
    Request::new(message, purpose("delete address", link, net))
}

/// The addresses of one link, or of all; of one family, or of both.
///
/// # Errors
/// When the kernel refuses.
pub fn list(socket: &mut Socket, link: Option<u32>, family: Option<Family>) -> Result<Vec<Address>, Error> {
    let header = Header { family: family.map_or(0, Family::number), prefix: 0, link: link.unwrap_or(0) };
    let message = Message::new(abi::RTM_GETADDR, 0, &header.bytes());
    let request = Request::new(message, Purpose::new("list", "addresses"));
    let found = socket.dump(&request, |reply| {
        // Kernels without IPv6 answer a question about it with all families.
        let own = reply.payload.first().and_then(|number| Family::from_number(*number));
        if own.is_none() || family.is_some_and(|family| own != Some(family)) {
            return Ok(None);
        }
        Address::from_reply(reply)
            .map(|address| Some(address).filter(|address| link.is_none_or(|link| address.link == link)))
    });
    match found {
        // A strict kernel refuses to list a link that is gone: it has no addresses.
        Err(error) if link.is_some() && error.is_missing() => Ok(Vec::new()),
        other => other,
    }
}

fn encode(operation: &'static str, address: &NewAddress, flags: u16) -> Request {
    let NewAddress { link, net, .. } = *address;
    let mut message = Message::new(abi::RTM_NEWADDR, flags, &Header::of(link, net).bytes());
    message.ip(abi::IFA_LOCAL, net.addr()).ip(abi::IFA_ADDRESS, net.addr());
    if let Some(broadcast) = broadcast(net) {
        message.ip(abi::IFA_BROADCAST, IpAddr::V4(broadcast));
    }
    let mut bits = 0;
    if address.skip_duplicate_detection {
        bits |= abi::IFA_F_NODAD;
    }
    if address.skip_prefix_route {
        bits |= abi::IFA_F_NOPREFIXROUTE;
    }
    if bits != 0 {
        message.u32(abi::IFA_FLAGS, bits);
    }
    if let Some((preferred, valid)) = address.lifetimes {
        // struct ifa_cacheinfo: preferred, valid, and two time stamps that the kernel keeps.
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&preferred.to_ne_bytes());
        bytes[4..8].copy_from_slice(&valid.to_ne_bytes());
        message.put(abi::IFA_CACHEINFO, &bytes);
    }
    Request::new(message, purpose(operation, link, net))
}

fn broadcast(net: IpNet) -> Option<Ipv4Addr> {
    match net {
        IpNet::V4(net) if net.prefix_len() < 31 && !net.addr().is_loopback() => Some(net.broadcast()),
        _ => None,
    }
}

fn purpose(operation: &'static str, link: u32, net: IpNet) -> Purpose {
    Purpose::new(operation, format!("{net} on link number {link}"))
}

/// `struct ifaddrmsg`: family, prefix length, flags, scope (u8 each), link (u32).
struct Header {
    family: u8,
    prefix: u8,
    link: u32,
}

impl Header {
    const SIZE: usize = 8;

    fn of(link: u32, net: IpNet) -> Self {
        Self { family: Family::of(net.addr()).number(), prefix: net.prefix_len(), link }
    }

    fn bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[0] = self.family;
        bytes[1] = self.prefix;
        bytes[4..8].copy_from_slice(&self.link.to_ne_bytes());
        bytes
    }
}
