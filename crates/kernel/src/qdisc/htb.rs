//! A hierarchy of token buckets, as small as it gets: one class that is shaped, and a way past it.
//!
//! Read [`set_htb`]. Packets that no filter ([`crate::filter`]) sends elsewhere go to the default class; those
//! that belong to [`DIRECT`] leave as fast as the link lets them.

use super::{Header, ROOT, ROOT_HANDLE, SLACK, Tbf, bytes_in, most_ticks, rate_parameters};
use crate::netlink::{Attributes, Malformed, Message, Purpose, Request, Socket};
use crate::{Error, abi};

/// The class that is shaped, `1:1`.
pub const SHAPED: u32 = ROOT_HANDLE | 1;
/// The way past the classes: the qdisc's own handle, `1:`.
pub const DIRECT: u32 = ROOT_HANDLE;

/// Handle of the queue below the class, `2:`.
const QUEUE_HANDLE: u32 = 0x0002_0000;
/// `struct tc_htb_glob` is of this version; the kernel refuses others.
const VERSION: u32 = 3;
/// What a class may send in its turn; with one class it does not matter.
const QUANTUM: u32 = 1 << 16;
/// Packets that may wait on the way past.
const DIRECT_QUEUE: u32 = 1000;
const NEEDS: &str = "the kernel needs CONFIG_NET_SCH_HTB";

/// A hierarchical token bucket as the kernel describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Htb {
    /// The class of packets that no filter knows, as a whole handle.
    pub default: u32,
}

/// A class of such a hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Class {
    /// Its handle.
    pub handle: u32,
    /// Bytes a second.
    pub rate: u64,
    /// Bytes that may pass at once.
    pub burst: u32,
}

impl Class {
    /// Whether this class shapes as a token bucket filter of these numbers would.
    pub fn shapes_as(&self, wanted: &Tbf) -> bool {
        let found = Tbf { rate: self.rate, burst: self.burst, limit: wanted.limit };
        let difference = most_ticks(&found).abs_diff(most_ticks(wanted));
        self.rate == wanted.rate && u64::from(difference) <= SLACK
    }
}

/// Puts a hierarchy at the root of a link: [`SHAPED`] is shaped as `tbf` says, and `default` ([`SHAPED`] or
/// [`DIRECT`]) is where packets go that no filter knows.
pub fn set_htb(link: u32, tbf: &Tbf, default: u32) -> [Request; 3] {
    let create = abi::NLM_F_CREATE | abi::NLM_F_EXCL;
    let object = format!("on link number {link} to {} bytes a second", tbf.rate);
    let purpose = || Purpose::new("set rate limit", object.as_str());
    let header = Header { link, handle: ROOT_HANDLE, parent: ROOT, info: 0 };
    let mut root = Message::new(abi::RTM_NEWQDISC, create, &header.bytes());
    root.text(abi::TCA_KIND, "htb").nest(abi::TCA_OPTIONS, |options| {
        options.put(abi::TCA_HTB_INIT, &global(default & 0xffff)).u32(abi::TCA_HTB_DIRECT_QLEN, DIRECT_QUEUE);
    });
    let header = Header { link, handle: SHAPED, parent: ROOT_HANDLE, info: 0 };
    let mut class = Message::new(abi::RTM_NEWTCLASS, create, &header.bytes());
    class.text(abi::TCA_KIND, "htb").nest(abi::TCA_OPTIONS, |options| {
        options.put(abi::TCA_HTB_PARMS, &parameters(tbf));
        if tbf.rate > u64::from(u32::MAX) {
            options.u64(abi::TCA_HTB_RATE64, tbf.rate).u64(abi::TCA_HTB_CEIL64, tbf.rate);
        }
    });
    let header = Header { link, handle: QUEUE_HANDLE, parent: SHAPED, info: 0 };
    let mut queue = Message::new(abi::RTM_NEWQDISC, create, &header.bytes());
    queue.text(abi::TCA_KIND, "bfifo").put(abi::TCA_OPTIONS, &tbf.limit.to_ne_bytes());
    [root, class, queue].map(|message| Request::new(message, purpose().needing(NEEDS)))
}

/// The classes of a link.
///
/// # Errors
/// When the kernel refuses.
pub fn classes(socket: &mut Socket, link: u32) -> Result<Vec<Class>, Error> {
    let message = Message::new(abi::RTM_GETTCLASS, 0, &Header { link, ..Header::default() }.bytes());
    let purpose = Purpose::new("list classes of link", format!("number {link}"));
    socket.dump(&Request::new(message, purpose), |reply| {
        let (header, attributes) = Header::split(reply)?;
        match attributes.find(abi::TCA_OPTIONS)? {
            Some(options) => read_class(header.handle, options.nested()),
            None => Ok(None),
        }
    })
}

impl Htb {
    pub(super) fn read(options: Attributes<'_>) -> Result<Option<Self>, Malformed> {
        let Some(global) = options.find(abi::TCA_HTB_INIT)? else { return Ok(None) };
        let bytes = global.array::<20>("the settings of a hierarchical token bucket")?;
        let minor = u32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        Ok(Some(Self { default: ROOT_HANDLE | minor }))
    }
}

/// `struct tc_htb_glob`: version, rate to quantum, default class, debug, direct packets (u32 each).
fn global(default: u32) -> [u8; 20] {
    let mut bytes = [0; 20];
    for (at, number) in [(0, VERSION), (4, 10), (8, default)] {
        bytes[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    }
    bytes
}

/// `struct tc_htb_opt`: rate and ceiling (`struct tc_ratespec`), buffer, ceiling's buffer, quantum, level,
/// priority (u32 each).
fn parameters(tbf: &Tbf) -> [u8; 44] {
    let mut bytes = [0; 44];
    let rate = rate_parameters(tbf.rate);
    bytes[..12].copy_from_slice(&rate);
    bytes[12..24].copy_from_slice(&rate);
    let buffer = most_ticks(tbf);
    for (at, number) in [(24, buffer), (28, buffer), (32, QUANTUM)] {
        bytes[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    }
    bytes
}

fn read_class(handle: u32, options: Attributes<'_>) -> Result<Option<Class>, Malformed> {
    let Some(parameters) = options.find(abi::TCA_HTB_PARMS)? else { return Ok(None) };
    let bytes = parameters.array::<44>("the parameters of a class")?;
    let number = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let rate = match options.find(abi::TCA_HTB_RATE64)? {
        Some(large) => large.u64()?,
        None => number(8).into(),
    };
    Ok(Some(Class { handle, rate, burst: bytes_in(number(24), rate) }))
}
