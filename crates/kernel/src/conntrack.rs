//! Connections that the kernel tracks: listing them, and making it forget some.
//!
//! Read [`Filter`], which is what to ask for, and [`Flow`], what comes back. A flow keeps the translation that
//! its first packet got for as long as it lives, and one without an end of its own (UDP) lives as long as its
//! sender goes on: whoever changes where a port leads has to have the old flows forgotten ([`forget`]).
//!
//! The kernel looks for protocol and port itself (since 5.8); older ones hand over everything, and what was not
//! asked for is left out here. Layouts: `include/uapi/linux/netfilter/nfnetlink_conntrack.h`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use rustix::io::Errno;

use crate::netlink::{Attribute, Attributes, Batch, Malformed, Message, Purpose, Reply, Request, Socket};
use crate::{Error, Family, sysctl};

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;

// enum ctattr_type
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;

// enum ctattr_tuple, ctattr_ip, ctattr_l4proto, ctattr_filter
const TUPLE_ADDRESSES: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const SOURCE_V4: u16 = 1;
const DESTINATION_V4: u16 = 2;
const SOURCE_V6: u16 = 3;
const DESTINATION_V6: u16 = 4;
const PROTOCOL_NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
const FILTER_ORIGINAL: u16 = 1;
const FILTER_REPLY: u16 = 2;

/// Bits of the kernel's filter: what of the given tuple counts.
const BY_SOURCE: u32 = 1;
const BY_PROTOCOL: u32 = 1 << 3;
const BY_DESTINATION_PORT: u32 = 1 << 5;

/// What both need from the kernel.
const OPTION: &str = "tracked connections can only be listed with CONFIG_NF_CT_NETLINK in the kernel";

/// Which flows to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filter {
    /// Their family.
    pub family: Family,
    /// Their transport protocol's number.
    pub protocol: u8,
    /// The port that the first packet was sent to; `None` for any.
    pub destination_port: Option<u16>,
}

/// A tracked connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    /// As the first packet was sent.
    pub original: Tuple,
    /// As an answer is expected: its source is where the connection really leads.
    pub reply: Tuple,
    family: Family,
    /// What the kernel knows it by: the original tuple as it came, and what tells it from a later one like it.
    bytes: Vec<u8>,
    id: Option<u32>,
    zone: Option<u16>,
}

/// One direction of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple {
    /// Transport protocol number.
    pub protocol: u8,
    /// Sender.
    pub source: IpAddr,
    /// Its port; 0 for protocols without.
    pub source_port: u16,
    /// Receiver.
    pub destination: IpAddr,
    /// Its port; 0 for protocols without.
    pub destination_port: u16,
}

/// Whether the calling thread's network namespace tracks nothing at all: asking costs next to nothing, while a
/// listing goes through the whole table of the host, empty places and other namespaces' flows included. False when
/// the kernel does not say.
#[must_use]
pub fn is_empty() -> bool {
    sysctl::read("net/netfilter/nf_conntrack_count").is_ok_and(|count| count == "0")
}

/// The flows that the filter fits. `socket` is one of [`Protocol::Netfilter`](crate::netlink::Protocol).
///
/// # Errors
/// When the kernel refuses to list; [`Error::is_unsupported`] when it was built without the option for this.
pub fn list(socket: &mut Socket, filter: &Filter) -> Result<Vec<Flow>, Error> {
    let listed = socket.dump(&request(filter), |reply| Ok(Some(Flow::from_reply(&reply)?)));
    let flows = listed.map_err(without_the_option)?;
    Ok(flows.into_iter().flatten().filter(|flow| filter.fits(flow)).collect())
}

