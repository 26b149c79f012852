//! Queueing disciplines, as far as shaping a pod's traffic needs them: the token bucket filter at the root of a
//! link, and the ingress hook that filters hang on.
//!
//! Read [`Tbf`] for the numbers: all in bytes, rates in bytes a second.

use crate::netlink::{Attributes, Malformed, Message, Purpose, Reply, Request, Socket};
use crate::{Error, abi};

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
}

/// Parent of a link's outermost qdisc.
pub const ROOT: u32 = abi::TC_H_ROOT;
/// Parent of the ingress hook.
pub const INGRESS: u32 = abi::TC_H_INGRESS;

/// Handle of the ingress hook, `ffff:`.
const INGRESS_HANDLE: u32 = 0xffff_0000;
/// Handle we give a root qdisc, `1:`.
const ROOT_HANDLE: u32 = 0x0001_0000;
/// `TC_LINKLAYER_ETHERNET`: lets the kernel compute transmission times itself, without our table.
const ETHERNET: u8 = 1;
/// A tick of the packet scheduler, in nanoseconds (`PSCHED_SHIFT` of 6).
const TICK_NANOSECONDS: u128 = 64;

/// Puts a token bucket filter at the root of a link, in place of what is there.
pub fn set_tbf(link: u32, tbf: &Tbf) -> Request {
    let header = Header { link, handle: ROOT_HANDLE, parent: ROOT };
    let mut message =
        Message::new(abi::RTM_NEWQDISC, abi::NLM_F_CREATE | abi::NLM_F_REPLACE, &header.bytes());
    message.text(abi::TCA_KIND, "tbf").nest(abi::TCA_OPTIONS, |options| {
        options.put(abi::TCA_TBF_PARMS, &parameters(tbf)).u32(abi::TCA_TBF_BURST, tbf.burst);
        if tbf.rate > u64::from(u32::MAX) {
            options.u64(abi::TCA_TBF_RATE64, tbf.rate);
        }
    });
    let object = format!("on link number {link} to {} bytes a second", tbf.rate);
    Request::new(
        message,
        Purpose::new("set rate limit", object).needing("the kernel needs CONFIG_NET_SCH_TBF"),
    )
}

/// Adds the ingress hook to a link.
pub fn add_ingress(link: u32) -> Request {
    let header = Header { link, handle: INGRESS_HANDLE, parent: INGRESS };
    let mut message = Message::new(abi::RTM_NEWQDISC, abi::NLM_F_CREATE | abi::NLM_F_EXCL, &header.bytes());
    message.text(abi::TCA_KIND, "ingress");
    let purpose = Purpose::new("add ingress hook to link", format!("number {link}"));
    Request::new(message, purpose.needing("the kernel needs CONFIG_NET_SCH_INGRESS"))
}

/// Deletes the qdisc that hangs on `parent` ([`ROOT`] or [`INGRESS`]); a root goes back to the default.
pub fn delete(link: u32, parent: u32) -> Request {
    let handle = if parent == INGRESS { INGRESS_HANDLE } else { 0 };
    let message = Message::new(abi::RTM_DELQDISC, 0, &Header { link, handle, parent }.bytes());
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

impl Qdisc {
    /// Decodes a message about one qdisc.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn from_reply(reply: Reply<'_>) -> Result<Self, Malformed> {
        let (header, attributes) = reply.split::<{ Header::SIZE }>()?;
        let [_, _, _, _, i0, i1, i2, i3, h0, h1, h2, h3, p0, p1, p2, p3, ..] = *header;
        let kind = attributes.find(abi::TCA_KIND)?.ok_or(Malformed::Missing { what: "kind of qdisc" })?;
        let kind = kind.text()?.to_owned();
        let tbf = match attributes.find(abi::TCA_OPTIONS)? {
            Some(options) if kind == "tbf" => read_tbf(options.nested())?,
            _ => None,
        };
        Ok(Self {
            link: u32::from_ne_bytes([i0, i1, i2, i3]),
            handle: u32::from_ne_bytes([h0, h1, h2, h3]),
            parent: u32::from_ne_bytes([p0, p1, p2, p3]),
            kind,
            tbf,
        })
    }
}

/// `struct tc_tbf_qopt`: rate and peak rate (`struct tc_ratespec`, 12 bytes each), limit, buffer, mtu (u32 each).
fn parameters(tbf: &Tbf) -> [u8; 36] {
    let mut bytes = [0; 36];
    bytes[1] = ETHERNET;
    let rate = u32::try_from(tbf.rate).unwrap_or(u32::MAX);
    bytes[8..12].copy_from_slice(&rate.to_ne_bytes());
    bytes[24..28].copy_from_slice(&tbf.limit.to_ne_bytes());
    bytes[28..32].copy_from_slice(&ticks(tbf.burst, tbf.rate).to_ne_bytes());
    bytes
}

/// How long the burst takes at this rate, in ticks of the packet scheduler.
fn ticks(burst: u32, rate: u64) -> u32 {
    let nanoseconds = u128::from(burst) * 1_000_000_000 / u128::from(rate.max(1));
    u32::try_from(nanoseconds / TICK_NANOSECONDS).unwrap_or(u32::MAX)
}

fn read_tbf(options: Attributes<'_>) -> Result<Option<Tbf>, Malformed> {
    let Some(parameters) = options.find(abi::TCA_TBF_PARMS)? else { return Ok(None) };
    let bytes = parameters.array::<36>("the parameters of a token bucket filter")?;
    let number = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let rate = match options.find(abi::TCA_TBF_RATE64)? {
        Some(large) => large.u64()?,
        None => number(8).into(),
    };
    // The kernel gives the burst back as a time; rounding loses a byte or two, which we put back.
    let nanoseconds = u128::from(number(28)) * TICK_NANOSECONDS;
    let burst = (nanoseconds * u128::from(rate)).div_ceil(1_000_000_000);
    Ok(Some(Tbf { rate, burst: u32::try_from(burst).unwrap_or(u32::MAX), limit: number(24) }))
}

/// `struct tcmsg`: family (u8), padding, link (i32), handle, parent, info (u32 each).
#[derive(Default)]
struct Header {
    link: u32,
    handle: u32,
    parent: u32,
}

impl Header {
    const SIZE: usize = 20;

    fn bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[4..8].copy_from_slice(&self.link.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.handle.to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.parent.to_ne_bytes());
        bytes
    }
}
