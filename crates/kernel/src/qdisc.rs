//! Queueing disciplines, as far as shaping a pod's traffic needs them: the token bucket filter at the root of a
//! link, the ingress hook that filters hang on, and, where only some of the traffic is to be shaped, a hierarchy
//! of one class ([`set_htb`]).
//!
//! Read [`Tbf`] for the numbers: all in bytes, rates in bytes a second. Which packets go where is said by
//! filters: [`crate::filter`].

mod htb;

use rustix::io::Errno;

use crate::netlink::{Attributes, Malformed, Message, Purpose, Reply, Request, Socket};
use crate::{Error, abi};

pub use htb::{Class, DIRECT, Htb, SHAPED, classes, set_htb};

/// A token bucket filter: lets `rate` through on average and `burst` at once; `limit` bytes may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tbf {
    /// Bytes a second.
    pub rate: u64,
    /// Bytes that may pass at once. Must hold the largest packet, segmentation offload included.
    pub burst: u32,
    /// Bytes that may wait before packets are dropped.
    pub limit: u32,
}

/// A queueing discipline as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qdisc {
    /// The link, by index.
    pub link: u32,
    /// Its handle: major number in the upper sixteen bits.
    pub handle: u32,
    /// What it hangs on: a handle, [`ROOT`] or [`INGRESS`].
    pub parent: u32,
    /// The kernel's name for it ("tbf", "noqueue").
    pub kind: String,
    /// Its settings, for a token bucket filter.
    pub tbf: Option<Tbf>,
    /// Its settings, for a hierarchical token bucket.
    pub htb: Option<Htb>,
}

/// Parent of a link's outermost qdisc.
pub const ROOT: u32 = abi::TC_H_ROOT;
/// Parent of the ingress hook.
pub const INGRESS: u32 = abi::TC_H_INGRESS;

/// Handle of the ingress hook, `ffff:`.
pub const INGRESS_HANDLE: u32 = 0xffff_0000;
/// What the filters for incoming packets hang on under the other kind of hook, `clsact`: `ffff:fff2`.
pub const CLSACT_INGRESS: u32 = 0xffff_fff2;
/// Handle we give a root qdisc, `1:`.
pub const ROOT_HANDLE: u32 = 0x0001_0000;
/// `TC_LINKLAYER_ETHERNET`: lets the kernel compute transmission times itself, without our table.
const ETHERNET: u8 = 1;
/// How many ticks a burst may differ by and still be the same: other programs reckon in microseconds.
const SLACK: u64 = 32;
/// Index of the loopback link in every namespace.
const LOOPBACK: u32 = 1;
const NEEDS_TBF: &str = "the kernel needs CONFIG_NET_SCH_TBF";
/// A tick of the packet scheduler, in nanoseconds (`PSCHED_SHIFT` of 6).
const TICK_NANOSECONDS: u128 = 64;

/// Puts a token bucket filter at the root of a link, in place of what is there.
pub fn set_tbf(link: u32, tbf: &Tbf) -> Request {
    let header = Header { link, handle: ROOT_HANDLE, parent: ROOT, info: 0 };
    let mut message =
        Message::new(abi::RTM_NEWQDISC, abi::NLM_F_CREATE | abi::NLM_F_REPLACE, &header.bytes());
    message.text(abi::TCA_KIND, "tbf").nest(abi::TCA_OPTIONS, |options| {
        options.put(abi::TCA_TBF_PARMS, &parameters(tbf)).u32(abi::TCA_TBF_BURST, tbf.burst);
        if tbf.rate > u64::from(u32::MAX) {
            options.u64(abi::TCA_TBF_RATE64, tbf.rate);
        }
    });
    let object = format!("on link number {link} to {} bytes a second", tbf.rate);
    Request::new(message, Purpose::new("set rate limit", object).needing(NEEDS_TBF))
}

