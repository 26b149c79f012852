//! WireGuard of the kernel as a value: what a device is configured with, and its peers.
//!
//! Read [`WireGuard`] and [`WireGuardPeer`]. A device is made as a link like any other; what stands here is what it is told
//! afterwards. Peers are objects of their own, so that one that comes, goes or changes touches no other one's session.
//!
//! What stays true: a private key is in no text and in no debug output; two peers of a device never have the same
//! network, for the kernel would take it from one when the other is given it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ipnet::IpNet;

use crate::LinkName;

/// A private key. It is kept as the kernel keeps it, with the bits set that Curve25519 wants (RFC 7748, section 5), so that
/// what was given and what is read back are equal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SecretKey([u8; 32]);

impl SecretKey {
    /// The key that these bytes stand for.
    #[must_use]
    pub fn new(mut bytes: [u8; 32]) -> Self {
        bytes[0] &= 0b1111_1000;
        bytes[31] = (bytes[31] & 0b0111_1111) | 0b0100_0000;
        Self(bytes)
    }

    /// Its bytes, for whoever hands them to the kernel.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// The public key by which a peer is known.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a WireGuard device is told of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WireGuard {
    /// Who this node is.
    pub private_key: SecretKey,
    /// The UDP port that it listens on and sends from.
    pub port: u16,
}

/// What identifies a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct WireGuardPeerKey {
    /// The device.
    pub link: LinkName,
    /// The peer's public key.
    pub public_key: PublicKey,
}

/// A peer of a WireGuard device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WireGuardPeer {
    /// Where it is to be found. It may move: the kernel follows whoever proves to have its key.
    pub endpoint: Option<SocketAddr>,
    /// What is sent to it, and taken from it.
    pub allowed_ips: BTreeSet<IpNet>,
    /// After how many idle seconds it is sent an empty packet, so that a translation on the way is not forgotten; never if
    /// none.
    pub keepalive: Option<u16>,
}

#[cfg(test)]
mod tests {
    use super::{PublicKey, SecretKey};

    #[test]
    fn a_private_key_is_as_the_kernel_keeps_it_and_is_not_shown() {
        let key = SecretKey::new([0xff; 32]);
        assert_eq!((key.bytes()[0], key.bytes()[1], key.bytes()[31]), (0xf8, 0xff, 0x7f));
        assert_eq!(SecretKey::new(*key.bytes()), key);
        assert_eq!(SecretKey::new([0; 32]).bytes()[31], 0x40);
        assert_eq!(format!("{key:?}"), "SecretKey(..)");
    }

    #[test]
    fn a_public_key_prints_as_wg_prints_it() {
        assert_eq!(PublicKey([7; 32]).to_string(), "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=");
    }
}
