//! Socket addresses as the kernel writes them, and back.
//!
//! Read [`Stored`]: room for either family, filled by us or by the kernel. ip(7), ipv6(7).

use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// A socket address of either family.
#[derive(Clone, Copy)]
pub(super) struct Stored(libc::sockaddr_in6);

impl Stored {
    pub(super) const ROOM: libc::socklen_t = size_of::<libc::sockaddr_in6>() as libc::socklen_t;

    pub(super) fn empty() -> Self {
        // SAFETY: plain old data, for which all bits zero is valid.
        Self(unsafe { mem::zeroed() })
    }

    pub(super) fn pointer(&mut self) -> *mut libc::c_void {
        (&raw mut self.0).cast()
    }

    /// Stores an address and tells how long it is.
    pub(super) fn set(&mut self, address: SocketAddr) -> libc::socklen_t {
        match address {
            SocketAddr::V4(four) => {
                *self = Self::empty();
                let place = (&raw mut self.0).cast::<libc::sockaddr_in>();
                let value = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: four.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(four.ip().octets()) },
                    sin_zero: [0; 8],
                };
                // SAFETY: an address of IPv4 is shorter than one of IPv6 and aligned alike (to 4 bytes).
                unsafe { place.write(value) };
                size_of::<libc::sockaddr_in>() as libc::socklen_t
            }
            SocketAddr::V6(six) => {
                self.0 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: six.port().to_be(),
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: six.ip().octets() },
                    sin6_scope_id: six.scope_id(),
                };
                Self::ROOM
            }
        }
    }

    /// What the kernel has stored.
    pub(super) fn get(&self) -> Option<SocketAddr> {
        match i32::from(self.0.sin6_family) {
            libc::AF_INET => {
                // SAFETY: both forms are plain old data, the one of IPv4 is shorter and aligned alike.
                let four = unsafe { (&raw const self.0).cast::<libc::sockaddr_in>().read() };
                let address = Ipv4Addr::from(four.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddr::new(address.into(), u16::from_be(four.sin_port)))
            }
            libc::AF_INET6 => {
                let address = Ipv6Addr::from(self.0.sin6_addr.s6_addr);
                let port = u16::from_be(self.0.sin6_port);
                // Without the scope: who sent it is compared with what was configured.
                Some(SocketAddrV6::new(address, port, 0, 0).into())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_was_stored() {
        for text in ["192.0.2.1:8285", "[2001:db8::1]:51820"] {
            let address: SocketAddr = text.parse().unwrap();
            let mut stored = Stored::empty();
            stored.set(address);
            assert_eq!(stored.get(), Some(address));
        }
        assert_eq!(Stored::empty().get(), None);
    }
}
