//! The two small words every object is built from: a link's name and a hardware address.
//!
//! Both are fixed-size, `Copy` and valid by construction, so a state of thousands of peers stays compact and
//! nothing below this crate has to check them again.

use std::{fmt, str::FromStr};

use crate::Error;

/// The name of a network interface: 1 to 15 bytes as the kernel's `dev_valid_name` allows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkName([u8; 16]);

impl LinkName {
    /// The link by which a host talks to itself.
    pub const LOOPBACK: Self = Self(*b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0");

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        // Built from a `str` only, so the lossless branch is the one that is taken.
        std::str::from_utf8(&self.0[..end]).unwrap_or_default()
    }
}

impl FromStr for LinkName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let forbidden = |c: char| c == '/' || c == ':' || c == '\0' || c.is_ascii_whitespace() || c == '\x0b';
        if text.is_empty() || text.len() > 15 || text == "." || text == ".." || text.contains(forbidden) {
            return Err(Error::LinkName(text.to_owned()));
        }
        let mut bytes = [0; 16];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self(bytes))
    }
}

impl TryFrom<&str> for LinkName {
    type Error = Error;

    fn try_from(text: &str) -> Result<Self, Error> {
        text.parse()
    }
}

impl AsRef<str> for LinkName {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// A 48-bit hardware address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl FromStr for Mac {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Mac(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
            if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_are_what_the_kernel_takes() {
        for good in ["lo", "fairlead0", "eth0.100", "a23456789012345", "veth-1", "br@x"] {
            assert_eq!(good.parse::<LinkName>().unwrap().to_string(), good);
        }
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "a234567890123456", "a\0b"] {
            let error = bad.parse::<LinkName>().unwrap_err().to_string();
            assert!(error.contains("is not valid"), "{bad:?}: {error}");
        }
    }

    #[test]
    fn hardware_addresses_are_six_bytes() {
        assert_eq!("0A:00:ff:1e:00:09".parse::<Mac>().unwrap(), Mac([0x0a, 0, 0xff, 0x1e, 0, 9]));
        assert_eq!(Mac([0x0a, 0, 0xff, 0x1e, 0, 9]).to_string(), "0a:00:ff:1e:00:09");
        for bad in
            ["", "0a:00:ff:1e:00", "0a:00:ff:1e:00:09:01", "0a:00:ff:1e:00:9", "+a:00:ff:1e:00:09", "0a-00"]
        {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }
}
