//! Netlink messages, only as far as the floor needs them: written into a growing buffer, lengths patched after.

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NESTED: u16 = 0x8000;
const NFTABLES: u16 = 10 << 8;
const GETRULE: u16 = 7;

/// `NFT_MSG_NEWSETELEM`.
pub(crate) const NEWSETELEM: u16 = 12;
/// `NFT_MSG_GETSETELEM`.
pub(crate) const GETSETELEM: u16 = 13;
/// `NFT_MSG_DELSETELEM`.
pub(crate) const DELSETELEM: u16 = 14;

/// One request.
pub(crate) struct Message {
    bytes: Vec<u8>,
    kind: u16,
}

impl Message {
    /// A request of this kind that asks for an acknowledgement.
    pub(crate) fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; 16];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        let ack = if flags & NLM_F_DUMP == NLM_F_DUMP { 0 } else { NLM_F_ACK };
        bytes[6..8].copy_from_slice(&(NLM_F_REQUEST | ack | flags).to_ne_bytes());
        Self { bytes, kind }
    }

    /// The beginning (16) or the end (17) of an nf_tables batch.
    pub(crate) fn batch(kind: u16) -> Self {
        let mut message = Self::new(kind, 0);
        message.bytes[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
        message.bytes.extend([0, 0, 0, 10]);
        message
    }

    /// 10.88.0.N into, in or out of set `floor` of table `inet floor`.
    pub(crate) fn element(kind: u16, number: u8) -> Self {
        let create = if kind == NEWSETELEM { 0x400 } else { 0 };
        let mut message = Self::new(NFTABLES | kind, create);
        message.bytes.extend([1, 0, 0, 0]);
        message.text(1, "floor");
        message.text(2, "floor");
        message.nest(3, |list| {
            list.nest(1, |element| {
                element.nest(1, |key| key.attribute(1, &[10, 88, 0, number]));
            });
        });
        message
    }

    /// TCP port 20000 + N to 10.88.0.N port 80, into, in or out of map `hostports` of table `inet floor`.
    pub(crate) fn mapping(kind: u16, number: u8) -> Self {
        let create = if kind == NEWSETELEM { 0x400 } else { 0 };
        let mut message = Self::new(NFTABLES | kind, create);
        message.bytes.extend([1, 0, 0, 0]);
        message.text(1, "floor");
        message.text(2, "hostports");
        let port = (20_000 + u16::from(number)).to_be_bytes();
        message.nest(3, |list| {
            list.nest(1, |element| {
                element.nest(1, |key| key.attribute(1, &[6, 0, 0, 0, port[0], port[1], 0, 0]));
                if kind == NEWSETELEM {
                    element.nest(2, |data| data.attribute(1, &[10, 88, 0, number, 0, 80, 0, 0]));
                }
            });
        });
        message
    }

    /// All rules of chain `postrouting` of table `inet floor`.
    pub(crate) fn rules() -> Self {
        let mut message = Self::new(NFTABLES | GETRULE, NLM_F_DUMP);
        message.bytes.extend([1, 0, 0, 0]);
        message.text(1, "floor");
        message.text(2, "postrouting");
        message
    }

    /// Whether the kernel answers this message by itself (the ends of a batch are not answered).
    pub(crate) fn is_answered(&self) -> bool {
        self.kind != 16 && self.kind != 17
    }

    /// The message with its length filled in, padded to four bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// `struct ifinfomsg`: family, index, and whether the link is set up.
    pub(crate) fn link(&mut self, family: u8, index: u32, up: bool) {
        self.bytes.extend([family, 0, 0, 0]);
        self.bytes.extend(index.to_ne_bytes());
        self.bytes.extend(u32::from(up).to_ne_bytes());
        self.bytes.extend(u32::from(up).to_ne_bytes());
    }

    /// `struct tcmsg`: family, index, handle, parent, priority and protocol.
    pub(crate) fn traffic(&mut self, index: u32, handle: u32, parent: u32, information: u32) {
        for number in [0, index, handle, parent, information] {
            self.bytes.extend(number.to_ne_bytes());
        }
    }

    /// Hairpin on for a bridge port: AF_BRIDGE, IFLA_PROTINFO { IFLA_BRPORT_MODE }.
    pub(crate) fn bridge_port(&mut self, index: u32) {
        self.link(7, index, false);
        self.nest(12, |port| port.attribute(4, &[1]));
    }

    /// `struct ifaddrmsg` with IFA_LOCAL and IFA_ADDRESS.
    pub(crate) fn address(&mut self, index: u32, address: [u8; 4], length: u8) {
        self.bytes.extend([2, length, 0, 0]);
        self.bytes.extend(index.to_ne_bytes());
        self.attribute(2, &address);
        self.attribute(1, &address);
    }

    /// `struct rtmsg` of a default route in the main table, through a gateway.
    pub(crate) fn default_route(&mut self, index: u32, gateway: [u8; 4]) {
        self.bytes.extend([2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0]);
        self.attribute(5, &gateway);
        self.number(4, index);
    }

    /// A header long enough for any dump request: all zero but the IPv4 family.
    pub(crate) fn family(&mut self) {
        self.bytes.extend([2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    /// A 32-bit attribute.
    pub(crate) fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    /// A string attribute.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    /// An attribute of bytes.
    pub(crate) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// An attribute that holds others.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0, 0]);
        self.bytes.extend((kind | NESTED).to_ne_bytes());
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }
}

/// How many requests this datagram closes; an error ends the program.
pub(crate) fn answers(mut datagram: &[u8]) -> usize {
    let mut closed = 0;
    while datagram.len() >= 20 {
        let length = u32::from_ne_bytes([datagram[0], datagram[1], datagram[2], datagram[3]]) as usize;
        let kind = u16::from_ne_bytes([datagram[4], datagram[5]]);
        if kind == NLMSG_ERROR {
            let error = i32::from_ne_bytes([datagram[16], datagram[17], datagram[18], datagram[19]]);
            assert_eq!(error, 0, "the kernel refused: {}", std::io::Error::from_raw_os_error(-error));
        }
        closed += usize::from(kind == NLMSG_ERROR || kind == NLMSG_DONE);
        datagram = &datagram[length.next_multiple_of(4).min(datagram.len())..];
    }
    closed
}
