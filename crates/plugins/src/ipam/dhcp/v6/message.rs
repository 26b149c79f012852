//! DHCPv6 messages between a client and a server, as bytes and as values.
//!
//! Read [`Message`] first. It holds what this client sends or heeds; every other option is passed over, and
//! written by nobody. [`Message::decode`] trusts no length: what is cut short is refused as a whole, for half a
//! message from a server is not worth guessing at. `decode(encode(m)) == m` for every message that fits into a
//! datagram. Relays' messages (12 and 13) never reach a client.
//! Sources: RFC 8415 sections 7.3, 8 and 21; RFC 3646 (DNS); RFC 7083 (SOL_MAX_RT); RFC 1035 section 3.1 (names).

use std::net::Ipv6Addr;

const CLIENT_ID: u16 = 1;
const SERVER_ID: u16 = 2;
const IA_NA: u16 = 3;
const IA_ADDRESS: u16 = 5;
const OPTION_REQUEST: u16 = 6;
const PREFERENCE: u16 = 7;
const ELAPSED_TIME: u16 = 8;
const STATUS_CODE: u16 = 13;
const RAPID_COMMIT: u16 = 14;
/// Addresses of name servers.
pub const DNS_SERVERS: u16 = 23;
/// Domains to search in.
pub const DOMAIN_LIST: u16 = 24;
/// The longest pause between two SOLICITs.
pub const SOL_MAX_RT: u16 = 82;

/// What a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Who can give me an address?
    Solicit = 1,
    /// I can.
    Advertise = 2,
    /// Then I take yours.
    Request = 3,
    /// Does my address belong on this link?
    Confirm = 4,
    /// I want to keep my address, to the server that gave it.
    Renew = 5,
    /// The same, to any server.
    Rebind = 6,
    /// The answer to everything but SOLICIT without rapid commit.
    Reply = 7,
    /// I need it no longer.
    Release = 8,
    /// Somebody else has this address already.
    Decline = 9,
    /// The server has news.
    Reconfigure = 10,
    /// Name servers and such, but no address.
    InformationRequest = 11,
}

impl Kind {
    fn of(number: u8) -> Option<Self> {
        use Kind::{
            Advertise, Confirm, Decline, InformationRequest, Rebind, Reconfigure, Release, Renew, Reply,
            Request, Solicit,
        };
        [
            Solicit,
            Advertise,
            Request,
            Confirm,
            Renew,
            Rebind,
            Reply,
            Release,
            Decline,
            Reconfigure,
            InformationRequest,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == number)
    }

    /// The name that server logs know it by.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Solicit => "SOLICIT",
            Self::Advertise => "ADVERTISE",
            Self::Request => "REQUEST",
            Self::Confirm => "CONFIRM",
            Self::Renew => "RENEW",
            Self::Rebind => "REBIND",
            Self::Reply => "REPLY",
            Self::Release => "RELEASE",
            Self::Decline => "DECLINE",
            Self::Reconfigure => "RECONFIGURE",
            Self::InformationRequest => "INFORMATION-REQUEST",
        }
    }
}

/// Why bytes are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Something claims to be longer than what is there.
    #[error("{0} is cut short")]
    Truncated(&'static str),
    /// The first byte is no message that a client and a server exchange.
    #[error("{0} is not the number of a client's or a server's message")]
    Kind(u8),
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What it is for.
    pub kind: Kind,
    /// Ties answers to questions; 24 bits.
    pub transaction: u32,
    /// The client's DUID.
    pub client: Option<Vec<u8>>,
    /// The server's DUID.
    pub server: Option<Vec<u8>>,
    /// Addresses, by association.
    pub associations: Vec<Association>,
    /// Numbers of the options that the client would like.
    pub requested: Vec<u16>,
    /// How much the server wants to be chosen.
    pub preference: Option<u8>,
    /// Hundredths of a second since the exchange began.
    pub elapsed: Option<u16>,
    /// What became of it.
    pub status: Option<Status>,
    /// The short exchange of two messages.
    pub rapid_commit: bool,
    /// Name servers.
    pub name_servers: Vec<Ipv6Addr>,
    /// Domains to search in.
    pub search: Vec<String>,
    /// The longest pause between SOLICITs, in seconds.
    pub longest_solicit: Option<u32>,
}

