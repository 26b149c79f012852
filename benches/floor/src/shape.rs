//! The kernel's share of a traffic limit: an IFB beside the pair, a token bucket on each, a filter between them.
//!
//! Layouts follow `include/uapi/linux/pkt_sched.h` and `pkt_cls.h`.

use std::os::fd::RawFd;

use crate::{NLM_F_CREATE_EXCL, exchange, host_name, index, message::Message};

const ROOT: u32 = 0xffff_ffff;
const INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;
const HANDLE: u32 = 0x0001_0000;
const GROUP: u32 = 7_000_000;

/// Makes the IFB and shapes both ways.
pub(crate) fn add(host: RawFd, number: u8) {
    let mut ifb = Message::new(libc::RTM_NEWLINK, NLM_F_CREATE_EXCL);
    ifb.link(0, 0, true);
    ifb.text(libc::IFLA_IFNAME, &ifb_name(number));
    ifb.nest(libc::IFLA_LINKINFO, |info| info.text(libc::IFLA_INFO_KIND, "ifb"));
    exchange(host, &[ifb]);
    let (veth, ifb) = (index(&host_name(number)), index(&ifb_name(number)));
    let mut hook = Message::new(libc::RTM_NEWQDISC, NLM_F_CREATE_EXCL);
    hook.traffic(veth, INGRESS_HANDLE, INGRESS, 0);
    hook.text(1, "ingress");
    exchange(host, &[bucket(veth), bucket(ifb), hook, redirect(veth, ifb)]);
}

/// The look-ups of CHECK.
pub(crate) fn check(host: RawFd, number: u8) {
    exchange(host, &[look_up(&host_name(number)), look_up(&ifb_name(number))]);
    for (name, kind, parent) in [
        (host_name(number), libc::RTM_GETQDISC, 0),
        (ifb_name(number), libc::RTM_GETQDISC, 0),
        (host_name(number), libc::RTM_GETTFILTER, INGRESS_HANDLE),
    ] {
        let mut dump = Message::new(kind, 0x300);
        dump.traffic(index(&name), 0, parent, 0);
        exchange(host, &[dump]);
    }
}

/// Pair and IFB go in one request, by a group of their own.
pub(crate) fn delete(host: RawFd, number: u8) {
    let regroup = |name: &str| {
        let mut message = Message::new(libc::RTM_SETLINK, 0);
        message.link(0, index(name), false);
        message.number(libc::IFLA_GROUP, GROUP);
        message
    };
    let mut gone = Message::new(libc::RTM_DELLINK, 0);
    gone.link(0, 0, false);
    gone.number(libc::IFLA_GROUP, GROUP);
    exchange(host, &[regroup(&host_name(number)), regroup(&ifb_name(number)), gone]);
}

/// One link by name.
pub(crate) fn look_up(name: &str) -> Message {
    let mut message = Message::new(libc::RTM_GETLINK, 0);
    message.link(0, 0, false);
    message.text(libc::IFLA_IFNAME, name);
    message
}

/// A token bucket filter at the root: 12.5 MB a second, 1 MB at once, 2 MB waiting.
fn bucket(link: u32) -> Message {
    let mut message = Message::new(libc::RTM_NEWQDISC, NLM_F_CREATE_EXCL);
    message.traffic(link, HANDLE, ROOT, 0);
    message.text(1, "tbf");
    let mut parameters = [0; 36];
    parameters[1] = 1;
    parameters[8..12].copy_from_slice(&12_500_000_u32.to_ne_bytes());
    parameters[24..28].copy_from_slice(&2_000_000_u32.to_ne_bytes());
    parameters[28..32].copy_from_slice(&1_250_000_u32.to_ne_bytes());
    message.nest(2, |options| {
        options.attribute(1, &parameters);
        options.number(6, 1_000_000);
    });
    message
}

/// What comes in by one link goes out by another.
fn redirect(from: u32, to: u32) -> Message {
    let mut message = Message::new(libc::RTM_NEWTFILTER, NLM_F_CREATE_EXCL);
    // Priority 1, every protocol.
    message.traffic(from, 0, INGRESS_HANDLE, 1 << 16 | u32::from(3_u16.to_be()));
    message.text(1, "u32");
    // One key that matches anything, terminal.
    let mut selector = [0; 32];
    selector[0] = 1;
    selector[2] = 1;
    // TC_ACT_STOLEN, TCA_EGRESS_REDIR.
    let mut mirred = [0; 28];
    mirred[8..12].copy_from_slice(&4_u32.to_ne_bytes());
    mirred[20..24].copy_from_slice(&1_u32.to_ne_bytes());
    mirred[24..28].copy_from_slice(&to.to_ne_bytes());
    message.nest(2, |options| {
        options.attribute(5, &selector);
        options.nest(7, |actions| {
            actions.nest(1, |action| {
                action.text(1, "mirred");
                action.nest(2, |options| options.attribute(2, &mirred));
            });
        });
    });
    message
}

fn ifb_name(number: u8) -> String {
    format!("shape{number}")
}
