//! Packets for tests, built field by field from what the RFCs say, with none of the code under test.
//!
//! Read [`Packet`], then [`Packet::bytes`].

use std::net::IpAddr;

/// A packet to be built.
#[derive(Debug, Clone)]
pub(crate) struct Packet {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) number: u16,
    pub(crate) dont_fragment: bool,
    pub(crate) carried: Carried,
    pub(crate) ports: [u16; 2],
    pub(crate) payload: Vec<u8>,
}

/// What it carries.
#[derive(Debug, Clone)]
pub(crate) enum Carried {
    Tcp { sequence: u32, flags: u8, options: Vec<u8> },
    Udp,
}

impl Packet {
    /// A TCP packet from one pod to another.
    pub(crate) fn tcp(six: bool, payload: Vec<u8>) -> Self {
        let carried = Carried::Tcp { sequence: 0xffff_f000, flags: 0x10, options: vec![1; 12] };
        let (source, destination) = if six { ("fd00:1::2", "fd00:2::2") } else { ("10.1.0.2", "10.2.0.2") };
        Self {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            number: 0xfffe,
            dont_fragment: true,
            carried,
            ports: [40000, 80],
            payload,
        }
    }

    /// A UDP packet from one pod to another.
    pub(crate) fn udp(six: bool, payload: Vec<u8>) -> Self {
        Self { carried: Carried::Udp, ..Self::tcp(six, payload) }
    }

    /// How long its headers are, and where the second of them begins.
    pub(crate) fn headers(&self) -> (usize, usize) {
        let network = if self.source.is_ipv4() { 20 } else { 40 };
        match &self.carried {
            Carried::Tcp { options, .. } => (network + 20 + options.len(), network),
            Carried::Udp => (network + 8, network),
        }
    }

    /// As it goes over the wire.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut carried = Vec::new();
        carried.extend(self.ports.iter().flat_map(|port| port.to_be_bytes()));
        let (protocol, at) = match &self.carried {
            Carried::Tcp { sequence, flags, options } => {
                carried.extend(sequence.to_be_bytes());
                carried.extend(77_u32.to_be_bytes());
                carried.extend([((20 + options.len()) * 4) as u8, *flags, 0x20, 0, 0, 0, 0, 0]);
                carried.extend(options);
                (6, 16)
            }
            Carried::Udp => {
                carried.extend((8 + self.payload.len() as u16).to_be_bytes());
                carried.extend([0, 0]);
                (17, 6)
            }
        };
        carried.extend(&self.payload);
        let mut pseudo = self.addresses();
        pseudo.extend((carried.len() as u32).to_be_bytes());
        pseudo.extend([0, 0, 0, protocol]);
        pseudo.extend(&carried);
        let mut sum = checksum(&pseudo);
        if protocol == 17 && sum == 0 {
            sum = 0xffff;
        }
        carried[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        let mut bytes = self.network(protocol, carried.len());
        bytes.extend(carried);
        bytes
    }

    fn addresses(&self) -> Vec<u8> {
        let octets = |address| match address {
            IpAddr::V4(four) => four.octets().to_vec(),
            IpAddr::V6(six) => six.octets().to_vec(),
        };
        [octets(self.source), octets(self.destination)].concat()
    }

    fn network(&self, protocol: u8, carried: usize) -> Vec<u8> {
        if self.source.is_ipv6() {
            let [a, b] = (carried as u16).to_be_bytes();
            return [vec![0x62, 0x03, 0x04, 0x05, a, b, protocol, 63], self.addresses()].concat();
        }
        let [a, b] = (carried as u16 + 20).to_be_bytes();
        let [c, d] = self.number.to_be_bytes();
        let fragment = if self.dont_fragment { 0x40 } else { 0 };
        let mut header = vec![0x45, 0x02, a, b, c, d, fragment, 0, 63, protocol, 0, 0];
        header.extend(self.addresses());
        let sum = checksum(&header).to_be_bytes();
        header[10..12].copy_from_slice(&sum);
        header
    }

    /// The packets of this size that it stands for, as a kernel would send them.
    pub(crate) fn cut(&self, size: usize) -> Vec<Vec<u8>> {
        let count = self.payload.len().div_ceil(size);
        let part = |(index, payload): (usize, &[u8])| {
            let mut part = Self { payload: payload.to_vec(), ..self.clone() };
            part.number = self.number.wrapping_add(index as u16);
            if let Carried::Tcp { sequence, flags, .. } = &mut part.carried {
                *sequence = sequence.wrapping_add((index * size) as u32);
                if index + 1 < count {
                    *flags &= !0x09;
                }
                if index > 0 {
                    *flags &= !0x80;
                }
            }
            part.bytes()
        };
        self.payload.chunks(size).enumerate().map(part).collect()
    }
}

/// RFC 1071 to the letter.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