/// An identity association for addresses that are not temporary (IA_NA).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Association {
    /// The client's number for it.
    pub id: u32,
    /// Seconds until RENEW; 0 leaves it to the client.
    pub t1: u32,
    /// Seconds until REBIND; 0 leaves it to the client.
    pub t2: u32,
    /// Its addresses.
    pub addresses: Vec<Leased>,
    /// What became of the association.
    pub status: Option<Status>,
}

/// One address of an association.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leased {
    /// The address.
    pub address: Ipv6Addr,
    /// Seconds in which new connections may use it.
    pub preferred: u32,
    /// Seconds in which it may be used at all.
    pub valid: u32,
    /// What became of the address.
    pub status: Option<Status>,
}

impl Leased {
    /// An address as a client names it: without lifetimes.
    #[must_use]
    pub fn wish(address: Ipv6Addr) -> Self {
        Self { address, preferred: 0, valid: 0, status: None }
    }
}

/// A status code with the server's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The number; the constants below.
    pub code: u16,
    /// The server's words, for people.
    pub text: String,
}

impl Status {
    /// It worked.
    pub const SUCCESS: u16 = 0;
    /// The server has no address left for this association.
    pub const NO_ADDRESSES: u16 = 2;
    /// The server knows nothing of this association.
    pub const NO_BINDING: u16 = 3;
    /// The address does not belong on this link.
    pub const NOT_ON_LINK: u16 = 4;
}

impl Message {
    /// A message without options.
    #[must_use]
    pub fn new(kind: Kind, transaction: u32) -> Self {
        Self {
            kind,
            transaction,
            client: None,
            server: None,
            associations: Vec::new(),
            requested: Vec::new(),
            preference: None,
            elapsed: None,
            status: None,
            rapid_commit: false,
            name_servers: Vec::new(),
            search: Vec::new(),
            longest_solicit: None,
        }
    }

    /// The status code; none means success.
    #[must_use]
    pub fn status_code(&self) -> u16 {
        code(self.status.as_ref())
    }