/// The flows that these addresses began, and those that really lead to them, asked for once in a family however many there are.
/// `socket` is one of [`Protocol::Netfilter`](crate::netlink::Protocol).
///
/// # Errors
/// As [`list`].
pub fn list_of(socket: &mut Socket, addresses: &BTreeSet<IpAddr>) -> Result<Vec<Flow>, Error> {
    let concerned =
        |flow: &Flow| addresses.contains(&flow.original.source) || addresses.contains(&flow.reply.source);
    let mut found: Vec<Flow> = Vec::new();
    for family in Family::BOTH {
        let of_family: Vec<IpAddr> =
            addresses.iter().copied().filter(|address| Family::of(*address) == family).collect();
        for (number, request) in requests_of(family, &of_family).into_iter().enumerate() {
            // One that began and ends at a single address answers both questions, and is in the first answer.
            let is_known = |flow: &Flow| number > 0 && of_family.first() == Some(&flow.original.source);
            let new = |flow: &Flow| concerned(flow) && !is_known(flow);
            let listed = socket.dump(&request, |reply| Ok(Flow::from_reply(&reply)?.filter(new)));
            found.extend(listed.map_err(without_the_option)?);
        }
    }
    Ok(found)
}

/// The flows of a family that `wanted` takes. `socket` is one of [`Protocol::Netfilter`](crate::netlink::Protocol).
///
/// # Errors
/// As [`list`].
pub fn list_where(
    socket: &mut Socket,
    family: Family,
    wanted: impl Fn(&Flow) -> bool,
) -> Result<Vec<Flow>, Error> {
    let purpose = Purpose::new("list", "tracked connections").needing(OPTION);
    let request = Request::new(message(GET, family), purpose);
    let listed = socket.dump(&request, |reply| Ok(Flow::from_reply(&reply)?.filter(&wanted)));
    listed.map_err(without_the_option)
}

/// Makes the kernel forget these flows: their next packet is looked at as a first one. One that has ended
/// meanwhile is no error.
///
/// # Errors
/// The first refusal; the others have been forgotten.
pub fn forget(socket: &mut Socket, flows: &[Flow]) -> Result<(), Error> {
    let batch: Batch = flows.iter().map(Flow::deletion).collect();
    let failures = socket.run(&batch, |_, _| Ok(()))?;
    match failures.into_iter().find(|failure| !failure.error.is_missing()) {
        Some(failure) => Err(without_the_option(failure.error)),
        None => Ok(()),
    }
}

impl Filter {
    fn fits(&self, flow: &Flow) -> bool {
        flow.family == self.family
            && flow.original.protocol == self.protocol
            && self.destination_port.is_none_or(|port| flow.original.destination_port == port)
    }
}

impl Flow {
    /// Decodes a message about one flow; `None` for what is neither IPv4 nor IPv6.
    fn from_reply(reply: &Reply<'_>) -> Result<Option<Self>, Malformed> {
        let (header, attributes) = reply.split::<4>()?;
        let Some(family) = Family::from_number(header[0]) else { return Ok(None) };
        let find = |kind, what| attributes.find(kind)?.ok_or(Malformed::Missing { what });
        let original = find(TUPLE_ORIGINAL, "original tuple of a flow")?;
        Ok(Some(Self {
            original: Tuple::read(&original)?,
            reply: Tuple::read(&find(TUPLE_REPLY, "reply tuple of a flow")?)?,
            family,
            bytes: original.value.to_vec(),
            id: attributes.find(ID)?.map(|id| id.be32()).transpose()?,
            zone: attributes.find(ZONE)?.map(|zone| zone.be16()).transpose()?,
        }))
    }

    fn deletion(&self) -> Request {
        let mut message = message(DELETE, self.family);
        message.nest(TUPLE_ORIGINAL, |tuple| {
            tuple.raw(&self.bytes);
        });
        if let Some(id) = self.id {
            message.be32(ID, id);
        }
        if let Some(zone) = self.zone {
            message.be16(ZONE, zone);
        }
        let Tuple { protocol, source, destination, destination_port, .. } = self.original;
        let object =
            format!("flow of protocol {protocol} from {source} to {destination} port {destination_port}");
        Request::new(message, Purpose::new("forget", object).needing(OPTION))
    }
}

