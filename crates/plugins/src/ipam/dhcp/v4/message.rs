//! The message of DHCPv4 and its options, read and written.
//!
//! Read [`Message`]. Reading takes what servers send: options in any order, in parts, and in the two fields
//! that may be lent to them. Nothing in it is trusted beyond its lengths; what an option means is for
//! [`super::terms`] to say.
//!
//! Layout (RFC 2131 section 2): op, htype, hlen, hops (u8 each), xid (u32), secs, flags (u16 each), ciaddr,
//! yiaddr, siaddr, giaddr (4 each), chaddr (16), sname (64), file (128), magic cookie (4), options.

use std::net::Ipv4Addr;

use netstate::Mac;

/// Codes of the options that this client knows (RFC 2132 and later).
pub(crate) mod option {
    pub(crate) const PAD: u8 = 0;
    pub(crate) const SUBNET_MASK: u8 = 1;
    pub(crate) const ROUTERS: u8 = 3;
    pub(crate) const NAME_SERVERS: u8 = 6;
    pub(crate) const DOMAIN: u8 = 15;
    pub(crate) const MTU: u8 = 26;
    pub(crate) const STATIC_ROUTES: u8 = 33;
    pub(crate) const REQUESTED_ADDRESS: u8 = 50;
    pub(crate) const LEASE_TIME: u8 = 51;
    pub(crate) const OVERLOAD: u8 = 52;
    pub(crate) const MESSAGE_KIND: u8 = 53;
    pub(crate) const SERVER: u8 = 54;
    pub(crate) const REQUEST_LIST: u8 = 55;
    pub(crate) const TEXT: u8 = 56;
    pub(crate) const LARGEST_MESSAGE: u8 = 57;
    pub(crate) const RENEWAL_TIME: u8 = 58;
    pub(crate) const REBINDING_TIME: u8 = 59;
    pub(crate) const CLIENT: u8 = 61;
    pub(crate) const SEARCH: u8 = 119;
    pub(crate) const CLASSLESS_ROUTES: u8 = 121;
    pub(crate) const END: u8 = 255;
}

const FIXED: usize = 236;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// BOOTP relays drop what is shorter.
const SHORTEST: usize = 300;
const BROADCAST: u16 = 0x8000;

/// What a message says (option 53).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Discover = 1,
    Offer = 2,
    Request = 3,
    Decline = 4,
    Ack = 5,
    Nak = 6,
    Release = 7,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// From a server (BOOTREPLY) instead of a client.
    pub(crate) reply: bool,
    /// The transaction.
    pub(crate) transaction: u32,
    /// Since when the client has been trying, in seconds.
    pub(crate) seconds: u16,
    /// Answers shall be broadcast.
    pub(crate) broadcast: bool,
    /// The address that the client has and answers to.
    pub(crate) client_address: Ipv4Addr,
    /// The address that is given.
    pub(crate) your_address: Ipv4Addr,
    /// The client's hardware address.
    pub(crate) hardware: Mac,
    /// Options by code, each whole. Without padding, end and overload.
    pub(crate) options: Vec<(u8, Vec<u8>)>,
}

impl Message {
    /// A client's message.
    pub(crate) fn new(kind: Kind, transaction: u32, hardware: Mac) -> Self {
        Self {
            reply: false,
            transaction,
            seconds: 0,
            broadcast: false,
            client_address: Ipv4Addr::UNSPECIFIED,
            your_address: Ipv4Addr::UNSPECIFIED,
            hardware,
            options: vec![(option::MESSAGE_KIND, vec![kind as u8])],
        }
    }

    /// The value of an option.
    pub(crate) fn option(&self, code: u8) -> Option<&[u8]> {
        find(&self.options, code)
    }

    /// What it says, if it is DHCP at all.
    pub(crate) fn kind(&self) -> Option<Kind> {
        match self.option(option::MESSAGE_KIND)? {
            [1] => Some(Kind::Discover),
            [2] => Some(Kind::Offer),
            [3] => Some(Kind::Request),
            [4] => Some(Kind::Decline),
            [5] => Some(Kind::Ack),
            [6] => Some(Kind::Nak),
            [7] => Some(Kind::Release),
            _ => None,
        }
    }

    /// Gives an option this value.
    pub(crate) fn set(&mut self, code: u8, value: &[u8]) {
        self.options.retain(|(known, _)| *known != code);
        self.options.push((code, value.to_vec()));
    }

    /// The message in a UDP payload; `None` when it is none, or not for Ethernet.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (fixed, rest) = bytes.split_at_checked(FIXED)?;
        let options = rest.strip_prefix(&COOKIE)?;
        let [op @ (1 | 2), 1, 6, ..] = *fixed else { return None };
        let address = |at: usize| Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]);
        let number = |at: usize| u16::from_be_bytes([fixed[at], fixed[at + 1]]);
        let mut message = Self {
            reply: op == 2,
            transaction: address(4).into(),
            seconds: number(8),
            broadcast: number(10) & BROADCAST != 0,
            client_address: address(12),
            your_address: address(16),
            hardware: Mac([fixed[28], fixed[29], fixed[30], fixed[31], fixed[32], fixed[33]]),
            options: Vec::new(),
        };
        read_options(options, &mut message.options)?;
        let (sname, file) = (&fixed[44..108], &fixed[108..236]);
        let lent = message.option(option::OVERLOAD).and_then(|value| value.first().copied());
        if lent.is_some_and(|lent| lent & 1 != 0) {
            read_options(file, &mut message.options)?;
        }
        if lent.is_some_and(|lent| lent & 2 != 0) {
            read_options(sname, &mut message.options)?;
        }
        message.options.retain(|(code, _)| *code != option::OVERLOAD);
        Some(message)
    }

    /// The message as a UDP payload.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; FIXED];
        bytes[0] = if self.reply { 2 } else { 1 };
        bytes[1..3].copy_from_slice(&[1, 6]);
        bytes[4..8].copy_from_slice(&self.transaction.to_be_bytes());
        bytes[8..10].copy_from_slice(&self.seconds.to_be_bytes());
        let flags = if self.broadcast { BROADCAST } else { 0 };
        bytes[10..12].copy_from_slice(&flags.to_be_bytes());
        bytes[12..16].copy_from_slice(&self.client_address.octets());
        bytes[16..20].copy_from_slice(&self.your_address.octets());
        bytes[28..34].copy_from_slice(&self.hardware.0);
        bytes.extend(COOKIE);
        for (code, value) in &self.options {
            // An option without a value is one part without bytes; a long one is several (RFC 3396).
            let parts = value.chunks(255).chain(value.is_empty().then_some(&[][..]));
            for part in parts {
                bytes.extend([*code, part.len() as u8]);
                bytes.extend(part);
            }
        }
        bytes.push(option::END);
        bytes.resize(bytes.len().max(SHORTEST), option::PAD);
        bytes
    }
}