    /// As a datagram.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let [_, t1, t2, t3] = self.transaction.to_be_bytes();
        let mut bytes = vec![self.kind as u8, t1, t2, t3];
        let out = &mut bytes;
        if let Some(client) = &self.client {
            option(out, CLIENT_ID, |out| out.extend_from_slice(client));
        }
        if let Some(server) = &self.server {
            option(out, SERVER_ID, |out| out.extend_from_slice(server));
        }
        for association in &self.associations {
            option(out, IA_NA, |out| association.encode(out));
        }
        if !self.requested.is_empty() {
            let numbers = self.requested.iter();
            option(out, OPTION_REQUEST, |out| out.extend(numbers.flat_map(|number| number.to_be_bytes())));
        }
        if let Some(preference) = self.preference {
            option(out, PREFERENCE, |out| out.push(preference));
        }
        if let Some(elapsed) = self.elapsed {
            option(out, ELAPSED_TIME, |out| out.extend_from_slice(&elapsed.to_be_bytes()));
        }
        encode_status(out, self.status.as_ref());
        if self.rapid_commit {
            option(out, RAPID_COMMIT, |_| ());
        }
        if !self.name_servers.is_empty() {
            let servers = self.name_servers.iter();
            option(out, DNS_SERVERS, |out| out.extend(servers.flat_map(Ipv6Addr::octets)));
        }
        if !self.search.is_empty() {
            option(out, DOMAIN_LIST, |out| self.search.iter().for_each(|name| encode_name(out, name)));
        }
        if let Some(seconds) = self.longest_solicit {
            option(out, SOL_MAX_RT, |out| out.extend_from_slice(&seconds.to_be_bytes()));
        }
        bytes
    }

    /// Reads a datagram.
    ///
    /// # Errors
    /// When it is cut short anywhere, or is no message between client and server.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let ([number, t1, t2, t3], options) =
            bytes.split_first_chunk::<4>().ok_or(Malformed::Truncated("the header"))?;
        let kind = Kind::of(*number).ok_or(Malformed::Kind(*number))?;
        let mut message = Self::new(kind, u32::from_be_bytes([0, *t1, *t2, *t3]));
        for found in Options(options) {
            let (number, value) = found?;
            message.take(number, value)?;
        }
        Ok(message)
    }

    /// Takes in one option. Of an option that may come once only the first counts (section 16: a client may use
    /// the first and pass over the rest).
    fn take(&mut self, number: u16, value: &[u8]) -> Result<(), Malformed> {
        match number {
            CLIENT_ID if self.client.is_none() => self.client = Some(value.to_vec()),
            SERVER_ID if self.server.is_none() => self.server = Some(value.to_vec()),
            IA_NA => self.associations.push(Association::decode(value)?),
            OPTION_REQUEST if self.requested.is_empty() => {
                let (pairs, _) = value.as_chunks::<2>();
                self.requested = pairs.iter().map(|pair| u16::from_be_bytes(*pair)).collect();
            }
            PREFERENCE if self.preference.is_none() => {
                self.preference = Some(u8::from_be_bytes(fixed(value, "the preference")?));
            }
            ELAPSED_TIME if self.elapsed.is_none() => {
                self.elapsed = Some(u16::from_be_bytes(fixed(value, "the elapsed time")?));
            }
            STATUS_CODE if self.status.is_none() => self.status = Some(Status::decode(value)?),
            RAPID_COMMIT => self.rapid_commit = true,
            DNS_SERVERS if self.name_servers.is_empty() => {
                let (servers, _) = value.as_chunks::<16>();
                self.name_servers = servers.iter().copied().map(Ipv6Addr::from).collect();
            }
            DOMAIN_LIST if self.search.is_empty() => self.search = decode_names(value),
            SOL_MAX_RT if self.longest_solicit.is_none() => {
                self.longest_solicit = Some(u32::from_be_bytes(fixed(value, "SOL_MAX_RT")?));
            }
            _ => {}
        }
        Ok(())
    }
}

impl Association {
    /// The status code; none means success.
    #[must_use]
    pub fn status_code(&self) -> u16 {
        code(self.status.as_ref())
    }

    fn encode(&self, out: &mut Vec<u8>) {
        for number in [self.id, self.t1, self.t2] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        for leased in &self.addresses {
            option(out, IA_ADDRESS, |out| {
                out.extend_from_slice(&leased.address.octets());
                out.extend_from_slice(&leased.preferred.to_be_bytes());
                out.extend_from_slice(&leased.valid.to_be_bytes());
                encode_status(out, leased.status.as_ref());
            });
        }
        encode_status(out, self.status.as_ref());
    }

    fn decode(value: &[u8]) -> Result<Self, Malformed> {
        let cut = Malformed::Truncated("an association");
        let (id, rest) = value.split_first_chunk().ok_or(cut)?;
        let (t1, rest) = rest.split_first_chunk().ok_or(cut)?;
        let (t2, options) = rest.split_first_chunk().ok_or(cut)?;
        let [id, t1, t2] = [id, t1, t2].map(|number| u32::from_be_bytes(*number));
        let mut association = Self { id, t1, t2, ..Self::default() };
        for found in Options(options) {
            match found? {
                (IA_ADDRESS, value) => association.addresses.push(Leased::decode(value)?),
                (STATUS_CODE, value) if association.status.is_none() => {
                    association.status = Some(Status::decode(value)?);
                }
                _ => {}
            }
        }
        Ok(association)
    }
}

