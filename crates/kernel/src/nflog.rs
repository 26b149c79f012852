//! Packets that rules tell of (`log group N` in nf_tables), as they are told: nfnetlink_log.
//!
//! Read [`LogSocket`], then [`Logged`]. A group has one listener in a network namespace; who comes second is refused. The
//! kernel gathers messages for up to a tenth of a second. What comes faster than it is read is lost, and the listener
//! hears [`Error::Overrun`] once. What a packet holds was written by anybody: [`parse`] trusts none of it.
//! Layouts: `include/uapi/linux/netfilter/nfnetlink_log.h`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use crate::Error;
use crate::netlink::{Attributes, Malformed, Message, Protocol, Purpose, Request, Socket};
use crate::netns::Netns;

const SUBSYSTEM: u16 = 4;
const PACKET: u16 = 0;
const CONFIGURE: u16 = 1;

// enum nfulnl_attr_config, nfulnl_msg_config_cmds
const COMMAND: u16 = 1;
const MODE: u16 = 2;
const GATHERED_FOR: u16 = 4;
const GATHERED: u16 = 5;
const BIND: u8 = 1;
const COPY_PACKET: u8 = 2;

// enum nfulnl_attr_type
const PACKET_HEADER: u16 = 1;
const MARK: u16 = 2;
const TIMESTAMP: u16 = 3;
const INPUT_LINK: u16 = 4;
const OUTPUT_LINK: u16 = 5;
const PAYLOAD: u16 = 9;
const PREFIX: u16 = 10;

/// Hundredths of a second.
const PATIENCE: u32 = 10;
/// Messages that are told at once.
const AT_ONCE: u32 = 32;

/// A packet that a rule told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// What the rule calls it.
    pub prefix: String,
    /// When it was seen, in microseconds since 1970; 0 where the kernel does not say.
    pub time: u64,
    /// Its mark; 0 if it has none.
    pub mark: u32,
    /// The index of the link it came in by; 0 if it began here.
    pub input_link: u32,
    /// The index of the link it leaves by; 0 if it ends here.
    pub output_link: u32,
    /// Who talks to whom; `None` if that could not be read from it.
    pub headers: Option<Headers>,
}

/// What a packet's headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    /// Sender.
    pub source: IpAddr,
    /// Receiver.
    pub destination: IpAddr,
    /// Transport protocol number.
    pub protocol: u8,
    /// Ports of sender and receiver; 0 for protocols without, and for fragments.
    pub ports: [u16; 2],
}

/// The listener of a group.
#[derive(Debug)]
pub struct LogSocket {
    socket: Socket,
}

impl LogSocket {
    /// Listens to a group in the calling thread's network namespace, to so many bytes of each packet at most.
    ///
    /// # Errors
    /// When somebody else listens to it already ([`Error::exists`] or a refusal), or the kernel does not log this way.
    pub fn open(group: u16, bytes: u32) -> Result<Self, Error> {
        Self::listen(Socket::open(Protocol::Netfilter)?, group, bytes)
    }

    /// Listens in another namespace; the calling thread is back home when it returns.
    ///
    /// # Errors
    /// As [`Self::open`], or when the namespace may not be entered.
    pub fn open_in(namespace: &Netns, group: u16, bytes: u32) -> Result<Self, Error> {
        Self::listen(namespace.socket(Protocol::Netfilter)?, group, bytes)
    }

    fn listen(mut socket: Socket, group: u16, bytes: u32) -> Result<Self, Error> {
        socket.subscribe(&[])?;
        bind(&mut socket, group)?;
        let mut shape = configuration(group);
        let [a, b, c, d] = bytes.to_be_bytes();
        shape.put(MODE, &[a, b, c, d, COPY_PACKET, 0]);
        shape.be32(GATHERED_FOR, PATIENCE).be32(GATHERED, AT_ONCE);
        socket.execute(Request::new(shape, purpose(group)))?;
        Ok(Self { socket })
    }

    /// What was told since, waiting for it no longer than this; nothing if nothing was.
    ///
    /// # Errors
    /// [`Error::Overrun`] when some were lost; what is told next is heard again.
    pub fn receive(&mut self, patience: Duration) -> Result<Vec<Logged>, Error> {
        let mut found = Vec::new();
        if self.socket.readable_within(patience)? {
            self.socket.receive(|reply| {
                if reply.kind == SUBSYSTEM << 8 | PACKET {
                    let (_, attributes) = reply.split::<4>()?;
                    found.push(read(attributes)?);
                }
                Ok(())
            })?;
        }
        Ok(found)
    }
}

