//! The socket for routers' words, and addresses that end by themselves, in real namespaces. RFC 4861 section 6.1.2.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a failure here is a failure of the test, and tools are what it asserts with"
)]

use std::net::{Ipv6Addr, SocketAddrV6};

use harness::{Namespace, eventually};
use kernel::address::{self, NewAddress};
use kernel::netlink::Protocol;
use kernel::netns::Netns;
use kernel::routers::RouterSocket;
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sockopt};

const SPEAKER: &str = "fe80::1";
const HEARER: &str = "fe80::2";
/// An advertisement without options: type, code, checksum, hop limit, flags, lifetime, two timers.
const ADVERTISEMENT: [u8; 16] = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
/// A solicitation, which is not for us.
const SOLICITATION: [u8; 8] = [133, 0, 0, 0, 0, 0, 0, 0];

/// Two namespaces and a cable, with link-local addresses that work at once.
fn cable() -> (Namespace, Namespace) {
    let (speaker, hearer) = (Namespace::new(), Namespace::new());
    let peer = hearer.path();
    speaker.ip(&format!("link add near type veth peer name far netns {}", peer.display()));
    for (namespace, name, own) in [(&speaker, "near", SPEAKER), (&hearer, "far", HEARER)] {
        namespace.ip(&format!("link set {name} addrgenmode none up"));
        namespace.ip(&format!("address add {own}/64 dev {name} nodad"));
    }
    (speaker, hearer)
}

fn index(namespace: &Namespace, name: &str) -> u32 {
    u32::try_from(namespace.ip_json(&format!("link show {name}"))[0]["ifindex"].as_u64().unwrap()).unwrap()
}

/// Sends an ICMPv6 message to all nodes with this hop limit.
fn speak(namespace: &Namespace, message: &[u8], hops: u32) {
    let link = index(namespace, "near");
    let inside = Netns::open(namespace.path()).unwrap();
    let socket = {
        let _inside = inside.enter().unwrap();
        rustix::net::socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6)).unwrap()
    };
    sockopt::set_ipv6_multicast_hops(&socket, hops).unwrap();
    let all_nodes = SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, link);
    rustix::net::sendto(&socket, message, SendFlags::empty(), &all_nodes).unwrap();
}

#[test]
fn an_advertisement_of_this_link_is_heard_and_nothing_else() {
    let (speaker, hearer) = cable();
    let ear = RouterSocket::open(&Netns::open(hearer.path()).unwrap(), index(&hearer, "far")).unwrap();
    let elsewhere = RouterSocket::open(&Netns::open(hearer.path()).unwrap(), index(&hearer, "lo")).unwrap();
    let mut buffer = [0; 64];
    assert_eq!(ear.receive(&mut buffer).unwrap(), None);
    speak(&speaker, &ADVERTISEMENT, 64);
    speak(&speaker, &SOLICITATION, 255);
    speak(&speaker, &ADVERTISEMENT, 255);
    let heard = eventually("the advertisement is heard", || ear.receive(&mut buffer).unwrap());
    assert_eq!(heard, (16, SPEAKER.parse::<Ipv6Addr>().unwrap()));
    assert_eq!((buffer[0], &buffer[4..16]), (134, &ADVERTISEMENT[4..]));
    assert_eq!(ear.receive(&mut buffer).unwrap(), None, "the others were before it, and are not to be heard");
    assert_eq!(elsewhere.receive(&mut buffer).unwrap(), None);
}

#[test]
fn a_solicitation_reaches_the_routers_of_the_link() {
    let (asker, router) = cable();
    // Whoever forwards is a member of the group of all routers.
    router.ip("link set lo up");
    harness::run_ok(router.command("sh").args(["-c", "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"]));
    let ear = RouterSocket::open(&Netns::open(router.path()).unwrap(), index(&router, "far")).unwrap();
    let mouth = RouterSocket::open(&Netns::open(asker.path()).unwrap(), index(&asker, "near")).unwrap();
    // What the socket of a router hears of us is an advertisement only; the way is the same.
    mouth.send(&ADVERTISEMENT).unwrap();
    let mut buffer = [0; 64];
    let heard = eventually("it arrives, with hop limit 255", || ear.receive(&mut buffer).unwrap());
    assert_eq!(heard.1, SPEAKER.parse::<Ipv6Addr>().unwrap());
}

#[test]
fn an_address_can_be_given_an_end_and_a_later_one() {
    let pod = Namespace::with_loopback();
    pod.ip("link add eth0 type veth peer name other");
    let mut socket = Netns::open(pod.path()).unwrap().socket(Protocol::Route).unwrap();
    let new = NewAddress::new(index(&pod, "eth0"), "2001:db8::5/64".parse().unwrap());
    let lifetimes = || {
        let shown = pod.ip_json("-6 address show dev eth0 scope global");
        let address = shown[0]["addr_info"][0].clone();
        (address["preferred_life_time"].as_u64().unwrap(), address["valid_life_time"].as_u64().unwrap())
    };
    socket.execute(address::add(&new)).unwrap();
    assert_eq!(lifetimes(), (u32::MAX.into(), u32::MAX.into()));
    for (preferred, valid) in [(1000, 2000), (5000, 9000)] {
        let change = NewAddress { lifetimes: Some((preferred, valid)), ..new };
        socket.execute(address::replace(&change)).unwrap();
        let (left, left_valid) = lifetimes();
        assert!((preferred - 500..=preferred).contains(&u32::try_from(left).unwrap()), "{left}");
        assert!((valid - 500..=valid).contains(&u32::try_from(left_valid).unwrap()), "{left_valid}");
    }
}
