//! One message: written as a [`Message`], read as a [`Reply`].
//!
//! A message is a 16-byte header, a fixed header of its family (`ifinfomsg`, `nfgenmsg`, ...) and attributes.
//! Length, sequence number and the acknowledgement flag are filled in when the batch is sent.

use std::fmt;
use std::net::IpAddr;

use super::attribute::{ATTRIBUTE_HEADER, Attributes, Malformed, align};

/// Bytes of a netlink message header.
pub(super) const MESSAGE_HEADER: usize = 16;
/// Says that an attribute's value is attributes again.
const NESTED: u16 = 0x8000;

/// A request under construction. Methods return `&mut Self` so that attributes can be chained.
#[derive(Clone)]
pub struct Message {
    bytes: Vec<u8>,
    oversized: bool,
}

/// Not what is in it, which may be a key.
impl fmt::Debug for Message {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Message").field("length", &self.bytes.len()).finish_non_exhaustive()
    }
}

impl Message {
    /// Starts a request of this type (`RTM_*`, or `subsystem << 8 | NFT_MSG_*`); `flags` are `NLM_F_*` beyond
    /// `NLM_F_REQUEST`. `header` is the family's fixed header.
    pub fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(header);
        bytes.resize(align(bytes.len()), 0);
        Self { bytes, oversized: false }
    }

    /// Adds an attribute with this value. A value over 65,531 bytes marks the message as oversized; sending
    /// it is then an error.
    pub fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let length = ATTRIBUTE_HEADER + value.len();
        let Ok(short) = u16::try_from(length) else {
            self.oversized = true;
            return self;
        };
        self.bytes.extend_from_slice(&short.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(align(self.bytes.len()), 0);
        self
    }

    /// Adds attributes below this one, with the "nested" flag that newer parts of the kernel insist on.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.bytes.len();
        self.put(kind | NESTED, &[]);
        fill(self);
        self.patch_length(start)
    }

    /// Adds a flag: an attribute without a value.
    pub fn flag(&mut self, kind: u16) -> &mut Self {
        self.put(kind, &[])
    }

    /// Adds one byte.
    pub fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.put(kind, &[value])
    }

    /// Adds sixteen bits in host order.
    pub fn u16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Adds sixteen bits in network order.
    pub fn be16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// Adds thirty-two bits in host order.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Adds thirty-two bits in network order.
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// Adds sixty-four bits in host order.
    pub fn u64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Adds sixty-four bits in network order.
    pub fn be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// Adds a string with its closing NUL.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.put(kind, &bytes)
    }

    /// Adds an address, four or sixteen bytes.
    pub fn ip(&mut self, kind: u16, value: IpAddr) -> &mut Self {
        match value {
            IpAddr::V4(address) => self.put(kind, &address.octets()),
            IpAddr::V6(address) => self.put(kind, &address.octets()),
        }
    }

    /// Adds bytes that are no attribute: the fixed header inside `VETH_INFO_PEER` and its like.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(align(self.bytes.len()), 0);
        self
    }

    /// Writes the length of everything since `start` (a former [`Self::length`]) into the two bytes there: for
    /// records that are no attributes but begin with their length, such as `struct rtnexthop`.
    pub fn patch_length(&mut self, start: usize) -> &mut Self {
        match u16::try_from(self.bytes.len() - start) {
            Ok(length) => self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes()),
            Err(_) => self.oversized = true,
        }
        self
    }

    /// Bytes so far, header included: lets callers start a new message before one grows over 64 KB.
    pub fn length(&self) -> usize {
        self.bytes.len()
    }

    /// True when an attribute did not fit; such a message is refused at sending.
    pub fn is_oversized(&self) -> bool {
        self.oversized
    }

    /// The bytes as they stand: length, sequence and acknowledgement flag are still open.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn add_flags(&mut self, flags: u16) {
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | flags;
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    }

    /// Appends the finished message to `outgoing`.
    pub(super) fn finish(&self, outgoing: &mut Vec<u8>, sequence: u32, acknowledged: bool) {
        let start = outgoing.len();
        outgoing.extend_from_slice(&self.bytes);
        let header = &mut outgoing[start..start + MESSAGE_HEADER];
        header[..4].copy_from_slice(&(self.bytes.len() as u32).to_ne_bytes());
        header[8..12].copy_from_slice(&sequence.to_ne_bytes());
        if acknowledged {
            let flags = u16::from_ne_bytes([header[6], header[7]]) | libc::NLM_F_ACK as u16;
            header[6..8].copy_from_slice(&flags.to_ne_bytes());
        }
    }
}

/// One message from the kernel, borrowed from the receive buffer.
#[derive(Debug, Clone, Copy)]
pub struct Reply<'a> {
    /// Message type (`RTM_*` or `subsystem << 8 | NFT_MSG_*`).
    pub kind: u16,
    /// `NLM_F_*` flags.
    pub flags: u16,
    /// Number of the request it answers; 0 for a notification of the kernel itself.
    pub sequence: u32,
    /// Port of the socket whose request caused it: tells our own changes from others' in a monitor.
    pub port: u32,
    /// Everything after the netlink header.
    pub payload: &'a [u8],
}

impl<'a> Reply<'a> {
    /// Splits into the family's fixed header of `N` bytes and the attributes after it.
    ///
    /// # Errors
    /// When there are fewer than `N` bytes.
    pub fn split<const N: usize>(&self) -> Result<(&'a [u8; N], Attributes<'a>), Malformed> {
        match self.payload.split_first_chunk::<N>() {
            Some((header, _)) => Ok((header, Attributes::new(self.payload.get(align(N)..).unwrap_or(&[])))),
            None => {
                Err(Malformed::Truncated { what: "family header", length: N, available: self.payload.len() })
            }
        }
    }

    /// Takes the first message off `bytes`, leaving the rest.
    pub(super) fn take(bytes: &mut &'a [u8]) -> Result<Self, Malformed> {
        let available = bytes.len();
        let Some((header, _)) = bytes.split_first_chunk::<MESSAGE_HEADER>() else {
            return Err(Malformed::Truncated { what: "message header", length: MESSAGE_HEADER, available });
        };
        let [a, b, c, d, k0, k1, f0, f1, s0, s1, s2, s3, p0, p1, p2, p3] = *header;
        let length = u32::from_ne_bytes([a, b, c, d]) as usize;
        if length < MESSAGE_HEADER || length > available {
            return Err(Malformed::Truncated { what: "message", length, available });
        }
        let reply = Self {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            port: u32::from_ne_bytes([p0, p1, p2, p3]),
            payload: &bytes[MESSAGE_HEADER..length],
        };
        *bytes = bytes.get(align(length)..).unwrap_or(&[]);
        Ok(reply)
    }
}