/// Whether the kernel has the token bucket filter (and loads its module, if it is one). Asks for one without
/// settings, which cannot be.
///
/// # Errors
/// When it has not, or the question was refused for another reason.
pub fn probe_tbf(socket: &mut Socket) -> Result<(), Error> {
    let header = Header { link: LOOPBACK, parent: ROOT, ..Header::default() };
    let mut message = Message::new(abi::RTM_NEWQDISC, abi::NLM_F_CREATE | abi::NLM_F_EXCL, &header.bytes());
    message.text(abi::TCA_KIND, "tbf");
    let request = Request::new(message, Purpose::new("probe qdisc", "tbf").needing(NEEDS_TBF));
    match socket.execute(request) {
        Err(error) if error.errno() == Some(Errno::INVAL) => Ok(()),
        // Somebody has shaped the loopback: that is found before the qdisc is looked for, and says nothing.
        Err(error) if error.exists() => Ok(()),
        other => other,
    }
}

/// Adds the ingress hook to a link.
pub fn add_ingress(link: u32) -> Request {
    let header = Header { link, handle: INGRESS_HANDLE, parent: INGRESS, info: 0 };
    let mut message = Message::new(abi::RTM_NEWQDISC, abi::NLM_F_CREATE | abi::NLM_F_EXCL, &header.bytes());
    message.text(abi::TCA_KIND, "ingress");
    let purpose = Purpose::new("add ingress hook to link", format!("number {link}"));
    Request::new(message, purpose.needing("the kernel needs CONFIG_NET_SCH_INGRESS"))
}

/// Deletes the qdisc that hangs on `parent` ([`ROOT`] or [`INGRESS`]); a root goes back to the default.
pub fn delete(link: u32, parent: u32) -> Request {
    let handle = if parent == INGRESS { INGRESS_HANDLE } else { 0 };
    let message = Message::new(abi::RTM_DELQDISC, 0, &Header { link, handle, parent, info: 0 }.bytes());
    Request::new(message, Purpose::new("delete qdisc of link", format!("number {link}")))
}

/// The qdiscs of one link, or of all.
///
/// # Errors
/// When the kernel refuses.
pub fn list(socket: &mut Socket, link: Option<u32>) -> Result<Vec<Qdisc>, Error> {
    let header = Header { link: link.unwrap_or(0), ..Header::default() };
    let message = Message::new(abi::RTM_GETQDISC, 0, &header.bytes());
    socket.dump(&Request::new(message, Purpose::new("list", "qdiscs")), |reply| {
        Qdisc::from_reply(reply)
            .map(|qdisc| Some(qdisc).filter(|qdisc| link.is_none_or(|link| qdisc.link == link)))
    })
}

/// The request for the qdisc that hangs on `parent`, for use within a batch; decode its answer with
/// [`Qdisc::from_reply`]. A link without a queue has none at its root, which is an error
/// ([`Error::is_missing`]).
pub fn look_up(link: u32, parent: u32) -> Request {
    // Most kernels answer as if it were a change: to whoever listens, and to us only if we want to hear it.
    let header = Header { link, parent, ..Header::default() };
    let message = Message::new(abi::RTM_GETQDISC, abi::NLM_F_ECHO, &header.bytes());
    Request::new(message, Purpose::new("find qdisc of link", format!("number {link}")))
}

impl Tbf {
    /// Whether `found`, as the kernel tells it, is this: it keeps the burst as a time and tells the lower half
    /// of it, in ticks.
    pub fn is(&self, found: &Self) -> bool {
        let [wanted, told] = [self, found].map(|tbf| ticks(tbf.burst, tbf.rate) as u32);
        let difference = wanted.wrapping_sub(told).min(told.wrapping_sub(wanted));
        let byte = ticks(1, self.rate);
        self.rate == found.rate && self.limit == found.limit && u64::from(difference) <= SLACK + byte
    }
}

