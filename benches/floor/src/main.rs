//! The kernel's floor under a CNI plugin: the netlink requests of bridge + host-local with nothing around them.
//!
//! Read [`main`]: one verb a run, so that process start is paid as a plugin pays it. There is no parsing, no
//! locking, no file and no checking here; what is left is what the kernel charges. The plugins are measured
//! against it by `cargo xtask bench`.
//!
//! - `floor nothing`: an empty static program.
//! - `floor add BRIDGE NETNS N`: a veth pair whose peer is born in the pod's namespace, enslaved and up, in one
//!   message; hairpin; then in the pod: `eth0` up, address 10.88.0.N/16 and a default route, in one send; and one
//!   element into nft set `floor` of table `inet floor`, as ipMasq does.
//! - `floor check BRIDGE NETNS N`: the look-ups of CHECK: bridge, host end, pod's end, addresses of both sides, routes,
//!   the nft element and its rule.
//! - `floor del BRIDGE NETNS N`: deletes the element and the pair.
//! - `floor map-add|map-check BRIDGE NETNS N`: portmap's share of a chain: one element into map `hostports` of the same
//!   table, or looked up with the rules of one chain.
//! - `floor shape-add|shape-check BRIDGE NETNS N`: bandwidth's share: an IFB, up; token buckets on it and on the pair's
//!   host end; a filter that leads from one to the other. Or the look-ups of all that.
//! - `floor held BRIDGE NETNS N`: one look-up: what a plugin does whose share is removed together with the pair.
//! - `floor chain-del BRIDGE NETNS N`: deletes both elements in one transaction, and pair and IFB in one request.
//! - `floor peak PROGRAM`: runs a program to its end and prints the most memory it held, in KiB.
//!
//! The bridge (up, 10.88.0.1/16) and the nft table are there before.
#![allow(unsafe_code, reason = "raw system calls are the point of this program")]
#![allow(clippy::expect_used, reason = "a floor that fails must stop the benchmark")]

mod message;
mod shape;

use std::{ffi::CString, os::fd::RawFd};

use message::Message;

const NLM_F_CREATE_EXCL: u16 = 0x600;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["nothing"] => {}
        ["add", bridge, netns, number] => add(bridge, netns, number.parse().expect("a number")),
        ["check", bridge, netns, number] => check(bridge, netns, number.parse().expect("a number")),
        ["del", _, _, number] => del(number.parse().expect("a number")),
        [verb, _, _, number] => share(verb, number.parse().expect("a number")),
        ["peak", program] => peak(program),
        _ => std::process::exit(2),
    }
}

fn add(bridge: &str, netns: &str, number: u8) {
    let host = socket(libc::NETLINK_ROUTE);
    let pod = open(netns);
    let master = index(bridge);
    let mut veth = Message::new(libc::RTM_NEWLINK, NLM_F_CREATE_EXCL);
    veth.link(0, 0, true);
    veth.text(libc::IFLA_IFNAME, &host_name(number));
    veth.number(libc::IFLA_MASTER, master);
    veth.nest(libc::IFLA_LINKINFO, |info| {
        info.text(libc::IFLA_INFO_KIND, "veth");
        info.nest(libc::IFLA_INFO_DATA, |data| {
            data.nest(1, |peer| {
                peer.link(0, 0, false);
                peer.text(libc::IFLA_IFNAME, "eth0");
                peer.number(libc::IFLA_NET_NS_FD, u32::try_from(pod).expect("a descriptor"));
            });
        });
    });
    exchange(host, &[veth]);
    let mut hairpin = Message::new(libc::RTM_SETLINK, 0);
    hairpin.bridge_port(index(&host_name(number)));
    let element = Message::element(message::NEWSETELEM, number);
    exchange(host, &[hairpin]);
    let filter = socket(libc::NETLINK_NETFILTER);
    exchange(filter, &[Message::batch(16), element, Message::batch(17)]);
    enter(pod);
    let inside = socket(libc::NETLINK_ROUTE);
    let eth0 = index("eth0");
    let mut up = Message::new(libc::RTM_NEWLINK, 0);
    up.link(0, eth0, true);
    let mut address = Message::new(libc::RTM_NEWADDR, NLM_F_CREATE_EXCL);
    address.address(eth0, [10, 88, 0, number], 16);
    let mut route = Message::new(libc::RTM_NEWROUTE, NLM_F_CREATE_EXCL);
    route.default_route(eth0, [10, 88, 0, 1]);
    exchange(inside, &[up, address, route]);
}