/// The value of an option in a list.
pub(crate) fn find(options: &[(u8, Vec<u8>)], code: u8) -> Option<&[u8]> {
    options.iter().find(|(known, _)| *known == code).map(|(_, value)| value.as_slice())
}

/// Reads options up to the end mark; parts of one option are joined.
fn read_options(mut bytes: &[u8], options: &mut Vec<(u8, Vec<u8>)>) -> Option<()> {
    while let Some((&code, rest)) = bytes.split_first() {
        match code {
            option::PAD => bytes = rest,
            option::END => break,
            _ => {
                let (&length, rest) = rest.split_first()?;
                let (value, rest) = rest.split_at_checked(length.into())?;
                match options.iter_mut().find(|(known, _)| *known == code) {
                    Some((_, whole)) => whole.extend(value),
                    None => options.push((code, value.to_vec())),
                }
                bytes = rest;
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Strategy, any, prop};
    use proptest::{prop_assert_eq, proptest};

    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 7]);

    #[test]
    fn a_discover_has_the_layout_of_the_specification() {
        let mut message = Message::new(Kind::Discover, 0x0102_0304, MAC);
        message.seconds = 5;
        message.broadcast = true;
        let bytes = message.encode();
        assert_eq!(bytes.len(), SHORTEST);
        assert_eq!(bytes[..12], [1, 1, 6, 0, 1, 2, 3, 4, 0, 5, 0x80, 0]);
        assert_eq!(bytes[28..36], [2, 0, 0, 0, 0, 7, 0, 0]);
        assert_eq!(bytes[236..244], [99, 130, 83, 99, 53, 1, 1, 255]);
        assert_eq!(Message::decode(&bytes), Some(message));
    }

    #[test]
    fn options_lent_to_file_and_sname_are_read_and_parts_are_joined() {
        let mut bytes = Message::new(Kind::Offer, 1, MAC).encode();
        bytes.truncate(FIXED + 4);
        bytes.extend([52, 1, 3, 119, 2, 1, b'a', 0, 255]);
        bytes[108..113].copy_from_slice(&[119, 1, 0, 53, 1]);
        bytes[113..115].copy_from_slice(&[2, 255]);
        bytes[44..51].copy_from_slice(&[1, 4, 255, 255, 0, 0, 255]);
        let message = Message::decode(&bytes).unwrap();
        assert_eq!(message.kind(), Some(Kind::Offer));
        assert_eq!(message.option(119), Some(&[1, b'a', 0][..]));
        assert_eq!(message.option(1), Some(&[255, 255, 0, 0][..]));
        assert_eq!(message.option(option::OVERLOAD), None);
    }

    #[test]
    fn what_is_cut_off_or_no_dhcp_is_nothing() {
        let whole = Message::new(Kind::Ack, 1, MAC).encode();
        assert_eq!(Message::decode(&whole[..239]), None);
        assert_eq!(Message::decode(&[]), None);
        let mut no_cookie = whole.clone();
        no_cookie[236] = 0;
        assert_eq!(Message::decode(&no_cookie), None);
        let mut infiniband = whole.clone();
        infiniband[1] = 32;
        assert_eq!(Message::decode(&infiniband), None);
        let mut cut = whole;
        cut.truncate(FIXED + 4);
        cut.extend([1, 4, 255]);
        assert_eq!(Message::decode(&cut), None, "an option that is longer than the message");
    }

    fn messages() -> impl Strategy<Value = Message> {
        let option = (1_u8..255, prop::collection::vec(any::<u8>(), 0..600));
        (any::<(bool, u32, u16, bool, [u8; 6], u32)>(), prop::collection::vec(option, 0..8)).prop_map(
            |((reply, transaction, seconds, broadcast, mac, address), options)| {
                let mut message = Message::new(Kind::Offer, transaction, Mac(mac));
                (message.reply, message.seconds, message.broadcast) = (reply, seconds, broadcast);
                message.your_address = address.into();
                for (code, value) in options.iter().filter(|(code, _)| *code != option::OVERLOAD) {
                    message.set(*code, value);
                }
                message
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(message in messages()) {
            prop_assert_eq!(Message::decode(&message.encode()), Some(message));
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let mut message = Message::new(Kind::Offer, 1, MAC).encode();
            message.truncate(FIXED + 4);
            message.extend(&bytes);
            let _ = Message::decode(&message);
            let _ = Message::decode(&bytes);
        }
    }
}