impl Qdisc {
    /// Decodes a message about one qdisc.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn from_reply(reply: Reply<'_>) -> Result<Self, Malformed> {
        let (header, attributes) = Header::split(reply)?;
        let kind = attributes.find(abi::TCA_KIND)?.ok_or(Malformed::Missing { what: "kind of qdisc" })?;
        let kind = kind.text()?.to_owned();
        let Header { link, handle, parent, .. } = header;
        let (tbf, htb) = match (attributes.find(abi::TCA_OPTIONS)?, kind.as_str()) {
            (Some(options), "tbf") => (read_tbf(options.nested())?, None),
            (Some(options), "htb") => (None, Htb::read(options.nested())?),
            _ => (None, None),
        };
        Ok(Self { link, handle, parent, kind, tbf, htb })
    }
}

/// `struct tc_tbf_qopt`: rate and peak rate (`struct tc_ratespec`, 12 bytes each), limit, buffer, mtu (u32 each).
fn parameters(tbf: &Tbf) -> [u8; 36] {
    let mut bytes = [0; 36];
    bytes[..12].copy_from_slice(&rate_parameters(tbf.rate));
    bytes[24..28].copy_from_slice(&tbf.limit.to_ne_bytes());
    bytes[28..32].copy_from_slice(&most_ticks(tbf).to_ne_bytes());
    bytes
}

/// How long the burst takes at this rate, in ticks of the packet scheduler.
fn ticks(burst: u32, rate: u64) -> u64 {
    let nanoseconds = u128::from(burst) * 1_000_000_000 / u128::from(rate.max(1));
    u64::try_from(nanoseconds / TICK_NANOSECONDS).unwrap_or(u64::MAX)
}

/// The same, as far as a request can say it: up to some 275 seconds.
fn most_ticks(tbf: &Tbf) -> u32 {
    u32::try_from(ticks(tbf.burst, tbf.rate)).unwrap_or(u32::MAX)
}

fn read_tbf(options: Attributes<'_>) -> Result<Option<Tbf>, Malformed> {
    let Some(parameters) = options.find(abi::TCA_TBF_PARMS)? else { return Ok(None) };
    let bytes = parameters.array::<36>("the parameters of a token bucket filter")?;
    let number = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let rate = match options.find(abi::TCA_TBF_RATE64)? {
        Some(large) => large.u64()?,
        None => number(8).into(),
    };
    Ok(Some(Tbf { rate, burst: bytes_in(number(28), rate), limit: number(24) }))
}

/// The burst that takes this many ticks. The kernel gives bursts back as times; rounding loses a byte or two,
/// which we put back.
fn bytes_in(ticks: u32, rate: u64) -> u32 {
    let nanoseconds = u128::from(ticks) * TICK_NANOSECONDS;
    let burst = (nanoseconds * u128::from(rate)).div_ceil(1_000_000_000);
    u32::try_from(burst).unwrap_or(u32::MAX)
}

/// `struct tc_ratespec`, with a rate that is also told in an attribute of its own when it does not fit.
fn rate_parameters(rate: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[1] = ETHERNET;
    bytes[8..].copy_from_slice(&u32::try_from(rate).unwrap_or(u32::MAX).to_ne_bytes());
    bytes
}

/// `struct tcmsg`: family (u8), padding, link (i32), handle, parent, info (u32 each).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Header {
    pub(crate) link: u32,
    pub(crate) handle: u32,
    pub(crate) parent: u32,
    pub(crate) info: u32,
}

impl Header {
    const SIZE: usize = 20;

    pub(crate) fn bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        for (at, number) in [(4, self.link), (8, self.handle), (12, self.parent), (16, self.info)] {
            bytes[at..at + 4].copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }

    pub(crate) fn split(reply: Reply<'_>) -> Result<(Self, Attributes<'_>), Malformed> {
        let (header, attributes) = reply.split::<{ Self::SIZE }>()?;
        let number =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let header = Self { link: number(4), handle: number(8), parent: number(12), info: number(16) };
        Ok((header, attributes))
    }
}