fn check(bridge: &str, netns: &str, number: u8) {
    let host = socket(libc::NETLINK_ROUTE);
    let get = |name: &str| {
        let mut message = Message::new(libc::RTM_GETLINK, 0);
        message.link(0, 0, false);
        message.text(libc::IFLA_IFNAME, name);
        message
    };
    exchange(host, &[get(bridge), get(&host_name(number))]);
    let filter = socket(libc::NETLINK_NETFILTER);
    enter(open(netns));
    let inside = socket(libc::NETLINK_ROUTE);
    exchange(inside, &[get("eth0")]);
    for (socket, kind) in
        [(inside, libc::RTM_GETADDR), (inside, libc::RTM_GETROUTE), (host, libc::RTM_GETADDR)]
    {
        let mut dump = Message::new(kind, 0x300);
        dump.family();
        exchange(socket, &[dump]);
    }
    exchange(filter, &[Message::element(message::GETSETELEM, number)]);
    exchange(filter, &[Message::rules()]);
}

fn del(number: u8) {
    // The element first: the kernel waits for readers of both, and so the two waits overlap.
    let filter = socket(libc::NETLINK_NETFILTER);
    exchange(
        filter,
        &[Message::batch(16), Message::element(message::DELSETELEM, number), Message::batch(17)],
    );
    let mut gone = Message::new(libc::RTM_DELLINK, 0);
    gone.link(0, 0, false);
    gone.text(libc::IFLA_IFNAME, &host_name(number));
    exchange(socket(libc::NETLINK_ROUTE), &[gone]);
}

/// One plugin's share of a chain.
fn share(verb: &str, number: u8) {
    let host = || socket(libc::NETLINK_ROUTE);
    let filter = || socket(libc::NETLINK_NETFILTER);
    match verb {
        "map-add" => exchange(
            filter(),
            &[Message::batch(16), Message::mapping(message::NEWSETELEM, number), Message::batch(17)],
        ),
        "map-check" => {
            let filter = filter();
            exchange(filter, &[Message::mapping(message::GETSETELEM, number)]);
            exchange(filter, &[Message::rules()]);
        }
        "shape-add" => shape::add(host(), number),
        "shape-check" => shape::check(host(), number),
        "held" => exchange(host(), &[shape::look_up(&host_name(number))]),
        "chain-del" => {
            let elements = [
                Message::element(message::DELSETELEM, number),
                Message::mapping(message::DELSETELEM, number),
            ];
            let [element, mapping] = elements;
            exchange(filter(), &[Message::batch(16), element, mapping, Message::batch(17)]);
            shape::delete(host(), number);
        }
        _ => std::process::exit(2),
    }
}

/// Runs a program with this one's streams and prints its `ru_maxrss`.
#[allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::zombie_processes,
    reason = "it measures a program, for the benchmark to read"
)]
fn peak(program: &str) {
    let child = std::process::Command::new(program).spawn().expect("the program starts");
    let mut status = 0;
    // SAFETY: an all-zero rusage is a value of that type.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let id = libc::pid_t::try_from(child.id()).expect("a process id");
    // SAFETY: both places live through the call.
    let waited = unsafe { libc::wait4(id, &raw mut status, 0, &raw mut usage) };
    assert!(waited == id && status == 0, "{program} ended with {status}");
    eprintln!("{}", usage.ru_maxrss);
}

fn host_name(number: u8) -> String {
    format!("floor{number}")
}

fn socket(protocol: i32) -> RawFd {
    // SAFETY: a system call without pointers.
    let socket = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
    assert!(socket >= 0, "a netlink socket");
    socket
}

fn open(path: &str) -> RawFd {
    let path = CString::new(path).expect("a path without NUL");
    // SAFETY: the path is a string that ends with NUL and lives through the call.
    let descriptor = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
    assert!(descriptor >= 0, "the namespace opens");
    descriptor
}

fn enter(netns: RawFd) {
    // SAFETY: a system call without pointers; this process has one thread.
    assert_eq!(unsafe { libc::setns(netns, libc::CLONE_NEWNET) }, 0, "the namespace is entered");
}

fn index(name: &str) -> u32 {
    let name = CString::new(name).expect("a name without NUL");
    // SAFETY: the name is a string that ends with NUL and lives through the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(index, 0, "{name:?} is there");
    index
}

/// Sends all messages at once and reads until each is acknowledged (a dump: until it is done).
fn exchange(socket: RawFd, messages: &[Message]) {
    let bytes: Vec<u8> = messages.iter().flat_map(|message| message.bytes()).collect();
    // SAFETY: the buffer lives through the call and its length is given.
    let sent = unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), 0) };
    assert_eq!(usize::try_from(sent).ok(), Some(bytes.len()), "the kernel takes the messages");
    let mut open = messages.iter().filter(|message| message.is_answered()).count();
    let mut buffer = vec![0_u8; 64 * 1024];
    while open > 0 {
        // SAFETY: the buffer lives through the call and its length is given.
        let read = unsafe { libc::recv(socket, buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let read = usize::try_from(read).expect("the kernel answers");
        open = open.saturating_sub(message::answers(&buffer[..read]));
    }
}