impl AsFd for LogSocket {
    /// Readable when [`LogSocket::receive`] would not wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Makes the socket the listener of a group; it is until it is closed.
pub(crate) fn bind(socket: &mut Socket, group: u16) -> Result<(), Error> {
    let mut bind = configuration(group);
    bind.u8(COMMAND, BIND);
    socket.execute(Request::new(bind, purpose(group)))
}

fn purpose(group: u16) -> Purpose {
    Purpose::new("listen to", format!("log group {group}"))
        .needing("logging needs CONFIG_NETFILTER_NETLINK_LOG in the kernel")
}

fn configuration(group: u16) -> Message {
    // struct nfgenmsg: family, version, resource id in network order.
    let [high, low] = group.to_be_bytes();
    Message::new(SUBSYSTEM << 8 | CONFIGURE, 0, &[0, 0, high, low])
}

/// Reads what is said of one packet: the attributes of a message.
///
/// # Errors
/// When they make no sense. What is wrong with the packet itself is no error: nobody is known to talk then.
pub fn parse(message: &[u8]) -> Result<Logged, Malformed> {
    read(Attributes::new(message))
}

fn read(attributes: Attributes<'_>) -> Result<Logged, Malformed> {
    let number = |kind| attributes.find(kind)?.map_or(Ok(0), |number| number.be32());
    let time = attributes.find(TIMESTAMP)?.map(|time| time.array::<16>("a time")).transpose()?;
    let protocol =
        attributes.find(PACKET_HEADER)?.map(|header| header.array::<4>("a packet header")).transpose()?;
    let headers = attributes.find(PAYLOAD)?.and_then(|payload| match protocol {
        Some([0x08, 0x00, ..]) => ipv4(payload.value),
        Some([0x86, 0xdd, ..]) => ipv6(payload.value),
        _ => None,
    });
    Ok(Logged {
        prefix: attributes.find(PREFIX)?.map(|prefix| prefix.foreign_text()).unwrap_or_default(),
        time: time.map_or(0, microseconds),
        mark: number(MARK)?,
        input_link: number(INPUT_LINK)?,
        output_link: number(OUTPUT_LINK)?,
        headers,
    })
}

/// struct nfulnl_msg_packet_timestamp: seconds and microseconds.
fn microseconds(time: [u8; 16]) -> u64 {
    let whole = u128::from_be_bytes(time);
    let (seconds, rest) = ((whole >> 64) as u64, whole as u64);
    seconds.saturating_mul(1_000_000).saturating_add(rest)
}

fn ipv4(packet: &[u8]) -> Option<Headers> {
    let header = packet.first_chunk::<20>()?;
    let length = usize::from(header[0] & 0xf) * 4;
    let address = |at: usize| -> Option<IpAddr> {
        let bytes: [u8; 4] = header.get(at..at + 4)?.try_into().ok()?;
        Some(IpAddr::V4(Ipv4Addr::from(bytes)))
    };
    let first = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
    let rest = packet.get(length.max(20)..).filter(|_| first).unwrap_or_default();
    let (source, destination) = (address(12)?, address(16)?);
    Some(Headers { source, destination, protocol: header[9], ports: ports(header[9], rest) })
}

fn ipv6(packet: &[u8]) -> Option<Headers> {
    let (header, mut rest) = packet.split_first_chunk::<40>()?;
    let address = |at: usize| -> Option<IpAddr> {
        let bytes: [u8; 16] = header.get(at..at + 16)?.try_into().ok()?;
        Some(IpAddr::V6(Ipv6Addr::from(bytes)))
    };
    let (source, destination) = (address(8)?, address(24)?);
    let mut protocol = header[6];
    // Hop-by-hop options, routing, fragment and destination options stand before what is carried (RFC 8200).
    while let (0 | 43 | 44 | 60, Some(extension)) = (protocol, rest.first_chunk::<8>()) {
        let length = if protocol == 44 { 8 } else { 8 + usize::from(extension[1]) * 8 };
        let later = protocol == 44 && u16::from_be_bytes([extension[2], extension[3]]) >> 3 != 0;
        protocol = extension[0];
        rest = rest.get(length..).filter(|_| !later).unwrap_or_default();
    }
    Some(Headers { source, destination, protocol, ports: ports(protocol, rest) })
}

/// TCP, UDP, SCTP, DCCP and UDP-Lite begin with their ports.
fn ports(protocol: u8, transport: &[u8]) -> [u16; 2] {
    match (protocol, transport) {
        (6 | 17 | 33 | 132 | 136, [a, b, c, d, ..]) => {
            [u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])]
        }
        _ => [0; 2],
    }
}

#[cfg(test)]
mod tests {
    use super::{Headers, ipv4, ipv6, microseconds};

    #[test]
    fn ports_are_read_behind_options_and_extensions_and_not_from_later_fragments() {
        let mut packet = vec![0; 24];
        (packet[0], packet[9]) = (0x46, 17);
        packet[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        packet.extend([0x9c, 0x40, 0, 53]);
        let read = |packet: &[u8]| ipv4(packet).unwrap();
        let Headers { source, destination, protocol, ports } = read(&packet);
        assert_eq!((source.to_string(), destination.to_string()), ("10.0.0.1".into(), "10.0.0.2".into()));
        assert_eq!((protocol, ports), (17, [40000, 53]));
        packet[7] = 1;
        assert_eq!(read(&packet).ports, [0, 0], "a later fragment");
        assert_eq!(read(&packet[..20]).ports, [0, 0]);
        assert_eq!(ipv4(&packet[..19]), None);

        let mut packet = vec![0; 40];
        packet[6] = 0;
        packet[39] = 7;
        packet.extend([6, 0, 0, 0, 0, 0, 0, 0, 0, 80, 1, 187]);
        let headers = ipv6(&packet).unwrap();
        assert_eq!(
            (headers.protocol, headers.ports, headers.destination.to_string()),
            (6, [80, 443], "::7".into())
        );
        assert_eq!(ipv6(&packet[..44]).unwrap().ports, [0, 0]);
    }

    #[test]
    fn a_time_is_microseconds_however_large() {
        let mut time = [0; 16];
        (time[7], time[15]) = (2, 5);
        assert_eq!(microseconds(time), 2_000_005);
        assert_eq!(microseconds([0xff; 16]), u64::MAX);
    }
}
