//! Whether a namespace forwards packets, asked over a netlink socket (`RTM_GETNETCONF`).
//!
//! The same as reading `net/ipv4/ip_forward`, without finding a way through `/proc/sys`, which is slow where
//! many namespaces live: all of them share its names. Switching it on is a [`sysctl`](crate::sysctl).

use crate::netlink::{Malformed, Message, Purpose, Reply, Request, Socket};
use crate::{Error, Family, abi};

/// `NETCONFA_IFINDEX` and `NETCONFA_IFINDEX_ALL`: the namespace as a whole.
const LINK: u16 = 1;
const ALL_LINKS: i32 = -1;
/// `NETCONFA_FORWARDING`.
const FORWARDING: u16 = 2;

/// Whether the socket's namespace forwards packets of the family.
///
/// # Errors
/// When the kernel cannot tell; for IPv6 also when it has none.
pub fn is_on(socket: &mut Socket, family: Family) -> Result<bool, Error> {
    let mut message = Message::new(abi::RTM_GETNETCONF, 0, &[family.number(), 0, 0, 0]);
    message.put(LINK, &ALL_LINKS.to_ne_bytes());
    let request = Request::new(message, Purpose::new("read forwarding of", "the namespace"));
    socket.ask(&request, |reply| of_namespace(reply)?.ok_or(Malformed::Missing { what: "forwarding" }))
}

/// What a message says about the namespace as a whole; `None` when it is about one link, or another setting.
pub(crate) fn of_namespace(reply: Reply<'_>) -> Result<Option<bool>, Malformed> {
    let (_, attributes) = reply.split::<4>()?;
    let link = attributes.find(LINK)?.map(|link| link.i32()).transpose()?;
    let forwarding = attributes.find(FORWARDING)?.map(|value| value.i32()).transpose()?;
    Ok(forwarding.filter(|_| link == Some(ALL_LINKS)).map(|value| value != 0))
}