impl Tuple {
    fn read(tuple: &Attribute<'_>) -> Result<Self, Malformed> {
        let nested = tuple.nested();
        let part = |kind, what| nested.find(kind)?.ok_or(Malformed::Missing { what });
        let addresses = part(TUPLE_ADDRESSES, "addresses of a flow")?.nested();
        let protocol = part(TUPLE_PROTOCOL, "protocol of a flow")?.nested();
        Ok(Self {
            protocol: protocol.find(PROTOCOL_NUMBER)?.map_or(Ok(0), |number| number.u8())?,
            source: address(addresses, [SOURCE_V4, SOURCE_V6])?,
            source_port: protocol.find(SOURCE_PORT)?.map_or(Ok(0), |port| port.be16())?,
            destination: address(addresses, [DESTINATION_V4, DESTINATION_V6])?,
            destination_port: protocol.find(DESTINATION_PORT)?.map_or(Ok(0), |port| port.be16())?,
        })
    }
}

fn address(attributes: Attributes<'_>, kinds: [u16; 2]) -> Result<IpAddr, Malformed> {
    for kind in kinds {
        if let Some(address) = attributes.find(kind)? {
            return address.ip();
        }
    }
    Err(Malformed::Missing { what: "address of a flow" })
}

fn request(filter: &Filter) -> Request {
    let mut message = message(GET, filter.family);
    message.nest(TUPLE_ORIGINAL, |tuple| {
        tuple.nest(TUPLE_PROTOCOL, |protocol| {
            protocol.u8(PROTOCOL_NUMBER, filter.protocol);
            if let Some(port) = filter.destination_port {
                protocol.be16(DESTINATION_PORT, port);
            }
        });
    });
    let by_port = if filter.destination_port.is_some() { BY_DESTINATION_PORT } else { 0 };
    message.nest(FILTER, |flags| {
        flags.u32(FILTER_ORIGINAL, BY_PROTOCOL | by_port);
    });
    Request::new(message, Purpose::new("list", "tracked connections").needing(OPTION))
}

/// Asks for the flows with one of these sources in either direction. Where they are several, or of IPv6, all are asked for: a
/// listing goes through the whole table anyway, and of IPv6 kernels (6.18 still does) hand over exactly those that do not fit.
fn requests_of(family: Family, addresses: &[IpAddr]) -> Vec<Request> {
    let address = match addresses {
        [] => return Vec::new(),
        [address] if family == Family::V4 => *address,
        [first, ..] => {
            let purpose = Purpose::new("list tracked connections of", first.to_string()).needing(OPTION);
            return vec![Request::new(message(GET, family), purpose)];
        }
    };
    let purpose = || Purpose::new("list tracked connections of", address.to_string()).needing(OPTION);
    let directions = [(TUPLE_ORIGINAL, FILTER_ORIGINAL), (TUPLE_REPLY, FILTER_REPLY)];
    let request = |(tuple, filter)| {
        let mut message = message(GET, family);
        message.nest(tuple, |tuple| {
            tuple.nest(TUPLE_ADDRESSES, |addresses| {
                addresses.ip(SOURCE_V4, address);
            });
        });
        message.nest(FILTER, |flags| {
            flags.u32(filter, BY_SOURCE);
        });
        Request::new(message, purpose())
    };
    directions.map(request).into()
}

fn message(kind: u16, family: Family) -> Message {
    // struct nfgenmsg: family, version, resource id.
    Message::new(SUBSYSTEM << 8 | kind, 0, &[family.number(), 0, 0, 0])
}

/// Netfilter says "invalid argument" of a whole subsystem that it lacks.
fn without_the_option(error: Error) -> Error {
    match error {
        Error::Refused { purpose, errno: Errno::INVAL, detail } => {
            Error::Refused { purpose, errno: Errno::OPNOTSUPP, detail }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_the_subsystem_is_told_what_it_lacks() {
        let purpose = Purpose::new("list", "tracked connections").needing(OPTION);
        let error = without_the_option(Error::Refused { purpose, errno: Errno::INVAL, detail: None });
        assert!(error.is_unsupported());
        assert!(error.to_string().contains("CONFIG_NF_CT_NETLINK"), "{error}");
    }
}
