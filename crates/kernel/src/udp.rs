//! Who listens on a UDP port of the calling thread's network namespace.
//!
//! Read [`listeners`]. A socket of the kernel's own, such as a VXLAN device's, is listed as well; it has no inode.
//! Sources: proc_pid_net(5).

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use crate::Error;

/// A socket that is bound to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// The address it is bound to; unspecified for all.
    pub address: IpAddr,
    /// The user it belongs to.
    pub user: u32,
    /// What `/proc/PID/fd` knows it by; 0 for a socket of the kernel's own.
    pub inode: u64,
}

/// The sockets of both families that are bound to a port.
///
/// # Errors
/// When the kernel's list cannot be read.
pub fn listeners(port: u16) -> Result<Vec<Listener>, Error> {
    let mut found = Vec::new();
    for path in ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"] {
        match fs::read_to_string(path) {
            Ok(text) => found.extend(text.lines().skip(1).filter_map(|line| parse(line, port))),
            // No IPv6 in this kernel.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(Error::File { tried: "read", path: Path::new(path).into(), source }),
        }
    }
    Ok(found)
}

/// One line, if it is about this port: `sl local remote st queues timer retransmits uid timeout inode ...`.
fn parse(line: &str, port: u16) -> Option<Listener> {
    let mut words = line.split_whitespace();
    let (address, bound) = words.nth(1)?.split_once(':')?;
    let user = words.nth(5)?.parse().ok()?;
    let inode = words.nth(1)?.parse().ok()?;
    let right = u16::from_str_radix(bound, 16).ok()? == port;
    Some(Listener { address: parse_address(address)?, user, inode }).filter(|_| right)
}

/// Words of 32 bits in host order.
fn parse_address(text: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(text.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes());
    match text.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let words = [word(0)?, word(1)?, word(2)?, word(3)?];
            let octets: [u8; 16] = words.as_flattened().try_into().ok()?;
            Some(Ipv6Addr::from(octets).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn a_socket_is_found_by_its_port_with_address_user_and_inode() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(socket) = UdpSocket::bind(address) else { continue };
            let bound = socket.local_addr().unwrap();
            let found = listeners(bound.port()).unwrap();
            let own = found.iter().find(|listener| listener.address == bound.ip()).unwrap();
            assert!(own.inode != 0, "{found:?}");
            assert_eq!(own.user, rustix::process::geteuid().as_raw());
        }
    }

    #[test]
    fn lines_about_other_ports_or_of_another_form_are_passed_over() {
        let line =
            "  36: 0100007F:2118 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000 0 4711 2 0 0";
        let listener = parse(line, 8472).unwrap();
        assert_eq!((listener.user, listener.inode), (1000, 4711));
        assert_eq!(parse(line, 8473), None);
        for broken in ["", "36:", "36: 0100007F 0", "36: zz:2118 0 0 0 0 0 0 0 0"] {
            assert_eq!(parse(broken, 8472), None, "{broken}");
        }
    }
}
