//! Routes of both families, in any table.
//!
//! Read [`Route`] first: the same value is written and read. Its constructors choose the scope that the kernel
//! wants for the case; set the other fields as needed. [`get`] asks the kernel which way a packet would take.
//!
//! An onlink route needs the namespace's local table to exist: `lo` up, or any address, first.

mod wire;

use std::net::IpAddr;

use ipnet::IpNet;
use rustix::io::Errno;

use crate::netlink::{Message, Purpose, Request, Socket};
use crate::{Error, Family, abi};

use wire::Header;

/// The main routing table.
pub const MAIN_TABLE: u32 = 254;

/// The table for what is delivered to this host, and for multicast of IPv6.
pub const LOCAL_TABLE: u32 = 255;
/// Protocol number of routes that administrators add by hand.
pub const PROTOCOL_STATIC: u8 = abi::RTPROT_STATIC;
/// Protocol number of routes that `ip route add` and the reference plugins leave.
pub const PROTOCOL_BOOT: u8 = abi::RTPROT_BOOT;
/// Protocol number of routes that the kernel makes itself.
pub const PROTOCOL_KERNEL: u8 = abi::RTPROT_KERNEL;

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where to; a prefix of length 0 is the default route.
    pub destination: IpNet,
    /// Routing table.
    pub table: u32,
    /// What is done with a packet.
    pub kind: Kind,
    /// Who made it (`RTPROT_*`, or a number of our own).
    pub protocol: u8,
    /// How far away the destination is: 0 beyond a gateway, 253 on the link, 254 in this host. IPv6 ignores it.
    pub scope: u8,
    /// Preference among routes to the same destination, lower first. 0 lets the kernel choose: IPv6 makes it 1024.
    pub metric: u32,
    /// Source address that local sockets get.
    pub source: Option<IpAddr>,
    /// Ways to take; several share the traffic, none fits the kinds that drop.
    pub hops: Vec<Hop>,
    /// The path's MTU in bytes.
    pub mtu: Option<u32>,
    /// TCP segment size to announce, in bytes.
    pub advertised_mss: Option<u32>,
}

/// One way to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// The gateway; none when the destination is on the link itself.
    pub gateway: Option<IpAddr>,
    /// The link, by index; none lets the kernel find it from the gateway.
    pub link: Option<u32>,
    /// Take the gateway to be on the link whatever the addresses say.
    pub onlink: bool,
    /// Share of the traffic, 1 to 256.
    pub weight: u16,
}

/// What is done with a packet (`RTN_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Forward it.
    Unicast,
    /// Deliver it here.
    Local,
    /// Drop it silently.
    Blackhole,
    /// Drop it, telling the sender that the host cannot be reached.
    Unreachable,
    /// Drop it, telling the sender that it is not allowed.
    Prohibit,
    /// Go on with the next policy rule.
    Throw,
    /// Another kind, by number (broadcast, multicast, anycast).
    Other(u8),
}

impl Route {
    /// To `destination` by a gateway on `link`.
    pub fn via(destination: IpNet, gateway: IpAddr, link: u32) -> Self {
        Self::towards(destination, Hop { gateway: Some(gateway), ..Hop::on(link) }, abi::RT_SCOPE_UNIVERSE)
    }

    /// To `destination`, which is on `link` itself.
    pub fn on_link(destination: IpNet, link: u32) -> Self {
        Self::towards(destination, Hop::on(link), abi::RT_SCOPE_LINK)
    }

    /// To nowhere: `kind` says how packets are dropped.
    pub fn dropping(destination: IpNet, kind: Kind) -> Self {
        Self { kind, hops: Vec::new(), ..Self::towards(destination, Hop::on(0), abi::RT_SCOPE_UNIVERSE) }
    }

    fn towards(destination: IpNet, hop: Hop, scope: u8) -> Self {
        Self {
            destination,
            table: MAIN_TABLE,
            kind: Kind::Unicast,
            protocol: PROTOCOL_STATIC,
            scope,
            metric: 0,
            source: None,
            hops: vec![hop],
            mtu: None,
            advertised_mss: None,
        }
    }

    fn family(&self) -> Family {
        Family::of(self.destination.addr())
    }
}

impl Hop {
    /// On this link, without a gateway.
    pub fn on(link: u32) -> Self {
        Self { gateway: None, link: Some(link), onlink: false, weight: 1 }
    }
}

/// Adds a route; one to the same destination with the same metric is an error ([`Error::exists`]).
pub fn add(route: &Route) -> Request {
    encode("add route", route, abi::RTM_NEWROUTE, abi::NLM_F_CREATE | abi::NLM_F_EXCL)
}

