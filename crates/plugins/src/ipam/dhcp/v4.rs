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
