//! DHCPv4: the messages, what their options mean to CNI, and the client.
//!
//! Read [`Client`] first. [`Message`] is the codec, [`datagram`] the IPv4 and UDP headers around it, [`terms`]
//! what a server's answer comes to: addresses, routes, name service and times.
//!
//! Sources: RFC 2131 (protocol), 2132 (options), 3396 (long options), 3397 (search list), 3442 (classless
//! routes), 6842 (client identifier in answers). Not here: address conflict detection (RFC 5227): servers
//! probe before they offer, and an ADD would take seconds longer; leases of BOOTP; authentication (RFC 3118).

mod client;
pub(crate) mod datagram;
mod message;
mod terms;

pub(crate) use client::Client;
pub(crate) use message::Message;
pub(crate) use terms::Terms;

/// Reads foreign bytes in every way that a client reads them: as a packet, as its payload, and for what the
/// answer in it comes to. `None` when they are no message; otherwise whether the message, written out and read
/// again, is the same. For the fuzz target.
#[must_use]
pub fn examine(bytes: &[u8]) -> Option<bool> {
    let payload = datagram::decode(bytes).map_or(bytes, |(_, payload)| payload);
    let message = Message::decode(payload)?;
    let _ = Terms::of(message.your_address, &message.options, 1500, 0);
    Some(Message::decode(&message.encode()).as_ref() == Some(&message))
}