/// Adds a route in place of one to the same destination with the same metric.
pub fn replace(route: &Route) -> Request {
    encode("set route", route, abi::RTM_NEWROUTE, abi::NLM_F_CREATE | abi::NLM_F_REPLACE)
}

/// Adds a route beside those to the same destination; in IPv6 they then share the traffic.
pub fn append(route: &Route) -> Request {
    encode("append route", route, abi::RTM_NEWROUTE, abi::NLM_F_CREATE | abi::NLM_F_APPEND)
}

/// Deletes a route. What the value says must match: destination, table, kind, protocol, hop, and the metric if
/// not 0.
pub fn delete(route: &Route) -> Request {
    encode("delete route", route, abi::RTM_DELROUTE, 0)
}

/// Which routes a listing is about; the kernel does the choosing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only this family.
    pub family: Option<Family>,
    /// Only this table.
    pub table: Option<u32>,
    /// Only routes of this maker.
    pub protocol: Option<u8>,
    /// Only routes over this link, by index.
    pub link: Option<u32>,
}

impl Filter {
    fn passes(&self, route: &Route) -> bool {
        self.table.is_none_or(|table| route.table == table)
            && self.protocol.is_none_or(|protocol| route.protocol == protocol)
            && self.link.is_none_or(|link| route.hops.iter().any(|hop| hop.link == Some(link)))
    }
}

/// The routes that pass the filter; a table that does not exist has none. Cached exceptions are left out.
///
/// # Errors
/// When the kernel refuses.
pub fn list(socket: &mut Socket, filter: Filter) -> Result<Vec<Route>, Error> {
    let mut routes = Vec::new();
    for family in Family::BOTH {
        if filter.family.is_some_and(|wanted| wanted != family) {
            continue;
        }
        match list_family(socket, family, filter) {
            Ok(found) => routes.extend(found),
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(routes)
}

fn list_family(socket: &mut Socket, family: Family, filter: Filter) -> Result<Vec<Route>, Error> {
    let header =
        Header { family: family.number(), protocol: filter.protocol.unwrap_or(0), ..Header::default() };
    let mut message = Message::new(abi::RTM_GETROUTE, 0, &header.bytes());
    if let Some(table) = filter.table {
        message.u32(abi::RTA_TABLE, table);
    }
    if let Some(link) = filter.link {
        message.u32(abi::RTA_OIF, link);
    }
    socket.dump(&Request::new(message, Purpose::new("list", "routes")), |reply| {
        // Kernels without IPv6 answer a question about it with all families.
        if reply.payload.first() != Some(&family.number()) {
            return Ok(None);
        }
        Ok(Route::from_reply(reply)?.filter(|route| filter.passes(route)))
    })
}

/// The route that a packet to `destination` would take, or `None` when there is none (or one that drops it). The
/// answer names the chosen link, gateway and source; its destination is the single address.
///
/// # Errors
/// When the kernel refuses for another reason.
pub fn get(socket: &mut Socket, destination: IpAddr) -> Result<Option<Route>, Error> {
    let length = IpNet::from(destination).prefix_len();
    let header =
        Header { family: Family::of(destination).number(), destination: length, ..Header::default() };
    let mut message = Message::new(abi::RTM_GETROUTE, 0, &header.bytes());
    message.ip(abi::RTA_DST, destination);
    let request = Request::new(message, Purpose::new("find route to", destination.to_string()));
    match socket.ask(&request, Route::decode) {
        // IPv6 answers with the dropping route where IPv4 answers with an error.
        Ok(route) if route.kind == Kind::Unicast || route.kind == Kind::Local => Ok(Some(route)),
        Ok(_) => Ok(None),
        Err(Error::Refused {
            errno: Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::ACCESS | Errno::INVAL,
            ..
        }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn encode(operation: &'static str, route: &Route, kind: u16, flags: u16) -> Request {
    let message = wire::write(route, kind, flags);
    Request::new(message, Purpose::new(operation, describe(route)))
}

/// As `ip route` would say it.
fn describe(route: &Route) -> String {
    use std::fmt::Write;
    let mut text = route.destination.to_string();
    for hop in &route.hops {
        // Writing to a String cannot fail.
        if let Some(gateway) = hop.gateway {
            let _ = write!(text, " via {gateway}");
        }
        if let Some(link) = hop.link {
            let _ = write!(text, " on link number {link}");
        }
    }
    if route.table != MAIN_TABLE {
        let _ = write!(text, " in table {}", route.table);
    }
    text
}
