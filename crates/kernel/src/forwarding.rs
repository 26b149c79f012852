//! Whether a namespace forwards packets, asked over a netlink socket (`RTM_GETNETCONF`), and what the kernel tells by itself of
//! the settings that decide about it ([`Setting`]).
//!
//! The same as reading `net/ipv4/ip_forward`, without finding a way through `/proc/sys`, which is slow where
//! many namespaces live: all of them share its names. Switching it on is a [`sysctl`](crate::sysctl).

use crate::netlink::{Malformed, Message, Purpose, Reply, Request, Socket};
use crate::{Error, Family, abi};

/// `NETCONFA_IFINDEX`, and two values that are no link's: `NETCONFA_IFINDEX_ALL` and `NETCONFA_IFINDEX_DEFAULT`.
const LINK: u16 = 1;
const ALL_LINKS: i32 = -1;
const NEW_LINKS: i32 = -2;
/// `NETCONFA_FORWARDING`.
const FORWARDING: u16 = 2;
/// `NETCONFA_RP_FILTER`.
const REVERSE_PATH: u16 = 3;
/// `rp_filter`: an answer must leave by the link that the packet came by (RFC 3704).
const STRICT: i32 = 1;

/// What a setting is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The namespace as a whole.
    All,
    /// Links that do not exist yet.
    New,
    /// One link, by its index.
    Link(u32),
}

/// A setting that the kernel told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// The whole namespace forwards packets of a family, or not.
    Forwarding(bool),
    /// Whether the filter of reverse paths is strict (`rp_filter` is 1). It is told of each link that is made, too.
    StrictReversePath(Scope, bool),
}

/// Whether the socket's namespace forwards packets of the family.
///
/// # Errors
/// When the kernel cannot tell; for IPv6 also when it has none.
pub fn is_on(socket: &mut Socket, family: Family) -> Result<bool, Error> {
    let mut message = Message::new(abi::RTM_GETNETCONF, 0, &[family.number(), 0, 0, 0]);
    message.put(LINK, &ALL_LINKS.to_ne_bytes());
    let request = Request::new(message, Purpose::new("read forwarding of", "the namespace"));
    socket.ask(&request, |reply| match setting(reply)? {
        Some(Setting::Forwarding(on)) => Ok(on),
        _ => Err(Malformed::Missing { what: "forwarding" }),
    })
}

/// What a message says, as far as it is of use here. One about the whole namespace is about one setting, but for the answer to a
/// question, which has all: then it is forwarding.
pub(crate) fn setting(reply: Reply<'_>) -> Result<Option<Setting>, Malformed> {
    let (_, attributes) = reply.split::<4>()?;
    let number = |kind| attributes.find(kind)?.map(|value| value.i32()).transpose();
    let scope = match number(LINK)? {
        Some(ALL_LINKS) => Scope::All,
        Some(NEW_LINKS) => Scope::New,
        Some(link) => Scope::Link(u32::try_from(link).map_err(|_| Malformed::Missing { what: "link" })?),
        None => return Ok(None),
    };
    if let Some(forwarding) = number(FORWARDING)?.filter(|_| scope == Scope::All) {
        return Ok(Some(Setting::Forwarding(forwarding != 0)));
    }
    Ok(number(REVERSE_PATH)?.map(|mode| Setting::StrictReversePath(scope, mode == STRICT)))
}