impl Leased {
    fn decode(value: &[u8]) -> Result<Self, Malformed> {
        let cut = Malformed::Truncated("an address");
        let (address, rest) = value.split_first_chunk::<16>().ok_or(cut)?;
        let (preferred, rest) = rest.split_first_chunk().ok_or(cut)?;
        let (valid, options) = rest.split_first_chunk().ok_or(cut)?;
        let mut leased = Self {
            address: Ipv6Addr::from(*address),
            preferred: u32::from_be_bytes(*preferred),
            valid: u32::from_be_bytes(*valid),
            status: None,
        };
        for found in Options(options) {
            if let (STATUS_CODE, value) = found?
                && leased.status.is_none()
            {
                leased.status = Some(Status::decode(value)?);
            }
        }
        Ok(leased)
    }
}

impl Status {
    fn decode(value: &[u8]) -> Result<Self, Malformed> {
        let (code, text) = value.split_first_chunk().ok_or(Malformed::Truncated("a status"))?;
        Ok(Self { code: u16::from_be_bytes(*code), text: String::from_utf8_lossy(text).into_owned() })
    }
}

/// The options of one level: number, length, value.
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = Result<(u16, &'a [u8]), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let split = |bytes: &'a [u8]| {
            let ([n1, n2, l1, l2], rest) = bytes.split_first_chunk::<4>()?;
            let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([*l1, *l2])))?;
            Some((u16::from_be_bytes([*n1, *n2]), value, rest))
        };
        let Some((number, value, rest)) = split(self.0) else {
            self.0 = &[];
            return Some(Err(Malformed::Truncated("an option")));
        };
        self.0 = rest;
        Some(Ok((number, value)))
    }
}

/// Writes one option; one that is too long to have a length is left out.
fn option(out: &mut Vec<u8>, number: u16, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&number.to_be_bytes());
    out.extend_from_slice(&[0, 0]);
    write(out);
    match u16::try_from(out.len() - start - 4) {
        Ok(length) => out[start + 2..start + 4].copy_from_slice(&length.to_be_bytes()),
        Err(_) => out.truncate(start),
    }
}

fn encode_status(out: &mut Vec<u8>, status: Option<&Status>) {
    let Some(status) = status else { return };
    option(out, STATUS_CODE, |out| {
        out.extend_from_slice(&status.code.to_be_bytes());
        out.extend_from_slice(status.text.as_bytes());
    });
}

fn code(status: Option<&Status>) -> u16 {
    status.map_or(Status::SUCCESS, |status| status.code)
}

fn fixed<const N: usize>(value: &[u8], what: &'static str) -> Result<[u8; N], Malformed> {
    value.first_chunk().copied().ok_or(Malformed::Truncated(what))
}

fn encode_name(out: &mut Vec<u8>, name: &str) {
    for label in name.split('.') {
        // A label has at most 63 bytes; `decode_names` lets no longer one in.
        out.push(u8::try_from(label.len()).unwrap_or(0));
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
}

/// Domain names in wire form, one after the other. They end up in a resolver's file, so a name with anything in
/// it but letters, digits, `-` and `_` is dropped; so is everything from the first malformed name on.
pub(super) fn decode_names(mut bytes: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    let (mut name, mut sound) = (String::new(), true);
    while let Some((length, rest)) = bytes.split_first() {
        if *length == 0 {
            if sound && !name.is_empty() && name.len() <= 253 {
                names.push(std::mem::take(&mut name));
            }
            (name, sound) = (String::new(), true);
            bytes = rest;
            continue;
        }
        // Two high bits mean compression, which has no place here.
        let Some((label, rest)) = rest.split_at_checked(usize::from(*length)).filter(|_| *length < 64) else {
            break;
        };
        sound &= label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(&String::from_utf8_lossy(label));
        bytes = rest;
    }
    names
}

#[cfg(test)]
mod tests;
