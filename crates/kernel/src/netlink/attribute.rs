//! Reading attributes: type-length-value records, each padded to four bytes, possibly nested.
//!
//! Read [`Attributes`] first: an iterator over the records of one level. Bytes come from the kernel, yet
//! nothing here trusts a length. Writing is in [`Message`](super::Message).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of an attribute's header: u16 length, u16 kind.
pub(super) const ATTRIBUTE_HEADER: usize = 4;
/// Kind bits that are flags (nested, network byte order), not part of the number.
const KIND_MASK: u16 = 0x3fff;

/// Rounds up to netlink's alignment of four bytes.
pub(super) const fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// Why bytes from the kernel made no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A header, message or attribute goes beyond the end of its bytes.
    #[error("{what} of {length} bytes where {available} are left")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Bytes it claims or needs.
        length: usize,
        /// Bytes that are there.
        available: usize,
    },
    /// An attribute has the wrong size or content for its type.
    #[error("attribute {kind} with {length} bytes is not {expected}")]
    Attribute {
        /// The attribute's number.
        kind: u16,
        /// Bytes of its value.
        length: usize,
        /// What it should have been.
        expected: &'static str,
    },
    /// Something every answer of this kind has was left out.
    #[error("{what} is missing")]
    Missing {
        /// What is missing.
        what: &'static str,
    },
}

/// Iterator over the attributes of one level.
#[derive(Debug, Clone, Copy)]
pub struct Attributes<'a> {
    bytes: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// Reads attributes from raw bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// The first attribute of this kind, if any.
    ///
    /// # Errors
    /// When the attributes before it are truncated.
    pub fn find(self, kind: u16) -> Result<Option<Attribute<'a>>, Malformed> {
        for attribute in self {
            let attribute = attribute?;
            if attribute.kind == kind {
                return Ok(Some(attribute));
            }
        }
        Ok(None)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.bytes.is_empty() {
            return None;
        }
        let available = self.bytes.len();
        let [low, high, kind_low, kind_high, ..] = *self.bytes else {
            self.bytes = &[];
            return Some(Err(Malformed::Truncated {
                what: "attribute header",
                length: ATTRIBUTE_HEADER,
                available,
            }));
        };
        let length = usize::from(u16::from_ne_bytes([low, high]));
        if length < ATTRIBUTE_HEADER || length > available {
            self.bytes = &[];
            return Some(Err(Malformed::Truncated { what: "attribute", length, available }));
        }
        let raw_kind = u16::from_ne_bytes([kind_low, kind_high]);
        let value = &self.bytes[ATTRIBUTE_HEADER..length];
        self.bytes = self.bytes.get(align(length)..).unwrap_or(&[]);
        Some(Ok(Attribute { kind: raw_kind & KIND_MASK, value }))
    }
}

/// One attribute: its number (flag bits removed) and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// The attribute's number within its level.
    pub kind: u16,
    /// The value, without padding.
    pub value: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The value as attributes of the next level.
    pub fn nested(&self) -> Attributes<'a> {
        Attributes::new(self.value)
    }

    /// One byte.
    ///
    /// # Errors
    /// When the value has another size (the same for all readers below).
    pub fn u8(&self) -> Result<u8, Malformed> {
        self.array::<1>("one byte").map(|[byte]| byte)
    }

    /// Sixteen bits in host order.
    ///
    /// # Errors
    /// See [`Self::u8`].
    pub fn u16(&self) -> Result<u16, Malformed> {
        self.array("a 16-bit number").map(u16::from_ne_bytes)
    }

    /// Sixteen bits in network order (ports, protocols).
    ///
    /// # Errors
    /// See [`Self::u8`].
    pub fn be16(&self) -> Result<u16, Malformed> {
        self.array("a 16-bit number").map(u16::from_be_bytes)
    }

    /// Thirty-two bits in host order.
    ///
    /// # Errors
    /// See [`Self::u8`].
    pub fn u32(&self) -> Result<u32, Malformed> {
        self.array("a 32-bit number").map(u32::from_ne_bytes)
    }

    /// A signed number of thirty-two bits in host order.
    ///
    /// # Errors
    /// See [`Self::u8`].
    pub fn i32(&self) -> Result<i32, Malformed> {
        self.array("a 32-bit number").map(i32::from_ne_bytes)
    }

    /// Thirty-two bits in network order (all of nf_tables).
    ///
    /// # Errors
    /// See [`Self::u8`].
    pub fn be32(&self) -> Result<u32, Malformed> {
        self.array("a 32-bit number").map(u32::from_be_bytes)
    }

    /// Sixty-four bits in host order.
    ///
    /// # Errors
    /// See [`Self::u8`].
    pub fn u64(&self) -> Result<u64, Malformed> {
        self.array("a 64-bit number").map(u64::from_ne_bytes)
    }

    /// Sixty-four bits in network order.
    ///
    /// # Errors
    /// See [`Self::u8`].
    pub fn be64(&self) -> Result<u64, Malformed> {
        self.array("a 64-bit number").map(u64::from_be_bytes)
    }

    /// A string, with or without its closing NUL.
    ///
    /// # Errors
    /// When it is not UTF-8.
    pub fn text(&self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.string()).map_err(|_| self.malformed("text"))
    }

    /// A name or text that anybody may have given. The kernel takes nearly any byte there, and one odd name must
    /// not make a whole listing unreadable: what is not UTF-8 becomes U+FFFD, which nothing of ours holds.
    pub fn foreign_text(&self) -> String {
        String::from_utf8_lossy(self.string()).into_owned()
    }

    /// The bytes before the first NUL.
    fn string(&self) -> &'a [u8] {
        let end = self.value.iter().position(|byte| *byte == 0).unwrap_or(self.value.len());
        &self.value[..end]
    }

    /// An IPv4 or IPv6 address, told apart by size.
    ///
    /// # Errors
    /// When it has neither size.
    pub fn ip(&self) -> Result<IpAddr, Malformed> {
        if let Ok(bytes) = <[u8; 4]>::try_from(self.value) {
            return Ok(IpAddr::V4(Ipv4Addr::from(bytes)));
        }
        self.array::<16>("an IP address").map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes)))
    }

    /// A value of exactly `N` bytes.
    ///
    /// # Errors
    /// See [`Self::u8`].
    pub fn array<const N: usize>(&self, expected: &'static str) -> Result<[u8; N], Malformed> {
        <[u8; N]>::try_from(self.value).map_err(|_| self.malformed(expected))
    }

    /// The error for a value that is not what it should be.
    pub fn malformed(&self, expected: &'static str) -> Malformed {
        Malformed::Attribute { kind: self.kind, length: self.value.len(), expected }
    }
}
